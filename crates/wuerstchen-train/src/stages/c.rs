//! Stage C: from a prompt to an image embedding.

use std::ops::Range;

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;
use wuerstchen::noise::Philox;
use wuerstchen::text::TokenIds;
use wuerstchen::{Compressor, Prior, Schedule, TextEncoder};

use super::adaptive::{LevelErrors, sums_by_level};
use super::{Cache, Loss, Stage, captions, image_embeddings};
use crate::config::{StageCConfig, TrainConfig};
use crate::corpus::{Corpus, CorpusError};
use crate::recompute::{Inputs, Prediction};
use crate::rows::{Noise, Noised, Rows, TOLD_BY_TIME, time_errors};

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
    /// The mean errors that the weights of the loss follow, if they are adaptive; not a part of the finished model.
    pub levels: Option<LevelErrors>,
}

/// Training of Stage C.
pub struct StageC {
    /// Where pictures and captions come from.
    pub corpus: Corpus,
    /// The image embeddings of the cached scenes.
    pub embeddings: Cache,
    config: StageCConfig,
    /// The device with autodiff.
    device: Device,
    schedule: Schedule,
    /// The frozen compressor.
    compressor: Compressor,
    /// Side of the pictures that it sees, in pixels.
    compressor_side: usize,
    embedding_shape: [usize; 3],
    /// The number by which the embeddings are divided.
    embedding_scale: f64,
    /// Whether the text encoder has been trained with Stage B.
    has_frozen_text: bool,
    has_dropout: bool,
}

impl StageC {
    /// Training on a device with autodiff, with a frozen compressor on the device without. `embedding_scale` is the
    /// number by which the compressor's embeddings are divided. Nothing is cached.
    pub fn new(
        config: &TrainConfig,
        corpus: Corpus,
        (compressor, embedding_scale): (Compressor, f64),
        device: Device,
    ) -> Self {
        Self {
            corpus,
            embeddings: Cache::none(),
            config: config.c.clone(),
            device,
            schedule: config.model.schedule,
            compressor,
            compressor_side: config.compressor_side(),
            embedding_shape: config.embedding_shape(),
            embedding_scale,
            has_frozen_text: config.model.decoder.has_tokens(),
            has_dropout: config.model.prior.dropout > 0.0,
        }
    }
}

/// A batch of Stage C.
pub struct BatchC {
    /// The targets, or the pictures from which they are made.
    targets: Targets,
    captions: Vec<TokenIds>,
    noise: Noise,
}

enum Targets {
    Embeddings(Rows),
    Pictures(Rows),
}

impl Stage for StageC {
    type Model = PriorModel;
    type Batch = BatchC;

    fn batch(
        &self,
        rng: &mut Philox,
        samples: Range<u64>,
        own: &Range<usize>,
    ) -> Result<BatchC, CorpusError> {
        let samples = self.embeddings.choose(rng, samples);
        let time_shift = self.config.diffusion.time_shift;
        let targets = match self.embeddings.get(&samples, own) {
            Some(embeddings) => Targets::Embeddings(embeddings),
            None => Targets::Pictures(self.corpus.own_pictures(&samples, own)?),
        };
        Ok(BatchC {
            targets,
            captions: captions(&self.corpus, &self.config.diffusion, &samples, rng)?,
            noise: Noise::draw(rng, (samples.len(), own), self.embedding_shape, time_shift),
        })
    }

    fn has_dropout(&self) -> bool {
        self.has_dropout
    }

    fn loss(&self, model: &PriorModel, batch: &BatchC, range: Range<usize>) -> Loss {
        let plain = self.device.clone().inner();
        let embeddings = match &batch.targets {
            Targets::Embeddings(embeddings) => embeddings.tensor(&range, &plain),
            Targets::Pictures(pictures) => {
                let pictures = pictures.tensor(&range, &plain);
                image_embeddings(&self.compressor, pictures, self.compressor_side)
            }
        };
        let captions = &batch.captions[range.clone()];
        let text = if self.has_frozen_text {
            // A graph that no backward pass takes down would stay in memory.
            Tensor::from_inner(model.text_encoder.valid().forward(captions))
        } else {
            model.text_encoder.forward(captions)
        };
        let latents = Tensor::from_inner(embeddings) / self.embedding_scale;
        let noised = Noised::new(latents.clone(), &batch.noise, &range, &self.schedule);
        let inputs = Inputs { x: noised.x.clone(), times: noised.times, text };
        let frozen = self.config.recompute.then(|| model.prior.clone().no_grad());
        let Prediction { predicted, text, earlier } = Prediction::new(&model.prior, frozen, inputs);
        let (diffusion, schedule) = (&self.config.diffusion, self.schedule);
        let is_adaptive = model.levels.is_some();
        let told = noised.errors_by_time(&predicted, move |errors, times| {
            if is_adaptive { sums_by_level(&schedule, errors, times) } else { Vec::new() }
        });
        let loss = match &model.levels {
            Some(levels) => {
                let weights = levels.weights(&schedule, noised.times);
                noised.loss(predicted, &weights)
            }
            None => noised.weighted_loss(predicted, |t| diffusion.weight(&schedule, t)),
        };
        let total = match &model.guess {
            Some(guess) => loss + guess_error(guess, text, latents) * self.config.text_loss,
            None => loss,
        };
        Loss { told, earlier, ..total.into() }
    }

    fn measures(&self, told: &[f32], _step: u64) -> Vec<(&'static str, f64)> {
        time_errors(told)
    }

    fn settle(&self, model: PriorModel, told: &[f32], _step: u64) -> PriorModel {
        let levels = model.levels.map(|levels| levels.follow(&told[TOLD_BY_TIME..]));
        PriorModel { levels, ..model }
    }
}

/// The mean squared error of the latents that `guess` predicts from the last text token.
///
/// The layout that a prompt asks for matters to the diffusion loss only at the noisiest times. That signal
/// is too faint for a text encoder that starts from random weights; the authors start from a pretrained one.
pub(super) fn guess_error(guess: &Linear, text: Tensor<3>, latents: Tensor<4>) -> Tensor<1> {
    let [_, tokens, _] = text.dims();
    let guessed = guess.forward(text.narrow(1, tokens - 1, 1).squeeze_dim::<2>(1));
    (guessed - latents.flatten(1, 3)).square().mean()
}
