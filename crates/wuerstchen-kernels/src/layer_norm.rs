//! Layer norm over the channels of channels-last features, without affine parameters.

use burn::prelude::*;

/// Added to the variance, as in `LayerNorm(…, elementwise_affine=False, eps=1e-6)` of the authors' code.
pub const EPSILON: f64 = 1e-6;

/// Normalises every row of channels of `x`: `(x − mean) / sqrt(variance + 10⁻⁶)`.
///
/// # Shapes
///
/// - x, output: `[…, C]`
pub fn layer_norm<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "cpu")]
    if crate::cpu::runs_on(&x.device(), x.dtype()) {
        return crate::cpu::layer_norm(x);
    }
    #[cfg(feature = "gpu")]
    if crate::wgsl::differentiates_on(&x.device(), x.dtype()) && x.dims()[D - 1].is_multiple_of(4) {
        return crate::wgsl::layer_norm(x);
    }
    reference::layer_norm(x)
}

/// The same operation composed from burn tensors: the definition of the kernels.
pub mod reference {
    use super::*;

    /// Twin of `shaders/layer_norm.wgsl`; statistics in f32 whatever the input type.
    pub fn layer_norm<const D: usize>(x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let x = x.cast(burn::tensor::DType::F32);
        let centred = x.clone() - x.mean_dim(D - 1);
        let variance = centred.clone().square().mean_dim(D - 1);
        (centred / (variance + EPSILON).sqrt()).cast(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    /// Channels 1 and 3: mean 2, variance 1.
    #[test]
    fn normalises_over_channels() {
        let x = Tensor::<2>::from_data([[1.0, 3.0]], &Device::flex());
        let expected = TensorData::from([[-1.0, 1.0]]);
        reference::layer_norm(x)
            .into_data()
            .assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-5, 1e-5));
    }
}
