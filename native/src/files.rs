//! Models, goldens and original weights as they lie on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;
use wuerstchen::fs::{
    Found, has_extension, open, open_lora, read, read_pytorch_tensors, read_text, with_extension,
};
use wuerstchen::{Checkpoint, Family, LoadError, LoraFile, Manifest, ModelFiles, Part};
use wuerstchen_verify::{Goldens, original_weights};

use crate::terminal::visible;

/// The built-in model, as `wuerstchen export web --dtype i8` has written it: in one shard.
const MANIFEST: &str = include_str!("../../models/emoji/manifest.json");
const CONTENTS: &[u8] = include_bytes!("../../models/emoji/contents.json");
const WEIGHTS: &[u8] = include_bytes!("../../models/emoji/shard-000.bin");

/// Reads a model: anything that [`Found::add`] takes, or the built-in one. Weights stay where they
/// are until they are needed. Reports which files are left out.
pub(crate) fn read_model(path: Option<&Path>) -> Result<ModelFiles> {
    let Some(path) = path else {
        let bundle = Manifest::parse(MANIFEST)?.with_contents(CONTENTS)?;
        return Ok(bundle.open::<LoadError>(|_| Ok(Arc::new(WEIGHTS)))?);
    };
    tell_of_missing(path);
    let mut found = Found::default();
    add(&mut found, path)?;
    Ok(found.finish()?)
}

/// Replaces a model's ControlNet by that of a file or folder, which has to fit its Stage C.
pub(crate) fn replace_controlnet(model: &mut ModelFiles, path: &Path) -> Result<()> {
    let mut found = Found::default();
    add(&mut found, path).context("cannot read the ControlNet")?;
    let mut own = found.finish().with_context(|| path.display().to_string())?;
    let Some(part) = model.family().controlnet else {
        bail!(
            "{}: ControlNets are for Stable Cascade, and the model is {}",
            path.display(),
            model.family().name
        );
    };
    let parts: Vec<_> = own.weights.keys().map(|part| part.to_string()).collect();
    let Some(weights) = own.weights.remove(&part).filter(|_| own.weights.is_empty()) else {
        bail!(
            "{}: expected a ControlNet and nothing else, found {}",
            path.display(),
            parts.join(", ")
        );
    };
    model.weights.insert(part, weights);
    let config = part.config_path();
    match own.texts.remove(&config) {
        Some(text) => model.texts.insert(config, text),
        None => model.texts.remove(&config),
    };
    model.controlnet_config(part).with_context(|| path.display().to_string())?;
    Ok(())
}

/// Adds what is in a file or folder, and says which files are left out.
pub(crate) fn add(found: &mut Found, path: &Path) -> Result<()> {
    let told = found.notes().len();
    let added = found.add(path);
    found.notes()[told..].iter().for_each(|note| tell!("{}", visible(note)));
    if added.is_err() && !path.exists() {
        return added.with_context(|| {
            format!("{}: expected a file or folder; models are not downloaded", path.display())
        });
    }
    Ok(added?)
}

/// The endings that programs append to the names of files while they fetch them.
const UNFINISHED: [&str; 4] = ["incomplete", "part", "crdownload", "aria2"];

/// Bytes of weights that are hardly all zeros, unless a program has reserved the file's room and not filled it.
const END: usize = 1 << 16;

/// How deep below its folder the files of a model lie at most: in `snapshots/HASH/prior/` of Hugging Face's cache.
const DEPTH: usize = 4;

/// Names the links of a model's folder that lead nowhere, and the files whose download was broken off. It looks no
/// deeper than a model's files lie, because the folder may hold more than the model.
pub(crate) fn tell_of_missing(model: &Path) {
    for entry in WalkDir::new(model).max_depth(DEPTH).into_iter().filter_map(Result::ok) {
        let path = entry.path();
        if entry.path_is_symlink() && !path.exists() {
            tell!("{}: leads to a file that is not there", path.display());
        } else if UNFINISHED.iter().any(|ending| has_extension(path, ending)) {
            tell!("{}: its download was not finished", path.display());
        } else if has_extension(path, "safetensors") && ends_in_zeros(path) {
            let path = path.display();
            tell!("{path}: its last {END} bytes are zeros; was its download finished?");
        }
    }
}

/// Whether the last [`END`] bytes of a file are zeros; false of a shorter one. What cannot be read is reported
/// elsewhere.
fn ends_in_zeros(path: &Path) -> bool {
    let is_zero = || {
        let file = open(path).ok()?;
        let length = file.length();
        let bytes = file.read(length.checked_sub(END)?..length).ok()?;
        Some(bytes.iter().all(|&byte| byte == 0))
    };
    is_zero().unwrap_or(false)
}

/// Opens the tensors of several files, of safetensors or of PyTorch, as one dictionary.
pub(crate) fn read_tensors(paths: &[PathBuf]) -> Result<Checkpoint> {
    let read = |path: &PathBuf| -> Result<Checkpoint> {
        if has_extension(path, "safetensors") {
            return Ok(Checkpoint::parse(&path.display().to_string(), open(path)?)?);
        }
        Ok(read_pytorch_tensors(path)?)
    };
    let files = paths.iter().map(read).collect::<Result<Vec<_>>>()?;
    let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    Ok(Checkpoint::join(&names.join(" and "), &files)?)
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
/// diffusers. Of two files of the same part, the first one counts.
pub(crate) fn read_originals(folder: &Path, family: &Family) -> Result<BTreeMap<Part, Checkpoint>> {
    let folder = folder.join("original");
    let mut found = Found::default();
    for path in with_extension(&folder, "pt")? {
        found.add(&path)?;
    }
    let mut weights = found.finish()?.weights;
    let mut files = Vec::new();
    for path in with_extension(&folder, "safetensors")? {
        let name = path.display().to_string();
        files.push(Checkpoint::parse(&name, Arc::new(read(&path)?))?);
    }
    for (part, original) in original_weights(family, files) {
        weights.entry(part).or_insert(original);
    }
    Ok(weights)
}

/// Opens `original/lora.safetensors` of a folder, if it is there.
pub(crate) fn read_original_lora(folder: &Path) -> Result<Option<LoraFile>> {
    let path = folder.join("original/lora.safetensors");
    Ok(path.is_file().then(|| open_lora(&path)).transpose()?)
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}
