//! The convolutional block: depthwise convolution, layer norm, channel MLP with GRN.

use burn::module::{Initializer, Module, Param};
use burn::nn::{Dropout, DropoutConfig, Linear};
use burn::prelude::*;
use burn::tensor::Distribution;
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
/// The skip features, and those of a [`MappedImage`], are appended after the norm and not normalised. In
/// Würstchen v1 they come before the depthwise convolution instead, which then sees two channels at a time.
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
    /// One kernel per channel, `[C, 1, K, K]`; `[C, 2, K, K]` where output `j` sees inputs `2j` and `2j + 1`.
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

    /// As [`Self::init`], for a convolution whose outputs see two input channels each.
    pub fn init_paired(channels: usize, kernel_size: usize, device: &Device) -> Self {
        let (area, xavier) = (kernel_size * kernel_size, Initializer::XavierUniform { gain: 1.0 });
        let shape = [channels, 2, kernel_size, kernel_size];
        let weight = xavier.init_with(shape, Some(2 * area), Some(channels * area), device);
        Self { weight, bias: zeros([channels], device) }
    }

    /// Whether outputs see two input channels each.
    pub fn is_paired(&self) -> bool {
        self.weight.dims()[1] == 2
    }

    /// Convolves features at stride 1.
    ///
    /// # Shapes
    ///
    /// - x: `[B, H, W, C]`, `[B, H, W, 2C]` of a paired convolution
    /// - output: `[B, H, W, C]`
    pub fn forward(&self, x: Tensor<4>, padding: Padding) -> Tensor<4> {
        let options = DepthwiseOptions { stride: 1, padding };
        if !self.is_paired() {
            return depthwise_conv(x, self.weight.val(), self.bias.val(), options);
        }
        // Two depthwise convolutions: one of the even channels, one of the odd ones.
        let [batch, height, width, channels] = x.dims();
        let pairs = x.reshape([batch, height, width, channels / 2, 2]);
        let of = |i: usize, bias: Tensor<1>| {
            let channels = pairs.clone().narrow(4, i, 1).squeeze_dim::<4>(4);
            depthwise_conv(channels, self.weight.val().narrow(1, i, 1), bias, options)
        };
        let bias = self.bias.val();
        of(0, bias.clone()) + of(1, bias.zeros_like())
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
/// The block's first layer is linear too, so both layers are folded into one. The wide features, 1024 channels
/// made from 16 in the published model, are never computed.
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
    /// - skip: `[B, H, W, …]`, together with the mapped image of `S` channels; of `C` channels where the
    ///   depthwise convolution is paired
    pub fn forward(
        &self,
        x: Tensor<4>,
        skip: Option<Tensor<4>>,
        mapped: Option<MappedImage<'_>>,
    ) -> Tensor<4> {
        let h = self.expanded(x.clone(), skip, mapped);
        let mlp = &self.channelwise;
        affine_add(&mlp.contract, mlp.dropout.forward(h), x)
    }

    /// Draws which values dropout keeps, with the random numbers that [`Self::forward`] would draw; `None` where
    /// it keeps all, as outside of training.
    ///
    /// # Shapes
    ///
    /// - x: `[B, H, W, C]`
    /// - output: `[B, H, W, 4C]`
    pub fn draw_mask(&self, x: &Tensor<4>) -> Option<Tensor<4, Bool>> {
        let Dropout { prob, training } = &self.channelwise.dropout;
        let device = x.device();
        if !training.is_enabled() || !device.is_autodiff() || *prob == 0.0 {
            return None;
        }
        let [batch, height, width, channels] = x.dims();
        let kept = Distribution::Bernoulli(1.0 - prob);
        let random = Tensor::<4>::random([batch, height, width, 4 * channels], kept, &device);
        Some(random.greater_elem(0.5))
    }

    /// As [`Self::forward`] for a block without skip features, with the dropout mask of [`Self::draw_mask`].
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, H, W, C]`
    /// - mask: `[B, H, W, 4C]`
    pub fn forward_with_mask(&self, x: Tensor<4>, mask: Tensor<4, Bool>) -> Tensor<4> {
        let h = self.expanded(x.clone(), None, None);
        let mlp = &self.channelwise;
        // As burn's dropout computes it, so that the bits are the same.
        let left = h * mask.float() * (1.0 / (1.0 - mlp.dropout.prob));
        affine_add(&mlp.contract, left, x)
    }

    /// The expanded channels after their norm.
    ///
    /// # Shapes
    ///
    /// - output: `[B, H, W, 4C]`
    fn expanded(
        &self,
        x: Tensor<4>,
        skip: Option<Tensor<4>>,
        mapped: Option<MappedImage<'_>>,
    ) -> Tensor<4> {
        let (z, skip) = match skip {
            Some(skip) if self.depthwise.is_paired() => (Tensor::cat(vec![x, skip], 3), None),
            skip => (x, skip),
        };
        let h = layer_norm(self.depthwise.forward(z, Padding::Zeros));
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
        global_response_norm(h, gamma.val(), beta.val())
    }
}

#[cfg(test)]
mod tests {
    use super::super::linear::affine;
    use super::*;
    use crate::relative_error::assert_close;

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

    /// Of a 1x1 kernel, output `j` is `b_j + w_j0·z_2j + w_j1·z_2j+1`: with three channels the middle one sees the
    /// last channel of the features and the first one of the skip.
    #[test]
    fn a_paired_convolution_sees_neighbouring_channels() {
        let device = Device::flex();
        let mut conv = DepthwiseConv::init_paired(3, 1, &device);
        let weight = Tensor::<1>::from_data([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &device);
        conv.weight = Param::from_tensor(weight.reshape([3, 2, 1, 1]));
        conv.bias = Param::from_tensor(Tensor::from_data([0.5, 0.0, 0.0], &device));
        let z = Tensor::<1>::from_data([1.0, 10.0, 100.0, 1.0, 10.0, 100.0], &device);
        let y = conv.forward(z.reshape([1, 1, 1, 6]), Padding::Zeros);
        let expected = TensorData::from([[[[1.0 + 20.0 + 0.5, 300.0 + 4.0, 50.0 + 600.0f32]]]]);
        y.into_data().assert_eq(&expected, true);
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
