//! The convolutional block: depthwise convolution, layer norm, channel MLP with GRN.

use burn::module::{Initializer, Module, Param};
use burn::nn::{Dropout, DropoutConfig, Linear};
use burn::prelude::*;
use wuerstchen_kernels::{
    DepthwiseOptions, Padding, depthwise_conv, global_response_norm, layer_norm,
};

use super::linear::{Folded, affine_add, affine_gelu, linear_layer, zeros};

/// Configuration of a [`ResBlock`].
#[derive(Clone, Debug)]
pub struct ResBlockConfig {
    /// Number of feature channels `C`.
    pub channels: usize,
    /// Number of channels `S` that are appended after the norm; 0 for none.
    pub skip_channels: usize,
    /// Side of the depthwise kernel.
    pub kernel_size: usize,
    /// Probability of zeroing an activation of the MLP while training.
    pub dropout: f64,
    /// Gain of the last linear layer at the start of training.
    pub output_gain: f64,
}

/// `y = x + MLP([LN(depthwise(x)), skips])`.
///
/// The skip features, and those of a [`MappedImage`], are appended after the norm and not normalised.
///
/// Source: `ResBlock` and `ResBlockStageB` in `modules.py` of dome272/Wuerstchen.
#[derive(Module, Debug)]
pub struct ResBlock {
    /// Depthwise convolution with zero padding.
    pub depthwise: DepthwiseConv,
    /// The layers that mix channels.
    pub channelwise: ChannelMlp,
}

/// A depthwise kernel and its bias.
#[derive(Module, Debug)]
pub struct DepthwiseConv {
    /// One kernel per channel, `[C, 1, K, K]`.
    pub weight: Param<Tensor<4>>,
    /// `[C]`.
    pub bias: Param<Tensor<1>>,
}

impl DepthwiseConv {
    /// Xavier-uniform weights and zero bias, as the authors start.
    pub fn init(channels: usize, kernel_size: usize, device: &Device) -> Self {
        // PyTorch's fan of a depthwise kernel: weight.size(1) and weight.size(0) times its area.
        let (area, xavier) = (kernel_size * kernel_size, Initializer::XavierUniform { gain: 1.0 });
        let shape = [channels, 1, kernel_size, kernel_size];
        let weight = xavier.init_with(shape, Some(area), Some(channels * area), device);
        Self { weight, bias: zeros([channels], device) }
    }

    /// Convolves `[B, H, W, C]` features at stride 1.
    pub fn forward(&self, x: Tensor<4>, padding: Padding) -> Tensor<4> {
        let options = DepthwiseOptions { stride: 1, padding };
        depthwise_conv(x, self.weight.val(), self.bias.val(), options)
    }
}

/// Expands to four times the channels, GELU, global response norm, contracts.
#[derive(Module, Debug)]
pub struct ChannelMlp {
    /// `[C + S]` to `[4C]`.
    pub expand: Linear,
    /// Over the expanded channels.
    pub response_norm: ResponseNorm,
    /// Between the norm and the last layer.
    pub dropout: Dropout,
    /// `[4C]` to `[C]`.
    pub contract: Linear,
}

/// The parameters of a global response norm.
#[derive(Module, Debug)]
pub struct ResponseNorm {
    /// Scale, `[1, 1, 1, C]`.
    pub gamma: Param<Tensor<4>>,
    /// Shift, `[1, 1, 1, C]`.
    pub beta: Param<Tensor<4>>,
}

impl ResBlockConfig {
    /// Initializes the block on `device`.
    pub fn init(&self, device: &Device) -> ResBlock {
        let (channels, hidden) = (self.channels, 4 * self.channels);
        let affine = || zeros([1, 1, 1, hidden], device);
        ResBlock {
            depthwise: DepthwiseConv::init(channels, self.kernel_size, device),
            channelwise: ChannelMlp {
                expand: linear_layer(channels + self.skip_channels, hidden, 1.0, device),
                response_norm: ResponseNorm { gamma: affine(), beta: affine() },
                dropout: DropoutConfig::new(self.dropout).init(),
                contract: linear_layer(hidden, channels, self.output_gain, device),
            },
        }
    }
}

/// Features of few channels that a linear layer widens, on their way into a [`ResBlock`].
///
/// The block's own layer is linear in them too, so that it takes them as they are: the wide features,
/// 1024 channels of 16 in the published model, are never made.
#[derive(Clone, Debug)]
pub struct MappedImage<'a> {
    /// `[B, H, W, N]`.
    pub image: Tensor<4>,
    /// What [`ResBlock::fold`] gives for the layer that widens them.
    pub folded: &'a Folded,
}

impl ResBlock {
    /// Folds the layer that widens an image embedding, of `N` channels to the last of the block's `S`.
    pub fn fold(&self, mapper: &Linear) -> Folded {
        Folded::new(&self.channelwise.expand, mapper)
    }

    /// Applies the block.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, H, W, C]`
    /// - skip: `[B, H, W, …]`, together with the mapped image of `S` channels
    pub fn forward(
        &self,
        x: Tensor<4>,
        skip: Option<Tensor<4>>,
        mapped: Option<MappedImage<'_>>,
    ) -> Tensor<4> {
        let h = layer_norm(self.depthwise.forward(x.clone(), Padding::Zeros));
        let h = match skip {
            Some(skip) => Tensor::cat(vec![h, skip], 3),
            None => h,
        };
        let mlp = &self.channelwise;
        let h = match mapped {
            Some(MappedImage { image, folded }) => folded.affine_gelu(&mlp.expand, h, image),
            None => affine_gelu(&mlp.expand, h),
        };
        let ResponseNorm { gamma, beta } = &mlp.response_norm;
        let h = global_response_norm(h, gamma.val(), beta.val());
        affine_add(&mlp.contract, mlp.dropout.forward(h), x)
    }
}

#[cfg(test)]
mod tests {
    use super::super::linear::affine;
    use super::*;
    use crate::relative_error::assert_close;
    use burn::tensor::Distribution;

    fn block(channels: usize, skip_channels: usize, output_gain: f64) -> ResBlock {
        let config =
            ResBlockConfig { channels, skip_channels, kernel_size: 3, dropout: 0.0, output_gain };
        config.init(&Device::flex())
    }

    #[test]
    fn zero_output_gain_is_the_identity() {
        let device = Device::flex();
        let block = block(3, 2, 0.0);
        let x = Tensor::<4>::random([1, 4, 5, 3], Distribution::Default, &device);
        let skip = Tensor::ones([1, 4, 5, 2], &device);
        let y = block.forward(x.clone(), Some(skip), None);
        y.into_data().assert_eq(&x.into_data(), true);
    }

    /// The definition: widened, appended, and taken as any other skip.
    #[test]
    fn mapped_image_is_a_skip_of_what_its_mapper_gives() {
        let device = Device::flex();
        let random = |shape| Tensor::<4>::random(shape, Distribution::Default, &device);
        let block = block(4, 3 + 8, 1.0);
        let mut mapper = linear_layer(5, 8, 1.0, &device);
        mapper.bias = Some(Param::from_tensor(Tensor::random([8], Distribution::Default, &device)));
        let [x, skip] = [4, 3].map(|channels| random([2, 3, 2, channels]));
        let image = random([2, 3, 2, 5]);
        let folded = block.fold(&mapper);
        let mapped = MappedImage { image: image.clone(), folded: &folded };
        let folded = block.forward(x.clone(), Some(skip.clone()), Some(mapped));
        let skips = Tensor::cat(vec![skip, affine(&mapper, image)], 3);
        let appended = block.forward(x, Some(skips), None);
        assert_close(folded, appended, 1e-5);
    }
}
