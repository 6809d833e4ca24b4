//! The config of a corpus of shards.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wuerstchen::ConfigError;

use crate::limits::not_negative;

/// Pictures in `.tar` shards, as a `WebDataset` has them, or in Parquet shards, as img2dataset writes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShardsConfig {
    /// The files, relative to the current folder. `*` in a file's name stands for any text, and `{000..012}` for
    /// every number between.
    pub paths: Vec<String>,
    /// Number of samples in a window that is shuffled. An epoch reads the shards in a random order, each from its
    /// start to its end, and shuffles one window after the other. 1 keeps the order of a shard.
    pub shuffle: usize,
    /// Whether a picture that cannot be read, or a shard that is cut off, ends the run; otherwise it is left out and
    /// listed.
    pub strict: bool,
    /// Which samples are taken.
    pub filter: FilterConfig,
    /// The fields with captions, and how often each is chosen relative to the others. A field is the end of a file's
    /// name, such as `txt`, or a field of the `.json` file; capitals do not matter. By default it is the first of
    /// `captions`, `txt`, `caption`, `text`, `prompt` and `cap` that a sample has.
    pub captions: BTreeMap<String, f64>,
}

/// Bounds on the fields of a sample's `.json` file, by the names of img2dataset and the LAION sets. A sample that
/// lacks a field with a bound is left out. Capitals in the names do not matter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilterConfig {
    /// Least `width` or `original_width`, in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_width: Option<usize>,
    /// Least `height` or `original_height`, in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_height: Option<usize>,
    /// Least `aesthetic`, `aesthetic_score` or `aesthetic_score_laion_v2`. The authors took 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_aesthetic: Option<f64>,
    /// Largest `pwatermark`, `p_watermark` or `watermark_prob`. The authors took 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_watermark: Option<f64>,
    /// Largest `punsafe`, `p_unsafe` or `NSFW_prob`. The authors took 0.99.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unsafe: Option<f64>,
}

impl Default for ShardsConfig {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            shuffle: 10_000,
            strict: false,
            filter: FilterConfig::default(),
            captions: BTreeMap::new(),
        }
    }
}

impl ShardsConfig {
    /// Checks every value.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        const PART: &str = "shards";
        if self.paths.is_empty() {
            return Err(ConfigError::new(
                PART,
                "paths",
                "at least one tar or Parquet file",
                "none",
            ));
        }
        if self.shuffle == 0 {
            return Err(ConfigError::new(PART, "shuffle", "at least 1", 0));
        }
        let FilterConfig { min_aesthetic, max_watermark, max_unsafe, .. } = self.filter;
        let bounds = [
            ("filter.min_aesthetic", min_aesthetic),
            ("filter.max_watermark", max_watermark),
            ("filter.max_unsafe", max_unsafe),
        ];
        for (field, bound) in bounds {
            // NaN and infinite bounds would let all or no samples pass. A config that wants no bound leaves it out.
            if let Some(bound) = bound.filter(|bound| !bound.is_finite()) {
                return Err(ConfigError::new(PART, field, "a finite number, or left out", bound));
            }
        }
        for share in self.captions.values() {
            not_negative(PART, "captions", *share)?;
        }
        if !self.captions.is_empty() && self.captions.values().sum::<f64>() == 0.0 {
            return Err(ConfigError::new(PART, "captions", "a share above 0", "0 for all"));
        }
        Ok(())
    }
}
