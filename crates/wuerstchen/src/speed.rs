//! How fast a GPU is, and which way of multiplying suits it.

use std::cell::Cell;
use std::hint::black_box;

use burn::prelude::*;
use burn::tensor::Distribution;
use wuerstchen_kernels::linear::{Epilogue, linear};
use wuerstchen_kernels::{
    Probe, Tiling, choose_tiling, probe_copy, probe_multiply_adds, runs_shaders,
};

use crate::pipeline::{Error, Pipeline, read};

/// Seconds since any moment.
pub type Clock<'a> = &'a dyn Fn() -> f64;

/// What a device reaches if it does nothing else.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Reach {
    /// Multiply-adds a second in f32, in registers.
    pub multiply_adds_per_sec: f64,
    /// Bytes a second that a copy of 64 MiB reads and writes.
    pub bytes_per_sec: f64,
}

/// Seconds of a measurement: long against the steps of a browser's clock, which are up to a millisecond.
const LONG: f64 = 0.02;

/// A device that takes longer for the first product of [`Pipeline::choose_tiling`] emulates a GPU on a CPU.
const SLOW: f64 = 0.05;

/// Measures what a device reaches.
///
/// # Errors
///
/// The device failed.
///
/// # Panics
///
/// Panics if the device does not run shaders.
pub async fn reach(device: &Device, clock: Clock<'_>) -> Result<Reach, Error> {
    let per_sec = async |probe: &dyn Fn() -> Probe| {
        let work = Cell::new(0);
        let compute = || {
            let probe = probe();
            work.set(probe.work);
            probe.result
        };
        let secs = seconds_of(&compute, clock).await?;
        Ok::<_, Error>(work.get() as f64 / secs)
    };
    // As much arithmetic as a software GPU does in a second, and a fast one in a tenth of a millisecond.
    let multiply_adds_per_sec = per_sec(&|| probe_multiply_adds(device, 64)).await?;
    let x = Tensor::<1>::zeros([1 << 23], device);
    let bytes_per_sec = per_sec(&|| probe_copy(x.clone())).await?;
    Ok(Reach { multiply_adds_per_sec, bytes_per_sec })
}

/// Seconds of a computation on a device: the least of three measurements of as many in a row as take 20 ms. What
/// comes before, while shaders are compiled, is not counted.
///
/// # Errors
///
/// The device failed.
pub async fn seconds_of<const D: usize>(
    compute: &dyn Fn() -> Tensor<D>,
    clock: Clock<'_>,
) -> Result<f64, Error> {
    let first_value = || compute().flatten::<1>(0, D - 1).narrow(0, 0, 1);
    let mut runs = 1;
    // Of every result one value is used: burn leaves out what nobody uses.
    let seconds = async |runs: u32| {
        let start = clock();
        let sum = (1..runs).fold(first_value(), |sum, _| sum + first_value());
        // burn may copy from the device only where bytes are used, so that without this nothing is waited for.
        black_box(read(sum).await?.as_bytes());
        Ok::<_, Error>(clock() - start)
    };
    seconds(2).await?;
    let mut least = seconds(runs).await?;
    while least < LONG {
        runs *= 4;
        least = seconds(runs).await?;
    }
    // What else happens at the same time only ever makes it longer.
    for _ in 0..2 {
        least = least.min(seconds(runs).await?);
    }
    Ok(least / f64::from(runs))
}

impl Pipeline {
    /// Times the sizes of tiles for the model's largest product, and makes the device use the faster one for
    /// all products from then on. A software GPU gets no tiles. `None` where the device has no shaders, or the
    /// model no product that is large enough, or its stages are on the device only while they work.
    ///
    /// # Errors
    ///
    /// The device failed.
    pub async fn choose_tiling(&self, clock: Clock<'_>) -> Result<Option<Tiling>, Error> {
        if !runs_shaders(self.device()) {
            return Ok(None);
        }
        let Some([rows, outputs, columns]) = self.largest_product() else { return Ok(None) };
        if Tiling::of_size(rows, outputs) == Tiling::Direct {
            return Ok(None);
        }
        let product = |[rows, outputs, columns]: [usize; 3]| {
            let random = |shape: [usize; 2]| {
                Tensor::<2>::random(shape, Distribution::Default, self.device())
            };
            let (x, weight) = (random([rows, columns]), random([columns, outputs]));
            move || linear(x.clone(), weight.clone(), Epilogue::new(None))
        };
        let small = product([256, 512, 512]);
        choose_tiling(self.device(), Some(Tiling::Direct));
        let mut fastest = (seconds_of(&small, clock).await?, Tiling::Direct);
        if fastest.0 < SLOW {
            let product = product([rows, outputs, columns]);
            fastest.0 = f64::INFINITY;
            for tiling in [Tiling::Small, Tiling::Large] {
                choose_tiling(self.device(), Some(tiling));
                let secs = seconds_of(&product, clock).await?;
                if secs < fastest.0 {
                    fastest = (secs, tiling);
                }
            }
        }
        choose_tiling(self.device(), Some(fastest.1));
        Ok(Some(fastest.1))
    }

    /// Rows, outputs and columns of the product that takes most multiply-adds for a picture of the model's
    /// default size: the first layer of a channel MLP. `None` where a stage is on the device only while it works.
    fn largest_product(&self) -> Option<[usize; 3]> {
        if !self.is_resident() {
            return None;
        }
        let defaults = &self.card.defaults;
        let (embedding, latents) = self.sizes(defaults.height, defaults.width).ok()?;
        // Stage C is guided: two predictions at a time.
        let prior = self.prior.denoiser.get().ok()?.levels();
        let decoder = self.decoder.levels().ok()?;
        let mut products = Vec::new();
        for (levels, [height, width], batch) in [(prior, embedding, 2), (decoder, latents, 1)] {
            for (downscale, channels) in levels {
                let rows = batch * (height / downscale) * (width / downscale);
                products.push([rows, 4 * channels, channels]);
            }
        }
        products.into_iter().max_by_key(|sides| sides.iter().product::<usize>())
    }
}
