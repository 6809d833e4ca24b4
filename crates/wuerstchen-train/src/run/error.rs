//! Why a training run ends early.

use wuerstchen::{ConfigError, Error, LoadError, LoraError, OptionsError};

use crate::config::StageName;
use crate::corpus::CorpusError;
use crate::peers::Failure;
use crate::store::StoreError;
use crate::trainer::RestoreError;

/// Why a training run ends early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A stage that is to start anew has been trained before.
    #[error("{state} is the state of stage {}, and a new start would overwrite it", stage.as_str())]
    StateExists {
        /// Which stage.
        stage: StageName,
        /// Its state.
        state: String,
    },
    /// A training is to begin where there is the result of another one, but no state.
    #[error(
        "{result} is the result of a training whose state, {state}, is not there: a new start would overwrite it"
    )]
    ResultExists {
        /// What was trained.
        result: String,
        /// Where its state would be.
        state: String,
    },
    /// Training cannot go on from a state.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A sample cannot be read. The state before it is saved.
    #[error("training has stopped and saved its state")]
    Sample(#[source] CorpusError),
    /// The tokenizer or the cache, which the first update needs, cannot be made from the samples.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The gradients have ceased to be finite, or stay too large.
    #[error(
        "stage {} diverged: the gradients of the {steps} steps up to step {step} are not finite or above \
         optimizer.skip_grad_norm; what was saved before is kept; try a smaller optimizer.learning_rate, or a larger \
         skip_grad_norm", stage.as_str()
    )]
    Diverged {
        /// Which stage.
        stage: StageName,
        /// How many steps in a row changed nothing.
        steps: u32,
        /// Updates done, including those that changed nothing.
        step: u64,
    },
    /// The weights, or the samples of a grid, have become infinite, NaN or too large to be kept.
    #[error(
        "stage {} diverged: {what} after step {step} are infinite, NaN, or too large for f16; {kept}; try a \
         smaller optimizer.learning_rate", stage.as_str()
    )]
    NotFinite {
        /// Which stage.
        stage: StageName,
        /// What diverged, the weights or the samples.
        what: &'static str,
        /// Updates done.
        step: u64,
        /// What was saved before, a clause for people.
        kept: String,
    },
    /// The image embeddings are all the same, or not finite.
    #[error("the image embeddings spread by {spread}: train b longer, or with smaller steps")]
    Spread {
        /// Their standard deviation.
        spread: f32,
    },
    /// A part is not trained yet, or its weights do not fit the config.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Weights that a run is to start from are of another model.
    #[error("{part}: the weights do not fit the config: {difference}")]
    Misfit {
        /// Which weights.
        part: String,
        /// The first tensor that differs, how, and how many more do.
        difference: String,
    },
    /// The model that is to be fine-tuned cannot be.
    #[error("the model {reason}")]
    Model {
        /// What it is or lacks, a clause that follows "the model".
        reason: String,
    },
    /// A trained LoRA cannot be read back.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// A grid of samples cannot be made.
    #[error(transparent)]
    Generate(#[from] Error),
    /// A value of the config cannot be used.
    #[error(transparent)]
    Value(#[from] ConfigError),
    /// The config's defaults cannot be used.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The config cannot be written as TOML.
    #[error("cannot write the config as TOML")]
    Config(#[from] toml::ser::Error),
    /// A grid of samples cannot be written as PNG.
    #[error("cannot encode the pictures: {0}")]
    Picture(String),
    /// The store cannot read or write.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Processes that are to train together have been started with different configs, pictures or weights.
    #[error("expected {expected} as rank 0 has, found {found}")]
    Differs {
        /// What rank 0 has.
        expected: String,
        /// What this process has.
        found: String,
    },
    /// One of the processes that train together has failed, and has told all others.
    #[error("{failure}")]
    Failed {
        /// Which process, and why.
        failure: Failure,
        /// This process's own error, if it has failed.
        own: Option<Box<Self>>,
    },
}
