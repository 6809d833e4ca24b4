//! Latents that do not change while a stage trains.

use std::ops::{ControlFlow, Range};

use burn::prelude::*;
use wuerstchen::noise::Philox;

use crate::corpus::{Corpus, CorpusError};
use crate::rows::Rows;
use crate::tensor_cache::{TensorCache, name_of};

/// Latents of a fixed number of scenes, computed once and kept in main memory.
pub struct Cache {
    scenes: usize,
    shape: [usize; 3],
    values: Vec<f32>,
}

/// Scenes whose pictures are in memory at a time while a cache is filled, and whose latents are kept in one file.
const SCENES_AT_ONCE: usize = 64;

/// The place where latents are kept for other runs.
pub(crate) struct Kept<'a> {
    pub(crate) cache: &'a TensorCache,
    /// A folder for this kind of latents.
    pub(crate) kind: &'static str,
    /// A hash of the network that makes them, and of everything else that they depend on besides the pictures.
    pub(crate) network: String,
}

impl Kept<'_> {
    /// The latents of some pictures, made by `encode` if they are not kept.
    fn latents(
        &self,
        pictures: Rows,
        encode: impl FnOnce(Rows) -> (Vec<f32>, [usize; 4]),
    ) -> Result<(Vec<f32>, [usize; 4]), CorpusError> {
        let name = name_of(self.kind, &[self.network.as_bytes(), pictures.bytes()]);
        if let Some(kept) = self.cache.get(&name)? {
            let count = pictures.count();
            let is_finite = kept.values.iter().all(|value| value.is_finite());
            return match <[usize; 4]>::try_from(kept.shape) {
                Ok(shape) if shape[0] == count && is_finite => Ok((kept.values, shape)),
                _ => Err(self
                    .cache
                    .unfit(&name, &format!("expected the latents of {count} pictures"))),
            };
        }
        let (values, shape) = encode(pictures);
        self.cache.put(&name, &shape, values.clone())?;
        Ok((values, shape))
    }
}

impl Cache {
    /// A cache of no scenes.
    pub fn none() -> Self {
        Self { scenes: 0, shape: [0; 3], values: Vec::new() }
    }

    /// Computes the latents of the first `scenes` samples of the corpus. `encode` maps pictures `[B, 3, H, W]` on
    /// `device` to latents; `on_batch` is called with the number of samples that are done.
    ///
    /// # Errors
    ///
    /// A picture cannot be read.
    pub fn fill(
        corpus: &Corpus,
        scenes: usize,
        device: &Device,
        encode: impl Fn(Tensor<4>) -> Tensor<4>,
        mut on_batch: impl FnMut(usize),
    ) -> Result<Self, CorpusError> {
        let go_on = |done| {
            on_batch(done);
            ControlFlow::Continue(())
        };
        let filled = Self::fill_and_keep(corpus, scenes, (device, None), encode, go_on)?;
        Ok(filled.expect("nobody has stopped it"))
    }

    /// As [`Self::fill`], with latents that may be kept for other runs; `None` if `on_batch` breaks.
    pub(crate) fn fill_and_keep(
        corpus: &Corpus,
        scenes: usize,
        (device, kept): (&Device, Option<Kept<'_>>),
        encode: impl Fn(Tensor<4>) -> Tensor<4>,
        mut on_batch: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Self>, CorpusError> {
        let (mut values, mut shape) = (Vec::new(), [0; 3]);
        let encode = |pictures: Rows| {
            let latents = pictures.through(device, &encode);
            let shape = latents.dims();
            (latents.into_data().try_to_vec::<f32>().expect("latents are f32"), shape)
        };
        for start in (0..scenes).step_by(SCENES_AT_ONCE) {
            let end = scenes.min(start + SCENES_AT_ONCE);
            let samples: Vec<_> = (start as u64..end as u64).collect();
            let pictures = corpus.pictures(&samples)?;
            let (latents, [_, channels, height, width]) = match &kept {
                Some(kept) => kept.latents(pictures, encode)?,
                None => encode(pictures),
            };
            shape = [channels, height, width];
            values.extend(latents);
            if on_batch(end).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(Self { scenes, shape, values }))
    }

    /// The numbers of a batch's samples: random ones of the cached scenes, or the next ones if nothing is cached.
    pub(super) fn choose(&self, rng: &mut Philox, samples: Range<u64>) -> Vec<u64> {
        match self.scenes {
            0 => samples.collect(),
            scenes => samples.map(|_| u64::from(rng.below(scenes as u32))).collect(),
        }
    }

    /// The latents of the places `own` of chosen samples; `None` if nothing is cached.
    pub(super) fn get(&self, chosen: &[u64], own: &Range<usize>) -> Option<Rows> {
        if self.scenes == 0 {
            return None;
        }
        let size: usize = self.shape.iter().product();
        let chosen = chosen[own.clone()].iter();
        let rows = chosen.flat_map(|&i| &self.values[i as usize * size..][..size]);
        Some(Rows::new(self.shape, rows.copied().collect()).at(own.start))
    }
}
