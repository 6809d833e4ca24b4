//! Folders that a command fills: what it has written is removed if it does not reach its end.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use wuerstchen::fs::is_part;
use wuerstchen::manifest::MANIFEST;

/// The folder that this command fills, if it has made it, and the files that it has begun.
static BEGUN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A folder that is being filled.
pub(crate) struct NewFolder {
    path: PathBuf,
    /// Keeps other programs from filling the folder, where folders can be locked (not on Windows).
    _lock: Option<File>,
}

impl NewFolder {
    /// Makes the folder, unless it is there and empty. From now on, an interrupt ends the program and removes what it
    /// has written.
    pub(crate) fn begin(path: &Path) -> Result<Self> {
        check_new(path)?;
        let on_signal = || {
            // A folder that is complete is kept.
            if remove_begun() {
                say!("interrupted: what was written is removed");
            }
            std::process::exit(130);
        };
        ctrlc::set_handler(on_signal).context("cannot listen to Ctrl-C")?;
        let is_new = !path.exists();
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        let lock = Self::lock(path)?;
        begun().extend(is_new.then(|| path.to_owned()));
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    fn lock(path: &Path) -> Result<Option<File>> {
        let folder = File::open(path).ok();
        match folder.as_ref().map(File::try_lock) {
            Some(Err(TryLockError::WouldBlock)) => {
                bail!("{}: another program is filling this folder", path.display())
            }
            _ => Ok(folder),
        }
    }

    /// The path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file that will be written.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        begun().push(path.clone());
        path
    }

    /// Keeps everything, as the folder is complete.
    pub(crate) fn keep(self) {
        begun().clear();
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        remove_begun();
    }
}

fn begun() -> std::sync::MutexGuard<'static, Vec<PathBuf>> {
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the files that were begun, and then the folder, if nothing else is in it. Returns whether there was anything
/// to remove.
fn remove_begun() -> bool {
    let mut begun = begun();
    let is_any = !begun.is_empty();
    // What cannot be removed stays: the error that led here is the one to report.
    let files = begun.iter().filter(|path| !path.is_dir());
    let folders: BTreeSet<_> = files.filter_map(|path| path.parent()).collect();
    for entry in folders.into_iter().flat_map(fs::read_dir).flatten().flatten() {
        // A file was being written when the program was interrupted, unless it has its own name by now.
        if is_part(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
    for path in begun.drain(..).rev() {
        let _ = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
    }
    is_any
}

/// Fails if the folder to write is not empty, because a file could be replaced or mixed with the model's files.
pub(crate) fn check_new(folder: &Path) -> Result<()> {
    // Below a folder that is not there, `..` leads to another place once that folder is made.
    let is_missing =
        |path: &&Path| !path.as_os_str().is_empty() && !path.try_exists().unwrap_or(true);
    let left = folder.ancestors().filter(|above| above.ends_with("..")).filter_map(Path::parent);
    if let Some(missing) = left.filter(is_missing).last() {
        let (folder, missing) = (folder.display(), missing.display());
        bail!("{folder}: {missing} is not there, so that `..` after it leads nowhere");
    }
    if folder.join(MANIFEST).exists() {
        bail!("{} holds a model already: name another folder", folder.display())
    }
    if folder.exists() && !folder.is_dir() {
        bail!("{}: expected a new or an empty folder, found a file", folder.display());
    }
    let cannot = || format!("cannot read the folder {}", folder.display());
    let found = folder.exists().then(|| folder.read_dir()).transpose().with_context(cannot)?;
    match found.into_iter().flatten().next().transpose().with_context(cannot)? {
        Some(found) => {
            let (folder, found) = (folder.display(), found.file_name());
            let found = found.display().to_string();
            let origin = if found.starts_with("shard-") {
                ", as an export that was broken off leaves it: remove it or name another folder"
            } else {
                ""
            };
            bail!("{folder}: expected a new or an empty folder, found one with {found}{origin}")
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_removed() {
        let path = std::env::temp_dir().join(format!("wuerstchen-new-{}", std::process::id()));
        let write = |folder: &NewFolder| fs::write(folder.file("a"), "a").unwrap();
        let folder = NewFolder::begin(&path).unwrap();
        write(&folder);
        #[cfg(unix)]
        assert!(NewFolder::lock(&path).is_err());
        // A file that was being written.
        let part = path.join(format!("b.{}.part", std::process::id()));
        fs::write(&part, "b").unwrap();
        drop(folder);
        assert!(!path.exists());
        // A folder that was there stays.
        fs::create_dir(&path).unwrap();
        let folder = NewFolder { path: path.clone(), _lock: None };
        write(&folder);
        fs::write(&part, "b").unwrap();
        drop(folder);
        assert!(path.read_dir().unwrap().next().is_none());
        let folder = NewFolder { path: path.clone(), _lock: None };
        write(&folder);
        folder.keep();
        assert!(check_new(&path).is_err());
        assert!(!remove_begun());
        let around = path.join("missing/..");
        let error = check_new(&around).unwrap_err().to_string();
        assert!(error.ends_with("so that `..` after it leads nowhere"), "{error}");
        assert!(!path.join("missing").exists());
        fs::remove_dir_all(&path).unwrap();
    }
}
