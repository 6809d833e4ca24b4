//! How well pictures show what their prompts say, measured without a network.

mod emoji;
mod shapes;

use std::ops::ControlFlow;

use burn::prelude::*;
use serde::Serialize;
use wuerstchen::guidance::is_guided;
use wuerstchen::noise::Philox;
use wuerstchen::pipeline::{Guided, Sampling, SeededDraws, TokenStart, TokenSteps};
use wuerstchen::{Compressor, Error, Image, Pipeline, Progress, Settings, Statistics, VqganConfig};

pub use emoji::{EmojiScores, evaluate_emoji, stage_a_psnr};
pub use shapes::{ShapesScores, evaluate_shapes};

use crate::stages::image_embeddings;

/// The size and the seed of an evaluation.
pub struct EvalConfig {
    /// Prompts for every kind of scene, seen and held out.
    pub prompts: usize,
    /// Pictures in one forward pass, at least 1.
    pub batch_size: usize,
    /// Seed of the prompts and of the noise.
    pub seed: u64,
}

/// Where the judged pictures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The prompt, through stages C, B and A; or through stages B and A alone.
    Generated,
    /// The true scene, through the compressor and stages B and A: what Stage C can reach at best.
    ReconstructedAb,
    /// The true scene, through Stage A's encoder and decoder.
    ReconstructedA,
    /// A blind guess.
    Chance,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalRow<S> {
    /// What the scenes show, such as `one` or `two` objects.
    pub kind: &'static str,
    /// `seen` or `held_out` in training.
    pub split: &'static str,
    /// Where the pictures come from.
    pub source: Source,
    /// Number of judged pictures; 0 for [`Source::Chance`].
    pub prompts: usize,
    /// The shares of right answers, `[0, 1]`.
    pub scores: S,
}

/// All sources, in the order of the report.
const SOURCES: [Source; 4] =
    [Source::Generated, Source::ReconstructedAb, Source::ReconstructedA, Source::Chance];

/// Scenes with the prompts that ask for them.
struct Truth<'a> {
    prompts: Vec<&'a str>,
    /// Draws the scene of a prompt with this many pixels a side.
    draw: Box<dyn Fn(usize, u32) -> Vec<u8> + 'a>,
}

impl Truth<'_> {
    /// The true pictures, `[B, 3, H, W]` in `[0, 1]`.
    fn pictures(&self, side: usize, device: &Device) -> Tensor<4> {
        let planes = (0..self.prompts.len()).flat_map(|i| {
            let rgb = (self.draw)(i, side as u32);
            Image { width: side, height: side, rgb }.to_planes()
        });
        let values: Vec<f32> = planes.collect();
        Tensor::from_data(TensorData::new(values, [self.prompts.len(), 3, side, side]), device)
    }
}

/// The share of right answers; `None` if there are no answers.
fn share(answers: impl Iterator<Item = bool>) -> Option<f64> {
    let (mut right, mut all) = (0, 0);
    for answer in answers {
        right += usize::from(answer);
        all += 1;
    }
    (all > 0).then(|| right as f64 / all as f64)
}

/// The networks that show what the stages can reach at best: the compressor and Stage A.
pub struct Ceiling<'a> {
    /// Makes the image embeddings of the true scenes.
    pub compressor: &'a Compressor,
    /// Side of the pictures that it sees, in pixels.
    pub compressor_side: usize,
    /// The config of the pipeline's Stage A.
    pub vqgan_config: &'a VqganConfig,
}

/// A model with all that its evaluation needs.
pub struct Evaluation<'a> {
    /// Makes the pictures.
    pub pipeline: &'a Pipeline,
    /// The networks through which true scenes are passed.
    pub ceiling: Ceiling<'a>,
    /// How pictures are made; the seed is the config's.
    pub settings: Settings,
    /// Whether Stage B makes the pictures of the prompt and of an image embedding of zeros, without Stage C. A Stage B
    /// that was trained on such embeddings alone is a text-to-image latent diffusion model.
    pub without_prior: bool,
    /// The size and the seed of the evaluation.
    pub config: EvalConfig,
}

impl Evaluation<'_> {
    /// The verdicts of `judge` on the pictures that a source makes of samples; `truth` gives the prompts of a batch
    /// and draws its scenes.
    async fn verdicts<'s, S, V>(
        &self,
        samples: &'s [S],
        source: Source,
        truth: impl Fn(&'s [S]) -> Truth<'s>,
        judge: impl Fn(&'s S, &Image) -> V,
    ) -> Result<Vec<V>, Error> {
        let mut verdicts = Vec::new();
        for (batch, samples) in samples.chunks(self.config.batch_size).enumerate() {
            let seed = self.config.seed.wrapping_add(batch as u64);
            let made = self.pictures(truth(samples), source, seed).await?;
            verdicts.extend(samples.iter().zip(&made).map(|(sample, made)| judge(sample, made)));
        }
        Ok(verdicts)
    }

    async fn pictures(
        &self,
        truth: Truth<'_>,
        source: Source,
        seed: u64,
    ) -> Result<Vec<Image>, Error> {
        let (pipeline, ceiling) = (self.pipeline, &self.ceiling);
        let settings = Settings { seed, ..self.settings.clone() };
        let prompts = &truth.prompts;
        if source == Source::Generated && !self.without_prior {
            let go = &mut async |_: Progress<'_>| ControlFlow::Continue(());
            return Ok(pipeline.generate_each(prompts, settings, go).await?.images);
        }
        let Ceiling { compressor, compressor_side, vqgan_config } = ceiling;
        let pictures = truth.pictures(settings.width, pipeline.device());
        let decoded = if source == Source::ReconstructedA {
            let vqgan = pipeline.vqgan()?;
            vqgan.decode(vqgan.encode(pictures, Statistics::Running))
        } else {
            let embedding = image_embeddings(compressor, pictures, *compressor_side);
            let (embedding, guidance_scale) = match source {
                Source::Generated => (embedding.zeros_like(), settings.decoder_guidance_scale),
                _ => (embedding, 0.0),
            };
            decode(pipeline, vqgan_config, &settings, embedding, prompts, guidance_scale).await?
        };
        let data = decoded.clamp(0.0, 1.0).into_data_async().await;
        Ok(Image::from_data(&data.map_err(|error| Error::Device(format!("{error:?}")))?))
    }
}

/// Decodes image embeddings, `[B, c_latent, h, w]`, through stages B and A, without guidance; pictures `[B, 3, H, W]`,
/// not clamped.
///
/// # Errors
///
/// The pipeline cannot sample.
pub async fn reconstruct(
    pipeline: &Pipeline,
    vqgan_config: &VqganConfig,
    settings: &Settings,
    embedding: Tensor<4>,
    prompts: &[&str],
) -> Result<Tensor<4>, Error> {
    decode(pipeline, vqgan_config, settings, embedding, prompts, 0.0).await
}

/// As [`reconstruct`], with guidance away from the negative prompt and from the image embedding of zeros.
async fn decode(
    pipeline: &Pipeline,
    vqgan_config: &VqganConfig,
    settings: &Settings,
    embedding: Tensor<4>,
    prompts: &[&str],
    guidance_scale: f64,
) -> Result<Tensor<4>, Error> {
    let encoder = pipeline.decoder_text();
    let negative = vec![&*settings.negative_prompt; prompts.len()];
    let unconditional = is_guided(guidance_scale).then(|| encoder.embed(&negative)).transpose()?;
    let text = Guided { conditional: encoder.embed(prompts)?, unconditional };
    let go = &mut async |_: Progress<'_>| ControlFlow::Continue(());
    if pipeline.has_tokens() {
        let size = [settings.height, settings.width].map(|side| side / vqgan_config.downscale());
        let pictures = 0..prompts.len() as u64;
        let mut streams: Vec<_> = pictures.map(|i| Philox::new(settings.seed, i)).collect();
        let mut draws = SeededDraws::new(&mut streams, size[0] * size[1]);
        let start = TokenStart::at_noise(draws.noise(vqgan_config.num_vq_embeddings));
        let steps = TokenSteps::new(settings, 1.0);
        let steps = if is_guided(guidance_scale) { steps } else { steps.unguided() };
        let start = (start, size);
        let made = pipeline.sample_tokens(start, embedding, text, &steps, &mut draws, go);
        return Ok(pipeline.decode(made.await?.1)?);
    }
    let sampling = Sampling::new(&settings.decoder_timesteps, guidance_scale, settings.sampler);
    let mut rng = Philox::new(settings.seed, 0);
    let device = embedding.device();
    let mut noise = |shape| rng.normal_tensor(shape, &device);
    let [height, width] =
        [settings.height, settings.width].map(|side| side / vqgan_config.downscale());
    let initial = noise([prompts.len(), vqgan_config.latent_channels, height, width]);
    let latents =
        pipeline.sample_decoder(initial, embedding, text, &sampling, &mut noise, go).await?;
    Ok(pipeline.decode(latents)?)
}
