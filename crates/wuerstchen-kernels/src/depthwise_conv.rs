//! Depthwise convolution of channels-last features.

use burn::prelude::*;
use burn::tensor::ops::PadMode;

/// What lies beyond the border of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Padding {
    /// Zeros.
    Zeros,
    /// The nearest pixel.
    Replicate,
}

/// How a depthwise kernel moves over the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DepthwiseOptions {
    /// Distance between neighbouring outputs in input pixels; at least 1.
    pub stride: usize,
    /// What lies beyond the border.
    pub padding: Padding,
}

/// Convolves every channel with its own `K`x`K` kernel, padded by `(K − 1) / 2` on each side.
///
/// # Shapes
///
/// - x: `[B, H, W, C]`
/// - weight: `[C, 1, K, K]`, `K` odd
/// - bias: `[C]`
/// - output: `[B, ceil(H / stride), ceil(W / stride), C]`
///
/// # Panics
///
/// Panics if the weight is of another shape, or the numbers of channels differ.
pub fn depthwise_conv(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    options: DepthwiseOptions,
) -> Tensor<4> {
    let [channels, one, size, size_too] = weight.dims();
    assert!(one == 1 && size == size_too && size % 2 == 1, "not depthwise: {:?}", weight.dims());
    assert_shape!(x, [_, _, _, channels]);
    #[cfg(feature = "cpu")]
    if crate::cpu::runs_on(&x.device(), x.dtype()) {
        return crate::cpu::depthwise_conv(x, weight, bias, options);
    }
    #[cfg(feature = "gpu")]
    if crate::wgsl::differentiates_on(&x.device(), x.dtype()) {
        return crate::wgsl::depthwise_conv(x, weight, bias, options);
    }
    reference::depthwise_conv(x, weight, bias, options)
}

/// The same operation composed from burn tensors: the definition of the kernels.
pub mod reference {
    use super::*;

    /// Twin of `shaders/depthwise_conv.wgsl`: a sum over the kernel's taps of shifted pictures.
    pub fn depthwise_conv(
        x: Tensor<4>,
        weight: Tensor<4>,
        bias: Tensor<1>,
        options: DepthwiseOptions,
    ) -> Tensor<4> {
        let ([_, height, width, channels], [.., size]) = (x.dims(), weight.dims());
        let mode = match options.padding {
            Padding::Zeros => PadMode::Constant(0.0),
            Padding::Replicate => PadMode::Edge,
        };
        let (pad, stride) = (size / 2, options.stride as isize);
        let x = x.pad([(pad, pad), (pad, pad), (0, 0)], mode);
        let taps = weight.reshape([channels, size * size]);
        (0..size * size).fold(bias.reshape([1, 1, 1, channels]), |sum, tap| {
            let (top, left) = (tap / size, tap % size);
            let rows = s![top..top + height;stride];
            let columns = s![left..left + width;stride];
            let shifted = x.clone().slice_dim(1, rows).slice_dim(2, columns);
            shifted * taps.clone().narrow(1, tap, 1).reshape([1, 1, 1, channels]) + sum
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of_neighbours(padding: Padding) -> TensorData {
        let device = Device::flex();
        let x = Tensor::<4>::from_data([[[[1.0], [2.0]], [[3.0], [4.0]]]], &device);
        let options = DepthwiseOptions { stride: 1, padding };
        let weight = Tensor::ones([1, 1, 3, 3], &device);
        reference::depthwise_conv(x, weight, Tensor::zeros([1], &device), options).into_data()
    }

    /// A 3x3 kernel of ones sees the whole 2x2 picture everywhere: 1 + 2 + 3 + 4.
    #[test]
    fn zeros_add_nothing() {
        let expected = TensorData::from([[[[10.0f32], [10.0]], [[10.0], [10.0]]]]);
        sum_of_neighbours(Padding::Zeros).assert_eq(&expected, true);
    }

    /// At the top left, 1 counts four times, 2 and 3 twice, 4 once: 18.
    #[test]
    fn replication_repeats_the_border() {
        let expected = TensorData::from([[[[18.0f32], [21.0]], [[24.0], [27.0]]]]);
        sum_of_neighbours(Padding::Replicate).assert_eq(&expected, true);
    }
}
