//! Which size of a product's tiles suits a GPU.

use burn::prelude::*;
use burn::tensor::Distribution;
use wuerstchen_kernels::linear::{Epilogue, linear};
use wuerstchen_kernels::{Tiling, choose_tiling, runs_shaders};

use super::Pipeline;
use super::progress::Error;
use crate::speed::{Clock, seconds_of};

/// A device that takes longer for the first product of [`Pipeline::choose_tiling`] emulates a GPU on a CPU.
const SLOW: f64 = 0.05;

impl Pipeline {
    /// Times the sizes of tiles for the model's largest product, and makes the device use the fastest one for
    /// all products from then on. A software GPU gets no tiles. `None` where the device has no shaders, where the
    /// model has no product that is large enough, or where its stages are on the device only while they work.
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
