//! Which files of a folder, and of those below it, are of use.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;
use wuerstchen::fs::is_hidden;
use wuerstchen_train::store::{METRICS, RUN_LOCK};

use crate::pictures;

/// Files that tell the captions of all pictures beside them.
const METADATA: [&str; 2] = ["metadata.jsonl", "metadata.csv"];

/// Endings of files with the captions of one picture, in lower case. Where a picture has several, the first one in this
/// list is taken.
pub(super) const CAPTION_ENDINGS: [&str; 5] = ["txt", "caption", "captions", "cap", "tags"];

/// The files of a folder, sorted.
#[derive(Default)]
pub(super) struct Found {
    pub(super) pictures: Vec<PathBuf>,
    /// Text files, each with the captions of one picture.
    pub(super) texts: Vec<PathBuf>,
    pub(super) metadata: Vec<PathBuf>,
    pub(super) left_out: LeftOut,
}

/// Files and folders that are not used.
#[derive(Default)]
pub(super) struct LeftOut {
    /// Files of other types.
    pub(super) others: Vec<PathBuf>,
    hidden: usize,
    /// Folders that training runs have written: their pictures are samples.
    runs: Vec<PathBuf>,
    /// Links that lead nowhere, or to a folder that is read already or holds this one.
    links: Vec<PathBuf>,
}

/// Lists a folder and the folders below it, links to folders last. Each folder is read once, whatever names lead to it,
/// so that links in circles come to an end.
pub(super) fn find(root: &Path) -> Result<Found> {
    let canonical = |path: &Path| {
        path.canonicalize().with_context(|| format!("cannot open {}", path.display()))
    };
    let real_root = canonical(root)?;
    if !real_root.is_dir() {
        bail!("{}: expected a folder of pictures, found a file", root.display());
    }
    let (mut found, mut seen) = (Found::default(), HashSet::new());
    let mut starts = VecDeque::from([root.to_owned()]);
    while let Some(start) = starts.pop_front() {
        let real = canonical(&start)?;
        let is_above = real != real_root && real_root.starts_with(&real);
        if is_above || seen.contains(&real) {
            found.left_out.links.push(start);
            continue;
        }
        if start != root && is_of_run(&real, &real_root) {
            found.left_out.runs.push(start);
            continue;
        }
        let (mut hidden, mut runs) = (0, Vec::new());
        let entries = WalkDir::new(&start).sort_by_file_name().into_iter().filter_entry(|entry| {
            if entry.depth() > 0 && is_hidden(entry.file_name()) {
                hidden += 1;
                return false;
            }
            let below = entry.path().strip_prefix(&start).unwrap_or(entry.path());
            // A link at the start of the walk is followed.
            let is_folder = entry.depth() == 0 || entry.file_type().is_dir();
            if entry.depth() > 0
                && is_folder
                && (entry.path().join(RUN_LOCK).is_file() || is_stage(entry.path()))
            {
                runs.push(entry.path().to_owned());
                return false;
            }
            !is_folder || seen.insert(real.join(below))
        });
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", start.display()))?;
            if entry.depth() == 0 || entry.file_type().is_dir() {
                continue;
            }
            match entry.path().metadata() {
                Ok(target) if target.is_dir() => starts.push_back(entry.into_path()),
                Ok(target) if target.is_file() => {
                    let is_link = entry.path_is_symlink();
                    if is_link && is_of_run(&canonical(entry.path())?, &real_root) {
                        found.left_out.runs.push(entry.into_path());
                    } else {
                        found.sort(entry.into_path());
                    }
                }
                // As in a folder that may be listed, but not entered.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    let path = entry.path().display();
                    return Err(error).with_context(|| format!("cannot look at {path}"));
                }
                _ => found.left_out.links.push(entry.into_path()),
            }
        }
        found.left_out.hidden += hidden;
        found.left_out.runs.extend(runs);
    }
    Ok(found)
}

/// Whether a folder is that of a stage, with samples, in the folder of a run.
fn is_stage(folder: &Path) -> bool {
    let is_in_run = || folder.parent().is_some_and(|run| run.join(RUN_LOCK).is_file());
    folder.join(METRICS).is_file() && is_in_run()
}

/// Whether a training run has written what a link leads to. The corpus itself may be in a run's folder, or be one.
fn is_of_run(real: &Path, real_root: &Path) -> bool {
    let is_run = |folder: &Path| folder.join(RUN_LOCK).is_file() && !real_root.starts_with(folder);
    real.ancestors().any(|folder| is_run(folder) || is_stage(folder))
}

impl Found {
    fn sort(&mut self, path: PathBuf) {
        let is = |endings: &[&str]| ending(&path).is_some_and(|e| endings.contains(&&e[..]));
        let is_metadata = |name: &OsStr| METADATA.iter().any(|m| name.eq_ignore_ascii_case(m));
        let list = if path.file_name().is_some_and(is_metadata) {
            &mut self.metadata
        } else if is(&pictures::ENDINGS) {
            &mut self.pictures
        } else if is(&CAPTION_ENDINGS) {
            &mut self.texts
        } else {
            &mut self.left_out.others
        };
        list.push(path);
    }
}

/// The ending of a name, after its last dot, in lower case.
pub(super) fn ending(path: &Path) -> Option<String> {
    path.extension().map(|ending| ending.to_string_lossy().to_lowercase())
}

impl LeftOut {
    /// A line for each kind of file.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> + use<> {
        let mut lines = Vec::new();
        if self.hidden > 0 {
            lines.push(format!("left out: hidden files and folders ({})", self.hidden));
        }
        for run in &self.runs {
            lines.push(format!("left out: {}, which a training run has written", run.display()));
        }
        let mut endings: BTreeMap<String, usize> = BTreeMap::new();
        for path in &self.others {
            let ending = ending(path).map_or("without an ending".to_owned(), |e| format!(".{e}"));
            *endings.entry(ending).or_default() += 1;
        }
        if !endings.is_empty() {
            let counts = endings.iter().map(|(ending, count)| format!("{ending} ({count})"));
            let counts = counts.collect::<Vec<_>>().join(", ");
            lines.push(format!("left out: files that are not {}: {counts}", pictures::TYPES));
        }
        for link in &self.links {
            lines.push(format!(
                "left out: {}, which is no file or leads to nothing new",
                link.display()
            ));
        }
        lines.into_iter()
    }

    /// All lines in one, for an error.
    pub(super) fn inline(&self) -> String {
        let is_shard = |path: &PathBuf| matches!(ending(path).as_deref(), Some("tar" | "parquet"));
        let are_shards = self.others.iter().any(is_shard);
        let hint =
            are_shards.then(|| "; shards are read where their own names are given".to_owned());
        self.lines().map(|line| format!("; {line}")).chain(hint).collect()
    }
}

/// Most names of files in one error message.
const NAMED: usize = 20;

/// Fails if there are pictures `what`: names them.
pub(super) fn refuse(files: &[String], what: &str) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    let mut names = files[..files.len().min(NAMED)].to_vec();
    if files.len() > NAMED {
        names.push(format!("and {} more", files.len() - NAMED));
    }
    let pictures = match files.len() {
        1 => "a picture".to_owned(),
        count => format!("{count} pictures"),
    };
    bail!("{pictures} {what}:\n  {}", names.join("\n  "))
}
