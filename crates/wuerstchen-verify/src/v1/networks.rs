//! Each network of Würstchen v1 by itself.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::activation::silu;
use wuerstchen::blocks::{Block, channels_first, time_embedding};
use wuerstchen::card::PriorIndex;
use wuerstchen::compressor::prepare;
use wuerstchen::kernels::{Padding, gelu, global_response_norm, layer_norm};
use wuerstchen::token_decoder::TokenDecoder;
use wuerstchen::{
    Checkpoint, CompressorConfig, ModelFiles, Part, PriorConfig, Statistics, TokenDecoderConfig,
    VqganConfig,
};

use crate::compare::Recorder;
use crate::report::VerifyError;
use crate::stages::{DIFFUSION_BOUND, EXACT_BOUND};

pub(super) fn prior(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let (config, model) = files.load::<PriorConfig>(Part::V1_PRIOR, device)?;
    let times = recorder.values("r")?;
    let (x, text) = (recorder.tensor("x", device)?, recorder.tensor::<3>("text", device)?);
    recorder.check("r_embed", time_embedding(&times, config.c_r, device), EXACT_BOUND);
    recorder.check("c_embed", model.embed_text(text.clone()), DIFFUSION_BOUND);
    let epsilon = model.prepare(text).forward(x, &times, &mut |name, x| {
        recorder.check_observed(name, x, DIFFUSION_BOUND);
    });
    recorder.check("eps", epsilon, DIFFUSION_BOUND);
    Ok(())
}

/// Stage B, with what goes into every block.
pub(super) fn decoder(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let (config, model) = files.load::<TokenDecoderConfig>(Part::V1_DECODER, device)?;
    let times = recorder.values("r")?;
    let x = recorder.tokens("x", device)?;
    let (image, text) = (recorder.tensor::<4>("effnet", device)?, recorder.tensor("text", device)?);
    let time = time_embedding(&times, config.c_r, device);
    recorder.check("r_embed", time.clone(), EXACT_BOUND);
    let sequence = model.conditions(image.clone(), Some(text.clone()));
    let conditions = layer_norm(sequence.clone());
    recorder.check("act/seq_norm:in0", sequence, DIFFUSION_BOUND);
    recorder.check("act/seq_norm:out", conditions.clone(), DIFFUSION_BOUND);
    recorder.check("c_embed", conditions.clone(), DIFFUSION_BOUND);

    recorder.check_integers("act/in_mapper:in0", x.clone());
    let embedded = layer_norm(model.embed_tokens(x.clone()));
    recorder.check("act/in_mapper:out", embedded.clone(), DIFFUSION_BOUND);
    recorder.check("act/embedding:in0", channels_first(embedded), DIFFUSION_BOUND);

    let mut outputs = BTreeMap::new();
    let prepared = model.prepare(image.clone(), Some(text.clone()));
    prepared.forward(x.clone(), &times, &mut |name, x| {
        recorder.check_observed(name, x, DIFFUSION_BOUND);
        outputs.insert(name.to_owned(), x.clone());
    });
    let seen = Seen { time, conditions };
    inputs_of_blocks(recorder, &model, &outputs, &seen);
    let logits = model.forward(x.clone(), &times, image.clone(), Some(text));
    recorder.check("logits", logits, DIFFUSION_BOUND);
    if let Some(count) = recorder.count("no_text.logits") {
        let first = |x: Tensor<4>| x.narrow(0, 0, count);
        let logits = model.forward(x.narrow(0, 0, count), &times[..count], first(image), None);
        recorder.check("no_text.logits", logits, DIFFUSION_BOUND);
    }
    Ok(())
}

/// What blocks see besides the features.
struct Seen {
    time: Tensor<2>,
    conditions: Tensor<3>,
}

/// Compares the inputs and inner features of every block, given the outputs of all blocks.
fn inputs_of_blocks(
    recorder: &mut Recorder,
    model: &TokenDecoder,
    outputs: &BTreeMap<String, Tensor<4>>,
    seen: &Seen,
) {
    let blocks: Vec<_> = model.blocks().collect();
    let part = |name: &str, i: usize| name.split('.').nth(i).and_then(|part| part.parse().ok());
    let levels = blocks.iter().filter(|(name, _)| name.starts_with("down"));
    let levels: usize =
        levels.filter_map(|(name, _)| part(name, 1)).max().map_or(0, |n: usize| n + 1);
    let last_of = |level: usize| {
        let own = format!("down_blocks.{level}.");
        let last = blocks.iter().rev().find(|(name, _)| name.starts_with(&own));
        last.map(|(name, _)| outputs[name].clone())
    };
    let mut input = outputs["embedding"].clone();
    for (name, block) in &blocks {
        let act = |what: &str| format!("act/{name}{what}");
        recorder.check(&act(":in0"), channels_first(input.clone()), DIFFUSION_BOUND);
        let output = outputs[name].clone();
        match block {
            Block::Timestep(_) => recorder.check(&act(":in1"), seen.time.clone(), EXACT_BOUND),
            Block::Attention(attention) => {
                recorder.check(&act(":in1"), seen.conditions.clone(), DIFFUSION_BOUND);
                let queries = channels_first(layer_norm(input.clone()));
                recorder.check(&act(".attention:in0"), queries, DIFFUSION_BOUND);
                let keys = attention.kv_mapper.forward(silu(seen.conditions.clone()));
                recorder.check(&act(".attention:in1"), keys, DIFFUSION_BOUND);
                let attended = channels_first(output.clone() - input);
                recorder.check(&act(".attention:out"), attended, DIFFUSION_BOUND);
            }
            Block::Res(block) => {
                let mut z = input;
                if block.depthwise.is_paired()
                    && let Some(skip) = part(name, 1).and_then(|up| last_of(levels - 1 - up))
                {
                    recorder.check(&act(":in1"), channels_first(skip.clone()), DIFFUSION_BOUND);
                    z = Tensor::cat(vec![z, skip], 3);
                }
                let h = layer_norm(block.depthwise.forward(z, Padding::Zeros));
                let mlp = &block.channelwise;
                let h = gelu(mlp.expand.forward(h));
                recorder.check(&act(".channelwise.2:in0"), h.clone(), DIFFUSION_BOUND);
                let (gamma, beta) = (mlp.response_norm.gamma.val(), mlp.response_norm.beta.val());
                let h = global_response_norm(h, gamma, beta);
                recorder.check(&act(".channelwise.2:out"), h, DIFFUSION_BOUND);
            }
            Block::Downscale(_) | Block::Upscale(_) => {}
        }
        input = output;
    }
    recorder.check("act/clf:in0", channels_first(input), DIFFUSION_BOUND);
}

/// Stage A by tokens; its pictures are bytes.
pub(super) fn vqgan(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let (config, model) = files.load::<VqganConfig>(Part::V1_VQGAN, device)?;
    let pictures = recorder.pictures("picture_u8", device)?;
    let latents = model.encode(pictures, Statistics::Running);
    let scale = config.scale_factor;
    recorder.check("encode_latents", latents.clone() / scale, EXACT_BOUND);
    let quantized = model.quantize(latents);
    recorder.check("encode_quantised", quantized.latents / scale, EXACT_BOUND);
    recorder.check("encode_loss", quantized.loss, EXACT_BOUND);
    recorder.check_integers("encode_tokens", quantized.indices.clone());
    if let Some(count) = recorder.count("reconstruction") {
        let codes = model.look_up(quantized.indices.narrow(0, 0, count));
        recorder.check("reconstruction", model.decode(codes), EXACT_BOUND);
    }

    let codes = model.look_up(recorder.tokens("tokens", device)?);
    recorder.check("lookup", codes.clone(), EXACT_BOUND);
    let decoded = model.decode_observed(codes, &mut |name, x| {
        let first = recorder.count(&format!("act/{name}:out")).unwrap_or(1);
        recorder.check_observed(name, &x.clone().narrow(0, 0, first), EXACT_BOUND);
    });
    recorder.check("decoded", decoded, EXACT_BOUND);

    let soft: Tensor<4> = recorder.tensor("soft_probabilities", device)?;
    let [batch, labels, height, width] = soft.dims();
    let rows = soft.permute([0, 2, 3, 1]).reshape([batch * height * width, labels]);
    let mean = model.mean_codes(rows);
    // Channels last, as the rows are.
    recorder.check("soft_mean", mean.clone(), EXACT_BOUND);
    recorder.check_integers("soft_tokens", model.nearest(mean));
    Ok(())
}

/// The pictures of Stage A's goldens, `[B, 3, H, W]` in `[0, 1]`.
pub(super) fn pictures(stage_a: &Checkpoint, device: &Device) -> Result<Tensor<4>, VerifyError> {
    Recorder::new("stage_a", stage_a, 1.0).pictures("picture_u8", device)
}

/// Pictures as the compressor sees them, as large as goldens of the shape `[B, 3, H, W]`.
pub(super) fn prepared(pictures: Tensor<4>, shape: &[usize]) -> Tensor<4> {
    let [_, _, height, width] = *shape else { return pictures };
    prepare(pictures, [height, width])
}

/// The compressor, given the pictures of Stage A's goldens.
pub(super) fn compressor(
    recorder: &mut Recorder,
    files: &ModelFiles,
    pictures: Tensor<4>,
) -> Result<(), VerifyError> {
    let device = pictures.device();
    let (_, model) = files.load::<CompressorConfig>(Part::V1_COMPRESSOR, &device)?;
    let prepared = prepared(pictures, recorder.shape("preprocessed")?);
    recorder.check_first("preprocessed", prepared.clone(), EXACT_BOUND);
    let mut last = None;
    let latents = model.forward_observed(prepared, Statistics::Running, &mut |name, x| {
        let features = channels_first(x.clone());
        recorder.check_first(&format!("act/{name}:out"), features.clone(), DIFFUSION_BOUND);
        last = Some(features);
    });
    if let Some(features) = last {
        recorder.check_first("backbone", features, DIFFUSION_BOUND);
    }
    recorder.check_first("latents", latents.clone(), DIFFUSION_BOUND);
    // The scaling that later versions of the authors' code apply to these latents, and v1 must not.
    let PriorIndex { latent_mean, latent_std, .. } = PriorIndex::default();
    let scaled = (latents + latent_std) / latent_mean;
    recorder.check_first("latents_head", scaled, DIFFUSION_BOUND);
    Ok(())
}
