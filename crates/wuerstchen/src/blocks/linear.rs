//! Linear layers and embeddings, whose matrices may stay packed.

use burn::module::{Initializer, Param};
use burn::nn::Linear;
use burn::prelude::*;
use wuerstchen_kernels::linear::has_kernel;
use wuerstchen_kernels::{Epilogue, PackedMatrix, linear, packed_linear};

use super::adapter::Adapter;
use super::packed::Packed;

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

/// Applies a linear layer, whether its weight is packed or not.
///
/// # Shapes
///
/// - x: `[…, d_input]`
/// - output: `[…, d_output]`
pub(crate) fn affine<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    multiply(layer, x, Epilogue::new(bias(layer)))
}

/// Applies a linear layer, then GELU.
///
/// # Shapes
///
/// As those of [`affine`].
pub(crate) fn affine_gelu<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    multiply(layer, x, Epilogue { gelu: true, ..Epilogue::new(bias(layer)) })
}

/// Applies a linear layer to `x` and adds `addend`.
///
/// # Shapes
///
/// - x: `[…, d_input]`
/// - addend, output: `[…, d_output]`
pub(crate) fn affine_add<const D: usize>(
    layer: &Linear,
    x: Tensor<D>,
    addend: Tensor<D>,
) -> Tensor<D> {
    multiply(layer, x, Epilogue { addend: Some(addend), ..Epilogue::new(bias(layer)) })
}

fn bias(layer: &Linear) -> Option<Tensor<1>> {
    layer.bias.as_ref().map(Param::val)
}

fn multiply<const D: usize>(layer: &Linear, x: Tensor<D>, epilogue: Epilogue<D>) -> Tensor<D> {
    if let Some(adapter) = layer.weight.reparameterization::<Adapter>() {
        return adapter.multiply(layer, x, epilogue);
    }
    match layer.weight.reparameterization::<Packed>() {
        Some(packed) => packed_linear(x, &packed.matrix, epilogue),
        None => linear(x, layer.weight.val(), epilogue),
    }
}

/// Linear layers of the same input as one product; it appends their outputs to each other.
#[derive(Clone, Debug)]
pub(crate) struct Joined {
    weight: JoinedWeight,
    bias: Tensor<1>,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "whoever keeps one for long boxes it")]
enum JoinedWeight {
    Dense(Tensor<2>),
    Packed(PackedMatrix),
}

impl Joined {
    /// Joins layers that have biases; `None` where a layer has a low-rank change beside it, or where not all are
    /// packed alike.
    pub(crate) fn new(layers: &[&Linear]) -> Option<Self> {
        if layers.iter().any(|layer| layer.weight.reparameterization::<Adapter>().is_some()) {
            return None;
        }
        let packed = |layer: &&Linear| {
            layer.weight.reparameterization::<Packed>().map(|packed| packed.matrix.clone())
        };
        let matrices: Vec<_> = layers.iter().filter_map(packed).collect();
        let weight = if matrices.is_empty() {
            let weights = layers.iter().map(|layer| layer.weight.val()).collect();
            JoinedWeight::Dense(Tensor::cat(weights, 1))
        } else if matrices.len() == layers.len() {
            JoinedWeight::Packed(PackedMatrix::joined(&matrices)?)
        } else {
            return None;
        };
        let biases = layers.iter().map(|layer| bias(layer)).collect::<Option<_>>()?;
        Some(Self { weight, bias: Tensor::cat(biases, 0) })
    }

    /// The outputs of all layers, `[…, N₁ + N₂ + …]`.
    pub(crate) fn affine<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let epilogue = Epilogue::new(Some(self.bias.clone()));
        match &self.weight {
            JoinedWeight::Dense(weight) => linear(x, weight.clone(), epilogue),
            JoinedWeight::Packed(matrix) => packed_linear(x, matrix, epilogue),
        }
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

/// A linear layer together with another, `mapper(z)`, whose output is appended to its input:
///
/// `[x, z·M + m]·W + b = x·W₁ + z·(M·W₂) + (m·W₂ + b)`, with `W₁` the rows of `x` and `W₂` the rest.
///
/// The wide `mapper(z)` is never made.
#[derive(Clone, Debug)]
pub struct Folded {
    /// `M·W₂`, `[N, d_output]`.
    matrix: Tensor<2>,
    /// `m·W₂ + b`, `[d_output]`.
    bias: Tensor<1>,
}

impl Folded {
    /// Folds a mapper from `N` to `S` channels into a layer from `K + S` to `d_output` channels.
    pub(crate) fn new(layer: &Linear, mapper: &Linear) -> Self {
        let map = dense(mapper);
        let ([narrow, wide], device) = (map.dims(), map.device());
        let shift = match &mapper.bias {
            Some(bias) => bias.val().unsqueeze(),
            None => Tensor::zeros([1, wide], &device),
        };
        let rows = Tensor::cat(vec![map, shift], 0);
        let kept = layer.weight.dims()[0] - wide;
        let packed = layer.weight.reparameterization::<Packed>().map(|packed| &packed.matrix);
        let folded = match packed.filter(|matrix| matrix.has_kernel()) {
            Some(matrix) => {
                let none = Tensor::zeros([narrow + 1, kept], &device);
                packed_linear(Tensor::cat(vec![none, rows], 1), matrix, Epilogue::new(None))
            }
            None => rows.matmul(dense(layer).narrow(0, kept, wide)),
        };
        let shift = folded.clone().narrow(0, narrow, 1).squeeze_dim::<1>(0);
        let bias = match &layer.bias {
            Some(bias) => bias.val() + shift,
            None => shift,
        };
        Self { matrix: folded.narrow(0, 0, narrow), bias }
    }

    /// Applies the folded layers, then GELU.
    ///
    /// # Shapes
    ///
    /// - x: `[…, K]`
    /// - z: `[…, N]`
    /// - output: `[…, d_output]`
    pub(crate) fn affine_gelu<const D: usize>(
        &self,
        layer: &Linear,
        x: Tensor<D>,
        z: Tensor<D>,
    ) -> Tensor<D> {
        let bias = Some(self.bias.clone());
        let of_z = |z| Some(linear(z, self.matrix.clone(), Epilogue::new(None)));
        let packed = layer.weight.reparameterization::<Packed>().map(|packed| &packed.matrix);
        let adds = has_kernel(&self.matrix);
        if let Some(matrix) = packed.filter(|matrix| adds || matrix.has_kernel()) {
            return packed_linear(x, matrix, Epilogue { bias, addend: of_z(z), gelu: true });
        }
        let weight = dense(layer);
        if has_kernel(&weight) {
            return linear(x, weight, Epilogue { bias, addend: of_z(z), gelu: true });
        }
        let weight = weight.narrow(0, 0, x.dims()[D - 1]);
        let weight = Tensor::cat(vec![weight, self.matrix.clone()], 0);
        let x = Tensor::cat(vec![x, z], D - 1);
        linear(x, weight, Epilogue { gelu: true, ..Epilogue::new(bias) })
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
