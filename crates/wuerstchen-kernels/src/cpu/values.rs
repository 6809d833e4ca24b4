//! The values of tensors, and the loop over blocks of them.

#[cfg(not(feature = "parallel"))]
use std::sync::Mutex;

use burn::tensor::TensorData;
use burn_flex::FlexTensor;
#[cfg(feature = "parallel")]
use rayon::prelude::*;

/// Number of elements that one task of a kernel handles, in whole rows: 64 KiB, half of a small level-two cache.
pub(super) fn block(row: usize) -> usize {
    const BLOCK: usize = 1 << 14;
    BLOCK.max(row) / row.max(1) * row
}

/// A contiguous tensor and its shape.
pub(super) struct Values {
    tensor: FlexTensor,
    pub(super) shape: Vec<usize>,
}

impl Values {
    pub(super) fn of(tensor: FlexTensor) -> Self {
        let tensor = tensor.to_contiguous();
        let shape = tensor.layout().shape().to_vec();
        Self { tensor, shape }
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        self.tensor.as_slice().expect("made contiguous in `of`")
    }

    /// The values for changing; they are copied first if anything else has them.
    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        if self.tensor.try_storage_mut::<f32>().is_none() {
            let copy = self.as_slice().to_vec();
            self.tensor = FlexTensor::from_data(TensorData::new(copy, self.shape.clone()));
        }
        self.tensor.try_storage_mut().expect("nobody else has a copy")
    }

    #[cfg(feature = "train")]
    pub(super) fn into_tensor(self) -> FlexTensor {
        self.tensor
    }

    pub(super) fn words(&self) -> &[i32] {
        self.tensor
            .as_slice()
            .expect("made contiguous in `of`, of 32-bit integers by `PackedMatrix::new`")
    }

    pub(super) fn channels(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Number of values of a sample.
    pub(super) fn per_sample(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Number of pixels of a sample, each a row of channels.
    pub(super) fn pixels(&self) -> usize {
        self.per_sample() / self.channels()
    }

    /// Changes the rows of channels, or a copy of them as in [`Self::as_mut_slice`].
    /// `f` takes the number of its first row, and some rows; it is to be inlined as in [`for_each_block`].
    pub(super) fn map_rows(mut self, f: impl Fn(usize, &mut [f32]) + Sync) -> FlexTensor {
        let channels = self.channels();
        let size = block(channels);
        for_each_block(
            self.as_mut_slice(),
            size,
            #[inline(always)]
            |i, x| f(i * size / channels, x),
        );
        self.tensor
    }
}

/// Calls `f` with every block of `out` and its number, side by side where there are threads, compiled
/// for the widest vectors that this processor has. `f` must not allocate memory (see `threads.rs`).
///
/// Only code that is inlined here is compiled for these vectors; other code is compiled for the oldest processor of
/// this kind. Therefore closures have `#[inline(always)]`, and long expressions stand in loops, not in closures of
/// iterators.
pub(super) fn for_each_block(out: &mut [f32], block: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let f = |(i, out): (usize, &mut [f32])| {
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || f(i, out),
        );
    };
    #[cfg(feature = "parallel")]
    out.par_chunks_mut(block.max(1)).enumerate().for_each(f);
    #[cfg(not(feature = "parallel"))]
    {
        let blocks: Vec<_> = out.chunks_mut(block.max(1)).map(Mutex::new).collect();
        let task = |i: usize| f((i, &mut *blocks[i].lock().expect("no other task has this block")));
        #[cfg(target_family = "wasm")]
        super::threads::for_each(blocks.len(), &task);
        #[cfg(not(target_family = "wasm"))]
        (0..blocks.len()).for_each(task);
    }
}

/// Number of threads among which [`for_each_block`] divides its blocks.
#[cfg(any(test, target_family = "wasm"))]
pub(super) fn threads() -> usize {
    #[cfg(feature = "parallel")]
    return rayon::current_num_threads();
    #[cfg(all(not(feature = "parallel"), target_family = "wasm"))]
    return super::threads::count();
    #[cfg(not(any(feature = "parallel", target_family = "wasm")))]
    1
}
