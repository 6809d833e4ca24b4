//! Products of rows with a matrix, for WebAssembly.
//!
//! The `gemm` crate, which burn uses, comes near the peak of a native processor, but not in WebAssembly
//! (`docs/decisions.md`).

use pulp::{Simd, WithSimd};

use super::functions::normal_cdf;
use super::probe::multiply_add;
#[cfg(target_family = "wasm")]
use super::relaxed;
#[cfg(target_family = "wasm")]
pub(crate) use tensors::{can_multiply, linear, multiplies};

/// Rows of a tile, whose sums are in registers. Each row has two vectors of sums. With two vectors of the matrix and
/// one of `x`, the tile takes eleven of the sixteen registers that x86-64 has.
pub(super) const ROWS: usize = 4;

/// Most values of `x` that are multiplied with all panels before the next ones: 64 KiB, which stay in the level-two
/// cache while a panel stays in the level-one cache.
const BLOCK: usize = 1 << 14;

/// How a matrix of `K` inputs and `N` outputs lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[K, N]` or longer, the first rows of which count.
    InputsFirst,
    /// `[N, K]` or wider, the first columns of which count.
    OutputsFirst,
}

/// `y = f(x·W + bias + addend)` of whole rows.
pub(super) struct Product<'a> {
    /// `[M, K]`.
    pub(super) x: &'a [f32],
    /// `K`.
    pub(super) inputs: usize,
    pub(super) matrix: &'a [f32],
    pub(super) order: Order,
    /// `N`.
    pub(super) outputs: usize,
    /// `[N]`.
    pub(super) bias: Option<&'a [f32]>,
    /// `[M, N]`.
    pub(super) addend: Option<&'a [f32]>,
    /// Whether `f` is the GELU; otherwise it is the identity.
    pub(super) gelu: bool,
}

impl WithSimd for Product<'_> {
    /// `[M, N]`.
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let width = 2 * S::F32_LANES;
        let panels = self.panels(simd);
        let padded = outputs.next_multiple_of(width);
        let rows = (BLOCK / inputs).max(1).next_multiple_of(ROWS);
        let mut sums = vec![0.0; rows * padded];
        let mut y = Vec::with_capacity(self.x.len() / inputs * outputs);
        for x in self.x.chunks(rows * inputs) {
            #[cfg(target_family = "wasm")]
            let done = relaxed::tiles(x, inputs, bytemuck::cast_slice(&panels), &mut sums);
            #[cfg(not(target_family = "wasm"))]
            let done = false;
            if !done {
                tiles(simd, x, inputs, &panels, &mut sums);
            }
            let first = y.len();
            for sums in sums.chunks_exact(padded).take(x.len() / inputs) {
                y.extend_from_slice(&sums[..outputs]);
            }
            self.finish(first, &mut y[first..]);
        }
        y
    }
}

impl Product<'_> {
    /// The columns of the matrix in panels `[K, 2]` of vectors, padded with zeros.
    #[inline(always)]
    fn panels<S: Simd>(&self, simd: S) -> Vec<[S::f32s; 2]> {
        let Self { inputs, outputs, matrix, order, .. } = *self;
        let width = 2 * S::F32_LANES;
        let mut panels = vec![[simd.splat_f32s(0.0); 2]; inputs * outputs.div_ceil(width)];
        for (i, panel) in panels.chunks_exact_mut(inputs).enumerate() {
            let (first, count) = (i * width, width.min(outputs - i * width));
            match order {
                // Copied as vectors, because calls that copy so few values would take most of the time.
                Order::InputsFirst if count == width => {
                    for (to, from) in panel.iter_mut().zip(matrix.chunks_exact(outputs)) {
                        let (from, _) = S::as_simd_f32s(&from[first..][..width]);
                        *to = [from[0], from[1]];
                    }
                }
                Order::InputsFirst => {
                    for (to, from) in panel.iter_mut().zip(matrix.chunks_exact(outputs)) {
                        let values = bytemuck::cast_slice_mut::<S::f32s, f32>(to);
                        values.iter_mut().zip(&from[first..]).for_each(|(to, from)| *to = *from);
                    }
                }
                Order::OutputsFirst => {
                    let panel = bytemuck::cast_slice_mut::<[S::f32s; 2], f32>(panel);
                    let rows = matrix.chunks_exact(matrix.len() / outputs).skip(first).take(count);
                    for (column, from) in rows.enumerate() {
                        for (to, from) in panel.chunks_exact_mut(width).zip(from) {
                            to[column] = *from;
                        }
                    }
                }
            }
        }
        panels
    }

    /// Applies the epilogue to the sums `y`; `first` is the number of the first of them.
    #[inline(always)]
    fn finish(&self, first: usize, y: &mut [f32]) {
        if let Some(bias) = self.bias {
            for y in y.chunks_exact_mut(self.outputs) {
                y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
        }
        if let Some(addend) = self.addend {
            y.iter_mut().zip(&addend[first..]).for_each(|(y, addend)| *y += addend);
        }
        if self.gelu {
            y.iter_mut().for_each(|y| *y *= normal_cdf(*y));
        }
    }
}

/// Writes the products of some rows with all panels to the rows of `sums`.
#[inline(always)]
fn tiles<S: Simd>(simd: S, x: &[f32], inputs: usize, panels: &[[S::f32s; 2]], sums: &mut [f32]) {
    let width = 2 * S::F32_LANES;
    let padded = panels.len() / inputs * width;
    for (i, panel) in panels.chunks_exact(inputs).enumerate() {
        for (x, sums) in x.chunks(ROWS * inputs).zip(sums.chunks_mut(ROWS * padded)) {
            let sums = &mut sums[i * width..];
            let row = |row: usize| &x[row * inputs..][..inputs];
            match x.len() / inputs {
                4 => tile(simd, [0, 1, 2, 3].map(row), panel, sums, padded),
                3 => tile(simd, [0, 1, 2].map(row), panel, sums, padded),
                2 => tile(simd, [0, 1].map(row), panel, sums, padded),
                _ => tile(simd, [row(0)], panel, sums, padded),
            }
        }
    }
}

/// Writes the products of some rows with a panel to the first columns of the rows of `sums`.
#[inline(never)] // alone it has all registers
fn tile<S: Simd, const N: usize>(
    simd: S,
    rows: [&[f32]; N],
    panel: &[[S::f32s; 2]],
    sums: &mut [f32],
    padded: usize,
) {
    let rows = rows.map(|row| &row[..panel.len()]);
    let mut y = [[simd.splat_f32s(0.0); 2]; N];
    for (k, &[left, right]) in panel.iter().enumerate() {
        for (y, row) in y.iter_mut().zip(rows) {
            let x = simd.splat_f32s(row[k]);
            *y = [multiply_add(simd, x, left, y[0]), multiply_add(simd, x, right, y[1])];
        }
    }
    for (y, sums) in y.iter().zip(sums.chunks_mut(padded)) {
        let (sums, _) = S::as_mut_simd_f32s(sums);
        [sums[0], sums[1]] = *y;
    }
}

/// The product of burn's tensors.
#[cfg(target_family = "wasm")]
mod tensors {
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Backend, Dispatch, Flex, backend_extension};
    use burn::prelude::*;
    use burn_flex::FlexTensor;

    use super::{Order, Product, ROWS};
    use crate::cpu::runs_on;
    use crate::cpu::values::Values;
    use crate::linear::Epilogue;

    /// Whether products of tensors like this one can be made here. There is no backward pass.
    pub(crate) fn can_multiply(x: &Tensor<2>) -> bool {
        runs_on(&x.device(), x.dtype()) && !x.device().is_autodiff()
    }

    /// Whether these rows are multiplied here. For fewer rows than a tile has, panels would cost more than they save.
    pub(crate) fn multiplies(x: &Tensor<2>) -> bool {
        can_multiply(x) && x.dims()[0] >= ROWS
    }

    /// `f(x·W + bias + addend)`.
    ///
    /// # Shapes
    ///
    /// - x: `[M, K]`
    /// - weight: as `order` says
    /// - output: `[M, N]`
    pub(crate) fn linear(
        x: Tensor<2>,
        weight: Tensor<2>,
        order: Order,
        epilogue: Epilogue<2>,
    ) -> Tensor<2> {
        let Epilogue { bias, addend, gelu } = epilogue;
        let finish = Finish { bias: bias.is_some(), addend: addend.is_some(), gelu };
        // A missing addend is never read, so any tensor can stand in its place.
        let addend = addend.unwrap_or_else(|| x.clone()).into_dispatch();
        let bias = bias.map_or_else(|| x.clone().into_dispatch(), Tensor::into_dispatch);
        let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
        Tensor::from_dispatch(Dispatch::cpu_product(x, weight, bias, addend, order, finish))
    }

    /// The epilogue that is applied to the sums.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Finish {
        bias: bool,
        addend: bool,
        gelu: bool,
    }

    #[backend_extension(Flex)]
    pub(crate) trait CpuProduct: Backend {
        fn cpu_product(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            addend: FloatTensor<Self>,
            order: Order,
            finish: Finish,
        ) -> FloatTensor<Self>;
    }

    impl CpuProduct for Flex {
        fn cpu_product(
            x: FlexTensor,
            weight: FlexTensor,
            bias: FlexTensor,
            addend: FlexTensor,
            order: Order,
            finish: Finish,
        ) -> FlexTensor {
            let [x, weight, bias, addend] = [x, weight, bias, addend].map(Values::of);
            let (rows, inputs) = (x.shape[0], x.shape[1]);
            let outputs = match order {
                Order::InputsFirst => weight.shape[1],
                Order::OutputsFirst => weight.shape[0],
            };
            let y = pulp::Arch::new().dispatch(Product {
                x: x.as_slice(),
                inputs,
                matrix: weight.as_slice(),
                order,
                outputs,
                bias: finish.bias.then(|| bias.as_slice()),
                addend: finish.addend.then(|| addend.as_slice()),
                gelu: finish.gelu,
            });
            FlexTensor::from_data(TensorData::new(y, [rows, outputs]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All remainders of rows and of columns, blocks of rows, both orders and matrices with more than counts;
    /// small integers, whose sums are exact.
    #[test]
    fn products_are_exact() {
        let number = |i: usize| (i * 7919 % 17) as f32 - 8.0;
        for (rows, inputs, outputs) in [(1, 1, 1), (7, 5, 33), (600, 70, 40), (6, 20000, 3)] {
            for (order, spare) in [Order::InputsFirst, Order::OutputsFirst]
                .into_iter()
                .flat_map(|order| [(order, 0), (order, 3)])
            {
                let x: Vec<f32> = (0..rows * inputs).map(number).collect();
                let matrix: Vec<f32> = (0..(inputs + spare) * outputs).map(number).collect();
                let bias: Vec<f32> = (0..outputs).map(|i| number(i + 3)).collect();
                let addend: Vec<f32> = (0..rows * outputs).map(|i| number(i + 5)).collect();
                let product = |bias, addend, gelu| {
                    let (x, matrix) = (x.as_slice(), matrix.as_slice());
                    let product = Product { x, inputs, matrix, order, outputs, bias, addend, gelu };
                    pulp::Arch::new().dispatch(product)
                };
                let expected = |row: usize, column: usize| -> f32 {
                    let weight = |k: usize| match order {
                        Order::InputsFirst => matrix[k * outputs + column],
                        Order::OutputsFirst => matrix[column * (inputs + spare) + k],
                    };
                    (0..inputs).map(|k| x[row * inputs + k] * weight(k)).sum()
                };
                let sums = product(None, None, false);
                let finished = product(Some(&bias[..]), Some(&addend[..]), false);
                let gelus = product(Some(&bias[..]), None, true);
                assert_eq!(sums.len(), rows * outputs);
                for (i, sum) in sums.iter().enumerate() {
                    let (row, column) = (i / outputs, i % outputs);
                    assert_eq!(
                        *sum,
                        expected(row, column),
                        "{order:?}, row {row}, column {column}"
                    );
                    assert_eq!(finished[i], sum + bias[column] + addend[i]);
                    let biased = sum + bias[column];
                    assert_eq!(gelus[i], biased * normal_cdf(biased));
                }
            }
        }
    }
}
