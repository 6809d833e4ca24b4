//! Folders of Hugging Face's cache.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::files;
use crate::text::read_text;

/// The folder of a repository's files where a folder is a repository in that cache, with `snapshots` and
/// `refs` in it; else the folder itself.
pub(crate) fn snapshot(folder: &Path) -> Result<PathBuf> {
    let snapshots = folder.join("snapshots");
    if !snapshots.is_dir() {
        return Ok(folder.to_owned());
    }
    let main = folder.join("refs/main");
    if main.is_file() {
        let current = snapshots.join(read_text(&main)?.trim());
        if current.is_dir() {
            return Ok(current);
        }
    }
    let mut all = files::subfolders(&snapshots)?;
    match (all.pop(), all.is_empty()) {
        (Some(only), true) => Ok(only),
        (last, _) => {
            let (snapshots, found) = (snapshots.display(), all.len() + usize::from(last.is_some()));
            bail!("{snapshots}: expected one snapshot, or refs/main with its name, found {found}")
        }
    }
}
