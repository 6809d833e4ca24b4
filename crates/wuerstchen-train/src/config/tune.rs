//! The config of a fine-tuning of Stage C, one TOML file.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use wuerstchen::ConfigError;
use wuerstchen::config::between;
use wuerstchen::lora::MAX_RANK;
use wuerstchen::pipeline::MAX_SIDE;

use super::read::{ReadConfigError, read_fields};
use super::shards::ShardsConfig;
use super::stages::{UpdateConfig, is_false, unshifted};
use crate::lesson::Lesson;
use crate::limits::{folder_name, positive, share, time_shift};
use crate::optimizer::Method;

/// Names the config in errors.
const PART: &str = "fine-tuning";

/// The optimizer's values for fine-tuning where the file does not give them. The weights are good at the start, so the
/// warm-up is short, and the moving average is the weights themselves.
const OPTIMIZER: [(&str, i64); 4] =
    [("warmup_steps", 50), ("ema_start", 0), ("ema_every", 1), ("ema_beta", 0)];

/// A fine-tuning of a model's Stage C, whole or by a LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneConfig {
    /// Name of the run.
    pub name: String,
    /// Seed of everything random.
    pub seed: u64,
    /// The power of the machine while it trains, in watts, from which the report computes the energy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watts: Option<f64>,
    /// Where the pictures are.
    pub corpus: TuneCorpusConfig,
    /// How pictures become image embeddings.
    #[serde(default)]
    pub pictures: PicturesConfig,
    /// The LoRA; left out if all weights are trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// The updates.
    pub c: TuneUpdates,
    /// The pictures that show how far training is.
    #[serde(default)]
    pub samples: SamplesConfig,
}

/// The pictures that a model is fine-tuned on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneCorpusConfig {
    /// A folder of captioned pictures, relative to the current folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// `.tar` or Parquet shards of captioned pictures, in place of a folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<ShardsConfig>,
    /// The licence of the trained weights. It depends on the pictures, so only the user knows it.
    #[serde(default)]
    pub licence: String,
}

/// How pictures of any size become image embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PicturesConfig {
    /// Side in pixels of a square picture. The image embeddings of other pictures have at most as many cells. By
    /// default it is the side of the model's own pictures.
    pub image_size: Option<usize>,
    /// Largest ratio of the longer side to the shorter one. Longer pictures are cut at both ends. 1 makes all pictures
    /// square.
    pub max_aspect: f64,
    /// Number of cells of the image embedding by which the sides of buckets differ. By default it is a sixth of a
    /// square picture's side.
    pub bucket_step: Option<usize>,
}

impl Default for PicturesConfig {
    fn default() -> Self {
        Self { image_size: None, max_aspect: 2.0, bucket_step: None }
    }
}

/// Which layers a LoRA changes, and by how much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the two matrices of each layer, 1 to 4096.
    pub rank: usize,
    /// The number that, divided by the rank, scales the product of the two matrices: a ten-thousandth of the rank to
    /// ten thousand times the rank. By default it is the rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Patterns for the names of the linear layers that are changed. A pattern is a whole name, or its end from a dot
    /// on; `*` stands for any text. By default they fit the four projections of every attention block.
    pub modules: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let modules = ["to_q", "to_k", "to_v", "to_out.0"].map(|end| format!("attention.{end}"));
        Self { rank: 16, alpha: None, modules: modules.into() }
    }
}

impl LoraConfig {
    /// The number that, divided by the rank, scales the product of the two matrices.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(self.rank as f64)
    }

    /// Whether a layer is changed.
    pub fn changes(&self, layer: &str) -> bool {
        let ends = layer.match_indices('.').map(|(dot, _)| &layer[dot + 1..]);
        let names: Vec<_> = std::iter::once(layer).chain(ends).collect();
        self.modules.iter().any(|pattern| names.iter().any(|name| is_match(pattern, name)))
    }
}

impl fmt::Display for LoraConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} and alpha {} of {:?}", self.rank, self.alpha(), self.modules)
    }
}

/// Whether `text` fits a pattern in which `*` stands for any text.
pub fn is_match(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    let mut ends = text.char_indices().map(|(i, _)| i).chain([text.len()]);
    ends.any(|i| is_match(rest, &text[i..]))
}

/// The updates of a fine-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneUpdates {
    /// The number of updates, their batch size and the optimizer.
    #[serde(flatten)]
    pub updates: UpdateConfig,
    /// Probability that a sample's caption is dropped, for guidance.
    #[serde(default = "usual_caption_drop")]
    pub caption_drop: f64,
    /// Whether the loss is weighted by the p2 weights of Choi et al. (arXiv 2204.00227) with `k = 1`, as the
    /// published model was trained.
    #[serde(default = "is_weighted")]
    pub p2_weighting: bool,
    /// Shift of the random times: above 1, noisier times are drawn more often than the authors do (arXiv 2403.03206).
    #[serde(default = "unshifted")]
    pub time_shift: f32,
    /// `γ` of the min-SNR loss weights of Hang et al. (arXiv 2303.09556), in place of p2 weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_snr_gamma: Option<f64>,
    /// As [`StageCConfig::recompute`](super::StageCConfig).
    #[serde(default, skip_serializing_if = "is_false")]
    pub recompute: bool,
}

fn usual_caption_drop() -> f64 {
    0.05
}

fn is_weighted() -> bool {
    true
}

/// The pictures that show how far training is; each has its prompt and the run's seed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplesConfig {
    /// The prompts; by default the first captions of the corpus.
    pub prompts: Vec<String>,
    /// Width in pixels; by default the model's.
    pub width: Option<usize>,
    /// Height in pixels; by default the model's.
    pub height: Option<usize>,
    /// Steps of Stage C; by default the model's.
    pub prior_steps: Option<usize>,
}

impl TuneConfig {
    /// Reads a config. [`Self::validate`] checks its values.
    ///
    /// # Errors
    ///
    /// The text is not TOML, or fields are missing, unknown or of other types.
    pub fn from_toml(text: &str) -> Result<Self, ReadConfigError> {
        Self::from_table(text.parse()?)
    }

    /// As [`Self::from_toml`], for a text that is parsed already.
    ///
    /// # Errors
    ///
    /// Fields are missing, unknown or of other types.
    pub fn from_table(mut table: Table) -> Result<Self, ReadConfigError> {
        if let Some(Value::Table(updates)) = table.get_mut("c") {
            let optimizer = updates.entry("optimizer").or_insert(Table::new().into());
            if let Value::Table(optimizer) = optimizer {
                for (field, value) in OPTIMIZER {
                    optimizer.entry(field).or_insert(value.into());
                }
            }
        }
        Ok(read_fields(table)?)
    }

    /// The config as TOML.
    ///
    /// # Errors
    ///
    /// A number is larger than TOML's, whose largest is 2⁶³ − 1.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// Checks every value that can be checked without the model.
    ///
    /// # Errors
    ///
    /// Names the first field that cannot be used and what it needs.
    pub fn validate(&self) -> Result<(), ConfigError> {
        folder_name(PART, &self.name)?;
        self.watts.map_or(Ok(()), |watts| positive(PART, "watts", watts))?;
        let TuneCorpusConfig { folder, shards, .. } = &self.corpus;
        if folder.is_some() == shards.is_some() {
            let found = if folder.is_some() { "both" } else { "neither" };
            return Err(ConfigError::new(PART, "corpus", "a folder or shards", found));
        }
        shards.as_ref().map_or(Ok(()), ShardsConfig::validate)?;
        self.c.updates.validate(PART)?;
        if self.c.updates.lesson != Lesson::default() {
            return Err(ConfigError::new(PART, "lesson", "left out", "a lesson"));
        }
        share(PART, "caption_drop", self.c.caption_drop)?;
        time_shift(PART, self.c.time_shift)?;
        if let Some(gamma) = self.c.min_snr_gamma {
            positive(PART, "min_snr_gamma", gamma)?;
        }
        let PicturesConfig { image_size, max_aspect, bucket_step } = self.pictures;
        if let Some(size) = image_size.filter(|size| !(1..=MAX_SIDE).contains(size)) {
            let expected = format!("between 1 and {MAX_SIDE}");
            return Err(ConfigError::new(PART, "image_size", expected, size));
        }
        if !(1.0..=16.0).contains(&max_aspect) {
            return Err(ConfigError::new(PART, "max_aspect", "between 1 and 16", max_aspect));
        }
        if bucket_step == Some(0) {
            return Err(ConfigError::new(PART, "bucket_step", "at least 1", 0));
        }
        if self.lora.is_some() && self.c.updates.optimizer.method == Method::Muon {
            let expected =
                "adamw or adafactor: muon is for whole matrices, and a LoRA's are of low rank";
            return Err(ConfigError::new(PART, "method", expected, "muon"));
        }
        self.lora.as_ref().map_or(Ok(()), LoraConfig::validate)
    }
}

impl LoraConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_RANK).contains(&self.rank) {
            let expected = format!("from 1 to {MAX_RANK}");
            return Err(ConfigError::new("lora", "rank", expected, self.rank));
        }
        if self.modules.is_empty() {
            return Err(ConfigError::new("lora", "modules", "at least one pattern", "none"));
        }
        // Outside of this, a change is lost in the model's weights, or they in it.
        let rank = self.rank as f64;
        let range = rank / 1e4..=rank * 1e4;
        self.alpha.map_or(Ok(()), |alpha| between("lora", "alpha", alpha, range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LORA: &str = include_str!("../../../../configs/lora.toml");

    #[test]
    fn the_released_config_is_valid_and_comes_back() {
        let config = TuneConfig::from_toml(LORA).unwrap();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(TuneConfig::from_toml(&config.to_toml().unwrap()).unwrap(), config);
        let optimizer = &config.c.updates.optimizer;
        assert_eq!((optimizer.ema_every, optimizer.ema_beta, optimizer.ema_start), (1, 0.0, 0));
    }

    #[test]
    fn values_that_cannot_be_used_are_named() {
        type Change = fn(&mut TuneConfig);
        let changes: [(Change, &str); 11] = [
            (|config| config.name = "a/b".into(), "name must be the name of a folder"),
            (|config| config.name = "..".into(), "name must be the name of a folder"),
            (|config| config.lora.get_or_insert_default().rank = 0, "rank must be from 1 to 4096"),
            (|config| config.lora.get_or_insert_default().modules.clear(), "modules must be"),
            (|config| config.lora.get_or_insert_default().alpha = Some(0.0), "alpha must be"),
            (|config| config.lora.get_or_insert_default().alpha = Some(1e30), "alpha must be"),
            (|config| config.pictures.max_aspect = 0.5, "max_aspect must be between 1 and 16"),
            (|config| config.pictures.bucket_step = Some(0), "bucket_step must be at least 1"),
            (|config| config.c.caption_drop = 1.5, "caption_drop must be a share"),
            (|config| config.c.updates.optimizer.method = Method::Muon, "method must be adamw"),
            (
                |config| {
                    let optimizer = &mut config.c.updates.optimizer;
                    (optimizer.method, optimizer.beta2) = (Method::Adafactor, 0.99);
                },
                "beta2 must be left out with adafactor",
            ),
        ];
        for (change, expected) in changes {
            let mut config = TuneConfig::from_toml(LORA).unwrap();
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn patterns_name_whole_layers_or_their_ends() {
        let config = |pattern: &str| LoraConfig {
            modules: vec![pattern.to_owned()],
            ..LoraConfig::default()
        };
        let layer = "blocks.2.attention.to_out.0";
        for pattern in [layer, "to_out.0", "attention.*", "*", "blocks.*.to_out.0", "2.*0"] {
            assert!(config(pattern).changes(layer), "{pattern}");
        }
        for pattern in ["to_out", "o_out.0", "blocks.3.*", "*to_q", ""] {
            assert!(!config(pattern).changes(layer), "{pattern}");
        }
        assert!(LoraConfig::default().changes(layer));
        assert!(!LoraConfig::default().changes("blocks.0.channelwise.0"));
    }
}
