//! Folders of Hugging Face's cache.

use std::path::{Path, PathBuf};

use super::error::{Result, unfit};
use super::files;
use super::text::read_text;

/// The folder of a repository's files where a folder is a repository in that cache, with `snapshots` and
/// `refs` in it; else the folder itself.
pub(super) fn snapshot(folder: &Path) -> Result<PathBuf> {
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
            let found = all.len() + usize::from(last.is_some());
            let expected = "one snapshot, or refs/main with its name";
            Err(unfit(&snapshots, format!("expected {expected}, found {found}")))
        }
    }
}
