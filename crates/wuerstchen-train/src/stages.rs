//! The model, the batches and the loss of each stage.

mod a;
mod adaptive;
mod b;
mod c;
mod cache;
mod codebook;
mod discriminator;
mod tokens;

use std::collections::HashSet;
use std::ops::Range;

use burn::module::{Module, ParamId};
use burn::prelude::*;
use burn::tensor::DType;
use wuerstchen::kernels::autocast;
use wuerstchen::noise::Philox;
use wuerstchen::text::TokenIds;
use wuerstchen::{Compressor, Statistics, Vqgan, VqganConfig, compressor};

pub use self::a::{BatchA, StageA, VqganModel};
pub use self::adaptive::LevelErrors;
pub use self::b::{BatchB, DecoderModel, StageB};
pub use self::c::{BatchC, PriorModel, StageC};
pub use self::cache::Cache;
pub(crate) use self::cache::Kept;
pub use self::codebook::CodebookAverages;
pub use self::discriminator::Discriminator;
pub use self::tokens::{BatchTokens, StageBTokens, TokenModel, stage_a_tokens};
use crate::config::DiffusionConfig;
use crate::corpus::{Corpus, CorpusError};
use crate::optimizer::OptimizerConfig;
pub use crate::recompute::Earlier;
pub use crate::told::{Make, Told};

/// A stage that can be trained.
pub trait Stage: Send + Sync + 'static {
    /// The networks that are trained.
    type Model: Module + Sync;

    /// What an update needs of its samples, in main memory.
    type Batch: Send + Sync + 'static;

    /// Makes the batch of the samples with these numbers: draws or decodes pictures, splits captions into
    /// tokens, draws noise. All random numbers come from `rng`. Pictures, latents and noise are made only for the places
    /// `own` of the batch, but the random numbers are the same as if all were made.
    ///
    /// # Errors
    ///
    /// A sample cannot be read.
    fn batch(
        &self,
        rng: &mut Philox,
        samples: Range<u64>,
        own: &Range<usize>,
    ) -> Result<Self::Batch, CorpusError>;

    /// The mean loss of the samples `range` of a batch, which are among those that it was made for.
    fn loss(&self, model: &Self::Model, batch: &Self::Batch, range: Range<usize>) -> Loss;

    /// Whether the loss draws random numbers from the device's own generator, as dropout does.
    fn has_dropout(&self) -> bool {
        false
    }

    /// Further metrics of the update number `step`, from 0: names and values. `_told` are the numbers that its shares
    /// reported ([`Told`]), averaged.
    fn measures(&self, _told: &[f32], _step: u64) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// The networks in a model that are trained against the others; by default there are none.
    fn adversary(&self, _model: &Self::Model) -> Option<Adversary> {
        None
    }

    /// Changes parameters that no gradient trains, after the update number `step`, from 0. `_told` are the numbers that
    /// its shares reported, averaged.
    fn settle(&self, model: Self::Model, _told: &[f32], _step: u64) -> Self::Model {
        model
    }
}

/// The loss of a share of a batch.
pub struct Loss {
    /// The loss whose gradients are taken.
    pub total: Tensor<1>,
    /// The loss that metrics show.
    pub shown: Tensor<1>,
    /// Further numbers that the share tells.
    pub told: Told,
    /// The gradients of the computation before the graph of `total`, which the backward pass computes again; mostly
    /// `None`.
    pub earlier: Option<Earlier>,
}

impl From<Tensor<1>> for Loss {
    /// A loss that is shown as it is, and tells nothing else.
    fn from(total: Tensor<1>) -> Self {
        Self { shown: total.clone(), total, told: Told::known(Vec::new()), earlier: None }
    }
}

/// Networks that are trained against the others of a model, by an optimizer of their own.
pub struct Adversary {
    /// Its settings.
    pub optimizer: OptimizerConfig,
    /// The update of the model with which it begins, from 0.
    pub start: u64,
    /// Its parameters.
    pub parameters: HashSet<ParamId>,
}

/// Stage B's target: Stage A's latents in the scale that Stage B works in. They are in f32, as cached latents are,
/// whatever the stage's precision is.
///
/// # Shapes
///
/// - pictures: `[B, 3, H, W]`, in `[0, 1]`
/// - output: `[B, latent_channels, H / downscale, W / downscale]`
pub fn stage_a_latents(vqgan: &Vqgan, config: &VqganConfig, pictures: Tensor<4>) -> Tensor<4> {
    autocast(DType::F32, || vqgan.encode(pictures, Statistics::Running) / config.scale_factor)
}

/// Stage C's target: the image embeddings of pictures in `[0, 1]`, scaled to `side` pixels. They are in f32, as with
/// [`stage_a_latents`].
///
/// # Shapes
///
/// - pictures: `[B, 3, H, W]`
/// - output: `[B, c_latent, h, w]`, with `h` and `w` the cells that the compressor makes of `side` pixels
pub fn image_embeddings(compressor: &Compressor, pictures: Tensor<4>, side: usize) -> Tensor<4> {
    let pictures = compressor::prepare(pictures, [side; 2]);
    autocast(DType::F32, || compressor.forward(pictures, Statistics::Running))
}

fn captions(
    corpus: &Corpus,
    config: &DiffusionConfig,
    samples: &[u64],
    rng: &mut Philox,
) -> Result<Vec<TokenIds>, CorpusError> {
    let odds = [config.caption_drop, config.unknown_words];
    samples.iter().map(|&sample| corpus.tokens(sample, odds, rng)).collect()
}
