//! How fast a device is, and how much work a picture is.

use std::cell::Cell;

use burn::prelude::*;
use wuerstchen_kernels::{Probe, probe_copy, probe_multiply_adds};

use crate::decoder::DecoderConfig;
use crate::model_files::ModelFiles;
use crate::part::{Part, Stage};
use crate::pipeline::{Clock, Error, Pipeline, seconds_of};
use crate::prior::PriorConfig;
use crate::text::TextEncoderConfig;
use crate::token_decoder::TokenDecoderConfig;
use crate::vqgan::VqganConfig;

/// The speed that a device reaches if it does nothing else.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Reach {
    /// Multiply-adds a second in f32, in registers.
    pub multiply_adds_per_sec: f64,
    /// Bytes a second, those read and those written together, of a copy of 32 MiB.
    pub bytes_per_sec: f64,
}

/// Measures the speed that a device reaches.
///
/// # Errors
///
/// The device failed.
///
/// # Panics
///
/// As [`probe_multiply_adds`].
pub async fn reach(device: &Device, clock: Clock<'_>) -> Result<Reach, Error> {
    let per_sec = async |probe: &dyn Fn() -> Probe| {
        let work = Cell::new(0);
        let compute = || {
            let probe = probe();
            work.set(probe.work);
            probe.result
        };
        let secs = seconds_of(&compute, clock).await?;
        Ok::<_, Error>(work.get() as f64 / secs)
    };
    // As much arithmetic as a software GPU does in a second, and a fast one in a tenth of a millisecond.
    let multiply_adds_per_sec = per_sec(&|| probe_multiply_adds(device, 64)).await?;
    let x = Tensor::<1>::zeros([1 << 23], device);
    let bytes_per_sec = per_sec(&|| probe_copy(x.clone())).await?;
    Ok(Reach { multiply_adds_per_sec, bytes_per_sec })
}

/// The least work of a stage for one prediction of one picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Work {
    /// Which stage.
    pub stage: Stage,
    /// Multiply-adds of products and convolutions.
    pub multiply_adds: usize,
    /// Bytes of the stage's weights on the device, all of which it reads. Stage A's encoder counts too, although a
    /// picture does not need it.
    pub weight_bytes: usize,
}

impl Work {
    /// The least seconds that a device of this speed takes.
    pub fn least_secs(&self, reach: &Reach) -> f64 {
        let arithmetic = self.multiply_adds as f64 / reach.multiply_adds_per_sec;
        arithmetic.max(self.weight_bytes as f64 / reach.bytes_per_sec)
    }
}

impl Pipeline {
    /// The work of each stage for a picture of the model's default size; `files` are those of the same model.
    /// Empty for Stable Cascade, whose work this crate does not count.
    ///
    /// # Errors
    ///
    /// A config does not fit.
    pub fn work(&self, files: &ModelFiles) -> Result<Vec<Work>, Error> {
        let (family, defaults) = (files.family(), &self.card.defaults);
        if family.prior() == Part::CASCADE_PRIOR {
            return Ok(Vec::new());
        }
        let (embedding, latents) = self.sizes(defaults.height, defaults.width)?;
        let texts = [family.decoder_text, Some(family.prior_text)].into_iter().flatten();
        let config = |part: Part| Ok((part, files.part_config::<TextEncoderConfig>(part)?));
        let texts = texts.map(config).collect::<Result<Vec<_>, Error>>()?;
        let of_text = |(_, config): &(Part, TextEncoderConfig)| config.multiply_adds();
        let tokens = texts.last().map_or(0, |(_, config)| config.max_position_embeddings);
        let prior: PriorConfig = files.part_config(family.prior())?;
        let cells = embedding[0] * embedding[1];
        let decoder = if family.decoder() == Part::V1_DECODER {
            let config: TokenDecoderConfig = files.part_config(family.decoder())?;
            config.multiply_adds(latents, cells + tokens)
        } else {
            let config: DecoderConfig = files.part_config(family.decoder())?;
            let tokens = texts[0].1.max_position_embeddings;
            config.multiply_adds(latents, tokens)
        };
        let vqgan: VqganConfig = files.part_config(family.vqgan)?;
        let bytes =
            |part: Part| files.weights.get(&part).map_or(0, |weights| weights.device_bytes());
        let work = |stage, multiply_adds, weight_bytes| Work { stage, multiply_adds, weight_bytes };
        let text_bytes = texts.iter().map(|(part, _)| bytes(*part)).sum();
        Ok(vec![
            work(Stage::Text, texts.iter().map(of_text).sum(), text_bytes),
            work(Stage::Prior, prior.multiply_adds(embedding, tokens), bytes(family.prior())),
            work(Stage::Decoder, decoder, bytes(family.decoder())),
            work(Stage::Vqgan, vqgan.decode_multiply_adds(latents), bytes(family.vqgan)),
        ])
    }
}
