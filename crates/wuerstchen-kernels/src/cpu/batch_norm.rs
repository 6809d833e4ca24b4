//! Batch normalisation by the statistics of the batch, and its backward pass.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};

use super::sums::{channel_sums, row_sums};
use super::values::Values;
use super::*;
use crate::autodiff::record;

/// As [`crate::batch_norm()`].
pub(crate) fn batch_norm(
    x: Tensor<2>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> (Tensor<2>, [Tensor<1>; 2]) {
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    let statistics = Dispatch::cpu_channel_statistics(x.clone());
    let y = Dispatch::cpu_batch_norm(x, statistics.clone(), weight, bias, epsilon);
    let statistics = Tensor::<2>::from_dispatch(statistics);
    let row = |i| statistics.clone().slice_dim(0, i).squeeze_dim(0);
    (Tensor::from_dispatch(y), [row(0), row(1)])
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait CpuBatchNorm: Backend {
    /// The means and the biased variances of channels, `[2, C]`, through which no gradient passes.
    fn cpu_channel_statistics(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `(x − mean)·scale·weight + bias` with the statistics of `x`, whose dependence on `x` the gradient knows.
    fn cpu_batch_norm(
        x: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self>;
}

/// `1 / sqrt(variance + ε)` of every channel.
fn scales(variances: &[f32], epsilon: f64) -> Vec<f32> {
    variances.iter().map(|variance| 1.0 / (variance + epsilon as f32).sqrt()).collect()
}

impl CpuBatchNorm for Flex {
    fn cpu_channel_statistics(x: FlexTensor) -> FlexTensor {
        let x = Values::of(x);
        let (values, rows, channels) = (x.as_slice(), x.shape[0], x.channels());
        let mean = |mut sums: Vec<f32>| {
            sums.iter_mut().for_each(|sum| *sum /= rows as f32);
            sums
        };
        let means = mean(channel_sums(
            values,
            [rows, channels],
            #[inline(always)]
            |x| x,
        ));
        let variances = mean(row_sums(
            rows,
            channels,
            #[inline(always)]
            |row, sums| {
                let (x, means) = (&values[row * channels..][..channels], &means[..channels]);
                let sums = &mut sums[..channels];
                for c in 0..channels {
                    sums[c] += (x[c] - means[c]) * (x[c] - means[c]);
                }
            },
        ));
        let statistics = [means, variances].concat();
        FlexTensor::from_data(TensorData::new(statistics, [2, channels]))
    }

    fn cpu_batch_norm(
        x: FlexTensor,
        statistics: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        epsilon: f64,
    ) -> FlexTensor {
        let [x, statistics, weight, bias] = [x, statistics, weight, bias].map(Values::of);
        let channels = x.channels();
        let (means, variances) = statistics.as_slice().split_at(channels);
        let mut scales = scales(variances, epsilon);
        scales.iter_mut().zip(weight.as_slice()).for_each(|(scale, weight)| *scale *= weight);
        let bias = bias.as_slice();
        x.map_rows(
            #[inline(always)]
            |_, x| {
                let [means, scales, bias] = [means, &scales, bias].map(|x| &x[..channels]);
                for x in x.chunks_exact_mut(channels) {
                    for c in 0..channels {
                        x[c] = (x[c] - means[c]) * scales[c] + bias[c];
                    }
                }
            },
        )
    }
}

impl<C: CheckpointStrategy> CpuBatchNorm for Autodiff<Flex, C> {
    fn cpu_channel_statistics(x: FloatTensor<Self>) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(Flex::cpu_channel_statistics(x.into_parts().0))
    }

    fn cpu_batch_norm(
        x: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let ((bias, bias_node), statistics) = (bias.into_parts(), statistics.into_parts().0);
        record::<Flex, C, _, _, 3>(
            BatchNorm,
            [x_node, weight_node, bias_node],
            (x, statistics, weight, bias),
            |(x, statistics, weight, _)| (x.clone(), statistics.clone(), weight.clone(), epsilon),
            |(x, statistics, weight, bias)| {
                Flex::cpu_batch_norm(x, statistics, weight, bias, epsilon)
            },
        )
    }
}

#[derive(Debug)]
struct BatchNorm;

impl Backward<Flex, 3> for BatchNorm {
    /// The input, its statistics, the weight and `ε`.
    type State = (FlexTensor, FlexTensor, FlexTensor, f64);

    /// With `d = x − μ`, `s = 1 / sqrt(σ² + ε)` and means over the rows:
    /// `∂x = w·s·(g − mean(g) − d·s²·mean(g·d))`, `∂w = s·Σ g·d` and `∂b = Σ g`.
    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = Values::of(grads.consume::<Flex>(&ops.node));
        let (x, statistics, weight, epsilon) = ops.state;
        let [x, statistics, weight] = [x, statistics, weight].map(Values::of);
        let (channels, rows) = (x.channels(), x.shape[0]);
        let (means, variances) = statistics.as_slice().split_at(channels);
        let (x, weight) = (x.as_slice(), weight.as_slice());
        let scales = scales(variances, epsilon);

        let g_values = grad.as_slice();
        let sums = row_sums(
            rows,
            2 * channels,
            #[inline(always)]
            |row, sums| {
                let (g_sums, gd_sums) = sums[..2 * channels].split_at_mut(channels);
                let [x, g] = [x, g_values].map(|values| &values[row * channels..][..channels]);
                let (means, gd_sums) = (&means[..channels], &mut gd_sums[..channels]);
                for c in 0..channels {
                    g_sums[c] += g[c];
                    gd_sums[c] += g[c] * (x[c] - means[c]);
                }
            },
        );
        let (g_sums, gd_sums) = sums.split_at(channels);

        let [x_parent, weight_parent, bias_parent] = ops.parents;
        let vector = |values: Vec<f32>| FlexTensor::from_data(TensorData::new(values, [channels]));
        if let Some(parent) = weight_parent {
            let sums = gd_sums.iter().zip(&scales);
            grads.register::<Flex>(parent.id, vector(sums.map(|(sum, s)| sum * s).collect()));
        }
        if let Some(parent) = bias_parent {
            grads.register::<Flex>(parent.id, vector(g_sums.to_vec()));
        }
        let Some(parent) = x_parent else { return };
        let count = rows as f32;
        let per_channel = |f: &dyn Fn(usize) -> f32| (0..channels).map(f).collect::<Vec<_>>();
        let factors = per_channel(&|c| weight[c] * scales[c]);
        let slopes = per_channel(&|c| scales[c] * scales[c] * gd_sums[c] / count);
        let g_means = per_channel(&|c| g_sums[c] / count);
        let x_grad = grad.map_rows(
            #[inline(always)]
            |row, grad| {
                let x = &x[row * channels..][..grad.len()];
                let [means, factors, slopes, g_means] =
                    [means, &factors, &slopes, &g_means].map(|values| &values[..channels]);
                for (x, g) in x.chunks_exact(channels).zip(grad.chunks_exact_mut(channels)) {
                    for c in 0..channels {
                        g[c] = factors[c] * (g[c] - g_means[c] - (x[c] - means[c]) * slopes[c]);
                    }
                }
            },
        );
        grads.register::<Flex>(parent.id, x_grad);
    }
}
