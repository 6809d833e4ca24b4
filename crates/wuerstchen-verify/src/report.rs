//! What a comparison finds.

use std::collections::BTreeMap;

use serde::Serialize;
use wuerstchen::{LoadError, LoraError};

/// Why goldens cannot be compared at all.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A model or golden file does not fit.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The LoRA does not fit the model.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// The pipeline cannot run.
    #[error(transparent)]
    Generate(#[from] wuerstchen::Error),
    /// A golden file lacks an input or has it in another form.
    #[error("golden/{file}: {reason}")]
    Golden {
        /// Which file.
        file: String,
        /// What was expected and found.
        reason: String,
    },
}

/// One compared tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Name of the golden file; `original/…` where the weights came from the original files.
    pub file: String,
    /// Name of the tensor.
    pub name: String,
    /// `‖ours − golden‖ / ‖golden‖`, or the share of values that differ where equality is asked.
    pub relative: f64,
    /// Largest absolute difference.
    pub absolute: f64,
    /// The largest `relative` that passes.
    pub bound: f64,
    /// Whether `relative` is within `bound`.
    pub ok: bool,
}

/// The outcome of a comparison.
#[derive(Default)]
pub struct Verification {
    /// Every tensor that was compared.
    pub checks: Vec<Check>,
    /// What we computed: the bytes of a safetensors file, by [`Check::file`].
    pub computed: BTreeMap<String, Vec<u8>>,
    /// Golden tensors, and whole files, that nothing was compared with.
    pub left_out: Vec<String>,
    /// The stages that have no golden file.
    pub without_golden: Vec<&'static str>,
}

impl Verification {
    /// Whether something was compared and every bound holds.
    pub fn ok(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.ok)
    }
}
