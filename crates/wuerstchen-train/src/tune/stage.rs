//! Fine-tuning of Stage C, whole or by a LoRA, on image embeddings and texts that were computed before.

use std::ops::Range;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::prelude::*;
use wuerstchen::blocks::LowRankChange;
use wuerstchen::noise::Philox;
use wuerstchen::{Prior, Schedule};

use super::prepare::Prepared;
use crate::config::TuneUpdates;
use crate::corpus::CorpusError;
use crate::lots::stream;
use crate::recompute::{Inputs, Prediction};
use crate::rows::{Noise, Noised, Rows, time_errors};
use crate::stages::{Loss, Stage};

/// The purpose of the random numbers that a LoRA starts with.
const START: u64 = 201;

/// The part of Stage C that is trained.
pub trait Tuned: Send + Sync + 'static {
    /// The trained weights.
    type Model: Module + Sync;

    /// Stage C with the trained weights.
    fn prior(&self, model: &Self::Model) -> Prior;

    /// Whether Stage C sets some activations to zero.
    fn has_dropout(&self) -> bool;
}

/// All weights of Stage C.
pub struct Whole {
    /// Whether the config has a dropout.
    pub has_dropout: bool,
}

impl Tuned for Whole {
    type Model = Prior;

    fn prior(&self, model: &Prior) -> Prior {
        model.clone()
    }

    fn has_dropout(&self) -> bool {
        self.has_dropout
    }
}

/// The matrices of a LoRA beside a frozen Stage C.
pub struct LowRank {
    base: Prior,
    /// For every linear layer, whether it is changed.
    targets: Vec<bool>,
    scale: f64,
}

/// The matrices of a LoRA, in the order of the layers that it changes.
#[derive(Module, Debug)]
pub struct LoraLayers {
    /// One for each changed layer.
    pub layers: Vec<LoraLayer>,
}

/// The matrices of one layer.
#[derive(Module, Debug)]
pub struct LoraLayer {
    /// `[rank, input]`.
    pub down: Param<Tensor<2>>,
    /// `[output, rank]`.
    pub up: Param<Tensor<2>>,
}

impl LowRank {
    /// A LoRA beside `base`, whose weights get no gradients. `targets` says for every linear layer whether it is
    /// changed; the products of the matrices are scaled by `scale`.
    pub fn new(base: Prior, targets: Vec<bool>, scale: f64) -> Self {
        Self { base: base.no_grad(), targets, scale }
    }
}

impl LoraLayers {
    /// The matrices as peft starts them: `down` uniform within `±1/√input`, `up` zero, so that nothing
    /// is changed.
    ///
    /// # Shapes
    ///
    /// - sides: `[output, input]` of every changed layer
    pub fn init(sides: &[[usize; 2]], rank: usize, seed: u64, device: &Device) -> Self {
        let layer = |(i, &[output, input]): (usize, &[usize; 2])| {
            let bound = (input as f32).sqrt().recip();
            let mut rng = stream(seed, START, i as u64);
            let down: Vec<f32> =
                (0..rank * input).map(|_| (2.0 * rng.uniform() - 1.0) * bound).collect();
            let down = Tensor::from_data(TensorData::new(down, [rank, input]), device);
            LoraLayer {
                down: Param::from_tensor(down),
                up: Param::from_tensor(Tensor::zeros([output, rank], device)),
            }
        };
        Self { layers: sides.iter().enumerate().map(layer).collect() }
    }
}

impl Tuned for LowRank {
    type Model = LoraLayers;

    fn prior(&self, model: &LoraLayers) -> Prior {
        let mut layers = model.layers.iter();
        let change = |&is_changed: &bool| {
            let layer = if is_changed { layers.next() } else { None }?;
            Some(LowRankChange { down: layer.down.val(), up: layer.up.val(), scale: self.scale })
        };
        self.base.with_changes(self.targets.iter().map(change).collect())
    }

    fn has_dropout(&self) -> bool {
        false
    }
}

/// Fine-tuning of Stage C.
pub struct StageTune<T> {
    tuned: T,
    pictures: Arc<Prepared>,
    config: TuneUpdates,
    schedule: Schedule,
    /// The device with autodiff.
    device: Device,
}

impl<T> StageTune<T> {
    /// Fine-tuning on prepared pictures, on a device with autodiff.
    pub fn new(
        tuned: T,
        pictures: Arc<Prepared>,
        config: TuneUpdates,
        schedule: Schedule,
        device: Device,
    ) -> Self {
        Self { tuned, pictures, config, schedule, device }
    }
}

/// A batch of pictures of one bucket.
pub struct BatchTune {
    /// Stage C's latents.
    latents: Rows,
    /// The text encoder's hidden states, rows of `[1, T, D]`.
    texts: Rows,
    noise: Noise,
}

impl<T: Tuned> Stage for StageTune<T> {
    type Model = T::Model;
    type Batch = BatchTune;

    fn batch(
        &self,
        rng: &mut Philox,
        samples: Range<u64>,
        own: &Range<usize>,
    ) -> Result<BatchTune, CorpusError> {
        let step = samples.start / (samples.end - samples.start);
        let chosen = self.pictures.batch(step);
        let texts = self.pictures.texts(&chosen, self.config.caption_drop, rng, own)?;
        let latents = self.pictures.latents(&chosen, own)?;
        let noise = Noise::draw(rng, (chosen.len(), own), latents.shape(), self.config.time_shift);
        Ok(BatchTune { latents, texts, noise })
    }

    fn has_dropout(&self) -> bool {
        self.tuned.has_dropout()
    }

    fn loss(&self, model: &T::Model, batch: &BatchTune, range: Range<usize>) -> Loss {
        let latents = batch.latents.tensor(&range, &self.device);
        let text = batch.texts.tensor(&range, &self.device).squeeze_dim::<3>(1);
        let noised = Noised::new(latents, &batch.noise, &range, &self.schedule);
        let inputs = Inputs { x: noised.x.clone(), times: noised.times, text };
        let frozen = self.config.recompute.then(|| self.tuned.prior(&model.clone().no_grad()));
        let Prediction { predicted, earlier, .. } =
            Prediction::new(&self.tuned.prior(model), frozen, inputs);
        let told = noised.errors_by_time(&predicted, |_, _| Vec::new());
        let total = noised.weighted_loss(predicted, |t| match self.config.min_snr_gamma {
            Some(gamma) => self.schedule.min_snr_weight(t, gamma as f32),
            None if self.config.p2_weighting => self.schedule.p2_weight(t, 1.0),
            None => 1.0,
        });
        Loss { told, earlier, ..total.into() }
    }

    fn measures(&self, told: &[f32], _step: u64) -> Vec<(&'static str, f64)> {
        time_errors(told)
    }
}
