//! The exact Gaussian error linear unit.

use burn::prelude::*;

/// `x·Φ(x)` with the exact error function, as `nn.GELU()` of the authors' code.
///
/// # Shapes
///
/// - x, output: any, the same
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "cpu")]
    if crate::cpu::runs_on(&x.device(), x.dtype()) {
        return crate::cpu::gelu(x);
    }
    reference::gelu(x)
}

/// The same operation from burn: the definition of the kernel.
pub mod reference {
    use super::*;

    /// Twin of the CPU kernel; burn fuses it into its neighbours on a GPU.
    pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
        burn::tensor::activation::gelu(x)
    }
}
