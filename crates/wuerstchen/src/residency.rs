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
    /// All parts of a small model; one part at a time of a model with more than 2 GiB of weights
    #[default]
    Auto,
    /// All parts, so that a second picture starts at once
    All,
    /// One part at a time, so that no more memory is taken than the largest part needs
    PerStage,
}

/// [`Residency::Auto`] keeps one part at a time if all parts together take at least this much on the device.
const LARGE: usize = 2 << 30;

impl Residency {
    /// Whether parts leave the device when they have done their work; `bytes` is what all parts take there.
    pub(crate) fn is_per_stage(self, bytes: usize) -> bool {
        match self {
            Self::Auto => bytes > LARGE,
            Self::All => false,
            Self::PerStage => true,
        }
    }
}

/// A part of a model: either on the device, or not loaded, with the place of its weights.
pub(crate) enum Slot<M> {
    /// On the device.
    Resident(M),
    /// Not loaded: the part without weights, and where its weights are.
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
