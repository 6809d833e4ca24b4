//! What TIFF files say about their pixels that the decoder does not act on.
//!
//! Source: TIFF 6.0, sections 8 (`FillOrder`), 18 (`ExtraSamples`) and 19 (`SampleFormat`).

use anyhow::{Result, bail};
use image::DynamicImage;

use super::ifd::Directory;

/// Numbers of tags.
const BITS_PER_SAMPLE: usize = 258;
const FILL_ORDER: usize = 266;
const EXTRA_SAMPLES: usize = 338;
const SAMPLE_FORMAT: usize = 339;
const ICC_PROFILE: usize = 34675;

/// The value of `ExtraSamples` where colours are multiplied by their alpha.
const ASSOCIATED_ALPHA: usize = 1;

/// The value of `SampleFormat` for fractions.
const FRACTIONS: usize = 3;

/// Fails where the decoder would read other values than the file has: where the bits of every byte are in the reverse
/// order, and where whole numbers have 32 bits, which it takes for fractions.
pub(super) fn check_values(bytes: &[u8]) -> Result<()> {
    if let Some(order) = first_value(bytes, FILL_ORDER).filter(|order| *order != 1) {
        bail!("expected a TIFF with the highest bit of a byte first, found FillOrder {order}");
    }
    let bits = first_value(bytes, BITS_PER_SAMPLE).unwrap_or(1);
    if bits > 16 && first_value(bytes, SAMPLE_FORMAT) != Some(FRACTIONS) {
        bail!("expected fractions, or whole numbers of at most 16 bits, found some of {bits} bits");
    }
    Ok(())
}

/// The colour profile. `image` finds none in TIFF files.
pub(super) fn profile(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(Directory::first(bytes)?.data(ICC_PROFILE)?.to_vec())
}

/// Whether the colours are multiplied by their alpha.
pub(super) fn are_multiplied(bytes: &[u8]) -> bool {
    first_value(bytes, EXTRA_SAMPLES) == Some(ASSOCIATED_ALPHA)
}

/// The first number of a tag of the first picture; `None` if there is none, or if the file cannot be read, which the
/// decoder reports.
fn first_value(bytes: &[u8], tag: usize) -> Option<usize> {
    Directory::first(bytes)?.value(tag)
}

/// The colours before they were multiplied by their alpha, in 16 bits.
pub(super) fn divided(pixels: DynamicImage) -> DynamicImage {
    if !pixels.color().has_alpha() {
        return pixels;
    }
    let mut pixels = pixels.into_rgba16();
    for pixel in pixels.pixels_mut() {
        let [colours @ .., alpha] = &mut pixel.0;
        let alpha = u32::from(*alpha);
        for colour in colours.iter_mut().filter(|_| alpha > 0) {
            let whole = (u32::from(*colour) * u32::from(u16::MAX) + alpha / 2) / alpha;
            *colour = u16::try_from(whole).unwrap_or(u16::MAX);
        }
    }
    pixels.into()
}

/// Fails where colours are fractions outside of 0 to 1, which would become white or black.
pub(super) fn check_fractions(pixels: &DynamicImage) -> Result<()> {
    let values: &[f32] = match pixels {
        DynamicImage::ImageRgb32F(pixels) => pixels.as_raw(),
        DynamicImage::ImageRgba32F(pixels) => pixels.as_raw(),
        _ => return Ok(()),
    };
    let unfit = values.iter().find(|value| !(-0.01..=1.01).contains(*value));
    match unfit {
        Some(value) => bail!("expected fractions from 0 to 1, found {value}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The decoder takes whole numbers of 32 bits for fractions, unless a tag says what they are.
    #[test]
    fn whole_numbers_of_32_bits_are_refused() {
        use std::io::Cursor;
        use tiff::encoder::TiffEncoder;
        use tiff::encoder::colortype::{RGB8, RGB32, RGB32Float};

        fn encoded<C: tiff::encoder::colortype::ColorType<Inner: Copy>>(value: C::Inner) -> Vec<u8>
        where
            [C::Inner]: tiff::encoder::TiffValue,
        {
            let mut bytes = Cursor::new(Vec::new());
            let mut encoder = TiffEncoder::new(&mut bytes).unwrap();
            encoder.write_image::<C>(1, 1, &[value; 3]).unwrap();
            bytes.into_inner()
        }
        assert!(check_values(&encoded::<RGB8>(9)).is_ok());
        assert!(check_values(&encoded::<RGB32Float>(0.5)).is_ok());
        let error = check_values(&encoded::<RGB32>(9)).unwrap_err().to_string();
        assert_eq!(
            error,
            "expected fractions, or whole numbers of at most 16 bits, found some of 32 bits"
        );
    }

    /// Of half a red on half an alpha the red is whole. A colour above its alpha is cut, one without alpha stays.
    #[test]
    fn colours_are_divided_by_their_alpha() {
        let pixel = |rgba| image::RgbaImage::from_pixel(1, 1, image::Rgba(rgba)).into();
        let read = |rgba| divided(pixel(rgba)).into_rgba8().get_pixel(0, 0).0;
        assert_eq!(read([128, 64, 0, 128]), [255, 128, 0, 128]);
        assert_eq!(read([9, 0, 0, 3]), [255, 0, 0, 3]);
        assert_eq!(read([9, 8, 7, 0]), [9, 8, 7, 0]);
    }
}
