//! Every shader, on whatever adapter there is, against its composed twin on the CPU.

use burn::prelude::*;
use burn::tensor::DType;
use wuerstchen_kernels::{
    DepthwiseOptions, PackedMatrix, Packing, Padding, Planes, depthwise_conv, global_response_norm,
    layer_norm, linear, packed_linear, reference,
};
use wuerstchen_tests::{error_of, gpu, values};

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
        let error = error_of(layer_norm(x(&device)), expected);
        // One channel is its own mean: both sides are zero.
        assert!(error < TOLERANCE, "{shape:?}: {error}");
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
        let error = error_of(global_response_norm(x, gamma, beta), expected);
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
            let error = error_of(depthwise_conv(x, weight, bias, options), expected);
            assert!(error < TOLERANCE, "{shape:?} {size}x{size} {options:?}: {error}");
        }
    }
}

/// Rows, outputs and columns of products: few, odd, not whole tiles, with a last block that is short.
const PRODUCTS: [[usize; 3]; 6] =
    [[1, 1, 2], [1, 4, 4], [5, 40, 70], [33, 65, 192], [70, 96, 64], [131, 36, 324]];

#[test]
fn linear_matches_its_twin() {
    let Some(device) = gpu() else { return };
    for [inputs, outputs, columns] in PRODUCTS {
        let on = |device: &Device| {
            let x: Tensor<3> = values([1, inputs, columns], 3, device);
            let weight: Tensor<2> = values([columns, outputs], 4, device);
            (x, weight, Some(values([outputs], 5, device)))
        };
        let (x, weight, bias) = on(&Device::flex());
        let expected = reference::linear(x, weight, bias);
        let (x, weight, bias) = on(&device);
        let error = error_of(linear(x, weight, bias), expected);
        assert!(error < TOLERANCE, "{inputs} {outputs} {columns}: {error}");
    }
}

/// Words that look random, and scales of the size that makes weights of about one.
fn packed(packing: Packing, [rows, columns]: [usize; 2], device: &Device) -> PackedMatrix {
    let words = |count: usize, seed: u32| -> Vec<i32> {
        (0..count as u32).map(|i| (i + seed).wrapping_mul(0x9e37_79b9) as i32).collect()
    };
    let mut values = words(rows * packing.value_words(columns), 1);
    if packing == Packing::F16 {
        // Exponents below that of infinity.
        values.iter_mut().for_each(|word| *word &= 0xbbff_bbffu32 as i32);
    }
    let scale = 2.0 / f32::from(1u16 << (packing.bits() - 1));
    let scales = (0..rows * packing.blocks(columns)).map(|i| scale * (1 + i % 3) as f32);
    let zeros = words(rows * packing.zero_words(columns), 7);
    let planes = Planes { values, scales: scales.collect(), zeros };
    PackedMatrix::new(packing, [rows, columns], planes, device)
}

#[test]
fn packed_linear_matches_its_twin() {
    let Some(device) = gpu() else { return };
    for packing in [Packing::F16, Packing::I8, Packing::I4] {
        for [inputs, outputs, columns] in PRODUCTS {
            // All columns of the weight, and the first half of them.
            for width in [columns, columns.min(columns.div_ceil(8) * 4)] {
                let on = |device: &Device| {
                    let x: Tensor<2> = values([inputs, width], 3, device);
                    (x, packed(packing, [outputs, columns], device))
                };
                let (x, weight) = on(&Device::flex());
                let expected = reference::packed_linear(x, &weight);
                let (x, weight) = on(&device);
                let error = error_of(packed_linear(x, &weight, None), expected);
                assert!(error < TOLERANCE, "{packing:?} {inputs} {outputs} {width}: {error}");
            }
        }
    }
}

/// Halves have eleven bits: each input is up to 2⁻¹¹ = 5e-4 off, and so is the result.
const HALF_TOLERANCE: f64 = 2e-3;

/// Every shader in half precision, with the sizes of a stage.
#[test]
fn shaders_in_half_precision_match_their_twins() {
    let Some(device) = gpu() else { return };
    let shape = [2, 6, 6, 64];
    let check = |name: &str, compute: &dyn Fn(&Device, DType) -> Tensor<4>| {
        let expected = compute(&Device::flex(), DType::F32);
        let found = compute(&device, DType::F16);
        assert_eq!(found.dtype(), DType::F16, "{name}");
        let error = error_of(found, expected);
        assert!(error < HALF_TOLERANCE, "{name}: {error}");
    };
    let x = |device: &Device, dtype| values(shape, 1, device).cast(dtype);
    check("layer norm", &|device, dtype| layer_norm(x(device, dtype)));
    check("global response norm", &|device, dtype| {
        let affine = |seed| values([1, 1, 1, 64], seed, device).cast(dtype);
        global_response_norm(x(device, dtype), affine(2), affine(3))
    });
    check("depthwise convolution", &|device, dtype| {
        let weight: Tensor<4> = values([64, 1, 3, 3], 4, device).cast(dtype);
        let bias: Tensor<1> = values([64], 5, device).cast(dtype);
        let options = DepthwiseOptions { stride: 1, padding: Padding::Zeros };
        depthwise_conv(x(device, dtype), weight, bias, options)
    });
    check("linear", &|device, dtype| {
        let weight: Tensor<2> = values([64, 40], 6, device).cast(dtype);
        linear(x(device, dtype), weight, Some(values([40], 7, device).cast(dtype)))
    });
    for packing in [Packing::F16, Packing::I8, Packing::I4] {
        check(&format!("packed linear, {packing:?}"), &|device, dtype| {
            packed_linear(x(device, dtype), &packed(packing, [40, 64], device), None)
        });
    }
}

/// The CPU's own unpacking, and the look-up of rows, against the twin.
#[test]
fn unpacking_is_exact() {
    let device = Device::flex();
    for packing in [Packing::F16, Packing::I8, Packing::I4] {
        let matrix = packed(packing, [7, 130], &device);
        let expected = reference::unpack(&matrix);
        matrix.unpack().into_data().assert_eq(&expected.clone().into_data(), true);
        let rows = Tensor::<1, Int>::from_data([6, 0, 3], &device);
        let selected = matrix.select(rows.clone()).into_data();
        selected.assert_eq(&expected.select(0, rows).into_data(), true);
    }
}
