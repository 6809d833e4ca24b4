//! Values of a batch in main memory.

use std::ops::Range;

use burn::prelude::*;
use wuerstchen::Schedule;
use wuerstchen::noise::Philox;
use wuerstchen::sampler::add_noise;
use wuerstchen::schedule::{TIME_SPREAD, training_time};

/// Values of the same shape for every sample of a batch, or for neighbouring ones, in main memory, so that any thread
/// can make them and any device take a part of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Channels, height and width of a sample.
    shape: [usize; 3],
    /// The place in the batch of the first sample that is here.
    first: usize,
    values: Vec<f32>,
}

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

    /// The same values, those of a batch's samples from the place `first` on.
    pub fn at(self, first: usize) -> Self {
        Self { first, ..self }
    }

    /// Channels, height and width of a sample.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Standard normal noise for the samples `own` of `count`; the others' random numbers are left out.
    pub fn noise(rng: &mut Philox, count: usize, shape: [usize; 3], own: &Range<usize>) -> Self {
        let size: usize = shape.iter().product();
        // Numbers are drawn in pairs.
        let first = own.start * size;
        let (even, all) = (first / 2 * 2, (count * size).next_multiple_of(2));
        rng.skip(even);
        let mut values = rng.normal(own.end * size - even);
        values.drain(..first - even);
        rng.skip(all - (own.end * size).next_multiple_of(2));
        Self::new(shape, values).at(own.start)
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
/// Times are those of [`training_time`]. A `shift` s makes s·t/(1 + (s − 1)·t) of them.
///
/// Source, of the shift: Esser et al. (arXiv 2403.03206), equation 23.
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

    /// The mean over the samples of the squared error of the predicted noise, weighted by p2 if
    /// there is a `p2_k`.
    pub(crate) fn loss(
        &self,
        predicted: Tensor<4>,
        schedule: &Schedule,
        p2_k: Option<f32>,
    ) -> Tensor<1> {
        self.weighted_loss(predicted, |t| p2_k.map_or(1.0, |k| schedule.p2_weight(t, k)))
    }

    /// The mean over the samples of the squared error of the predicted noise, times the `weight` of their
    /// times.
    pub(crate) fn weighted_loss(
        &self,
        predicted: Tensor<4>,
        weight: impl Fn(f32) -> f32,
    ) -> Tensor<1> {
        let weights: Vec<f32> = self.times.iter().map(|&t| weight(t)).collect();
        let weights = column(&weights, &predicted.device());
        ((predicted - self.noise.clone()).square() * weights).mean()
    }
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
