//! The files that commands write, checked before the work begins.

use std::path::{Path, PathBuf, is_separator};

use anyhow::{Result, anyhow, bail};
use same_file::is_same_file;
use wuerstchen::fs::{check_writable, has_extension};

use crate::usage;

/// A file that will be written.
pub(crate) struct Output {
    pub(crate) path: PathBuf,
    /// Whether it replaces a file that is there.
    replaces: bool,
}

impl Output {
    /// Says that it was written.
    pub(crate) fn tell(&self) {
        let path = self.path.display();
        if self.replaces {
            say!("wrote {path}, in place of the file that was there")
        } else {
            say!("wrote {path}")
        }
    }
}

/// The PNG files that `path` means for `count` pictures: `path` itself, or the file `name` if it is a folder; several
/// files are numbered.
///
/// Fails if there is no such folder, if the name does not end in `.png`, if a file is one of the
/// command's `inputs`, or if it cannot be written.
pub(crate) fn png_files(
    path: &Path,
    name: &str,
    count: usize,
    inputs: &[&Path],
) -> Result<Vec<Output>> {
    if path == Path::new("-") {
        let error = anyhow!("cannot write to -: expected the name of a file that ends in .png");
        return Err(usage(&error));
    }
    let ends_in_separator = path.to_string_lossy().ends_with(is_separator);
    let file = if path.is_dir() || ends_in_separator { path.join(name) } else { path.to_owned() };
    if !has_extension(&file, "png") {
        let error = anyhow!("cannot write {}: expected a name that ends in .png", file.display());
        return Err(usage(&error));
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        bail!("cannot write {}: there is no folder {}", file.display(), folder.display());
    }
    let outputs = (0..count).map(|i| output(numbered(&file, i, count), inputs));
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    // One check is enough, because the other files lie in the same folder.
    outputs.first().map(|output| check_writable(&output.path)).transpose()?;
    Ok(outputs)
}

/// The folder in which a file lies or will lie, without links; `None` if there is no such folder.
pub(crate) fn folder_of(path: &Path) -> Option<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).canonicalize().ok()
}

/// The file that will be written to `path`.
///
/// Fails if it is one of the command's `inputs` or replaces a file in a folder of them, or if it cannot be written.
pub(crate) fn check_output(path: &Path, inputs: &[&Path]) -> Result<Output> {
    // The comparison also looks through links.
    let whole = path.canonicalize().ok();
    let in_folder = |input: &&Path| {
        let folder = input.canonicalize().ok().filter(|_| input.is_dir());
        folder.zip(whole.as_ref()).is_some_and(|(folder, path)| path.starts_with(folder))
    };
    if let Some(input) = inputs.iter().find(|input| in_folder(input)) {
        let (path, input) = (path.display(), input.display());
        let error = anyhow!(
            "cannot write {path}: it is there and belongs to {input}, an input of this command"
        );
        return Err(usage(&error));
    }
    let output = output(path.to_owned(), inputs)?;
    check_writable(path)?;
    Ok(output)
}

fn output(path: PathBuf, inputs: &[&Path]) -> Result<Output> {
    if path.is_symlink() && !path.exists() {
        bail!("cannot write {}: it is a link to a place where nothing is", path.display());
    }
    if path.exists() && !path.is_file() {
        bail!("cannot write {}: expected a file, found something else there", path.display());
    }
    // It is replaced as a whole, which needs the right to write its folder only.
    if path.metadata().is_ok_and(|file| file.permissions().readonly()) {
        bail!("cannot write {}: the file there is write-protected", path.display());
    }
    // Also through links, and where both names are links to one file.
    // A pipe is not opened, because opening one waits for its other end.
    let is_input = |input: &&Path| input.is_file() && is_same_file(&path, input).unwrap_or(false);
    if inputs.iter().any(is_input) {
        let error = anyhow!("cannot write {}: it is an input of this command", path.display());
        return Err(usage(&error));
    }
    Ok(Output { replaces: path.exists(), path })
}

/// `out.png`, or `out-3.png` where there are several.
fn numbered(path: &Path, i: usize, count: usize) -> PathBuf {
    if count == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    let extension = path.extension().map(|extension| extension.to_string_lossy());
    path.with_file_name(format!("{stem}-{i}.{}", extension.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pipe has no other end, so a program that opens it would wait for ever.
    #[cfg(unix)]
    #[test]
    fn a_pipe_among_the_inputs_is_not_waited_for() {
        let folder = std::env::temp_dir().join(format!("wuerstchen-pipe-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (pipe, picture) = (folder.join("pipe"), folder.join("out.png"));
        std::fs::write(&picture, "").unwrap();
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        let files = png_files(&picture, "out.png", 1, &[&pipe]);
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(made.unwrap().success());
        assert!(files.unwrap()[0].replaces);
    }

    #[test]
    fn one_picture_keeps_its_name() {
        let name = |i, count| numbered(Path::new("a/out.png"), i, count);
        assert_eq!(name(0, 1), Path::new("a/out.png"));
        assert_eq!(name(1, 2), Path::new("a/out-1.png"));
    }
}
