//! The denoising of both diffusion stages.

use std::future::{poll_fn, ready};
use std::ops::ControlFlow;
use std::task::Poll;

use burn::prelude::*;

use super::progress::{Error, OnStep, Progress};
use crate::guidance::{guide, is_guided, rescale};
use crate::noise::Philox;
use crate::options::Settings;
use crate::part::Stage;
use crate::sampler::{Known, Recipe, Sampler, clean_latents};
use crate::schedule::Schedule;

/// Makes standard normal noise of a shape.
pub type Noise<'a> = &'a mut dyn FnMut([usize; 4]) -> Tensor<4>;

/// How one stage is sampled.
pub struct Sampling<'a> {
    /// The times to visit, falling from at most 1 to 0.
    pub timesteps: &'a [f32],
    /// The guidance scale; a scale above 1 guides.
    pub guidance_scale: f64,
    /// How far to undo the wider spread that guidance gives to predictions, `[0, 1]`: 0 not at all.
    pub guidance_rescale: f64,
    /// The step from one time to the next.
    pub sampler: Sampler,
    /// What the model sees and what the result is.
    pub recipe: Recipe,
    /// Shift of the noise schedule; 1 for none.
    pub shift: f64,
}

impl<'a> Sampling<'a> {
    /// diffusers' sampling.
    pub fn new(timesteps: &'a [f32], guidance_scale: f64, sampler: Sampler) -> Self {
        let recipe = Recipe::Diffusers;
        Self { timesteps, guidance_scale, guidance_rescale: 0.0, sampler, recipe, shift: 1.0 }
    }

    /// The time that the model sees at time `t`.
    fn model_time(&self, schedule: &Schedule, t: f32) -> f32 {
        match self.recipe {
            Recipe::Diffusers => t,
            Recipe::Authors => schedule.model_time(t),
        }
    }

    /// The noise in `x` at time `t` as `predict` finds it, guided if the scale says so.
    fn predict(
        &self,
        schedule: &Schedule,
        x: &Tensor<4>,
        t: f32,
        predict: &dyn Fn(Tensor<4>, &[f32]) -> Tensor<4>,
    ) -> Tensor<4> {
        let ([batch, ..], t) = (x.dims(), self.model_time(schedule, t));
        if !is_guided(self.guidance_scale) {
            return predict(x.clone(), &vec![t; batch]);
        }
        let twice = Tensor::cat(vec![x.clone(), x.clone()], 0);
        let epsilon = predict(twice, &vec![t; 2 * batch]);
        let conditional = epsilon.clone().narrow(0, 0, batch);
        let unconditional = epsilon.narrow(0, batch, batch);
        let guided = guide(conditional.clone(), unconditional, self.guidance_scale);
        if self.guidance_rescale > 0.0 {
            rescale(guided, conditional, self.guidance_rescale)
        } else {
            guided
        }
    }
}

impl Settings {
    /// How Stage C is sampled at these times.
    pub(crate) fn prior_sampling<'a>(&self, timesteps: &'a [f32]) -> Sampling<'a> {
        Sampling {
            guidance_rescale: self.guidance_rescale,
            recipe: self.recipe,
            shift: self.prior_shift,
            ..Sampling::new(timesteps, self.prior_guidance_scale, self.sampler)
        }
    }

    /// The largest guidance scale of Stage B's steps.
    pub(super) fn largest_decoder_guidance(&self) -> f64 {
        let end = self.tokens.map_or(0.0, |tokens| tokens.decoder_guidance_scale_end);
        self.decoder_guidance_scale.max(end)
    }

    /// How Stage B is sampled.
    pub(crate) fn decoder_sampling(&self) -> Sampling<'_> {
        Sampling {
            guidance_rescale: self.guidance_rescale,
            recipe: self.recipe,
            shift: self.decoder_shift,
            ..Sampling::new(&self.decoder_timesteps, self.decoder_guidance_scale, self.sampler)
        }
    }
}

/// A condition and, if the sampling is guided, the one that it is guided away from.
pub struct Guided<T> {
    /// The condition that guidance leads to.
    pub conditional: T,
    /// The condition that guidance leads away from; `None` without guidance.
    pub unconditional: Option<T>,
}

impl<T: Clone> Guided<T> {
    /// The conditions for a sampling with this guidance scale: only one if the scale does not guide.
    pub(super) fn at(&self, guidance_scale: f64) -> Self {
        let unconditional = self.unconditional.clone();
        let unconditional = unconditional.filter(|_| is_guided(guidance_scale));
        Self { conditional: self.conditional.clone(), unconditional }
    }
}

/// A stream of noise for every picture of a batch, so that none depends on the others.
pub(super) struct Streams<'a> {
    streams: Vec<Philox>,
    device: &'a Device,
}

impl<'a> Streams<'a> {
    pub(super) fn new(seed: u64, count: usize, device: &'a Device) -> Self {
        Self { streams: (0..count as u64).map(|image| Philox::new(seed, image)).collect(), device }
    }

    /// Standard normal noise, `[B, channels, height, width]`.
    pub(super) fn draw(&mut self, [channels, height, width]: [usize; 3]) -> Tensor<4> {
        let shape = [1, channels, height, width];
        let one = |stream: &mut Philox| stream.normal_tensor(shape, self.device);
        Tensor::cat(self.streams.iter_mut().map(one).collect(), 0)
    }

    /// The stream of every picture.
    pub(super) fn each(&mut self) -> &mut [Philox] {
        &mut self.streams
    }
}

/// The denoising of one batch that starts at noise.
pub(crate) async fn denoise(
    stage: Stage,
    schedule: &Schedule,
    x: Tensor<4>,
    sampling: &Sampling<'_>,
    predict: &dyn Fn(Tensor<4>, &[f32]) -> Tensor<4>,
    noise: Noise<'_>,
    on_step: &mut dyn OnStep,
) -> Result<Tensor<4>, Error> {
    let (task, mut steps) =
        (Task { stage, schedule, known: None }, Steps::of([sampling.timesteps]));
    task.denoise(x, sampling, predict, noise, &mut steps, on_step).await
}

/// Counts the steps of a stage.
pub(super) struct Steps {
    done: usize,
    all: usize,
}

impl Steps {
    pub(super) fn of(schedules: impl IntoIterator<Item = impl AsRef<[f32]>>) -> Self {
        let steps = schedules.into_iter().map(|times| times.as_ref().len() - 1);
        Self { done: 0, all: steps.sum() }
    }
}

/// The denoising of one batch in one of the two diffusion stages.
pub(super) struct Task<'a> {
    pub(super) stage: Stage,
    pub(super) schedule: &'a Schedule,
    pub(super) known: Option<&'a Known>,
}

impl Task<'_> {
    /// The sampling loop of both stages; `x` is the initial noise.
    pub(super) async fn denoise(
        &self,
        x: Tensor<4>,
        sampling: &Sampling<'_>,
        predict: &dyn Fn(Tensor<4>, &[f32]) -> Tensor<4>,
        noise: Noise<'_>,
        steps: &mut Steps,
        on_step: &mut dyn OnStep,
    ) -> Result<Tensor<4>, Error> {
        let schedule = &Schedule { shift: sampling.shift, ..*self.schedule };
        let initial = x.clone();
        let mut x = match self.known {
            Some(known) => known.start(schedule, x, sampling.timesteps[0]),
            None => x,
        };
        let mut clean = None;
        // The result of the step before, while it is on its way from the device.
        let mut late = None;
        for times in sampling.timesteps.windows(2) {
            let epsilon = sampling.predict(schedule, &x, times[0], predict);
            // Drawn at the last step too, as the reference does, to keep its order of random numbers.
            let z = noise(x.dims());
            let times = [times[0], times[1]];
            x = match sampling.recipe {
                Recipe::Diffusers => sampling.sampler.step(schedule, x, epsilon, z, times),
                Recipe::Authors => {
                    let found = clean_latents(schedule, x.clone(), epsilon.clone(), times[0]);
                    clean = Some(found);
                    sampling.sampler.noisy_step(schedule, x, epsilon, z, times)
                }
            };
            if let Some(known) = self.known {
                x = known.keep(schedule, x, initial.clone(), times[1]);
                clean = clean.map(|clean| known.keep(schedule, clean, initial.clone(), 0.0));
            }
            steps.done += 1;
            if let Some((step, latents)) = late.take() {
                self.tell(step, steps.all, latents, on_step).await?;
            }
            // Polled once, so that a GPU begins to copy and works on this step while the host prepares the next
            // one. On a CPU the result is there already.
            let mut latents = Box::pin(read(x.clone()));
            let begun = poll_fn(|context| Poll::Ready(latents.as_mut().poll(context)));
            match begun.await {
                Poll::Ready(latents) => {
                    self.tell(steps.done, steps.all, ready(latents), on_step).await?;
                }
                Poll::Pending => late = Some((steps.done, latents)),
            }
        }
        if let Some((step, latents)) = late {
            self.tell(step, steps.all, latents, on_step).await?;
        }
        Ok(clean.unwrap_or(x))
    }

    /// Checks and reports what a step has made, once it is there.
    async fn tell(
        &self,
        step: usize,
        steps: usize,
        latents: impl Future<Output = Result<TensorData, Error>>,
        on_step: &mut dyn OnStep,
    ) -> Result<(), Error> {
        let latents = latents.await?;
        if latents.iter::<f32>().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite { stage: self.stage, step });
        }
        report(on_step, self.stage, step, steps, &latents).await
    }
}

pub(crate) async fn report(
    on_step: &mut dyn OnStep,
    stage: Stage,
    step: usize,
    steps: usize,
    latents: &TensorData,
) -> Result<(), Error> {
    match on_step.call(Progress { stage, step, steps, latents }).await {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

pub(crate) async fn read<const D: usize>(x: Tensor<D>) -> Result<TensorData, Error> {
    x.into_data_async().await.map_err(Error::of_device)
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;
    use crate::schedule::uniform_timesteps;

    /// Of two pixels the first is kept and the second painted. The conditional prediction is half the latents, the
    /// unconditional one a quarter. Guided with a scale of 3, the prediction is the latents themselves.
    #[test]
    fn guidance_paints_what_the_mask_leaves() {
        let (device, schedule) = (Device::flex(), Schedule::default());
        let pixels = |values: [f32; 2]| Tensor::<4>::from_data([[[values]]], &device);
        let known = Known { clean: pixels([3.0, 5.0]), mask: Some(pixels([0.0, 1.0])) };
        let times = uniform_timesteps(8);
        let sample = |known, guidance_scale, predict: &dyn Fn(Tensor<4>, &[f32]) -> Tensor<4>| {
            let sampling = Sampling::new(&times, guidance_scale, Sampler::Ddim);
            let task = Task { stage: Stage::Prior, schedule: &schedule, known };
            let (mut steps, noise) = (Steps::of([&times]), &mut |_| pixels([9.0, 9.0]));
            let go = &mut async |_: Progress<'_>| ControlFlow::Continue(());
            let x = pixels([0.5, -1.0]);
            let made = task.denoise(x, &sampling, predict, noise, &mut steps, go);
            block_on(made).unwrap().into_data().try_to_vec::<f32>().unwrap()
        };
        let halves = |x: Tensor<4>, times: &[f32]| {
            assert_eq!((x.dims(), times.len()), ([2, 1, 1, 2], 2));
            x * Tensor::<1>::from_data([0.5, 0.25], &device).reshape([2, 1, 1, 1])
        };
        let found = sample(Some(&known), 3.0, &halves);
        let expected = sample(None, 1.0, &|x, _| x);
        assert_eq!(found[0], 3.0);
        assert!((found[1] - expected[1]).abs() < 1e-5, "{found:?} {expected:?}");
    }
}
