//! Models, goldens and original weights as they lie on disk.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use wuerstchen::{Checkpoint, Image, ModelFiles, Part, ReadBytes};
use wuerstchen_verify::Goldens;

use crate::found::Found;
use crate::hidden::is_hidden;
use crate::text::read_text;

/// The file that makes a folder a web bundle.
pub(crate) const MANIFEST: &str = "manifest.json";

/// The model that runs where none is named.
const BUILT_IN: &[u8] = include_bytes!("../../models/shapes.safetensors");

/// Reads a model: anything that [`Found::add`] takes, or the built-in one. Weights stay where they
/// are until they are needed.
pub(crate) fn read_model(path: Option<&Path>) -> Result<ModelFiles> {
    let Some(path) = path else {
        return Ok(ModelFiles::from_bundle("the built-in model", Arc::new(BUILT_IN))?);
    };
    let mut found = Found::default();
    found.add(path)?;
    found.finish()
}

/// Opens a file that is read by range and never as a whole.
pub(crate) fn open(path: &Path) -> Result<Arc<dyn ReadBytes>> {
    Ok(Arc::new(FileBytes::open(path)?))
}

struct FileBytes {
    /// Reading moves its cursor.
    file: Mutex<fs::File>,
    length: usize,
}

impl FileBytes {
    fn open(path: &Path) -> Result<Self> {
        let open = || {
            let file = fs::File::open(path)?;
            let length = file.metadata()?.len();
            Ok::<_, std::io::Error>((
                Mutex::new(file),
                usize::try_from(length).unwrap_or(usize::MAX),
            ))
        };
        let (file, length) = open().with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { file, length })
    }
}

impl ReadBytes for FileBytes {
    fn length(&self) -> usize {
        self.length
    }

    fn read(&self, range: Range<usize>) -> std::io::Result<Cow<'_, [u8]>> {
        let mut bytes = vec![0; range.len()];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(range.start as u64))?;
        file.read_exact(&mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
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

/// The bytes of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
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

/// The last name of a path, for messages.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
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

/// The files of a folder with an extension, sorted; none where there is no such folder.
pub(crate) fn with_extension(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let fits = |path: &PathBuf| path.is_file() && has_extension(path, extension);
    Ok(list(folder)?.into_iter().filter(fits).collect())
}

/// Whether a name ends in a dot and `extension`, in capitals or not.
pub(crate) fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// What is in a folder and not hidden, sorted.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || {
        let entries = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
        entries.collect::<std::io::Result<Vec<_>>>()
    };
    let mut paths = list().with_context(|| format!("cannot list {}", folder.display()))?;
    paths.retain(|path| !path.file_name().is_some_and(is_hidden));
    paths.sort();
    Ok(paths)
}

/// The folders in a folder that are not hidden, sorted.
pub(crate) fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(list(folder)?.into_iter().filter(|path| path.is_dir()).collect())
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}
