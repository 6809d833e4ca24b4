//! Linear layers whose weight stays packed on the device: halves, or blocks of 8 or 4 bits.

use burn::module::Module;
use burn::prelude::*;
use burn::tensor::DType;
use half::f16;

use crate::linear::{Epilogue, by_rows};

/// Columns that share a scale and a zero-point.
pub const BLOCK: usize = 64;

/// How the values of a [`PackedMatrix`] are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// Halves, as they are.
    F16,
    /// 8 bits `q`, meaning `(q − zero)·scale` with the scale and zero-point of the block.
    I8,
    /// As [`Self::I8`], with 4 bits.
    I4,
}

impl Packing {
    /// Bits of a value.
    pub const fn bits(self) -> usize {
        match self {
            Self::F16 => 16,
            Self::I8 => 8,
            Self::I4 => 4,
        }
    }

    /// Values in a word of 32 bits.
    pub const fn lanes(self) -> usize {
        32 / self.bits()
    }

    /// Words of a row's values. Rows of blocks are padded to whole blocks, rows of halves to words.
    pub const fn value_words(self, columns: usize) -> usize {
        match self {
            Self::F16 => columns.div_ceil(2),
            _ => columns.div_ceil(BLOCK) * BLOCK / self.lanes(),
        }
    }

    /// Number of scales of a row, and of zero-points; 0 for halves.
    pub const fn blocks(self, columns: usize) -> usize {
        match self {
            Self::F16 => 0,
            _ => columns.div_ceil(BLOCK),
        }
    }

    /// Words of a row's zero-points.
    pub const fn zero_words(self, columns: usize) -> usize {
        self.blocks(columns).div_ceil(self.lanes())
    }

    /// Writes the values of row `number` of whole planes to `row`.
    pub fn unpack_row(
        self,
        values: &[i32],
        scales: &[f32],
        zeros: &[i32],
        number: usize,
        row: &mut [f32],
    ) {
        let (width, blocks) = (self.value_words(row.len()), self.blocks(row.len()));
        let values = &values[number * width..][..width];
        let scales = &scales[number * blocks..][..blocks];
        let zeros = &zeros[number * self.zero_words(row.len())..];
        let (bits, lanes) = (self.bits(), self.lanes());
        if self == Self::F16 {
            for (row, word) in row.chunks_mut(lanes).zip(values) {
                let halves = bytemuck::cast::<i32, [f16; 2]>(*word);
                row.iter_mut().zip(halves).for_each(|(value, half)| *value = half.to_f32());
            }
            return;
        }
        let lane = |word: i32, i: usize| (word as u32 >> (bits * i)) & ((1 << bits) - 1);
        let blocks = row.chunks_mut(BLOCK).zip(values.chunks(BLOCK / lanes)).zip(scales);
        for (block, ((row, words), scale)) in blocks.enumerate() {
            let zero = lane(zeros[block / lanes], block % lanes) as f32;
            for (row, &word) in row.chunks_mut(lanes).zip(words) {
                for (i, value) in row.iter_mut().enumerate() {
                    *value = (lane(word, i) as f32 - zero) * scale;
                }
            }
        }
    }
}

/// A matrix `[N, K]` as planes of 32-bit words; the first column lies in a word's lowest bits.
#[derive(Module, Debug)]
pub struct PackedMatrix {
    /// `[N, value_words]`.
    values: Tensor<2, Int>,
    /// `[N, blocks]`, f32.
    scales: Tensor<2>,
    /// `[N, zero_words]`.
    zeros: Tensor<2, Int>,
    /// The matrix in f32, where products would unpack it again and again: `[N, K]`, or panels (see `in_panels`).
    unpacked: Option<Tensor<2>>,
    #[module(skip)]
    packing: Packing,
    #[module(skip)]
    columns: usize,
}

/// The planes of a [`PackedMatrix`], row by row.
pub struct Planes {
    /// The values, [`Packing::value_words`] words for each row.
    pub values: Vec<i32>,
    /// The scales, [`Packing::blocks`] for each row.
    pub scales: Vec<f32>,
    /// The zero-points, [`Packing::zero_words`] words for each row.
    pub zeros: Vec<i32>,
}

impl PackedMatrix {
    /// Copies planes to `device`.
    ///
    /// # Panics
    ///
    /// Panics if a plane is not as long as `rows`, `columns` and `packing` say.
    pub fn new(
        packing: Packing,
        [rows, columns]: [usize; 2],
        planes: Planes,
        device: &Device,
    ) -> Self {
        // Not every device accepts empty buffers, so the planes that halves do not have are one word long.
        let words = |values: Vec<i32>, width: usize| {
            let (values, shape) =
                if width == 0 { (vec![0], [1, 1]) } else { (values, [rows, width]) };
            Tensor::from_data(TensorData::new(values, shape), (device, DType::I32))
        };
        let blocks = packing.blocks(columns);
        let (scales, shape) =
            if blocks == 0 { (vec![1.0], [1, 1]) } else { (planes.scales, [rows, blocks]) };
        Self {
            values: words(planes.values, packing.value_words(columns)),
            scales: Tensor::from_data(TensorData::new(scales, shape), (device, DType::F32)),
            zeros: words(planes.zeros, packing.zero_words(columns)),
            unpacked: None,
            packing,
            columns,
        }
    }

    /// Keeps the matrix in f32 beside the planes as long as it lives. Products then take no longer than those of a
    /// matrix that was never packed, and give the same bits as before.
    pub fn keep_unpacked(self) -> Self {
        let unpacked = self.unpack();
        #[cfg(all(feature = "cpu", target_family = "wasm"))]
        let unpacked = if self.in_panels() { crate::cpu::panels_of(unpacked) } else { unpacked };
        Self { unpacked: Some(unpacked), ..self }
    }

    /// The rows of several matrices as one matrix; `None` if products on this device do not read packed matrices, or if
    /// the matrices are not packed alike.
    pub fn joined(matrices: &[Self]) -> Option<Self> {
        let first = matrices.first()?;
        let alike = |other: &Self| {
            other.packing == first.packing && other.columns == first.columns && other.has_kernel()
        };
        if !matrices.iter().all(alike) {
            return None;
        }
        // Halves have no scales and zero-points.
        let scaled = first.packing != Packing::F16;
        let values = matrices.iter().map(|one| one.values.clone()).collect();
        let scales = matrices.iter().map(|one| one.scales.clone()).collect();
        let zeros = matrices.iter().map(|one| one.zeros.clone()).collect();
        Some(Self {
            values: Tensor::cat(values, 0),
            scales: if scaled { Tensor::cat(scales, 0) } else { first.scales.clone() },
            zeros: if scaled { Tensor::cat(zeros, 0) } else { first.zeros.clone() },
            unpacked: None,
            ..*first
        })
    }

    /// Rows `N` and columns `K`.
    pub fn dims(&self) -> [usize; 2] {
        [self.values.dims()[0], self.columns]
    }

    /// The matrix in f32.
    ///
    /// # Shapes
    ///
    /// - output: `[N, K]`
    pub fn unpack(&self) -> Tensor<2> {
        if let Some(unpacked) = self.unpacked.as_ref().filter(|_| !self.in_panels()) {
            return unpacked.clone();
        }
        #[cfg(feature = "cpu")]
        if crate::cpu::runs_on(&self.values.device(), DType::F32) {
            let (values, scales, zeros) = self.planes();
            return crate::cpu::unpack(values, scales, zeros, self.packing, self.columns);
        }
        reference::unpack(self)
    }

    /// Some rows in f32, as an embedding looks them up.
    ///
    /// # Shapes
    ///
    /// - rows: `[R]`, numbers below `N`
    /// - output: `[R, K]`
    pub fn select(&self, rows: Tensor<1, Int>) -> Tensor<2> {
        let of_block = |plane: Tensor<2>| match self.packing {
            Packing::F16 => plane,
            _ => plane.select(0, rows.clone()),
        };
        let zeros = match self.packing {
            Packing::F16 => self.zeros.clone(),
            _ => self.zeros.clone().select(0, rows.clone()),
        };
        let scales = of_block(self.scales.clone());
        let values = self.values.clone().select(0, rows);
        Self { values, scales, zeros, unpacked: None, ..*self }.unpack()
    }

    /// Whether products on this device read the matrix as it is packed; others unpack it first.
    pub fn has_kernel(&self) -> bool {
        #[cfg(feature = "gpu")]
        {
            crate::wgsl::runs_on(&self.values.device()) && crate::linear::in_quads(self.dims())
        }
        #[cfg(not(feature = "gpu"))]
        {
            false
        }
    }

    /// Whether an unpacked matrix is kept in the panels that this device's products read.
    fn in_panels(&self) -> bool {
        #[cfg(all(feature = "cpu", target_family = "wasm"))]
        {
            crate::cpu::can_multiply(&self.scales)
        }
        #[cfg(not(all(feature = "cpu", target_family = "wasm")))]
        {
            false
        }
    }

    fn planes(&self) -> (Tensor<2, Int>, Tensor<2>, Tensor<2, Int>) {
        (self.values.clone(), self.scales.clone(), self.zeros.clone())
    }
}

/// `y = f(x·Wᵀ + bias + addend)`, summed in f32. If `W` has more columns than `x`, only its first columns count.
///
/// # Shapes
///
/// - x: `[…, K]`
/// - weight: `[N, K]` or wider
/// - output: `[…, N]`
///
/// # Panics
///
/// Panics if `x` has more columns than `W`.
pub fn packed_linear<const D: usize>(
    x: Tensor<D>,
    weight: &PackedMatrix,
    epilogue: Epilogue<D>,
) -> Tensor<D> {
    let ([outputs, columns], width) = (weight.dims(), x.dims()[D - 1]);
    assert!(width <= columns, "x has {width} columns, the weight {columns}");
    let (rows, shape) = by_rows(x, outputs);
    #[cfg(feature = "gpu")]
    if weight.has_kernel() && width.is_multiple_of(4) {
        let (values, scales, zeros) = weight.planes();
        let planes = crate::wgsl::Planes { values, scales, zeros };
        let (packing, epilogue) = (weight.packing, crate::linear::flat(epilogue));
        return crate::wgsl::packed_linear(rows, planes, packing, columns, epilogue).reshape(shape);
    }
    // Only one layer at a time is in f32, while its product runs, in the backward pass too.
    #[cfg(feature = "cpu")]
    if rows.device().is_autodiff()
        && crate::cpu::runs_on(&rows.device(), DType::F32)
        && crate::autocast::is_exact()
    {
        let y = crate::cpu::frozen_product(rows, weight.planes(), weight.packing, columns);
        return epilogue.apply(y.reshape(shape));
    }
    #[cfg(all(feature = "cpu", target_family = "wasm"))]
    if let Some(panels) = weight.unpacked.as_ref().filter(|_| weight.in_panels()) {
        let (order, epilogue) =
            (crate::cpu::Order::Panels { outputs }, crate::linear::flat(epilogue));
        return crate::cpu::linear(rows, panels.clone(), order, epilogue).reshape(shape);
    }
    #[cfg(all(feature = "cpu", target_family = "wasm"))]
    if crate::cpu::can_multiply(&rows) {
        let (planes, epilogue) = (weight.planes(), crate::linear::flat(epilogue));
        let y = crate::cpu::packed_linear(rows, planes, weight.packing, columns, epilogue);
        return y.reshape(shape);
    }
    let y = crate::product(rows, weight.unpack().narrow(1, 0, width).transpose());
    epilogue.apply(y.reshape(shape))
}

/// The same operation composed from burn tensors: the definition of the kernels.
pub mod reference {
    use super::*;

    /// Twin of `shaders/product.wgsl` with `packed_weight.wgsl`.
    pub fn packed_linear(x: Tensor<2>, weight: &PackedMatrix, epilogue: Epilogue<2>) -> Tensor<2> {
        let [_, width] = x.dims();
        epilogue.apply(x.matmul(unpack(weight).narrow(1, 0, width).transpose()))
    }

    /// As [`PackedMatrix::unpack`].
    pub fn unpack(weight: &PackedMatrix) -> Tensor<2> {
        let (values, scales, zeros) = weight.planes();
        let [rows, columns] = weight.dims();
        let bits = weight.packing.bits();
        if weight.packing == Packing::F16 {
            return halves(lanes(values, bits)).narrow(1, 0, columns);
        }
        let blocks = weight.packing.blocks(columns);
        let values = lanes(values, bits).float().cast(DType::F32).reshape([rows, blocks, BLOCK]);
        let zeros = lanes(zeros, bits).float().cast(DType::F32).narrow(1, 0, blocks);
        let matrix = (values - zeros.unsqueeze_dim(2)) * scales.unsqueeze_dim(2);
        matrix.reshape([rows, blocks * BLOCK]).narrow(1, 0, columns)
    }

    /// The unsigned numbers of `bits` in each word, the lowest first: `[N, W]` to `[N, W·32/bits]`.
    fn lanes(words: Tensor<2, Int>, bits: usize) -> Tensor<2, Int> {
        let ([rows, width], lanes) = (words.dims(), 32 / bits);
        let shifted = |lane: usize| {
            words.clone().bitwise_right_shift_scalar((lane * bits) as i32).unsqueeze_dim::<3>(2)
        };
        // The shift repeats the sign; the mask cuts it off.
        Tensor::cat((0..lanes).map(shifted).collect(), 2)
            .bitwise_and_scalar((1i32 << bits) - 1)
            .reshape([rows, width * lanes])
    }

    /// Numbers of 16 bits as the halves they encode: `±mantissa·2^exponent`.
    fn halves(encoded: Tensor<2, Int>) -> Tensor<2> {
        let ([rows, width], device) = (encoded.dims(), encoded.device());
        let field = |shift: i32, mask: i32| {
            encoded.clone().bitwise_right_shift_scalar(shift).bitwise_and_scalar(mask)
        };
        let exponent = field(10, 31);
        // Exponent 0 is that of 1, without the hidden bit.
        let powers: Vec<f32> = (0..32).map(|e: i32| 2f32.powi(e.max(1) - 25)).collect();
        let powers = Tensor::<1>::from_data(TensorData::new(powers, [32]), (&device, DType::F32));
        let power = powers.select(0, exponent.clone().reshape([-1])).reshape([rows, width]);
        let hidden = exponent.clamp(0, 1).mul_scalar(1024);
        let sign = field(15, 1).mul_scalar(-2).add_scalar(1);
        ((field(0, 1023) + hidden) * sign).float().cast(DType::F32) * power
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of one block of 4 bits: value `(q − zero)·scale` with q = column mod 16.
    #[test]
    fn blocks_have_a_scale_and_a_zero_point() {
        let device = Device::flex();
        let row = [0x7654_3210u32 as i32, 0xfedc_ba98u32 as i32].repeat(4);
        let planes = Planes { values: row.repeat(2), scales: vec![0.5, 2.0], zeros: vec![8, 3] };
        let matrix = PackedMatrix::new(Packing::I4, [2, 40], planes, &device);
        let value = |row: usize, column: usize| {
            let (scale, zero) = [(0.5, 8.0), (2.0, 3.0)][row];
            ((column % 16) as f32 - zero) * scale
        };
        let expected: Vec<f32> = (0..80).map(|i| value(i / 40, i % 40)).collect();
        let expected = TensorData::new(expected, [2, 40]);
        reference::unpack(&matrix).into_data().assert_eq(&expected, true);
        matrix.unpack().into_data().assert_eq(&expected, true);
        let second = Tensor::from_data(TensorData::from([1]), &device);
        matrix
            .select(second)
            .into_data()
            .assert_eq(&matrix.unpack().narrow(0, 1, 1).into_data(), true);
    }

    /// One half, minus two, the smallest and the largest half.
    #[test]
    fn halves_are_exact() {
        let words = vec![0xc000_3800u32 as i32, 0x7bff_0001];
        let planes = Planes { values: words, scales: vec![], zeros: vec![] };
        let matrix = PackedMatrix::new(Packing::F16, [1, 4], planes, &Device::flex());
        let expected = TensorData::from([[0.5f32, -2.0, 2f32.powi(-24), 65504.0]]);
        reference::unpack(&matrix).into_data().assert_eq(&expected, true);
        matrix.unpack().into_data().assert_eq(&expected, true);
    }
}
