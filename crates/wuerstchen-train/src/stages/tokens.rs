//! Stage B of Würstchen v1: from an image embedding to Stage A's tokens. The compressor learns the embedding at the
//! same time, and so does the model's only text encoder.

use std::ops::Range;

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::DType;
use wuerstchen::kernels::autocast;
use wuerstchen::noise::Philox;
use wuerstchen::text::TokenIds;
use wuerstchen::tokens::{LEAST_WEIGHT, cross_entropy, loss_weight, replaced, weighted_means};
use wuerstchen::{Compressor, Statistics, TextEncoder, TokenDecoder, Vqgan};

use super::b::{Changes, learnt_embeddings, perturb};
use super::c::guess_error;
use super::{Cache, Loss, Stage, captions};
use crate::config::{StageBConfig, TrainConfig};
use crate::corpus::{Corpus, CorpusError};
use crate::rows::{Rows, draw_times};

/// What Stage B trains: the decoder, the text encoder and the semantic compressor.
#[derive(Module, Debug)]
pub struct TokenModel {
    /// Stage B.
    pub decoder: TokenDecoder,
    /// The model's text encoder.
    pub text_encoder: TextEncoder,
    /// Makes the image embedding.
    pub compressor: Compressor,
    /// Predicts the image embedding from the last text token, for the text encoder's own loss; not a part of
    /// the finished model.
    pub guess: Option<Linear>,
}

/// Training of a Stage B that denoises tokens.
pub struct StageBTokens {
    /// Where pictures and captions come from.
    pub corpus: Corpus,
    /// Stage A's tokens of the cached scenes, as numbers.
    pub tokens: Cache,
    /// The image embeddings of the cached scenes, where the compressor is frozen.
    pub embeddings: Cache,
    config: StageBConfig,
    /// The device with autodiff.
    device: Device,
    schedule: wuerstchen::Schedule,
    /// Side of the pictures that the compressor sees, in pixels.
    compressor_side: usize,
    embedding_shape: [usize; 3],
    /// Tokens of a picture along each axis.
    side: usize,
    /// Number of different tokens.
    labels: u32,
    /// The frozen Stage A.
    vqgan: Vqgan,
    has_dropout: bool,
}

impl StageBTokens {
    /// Training on a device with autodiff, with a frozen Stage A on the one without. Nothing is cached.
    pub fn new(config: &TrainConfig, corpus: Corpus, vqgan: Vqgan, device: Device) -> Self {
        let model = &config.model;
        Self {
            corpus,
            tokens: Cache::none(),
            embeddings: Cache::none(),
            config: config.b.clone(),
            device,
            schedule: model.schedule,
            compressor_side: config.compressor_side(),
            embedding_shape: config.embedding_shape(),
            side: config.image_size / model.vqgan.downscale(),
            labels: model.vqgan.num_vq_embeddings as u32,
            vqgan,
            has_dropout: model.decoder.has_dropout(),
        }
    }
}

/// Stage B's target: Stage A's tokens as numbers, `[B, 1, H, W]`. They are computed in f32, as cached tokens are,
/// whatever the stage's precision is.
pub fn stage_a_tokens(vqgan: &Vqgan, pictures: Tensor<4>) -> Tensor<4> {
    let encode = || vqgan.quantize(vqgan.encode(pictures, Statistics::Running)).indices;
    autocast(DType::F32, encode).float().unsqueeze_dim(1)
}

/// A batch of Stage B.
pub struct BatchTokens {
    /// The pictures, unless both tokens and embeddings are cached.
    pictures: Option<Rows>,
    tokens: Option<Rows>,
    embeddings: Option<Rows>,
    changes: Changes,
    captions: Vec<TokenIds>,
    /// The share of replaced tokens of every sample.
    times: Vec<f32>,
    /// Whether a token is replaced, all samples in a row.
    replaced: Vec<bool>,
    /// The tokens by which they are replaced, all samples in a row.
    others: Vec<i32>,
}

impl BatchTokens {
    /// Weights of the loss, those of the samples `range`.
    fn weights(&self, range: &Range<usize>, area: usize) -> Vec<f32> {
        let weights = range.clone().flat_map(|sample| {
            let t = self.times[sample];
            let replaced = &self.replaced[sample * area..][..area];
            replaced.iter().map(move |&replaced| loss_weight(replaced, t, LEAST_WEIGHT))
        });
        weights.collect()
    }
}

impl Stage for StageBTokens {
    type Model = TokenModel;
    type Batch = BatchTokens;

    fn batch(
        &self,
        rng: &mut Philox,
        samples: Range<u64>,
        own: &Range<usize>,
    ) -> Result<BatchTokens, CorpusError> {
        let samples = self.tokens.choose(rng, samples);
        let tokens = self.tokens.get(&samples, own);
        let embeddings = self.embeddings.get(&samples, own);
        let pictures = if tokens.is_some() && embeddings.is_some() {
            None
        } else {
            Some(self.corpus.own_pictures(&samples, own)?)
        };
        let (count, area) = (samples.len(), self.side * self.side);
        let changes = Changes::draw(&self.config, rng, (count, own), self.embedding_shape);
        let captions = captions(&self.corpus, &self.config.diffusion, &samples, rng)?;
        let times = draw_times(rng, count, self.config.diffusion.time_shift);
        let mut mask = Vec::with_capacity(count * area);
        for &t in &times {
            let uniform: Vec<f32> = (0..area).map(|_| rng.uniform()).collect();
            mask.extend(replaced(&uniform, t));
        }
        let others = (0..count * area).map(|_| rng.below(self.labels) as i32).collect();
        Ok(BatchTokens {
            pictures,
            tokens,
            embeddings,
            changes,
            captions,
            times,
            replaced: mask,
            others,
        })
    }

    fn has_dropout(&self) -> bool {
        self.has_dropout
    }

    fn loss(&self, model: &TokenModel, batch: &BatchTokens, range: Range<usize>) -> Loss {
        let plain = self.device.clone().inner();
        let pictures = |device: &Device| {
            let pictures = batch.pictures.as_ref().expect("what is not cached is made of pictures");
            pictures.tensor(&range, device)
        };
        let tokens = match &batch.tokens {
            Some(tokens) => tokens.tensor(&range, &plain),
            None => stage_a_tokens(&self.vqgan, pictures(&plain)),
        };
        let (count, area) = (range.len(), self.side * self.side);
        let shape = [count, self.side, self.side];
        let tokens: Tensor<3, Int> = Tensor::from_inner(tokens.squeeze_dim::<3>(1).int());
        let of = range.start * area..range.end * area;
        let others = TensorData::new(batch.others[of.clone()].to_vec(), shape);
        let others = Tensor::<3, Int>::from_data(others, &self.device);
        let mask = TensorData::new(batch.replaced[of].to_vec(), shape);
        let mask = Tensor::<3, Bool>::from_data(mask, &self.device);
        let noised = tokens.clone().mask_where(mask, others);

        let embedding = match &batch.embeddings {
            Some(embeddings) => Tensor::from_inner(embeddings.tensor(&range, &plain)),
            None => {
                let (pictures, side) = (pictures(&self.device), self.compressor_side);
                learnt_embeddings(&model.compressor, pictures, side, self.config.freeze_compressor)
            }
        };
        let text = model.text_encoder.forward(&batch.captions[range.clone()]);
        let guessed = model.guess.as_ref().map(|guess| {
            guess_error(guess, text.clone(), embedding.clone().detach()) * self.config.text_loss
        });
        let embedding = perturb(embedding, &batch.changes, &range, &self.schedule);
        let prepared = model.decoder.prepare(embedding, Some(text));
        let features = prepared.forward(noised, &batch.times[range.clone()], &mut |_, _| {});
        let [.., channels] = features.dims();
        let logits = model.decoder.classify(features.reshape([count * area, channels]));
        let losses = cross_entropy(logits, tokens.reshape([-1])).reshape([count, area]);
        let weights = TensorData::new(batch.weights(&range, area), [count, area]);
        let loss = weighted_means(losses, Tensor::from_data(weights, &self.device)).mean();
        match guessed {
            Some(guessed) => loss + guessed,
            None => loss,
        }
        .into()
    }
}
