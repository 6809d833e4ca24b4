//! `wuerstchen cost`: multiply-adds of a picture and of a training sample, beside Stable Diffusion's.

mod stable_diffusion;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use wuerstchen::compressor::{BlockKind, CompressorConfig, StageConfig};
use wuerstchen::config::PerLevel;
use wuerstchen::decoder::LevelConfig;
use wuerstchen::text::TextEncoderConfig;
use wuerstchen::{DecoderConfig, PriorConfig, VqganConfig};
use wuerstchen_train::config::{StageBModel, TrainConfig};

use self::stable_diffusion::{StableDiffusion, VERSIONS};
use crate::terminal::visible;
use crate::train::read_valid_config;

/// Arguments of `wuerstchen cost`.
#[derive(Args)]
pub(crate) struct CostArgs {
    /// A training config whose models are counted [default: the published Würstchen v2]
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A model, and how it makes a picture.
struct Counted {
    name: String,
    side: usize,
    vqgan: VqganConfig,
    compressor: CompressorConfig,
    /// Side of the pictures that the compressor sees.
    compressor_side: usize,
    decoder: StageBModel,
    prior: PriorConfig,
    /// The text encoders of Stage B and of Stage C; the same one where Stage B denoises tokens.
    texts: [TextEncoderConfig; 2],
    tokens: usize,
    /// Whether the text encoders are trained; pretrained ones are not.
    texts_learn: bool,
    /// Whether Stage A's encoder is trained.
    encoder_learns: bool,
    /// Whether the compressor is trained.
    compressor_learns: bool,
    /// For Stage B and for Stage C: the number of steps, and of predictions for each step.
    steps: [[usize; 2]; 2],
}

/// Multiply-adds of a part of the work.
#[derive(Serialize)]
struct Line {
    model: String,
    /// `picture`, or the stage that is trained.
    work: &'static str,
    part: &'static str,
    multiply_adds: usize,
}

/// Products for each weight that is trained: one in the forward pass and two in the backward pass.
const TRAINED: usize = 3;

pub(crate) fn run(args: &CostArgs) -> Result<()> {
    let counted = match &args.config {
        Some(path) => of_config(&read_valid_config(path, &[])?)?,
        None => published(),
    };
    let mut lines = counted.lines();
    lines.extend(VERSIONS.into_iter().flat_map(of_stable_diffusion));
    if args.json {
        return crate::print(&serde_json::to_string(&lines)?);
    }
    crate::print(&text(&lines))
}

fn text(lines: &[Line]) -> String {
    let name = 2 + lines.iter().map(|line| line.model.chars().count()).max().unwrap_or(0);
    let mut rows = vec![format!("{:<name$}{:<22}{:<44}{:>14}", "model", "work", "part", "GMAC")];
    let row = |model: &str, work: &str, part: &str, multiply_adds: usize| {
        let (model, giga) = (visible(model), multiply_adds as f64 / 1e9);
        format!("{model:<name$}{work:<22}{part:<44}{giga:>14.4}")
    };
    for group in lines.chunk_by(|a, b| a.model == b.model && a.work == b.work) {
        let [first, ..] = group else { continue };
        for line in group {
            rows.push(row(&line.model, line.work, line.part, line.multiply_adds));
        }
        let sum = group.iter().map(|line| line.multiply_adds).sum();
        rows.push(row(&first.model, first.work, "all", sum));
    }
    let hours = VERSIONS.map(|version| format!("{} for {}", version.gpu_hours, version.name));
    rows.push(format!(
        "GPU hours of training as the paper states them (A100): 24602 for Stage C of Würstchen v2, 9200 for that of \
         v1, {}",
        hours.join(", ")
    ));
    rows.join("\n")
}

/// The sizes of warp-ai/wuerstchen and warp-ai/wuerstchen-prior, with the steps that diffusers takes.
fn published() -> Counted {
    let stage = |block, expand, channels, layers, stride| StageConfig {
        block,
        expand,
        channels,
        layers,
        stride,
        kernel: 3,
    };
    let (fused, inverted) = (BlockKind::Fused, BlockKind::Inverted);
    let letters = |letters: &str| LevelConfig::Letters(letters.to_owned());
    let text = |width: usize, layers: usize, heads: usize| TextEncoderConfig {
        hidden_size: width,
        intermediate_size: 4 * width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        max_position_embeddings: 77,
        vocab_size: 49_408,
        layer_norm_eps: 1e-5,
        hidden_act: "gelu".to_owned(),
    };
    Counted {
        name: "Würstchen v2".to_owned(),
        side: 1024,
        vqgan: VqganConfig {
            in_channels: 3,
            out_channels: 3,
            up_down_scale_factor: 2,
            levels: 2,
            bottleneck_blocks: 12,
            embed_dim: 384,
            latent_channels: 4,
            num_vq_embeddings: 8192,
            scale_factor: 0.3764,
        },
        compressor: CompressorConfig {
            c_latent: 16,
            stem: 24,
            stages: vec![
                stage(fused, 1, 24, 2, 1),
                stage(fused, 4, 48, 4, 2),
                stage(fused, 4, 64, 4, 2),
                stage(inverted, 4, 128, 6, 2),
                stage(inverted, 6, 160, 9, 1),
                stage(inverted, 6, 256, 15, 2),
            ],
            head: 1280,
            backbone_bn_eps: 1e-3,
            mapper_bn_eps: 1e-5,
            mapper_bn_affine: true,
        },
        compressor_side: 768,
        decoder: StageBModel::Latents(DecoderConfig {
            c_in: 4,
            c_out: 4,
            c_r: 64,
            patch_size: 2,
            c_cond: 1024,
            c_hidden: vec![320, 640, 1280, 1280],
            nhead: vec![-1, 10, 20, 20],
            blocks: vec![4, 4, 14, 4],
            level_config: vec![letters("CT"), letters("CTA"), letters("CTA"), letters("CTA")],
            inject_effnet: vec![false, true, true, true],
            effnet_embd: 16,
            clip_embd: 1024,
            kernel_size: 3,
            dropout: PerLevel::One(0.1),
        }),
        prior: PriorConfig {
            c_in: 16,
            c: 1536,
            c_cond: 1280,
            c_r: 64,
            depth: 32,
            nhead: 24,
            dropout: 0.1,
        },
        texts: [text(1024, 24, 16), text(1280, 32, 20)],
        tokens: 77,
        texts_learn: false,
        encoder_learns: true,
        compressor_learns: true,
        steps: [[12, 1], [29, 2]],
    }
}

fn of_config(config: &TrainConfig) -> Result<Counted> {
    let (model, defaults) = (&config.model, &config.defaults);
    // The embedding of the vocabulary takes no multiply-adds.
    let text = |size: wuerstchen_train::config::TextSize| size.encoder(1, model.max_tokens);
    let predictions = |guidance: f64| if guidance > 1.0 { 2 } else { 1 };
    Ok(Counted {
        name: config.name.clone(),
        side: config.image_size,
        vqgan: model.vqgan.clone(),
        compressor: model.compressor.clone(),
        compressor_side: config.compressor_side(),
        decoder: model.decoder.clone(),
        prior: model.prior.clone(),
        texts: [text(model.decoder_text), text(model.prior_text)],
        tokens: model.max_tokens,
        texts_learn: true,
        encoder_learns: !config.a.freeze_encoder,
        compressor_learns: !config.b.freeze_compressor,
        steps: [
            [defaults.decoder_steps, predictions(defaults.decoder_guidance_scale)],
            [defaults.prior_steps, predictions(defaults.prior_guidance_scale)],
        ],
    })
}

impl Counted {
    fn lines(&self) -> Vec<Line> {
        let latents = [self.side / self.vqgan.downscale(); 2];
        let embedding = [self.compressor_side / self.compressor.downscale(); 2];
        let decode = self.vqgan.decode_multiply_adds(latents);
        let encode = self.vqgan.encode_multiply_adds(latents);
        let compress = self.compressor.multiply_adds([self.compressor_side; 2]);
        let decoder = self.decoder.multiply_adds(latents, self.tokens, embedding[0] * embedding[1]);
        let prior = self.prior.multiply_adds(embedding, self.tokens);
        let [decoder_text, prior_text] = &self.texts;
        let [decoder_text, prior_text] =
            [decoder_text, prior_text].map(|text| text.multiply_adds());
        let [[decoder_steps, decoder_predictions], [prior_steps, prior_predictions]] = self.steps;
        let factor = |learns: bool| if learns { TRAINED } else { 1 };
        // One text encoder embeds once for both stages. Stage B trains it, and Stage C leaves it as it is.
        let is_shared = self.decoder.has_tokens();
        let line = |work, part, multiply_adds| Line {
            model: self.name.clone(),
            work,
            part,
            multiply_adds,
        };
        let has_embedding = self.decoder.takes_embedding();
        // Without an embedding nothing reads the compressor and Stage C.
        let [compress, prior, prior_text] =
            if has_embedding { [compress, prior, prior_text] } else { [0; 3] };
        let embed = if is_shared {
            decoder_text * decoder_predictions.max(prior_predictions)
        } else {
            decoder_text * decoder_predictions + prior_text * prior_predictions
        };
        let texts = if has_embedding && !is_shared {
            "text encoders, for each prediction of a step"
        } else {
            "text encoder, for each prediction of a step"
        };
        let encoder = if self.encoder_learns { "encoder, trained" } else { "encoder" };
        let compressor = if self.compressor_learns { "compressor, trained" } else { "compressor" };
        let mut lines = vec![
            line("picture", texts, embed),
            line("picture", "Stage C, all steps", prior * prior_steps * prior_predictions),
            line("picture", "Stage B, all steps", decoder * decoder_steps * decoder_predictions),
            line("picture", "Stage A, decoder", decode),
            line("sample of Stage A", encoder, factor(self.encoder_learns) * encode),
            line("sample of Stage A", "decoder, trained", TRAINED * decode),
            line("sample of Stage B", "Stage A's encoder", encode),
            line("sample of Stage B", "text encoder", factor(self.texts_learn) * decoder_text),
            line("sample of Stage B", compressor, factor(self.compressor_learns) * compress),
            line("sample of Stage B", "Stage B, trained", TRAINED * decoder),
            line("sample of Stage C", "compressor", compress),
            line(
                "sample of Stage C",
                "text encoder",
                factor(self.texts_learn && !is_shared) * prior_text,
            ),
            line("sample of Stage C", "Stage C, trained", TRAINED * prior),
        ];
        lines.retain(|line| has_embedding || line.multiply_adds > 0);
        lines
    }
}

/// Fifty guided steps, as diffusers takes by default.
fn of_stable_diffusion(version: StableDiffusion) -> Vec<Line> {
    const STEPS: usize = 50;
    let line = |work, part, multiply_adds| Line {
        model: version.name.to_owned(),
        work,
        part,
        multiply_adds,
    };
    vec![
        line("picture", "text encoder, twice", 2 * version.text()),
        line("picture", "U-Net, 50 guided steps", 2 * STEPS * version.unet()),
        line("picture", "autoencoder, decoder", version.decoder()),
        line("sample", "autoencoder, encoder", version.encoder()),
        line("sample", "text encoder", version.text()),
        line("sample", "U-Net, trained", TRAINED * version.unet()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torchvision states 8.366 G for EfficientNetV2-S at 384 pixels, with a classifier in place of the projection.
    #[test]
    fn the_compressor_counts_as_torchvision_does() {
        let found = published().compressor.multiply_adds([384; 2]) as f64;
        assert!((0.98..1.02).contains(&(found / 8.366e9)), "{found}");
    }

    /// Without an embedding there is neither a compressor nor Stage C.
    #[test]
    fn a_stage_b_without_an_embedding_is_alone() {
        let mut counted = published();
        let StageBModel::Latents(decoder) = &mut counted.decoder else {
            panic!("the published Stage B makes latents");
        };
        decoder.inject_effnet = vec![false; 4];
        let lines = counted.lines();
        let of = |word: &str| lines.iter().filter(|line| line.part.contains(word)).count();
        assert_eq!((of("Stage C"), of("compressor"), of("Stage B")), (0, 0, 2));
    }

    fn of_toml(config: &str) -> Vec<Line> {
        of_config(&TrainConfig::from_toml(config).unwrap()).unwrap().lines()
    }

    fn find(lines: &[Line], work: &str, part: &str) -> usize {
        let found = lines.iter().find(|line| line.work == work && line.part.starts_with(part));
        found.unwrap().multiply_adds
    }

    /// Würstchen v1 has one text encoder, which Stage B trains. Its guidance scales are 3 and 1.
    #[test]
    fn the_text_encoder_of_both_stages_counts_once() {
        let lines = of_toml(include_str!("../../configs/shapes-v1.toml"));
        let text = find(&lines, "sample of Stage C", "text encoder");
        assert_eq!(find(&lines, "picture", "text encoder"), 2 * text);
        assert_eq!(find(&lines, "sample of Stage B", "text encoder"), 3 * text);
    }

    #[test]
    fn frozen_parts_count_once() {
        let config = include_str!("../../configs/smoke.toml");
        let frozen = config.replacen("[a]", "[a]\nfreeze_encoder = true", 1);
        let frozen = frozen.replacen("[b]", "[b]\nfreeze_compressor = true", 1);
        let (lines, frozen) = (of_toml(config), of_toml(&frozen));
        for (work, part, factor) in [
            ("sample of Stage A", "encoder", 3),
            ("sample of Stage A", "decoder", 1),
            ("sample of Stage B", "compressor", 3),
            ("sample of Stage B", "Stage B", 1),
        ] {
            assert_eq!(find(&lines, work, part), factor * find(&frozen, work, part), "{part}");
        }
    }

    /// A picture and a sample of each stage have a sum of their own.
    #[test]
    fn every_part_is_counted_and_summed() {
        let lines = published().lines();
        assert!(lines.iter().all(|line| line.multiply_adds > 0));
        let printed = text(&lines);
        let sums: Vec<_> = printed.lines().filter(|line| line.contains(" all  ")).collect();
        assert_eq!(sums.len(), 4, "{printed}");
    }
}
