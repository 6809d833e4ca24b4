//! What a device's arithmetic and memory reach, so that times of kernels can be set beside it.

use burn::backend::Dispatch;
use burn::prelude::*;
use burn::tensor::DType;

use super::WgslKernels;

/// Multiply-adds of an invocation in a round of `probe_multiply_adds.wgsl`.
const ROUND: usize = 64;

/// A computation of nothing but multiply-adds in registers, or of nothing but reading and writing.
pub struct Probe {
    /// Multiply-adds, or bytes read and written.
    pub work: usize,
    /// What the device is to compute.
    pub result: Tensor<1>,
}

/// Multiply-adds in f32: `rounds` of 64 in each of a million invocations.
///
/// # Panics
///
/// Panics if the device does not run shaders.
pub fn probe_multiply_adds(device: &Device, rounds: usize) -> Probe {
    let invocations = 1 << 20;
    let start = Tensor::<1>::full([4], 0.5, (device, DType::F32)).into_dispatch();
    let result = Dispatch::wgsl_probe_multiply_adds(start, invocations, rounds);
    Probe { work: invocations * ROUND * rounds, result: Tensor::from_dispatch(result) }
}

/// A copy of `x`, whose length is a multiple of 4.
///
/// # Panics
///
/// Panics if the device does not run shaders.
pub fn probe_copy(x: Tensor<1>) -> Probe {
    let work = 2 * x.shape().num_elements() * x.dtype().size();
    Probe { work, result: Tensor::from_dispatch(Dispatch::wgsl_probe_copy(x.into_dispatch())) }
}
