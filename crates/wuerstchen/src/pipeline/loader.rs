//! Weights into a pipeline: all at once, shard by shard, or when they are needed.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Module;
use burn::prelude::*;

use super::text::TextPart;
use super::{ModelCard, Pipeline};
use crate::bundle::{ModelFiles, layout};
use crate::checkpoint::Checkpoint;
use crate::config::ConfigError;
use crate::decoder::DecoderConfig;
use crate::prior::PriorConfig;
use crate::residency::Slot;
use crate::text::TextEncoderConfig;
use crate::vqgan::VqganConfig;
use crate::weights::{KeyTable, LoadError, all_loaded, load_some};

const DIFFUSION: KeyTable = KeyTable::DIFFUSION;

/// Why a model whose compressor is described cannot use it.
const NO_WEIGHTS: &str = "its weights are not in the model";

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
        self.pipeline.fill(part, weights, loaded)?;
        Ok(self)
    }

    /// Leaves the weights of all parts where they are, to be loaded when a part is needed.
    ///
    /// # Errors
    ///
    /// Names every tensor of a part that is missing, unexpected or misshapen.
    pub(super) fn on_demand(mut self, files: &ModelFiles) -> Result<Pipeline, LoadError> {
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
    pub(super) fn defer_compressor(&mut self, files: &ModelFiles) -> Result<(), LoadError> {
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

impl Pipeline {
    /// Replaces some of the weights of a part on the device, none of which is packed there.
    ///
    /// # Errors
    ///
    /// As [`PipelineLoader::add`].
    pub fn replace(&mut self, part: &str, weights: &Checkpoint) -> Result<(), LoadError> {
        self.fill(part, weights, &mut BTreeSet::new())
    }

    fn fill(
        &mut self,
        part: &str,
        weights: &Checkpoint,
        loaded: &mut BTreeSet<String>,
    ) -> Result<(), LoadError> {
        match part {
            layout::PRIOR => fill(&mut self.prior, weights, DIFFUSION, loaded),
            layout::DECODER => fill(&mut self.decoder, weights, DIFFUSION, loaded),
            layout::VQGAN => fill(&mut self.vqgan, weights, KeyTable::VQGAN, loaded),
            layout::PRIOR_TEXT => {
                fill(&mut self.prior_text.encoder, weights, KeyTable::TEXT, loaded)
            }
            layout::DECODER_TEXT => {
                fill(&mut self.decoder_text.encoder, weights, KeyTable::TEXT, loaded)
            }
            layout::COMPRESSOR => match &mut self.compressor {
                Ok((compressor, _)) => fill(compressor, weights, KeyTable::COMPRESSOR, loaded),
                Err(_) => Ok(()),
            },
            _ => Ok(()),
        }
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
