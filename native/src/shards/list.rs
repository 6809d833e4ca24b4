//! The list of pictures that were left out of a run.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wuerstchen::fs::read_text;

/// A file with a line for each picture that was left out. It grows as they are found, so that it is whole however the
/// run ends, and keeps what is found before the run goes on.
pub(super) struct List {
    path: PathBuf,
    lines: BTreeSet<String>,
}

impl List {
    /// The list in a file, which may not be there yet.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let text = if path.exists() { read_text(path)? } else { String::new() };
        Ok(Self { path: path.to_owned(), lines: text.lines().map(str::to_owned).collect() })
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
        std::fs::remove_file(&path).unwrap();
    }
}
