//! The values of a model for options that a caller leaves out.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::MAX_STEPS;
use crate::config::{ConfigError, between};
use crate::sampler::{Recipe, Sampler};
use crate::schedule::SHIFTS;
use crate::tokens::TokenSampling;

/// The values that a model takes for options that [`GenerateOptions`](super::GenerateOptions) leave out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Denoising steps of the prior (Stage C), at least 1.
    pub prior_steps: usize,
    /// Guidance scale of the prior; above 1 to guide.
    pub prior_guidance_scale: f64,
    /// Denoising steps of the decoder (Stage B), at least 1.
    pub decoder_steps: usize,
    /// Guidance scale of the decoder; above 1 to guide.
    pub decoder_guidance_scale: f64,
    /// The reverse-diffusion step.
    pub sampler: Sampler,
    /// How to sample.
    pub recipe: Recipe,
    /// Shift of the prior's noise schedule, from 0.01 to 100; 1 for none.
    pub prior_shift: f64,
    /// Shift of the decoder's noise schedule, from 0.01 to 100; 1 for none.
    pub decoder_shift: f64,
    /// How far to undo the wider spread that guidance gives to predictions, `[0, 1]`.
    pub guidance_rescale: f64,
    /// How tokens are sampled; `None` where Stage B denoises latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenDefaults>,
}

/// The values that a model whose Stage B denoises tokens takes for options that
/// [`GenerateOptions`](super::GenerateOptions) leave out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenDefaults {
    /// Temperature of the first step, at least 0.
    pub temperature: f64,
    /// Temperature of the last step, at least 0.
    pub temperature_end: f64,
    /// Guidance scale of the last step; `None` for that of the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_guidance_scale_end: Option<f64>,
    /// How tokens are chosen.
    pub token_sampling: TokenSampling,
}

impl Default for TokenDefaults {
    /// The values of the authors' notebook of Würstchen v1.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            temperature_end: 0.6,
            decoder_guidance_scale_end: None,
            token_sampling: TokenSampling::Multinomial,
        }
    }
}

impl Default for Defaults {
    /// The defaults of `WuerstchenCombinedPipeline` in diffusers.
    fn default() -> Self {
        Self {
            width: 512,
            height: 512,
            prior_steps: 60,
            prior_guidance_scale: 4.0,
            decoder_steps: 12,
            decoder_guidance_scale: 0.0,
            sampler: Sampler::Ddpm,
            recipe: Recipe::Diffusers,
            prior_shift: 1.0,
            decoder_shift: 1.0,
            guidance_rescale: 0.0,
            tokens: None,
        }
    }
}

/// Guidance scales and temperatures that a model may have as its defaults; larger ones end in infinite latents.
const SCALES: RangeInclusive<f64> = 0.0..=1e6;

impl Defaults {
    /// Checks every value but the sizes, which depend on the model.
    ///
    /// # Errors
    ///
    /// Names the first value that cannot be used and what was expected.
    pub fn validate(&self) -> Result<(), ConfigError> {
        const PART: &str = "defaults";
        for (field, steps) in
            [("prior_steps", self.prior_steps), ("decoder_steps", self.decoder_steps)]
        {
            between(PART, field, steps, 1..=MAX_STEPS)?;
        }
        between(PART, "prior_guidance_scale", self.prior_guidance_scale, SCALES)?;
        between(PART, "decoder_guidance_scale", self.decoder_guidance_scale, SCALES)?;
        between(PART, "prior_shift", self.prior_shift, SHIFTS)?;
        between(PART, "decoder_shift", self.decoder_shift, SHIFTS)?;
        between(PART, "guidance_rescale", self.guidance_rescale, 0.0..=1.0)?;
        let Some(tokens) = &self.tokens else { return Ok(()) };
        between(PART, "tokens.temperature", tokens.temperature, SCALES)?;
        between(PART, "tokens.temperature_end", tokens.temperature_end, SCALES)?;
        let scale_end = tokens.decoder_guidance_scale_end.unwrap_or_default();
        between(PART, "tokens.decoder_guidance_scale_end", scale_end, SCALES)
    }

    /// The defaults of `StableCascadePriorPipeline` and `StableCascadeDecoderPipeline` in diffusers.
    pub fn stable_cascade() -> Self {
        let size = 1024;
        Self { width: size, height: size, prior_steps: 20, decoder_steps: 10, ..Self::default() }
    }

    /// The values of the authors' notebook of Würstchen v1.
    pub fn wuerstchen_v1() -> Self {
        Self {
            prior_guidance_scale: 6.0,
            decoder_steps: 8,
            decoder_guidance_scale: 2.0,
            tokens: Some(TokenDefaults::default()),
            ..Self::default()
        }
    }

    /// Takes the values that the authors of Stable Cascade recommend.
    ///
    /// Source: `text_to_image.ipynb` in Stability-AI/StableCascade.
    pub(super) fn by_authors(self) -> Self {
        Self {
            recipe: Recipe::Authors,
            prior_guidance_scale: 4.0,
            decoder_guidance_scale: 1.1,
            prior_shift: 2.0,
            decoder_shift: 1.0,
            guidance_rescale: 0.7,
            ..self
        }
    }
}
