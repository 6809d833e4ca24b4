//! Antialiased resizing as two small matrices, `out = M_height · x · M_widthᵀ`.

use burn::prelude::*;

/// A resampling kernel and how the output grid lies over the input grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Keys' cubic (a = −1/2) with aligned corners: how Stage B fits the image embedding.
    BicubicAlignedCorners,
    /// The triangle kernel with aligned edges: how pictures are prepared for the compressor.
    Bilinear,
}

impl Filter {
    fn scale(self, input: usize, output: usize) -> f64 {
        match self {
            Self::BicubicAlignedCorners if output > 1 => {
                (input as f64 - 1.0) / (output as f64 - 1.0)
            }
            Self::BicubicAlignedCorners => 0.0,
            Self::Bilinear => input as f64 / output as f64,
        }
    }

    fn radius(self) -> f64 {
        match self {
            Self::BicubicAlignedCorners => 2.0,
            Self::Bilinear => 1.0,
        }
    }

    fn weight(self, distance: f64) -> f64 {
        let d = distance.abs();
        match self {
            Self::Bilinear => (1.0 - d).max(0.0),
            Self::BicubicAlignedCorners if d < 1.0 => (1.5 * d - 2.5) * d * d + 1.0,
            Self::BicubicAlignedCorners if d < 2.0 => ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0,
            Self::BicubicAlignedCorners => 0.0,
        }
    }
}

/// The `[output, input]` matrix that resizes one axis, row by row.
///
/// Aligned corners change the scale only, not the centres: `centre = scale·(i + ½)`.
///
/// Source: `_upsample_bicubic2d_aa` of PyTorch.
pub fn resize_matrix(filter: Filter, input: usize, output: usize) -> Vec<f32> {
    if input == output {
        return (0..input * input).map(|i| if i % (input + 1) == 0 { 1.0 } else { 0.0 }).collect();
    }
    let scale = filter.scale(input, output);
    let stretch = scale.max(1.0);
    let mut matrix = Vec::with_capacity(output * input);
    for i in 0..output {
        let centre = scale * (i as f64 + 0.5);
        let low = ((centre - filter.radius() * stretch + 0.5) as isize).max(0) as usize;
        let high = ((centre + filter.radius() * stretch + 0.5) as usize).min(input);
        let weight = |j: usize| match (low..high).contains(&j) {
            true => filter.weight((j as f64 - centre + 0.5) / stretch),
            false => 0.0,
        };
        let total: f64 = (0..input).map(weight).sum();
        matrix.extend((0..input).map(|j| (weight(j) / total) as f32));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of weights sums to one, so that constants stay constants.
    #[test]
    fn constants_stay_constant() {
        for (input, output) in [(3, 8), (24, 16), (2, 1), (1, 4), (100, 79)] {
            for filter in [Filter::BicubicAlignedCorners, Filter::Bilinear] {
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
}
