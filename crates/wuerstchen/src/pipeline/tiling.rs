//! Which tiles of products suit a GPU.

use burn::prelude::*;
use burn::tensor::Distribution;
use wuerstchen_kernels::linear::{Epilogue, linear};
use wuerstchen_kernels::{Products, Tiling, choose_products, has_halves, runs_shaders};

use super::Pipeline;
use super::progress::Error;
use super::seconds::{Clock, seconds_of};

/// A device that takes longer for the first product of [`Pipeline::choose_products`] emulates a GPU on a CPU.
const SLOW: f64 = 0.05;

impl Pipeline {
    /// Times the sizes of tiles for the model's largest product, and makes the device use the fastest one for all
    /// products from then on; if `halves`, tiles of halves too, where the device has them. Returns what the device
    /// uses.
    ///
    /// A software GPU gets no tiles. Nothing is timed where the model has no product that is large enough, and where
    /// its stages are on the device only while they work: [`Products::default`] is chosen. Has no effect where the
    /// device has no shaders.
    ///
    /// # Errors
    ///
    /// The device failed.
    pub async fn choose_products(&self, halves: bool, clock: Clock<'_>) -> Result<Products, Error> {
        let device = self.device();
        let halves = halves && has_halves(device);
        let mut fastest = Products::default();
        let large = self.largest_product().filter(|&[rows, outputs, _]| {
            Tiling::of_size(rows, outputs) != Tiling::Direct && runs_shaders(device)
        });
        if let Some(sides) = large {
            let seconds = async |products: Products, [rows, outputs, columns]: [usize; 3]| {
                choose_products(device, products);
                let random =
                    |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, device);
                let (x, weight) = (random([rows, columns]), random([columns, outputs]));
                seconds_of(&|| linear(x.clone(), weight.clone(), Epilogue::new(None)), clock).await
            };
            fastest = Products { tiling: Some(Tiling::Direct), halves: false };
            if seconds(fastest, [256, 512, 512]).await? < SLOW {
                let mut least = f64::INFINITY;
                let suits = |products: &Products| {
                    products.tiling != Some(Tiling::Direct) && (halves || !products.halves)
                };
                for products in Products::ALL.into_iter().filter(suits) {
                    let secs = seconds(products, sides).await?;
                    if secs < least {
                        (least, fastest) = (secs, products);
                    }
                }
            }
        }
        choose_products(device, fastest);
        Ok(fastest)
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
