//! Batch normalisation of channels-last features.

use burn::module::{Initializer, Module, Param, RunningState};
use burn::prelude::*;
#[cfg(feature = "train")]
use wuerstchen_kernels::batch_norm;

/// Which statistics a batch norm uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// The running averages that training left.
    Running,
    /// The statistics of the batch, as in training. They also move the running averages. Only with the feature `train`.
    #[cfg(feature = "train")]
    Batch,
}

/// Share of a batch's statistics in the running averages, PyTorch's default.
#[cfg(feature = "train")]
const MOMENTUM: f64 = 0.1;

/// Normalises every channel over the batch, then scales and shifts it.
///
/// burn's own batch norm wants channels first, and the kind of device decides which statistics it uses.
#[derive(Module, Debug)]
pub struct ChannelBatchNorm {
    /// Scale, `[C]`; `None` for 1.
    pub weight: Option<Param<Tensor<1>>>,
    /// Shift, `[C]`; `None` for 0.
    pub bias: Option<Param<Tensor<1>>>,
    /// Running average of the means, `[C]`.
    pub running_mean: RunningState<Tensor<1>>,
    /// Running average of the unbiased variances, `[C]`.
    pub running_var: RunningState<Tensor<1>>,
    epsilon: f64,
}

impl ChannelBatchNorm {
    /// Starts at mean 0, variance 1, scale 1 and shift 0.
    pub fn init(channels: usize, epsilon: f64, device: &Device) -> Self {
        Self {
            weight: Some(Initializer::Ones.init([channels], device)),
            bias: Some(Initializer::Zeros.init([channels], device)),
            running_mean: RunningState::new(Tensor::zeros([channels], device)),
            running_var: RunningState::new(Tensor::ones([channels], device)),
            epsilon,
        }
    }

    /// Removes the scale and the shift.
    pub fn without_affine(self) -> Self {
        Self { weight: None, bias: None, ..self }
    }

    /// Normalises `[B, H, W, C]` features.
    pub fn forward(&self, x: Tensor<4>, statistics: Statistics) -> Tensor<4> {
        let [batch, height, width, channels] = x.dims();
        let rows = x.reshape([batch * height * width, channels]);
        let y = match statistics {
            Statistics::Running => self.by_running_averages(rows),
            #[cfg(feature = "train")]
            Statistics::Batch => self.by_the_batch(rows),
        };
        y.reshape([batch, height, width, channels])
    }

    fn by_running_averages(&self, rows: Tensor<2>) -> Tensor<2> {
        let (mean, variance) = (self.running_mean.value(), self.running_var.value());
        let deviation = (variance + self.epsilon).sqrt();
        let scale = match &self.weight {
            Some(weight) => weight.val() / deviation,
            None => deviation.recip(),
        };
        let shift = match &self.bias {
            Some(bias) => bias.val() - mean * scale.clone(),
            None => -(mean * scale.clone()),
        };
        rows * scale.unsqueeze() + shift.unsqueeze()
    }

    #[cfg(feature = "train")]
    fn by_the_batch(&self, rows: Tensor<2>) -> Tensor<2> {
        let ([count, channels], device) = (rows.dims(), rows.device());
        let ones = || Tensor::ones([channels], &device);
        let weight = self.weight.as_ref().map_or_else(ones, Param::val);
        let bias =
            self.bias.as_ref().map_or_else(|| Tensor::zeros([channels], &device), Param::val);
        let (y, [mean, variance]) = batch_norm(rows, weight, bias, self.epsilon);
        let update = |state: &RunningState<Tensor<1>>, value: Tensor<1>| {
            state.update(state.value_sync() * (1.0 - MOMENTUM) + value * MOMENTUM);
            // Only synchronised values are saved with the module.
            let _ = state.value_sync();
        };
        update(&self.running_mean, mean);
        // PyTorch keeps the unbiased variance and normalises by the biased one. It refuses a single row, whose variance
        // counts as 0 here.
        update(&self.running_var, variance * (count as f64 / (count as f64 - 1.0).max(1.0)));
        y
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    /// Values 1 and 3: mean 2, biased variance 1, unbiased variance 2.
    #[test]
    fn training_moves_the_running_averages_as_pytorch() {
        let norm = ChannelBatchNorm::init(1, 0.0, &Device::flex());
        let x = Tensor::<4>::from_data([[[[1.0], [3.0]]]], &Device::flex());
        let y = norm.forward(x, Statistics::Batch).into_data();
        let tolerance = Tolerance::absolute(1e-6);
        y.assert_approx_eq::<f32>(&TensorData::from([[[[-1.0], [1.0]]]]), tolerance);
        let mean = norm.running_mean.value_sync().into_data();
        mean.assert_approx_eq::<f32>(&TensorData::from([0.2]), tolerance);
        let variance = norm.running_var.value_sync().into_data();
        variance.assert_approx_eq::<f32>(&TensorData::from([1.1]), tolerance);
    }
}
