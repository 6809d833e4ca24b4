//! Values of a batch in main memory.

use std::ops::Range;

use burn::prelude::*;
use wuerstchen::Schedule;
use wuerstchen::noise::Philox;
use wuerstchen::sampler::add_noise;
use wuerstchen::schedule::{TIME_SPREAD, training_time};

use crate::told::Told;

/// Values of the same shape for every sample of a batch, or for some consecutive ones. They are in main memory, so that
/// any thread can make them and any device can take some of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Channels, height and width of a sample.
    shape: [usize; 3],
    /// The place in the batch of the first sample that is here.
    first: usize,
    values: Vec<f32>,
}

/// Most pixels of the pictures that go through a network at a time: 64 pictures of 128 pixels a side.
const PIXELS_AT_ONCE: usize = 1 << 20;

impl Rows {
    /// Rows of the shape `[channels, height, width]`, one after the other.
    ///
    /// # Panics
    ///
    /// Panics if `values` ends within a row.
    pub fn new(shape: [usize; 3], values: Vec<f32>) -> Self {
        let size: usize = shape.iter().product();
        assert!(values.len().is_multiple_of(size), "{} values in rows of {size}", values.len());
        Self { shape, first: 0, values }
    }

    /// The same values, as those of a batch's samples from the place `first` on.
    pub fn at(self, first: usize) -> Self {
        Self { first, ..self }
    }

    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.values.len() / self.shape.iter().product::<usize>()
    }

    /// All values as bytes, as they lie in memory.
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.values)
    }

    /// Channels, height and width of a sample.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Standard normal noise for the samples `own` of `count`; the random numbers of the other samples are skipped.
    pub fn noise(rng: &mut Philox, count: usize, shape: [usize; 3], own: &Range<usize>) -> Self {
        let size: usize = shape.iter().product();
        // Box–Muller draws numbers in pairs, so the first number may be the second of a pair.
        let first = own.start * size;
        let (even, all) = (first / 2 * 2, (count * size).next_multiple_of(2));
        rng.skip(even);
        let mut values = rng.normal(own.end * size - even);
        values.drain(..first - even);
        rng.skip(all - (own.end * size).next_multiple_of(2));
        Self::new(shape, values).at(own.start)
    }

    /// What a network makes of all pictures. They go through it in parts: large pictures in small parts.
    pub(crate) fn through(
        &self,
        device: &Device,
        network: impl Fn(Tensor<4>) -> Tensor<4>,
    ) -> Tensor<4> {
        let ([_, height, width], count) = (self.shape, self.count());
        let most = (PIXELS_AT_ONCE / (height * width)).max(1);
        let parts = (0..count).step_by(most).map(|start| start..count.min(start + most));
        Tensor::cat(parts.map(|part| network(self.tensor(&part, device))).collect(), 0)
    }

    /// The samples `range` as a tensor `[B, C, H, W]`.
    ///
    /// # Panics
    ///
    /// Panics if one of them is not here.
    pub fn tensor(&self, range: &Range<usize>, device: &Device) -> Tensor<4> {
        let [channels, height, width] = self.shape;
        let size = channels * height * width;
        let [start, end] = [range.start, range.end].map(|place| (place - self.first) * size);
        let values = self.values[start..end].to_vec();
        let shape = [range.len(), channels, height, width];
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}

/// A time and noise for every sample of a batch.
pub(crate) struct Noise {
    pub(crate) times: Vec<f32>,
    pub(crate) values: Rows,
}

impl Noise {
    /// Draws times for a batch of `count`, and noise of the given shape for the samples `own` of it.
    pub(crate) fn draw(
        rng: &mut Philox,
        (count, own): (usize, &Range<usize>),
        shape: [usize; 3],
        shift: f32,
    ) -> Self {
        let times = draw_times(rng, count, shift);
        Self { times, values: Rows::noise(rng, count, shape, own) }
    }
}

/// Draws the times of a batch.
///
/// A time is that of [`training_time`], `t`; a `shift` `s` turns it into `s·t/(1 + (s − 1)·t)`.
///
/// Source of the shift: Esser et al. (arXiv 2403.03206), equation 23.
pub(crate) fn draw_times(rng: &mut Philox, count: usize, shift: f32) -> Vec<f32> {
    let time = |_| {
        let t = training_time(rng.uniform(), TIME_SPREAD);
        shift * t / (1.0 + (shift - 1.0) * t)
    };
    (0..count).map(time).collect()
}

/// Clean latents noised to random times.
pub(crate) struct Noised<'a> {
    /// The noised latents.
    pub(crate) x: Tensor<4>,
    /// The noise.
    noise: Tensor<4>,
    /// The time of every sample.
    pub(crate) times: &'a [f32],
}

impl<'a> Noised<'a> {
    /// Noises the samples `range` of a batch.
    pub(crate) fn new(
        clean: Tensor<4>,
        noise: &'a Noise,
        range: &Range<usize>,
        schedule: &Schedule,
    ) -> Self {
        let times = &noise.times[range.clone()];
        let noise = noise.values.tensor(range, &clean.device());
        Self { x: add_noise(schedule, clean, noise.clone(), times), noise, times }
    }

    /// The mean over the samples of the squared error of the predicted noise, times the `weight` of the sample's
    /// time.
    pub(crate) fn weighted_loss(
        &self,
        predicted: Tensor<4>,
        weight: impl Fn(f32) -> f32,
    ) -> Tensor<1> {
        let weights: Vec<f32> = self.times.iter().map(|&t| weight(t)).collect();
        self.loss(predicted, &weights)
    }

    /// As [`Self::weighted_loss`], with a weight for every sample.
    pub(crate) fn loss(&self, predicted: Tensor<4>, weights: &[f32]) -> Tensor<1> {
        let weights = column(weights, &predicted.device());
        ((predicted - self.noise.clone()).square() * weights).mean()
    }
}

/// Number of equal intervals of time, from 0 to 1, for which metrics have the error.
const TIME_PARTS: usize = 8;

/// The names in metrics of the mean squared error in each interval of time.
const TIME_ERRORS: [&str; TIME_PARTS] = [
    "error_t0", "error_t1", "error_t2", "error_t3", "error_t4", "error_t5", "error_t6", "error_t7",
];

impl Noised<'_> {
    /// The unweighted squared error of the predicted noise by interval of time: the sum over the samples of each
    /// interval, then the number of samples in each, all divided by the number of samples. The numbers that `more`
    /// makes from the errors and the times of the samples follow.
    pub(crate) fn errors_by_time(
        &self,
        predicted: &Tensor<4>,
        more: impl FnOnce(&[f32], &[f32]) -> Vec<f32> + Send + 'static,
    ) -> Told {
        let errors = (predicted.clone().detach() - self.noise.clone()).square();
        let errors = errors.flatten::<2>(1, 3).mean_dim(1).squeeze_dim::<1>(1);
        let times = self.times.to_vec();
        let make = move |read: &[Vec<f32>]| {
            let errors = &read[0];
            let mut told = vec![0.0; 2 * TIME_PARTS];
            let weight = 1.0 / times.len() as f32;
            for (error, time) in errors.iter().zip(&times) {
                let part = ((time * TIME_PARTS as f32) as usize).min(TIME_PARTS - 1);
                told[part] += error * weight;
                told[TIME_PARTS + part] += weight;
            }
            told.extend(more(errors, &times));
            told
        };
        Told { read: vec![errors], make: Box::new(make) }
    }
}

/// How many of the numbers of [`Noised::errors_by_time`] are errors by time.
pub(crate) const TOLD_BY_TIME: usize = 2 * TIME_PARTS;

/// The mean squared errors from the numbers of [`Noised::errors_by_time`]; intervals without samples are left out.
pub(crate) fn time_errors(told: &[f32]) -> Vec<(&'static str, f64)> {
    let (errors, weights) = told[..TOLD_BY_TIME].split_at(TIME_PARTS);
    let parts = TIME_ERRORS.into_iter().zip(errors).zip(weights);
    let with_samples = parts.filter(|(_, weight)| **weight > 0.0);
    with_samples.map(|((name, error), weight)| (name, (error / weight).into())).collect()
}

/// A factor for every sample, `[B, 1, 1, 1]`.
pub(crate) fn column(values: &[f32], device: &Device) -> Tensor<4> {
    Tensor::<1>::from_data(values, device).reshape([values.len(), 1, 1, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also of samples of an odd number of values, whose pairs of random numbers are shared with the neighbours.
    #[test]
    fn a_part_of_the_noise_is_as_in_the_whole() {
        for shape in [[1, 1, 3], [2, 2, 1]] {
            let mut whole = Philox::new(1, 0);
            let all = Rows::noise(&mut whole, 5, shape, &(0..5));
            for own in [0..1, 1..2, 1..4, 3..5, 0..5] {
                let mut rng = Philox::new(1, 0);
                let some = Rows::noise(&mut rng, 5, shape, &own);
                let device = Device::flex();
                let expected = all.tensor(&own, &device).into_data();
                assert_eq!(some.tensor(&own, &device).into_data(), expected, "{own:?}");
                assert_eq!(rng.next_u32(), whole.clone().next_u32(), "{own:?}");
            }
        }
    }

    /// Of four samples with mean errors 1, 5, 4 and 0, two lie in the first eighth of time and two in the last.
    #[test]
    fn errors_are_told_by_time() {
        let device = Device::flex();
        let noise = Tensor::<4>::zeros([4, 1, 1, 2], &device);
        let noised = Noised { x: noise.clone(), noise, times: &[0.1, 0.0, 1.0, 0.9] };
        let predicted = [[1.0f32, 1.0], [3.0, 1.0], [2.0, 2.0], [0.0, 0.0]];
        let predicted = Tensor::<2>::from_data(predicted, &device).reshape([4, 1, 1, 2]);
        let told = noised.errors_by_time(&predicted, |_, _| Vec::new());
        assert_eq!(time_errors(&told.ask()), [("error_t0", 3.0), ("error_t7", 2.0)]);
    }

    /// Half of the times are above 0.54 without a shift, and 74 of a hundred with one of 3.
    #[test]
    fn a_shift_above_one_draws_noisier_times() {
        let share = |shift| {
            let noise = Noise::draw(&mut Philox::new(1, 0), (4000, &(0..4000)), [1, 1, 1], shift);
            assert!(noise.times.iter().all(|t| (0.001..=1.0).contains(t)));
            noise.times.iter().filter(|&&t| t > 0.541).count() as f64 / 4000.0
        };
        assert!((share(1.0) - 0.5).abs() < 0.03, "{}", share(1.0));
        // 0.541 is made of 0.282, which (1 - U)·1.08 + 0.001 exceeds where U < 0.74.
        assert!((share(3.0) - 0.74).abs() < 0.03, "{}", share(3.0));
    }
}
