//! Files and folders.

use std::borrow::Cow;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::{Result, cannot, unfit};
use super::hidden::is_hidden;
use crate::checkpoint::ReadBytes;

/// Opens a file that is read by range and never as a whole.
///
/// # Errors
///
/// The file cannot be opened, or is no ordinary file.
pub fn open(path: &Path) -> Result<Arc<dyn ReadBytes>> {
    // Checked before the file is opened, because opening a pipe waits for its other end.
    let kind = fs::metadata(path).map_err(cannot("open", path))?;
    if !kind.is_file() {
        let found = if kind.is_dir() { "a folder" } else { NO_FILE };
        return Err(unfit(path, format!("expected a file, found {found}")));
    }
    Ok(Arc::new(FileBytes::open(path)?))
}

/// What is neither a file nor a folder.
pub(super) const NO_FILE: &str = "a pipe, a socket or a device";

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

/// Most bytes of a pipe or a device, which may have no end.
const MOST_OF_A_STREAM: u64 = 1 << 26;

/// The bytes of a file.
///
/// # Errors
///
/// The file cannot be read, or is a pipe or a device with more than 64 MiB.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_at_most(path, u64::MAX)
}

/// The bytes of a file that has at most `most` bytes.
///
/// # Errors
///
/// As [`read`], or the file has more bytes.
pub fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>> {
    let open = || {
        let file = fs::File::open(path)?;
        let kind = file.metadata()?;
        Ok::<_, std::io::Error>((file, kind))
    };
    let (file, kind) = open().map_err(cannot("read", path))?;
    if kind.is_file() {
        let found = kind.len();
        if found > most {
            return Err(unfit(path, format!("expected at most {most} bytes, found {found}")));
        }
        return fs::read(path).map_err(cannot("read", path));
    }
    let (mut bytes, most) = (Vec::new(), most.min(MOST_OF_A_STREAM));
    file.take(most + 1).read_to_end(&mut bytes).map_err(cannot("read", path))?;
    if bytes.len() as u64 > most {
        return Err(unfit(path, format!("expected a file, or a stream of at most {most} bytes")));
    }
    Ok(bytes)
}

/// The last name of a path, for messages.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The files of a folder that have an extension and are not hidden, sorted; none where there is no such folder.
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

/// Whether a name ends in a dot and `extension`, whatever the case of its letters.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_a_limit_where_one_is_named() {
        let path = std::env::temp_dir().join(format!("wuerstchen-limit-{}", std::process::id()));
        fs::write(&path, b"four").unwrap();
        let [four, three] = [4, 3].map(|most| read_at_most(&path, most));
        fs::remove_file(&path).unwrap();
        assert_eq!(four.unwrap(), b"four");
        let error = three.unwrap_err().to_string();
        assert!(error.ends_with(": expected at most 3 bytes, found 4"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn what_has_no_end_is_refused() {
        let error = |result: Result<Vec<u8>>| result.unwrap_err().to_string();
        let expected = "/dev/zero: expected a file, or a stream of at most 67108864 bytes";
        assert_eq!(error(read(Path::new("/dev/zero"))), expected);
        let expected = "/dev/zero: expected a file, found a pipe, a socket or a device";
        assert_eq!(error(open(Path::new("/dev/zero")).map(|_| Vec::new())), expected);
        assert_eq!(read(Path::new("/dev/null")).unwrap(), b"");
    }
}
