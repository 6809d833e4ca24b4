//! The backward pass of every kernel, for automatic differentiation.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

use super::functions::{exp, normal_cdf, sigmoid};
use super::sums::{channel_norms, channel_sums, mean_norm, row_statistics, sum, sum_blocks};
use super::values::{Values, for_each_block};
use super::window::Window;
use super::*;
use crate::autodiff::record;

impl<C: CheckpointStrategy> CpuKernels for Autodiff<Flex, C> {
    fn cpu_layer_norm(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        record::<Flex, C, _, _, 1>(LayerNorm, [node], x, Clone::clone, Flex::cpu_layer_norm)
    }

    fn cpu_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        record::<Flex, C, _, _, 1>(Gelu, [node], x, Clone::clone, Flex::cpu_gelu)
    }

    fn cpu_silu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        record::<Flex, C, _, _, 1>(Silu, [node], x, Clone::clone, Flex::cpu_silu)
    }

    fn cpu_softmax(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let y = Flex::cpu_softmax(x);
        match Softmax.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(y.clone(), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn cpu_add_bias(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((x, x_node), (bias, bias_node)) = (x.into_parts(), bias.into_parts());
        record::<Flex, C, _, _, 2>(
            AddBias,
            [x_node, bias_node],
            (x, bias),
            |_| (),
            |(x, bias)| Flex::cpu_add_bias(x, bias),
        )
    }

    fn cpu_global_response_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let ((x, x_node), (gamma, gamma_node)) = (x.into_parts(), gamma.into_parts());
        let (beta, beta_node) = beta.into_parts();
        record::<Flex, C, _, _, 3>(
            GlobalResponseNorm,
            [x_node, gamma_node, beta_node],
            (x, gamma, beta),
            |(x, gamma, _)| (x.clone(), gamma.clone()),
            |(x, gamma, beta)| Flex::cpu_global_response_norm(x, gamma, beta),
        )
    }

    fn cpu_depthwise_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: DepthwiseOptions,
    ) -> FloatTensor<Self> {
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (bias, bias_node) = bias.into_parts();
        record::<Flex, C, _, _, 3>(
            DepthwiseConv,
            [x_node, weight_node, bias_node],
            (x, weight, bias),
            |(x, weight, _)| (x.clone(), weight.clone(), options),
            |(x, weight, bias)| Flex::cpu_depthwise_conv(x, weight, bias, options),
        )
    }

    fn cpu_patches(x: FloatTensor<Self>, size: usize, stride: usize) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        record::<Flex, C, _, _, 1>(
            Patches,
            [node],
            x,
            |x| (x.layout().shape().to_vec(), size, stride),
            |x| Flex::cpu_patches(x, size, stride),
        )
    }

    /// As burn's own product, it keeps a factor only if the other factor needs a gradient.
    fn cpu_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let tracked = [x.is_tracked(), weight.is_tracked()];
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        record::<Flex, C, _, _, 2>(
            Linear,
            [x_node, weight_node],
            (x, weight),
            |(x, weight)| (tracked[1].then(|| x.clone()), tracked[0].then(|| weight.clone())),
            |(x, weight)| Flex::cpu_linear(x, weight),
        )
    }

    /// Packed weights are not trained: no gradient passes.
    fn cpu_unpack(
        values: FlexTensor,
        scales: FloatTensor<Self>,
        zeros: FlexTensor,
        packing: Packing,
        columns: usize,
    ) -> FloatTensor<Self> {
        let scales = scales.into_parts().0;
        FloatTensor::<Self>::new(Flex::cpu_unpack(values, scales, zeros, packing, columns))
    }

    fn cpu_frozen_product(
        x: FloatTensor<Self>,
        values: FlexTensor,
        scales: FloatTensor<Self>,
        zeros: FlexTensor,
        packing: Packing,
        columns: usize,
    ) -> FloatTensor<Self> {
        let ((x, node), scales) = (x.into_parts(), scales.into_parts().0);
        let width = x.layout().shape()[1];
        record::<Flex, C, _, _, 1>(
            FrozenProduct,
            [node],
            (x, values, scales, zeros),
            |(_, values, scales, zeros)| {
                (values.clone(), scales.clone(), zeros.clone(), packing, [width, columns])
            },
            |(x, values, scales, zeros)| {
                Flex::cpu_frozen_product(x, values, scales, zeros, packing, columns)
            },
        )
    }
}

/// The gradient of an operation on rows of channels. `f` takes the number of channels, rows of the tensor that the
/// operation has kept, and the gradient of the same rows, which it changes.
fn change_gradient(
    ops: Ops<FlexTensor, 1>,
    grads: &mut Gradients,
    f: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) {
    let grad = Values::of(grads.consume::<Flex>(&ops.node));
    let [Some(parent)] = ops.parents else { return };
    let kept = Values::of(ops.state);
    let (channels, values) = (kept.channels(), kept.as_slice());
    let changed = grad.map_rows(
        #[inline(always)]
        |row, grad| {
            f(channels, &values[row * channels..][..grad.len()], grad);
        },
    );
    grads.register::<Flex>(parent.id, changed);
}

#[cfg_attr(
    target_family = "wasm",
    allow(dead_code, reason = "WebAssembly multiplies by `product`")
)]
#[derive(Debug)]
struct Linear;

impl Backward<Flex, 2> for Linear {
    /// Each factor, if the other one has a gradient.
    type State = (Option<FlexTensor>, Option<FlexTensor>);

    /// `∂x = g·Wᵀ` and `∂W = xᵀ·g`.
    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let [x_parent, weight_parent] = ops.parents;
        let (x, weight) = ops.state;
        if let (Some(parent), Some(x)) = (weight_parent, x) {
            let weight_grad = product::<Flex>(transposed::<Flex>(x), grad.clone());
            grads.register::<Flex>(parent.id, weight_grad);
        }
        if let (Some(parent), Some(weight)) = (x_parent, weight) {
            let x_grad = Flex::cpu_linear(grad, transposed_copy(weight));
            grads.register::<Flex>(parent.id, x_grad);
        }
    }
}

/// The transposed matrix in memory of its own. It is copied by square tiles, because a column of a matrix whose width is
/// a power of two has few places in a cache.
fn transposed_copy(matrix: FlexTensor) -> FlexTensor {
    const SIDE: usize = 16; // 64 bytes, a cache line
    let matrix = Values::of(matrix);
    let (values, [rows, columns]) = (matrix.as_slice(), [matrix.shape[0], matrix.shape[1]]);
    let mut out = vec![0.0f32; values.len()];
    for_each_block(
        &mut out,
        SIDE * rows,
        #[inline(always)]
        |i, out| {
            let (first, width) = (i * SIDE, out.len() / rows);
            for top in (0..rows).step_by(SIDE) {
                let height = SIDE.min(rows - top);
                let mut tile = [[0.0f32; SIDE]; SIDE];
                for (y, line) in tile[..height].iter_mut().enumerate() {
                    let values = &values[(top + y) * columns + first..][..width];
                    line[..width].copy_from_slice(values);
                }
                for (x, out) in out.chunks_exact_mut(rows).enumerate() {
                    for (out, line) in out[top..top + height].iter_mut().zip(&tile) {
                        *out = line[x];
                    }
                }
            }
        },
    );
    FlexTensor::from_data(TensorData::new(out, [columns, rows]))
}

#[derive(Debug)]
struct AddBias;

impl Backward<Flex, 2> for AddBias {
    type State = ();

    /// `∂x = g` and `∂bias = Σ g` over the rows.
    fn backward(self, ops: Ops<(), 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = Values::of(grads.consume::<Flex>(&ops.node));
        let [x_parent, bias_parent] = ops.parents;
        if let Some(parent) = bias_parent {
            let (g, channels) = (grad.as_slice(), grad.channels());
            let sums = channel_sums(
                g,
                [g.len() / channels, channels],
                #[inline(always)]
                |g| g,
            );
            grads.register::<Flex>(parent.id, tensor(&sums, [channels]));
        }
        if let Some(parent) = x_parent {
            grads.register::<Flex>(parent.id, grad.into_tensor());
        }
    }
}

#[derive(Debug)]
struct FrozenProduct;

impl Backward<Flex, 1> for FrozenProduct {
    /// The planes of the matrix, its packing, and the number of columns that count and of all columns.
    type State = (FlexTensor, FlexTensor, FlexTensor, Packing, [usize; 2]);

    /// `∂x = g·W`.
    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let [Some(parent)] = ops.parents else { return };
        let (values, scales, zeros, packing, [width, columns]) = ops.state;
        let weight = Flex::cpu_unpack(values, scales, zeros, packing, columns);
        let weight = first_columns(weight, width, columns);
        grads.register::<Flex>(parent.id, product::<Flex>(grad, weight));
    }
}

#[derive(Debug)]
struct LayerNorm;

impl Backward<Flex, 1> for LayerNorm {
    type State = FlexTensor;

    /// With `x̂ = (x − μ)·s`: `∂x = s·(g − mean(g) − x̂·mean(g·x̂))`.
    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        change_gradient(
            ops,
            grads,
            #[inline(always)]
            |channels, x, grad| {
                for (x, g) in x.chunks_exact(channels).zip(grad.chunks_exact_mut(channels)) {
                    let (mean, scale) = row_statistics(x);
                    let count = channels as f32;
                    let g_mean = sum(|i| g[i], channels) / count;
                    let gx_mean = sum(|i| g[i] * (x[i] - mean) * scale, channels) / count;
                    for c in 0..channels {
                        g[c] = scale * (g[c] - g_mean - (x[c] - mean) * scale * gx_mean);
                    }
                }
            },
        );
    }
}

#[derive(Debug)]
struct Gelu;

impl Backward<Flex, 1> for Gelu {
    type State = FlexTensor;

    /// `∂x = g·(Φ(x) + x·φ(x))`.
    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        change_gradient(
            ops,
            grads,
            #[inline(always)]
            |_, x, grad| {
                for (g, &x) in grad.iter_mut().zip(x) {
                    *g *= normal_cdf(x) + x * normal_density(x);
                }
            },
        );
    }
}

/// `φ(x) = exp(−x²/2) / sqrt(2π)`.
#[inline(always)]
fn normal_density(x: f32) -> f32 {
    const INVERSE_SQRT_2PI: f32 = 0.398_942_3;
    INVERSE_SQRT_2PI * exp((-0.5 * x * x).max(-87.0))
}

#[derive(Debug)]
struct Silu;

impl Backward<Flex, 1> for Silu {
    type State = FlexTensor;

    /// `∂x = g·σ(x)·(1 + x·(1 − σ(x)))`.
    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        change_gradient(
            ops,
            grads,
            #[inline(always)]
            |_, x, grad| {
                for (g, &x) in grad.iter_mut().zip(x) {
                    let share = sigmoid(x);
                    *g *= share * (1.0 + x * (1.0 - share));
                }
            },
        );
    }
}

#[derive(Debug)]
struct Softmax;

impl Backward<Flex, 1> for Softmax {
    /// The output.
    type State = FlexTensor;

    /// `∂x = y·(g − Σ g·y)`.
    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        if let [Some(parent)] = ops.parents {
            grads.register::<Flex>(parent.id, softmax_gradient(ops.state, grad));
        }
    }
}

/// The gradient of a softmax's input, from its output `y` and the gradient of that.
pub(super) fn softmax_gradient(y: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let y = Values::of(y);
    let (channels, values) = (y.channels(), y.as_slice());
    Values::of(grad).map_rows(
        #[inline(always)]
        |row, grad| {
            let y = &values[row * channels..][..grad.len()];
            for (y, g) in y.chunks_exact(channels).zip(grad.chunks_exact_mut(channels)) {
                let inner = sum(|i| g[i] * y[i], channels);
                for (g, y) in g.iter_mut().zip(y) {
                    *g = y * (*g - inner);
                }
            }
        },
    )
}

#[derive(Debug)]
struct GlobalResponseNorm;

impl Backward<Flex, 3> for GlobalResponseNorm {
    type State = (FlexTensor, FlexTensor);

    /// With norms `G`, `m = mean(G) + ε`, `N = G/m` and `s = Σ g·x` over the pixels:
    /// `∂G = γ·s/m − mean(γ·s·G)/m²` and `∂x = g·(1 + γ·N) + x·∂G/G`.
    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = Values::of(grads.consume::<Flex>(&ops.node));
        let (x, gamma) = (Values::of(ops.state.0), Values::of(ops.state.1));
        let (channels, per_sample, pixels) = (x.channels(), x.per_sample(), x.pixels());
        let (x_values, g_values, gamma) = (x.as_slice(), grad.as_slice(), gamma.as_slice());
        let norms = channel_norms(&x);
        // Per sample: the gradients of gamma and beta, then the two factors of ∂x.
        let mut sums = vec![0.0; x.shape[0] * 4 * channels];
        for_each_block(
            &mut sums,
            4 * channels,
            #[inline(always)]
            |i, out| {
                let x = &x_values[i * per_sample..][..per_sample];
                let g = &g_values[i * per_sample..][..per_sample];
                let norms = &norms[i * channels..][..channels];
                response_sums(x, g, norms, gamma, out);
            },
        );
        let x_grad = grad.map_rows(
            #[inline(always)]
            |row, g| {
                let x = &x_values[row * channels..][..g.len()];
                let rows = x.chunks_exact(channels).zip(g.chunks_exact_mut(channels));
                for (row, (x, g)) in (row..).zip(rows) {
                    let factors = &sums[(4 * (row / pixels) + 2) * channels..][..2 * channels];
                    let (scale, slope) = factors.split_at(channels);
                    for c in 0..channels {
                        g[c] = g[c] * scale[c] + x[c] * slope[c];
                    }
                }
            },
        );
        let [x_parent, gamma_parent, beta_parent] = ops.parents;
        let shape = [1, 1, 1, channels];
        let affine = sum_blocks(&sums, 4 * channels, 2 * channels);
        let (gamma_grad, beta_grad) = affine.split_at(channels);
        let parents = [
            (x_parent, x_grad),
            (gamma_parent, tensor(gamma_grad, shape)),
            (beta_parent, tensor(beta_grad, shape)),
        ];
        for (parent, grad) in parents {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

/// Fills `out` with four rows of channels: `∂γ = N·s`, `∂β = Σ g`, `1 + γ·N`, `∂G/G`.
#[inline(always)]
fn response_sums(x: &[f32], g: &[f32], norms: &[f32], gamma: &[f32], out: &mut [f32]) {
    let channels = gamma.len();
    let mean = mean_norm(norms);
    let (gamma_grad, rest) = out.split_at_mut(channels);
    let (beta_grad, rest) = rest.split_at_mut(channels);
    let (scale, slope) = rest.split_at_mut(channels);
    for (x, g) in x.chunks_exact(channels).zip(g.chunks_exact(channels)) {
        for c in 0..channels {
            gamma_grad[c] += g[c] * x[c];
            beta_grad[c] += g[c];
        }
    }
    let weighted = sum(|c| gamma[c] * gamma_grad[c] * norms[c], channels) / channels as f32;
    for c in 0..channels {
        let norm_grad = gamma[c] * gamma_grad[c] / mean - weighted / (mean * mean);
        slope[c] = if norms[c] > 0.0 { norm_grad / norms[c] } else { 0.0 };
        scale[c] = 1.0 + gamma[c] * norms[c] / mean;
        gamma_grad[c] *= norms[c] / mean;
    }
}

#[derive(Debug)]
struct DepthwiseConv;

impl Backward<Flex, 3> for DepthwiseConv {
    type State = (FlexTensor, FlexTensor, DepthwiseOptions);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = Values::of(grads.consume::<Flex>(&ops.node));
        let (x, weight) = (Values::of(ops.state.0), Values::of(ops.state.1));
        let window = Window::new(&x.shape, weight.shape[3], ops.state.2);
        let (channels, tap_count) = (window.channels, window.size * window.size);
        let [x_parent, weight_parent, bias_parent] = ops.parents;
        let (x_values, g_values) = (x.as_slice(), grad.as_slice());
        let row = window.output[1] * channels;
        // The rows of a sample's gradient, numbered.
        let g_rows = |sample: usize| {
            let g = &g_values[sample * grad.per_sample()..][..grad.per_sample()];
            g.chunks_exact(row).enumerate()
        };

        if let Some(parent) = x_parent {
            let taps = window.taps_of(weight.as_slice());
            let mut out = vec![0.0; x_values.len()];
            for_each_block(
                &mut out,
                x.per_sample(),
                #[inline(always)]
                |sample, out| {
                    for (row, g) in g_rows(sample) {
                        window.for_each_tap(
                            row,
                            #[inline(always)]
                            |tap, input, column| {
                                let tap = &taps[tap * channels..][..channels];
                                let g = &g[column * channels..][..channels];
                                let out = &mut out[input * channels..][..channels];
                                for c in 0..channels {
                                    out[c] += tap[c] * g[c];
                                }
                            },
                        );
                    }
                },
            );
            let x_grad = FlexTensor::from_data(TensorData::new(out, x.shape.clone()));
            grads.register::<Flex>(parent.id, x_grad);
        }

        // Per sample: the gradient of every tap, then of the bias.
        let block = (tap_count + 1) * channels;
        let mut sums = vec![0.0; x.shape[0] * block];
        for_each_block(
            &mut sums,
            block,
            #[inline(always)]
            |sample, out| {
                let x = &x_values[sample * x.per_sample()..][..x.per_sample()];
                let (taps, bias) = out.split_at_mut(tap_count * channels);
                for (row, g) in g_rows(sample) {
                    window.for_each_tap(
                        row,
                        #[inline(always)]
                        |tap, input, column| {
                            let x = &x[input * channels..][..channels];
                            let g = &g[column * channels..][..channels];
                            let tap = &mut taps[tap * channels..][..channels];
                            for c in 0..channels {
                                tap[c] += x[c] * g[c];
                            }
                        },
                    );
                    for g in g.chunks_exact(channels) {
                        bias.iter_mut().zip(g).for_each(|(bias, g)| *bias += g);
                    }
                }
            },
        );
        let sums = sum_blocks(&sums, block, block);
        let (taps, bias) = sums.split_at(tap_count * channels);
        if let Some(parent) = weight_parent {
            let weight: Vec<f32> =
                (0..taps.len()).map(|i| taps[i % tap_count * channels + i / tap_count]).collect();
            let shape = [channels, 1, window.size, window.size];
            grads.register::<Flex>(parent.id, tensor(&weight, shape));
        }
        if let Some(parent) = bias_parent {
            grads.register::<Flex>(parent.id, tensor(bias, [channels]));
        }
    }
}

#[derive(Debug)]
struct Patches;

impl Backward<Flex, 1> for Patches {
    /// Shape of the input, side of the window, stride.
    type State = (Vec<usize>, usize, usize);

    /// Every pixel adds up the gradients of the windows that see it.
    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = Values::of(grads.consume::<Flex>(&ops.node));
        let [Some(parent)] = ops.parents else { return };
        let (shape, size, stride) = ops.state;
        let window =
            Window::new(&shape, size, DepthwiseOptions { stride, padding: Padding::Zeros });
        let (channels, patch, g_values) = (window.channels, grad.channels(), grad.as_slice());
        let row_size = window.output[1] * patch;
        let mut out = vec![0.0; shape.iter().product()];
        for_each_block(
            &mut out,
            shape[1..].iter().product(),
            #[inline(always)]
            |sample, out| {
                let g = &g_values[sample * grad.per_sample()..][..grad.per_sample()];
                for (row, g) in g.chunks_exact(row_size).enumerate() {
                    window.for_each_tap(
                        row,
                        #[inline(always)]
                        |tap, input, column| {
                            let g = &g[column * patch + tap * channels..][..channels];
                            let out = &mut out[input * channels..][..channels];
                            for c in 0..channels {
                                out[c] += g[c];
                            }
                        },
                    );
                }
            },
        );
        let x_grad = FlexTensor::from_data(TensorData::new(out, shape));
        grads.register::<Flex>(parent.id, x_grad);
    }
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values.to_vec(), shape))
}

/// Every kernel and its backward pass against the composed twin and burn's automatic derivative.
#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, Tolerance};

    use super::*;
    use crate::{
        attention, batch_norm, depthwise_conv, gelu, global_response_norm, layer_norm,
        masked_attention, patches, silu, softmax,
    };

    /// Two more than one block of the elementwise kernels, and no multiple of a vector's width.
    const ODD: [usize; 4] = [2, 11, 41, 19];

    fn random(shape: [usize; 4]) -> Tensor<4> {
        Tensor::random(shape, Distribution::Normal(0.3, 1.0), &Device::flex())
    }

    /// Compares the outputs, and the inputs' gradients of a sum that weighs every output apart.
    fn compare<const N: usize>(
        inputs: [Tensor<4>; N],
        kernel: impl Fn([Tensor<4>; N]) -> Tensor<4>,
        twin: impl Fn([Tensor<4>; N]) -> Tensor<4>,
    ) {
        let device = Device::flex().autodiff();
        let leaves =
            || inputs.each_ref().map(|x| Tensor::from_data(x.to_data(), &device).require_grad());
        let (ours, theirs) = (leaves(), leaves());
        let (y, expected) = (kernel(ours.clone()), twin(theirs.clone()));
        let weights: Tensor<4> = Tensor::from_data(random(y.dims()).into_data(), &device);
        let gradients = (y.clone() * weights.clone()).sum().backward();
        let expected_gradients = (expected.clone() * weights).sum().backward();
        assert_close(y, expected);
        for (x, twin) in ours.iter().zip(&theirs) {
            let gradient = x.grad(&gradients).expect("every input is reached");
            assert_close(gradient, twin.grad(&expected_gradients).expect("every input is reached"));
        }
    }

    /// Sums in another order differ by a few units in the last place of the largest values.
    fn assert_close(ours: Tensor<4>, expected: Tensor<4>) {
        // burn's comparison lets NaN pass where both sides are NaN.
        let sum = expected.clone().abs().sum().into_scalar::<f32>();
        assert!(sum.is_finite(), "the twin gives {sum}");
        let scale = expected.clone().abs().max().into_scalar::<f32>().max(1.0);
        let tolerance = Tolerance::rel_abs(1e-4, 1e-5 * scale);
        ours.into_data().assert_approx_eq::<f32>(&expected.into_data(), tolerance);
    }

    #[test]
    fn layer_norm_is_its_twin() {
        // Two channels that happened to be alike would have gradients of rounding errors alone.
        let two = Tensor::from_data([[[[0.5, -1.0]]]], &Device::flex());
        for x in [random(ODD), two, random([3, 2, 5, 48])] {
            let twin = |[x]: [Tensor<4>; 1]| layer_norm::reference::layer_norm(x);
            compare([x], |[x]| layer_norm(x), twin);
        }
    }

    #[test]
    fn attention_is_its_twin() {
        for ([batch, queries, keys, channels], heads) in
            [([2, 5, 7, 12], 3), ([1, 1, 1, 4], 4), ([3, 33, 20, 16], 1)]
        {
            let three = |x: Tensor<4>| x.squeeze_dim::<3>(1);
            let compare = |keys, mask: Option<Tensor<4>>| {
                let run = |ours: bool, [q, k, v]: [Tensor<4>; 3]| {
                    let ([q, k, v], mask) = ([q, k, v].map(three), mask.clone());
                    let mask = mask.map(|mask| Tensor::from_data(mask.into_data(), &q.device()));
                    let y = match (ours, mask) {
                        (true, None) => attention(q, vec![k], vec![v], heads),
                        (true, Some(mask)) => masked_attention(q, k, v, mask, heads),
                        (false, None) => crate::reference::attention(q, k, v, heads),
                        (false, Some(mask)) => {
                            crate::reference::masked_attention(q, k, v, mask, heads)
                        }
                    };
                    // A gradient that is not in order.
                    y.swap_dims(1, 2).unsqueeze_dim(1)
                };
                let inputs =
                    [queries, keys, keys].map(|tokens| random([batch, 1, tokens, channels]));
                compare(inputs, |inputs| run(true, inputs), |inputs| run(false, inputs));
            };
            compare(keys, None);
            let hidden = Tensor::<2>::ones([queries, queries], &Device::flex()).triu(1) * -1e4;
            compare(queries, Some(hidden.unsqueeze::<4>().repeat_dim(0, batch)));
        }
    }

    #[test]
    fn batch_norm_is_its_twin() {
        type Norm = fn(Tensor<2>, Tensor<1>, Tensor<1>, f64) -> (Tensor<2>, [Tensor<1>; 2]);
        // Less and more rows than a part of the sums; means that are large beside the deviations.
        for (shape, shift) in [(ODD, 0.0), ([1, 1, 3, 5], 1.0), ([2, 4, 32, 33], 100.0)] {
            let channels = shape[3];
            let run = |norm: Norm, [x, weight, bias]: [Tensor<4>; 3]| {
                let [weight, bias] = [weight, bias].map(|x| x.reshape([channels]));
                norm(x.reshape([-1, channels as i32]), weight, bias, 1e-3)
            };
            let affine = || random([1, 1, 1, channels]);
            let inputs = [random(shape) + shift, affine(), affine()];
            let statistics = |norm: Norm| run(norm, inputs.clone()).1;
            let twins = statistics(batch_norm::reference::batch_norm);
            for (found, expected) in statistics(batch_norm).into_iter().zip(twins) {
                assert_close(found.reshape([1, 1, 1, -1]), expected.reshape([1, 1, 1, -1]));
            }
            compare(
                inputs,
                |inputs| run(batch_norm, inputs).0.reshape(shape),
                |inputs| run(batch_norm::reference::batch_norm, inputs).0.reshape(shape),
            );
        }
    }

    /// Gradients are the same whichever of the other inputs are tracked, and whatever the order of values in memory.
    #[test]
    fn inputs_may_be_constant_or_turned() {
        type Operation = fn([Tensor<4>; 3]) -> Tensor<4>;
        let attention: Operation = |inputs| {
            let [q, k, v] = inputs.map(|x| x.swap_dims(2, 3).squeeze_dim::<3>(1));
            attention(q, vec![k], vec![v], 2).unsqueeze_dim(1)
        };
        let norm: Operation = |[x, weight, bias]| {
            let x = x.swap_dims(2, 3).reshape([-1, 6]);
            let [weight, bias] = [weight, bias].map(|x| x.slice_dim(3, 0).reshape([6]));
            batch_norm(x, weight, bias, 1e-3).0.reshape([2, 1, 9, 6])
        };
        for (operation, batches) in [(attention, [2; 3]), (norm, [2, 1, 1])] {
            let inputs = batches.map(|batch| random([batch, 1, 6, 9]));
            let weights = random([2, 1, 9, 6]);
            let gradients = |tracked: [bool; 3]| {
                let device = Device::flex().autodiff();
                let mut i = 0;
                let leaves = inputs.each_ref().map(|x| {
                    i += 1;
                    let x = Tensor::<4>::from_data(x.to_data(), &device);
                    if tracked[i - 1] { x.require_grad() } else { x }
                });
                let weights = Tensor::from_data(weights.to_data(), &device);
                let gradients = (operation(leaves.clone()) * weights).sum().backward();
                leaves.map(|x| x.grad(&gradients))
            };
            let all = gradients([true; 3]);
            for mask in 1..7 {
                let tracked = [1, 2, 4].map(|bit| mask & bit > 0);
                for (i, gradient) in gradients(tracked).into_iter().enumerate() {
                    assert_eq!(gradient.is_some(), tracked[i], "{mask}, input {i}");
                    if let (Some(found), Some(expected)) = (gradient, &all[i]) {
                        found.into_data().assert_eq(&expected.to_data(), true);
                    }
                }
            }
        }
    }

    #[test]
    fn gelu_is_its_twin() {
        for shape in [ODD, [1, 1, 1, 1]] {
            let twin = |[x]: [Tensor<4>; 1]| gelu::reference::gelu(x);
            compare([random(shape) * 3.0], |[x]| gelu(x), twin);
        }
    }

    #[test]
    fn silu_is_its_twin() {
        for shape in [ODD, [1, 1, 1, 1]] {
            let twin = |[x]: [Tensor<4>; 1]| silu::reference::silu(x);
            compare([random(shape) * 9.0], |[x]| silu(x), twin);
        }
    }

    #[test]
    fn a_transposed_copy_has_the_same_values() {
        for sides in [[1, 1], [16, 48], [5, 33], [33, 5], [128, 17]] {
            let x: Tensor<2> = random([1, 1, sides[0], sides[1]]).reshape(sides);
            let data = x.clone().into_data();
            let copy = transposed_copy(FlexTensor::from_data(data));
            let found = copy.to_contiguous().as_slice::<f32>().unwrap().to_vec();
            assert_eq!(found, x.transpose().into_data().try_to_vec::<f32>().unwrap(), "{sides:?}");
            assert_eq!(copy.layout().shape().to_vec(), [sides[1], sides[0]]);
        }
    }

    #[test]
    fn a_bias_is_added_as_by_its_twin() {
        // Less and more rows than a part of the sum, and no whole number of parts.
        for shape in [[1, 1, 3, 5], ODD, [2, 32, 16, 1]] {
            let channels = shape[3];
            let twin = |[x, bias]: [Tensor<4>; 2]| x + bias;
            let kernel = |[x, bias]: [Tensor<4>; 2]| add_bias(x, bias.reshape([channels]));
            compare([random(shape), random([1, 1, 1, channels])], kernel, twin);
            // A gradient that is not contiguous.
            let turned = |y: Tensor<4>| y.swap_dims(1, 3);
            let inputs = [random(shape), random([1, 1, 1, channels])];
            compare(inputs, |inputs| turned(kernel(inputs)), |inputs| turned(twin(inputs)));
        }
    }

    /// Rows of one, of less and more than a vector, and values that are lost beside others.
    #[test]
    fn softmax_is_its_twin() {
        for shape in [ODD, [1, 1, 2, 1], [3, 2, 5, 48]] {
            let twin = |[x]: [Tensor<4>; 1]| softmax::reference::softmax(x);
            compare([random(shape) * 30.0], |[x]| softmax(x), twin);
        }
    }

    /// Behind a mask and where one value stands out, weights and gradients are zero or far from subnormal numbers.
    #[test]
    fn softmax_makes_no_subnormal_numbers() {
        let device = Device::flex().autodiff();
        let scores = random([2, 3, 20, 20]) * 30.0;
        let mask = Tensor::<2>::ones([20, 20], &Device::flex()).triu(1).unsqueeze::<4>() * -1e30;
        let x = Tensor::<4>::from_data((scores + mask.clone()).into_data(), &device).require_grad();
        let y = softmax(x.clone());
        let weights = Tensor::<4>::from_data((random(y.dims()) * 1e-9).into_data(), &device);
        let gradient = x.grad(&(y.clone() * weights).sum().backward()).expect("x is tracked");
        let y = y.into_data().try_into_vec::<f32>().unwrap();
        let mask =
            mask.repeat_dim(0, 2).repeat_dim(1, 3).into_data().try_into_vec::<f32>().unwrap();
        assert!(y.iter().zip(&mask).all(|(y, mask)| *mask == 0.0 || *y == 0.0));
        let tiny = |x: &f32| *x != 0.0 && x.abs() < 1e-36;
        assert!(
            y.iter().filter(|y| **y == 0.0).count() > 2 * 3 * 190,
            "only masked weights are zero"
        );
        assert!(
            !y.iter().any(tiny)
                && !gradient.into_data().try_into_vec::<f32>().unwrap().iter().any(tiny)
        );
    }

    #[test]
    fn softmax_passes_nan_on() {
        let x = Tensor::<1>::from_floats([0.0, f32::NAN, 1.0], &Device::flex());
        assert!(softmax(x).into_data().try_into_vec::<f32>().unwrap().iter().all(|y| y.is_nan()));
    }

    #[test]
    fn global_response_norm_is_its_twin() {
        for shape in [ODD, [3, 1, 1, 5], [1, 4, 5, 32]] {
            let affine = || random([1, 1, 1, shape[3]]);
            compare(
                [random(shape), affine(), affine()],
                |[x, gamma, beta]| global_response_norm(x, gamma, beta),
                |[x, gamma, beta]| {
                    global_response_norm::reference::global_response_norm(x, gamma, beta)
                },
            );
        }
    }

    #[test]
    fn depthwise_conv_is_its_twin() {
        for padding in [Padding::Zeros, Padding::Replicate] {
            for (stride, size) in [(1, 3), (2, 3), (1, 5), (2, 5), (3, 3), (1, 1)] {
                for [batch, height, width, channels] in [[2, 7, 5, 19], [1, 8, 6, 3], [2, 1, 2, 4]]
                {
                    let options = DepthwiseOptions { stride, padding };
                    let inputs = [
                        random([batch, height, width, channels]),
                        random([channels, 1, size, size]),
                        random([1, 1, 1, channels]),
                    ];
                    compare(
                        inputs,
                        |[x, weight, bias]| {
                            depthwise_conv(x, weight, bias.reshape([channels]), options)
                        },
                        |[x, weight, bias]| {
                            let bias = bias.reshape([channels]);
                            depthwise_conv::reference::depthwise_conv(x, weight, bias, options)
                        },
                    );
                }
            }
        }
    }

    #[test]
    fn patches_are_their_twin() {
        for (size, stride) in [(3, 1), (3, 2), (5, 3), (1, 2), (1, 1)] {
            for shape in [[2, 7, 5, 19], [1, 8, 6, 3], [2, 1, 2, 4]] {
                let twin = |[x]: [Tensor<4>; 1]| patches::reference::patches(x, size, stride);
                compare([random(shape)], |[x]| patches(x, size, stride), twin);
            }
        }
    }

    /// With a longer weight, views for factors, and either factor without a gradient; forward with the bits of burn's.
    #[test]
    fn products_are_burns() {
        use crate::{Epilogue, linear};
        let twin = |x: Tensor<4>, weight: Tensor<2>| {
            let [batch, height, width, inputs] = x.dims();
            let outputs = weight.dims()[1];
            let y = x.reshape([-1, inputs as isize]).matmul(weight);
            y.reshape([batch, height, width, outputs])
        };
        let matrix = |w: Tensor<4>, rows: usize| w.reshape([rows, 24]);
        for (inputs, rows) in [(33, 33), (33, 40), (1, 1)] {
            let given = || [random([2, 3, 5, inputs]), random([1, 1, rows, 24])];
            let narrow = |w: Tensor<2>| w.narrow(0, 0, inputs);
            let product = |x, w| linear(x, w, Epilogue::new(None));
            compare(
                given(),
                |[x, w]| product(x, matrix(w, rows)),
                |[x, w]| twin(x, narrow(matrix(w, rows))),
            );
            compare(
                [random([2, inputs, 5, 3]), random([1, 1, 24, rows])],
                |[x, w]| product(x.permute([0, 2, 3, 1]), w.reshape([24, rows]).transpose()),
                |[x, w]| twin(x.permute([0, 2, 3, 1]), narrow(w.reshape([24, rows]).transpose())),
            );
            let on = |device: Device| {
                given().map(|tensor| Tensor::<4>::from_data(tensor.into_data(), &device))
            };
            let [x, w] = on(Device::flex().autodiff());
            compare(
                [x.clone()],
                |[x]| product(x, matrix(w.clone(), rows)),
                |[x]| twin(x, narrow(matrix(w.clone(), rows))),
            );
            compare(
                [w.clone()],
                |[w]| product(x.clone(), matrix(w, rows)),
                |[w]| twin(x.clone(), narrow(matrix(w, rows))),
            );
            let [x, w] = on(Device::flex());
            let expected = twin(x.clone(), narrow(matrix(w.clone(), rows))).into_data();
            product(x, matrix(w, rows)).into_data().assert_eq(&expected, true);
        }
    }

    /// A packed matrix gives the gradient that the same one in f32 does, also where only its first columns count.
    #[test]
    fn frozen_products_pass_gradients() {
        use crate::{Epilogue, PackedMatrix, Planes, packed_linear};
        let device = Device::flex().autodiff();
        let words: Vec<i32> = (0..3 * 16).map(|i: i32| i.wrapping_mul(0x0123_4567)).collect();
        let planes =
            Planes { values: words, scales: vec![0.5, -0.25, 2.0], zeros: vec![7, 9, 120] };
        let matrix = PackedMatrix::new(Packing::I8, [3, 40], planes, &device);
        for width in [40, 33] {
            let x = random([2, 3, 1, width]);
            compare(
                [x],
                |[x]| packed_linear(x, &matrix, Epilogue::new(None)),
                |[x]| {
                    let weight = matrix.unpack().narrow(1, 0, width).transpose();
                    crate::linear(x, weight, Epilogue::new(None))
                },
            );
        }
    }

    /// A transposed view has other strides than its shape says.
    #[test]
    fn views_are_read_as_they_are_shaped() {
        let x = random([2, 3, 7, 5]);
        let twin = |[x]: [Tensor<4>; 1]| layer_norm::reference::layer_norm(x.permute([0, 2, 3, 1]));
        compare([x], |[x]| layer_norm(x.permute([0, 2, 3, 1])), twin);
    }
}
