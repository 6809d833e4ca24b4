//! Shaders that only compute, or only read and write.

use burn::backend::Dispatch;
use burn::prelude::*;
use burn::tensor::DType;

use super::WgslKernels;
use crate::probe::Probe;

/// Multiply-adds of an invocation in a round of `probe_multiply_adds.wgsl`.
const ROUND: usize = 64;

/// `rounds` of 64 multiply-adds in each of a million invocations.
pub(crate) fn probe_multiply_adds(device: &Device, rounds: usize) -> Probe {
    let invocations = 1 << 20;
    let start = Tensor::<1>::full([4], 0.5, (device, DType::F32)).into_dispatch();
    let result = Dispatch::wgsl_probe_multiply_adds(start, invocations, rounds);
    Probe { work: invocations * ROUND * rounds, result: Tensor::from_dispatch(result) }
}

/// A copy of `x`, whose length is a multiple of 4.
pub(crate) fn copy(x: Tensor<1>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::wgsl_probe_copy(x.into_dispatch()))
}
