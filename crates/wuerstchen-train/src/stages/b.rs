//! Stage B: from an image embedding to Stage A's latents. The compressor learns the embedding at the same time.

use std::ops::Range;

use burn::module::Module;
use burn::prelude::*;
use wuerstchen::noise::Philox;
use wuerstchen::sampler::add_noise;
use wuerstchen::text::TokenIds;
use wuerstchen::{
    Compressor, Decoder, Schedule, Statistics, TextEncoder, Vqgan, VqganConfig, compressor,
};

use super::{Cache, Loss, Stage, captions, image_embeddings, stage_a_latents};
use crate::config::{StageBConfig, TrainConfig};
use crate::corpus::{Corpus, CorpusError};
use crate::rows::{Noise, Noised, Rows, column, time_errors};

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

/// Training of Stage B.
pub struct StageB {
    /// Where pictures and captions come from.
    pub corpus: Corpus,
    /// Stage A's latents of the cached scenes.
    pub latents: Cache,
    /// The image embeddings of the cached scenes, where the compressor is frozen.
    pub embeddings: Cache,
    config: StageBConfig,
    /// The device with autodiff.
    device: Device,
    schedule: Schedule,
    /// Side of the pictures that the compressor sees, in pixels.
    compressor_side: usize,
    embedding_shape: [usize; 3],
    /// Whether any level sees the image embedding. Where none does, the compressor does not run: autodiff would keep
    /// its features, which no backward pass visits, until the end of the run.
    takes_embedding: bool,
    has_dropout: bool,
    latent_shape: [usize; 3],
    /// The frozen Stage A.
    vqgan: Vqgan,
    vqgan_config: VqganConfig,
}

impl StageB {
    /// Training on a device with autodiff, with a frozen Stage A on the one without. Nothing is cached.
    pub fn new(config: &TrainConfig, corpus: Corpus, vqgan: Vqgan, device: Device) -> Self {
        let model = &config.model;
        let side = config.image_size / model.vqgan.downscale();
        Self {
            corpus,
            latents: Cache::none(),
            embeddings: Cache::none(),
            config: config.b.clone(),
            device,
            schedule: model.schedule,
            compressor_side: config.compressor_side(),
            embedding_shape: config.embedding_shape(),
            takes_embedding: model.decoder.takes_embedding(),
            has_dropout: model.decoder.has_dropout(),
            latent_shape: [model.vqgan.latent_channels, side, side],
            vqgan,
            vqgan_config: model.vqgan.clone(),
        }
    }
}

/// The image embeddings of pictures in `[0, 1]`; they have a graph, so that the compressor learns, unless it is frozen.
pub(super) fn learnt_embeddings(
    compressor: &Compressor,
    pictures: Tensor<4>,
    side: usize,
    is_frozen: bool,
) -> Tensor<4> {
    if is_frozen {
        // A graph that no backward pass takes down would stay in memory.
        Tensor::from_inner(image_embeddings(&compressor.valid(), pictures.inner(), side))
    } else {
        compressor.forward(compressor::prepare(pictures, [side; 2]), Statistics::Batch)
    }
}

/// Replaces some samples' embeddings by zeros and noises others, so that Stage B tolerates the imperfect
/// embeddings that Stage C makes.
pub(super) fn perturb(
    embedding: Tensor<4>,
    changes: &Changes,
    range: &Range<usize>,
    schedule: &Schedule,
) -> Tensor<4> {
    let device = embedding.device();
    let noise = changes.noise.values.tensor(range, &device);
    let times = &changes.noise.times[range.clone()];
    let embedding = add_noise(schedule, embedding, noise, times);
    embedding * column(&changes.keep[range.clone()], &device)
}

/// A batch of Stage B.
pub struct BatchB {
    /// The pictures; `None` if the latents are cached, and the embeddings too where the decoder takes them.
    pictures: Option<Rows>,
    latents: Option<Rows>,
    embeddings: Option<Rows>,
    changes: Changes,
    captions: Vec<TokenIds>,
    noise: Noise,
}

/// The random changes to the embeddings of a batch.
pub(super) struct Changes {
    /// 0 for embeddings that become zeros, 1 for the others.
    keep: Vec<f32>,
    /// The noise; its times are 0 for embeddings that are not noised, else up to 0.5.
    noise: Noise,
}

impl Changes {
    pub(super) fn draw(
        config: &StageBConfig,
        rng: &mut Philox,
        (count, own): (usize, &Range<usize>),
        shape: [usize; 3],
    ) -> Self {
        let (mut keep, mut times) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let kind = f64::from(rng.uniform());
            let dropped = kind < config.embedding_drop;
            let noised = kind < config.embedding_drop + config.embedding_noise;
            keep.push(if dropped { 0.0 } else { 1.0 });
            times.push(if noised { 0.5 * rng.uniform() } else { 0.0 });
        }
        Self { keep, noise: Noise { times, values: Rows::noise(rng, count, shape, own) } }
    }
}

impl Stage for StageB {
    type Model = DecoderModel;
    type Batch = BatchB;

    fn batch(
        &self,
        rng: &mut Philox,
        samples: Range<u64>,
        own: &Range<usize>,
    ) -> Result<BatchB, CorpusError> {
        let samples = self.latents.choose(rng, samples);
        let time_shift = self.config.diffusion.time_shift;
        let latents = self.latents.get(&samples, own);
        let embeddings = self.embeddings.get(&samples, own);
        let count = (samples.len(), own);
        let is_embedded = embeddings.is_some() || !self.takes_embedding;
        let pictures = if latents.is_some() && is_embedded {
            None
        } else {
            Some(self.corpus.own_pictures(&samples, own)?)
        };
        Ok(BatchB {
            pictures,
            latents,
            embeddings,
            changes: Changes::draw(&self.config, rng, count, self.embedding_shape),
            captions: captions(&self.corpus, &self.config.diffusion, &samples, rng)?,
            noise: Noise::draw(rng, count, self.latent_shape, time_shift),
        })
    }

    fn has_dropout(&self) -> bool {
        self.has_dropout
    }

    fn loss(&self, model: &DecoderModel, batch: &BatchB, range: Range<usize>) -> Loss {
        let plain = self.device.clone().inner();
        let pictures = |device: &Device| {
            let pictures = batch.pictures.as_ref().expect("what is not cached is made of pictures");
            pictures.tensor(&range, device)
        };
        let latents = match &batch.latents {
            Some(latents) => latents.tensor(&range, &plain),
            None => stage_a_latents(&self.vqgan, &self.vqgan_config, pictures(&plain)),
        };
        let embedding = match &batch.embeddings {
            Some(embeddings) => Tensor::from_inner(embeddings.tensor(&range, &plain)),
            None if !self.takes_embedding => {
                let [channels, height, width] = self.embedding_shape;
                Tensor::zeros([range.len(), channels, height, width], &self.device)
            }
            None => {
                let (pictures, side) = (pictures(&self.device), self.compressor_side);
                learnt_embeddings(&model.compressor, pictures, side, self.config.freeze_compressor)
            }
        };
        let embedding = perturb(embedding, &batch.changes, &range, &self.schedule);
        let text = model.text_encoder.forward(&batch.captions[range.clone()]);
        let latents = Tensor::from_inner(latents);
        let noised = Noised::new(latents, &batch.noise, &range, &self.schedule);
        let predicted = model.decoder.forward(noised.x.clone(), noised.times, embedding, text);
        let told = noised.errors_by_time(&predicted, |_, _| Vec::new());
        let diffusion = &self.config.diffusion;
        let total = noised.weighted_loss(predicted, |t| diffusion.weight(&self.schedule, t));
        Loss { told, ..total.into() }
    }

    fn measures(&self, told: &[f32], _step: u64) -> Vec<(&'static str, f64)> {
        time_errors(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 20 000 embeddings 30 % become zeros and 40 % are noised; the standard deviation of a share is below 0.004.
    #[test]
    fn embeddings_are_dropped_or_noised_in_their_shares() {
        let config = include_str!("../../../../configs/smoke.toml");
        let mut config = TrainConfig::from_toml(config).unwrap().b;
        (config.embedding_drop, config.embedding_noise) = (0.3, 0.4);
        let Changes { keep, noise } =
            Changes::draw(&config, &mut Philox::new(1, 0), (20_000, &(0..20_000)), [1, 1, 1]);
        let share = |count: usize| count as f64 / 20_000.0;
        let dropped = keep.iter().filter(|&&keep| keep == 0.0).count();
        let kept = keep.iter().zip(&noise.times).filter(|(keep, _)| **keep == 1.0);
        let noised = kept.filter(|(_, time)| **time > 0.0).count();
        assert!((share(dropped) - 0.3).abs() < 0.015, "{dropped}");
        assert!((share(noised) - 0.4).abs() < 0.015, "{noised}");
        assert!(keep.iter().all(|keep| [0.0, 1.0].contains(keep)));
        assert!(noise.times.iter().all(|time| (0.0..0.5).contains(time)));
    }
}
