//! Files and folders.

use std::borrow::Cow;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::{Result, cannot};
use super::hidden::is_hidden;
use crate::checkpoint::ReadBytes;

/// Opens a file that is read by range and never as a whole.
///
/// # Errors
///
/// It cannot be opened.
pub fn open(path: &Path) -> Result<Arc<dyn ReadBytes>> {
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
        let (file, length) = open().map_err(cannot("open", path))?;
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

/// The bytes of a file.
///
/// # Errors
///
/// It cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(cannot("read", path))
}

/// The last name of a path, for messages.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The files of a folder with an extension, sorted; none where there is no such folder.
///
/// # Errors
///
/// The folder cannot be listed.
pub fn with_extension(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let fits = |path: &PathBuf| path.is_file() && has_extension(path, extension);
    Ok(list(folder)?.into_iter().filter(fits).collect())
}

/// Whether a name ends in a dot and `extension`, in capitals or not.
pub fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// What is in a folder and not hidden, sorted.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || {
        let entries = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
        entries.collect::<std::io::Result<Vec<_>>>()
    };
    let mut paths = list().map_err(cannot("list", folder))?;
    paths.retain(|path| !path.file_name().is_some_and(is_hidden));
    paths.sort();
    Ok(paths)
}

/// The folders in a folder that are not hidden, sorted.
pub(super) fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(list(folder)?.into_iter().filter(|path| path.is_dir()).collect())
}
