//! Models, goldens and original weights as they lie on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use wuerstchen::fs::{Found, open_lora, read, read_text, with_extension};
use wuerstchen::import::recognise;
use wuerstchen::{Checkpoint, Family, Image, LoraFile, ModelFiles, Part};
use wuerstchen_verify::Goldens;

/// The model that runs where none is named.
const BUILT_IN: &[u8] = include_bytes!("../../models/shapes.safetensors");

/// Reads a model: anything that [`Found::add`] takes, or the built-in one. Weights stay where they
/// are until they are needed. Says which files are left out.
pub(crate) fn read_model(path: Option<&Path>) -> Result<ModelFiles> {
    let Some(path) = path else {
        return Ok(ModelFiles::from_bundle("the built-in model", Arc::new(BUILT_IN))?);
    };
    let mut found = Found::default();
    add(&mut found, path)?;
    Ok(found.finish()?)
}

/// Adds what is in a file or folder, and says which files are left out.
pub(crate) fn add(found: &mut Found, path: &Path) -> Result<()> {
    let told = found.notes().len();
    let added = found.add(path);
    found.notes()[told..].iter().for_each(|note| eprintln!("{note}"));
    Ok(added?)
}

/// Reads `golden/` of a folder.
pub(crate) fn read_goldens(folder: &Path) -> Result<Goldens> {
    let folder = folder.join("golden");
    let mut goldens = Goldens::default();
    for path in with_extension(&folder, "safetensors")? {
        let name = stem(&path);
        let checkpoint = Checkpoint::parse(&format!("golden/{name}"), Arc::new(read(&path)?))?;
        goldens.tensors.insert(name, checkpoint);
    }
    for path in with_extension(&folder, "json")? {
        goldens.texts.insert(stem(&path), read_text(&path)?);
    }
    if goldens.tensors.is_empty() {
        bail!("no goldens: expected safetensors files in {}", folder.display());
    }
    Ok(goldens)
}

/// Reads the authors' files in `original/` of a folder into the weights of a family's parts, named as in
/// diffusers. Of two files of one part the first counts.
pub(crate) fn read_originals(folder: &Path, family: &Family) -> Result<BTreeMap<Part, Checkpoint>> {
    let folder = folder.join("original");
    let mut found = Found::default();
    for path in with_extension(&folder, "pt")? {
        found.add(&path)?;
    }
    let mut weights = found.finish()?.weights;
    for path in with_extension(&folder, "safetensors")? {
        let name = path.display().to_string();
        let original = Checkpoint::parse(&name, Arc::new(read(&path)?))?.from_original();
        let mut parts = recognise(&original).into_iter();
        // Files of other things than parts are none of these.
        if let Some(part) = parts.find(|part| family.parts.contains(part)) {
            weights.entry(part).or_insert(original);
        }
    }
    Ok(weights)
}

/// Opens `original/lora.safetensors` of a folder, if it is there.
pub(crate) fn read_original_lora(folder: &Path) -> Result<Option<LoraFile>> {
    let path = folder.join("original/lora.safetensors");
    Ok(path.is_file().then(|| open_lora(&path)).transpose()?)
}

/// Writes a file so that it is whole or not there: under another name first, then renamed. A link stays a
/// link, and what it leads to is written.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let path = behind_link(path)?;
        let part = part_of(&path);
        let mut file = fs::File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Fails if [`write`] cannot write that file, which is as it was afterwards.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    let write = || {
        let part = part_of(&behind_link(path)?);
        fs::File::create(&part)?;
        fs::remove_file(&part)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The file that a link leads to; of any other path the path.
fn behind_link(path: &Path) -> std::io::Result<PathBuf> {
    match path.is_symlink() {
        true => path.canonicalize(),
        false => Ok(path.to_owned()),
    }
}

/// What a file is called until it is whole; two programs may write the same file at a time.
fn part_of(path: &Path) -> PathBuf {
    path.with_added_extension(format!("{}.part", std::process::id()))
}

/// Writes pictures of one size side by side, `columns` in a row.
pub(crate) fn write_png_grid(path: &Path, images: &[Image], columns: usize) -> Result<()> {
    let Some(first) = images.first() else { return Ok(()) };
    let (width, height) = (first.width * columns, first.height * images.len().div_ceil(columns));
    let mut rgb = vec![u8::MAX; width * height * 3];
    for (i, image) in images.iter().enumerate() {
        let (left, top) = (i % columns * image.width, i / columns * image.height);
        for (y, row) in image.rgb.chunks(image.width * 3).enumerate() {
            let start = ((top + y) * width + left) * 3;
            rgb[start..start + row.len()].copy_from_slice(row);
        }
    }
    let grid = Image { width, height, rgb };
    write(path, &grid.to_png().context("cannot encode the pictures")?)
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}
