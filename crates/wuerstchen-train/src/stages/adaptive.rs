//! Loss weights that follow the errors at each noise level, so that every level counts the same, however hard it is.

use burn::module::{Module, Param};
use burn::prelude::*;
use wuerstchen::Schedule;

/// Number of noise levels that have a weight of their own. They lie between the two logarithms of the signal-to-noise
/// ratio below; the first and the last level take what lies outside.
///
/// Source: `AdaptiveLossWeight` in `gdf/loss_weights.py` of Stability-AI/StableCascade, as are the constants below.
const LEVELS: usize = 300;
const LOG_SNR: [f32; 2] = [-10.0, 10.0];

/// Decay of the mean errors at every update that has a sample of the level.
const DECAY: f32 = 0.99;

/// The least and the largest weight.
const WEIGHTS: [f32; 2] = [1e-7, 1e7];

/// Moving means of the squared error at each level of noise. No gradient trains them.
#[derive(Module, Debug)]
pub struct LevelErrors {
    errors: Param<Tensor<1>>,
}

impl LevelErrors {
    /// Starts with errors of 1, as of a network that always predicts zeros.
    pub fn new(device: &Device) -> Self {
        let errors = Tensor::ones([LEVELS], device);
        Self { errors: Param::from_tensor(errors).set_require_grad(false) }
    }

    /// The weight of each sample, by its time: one divided by the mean error of its noise level.
    pub(crate) fn weights(&self, schedule: &Schedule, times: &[f32]) -> Vec<f32> {
        let errors = self.errors.val().into_data().try_to_vec::<f32>().expect("errors are f32");
        let [least, most] = WEIGHTS;
        times.iter().map(|&t| errors[level(schedule, t)].recip().clamp(least, most)).collect()
    }

    /// Moves the means towards those of a batch, given the output of [`sums_by_level`]. Samples of one level count by
    /// their mean.
    pub(crate) fn follow(self, told: &[f32]) -> Self {
        let (sums, weights) = told.split_at(LEVELS);
        let errors = self.errors.map(|errors| {
            let mut values = errors.clone().into_data().try_to_vec::<f32>().expect("they are f32");
            for ((error, sum), weight) in values.iter_mut().zip(sums).zip(weights) {
                if *weight > 0.0 {
                    *error = *error * DECAY + sum / weight * (1.0 - DECAY);
                }
            }
            Tensor::from_data(TensorData::new(values, [LEVELS]), &errors.device())
        });
        Self { errors }
    }
}

/// For every level the sum of its samples' errors, then for every level the number of its samples, all divided by the
/// number of samples.
pub(crate) fn sums_by_level(schedule: &Schedule, errors: &[f32], times: &[f32]) -> Vec<f32> {
    let mut told = vec![0.0; 2 * LEVELS];
    let weight = 1.0 / times.len() as f32;
    for (error, &time) in errors.iter().zip(times) {
        let level = level(schedule, time);
        told[level] += error * weight;
        told[LEVELS + level] += weight;
    }
    told
}

/// The level of noise at a time: how many of the bounds between levels lie below.
fn level(schedule: &Schedule, time: f32) -> usize {
    let ([low, high], bounds) = (LOG_SNR, LEVELS - 1);
    let step = (high - low) / (bounds - 1) as f32;
    let below = ((schedule.log_snr(time) - low) / step).ceil();
    (below.max(0.0) as usize).min(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pure noise lies below all bounds, a clean picture near the upper end.
    #[test]
    fn levels_rise_with_the_signal() {
        let schedule = Schedule::default();
        let levels = [1.0, 0.9, 0.5, 0.1, 0.0].map(|time| level(&schedule, time));
        assert!(levels.is_sorted() && levels[0] < 20 && levels[4] > 280, "{levels:?}");
        // At time 0.5 the ratio is near to 1, in the middle of the levels.
        assert!((140..160).contains(&levels[2]), "{levels:?}");
    }

    /// Two samples of one level with errors 0.25 and 0.75: the mean error falls from 1 by a hundredth of the way to
    /// 0.5.
    #[test]
    fn weights_follow_the_errors() {
        let (schedule, device) = (Schedule::default(), Device::flex());
        let told = sums_by_level(&schedule, &[0.25, 0.75, 9.0], &[0.5, 0.5, 0.1]);
        let errors = LevelErrors::new(&device).follow(&told);
        let weights = errors.weights(&schedule, &[0.5, 0.1, 0.9]);
        let expected = [1.0 / 0.995, 1.0 / 1.08, 1.0];
        assert!(weights.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{weights:?}");
    }
}
