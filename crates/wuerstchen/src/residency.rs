//! Which parts of a model are on the device, and when.

use std::collections::BTreeSet;

use burn::module::Module;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::error::LoadError;
use crate::model_files::ModelFiles;
use crate::part::Part;
use crate::weights::{all_loaded, check, load, load_some};

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

/// [`Residency::Auto`] keeps one part at a time if all parts together take more than this on the device.
const LARGE: usize = 2 << 30;

impl Residency {
    /// Whether parts of this model leave the device when they have done their work.
    pub fn is_per_stage_of(self, files: &ModelFiles) -> bool {
        let parts = files.family().needed().filter_map(|part| files.weights.get(&part));
        self.is_per_stage(parts.map(Checkpoint::device_bytes).sum())
    }

    /// As [`Self::is_per_stage_of`]; `bytes` is what all parts take on the device.
    fn is_per_stage(self, bytes: usize) -> bool {
        match self {
            Self::Auto => bytes > LARGE,
            Self::All => false,
            Self::PerStage => true,
        }
    }
}

/// A part of a model: on the device, or loaded whenever it is needed.
pub(crate) struct Slot<M> {
    part: Part,
    /// The network, without its weights where those are elsewhere.
    network: M,
    /// The weights from which the part is loaded whenever it is needed.
    elsewhere: Option<Checkpoint>,
    /// Names of the tensors that have arrived.
    arrived: BTreeSet<String>,
}

impl<M: Module> Slot<M> {
    /// A part whose weights have not arrived.
    pub(crate) fn new(part: Part, network: M) -> Self {
        Self { part, network, elsewhere: None, arrived: BTreeSet::new() }
    }

    /// Whether the part stays on the device.
    pub(crate) fn is_resident(&self) -> bool {
        self.elsewhere.is_none()
    }

    /// The part with its weights, for as long as the caller keeps it.
    ///
    /// # Errors
    ///
    /// The model lacks the part; or its weights cannot be read, or are not finite.
    pub(crate) fn get(&self) -> Result<M, LoadError> {
        if self.is_empty() {
            return Err(LoadError::File {
                path: self.part.folder().to_owned(),
                reason: "its weights are not in the model".to_owned(),
            });
        }
        let network = self.network.clone();
        match &self.elsewhere {
            Some(weights) => load(network, weights, self.part.keys()),
            None => Ok(network),
        }
    }
}

/// A [`Slot`] of any network.
pub(crate) trait Load {
    /// Which part it is.
    fn part(&self) -> Part;

    /// Loads all or some weights to the device.
    ///
    /// # Errors
    ///
    /// Names every tensor that does not belong to the part or is misshapen.
    fn add(&mut self, weights: &Checkpoint) -> Result<(), LoadError>;

    /// Leaves the weights where they are, to be loaded whenever the part is needed.
    ///
    /// # Errors
    ///
    /// Every missing, unexpected and misshapen tensor, all at once.
    fn defer(&mut self, weights: &Checkpoint) -> Result<(), LoadError>;

    /// Whether no weights have arrived, and none are elsewhere.
    fn is_empty(&self) -> bool;

    /// Fails where weights have not arrived.
    ///
    /// # Errors
    ///
    /// Every missing tensor.
    fn check_complete(&self) -> Result<(), LoadError>;
}

impl<M: Module> Load for Slot<M> {
    fn part(&self) -> Part {
        self.part
    }

    fn add(&mut self, weights: &Checkpoint) -> Result<(), LoadError> {
        let (network, keys) = (self.network.clone(), self.part.keys());
        self.network = load_some(network, weights, keys, &mut self.arrived)?;
        Ok(())
    }

    fn defer(&mut self, weights: &Checkpoint) -> Result<(), LoadError> {
        check(&self.network, weights, self.part.keys())?;
        self.elsewhere = Some(weights.clone());
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.arrived.is_empty() && self.elsewhere.is_none()
    }

    fn check_complete(&self) -> Result<(), LoadError> {
        match self.elsewhere {
            Some(_) => Ok(()),
            None => {
                let (part, keys) = (self.part.folder(), self.part.keys());
                all_loaded(&self.network, part, keys, &self.arrived)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_keeps_one_part_at_a_time_above_two_gibibytes() {
        assert!(!Residency::Auto.is_per_stage(2 << 30));
        assert!(Residency::Auto.is_per_stage((2 << 30) + 1));
        assert!(Residency::PerStage.is_per_stage(0) && !Residency::All.is_per_stage(usize::MAX));
    }
}
