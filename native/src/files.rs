//! Models, goldens and original weights as they lie on disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use wuerstchen::fs::{Found, read, read_text, with_extension};
use wuerstchen::{Checkpoint, ModelFiles, Part};
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

/// Reads `original/*.pt` of a folder into the weights of the parts, named as in diffusers.
pub(crate) fn read_originals(folder: &Path) -> Result<BTreeMap<Part, Checkpoint>> {
    let mut found = Found::default();
    for path in with_extension(&folder.join("original"), "pt")? {
        found.add(&path)?;
    }
    Ok(found.finish()?.weights)
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}
