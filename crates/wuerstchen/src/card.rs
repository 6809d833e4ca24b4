//! What the files of a model say besides the sizes of its parts.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, between};
use crate::options::Defaults;

/// The values of `latent_mean`, the factor from Stage C's latents to image embeddings, that a model can have.
pub const LATENT_MEANS: RangeInclusive<f64> = 1e-6..=1e6;

/// Path of the [`ModelCard`] in the model's folder.
pub const CARD: &str = "wuerstchen.json";

/// The config in the folder of a training run.
pub const RUN_CONFIG: &str = "config.toml";

/// The folder of the model in that of a training run.
pub const RUN_MODEL: &str = "model";

/// The whole model in the folder of a run that trained Stage C further.
pub const TUNED_MODEL: &str = "model.safetensors";

/// The LoRA in the folder of a run that trained one, by the name that diffusers gives it.
pub const TUNED_LORA: &str = "pytorch_lora_weights.safetensors";

/// `wuerstchen.json`: what the model is and does by default. Folders of other programs have none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelCard {
    /// A name for people.
    pub name: String,
    /// Licence of the weights.
    pub licence: String,
    /// How the weights were made.
    pub provenance: String,
    /// The values of options that a caller leaves out.
    pub defaults: Defaults,
}

/// `wuerstchen-prior/model_index.json`: how Stage C's space and the pictures' sizes relate.
///
/// What the file does not say is as published: where diffusers saves both pipelines as one, it leaves these values out
/// and takes the same defaults.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PriorIndex {
    /// Factor from Stage C's latents to image embeddings.
    pub latent_mean: f64,
    /// Subtracted from the scaled latents.
    pub latent_std: f64,
    /// Pixels of the picture for every pixel of the image embedding.
    pub resolution_multiple: f64,
}

impl Default for PriorIndex {
    /// The values of `WuerstchenPriorPipeline` in diffusers.
    fn default() -> Self {
        Self { latent_mean: 42.0, latent_std: 1.0, resolution_multiple: 42.67 }
    }
}

impl PriorIndex {
    /// Checks every value.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        between("model_index", "resolution_multiple", self.resolution_multiple, 1.0..=1e4)?;
        // Stage C's latents are of about 1, and image embeddings are far below the limit of half precision.
        between("model_index", "latent_mean", self.latent_mean, LATENT_MEANS)?;
        between("model_index", "latent_std", self.latent_std, -1e6..=1e6)
    }
}

/// `wuerstchen/model_index.json`: how the embedding's size and the latents' relate; what the file does
/// not say is as published.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DecoderIndex {
    /// Latent pixels for every pixel of the image embedding.
    pub latent_dim_scale: f64,
}

impl DecoderIndex {
    /// Checks what the sizes of latents need.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        between("model_index", "latent_dim_scale", self.latent_dim_scale, 1e-3..=1e4)
    }
}

impl Default for DecoderIndex {
    /// The value of `WuerstchenDecoderPipeline` in diffusers.
    fn default() -> Self {
        Self { latent_dim_scale: 10.67 }
    }
}
