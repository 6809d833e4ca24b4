//! Where pictures are written: found out before they are made.

use std::path::{Path, PathBuf, is_separator};

use anyhow::{Result, anyhow, bail};
use image::ImageFormat;

use crate::{files, usage};

/// The PNG file that `path` means: itself, or in a folder the one called `name`.
///
/// Fails if there is no such folder, if the name is that of another type of picture, or if the file
/// cannot be written.
pub(crate) fn png_file(path: &Path, name: &str) -> Result<PathBuf> {
    let ends_in_separator = path.to_string_lossy().ends_with(is_separator);
    let file = match path.is_dir() || ends_in_separator {
        true => path.join(name),
        false => path.to_owned(),
    };
    let other = ImageFormat::from_path(&file).ok().filter(|format| *format != ImageFormat::Png);
    if other.is_some() {
        let error = anyhow!("cannot write {}: expected a name that ends in .png", file.display());
        return Err(usage(&error));
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        bail!("cannot write {}: there is no folder {}", file.display(), folder.display());
    }
    if file.exists() && !file.is_file() {
        bail!("cannot write {}: expected a file, found something else there", file.display());
    }
    files::check_writable(&file)?;
    Ok(file)
}
