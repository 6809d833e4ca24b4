//! Low-rank changes that stay beside a frozen linear layer while they are trained.

use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use wuerstchen_kernels::{Epilogue, linear, packed_linear};

use super::packed::Packed;

/// The change `scale·up·down` of a frozen linear layer, in the layout of a LoRA's file.
#[derive(Clone, Debug)]
pub struct LowRankChange {
    /// `[rank, input]`.
    pub down: Tensor<2>,
    /// `[output, rank]`.
    pub up: Tensor<2>,
    /// Alpha over the rank.
    pub scale: f64,
}

/// A [`LowRankChange`] where a layer's weight is looked up.
#[derive(Module, Debug)]
pub(crate) struct Adapter {
    down: Tensor<2>,
    up: Tensor<2>,
    #[module(skip)]
    scale: f64,
    /// The layer's own weight, where it is packed.
    packed: Option<Packed>,
}

impl Reparameterization for Adapter {
    const NAME: &'static str = "adapter";

    /// The changed matrix; layers use [`Adapter::multiply`] instead, which never makes it.
    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let base = match &self.packed {
            Some(packed) => packed.apply(base),
            None => base,
        };
        let change = self.up.clone().matmul(self.down.clone()) * self.scale;
        let shape = base.dims();
        base + change.transpose().reshape(shape)
    }
}

impl Adapter {
    /// `x·W + scale·(x·downᵀ)·upᵀ` and the epilogue; `W` is not changed and gets no gradient.
    pub(crate) fn multiply<const D: usize>(
        &self,
        layer: &Linear,
        x: Tensor<D>,
        epilogue: Epilogue<D>,
    ) -> Tensor<D> {
        let narrow = linear(x.clone(), self.down.clone().transpose(), Epilogue::new(None));
        let change = linear(narrow * self.scale, self.up.clone().transpose(), Epilogue::new(None));
        let addend = match epilogue.addend {
            Some(addend) => addend + change,
            None => change,
        };
        let epilogue = Epilogue { addend: Some(addend), ..epilogue };
        match &self.packed {
            Some(packed) => packed_linear(x, &packed.matrix, epilogue),
            None => linear(x, layer.weight.base(), epilogue),
        }
    }
}

/// Attaches an adapter to the weight of one layer.
struct Attach(Option<Adapter>);

impl Reparameterizer for Attach {
    type Reparam = Adapter;

    fn reparameterize<const D: usize>(
        &mut self,
        _path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Adapter>) {
        let adapter = if D == 2 { self.0.take() } else { None };
        (param, adapter)
    }
}

/// The layer with a change beside its weight.
pub(crate) fn with_change(layer: &Linear, change: LowRankChange) -> Linear {
    let LowRankChange { down, up, scale } = change;
    let packed = layer.weight.reparameterization::<Packed>().cloned();
    let base = if packed.is_some() {
        // A parameter has one reparameterization: the adapter takes the packed matrix over. The weight of
        // this layer is never made.
        let [input, output] = layer.weight.lazy_shape().dims();
        let device = layer.weight.lazy_device();
        let fresh = LinearConfig::new(input, output).with_bias(false).init(&device);
        Linear { weight: fresh.weight, bias: layer.bias.clone() }
    } else {
        layer.clone()
    };
    base.apply_reparameterization(Attach(Some(Adapter { down, up, scale, packed })))
}
