//! The folder of this program in the user's cache.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use walkdir::WalkDir;
use wuerstchen::fs::is_part;

use crate::terminal::counted;

/// `wuerstchen/NAME` in the user's cache.
pub(crate) fn cache_folder(name: &str) -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty());
    let cache = match cache {
        Some(cache) => PathBuf::from(cache),
        None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(cache.join("wuerstchen").join(name))
}

/// How long a program may take to write a file. Programs on other machines may use the same cache, so only the age of
/// an unfinished file tells whether its program has ended.
const WRITING: Duration = Duration::from_secs(3600);

/// Removes unfinished files in a cache whose program has ended, and reports it.
pub(crate) fn remove_old_parts(cache: &Path) -> Result<()> {
    let is_old = |path: &Path| {
        let age = path.metadata().and_then(|metadata| metadata.modified());
        age.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > WRITING))
    };
    let entries = WalkDir::new(cache).into_iter().filter_map(Result::ok);
    let files = entries.filter(|entry| entry.file_type().is_file());
    let parts = files.filter(|entry| is_part(entry.path()) && is_old(entry.path()));
    let mut removed = 0;
    for part in parts {
        match std::fs::remove_file(part.path()) {
            Ok(()) => removed += 1,
            // Another program has removed it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).context(format!("cannot remove {}", part.path().display()));
            }
        }
    }
    if removed > 0 {
        let files = counted(removed, "unfinished file");
        tell!("removed {files} of programs that were killed from {}", cache.display());
    }
    Ok(())
}
