//! Devices, models and comparisons for the tests that cross crates.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use burn::prelude::*;
use wuerstchen::{LoadError, ModelFiles, ReadBytes, StoredDtype, WebBundle, relative_error};

/// The small model `shapes`.
///
/// # Panics
///
/// Panics if the model cannot be read.
pub fn shapes_model() -> ModelFiles {
    let bytes: &'static [u8] = include_bytes!("../../models/shapes.safetensors");
    ModelFiles::from_one_file("shapes", Arc::new(bytes)).unwrap()
}

/// The model after it was written as `dtype` and read back, and its browser bundle.
///
/// # Panics
///
/// Panics if it cannot be written or read.
pub fn stored_as(dtype: StoredDtype) -> (ModelFiles, WebBundle) {
    let mut shards: BTreeMap<String, Arc<dyn ReadBytes>> = BTreeMap::new();
    let write = |file: &str, bytes: &[u8]| {
        shards.insert(file.to_owned(), Arc::new(bytes.to_vec()));
        Ok::<_, LoadError>(())
    };
    let bundle = WebBundle::write(&shapes_model(), dtype, write).unwrap();
    let files = bundle.open::<LoadError>(|file| Ok(shards[file].clone())).unwrap();
    (files, bundle)
}

/// The GPU that tests run on, a software one too; `None`, and a line on stderr, where
/// `WUERSTCHEN_GPU_TESTS=no` says that there is none.
///
/// # Panics
///
/// Panics if there is no adapter but the variable does not say so: a test may be skipped only on request.
pub fn gpu() -> Option<Device> {
    if std::env::var("WUERSTCHEN_GPU_TESTS").is_ok_and(|value| value == "no") {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // Not `eprintln!`, whose output the test harness keeps back when a test passes.
        let _ =
            writeln!(std::io::stderr(), "no GPU, as WUERSTCHEN_GPU_TESTS=no: not run in {test}");
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

/// Normally distributed values that depend only on the shape and the seed.
pub fn values<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let count = shape.iter().product();
    let values = wuerstchen::noise::Philox::new(seed, 0).normal(count);
    Tensor::from_data(TensorData::new(values, shape), device)
}
