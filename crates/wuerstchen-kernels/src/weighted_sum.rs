//! The weighted sum of two lists of numbers.

use burn::prelude::*;

/// `a·x + b·y`. On a CPU, `x` changes in place if nothing else has a copy of it.
///
/// # Shapes
///
/// - x, y, output: `[N]`
pub fn weighted_sum(x: Tensor<1>, a: f64, y: Tensor<1>, b: f64) -> Tensor<1> {
    #[cfg(feature = "cpu")]
    if crate::cpu::runs_on(&x.device(), x.dtype()) {
        return crate::cpu::weighted_sum(x, a as f32, y, b as f32);
    }
    reference::weighted_sum(x, a, y, b)
}

/// The same operation composed from burn tensors: the definition of the kernel.
pub mod reference {
    use super::*;

    /// Twin of the CPU kernel.
    pub fn weighted_sum(x: Tensor<1>, a: f64, y: Tensor<1>, b: f64) -> Tensor<1> {
        x * a + y * b
    }
}
