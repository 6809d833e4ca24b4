//! A folder of captioned pictures, to be trained on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};
use image::DynamicImage;
use image::imageops::FilterType;
use serde::Deserialize;
use wuerstchen::Image;
use wuerstchen::noise::Philox;
use wuerstchen_train::corpus::{CorpusError, Samples};

use crate::files::{list, read_text};
use crate::pictures;

/// A file that tells the captions of all pictures beside it.
const METADATA: &str = "metadata.jsonl";

/// Names of files in one error message.
const NAMED: usize = 20;

/// Bytes of scaled pictures that are kept, so that a small folder is decoded once.
const KEPT_BYTES: usize = 2 << 30;

/// Captioned pictures, in another order in every epoch.
pub(crate) struct Folder {
    seed: u64,
    pictures: Vec<Picture>,
    /// How many bytes of scaled pictures were to be kept.
    kept: AtomicUsize,
    /// The order of the epoch that was asked for last.
    order: Mutex<(u64, Arc<[u32]>)>,
}

struct Picture {
    path: PathBuf,
    captions: Vec<String>,
    /// The picture at the size that was asked for first.
    scaled: OnceLock<Image>,
}

/// A line of [`METADATA`], as the folders of Hugging Face's `datasets` have it.
#[derive(Deserialize)]
struct Entry {
    file_name: String,
    #[serde(alias = "caption")]
    text: Captions,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Captions {
    One(String),
    Several(Vec<String>),
}

impl Folder {
    /// Finds the pictures of a folder, and in those below it, and their captions: in a text file of the
    /// picture's name, every line a caption, or in the folder's `metadata.jsonl`.
    pub(crate) fn open(folder: &Path, seed: u64) -> Result<Self> {
        let (mut paths, mut captions) = (Vec::new(), BTreeMap::new());
        find(folder, &mut paths, &mut captions)?;
        if paths.is_empty() {
            bail!("{}: expected PNG, JPEG or WebP files, found none", folder.display());
        }
        let (mut pictures, mut without) = (Vec::new(), Vec::new());
        for path in paths {
            let captions = match captions.remove(&path) {
                Some(captions) => captions,
                None => captions_beside(&path)?,
            };
            match captions.is_empty() {
                true => without.push(path),
                false => pictures.push(Picture { path, captions, scaled: OnceLock::new() }),
            }
        }
        // What the metadata name and the folder has not.
        refuse(&captions.into_keys().collect::<Vec<_>>(), "named in metadata.jsonl but not there")?;
        refuse(&without, "without a caption in a .txt file of the same name or in metadata.jsonl")?;
        let order = Mutex::new((u64::MAX, Arc::default()));
        Ok(Self { seed, pictures, kept: AtomicUsize::new(0), order })
    }

    /// How many pictures there are.
    pub(crate) fn len(&self) -> usize {
        self.pictures.len()
    }

    /// All captions.
    pub(crate) fn all_captions(&self) -> impl Iterator<Item = &str> + Send {
        self.pictures.iter().flat_map(|picture| picture.captions.iter().map(String::as_str))
    }

    /// Reads every picture once; fails with all that cannot be read.
    pub(crate) fn check(&self, on_picture: impl Fn()) -> Result<()> {
        let mut broken = Vec::new();
        for picture in &self.pictures {
            if let Err(error) = pictures::read_image(&picture.path) {
                eprintln!("{error:#}");
                broken.push(picture.path.clone());
            }
            on_picture();
        }
        refuse(&broken, "that cannot be read")
    }

    /// The picture of a number: every epoch shows each once.
    fn at(&self, number: u64) -> &Picture {
        let count = self.pictures.len() as u64;
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if order.0 != number / count {
            *order = (number / count, shuffled(count as u32, self.seed, number / count));
        }
        &self.pictures[order.1[(number % count) as usize] as usize]
    }
}

impl Samples for Folder {
    fn picture(&self, number: u64, side: usize) -> Result<Image, CorpusError> {
        let picture = self.at(number);
        if let Some(image) = picture.scaled.get().filter(|image| image.width == side) {
            return Ok(image.clone());
        }
        let image = read_scaled(&picture.path, side).map_err(|error| CorpusError::Picture {
            name: picture.path.display().to_string(),
            reason: error.root_cause().to_string(),
        })?;
        let size = image.rgb.len();
        if self.kept.fetch_add(size, Ordering::Relaxed) + size <= KEPT_BYTES {
            // Another thread may have been faster, with the same picture.
            let _ = picture.scaled.set(image.clone());
        }
        Ok(image)
    }

    fn captions(&self, number: u64) -> Vec<String> {
        self.at(number).captions.clone()
    }

    fn prompt(&self, number: u64) -> String {
        self.at(number).captions[0].clone()
    }
}

/// A picture, scaled to cover a square, what stands out cut off on both sides; on white where it is
/// transparent.
fn read_scaled(path: &Path, side: usize) -> Result<Image> {
    let mut pixels = pictures::decode(path)?.into_rgba8();
    for pixel in pixels.pixels_mut() {
        let [red, green, blue, alpha] = pixel.0.map(u32::from);
        let over = |colour| ((colour * alpha + 255 * (255 - alpha)) / 255) as u8;
        pixel.0 = [over(red), over(green), over(blue), u8::MAX];
    }
    let (width, height) = (side, side);
    let scaled =
        DynamicImage::from(pixels).resize_to_fill(side as u32, side as u32, FilterType::Lanczos3);
    Ok(Image { width, height, rgb: scaled.into_rgb8().into_raw() })
}

/// Collects the pictures of a folder and of those below it, and what metadata say of them.
fn find(
    folder: &Path,
    pictures: &mut Vec<PathBuf>,
    captions: &mut BTreeMap<PathBuf, Vec<String>>,
) -> Result<()> {
    for path in list(folder)? {
        let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
        if path.is_dir() {
            find(&path, pictures, captions)?;
        } else if path.file_name().is_some_and(|name| name == METADATA) {
            let text = read_text(&path)?;
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            for (number, line) in lines {
                let entry: Entry = serde_json::from_str(line).with_context(|| {
                    let (path, line) = (path.display(), number + 1);
                    format!("{path}, line {line}: expected {{\"file_name\": …, \"text\": …}}")
                })?;
                let said = match entry.text {
                    Captions::One(caption) => vec![caption],
                    Captions::Several(captions) => captions,
                };
                captions.insert(folder.join(entry.file_name), trimmed(said.iter()));
            }
        } else if extension.is_some_and(|e| ["png", "jpg", "jpeg", "webp"].iter().any(|o| e == *o))
        {
            pictures.push(path);
        }
    }
    Ok(())
}

fn captions_beside(picture: &Path) -> Result<Vec<String>> {
    let path = picture.with_extension("txt");
    match path.is_file() {
        true => Ok(trimmed(read_text(&path)?.lines())),
        false => Ok(Vec::new()),
    }
}

/// Captions that say something.
fn trimmed<S: AsRef<str>>(captions: impl Iterator<Item = S>) -> Vec<String> {
    let captions = captions.map(|caption| caption.as_ref().trim().to_owned());
    captions.filter(|caption| !caption.is_empty()).collect()
}

/// Fails if there are pictures `what`: names them.
fn refuse(files: &[PathBuf], what: &str) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    let mut names: Vec<_> =
        files.iter().take(NAMED).map(|file| file.display().to_string()).collect();
    if files.len() > NAMED {
        names.push(format!("and {} more", files.len() - NAMED));
    }
    let pictures = match files.len() {
        1 => "a picture".to_owned(),
        count => format!("{count} pictures"),
    };
    bail!("{pictures} {what}:\n  {}", names.join("\n  "))
}

/// The numbers below `count` in the order of an epoch (Fisher–Yates).
fn shuffled(count: u32, seed: u64, epoch: u64) -> Arc<[u32]> {
    let mut rng = Philox::new(seed, epoch);
    let mut order: Vec<u32> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i as usize, rng.below(i + 1) as usize);
    }
    order.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_shows_each_picture_once_in_another_order() {
        let epochs = [0, 1].map(|epoch| shuffled(100, 7, epoch));
        assert_ne!(epochs[0], epochs[1]);
        for epoch in epochs {
            let mut numbers = epoch.to_vec();
            numbers.sort_unstable();
            assert_eq!(numbers, (0..100).collect::<Vec<_>>());
        }
    }
}
