//! The model and the loss of each stage.

use std::ops::Range;

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;
use wuerstchen::noise::Philox;
use wuerstchen::sampler::add_noise;
use wuerstchen::text::TokenIds;
use wuerstchen::{
    Compressor, Decoder, Prior, Schedule, Statistics, TextEncoder, Vqgan, VqganConfig, compressor,
};

use crate::config::StageConfig;
use crate::corpus::{Corpus, CorpusError};

/// A stage that can be trained.
pub trait Stage: Sync {
    /// The networks that are trained.
    type Model: Module + Sync;

    /// The mean loss of the samples with these numbers. All random numbers come from `rng`.
    ///
    /// # Errors
    ///
    /// A sample cannot be read.
    fn loss(
        &self,
        model: &Self::Model,
        rng: &mut Philox,
        samples: Range<u64>,
    ) -> Result<Tensor<1>, CorpusError>;
}

/// Stage A: from pictures to latents and back.
pub struct StageA {
    /// Where pictures come from.
    pub corpus: Corpus,
    /// How it is trained.
    pub config: StageConfig,
    /// With autodiff.
    pub device: Device,
}

/// Weights of the squared error beside the absolute one in Stage A's loss.
const SQUARED_ERROR: f64 = 2.0;

impl Stage for StageA {
    type Model = Vqgan;

    fn loss(
        &self,
        model: &Vqgan,
        rng: &mut Philox,
        samples: Range<u64>,
    ) -> Result<Tensor<1>, CorpusError> {
        let pictures = match self.config.max_zoom as u32 {
            1 => self.corpus.pictures(&samples.collect::<Vec<_>>(), &self.device)?,
            most => {
                let zooms: Vec<_> = samples.map(|number| (number, 1 + rng.below(most))).collect();
                self.corpus.crops(&zooms, rng, &self.device)?
            }
        };
        let latents = model.encode(pictures.clone(), Statistics::Batch);
        let quantized = model.quantize(latents.clone());
        // The pipeline decodes without quantising, so the decoder learns both.
        let latents = match f64::from(rng.uniform()) < self.config.quantized {
            true => quantized.latents,
            false => latents,
        };
        let error = model.decode(latents) - pictures;
        let edges = match self.config.edge_loss > 0.0 {
            true => edge_error(&error) * self.config.edge_loss,
            false => Tensor::zeros([1], &self.device),
        };
        let loss = error.clone().abs().mean() + error.square().mean() * SQUARED_ERROR;
        Ok(loss + edges + quantized.loss)
    }
}

/// The mean absolute error of the differences between neighbouring pixels, of the error `[B, C, H, W]` of
/// the pixels themselves.
fn edge_error(error: &Tensor<4>) -> Tensor<1> {
    let [_, _, height, width] = error.dims();
    let part = |axis, start, length| error.clone().narrow(axis, start, length);
    let across = part(3, 1, width - 1) - part(3, 0, width - 1);
    let down = part(2, 1, height - 1) - part(2, 0, height - 1);
    across.abs().mean() + down.abs().mean()
}

/// What Stage B trains: the decoder, its text encoder and the semantic compressor.
#[derive(Module, Debug)]
pub struct DecoderModel {
    /// Stage B.
    pub decoder: Decoder,
    /// Its text encoder.
    pub text_encoder: TextEncoder,
    /// Makes the image embedding.
    pub compressor: Compressor,
}

/// Stage B: from an image embedding to Stage A's latents. The compressor learns the embedding at the same
/// time.
pub struct StageB {
    /// Where pictures and captions come from.
    pub corpus: Corpus,
    /// How it is trained.
    pub config: StageConfig,
    /// With autodiff.
    pub device: Device,
    /// The noise schedule.
    pub schedule: Schedule,
    /// Stage A's latents of the cached scenes.
    pub latents: Cache,
    /// The image embeddings of the cached scenes, where the compressor is frozen.
    pub embeddings: Cache,
    /// Side of the pictures that the compressor sees, in pixels.
    pub compressor_side: usize,
    /// Stage A, frozen.
    pub vqgan: Vqgan,
    /// Its config.
    pub vqgan_config: VqganConfig,
}

impl Stage for StageB {
    type Model = DecoderModel;

    fn loss(
        &self,
        model: &DecoderModel,
        rng: &mut Philox,
        samples: Range<u64>,
    ) -> Result<Tensor<1>, CorpusError> {
        let samples = self.latents.choose(rng, samples);
        let pictures = |device: &Device| self.corpus.pictures(&samples, device);
        let latents = match self.latents.get(&samples) {
            Some(latents) => latents,
            None => {
                let pictures = pictures(&self.device.clone().inner())?;
                stage_a_latents(&self.vqgan, &self.vqgan_config, pictures)
            }
        };
        let embedding = match (self.embeddings.get(&samples), self.config.freeze_compressor) {
            (Some(embedding), _) => Tensor::from_inner(embedding),
            (None, true) => {
                let pictures = pictures(&self.device)?;
                image_embeddings(&model.compressor, pictures, self.compressor_side).detach()
            }
            (None, false) => {
                let prepared =
                    compressor::prepare(pictures(&self.device)?, [self.compressor_side; 2]);
                model.compressor.forward(prepared, Statistics::Batch)
            }
        };
        let embedding = self.perturb(embedding, rng);
        let captions = captions(&self.corpus, &self.config, &samples, rng)?;
        let text = model.text_encoder.forward(&captions);
        let noised = Noised::new(Tensor::from_inner(latents), &self.schedule, rng);
        let predicted = model.decoder.forward(noised.x.clone(), &noised.times, embedding, text);
        Ok(noised.loss(predicted, &self.schedule, self.config.p2_k()))
    }
}

impl StageB {
    /// Replaces some samples' embeddings by zeros and noises others up to the time 0.5, so that Stage B
    /// tolerates the imperfect embeddings that Stage C makes.
    fn perturb(&self, embedding: Tensor<4>, rng: &mut Philox) -> Tensor<4> {
        let [batch, ..] = embedding.dims();
        let (mut keep, mut times) = (Vec::new(), Vec::new());
        for _ in 0..batch {
            let kind = f64::from(rng.uniform());
            let dropped = kind < self.config.embedding_drop;
            let noised = kind < self.config.embedding_drop + self.config.embedding_noise;
            keep.push(if dropped { 0.0 } else { 1.0 });
            times.push(if noised { 0.5 * rng.uniform() } else { 0.0 });
        }
        let noise = rng.normal_tensor(embedding.dims(), &self.device);
        let embedding = add_noise(&self.schedule, embedding, noise, &times);
        embedding * column(&keep, &self.device)
    }
}

/// What Stage C trains: the prior and its text encoder.
#[derive(Module, Debug)]
pub struct PriorModel {
    /// Stage C.
    pub prior: Prior,
    /// Its text encoder.
    pub text_encoder: TextEncoder,
    /// Predicts the image embedding from the last text token, for the text encoder's own loss; not a part of
    /// the finished model.
    pub guess: Option<Linear>,
}

/// Stage C: from a prompt to an image embedding.
pub struct StageC {
    /// Where pictures and captions come from.
    pub corpus: Corpus,
    /// How it is trained.
    pub config: StageConfig,
    /// With autodiff.
    pub device: Device,
    /// The noise schedule.
    pub schedule: Schedule,
    /// The image embeddings of the cached scenes.
    pub embeddings: Cache,
    /// The semantic compressor, frozen.
    pub compressor: Compressor,
    /// Side of the pictures that it sees, in pixels.
    pub compressor_side: usize,
    /// What the embeddings are divided by.
    pub embedding_scale: f64,
}

impl Stage for StageC {
    type Model = PriorModel;

    fn loss(
        &self,
        model: &PriorModel,
        rng: &mut Philox,
        samples: Range<u64>,
    ) -> Result<Tensor<1>, CorpusError> {
        let samples = self.embeddings.choose(rng, samples);
        let embeddings = match self.embeddings.get(&samples) {
            Some(embeddings) => embeddings,
            None => {
                let pictures = self.corpus.pictures(&samples, &self.device.clone().inner())?;
                image_embeddings(&self.compressor, pictures, self.compressor_side)
            }
        };
        let captions = captions(&self.corpus, &self.config, &samples, rng)?;
        let text = model.text_encoder.forward(&captions);
        let latents = Tensor::from_inner(embeddings) / self.embedding_scale;
        let noised = Noised::new(latents.clone(), &self.schedule, rng);
        let predicted = model.prior.forward(noised.x.clone(), &noised.times, text.clone());
        let loss = noised.loss(predicted, &self.schedule, self.config.p2_k());
        Ok(match &model.guess {
            Some(guess) => loss + guess_error(guess, text, latents) * self.config.text_loss,
            None => loss,
        })
    }
}

/// The mean squared error of the latents that `guess` predicts from the last text token.
///
/// The layout that a prompt asks for matters to the diffusion loss at the noisiest times only. That signal
/// is too faint for a text encoder that starts from random weights; the authors start from a pretrained one.
fn guess_error(guess: &Linear, text: Tensor<3>, latents: Tensor<4>) -> Tensor<1> {
    let [_, tokens, _] = text.dims();
    let guessed = guess.forward(text.narrow(1, tokens - 1, 1).squeeze_dim::<2>(1));
    (guessed - latents.flatten(1, 3)).square().mean()
}

/// Stage B's target: Stage A's latents in the scale that Stage B works in.
pub fn stage_a_latents(vqgan: &Vqgan, config: &VqganConfig, pictures: Tensor<4>) -> Tensor<4> {
    vqgan.encode(pictures, Statistics::Running) / config.scale_factor
}

/// Stage C's target: the image embeddings of pictures in `[0, 1]`, scaled to `side` pixels.
pub fn image_embeddings(compressor: &Compressor, pictures: Tensor<4>, side: usize) -> Tensor<4> {
    compressor.forward(compressor::prepare(pictures, [side; 2]), Statistics::Running)
}

/// Latents of a fixed number of scenes, computed once.
pub struct Cache {
    scenes: usize,
    shape: [usize; 3],
    values: Vec<f32>,
    device: Device,
}

/// Scenes in one forward pass while a cache is filled.
const CACHE_BATCH: usize = 64;

impl Cache {
    /// Computes the latents of the first `scenes` samples of the corpus; `encode` maps pictures
    /// `[B, 3, H, W]` on `device` to latents, `on_batch` hears how many are done.
    ///
    /// # Errors
    ///
    /// A picture cannot be read.
    pub fn fill(
        corpus: &Corpus,
        scenes: usize,
        device: &Device,
        encode: impl Fn(Tensor<4>) -> Tensor<4>,
        mut on_batch: impl FnMut(usize),
    ) -> Result<Self, CorpusError> {
        let (mut values, mut shape) = (Vec::new(), [0; 3]);
        for start in (0..scenes).step_by(CACHE_BATCH) {
            let end = scenes.min(start + CACHE_BATCH);
            let samples: Vec<_> = (start as u64..end as u64).collect();
            let latents = encode(corpus.pictures(&samples, device)?);
            let [_, channels, height, width] = latents.dims();
            shape = [channels, height, width];
            values.extend(latents.into_data().try_to_vec::<f32>().expect("latents are f32"));
            on_batch(end);
        }
        Ok(Self { scenes, shape, values, device: device.clone() })
    }

    /// The numbers of a batch's samples: any of the cached scenes, or the next ones if there are
    /// none.
    fn choose(&self, rng: &mut Philox, samples: Range<u64>) -> Vec<u64> {
        match self.scenes {
            0 => samples.collect(),
            scenes => samples.map(|_| u64::from(rng.below(scenes as u32))).collect(),
        }
    }

    fn get(&self, chosen: &[u64]) -> Option<Tensor<4>> {
        if self.scenes == 0 {
            return None;
        }
        let size: usize = self.shape.iter().product();
        let rows = chosen.iter().flat_map(|&i| &self.values[i as usize * size..][..size]);
        let [channels, height, width] = self.shape;
        let values: Vec<f32> = rows.copied().collect();
        let shape = [chosen.len(), channels, height, width];
        Some(Tensor::from_data(TensorData::new(values, shape), &self.device))
    }
}

/// Clean latents noised to random times.
pub struct Noised {
    /// The noised latents.
    pub x: Tensor<4>,
    /// The noise.
    pub noise: Tensor<4>,
    /// The time of every sample.
    pub times: Vec<f32>,
}

impl Noised {
    /// Draws a time and noise for every sample.
    ///
    /// Times are `clamp((1 − U)·1.08 + 0.001, 0.001, 1)`: 7.5 % of them are pure noise.
    ///
    /// Source: `train_stage_C.py` of dome272/Wuerstchen.
    pub fn new(clean: Tensor<4>, schedule: &Schedule, rng: &mut Philox) -> Self {
        let [batch, ..] = clean.dims();
        let time = |_| ((1.0 - rng.uniform()) * 1.08 + 0.001).clamp(0.001, 1.0);
        let times: Vec<f32> = (0..batch).map(time).collect();
        let noise = rng.normal_tensor(clean.dims(), &clean.device());
        Self { x: add_noise(schedule, clean, noise.clone(), &times), noise, times }
    }

    /// The mean over the samples of the squared error of the predicted noise, weighted by p2 if
    /// there is a `p2_k`.
    pub fn loss(&self, predicted: Tensor<4>, schedule: &Schedule, p2_k: Option<f32>) -> Tensor<1> {
        let weight = |t: &f32| p2_k.map_or(1.0, |k| schedule.p2_weight(*t, k));
        let weights: Vec<f32> = self.times.iter().map(weight).collect();
        let weights = column(&weights, &predicted.device());
        ((predicted - self.noise.clone()).square() * weights).mean()
    }
}

fn column(values: &[f32], device: &Device) -> Tensor<4> {
    Tensor::<1>::from_data(values, device).reshape([values.len(), 1, 1, 1])
}

fn captions(
    corpus: &Corpus,
    config: &StageConfig,
    samples: &[u64],
    rng: &mut Philox,
) -> Result<Vec<TokenIds>, CorpusError> {
    let odds = [config.caption_drop, config.unknown_words];
    samples.iter().map(|&sample| corpus.tokens(sample, odds, rng)).collect()
}
