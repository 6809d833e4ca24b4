//! Weights into a pipeline: all at once, shard by shard, or when they are needed.

use burn::module::Module;
use burn::prelude::*;

use super::denoiser::{DecoderStage, DiffusionStage};
use super::models::{Diffusion, Models, StageB, agree};
use super::text::TextPart;
use super::tokens::TokenStage;
use super::{CompressorPart, ControlNetPart, ImageEncoderPart, Pipeline};
use crate::card::{DecoderIndex, PriorIndex};
use crate::checkpoint::Checkpoint;
use crate::compressor::{COLOURS, CompressorConfig};
use crate::config::ConfigError;
use crate::error::LoadError;
use crate::family::PipelineFolder;
use crate::model_files::ModelFiles;
use crate::part::{Part, PartConfig};
use crate::previewer::PreviewerConfig;
use crate::residency::{Load, Slot};
use crate::vision::{ImageEncoderConfig, PreparationConfig};
use crate::vqgan::VqganConfig;

/// A pipeline whose weights arrive in pieces, so that they need never be in memory all at once.
pub struct PipelineLoader {
    pipeline: Pipeline,
}

impl PipelineLoader {
    /// Reads the configs and tokenizers of `files`, but none of its weights.
    ///
    /// # Errors
    ///
    /// Names what is missing or does not fit.
    pub fn new(files: &ModelFiles, device: &Device) -> Result<Self, LoadError> {
        let family = files.family();
        let [prior_pipeline, decoder_pipeline] = family.pipelines;
        let models = Models::read(family, files, device)?;
        let prior_index: PriorIndex = files.index(prior_pipeline)?;
        let unfit = |path: String| {
            move |error: ConfigError| LoadError::File { path, reason: error.to_string() }
        };
        prior_index.validate().map_err(unfit(prior_pipeline.index()))?;
        let decoder_index: DecoderIndex = files.index(decoder_pipeline)?;
        decoder_index.validate().map_err(unfit(decoder_pipeline.index()))?;
        let vqgan_config: VqganConfig = files.part_config(family.vqgan)?;
        for (field, value) in
            [("in_channels", vqgan_config.in_channels), ("out_channels", vqgan_config.out_channels)]
        {
            agree("vqgan", field, value, ("the number of colours", COLOURS))?;
        }
        let text = |pipeline, part, text| TextPart::init(&files.tokenizer(pipeline), part, text);
        let decoder_text = family.decoder_text.zip(models.decoder_text);
        let decoder_text = decoder_text.map(|(part, model)| text(decoder_pipeline, part, model));
        let diffusion = |pipeline: PipelineFolder, model: Diffusion| {
            let Diffusion { model, channels, size_multiple, smallest_side } = model;
            Ok::<_, LoadError>(DiffusionStage {
                denoiser: Slot::new(pipeline.main, model),
                channels,
                schedule: files.schedule(pipeline)?,
                size_multiple,
                smallest_side,
            })
        };
        let channels = models.prior.channels;
        let of_prior = ("the number of Stage C's channels", channels);
        let compressor = files.part_config(family.compressor);
        let compressor = compressor.and_then(|config: CompressorConfig| {
            agree("compressor", "c_latent", config.c_latent, of_prior)?;
            let network = Slot::new(family.compressor, config.init(device));
            Ok(CompressorPart { network, downscale: config.downscale() })
        });
        let image_encoder = match family.image_encoder {
            Some(part) => files.part_config(part).and_then(|config: ImageEncoderConfig| {
                let path = prior_pipeline.preparation();
                let preparation = if files.texts.contains_key(&path) {
                    files.config(&path)?
                } else {
                    PreparationConfig::published(config.image_size)
                };
                preparation.validate(config.image_size)?;
                Ok(ImageEncoderPart { network: Slot::new(part, config.init(device)), preparation })
            }),
            None => Err(LoadError::File {
                path: prior_pipeline.name.to_owned(),
                reason: format!("{} takes no pictures as prompts", family.name),
            }),
        };
        let mut previewer = None;
        if let Some(part) = family.previewer
            && let Ok(config) = files.part_config::<PreviewerConfig>(part)
        {
            agree("previewer", "c_in", config.c_in, of_prior)?;
            previewer = Some(Slot::new(part, config.init(device)));
        }
        let controlnet = match family.controlnet {
            Some(part) => controlnet(files, part, device),
            None => Err(LoadError::File {
                path: prior_pipeline.name.to_owned(),
                reason: format!("{} has none", family.name),
            }),
        };
        let pipeline = Pipeline {
            card: files.card()?,
            family,
            prior_text: text(prior_pipeline, family.prior_text, models.prior_text)?,
            prior: diffusion(prior_pipeline, models.prior)?,
            prior_index,
            decoder_text: decoder_text.transpose()?,
            decoder: match models.decoder {
                StageB::Latents(model) => {
                    DecoderStage::Latents(diffusion(decoder_pipeline, model)?)
                }
                StageB::Tokens { model, labels, size_multiple } => {
                    let network = Slot::new(decoder_pipeline.main, model);
                    DecoderStage::Tokens(TokenStage { network, labels, size_multiple })
                }
            },
            decoder_index,
            vqgan: Slot::new(family.vqgan, vqgan_config.init(device)),
            vqgan_config,
            compressor,
            image_encoder,
            previewer,
            controlnet,
            device: device.clone(),
        };
        Ok(Self { pipeline })
    }

    /// Loads all or some weights of a part to the device.
    ///
    /// # Errors
    ///
    /// The pipeline has no such part; or names every tensor that does not belong to the part or is
    /// misshapen.
    pub fn add(&mut self, part: Part, weights: &Checkpoint) -> Result<(), LoadError> {
        self.pipeline.replace(part, weights)
    }

    /// Leaves the weights of a part where they are, to be loaded when it is needed.
    ///
    /// # Errors
    ///
    /// The pipeline has no such part; or names every tensor that is missing, unexpected or misshapen.
    pub(super) fn defer(&mut self, part: Part, weights: &Checkpoint) -> Result<(), LoadError> {
        self.pipeline.slot(part)?.map_or(Ok(()), |slot| slot.defer(weights))
    }

    /// The pipeline, once all weights are there. The weights of parts that few pictures need may be missing.
    ///
    /// # Errors
    ///
    /// Names every tensor that has not arrived.
    pub fn finish(self) -> Result<Pipeline, LoadError> {
        let needed: Vec<_> = self.pipeline.family.needed().collect();
        self.finish_with(&needed)
    }

    /// As [`Self::finish`], but all parts other than `needed` may lack weights.
    pub(super) fn finish_with(mut self, needed: &[Part]) -> Result<Pipeline, LoadError> {
        let left_out = |part: Part| LoadError::File {
            path: part.folder().to_owned(),
            reason: "its weights are not in the model".to_owned(),
        };
        let Pipeline { compressor, image_encoder, previewer, controlnet, .. } = &mut self.pipeline;
        if let Some(part) = empty(compressor.as_ref().ok().map(|part| &part.network)) {
            *compressor = Err(left_out(part));
        }
        if let Some(part) = empty(image_encoder.as_ref().ok().map(|part| &part.network)) {
            *image_encoder = Err(left_out(part));
        }
        if let Some(part) = empty(controlnet.as_ref().ok().map(|part| &part.network)) {
            *controlnet = Err(left_out(part));
        }
        if empty(previewer.as_ref()).is_some() {
            *previewer = None;
        }
        for slot in self.pipeline.slots() {
            if !slot.is_empty() || needed.contains(&slot.part()) {
                slot.check_complete()?;
            }
        }
        Ok(self.pipeline)
    }
}

impl Pipeline {
    /// The places of all parts.
    fn slots(&mut self) -> Vec<&mut dyn Load> {
        let mut slots: Vec<&mut dyn Load> =
            vec![&mut self.prior_text.encoder, &mut self.prior.denoiser];
        if let Some(text) = &mut self.decoder_text {
            slots.push(&mut text.encoder);
        }
        slots.push(self.decoder.slot());
        slots.push(&mut self.vqgan);
        if let Ok(compressor) = &mut self.compressor {
            slots.push(&mut compressor.network);
        }
        if let Ok(encoder) = &mut self.image_encoder {
            slots.push(&mut encoder.network);
        }
        if let Ok(controlnet) = &mut self.controlnet {
            slots.push(&mut controlnet.network);
        }
        slots.extend(self.previewer.as_mut().map(|previewer| previewer as &mut dyn Load));
        slots
    }

    /// The place of a part; `None` where a picture does not need the part and it cannot be used. A caller that wants
    /// to use it gets the error then.
    fn slot(&mut self, part: Part) -> Result<Option<&mut dyn Load>, LoadError> {
        let family = self.family;
        let slot = self.slots().into_iter().find(|slot| slot.part() == part);
        let is_optional = || part.stage().is_none() && family.all_parts().any(|own| own == part);
        if slot.is_none() && !is_optional() {
            let expected = family.needed().map(Part::folder).collect::<Vec<_>>().join(", ");
            return Err(LoadError::UnknownPart { found: part.to_string(), expected });
        }
        Ok(slot)
    }

    /// Replaces some of the weights of a part on the device, none of which is packed there.
    ///
    /// # Errors
    ///
    /// As [`PipelineLoader::add`].
    pub fn replace(&mut self, part: Part, weights: &Checkpoint) -> Result<(), LoadError> {
        self.slot(part)?.map_or(Ok(()), |slot| slot.add(weights))
    }
}

/// The ControlNet of a model. Few models have one, so that a web page fetches this function only if it is called.
#[inline(never)]
fn controlnet(
    files: &ModelFiles,
    part: Part,
    device: &Device,
) -> Result<ControlNetPart, LoadError> {
    let config = files.controlnet_config(part)?;
    Ok(ControlNetPart { network: Slot::new(part, config.init(device)), config })
}

/// The part whose slot this is, if nothing has arrived.
fn empty<M: Module>(slot: Option<&Slot<M>>) -> Option<Part> {
    slot.filter(|slot| slot.is_empty()).map(|slot| slot.part())
}
