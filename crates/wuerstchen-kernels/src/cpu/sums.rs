//! Sums and norms over channels and pixels, in an order that does not depend on the number of threads.

use super::values::{Values, for_each_block};
use crate::global_response_norm::EPSILON as NORM_EPSILON;
use crate::layer_norm::EPSILON as VARIANCE_EPSILON;

/// Sums in sixteen lanes, an order that vectorises and never changes.
#[inline(always)]
pub(super) fn sum(values: impl Fn(usize) -> f32, count: usize) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0f32; LANES];
    for block in 0..count / LANES {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += values(block * LANES + lane);
        }
    }
    let rest: f32 = (count / LANES * LANES..count).map(values).sum();
    lanes.iter().sum::<f32>() + rest
}

/// The largest value, found in sixteen lanes as in [`sum`].
///
/// It compares, because `f32::max` calls a function for each value in WebAssembly.
#[inline(always)]
pub(super) fn maximum(x: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let blocks = x.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// Mean and `1 / sqrt(variance + ε)` of a row.
#[inline(always)]
pub(super) fn row_statistics(x: &[f32]) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = sum(|i| x[i], x.len()) / count;
    let variance = sum(|i| (x[i] - mean) * (x[i] - mean), x.len()) / count;
    (mean, 1.0 / (variance + VARIANCE_EPSILON as f32).sqrt())
}

/// The L2 norm of every channel over the pixels, sample by sample.
pub(super) fn channel_norms(x: &Values) -> Vec<f32> {
    const PART: usize = 256; // pixels in a part of the sum
    let (channels, pixels, values) = (x.channels(), x.pixels(), x.as_slice());
    let per_sample = pixels.div_ceil(PART);
    // Parts are summed first, because a single long sum in f32 would lose the small values that are added last.
    let mut parts = vec![0.0f32; x.shape[0] * per_sample * channels];
    for_each_block(
        &mut parts,
        channels,
        #[inline(always)]
        |i, sums| {
            let (sample, first) = (i / per_sample, i % per_sample * PART);
            let count = PART.min(pixels - first);
            let x = &values[(sample * pixels + first) * channels..][..count * channels];
            for x in x.chunks_exact(channels) {
                sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
            }
        },
    );
    let mut norms = vec![0.0f32; x.shape[0] * channels];
    let samples = norms.chunks_exact_mut(channels).zip(parts.chunks_exact(per_sample * channels));
    for (norms, parts) in samples {
        for part in parts.chunks_exact(channels) {
            norms.iter_mut().zip(part).for_each(|(norm, part)| *norm += part);
        }
        norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
    }
    norms
}

/// The mean of a sample's channel norms, plus `ε`.
pub(super) fn mean_norm(norms: &[f32]) -> f32 {
    norms.iter().sum::<f32>() / norms.len() as f32 + NORM_EPSILON as f32
}
