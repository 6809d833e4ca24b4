//! What the tests that cross crates share: devices and comparisons.

use burn::prelude::*;
use wuerstchen::relative_error;

/// The GPU that tests run on, a software one too; `None` where `WUERSTCHEN_GPU_TESTS=no` says that
/// there is none.
///
/// # Panics
///
/// Panics if there is no adapter and nobody said so: a skipped test must be asked for.
pub fn gpu() -> Option<Device> {
    if std::env::var("WUERSTCHEN_GPU_TESTS").is_ok_and(|value| value == "no") {
        return None;
    }
    // Opening the device panics without an adapter, which fails the test, as it should.
    Some(Device::wgpu(Default::default()))
}

/// The [`relative_error`] of a tensor.
///
/// # Panics
///
/// Panics if the shapes differ.
pub fn error_of<const D: usize>(found: Tensor<D>, expected: Tensor<D>) -> f64 {
    let (found, expected) = (found.into_data(), expected.into_data());
    assert_eq!(found.shape(), expected.shape());
    let values = |data: TensorData| data.convert::<f32>().try_to_vec::<f32>().unwrap();
    relative_error(&values(found), &values(expected))
}

/// Deterministic values of about unit size.
pub fn values<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let count = shape.iter().product();
    let values = wuerstchen::noise::Philox::new(seed, 0).normal(count);
    Tensor::from_data(TensorData::new(values, shape), device)
}
