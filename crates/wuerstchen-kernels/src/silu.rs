//! The sigmoid linear unit.

use burn::prelude::*;

/// `x·σ(x)`, as `nn.SiLU()` of the authors' code.
///
/// # Shapes
///
/// - x, output: any, the same
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "cpu")]
    if crate::cpu::runs_on(&x.device(), x.dtype()) {
        return crate::cpu::silu(x);
    }
    reference::silu(x)
}

/// The same operation from burn: the definition of the kernel.
pub mod reference {
    use super::*;

    /// Twin of the CPU kernel; burn fuses it into its neighbours on a GPU.
    pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
        burn::tensor::activation::silu(x)
    }
}
