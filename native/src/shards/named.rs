//! The shards that patterns name.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use wuerstchen::fs::is_hidden;
use wuerstchen_train::config::is_match;

use super::index::EXPECTED;

/// Most shards that a range in a pattern stands for.
const MOST_SHARDS: u64 = 1_000_000;

/// The files that patterns name, in the order of the patterns; those of one pattern are sorted. `*` in the last piece
/// of a path stands for any text, and `{000..012}` anywhere for every number between. Files that are named more than
/// once are reported and taken once.
pub(super) fn files_of(patterns: &[String]) -> Result<Vec<PathBuf>> {
    let mut files = named(patterns)?;
    let mut seen = HashSet::new();
    files.retain(|file| {
        let is_new = seen.insert(file.canonicalize().unwrap_or_else(|_| file.clone()));
        if !is_new {
            tell!("the shard {} is named twice, and read once", file.display());
        }
        is_new
    });
    Ok(files)
}

fn named(patterns: &[String]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for pattern in patterns {
        // A file may have braces in its name.
        let is_file = pattern.contains('{') && Path::new(pattern).exists();
        for pattern in if is_file { vec![pattern.clone()] } else { expanded(pattern)? } {
            let path = PathBuf::from(&pattern);
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let Some(name) = name.filter(|name| name.contains('*')) else {
                // There may be a million names, and hardly one that needs a look at the disk here.
                if let Some(hint) = hint(&pattern).filter(|_| !path.exists()) {
                    bail!("{pattern}: {EXPECTED}, found no such file; {hint}");
                }
                files.push(path);
                continue;
            };
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            let cannot = || format!("cannot read the folder {}", folder.display());
            let mut found = Vec::new();
            for entry in folder.read_dir().with_context(cannot)? {
                let entry = entry.with_context(cannot)?;
                if !is_match(&name, &entry.file_name().to_string_lossy()) {
                    continue;
                }
                // macOS keeps hidden files with the same ending beside tar files, which are no tar files.
                if is_hidden(&entry.file_name()) {
                    tell!("left out: {}, which is hidden", entry.path().display());
                } else {
                    found.push(entry.path());
                }
            }
            if found.is_empty() {
                bail!("{pattern}: expected shards, found none");
            }
            found.sort();
            files.extend(found);
        }
    }
    Ok(files)
}

/// What a pattern that names no file may mean elsewhere, and what to do here.
fn hint(pattern: &str) -> Option<&'static str> {
    if pattern.contains("://") || pattern.starts_with("pipe:") {
        Some("shards are read from this machine's disks alone: download them first")
    } else if pattern.starts_with('~') {
        Some("only a shell knows what ~ means: write the whole path")
    } else if pattern.contains(['?', '[', '*']) {
        Some("only * in a file's name and ranges such as {000..012} stand for several")
    } else {
        None
    }
}

/// The pattern with every number in place of a range in braces, for all of its ranges.
fn expanded(pattern: &str) -> Result<Vec<String>> {
    let Some((start, (range, end))) =
        pattern.split_once('{').and_then(|(start, rest)| Some((start, rest.split_once('}')?)))
    else {
        return Ok(vec![pattern.to_owned()]);
    };
    let numbers = range.split_once("..").and_then(|(first, last)| {
        Some((first.len(), first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
    });
    let Some((width, first, last)) = numbers else {
        bail!("{pattern}: expected a range such as {{000..012}}, found {{{range}}}");
    };
    if last.saturating_sub(first) >= MOST_SHARDS {
        bail!("{pattern}: expected at most {MOST_SHARDS} files, found more");
    }
    if last < first {
        bail!("{pattern}: expected a range that rises, found {{{range}}}");
    }
    let mut all = Vec::new();
    for number in first..=last {
        all.extend(expanded(&format!("{start}{number:0width$}{end}"))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_pattern_means_here_is_told() {
        let error = |pattern: &str| named(&[pattern.to_owned()]).unwrap_err().to_string();
        assert!(error("s3://bucket/{0..1}.tar").ends_with("download them first"));
        assert!(error("pipe:curl x/0.tar").ends_with("download them first"));
        assert!(error("~/none.tar").ends_with("write the whole path"));
        for several in ["none/0?.tar", "none/[01].tar", "none/*/0.tar"] {
            assert!(error(several).ends_with("stand for several"), "{several}");
        }
        // Whoever reads the file says that it is not there.
        assert_eq!(named(&["none/0.tar".into()]).unwrap(), [PathBuf::from("none/0.tar")]);
    }

    #[test]
    fn ranges_are_expanded_with_their_zeros() {
        let all = expanded("x/{08..11}-{0..1}.tar").unwrap();
        assert_eq!(all.len(), 8);
        assert_eq!([&*all[0], &*all[7]], ["x/08-0.tar", "x/11-1.tar"]);
        assert_eq!(expanded("x.tar").unwrap(), ["x.tar"]);
        for wrong in ["{a,b}.tar", "{2..0}.tar", "{0..1000000000}.tar"] {
            assert!(expanded(wrong).is_err(), "{wrong}");
        }
    }
}
