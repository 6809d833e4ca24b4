//! The windows that a dense convolution sees, with which it becomes one matrix product.

use burn::prelude::*;

/// The `size`x`size` window around every `stride`-th pixel, row by row, its channels side by side. Beyond the
/// border lie zeros.
///
/// # Shapes
///
/// - x: `[B, H, W, C]`
/// - output: `[B, ceil(H / stride), ceil(W / stride), size² · C]`
///
/// # Panics
///
/// Panics if `size` is even.
pub fn patches(x: Tensor<4>, size: usize, stride: usize) -> Tensor<4> {
    assert!(size % 2 == 1, "expected a window with a middle, found a side of {size}");
    #[cfg(feature = "cpu")]
    if crate::cpu::runs_on(&x.device(), x.dtype()) {
        return crate::cpu::patches(x, size, stride);
    }
    #[cfg(feature = "gpu")]
    if crate::wgsl::differentiates_on(&x.device(), x.dtype()) {
        return crate::wgsl::patches(x, size, stride);
    }
    reference::patches(x, size, stride)
}

/// The same operation composed from burn tensors: the definition of the kernels.
pub mod reference {
    use super::*;

    /// Twin of `shaders/patches.wgsl`: shifted pictures side by side.
    pub fn patches(x: Tensor<4>, size: usize, stride: usize) -> Tensor<4> {
        let ([_, height, width, _], pad) = (x.dims(), size / 2);
        let step = stride as isize;
        let x = x.pad([(pad, pad), (pad, pad), (0, 0)], 0.0f32);
        let shifted = |tap: usize| {
            let (top, left) = (tap / size, tap % size);
            let rows = x.clone().slice_dim(1, s![top..top + height;step]);
            rows.slice_dim(2, s![left..left + width;step])
        };
        Tensor::cat((0..size * size).map(shifted).collect(), 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The window around the first of two pixels: three rows of (zero, first, second).
    #[test]
    fn a_window_is_read_row_by_row() {
        let x = Tensor::<4>::from_data([[[[1.0], [2.0]]]], &Device::flex());
        let expected = TensorData::from([[[[0.0f32, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0]]]]);
        reference::patches(x, 3, 2).into_data().assert_eq(&expected, true);
    }
}
