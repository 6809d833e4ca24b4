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

/// Number of rows or pixels that are summed before the other parts are added: a single long sum in f32 would lose the
/// small values that are added last.
const PART: usize = 256;

/// The sums of `f` of every channel over the pixels, at least one, sample by sample. `f` is to be inlined as in
/// [`for_each_block`].
pub(super) fn channel_sums(
    values: &[f32],
    [pixels, channels]: [usize; 2],
    f: impl Fn(f32) -> f32 + Sync,
) -> Vec<f32> {
    let (samples, per_sample) = (values.len() / (pixels * channels), pixels.div_ceil(PART));
    let mut parts = vec![0.0f32; samples * per_sample * channels];
    for_each_block(
        &mut parts,
        channels,
        #[inline(always)]
        |i, sums| {
            let (sample, first) = (i / per_sample, i % per_sample * PART);
            let count = PART.min(pixels - first);
            let x = &values[(sample * pixels + first) * channels..][..count * channels];
            for x in x.chunks_exact(channels) {
                sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += f(*x));
            }
        },
    );
    parts
        .chunks_exact(per_sample * channels)
        .flat_map(|parts| sum_blocks(parts, channels, channels))
        .collect()
}

/// `count` sums over rows. `add` takes the number of a row, and adds that row's values to the sums. It is to be inlined
/// as in [`for_each_block`].
#[cfg(feature = "train")]
pub(super) fn row_sums(
    rows: usize,
    count: usize,
    add: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut parts = vec![0.0f32; rows.div_ceil(PART) * count];
    for_each_block(
        &mut parts,
        count,
        #[inline(always)]
        |i, sums| {
            for row in i * PART..rows.min((i + 1) * PART) {
                add(row, sums);
            }
        },
    );
    sum_blocks(&parts, count, count)
}

/// The sums over all blocks of their first `count` values.
pub(super) fn sum_blocks(values: &[f32], block: usize, count: usize) -> Vec<f32> {
    let mut total = vec![0.0; count];
    for values in values.chunks_exact(block) {
        total.iter_mut().zip(values).for_each(|(total, value)| *total += value);
    }
    total
}

/// The L2 norm of every channel over the pixels, sample by sample.
pub(super) fn channel_norms(x: &Values) -> Vec<f32> {
    let mut norms = channel_sums(
        x.as_slice(),
        [x.pixels(), x.channels()],
        #[inline(always)]
        |x| x * x,
    );
    norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
    norms
}

/// The mean of a sample's channel norms, plus `ε`.
pub(super) fn mean_norm(norms: &[f32]) -> f32 {
    norms.iter().sum::<f32>() / norms.len() as f32 + NORM_EPSILON as f32
}
