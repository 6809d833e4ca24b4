//! The program as its users run it, and folders to run it in.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use wuerstchen::{Checkpoint, WeightDtype};

pub(crate) fn wuerstchen<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wuerstchen")).args(arguments).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An empty folder for one test.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Writes weights in f32.
#[allow(dead_code, reason = "not every file of tests writes weights")]
pub(crate) fn save(path: impl AsRef<Path>, weights: &Checkpoint) {
    let bytes = Checkpoint::write([(String::new(), weights)], WeightDtype::F32, None).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Copies a file, or a folder with all that is in it.
#[allow(dead_code, reason = "not every file of tests copies anything")]
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
}
