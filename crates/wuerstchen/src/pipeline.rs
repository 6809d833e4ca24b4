//! The whole system: prompt to text embedding to image embedding to latents to picture.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use burn::module::Module;
use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::bundle::{ModelFiles, layout};
use crate::checkpoint::Checkpoint;
use crate::config::ConfigError;
use crate::decoder::{Decoder, DecoderConfig};
use crate::guidance::{guide, is_guided};
use crate::image::Image;
use crate::noise::Philox;
use crate::options::{Defaults, GenerateOptions, OptionsError, Settings};
use crate::prior::{Prior, PriorConfig};
use crate::residency::{Residency, Slot};
use crate::sampler::Sampler;
use crate::schedule::Schedule;
use crate::text::{TextEncoder, TextEncoderConfig, TokenIds, Tokenizer, TokenizerError};
use crate::vqgan::{Vqgan, VqganConfig};
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
        let ids: Vec<TokenIds> =
            prompts.iter().map(|prompt| self.tokenizer.encode(prompt)).collect::<Result<_, _>>()?;
        Ok(self.encoder.get()?.forward(&ids))
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
            device: device.clone(),
        };
        Ok(Self { pipeline, loaded: BTreeMap::new() })
    }

    /// Takes weights of a part, all or some, to the device; the compressor's are not needed and left
    /// out.
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
        Ok(self.pipeline)
    }

    /// The pipeline, once all weights are there.
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
        Ok(self.pipeline)
    }
}

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
        self.generate_each(&vec![prompt; settings.count], settings, on_step).await
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
        let count = prompts.len();
        let (embedding_size, latent_size) = self.sizes(settings.height, settings.width)?;
        // Every picture has its own stream of noise, so that it does not depend on the count.
        let mut streams: Vec<_> =
            (0..count as u64).map(|image| Philox::new(settings.seed, image)).collect();
        let noise: Noise = &mut |[_, channels, height, width]| {
            let one = |stream: &mut Philox| {
                stream.normal_tensor([1, channels, height, width], &self.device)
            };
            Tensor::cat(streams.iter_mut().map(one).collect(), 0)
        };

        let guidance_scale = settings.prior_guidance_scale;
        let text = embed(&self.prior_text, prompts, &settings, guidance_scale)?;
        report(on_step, Stage::Text, 1, 2, &read(text.conditional.clone()).await?).await?;
        let sampling = Sampling {
            timesteps: &settings.prior_timesteps,
            guidance_scale: settings.prior_guidance_scale,
            sampler: settings.sampler,
        };
        let initial = noise([count, self.prior_config.c_in, embedding_size[0], embedding_size[1]]);
        let latents = self.sample_prior(initial, text, &sampling, noise, on_step).await?;
        let image_embedding = self.image_embedding(latents);

        let guidance_scale = settings.decoder_guidance_scale;
        let text = embed(&self.decoder_text, prompts, &settings, guidance_scale)?;
        report(on_step, Stage::Text, 2, 2, &read(text.conditional.clone()).await?).await?;
        let sampling =
            Sampling { timesteps: &settings.decoder_timesteps, guidance_scale, ..sampling };
        let initial = noise([count, self.decoder_config.c_in, latent_size[0], latent_size[1]]);
        let embedding = image_embedding.clone();
        let latents =
            self.sample_decoder(initial, embedding, text, &sampling, noise, on_step).await?;

        let image = read(self.decode(latents.clone())?.clamp(0.0, 1.0)).await?;
        report(on_step, Stage::Vqgan, 1, 1, &image).await?;
        Ok(Generated {
            images: Image::from_data(&image),
            image_embeddings: read(image_embedding).await?,
            latents: read(latents).await?,
            settings,
        })
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
        let (text, prior) = (both(text), self.prior.get()?);
        let predict = |x: Tensor<4>, t: &[f32]| prior.forward(x, t, text.clone());
        denoise(Stage::Prior, &self.prior_schedule, x, sampling, &predict, noise, on_step).await
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
        let zeros = text.unconditional.as_ref().map(|_| image_embedding.zeros_like());
        let image = both(Guided { conditional: image_embedding, unconditional: zeros });
        let (text, decoder) = (both(text), self.decoder.get()?);
        let predict = |x: Tensor<4>, t: &[f32]| decoder.forward(x, t, image.clone(), text.clone());
        denoise(Stage::Decoder, &self.decoder_schedule, x, sampling, &predict, noise, on_step).await
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

/// Embeds every prompt, and as often the negative one where the sampling is guided.
fn embed(
    part: &TextPart,
    prompts: &[&str],
    settings: &Settings,
    guidance_scale: f64,
) -> Result<Guided<Tensor<3>>, Error> {
    let all_equal = prompts.windows(2).all(|pair| pair[0] == pair[1]);
    let conditional = match all_equal {
        true => part.embed(&prompts[..1])?.repeat_dim(0, prompts.len()),
        false => part.embed(prompts)?,
    };
    let unconditional = match is_guided(guidance_scale) {
        true => Some(part.embed(&[&settings.negative_prompt])?.repeat_dim(0, prompts.len())),
        false => None,
    };
    Ok(Guided { conditional, unconditional })
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

/// The loop of both diffusion stages.
pub(crate) async fn denoise(
    stage: Stage,
    schedule: &Schedule,
    mut x: Tensor<4>,
    sampling: &Sampling<'_>,
    predict: &dyn Fn(Tensor<4>, &[f32]) -> Tensor<4>,
    noise: Noise<'_>,
    on_step: &mut impl AsyncFnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Tensor<4>, Error> {
    let steps = sampling.timesteps.len() - 1;
    let [batch, ..] = x.dims();
    for (step, times) in sampling.timesteps.windows(2).enumerate() {
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
        report(on_step, stage, step + 1, steps, &read(x.clone()).await?).await?;
    }
    Ok(x)
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
