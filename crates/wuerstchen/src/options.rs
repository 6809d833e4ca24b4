//! What a caller may choose about a picture besides the prompt.

mod defaults;
mod error;
mod settings;

use serde::{Deserialize, Serialize};

pub use self::defaults::{Defaults, TokenDefaults};
pub use self::error::OptionsError;
pub use self::settings::{Settings, TokenSettings, most_at_once};
use crate::sampler::{Recipe, Sampler};
use crate::schedule::SHIFTS;
use crate::tokens::TokenSampling;

/// Everything a caller may choose about the pictures of one prompt.
///
/// The command line, the JSON of JavaScript callers and the pipeline all use this one type. For a new option, the
/// compiler and the tests also ask for its value in [`Settings`] and its TypeScript types (`web/js/types.ts`,
/// `web/js/options.ts`). An option that is left out takes the model's own default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "clap", derive(clap::Args))]
pub struct GenerateOptions {
    /// What the picture should not show
    #[cfg_attr(feature = "clap", arg(short, long, default_value = ""))]
    pub negative_prompt: String,
    /// Seed of all noise: one seed gives one picture on every device
    #[cfg_attr(feature = "clap", arg(short, long, default_value_t = 0))]
    pub seed: u64,
    /// How many pictures, 256 at most; picture k is the same whatever the count [default: 1]
    #[cfg_attr(feature = "clap", arg(long))]
    pub count: Option<usize>,
    /// Width in pixels
    #[cfg_attr(feature = "clap", arg(short = 'W', long))]
    pub width: Option<usize>,
    /// Height in pixels
    #[cfg_attr(feature = "clap", arg(short = 'H', long))]
    pub height: Option<usize>,
    /// Denoising steps of the prior (Stage C)
    #[cfg_attr(feature = "clap", arg(long))]
    pub prior_steps: Option<usize>,
    /// Guidance scale of the prior; 1 or less turns guidance off
    #[cfg_attr(feature = "clap", arg(long))]
    pub prior_guidance_scale: Option<f64>,
    /// Times that the prior visits, separated by commas and falling from at most 1 to 0, instead of evenly
    /// spaced steps
    #[cfg_attr(feature = "clap", arg(long, value_delimiter = ',', conflicts_with = "prior_steps"))]
    pub timesteps: Option<Vec<f32>>,
    /// Denoising steps of the decoder (Stage B)
    #[cfg_attr(feature = "clap", arg(long))]
    pub decoder_steps: Option<usize>,
    /// Guidance scale of the decoder; 1 or less turns guidance off
    #[cfg_attr(feature = "clap", arg(long))]
    pub decoder_guidance_scale: Option<f64>,
    /// Guidance scale of the decoder's last step, to which the scale moves evenly, where Stage B denoises
    /// tokens [default: the model's, or the first step's scale if that is given or the model has none]
    #[cfg_attr(feature = "clap", arg(long))]
    pub decoder_guidance_scale_end: Option<f64>,
    /// Temperature of the decoder's first step, where Stage B denoises tokens: what the logits are divided
    /// by; at 0, the likeliest tokens are taken
    #[cfg_attr(feature = "clap", arg(long))]
    pub temperature: Option<f64>,
    /// Temperature of the decoder's last step, to which the temperature moves evenly [default: the model's,
    /// but at most that of the first step]
    #[cfg_attr(feature = "clap", arg(long))]
    pub temperature_end: Option<f64>,
    /// Number of the decoder's steps after which tokens are noised again, if it denoises tokens; at most, and by
    /// default, all but the last
    #[cfg_attr(feature = "clap", arg(long))]
    pub renoise_steps: Option<usize>,
    /// How tokens are chosen, where Stage B denoises tokens
    #[cfg_attr(feature = "clap", arg(long))]
    pub token_sampling: Option<TokenSampling>,
    /// The reverse-diffusion step
    #[cfg_attr(feature = "clap", arg(long))]
    pub sampler: Option<Sampler>,
    /// How to sample: as diffusers does, or as Stable Cascade's authors do, with their shifts, guidance
    /// scales and rescaling
    #[cfg_attr(feature = "clap", arg(long))]
    pub recipe: Option<Recipe>,
    /// Shift of the prior's noise schedule, whose square divides all signal-to-noise ratios: above 1, more
    /// steps are taken where there is much noise
    #[cfg_attr(feature = "clap", arg(long))]
    pub prior_shift: Option<f64>,
    /// Shift of the decoder's noise schedule: above 1, more steps of the decoder are taken where there is much noise
    #[cfg_attr(feature = "clap", arg(long))]
    pub decoder_shift: Option<f64>,
    /// How far to undo the wider spread that guidance gives to predictions: 0 not at all, 1 completely
    #[cfg_attr(feature = "clap", arg(long))]
    pub guidance_rescale: Option<f64>,
    /// How much to change the source picture: 0 reproduces it, 1 ignores it [default: 0.8, and 1 with
    /// a mask, but at most the first of the timesteps]
    #[cfg_attr(feature = "clap", arg(long))]
    pub strength: Option<f64>,
    /// Factor of what the ControlNet adds to Stage C's features: 0 turns it off [default: 1]
    #[cfg_attr(feature = "clap", arg(long))]
    pub control_scale: Option<f64>,
    /// What brackets in prompts mean
    #[cfg_attr(feature = "clap", arg(long, value_enum, default_value_t))]
    pub prompt_syntax: PromptSyntax,
    /// Rows of latents that Stage A decodes at a time, 0 for all rows: fewer rows take less memory and
    /// make the same picture [default: all rows of a small picture]
    #[cfg_attr(feature = "clap", arg(long))]
    pub vqgan_rows: Option<usize>,
}

/// What brackets in prompts mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum PromptSyntax {
    /// They weigh words: (strong), (stronger:1.3), weak in square brackets; a backslash makes a bracket an
    /// ordinary character
    #[default]
    Weighted,
    /// Nothing: they are ordinary characters
    Plain,
}

/// Most steps of a stage.
pub const MAX_STEPS: usize = 1000;

/// Most pictures of one prompt at a time.
pub const MAX_COUNT: usize = 256;

/// Most pixels that are made at once, those of four pictures of the largest size: more need more memory than
/// machines have.
pub const MAX_PIXELS_AT_ONCE: usize = 1 << 26;

impl GenerateOptions {
    /// Fills the gaps from `defaults` and checks every value once; sizes are checked by the
    /// pipeline, which knows the model.
    ///
    /// # Errors
    ///
    /// Names the first option that cannot be run and what was expected.
    pub fn resolve(&self, defaults: &Defaults) -> Result<Settings, OptionsError> {
        // A caller who asks for the authors' recipe wants its numbers too.
        let defaults = &match self.recipe {
            Some(Recipe::Authors) if defaults.recipe != Recipe::Authors => {
                defaults.clone().by_authors()
            }
            _ => defaults.clone(),
        };
        let steps = |field, value: Option<usize>, default| match value.unwrap_or(default) {
            steps @ 1..=MAX_STEPS => Ok(crate::schedule::uniform_timesteps(steps)),
            found => Err(OptionsError::Steps { field, found }),
        };
        let shift = |field, value: Option<f64>, default| match value.unwrap_or(default) {
            shift if SHIFTS.contains(&shift) => Ok(shift),
            found => Err(OptionsError::Shift { field, found }),
        };
        let guidance_rescale = self.guidance_rescale.unwrap_or(defaults.guidance_rescale);
        if !(0.0..=1.0).contains(&guidance_rescale) {
            return Err(OptionsError::Rescale(guidance_rescale));
        }
        let count = self.count.unwrap_or(1);
        if !(1..=MAX_COUNT).contains(&count) {
            return Err(OptionsError::Count(count));
        }
        let strength = match self.strength {
            Some(found) if !(0.0..=1.0).contains(&found) => {
                return Err(OptionsError::Strength(found));
            }
            strength => strength,
        };
        if self.timesteps.is_some() && self.prior_steps.is_some() {
            return Err(OptionsError::Contradiction { field: "prior_steps", other: "timesteps" });
        }
        let prior_timesteps = match &self.timesteps {
            Some(times) if times.len() > MAX_STEPS + 1 => {
                return Err(OptionsError::ManyTimesteps { found: times.len() });
            }
            Some(times) if is_schedule(times) => times.clone(),
            Some(times) => return Err(OptionsError::Timesteps(times.clone())),
            None => steps("prior_steps", self.prior_steps, defaults.prior_steps)?,
        };
        let first = f64::from(prior_timesteps[0]);
        if let Some(found) = strength.filter(|strength| *strength > first) {
            return Err(OptionsError::StrengthAboveTimesteps { found, first });
        }
        let decoder_timesteps = steps("decoder_steps", self.decoder_steps, defaults.decoder_steps)?;
        let decoder_guidance_scale = scale(
            "decoder_guidance_scale",
            self.decoder_guidance_scale,
            defaults.decoder_guidance_scale,
        )?;
        let tokens = self.resolve_tokens(defaults, &decoder_timesteps, decoder_guidance_scale)?;
        Ok(Settings {
            negative_prompt: self.negative_prompt.clone(),
            seed: self.seed,
            count,
            width: self.width.unwrap_or(defaults.width),
            height: self.height.unwrap_or(defaults.height),
            prior_timesteps,
            prior_guidance_scale: scale(
                "prior_guidance_scale",
                self.prior_guidance_scale,
                defaults.prior_guidance_scale,
            )?,
            decoder_timesteps,
            decoder_guidance_scale,
            tokens,
            sampler: self.sampler.unwrap_or(defaults.sampler),
            recipe: self.recipe.unwrap_or(defaults.recipe),
            prior_shift: shift("prior_shift", self.prior_shift, defaults.prior_shift)?,
            decoder_shift: shift("decoder_shift", self.decoder_shift, defaults.decoder_shift)?,
            guidance_rescale,
            strength,
            control_scale: scale("control_scale", self.control_scale, 1.0)?,
            prompt_syntax: self.prompt_syntax,
            vqgan_rows: self.vqgan_rows,
        })
    }

    /// The settings that only a Stage B over tokens has; `None` for a model without tokens.
    fn resolve_tokens(
        &self,
        defaults: &Defaults,
        timesteps: &[f32],
        guidance_scale: f64,
    ) -> Result<Option<TokenSettings>, OptionsError> {
        let Some(tokens) = defaults.tokens else { return self.refuse_tokens() };
        if self.decoder_shift.is_some() {
            let needed = "a model whose Stage B denoises latents";
            return Err(OptionsError::Missing { field: "decoder_shift", needed });
        }
        // A scale that the caller gives holds for all steps; so does a temperature below the last step's.
        let end = match self.decoder_guidance_scale {
            Some(scale) => scale,
            None => tokens.decoder_guidance_scale_end.unwrap_or(guidance_scale),
        };
        let temperature = scale("temperature", self.temperature, tokens.temperature)?;
        // One time more than steps, and no noise after the last step.
        let most = timesteps.len() - 2;
        let renoise_steps = self.renoise_steps.unwrap_or(most);
        if renoise_steps > most {
            return Err(OptionsError::RenoiseSteps { most, found: renoise_steps });
        }
        Ok(Some(TokenSettings {
            decoder_guidance_scale_end: scale(
                "decoder_guidance_scale_end",
                self.decoder_guidance_scale_end,
                end,
            )?,
            temperature,
            temperature_end: scale(
                "temperature_end",
                self.temperature_end,
                tokens.temperature_end.min(temperature),
            )?,
            renoise_steps,
            token_sampling: self.token_sampling.unwrap_or(tokens.token_sampling),
        }))
    }

    /// Fails where the caller gives an option that only models whose Stage B denoises tokens have.
    fn refuse_tokens(&self) -> Result<Option<TokenSettings>, OptionsError> {
        let given = [
            ("decoder_guidance_scale_end", self.decoder_guidance_scale_end.is_some()),
            ("temperature", self.temperature.is_some()),
            ("temperature_end", self.temperature_end.is_some()),
            ("renoise_steps", self.renoise_steps.is_some()),
            ("token_sampling", self.token_sampling.is_some()),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            Some((field, _)) => {
                let needed = "a model whose Stage B denoises tokens";
                Err(OptionsError::Missing { field, needed })
            }
            None => Ok(None),
        }
    }
}

/// A scale, or its default.
fn scale(field: &'static str, value: Option<f64>, default: f64) -> Result<f64, OptionsError> {
    match value.unwrap_or(default) {
        scale if scale.is_finite() && scale >= 0.0 => Ok(scale),
        found => Err(OptionsError::GuidanceScale { field, found }),
    }
}

fn is_schedule(times: &[f32]) -> bool {
    let falls = times.windows(2).all(|pair| pair[0] > pair[1]);
    falls && times.len() >= 2 && times[0] <= 1.0 && times[times.len() - 1] == 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(json: &str) -> Result<Settings, OptionsError> {
        let options: GenerateOptions = serde_json::from_str(json).unwrap();
        options.resolve(&Defaults::default())
    }

    #[test]
    fn json_of_javascript_callers_may_leave_fields_out() {
        let settings = resolve(r#"{"priorGuidanceScale": 6.5}"#).unwrap();
        assert_eq!((settings.prior_guidance_scale, settings.prior_timesteps.len()), (6.5, 61));
        assert!(serde_json::from_str::<GenerateOptions>(r#"{"guidance": 6.5}"#).is_err());
    }

    #[test]
    fn names_what_no_sampler_can_run() {
        let message = |json| resolve(json).unwrap_err().to_string();
        assert_eq!(
            message(r#"{"priorSteps": 0}"#),
            "prior_steps must be between 1 and 1000, got 0"
        );
        assert_eq!(message(r#"{"count": 0}"#), "count must be between 1 and 256, got 0");
        let negative = r#"{"decoderGuidanceScale": -1}"#;
        assert_eq!(
            message(negative),
            "decoder_guidance_scale must be finite and at least 0, got -1"
        );
        assert!(message(r#"{"timesteps": [1.0, 0.5]}"#).starts_with("timesteps must fall"));
        let many = format!(r#"{{"timesteps": {:?}}}"#, crate::schedule::uniform_timesteps(1001));
        assert_eq!(message(&many), "timesteps must be at most 1001 numbers, got 1002");
        assert_eq!(message(r#"{"strength": 1.5}"#), "strength must be between 0 and 1, got 1.5");
    }

    /// The authors' numbers come with their recipe; what the caller gives takes precedence.
    #[test]
    fn a_recipe_brings_its_numbers() {
        let settings = resolve(r#"{"recipe": "authors", "priorShift": 3}"#).unwrap();
        let Settings { prior_shift, decoder_shift, guidance_rescale, .. } = settings;
        assert_eq!((prior_shift, decoder_shift, guidance_rescale), (3.0, 1.0, 0.7));
        assert_eq!(settings.decoder_guidance_scale, 1.1);
        let error = resolve(r#"{"decoderShift": 0}"#).unwrap_err().to_string();
        assert_eq!(error, "decoder_shift must be between 0.01 and 100, got 0");
        let error = resolve(r#"{"guidanceRescale": 2}"#).unwrap_err().to_string();
        assert_eq!(error, "guidance_rescale must be between 0 and 1, got 2");
    }

    /// A temperature below that of the last step holds for all steps, and so does a guidance scale that is given.
    #[test]
    fn tokens_have_options_of_their_own() {
        let of = |json| {
            let options: GenerateOptions = serde_json::from_str(json).unwrap();
            options.resolve(&Defaults::wuerstchen_v1()).unwrap().tokens.unwrap()
        };
        let tokens = of("{}");
        assert_eq!(
            (tokens.temperature, tokens.temperature_end, tokens.renoise_steps),
            (1.0, 0.6, 7)
        );
        assert_eq!(tokens.decoder_guidance_scale_end, 2.0);
        assert_eq!(of(r#"{"temperature": 0.3}"#).temperature_end, 0.3);
        assert_eq!(of(r#"{"decoderGuidanceScale": 5}"#).decoder_guidance_scale_end, 5.0);
        assert_eq!(of(r#"{"tokenSampling": "argmax"}"#).token_sampling, TokenSampling::Argmax);
        let shifted = GenerateOptions { decoder_shift: Some(2.0), ..GenerateOptions::default() };
        let error = shifted.resolve(&Defaults::wuerstchen_v1()).unwrap_err().to_string();
        let expected =
            "decoder_shift needs a model whose Stage B denoises latents, which is missing";
        assert_eq!(error, expected);
        let error = resolve(r#"{"renoiseSteps": 3}"#).unwrap_err().to_string();
        let expected =
            "renoise_steps needs a model whose Stage B denoises tokens, which is missing";
        assert_eq!(error, expected);
    }

    #[test]
    fn errors_begin_with_their_field() {
        let size = |field| OptionsError::Size { field, found: 1, nearest: vec![] };
        let errors = [
            OptionsError::Steps { field: "prior_steps", found: 0 },
            OptionsError::GuidanceScale { field: "decoder_guidance_scale", found: -1.0 },
            OptionsError::Count(0),
            OptionsError::Frames(1),
            OptionsError::CountOfFrames(2),
            OptionsError::Pixels { width: 1024, height: 1024, most: 64, found: 65 },
            OptionsError::Area { width: 100_000, height: 512 * 1024 },
            OptionsError::Strength(2.0),
            OptionsError::Missing { field: "strength", needed: "image" },
            OptionsError::Contradiction { field: "image_to", other: "a mask" },
            OptionsError::NoCompressor { field: "image", reason: String::new() },
            OptionsError::NoControlNet(String::new()),
            OptionsError::RenoiseSteps { most: 2, found: 3 },
            OptionsError::Mask {
                field: "control_mask",
                expected: String::new(),
                found: String::new(),
            },
            OptionsError::Timesteps(vec![]),
            OptionsError::ManyTimesteps { found: 1002 },
            size("width"),
        ];
        for error in errors {
            let first = error.to_string().split(' ').next().unwrap().to_owned();
            assert_eq!(first, error.field(), "{error}");
        }
    }

    #[test]
    fn large_pictures_are_made_a_few_at_a_time() {
        let check = |count| {
            let json = format!(r#"{{"width": 1024, "height": 1024, "count": {count}}}"#);
            resolve(&json).unwrap().check_pixels()
        };
        assert_eq!(check(64), Ok(()));
        let expected = "count must be at most 64 with pictures of 1024 x 1024 pixels, as 67108864 pixels are made at \
                        once, got 65";
        assert_eq!(check(65).unwrap_err().to_string(), expected);
    }

    #[test]
    fn a_size_that_is_too_large_for_one_picture_is_named() {
        let check = |width: usize| {
            let json = format!(r#"{{"width": {width}, "height": 4096}}"#);
            resolve(&json).unwrap().check_pixels().map_err(|error| error.to_string())
        };
        assert_eq!(check(16384), Ok(()));
        for width in [16385, usize::MAX] {
            let expected =
                format!("width times height must be at most 67108864 pixels, got {width} x 4096");
            assert_eq!(check(width), Err(expected));
        }
    }

    /// The values of a file are checked as those of a caller are.
    #[test]
    fn defaults_that_no_sampler_can_run_are_named() {
        type Change = fn(&mut Defaults);
        let changes: [(Change, &str); 6] = [
            (
                |defaults| defaults.prior_shift = f64::NAN,
                "prior_shift must be from 0.01 to 100, got NaN",
            ),
            (
                |defaults| defaults.decoder_shift = f64::INFINITY,
                "decoder_shift must be from 0.01 to 100",
            ),
            (|defaults| defaults.guidance_rescale = -0.5, "guidance_rescale must be from 0 to 1"),
            (
                |defaults| defaults.prior_guidance_scale = f64::INFINITY,
                "prior_guidance_scale must be",
            ),
            (|defaults| defaults.decoder_steps = 0, "decoder_steps must be from 1 to 1000, got 0"),
            (
                |defaults| defaults.tokens.as_mut().unwrap().temperature = f64::NAN,
                "tokens.temperature must be",
            ),
        ];
        for (change, expected) in changes {
            let mut defaults = Defaults::wuerstchen_v1();
            assert_eq!(defaults.validate(), Ok(()));
            change(&mut defaults);
            let error = defaults.validate().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_mask_leaves_its_part_altogether() {
        let strength = |json, masked| resolve(json).unwrap().strength(masked);
        assert_eq!((strength("{}", false), strength("{}", true)), (0.8, 1.0));
        assert_eq!(strength(r#"{"strength": 0.25}"#, true), 0.25);
        let short = r#"{"timesteps": [0.5, 0.25, 0]}"#;
        assert_eq!((strength(short, false), strength(short, true)), (0.5, 0.5));
    }
}
