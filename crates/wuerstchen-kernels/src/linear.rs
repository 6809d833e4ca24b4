//! Linear layers: products of channels-last features with a matrix.

use burn::prelude::*;

use crate::autocast::product;
use crate::gelu::gelu;

/// The operations on the sums of a product: `f(x·W + bias + addend)`.
///
/// A GPU applies them while it has the sums in registers, so that it writes the result only once.
#[derive(Clone, Debug)]
pub struct Epilogue<const D: usize> {
    /// `[N]`.
    pub bias: Option<Tensor<1>>,
    /// Of the shape of the output.
    pub addend: Option<Tensor<D>>,
    /// Whether `f` is the [`gelu`]; otherwise it is the identity.
    pub gelu: bool,
}

impl<const D: usize> Epilogue<D> {
    /// An epilogue that only adds a bias, if there is one.
    pub const fn new(bias: Option<Tensor<1>>) -> Self {
        Self { bias, addend: None, gelu: false }
    }

    /// Applies the epilogue after the product.
    pub(crate) fn apply(self, mut y: Tensor<D>) -> Tensor<D> {
        if let Some(bias) = self.bias {
            y = add_bias(y, bias);
        }
        if let Some(addend) = self.addend {
            y = y + addend;
        }
        if self.gelu { gelu(y) } else { y }
    }
}

/// `y + bias` in every row.
fn add_bias<const D: usize>(y: Tensor<D>, bias: Tensor<1>) -> Tensor<D> {
    #[cfg(all(feature = "cpu", not(target_family = "wasm")))]
    if crate::cpu::runs_on(&y.device(), y.dtype()) {
        return crate::cpu::add_bias(y, bias);
    }
    y + bias.unsqueeze()
}

/// `y = f(x·W + bias + addend)`.
///
/// All rows are multiplied in one product, whatever the rank: for some shapes burn would make a product of a few rows
/// for each batch, which is slow on a CPU. On GPUs burn's own product is used if burn times its variants at first use
/// (feature `autotune`), else `shaders/product.wgsl`. If the weight has more rows than `x` has columns, only its first
/// rows count.
///
/// # Shapes
///
/// - x: `[…, K]`
/// - weight: `[K, N]` or longer
/// - output: `[…, N]`
///
/// # Panics
///
/// Panics if `x` has more columns than the weight has rows.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, epilogue: Epilogue<D>) -> Tensor<D> {
    let ([length, outputs], columns) = (weight.dims(), x.dims()[D - 1]);
    assert!(columns <= length, "x has {columns} columns, the weight {length}");
    let (rows, shape) = by_rows(x, outputs);
    #[cfg(feature = "gpu")]
    if has_shader(&weight) && columns.is_multiple_of(4) {
        return crate::wgsl::linear(rows, weight, flat(epilogue)).reshape(shape);
    }
    #[cfg(all(feature = "cpu", target_family = "wasm"))]
    if crate::cpu::multiplies(&rows) {
        let order = crate::cpu::Order::InputsFirst;
        return crate::cpu::linear(rows, weight, order, flat(epilogue)).reshape(shape);
    }
    let weight = if columns < length { weight.narrow(0, 0, columns) } else { weight };
    #[cfg(all(feature = "cpu", not(target_family = "wasm")))]
    if crate::cpu::runs_on(&rows.device(), rows.dtype()) && crate::autocast::is_exact() {
        return epilogue.apply(crate::cpu::linear(rows, weight).reshape(shape));
    }
    epilogue.apply(product(rows, weight).reshape(shape))
}

/// Whether a kernel of this crate computes products with this weight. A kernel applies the epilogue at no cost and
/// reads the first rows of a longer weight where they lie.
pub fn has_kernel(weight: &Tensor<2>) -> bool {
    #[cfg(feature = "gpu")]
    if has_shader(weight) {
        return true;
    }
    #[cfg(all(feature = "cpu", target_family = "wasm"))]
    if crate::cpu::can_multiply(weight) {
        return true;
    }
    let _ = weight;
    false
}

/// Whether a shader computes products with this weight.
#[cfg(feature = "gpu")]
fn has_shader(weight: &Tensor<2>) -> bool {
    let own = !cfg!(feature = "autotune") && crate::wgsl::runs_on(&weight.device());
    own && in_quads(weight.dims())
}

/// The rows of `x`, whatever its rank, and the shape of their product with a matrix of `outputs`.
pub(crate) fn by_rows<const D: usize>(x: Tensor<D>, outputs: usize) -> (Tensor<2>, [usize; D]) {
    let mut shape = x.dims();
    let columns = shape[D - 1];
    shape[D - 1] = outputs;
    (x.reshape([-1, columns as isize]), shape)
}

/// The same epilogue for rows.
#[cfg(any(feature = "gpu", target_family = "wasm"))]
pub(crate) fn flat<const D: usize>(epilogue: Epilogue<D>) -> Epilogue<2> {
    let rows = |addend: Tensor<D>| {
        let outputs = addend.dims()[D - 1];
        addend.reshape([-1, outputs as isize])
    };
    Epilogue { bias: epilogue.bias, addend: epilogue.addend.map(rows), gelu: epilogue.gelu }
}

/// Whether shaders that read four values at a time can read rows of these lengths.
#[cfg(feature = "gpu")]
pub(crate) fn in_quads(sides: [usize; 2]) -> bool {
    sides.iter().all(|side| side.is_multiple_of(4))
}

/// The same operation composed from burn tensors: the definition of the kernels.
pub mod reference {
    use super::*;

    /// Twin of `shaders/product.wgsl`.
    pub fn linear<const D: usize>(
        x: Tensor<D>,
        weight: Tensor<2>,
        epilogue: Epilogue<D>,
    ) -> Tensor<D> {
        epilogue.apply(burn::tensor::module::linear(x, weight, None))
    }
}
