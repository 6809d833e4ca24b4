//! Global response normalisation of ConvNeXt V2.

use burn::prelude::*;

/// Added to the mean channel norm so that an all-zero feature map stays finite.
pub const EPSILON: f64 = 1e-6;

/// `y = γ·(x·N) + β + x`, where `N` is each channel's L2 norm over the picture divided by the mean
/// of those norms over the channels.
///
/// The norm is global over height and width: tiles of a picture do not give the same result.
///
/// Source: ConvNeXt V2 (arXiv 2301.00808), Algorithm 1; `GlobalResponseNorm` in `modules.py` of
/// dome272/Wuerstchen.
///
/// # Shapes
///
/// - x, output: `[B, H, W, C]`
/// - gamma, beta: `[1, 1, 1, C]`
///
/// # Panics
///
/// Panics if the numbers of channels differ.
pub fn global_response_norm(x: Tensor<4>, gamma: Tensor<4>, beta: Tensor<4>) -> Tensor<4> {
    let [.., channels] = gamma.dims();
    assert_shape!(x, [_, _, _, channels]);
    #[cfg(feature = "cpu")]
    if crate::cpu::runs_on(&x.device(), x.dtype()) {
        return crate::cpu::global_response_norm(x, gamma, beta);
    }
    #[cfg(feature = "gpu")]
    if crate::wgsl::differentiates_on(&x.device(), x.dtype()) && channels.is_multiple_of(4) {
        return crate::wgsl::global_response_norm(x, gamma, beta);
    }
    reference::global_response_norm(x, gamma, beta)
}

/// The same operation composed from burn tensors: the definition of the kernels.
pub mod reference {
    use super::*;

    /// As [`super::global_response_norm`].
    pub fn global_response_norm(x: Tensor<4>, gamma: Tensor<4>, beta: Tensor<4>) -> Tensor<4> {
        let norms = channel_norms(x.clone());
        response(x, norms, gamma, beta)
    }

    /// Twin of `shaders/channel_norms.wgsl`: `[B, H, W, C]` to `[B, 1, 1, C]`; sums in f32 whatever
    /// the input type.
    pub fn channel_norms(x: Tensor<4>) -> Tensor<4> {
        let dtype = x.dtype();
        let squares = x.cast(burn::tensor::DType::F32).square();
        squares.sum_dim(1).sum_dim(2).sqrt().cast(dtype)
    }

    /// Twin of `shaders/response.wgsl`: scales `x` by its channels' norms relative to their mean.
    pub fn response(
        x: Tensor<4>,
        norms: Tensor<4>,
        gamma: Tensor<4>,
        beta: Tensor<4>,
    ) -> Tensor<4> {
        let response = norms.clone() / (norms.mean_dim(3) + EPSILON);
        x * (response * gamma + 1.0) + beta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    /// Channel norms are 5 and 0, their mean 2.5, so the responses are 2 and 0.
    #[test]
    fn scales_each_channel_by_its_relative_norm() {
        let device = Device::flex();
        let x = Tensor::<4>::from_data([[[[3.0, 0.0]], [[4.0, 0.0]]]], &device);
        let gamma = Tensor::ones([1, 1, 1, 2], &device);
        let y = reference::global_response_norm(x, gamma.clone(), gamma * 0.5);
        let expected = TensorData::from([[[[9.5, 0.5]], [[12.5, 0.5]]]]);
        y.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-5, 1e-5));
    }

    #[test]
    #[should_panic(expected = "axis 3 expected 2, got 3")]
    fn channel_count_must_match() {
        let device = Device::flex();
        let gamma = Tensor::ones([1, 1, 1, 2], &device);
        global_response_norm(Tensor::zeros([1, 4, 4, 3], &device), gamma.clone(), gamma);
    }
}
