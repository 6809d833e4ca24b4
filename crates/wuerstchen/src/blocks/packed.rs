//! Matrices that stay packed in a module.

use burn::module::{Module, Reparameterization};
use burn::prelude::*;
use wuerstchen_kernels::PackedMatrix;

/// A matrix as the checkpoint packs it, in the layout of PyTorch, in place of a weight in f32.
#[derive(Module, Debug)]
pub(crate) struct Packed {
    pub(crate) matrix: PackedMatrix,
    /// Whether the parameter is the transposed matrix, as a linear layer's is.
    #[module(skip)]
    pub(crate) transposed: bool,
}

impl Reparameterization for Packed {
    const NAME: &'static str = "packed";

    /// The matrix in f32; linear layers use [`affine`](super::affine) instead, which leaves it packed.
    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let matrix = self.matrix.unpack();
        let matrix = if self.transposed { matrix.transpose() } else { matrix };
        matrix.reshape(base.dims())
    }
}
