//! Reverse-diffusion steps, plain functions of time.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::schedule::Schedule;

/// Which step leads from one time to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// Ancestral: adds fresh noise after every step but the last, the authors' sampler.
    #[default]
    Ddpm,
    /// Deterministic after the initial noise.
    Ddim,
    /// Predicts the clean latents and, after every step but the last, adds fresh noise to them, for models that predict
    /// them in one step.
    Lcm,
}

/// The ways of sampling of diffusers and of Stable Cascade's authors, which differ in more than the steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// The model is given the time itself. The result is the latents after the last step, which adds no noise
    #[default]
    Diffusers,
    /// The model is given the time at which the unshifted schedule has the same noise. The result is the clean
    /// latents that the last step predicts
    Authors,
}

impl Sampler {
    /// One step from time `t` to `t_next`. The step to time 0 adds no noise.
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
        let is_last = t_next == 0.0;
        match self {
            Self::Ddpm if is_last => ddpm_mean(x, epsilon, alphas),
            Self::Ddpm => ddpm_mean(x, epsilon, alphas) + noise * ddpm_deviation(alphas),
            Self::Ddim => ddim_step(x, epsilon, alphas),
            Self::Lcm if is_last => predicted(x, epsilon, alphas[0]),
            Self::Lcm => lcm_step(x, epsilon, noise, alphas),
        }
    }

    /// As [`Self::step`], but the step to time 0 adds noise as any other does, because the schedule is not quite
    /// clean at time 0 either.
    pub fn noisy_step(
        self,
        schedule: &Schedule,
        x: Tensor<4>,
        epsilon: Tensor<4>,
        noise: Tensor<4>,
        times: [f32; 2],
    ) -> Tensor<4> {
        let alphas = times.map(|t| schedule.alpha_cumprod(t));
        match self {
            Self::Ddpm => ddpm_mean(x, epsilon, alphas) + noise * ddpm_deviation(alphas),
            Self::Ddim => ddim_step(x, epsilon, alphas),
            Self::Lcm => lcm_step(x, epsilon, noise, alphas),
        }
    }
}

/// The clean latents that follow from a prediction of the noise: `(x − sqrt(1 − ᾱ)·ε)/sqrt(ᾱ)`.
///
/// # Shapes
///
/// - x, epsilon, output: `[B, C, H, W]`
pub fn clean_latents(schedule: &Schedule, x: Tensor<4>, epsilon: Tensor<4>, t: f32) -> Tensor<4> {
    predicted(x, epsilon, schedule.alpha_cumprod(t))
}

fn predicted(x: Tensor<4>, epsilon: Tensor<4>, bar: f32) -> Tensor<4> {
    (x - epsilon * (1.0 - bar).sqrt()) / bar.sqrt()
}

/// Noises the predicted clean latents to the next time.
///
/// Source: Luo et al., "Latent consistency models" (arXiv 2310.04378), algorithm 3; `LCMSampler` in
/// `gdf/samplers.py` of Stability-AI/StableCascade.
fn lcm_step(
    x: Tensor<4>,
    epsilon: Tensor<4>,
    noise: Tensor<4>,
    [bar, bar_next]: [f32; 2],
) -> Tensor<4> {
    predicted(x, epsilon, bar) * bar_next.sqrt() + noise * (1.0 - bar_next).sqrt()
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
    predicted(x, epsilon.clone(), bar) * bar_next.sqrt() + epsilon * (1.0 - bar_next).sqrt()
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

/// Clean latents that a sampling starts from, and maybe keeps parts of.
#[derive(Clone)]
pub struct Known {
    /// `[1, C, H, W]`, or one for every sample.
    pub clean: Tensor<4>,
    /// `[1, 1, H, W]`: 1 where the sampling paints, 0 where it keeps; `None` to paint all.
    pub mask: Option<Tensor<4>>,
}

impl Known {
    /// The latents at which a sampling starts: pure noise at time 1, at a smaller `t` the known latents with noise.
    ///
    /// # Shapes
    ///
    /// - noise, output: `[B, C, H, W]`
    pub fn start(&self, schedule: &Schedule, noise: Tensor<4>, t: f32) -> Tensor<4> {
        if t < 1.0 { self.at(schedule, noise, t) } else { noise }
    }

    /// Puts back what is kept, as noisy as the latents are at time `t`.
    ///
    /// Source: Lugmayr et al., "`RePaint`: inpainting using denoising diffusion probabilistic models"
    /// (arXiv 2201.09865), eq. 8, with one noise for all times as diffusers does.
    ///
    /// # Shapes
    ///
    /// - x, noise, output: `[B, C, H, W]`
    pub fn keep(&self, schedule: &Schedule, x: Tensor<4>, noise: Tensor<4>, t: f32) -> Tensor<4> {
        match &self.mask {
            Some(mask) => {
                let kept = self.at(schedule, noise, t);
                x * mask.clone() + kept * (mask.clone() * -1.0 + 1.0)
            }
            None => x,
        }
    }

    fn at(&self, schedule: &Schedule, noise: Tensor<4>, t: f32) -> Tensor<4> {
        let clean = self.clean.clone().expand(noise.dims());
        if t > 0.0 {
            let [batch, ..] = noise.dims();
            add_noise(schedule, clean, noise, &vec![t; batch])
        } else {
            clean
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relative_error::assert_close;
    use burn::tensor::{Distribution, Tolerance};

    /// A denoiser that knows the clean latents leads every start back to them.
    #[test]
    fn exact_noise_prediction_recovers_the_clean_latents() {
        let (device, schedule) = (Device::flex(), Schedule::default());
        let random = || Tensor::<4>::random([1, 4, 3, 3], Distribution::Normal(0.0, 1.0), &device);
        for sampler in [Sampler::Ddpm, Sampler::Ddim, Sampler::Lcm] {
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

    /// With the noise that the latents have, DDIM leads from the latents at one time to those at the next, whatever
    /// the fresh noise is.
    #[test]
    fn ddim_goes_along_the_noised_latents() {
        let (device, schedule) = (Device::flex(), Schedule::default());
        let random = || Tensor::<4>::random([2, 4, 3, 3], Distribution::Normal(0.0, 1.0), &device);
        let (clean, noise) = (random(), random());
        let at = |t: f32| add_noise(&schedule, clean.clone(), noise.clone(), &[t; 2]);
        for times in [[0.95, 0.9], [0.9, 0.3], [0.3, 0.0]] {
            let [t, next] = times;
            let x = Sampler::Ddim.step(&schedule, at(t), noise.clone(), random(), times);
            assert_close(x, at(next), 1e-5);
        }
    }

    /// Eq. 12 of the paper in f64, for latents 0.7 and a prediction of 0.4 that is not their noise.
    #[test]
    fn ddim_is_the_papers_equation() {
        let (device, schedule) = (Device::flex(), Schedule::default());
        let full = |value: f32| Tensor::<4>::full([1, 1, 1, 1], value, &device);
        let [bar, bar_next] = [0.6, 0.2].map(|t| f64::from(schedule.alpha_cumprod(t)));
        let clean = (0.7 - (1.0 - bar).sqrt() * 0.4) / bar.sqrt();
        let expected = bar_next.sqrt() * clean + (1.0 - bar_next).sqrt() * 0.4;
        let x = Sampler::Ddim.step(&schedule, full(0.7), full(0.4), full(9.0), [0.6, 0.2]);
        assert!((f64::from(x.into_scalar::<f32>()) - expected).abs() < 1e-6, "{expected}");
    }

    fn known(mask: Option<[f32; 2]>) -> (Known, Tensor<4>) {
        let device = Device::flex();
        let clean = Tensor::from_data([[[[3.0f32, 5.0]]]], &device);
        let mask = mask.map(|mask| Tensor::from_data([[[mask]]], &device));
        (Known { clean, mask }, Tensor::from_data([[[[0.5f32, -1.0]]]], &device))
    }

    #[test]
    fn starts_at_pure_noise_or_at_noised_latents() {
        let (schedule, (known, noise)) = (Schedule::default(), known(None));
        let start = |t| known.start(&schedule, noise.clone(), t).into_data();
        start(1.0).assert_eq(&noise.clone().into_data(), true);
        start(0.0).assert_eq(&known.clean.clone().into_data(), true);
        let noised = add_noise(&schedule, known.clean.clone(), noise.clone(), &[0.5]);
        start(0.5).assert_eq(&noised.into_data(), true);
    }

    /// The first pixel is kept, the second painted.
    #[test]
    fn keeps_what_the_mask_does_not_paint() {
        let (schedule, (known, noise)) = (Schedule::default(), known(Some([0.0, 1.0])));
        let x = Tensor::from_data([[[[7.0f32, 8.0]]]], &Device::flex());
        let clean = known.keep(&schedule, x.clone(), noise.clone(), 0.0).into_data();
        clean.assert_eq(&TensorData::from([[[[3.0f32, 8.0]]]]), true);
        let half = known.keep(&schedule, x, noise, 0.5).into_data();
        let bar = schedule.alpha_cumprod(0.5);
        let expected = [[[[3.0 * bar.sqrt() + 0.5 * (1.0 - bar).sqrt(), 8.0]]]];
        half.assert_approx_eq::<f32>(&TensorData::from(expected), Tolerance::absolute(1e-6));
    }
}
