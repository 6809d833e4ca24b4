//! Softmax over the last axis.

use burn::prelude::*;

/// `exp(x) / Σ exp(x)` over every row of `x`.
///
/// # Shapes
///
/// - x, output: `[…, C]`
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "cpu")]
    if crate::cpu::runs_on(&x.device(), x.dtype()) {
        return crate::cpu::softmax(x);
    }
    reference::softmax(x)
}

/// The same operation from burn: the definition of the kernel.
pub mod reference {
    use super::*;

    /// Twin of the CPU kernel.
    pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
        burn::tensor::activation::softmax(x, D - 1)
    }
}
