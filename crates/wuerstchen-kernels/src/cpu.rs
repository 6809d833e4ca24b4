//! Hand-written f32 kernels for burn Flex; those that training needs have their backward passes.
//!
//! burn composes these operations from whole-tensor passes, and its depthwise weight gradient loops
//! over the channels; on a CPU the memory traffic and the loop cost more than the arithmetic.
//! Results do not depend on the number of threads: every sum runs in a fixed order.

#[cfg(any(test, target_family = "wasm"))]
mod attention;
#[cfg(feature = "train")]
mod attention_gradient;
#[cfg(feature = "train")]
mod backward;
#[cfg(feature = "train")]
mod batch_norm;
mod functions;
#[cfg(feature = "train")]
mod optimizer;
mod probe;
#[cfg(any(test, target_family = "wasm"))]
mod product;
#[cfg(target_family = "wasm")]
mod relaxed;
mod sums;
#[cfg(target_family = "wasm")]
mod threads;
mod values;
mod window;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::ops::ConvOptions;
use burn_flex::FlexTensor;

#[cfg(target_family = "wasm")]
pub(crate) use self::attention::attention;
#[cfg(feature = "train")]
pub(crate) use self::attention_gradient::trained_attention;
#[cfg(feature = "train")]
pub(crate) use self::batch_norm::batch_norm;
use self::functions::{exp, normal_cdf, sigmoid};
#[cfg(feature = "train")]
pub(crate) use self::optimizer::{adamw, weighted_sum};
pub(crate) use self::probe::{copy, probe_multiply_adds};
#[cfg(target_family = "wasm")]
pub(crate) use self::product::{Order, can_multiply, linear, multiplies, packed_linear, panels_of};
use self::sums::{channel_norms, maximum, mean_norm, row_statistics, sum};
use self::values::{Values, block, for_each_block};
use self::window::Window;
use crate::depthwise_conv::{DepthwiseOptions, Padding};
use crate::packed_linear::Packing;

/// Whether the kernels of this file take tensors of this device and type.
pub(crate) fn runs_on(device: &Device, dtype: DType) -> bool {
    let on_flex = match device.as_dispatch() {
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "train")]
        DispatchDevice::Autodiff(device) => {
            matches!(device.clone().inner(), DispatchDevice::Flex(_))
        }
        #[allow(unreachable_patterns, reason = "the other backends are optional features")]
        _ => false,
    };
    on_flex && dtype == DType::F32
}

/// Whether this device also records gradients for the kernels of this file.
#[cfg(feature = "train")]
pub(crate) fn records_gradients(device: &Device, dtype: DType) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Autodiff(_)) && runs_on(device, dtype)
}

pub(crate) fn layer_norm<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::cpu_layer_norm(x.into_dispatch()))
}

pub(crate) fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::cpu_gelu(x.into_dispatch()))
}

pub(crate) fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::cpu_silu(x.into_dispatch()))
}

pub(crate) fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::cpu_softmax(x.into_dispatch()))
}

pub(crate) fn global_response_norm(x: Tensor<4>, gamma: Tensor<4>, beta: Tensor<4>) -> Tensor<4> {
    let [x, gamma, beta] = [x, gamma, beta].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::cpu_global_response_norm(x, gamma, beta))
}

/// `x + bias`, which is added to every row. Changes `x` in place if nothing else has it.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn add_bias<const D: usize>(x: Tensor<D>, bias: Tensor<1>) -> Tensor<D> {
    assert_eq!(bias.dims(), [x.dims()[D - 1]], "a bias for each channel");
    Tensor::from_dispatch(Dispatch::cpu_add_bias(x.into_dispatch(), bias.into_dispatch()))
}

pub(crate) fn depthwise_conv(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    options: DepthwiseOptions,
) -> Tensor<4> {
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::cpu_depthwise_conv(x, weight, bias, options))
}

pub(crate) fn patches(x: Tensor<4>, size: usize, stride: usize) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::cpu_patches(x.into_dispatch(), size, stride))
}

pub(crate) fn unpack(
    values: Tensor<2, Int>,
    scales: Tensor<2>,
    zeros: Tensor<2, Int>,
    packing: Packing,
    columns: usize,
) -> Tensor<2> {
    let (values, scales) = (values.into_dispatch(), scales.into_dispatch());
    let zeros = zeros.into_dispatch();
    Tensor::from_dispatch(Dispatch::cpu_unpack(values, scales, zeros, packing, columns))
}

/// Products of rows with a packed matrix that gets no gradient. The forward pass keeps no matrix in f32, because the
/// backward pass unpacks it again.
pub(crate) fn frozen_product(
    x: Tensor<2>,
    (values, scales, zeros): (Tensor<2, Int>, Tensor<2>, Tensor<2, Int>),
    packing: Packing,
    columns: usize,
) -> Tensor<2> {
    let (values, scales) = (values.into_dispatch(), scales.into_dispatch());
    let (x, zeros) = (x.into_dispatch(), zeros.into_dispatch());
    Tensor::from_dispatch(Dispatch::cpu_frozen_product(x, values, scales, zeros, packing, columns))
}

/// `x·W` of rows with a matrix.
///
/// # Shapes
///
/// - x: `[M, K]`
/// - weight: `[K, N]`
/// - output: `[M, N]`
#[cfg(not(target_family = "wasm"))]
pub(crate) fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::cpu_linear(x.into_dispatch(), weight.into_dispatch()))
}

// A bound brings burn's operations into scope, whose own trait burn does not export.

/// `x·W` as Flex's convolution of an input `[1, K, N]` with weights `[M, K, 1]`, that is, with windows of one. It makes
/// the same call of `gemm` as Flex's matrix product, which then copies its result once more.
#[cfg_attr(
    target_family = "wasm",
    allow(dead_code, reason = "WebAssembly multiplies by `product`")
)]
fn by_convolution<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    [rows, inputs, outputs]: [usize; 3],
) -> FloatTensor<B> {
    let input = B::float_reshape(weight, Shape::new([1, inputs, outputs]));
    let weight = B::float_reshape(x, Shape::new([rows, inputs, 1]));
    let y = B::conv1d(input, weight, None, ConvOptions::new([1], [0], [1], 1));
    B::float_reshape(y, Shape::new([rows, outputs]))
}

fn product<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(x, weight)
}

fn transposed<B: Backend>(matrix: FloatTensor<B>) -> FloatTensor<B> {
    B::float_transpose(matrix)
}

/// The first columns of a matrix.
fn first_columns(matrix: FlexTensor, width: usize, columns: usize) -> FlexTensor {
    if width == columns {
        return matrix;
    }
    let matrix = Values::of(matrix);
    let rows = matrix.as_slice().chunks(columns);
    let first: Vec<f32> = rows.flat_map(|row| &row[..width]).copied().collect();
    FlexTensor::from_data(TensorData::new(first, [matrix.shape[0], width]))
}

/// The operations that Flex runs as hand-written loops.
#[backend_extension(Flex, Autodiff: cfg(feature = "train"))]
pub(crate) trait CpuKernels: Backend {
    fn cpu_layer_norm(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cpu_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cpu_silu(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cpu_softmax(x: FloatTensor<Self>) -> FloatTensor<Self>;
    #[cfg_attr(
        target_family = "wasm",
        allow(dead_code, reason = "WebAssembly adds biases in `product`")
    )]
    fn cpu_add_bias(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cpu_global_response_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn cpu_depthwise_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: DepthwiseOptions,
    ) -> FloatTensor<Self>;
    fn cpu_patches(x: FloatTensor<Self>, size: usize, stride: usize) -> FloatTensor<Self>;
    #[cfg_attr(
        target_family = "wasm",
        allow(dead_code, reason = "WebAssembly multiplies by `product`")
    )]
    fn cpu_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cpu_unpack(
        values: IntTensor<Self>,
        scales: FloatTensor<Self>,
        zeros: IntTensor<Self>,
        packing: Packing,
        columns: usize,
    ) -> FloatTensor<Self>;
    fn cpu_frozen_product(
        x: FloatTensor<Self>,
        values: IntTensor<Self>,
        scales: FloatTensor<Self>,
        zeros: IntTensor<Self>,
        packing: Packing,
        columns: usize,
    ) -> FloatTensor<Self>;
}

/// A value that is further below the largest of its row than this gets the weight zero in a softmax. Its true weight
/// would be at most `e⁻⁴⁴`.
///
/// In f32 such a weight changes no sum. But under a mask, or where attention is sharp, the products of such weights
/// are subnormal numbers, with which a CPU calculates a hundred times slower.
const NEGLIGIBLE: f32 = -44.0;

/// The softmax of a row.
#[inline(always)]
fn softmax_row(x: &mut [f32]) {
    let largest = maximum(x);
    for x in x.iter_mut() {
        let below = *x - largest;
        *x = if below < NEGLIGIBLE { 0.0 } else { exp(below) };
    }
    let scale = 1.0 / sum(|i| x[i], x.len());
    for x in x {
        *x *= scale;
    }
}

impl CpuKernels for Flex {
    fn cpu_layer_norm(x: FlexTensor) -> FlexTensor {
        let x = Values::of(x);
        let channels = x.channels();
        x.map_rows(
            #[inline(always)]
            |_, x| {
                for x in x.chunks_exact_mut(channels) {
                    let (mean, scale) = row_statistics(x);
                    for x in x {
                        *x = (*x - mean) * scale;
                    }
                }
            },
        )
    }

    fn cpu_gelu(x: FlexTensor) -> FlexTensor {
        Values::of(x).map_rows(
            #[inline(always)]
            |_, x| {
                for x in x {
                    *x *= normal_cdf(*x);
                }
            },
        )
    }

    fn cpu_silu(x: FlexTensor) -> FlexTensor {
        Values::of(x).map_rows(
            #[inline(always)]
            |_, x| {
                for x in x {
                    *x *= sigmoid(*x);
                }
            },
        )
    }

    fn cpu_softmax(x: FlexTensor) -> FlexTensor {
        let x = Values::of(x);
        let channels = x.channels();
        x.map_rows(
            #[inline(always)]
            |_, x| {
                for x in x.chunks_exact_mut(channels) {
                    softmax_row(x);
                }
            },
        )
    }

    fn cpu_add_bias(x: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let (x, bias) = (Values::of(x), Values::of(bias));
        let channels = x.channels();
        x.map_rows(
            #[inline(always)]
            |_, x| {
                for x in x.chunks_exact_mut(channels) {
                    x.iter_mut().zip(bias.as_slice()).for_each(|(x, bias)| *x += bias);
                }
            },
        )
    }

    fn cpu_global_response_norm(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor) -> FlexTensor {
        let (x, gamma, beta) = (Values::of(x), Values::of(gamma), Values::of(beta));
        let (channels, pixels) = (x.channels(), x.pixels());
        let mut scales = channel_norms(&x);
        for norms in scales.chunks_exact_mut(channels) {
            let mean = mean_norm(norms);
            let scale = norms.iter_mut().zip(gamma.as_slice());
            scale.for_each(|(norm, gamma)| *norm = 1.0 + gamma * *norm / mean);
        }
        x.map_rows(
            #[inline(always)]
            |row, x| {
                for (i, x) in x.chunks_exact_mut(channels).enumerate() {
                    let scale = &scales[(row + i) / pixels * channels..][..channels];
                    for (x, (scale, beta)) in x.iter_mut().zip(scale.iter().zip(beta.as_slice())) {
                        *x = *x * scale + beta;
                    }
                }
            },
        )
    }

    fn cpu_depthwise_conv(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        options: DepthwiseOptions,
    ) -> FlexTensor {
        let (x, weight, bias) = (Values::of(x), Values::of(weight), Values::of(bias));
        let window = Window::new(&x.shape, weight.shape[3], options);
        let taps = window.taps_of(weight.as_slice());
        let channels = window.channels;
        let [height, width] = window.output;
        let (x_values, per_sample) = (x.as_slice(), x.per_sample());
        let mut out = bias.as_slice().repeat(x.shape[0] * height * width);
        let rows = block(width * channels) / (width * channels);
        for_each_block(
            &mut out,
            rows * width * channels,
            #[inline(always)]
            |i, y| {
                for (row, y) in (i * rows..).zip(y.chunks_exact_mut(width * channels)) {
                    let x = &x_values[row / height * per_sample..][..per_sample];
                    window.for_each_tap(
                        row % height,
                        #[inline(always)]
                        |tap, input, column| {
                            let tap = &taps[tap * channels..][..channels];
                            let x = &x[input * channels..][..channels];
                            let y = &mut y[column * channels..][..channels];
                            for c in 0..channels {
                                y[c] += tap[c] * x[c];
                            }
                        },
                    );
                }
            },
        );
        FlexTensor::from_data(TensorData::new(out, [x.shape[0], height, width, channels]))
    }

    fn cpu_patches(x: FlexTensor, size: usize, stride: usize) -> FlexTensor {
        let x = Values::of(x);
        let window =
            Window::new(&x.shape, size, DepthwiseOptions { stride, padding: Padding::Zeros });
        let channels = window.channels;
        let [height, width] = window.output;
        let (patch, row_size) = (size * size * channels, width * size * size * channels);
        let (x_values, per_sample) = (x.as_slice(), x.per_sample());
        let mut out = vec![0.0; x.shape[0] * height * row_size];
        let rows = block(row_size) / row_size;
        for_each_block(
            &mut out,
            rows * row_size,
            #[inline(always)]
            |i, y| {
                for (row, y) in (i * rows..).zip(y.chunks_exact_mut(row_size)) {
                    let x = &x_values[row / height * per_sample..][..per_sample];
                    window.for_each_tap(
                        row % height,
                        #[inline(always)]
                        |tap, input, column| {
                            let y = &mut y[column * patch + tap * channels..][..channels];
                            y.copy_from_slice(&x[input * channels..][..channels]);
                        },
                    );
                }
            },
        );
        FlexTensor::from_data(TensorData::new(out, [x.shape[0], height, width, patch]))
    }

    fn cpu_linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let (x_shape, outputs) = (x.layout().shape(), weight.layout().shape()[1]);
        let sizes = [x_shape[0], x_shape[1], outputs];
        by_convolution::<Self>(x, weight, sizes)
    }

    fn cpu_unpack(
        values: FlexTensor,
        scales: FlexTensor,
        zeros: FlexTensor,
        packing: Packing,
        columns: usize,
    ) -> FlexTensor {
        let (values, scales, zeros) = (Values::of(values), Values::of(scales), Values::of(zeros));
        let (words, scales, zeros) = (values.words(), scales.as_slice(), zeros.words());
        let rows = values.shape[0];
        let mut out = vec![0.0f32; rows * columns];
        for_each_block(
            &mut out,
            columns,
            #[inline(always)]
            |row, out| {
                packing.unpack_row(words, scales, zeros, row, out);
            },
        );
        FlexTensor::from_data(TensorData::new(out, [rows, columns]))
    }

    fn cpu_frozen_product(
        x: FlexTensor,
        values: FlexTensor,
        scales: FlexTensor,
        zeros: FlexTensor,
        packing: Packing,
        columns: usize,
    ) -> FlexTensor {
        let width = x.layout().shape()[1];
        let weight = Self::cpu_unpack(values, scales, zeros, packing, columns);
        let weight = first_columns(weight, width, columns);
        product::<Self>(x, transposed::<Self>(weight))
    }
}
