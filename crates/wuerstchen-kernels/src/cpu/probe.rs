//! Loops that only compute, or only read and write.

use std::hint::black_box;

use burn::prelude::*;
use pulp::{Simd, WithSimd};
#[cfg(feature = "parallel")]
use rayon::prelude::*;

use super::values::for_each_block;
use crate::probe::Probe;

/// Number of tasks, enough for every thread.
const INVOCATIONS: usize = 1 << 12;

/// Number of vectors that are computed side by side, because a processor begins the next one before one is done.
const VECTORS: usize = 16;

/// Multiply-adds of a vector's element in a round; those of all [`VECTORS`] together are 64.
const REPEATS: usize = 64 / VECTORS;

/// Computes `x/2 + 1/4` again and again; returns the sum and the number of elements of a vector.
struct MultiplyAdds {
    rounds: usize,
}

impl WithSimd for MultiplyAdds {
    type Output = (f32, usize);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let [start, half, quarter] = black_box([0.3, 0.5, 0.25]).map(|x| simd.splat_f32s(x));
        let mut vectors = [start; VECTORS];
        for _ in 0..REPEATS * self.rounds {
            for x in &mut vectors {
                *x = multiply_add(simd, *x, half, quarter);
            }
        }
        let sum = vectors.into_iter().reduce(|sum, x| simd.add_f32s(sum, x)).unwrap_or(start);
        (simd.reduce_sum_f32s(sum), S::F32_LANES)
    }
}

/// `a·b + c`.
#[inline(always)]
pub(super) fn multiply_add<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
    if cfg!(target_family = "wasm") {
        // Not every browser loads a module with the instruction for a multiply-add.
        simd.add_f32s(simd.mul_f32s(a, b), c)
    } else {
        simd.mul_add_e_f32s(a, b, c)
    }
}

/// `rounds` of 64 multiply-adds of vectors in each of 4,096 tasks; gives the mean of each task.
pub(crate) fn probe_multiply_adds(device: &Device, rounds: usize) -> Probe {
    let run = |rounds| pulp::Arch::new().dispatch(MultiplyAdds { rounds });
    let lanes = run(0).1;
    let mut means = vec![0.0; INVOCATIONS];
    for_each_block(&mut means, 1, |_, mean| mean[0] = run(rounds).0 / (VECTORS * lanes) as f32);
    let work = INVOCATIONS * VECTORS * REPEATS * rounds * lanes;
    Probe { work, result: Tensor::from_data(TensorData::new(means, [INVOCATIONS]), device) }
}

/// A copy of `x`.
pub(crate) fn copy(x: Tensor<1>) -> Tensor<1> {
    let (device, data) = (x.device(), x.into_data());
    let values: &[f32] = data.as_slice().expect("the caller has checked the type");
    #[cfg(feature = "parallel")]
    let copy: Vec<f32> = values.par_iter().copied().collect();
    #[cfg(not(feature = "parallel"))]
    let copy = values.to_vec();
    Tensor::from_data(TensorData::new(copy, [values.len()]), &device)
}
