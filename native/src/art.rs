//! The art of the corpus `emoji`, as `models/fetch_emoji.sh` leaves it.

use std::path::Path;

use anyhow::{Context, Result};
use wuerstchen::fs::read_text;
use wuerstchen_train::emoji::{Art, ArtFiles, PackFiles, Style};

use crate::cache::cache_folder;

/// Reads the art from a folder [default: the one that the script fills].
pub(crate) fn read_art(folder: Option<&Path>) -> Result<Art> {
    let folder = folder.map_or_else(|| cache_folder("emoji"), |folder| Ok(folder.to_owned()))?;
    let read = |file: &str| {
        read_text(&folder.join(file)).context("the art is not there: run models/fetch_emoji.sh")
    };
    let pack = |style: Style| {
        let [icons, chars] =
            ["icons", "chars"].map(|file| read(&format!("{}/{file}.json", style.pack())));
        Ok(PackFiles { icons: icons?, chars: chars? })
    };
    let packs = Style::ALL.map(pack).into_iter().collect::<Result<Vec<_>>>()?;
    let packs = packs.try_into().ok().expect("there is one of each style");
    let names = read("emojibase-data/en/data.json")?;
    Art::new(&ArtFiles { names, packs }).with_context(|| format!("in {}", folder.display()))
}
