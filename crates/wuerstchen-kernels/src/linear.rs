//! Linear layers: products of channels-last features with a matrix.

use burn::prelude::*;

/// `y = x·W + b`.
///
/// One product of all rows, whatever the rank: for some shapes burn would make one of a few rows for each
/// batch, which is slow on a CPU. On GPUs it is burn's where burn times the variants of every product at
/// first use (feature `autotune`), else `shaders/linear.wgsl`.
///
/// # Shapes
///
/// - x: `[…, K]`
/// - weight: `[K, N]`
/// - bias: `[N]`
/// - output: `[…, N]`
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    by_rows(x, weight.dims(), bias, |x| multiply(x, weight))
}

fn multiply(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "gpu")]
    if !cfg!(feature = "autotune") && crate::wgsl::runs_on(&x.device()) && in_quads(weight.dims()) {
        return crate::wgsl::linear(x, weight);
    }
    x.matmul(weight)
}

/// Multiplies the rows of `x`, whatever its rank, with a matrix of `columns` by `outputs`.
pub(crate) fn by_rows<const D: usize>(
    x: Tensor<D>,
    [columns, outputs]: [usize; 2],
    bias: Option<Tensor<1>>,
    multiply: impl FnOnce(Tensor<2>) -> Tensor<2>,
) -> Tensor<D> {
    let mut shape = x.dims();
    assert_eq!(shape[D - 1], columns, "x has {} columns, the weight {columns}", shape[D - 1]);
    shape[D - 1] = outputs;
    let y = multiply(x.reshape([-1, columns as isize])).reshape(shape);
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// Whether shaders that read four values at a time can read rows of these lengths.
#[cfg(feature = "gpu")]
pub(crate) fn in_quads(sides: [usize; 2]) -> bool {
    sides.iter().all(|side| side.is_multiple_of(4))
}

/// The same operation composed from burn tensors: the definition of the kernels.
pub mod reference {
    use super::*;

    /// Twin of `shaders/linear.wgsl`, with the bias.
    pub fn linear<const D: usize>(
        x: Tensor<D>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
    ) -> Tensor<D> {
        burn::tensor::module::linear(x, weight, bias)
    }
}
