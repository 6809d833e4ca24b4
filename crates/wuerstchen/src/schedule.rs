//! The noise schedule: how much signal is left at a diffusion time, and which times are visited.
//!
//! Time runs from 1 (pure noise) to 0 (clean), as in the paper.

use std::f32::consts::FRAC_PI_2;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, between};

/// Constants of the schedule, with the published field names (`scheduler_config.json`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Bends the time axis; 1 leaves it straight.
    pub scaler: f64,
    /// Keeps the schedule away from its singular end.
    pub s: f64,
    /// Divides the signal-to-noise ratio of every time by its square: above 1, more steps are taken where
    /// there is much noise. Not in the published file.
    #[serde(default = "no_shift", skip_serializing_if = "is_no_shift")]
    pub shift: f64,
}

fn no_shift() -> f64 {
    1.0
}

fn is_no_shift(shift: &f64) -> bool {
    *shift == no_shift()
}

/// Values of [`Schedule::scaler`] that leave both times of much noise and times of little noise.
const BENDS: RangeInclusive<f64> = 0.01..=100.0;

/// Values of [`Schedule::shift`] that do the same.
pub(crate) const SHIFTS: RangeInclusive<f64> = 0.01..=100.0;

/// Bounds of the share of signal variance.
const LEAST_ALPHA: f32 = 0.0001;
const MOST_ALPHA: f32 = 0.9999;

impl Default for Schedule {
    fn default() -> Self {
        Self { scaler: 1.0, s: 0.008, shift: no_shift() }
    }
}

impl Schedule {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// Names the first field whose value gives no schedule of falling noise.
    pub fn validate(&self) -> Result<(), ConfigError> {
        between("schedule", "scaler", self.scaler, BENDS)?;
        between("schedule", "s", self.s, 0.0..=1.0)?;
        between("schedule", "shift", self.shift, SHIFTS)
    }

    /// Share of signal variance at time `t`:
    /// `ᾱ(t) = cos²((t' + s)/(1 + s)·π/2) / cos²(s/(1 + s)·π/2)`, between 10⁻⁴ and 0.9999.
    ///
    /// Evaluated in f32, as the reference does.
    ///
    /// Source: `Diffuzz._alpha_cumprod` in `diffuzz.py` of dome272/Wuerstchen;
    /// `DDPMWuerstchenScheduler` in diffusers.
    pub fn alpha_cumprod(&self, t: f32) -> f32 {
        if is_no_shift(&self.shift) { self.unshifted(t) } else { sigmoid(self.log_snr(t)) }
    }

    /// Logarithm of the signal-to-noise ratio, `ln(ᾱ/(1 − ᾱ))`, at time `t`, between its values without a
    /// shift at times 1 and 0.
    ///
    /// Source: `CosineSchedule` in `gdf/schedulers.py` of Stability-AI/StableCascade.
    pub fn log_snr(&self, t: f32) -> f32 {
        let log_snr = |alpha: f32| libm::logf(alpha / (1.0 - alpha));
        let shifted = log_snr(self.unshifted(t)) - 2.0 * libm::log(self.shift) as f32;
        shifted.clamp(log_snr(LEAST_ALPHA), log_snr(MOST_ALPHA))
    }

    /// The time at which a schedule without a shift and with a straight time axis is as noisy as this one is at `t`.
    /// Models that were trained with such a schedule must see this time.
    ///
    /// Source: `CosineTNoiseCond` in `gdf/noise_conditions.py` of Stability-AI/StableCascade.
    pub fn model_time(&self, t: f32) -> f32 {
        self.time_of(sigmoid(self.log_snr(t)))
    }

    /// The time at which a schedule without a shift and with a straight time axis has this share of signal
    /// variance.
    ///
    /// Source: `get_timestep_ratio_conditioning` of `StableCascadePriorPipeline` in diffusers.
    pub fn time_of(&self, alpha_cumprod: f32) -> f32 {
        let s = self.s as f32;
        let first = libm::cosf(s / (1.0 + s) * FRAC_PI_2);
        let cosine = (alpha_cumprod * first * first).sqrt();
        (libm::acosf(cosine) / FRAC_PI_2 * (1.0 + s) - s).clamp(0.0, 1.0)
    }

    fn unshifted(&self, t: f32) -> f32 {
        let scaler = self.scaler as f32;
        let t = match self.scaler {
            scaler_f64 if scaler_f64 > 1.0 => 1.0 - libm::powf(1.0 - t, scaler),
            scaler_f64 if scaler_f64 < 1.0 => libm::powf(t, scaler),
            _ => t,
        };
        let s = self.s as f32;
        let cos_squared = |t: f32| {
            let cos = libm::cosf((t + s) / (1.0 + s) * FRAC_PI_2);
            cos * cos
        };
        (cos_squared(t) / cos_squared(0.0)).clamp(LEAST_ALPHA, MOST_ALPHA)
    }

    /// The p2 loss weight `(k + SNR)^−γ` with `γ = 1`. With the authors' `k = 1` it is `1 − ᾱ(t)`;
    /// a smaller `k` gives more weight to noisier times.
    ///
    /// Source: Choi et al., "Perception prioritized training of diffusion models"
    /// (arXiv 2204.00227), eq. 8; `Diffuzz.p2_weight`.
    pub fn p2_weight(&self, t: f32, k: f32) -> f32 {
        let alpha = self.alpha_cumprod(t);
        1.0 / (k + alpha / (1.0 - alpha))
    }

    /// The min-SNR loss weight of predictions of noise: `min(SNR, γ)/SNR`, 1 where there is much noise.
    ///
    /// Source: Hang et al., "Efficient diffusion training via min-SNR weighting strategy"
    /// (arXiv 2303.09556), section 3.4.
    pub fn min_snr_weight(&self, t: f32, gamma: f32) -> f32 {
        let alpha = self.alpha_cumprod(t);
        (gamma * (1.0 - alpha) / alpha).min(1.0)
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-x))
}

/// `steps + 1` evenly spaced times from 1 to 0: the authors' default.
///
/// Evaluated from both ends as `torch.linspace` does, so that the roundings agree.
pub fn uniform_timesteps(steps: usize) -> Vec<f32> {
    linspace(1.0, 0.0, steps + 1)
}

/// `count` evenly spaced values from `start` to `end`; a single value is `start`.
///
/// Evaluated from both ends as `torch.linspace` does, so that the roundings agree.
pub fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / count.saturating_sub(1) as f32;
    let value = |i: usize| {
        if i < count / 2 { start + step * i as f32 } else { end - step * (count - 1 - i) as f32 }
    };
    (0..count).map(value).collect()
}

/// The time of a training sample: `clamp((1 − U)·spread + 0.001, 0.001, 1)`. With [`TIME_SPREAD`], 7.5 % of
/// the times are pure noise; with 1, as at evaluations, 0.1 %.
///
/// Source: `train_stage_B.py` and `train_stage_C.py` of dome272/Wuerstchen.
pub fn training_time(uniform: f32, spread: f32) -> f32 {
    ((1.0 - uniform) * spread + 0.001).clamp(0.001, 1.0)
}

/// The spread of training times.
pub const TIME_SPREAD: f32 = 1.08;

/// The 30 times (29 steps) that diffusers recommends for Stage C: 20 from 1 to 2/3, 10 on to 0.
///
/// Source: `DEFAULT_STAGE_C_TIMESTEPS` in diffusers.
pub fn default_stage_c_timesteps() -> Vec<f32> {
    let evenly = |start: f64, end: f64, count: usize| {
        let step = (end - start) / (count as f64 - 1.0);
        (0..count).map(move |i| if i + 1 == count { end } else { start + step * i as f64 })
    };
    let fine = evenly(1.0, 2.0 / 3.0, 20);
    fine.chain(evenly(2.0 / 3.0, 0.0, 11).skip(1)).map(|t| t as f32).collect()
}

/// The times of a schedule from `start` on, or all of them if its first time is smaller: `start`, then those below it.
/// A sampling that starts at 0 has no steps.
pub fn timesteps_from(start: f32, timesteps: &[f32]) -> Vec<f32> {
    let start = start.min(timesteps[0]);
    let below = timesteps.iter().copied().filter(|&t| t < start);
    std::iter::once(start).chain(below).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `5·(1 − ᾱ)/ᾱ` where there is little noise, as `ᾱ = 0.9999`; 1 where there is much.
    #[test]
    fn min_snr_weights_are_bounded() {
        let schedule = Schedule::default();
        assert_eq!(schedule.min_snr_weight(1.0, 5.0), 1.0);
        assert!((schedule.min_snr_weight(0.0, 5.0) - 5e-4).abs() < 1e-6);
    }

    /// Midpoint value: the authors' formula evaluated in Python; ends: its clamp.
    #[test]
    fn matches_the_authors_code() {
        let schedule = Schedule::default();
        assert_eq!(schedule.alpha_cumprod(0.0), 0.9999);
        assert!((schedule.alpha_cumprod(0.5) - 0.493_843_6).abs() < 1e-6);
        assert_eq!(schedule.alpha_cumprod(1.0), 0.0001);
        assert!((schedule.p2_weight(0.5, 1.0) - (1.0 - 0.493_843_6)).abs() < 1e-6);
    }

    /// Values of the authors' code: at shift 2 the model sees noisier times, but at time 1 the clamp of the ratio
    /// bounds it.
    #[test]
    fn a_shift_makes_times_noisier() {
        let schedule = Schedule { shift: 2.0, ..Schedule::default() };
        for (t, expected) in [(0.8, 0.8975), (0.5, 0.7056), (0.0, 0.0071), (1.0, 0.99358)] {
            let found = schedule.model_time(t);
            assert!((found - expected).abs() < 1e-4, "{t}: {found}");
        }
        let (plain, shifted) = (Schedule::default().log_snr(0.5), schedule.log_snr(0.5));
        assert!((plain - shifted - 2.0 * std::f32::consts::LN_2).abs() < 1e-5);
    }

    #[test]
    fn stage_c_visits_thirty_times() {
        let times = default_stage_c_timesteps();
        assert_eq!((times.len(), times[0], times[19], times[29]), (30, 1.0, 2.0 / 3.0, 0.0));
        assert!(times.windows(2).all(|pair| pair[0] > pair[1]));
    }

    #[test]
    fn a_late_start_leaves_steps_out() {
        let times = [1.0, 0.75, 0.5, 0.25, 0.0];
        assert_eq!(timesteps_from(1.0, &times), times);
        assert_eq!(timesteps_from(0.5, &times), [0.5, 0.25, 0.0]);
        assert_eq!(timesteps_from(0.6, &times), [0.6, 0.5, 0.25, 0.0]);
        assert_eq!(timesteps_from(0.0, &times), [0.0]);
        assert_eq!(timesteps_from(1.0, &times[1..]), times[1..]);
    }
}
