//! Pictures as prompts.

use burn::prelude::*;

use super::progress::Error;
use super::sampling::read;
use super::{ImageEncoderPart, Pipeline};
use crate::image::Image;
use crate::options::OptionsError;
use crate::origin::PicturePrompt;
use crate::resize::{Filter, resize_to_cover};
use crate::sampler::Recipe;

/// The shorter side in pixels to which the authors scale all pictures first.
const AUTHORS_SIDE: usize = 768;

impl Pipeline {
    /// Embeds the pictures that the result is to resemble, prepared as the recipe's programs do.
    ///
    /// # Errors
    ///
    /// There are none, the model has no image encoder, its weights cannot be loaded, or the device failed.
    pub async fn picture_prompt(
        &self,
        images: &[Image],
        recipe: Recipe,
    ) -> Result<PicturePrompt, Error> {
        if images.is_empty() {
            let needed = "at least one picture";
            return Err(OptionsError::Missing { field: "picture_prompts", needed }.into());
        }
        let part = self.image_encoder.as_ref();
        let ImageEncoderPart { network, preparation } =
            part.map_err(|why| OptionsError::NoImageEncoder(why.to_string()))?;
        let encoder = network.get()?;
        let prepare = |image: &Image| match recipe {
            Recipe::Diffusers => {
                Tensor::<4>::from_data(preparation.prepare(image).pixels, &self.device)
            }
            Recipe::Authors => {
                let picture = image.to_tensor(&self.device);
                let picture = resize_to_cover(picture, [AUTHORS_SIDE; 2], Filter::Bilinear);
                preparation.prepare_floats(picture)
            }
        };
        let pixels = images.iter().map(prepare).collect();
        let embeddings = encoder.forward(Tensor::cat(pixels, 0)).embedding;
        Ok(PicturePrompt { embeddings: read(embeddings.unsqueeze_dim::<3>(0)).await? })
    }
}

impl PicturePrompt {
    /// The same pictures for `count` samples, `[count, k, D]`.
    pub(super) fn repeat(&self, count: usize, device: &Device) -> Tensor<3> {
        Tensor::from_data(self.embeddings.clone(), device).repeat_dim(0, count)
    }
}
