//! Files and folders that systems and programs put beside those of people.

use std::ffi::OsStr;

/// Hidden folders whose names do not begin with a dot.
const FOLDERS: [&str; 7] = [
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "@Recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
];

/// Whether a file or folder is hidden, as `.DS_Store`, `._fox.png` and `.ipynb_checkpoints` are.
pub fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") || FOLDERS.iter().any(|folder| name == *folder)
}
