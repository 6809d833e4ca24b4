//! Weights into a pipeline: all at once, shard by shard, or when they are needed.

use burn::prelude::*;

use super::text::TextPart;
use super::{CompressorPart, Pipeline};
use crate::bundle::ModelFiles;
use crate::checkpoint::Checkpoint;
use crate::compressor::CompressorConfig;
use crate::config::ConfigError;
use crate::decoder::DecoderConfig;
use crate::error::LoadError;
use crate::family::PipelineFolder;
use crate::part::{Part, PartConfig};
use crate::prior::PriorConfig;
use crate::residency::{Load, Slot};
use crate::text::TextEncoderConfig;
use crate::vqgan::VqganConfig;

/// A pipeline whose weights arrive in pieces, so that they need never be in memory all at once.
pub struct PipelineLoader {
    pipeline: Pipeline,
}

impl PipelineLoader {
    /// Reads the configs and tokenizers of `files`; none of its weights.
    ///
    /// # Errors
    ///
    /// Names what is missing or does not fit.
    pub fn new(files: &ModelFiles, device: &Device) -> Result<Self, LoadError> {
        let prior_config: PriorConfig = files.part_config(Part::PRIOR)?;
        let decoder_config: DecoderConfig = files.part_config(Part::DECODER)?;
        let vqgan_config: VqganConfig = files.part_config(Part::VQGAN)?;
        let text_width = |part| Ok::<_, LoadError>(text_config(files, part)?.hidden_size);
        agree("prior", "c_cond", prior_config.c_cond, text_width(Part::PRIOR_TEXT)?)?;
        agree("decoder", "clip_embd", decoder_config.clip_embd, text_width(Part::DECODER_TEXT)?)?;
        agree("decoder", "effnet_embd", decoder_config.effnet_embd, prior_config.c_in)?;
        agree("decoder", "c_in", decoder_config.c_in, vqgan_config.latent_channels)?;
        let text = |pipeline, part| {
            TextPart::init(&files.tokenizer(pipeline), part, &text_config(files, part)?, device)
        };
        let compressor = files.part_config(Part::COMPRESSOR).map(|config: CompressorConfig| {
            let network = Slot::new(Part::COMPRESSOR, config.init(device));
            CompressorPart { network, downscale: config.downscale() }
        });
        let pipeline = Pipeline {
            card: files.card()?,
            prior_text: text(PipelineFolder::PRIOR, Part::PRIOR_TEXT)?,
            prior: Slot::new(Part::PRIOR, prior_config.init(device)),
            prior_config,
            prior_index: files.config(&PipelineFolder::PRIOR.index())?,
            prior_schedule: files.config(&PipelineFolder::PRIOR.scheduler())?,
            decoder_text: text(PipelineFolder::DECODER, Part::DECODER_TEXT)?,
            decoder: Slot::new(Part::DECODER, decoder_config.init(device)),
            decoder_config,
            decoder_index: files.config(&PipelineFolder::DECODER.index())?,
            decoder_schedule: files.config(&PipelineFolder::DECODER.scheduler())?,
            vqgan: Slot::new(Part::VQGAN, vqgan_config.init(device)),
            vqgan_config,
            compressor,
            device: device.clone(),
        };
        Ok(Self { pipeline })
    }

    /// Takes weights of a part, all or some, to the device.
    ///
    /// # Errors
    ///
    /// The pipeline has no such part; or names every tensor that does not belong to the part or is
    /// misshapen.
    pub fn add(&mut self, part: Part, weights: &Checkpoint) -> Result<(), LoadError> {
        self.pipeline.slot(part)?.map_or(Ok(()), |slot| slot.add(weights))
    }

    /// Leaves the weights of a part where they are, to be loaded when it is needed.
    ///
    /// # Errors
    ///
    /// The pipeline has no such part; or names every tensor that is missing, unexpected or misshapen.
    pub(super) fn defer(&mut self, part: Part, weights: &Checkpoint) -> Result<(), LoadError> {
        self.pipeline.slot(part)?.map_or(Ok(()), |slot| slot.defer(weights))
    }

    /// The pipeline, once all weights are there. The compressor's may be left out.
    ///
    /// # Errors
    ///
    /// Names every tensor that has not arrived.
    pub fn finish(mut self) -> Result<Pipeline, LoadError> {
        let compressor = &mut self.pipeline.compressor;
        if compressor.as_ref().is_ok_and(|compressor| compressor.network.is_empty()) {
            *compressor = Err(LoadError::File {
                path: Part::COMPRESSOR.folder().to_owned(),
                reason: "its weights are not in the model".to_owned(),
            });
        }
        for slot in self.pipeline.slots() {
            slot.check_complete()?;
        }
        Ok(self.pipeline)
    }
}

impl Pipeline {
    /// The places of all parts.
    fn slots(&mut self) -> Vec<&mut dyn Load> {
        let mut slots: Vec<&mut dyn Load> = vec![
            &mut self.prior_text.encoder,
            &mut self.prior,
            &mut self.decoder_text.encoder,
            &mut self.decoder,
            &mut self.vqgan,
        ];
        if let Ok(compressor) = &mut self.compressor {
            slots.push(&mut compressor.network);
        }
        slots
    }

    /// The place of a part; `None` where it is the compressor and cannot be used: that is told to whoever
    /// wants to use it.
    fn slot(&mut self, part: Part) -> Result<Option<&mut dyn Load>, LoadError> {
        let expected = Self::parts().map(Part::folder).collect::<Vec<_>>().join(", ");
        let slot = self.slots().into_iter().find(|slot| slot.part() == part);
        if slot.is_none() && part != Part::COMPRESSOR {
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

/// Checks a width that two parts share.
fn agree(
    part: &'static str,
    field: &'static str,
    found: usize,
    other: usize,
) -> Result<(), ConfigError> {
    if found == other {
        Ok(())
    } else {
        let expected = format!("{other} as in the part next to it");
        Err(ConfigError::new(part, field, expected, found))
    }
}

fn text_config(files: &ModelFiles, part: Part) -> Result<TextEncoderConfig, LoadError> {
    files.part_config(part)
}
