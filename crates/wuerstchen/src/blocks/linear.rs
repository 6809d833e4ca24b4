//! Linear layers and embeddings, whose matrices may stay packed.

use burn::module::{Initializer, Module, Param, Reparameterization};
use burn::nn::Linear;
use burn::prelude::*;
use wuerstchen_kernels::{PackedMatrix, linear, packed_linear};

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

    /// The matrix in f32; layers use [`affine`] instead, which leaves it packed.
    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let matrix = self.matrix.unpack();
        let matrix = if self.transposed { matrix.transpose() } else { matrix };
        matrix.reshape(base.dims())
    }
}

/// A linear layer with Xavier-uniform weights of the given gain and zero bias, as the authors start.
pub(crate) fn linear_layer(input: usize, output: usize, gain: f64, device: &Device) -> Linear {
    let initializer =
        if gain == 0.0 { Initializer::Zeros } else { Initializer::XavierUniform { gain } };
    let weight = initializer.init_with([input, output], Some(input), Some(output), device);
    Linear { weight, bias: Some(Initializer::Zeros.init([output], device)) }
}

/// A linear layer with weights of N(0, 0.02²) and zero bias, as the authors start condition mappers.
pub(crate) fn condition_mapper(input: usize, output: usize, device: &Device) -> Linear {
    let weight = Initializer::Normal { mean: 0.0, std: 0.02 }.init([input, output], device);
    Linear { weight, bias: Some(Initializer::Zeros.init([output], device)) }
}

/// A parameter that starts as zeros.
pub(crate) fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Initializer::Zeros.init(shape, device)
}

/// A linear layer, whether its weight is packed or not.
///
/// # Shapes
///
/// - x: `[…, d_input]`
/// - output: `[…, d_output]`
pub(crate) fn affine<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    let bias = layer.bias.as_ref().map(Param::val);
    match layer.weight.reparameterization::<Packed>() {
        Some(packed) => packed_linear(x, &packed.matrix, bias),
        None => linear(x, layer.weight.val(), bias),
    }
}

/// The weight of a linear layer in f32, whether it is packed or not.
///
/// # Shapes
///
/// - output: `[d_input, d_output]`
fn dense(layer: &Linear) -> Tensor<2> {
    match layer.weight.reparameterization::<Packed>() {
        Some(packed) => packed.matrix.unpack().transpose(),
        None => layer.weight.val(),
    }
}

/// A linear layer of `x` with the output of another, `mapper(z)`, appended, without making the latter:
///
/// `[x, z·M + m]·W + b = x·W₁ + z·(M·W₂) + (m·W₂ + b)`, with `W₁` the rows of `x` and `W₂` the rest.
///
/// # Shapes
///
/// - x: `[…, K]`
/// - mapper: `N` to `S`
/// - z: `[…, N]`
/// - layer: `K + S` to `d_output`
/// - output: `[…, d_output]`
pub(crate) fn affine_of_mapped<const D: usize>(
    layer: &Linear,
    x: Tensor<D>,
    mapper: &Linear,
    z: Tensor<D>,
) -> Tensor<D> {
    let (kept, narrow) = (x.dims()[D - 1], z.dims()[D - 1]);
    let device = x.device();
    let map = dense(mapper);
    let wide = map.dims()[1];
    let shift = match &mapper.bias {
        Some(bias) => bias.val().unsqueeze(),
        None => Tensor::zeros([1, wide], &device),
    };
    let rows = Tensor::cat(vec![map, shift], 0);
    // From what W₂ makes of these rows: the matrix of z, and the bias.
    let split = |folded: Tensor<2>| {
        let shift = folded.clone().narrow(0, narrow, 1).squeeze_dim::<1>(0);
        let bias = match &layer.bias {
            Some(bias) => bias.val() + shift,
            None => shift,
        };
        (folded.narrow(0, 0, narrow), Some(bias))
    };
    let packed = layer.weight.reparameterization::<Packed>().map(|packed| &packed.matrix);
    match packed.filter(|matrix| matrix.has_kernel()) {
        Some(matrix) => {
            let none = Tensor::zeros([narrow + 1, kept], &device);
            let folded = packed_linear(Tensor::cat(vec![none, rows], 1), matrix, None);
            let (folded, bias) = split(folded);
            packed_linear(x, matrix, bias) + linear(z, folded, None)
        }
        None => {
            let weight = dense(layer);
            let (folded, bias) = split(rows.matmul(weight.clone().narrow(0, kept, wide)));
            let weight = Tensor::cat(vec![weight.narrow(0, 0, kept), folded], 0);
            linear(Tensor::cat(vec![x, z], D - 1), weight, bias)
        }
    }
}

/// Rows of an embedding, whether it is packed or not.
///
/// # Shapes
///
/// - rows: `[R]`
/// - output: `[R, width]`
pub(crate) fn embed(embedding: &Param<Tensor<2>>, rows: Tensor<1, Int>) -> Tensor<2> {
    match embedding.reparameterization::<Packed>() {
        Some(packed) => packed.matrix.select(rows),
        None => embedding.val().select(0, rows),
    }
}
