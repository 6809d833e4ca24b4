//! The list of pictures that were left out of a run.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wuerstchen::fs::read;

/// A file with a line for each picture that was left out. It grows as they are found, so that it is whole however the
/// run ends, and keeps what is found before the run goes on.
pub(super) struct List {
    path: PathBuf,
    lines: BTreeSet<String>,
}

impl List {
    /// The list in a file, which may not be there yet.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot open {}", path.display());
        let bytes = if path.exists() { read(path).with_context(cannot)? } else { Vec::new() };
        let text = String::from_utf8_lossy(&bytes);
        let mut lines: Vec<_> = text.split('\n').map(str::to_owned).collect();
        // What follows the last end of a line was cut off while it was written.
        if let Some(torn) = lines.pop().filter(|torn| !torn.is_empty()) {
            tell!("{}: its last line is cut off, and removed: {torn}", path.display());
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            let file = OpenOptions::new().write(true).open(path);
            file.and_then(|file| file.set_len(whole as u64)).with_context(cannot)?;
        }
        Ok(Self { path: path.to_owned(), lines: lines.into_iter().collect() })
    }

    /// Adds a line, unless it is there.
    pub(super) fn add(&mut self, line: String) -> Result<()> {
        if self.lines.contains(&line) {
            return Ok(());
        }
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.lines.insert(line);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_grows_and_has_each_line_once() {
        let path = std::env::temp_dir().join(format!("wuerstchen-list-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        for (line, count) in [("a: torn", 1), ("b: empty", 2), ("a: torn", 2)] {
            let mut list = List::open(&path).unwrap();
            list.add(line.to_owned()).unwrap();
            list.add(line.to_owned()).unwrap();
            assert_eq!(list.len(), count);
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a: torn\nb: empty\n");
        // A line that was cut off within a letter is written anew.
        std::fs::write(&path, b"a: torn\nc: \xc3").unwrap();
        List::open(&path).unwrap().add("d: empty".to_owned()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a: torn\nd: empty\n");
        std::fs::remove_file(&path).unwrap();
    }
}
