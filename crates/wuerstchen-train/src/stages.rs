//! The model, the batches and the loss of each stage.

mod a;
mod b;
mod c;
mod cache;
mod tokens;

use std::ops::Range;

use burn::module::Module;
use burn::prelude::*;
use wuerstchen::noise::Philox;
use wuerstchen::text::TokenIds;
use wuerstchen::{Compressor, Statistics, Vqgan, VqganConfig, compressor};

pub use self::a::{BatchA, StageA};
pub use self::b::{BatchB, DecoderModel, StageB};
pub use self::c::{BatchC, PriorModel, StageC};
pub use self::cache::Cache;
pub use self::tokens::{BatchTokens, StageBTokens, TokenModel, stage_a_tokens};
use crate::config::DiffusionConfig;
use crate::corpus::{Corpus, CorpusError};

/// A stage that can be trained.
pub trait Stage: Send + Sync + 'static {
    /// The networks that are trained.
    type Model: Module + Sync;

    /// What an update needs of its samples, in main memory.
    type Batch: Send + Sync + 'static;

    /// Makes the batch of the samples with these numbers: draws or decodes pictures, splits captions into
    /// tokens, draws noise. All random numbers come from `rng`. What is large is made only for the places `own`
    /// of the batch, without a change to the others' random numbers.
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
    fn loss(&self, model: &Self::Model, batch: &Self::Batch, range: Range<usize>) -> Tensor<1>;
}

/// Stage B's target: Stage A's latents in the scale that Stage B works in.
pub fn stage_a_latents(vqgan: &Vqgan, config: &VqganConfig, pictures: Tensor<4>) -> Tensor<4> {
    vqgan.encode(pictures, Statistics::Running) / config.scale_factor
}

/// Stage C's target: the image embeddings of pictures in `[0, 1]`, scaled to `side` pixels.
pub fn image_embeddings(compressor: &Compressor, pictures: Tensor<4>, side: usize) -> Tensor<4> {
    compressor.forward(compressor::prepare(pictures, [side; 2]), Statistics::Running)
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
