//! How the values of one tensor are stored, and what quantising does to them.
//!
//! Blocks of 64 neighbouring columns share a scale and a zero-point. A quantised tensor's bytes are
//! three planes, each of whole 32-bit words: the values, row by row; the scales, two halves in a
//! word; the zero-points, row by row. These are the planes of
//! [`PackedMatrix`](wuerstchen_kernels::PackedMatrix), so that a device takes them as they are.

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};
use wuerstchen_kernels::packed_linear::BLOCK;
use wuerstchen_kernels::{Packing, Planes};

use crate::parallel::{for_each, try_for_each};

/// Type of a stored tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredDtype {
    /// 64 bits; read, never written.
    F64,
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// 16 bits with the exponent of f32; read, never written.
    Bf16,
    /// Integers of 64 bits: counters and goldens.
    I64,
    /// Integers of 32 bits: goldens.
    I32,
    /// Bytes: goldens.
    U8,
    /// Blocks of 8 bits.
    I8,
    /// Blocks of 4 bits.
    I4,
}

/// A tensor as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Type of the values.
    pub dtype: StoredDtype,
    /// The shape, as in PyTorch.
    pub shape: Vec<usize>,
    /// The stored bytes, little-endian.
    pub bytes: Vec<u8>,
}

impl Stored {
    /// Stores values as `dtype`: f32, f16, i8 or i4.
    ///
    /// # Panics
    ///
    /// Panics at a type that is never written.
    pub fn new(shape: &[usize], values: &[f32], dtype: StoredDtype) -> Self {
        let bytes = match dtype {
            StoredDtype::F32 => bytemuck::cast_slice(values).to_vec(),
            StoredDtype::F16 => {
                let mut halves = vec![f16::ZERO; values.len()];
                let pieces = halves.chunks_mut(PIECE).zip(values.chunks(PIECE));
                for_each(pieces.collect(), |(halves, values)| {
                    halves.convert_from_f32_slice(values);
                });
                bytemuck::cast_slice(&halves).to_vec()
            }
            StoredDtype::I8 => quantize(Packing::I8, shape, values),
            StoredDtype::I4 => quantize(Packing::I4, shape, values),
            other => panic!("{other:?} is never written"),
        };
        Self { dtype, shape: shape.to_vec(), bytes }
    }
}

/// Why a type cannot hold some values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// A value is infinite or no number.
    NotFinite,
    /// A value or a block's scale would become infinite.
    TooLarge,
}

impl Stored {
    /// Stores values as [`Self::new`] does, if the type holds them.
    pub(crate) fn fitting(
        shape: &[usize],
        values: &[f32],
        dtype: StoredDtype,
    ) -> Result<Self, Unfit> {
        // There is no early exit, because it would cost more than it saves.
        let is_finite = |values: &[f32]| values.iter().fold(true, |ok, v| ok & v.is_finite());
        try_for_each(values.chunks(PIECE).collect(), |values| {
            if is_finite(values) { Ok(()) } else { Err(Unfit::NotFinite) }
        })?;
        // The number that must fit into a half: a value, or the step of a block that spans values of both signs.
        let half = |largest: f32| match dtype {
            StoredDtype::I8 => largest / 255.0 * 2.0,
            StoredDtype::I4 => largest / 15.0 * 2.0,
            _ => largest,
        };
        let fits = |values: &[f32]| {
            let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            dtype == StoredDtype::F32 || f16::from_f32(half(largest)).is_finite()
        };
        try_for_each(values.chunks(PIECE).collect(), |values| {
            if fits(values) { Ok(()) } else { Err(Unfit::TooLarge) }
        })?;
        Ok(Self::new(shape, values, dtype))
    }

    /// Whether the stored values, or the scales of quantised ones, are finite.
    pub(crate) fn is_finite(&self) -> bool {
        let halves = |bytes: &[u8]| {
            bytes.chunks_exact(2).all(|half| f16::from_le_bytes([half[0], half[1]]).is_finite())
        };
        match self.dtype {
            StoredDtype::I8 | StoredDtype::I4 => {
                let packing = self.dtype.packing(&self.shape);
                packing.is_none_or(|packing| {
                    is_finite(packing, &planes(packing, &self.shape, &self.bytes))
                })
            }
            StoredDtype::F16 => halves(&self.bytes),
            _ => bytemuck::pod_collect_to_vec::<_, f32>(&self.bytes).iter().all(|v| v.is_finite()),
        }
    }
}

/// Number of values that a thread turns into halves at a time.
const PIECE: usize = 1 << 16;

/// Fewest values of a matrix of halves that stays packed on the device; a smaller one costs less
/// memory than it would cost time.
const PACKED_HALVES: usize = 1 << 20;

impl StoredDtype {
    /// The type of one tensor of a model that is to be stored as `self`. Only the weights of linear layers, 1x1
    /// convolutions and token embeddings are quantised. The linear layers of diffusion times, norms, biases,
    /// positions and kernels are not, because they are few and sensitive.
    pub fn of_tensor(self, name: &str, shape: &[usize]) -> Self {
        let time = [".mapper.weight", ".mapper_sca.weight", ".mapper_crp.weight"];
        let is_time = time.iter().any(|end| name.ends_with(end));
        let is_position = name.contains("position_embedding");
        // These are not quantised: one row is everything that the model knows of a token.
        let is_token = ["in_mapper.0.weight", "out_mapper.1.weight"].contains(&name);
        let is_quantized = matches!(self, Self::I8 | Self::I4)
            && name.ends_with("weight")
            && matches!(matrix(shape), Some([_, columns]) if columns >= BLOCK)
            && !(is_time || is_position || is_token);
        match self {
            Self::F32 => Self::F32,
            _ if is_quantized => self,
            _ => Self::F16,
        }
    }

    /// Whether the values are integers, which no weights are.
    #[cfg(feature = "fs")]
    pub(crate) fn is_integer(self) -> bool {
        matches!(self, Self::I64 | Self::I32 | Self::U8)
    }

    /// Bytes of a tensor of this type; `None` if their number overflows, or if the type cannot hold the shape.
    pub fn size(self, shape: &[usize]) -> Option<usize> {
        let count = shape.iter().try_fold(1usize, |size, &side| size.checked_mul(side))?;
        let packing = match self {
            Self::F64 | Self::I64 => return count.checked_mul(8),
            Self::F32 | Self::I32 => return count.checked_mul(4),
            Self::F16 | Self::Bf16 => return count.checked_mul(2),
            Self::U8 => return Some(count),
            Self::I8 => Packing::I8,
            Self::I4 => Packing::I4,
        };
        let [rows, columns] = matrix(shape)?;
        // A row is padded to less than twice its columns and a block.
        columns.checked_add(BLOCK)?.checked_mul(rows)?.checked_mul(8)?;
        let row = packing.value_words(columns) + packing.zero_words(columns);
        let scales = (rows * packing.blocks(columns)).div_ceil(2);
        Some(4 * (rows * row + scales))
    }

    /// How a tensor of this type and shape stays on the device, where it stays packed.
    pub fn packing(self, shape: &[usize]) -> Option<Packing> {
        let [rows, columns] = matrix(shape)?;
        match self {
            Self::F16 if rows.checked_mul(columns)? >= PACKED_HALVES => Some(Packing::F16),
            Self::I8 => Some(Packing::I8),
            Self::I4 => Some(Packing::I4),
            _ => None,
        }
    }

    /// The values of quantised bytes of the right size.
    pub(crate) fn decode(self, shape: &[usize], bytes: &[u8]) -> Vec<f32> {
        let packing = self.packing(shape).expect("only quantised tensors are decoded");
        let [rows, columns] = matrix(shape).expect("only matrices are quantised");
        let Planes { values, scales, zeros } = planes(packing, shape, bytes);
        let mut decoded = vec![0.0; rows * columns];
        for_each(decoded.chunks_mut(columns.max(1)).enumerate().collect(), |(row, out)| {
            packing.unpack_row(&values, &scales, &zeros, row, out);
        });
        decoded
    }
}

/// Rows and columns of a linear layer's weight or a 1x1 convolution's kernel, which has two more axes of length 1.
pub(crate) fn matrix(shape: &[usize]) -> Option<[usize; 2]> {
    match *shape {
        [rows, columns] | [rows, columns, 1, 1] => Some([rows, columns]),
        _ => None,
    }
}

/// Splits stored bytes of the right size into planes.
pub(crate) fn planes(packing: Packing, shape: &[usize], bytes: &[u8]) -> Planes {
    let [rows, columns] = matrix(shape).expect("only matrices are packed");
    let words = |bytes: &[u8]| bytemuck::pod_collect_to_vec(bytes);
    if packing == Packing::F16 {
        // Rows of an odd number of halves are padded to words.
        let row = |row: &[u8]| {
            let padding = [0, 0][..4 * packing.value_words(columns) - row.len()].iter();
            row.iter().chain(padding).copied().collect::<Vec<_>>()
        };
        let values = match columns % 2 {
            0 => words(bytes),
            _ => words(&bytes.chunks(2 * columns).flat_map(row).collect::<Vec<_>>()),
        };
        return Planes { values, scales: Vec::new(), zeros: Vec::new() };
    }
    let (values, rest) = bytes.split_at(4 * rows * packing.value_words(columns));
    let scale_count = rows * packing.blocks(columns);
    let (scales, zeros) = rest.split_at(4 * scale_count.div_ceil(2));
    let halves = scales.chunks_exact(2).take(scale_count);
    let scales = halves.map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    Planes { values: words(values), scales, zeros: words(zeros) }
}

/// Whether all values of a packed matrix are numbers.
pub(crate) fn is_finite(packing: Packing, planes: &Planes) -> bool {
    let finite = |half: u32| half & 0x7c00 != 0x7c00;
    match packing {
        Packing::F16 => {
            planes.values.iter().all(|&pair| finite(pair as u32) && finite(pair as u32 >> 16))
        }
        _ => planes.scales.iter().all(|scale| scale.is_finite()),
    }
}

fn quantize(packing: Packing, shape: &[usize], values: &[f32]) -> Vec<u8> {
    let [rows, columns] = matrix(shape).expect("only matrices are quantised");
    let width = packing.value_words(columns);
    let (blocks, zero_words) = (packing.blocks(columns), packing.zero_words(columns));
    let mut words = vec![0u32; rows * width];
    // Two scales are a word, also where the last one is left over.
    let mut scales = vec![f16::ZERO; (rows * blocks).next_multiple_of(2)];
    let mut zeros = vec![0u32; rows * zero_words];
    let planes = words.chunks_mut(width).zip(scales.chunks_mut(blocks));
    let planes = planes.zip(zeros.chunks_mut(zero_words));
    for_each(values.chunks(columns).zip(planes).collect(), |(row, ((words, scales), zeros))| {
        quantize_row(packing, row, words, scales, zeros);
    });
    let mut bytes: Vec<u8> = bytemuck::cast_slice(&words).to_vec();
    bytes.extend_from_slice(bytemuck::cast_slice(&scales));
    bytes.extend_from_slice(bytemuck::cast_slice(&zeros));
    bytes
}

/// Writes a row to its places in the planes, which must be zero before.
fn quantize_row(
    packing: Packing,
    row: &[f32],
    words: &mut [u32],
    scales: &mut [f16],
    zeros: &mut [u32],
) {
    let (bits, lanes) = (packing.bits(), packing.lanes());
    let blocks = row.chunks(BLOCK).zip(words.chunks_mut(BLOCK / lanes)).zip(scales);
    for (i, ((values, words), scale)) in blocks.enumerate() {
        let block = Block::fit(bits, values);
        let mut numbers = [0u8; BLOCK];
        for (number, &value) in numbers.iter_mut().zip(values) {
            *number = block.round(bits, value) as u8;
        }
        for (word, numbers) in words.iter_mut().zip(numbers.chunks(lanes)) {
            *word = numbers.iter().rev().fold(0, |word, &n| word << bits | u32::from(n));
        }
        *scale = f16::from_f32(block.scale);
        zeros[i / lanes] |= u32::from(block.zero) << (bits * (i % lanes));
    }
}

/// What the values of a block share: `value ≈ (q − zero)·scale`.
#[derive(Clone, Copy)]
struct Block {
    /// Representable as f16.
    scale: f32,
    zero: u8,
}

impl Block {
    /// How much of its range a block of few bits may give up where that makes the rest finer.
    const SHRINK: [f32; 5] = [1.0, 0.95, 0.9, 0.85, 0.8];

    /// The block with the smallest sum of squared errors; zero itself is always exact.
    fn fit(bits: usize, values: &[f32]) -> Self {
        let low = values.iter().copied().fold(0.0f32, f32::min);
        let high = values.iter().copied().fold(0.0f32, f32::max);
        let spanning = |shrink| Self::spanning(bits, low * shrink, high * shrink);
        if bits >= 8 {
            return spanning(1.0);
        }
        let error = |block: Self| -> f32 {
            let error = |&value: &f32| block.value(block.round(bits, value)) - value;
            values.iter().map(error).map(|error| error * error).sum()
        };
        let blocks = Self::SHRINK.map(spanning).map(|block| (block, error(block)));
        let best = blocks.into_iter().min_by(|(_, a), (_, b)| a.total_cmp(b));
        best.expect("there are several candidates").0
    }

    fn spanning(bits: usize, low: f32, high: f32) -> Self {
        let steps = ((1u32 << bits) - 1) as f32;
        // No scale exceeds the largest half, because weights that would need one are refused before.
        let exact = ((high - low) / steps).min(f16::MAX.to_f32());
        let mut scale = f16::from_f32(exact);
        if scale.to_f32() * steps < high - low && scale < f16::MAX {
            scale = f16::from_bits(scale.to_bits() + 1);
        }
        let scale = scale.to_f32();
        let zero = if scale > 0.0 { (-low / scale).round().clamp(0.0, steps) } else { 0.0 };
        Self { scale, zero: zero as u8 }
    }

    /// The whole number that stands for a value.
    fn round(self, bits: usize, value: f32) -> f32 {
        let zero = f32::from(self.zero);
        if self.scale == 0.0 {
            return zero;
        }
        let steps = ((1u32 << bits) - 1) as f32;
        // Clamped to whole numbers first, so that rounding cannot leave the range.
        let steps_from_zero = (value / self.scale).max(-zero).min(steps - zero);
        round_ties_even(steps_from_zero) + zero
    }

    fn value(self, number: f32) -> f32 {
        (number - f32::from(self.zero)) * self.scale
    }
}

/// The nearest whole number of a value whose magnitude is at most 2^22; ties go to the even one.
///
/// `f32::round_ties_even` compiles to a function call where the processor need not have SSE 4.1, and that call took
/// most of the time of quantising.
fn round_ties_even(value: f32) -> f32 {
    // Between 2^23 and 2^24, every float is a whole number.
    const WHOLE: f32 = 1.5 * 8_388_608.0;
    (value + WHOLE) - WHOLE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(dtype: StoredDtype, shape: &[usize], values: &[f32]) -> Vec<f32> {
        let stored = Stored::new(shape, values, dtype);
        assert_eq!(Some(stored.bytes.len()), dtype.size(shape));
        dtype.decode(shape, &stored.bytes)
    }

    proptest! {
        /// Every value lies within half a step of its block, the ends of the range within a step, and zero stays zero.
        #[test]
        fn quantising_errs_by_half_a_step(
            rows in 1usize..4,
            columns in 1usize..150,
            seed in any::<u64>(),
            exponent in -20i32..10,
        ) {
            let mut values = crate::noise::Philox::new(seed, 0).normal(rows * columns);
            values.iter_mut().for_each(|value| *value *= 2f32.powi(exponent));
            values[0] = 0.0;
            let found = round_trip(StoredDtype::I8, &[rows, columns], &values);
            prop_assert_eq!(found[0], 0.0);
            let blocks = values.chunks(columns).flat_map(|row| row.chunks(BLOCK));
            let found = found.chunks(columns).flat_map(|row| row.chunks(BLOCK));
            for (block, found) in blocks.zip(found) {
                let low = block.iter().copied().fold(0.0, f32::min);
                let high = block.iter().copied().fold(0.0, f32::max);
                // The scale is rounded up to a half, whose spacing is 2^-10 or 2^-24; the
                // zero-point's own rounding can cost the ends of the range half a step more.
                let step = (high - low) / 255.0 * (1.0 + 2f32.powi(-10)) + 2f32.powi(-24);
                for (value, found) in block.iter().zip(found) {
                    prop_assert!((value - found).abs() <= 1.01 * step, "{} {} {}", value, found, step);
                }
            }
        }

        /// Four bits may cut the ends of a block, but never at the cost of the whole.
        #[test]
        fn four_bits_are_no_worse_than_their_step(columns in 1usize..150, seed in any::<u64>()) {
            let values = crate::noise::Philox::new(seed, 0).normal(columns);
            let found = round_trip(StoredDtype::I4, &[1, columns], &values);
            for (block, found) in values.chunks(BLOCK).zip(found.chunks(BLOCK)) {
                let step = (block.iter().copied().fold(0.0, f32::max)
                    - block.iter().copied().fold(0.0, f32::min)) / 15.0;
                let squares: f32 = block.iter().zip(found).map(|(a, b)| (a - b) * (a - b)).sum();
                prop_assert!(squares <= (1.01 * step).powi(2) * block.len() as f32);
            }
        }

        /// Numbers are those of the formula, of values inside and outside of their block.
        #[test]
        fn numbers_are_those_of_the_definition(
            bits in prop_oneof![Just(4usize), Just(8)],
            low in -1e6f32..0.0,
            high in 0f32..1e6,
            value in prop_oneof![any::<f32>(), -1e6f32..1e6],
        ) {
            let block = Block::spanning(bits, low, high);
            let steps = ((1u32 << bits) - 1) as f32;
            let number = (value / block.scale).round_ties_even() + f32::from(block.zero);
            prop_assert_eq!(block.round(bits, value) as u8, number.clamp(0.0, steps) as u8);
        }
    }

    /// All multiples of a quarter up to 255, and their neighbours.
    #[test]
    fn rounding_is_that_of_the_standard_library() {
        for quarters in -4 * 255..=4 * 255 {
            let value = quarters as f32 / 4.0;
            for value in [value.next_down(), value, value.next_up()] {
                assert_eq!(round_ties_even(value), value.round_ties_even(), "{value}");
            }
        }
    }

    /// 65519 is rounded to the largest half, 65504; 65520 to infinity.
    #[test]
    fn what_a_type_cannot_hold_is_told() {
        let unfit = |value, dtype| Stored::fitting(&[1, 2], &[0.0, value], dtype).err();
        for dtype in [StoredDtype::F32, StoredDtype::F16, StoredDtype::I8, StoredDtype::I4] {
            assert_eq!(unfit(1.0, dtype), None);
            assert_eq!(unfit(f32::NAN, dtype), Some(Unfit::NotFinite));
            assert_eq!(unfit(f32::NEG_INFINITY, dtype), Some(Unfit::NotFinite));
        }
        assert_eq!(
            (unfit(65519.0, StoredDtype::F16), unfit(f32::MAX, StoredDtype::F32)),
            (None, None)
        );
        assert_eq!(unfit(65520.0, StoredDtype::F16), Some(Unfit::TooLarge));
        assert_eq!(unfit(f32::MAX, StoredDtype::I8), Some(Unfit::TooLarge));
        let halves = |value: f32| Stored::new(&[1, 2], &[0.0, value], StoredDtype::F16);
        assert_eq!(
            [65519.0, 65520.0, f32::NAN].map(|v| halves(v).is_finite()),
            [true, false, false]
        );
    }

    #[cfg(feature = "parallel")]
    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let shape = [301, 130];
        let values = crate::noise::Philox::new(7, 0).normal(shape[0] * shape[1]);
        for dtype in [StoredDtype::F32, StoredDtype::F16, StoredDtype::I8, StoredDtype::I4] {
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| Stored::new(&shape, &values, dtype))
            };
            assert_eq!(with(1), with(4));
        }
    }

    #[test]
    fn only_large_matrices_of_layers_are_quantised() {
        let i4 = |name: &str, shape: &[usize]| StoredDtype::I4.of_tensor(name, shape);
        assert_eq!(i4("blocks.0.channelwise.0.weight", &[256, 64]), StoredDtype::I4);
        assert_eq!(i4("projection.weight", &[128, 64, 1, 1]), StoredDtype::I4);
        assert_eq!(i4("projection.weight", &[128, 16, 1, 1]), StoredDtype::F16);
        assert_eq!(i4("blocks.1.mapper.weight", &[256, 64]), StoredDtype::F16);
        assert_eq!(i4("blocks.1.mapper_sca.weight", &[256, 64]), StoredDtype::F16);
        assert_eq!(i4("blocks.0.depthwise.weight", &[128, 1, 3, 3]), StoredDtype::F16);
        assert_eq!(i4("blocks.0.channelwise.0.bias", &[256]), StoredDtype::F16);
        assert_eq!(StoredDtype::F32.of_tensor("x.weight", &[256, 64]), StoredDtype::F32);
    }

    #[test]
    fn a_size_that_cannot_be_counted_is_none() {
        for dtype in [StoredDtype::F32, StoredDtype::F16, StoredDtype::I8, StoredDtype::I4] {
            assert_eq!(dtype.size(&[usize::MAX, 2]), None);
            assert_eq!(dtype.size(&[1, usize::MAX]), None);
        }
        assert_eq!(StoredDtype::I4.size(&[2, 2, 2]), None);
    }
}
