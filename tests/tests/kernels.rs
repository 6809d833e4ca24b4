//! Compares every shader, on any available adapter, with its composed twin on the CPU.

use std::sync::{Mutex, PoisonError};

use burn::prelude::*;
use burn::tensor::DType;
use wuerstchen_kernels::{
    AdamW, DepthwiseOptions, Epilogue, PackedMatrix, Packing, Padding, Planes, Products, Tiling,
    adamw, attention, choose_products, depthwise_conv, global_response_norm, has_halves,
    joined_attention, layer_norm, linear, packed_linear, patches, reference, sum_of_squares,
};
use wuerstchen_tests::{error_of, gpu, values};

/// Bound of the differences: the shaders sum in another order than the twins.
const TOLERANCE: f64 = 1e-5;

/// Odd sizes, channels that no workgroup divides, one with more than 65 535 workgroups.
const SHAPES: [[usize; 4]; 5] =
    [[1, 1, 1, 1], [2, 5, 7, 48], [1, 3, 4, 257], [3, 8, 8, 64], [1, 600, 600, 12]];

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

#[test]
fn patches_are_those_of_their_twin() {
    let Some(device) = gpu() else { return };
    for (seed, shape) in SHAPES[..4].iter().enumerate() {
        for (size, stride) in [(1, 1), (3, 1), (3, 2), (5, 3)] {
            let x = |device: &Device| values(*shape, seed as u64, device);
            let expected = reference::patches(x(&Device::flex()), size, stride).into_data();
            patches(x(&device), size, stride).into_data().assert_eq(&expected, true);
        }
    }
}

/// The gradients by every input of a weighted sum of an operation's outputs, with a different weight for each.
fn gradients<const D: usize>(
    inputs: &[Tensor<4>],
    operation: &dyn Fn(&[Tensor<4>]) -> Tensor<D>,
) -> Vec<Tensor<4>> {
    let inputs: Vec<_> = inputs.iter().map(|input| input.clone().require_grad()).collect();
    let outputs = operation(&inputs);
    let numbers = values(outputs.dims(), 99, &outputs.device());
    let graph = (outputs * numbers).sum().backward();
    inputs.iter().map(|input| input.grad(&graph).expect("every input has a gradient")).collect()
}

/// Fails unless an operation's gradients on a GPU are those of its twin.
fn check_gradients<const D: usize>(
    what: &str,
    shapes: &[[usize; 4]],
    operation: &dyn Fn(&[Tensor<4>]) -> Tensor<D>,
    twin: &dyn Fn(&[Tensor<4>]) -> Tensor<D>,
    gpu: &Device,
) {
    let on = |device: Device| -> Vec<_> {
        let device = device.autodiff();
        shapes.iter().zip(7..).map(|(shape, seed)| values(*shape, seed, &device)).collect()
    };
    let expected = gradients(&on(Device::flex()), twin);
    let found = gradients(&on(gpu.clone()), operation);
    for (input, (found, expected)) in found.into_iter().zip(expected).enumerate() {
        let error = error_of(found, expected);
        assert!(error < GRADIENT_TOLERANCE, "{what} of {shapes:?}, input {input}: {error}");
    }
}

/// Bound for sums of hundreds of products, in another order than the twin's.
const GRADIENT_TOLERANCE: f64 = 5e-5;

/// Every shader with a backward pass, by each of its inputs.
#[test]
fn gradients_match_those_of_the_twins() {
    let Some(device) = gpu() else { return };
    for shape in [[2, 5, 7, 48], [3, 8, 8, 64], [1, 1, 2, 4], [1, 3, 4, 257]] {
        let channels = shape[3];
        check_gradients(
            "layer norm",
            &[shape],
            &|x| layer_norm(x[0].clone()),
            &|x| reference::layer_norm(x[0].clone()),
            &device,
        );
        check_gradients(
            "global response norm",
            &[shape, [1, 1, 1, channels], [1, 1, 1, channels]],
            &|x| global_response_norm(x[0].clone(), x[1].clone(), x[2].clone()),
            &|x| reference::global_response_norm(x[0].clone(), x[1].clone(), x[2].clone()),
            &device,
        );
        for (size, stride) in [(1, 1), (3, 1), (3, 2), (5, 3)] {
            check_gradients(
                &format!("patches of {size} and stride {stride}"),
                &[shape],
                &|x| patches(x[0].clone(), size, stride),
                &|x| reference::patches(x[0].clone(), size, stride),
                &device,
            );
            for padding in [Padding::Zeros, Padding::Replicate] {
                let options = DepthwiseOptions { stride, padding };
                let bias = |x: &[Tensor<4>]| x[2].clone().reshape([channels]);
                check_gradients(
                    &format!("depthwise convolution of {size}, {options:?}"),
                    &[shape, [channels, 1, size, size], [1, 1, 1, channels]],
                    &|x| depthwise_conv(x[0].clone(), x[1].clone(), bias(x), options),
                    &|x| reference::depthwise_conv(x[0].clone(), x[1].clone(), bias(x), options),
                    &device,
                );
            }
        }
    }
}

/// None, fewer and more tensors than one launch takes, some of a single number.
#[test]
fn sum_of_squares_matches_its_twin() {
    let Some(device) = gpu() else { return };
    for count in [0, 1, 5, 12] {
        let on = |device: &Device| -> Vec<Tensor<1>> {
            let of = |i: usize| values([1 + i * i * 700], i as u64, device);
            (0..count).map(of).collect()
        };
        let found = sum_of_squares(on(&device), &device);
        let expected = match count {
            0 => Tensor::zeros([1], &Device::flex()),
            _ => reference::sum_of_squares(on(&Device::flex())),
        };
        let error = error_of(found, expected);
        assert!(error < TOLERANCE, "{count} tensors: {error}");
    }
}

/// Three updates with different gradients. Another handle of the parameter keeps the values that it had before.
#[test]
fn adamw_matches_its_twin() {
    let Some(device) = gpu() else { return };
    let after = |device: &Device| {
        let [weight, first, second] = [1, 2, 3].map(|seed| values::<1>([1000], seed, device));
        let (before, mut weight, mut moments) = (weight.clone(), weight, [first, second.square()]);
        for step in 1..4 {
            let settings = AdamW {
                clip: 0.5,
                beta1: 0.9,
                beta2: 0.99,
                epsilon: 1e-8,
                learning_rate: 1e-2,
                weight_decay: 0.1,
                step,
            };
            let gradient = values([1000], 10 + step, device);
            let on_device = settings.settings(device);
            (weight, moments) = adamw(weight, moments, gradient, (&settings, &on_device));
        }
        let [first, second] = moments;
        [before, weight, first, second]
    };
    for (found, expected) in after(&device).into_iter().zip(after(&Device::flex())) {
        let error = error_of(found, expected);
        assert!(error < TOLERANCE, "{error}");
    }
}

/// Channels that are zero everywhere have no norm that could have a gradient.
#[test]
fn an_empty_channel_has_a_finite_gradient() {
    let Some(device) = gpu() else { return };
    let device = device.autodiff();
    let inputs = [[2, 3, 3, 8], [1, 1, 1, 8], [1, 1, 1, 8]].map(|shape| values(shape, 3, &device));
    let found = gradients(&inputs, &|x| {
        let emptied = x[0].clone().slice_fill(s![.., .., .., 2..4], 0.0);
        global_response_norm(emptied, x[1].clone(), x[2].clone())
    });
    for gradient in found {
        let numbers = gradient.into_data().try_to_vec::<f32>().unwrap();
        assert!(numbers.iter().all(|number| number.is_finite()), "{numbers:?}");
    }
}

/// Rows, outputs and columns of products: few, odd, not whole tiles, with a last block that is short.
const PRODUCTS: [[usize; 3]; 6] =
    [[1, 1, 2], [1, 4, 4], [5, 40, 70], [33, 65, 192], [70, 96, 64], [131, 36, 324]];

/// Every kind of epilogue, on one device.
fn epilogues(inputs: usize, outputs: usize, device: &Device) -> Vec<Epilogue<2>> {
    let bias = || Some(values([outputs], 5, device));
    let addend = || Some(values([inputs, outputs], 6, device));
    vec![
        Epilogue { bias: None, addend: None, gelu: false },
        Epilogue { bias: bias(), addend: None, gelu: true },
        Epilogue { bias: None, addend: addend(), gelu: false },
        Epilogue { bias: bias(), addend: addend(), gelu: true },
    ]
}

/// Held by a test that chooses how a device multiplies, which all tests share.
static TILING: Mutex<()> = Mutex::new(());

/// With every tiling. burn multiplies where no shader takes the sizes.
#[test]
fn linear_matches_its_twin() {
    let Some(device) = gpu() else { return };
    let _turn = TILING.lock().unwrap_or_else(PoisonError::into_inner);
    for tiling in Tiling::ALL.map(Some).into_iter().chain([None]) {
        choose_products(&device, Products { tiling, halves: false });
        for [inputs, outputs, columns] in PRODUCTS {
            let on = |device: &Device| {
                let x: Tensor<2> = values([inputs, columns], 3, device);
                (x, values([columns, outputs], 4, device), epilogues(inputs, outputs, device))
            };
            let (x, weight, expected) = on(&Device::flex());
            let twin = |epilogue| reference::linear(x.clone(), weight.clone(), epilogue);
            let expected: Vec<_> = expected.into_iter().map(twin).collect();
            let (x, weight, found) = on(&device);
            for (case, (epilogue, expected)) in found.into_iter().zip(expected).enumerate() {
                let error = error_of(linear(x.clone(), weight.clone(), epilogue), expected);
                let shape = [inputs, outputs, columns];
                assert!(error < TOLERANCE, "{tiling:?} {shape:?} epilogue {case}: {error}");
            }
        }
    }
    choose_products(&device, Products::default());
}

/// Heads that are narrower than a part of the workgroup, as wide, wider, and not a multiple of 4; fewer and
/// more queries and keys than a tile has, in one tensor, in two and in three.
#[test]
fn attention_matches_its_twin() {
    let Some(device) = gpu() else { return };
    for [batch, queries, heads, size] in
        [[1, 1, 1, 4], [2, 5, 3, 8], [1, 33, 2, 64], [2, 64, 1, 100], [1, 40, 2, 6]]
    {
        for keys in [vec![1], vec![70], vec![7, 30], vec![33, 1], vec![20, 5, 11]] {
            let on = |device: &Device| {
                let of = |tokens, seed| values([batch, tokens, heads * size], seed, device);
                let all = |seed| keys.iter().map(move |&count| of(count, seed + count as u64));
                (of(queries, 1) * 2.0, all(100).collect::<Vec<_>>(), all(200).collect::<Vec<_>>())
            };
            let (q, k, v) = on(&Device::flex());
            let expected = reference::attention(q, Tensor::cat(k, 1), Tensor::cat(v, 1), heads);
            let (q, k, v) = on(&device);
            let error = error_of(attention(q, k, v, heads), expected);
            let shape = [batch, queries, heads, size];
            assert!(error < TOLERANCE, "{shape:?} keys {keys:?}: {error}");
        }
    }
}

/// The same sizes, where queries, keys and values lie one after the other.
#[test]
fn joined_attention_matches_its_twin() {
    let Some(device) = gpu() else { return };
    for [batch, tokens, heads, size] in
        [[1, 1, 1, 4], [2, 5, 3, 8], [1, 33, 2, 64], [2, 64, 1, 100], [1, 40, 2, 6]]
    {
        for more in [1, 30] {
            let on = |device: &Device| {
                let qkv: Tensor<3> = values([batch, tokens, 3 * heads * size], 1, device);
                let [k, v] = [2, 3].map(|seed| values([batch, more, heads * size], seed, device));
                (qkv * 2.0, [k, v])
            };
            let (qkv, text) = on(&Device::flex());
            let expected = reference::joined_attention(qkv, text, heads);
            let (qkv, text) = on(&device);
            let error = error_of(joined_attention(qkv, text, heads), expected);
            let shape = [batch, tokens, heads, size];
            assert!(error < TOLERANCE, "{shape:?} and {more} keys: {error}");
        }
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
    let _turn = TILING.lock().unwrap_or_else(PoisonError::into_inner);
    for tiling in Tiling::ALL {
        choose_products(&device, Products { tiling: Some(tiling), halves: false });
        for packing in [Packing::F16, Packing::I8, Packing::I4] {
            for [inputs, outputs, columns] in PRODUCTS {
                // All columns of the weight, and the first half of them.
                for width in [columns, columns.min(columns.div_ceil(8) * 4)] {
                    let on = |device: &Device| {
                        let x: Tensor<2> = values([inputs, width], 3, device);
                        let epilogue = epilogues(inputs, outputs, device).swap_remove(3);
                        (x, packed(packing, [outputs, columns], device), epilogue)
                    };
                    let (x, weight, epilogue) = on(&Device::flex());
                    let expected = reference::packed_linear(x, &weight, epilogue);
                    let (x, weight, epilogue) = on(&device);
                    let error = error_of(packed_linear(x, &weight, epilogue), expected);
                    let shape = [inputs, outputs, columns];
                    assert!(error < TOLERANCE, "{tiling:?} {packing:?} {shape:?} {width}: {error}");
                }
            }
        }
    }
    choose_products(&device, Products::default());
}

/// Tiles of halves change no product of halves, but round other factors.
#[test]
fn tiles_of_halves_round_the_factors() {
    let Some(device) = gpu().filter(has_halves) else { return };
    let _turn = TILING.lock().unwrap_or_else(PoisonError::into_inner);
    let halves = |values: Tensor<2>| values.cast(DType::F16).cast(DType::F32);
    let to_gpu = |values: &Tensor<2>| Tensor::from_data(values.to_data(), (&device, DType::F32));
    for tiling in [Tiling::Small, Tiling::Large] {
        choose_products(&device, Products { tiling: Some(tiling), halves: true });
        for [inputs, outputs, columns] in PRODUCTS {
            let x = halves(values([inputs, columns], 3, &Device::flex()));
            let weight = halves(values([columns, outputs], 4, &Device::flex()));
            let epilogue = |device: &Device| epilogues(inputs, outputs, device).swap_remove(3);
            let found = linear(to_gpu(&x), to_gpu(&weight), epilogue(&device));
            let expected = reference::linear(x.clone(), weight, epilogue(&Device::flex()));
            let error = error_of(found, expected);
            assert!(error < TOLERANCE, "{tiling:?} {inputs} {outputs} {columns}: {error}");
            for packing in [Packing::F16, Packing::I8, Packing::I4] {
                let weight = |device: &Device| packed(packing, [outputs, columns], device);
                let found = packed_linear(to_gpu(&x), &weight(&device), epilogue(&device));
                let (weight, epilogue) = (weight(&Device::flex()), epilogue(&Device::flex()));
                let error = error_of(found, reference::packed_linear(x.clone(), &weight, epilogue));
                let shape = [inputs, outputs, columns];
                assert!(error < TOLERANCE, "{tiling:?} {packing:?} {shape:?}: {error}");
            }
        }
        // The nearest half is 1, whatever the direction of the rounding.
        let [x, weight] = [[64, 32], [32, 64]]
            .map(|sides| Tensor::<2>::full(sides, 1.0 + 2f32.powi(-12), &device));
        let found = linear(x, weight, Epilogue::new(None)).into_data();
        found.assert_eq(&TensorData::new(vec![32f32; 64 * 64], [64, 64]), true);
    }
    choose_products(&device, Products::default());
}

/// Widths with a last block that is short.
#[test]
fn joined_matrices_have_the_rows_of_all() {
    let Some(device) = gpu() else { return };
    for packing in [Packing::F16, Packing::I8, Packing::I4] {
        let matrices = [8, 4].map(|rows| packed(packing, [rows, 132], &device));
        let rows = matrices.iter().map(PackedMatrix::unpack).collect();
        let joined = PackedMatrix::joined(&matrices).unwrap().unpack();
        joined.into_data().assert_eq(&Tensor::cat(rows, 0).into_data(), true);
    }
    // No kernel reads these without unpacking them.
    let matrices = [packed(Packing::I8, [4, 64], &device), packed(Packing::I4, [4, 64], &device)];
    assert!(PackedMatrix::joined(&matrices).is_none());
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
    check("patches", &|device, dtype| patches(x(device, dtype), 3, 2));
    check("linear", &|device, dtype| {
        let weight: Tensor<2> = values([64, 40], 6, device).cast(dtype);
        linear(x(device, dtype), weight, Epilogue::new(Some(values([40], 7, device).cast(dtype))))
    });
    for packing in [Packing::F16, Packing::I8, Packing::I4] {
        check(&format!("packed linear, {packing:?}"), &|device, dtype| {
            packed_linear(x(device, dtype), &packed(packing, [40, 64], device), Epilogue::new(None))
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
