//! Antialiased resizing: of tensors as two small matrices, `out = M_height · x · M_widthᵀ`; of bytes pixel by pixel.

use std::ops::Range;

use burn::prelude::*;

use crate::blocks::{channels_first, channels_last};

/// A resampling kernel and how the output grid lies over the input grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Keys' cubic (a = −1/2) with aligned corners: how Stage B fits the image embedding.
    BicubicAlignedCorners,
    /// Keys' cubic (a = −1/2) with aligned edges: how pictures are prepared for the Fréchet inception distance,
    /// and Pillow's `BICUBIC`.
    Bicubic,
    /// The triangle kernel with aligned edges: how pictures are prepared for the compressor.
    Bilinear,
    /// Between the two nearest pixels with aligned corners, not antialiased: how Stable Cascade's
    /// Stage B fits the image embedding.
    BilinearAlignedCorners,
    /// Between the two nearest pixels with aligned edges, not antialiased: how pictures are prepared for edges.
    BilinearAliased,
}

impl Filter {
    fn scale(self, input: usize, output: usize) -> f64 {
        match self {
            Self::BicubicAlignedCorners | Self::BilinearAlignedCorners if output > 1 => {
                (input as f64 - 1.0) / (output as f64 - 1.0)
            }
            Self::BicubicAlignedCorners | Self::BilinearAlignedCorners => 0.0,
            Self::Bicubic | Self::Bilinear | Self::BilinearAliased => input as f64 / output as f64,
        }
    }

    fn radius(self) -> f64 {
        match self {
            Self::BicubicAlignedCorners | Self::Bicubic => 2.0,
            Self::Bilinear | Self::BilinearAlignedCorners | Self::BilinearAliased => 1.0,
        }
    }

    fn weight(self, distance: f64) -> f64 {
        let d = distance.abs();
        match self {
            Self::Bilinear | Self::BilinearAlignedCorners | Self::BilinearAliased => {
                (1.0 - d).max(0.0)
            }
            Self::BicubicAlignedCorners | Self::Bicubic => cubic(d),
        }
    }
}

/// Keys' cubic with a = −1/2.
fn cubic(distance: f64) -> f64 {
    let d = distance.abs();
    if d < 1.0 {
        (1.5 * d - 2.5) * d * d + 1.0
    } else if d < 2.0 {
        ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    } else {
        0.0
    }
}

/// How one output pixel is made: a weight for the input pixel `first` and for each one after it. They sum to 1.
pub(crate) struct Weights {
    pub(crate) first: usize,
    pub(crate) values: Vec<f64>,
}

/// The weights of every output pixel of one axis.
///
/// With an antialiased filter, aligned corners change only the scale, not the centres:
/// `centre = scale·(i + ½)`.
///
/// Source: `_upsample_bicubic2d_aa` and `upsample_bilinear2d` of PyTorch.
pub(crate) fn weights(filter: Filter, input: usize, output: usize) -> Vec<Weights> {
    if input == output {
        return (0..input).map(|first| Weights { first, values: vec![1.0] }).collect();
    }
    let scale = filter.scale(input, output);
    let stretch = match filter {
        Filter::BilinearAlignedCorners | Filter::BilinearAliased => 1.0,
        _ => scale.max(1.0),
    };
    let one = |i: usize| {
        let centre = match filter {
            Filter::BilinearAlignedCorners => scale * i as f64 + 0.5,
            _ => scale * (i as f64 + 0.5),
        };
        let low = ((centre - filter.radius() * stretch + 0.5) as isize).max(0) as usize;
        let high = ((centre + filter.radius() * stretch + 0.5) as usize).min(input);
        let weight = |j: usize| filter.weight((j as f64 - centre + 0.5) / stretch);
        let total: f64 = (low..high).map(weight).sum();
        Weights { first: low, values: (low..high).map(|j| weight(j) / total).collect() }
    };
    (0..output).map(one).collect()
}

/// The `[output, input]` matrix that resizes one axis, row by row.
pub fn resize_matrix(filter: Filter, input: usize, output: usize) -> Vec<f32> {
    let mut matrix = vec![0.0; output * input];
    for (i, Weights { first, values }) in weights(filter, input, output).iter().enumerate() {
        let row = &mut matrix[i * input + first..][..values.len()];
        row.iter_mut().zip(values).for_each(|(place, &weight)| *place = weight as f32);
    }
    matrix
}

/// Resizes `[B, H, W, C]` to `[B, height, width, C]` with [`Filter::BicubicAlignedCorners`].
pub fn resize_bicubic(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    resize(x, size, Filter::BicubicAlignedCorners)
}

/// Resizes `[B, H, W, C]` to `[B, height, width, C]`.
pub fn resize(x: Tensor<4>, [height, width]: [usize; 2], filter: Filter) -> Tensor<4> {
    let [batch, input_height, input_width, channels] = x.dims();
    let matrix = |input: usize, output: usize| {
        let values = resize_matrix(filter, input, output);
        Tensor::<2>::from_data(TensorData::new(values, [output, input]), &x.device()).unsqueeze()
    };
    let mut y = x.clone();
    if input_height != height {
        let rows = y.reshape([batch, input_height, input_width * channels]);
        let rows = matrix(input_height, height).matmul(rows);
        y = rows.reshape([batch, height, input_width, channels]);
    }
    if input_width != width {
        let columns = y.reshape([batch * height, input_width, channels]);
        y = matrix(input_width, width).matmul(columns).reshape([batch, height, width, channels]);
    }
    y
}

/// Makes pictures `[B, C, H, W]` as large as `size` (height, width): resizes them to cover it and cuts off the rest
/// on both sides. Pictures of that size stay as they are.
pub fn cover(image: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    crop(resize_to_cover(cut_thin(image, size), size, Filter::Bilinear), size)
}

/// The rows and the columns in the middle of a picture that may be far thinner than `height`x`width`: whole, it would be
/// resized to many times what is kept of it.
pub(crate) fn middle(
    [rows, columns]: [usize; 2],
    [height, width]: [usize; 2],
) -> [Range<usize>; 2] {
    const THIN: usize = 4;
    let middle = |side: usize, kept: usize| {
        let end = side.saturating_sub(THIN * kept.max(1)) / 2;
        end..side - end
    };
    [middle(rows, columns * height / width), middle(columns, rows * width / height)]
}

/// Cuts the ends off a picture that is far thinner than `size`. The middle stays where it is.
fn cut_thin(image: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [_, _, rows, columns] = image.dims();
    let [rows, columns] = middle([rows, columns], size);
    image.narrow(2, rows.start, rows.len()).narrow(3, columns.start, columns.len())
}

/// Resizes `[B, C, H, W]` so that it just covers `size` (height, width).
pub fn resize_to_cover(image: Tensor<4>, size: [usize; 2], filter: Filter) -> Tensor<4> {
    let [_, _, rows, columns] = image.dims();
    resize_planes(image, covering([rows, columns], size), filter)
}

/// The sides of a picture that just covers `height`x`width`; the side that stands out is rounded down, as torchvision
/// does.
fn covering([rows, columns]: [usize; 2], [height, width]: [usize; 2]) -> [usize; 2] {
    if columns * height >= rows * width {
        [height, columns * height / rows]
    } else {
        [rows * width / columns, width]
    }
}

/// A part of a picture in bytes.
///
/// It is resized with the weights alone that are not zero: as a tensor, and multiplied with whole matrices, a photo
/// would take gigabytes and seconds.
#[derive(Clone, Debug)]
pub(crate) struct Pixels<'a> {
    bytes: &'a [u8],
    channels: usize,
    /// Bytes of a row.
    stride: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<'a> Pixels<'a> {
    /// A whole picture: `channels` bytes a pixel, row by row.
    pub(crate) fn new(bytes: &'a [u8], [height, width]: [usize; 2], channels: usize) -> Self {
        let (rows, columns) = (0..height, 0..width);
        Self { bytes, channels, stride: width * channels, rows, columns }
    }

    /// As [`cover`] makes a tensor as large as `size`, `[1, C, height, width]` in `[0, 1]`.
    pub(crate) fn cover(self, size: [usize; 2], device: &Device) -> Tensor<4> {
        crop(self.cut_thin(size).resize_to_cover(size, Filter::Bilinear, device), size)
    }

    /// As [`resize_to_cover`] resizes a tensor.
    pub(crate) fn resize_to_cover(
        &self,
        size: [usize; 2],
        filter: Filter,
        device: &Device,
    ) -> Tensor<4> {
        let [height, width] = covering([self.rows.len(), self.columns.len()], size);
        let planes = TensorData::new(
            self.resize([height, width], filter),
            [1, self.channels, height, width],
        );
        Tensor::from_data(planes, device)
    }

    /// As [`cut_thin`] cuts a tensor.
    pub(crate) fn cut_thin(self, size: [usize; 2]) -> Self {
        let [rows, columns] = middle([self.rows.len(), self.columns.len()], size);
        let cut = |whole: Range<usize>, kept: Range<usize>| {
            whole.start + kept.start..whole.start + kept.end
        };
        Self { rows: cut(self.rows, rows), columns: cut(self.columns, columns), ..self }
    }

    /// The planes of the resized picture.
    fn resize(&self, [height, width]: [usize; 2], filter: Filter) -> Vec<f32> {
        let channels = self.channels;
        let [down, across] = [(self.rows.len(), height), (self.columns.len(), width)]
            .map(|(input, output)| weights(filter, input, output));
        let mut planes = vec![0.0; channels * height * width];
        let mut row = vec![0.0; channels * self.columns.len()];
        for (y, Weights { first, values }) in down.iter().enumerate() {
            row.fill(0.0);
            for (at, &weight) in (self.rows.start + first..).zip(values) {
                let start = at * self.stride + self.columns.start * channels;
                let bytes = &self.bytes[start..][..row.len()];
                let weight = weight as f32;
                row.iter_mut().zip(bytes).for_each(|(sum, &b)| *sum += weight * f32::from(b));
            }
            for (x, Weights { first, values }) in across.iter().enumerate() {
                for channel in 0..channels {
                    let places = row[first * channels + channel..].iter().step_by(channels);
                    let sum: f32 = places.zip(values).map(|(v, &weight)| v * weight as f32).sum();
                    planes[(channel * height + y) * width + x] = sum / 255.0;
                }
            }
        }
        planes
    }
}

/// Resizes `[B, C, H, W]` to `[B, C, height, width]`.
pub fn resize_planes(image: Tensor<4>, size: [usize; 2], filter: Filter) -> Tensor<4> {
    channels_first(resize(channels_last(image), size, filter))
}

/// The centre of `[B, C, H, W]`, offsets rounded half to even as torchvision does.
pub fn crop(image: Tensor<4>, [height, width]: [usize; 2]) -> Tensor<4> {
    let [_, _, rows, columns] = image.dims();
    let offset = |side: usize, cut: usize| ((side - cut) as f64 / 2.0).round_ties_even() as usize;
    image.narrow(2, offset(rows, height), height).narrow(3, offset(columns, width), width)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of weights sums to one, so that constants stay constants.
    #[test]
    fn constants_stay_constant() {
        for (input, output) in [(3, 8), (24, 16), (2, 1), (1, 4), (100, 79)] {
            for filter in [
                Filter::BicubicAlignedCorners,
                Filter::Bicubic,
                Filter::Bilinear,
                Filter::BilinearAlignedCorners,
            ] {
                for row in resize_matrix(filter, input, output).chunks(input) {
                    assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
                }
            }
        }
    }

    /// Halving with a triangle of radius 2 weighs the pixels 1/8, 3/8, 3/8, 1/8.
    #[test]
    fn halving_averages_four_pixels() {
        let row = &resize_matrix(Filter::Bilinear, 8, 4)[8..16];
        assert_eq!(row, [0.0, 0.125, 0.375, 0.375, 0.125, 0.0, 0.0, 0.0]);
    }

    /// Three pixels over five: the corners stay, between them every second is a mean.
    #[test]
    fn corners_are_aligned() {
        let matrix = resize_matrix(Filter::BilinearAlignedCorners, 3, 5);
        let rows: Vec<_> = matrix.chunks(3).collect();
        assert_eq!(rows[..3], [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]);
        assert_eq!(rows[3..], [[0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]);
        assert_eq!(
            resize_matrix(Filter::BilinearAlignedCorners, 5, 2)[5..],
            [0.0, 0.0, 0.0, 0.0, 1.0]
        );
    }

    /// Every filter, larger and smaller, wider and higher, whole pictures and thin ones.
    #[test]
    fn bytes_are_resized_as_tensors_are() {
        let device = Device::flex();
        for ([height, width], size) in [
            ([9, 16], [9, 16]),
            ([9, 16], [4, 5]),
            ([31, 7], [8, 8]),
            ([5, 6], [17, 40]),
            ([3, 200], [4, 4]),
            ([90, 2], [2, 3]),
        ] {
            for channels in [1, 3] {
                let bytes: Vec<u8> =
                    (0..height * width * channels).map(|i| (i * 89) as u8).collect();
                let values: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
                let shape = [1, height, width, channels];
                let tensor = Tensor::from_data(TensorData::new(values, shape), &device);
                let tensor: Tensor<4> = channels_first(tensor);
                let pixels = Pixels::new(&bytes, [height, width], channels);
                let tolerance = burn::tensor::Tolerance::<f32>::absolute(1e-6);
                let found = pixels.clone().cover(size, &device).into_data();
                let expected = cover(tensor.clone(), size).into_data();
                found.assert_approx_eq(&expected, tolerance);
                for filter in [Filter::Bicubic, Filter::Bilinear, Filter::BilinearAliased] {
                    let found = pixels.resize_to_cover(size, filter, &device).into_data();
                    let expected = resize_to_cover(tensor.clone(), size, filter).into_data();
                    found.assert_approx_eq(&expected, tolerance);
                }
            }
        }
    }

    /// A 2x4 picture whose middle half is ones covers a square of 2 with its middle, and one of 1x2
    /// by halving.
    #[test]
    fn covers_and_cuts_the_middle() {
        let device = Device::flex();
        let row = [0.0f32, 1.0, 1.0, 0.0];
        let image = Tensor::<4>::from_data([[[row, row]]], &device);
        let square = cover(image.clone(), [2, 2]).into_data();
        square.assert_eq(&TensorData::from([[[[1.0f32, 1.0], [1.0, 1.0]]]]), true);
        // Twenty times as thin as the square. What is left is four times as thin.
        let thin = image.clone().repeat_dim(3, 10);
        assert_eq!(cut_thin(thin.clone(), [2, 2]).dims(), [1, 1, 2, 8]);
        assert_eq!(cut_thin(thin.clone().swap_dims(2, 3), [2, 2]).dims(), [1, 1, 8, 2]);
        cover(thin, [2, 2]).into_data().assert_eq(&TensorData::from([[[[0.0f32; 2]; 2]]]), true);
        cover(image.clone(), [2, 4]).into_data().assert_eq(&image.clone().into_data(), true);
        assert_eq!(cover(image.clone(), [1, 2]).dims(), [1, 1, 1, 2]);
        assert_eq!(cover(image, [7, 3]).dims(), [1, 1, 7, 3]);
    }
}
