//! Stage A: from pictures to latents and back.

use std::ops::Range;

use burn::prelude::*;
use wuerstchen::noise::Philox;
use wuerstchen::{Statistics, Vqgan};

use super::Stage;
use crate::config::StageAConfig;
use crate::corpus::{Corpus, CorpusError};
use crate::rows::Rows;

/// Training of Stage A.
pub struct StageA {
    /// Where pictures come from.
    pub corpus: Corpus,
    /// How it is trained.
    pub config: StageAConfig,
    /// With autodiff.
    pub device: Device,
}

/// A batch of Stage A.
pub struct BatchA {
    pictures: Rows,
    /// Whether quantised latents are decoded.
    quantized: bool,
}

/// Weights of the squared error beside the absolute one in Stage A's loss.
const SQUARED_ERROR: f64 = 2.0;

impl Stage for StageA {
    type Model = Vqgan;
    type Batch = BatchA;

    fn batch(
        &self,
        rng: &mut Philox,
        samples: Range<u64>,
        own: &Range<usize>,
    ) -> Result<BatchA, CorpusError> {
        let most = self.config.max_zoom as u32;
        let pictures = if most == 1 {
            self.corpus.own_pictures(&samples.collect::<Vec<_>>(), own)?
        } else {
            let zooms: Vec<_> = samples.map(|number| (number, 1 + rng.below(most))).collect();
            self.corpus.crops(&zooms, rng, own)?
        };
        // The pipeline decodes without quantising, so the decoder learns both.
        let quantized = f64::from(rng.uniform()) < self.config.quantized;
        Ok(BatchA { pictures, quantized })
    }

    fn loss(&self, model: &Vqgan, batch: &BatchA, range: Range<usize>) -> Tensor<1> {
        let pictures = batch.pictures.tensor(&range, &self.device);
        let latents = model.encode(pictures.clone(), Statistics::Batch);
        let quantized = model.quantize(latents.clone());
        let latents = if batch.quantized { quantized.latents } else { latents };
        let error = model.decode(latents) - pictures;
        let edges = if self.config.edge_loss > 0.0 {
            edge_error(&error) * self.config.edge_loss
        } else {
            Tensor::zeros([1], &self.device)
        };
        let loss = error.clone().abs().mean() + error.square().mean() * SQUARED_ERROR;
        loss + edges + quantized.loss
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
