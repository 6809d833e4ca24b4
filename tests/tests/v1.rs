//! Würstchen v1 in its published size; no values of the weights are made.

use burn::prelude::*;
use serde_json::json;
use wuerstchen::weights::shapes;
use wuerstchen::{CompressorConfig, PartConfig, PriorConfig, TokenDecoderConfig};

fn parameters<C: PartConfig>(config: &C) -> usize {
    config.validate().unwrap();
    let shapes = shapes(&config.init(&Device::flex()), C::KEYS);
    let learnt = shapes.iter().filter(|(name, _)| !name.contains(".running_"));
    learnt.map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// The counts are those of the authors' classes with the published arguments.
#[test]
fn the_published_models_have_their_sizes() {
    let decoder: TokenDecoderConfig = serde_json::from_value(json!({
        "c_in": 256, "c_out": 256, "num_labels": 8192, "c_r": 64, "patch_size": 2, "c_cond": 1024,
        "c_hidden": [640, 1280, 1280], "nhead": [-1, 16, 16], "blocks": [4, 12, 4],
        "level_config": ["CT", "CTA", "CTA"], "effnet_embd": 16, "byt5_embd": 1024,
        "kernel_size": 3, "dropout": 0.1,
    }))
    .unwrap();
    assert_eq!(parameters(&decoder), 730_814_336);
    let prior = PriorConfig {
        c_in: 16,
        c: 1536,
        c_cond: 1024,
        c_r: 64,
        depth: 32,
        nhead: 24,
        dropout: 0.1,
    };
    assert_eq!(parameters(&prior), 993_243_680);
    let stage = |block: &str, expand: usize, channels: usize, layers: usize, stride: usize| {
        json!({
            "block": block, "expand": expand, "channels": channels, "layers": layers,
            "stride": stride
        })
    };
    let compressor: CompressorConfig = serde_json::from_value(json!({
        "c_latent": 16, "stem": 32, "head": 1280,
        "stages": [
            stage("fused", 1, 32, 4, 1), stage("fused", 4, 64, 7, 2), stage("fused", 4, 96, 7, 2),
            stage("inverted", 4, 192, 10, 2), stage("inverted", 6, 224, 19, 1),
            stage("inverted", 6, 384, 25, 2), stage("inverted", 6, 640, 7, 1),
        ],
    }))
    .unwrap();
    assert_eq!(parameters(&compressor), 117_254_784);
    // 512 pixels: 128 x 128 tokens, 144 cells of the embedding and 77 tokens of text.
    let counted = decoder.multiply_adds([128, 128], 144 + 77) as f64 / 1e9;
    assert!((counted - 794.5).abs() < 1.0, "{counted}");
}
