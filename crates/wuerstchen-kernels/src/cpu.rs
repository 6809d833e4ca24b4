//! Hand-written f32 kernels for burn Flex, each with its backward pass.
//!
//! burn composes these operations from whole-tensor passes, and its depthwise weight gradient loops
//! over the channels; on a CPU the memory traffic and the loop cost more than the arithmetic.
//! Results do not depend on the number of threads: every sum runs in a fixed order.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::prelude::*;
use burn::tensor::DType;
use burn_flex::FlexTensor;

use crate::depthwise_conv::{DepthwiseOptions, Padding};
use crate::global_response_norm::EPSILON as NORM_EPSILON;
use crate::layer_norm::EPSILON as VARIANCE_EPSILON;
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

pub(crate) fn layer_norm<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::cpu_layer_norm(x.into_dispatch()))
}

pub(crate) fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::cpu_gelu(x.into_dispatch()))
}

pub(crate) fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::cpu_softmax(x.into_dispatch()))
}

pub(crate) fn global_response_norm(x: Tensor<4>, gamma: Tensor<4>, beta: Tensor<4>) -> Tensor<4> {
    let [x, gamma, beta] = [x, gamma, beta].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::cpu_global_response_norm(x, gamma, beta))
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

/// The operations that Flex runs as hand-written loops.
#[backend_extension(Flex, Autodiff: cfg(feature = "train"))]
pub(crate) trait CpuKernels: Backend {
    fn cpu_layer_norm(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cpu_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cpu_softmax(x: FloatTensor<Self>) -> FloatTensor<Self>;
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
    fn cpu_unpack(
        values: IntTensor<Self>,
        scales: FloatTensor<Self>,
        zeros: IntTensor<Self>,
        packing: Packing,
        columns: usize,
    ) -> FloatTensor<Self>;
}

impl CpuKernels for Flex {
    fn cpu_layer_norm(x: FlexTensor) -> FlexTensor {
        let x = Values::of(x);
        let channels = x.channels();
        x.map_rows(|_, x| {
            for x in x.chunks_exact_mut(channels) {
                let (mean, scale) = row_statistics(x);
                x.iter_mut().for_each(|x| *x = (*x - mean) * scale);
            }
        })
    }

    fn cpu_gelu(x: FlexTensor) -> FlexTensor {
        Values::of(x).map_rows(|_, x| x.iter_mut().for_each(|x| *x *= normal_cdf(*x)))
    }

    fn cpu_softmax(x: FlexTensor) -> FlexTensor {
        let x = Values::of(x);
        let channels = x.channels();
        x.map_rows(|_, x| {
            for x in x.chunks_exact_mut(channels) {
                let largest = maximum(x);
                // What is smaller than e⁻⁸⁷ beside the largest is lost in the sum anyway.
                x.iter_mut().for_each(|x| *x = exp((*x - largest).max(-87.0)));
                let scale = 1.0 / sum(|i| x[i], channels);
                x.iter_mut().for_each(|x| *x *= scale);
            }
        })
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
        x.map_rows(|row, x| {
            for (i, x) in x.chunks_exact_mut(channels).enumerate() {
                let scale = &scales[(row + i) / pixels * channels..][..channels];
                let factors = scale.iter().zip(beta.as_slice());
                x.iter_mut().zip(factors).for_each(|(x, (scale, beta))| *x = *x * scale + beta);
            }
        })
    }

    fn cpu_depthwise_conv(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        options: DepthwiseOptions,
    ) -> FlexTensor {
        let (x, weight, bias) = (Values::of(x), Values::of(weight), Values::of(bias));
        let window = Window::new(&x, &weight, options);
        let taps = window.taps_of(weight.as_slice());
        let (bias, channels) = (bias.as_slice(), window.channels);
        let [height, width] = window.output;
        let (x_values, per_sample) = (x.as_slice(), x.per_sample());
        let mut out = vec![0.0; x.shape[0] * height * width * channels];
        let rows = block(width * channels) / (width * channels);
        parallel::for_each_block(&mut out, rows * width * channels, |i, y| {
            pulp::Arch::new().dispatch(|| {
                y.chunks_exact_mut(channels).for_each(|y| y.copy_from_slice(bias));
                for (row, y) in (i * rows..).zip(y.chunks_exact_mut(width * channels)) {
                    let x = &x_values[row / height * per_sample..][..per_sample];
                    window.for_each_tap(row % height, |tap, input, column| {
                        let tap = &taps[tap * channels..][..channels];
                        let x = &x[input * channels..][..channels];
                        let y = &mut y[column * channels..][..channels];
                        for c in 0..channels {
                            y[c] += tap[c] * x[c];
                        }
                    });
                }
            });
        });
        FlexTensor::from_data(TensorData::new(out, [x.shape[0], height, width, channels]))
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
        parallel::for_each_block(&mut out, columns, |row, out| {
            packing.unpack_row(words, scales, zeros, row, out);
        });
        FlexTensor::from_data(TensorData::new(out, [rows, columns]))
    }
}

/// Elements that one task of a kernel handles, in whole rows: 64 KiB, half of a level-two cache.
fn block(row: usize) -> usize {
    const BLOCK: usize = 1 << 14;
    BLOCK.max(row) / row.max(1) * row
}

/// A contiguous tensor and its shape.
struct Values {
    tensor: FlexTensor,
    shape: Vec<usize>,
}

impl Values {
    fn of(tensor: FlexTensor) -> Self {
        let tensor = tensor.to_contiguous();
        let shape = tensor.layout().shape().to_vec();
        Self { tensor, shape }
    }

    fn as_slice(&self) -> &[f32] {
        self.tensor.as_slice().expect("made contiguous in `of`")
    }

    fn words(&self) -> &[i32] {
        self.tensor.as_slice().expect("made contiguous in `of`, of 32-bit integers in `new`")
    }

    fn channels(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Values of a sample.
    fn per_sample(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Rows of channels of a sample.
    fn pixels(&self) -> usize {
        self.per_sample() / self.channels()
    }

    /// Changes the rows of channels in place if nobody else has the values, else a copy of them.
    /// `f` takes the number of its first row, and some rows.
    fn map_rows(mut self, f: impl Fn(usize, &mut [f32]) + Sync) -> FlexTensor {
        let channels = self.channels();
        let size = block(channels);
        let change = |i: usize, x: &mut [f32]| {
            pulp::Arch::new().dispatch(|| f(i * size / channels, x));
        };
        if let Some(x) = self.tensor.try_storage_mut() {
            parallel::for_each_block(x, size, change);
            return self.tensor;
        }
        let x = self.as_slice();
        let mut out = vec![0.0; x.len()];
        parallel::for_each_block(&mut out, size, |i, out| {
            out.copy_from_slice(&x[i * size..][..out.len()]);
            change(i, out);
        });
        FlexTensor::from_data(TensorData::new(out, self.shape))
    }
}

/// The only place that knows whether there are threads.
mod parallel {
    #[cfg(feature = "parallel")]
    use rayon::prelude::*;

    #[cfg(feature = "parallel")]
    pub(super) fn for_each_block<T: Send>(
        out: &mut [T],
        block: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        out.par_chunks_mut(block.max(1)).enumerate().for_each(|(i, out)| f(i, out));
    }

    #[cfg(not(feature = "parallel"))]
    pub(super) fn for_each_block<T>(out: &mut [T], block: usize, f: impl Fn(usize, &mut [T])) {
        out.chunks_mut(block.max(1)).enumerate().for_each(|(i, out)| f(i, out));
    }
}

/// Sums in sixteen lanes, an order that vectorises and never changes.
#[inline(always)]
fn sum(values: impl Fn(usize) -> f32, count: usize) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0f32; LANES];
    for block in 0..count / LANES {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += values(block * LANES + lane);
        }
    }
    let rest: f32 = (count / LANES * LANES..count).map(values).sum();
    lanes.iter().sum::<f32>() + rest
}

/// The largest value, found in sixteen lanes as in [`sum`].
#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let blocks = x.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, x)| *lane = lane.max(*x));
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Mean and `1 / sqrt(variance + ε)` of a row.
#[inline(always)]
fn row_statistics(x: &[f32]) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = sum(|i| x[i], x.len()) / count;
    let variance = sum(|i| (x[i] - mean) * (x[i] - mean), x.len()) / count;
    (mean, 1.0 / (variance + VARIANCE_EPSILON as f32).sqrt())
}

/// `eˣ` for `x` in `[−87, 0]`, by a power of two and a polynomial; relative error below 10⁻⁶.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it leaves the nearest integer
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    (p * r * r + r + 1.0) * power
}

/// The L2 norm of every channel over the pixels, sample by sample.
fn channel_norms(x: &Values) -> Vec<f32> {
    const PART: usize = 256; // pixels in a part of the sum
    let (channels, pixels, values) = (x.channels(), x.pixels(), x.as_slice());
    let per_sample = pixels.div_ceil(PART);
    // Sums of sums: one long sum of f32 would lose what it adds to.
    let mut parts = vec![0.0f32; x.shape[0] * per_sample * channels];
    parallel::for_each_block(&mut parts, channels, |i, sums| {
        let (sample, first) = (i / per_sample, i % per_sample * PART);
        let count = PART.min(pixels - first);
        let x = &values[(sample * pixels + first) * channels..][..count * channels];
        pulp::Arch::new().dispatch(|| {
            for x in x.chunks_exact(channels) {
                sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
            }
        });
    });
    let mut norms = vec![0.0f32; x.shape[0] * channels];
    let samples = norms.chunks_exact_mut(channels).zip(parts.chunks_exact(per_sample * channels));
    for (norms, parts) in samples {
        for part in parts.chunks_exact(channels) {
            norms.iter_mut().zip(part).for_each(|(norm, part)| *norm += part);
        }
        norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
    }
    norms
}

/// The mean of a sample's channel norms, plus `ε`.
fn mean_norm(norms: &[f32]) -> f32 {
    norms.iter().sum::<f32>() / norms.len() as f32 + NORM_EPSILON as f32
}

/// `Φ(x)`, the standard normal distribution function.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The error function as a rational function of degree 13/8; absolute error below 3·10⁻⁷.
///
/// Coefficients: the approximation of Eigen (`generic_fast_erf_float`), which vectorises.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let x2 = x * x;
    let mut p = -2.726_142_3e-10;
    for coefficient in [
        2.770_681_5e-8,
        -2.101_024e-6,
        -5.692_506_5e-5,
        -7.349_906_3e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ] {
        p = p * x2 + coefficient;
    }
    let mut q = -1.456_607_2e-5;
    for coefficient in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        q = q * x2 + coefficient;
    }
    x * p / q
}

/// The geometry of one depthwise convolution.
struct Window {
    input: [usize; 2],
    output: [usize; 2],
    channels: usize,
    size: usize,
    options: DepthwiseOptions,
}

impl Window {
    fn new(x: &Values, weight: &Values, options: DepthwiseOptions) -> Self {
        let input = [x.shape[1], x.shape[2]];
        let output = input.map(|side| side.div_ceil(options.stride));
        Self { input, output, channels: x.shape[3], size: weight.shape[3], options }
    }

    /// `[C, K·K]` weights as `[K·K, C]`.
    fn taps_of(&self, weight: &[f32]) -> Vec<f32> {
        let count = self.size * self.size;
        (0..weight.len()).map(|i| weight[i % self.channels * count + i / self.channels]).collect()
    }

    /// Calls `f(tap, input pixel, output column)` for everything that the window connects with a row
    /// of the output.
    #[inline(always)]
    fn for_each_tap(&self, row: usize, mut f: impl FnMut(usize, usize, usize)) {
        for column in 0..self.output[1] {
            for tap in 0..self.size * self.size {
                let y = self.source(row, tap / self.size, self.input[0]);
                let x = self.source(column, tap % self.size, self.input[1]);
                if let (Some(y), Some(x)) = (y, x) {
                    f(tap, y * self.input[1] + x, column);
                }
            }
        }
    }

    #[inline(always)]
    fn source(&self, output: usize, offset: usize, side: usize) -> Option<usize> {
        let position = (output * self.options.stride + offset) as isize - (self.size / 2) as isize;
        match self.options.padding {
            Padding::Zeros => usize::try_from(position).ok().filter(|&p| p < side),
            Padding::Replicate => Some(position.clamp(0, side as isize - 1) as usize),
        }
    }
}

#[cfg(feature = "train")]
mod backward {
    use burn::backend::Autodiff;
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;

    impl<C: CheckpointStrategy> CpuKernels for Autodiff<Flex, C> {
        fn cpu_layer_norm(x: FloatTensor<Self>) -> FloatTensor<Self> {
            let (x, node) = x.into_parts();
            match LayerNorm.prepare::<C>([node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(x.clone(), Flex::cpu_layer_norm(x)),
                OpsKind::UnTracked(prep) => prep.finish(Flex::cpu_layer_norm(x)),
            }
        }

        fn cpu_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
            let (x, node) = x.into_parts();
            match Gelu.prepare::<C>([node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(x.clone(), Flex::cpu_gelu(x)),
                OpsKind::UnTracked(prep) => prep.finish(Flex::cpu_gelu(x)),
            }
        }

        fn cpu_softmax(x: FloatTensor<Self>) -> FloatTensor<Self> {
            let (x, node) = x.into_parts();
            let y = Flex::cpu_softmax(x);
            match Softmax.prepare::<C>([node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(y.clone(), y),
                OpsKind::UnTracked(prep) => prep.finish(y),
            }
        }

        fn cpu_global_response_norm(
            x: FloatTensor<Self>,
            gamma: FloatTensor<Self>,
            beta: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            let ((x, x_node), (gamma, gamma_node)) = (x.into_parts(), gamma.into_parts());
            let (beta, beta_node) = beta.into_parts();
            let nodes = [x_node, gamma_node, beta_node];
            match GlobalResponseNorm.prepare::<C>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(prep) => {
                    let state = (x.clone(), gamma.clone());
                    prep.finish(state, Flex::cpu_global_response_norm(x, gamma, beta))
                }
                OpsKind::UnTracked(prep) => {
                    prep.finish(Flex::cpu_global_response_norm(x, gamma, beta))
                }
            }
        }

        fn cpu_depthwise_conv(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            options: DepthwiseOptions,
        ) -> FloatTensor<Self> {
            let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
            let (bias, bias_node) = bias.into_parts();
            let nodes = [x_node, weight_node, bias_node];
            match DepthwiseConv.prepare::<C>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(prep) => {
                    let state = (x.clone(), weight.clone(), options);
                    prep.finish(state, Flex::cpu_depthwise_conv(x, weight, bias, options))
                }
                OpsKind::UnTracked(prep) => {
                    prep.finish(Flex::cpu_depthwise_conv(x, weight, bias, options))
                }
            }
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
    }

    #[derive(Debug)]
    struct LayerNorm;

    impl Backward<Flex, 1> for LayerNorm {
        type State = FlexTensor;

        /// With `x̂ = (x − μ)·s`: `∂x = s·(g − mean(g) − x̂·mean(g·x̂))`.
        fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = Values::of(grads.consume::<Flex>(&ops.node));
            let [Some(parent)] = ops.parents else { return };
            let x = Values::of(ops.state);
            let (channels, x_values) = (x.channels(), x.as_slice());
            let x_grad = grad.map_rows(|row, grad| {
                let x = &x_values[row * channels..][..grad.len()];
                for (x, g) in x.chunks_exact(channels).zip(grad.chunks_exact_mut(channels)) {
                    let (mean, scale) = row_statistics(x);
                    let count = channels as f32;
                    let g_mean = sum(|i| g[i], channels) / count;
                    let gx_mean = sum(|i| g[i] * (x[i] - mean) * scale, channels) / count;
                    for c in 0..channels {
                        g[c] = scale * (g[c] - g_mean - (x[c] - mean) * scale * gx_mean);
                    }
                }
            });
            grads.register::<Flex>(parent.id, x_grad);
        }
    }

    #[derive(Debug)]
    struct Gelu;

    impl Backward<Flex, 1> for Gelu {
        type State = FlexTensor;

        /// `∂x = g·(Φ(x) + x·φ(x))`.
        fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = Values::of(grads.consume::<Flex>(&ops.node));
            let [Some(parent)] = ops.parents else { return };
            let x = Values::of(ops.state);
            let (channels, x_values) = (x.channels(), x.as_slice());
            let x_grad = grad.map_rows(|row, grad| {
                let x = &x_values[row * channels..][..grad.len()];
                for (g, &x) in grad.iter_mut().zip(x) {
                    *g *= normal_cdf(x) + x * normal_density(x);
                }
            });
            grads.register::<Flex>(parent.id, x_grad);
        }
    }

    /// `φ(x) = exp(−x²/2) / sqrt(2π)`.
    #[inline(always)]
    fn normal_density(x: f32) -> f32 {
        const INVERSE_SQRT_2PI: f32 = 0.398_942_3;
        INVERSE_SQRT_2PI * exp((-0.5 * x * x).max(-87.0))
    }

    #[derive(Debug)]
    struct Softmax;

    impl Backward<Flex, 1> for Softmax {
        /// The output.
        type State = FlexTensor;

        /// `∂x = y·(g − Σ g·y)`.
        fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = Values::of(grads.consume::<Flex>(&ops.node));
            let [Some(parent)] = ops.parents else { return };
            let y = Values::of(ops.state);
            let (channels, y_values) = (y.channels(), y.as_slice());
            let x_grad = grad.map_rows(|row, grad| {
                let y = &y_values[row * channels..][..grad.len()];
                for (y, g) in y.chunks_exact(channels).zip(grad.chunks_exact_mut(channels)) {
                    let inner = sum(|i| g[i] * y[i], channels);
                    g.iter_mut().zip(y).for_each(|(g, y)| *g = y * (*g - inner));
                }
            });
            grads.register::<Flex>(parent.id, x_grad);
        }
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
            parallel::for_each_block(&mut sums, 4 * channels, |i, out| {
                let x = &x_values[i * per_sample..][..per_sample];
                let g = &g_values[i * per_sample..][..per_sample];
                let norms = &norms[i * channels..][..channels];
                pulp::Arch::new().dispatch(|| response_sums(x, g, norms, gamma, out));
            });
            let x_grad = grad.map_rows(|row, g| {
                let x = &x_values[row * channels..][..g.len()];
                let rows = x.chunks_exact(channels).zip(g.chunks_exact_mut(channels));
                for (row, (x, g)) in (row..).zip(rows) {
                    let factors = &sums[(4 * (row / pixels) + 2) * channels..][..2 * channels];
                    let (scale, slope) = factors.split_at(channels);
                    for c in 0..channels {
                        g[c] = g[c] * scale[c] + x[c] * slope[c];
                    }
                }
            });
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
            let window = Window::new(&x, &weight, ops.state.2);
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
                parallel::for_each_block(&mut out, x.per_sample(), |sample, out| {
                    pulp::Arch::new().dispatch(|| {
                        for (row, g) in g_rows(sample) {
                            window.for_each_tap(row, |tap, input, column| {
                                let tap = &taps[tap * channels..][..channels];
                                let g = &g[column * channels..][..channels];
                                let out = &mut out[input * channels..][..channels];
                                for c in 0..channels {
                                    out[c] += tap[c] * g[c];
                                }
                            });
                        }
                    });
                });
                let x_grad = FlexTensor::from_data(TensorData::new(out, x.shape.clone()));
                grads.register::<Flex>(parent.id, x_grad);
            }

            // Per sample: the gradient of every tap, then of the bias.
            let block = (tap_count + 1) * channels;
            let mut sums = vec![0.0; x.shape[0] * block];
            parallel::for_each_block(&mut sums, block, |sample, out| {
                let x = &x_values[sample * x.per_sample()..][..x.per_sample()];
                let (taps, bias) = out.split_at_mut(tap_count * channels);
                pulp::Arch::new().dispatch(|| {
                    for (row, g) in g_rows(sample) {
                        window.for_each_tap(row, |tap, input, column| {
                            let x = &x[input * channels..][..channels];
                            let g = &g[column * channels..][..channels];
                            let tap = &mut taps[tap * channels..][..channels];
                            for c in 0..channels {
                                tap[c] += x[c] * g[c];
                            }
                        });
                        for g in g.chunks_exact(channels) {
                            bias.iter_mut().zip(g).for_each(|(bias, g)| *bias += g);
                        }
                    }
                });
            });
            let sums = sum_blocks(&sums, block, block);
            let (taps, bias) = sums.split_at(tap_count * channels);
            if let Some(parent) = weight_parent {
                let weight: Vec<f32> = (0..taps.len())
                    .map(|i| taps[i % tap_count * channels + i / tap_count])
                    .collect();
                let shape = [channels, 1, window.size, window.size];
                grads.register::<Flex>(parent.id, tensor(&weight, shape));
            }
            if let Some(parent) = bias_parent {
                grads.register::<Flex>(parent.id, tensor(bias, [channels]));
            }
        }
    }

    /// Adds up the first `count` values of every block.
    fn sum_blocks(values: &[f32], block: usize, count: usize) -> Vec<f32> {
        let mut total = vec![0.0; count];
        for values in values.chunks_exact(block) {
            total.iter_mut().zip(values).for_each(|(total, value)| *total += value);
        }
        total
    }

    fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> FlexTensor {
        FlexTensor::from_data(TensorData::new(values.to_vec(), shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_matches_the_standard_library() {
        for i in 0..8700 {
            let x = -0.01 * i as f32;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-6, "{x}");
        }
    }

    /// Points and values of the error function, from tables.
    #[test]
    fn error_function_matches_tables() {
        let table = [
            (0.0, 0.0),
            (0.1, 0.112_462_916),
            (0.5, 0.520_499_9),
            (1.0, 0.842_700_8),
            (2.0, 0.995_322_3),
            (3.0, 0.999_977_9),
            (5.0, 1.0),
        ];
        for (x, expected) in table {
            assert!((erf(x) - expected).abs() < 3e-7, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }
}

/// Every kernel and its backward pass against the composed twin and burn's automatic derivative.
#[cfg(all(test, feature = "train"))]
mod gradient_tests {
    use burn::tensor::{Distribution, Tolerance};

    use super::*;
    use crate::{depthwise_conv, gelu, global_response_norm, layer_norm, softmax};

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
        let scale = expected.clone().abs().max().into_scalar::<f32>().max(1.0);
        let tolerance = Tolerance::rel_abs(1e-4, 1e-5 * scale);
        ours.into_data().assert_approx_eq::<f32>(&expected.into_data(), tolerance);
    }

    #[test]
    fn layer_norm_is_its_twin() {
        for shape in [ODD, [1, 1, 1, 2], [3, 2, 5, 48]] {
            let twin = |[x]: [Tensor<4>; 1]| layer_norm::reference::layer_norm(x);
            compare([random(shape)], |[x]| layer_norm(x), twin);
        }
    }

    #[test]
    fn gelu_is_its_twin() {
        for shape in [ODD, [1, 1, 1, 1]] {
            let twin = |[x]: [Tensor<4>; 1]| gelu::reference::gelu(x);
            compare([random(shape) * 3.0], |[x]| gelu(x), twin);
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

    /// A transposed view has other strides than its shape says.
    #[test]
    fn views_are_read_as_they_are_shaped() {
        let x = random([2, 3, 7, 5]);
        let twin = |[x]: [Tensor<4>; 1]| layer_norm::reference::layer_norm(x.permute([0, 2, 3, 1]));
        compare([x], |[x]| layer_norm(x.permute([0, 2, 3, 1])), twin);
    }
}
