//! The stages and their blocks.

use burn::prelude::*;
use wuerstchen::blocks::time_embedding;
use wuerstchen::card::PriorIndex;
use wuerstchen::compressor::normalise;
use wuerstchen::resize::{Filter, crop, resize_to_cover};
use wuerstchen::vqgan::COMMITMENT;
use wuerstchen::{
    CompressorConfig, DecoderConfig, ModelFiles, Part, PipelineFolder, PriorConfig, Statistics,
    VqganConfig,
};

use crate::compare::Recorder;
use crate::report::VerifyError;

/// The parts of the stages, in the order of their goldens.
pub(crate) const PARTS: [Part; 4] = [Part::PRIOR, Part::DECODER, Part::VQGAN, Part::COMPRESSOR];

/// Largest relative error of the diffusion models and the compressor; the reference's own, of f32
/// against f64, reaches 10⁻⁵ to 10⁻⁴.
pub(crate) const DIFFUSION_BOUND: f64 = 1e-4;

/// Largest relative error of Stage A and the text encoders.
pub(crate) const EXACT_BOUND: f64 = 1e-5;

pub(crate) fn prior(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let (config, model) = files.load::<PriorConfig>(Part::PRIOR, device)?;
    let times = recorder.values("r")?;
    let (x, text) = (recorder.tensor("x", device)?, recorder.tensor::<3>("c", device)?);
    recorder.check("r_embed", time_embedding(&times, config.c_r, device), EXACT_BOUND);
    recorder.check("c_embed", model.embed_text(text.clone()), DIFFUSION_BOUND);
    let y = model.prepare(text).forward(x, &times, &mut |name, x| {
        recorder.check_observed(name, x, DIFFUSION_BOUND);
    });
    recorder.check("y", y, DIFFUSION_BOUND);
    Ok(())
}

pub(crate) fn decoder(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let (config, model) = files.load::<DecoderConfig>(Part::DECODER, device)?;
    let times = recorder.values("r")?;
    let x = recorder.tensor::<4>("x", device)?;
    let text = recorder.tensor::<3>("clip", device)?;
    let image = recorder.tensor("effnet", device)?;
    recorder.check("r_embed", time_embedding(&times, config.c_r, device), EXACT_BOUND);
    recorder.check("clip_embed", model.embed_text(text.clone()), DIFFUSION_BOUND);
    let [_, _, height, width] = x.dims();
    let side = |side: usize, level: usize| side / (config.patch_size << level);
    for (i, level) in (0..config.levels()).chain((0..config.levels()).rev()).enumerate() {
        let size = [side(height, level), side(width, level)];
        if let Some(mapped) = model.map_image(i, image.clone(), size) {
            recorder.check_observed(&format!("effnet_mappers.{i}"), &mapped, DIFFUSION_BOUND);
        }
    }
    let model = model.prepare(image, text, [height, width]);
    let y = model.forward(x, &times, &mut |name, x| {
        recorder.check_observed(name, x, DIFFUSION_BOUND);
    });
    recorder.check("y", y, DIFFUSION_BOUND);
    Ok(())
}

pub(crate) fn vqgan(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let (config, model) = files.load::<VqganConfig>(Part::VQGAN, device)?;
    let image = recorder.tensor("image", device)?;
    let latents = model.encode_observed(image, Statistics::Running, &mut |name, x| {
        recorder.check_observed(name, x, EXACT_BOUND);
    });
    recorder.check("latents", latents.clone(), EXACT_BOUND);
    recorder.check("encode_scaled", latents.clone() / config.scale_factor, EXACT_BOUND);

    let quantized = model.quantize(latents.clone());
    recorder.check("quantized", quantized.latents.clone(), EXACT_BOUND);
    // The golden lacks the commitment loss, which is `COMMITMENT` times the same value.
    recorder.check("codebook_loss", quantized.loss / (1.0 + COMMITMENT), EXACT_BOUND);
    recorder.check_integers("indices", quantized.indices);
    recorder.check("decoded_quantized", model.decode(quantized.latents), EXACT_BOUND);
    let decoded = model.decode_observed(latents, &mut |name, x| {
        recorder.check_observed(name, x, EXACT_BOUND);
    });
    recorder.check("decoded", decoded, EXACT_BOUND);
    Ok(())
}

pub(crate) fn compressor(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let (_, model) = files.load::<CompressorConfig>(Part::COMPRESSOR, device)?;
    let x = recorder.tensor("x", device)?;
    let latents = model.forward_observed(x, Statistics::Running, &mut |name, x| {
        recorder.check_observed(name, x, DIFFUSION_BOUND);
    });
    recorder.check("latents", latents.clone(), DIFFUSION_BOUND);
    let index = PipelineFolder::PRIOR.index();
    if files.texts.contains_key(&index) {
        let index: PriorIndex = files.config(&index)?;
        let scaled = (latents + index.latent_std) / index.latent_mean;
        recorder.check("scaled", scaled, DIFFUSION_BOUND);
    }
    if recorder.has("picture") {
        let picture = recorder.tensor("picture", device)?;
        let &[.., height, width] = recorder.shape("cropped")? else {
            return Err(recorder.error("expected pictures in \"cropped\"".into()));
        };
        let size = height.min(width);
        let resized = resize_to_cover(picture, [size; 2], Filter::Bilinear);
        recorder.check("resized", resized.clone(), EXACT_BOUND);
        let cropped = crop(resized, [size; 2]);
        recorder.check("cropped", cropped.clone(), EXACT_BOUND);
        let normalised = normalise(cropped);
        recorder.check("normalised", normalised.clone(), EXACT_BOUND);
        let latents = model.forward(normalised, Statistics::Running);
        recorder.check("latents_picture", latents, DIFFUSION_BOUND);
    }
    Ok(())
}
