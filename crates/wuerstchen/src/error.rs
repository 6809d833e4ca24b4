//! What is wrong with weights.

use std::fmt;

use crate::stored::StoredDtype;

/// Why weights cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is not a safetensors file.
    #[error("{part}: not a safetensors file: {reason}")]
    Format {
        /// Which weights.
        part: String,
        /// What is wrong.
        reason: String,
    },
    /// Files that were to make up one checkpoint have a tensor in common.
    #[error(
        "{part}: expected the files of one checkpoint, but {} and {} both have a tensor {name:?}; files of several \
         parts are named one by one",
        files[0],
        files[1]
    )]
    Doubled {
        /// Which weights.
        part: String,
        /// Name of the tensor.
        name: String,
        /// Two files that have it.
        files: [String; 2],
    },
    /// Parts that a picture needs are not there.
    #[error("the model lacks {}, which pictures need; it has {}", missing.join(", "), found.join(", "))]
    Incomplete {
        /// Their folders.
        missing: Vec<String>,
        /// The folders of the parts that are there.
        found: Vec<String>,
    },
    /// A safetensors file is of other weights than a whole model's.
    #[error("{name}: it holds no whole model")]
    NoModel {
        /// Which file.
        name: String,
    },
    /// A tensor is of a type that no weights have.
    #[error("{part}: tensor {name:?} is {found}, expected f64, f32, f16 or bf16")]
    Dtype {
        /// Which weights.
        part: String,
        /// Name of the tensor.
        name: String,
        /// Its type.
        found: String,
    },
    /// The bytes of a tensor cannot be read.
    #[error("{part}: cannot read tensor {name:?}: {reason}")]
    Read {
        /// Which weights.
        part: String,
        /// Name of the tensor.
        name: String,
        /// What the system says.
        reason: String,
    },
    /// Tensors hold NaN or infinite values.
    #[error("{part}: not a number or infinite: {}", names.join(", "))]
    NotFinite {
        /// Which weights.
        part: String,
        /// Names of the tensors.
        names: Vec<String>,
    },
    /// Tensors have values that a type cannot hold.
    #[error("{part}: too large for {dtype:?}, which f32 holds: {}", names.join(", "))]
    TooLarge {
        /// Which weights.
        part: String,
        /// How they were to be stored.
        dtype: StoredDtype,
        /// Names of the tensors.
        names: Vec<String>,
    },
    /// The tensors are not those of the model.
    #[error("{part}: the weights do not fit the config{differences}")]
    Mismatch {
        /// Which weights.
        part: String,
        /// Every tensor that differs.
        differences: Differences,
    },
    /// Weights belong to no part, or to one that a pipeline does not have.
    #[error("unknown part {found:?}: expected one of {expected}")]
    UnknownPart {
        /// Its folder, or the name of a tensor.
        found: String,
        /// The folders of the known parts.
        expected: String,
    },
    /// A file of the model is not there.
    #[error("expected the file {path:?} in the model, found {}", if found.is_empty() { "nothing" } else { found })]
    MissingFile {
        /// Its path in the model folder.
        path: String,
        /// What is there instead.
        found: String,
    },
    /// A text file is not what it should be.
    #[error("{path}: {reason}")]
    File {
        /// Its path in the model folder.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A config has a value that the architecture cannot use.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A tokenizer cannot be made.
    #[error("{0}")]
    Tokenizer(String),
}

/// Every difference between a model's parameters and a checkpoint's tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Names that the model needs and the checkpoint lacks.
    pub missing: Vec<String>,
    /// Names that the checkpoint has and the model does not know.
    pub unexpected: Vec<String>,
    /// Name, expected shape, found shape.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl Differences {
    /// How the first tensor differs, and how many more do. A model of other sizes has hundreds, too many to list.
    pub fn shortened(&self) -> String {
        let Self { missing, unexpected, misshapen } = self;
        let more = match missing.len() + unexpected.len() + misshapen.len() {
            0 | 1 => String::new(),
            2 => ", and one tensor more".to_owned(),
            count => format!(", and {} tensors more", count - 1),
        };
        let misshapen = misshapen.first().map(|(name, expected, found)| {
            format!("expected {name} of {expected:?}, found {found:?}")
        });
        let first = misshapen
            .or_else(|| missing.first().map(|name| format!("expected {name}, which is missing")))
            .or_else(|| {
                unexpected.first().map(|name| format!("found {name}, which is not expected"))
            });
        first.unwrap_or_default() + &more
    }

    /// `value` if nothing differs.
    pub(crate) fn into_result<T>(self, part: &str, value: T) -> Result<T, LoadError> {
        if self == Self::default() {
            Ok(value)
        } else {
            Err(LoadError::Mismatch { part: part.to_owned(), differences: self })
        }
    }
}

/// Most tensors of each kind in a message.
const SHOWN: usize = 20;

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, "missing", &self.missing, String::clone)?;
        write_list(f, "unexpected", &self.unexpected, String::clone)?;
        write_list(f, "misshapen", &self.misshapen, |(name, expected, found)| {
            format!("{name}: expected {expected:?}, found {found:?}")
        })
    }
}

/// Writes a line for each of the first tensors, and one with the number of the others.
fn write_list<T>(
    f: &mut fmt::Formatter<'_>,
    kind: &str,
    tensors: &[T],
    text: impl Fn(&T) -> String,
) -> fmt::Result {
    for tensor in tensors.iter().take(SHOWN) {
        write!(f, "\n  {kind}: {}", text(tensor))?;
    }
    match tensors.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => write!(f, "\n  {kind}: {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of another size has hundreds of tensors that differ.
    #[test]
    fn long_lists_are_cut_with_their_length() {
        let names = |count: usize| (0..count).map(|i| i.to_string()).collect::<Vec<_>>();
        let shown = |missing| Differences { missing, ..Differences::default() }.to_string();
        assert_eq!(shown(names(2)), "\n  missing: 0\n  missing: 1");
        assert_eq!(shown(names(SHOWN)).lines().count(), SHOWN + 1);
        let long = shown(names(SHOWN + 5));
        assert!(long.ends_with("missing: 19\n  missing: 5 more"), "{long}");
    }
}
