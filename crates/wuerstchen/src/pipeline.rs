//! The whole system: prompt to text embedding to image embedding to latents to picture.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use burn::module::Module;
use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::batch_norm::Statistics;
use crate::bundle::{ModelFiles, layout};
use crate::checkpoint::Checkpoint;
use crate::compressor::{Compressor, prepare};
use crate::config::ConfigError;
use crate::decoder::{Decoder, DecoderConfig};
use crate::guidance::{guide, is_guided};
use crate::image::{Image, Mask, stack_rows};
use crate::interpolate::linear;
use crate::noise::Philox;
use crate::options::{Defaults, GenerateOptions, OptionsError, PromptSyntax, Settings};
use crate::origin::{Batch, Kept, Origin, Source};
use crate::prior::{Prior, PriorConfig};
use crate::residency::{Residency, Slot};
use crate::resize::cover;
use crate::sampler::{Known, Sampler};
use crate::schedule::{Schedule, timesteps_from};
use crate::text::emphasis::{is_plain, passages};
use crate::text::{
    TextEncoder, TextEncoderConfig, TokenIds, Tokenizer, TokenizerError, WeightedTokens,
};
use crate::vqgan::{Vqgan, VqganConfig, strip_rows};
use crate::weights::{KeyTable, LoadError, all_loaded, load_some};

/// Why no picture was made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options cannot be run.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The prompt cannot be split into tokens.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The weights of a part cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// The caller asked to stop.
    #[error("stopped on request")]
    Cancelled,
}

/// A text encoder and its tokenizer.
pub struct TextPart {
    /// Splits prompts.
    pub tokenizer: Tokenizer,
    /// Embeds tokens.
    encoder: Slot<TextEncoder>,
}

impl TextPart {
    /// Without weights.
    fn init(
        files: &ModelFiles,
        tokenizer: &str,
        encoder: &str,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let config: TextEncoderConfig = files.config(&format!("{encoder}/config.json"))?;
        config.validate()?;
        let length = config.max_position_embeddings;
        let tokenizer = Tokenizer::new(&files.tokenizer(tokenizer), length)?;
        if tokenizer.id_count() > config.vocab_size {
            let expected = format!("at least {}, the tokenizer's", tokenizer.id_count());
            let found = config.vocab_size;
            return Err(ConfigError::new("text encoder", "vocab_size", expected, found).into());
        }
        Ok(Self { tokenizer, encoder: Slot::Resident(config.init(device)) })
    }

    /// Embeds prompts.
    ///
    /// # Errors
    ///
    /// Names the prompt that cannot be split; or the weights cannot be loaded.
    ///
    /// # Shapes
    ///
    /// - output: `[B, T, hidden_size]`
    pub fn embed(&self, prompts: &[&str]) -> Result<Tensor<3>, Error> {
        Ok(self.embed_with(&self.encoder.get()?, prompts, PromptSyntax::Plain)?)
    }

    /// Embeds prompts, whose passages may have weights: the embedding `z` of a token of weight `w`
    /// becomes `z + (w − 1)·(z − e)`, where `e` is the empty prompt's at the same place.
    ///
    /// Source: `ClipTokenWeightEncoder.encode_token_weights` of `ComfyUI`, `sd1_clip.py`.
    fn embed_with(
        &self,
        encoder: &TextEncoder,
        prompts: &[&str],
        syntax: PromptSyntax,
    ) -> Result<Tensor<3>, TokenizerError> {
        let encode = |prompt: &&str| match syntax == PromptSyntax::Plain || is_plain(prompt) {
            true => {
                let tokens = self.tokenizer.encode(prompt)?;
                let weights = vec![1.0; tokens.ids.len()];
                Ok(WeightedTokens { tokens, weights })
            }
            false => self.tokenizer.encode_passages(&passages(prompt)),
        };
        let tokens = prompts.iter().map(encode).collect::<Result<Vec<_>, TokenizerError>>()?;
        let changes: Vec<f32> =
            tokens.iter().flat_map(|tokens| tokens.weights.iter().map(|w| w - 1.0)).collect();
        let ids: Vec<TokenIds> = tokens.into_iter().map(|tokens| tokens.tokens).collect();
        let embedding = encoder.forward(&ids);
        if changes.iter().all(|&change| change == 0.0) {
            return Ok(embedding);
        }
        let [batch, length, _] = embedding.dims();
        let changes = TensorData::new(changes, [batch, length, 1]);
        let changes = Tensor::from_data(changes, &embedding.device());
        let empty = encoder.forward(&[self.tokenizer.encode("")?]);
        Ok(embedding.clone() + (embedding - empty) * changes)
    }
}

/// `wuerstchen-prior/model_index.json`: how Stage C's space and the pictures' sizes relate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PriorIndex {
    /// Factor from Stage C's latents to image embeddings.
    pub latent_mean: f64,
    /// Subtracted from the scaled latents.
    pub latent_std: f64,
    /// Pixels of the picture for every pixel of the image embedding.
    pub resolution_multiple: f64,
}

/// `wuerstchen/model_index.json`: how the embedding's size and the latents' relate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecoderIndex {
    /// Latent pixels for every pixel of the image embedding.
    pub latent_dim_scale: f64,
}

/// `wuerstchen.json`: what the model is and does by default. Folders of other programs have none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelCard {
    /// A name for people.
    pub name: String,
    /// Licence of the weights.
    pub licence: String,
    /// How the weights were made.
    pub provenance: String,
    /// Where options say nothing.
    pub defaults: Defaults,
}

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
    /// The semantic compressor and how many pixels one of its embedding stands for; or why there is
    /// none.
    compressor: Result<(Slot<Compressor>, usize), String>,
    device: Device,
}

/// Names the steps of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Both text encoders.
    Text,
    /// Stage C.
    Prior,
    /// Stage B.
    Decoder,
    /// Stage A.
    Vqgan,
}

/// Reported after every step.
pub struct Progress<'a> {
    /// Which stage.
    pub stage: Stage,
    /// Steps done, from 1.
    pub step: usize,
    /// Steps of this stage.
    pub steps: usize,
    /// What the step made, `[B, C, H, W]`; text embeddings as `[B, T, D]`.
    pub latents: &'a TensorData,
}

/// Makes standard normal noise of a shape.
pub type Noise<'a> = &'a mut dyn FnMut([usize; 4]) -> Tensor<4>;

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

/// How one stage is sampled.
pub struct Sampling<'a> {
    /// The times to visit, from 1 to 0.
    pub timesteps: &'a [f32],
    /// Above 1 to guide.
    pub guidance_scale: f64,
    /// The step from one time to the next.
    pub sampler: Sampler,
}

/// A condition and, where the sampling is guided, what it is guided away from.
pub struct Guided<T> {
    /// What to show.
    pub conditional: T,
    /// What to leave.
    pub unconditional: Option<T>,
}

/// A pipeline whose weights arrive in pieces, so that they need never be in memory all at once.
pub struct PipelineLoader {
    pipeline: Pipeline,
    /// Names of the tensors that have arrived, by part.
    loaded: BTreeMap<String, BTreeSet<String>>,
}

impl PipelineLoader {
    /// Reads the configs and tokenizers of `files`; none of its weights.
    ///
    /// # Errors
    ///
    /// Names what is missing or does not fit.
    pub fn new(files: &ModelFiles, device: &Device) -> Result<Self, LoadError> {
        let config = |part: &str| format!("{part}/config.json");
        let prior_config: PriorConfig = files.config(&config(layout::PRIOR))?;
        let decoder_config: DecoderConfig = files.config(&config(layout::DECODER))?;
        let vqgan_config: VqganConfig = files.config(&config(layout::VQGAN))?;
        prior_config.validate()?;
        decoder_config.validate()?;
        vqgan_config.validate()?;
        agree("prior", "c_cond", prior_config.c_cond, text_width(files, layout::PRIOR_TEXT)?)?;
        let text_width = text_width(files, layout::DECODER_TEXT)?;
        agree("decoder", "clip_embd", decoder_config.clip_embd, text_width)?;
        agree("decoder", "effnet_embd", decoder_config.effnet_embd, prior_config.c_in)?;
        agree("decoder", "c_in", decoder_config.c_in, vqgan_config.latent_channels)?;
        let index = |folder: &str| format!("{folder}/model_index.json");
        let schedule = |folder: &str| format!("{folder}/scheduler/scheduler_config.json");
        let text = |tokenizer, encoder| TextPart::init(files, tokenizer, encoder, device);
        let card = match files.texts.contains_key(layout::CARD) {
            true => files.config(layout::CARD)?,
            false => ModelCard::default(),
        };
        let pipeline = Pipeline {
            card,
            prior_text: text(layout::PRIOR_TOKENIZER, layout::PRIOR_TEXT)?,
            prior: Slot::Resident(prior_config.init(device)),
            prior_config,
            prior_index: files.config(&index(layout::PRIOR_PIPELINE))?,
            prior_schedule: files.config(&schedule(layout::PRIOR_PIPELINE))?,
            decoder_text: text(layout::DECODER_TOKENIZER, layout::DECODER_TEXT)?,
            decoder: Slot::Resident(decoder_config.init(device)),
            decoder_config,
            decoder_index: files.config(&index(layout::DECODER_PIPELINE))?,
            decoder_schedule: files.config(&schedule(layout::DECODER_PIPELINE))?,
            vqgan: Slot::Resident(vqgan_config.init(device)),
            vqgan_config,
            compressor: match files.compressor_config() {
                Ok(config) => Ok((Slot::Resident(config.init(device)), config.downscale())),
                Err(error) => Err(error.to_string()),
            },
            device: device.clone(),
        };
        Ok(Self { pipeline, loaded: BTreeMap::new() })
    }

    /// Takes weights of a part, all or some, to the device.
    ///
    /// # Errors
    ///
    /// Names every tensor that does not belong to the part or is misshapen.
    pub fn add(mut self, part: &str, weights: &Checkpoint) -> Result<Self, LoadError> {
        let loaded = self.loaded.entry(part.to_owned()).or_default();
        let to = &mut self.pipeline;
        match part {
            layout::PRIOR => fill(&mut to.prior, weights, DIFFUSION, loaded)?,
            layout::DECODER => fill(&mut to.decoder, weights, DIFFUSION, loaded)?,
            layout::VQGAN => fill(&mut to.vqgan, weights, KeyTable::VQGAN, loaded)?,
            layout::PRIOR_TEXT => {
                fill(&mut to.prior_text.encoder, weights, KeyTable::TEXT, loaded)?;
            }
            layout::DECODER_TEXT => {
                fill(&mut to.decoder_text.encoder, weights, KeyTable::TEXT, loaded)?;
            }
            layout::COMPRESSOR => {
                if let Ok((compressor, _)) = &mut to.compressor {
                    fill(compressor, weights, KeyTable::COMPRESSOR, loaded)?;
                }
            }
            _ => {}
        }
        Ok(self)
    }

    /// Leaves the weights of all parts where they are, to be loaded when a part is needed.
    ///
    /// # Errors
    ///
    /// Names every tensor of a part that is missing, unexpected or misshapen.
    fn on_demand(mut self, files: &ModelFiles) -> Result<Pipeline, LoadError> {
        let to = &mut self.pipeline;
        defer(&mut to.prior, files.weights(layout::PRIOR)?, DIFFUSION)?;
        defer(&mut to.decoder, files.weights(layout::DECODER)?, DIFFUSION)?;
        defer(&mut to.vqgan, files.weights(layout::VQGAN)?, KeyTable::VQGAN)?;
        for (text, part) in
            [(&mut to.prior_text, layout::PRIOR_TEXT), (&mut to.decoder_text, layout::DECODER_TEXT)]
        {
            defer(&mut text.encoder, files.weights(part)?, KeyTable::TEXT)?;
        }
        self.defer_compressor(files)?;
        Ok(self.pipeline)
    }

    /// Lets the compressor, which few pictures need, be loaded when one does.
    fn defer_compressor(&mut self, files: &ModelFiles) -> Result<(), LoadError> {
        let Ok((compressor, _)) = &mut self.pipeline.compressor else { return Ok(()) };
        match files.weights.get(layout::COMPRESSOR) {
            Some(weights) => defer(compressor, weights, KeyTable::COMPRESSOR)?,
            None => self.pipeline.compressor = Err(NO_WEIGHTS.to_owned()),
        }
        Ok(())
    }

    /// The pipeline, once all weights are there. The compressor's may be left out.
    ///
    /// # Errors
    ///
    /// Names every tensor that has not arrived.
    pub fn finish(mut self) -> Result<Pipeline, LoadError> {
        let mut loaded = |part: &str| self.loaded.remove(part).unwrap_or_default();
        let Pipeline { prior, decoder, vqgan, prior_text, decoder_text, .. } = &self.pipeline;
        all_loaded(&prior.get()?, layout::PRIOR, DIFFUSION, &loaded(layout::PRIOR))?;
        all_loaded(&decoder.get()?, layout::DECODER, DIFFUSION, &loaded(layout::DECODER))?;
        all_loaded(&vqgan.get()?, layout::VQGAN, KeyTable::VQGAN, &loaded(layout::VQGAN))?;
        for (text, part) in [(prior_text, layout::PRIOR_TEXT), (decoder_text, layout::DECODER_TEXT)]
        {
            all_loaded(&text.encoder.get()?, part, KeyTable::TEXT, &loaded(part))?;
        }
        let loaded = loaded(layout::COMPRESSOR);
        match &self.pipeline.compressor {
            Ok((Slot::Resident(compressor), _)) if !loaded.is_empty() => {
                all_loaded(compressor, layout::COMPRESSOR, KeyTable::COMPRESSOR, &loaded)?;
            }
            Ok((Slot::Resident(_), _)) => {
                self.pipeline.compressor = Err(NO_WEIGHTS.to_owned());
            }
            _ => {}
        }
        Ok(self.pipeline)
    }
}

/// Why a model whose compressor is described cannot use it.
const NO_WEIGHTS: &str = "its weights are not in the model";

/// Loads some of a part's weights.
fn fill<M: Module>(
    slot: &mut Slot<M>,
    weights: &Checkpoint,
    keys: KeyTable,
    loaded: &mut BTreeSet<String>,
) -> Result<(), LoadError> {
    *slot = Slot::Resident(load_some(slot.get()?, weights, keys, loaded)?);
    Ok(())
}

/// Lets a part be loaded whenever it is needed.
fn defer<M: Module>(
    slot: &mut Slot<M>,
    weights: &Checkpoint,
    keys: KeyTable,
) -> Result<(), LoadError> {
    *slot = Slot::on_demand(slot.get()?, weights, keys)?;
    Ok(())
}

const DIFFUSION: KeyTable = KeyTable::DIFFUSION;

impl Pipeline {
    /// The parts that a pipeline is made of.
    pub const PARTS: [&str; 5] =
        [layout::PRIOR_TEXT, layout::PRIOR, layout::DECODER_TEXT, layout::DECODER, layout::VQGAN];

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
        let parts = Self::PARTS.iter().filter_map(|part| files.weights.get(*part));
        if residency.is_per_stage(parts.map(Checkpoint::device_bytes).sum()) {
            return loader.on_demand(files);
        }
        for part in Self::PARTS {
            let weights = files.weights(part)?;
            loader = loader.add(part, weights)?;
        }
        loader.defer_compressor(files)?;
        loader.finish()
    }

    /// Stage A, with its weights.
    ///
    /// # Errors
    ///
    /// The weights cannot be loaded.
    pub fn vqgan(&self) -> Result<Vqgan, LoadError> {
        self.vqgan.get()
    }

    /// Where the models are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Makes pictures of a prompt. `on_step` is called after every step; `Break` stops.
    ///
    /// # Errors
    ///
    /// The options cannot be run, the prompt cannot be split, the device failed, or `on_step` asked
    /// to stop.
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
            let predict = predict_decoder(&decoder, image.clone(), text);
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

    /// Where a batch starts in every stage.
    fn plan(&self, batch: &Batch<'_>, settings: &Settings) -> Plan {
        let mut plan =
            Plan { timesteps: settings.prior_timesteps.clone(), prior: None, decoder: None };
        if let Some(origin) = batch.origin {
            let strength = settings.strength(origin.is_masked());
            plan.timesteps = timesteps_from(strength as f32, &settings.prior_timesteps);
            // What is left altogether is not started from, not even from what noise leaves of it.
            if strength < 1.0 || origin.is_masked() {
                let to_latents = |embedding| self.prior_latents(embedding);
                plan.prior = Some(origin.for_prior(&self.device, to_latents));
            }
            plan.decoder = origin.for_decoder(&self.device);
        }
        plan
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

    /// A picture to start from, all of it or what the mask leaves, as large as `settings` say: scaled to
    /// cover that size, what stands out cut off on both sides.
    ///
    /// # Errors
    ///
    /// The model cannot make that size or has no compressor, the mask is not of the picture's size, or
    /// the device failed.
    pub async fn origin(
        &self,
        image: &Image,
        mask: Option<&Mask>,
        settings: &Settings,
    ) -> Result<Origin, Error> {
        let (cells, _) = self.sizes(settings.height, settings.width)?;
        if let Some(mask) = mask.filter(|m| [m.width, m.height] != [image.width, image.height]) {
            let size = |width, height| format!("{width} x {height}");
            let (expected, found) =
                (size(image.width, image.height), size(mask.width, mask.height));
            return Err(OptionsError::Mask { expected, found }.into());
        }
        let (compressor, downscale) =
            self.compressor.as_ref().map_err(|why| OptionsError::NoCompressor(why.clone()))?;
        let pixels = image.to_tensor(&self.device);
        let prepared = prepare(pixels.clone(), cells.map(|side| side * downscale));
        let embedding = compressor.get()?.forward(prepared, Statistics::Running);
        let embedding = read(embedding).await?;
        let Some(mask) = mask else { return Ok(Origin { embedding, kept: None }) };

        let size = [settings.height, settings.width];
        let pixels = cover(pixels, size);
        let latents = self.encode(pixels.clone())?;
        let mask = read(cover(mask.to_tensor(&self.device), size)).await?;
        let kept = Kept {
            image: Image::from_data(&read(pixels).await?).swap_remove(0),
            latents: read(latents).await?,
            mask: Mask::from_data(&mask),
        };
        Ok(Origin { embedding, kept: Some(kept) })
    }

    /// Where pictures start that have gone these shares of the way between the pictures of `source`; all
    /// of them at the first one where there is only one.
    ///
    /// # Errors
    ///
    /// As [`Self::origin`].
    pub async fn origins(
        &self,
        source: &Source<'_>,
        shares: &[f32],
        settings: &Settings,
    ) -> Result<Vec<Origin>, Error> {
        let from = self.origin(source.image, source.mask, settings).await?;
        let Some(image) = source.towards else { return Ok(vec![from; shares.len()]) };
        let to = self.origin(image, None, settings).await?;
        Ok(shares.iter().map(|&share| Origin::between(&from, &to, share)).collect())
    }

    /// A picture, as large as `settings` say, before and after Stage A alone.
    ///
    /// # Errors
    ///
    /// The model cannot make that size, or the device failed.
    pub async fn autoencode(
        &self,
        image: &Image,
        settings: &Settings,
    ) -> Result<[Image; 2], Error> {
        self.sizes(settings.height, settings.width)?;
        let pixels = image.to_tensor(&self.device);
        let pixels = cover(pixels, [settings.height, settings.width]);
        let latents = self.encode(pixels.clone())?;
        let vqgan = self.vqgan.get()?;
        let decoded = self.decode_strips(&vqgan, latents, settings.vqgan_rows).await?;
        let first = |data: &TensorData| Image::from_data(data).swap_remove(0);
        Ok([first(&read(pixels).await?), first(&decoded)])
    }

    /// Stage C: denoises `x` into its latents of an image embedding.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, c_in, h, w]`
    /// - text: `[B, T, c_cond]`
    pub async fn sample_prior(
        &self,
        x: Tensor<4>,
        text: Guided<Tensor<3>>,
        sampling: &Sampling<'_>,
        noise: Noise<'_>,
        on_step: &mut impl AsyncFnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<4>, Error> {
        let prior = self.prior.get()?;
        let (predict, schedule) = (predict_prior(&prior, text), &self.prior_schedule);
        denoise(Stage::Prior, schedule, x, sampling, &predict, noise, on_step).await
    }

    /// The image embedding as Stage C's latents, the inverse of [`Self::image_embedding`].
    pub fn prior_latents(&self, image_embedding: Tensor<4>) -> Tensor<4> {
        (image_embedding + self.prior_index.latent_std) / self.prior_index.latent_mean
    }

    /// Stage C's latents as the image embedding that Stage B takes.
    pub fn image_embedding(&self, latents: Tensor<4>) -> Tensor<4> {
        latents * self.prior_index.latent_mean - self.prior_index.latent_std
    }

    /// Stage B: denoises `x` into the VQGAN's latents. Guidance leads away from the negative prompt
    /// and from the image embedding of zeros.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, 4, H, W]`
    /// - `image_embedding`: `[B, effnet_embd, h, w]`
    /// - text: `[B, T, clip_embd]`
    pub async fn sample_decoder(
        &self,
        x: Tensor<4>,
        image_embedding: Tensor<4>,
        text: Guided<Tensor<3>>,
        sampling: &Sampling<'_>,
        noise: Noise<'_>,
        on_step: &mut impl AsyncFnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<4>, Error> {
        let (decoder, schedule) = (self.decoder.get()?, &self.decoder_schedule);
        let predict = predict_decoder(&decoder, image_embedding, text);
        denoise(Stage::Decoder, schedule, x, sampling, &predict, noise, on_step).await
    }

    /// Stage A: pictures to latents as Stage B makes them.
    ///
    /// # Shapes
    ///
    /// - pixels: `[B, 3, H·downscale, W·downscale]` in `[0, 1]`
    /// - output: `[B, 4, H, W]`
    ///
    /// # Errors
    ///
    /// The weights cannot be loaded.
    pub fn encode(&self, pixels: Tensor<4>) -> Result<Tensor<4>, LoadError> {
        let latents = self.vqgan.get()?.encode(pixels, Statistics::Running);
        Ok(latents / self.vqgan_config.scale_factor)
    }

    /// Stage A: latents to pictures, not clamped and without quantising, as the authors do.
    ///
    /// # Shapes
    ///
    /// - latents: `[B, 4, H, W]`, as Stage B makes them
    /// - output: `[B, 3, H·downscale, W·downscale]`
    ///
    /// # Errors
    ///
    /// The weights cannot be loaded.
    pub fn decode(&self, latents: Tensor<4>) -> Result<Tensor<4>, LoadError> {
        Ok(self.vqgan.get()?.decode(latents * self.vqgan_config.scale_factor))
    }

    /// Pictures of latents in `[0, 1]`, `rows` rows of latents at a time, 0 for all.
    async fn decode_strips(
        &self,
        vqgan: &Vqgan,
        latents: Tensor<4>,
        rows: Option<usize>,
    ) -> Result<TensorData, Error> {
        let [_, _, height, width] = latents.dims();
        let latents = latents * self.vqgan_config.scale_factor;
        let rows = match rows.unwrap_or_else(|| strip_rows([height, width])) {
            0 => height,
            rows => rows,
        };
        if rows >= height {
            return read(vqgan.decode(latents).clamp(0.0, 1.0)).await;
        }
        let mut strips = Vec::new();
        for strip in vqgan.decode_strips(latents, rows) {
            strips.push(read(strip.clamp(0.0, 1.0)).await?);
        }
        Ok(stack_rows(&strips))
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

/// Embeds the prompts of every batch, and as often the negative one where the sampling is guided.
fn embed(
    part: &TextPart,
    batches: &[Batch<'_>],
    settings: &Settings,
    guidance_scale: f64,
) -> Result<Vec<Guided<Tensor<3>>>, Error> {
    let encoder = part.encoder.get()?;
    let embed = |prompts: &[&str]| part.embed_with(&encoder, prompts, settings.prompt_syntax);
    let unconditional = match is_guided(guidance_scale) {
        true => Some(embed(&[&settings.negative_prompt])?),
        false => None,
    };
    let guided = |batch: &Batch<'_>| {
        let (prompts, count) = (&batch.prompts, batch.prompts.len());
        let all_equal = prompts.windows(2).all(|pair| pair[0] == pair[1]);
        let mut conditional = match all_equal {
            true => embed(&prompts[..1])?.repeat_dim(0, count),
            false => embed(prompts)?,
        };
        if let Some((prompt, share)) = batch.towards {
            let other = embed(&[prompt])?.repeat_dim(0, count);
            conditional = linear(conditional, other, share);
        }
        let unconditional = unconditional.clone().map(|text| text.repeat_dim(0, count));
        Ok::<_, Error>(Guided { conditional, unconditional })
    };
    batches.iter().map(guided).collect()
}

/// Checks a width that two parts share.
fn agree(
    part: &'static str,
    field: &'static str,
    found: usize,
    other: usize,
) -> Result<(), ConfigError> {
    match found == other {
        true => Ok(()),
        false => {
            let expected = format!("{other} as in the part next to it");
            Err(ConfigError::new(part, field, expected, found))
        }
    }
}

fn text_width(files: &ModelFiles, encoder: &str) -> Result<usize, LoadError> {
    let config: TextEncoderConfig = files.config(&format!("{encoder}/config.json"))?;
    Ok(config.hidden_size)
}

/// Longest side of a picture in pixels.
const MAX_SIDE: usize = 4096;

/// Conditional and unconditional as one batch, in this order.
fn both<const D: usize>(guided: Guided<Tensor<D>>) -> Tensor<D> {
    match guided.unconditional {
        Some(unconditional) => Tensor::cat(vec![guided.conditional, unconditional], 0),
        None => guided.conditional,
    }
}

/// Stage C's prediction for a text.
fn predict_prior(
    prior: &Prior,
    text: Guided<Tensor<3>>,
) -> impl Fn(Tensor<4>, &[f32]) -> Tensor<4> {
    let text = both(text);
    move |x, t| prior.forward(x, t, text.clone())
}

/// Stage B's prediction for an image embedding and a text. Guidance leads away from the negative prompt
/// and from the image embedding of zeros.
fn predict_decoder(
    decoder: &Decoder,
    image_embedding: Tensor<4>,
    text: Guided<Tensor<3>>,
) -> impl Fn(Tensor<4>, &[f32]) -> Tensor<4> {
    let zeros = text.unconditional.as_ref().map(|_| image_embedding.zeros_like());
    let image = both(Guided { conditional: image_embedding, unconditional: zeros });
    let text = both(text);
    move |x, t| decoder.forward(x, t, image.clone(), text.clone())
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

/// A stream of noise for every picture of a batch, so that none depends on the others.
struct Streams<'a> {
    streams: Vec<Philox>,
    device: &'a Device,
}

impl<'a> Streams<'a> {
    fn new(seed: u64, count: usize, device: &'a Device) -> Self {
        Self { streams: (0..count as u64).map(|image| Philox::new(seed, image)).collect(), device }
    }

    /// Standard normal noise, `[B, channels, height, width]`.
    fn draw(&mut self, [channels, height, width]: [usize; 3]) -> Tensor<4> {
        let shape = [1, channels, height, width];
        let one = |stream: &mut Philox| stream.normal_tensor(shape, self.device);
        Tensor::cat(self.streams.iter_mut().map(one).collect(), 0)
    }
}

/// The denoising of one batch that starts at noise.
pub(crate) async fn denoise(
    stage: Stage,
    schedule: &Schedule,
    x: Tensor<4>,
    sampling: &Sampling<'_>,
    predict: &dyn Fn(Tensor<4>, &[f32]) -> Tensor<4>,
    noise: Noise<'_>,
    on_step: &mut impl AsyncFnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Tensor<4>, Error> {
    let (task, mut steps) =
        (Task { stage, schedule, known: None }, Steps::of([sampling.timesteps]));
    task.denoise(x, sampling, predict, noise, &mut steps, on_step).await
}

/// Counts the steps of a stage.
struct Steps {
    done: usize,
    all: usize,
}

impl Steps {
    fn of(schedules: impl IntoIterator<Item = impl AsRef<[f32]>>) -> Self {
        let steps = schedules.into_iter().map(|times| times.as_ref().len() - 1);
        Self { done: 0, all: steps.sum() }
    }
}

/// The denoising of one batch in one of both diffusion stages.
struct Task<'a> {
    stage: Stage,
    schedule: &'a Schedule,
    known: Option<&'a Known>,
}

impl Task<'_> {
    /// The loop of both stages; `x` is noise.
    async fn denoise(
        &self,
        x: Tensor<4>,
        sampling: &Sampling<'_>,
        predict: &dyn Fn(Tensor<4>, &[f32]) -> Tensor<4>,
        noise: Noise<'_>,
        steps: &mut Steps,
        on_step: &mut impl AsyncFnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<4>, Error> {
        let (schedule, initial, [batch, ..]) = (self.schedule, x.clone(), x.dims());
        let mut x = match self.known {
            Some(known) => known.start(schedule, x, sampling.timesteps[0]),
            None => x,
        };
        for times in sampling.timesteps.windows(2) {
            let epsilon = if is_guided(sampling.guidance_scale) {
                let twice = Tensor::cat(vec![x.clone(), x.clone()], 0);
                let epsilon = predict(twice, &vec![times[0]; 2 * batch]);
                let conditional = epsilon.clone().narrow(0, 0, batch);
                guide(conditional, epsilon.narrow(0, batch, batch), sampling.guidance_scale)
            } else {
                predict(x.clone(), &vec![times[0]; batch])
            };
            // Drawn at the last step too, as the reference does, to keep its order of random numbers.
            let z = noise(x.dims());
            x = sampling.sampler.step(schedule, x, epsilon, z, [times[0], times[1]]);
            if let Some(known) = self.known {
                x = known.keep(schedule, x, initial.clone(), times[1]);
            }
            steps.done += 1;
            report(on_step, self.stage, steps.done, steps.all, &read(x.clone()).await?).await?;
        }
        Ok(x)
    }
}

async fn report(
    on_step: &mut impl AsyncFnMut(Progress<'_>) -> ControlFlow<()>,
    stage: Stage,
    step: usize,
    steps: usize,
    latents: &TensorData,
) -> Result<(), Error> {
    match on_step(Progress { stage, step, steps, latents }).await {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

pub(crate) async fn read<const D: usize>(x: Tensor<D>) -> Result<TensorData, Error> {
    x.into_data_async().await.map_err(|error| Error::Device(format!("{error:?}")))
}
