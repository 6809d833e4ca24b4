//! The whole system: prompt to text embedding to image embedding to latents to picture.

mod condition;
mod control;
mod denoiser;
mod loader;
mod models;
mod pictures;
mod progress;
mod sampling;
mod seconds;
mod sources;
mod stages;
mod text;
#[cfg(feature = "gpu")]
mod tiling;
mod tokens;

use burn::prelude::*;

pub use self::condition::{Condition, PriorCondition};
pub(crate) use self::denoiser::DecoderStage;
use self::denoiser::DiffusionStage;
pub use self::loader::PipelineLoader;
pub use self::progress::{Error, OnStep, Progress};
pub use self::sampling::{Guided, Noise, Sampling};
use self::sampling::{Steps, Streams, Task};
pub(crate) use self::sampling::{denoise, read, report};
pub use self::seconds::{Clock, seconds_of};
pub use self::text::TextPart;
use self::text::embed;
pub use self::tokens::{STRIP_LOGITS, SeededDraws, TokenDraws, TokenStart, TokenSteps};
use self::tokens::{TokenStage, TokenTask, start_of};
use crate::card::{DecoderIndex, ModelCard, PriorIndex};
use crate::compressor::Compressor;
use crate::controlnet::{ControlNet, ControlNetConfig};
use crate::error::LoadError;
use crate::family::{Family, SizeRule};
use crate::image::Image;
use crate::model_files::ModelFiles;
use crate::options::{GenerateOptions, OptionsError, PromptSyntax, Settings};
use crate::origin::Batch;
pub use crate::origin::KnownTokens;
use crate::part::{Part, Stage};
use crate::previewer::Previewer;
use crate::residency::{Residency, Slot};
use crate::sampler::Known;
use crate::text::{TextEmbedding, TokenizerError, Unread};
use crate::vision::{ImageEncoder, PreparationConfig};
use crate::vqgan::{Vqgan, VqganConfig};

/// Longest side of a picture in pixels.
pub const MAX_SIDE: usize = 4096;

/// The three stages and what joins them.
pub struct Pipeline {
    /// The model's name, licence, provenance and default options.
    pub card: ModelCard,
    /// The family of the model.
    pub family: &'static Family,
    /// The tokenizer and text encoder of Stage C.
    pub prior_text: TextPart,
    pub(crate) prior: DiffusionStage,
    prior_index: PriorIndex,
    /// The tokenizer and text encoder of Stage B; `None` where it takes Stage C's.
    decoder_text: Option<TextPart>,
    pub(crate) decoder: DecoderStage,
    decoder_index: DecoderIndex,
    vqgan: Slot<Vqgan>,
    pub(crate) vqgan_config: VqganConfig,
    /// The semantic compressor; or why it cannot be used.
    compressor: Result<CompressorPart, LoadError>,
    /// The encoder of picture prompts; or why it cannot be used.
    image_encoder: Result<ImageEncoderPart, LoadError>,
    /// The network that shows image embeddings, where the model has one.
    pub(crate) previewer: Option<Slot<Previewer>>,
    /// The network that makes Stage C follow a picture; or why it cannot be used.
    controlnet: Result<ControlNetPart, LoadError>,
    device: Device,
}

/// The semantic compressor, which pictures to start from need.
struct CompressorPart {
    network: Slot<Compressor>,
    /// How many pixels one cell of the embedding stands for, along each axis.
    downscale: usize,
}

/// The encoder of picture prompts.
struct ImageEncoderPart {
    network: Slot<ImageEncoder>,
    preparation: PreparationConfig,
}

/// The network that makes Stage C follow a picture.
struct ControlNetPart {
    network: Slot<ControlNet>,
    config: ControlNetConfig,
}

/// What a generation made.
pub struct Generated {
    /// The pictures.
    pub images: Vec<Image>,
    /// Stage C's result, `[B, c_in, h, w]`.
    pub image_embeddings: TensorData,
    /// Stage B's result, `[B, latent_channels, H, W]`, in its own scale.
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
        let needed: Vec<_> = files.family().needed().collect();
        Self::load_parts(files, device, residency, &needed)
    }

    /// As [`Self::load`], but Stage C and its text encoder may have no weights, and are not loaded: the pipeline makes
    /// pictures of image embeddings only.
    ///
    /// # Errors
    ///
    /// Names what is missing or does not fit.
    pub fn load_decoder(
        files: &ModelFiles,
        device: &Device,
        residency: Residency,
    ) -> Result<Self, LoadError> {
        let needed: Vec<_> = files.family().needed_by_decoder().collect();
        Self::load_parts(files, device, residency, &needed)
    }

    fn load_parts(
        files: &ModelFiles,
        device: &Device,
        residency: Residency,
        needed: &[Part],
    ) -> Result<Self, LoadError> {
        let family = files.family();
        let missing = files.missing_of(needed.iter().copied());
        let missing: Vec<_> = missing.iter().map(Part::to_string).collect();
        if !missing.is_empty() {
            let found = files.weights.keys().map(Part::to_string).collect();
            return Err(LoadError::Incomplete { missing, found });
        }
        let mut loader = PipelineLoader::new(files, device)?;
        let per_stage = residency.is_per_stage_of(files);
        for &part in needed {
            let weights = files.weights(part)?;
            if per_stage {
                loader.defer(part, weights)?;
            } else {
                loader.add(part, weights)?;
            }
        }
        // Few pictures need these parts, so their errors wait until a picture does.
        for part in family.parts.iter().filter(|part| part.stage().is_none()) {
            if let Some(weights) = files.weights.get(part) {
                loader.defer(*part, weights)?;
            }
        }
        loader.finish_with(needed)
    }

    /// Whether its parts stay on the device, so that a second picture starts at once.
    pub fn is_resident(&self) -> bool {
        self.prior.denoiser.is_resident()
    }

    /// The tokenizer and text encoder of Stage B, which may be Stage C's.
    pub fn decoder_text(&self) -> &TextPart {
        self.decoder_text.as_ref().unwrap_or(&self.prior_text)
    }

    /// The device that the networks run on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Fills the gaps of options. Where they name no size, the result is as large as the picture to start from, if
    /// the model can make that size, and if its sides are not longer than twice the default ones: a photo of a camera
    /// would take hours.
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
        let possible = image.filter(|image| {
            let most = [2 * defaults.width, 2 * defaults.height];
            let fits = image.width <= most[0] && image.height <= most[1];
            fits && self.sizes(image.height, image.width).is_ok()
        });
        let free = options.width.is_none() && options.height.is_none();
        if let Some(image) = possible.filter(|_| free) {
            (defaults.width, defaults.height) = (image.width, image.height);
        }
        options.resolve(&defaults)
    }

    /// The parts of a prompt that the model does not read.
    ///
    /// # Errors
    ///
    /// Names the prompt that cannot be split.
    pub fn unread(&self, prompt: &str, syntax: PromptSyntax) -> Result<Unread, TokenizerError> {
        let prior = self.prior_text.unread(prompt, syntax)?;
        let decoder = self.decoder_text().unread(prompt, syntax)?;
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
        on_step: &mut dyn OnStep,
    ) -> Result<Generated, Error> {
        let settings = options.resolve(&self.card.defaults)?;
        settings.check_pixels()?;
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
        on_step: &mut dyn OnStep,
    ) -> Result<Generated, Error> {
        let batch = Batch { prompts: prompts.to_vec(), ..Default::default() };
        let mut made = self.generate_batches(&[batch], &settings, on_step).await?;
        Ok(made.swap_remove(0))
    }

    /// Makes pictures of batches, each as if it were the only one. Every stage does all of its work before the next
    /// one begins. `settings.count` is not used.
    ///
    /// # Errors
    ///
    /// As [`Self::generate`]; also if the settings have a strength and no batch has a picture to start from.
    pub async fn generate_batches(
        &self,
        batches: &[Batch<'_>],
        settings: &Settings,
        on_step: &mut dyn OnStep,
    ) -> Result<Vec<Generated>, Error> {
        let (embedding_size, latent_size) = self.sizes(settings.height, settings.width)?;
        if settings.strength.is_some() && batches.iter().all(|batch| batch.origin.is_none()) {
            let needed = "a picture to start from";
            return Err(OptionsError::Missing { field: "strength", needed }.into());
        }
        let plans: Vec<_> = batches.iter().map(|batch| self.plan(batch, settings)).collect();
        let streams =
            |batch: &Batch<'_>| Streams::new(settings.seed, batch.prompts.len(), &self.device);
        let mut job = Job {
            batches,
            settings,
            needs_prior: plans.iter().any(|plan| plan.timesteps.len() > 1),
            plans,
            streams: batches.iter().map(streams).collect(),
        };
        let texts = self.embed_for_prior(&job, on_step).await?;
        let embeddings = self.make_embeddings(&mut job, &texts, embedding_size, on_step).await?;
        let texts = self.embed_for_decoder(&job, texts, on_step).await?;
        let latents = self.make_latents(&mut job, texts, &embeddings, latent_size, on_step).await?;
        self.make_pictures(&job, embeddings, latents, on_step).await
    }

    /// The texts of all batches for Stage C, and for Stage B too where it takes the same; none if nobody takes them.
    async fn embed_for_prior(
        &self,
        job: &Job<'_>,
        on_step: &mut dyn OnStep,
    ) -> Result<Vec<Guided<TextEmbedding>>, Error> {
        let (prior, decoder) =
            (job.settings.prior_guidance_scale, job.settings.largest_decoder_guidance());
        let (steps, guidance_scale) = match self.decoder_text {
            Some(_) if !job.needs_prior => return Ok(Vec::new()),
            Some(_) => (2, prior),
            None => (1, prior.max(decoder)),
        };
        let texts = embed(&self.prior_text, job.batches, job.settings, guidance_scale)?;
        if let Some(text) = texts.first() {
            let tokens = read(text.conditional.tokens.clone()).await?;
            report(on_step, Stage::Text, 1, steps, &tokens).await?;
        }
        Ok(texts)
    }

    /// The texts of all batches for Stage B, given those for Stage C.
    async fn embed_for_decoder(
        &self,
        job: &Job<'_>,
        texts: Vec<Guided<TextEmbedding>>,
        on_step: &mut dyn OnStep,
    ) -> Result<Vec<Guided<TextEmbedding>>, Error> {
        let Some(part) = &self.decoder_text else { return Ok(texts) };
        drop(texts);
        let texts = embed(part, job.batches, job.settings, job.settings.decoder_guidance_scale)?;
        if let Some(text) = texts.first() {
            let tokens = read(text.conditional.tokens.clone()).await?;
            report(on_step, Stage::Text, 2, 2, &tokens).await?;
        }
        Ok(texts)
    }

    /// Stage C of all batches: image embeddings.
    async fn make_embeddings(
        &self,
        job: &mut Job<'_>,
        texts: &[Guided<TextEmbedding>],
        [height, width]: [usize; 2],
        on_step: &mut dyn OnStep,
    ) -> Result<Vec<Tensor<4>>, Error> {
        let settings = job.settings;
        let denoiser = if job.needs_prior { Some(self.prior.denoiser.get()?) } else { None };
        let mut steps = Steps::of(job.plans.iter().map(|plan| &plan.timesteps));
        let mut embeddings = Vec::new();
        let batches = job.plans.iter().zip(job.batches).zip(&mut job.streams);
        for (i, ((plan, batch), streams)) in batches.enumerate() {
            let sampling = settings.prior_sampling(&plan.timesteps);
            let known = plan.prior.as_ref();
            let task = Task { stage: Stage::Prior, schedule: &self.prior.schedule, known };
            let initial = streams.draw([self.prior.channels, height, width]);
            let noise: Noise = &mut |[_, c, h, w]| streams.draw([c, h, w]);
            let count = batch.prompts.len();
            let pictures = batch.pictures.map(|pictures| pictures.repeat(count, &self.device));
            let control = batch.control.map(|control| control.to_device(&self.device));
            let prepared = denoiser.as_ref().zip(texts.get(i)).map(|(denoiser, text)| {
                let text = text.at(sampling.guidance_scale);
                let control = control.unwrap_or_default();
                let condition = PriorCondition { text, pictures, control };
                denoiser.prepare(condition.of_batch(), [height, width])
            });
            let predict = |x: Tensor<4>, t: &[f32]| {
                prepared.as_ref().expect("Stage C is there where it has steps").forward(x, t)
            };
            let latents = task.denoise(initial, &sampling, &predict, noise, &mut steps, on_step);
            embeddings.push(self.image_embedding(latents.await?));
        }
        Ok(embeddings)
    }

    /// Stage B of all batches: latents.
    async fn make_latents(
        &self,
        job: &mut Job<'_>,
        texts: Vec<Guided<TextEmbedding>>,
        embeddings: &[Tensor<4>],
        size: [usize; 2],
        on_step: &mut dyn OnStep,
    ) -> Result<Vec<Tensor<4>>, Error> {
        match &self.decoder {
            DecoderStage::Latents(stage) => {
                self.denoise_latents(stage, job, texts, embeddings, size, on_step).await
            }
            DecoderStage::Tokens(stage) => {
                self.denoise_tokens(stage, job, texts, embeddings, size, on_step).await
            }
        }
    }

    /// Stage B of all batches over tokens.
    async fn denoise_tokens(
        &self,
        stage: &TokenStage,
        job: &mut Job<'_>,
        texts: Vec<Guided<TextEmbedding>>,
        embeddings: &[Tensor<4>],
        [height, width]: [usize; 2],
        on_step: &mut dyn OnStep,
    ) -> Result<Vec<Tensor<4>>, Error> {
        let (model, vqgan) = (stage.network.get()?, self.vqgan.get()?);
        let samplings: Vec<_> =
            job.plans.iter().map(|plan| TokenSteps::new(job.settings, plan.start)).collect();
        let all = samplings.iter().map(TokenSteps::count).sum();
        let (mut done, area, mut made) = (0, height * width, Vec::new());
        let conditions = embeddings.iter().zip(texts);
        let batches = job.plans.iter().zip(&samplings).zip(conditions).zip(&mut job.streams);
        for (((plan, sampling), (image, text)), streams) in batches {
            let [batch, ..] = image.dims();
            let task = TokenTask {
                model: &model,
                vqgan: &vqgan,
                scale_factor: self.vqgan_config.scale_factor,
                labels: stage.labels,
                sampling,
                shape: [batch, height, width],
                device: &self.device,
                steps: [done, all],
            };
            let known = plan.tokens.as_ref();
            let mut draws = SeededDraws::new(streams.each(), area);
            let start = start_of(&mut draws, known, stage.labels, sampling.times[0]);
            let text = text.at(job.settings.largest_decoder_guidance());
            let sampled = task.sample(text, image.clone(), start, &mut draws, on_step);
            made.push(sampled.await?.1);
            done += sampling.count();
        }
        Ok(made)
    }

    /// Stage B of all batches over latents.
    async fn denoise_latents(
        &self,
        stage: &DiffusionStage,
        job: &mut Job<'_>,
        texts: Vec<Guided<TextEmbedding>>,
        embeddings: &[Tensor<4>],
        [height, width]: [usize; 2],
        on_step: &mut dyn OnStep,
    ) -> Result<Vec<Tensor<4>>, Error> {
        let settings = job.settings;
        let denoiser = stage.denoiser.get()?;
        let sampling = settings.decoder_sampling();
        let mut steps = Steps::of(job.batches.iter().map(|_| sampling.timesteps));
        let mut made = Vec::new();
        let conditions = embeddings.iter().zip(texts);
        for ((plan, (image, text)), streams) in
            job.plans.iter().zip(conditions).zip(&mut job.streams)
        {
            let known = plan.decoder.as_ref();
            let task = Task { stage: Stage::Decoder, schedule: &stage.schedule, known };
            let initial = streams.draw([stage.channels, height, width]);
            let noise: Noise = &mut |[_, c, h, w]| streams.draw([c, h, w]);
            let condition = text.at(sampling.guidance_scale).with(None, Some(image.clone()));
            let denoiser = denoiser.prepare(condition, [height, width]);
            let predict = |x: Tensor<4>, t: &[f32]| denoiser.forward(x, t);
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
        on_step: &mut dyn OnStep,
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
        let latents = match self.family.sizes {
            SizeRule::FromEmbedding => {
                (cells as f64 * self.decoder_index.latent_dim_scale) as usize
            }
            SizeRule::FromPixels => pixels / self.vqgan_config.downscale(),
        };
        let exact = latents * self.vqgan_config.downscale() == pixels;
        let fits = self.prior.fits(cells) && self.decoder.fits(latents);
        (pixels > 0 && pixels <= MAX_SIDE && exact && fits).then_some((cells, latents))
    }

    fn nearest(&self, pixels: usize) -> Vec<usize> {
        let pixels = pixels.min(MAX_SIDE);
        let possible = |side: &usize| self.side(*side).is_some();
        let below = (1..=pixels).rev().find(possible);
        let above = (pixels..=MAX_SIDE).find(possible).filter(|above| Some(*above) != below);
        below.into_iter().chain(above).collect()
    }
}

/// What is made, while it passes from stage to stage.
struct Job<'a> {
    batches: &'a [Batch<'a>],
    settings: &'a Settings,
    plans: Vec<Plan>,
    /// Whether Stage C has steps to do for any batch.
    needs_prior: bool,
    streams: Vec<Streams<'a>>,
}

/// Where the pictures of a batch start.
struct Plan {
    /// The times that Stage C visits.
    timesteps: Vec<f32>,
    /// The time at which a Stage B over tokens starts.
    start: f32,
    prior: Option<Known>,
    decoder: Option<Known>,
    /// For a Stage B over tokens.
    tokens: Option<KnownTokens>,
}
