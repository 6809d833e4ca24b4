//! Which parts of a model are on the device, and when.

use burn::module::Module;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::weights::{KeyTable, LoadError, check, load};

/// Which parts of a model stay on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Residency {
    /// All of a small model; of one with more than 2 GiB of weights, one part at a time
    #[default]
    Auto,
    /// All, so that a second picture starts at once
    All,
    /// One at a time, so that no more memory is taken than the largest part needs
    PerStage,
}

/// From this size of all parts on the device, [`Residency::Auto`] keeps one at a time.
const LARGE: usize = 2 << 30;

impl Residency {
    /// Whether parts leave the device when they have done their work, in a model whose parts take
    /// `bytes` there.
    pub(crate) fn is_per_stage(self, bytes: usize) -> bool {
        match self {
            Self::Auto => bytes > LARGE,
            Self::All => false,
            Self::PerStage => true,
        }
    }
}

/// A part of a model: on the device, or what it is loaded from whenever it is needed.
pub(crate) enum Slot<M> {
    /// On the device.
    Resident(M),
    /// Without weights, and where those are.
    OnDemand { empty: M, weights: Checkpoint, keys: KeyTable },
}

impl<M: Module> Slot<M> {
    /// A part that is loaded whenever it is needed.
    ///
    /// # Errors
    ///
    /// Every missing, unexpected and misshapen tensor, all at once.
    pub(crate) fn on_demand(
        empty: M,
        weights: &Checkpoint,
        keys: KeyTable,
    ) -> Result<Self, LoadError> {
        check(&empty, weights, keys)?;
        Ok(Self::OnDemand { empty, weights: weights.clone(), keys })
    }

    /// The part with its weights, for as long as the caller keeps it.
    ///
    /// # Errors
    ///
    /// The weights cannot be read, or are not finite.
    pub(crate) fn get(&self) -> Result<M, LoadError> {
        match self {
            Self::Resident(module) => Ok(module.clone()),
            Self::OnDemand { empty, weights, keys } => load(empty.clone(), weights, *keys),
        }
    }
}
