//! The whole system: prompt to text embedding to image embedding to latents to picture.

mod loader;
mod progress;
mod sampling;
mod sources;
mod stages;
mod text;

use std::ops::ControlFlow;

use burn::prelude::*;

pub use self::loader::PipelineLoader;
pub use self::progress::{Error, Progress};
pub use self::sampling::{Guided, Noise, Sampling};
use self::sampling::{Steps, Streams, Task, predict_decoder, predict_prior, report};
pub(crate) use self::sampling::{denoise, read};
pub use self::text::TextPart;
use self::text::embed;
use crate::bundle::ModelFiles;
use crate::card::{DecoderIndex, ModelCard, PriorIndex};
use crate::checkpoint::Checkpoint;
use crate::compressor::Compressor;
use crate::decoder::{Decoder, DecoderConfig};
use crate::error::LoadError;
use crate::family::Family;
use crate::image::Image;
use crate::options::{GenerateOptions, OptionsError, PromptSyntax, Settings};
use crate::origin::Batch;
use crate::part::{Part, Stage};
use crate::prior::{Prior, PriorConfig};
use crate::residency::{Residency, Slot};
use crate::sampler::Known;
use crate::schedule::Schedule;
use crate::text::{TokenizerError, Unread};
use crate::vqgan::{Vqgan, VqganConfig};

/// Longest side of a picture in pixels.
pub const MAX_SIDE: usize = 4096;

/// The three stages and what joins them.
pub struct Pipeline {
    /// What the model is.
    pub card: ModelCard,
    /// Text for Stage C.
    pub prior_text: TextPart,
    pub(crate) prior: Slot<Prior>,
    pub(crate) prior_config: PriorConfig,
    prior_index: PriorIndex,
    pub(crate) prior_schedule: Schedule,
    /// Text for Stage B.
    pub decoder_text: TextPart,
    pub(crate) decoder: Slot<Decoder>,
    pub(crate) decoder_config: DecoderConfig,
    decoder_index: DecoderIndex,
    pub(crate) decoder_schedule: Schedule,
    vqgan: Slot<Vqgan>,
    pub(crate) vqgan_config: VqganConfig,
    /// The semantic compressor; or why it cannot be used.
    compressor: Result<CompressorPart, LoadError>,
    device: Device,
}

/// The semantic compressor, which pictures to start from need.
struct CompressorPart {
    network: Slot<Compressor>,
    /// How many pixels one pixel of the embedding stands for, along each axis.
    downscale: usize,
}

/// What a generation made.
pub struct Generated {
    /// The pictures.
    pub images: Vec<Image>,
    /// Stage C's result, `[B, c_in, h, w]`.
    pub image_embeddings: TensorData,
    /// Stage B's result, `[B, 4, H, W]`.
    pub latents: TensorData,
    /// The options with every gap filled.
    pub settings: Settings,
}

impl Pipeline {
    /// Loads a model to `device`: all parts at once, or each when it is needed.
    ///
    /// # Errors
    ///
    /// Names what is missing or does not fit.
    pub fn load(
        files: &ModelFiles,
        device: &Device,
        residency: Residency,
    ) -> Result<Self, LoadError> {
        let mut loader = PipelineLoader::new(files, device)?;
        let parts = Self::parts().filter_map(|part| files.weights.get(&part));
        let per_stage = residency.is_per_stage(parts.map(Checkpoint::device_bytes).sum());
        for part in Self::parts() {
            let weights = files.weights(part)?;
            if per_stage {
                loader.defer(part, weights)?;
            } else {
                loader.add(part, weights)?;
            }
        }
        // Few pictures need it.
        if let Some(weights) = files.weights.get(&Part::COMPRESSOR) {
            loader.defer(Part::COMPRESSOR, weights)?;
        }
        loader.finish()
    }

    /// The parts that a pipeline needs, in the order in which it uses them.
    pub fn parts() -> impl Iterator<Item = Part> {
        Family::WUERSTCHEN.needed()
    }

    /// Whether its parts stay on the device, so that a second picture starts at once.
    pub fn is_resident(&self) -> bool {
        self.prior.is_resident()
    }

    /// Where the models are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Fills the gaps of options; a picture to start from gives its size where they name none and the
    /// model can make it.
    ///
    /// # Errors
    ///
    /// As [`GenerateOptions::resolve`].
    pub fn settings(
        &self,
        options: &GenerateOptions,
        image: Option<&Image>,
    ) -> Result<Settings, OptionsError> {
        let mut defaults = self.card.defaults.clone();
        let possible = image.filter(|image| self.sizes(image.height, image.width).is_ok());
        let free = options.width.is_none() && options.height.is_none();
        if let Some(image) = possible.filter(|_| free) {
            (defaults.width, defaults.height) = (image.width, image.height);
        }
        options.resolve(&defaults)
    }

    /// What of a prompt the model does not read.
    ///
    /// # Errors
    ///
    /// Names the prompt that cannot be split.
    pub fn unread(&self, prompt: &str, syntax: PromptSyntax) -> Result<Unread, TokenizerError> {
        let prior = self.prior_text.unread(prompt, syntax)?;
        let decoder = self.decoder_text.unread(prompt, syntax)?;
        let cut_off = [prior.cut_off, decoder.cut_off].into_iter().flatten();
        // Stage C's encoder decides what the picture shows.
        Ok(Unread { cut_off: cut_off.max_by_key(String::len), unknown_words: prior.unknown_words })
    }

    /// Makes pictures of a prompt. `on_step` is called after every step; `Break` stops.
    ///
    /// # Errors
    ///
    /// The options cannot be run, the prompt cannot be split, the device failed, a guidance scale leads
    /// to infinite latents, or `on_step` asked to stop.
    pub async fn generate(
        &self,
        prompt: &str,
        options: &GenerateOptions,
        on_step: &mut impl AsyncFnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generated, Error> {
        let settings = options.resolve(&self.card.defaults)?;
        let batch = Batch::new(prompt, settings.count);
        let mut made = self.generate_batches(&[batch], &settings, on_step).await?;
        Ok(made.swap_remove(0))
    }

    /// Makes one picture of every prompt, all at once; `settings.count` is not used.
    ///
    /// # Errors
    ///
    /// As [`Self::generate`].
    pub async fn generate_each(
        &self,
        prompts: &[&str],
        settings: Settings,
        on_step: &mut impl AsyncFnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generated, Error> {
        let batch = Batch { prompts: prompts.to_vec(), ..Default::default() };
        let mut made = self.generate_batches(&[batch], &settings, on_step).await?;
        Ok(made.swap_remove(0))
    }

    /// Makes pictures of batches, each as if it were the only one; every stage makes all of its work
    /// before the next one begins. `settings.count` is not used.
    ///
    /// # Errors
    ///
    /// As [`Self::generate`]; or a strength is given and nothing to start from.
    pub async fn generate_batches(
        &self,
        batches: &[Batch<'_>],
        settings: &Settings,
        on_step: &mut impl AsyncFnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Generated>, Error> {
        let (embedding_size, latent_size) = self.sizes(settings.height, settings.width)?;
        if settings.strength.is_some() && batches.iter().all(|batch| batch.origin.is_none()) {
            let needed = "a picture to start from";
            return Err(OptionsError::Missing { field: "strength", needed }.into());
        }
        let streams =
            |batch: &Batch<'_>| Streams::new(settings.seed, batch.prompts.len(), &self.device);
        let mut job = Job {
            batches,
            settings,
            plans: batches.iter().map(|batch| self.plan(batch, settings)).collect(),
            streams: batches.iter().map(streams).collect(),
        };
        let embeddings = self.make_embeddings(&mut job, embedding_size, on_step).await?;
        let latents = self.make_latents(&mut job, &embeddings, latent_size, on_step).await?;
        self.make_pictures(&job, embeddings, latents, on_step).await
    }

    /// Stage C of all batches: image embeddings.
    async fn make_embeddings(
        &self,
        job: &mut Job<'_>,
        [height, width]: [usize; 2],
        on_step: &mut impl AsyncFnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Tensor<4>>, Error> {
        let (settings, guidance_scale) = (job.settings, job.settings.prior_guidance_scale);
        let texts = embed(&self.prior_text, job.batches, settings, guidance_scale)?;
        if let Some(text) = texts.first() {
            report(on_step, Stage::Text, 1, 2, &read(text.conditional.clone()).await?).await?;
        }
        let prior = self.prior.get()?;
        let mut steps = Steps::of(job.plans.iter().map(|plan| &plan.timesteps));
        let mut embeddings = Vec::new();
        for ((plan, text), streams) in job.plans.iter().zip(texts).zip(&mut job.streams) {
            let (timesteps, sampler) = (&plan.timesteps[..], settings.sampler);
            let sampling = Sampling { timesteps, guidance_scale, sampler };
            let known = plan.prior.as_ref();
            let task = Task { stage: Stage::Prior, schedule: &self.prior_schedule, known };
            let initial = streams.draw([self.prior_config.c_in, height, width]);
            let noise: Noise = &mut |[_, c, h, w]| streams.draw([c, h, w]);
            let predict = predict_prior(&prior, text);
            let latents = task.denoise(initial, &sampling, &predict, noise, &mut steps, on_step);
            embeddings.push(self.image_embedding(latents.await?));
        }
        Ok(embeddings)
    }

    /// Stage B of all batches: latents.
    async fn make_latents(
        &self,
        job: &mut Job<'_>,
        embeddings: &[Tensor<4>],
        [height, width]: [usize; 2],
        on_step: &mut impl AsyncFnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Tensor<4>>, Error> {
        let (settings, guidance_scale) = (job.settings, job.settings.decoder_guidance_scale);
        let texts = embed(&self.decoder_text, job.batches, settings, guidance_scale)?;
        if let Some(text) = texts.first() {
            report(on_step, Stage::Text, 2, 2, &read(text.conditional.clone()).await?).await?;
        }
        let decoder = self.decoder.get()?;
        let (timesteps, sampler) = (&settings.decoder_timesteps[..], settings.sampler);
        let sampling = Sampling { timesteps, guidance_scale, sampler };
        let mut steps = Steps::of(job.batches.iter().map(|_| timesteps));
        let mut made = Vec::new();
        let conditions = embeddings.iter().zip(texts);
        for ((plan, (image, text)), streams) in
            job.plans.iter().zip(conditions).zip(&mut job.streams)
        {
            let known = plan.decoder.as_ref();
            let task = Task { stage: Stage::Decoder, schedule: &self.decoder_schedule, known };
            let initial = streams.draw([self.decoder_config.c_in, height, width]);
            let noise: Noise = &mut |[_, c, h, w]| streams.draw([c, h, w]);
            let predict = predict_decoder(&decoder, image.clone(), text, [height, width]);
            let latents = task.denoise(initial, &sampling, &predict, noise, &mut steps, on_step);
            made.push(latents.await?);
        }
        Ok(made)
    }

    /// Stage A of all batches.
    async fn make_pictures(
        &self,
        job: &Job<'_>,
        embeddings: Vec<Tensor<4>>,
        latents: Vec<Tensor<4>>,
        on_step: &mut impl AsyncFnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Generated>, Error> {
        let (vqgan, settings, count) = (self.vqgan.get()?, job.settings, job.batches.len());
        let mut made = Vec::new();
        let results = embeddings.into_iter().zip(latents);
        for (i, (batch, (embedding, latents))) in job.batches.iter().zip(results).enumerate() {
            let image = self.decode_strips(&vqgan, latents.clone(), settings.vqgan_rows).await?;
            report(on_step, Stage::Vqgan, i + 1, count, &image).await?;
            let finish = |image: Image| match batch.origin {
                Some(origin) => origin.finish(image),
                None => image,
            };
            let strength = batch.origin.map(|origin| settings.strength(origin.is_masked()));
            made.push(Generated {
                images: Image::from_data(&image).into_iter().map(finish).collect(),
                image_embeddings: read(embedding).await?,
                latents: read(latents).await?,
                settings: Settings { strength, ..settings.clone() },
            });
        }
        Ok(made)
    }

    /// Height and width of the image embedding and of the latents of a picture.
    ///
    /// # Errors
    ///
    /// The architecture cannot make a picture of that size; names the nearest that it can.
    pub fn sizes(
        &self,
        height: usize,
        width: usize,
    ) -> Result<([usize; 2], [usize; 2]), OptionsError> {
        let side = |field, found| {
            let sizes = self.side(found);
            sizes.ok_or_else(|| OptionsError::Size { field, found, nearest: self.nearest(found) })
        };
        let ((rows, latent_rows), (columns, latent_columns)) =
            (side("height", height)?, side("width", width)?);
        Ok(([rows, columns], [latent_rows, latent_columns]))
    }

    fn side(&self, pixels: usize) -> Option<(usize, usize)> {
        let cells = (pixels as f64 / self.prior_index.resolution_multiple).ceil() as usize;
        let latents = (cells as f64 * self.decoder_index.latent_dim_scale) as usize;
        let exact = latents * self.vqgan_config.downscale() == pixels;
        let fits = latents.is_multiple_of(self.decoder_config.size_multiple());
        (pixels > 0 && pixels <= MAX_SIDE && exact && fits).then_some((cells, latents))
    }

    fn nearest(&self, pixels: usize) -> Vec<usize> {
        let pixels = pixels.min(MAX_SIDE);
        let possible = |side: &usize| self.side(*side).is_some();
        let below = (1..=pixels).rev().find(possible);
        let above = (pixels..=MAX_SIDE).find(possible);
        below.into_iter().chain(above).collect()
    }
}

/// What is made, while it passes from stage to stage.
struct Job<'a> {
    batches: &'a [Batch<'a>],
    settings: &'a Settings,
    plans: Vec<Plan>,
    streams: Vec<Streams<'a>>,
}

/// Where the pictures of a batch start.
struct Plan {
    /// The times that Stage C visits.
    timesteps: Vec<f32>,
    prior: Option<Known>,
    decoder: Option<Known>,
}
