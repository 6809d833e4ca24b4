//! Options with every gap filled.

use serde::Serialize;

use super::error::OptionsError;
use super::{MAX_PIXELS_AT_ONCE, PromptSyntax};
use crate::sampler::{Recipe, Sampler};
use crate::tokens::TokenSampling;

/// The default of `strength`, as in diffusers.
const STRENGTH: f64 = 0.8;

/// Options with every gap filled and every value checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// What the picture should not show.
    pub negative_prompt: String,
    /// Seed of all noise.
    pub seed: u64,
    /// Number of pictures, at least 1.
    pub count: usize,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Times that the prior visits, falling from at most 1 to 0; one more than its steps.
    pub prior_timesteps: Vec<f32>,
    /// Guidance scale of the prior; above 1 to guide.
    pub prior_guidance_scale: f64,
    /// Times that the decoder visits, falling from 1 to 0; one more than its steps.
    pub decoder_timesteps: Vec<f32>,
    /// Guidance scale of the decoder; above 1 to guide.
    pub decoder_guidance_scale: f64,
    /// How tokens are sampled; `None` where Stage B denoises latents.
    #[serde(flatten)]
    pub tokens: Option<TokenSettings>,
    /// The reverse-diffusion step.
    pub sampler: Sampler,
    /// How to sample.
    #[serde(skip_serializing_if = "is_default")]
    pub recipe: Recipe,
    /// Shift of the prior's noise schedule, from 0.01 to 100; 1 for none.
    #[serde(skip_serializing_if = "is_one")]
    pub prior_shift: f64,
    /// Shift of the decoder's noise schedule, from 0.01 to 100; 1 for none.
    #[serde(skip_serializing_if = "is_one")]
    pub decoder_shift: f64,
    /// How far to undo the wider spread that guidance gives to predictions, `[0, 1]`.
    #[serde(skip_serializing_if = "is_zero")]
    pub guidance_rescale: f64,
    /// How much to change the source picture, `[0, 1]`; `None` if the caller gave no strength.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Factor of what the ControlNet adds to Stage C's features, at least 0.
    #[serde(skip_serializing_if = "is_one")]
    pub control_scale: f64,
    /// What brackets in prompts mean.
    pub prompt_syntax: PromptSyntax,
    /// Rows of latents that Stage A decodes at a time, 0 for all rows; `None` if the picture's size decides.
    #[serde(skip)]
    pub vqgan_rows: Option<usize>,
}

/// How tokens are sampled, with every gap filled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenSettings {
    /// Guidance scale of the last step.
    pub decoder_guidance_scale_end: f64,
    /// Temperature of the first step, at least 0.
    pub temperature: f64,
    /// Temperature of the last step, at least 0.
    pub temperature_end: f64,
    /// After how many steps tokens are noised again.
    pub renoise_steps: usize,
    /// How tokens are chosen.
    pub token_sampling: TokenSampling,
}

fn is_default(recipe: &Recipe) -> bool {
    *recipe == Recipe::default()
}

fn is_one(value: &f64) -> bool {
    *value == 1.0
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// The most pictures of a width and height in pixels that are made at once.
pub fn most_at_once([width, height]: [usize; 2]) -> usize {
    MAX_PIXELS_AT_ONCE / width.saturating_mul(height).max(1)
}

impl Settings {
    /// The most pictures of this size that are made at once.
    pub fn most_at_once(&self) -> usize {
        most_at_once([self.width, self.height])
    }

    /// Fails where more pixels are to be made at once than fit in memory.
    ///
    /// # Errors
    ///
    /// Names the largest count of this size, or the size if it is too large for one picture.
    pub fn check_pixels(&self) -> Result<(), OptionsError> {
        let (&Self { width, height, count: found, .. }, most) = (self, self.most_at_once());
        if found <= most {
            Ok(())
        } else if most == 0 {
            Err(OptionsError::Area { width, height })
        } else {
            Err(OptionsError::Pixels { width, height, most, found })
        }
    }

    /// How much to change the source picture; the default depends on whether a mask keeps a part of it. Sampling begins
    /// at the first timestep at most.
    pub fn strength(&self, masked: bool) -> f64 {
        let most = f64::from(self.prior_timesteps[0]);
        self.strength.unwrap_or(if masked { 1.0 } else { STRENGTH }).min(most)
    }
}
