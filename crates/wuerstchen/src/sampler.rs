//! Reverse-diffusion steps, plain functions of time.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::schedule::Schedule;

/// Which step leads from one time to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// Ancestral: adds noise at every step, the authors' sampler.
    #[default]
    Ddpm,
    /// Deterministic after the initial noise.
    Ddim,
}

impl Sampler {
    /// One step from time `t` to `t_next`.
    ///
    /// # Shapes
    ///
    /// - x, epsilon, noise, output: `[B, C, H, W]`
    pub fn step(
        self,
        schedule: &Schedule,
        x: Tensor<4>,
        epsilon: Tensor<4>,
        noise: Tensor<4>,
        [t, t_next]: [f32; 2],
    ) -> Tensor<4> {
        let alphas = [t, t_next].map(|t| schedule.alpha_cumprod(t));
        match self {
            Self::Ddpm if t_next == 0.0 => ddpm_mean(x, epsilon, alphas),
            Self::Ddpm => ddpm_mean(x, epsilon, alphas) + noise * ddpm_deviation(alphas),
            Self::Ddim => ddim_step(x, epsilon, alphas),
        }
    }
}

/// Mean of the ancestral step: `sqrt(1/α)·(x − (1 − α)·ε/sqrt(1 − ᾱ))` with `α = ᾱ/ᾱ_next`.
///
/// Source: Ho et al., "Denoising diffusion probabilistic models" (arXiv 2006.11239), eq. 11;
/// `DDPMSampler.step` in `diffuzz.py` of dome272/Wuerstchen.
fn ddpm_mean(x: Tensor<4>, epsilon: Tensor<4>, [bar, bar_next]: [f32; 2]) -> Tensor<4> {
    let alpha = bar / bar_next;
    (x - epsilon * ((1.0 - alpha) / (1.0 - bar).sqrt())) * (1.0 / alpha).sqrt()
}

/// Standard deviation of the ancestral step: `sqrt((1 − α)(1 − ᾱ_next)/(1 − ᾱ))`.
fn ddpm_deviation([bar, bar_next]: [f32; 2]) -> f32 {
    ((1.0 - bar / bar_next) * (1.0 - bar_next) / (1.0 - bar)).sqrt()
}

/// The deterministic step: predicts the clean latents and noises them to the next time.
///
/// Source: Song et al., "Denoising diffusion implicit models" (arXiv 2010.02502), eq. 12 with
/// `σ = 0`; `DDIMSampler.step` in `diffuzz.py`.
fn ddim_step(x: Tensor<4>, epsilon: Tensor<4>, [bar, bar_next]: [f32; 2]) -> Tensor<4> {
    let clean = (x - epsilon.clone() * (1.0 - bar).sqrt()) / bar.sqrt();
    clean * bar_next.sqrt() + epsilon * (1.0 - bar_next).sqrt()
}

/// Noises clean latents to the times `t`: `sqrt(ᾱ)·x + sqrt(1 − ᾱ)·noise`.
///
/// # Shapes
///
/// - x, noise, output: `[B, C, H, W]`
/// - times: `B`
pub fn add_noise(schedule: &Schedule, x: Tensor<4>, noise: Tensor<4>, times: &[f32]) -> Tensor<4> {
    let alphas: Vec<f32> = times.iter().map(|&t| schedule.alpha_cumprod(t)).collect();
    let column = |f: fn(f32) -> f32| {
        let values: Vec<f32> = alphas.iter().map(|&alpha| f(alpha)).collect();
        Tensor::<1>::from_data(&values[..], &x.device()).reshape([times.len(), 1, 1, 1])
    };
    x.clone() * column(f32::sqrt) + noise * column(|alpha| (1.0 - alpha).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    /// A denoiser that knows the clean latents leads every start back to them.
    #[test]
    fn exact_noise_prediction_recovers_the_clean_latents() {
        let (device, schedule) = (Device::flex(), Schedule::default());
        let random = || Tensor::<4>::random([1, 4, 3, 3], Distribution::Normal(0.0, 1.0), &device);
        for sampler in [Sampler::Ddpm, Sampler::Ddim] {
            let clean = random();
            let mut x = random();
            for times in crate::schedule::uniform_timesteps(20).windows(2) {
                let bar = schedule.alpha_cumprod(times[0]);
                let epsilon = (x.clone() - clean.clone() * bar.sqrt()) / (1.0 - bar).sqrt();
                x = sampler.step(&schedule, x, epsilon, random(), [times[0], times[1]]);
            }
            let expected = clean.into_data();
            x.into_data().assert_approx_eq::<f32>(&expected, Tolerance::absolute(0.05));
        }
    }
}
