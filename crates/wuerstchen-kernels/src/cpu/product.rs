//! Products of rows with a matrix, for WebAssembly.
//!
//! The `gemm` crate, which burn uses, comes near the peak of a native processor, but not in WebAssembly
//! (`docs/decisions.md`).

use pulp::{Simd, WithSimd};

use super::functions::normal_cdf;
use super::probe::multiply_add;
#[cfg(target_family = "wasm")]
use super::relaxed;
use super::values::{for_each_block, threads};
use crate::packed_linear::Packing;
#[cfg(target_family = "wasm")]
pub(crate) use tensors::{can_multiply, linear, multiplies, packed_linear, panels_of};

/// Rows of a tile, whose sums are in registers. Each row has two vectors of sums. With two vectors of the matrix and
/// one of `x`, the tile takes eleven of the sixteen registers that x86-64 has.
pub(super) const ROWS: usize = 4;

/// Most values of `x` that are multiplied with the same panels before the next ones: 64 KiB, which stay in the level-two
/// cache while a panel stays in the level-one cache.
pub(super) const BLOCK: usize = 1 << 14;

/// Columns of a packed matrix that are unpacked together: whole panels, whatever vectors a processor has.
const GROUP: usize = 32;

/// How a matrix of `K` inputs and `N` outputs lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[K, N]` or longer, the first rows of which count.
    InputsFirst,
    /// `[N, K]` or wider, the first columns of which count.
    OutputsFirst,
    /// The panels of a matrix `[K, N]` or longer, as [`Panels`] makes them.
    Panels {
        /// `N`.
        outputs: usize,
    },
}

/// The matrix of a product.
#[derive(Clone, Copy)]
pub(super) enum Matrix<'a> {
    /// In f32.
    Dense(&'a [f32], Order),
    /// The planes of a packed matrix `[N, K]` or wider, the first columns of which count.
    Packed(PackedRows<'a>),
}

/// The planes of a [`PackedMatrix`](crate::PackedMatrix).
#[derive(Clone, Copy)]
pub(super) struct PackedRows<'a> {
    pub(super) values: &'a [i32],
    pub(super) scales: &'a [f32],
    pub(super) zeros: &'a [i32],
    pub(super) packing: Packing,
    pub(super) columns: usize,
}

/// `y = f(x·W + bias + addend)` of whole rows.
pub(super) struct Product<'a> {
    /// `[M, K]`.
    pub(super) x: &'a [f32],
    /// `K`.
    pub(super) inputs: usize,
    pub(super) matrix: Matrix<'a>,
    /// `N`.
    pub(super) outputs: usize,
    /// `[N]`.
    pub(super) bias: Option<&'a [f32]>,
    /// `[M, N]`.
    pub(super) addend: Option<&'a [f32]>,
    /// Whether `f` is the GELU; otherwise it is the identity.
    pub(super) gelu: bool,
}

impl Product<'_> {
    /// `[M, N]`.
    pub(super) fn compute(&self) -> Vec<f32> {
        match self.matrix {
            Matrix::Dense(matrix, order) => self.with_dense(matrix, order),
            Matrix::Packed(matrix) => self.with_packed(matrix),
        }
    }

    /// The product with a matrix in f32. Each task takes some rows of `x`.
    fn with_dense(&self, matrix: &[f32], order: Order) -> Vec<f32> {
        let Self { x, inputs, outputs, .. } = *self;
        let made;
        let panels = match order {
            Order::Panels { .. } => matrix,
            _ => {
                made = pulp::Arch::new().dispatch(Panels { matrix, order, inputs, outputs });
                &made
            }
        };
        let padded = outputs.next_multiple_of(pulp::Arch::new().dispatch(PanelWidth));
        let rows = x.len() / inputs;
        let rows_of_a_task = rows.div_ceil(threads()).min(BLOCK / inputs).max(1);
        let rows_of_a_task = rows_of_a_task.next_multiple_of(ROWS);
        let mut sums = vec![0.0; rows * padded];
        for_each_block(
            &mut sums,
            rows_of_a_task * padded,
            #[inline(always)]
            |i, sums| {
                let first = i * rows_of_a_task;
                let x = &x[first * inputs..][..sums.len() / padded * inputs];
                pulp::Arch::new().dispatch(Tiles { x, inputs, panels, padded, sums });
                if padded == outputs {
                    self.finish(first * outputs, sums);
                }
            },
        );
        if padded == outputs {
            return sums;
        }
        let mut y = Vec::with_capacity(rows * outputs);
        for sums in sums.chunks_exact(padded) {
            y.extend_from_slice(&sums[..outputs]);
        }
        self.finish(0, &mut y);
        y
    }

    /// The product with a packed matrix. Each task takes some columns, and unpacks [`GROUP`] of them at a time, so that
    /// they are still in the cache when they are multiplied.
    fn with_packed(&self, matrix: PackedRows<'_>) -> Vec<f32> {
        let Self { x, inputs, outputs, .. } = *self;
        let width = pulp::Arch::new().dispatch(PanelWidth);
        let rows = x.len() / inputs;
        let rows_of_a_block = (BLOCK / inputs).max(1).next_multiple_of(ROWS);
        let groups = outputs.div_ceil(GROUP);
        let groups_of_a_task = groups.div_ceil(4 * threads());
        // A task has its sums, its panels and a row of the matrix, because it must not allocate any.
        let (sums, panels) = (rows * GROUP, inputs * GROUP);
        let size = groups_of_a_task * sums + panels + matrix.columns;
        let mut made = vec![0.0; groups.div_ceil(groups_of_a_task) * size];
        for_each_block(
            &mut made,
            size,
            #[inline(always)]
            |task, made| {
                let (all_sums, made) = made.split_at_mut(groups_of_a_task * sums);
                let (panels, row) = made.split_at_mut(panels);
                for (i, sums) in all_sums.chunks_exact_mut(sums).enumerate() {
                    let first = (task * groups_of_a_task + i) * GROUP;
                    if first >= outputs {
                        break;
                    }
                    for column in 0..GROUP.min(outputs - first) {
                        let PackedRows { values, scales, zeros, packing, .. } = matrix;
                        packing.unpack_row(values, scales, zeros, first + column, row);
                        set_column(panels, width, column, &row[..inputs]);
                    }
                    let x = x.chunks(rows_of_a_block * inputs);
                    for (x, sums) in x.zip(sums.chunks_mut(rows_of_a_block * GROUP)) {
                        pulp::Arch::new().dispatch(Tiles {
                            x,
                            inputs,
                            panels,
                            padded: GROUP,
                            sums,
                        });
                    }
                }
            },
        );
        let mut y = vec![0.0; rows * outputs];
        let rows_of_a_task = (BLOCK / outputs).max(1);
        for_each_block(
            &mut y,
            rows_of_a_task * outputs,
            #[inline(always)]
            |i, y| {
                let first = i * rows_of_a_task;
                for (row, y) in (first..).zip(y.chunks_exact_mut(outputs)) {
                    for (group, y) in y.chunks_mut(GROUP).enumerate() {
                        let (task, group) = (group / groups_of_a_task, group % groups_of_a_task);
                        let sums = &made[task * size + group * sums + row * GROUP..];
                        y.copy_from_slice(&sums[..y.len()]);
                    }
                }
                self.finish(first * outputs, y);
            },
        );
        y
    }
}

/// Makes the panels of a matrix `[N, K]` or `[K, N]`: its columns, as many of them side by side as two vectors hold. The
/// last panel is padded with zeros.
struct Panels<'a> {
    matrix: &'a [f32],
    /// Anything but panels.
    order: Order,
    /// `K`.
    inputs: usize,
    /// `N`.
    outputs: usize,
}

impl WithSimd for Panels<'_> {
    /// `[P, K]` pairs of vectors.
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f32> {
        let Self { matrix, order, inputs, outputs } = self;
        let width = 2 * S::F32_LANES;
        let mut panels = vec![0.0; inputs * outputs.next_multiple_of(width)];
        for (i, panel) in panels.chunks_exact_mut(inputs * width).enumerate() {
            let (first, count) = (i * width, width.min(outputs - i * width));
            match order {
                // Copied as vectors, because calls that copy so few values would take most of the time.
                Order::InputsFirst if count == width => {
                    let (panel, _) = S::as_mut_simd_f32s(panel);
                    for (to, from) in panel.chunks_exact_mut(2).zip(matrix.chunks_exact(outputs)) {
                        let (from, _) = S::as_simd_f32s(&from[first..][..width]);
                        (to[0], to[1]) = (from[0], from[1]);
                    }
                }
                Order::InputsFirst => {
                    for (to, from) in
                        panel.chunks_exact_mut(width).zip(matrix.chunks_exact(outputs))
                    {
                        to.iter_mut().zip(&from[first..]).for_each(|(to, from)| *to = *from);
                    }
                }
                Order::OutputsFirst => {
                    let rows = matrix.chunks_exact(matrix.len() / outputs).skip(first).take(count);
                    for (column, row) in rows.enumerate() {
                        set_column(panel, width, column, &row[..inputs]);
                    }
                }
                Order::Panels { .. } => unreachable!("panels are not made into panels"),
            }
        }
        panels
    }
}

/// Writes a column of a matrix to panels of so many columns.
#[inline(always)]
pub(super) fn set_column(panels: &mut [f32], width: usize, column: usize, values: &[f32]) {
    let panel = &mut panels[column / width * width * values.len()..];
    for (row, value) in panel.chunks_exact_mut(width).zip(values) {
        row[column % width] = *value;
    }
}

/// The number of columns of a panel.
pub(super) struct PanelWidth;

impl WithSimd for PanelWidth {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        2 * S::F32_LANES
    }
}

impl Product<'_> {
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

/// The products of some rows with all panels.
pub(super) struct Tiles<'a> {
    /// `[M, K]`.
    pub(super) x: &'a [f32],
    /// `K`.
    pub(super) inputs: usize,
    /// As [`Panels`] makes them, of `K` rows or more.
    pub(super) panels: &'a [f32],
    /// The columns of all panels.
    pub(super) padded: usize,
    /// `[M, padded]`, where the products go.
    pub(super) sums: &'a mut [f32],
}

impl WithSimd for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, inputs, panels, padded, sums } = self;
        #[cfg(target_family = "wasm")]
        if relaxed::tiles(x, inputs, panels, padded, sums) {
            return;
        }
        let width = 2 * S::F32_LANES;
        let length = panels.len() / padded;
        let panels: &[[S::f32s; 2]] = bytemuck::cast_slice(panels);
        for (i, panel) in panels.chunks_exact(length).enumerate() {
            let panel = &panel[..inputs];
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
    use burn::backend::tensor::{FloatTensor, IntTensor};
    use burn::backend::{Backend, Dispatch, Flex, backend_extension};
    use burn::prelude::*;
    use burn::tensor::DType;
    use burn_flex::FlexTensor;

    use super::relaxed::PANEL;
    use super::{Matrix, Order, PackedRows, Packing, Panels, Product, ROWS};
    use crate::cpu::runs_on;
    use crate::cpu::values::Values;
    use crate::linear::Epilogue;

    /// Whether products of tensors like this one can be made here. There is no backward pass.
    pub(crate) fn can_multiply<const D: usize>(x: &Tensor<D>) -> bool {
        runs_on(&x.device(), x.dtype()) && !x.device().is_autodiff()
    }

    /// Whether these rows are multiplied here. For fewer rows than a tile has, panels would cost more than they save.
    pub(crate) fn multiplies(x: &Tensor<2>) -> bool {
        can_multiply(x) && x.dims()[0] >= ROWS
    }

    /// The panels of a matrix for [`Order::Panels`].
    ///
    /// # Shapes
    ///
    /// - matrix: `[N, K]`
    /// - output: `[P·K, 8]`
    pub(crate) fn panels_of(matrix: Tensor<2>) -> Tensor<2> {
        let ([outputs, inputs], device) = (matrix.dims(), matrix.device());
        let matrix = matrix.into_data();
        let matrix = matrix.as_slice().expect("unpacked to f32");
        let order = Order::OutputsFirst;
        let panels = pulp::Arch::new().dispatch(Panels { matrix, order, inputs, outputs });
        let shape = [panels.len() / PANEL, PANEL];
        Tensor::from_data(TensorData::new(panels, shape), (&device, DType::F32))
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
        let (finish, [bias, addend]) = Finish::new(epilogue, &x);
        let [x, weight, bias, addend] = [x, weight, bias, addend].map(Tensor::into_dispatch);
        Tensor::from_dispatch(Dispatch::cpu_product(x, weight, bias, addend, order, finish))
    }

    /// The same with a packed matrix, whose planes are the values, the scales and the zero-points.
    ///
    /// # Shapes
    ///
    /// - x: `[M, K]`
    /// - planes: of a matrix `[N, columns]`, the first `K` of which count
    /// - output: `[M, N]`
    pub(crate) fn packed_linear(
        x: Tensor<2>,
        (values, scales, zeros): (Tensor<2, Int>, Tensor<2>, Tensor<2, Int>),
        packing: Packing,
        columns: usize,
        epilogue: Epilogue<2>,
    ) -> Tensor<2> {
        let (finish, [bias, addend]) = Finish::new(epilogue, &x);
        let [x, scales, bias, addend] = [x, scales, bias, addend].map(Tensor::into_dispatch);
        let [values, zeros] = [values, zeros].map(Tensor::into_dispatch);
        Tensor::from_dispatch(Dispatch::cpu_packed_product(
            x, values, scales, zeros, bias, addend, packing, columns, finish,
        ))
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
        #[allow(clippy::too_many_arguments, reason = "burn takes tensors one by one")]
        fn cpu_packed_product(
            x: FloatTensor<Self>,
            values: IntTensor<Self>,
            scales: FloatTensor<Self>,
            zeros: IntTensor<Self>,
            bias: FloatTensor<Self>,
            addend: FloatTensor<Self>,
            packing: Packing,
            columns: usize,
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
            let outputs = match order {
                Order::InputsFirst => weight.shape[1],
                Order::OutputsFirst => weight.shape[0],
                Order::Panels { outputs } => outputs,
            };
            let matrix = Matrix::Dense(weight.as_slice(), order);
            finish.product(&x, matrix, outputs, [&bias, &addend])
        }

        fn cpu_packed_product(
            x: FlexTensor,
            values: FlexTensor,
            scales: FlexTensor,
            zeros: FlexTensor,
            bias: FlexTensor,
            addend: FlexTensor,
            packing: Packing,
            columns: usize,
            finish: Finish,
        ) -> FlexTensor {
            let [x, bias, addend] = [x, bias, addend].map(Values::of);
            let [values, scales, zeros] = [values, scales, zeros].map(Values::of);
            let matrix = Matrix::Packed(PackedRows {
                values: values.words(),
                scales: scales.as_slice(),
                zeros: zeros.words(),
                packing,
                columns,
            });
            finish.product(&x, matrix, values.shape[0], [&bias, &addend])
        }
    }

    impl Finish {
        /// With the bias, `[1, N]`, and the addend. What is missing is never read, so that `x` stands in its place.
        fn new(epilogue: Epilogue<2>, x: &Tensor<2>) -> (Self, [Tensor<2>; 2]) {
            let Epilogue { bias, addend, gelu } = epilogue;
            let finish = Self { bias: bias.is_some(), addend: addend.is_some(), gelu };
            let bias = bias.map_or_else(|| x.clone(), Tensor::unsqueeze);
            (finish, [bias, addend.unwrap_or_else(|| x.clone())])
        }

        fn product(
            self,
            x: &Values,
            matrix: Matrix<'_>,
            outputs: usize,
            [bias, addend]: [&Values; 2],
        ) -> FlexTensor {
            let (rows, inputs) = (x.shape[0], x.shape[1]);
            let product = Product {
                x: x.as_slice(),
                inputs,
                matrix,
                outputs,
                bias: self.bias.then(|| bias.as_slice()),
                addend: self.addend.then(|| addend.as_slice()),
                gelu: self.gelu,
            };
            FlexTensor::from_data(TensorData::new(product.compute(), [rows, outputs]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All remainders of rows and of columns, blocks of rows, all orders and matrices with more than counts;
    /// small integers, whose sums are exact.
    #[test]
    fn products_are_exact() {
        let number = |i: usize| (i * 7919 % 17) as f32 - 8.0;
        for (rows, inputs, outputs) in [(1, 1, 1), (7, 5, 33), (600, 70, 40), (6, 20000, 3)] {
            for (first, spare, in_panels) in [Order::InputsFirst, Order::OutputsFirst]
                .into_iter()
                .flat_map(|order| [(order, 0), (order, 3)])
                .flat_map(|(order, spare)| [(order, spare, false), (order, spare, true)])
            {
                let x: Vec<f32> = (0..rows * inputs).map(number).collect();
                let matrix: Vec<f32> = (0..(inputs + spare) * outputs).map(number).collect();
                let bias: Vec<f32> = (0..outputs).map(|i| number(i + 3)).collect();
                let addend: Vec<f32> = (0..rows * outputs).map(|i| number(i + 5)).collect();
                let (order, values) = if in_panels {
                    let (matrix, inputs) = (matrix.as_slice(), inputs + spare);
                    let panels = Panels { matrix, order: first, inputs, outputs };
                    (Order::Panels { outputs }, pulp::Arch::new().dispatch(panels))
                } else {
                    (first, matrix.clone())
                };
                let product = |bias, addend, gelu| {
                    let (x, matrix) = (x.as_slice(), Matrix::Dense(&values, order));
                    Product { x, inputs, matrix, outputs, bias, addend, gelu }.compute()
                };
                let expected = |row: usize, column: usize| -> f32 {
                    let weight = |k: usize| match first {
                        Order::InputsFirst => matrix[k * outputs + column],
                        _ => matrix[column * (inputs + spare) + k],
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
                        "{first:?}, in panels: {in_panels}, row {row}, column {column}"
                    );
                    assert_eq!(finished[i], sum + bias[column] + addend[i]);
                    let biased = sum + bias[column];
                    assert_eq!(gelus[i], biased * normal_cdf(biased));
                }
            }
        }
    }

    /// More columns than count, and a number of outputs that fills no group. All numbers are small and whole.
    #[test]
    fn products_with_packed_matrices_are_exact() {
        for (rows, inputs, columns, outputs) in
            [(1, 64, 64, 1), (7, 60, 130, 33), (300, 128, 128, 200), (6, 2000, 2048, 40)]
        {
            let packing = Packing::I4;
            let number = |i: usize| i * 7919 % 13;
            let words = packing.value_words(columns);
            let values: Vec<i32> =
                (0..outputs * words).map(|i| (number(i) * 0x0123_4567) as i32).collect();
            let scales = vec![1.0; outputs * packing.blocks(columns)];
            let zeros = vec![0x7777_7777; outputs * packing.zero_words(columns)];
            let x: Vec<f32> = (0..rows * inputs).map(|i| number(i) as f32 - 6.0).collect();
            let bias: Vec<f32> = (0..outputs).map(|i| number(i + 3) as f32).collect();
            let addend: Vec<f32> = (0..rows * outputs).map(|i| number(i + 5) as f32).collect();
            let (values, scales, zeros) = (&values[..], &scales[..], &zeros[..]);
            let y = Product {
                x: &x,
                inputs,
                matrix: Matrix::Packed(PackedRows { values, scales, zeros, packing, columns }),
                outputs,
                bias: Some(&bias),
                addend: Some(&addend),
                gelu: false,
            }
            .compute();
            assert_eq!(y.len(), rows * outputs);
            let mut weights = vec![0.0; columns];
            for column in 0..outputs {
                packing.unpack_row(values, scales, zeros, column, &mut weights);
                assert!(weights.iter().any(|weight| *weight != 0.0));
                for row in 0..rows {
                    let x = &x[row * inputs..][..inputs];
                    let sum: f32 = x.iter().zip(&weights).map(|(x, weight)| x * weight).sum();
                    let expected = sum + bias[column] + addend[row * outputs + column];
                    assert_eq!(y[row * outputs + column], expected, "row {row}, column {column}");
                }
            }
        }
    }
}
