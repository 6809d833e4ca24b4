//! Pictures as bytes.

use burn::prelude::*;

/// An RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Three bytes a pixel, row by row from the top left.
    pub rgb: Vec<u8>,
}

impl Image {
    /// Peak signal-to-noise ratio against a picture of the same size, in decibels; infinite where they
    /// are equal.
    ///
    /// # Panics
    ///
    /// Panics if the sizes differ.
    pub fn psnr(&self, other: &Self) -> f64 {
        assert_eq!((self.width, self.height), (other.width, other.height));
        let squares =
            self.rgb.iter().zip(&other.rgb).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
        let mean = squares.sum::<f64>() / self.rgb.len() as f64;
        10.0 * (f64::from(u8::MAX).powi(2) / mean).log10()
    }

    /// The pictures of a batch `[B, 3, H, W]` in `[0, 1]`; what lies outside is clamped, halves are
    /// rounded to even as PIL does.
    ///
    /// # Panics
    ///
    /// Panics if `values` is not of the shape `[B, 3, H, W]` or not f32.
    pub fn from_data(values: &TensorData) -> Vec<Self> {
        let &[batch, 3, height, width] = &values.shape()[..] else {
            panic!("expected [B, 3, H, W], got {:?}", values.shape())
        };
        let values = values.as_slice::<f32>().expect("pictures are f32");
        let area = height * width;
        let image = |i: usize| {
            let planes = &values[i * 3 * area..][..3 * area];
            let value = |pixel: usize, channel: usize| planes[channel * area + pixel];
            let byte = |v: f32| (v.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
            let rgb = (0..area).flat_map(|p| (0..3).map(move |c| byte(value(p, c)))).collect();
            Self { width, height, rgb }
        };
        (0..batch).map(image).collect()
    }

    /// The planes of the picture, `3·H·W` values in `[0, 1]`.
    pub fn to_planes(&self) -> Vec<f32> {
        let area = self.width * self.height;
        let value = |i: usize| f32::from(self.rgb[i % area * 3 + i / area]) / 255.0;
        (0..3 * area).map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_and_bytes_agree() {
        let image = Image { width: 2, height: 1, rgb: vec![0, 128, 255, 1, 2, 3] };
        let data = TensorData::new(image.to_planes(), [1, 3, 1, 2]);
        assert_eq!(Image::from_data(&data), [image]);
    }

    /// 0.5·255 = 127.5, halfway: rounded to the even 128.
    #[test]
    fn clamps_and_rounds_half_to_even() {
        let data = TensorData::new(vec![-1.0f32, 0.5, 2.0], [1, 3, 1, 1]);
        assert_eq!(Image::from_data(&data)[0].rgb, [0, 128, 255]);
    }
}
