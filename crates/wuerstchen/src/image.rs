//! Pictures as bytes.

use burn::prelude::*;

use crate::options::OptionsError;
use crate::resize::Pixels;

/// An RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Three bytes a pixel, row by row from the top left.
    pub rgb: Vec<u8>,
}

impl Image {
    /// The pictures of a batch `[B, 3, H, W]` in `[0, 1]`. Values outside are clamped; halves are rounded to even,
    /// as PIL does.
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
            let rgb = (0..area).flat_map(|p| (0..3).map(move |c| to_byte(value(p, c)))).collect();
            Self { width, height, rgb }
        };
        (0..batch).map(image).collect()
    }

    /// The picture on `device`, `[1, 3, H, W]` in `[0, 1]`.
    pub fn to_tensor(&self, device: &Device) -> Tensor<4> {
        let shape = [1, 3, self.height, self.width];
        Tensor::from_data(TensorData::new(self.to_planes(), shape), device)
    }

    /// All of its bytes.
    pub(crate) fn pixels(&self) -> Pixels<'_> {
        Pixels::new(&self.rgb, [self.height, self.width], 3)
    }

    /// Peak signal-to-noise ratio to a picture of the same size, in decibels; infinite for equal ones.
    ///
    /// # Panics
    ///
    /// Panics if the sizes differ.
    pub fn psnr(&self, other: &Self) -> f64 {
        let size = |image: &Self| [image.width, image.height];
        assert_eq!(size(self), size(other), "pictures of one size are compared");
        let squares =
            self.rgb.iter().zip(&other.rgb).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2));
        let mean = squares.sum::<f64>() / self.rgb.len() as f64;
        10.0 * (255.0 * 255.0 / mean).log10()
    }

    /// `painted` where the mask is white, this picture where it is black, a mixture between.
    ///
    /// # Panics
    ///
    /// Panics if the sizes differ.
    pub fn with_painted(&self, painted: &Self, mask: &Mask) -> Self {
        let same = [painted.width, mask.width] == [self.width; 2]
            && [painted.height, mask.height] == [self.height; 2];
        assert!(same, "picture, painting and mask are of one size");
        let mix = |i: usize| {
            let [kept, painted] = [self.rgb[i], painted.rgb[i]].map(f32::from);
            let share = f32::from(mask.values[i / 3]) / 255.0;
            (kept + (painted - kept) * share).round() as u8
        };
        Self { rgb: (0..self.rgb.len()).map(mix).collect(), ..*self }
    }

    /// Pictures of one size side by side, `columns` in a row from the top left; what is left over is white.
    ///
    /// # Panics
    ///
    /// Panics if there are none, if their sizes differ, or if `columns` is 0.
    pub fn grid(images: &[Self], columns: usize) -> Self {
        let [width, height] = [images[0].width, images[0].height];
        let rows = images.len().div_ceil(columns);
        let mut grid = Self {
            width: width * columns,
            height: height * rows,
            rgb: vec![u8::MAX; 3 * width * columns * height * rows],
        };
        for (i, image) in images.iter().enumerate() {
            assert_eq!([image.width, image.height], [width, height], "pictures of a grid");
            let (left, top) = (i % columns * width, i / columns * height);
            for (y, row) in image.rgb.chunks(3 * width).enumerate() {
                let start = 3 * ((top + y) * grid.width + left);
                grid.rgb[start..start + row.len()].copy_from_slice(row);
            }
        }
        grid
    }

    /// The planes of the picture, `3·H·W` values in `[0, 1]`.
    pub fn to_planes(&self) -> Vec<f32> {
        let area = self.width * self.height;
        let value = |i: usize| f32::from(self.rgb[i % area * 3 + i / area]) / 255.0;
        (0..3 * area).map(value).collect()
    }
}

/// Puts strips `[B, C, h, W]`, from top to bottom, on top of each other.
///
/// # Panics
///
/// Panics if there are none, they are not f32, or not of one width.
pub(crate) fn stack_rows(strips: &[TensorData]) -> TensorData {
    let [batch, channels, _, width] = strips[0].shape().dims();
    let sides = strips.iter().map(|strip| strip.shape().dims::<4>()[2] * width);
    let sizes: Vec<usize> = sides.collect();
    let values: Vec<&[f32]> =
        strips.iter().map(|strip| strip.as_slice().expect("strips are f32")).collect();
    let mut stacked = Vec::with_capacity(batch * channels * sizes.iter().sum::<usize>());
    for plane in 0..batch * channels {
        for (values, &size) in values.iter().zip(&sizes) {
            stacked.extend_from_slice(&values[plane * size..][..size]);
        }
    }
    let height = sizes.iter().sum::<usize>() / width;
    TensorData::new(stacked, [batch, channels, height, width])
}

/// Halves are rounded to even, as PIL does.
fn to_byte(value: f32) -> u8 {
    (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// The part of a picture that is to be painted anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// A byte a pixel, row by row from the top left: 255 paints, 0 keeps.
    pub values: Vec<u8>,
}

/// Least value of a pixel that is painted where a stage can only paint it or keep it.
const PAINTED: u8 = 128;

impl Mask {
    /// The mask of `[1, 1, H, W]` in `[0, 1]`.
    ///
    /// # Panics
    ///
    /// Panics if `values` is not of that shape or not f32.
    pub fn from_data(values: &TensorData) -> Self {
        let &[1, 1, height, width] = &values.shape()[..] else {
            panic!("expected [1, 1, H, W], got {:?}", values.shape())
        };
        let bytes = values.as_slice::<f32>().expect("masks are f32").iter().map(|&v| to_byte(v));
        Self { width, height, values: bytes.collect() }
    }

    /// All of its bytes.
    pub(crate) fn pixels(&self) -> Pixels<'_> {
        Pixels::new(&self.values, [self.height, self.width], 1)
    }

    /// Fails if the mask is not of the size of its picture; `field` is the input that the mask was given as.
    pub(crate) fn check(&self, image: &Image, field: &'static str) -> Result<(), OptionsError> {
        let (expected, found) = ([image.width, image.height], [self.width, self.height]);
        if expected == found {
            return Ok(());
        }
        let [expected, found] =
            [expected, found].map(|[width, height]| format!("{width} x {height}"));
        Err(OptionsError::Mask { field, expected, found })
    }

    /// Which cells of a grid laid over the picture have a pixel to paint: 1 there, else 0, row by row.
    pub fn cells(&self, [rows, columns]: [usize; 2]) -> Vec<f32> {
        let mut cells = vec![0.0; rows * columns];
        let span = |cell: usize, cells: usize, side: usize| {
            cell * side / cells..((cell + 1) * side).div_ceil(cells)
        };
        for (i, cell) in cells.iter_mut().enumerate() {
            let across = span(i % columns, columns, self.width);
            let painted = span(i / columns, rows, self.height).any(|y| {
                let row = &self.values[y * self.width..][..self.width];
                row[across.clone()].iter().any(|&value| value >= PAINTED)
            });
            *cell = if painted { 1.0 } else { 0.0 };
        }
        cells
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

    #[test]
    fn strips_are_stacked_plane_by_plane() {
        let upper = TensorData::from([[[[1.0f32, 2.0]], [[5.0, 6.0]]]]);
        let lower = TensorData::from([[[[3.0f32, 4.0], [0.0, 0.0]], [[7.0, 8.0], [9.0, 9.0]]]]);
        let expected = TensorData::from([[
            [[1.0f32, 2.0], [3.0, 4.0], [0.0, 0.0]],
            [[5.0, 6.0], [7.0, 8.0], [9.0, 9.0]],
        ]]);
        stack_rows(&[upper, lower]).assert_eq(&expected, true);
    }

    /// One of six bytes differs by 15: the mean square is 225/6.
    #[test]
    fn psnr_is_in_decibels() {
        let image = Image { width: 2, height: 1, rgb: vec![0, 128, 255, 1, 2, 3] };
        let other = Image { rgb: vec![15, 128, 255, 1, 2, 3], ..image.clone() };
        assert!((image.psnr(&other) - 10.0 * (65025.0f64 / 37.5).log10()).abs() < 1e-9);
        assert_eq!(image.psnr(&image), f64::INFINITY);
    }

    #[test]
    fn only_the_mask_is_painted() {
        let image = Image { width: 3, height: 1, rgb: vec![10, 20, 30, 10, 20, 30, 10, 20, 30] };
        let painted = Image { rgb: vec![110; 9], ..image };
        let mask = Mask { width: 3, height: 1, values: vec![0, 51, 255] };
        let mixed = image.with_painted(&painted, &mask).rgb;
        assert_eq!(mixed, [10, 20, 30, 30, 38, 46, 110, 110, 110]);
    }

    /// Five pixels in two cells: the middle one belongs to both.
    #[test]
    fn cells_with_a_painted_pixel_are_painted() {
        let cells =
            |values: [u8; 5]| Mask { width: 5, height: 1, values: values.to_vec() }.cells([1, 2]);
        assert_eq!(cells([0, 0, 0, 0, 128]), [0.0, 1.0]);
        assert_eq!(cells([0, 0, 255, 0, 0]), [1.0, 1.0]);
        assert_eq!(cells([127; 5]), [0.0, 0.0]);
        let tall = Mask { width: 1, height: 4, values: vec![0, 0, 0, 255] };
        assert_eq!(tall.cells([2, 1]), [0.0, 1.0]);
    }
}
