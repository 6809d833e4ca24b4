//! Batch normalisation by the statistics of the batch, as in training.

use burn::prelude::*;

/// Normalises every channel over the rows, then scales and shifts it:
/// `(x − mean) / sqrt(variance + ε)·weight + bias`.
///
/// Returns the result, and the means and biased variances, through which no gradient passes.
///
/// # Shapes
///
/// - x, result: `[M, C]`
/// - weight, bias, means, variances: `[C]`
pub fn batch_norm(
    x: Tensor<2>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> (Tensor<2>, [Tensor<1>; 2]) {
    #[cfg(feature = "cpu")]
    if crate::cpu::runs_on(&x.device(), x.dtype()) {
        return crate::cpu::batch_norm(x, weight, bias, epsilon);
    }
    reference::batch_norm(x, weight, bias, epsilon)
}

/// The same operation composed from burn tensors: the definition of the kernel.
pub mod reference {
    use super::*;

    /// Twin of the CPU kernel.
    pub fn batch_norm(
        x: Tensor<2>,
        weight: Tensor<1>,
        bias: Tensor<1>,
        epsilon: f64,
    ) -> (Tensor<2>, [Tensor<1>; 2]) {
        let mean = x.clone().mean_dim(0);
        let centered = x - mean.clone();
        let variance = centered.clone().square().mean_dim(0);
        let scale = weight.unsqueeze::<2>() / (variance.clone() + epsilon).sqrt();
        let y = centered * scale + bias.unsqueeze::<2>();
        (y, [mean, variance].map(|statistic| statistic.detach().squeeze_dim(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    /// Values 1 and 3 have the mean 2 and the variance 1.
    #[test]
    fn two_values_become_minus_one_and_one() {
        let device = Device::flex();
        let values = |values: &[f32]| Tensor::<1>::from_data(values, &device);
        let x = Tensor::<2>::from_data([[1.0], [3.0]], &device);
        let (y, [mean, variance]) = reference::batch_norm(x, values(&[10.0]), values(&[5.0]), 0.0);
        let check = |found: TensorData, expected: TensorData| {
            found.assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-5));
        };
        check(y.into_data(), TensorData::from([[-5.0], [15.0]]));
        check(mean.into_data(), TensorData::from([2.0]));
        check(variance.into_data(), TensorData::from([1.0]));
    }
}
