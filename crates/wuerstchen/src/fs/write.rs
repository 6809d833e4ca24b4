//! Files that are written as a whole.

use std::ffi::OsStr;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::error::{Result, cannot};
use super::files::has_extension;

/// Writes a file so that it is whole or not there: under another name first, then renamed. A link stays a
/// link, and what it leads to is written.
///
/// # Errors
///
/// Names the file if it cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let path = behind_link(path)?;
        let part = part_of(&path);
        let mut file = fs::File::create(&part)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        let renamed = written.and_then(|()| fs::rename(&part, path));
        if renamed.is_err() {
            // The disk may be full: an unfinished file would only take more of it.
            let _ = fs::remove_file(&part);
        }
        renamed
    };
    write().map_err(cannot("write", path))
}

/// Fails if [`write()`] could not write that file; the file itself stays as it is.
///
/// # Errors
///
/// Names the file.
pub fn check_writable(path: &Path) -> Result<()> {
    let write = || {
        let part = part_of(&behind_link(path)?);
        fs::File::create(&part)?;
        fs::remove_file(&part)
    };
    write().map_err(cannot("write", path))
}

/// The file that a link leads to; any other path stays as it is.
fn behind_link(path: &Path) -> std::io::Result<PathBuf> {
    if path.is_symlink() { path.canonicalize() } else { Ok(path.to_owned()) }
}

/// A number that other programs do not have. Containers that share a folder often have equal process ids.
static PROGRAM: LazyLock<u32> =
    LazyLock::new(|| RandomState::new().hash_one(std::process::id()) as u32);

/// What a file is called until it is whole; two programs may write the same file at a time.
fn part_of(path: &Path) -> PathBuf {
    path.with_added_extension(format!("{}.part", *PROGRAM))
}

/// Whether a file is one that [`write()`] has not finished, by its name.
pub fn is_part(path: &Path) -> bool {
    let is_number = |id: &OsStr| id.to_str().is_some_and(|id| id.parse::<u32>().is_ok());
    let stem = path.file_stem().map(Path::new);
    has_extension(path, "part") && stem.and_then(Path::extension).is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_files_are_known_by_their_names() {
        assert!(is_part(&part_of(Path::new("a/b.safetensors"))));
        for name in ["b.part", "b.x.part", "b.12", "b.safetensors", "12.part"] {
            assert!(!is_part(Path::new(name)), "{name}");
        }
    }
}
