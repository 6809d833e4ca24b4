//! Recognises published weights by their tensors, and fills in what their files do not say.

use std::collections::BTreeMap;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bundle::{ModelFiles, layout};
use crate::checkpoint::Checkpoint;
use crate::decoder::{DecoderConfig, LevelConfig, LevelDropout};
use crate::pipeline::{DecoderIndex, PriorIndex};
use crate::prior::PriorConfig;
use crate::schedule::Schedule;
use crate::text::TextEncoderConfig;
use crate::vqgan::VqganConfig;
use crate::weights::{KeyTable, LoadError, check};

/// What a file of weights is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Stage C.
    Prior,
    /// Stage B.
    Decoder,
    /// Stage A.
    Vqgan,
    /// The semantic compressor.
    Compressor,
    /// A CLIP text encoder, of either stage.
    TextEncoder,
}

/// A tensor that only one kind of weights has.
const MARKS: [(&str, Kind); 5] = [
    ("cond_mapper.0.weight", Kind::Prior),
    ("clip_mapper.weight", Kind::Decoder),
    ("in_block.1.weight", Kind::Vqgan),
    ("mapper.0.weight", Kind::Compressor),
    ("text_model.embeddings.token_embedding.weight", Kind::TextEncoder),
];

/// Tells weights by their tensors; `None` for what is none of ours.
pub fn recognise(weights: &Checkpoint) -> Option<Kind> {
    MARKS.iter().find(|(name, _)| weights.shape(name).is_some()).map(|(_, kind)| *kind)
}

/// The folder of the part that a text encoder of this width belongs to; `None` where both or neither
/// of the stages fit.
pub fn text_part(files: &ModelFiles, weights: &Checkpoint) -> Option<&'static str> {
    let width = *weights.shape(MARKS[4].0)?.get(1)?;
    let takes = |part: &str, name: &str| {
        let weights = files.weights.get(part)?;
        weights.shape(name)?.get(1).copied()
    };
    let fits = [
        (layout::PRIOR_TEXT, takes(layout::PRIOR, MARKS[0].0)),
        (layout::DECODER_TEXT, takes(layout::DECODER, MARKS[1].0)),
    ];
    let mut fits = fits
        .into_iter()
        .filter(|(part, expected)| *expected == Some(width) && !files.weights.contains_key(*part));
    let first = fits.next()?.0;
    fits.next().is_none().then_some(first)
}

/// Channels of an attention head in all published models; weights do not tell it.
const HEAD_CHANNELS: usize = 64;

/// What the tensors of a checkpoint tell about sizes.
struct Sizes<'a>(&'a Checkpoint);

impl Sizes<'_> {
    fn dim(&self, name: &str, axis: usize) -> Option<usize> {
        self.0.shape(name)?.get(axis).copied()
    }

    fn has(&self, name: &str) -> bool {
        self.0.shape(name).is_some()
    }

    /// How many numbers from 0 make a name that exists.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&i| self.has(&name(i))).count()
    }

    fn prior(&self) -> Option<PriorConfig> {
        let c = self.dim("projection.weight", 0)?;
        Some(PriorConfig {
            c_in: self.dim("projection.weight", 1)?,
            c,
            c_cond: self.dim("cond_mapper.0.weight", 1)?,
            c_r: self.dim("blocks.1.mapper.weight", 1)?,
            depth: self.count(|i| format!("blocks.{}.depthwise.weight", 3 * i)),
            nhead: heads(c)?,
            dropout: 0.1,
        })
    }

    fn decoder(&self) -> Option<DecoderConfig> {
        let levels = self.count(|level| format!("down_blocks.{level}.1.mapper.weight")).max(
            self.count(|level| format!("down_blocks.{level}.{}.depthwise.weight", level.min(1))),
        );
        // Patches of 2x2 pixels are assumed: weights only tell channels times patch.
        let patch_size = 2;
        let c_in = self.dim("embedding.1.weight", 1)? / (patch_size * patch_size);
        let mut config = DecoderConfig {
            c_in,
            c_out: c_in,
            c_r: self.dim("down_blocks.0.1.mapper.weight", 1)?,
            patch_size,
            c_cond: self.dim("clip_mapper.weight", 0)?,
            c_hidden: Vec::new(),
            nhead: Vec::new(),
            blocks: Vec::new(),
            level_config: Vec::new(),
            inject_effnet: Vec::new(),
            effnet_embd: (0..levels)
                .find_map(|i| self.dim(&format!("effnet_mappers.{i}.weight"), 1))
                .unwrap_or(16),
            clip_embd: self.dim("clip_mapper.weight", 1)?,
            kernel_size: self.dim("down_blocks.0.0.depthwise.weight", 2)?,
            dropout: LevelDropout::One(0.1),
        };
        for level in 0..levels {
            let first = usize::from(level > 0);
            let block = |i: usize| format!("down_blocks.{level}.{}", first + i);
            let letter = |i: usize| {
                let has = |name: &str| self.has(&format!("{}.{name}", block(i)));
                match () {
                    () if has("depthwise.weight") => Some('C'),
                    () if has("mapper.weight") => Some('T'),
                    () if has("attention.to_q.weight") => Some('A'),
                    () => None,
                }
            };
            let letters: String = (0..).map_while(letter).collect();
            let unit = (1..=letters.len()).find(|&n| {
                letters.len().is_multiple_of(n) && letters[..n].repeat(letters.len() / n) == letters
            })?;
            let channels = self.dim(&format!("{}.depthwise.weight", block(0)), 0)?;
            config.c_hidden.push(channels);
            config.nhead.push(match letters.contains('A') {
                true => i64::try_from(heads(channels)?).ok()?,
                false => -1,
            });
            config.blocks.push(letters.len() / unit);
            config.level_config.push(LevelConfig::Letters(letters[..unit].to_owned()));
            config.inject_effnet.push(self.has(&format!("effnet_mappers.{level}.weight")));
        }
        Some(config)
    }

    fn vqgan(&self) -> Option<VqganConfig> {
        let embed_dim = self.dim("up_blocks.0.0.weight", 0)?;
        let width = self.dim("in_block.1.weight", 0)?;
        let colours = 3;
        let patch = (self.dim("in_block.1.weight", 1)? / colours).isqrt();
        let bottleneck = |i: usize| format!("up_blocks.{}.gammas", i + 1);
        Some(VqganConfig {
            in_channels: colours,
            out_channels: self.dim("out_block.0.weight", 0)?.checked_div(patch * patch)?,
            up_down_scale_factor: patch,
            levels: 1 + embed_dim.checked_div(width)?.checked_ilog2()? as usize,
            bottleneck_blocks: self.count(bottleneck),
            embed_dim,
            latent_channels: self.dim("up_blocks.0.0.weight", 1)?,
            num_vq_embeddings: self.dim("vquantizer.embedding.weight", 0)?,
            scale_factor: 0.3764,
        })
    }

    fn text_encoder(&self) -> Option<TextEncoderConfig> {
        let width = self.dim(MARKS[4].0, 1)?;
        let layer = |i: usize| format!("text_model.encoder.layers.{i}.mlp.fc1.weight");
        Some(TextEncoderConfig {
            hidden_size: width,
            intermediate_size: self.dim(&layer(0), 0)?,
            num_hidden_layers: self.count(layer),
            num_attention_heads: heads(width)?,
            max_position_embeddings: self
                .dim("text_model.embeddings.position_embedding.weight", 0)?,
            vocab_size: self.dim(MARKS[4].0, 0)?,
            layer_norm_eps: 1e-5,
            hidden_act: "gelu".to_owned(),
        })
    }
}

fn heads(channels: usize) -> Option<usize> {
    channels.is_multiple_of(HEAD_CHANNELS).then_some(channels / HEAD_CHANNELS)
}

/// Writes the configs that a model lacks: those of its parts from their weights, those of the
/// pipelines with the published constants. Returns the paths of the written files.
///
/// Source: `WuerstchenPriorPipeline` and `WuerstchenDecoderPipeline` in diffusers.
///
/// # Errors
///
/// The weights of a part do not tell its config.
pub fn complete(files: &mut ModelFiles) -> Result<Vec<String>, LoadError> {
    let mut written = Vec::new();
    let mut add = |texts: &mut BTreeMap<String, String>, path: String, value: Value| {
        if !texts.contains_key(&path) {
            texts.insert(path.clone(), value.to_string());
            written.push(path);
        }
    };
    for (part, weights) in &files.weights {
        let path = format!("{part}/config.json");
        // The compressor's config is read off its weights wherever it is needed.
        if part == layout::COMPRESSOR || files.texts.contains_key(&path) {
            continue;
        }
        let sizes = Sizes(weights);
        let config = match part.as_str() {
            layout::PRIOR => sizes.prior().map(|config| json!(config)),
            layout::DECODER => sizes.decoder().map(|config| json!(config)),
            layout::VQGAN => sizes.vqgan().map(|config| json!(config)),
            _ => sizes.text_encoder().map(|config| json!(config)),
        };
        let config = config.ok_or_else(|| LoadError::File {
            path: path.clone(),
            reason:
                "it is missing, and the weights do not tell the sizes of a published model; put \
                     the config beside them"
                    .to_owned(),
        })?;
        add(&mut files.texts, path, config);
    }
    let schedule = json!(Schedule::default());
    if files.weights.contains_key(layout::PRIOR) {
        let folder = layout::PRIOR_PIPELINE;
        add(&mut files.texts, format!("{folder}/model_index.json"), json!(PriorIndex::default()));
        let path = format!("{folder}/scheduler/scheduler_config.json");
        add(&mut files.texts, path, schedule.clone());
    }
    if files.weights.contains_key(layout::DECODER) {
        let folder = layout::DECODER_PIPELINE;
        add(&mut files.texts, format!("{folder}/model_index.json"), json!(DecoderIndex::default()));
        add(&mut files.texts, format!("{folder}/scheduler/scheduler_config.json"), schedule);
    }
    Ok(written)
}

/// Compares the names and shapes of all tensors of a part with its config, and reads no values.
///
/// # Errors
///
/// The config does not fit, or every missing, unexpected and misshapen tensor, all at once.
pub fn check_part(files: &ModelFiles, part: &str, device: &Device) -> Result<(), LoadError> {
    // Nothing is put on the device: parameters wait for their values.
    let weights = files.weights(part)?;
    let path = format!("{part}/config.json");
    match part {
        layout::PRIOR => {
            let config: PriorConfig = files.config(&path)?;
            config.validate()?;
            check(&config.init(device), weights, KeyTable::DIFFUSION)
        }
        layout::DECODER => {
            let config: DecoderConfig = files.config(&path)?;
            config.validate()?;
            check(&config.init(device), weights, KeyTable::DIFFUSION)
        }
        layout::VQGAN => {
            let config: VqganConfig = files.config(&path)?;
            config.validate()?;
            check(&config.init(device), weights, KeyTable::VQGAN)
        }
        layout::COMPRESSOR => {
            let config = files.compressor_config()?;
            check(&config.init(device), weights, KeyTable::COMPRESSOR)
        }
        _ => {
            let config: TextEncoderConfig = files.config(&path)?;
            config.validate()?;
            check(&config.init(device), weights, KeyTable::TEXT)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::tensors;

    /// A config that is read off the weights that it makes.
    #[test]
    fn published_configs_are_read_off_their_weights() {
        let device = Device::flex();
        let prior =
            PriorConfig { c_in: 16, c: 128, c_cond: 24, c_r: 8, depth: 2, nhead: 2, dropout: 0.1 };
        let weights = tensors(&prior.init(&device), KeyTable::DIFFUSION);
        let weights = Checkpoint::from_tensors("prior", weights);
        assert_eq!(recognise(&weights), Some(Kind::Prior));
        assert_eq!(Sizes(&weights).prior(), Some(prior));

        let level = |letters: &str| LevelConfig::Letters(letters.to_owned());
        let decoder = DecoderConfig {
            c_in: 4,
            c_out: 4,
            c_r: 8,
            patch_size: 2,
            c_cond: 12,
            c_hidden: vec![8, 64, 128],
            nhead: vec![-1, 1, 2],
            blocks: vec![1, 3, 2],
            level_config: vec![level("CT"), level("CTA"), level("CTA")],
            inject_effnet: vec![false, true, true],
            effnet_embd: 16,
            clip_embd: 20,
            kernel_size: 3,
            dropout: LevelDropout::One(0.1),
        };
        let weights = tensors(&decoder.init(&device), KeyTable::DIFFUSION);
        let weights = Checkpoint::from_tensors("decoder", weights);
        assert_eq!(recognise(&weights), Some(Kind::Decoder));
        assert_eq!(Sizes(&weights).decoder(), Some(decoder));

        let vqgan = VqganConfig {
            in_channels: 3,
            out_channels: 3,
            up_down_scale_factor: 2,
            levels: 2,
            bottleneck_blocks: 3,
            embed_dim: 16,
            latent_channels: 4,
            num_vq_embeddings: 32,
            scale_factor: 0.3764,
        };
        let weights = tensors(&vqgan.init(&device), KeyTable::VQGAN);
        let weights = Checkpoint::from_tensors("vqgan", weights);
        assert_eq!(recognise(&weights), Some(Kind::Vqgan));
        assert_eq!(Sizes(&weights).vqgan(), Some(vqgan));
    }

    #[test]
    fn a_config_that_weights_do_not_tell_is_asked_for() {
        let device = Device::flex();
        let prior =
            PriorConfig { c_in: 2, c: 4, c_cond: 3, c_r: 4, depth: 1, nhead: 2, dropout: 0.0 };
        let weights = tensors(&prior.init(&device), KeyTable::DIFFUSION);
        let mut files = ModelFiles::default();
        let weights = Checkpoint::from_tensors(layout::PRIOR, weights);
        files.weights.insert(layout::PRIOR.to_owned(), weights);
        let error = complete(&mut files).unwrap_err().to_string();
        assert!(error.starts_with("wuerstchen-prior/prior/config.json: it is missing"), "{error}");
        let config = serde_json::to_string(&prior).unwrap();
        files.texts.insert(format!("{}/config.json", layout::PRIOR), config);
        let written = complete(&mut files).unwrap();
        let scheduler = "wuerstchen-prior/scheduler/scheduler_config.json";
        assert_eq!(written, ["wuerstchen-prior/model_index.json", scheduler]);
        check_part(&files, layout::PRIOR, &device).unwrap();
    }
}
