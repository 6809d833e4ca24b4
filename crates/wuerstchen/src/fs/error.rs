//! Why files cannot be read.

use std::error::Error;
use std::path::{Path, PathBuf};

use crate::error::LoadError;
use crate::lora::LoraError;

/// Why files cannot be read as a model or a LoRA.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system or a reader cannot do something with a file or folder.
    #[error("cannot {action} {}", path.display())]
    Cannot {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A file or folder is not what it should be.
    #[error("{}: {reason}", path.display())]
    Unfit {
        /// Which file or folder.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
    /// The weights or configs of a model do not fit.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A LoRA does not fit.
    #[error(transparent)]
    Lora(#[from] LoraError),
}

/// The result of reading files.
pub(super) type Result<T> = std::result::Result<T, OpenError>;

/// An error of what was tried with a file or folder.
pub(super) fn cannot<E: Into<Box<dyn Error + Send + Sync>>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> OpenError {
    move |error| OpenError::Cannot { action, path: path.to_owned(), source: error.into() }
}

/// An error of a file or folder that is not what it should be.
pub(super) fn unfit(path: &Path, reason: impl Into<String>) -> OpenError {
    OpenError::Unfit { path: path.to_owned(), reason: reason.into() }
}
