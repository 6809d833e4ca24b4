//! Changes of layout and resolution, as rearrangements and matrix products.

use burn::module::{Initializer, Module, Param};
use burn::prelude::*;
use wuerstchen_kernels::{Epilogue, layer_norm, linear};

use super::linear::zeros;

/// `[B, C, H, W]` to `[B, H, W, C]`.
pub fn channels_last(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 2, 3, 1])
}

/// `[B, H, W, C]` to `[B, C, H, W]`.
pub fn channels_first(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 3, 1, 2])
}

/// Packs every `factor`x`factor` patch into channels, numbered `c·r² + dy·r + dx` as in PyTorch.
///
/// # Shapes
///
/// - x: `[B, H, W, C]`, height and width divisible by `r`
/// - output: `[B, H/r, W/r, C·r²]`
pub fn pixel_unshuffle(x: Tensor<4>, factor: usize) -> Tensor<4> {
    let [batch, height, width, channels] = x.dims();
    let (rows, columns) = (height / factor, width / factor);
    x.reshape([batch, rows, factor, columns, factor, channels])
        .permute([0, 1, 3, 5, 2, 4])
        .reshape([batch, rows, columns, channels * factor * factor])
}

/// The inverse of [`pixel_unshuffle`].
///
/// # Shapes
///
/// - x: `[B, H, W, C·r²]`
/// - output: `[B, H·r, W·r, C]`
pub fn pixel_shuffle(x: Tensor<4>, factor: usize) -> Tensor<4> {
    let [batch, rows, columns, packed] = x.dims();
    let channels = packed / (factor * factor);
    x.reshape([batch, rows, columns, channels, factor, factor])
        .permute([0, 1, 4, 2, 5, 3])
        .reshape([batch, rows * factor, columns * factor, channels])
}

/// Layer norm, then a 2x2 convolution of stride 2.
///
/// Source: the downscalers in `DiffNeXt`, `modules.py` of dome272/Wuerstchen.
#[derive(Module, Debug)]
pub struct Downscale {
    /// `[C_out, C_in, 2, 2]`.
    pub weight: Param<Tensor<4>>,
    /// `[C_out]`.
    pub bias: Param<Tensor<1>>,
}

impl Downscale {
    /// Xavier-uniform weights and zero bias.
    pub fn init(input: usize, output: usize, device: &Device) -> Self {
        let xavier = Initializer::XavierUniform { gain: 1.0 };
        let weight =
            xavier.init_with([output, input, 2, 2], Some(4 * input), Some(4 * output), device);
        Self { weight, bias: zeros([output], device) }
    }

    /// Halves height and width; the last row or column of an odd side has no influence.
    ///
    /// # Shapes
    ///
    /// - x: `[B, H, W, C_in]`
    /// - output: `[B, H/2, W/2, C_out]`, rounded down
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let [output, input, ..] = weight.dims();
        let [_, height, width, _] = x.dims();
        let x = match (height % 2, width % 2) {
            (0, 0) => x,
            _ => x.narrow(1, 0, height / 2 * 2).narrow(2, 0, width / 2 * 2),
        };
        let patches = pixel_unshuffle(layer_norm(x), 2);
        linear(
            patches,
            weight.reshape([output, 4 * input]).transpose(),
            Epilogue::new(Some(self.bias.val())),
        )
    }
}

/// Layer norm, then a 2x2 transposed convolution of stride 2.
///
/// Source: the upscalers in `DiffNeXt`, `modules.py` of dome272/Wuerstchen.
#[derive(Module, Debug)]
pub struct Upscale {
    /// `[C_in, C_out, 2, 2]`.
    pub weight: Param<Tensor<4>>,
    /// `[C_out]`.
    pub bias: Param<Tensor<1>>,
}

impl Upscale {
    /// Xavier-uniform weights and zero bias.
    pub fn init(input: usize, output: usize, device: &Device) -> Self {
        let xavier = Initializer::XavierUniform { gain: 1.0 };
        let weight =
            xavier.init_with([input, output, 2, 2], Some(4 * output), Some(4 * input), device);
        Self { weight, bias: zeros([output], device) }
    }

    /// Doubles height and width.
    ///
    /// # Shapes
    ///
    /// - x: `[B, H, W, C_in]`
    /// - output: `[B, 2H, 2W, C_out]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let [input, output, ..] = weight.dims();
        let patches =
            linear(layer_norm(x), weight.reshape([input, 4 * output]), Epilogue::new(None));
        pixel_shuffle(patches, 2) + self.bias.val().reshape([1, 1, 1, output])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    #[test]
    fn shuffle_inverts_unshuffle() {
        let x = Tensor::<4>::random([2, 4, 6, 3], Distribution::Default, &Device::flex());
        let packed = pixel_unshuffle(x.clone(), 2);
        assert_eq!(packed.dims(), [2, 2, 3, 12]);
        pixel_shuffle(packed, 2).into_data().assert_eq(&x.into_data(), true);
    }

    /// One pixel's channel is read row by row.
    #[test]
    fn patches_are_numbered_row_by_row() {
        let x = Tensor::<4>::from_data([[[[1.0], [2.0]], [[3.0], [4.0]]]], &Device::flex());
        let expected = TensorData::from([[[[1.0f32, 2.0, 3.0, 4.0]]]]);
        pixel_unshuffle(x, 2).into_data().assert_eq(&expected, true);
    }
}
