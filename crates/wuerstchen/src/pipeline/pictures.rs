//! Pictures as prompts.

use std::borrow::Cow;

use burn::prelude::*;

use super::progress::Error;
use super::sampling::read;
use super::{ImageEncoderPart, Pipeline};
use crate::image::Image;
use crate::options::OptionsError;
use crate::origin::PicturePrompt;
use crate::resize::{self, Filter};
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
                Tensor::<4>::from_data(preparation.prepare(&middle(image)).pixels, &self.device)
            }
            Recipe::Authors => {
                // Of a very long picture only the middle square is seen.
                let size = [AUTHORS_SIDE; 2];
                let picture = image.pixels().cut_thin(size);
                let picture = picture.resize_to_cover(size, Filter::Bilinear, &self.device);
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

/// A picture without the ends of a side that is far longer than the other, of which only the middle square is seen.
fn middle(image: &Image) -> Cow<'_, Image> {
    let Image { width, height, .. } = *image;
    let [rows, columns] = resize::middle([height, width], [1, 1]);
    if [rows.len(), columns.len()] == [height, width] {
        return Cow::Borrowed(image);
    }
    let kept = image.rgb.chunks_exact(3 * width).skip(rows.start).take(rows.len());
    let rgb = kept.flat_map(|row| &row[3 * columns.start..3 * columns.end]).copied().collect();
    Cow::Owned(Image { width: columns.len(), height: rows.len(), rgb })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 22 pixels in a row the middle eight are kept, four times as many as there are rows.
    #[test]
    fn only_the_middle_of_a_thin_picture_is_prepared() {
        let rgb: Vec<u8> = (0..22).flat_map(|x| [x; 3]).cycle().take(2 * 3 * 22).collect();
        let image = Image { width: 22, height: 2, rgb };
        let kept = middle(&image);
        assert_eq!((kept.width, kept.height), (8, 2));
        assert_eq!((kept.rgb[0], kept.rgb[23], kept.rgb[24]), (7, 14, 7));
        assert!(matches!(middle(&kept), Cow::Borrowed(_)));
    }
}
