//! Every shader, on whatever adapter there is, against its composed twin on the CPU.

use burn::prelude::*;
use wuerstchen_kernels::{
    DepthwiseOptions, Padding, depthwise_conv, global_response_norm, layer_norm, reference,
};
use wuerstchen_tests::{gpu, relative_error, values};

/// Sums in another order than the twin's.
const TOLERANCE: f64 = 1e-5;

/// Odd sizes, channels that no workgroup divides, one with more than 65 535 workgroups.
const SHAPES: [[usize; 4]; 5] =
    [[1, 1, 1, 1], [2, 5, 7, 48], [1, 3, 4, 257], [3, 8, 8, 64], [1, 300, 300, 2]];

#[test]
fn layer_norm_matches_its_twin() {
    let Some(device) = gpu() else { return };
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let x = |device: &Device| values(shape, seed as u64, device);
        let expected = reference::layer_norm(x(&Device::flex()));
        let error = relative_error(layer_norm(x(&device)), expected);
        // One channel is its own mean: both sides are zero.
        assert!(shape[3] == 1 || error < TOLERANCE, "{shape:?}: {error}");
    }
}

#[test]
fn global_response_norm_matches_its_twin() {
    let Some(device) = gpu() else { return };
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let on = |device: &Device| {
            let affine = |seed| values([1, 1, 1, shape[3]], seed, device);
            (values(shape, seed as u64, device), affine(1), affine(2))
        };
        let (x, gamma, beta) = on(&Device::flex());
        let expected = reference::global_response_norm(x, gamma, beta);
        let (x, gamma, beta) = on(&device);
        let error = relative_error(global_response_norm(x, gamma, beta), expected);
        assert!(error < TOLERANCE, "{shape:?}: {error}");
    }
}

#[test]
fn depthwise_conv_matches_its_twin() {
    let Some(device) = gpu() else { return };
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        for (size, stride, padding) in
            [(3, 1, Padding::Zeros), (3, 2, Padding::Zeros), (5, 1, Padding::Replicate)]
        {
            let options = DepthwiseOptions { stride, padding };
            let on = |device: &Device| {
                let weight: Tensor<4> = values([shape[3], 1, size, size], 1, device);
                let bias: Tensor<1> = values([shape[3]], 2, device);
                (values(shape, seed as u64, device), weight, bias)
            };
            let (x, weight, bias) = on(&Device::flex());
            let expected = reference::depthwise_conv(x, weight, bias, options);
            let (x, weight, bias) = on(&device);
            let error = relative_error(depthwise_conv(x, weight, bias, options), expected);
            assert!(error < TOLERANCE, "{shape:?} {size}x{size} {options:?}: {error}");
        }
    }
}
