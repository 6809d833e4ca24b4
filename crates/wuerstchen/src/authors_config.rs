//! A config beside the authors' files of Würstchen v1: the sizes of all parts in one JSON file.
//!
//! The files themselves hold weights alone. The fields are the arguments of the authors' classes.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::compressor::{BlockKind, CompressorConfig, StageConfig};
use crate::error::LoadError;
use crate::json::reason;
use crate::part::{Part, PartConfig};
use crate::prior::PriorConfig;
use crate::token_decoder::TokenDecoderConfig;
use crate::vqgan::VqganConfig;

/// `VQModel`.
#[derive(Deserialize)]
struct StageA {
    levels: usize,
    bottleneck_blocks: usize,
    c_hidden: usize,
    c_latent: usize,
    codebook_size: usize,
    #[serde(default = "published_scale")]
    scale_factor: f64,
}

fn published_scale() -> f64 {
    0.3764
}

/// The compressor, a backbone of torchvision.
#[derive(Deserialize)]
struct Effnet {
    c_latent: usize,
    /// Kind, factor of the inner channels, side of the kernels, stride, channels in and out, layers.
    stages: Vec<(String, usize, usize, usize, usize, usize, usize)>,
    #[serde(default = "published_head")]
    last_channels: usize,
    #[serde(default = "published_backbone_epsilon")]
    backbone_bn_eps: f64,
    #[serde(default = "published_mapper_epsilon")]
    mapper_bn_eps: f64,
}

fn published_head() -> usize {
    1280
}

fn published_backbone_epsilon() -> f64 {
    1e-3
}

fn published_mapper_epsilon() -> f64 {
    1e-5
}

/// The name of a part in the file; `None` for a part that the file does not describe.
fn key(part: Part) -> Option<&'static str> {
    let names = [
        (Part::V1_VQGAN, "stage_a"),
        (Part::V1_DECODER, "stage_b"),
        (Part::V1_PRIOR, "stage_c"),
        (Part::V1_COMPRESSOR, "effnet"),
    ];
    names.into_iter().find(|(own, _)| *own == part).map(|(_, name)| name)
}

/// Whether a text is a config of parts of Würstchen v1.
pub fn is_one(text: &str) -> bool {
    let fields: Option<Map<String, Value>> = serde_json::from_str(text).ok();
    let names = ["stage_a", "stage_b", "stage_c"];
    fields.is_some_and(|fields| {
        // Where it is a text, it is the name of a compressor's backbone in the config of that compressor.
        let has_compressor = fields.get("effnet").is_some_and(Value::is_object);
        has_compressor || names.iter().any(|name| fields.contains_key(*name))
    })
}

/// The config of a part as its own file would have it; `None` where the text says nothing about the part.
///
/// # Errors
///
/// The text is not JSON, or a field of the part is missing or does not fit.
pub fn of_part(text: &str, part: Part) -> Result<Option<String>, LoadError> {
    let fail = |name: &str, reason: String| LoadError::File {
        path: format!("config.json of all stages, {name}"),
        reason,
    };
    let fields: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| fail("top level", reason(text, &error)))?;
    let Some((name, section)) = key(part).and_then(|name| Some((name, fields.get(name)?))) else {
        return Ok(None);
    };
    let converted = match name {
        "stage_a" => stage_a(section),
        "stage_b" => TokenDecoderConfig::deserialize(section).map(|config| config.to_json()),
        "stage_c" => PriorConfig::deserialize(section).map(|config| config.to_json()),
        _ => effnet(section),
    };
    let mut config = converted.map_err(|error| fail(name, error.to_string()))?;
    config.insert("_class_name".to_owned(), part.class().into());
    Ok(Some(Value::from(config).to_string()))
}

fn stage_a(section: &Value) -> serde_json::Result<Map<String, Value>> {
    let a = StageA::deserialize(section)?;
    let config = VqganConfig {
        in_channels: 3,
        out_channels: 3,
        up_down_scale_factor: 2,
        levels: a.levels,
        bottleneck_blocks: a.bottleneck_blocks,
        embed_dim: a.c_hidden,
        latent_channels: a.c_latent,
        num_vq_embeddings: a.codebook_size,
        scale_factor: a.scale_factor,
    };
    Ok(config.to_json())
}

fn effnet(section: &Value) -> serde_json::Result<Map<String, Value>> {
    use serde::de::Error;
    let effnet = Effnet::deserialize(section)?;
    let stem = effnet.stages.first().map_or(0, |(_, _, _, _, input, ..)| *input);
    let stage =
        |(kind, expand, kernel, stride, _, channels, layers): (String, _, _, _, _, _, _)| {
            let block = match &*kind {
                "F" => BlockKind::Fused,
                "M" => BlockKind::Inverted,
                other => {
                    return Err(Error::custom(format!("expected a stage F or M, got {other:?}")));
                }
            };
            Ok(StageConfig { block, expand, channels, layers, stride, kernel })
        };
    let config = CompressorConfig {
        c_latent: effnet.c_latent,
        stem,
        stages: effnet.stages.into_iter().map(stage).collect::<serde_json::Result<_>>()?,
        head: effnet.last_channels,
        backbone_bn_eps: effnet.backbone_bn_eps,
        mapper_bn_eps: effnet.mapper_bn_eps,
        mapper_bn_affine: true,
    };
    Ok(config.to_json())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{
        "stage_a": {"levels": 2, "bottleneck_blocks": 2, "c_hidden": 16, "c_latent": 3,
            "codebook_size": 48, "scale_factor": 0.5},
        "stage_b": {},
        "effnet": {"c_latent": 4, "stages": [["F", 1, 3, 1, 8, 9, 2], ["M", 6, 5, 2, 9, 10, 1]]}
    }"#;

    #[test]
    fn sections_become_configs_of_parts() {
        assert!(is_one(TEXT) && !is_one("{}") && !is_one("["));
        // The name of a compressor's backbone.
        assert!(!is_one(r#"{"effnet": "tiny", "backbone_bn_eps": 0.2}"#));
        let of = |part| of_part(TEXT, part).unwrap().unwrap();
        let vqgan: VqganConfig = serde_json::from_str(&of(Part::V1_VQGAN)).unwrap();
        assert_eq!((vqgan.embed_dim, vqgan.latent_channels, vqgan.scale_factor), (16, 3, 0.5));
        let compressor: CompressorConfig = serde_json::from_str(&of(Part::V1_COMPRESSOR)).unwrap();
        let stage = &compressor.stages[1];
        assert_eq!((compressor.stem, compressor.head), (8, 1280));
        assert_eq!((stage.block, stage.kernel, stage.channels), (BlockKind::Inverted, 5, 10));
        assert_eq!(of_part(TEXT, Part::V1_PRIOR).unwrap(), None);
        assert_eq!(of_part(TEXT, Part::VQGAN).unwrap(), None);
        let error = of_part(TEXT, Part::V1_DECODER).unwrap_err().to_string();
        assert!(error.contains("stage_b") && error.contains("missing field `c_in`"), "{error}");
    }
}
