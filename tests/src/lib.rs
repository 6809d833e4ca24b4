//! What the tests that cross crates share: devices and comparisons.

use burn::prelude::*;

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

/// `||found − expected|| / ||expected||`.
///
/// # Panics
///
/// Panics if the shapes differ or the values are not finite.
pub fn relative_error<const D: usize>(found: Tensor<D>, expected: Tensor<D>) -> f64 {
    let (found, expected) = (found.into_data().convert::<f32>(), expected.into_data());
    let expected = expected.convert::<f32>();
    assert_eq!(found.shape(), expected.shape());
    let (found, expected) = (found.as_slice::<f32>().unwrap(), expected.as_slice::<f32>().unwrap());
    assert!(found.iter().all(|value| value.is_finite()), "not finite");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let pairs = found.iter().zip(expected);
    let error = norm(&mut pairs.map(|(a, b)| f64::from(a - b)));
    error / norm(&mut expected.iter().map(|&v| f64::from(v))).max(f64::MIN_POSITIVE)
}

/// Deterministic values of about unit size.
pub fn values<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let count = shape.iter().product();
    let values = wuerstchen::noise::Philox::new(seed, 0).normal(count);
    Tensor::from_data(TensorData::new(values, shape), device)
}
