//! Pictures that Stage C follows.

use burn::prelude::*;
use burn::tensor::Slice;

use super::progress::Error;
use super::sampling::read;
use super::{CompressorPart, ControlNetPart, Pipeline};
use crate::batch_norm::Statistics;
use crate::canny;
use crate::compressor::normalise;
use crate::controlnet::ControlInput;
use crate::image::{Image, Mask};
use crate::options::{OptionsError, Settings};
use crate::origin::Control;
use crate::resize::{Filter, resize_planes};

/// Pixels on a side of the picture for each cell of the image embedding.
const CELL: usize = 32;

/// Side in pixels of the square in which edges are looked for, as the authors do.
const EDGES_SIDE: usize = 224;

impl Pipeline {
    /// Makes what Stage C adds to its features, so that results follow a picture. The model's ControlNet decides what
    /// is taken from the picture: its edges, all of it but the part that the mask paints anew, or its content in half
    /// the resolution. The picture is scaled to cover 32 pixels for each cell of the image embedding, and what stands
    /// out is cut off.
    ///
    /// # Errors
    ///
    /// The model cannot make that size, has no ControlNet or none that takes pictures; the mask is missing, is not
    /// taken, or is not of the picture's size; or the device failed.
    pub async fn control(
        &self,
        image: &Image,
        mask: Option<&Mask>,
        settings: &Settings,
    ) -> Result<Control, Error> {
        let part = self.controlnet.as_ref();
        let ControlNetPart { network, config } =
            part.map_err(|why| OptionsError::NoControlNet(why.to_string()))?;
        let Some(input) = config.input() else {
            let reason = format!(
                "expected one that takes edges (1 channel), a picture with a mask (4) or image embeddings, found one of \
                 {} channels",
                config.c_in
            );
            return Err(OptionsError::NoControlNet(reason).into());
        };
        let (cells, _) = self.sizes(settings.height, settings.width)?;
        let size = cells.map(|side| side * CELL);
        let picture = image.pixels().cover(size, &self.device);
        let mut lacks_edges = false;
        let x = match (input, mask) {
            (ControlInput::Painting, None) => {
                let (field, needed) = ("control_image", "a control_mask for this ControlNet");
                return Err(OptionsError::Missing { field, needed }.into());
            }
            (ControlInput::Painting, Some(mask)) => {
                mask.check(image, "control_mask")?;
                let mask = mask.pixels().cover(size, &self.device).greater_equal_elem(0.5).float();
                let seen = picture * (mask.clone() * -1.0 + 1.0) + mask.clone();
                Tensor::cat(vec![seen, mask], 1)
            }
            (_, Some(_)) => {
                let other = "a ControlNet that takes no mask";
                return Err(OptionsError::Contradiction { field: "control_mask", other }.into());
            }
            (ControlInput::Edges, None) => {
                let (x, found) = edges(picture).await?;
                lacks_edges = !found;
                x
            }
            (ControlInput::Embedding, None) => self.embed_half(picture)?,
        };
        let [_, channels, ..] = x.dims();
        if channels != config.c_in {
            let reason = format!(
                "it takes image embeddings of {} channels, and the compressor makes {channels}",
                config.c_in
            );
            return Err(OptionsError::NoControlNet(reason).into());
        }
        let scale = settings.control_scale;
        let mut features = Vec::new();
        for (&block, x) in config.blocks.iter().zip(network.get()?.forward(x)) {
            features.push((block, read(x * scale).await?));
        }
        Ok(Control { features, lacks_edges })
    }

    /// The image embedding of a picture in half its resolution, every cell twice as wide and as high.
    fn embed_half(&self, picture: Tensor<4>) -> Result<Tensor<4>, Error> {
        let CompressorPart { network, .. } = self.compressor("control_image")?;
        let every_second = Slice::new(0, None, 2);
        let half = picture.slice([Slice::full(), Slice::full(), every_second, every_second]);
        let embedding = network.get()?.forward(normalise(half), Statistics::Running);
        let [batch, channels, rows, columns] = embedding.dims();
        let doubled =
            embedding.reshape([batch, channels, rows, 1, columns, 1]).repeat(&[1, 1, 1, 2, 1, 2]);
        Ok(doubled.reshape([batch, channels, 2 * rows, 2 * columns]))
    }
}

/// The edges of a picture `[1, 3, H, W]` in `[0, 1]`: `[1, 1, H, W]`, 1 in the middle of an edge; and whether there are
/// any.
///
/// Source: `CannyFilter` in `modules/controlnet.py` of Stability-AI/StableCascade.
async fn edges(picture: Tensor<4>) -> Result<(Tensor<4>, bool), Error> {
    let ([.., height, width], device) = (picture.dims(), picture.device());
    let square = resize_planes(picture, [EDGES_SIDE; 2], Filter::BilinearAliased);
    let edges = canny::edges(&read(square).await?);
    let has_any = edges.iter().any(|&edge| edge > 0.0);
    let edges = TensorData::new(edges, [1, 1, EDGES_SIDE, EDGES_SIDE]);
    let edges = Tensor::from_data(edges, &device);
    Ok((resize_planes(edges, [height, width], Filter::BilinearAliased), has_any))
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;
    use crate::controlnet::golden::{all, tensor};

    /// OpenCV's edges of the same bytes, pixel by pixel; and as the authors resize them before and after. A byte of the
    /// resized picture may be rounded down from another side of a whole number, which moves an edge by a pixel.
    #[test]
    fn edges_are_those_of_opencv() {
        let found = canny::edges(&tensor("canny.input").into_data());
        let expected = all().values("canny.edges").unwrap();
        assert_eq!(found, expected);
        assert!((0.05..0.5).contains(&(found.iter().sum::<f32>() / found.len() as f32)));

        let (found, has_any) = block_on(edges(tensor("filter.input"))).unwrap();
        assert!(has_any);
        assert!(!block_on(edges(tensor("filter.input").zeros_like())).unwrap().1);
        let difference = (found - tensor("filter.edges")).abs();
        let differing = difference.greater_elem(1e-3).float().mean().into_scalar::<f32>();
        assert!(differing < 0.01, "{differing}");
    }
}
