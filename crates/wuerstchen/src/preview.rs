//! Previews: pictures of the latents during sampling.

use burn::prelude::*;
use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::part::Stage;
use crate::pipeline::{Error, Pipeline};

/// A linear map from image embeddings to colours, fitted to pictures of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingColours {
    /// For red, green and blue: one weight per channel of the embedding, then a constant.
    pub weights: [Vec<f64>; 3],
}

/// Keeps the fit defined if channels depend on each other; small beside their unit variance.
const RIDGE: f64 = 1e-3;

impl EmbeddingColours {
    /// Fits the map by least squares to pictures and the image embeddings `[B, C, h, w]` that they were
    /// made from: each cell of an embedding to the mean colour of its pixels.
    ///
    /// # Panics
    ///
    /// Panics if the numbers of embeddings and pictures differ, or if the embeddings are not of that shape or not f32.
    pub fn fit(embeddings: &TensorData, images: &[Image]) -> Self {
        let &[count, channels, height, width] = &embeddings.shape()[..] else {
            panic!("expected [B, C, h, w], got {:?}", embeddings.shape())
        };
        assert_eq!(count, images.len(), "one embedding for every picture");
        let values = embeddings.as_slice::<f32>().expect("embeddings are f32");
        let mut normal = vec![vec![0.0; channels + 4]; channels + 1];
        for (image, embedding) in images.iter().zip(values.chunks(channels * height * width)) {
            for cell in 0..height * width {
                let mut row = inputs(embedding, cell, height * width);
                let colour = mean_colour(image, [cell / width, cell % width], [height, width]);
                row.extend(colour);
                for i in 0..=channels {
                    for j in 0..row.len() {
                        normal[i][j] += row[i] * row[j];
                    }
                }
            }
        }
        for (i, row) in normal.iter_mut().enumerate() {
            row[i] += RIDGE * (count * height * width) as f64;
        }
        solve(&mut normal);
        Self {
            weights: [0, 1, 2].map(|c| normal.iter().map(|row| row[channels + 1 + c]).collect()),
        }
    }

    /// One pixel for every cell of the first embedding of `[B, C, h, w]`; `None` if it has another number of
    /// channels than the fit.
    fn show(&self, embeddings: &TensorData) -> Option<Image> {
        let &[_, channels, height, width] = &embeddings.shape()[..] else { return None };
        if self.weights.iter().any(|weights| weights.len() != channels + 1) {
            return None;
        }
        let values = embeddings.as_slice::<f32>().ok()?;
        let pixel = |cell| {
            let inputs = inputs(&values[..channels * height * width], cell, height * width);
            [0, 1, 2].map(|c| {
                let value: f64 = self.weights[c].iter().zip(&inputs).map(|(w, x)| w * x).sum();
                (value.clamp(0.0, 1.0) * 255.0).round() as u8
            })
        };
        let rgb = (0..height * width).flat_map(pixel).collect();
        Some(Image { width, height, rgb })
    }
}

/// The channels of a cell, then 1.
fn inputs(embedding: &[f32], cell: usize, area: usize) -> Vec<f64> {
    let channels = embedding.chunks(area).map(|channel| f64::from(channel[cell]));
    channels.chain([1.0]).collect()
}

/// The mean colour of a cell's pixels, in `[0, 1]`.
fn mean_colour(image: &Image, [row, column]: [usize; 2], [rows, columns]: [usize; 2]) -> [f64; 3] {
    let (tall, wide) = (image.height / rows, image.width / columns);
    let mut sum = [0.0; 3];
    for y in row * tall..(row + 1) * tall {
        for x in column * wide..(column + 1) * wide {
            let pixel = &image.rgb[(y * image.width + x) * 3..][..3];
            for (sum, &value) in sum.iter_mut().zip(pixel) {
                *sum += f64::from(value) / 255.0;
            }
        }
    }
    sum.map(|sum| sum / (tall * wide).max(1) as f64)
}

/// Gauss-Jordan elimination of a positive definite system; every row ends with its right-hand sides.
fn solve(rows: &mut [Vec<f64>]) {
    for pivot in 0..rows.len() {
        let scale = rows[pivot][pivot];
        rows[pivot].iter_mut().for_each(|value| *value /= scale);
        let current = rows[pivot].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != pivot) {
            let factor = row[pivot];
            row.iter_mut().zip(&current).for_each(|(value, c)| *value -= factor * c);
        }
    }
}

impl Pipeline {
    /// A preview of the first picture of a batch after a step. Stage C's latents pass through the model's
    /// previewer or become colours, one pixel for each cell; Stage B's latents pass through Stage A. `None`
    /// for other stages.
    ///
    /// # Errors
    ///
    /// The device failed.
    pub async fn preview(
        &self,
        stage: Stage,
        latents: &TensorData,
        colours: Option<&EmbeddingColours>,
    ) -> Result<Option<Image>, Error> {
        let first = || {
            let x: Tensor<4> = Tensor::from_data(latents.clone(), self.device());
            x.narrow(0, 0, 1)
        };
        if let (Stage::Prior, Some(previewer)) = (stage, &self.previewer) {
            let picture = previewer.get()?.forward(self.image_embedding(first()));
            let picture = crate::pipeline::read(picture.clamp(0.0, 1.0)).await?;
            return Ok(Image::from_data(&picture).into_iter().next());
        }
        Ok(match (stage, colours) {
            (Stage::Prior, Some(colours)) => {
                colours.show(&crate::pipeline::read(self.image_embedding(first())).await?)
            }
            (Stage::Decoder, _) => {
                let picture = self.decode(first())?.clamp(0.0, 1.0);
                Image::from_data(&crate::pipeline::read(picture).await?).into_iter().next()
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red is the first channel and blue one minus it: the fit must find both.
    #[test]
    fn finds_a_linear_map() {
        let values = vec![0.0f32, 1.0, 0.5, 0.2, 0.9, 0.1, 0.4, 0.8];
        let embeddings = TensorData::new(values.clone(), [2, 1, 2, 2]);
        let image = |values: &[f32]| {
            let byte = |v: f32| (v * 255.0).round() as u8;
            let rgb = values.iter().flat_map(|&v| [byte(v), 0, byte(1.0 - v)]).collect();
            Image { width: 2, height: 2, rgb }
        };
        let images = [image(&values[..4]), image(&values[4..])];
        let colours = EmbeddingColours::fit(&embeddings, &images);
        let shown = colours.show(&embeddings).unwrap();
        let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 2;
        assert!(shown.rgb.iter().zip(&images[0].rgb).all(near), "{:?} {:?}", shown, images[0]);
    }
}
