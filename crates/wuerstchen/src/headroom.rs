//! How near the values of a model come to the limit of half precision.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::prelude::*;

use crate::noise::Philox;
use crate::options::Settings;
use crate::part::Stage;
use crate::pipeline::{Condition, DecoderStage, Error, Pipeline, Progress, Sampling, denoise};

/// The largest value of half precision.
pub const LARGEST_HALF: f32 = 65504.0;

/// The largest absolute value that each block makes, by stages C, B and A and the names of their blocks.
pub type LargestActivations = BTreeMap<Stage, BTreeMap<String, f32>>;

impl Pipeline {
    /// Makes one picture without guidance and watches the output of every block. Values inside of blocks are
    /// not watched, because norms and sums run in f32 anyway.
    ///
    /// # Errors
    ///
    /// As [`Pipeline::generate_each`].
    pub async fn largest_activations(
        &self,
        prompt: &str,
        settings: &Settings,
    ) -> Result<LargestActivations, Error> {
        let (embedding_size, latent_size) = self.sizes(settings.height, settings.width)?;
        let mut rng = Philox::new(settings.seed, 0);
        let device = self.device();
        let go = &mut async |_: Progress<'_>| ControlFlow::Continue(());
        let blocks = RefCell::new(BTreeMap::<String, f32>::new());
        let watch = &|name: &str, x: &Tensor<4>| {
            let found = x.clone().abs().max().into_scalar::<f32>();
            let mut blocks = blocks.borrow_mut();
            let largest = blocks.entry(name.to_owned()).or_default();
            // NaN counts as infinity, so that it stays the largest value.
            *largest = if found.is_nan() { f32::INFINITY } else { largest.max(found) };
        };
        let mut found = LargestActivations::new();

        let text = self.prior_text.embed(&[prompt])?;
        let denoiser = self.prior.denoiser.get()?;
        let condition = Condition::new(text, None);
        let prepared = denoiser.prepare(condition, embedding_size);
        let predict = |x: Tensor<4>, t: &[f32]| prepared.forward_observed(x, t, &mut &watch);
        let [rows, columns] = embedding_size;
        let x = rng.normal_tensor([1, self.prior.channels, rows, columns], device);
        let noise = &mut |shape| rng.normal_tensor(shape, device);
        let times = unguided(settings.prior_sampling(&settings.prior_timesteps));
        let x = denoise(Stage::Prior, &self.prior.schedule, x, &times, &predict, noise, go).await?;
        found.insert(Stage::Prior, blocks.take());
        drop(prepared);
        drop(denoiser);

        let text = self.decoder_text().embed(&[prompt])?;
        let image_embedding = self.image_embedding(x);
        let [rows, columns] = latent_size;
        let x = match &self.decoder {
            DecoderStage::Latents(stage) => {
                let denoiser = stage.denoiser.get()?;
                let image_embedding = Some(image_embedding);
                let condition = Condition::new(text, image_embedding);
                let prepared = denoiser.prepare(condition, latent_size);
                let predict =
                    |x: Tensor<4>, t: &[f32]| prepared.forward_observed(x, t, &mut &watch);
                let x = rng.normal_tensor([1, stage.channels, rows, columns], device);
                let noise = &mut |shape| rng.normal_tensor(shape, device);
                let times = unguided(settings.decoder_sampling());
                denoise(Stage::Decoder, &stage.schedule, x, &times, &predict, noise, go).await?
            }
            DecoderStage::Tokens(stage) => {
                // One prediction from random tokens: norms keep the features alike at all steps.
                let model = stage.network.get()?;
                let prepared = model.prepare(image_embedding, Some(text.tokens));
                let tokens: Vec<i32> =
                    (0..rows * columns).map(|_| rng.below(stage.labels as u32) as i32).collect();
                let tokens = TensorData::new(tokens, [1, rows, columns]);
                let tokens = Tensor::<3, Int>::from_data(tokens, self.device());
                let _ = prepared.forward(tokens.clone(), &[1.0], &mut &watch);
                self.vqgan()?.look_up(tokens) / self.vqgan_config.scale_factor
            }
        };
        found.insert(Stage::Decoder, blocks.take());

        let vqgan = self.vqgan()?;
        let _ = vqgan.decode_observed(x * self.vqgan_config.scale_factor, &mut &watch);
        found.insert(Stage::Vqgan, blocks.take());
        Ok(found)
    }
}

fn unguided(sampling: Sampling<'_>) -> Sampling<'_> {
    Sampling { guidance_scale: 0.0, ..sampling }
}
