//! Checks that JPEG files are whole: where pixels are missing, `image` paints one colour without an error.

use std::io::Cursor;

use anyhow::{Context, Result, bail};
use image::{DynamicImage, GrayImage, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::colour::Inks;

/// Bits of 1 that replace the end marker after the coded pixels. No code of JPEG consists of ones alone, so a decoder
/// that lacks pixels fails at them, while it would take the end marker for pixels of one colour.
const NO_CODE: [u8; 64] = {
    let mut bytes = [0xff; 64];
    let mut i = 1;
    while i < bytes.len() {
        bytes[i] = 0;
        i += 2;
    }
    bytes
};

/// A JPEG file that ends as it should.
pub(super) struct Jpeg<'a> {
    /// The file up to its end marker.
    bytes: &'a [u8],
    is_progressive: bool,
    /// Number of scans over the pixels.
    scans: usize,
}

impl<'a> Jpeg<'a> {
    /// Walks over the segments of a JPEG file to the marker of its end.
    ///
    /// Source: ITU-T T.81, annex B.
    pub(super) fn find_end(bytes: &'a [u8]) -> Result<Self> {
        let (mut at, mut is_progressive, mut scans) = (0, false, 0);
        while let Some(&[first, marker]) = bytes.get(at..at + 2) {
            match (first, marker) {
                // Coded pixels, a fill byte, or a byte that decoders ignore.
                (0..0xff, _) | (0xff, 0xff) => at += 1,
                // A coded 0xff, a restart marker, the start of the image, or a marker for private use.
                (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
                (0xff, 0xd9) => return Ok(Self { bytes: &bytes[..at], is_progressive, scans }),
                (0xff, 0x02..=0xbf) => bail!(
                    "expected a whole JPEG file, found the unknown marker 0x{marker:02x} in it"
                ),
                (0xff, 0xc0..=0xfe) => {
                    is_progressive |= marker == 0xc2;
                    scans += usize::from(marker == 0xda);
                    let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { break };
                    at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
                }
            }
        }
        bail!("expected a whole JPEG file, found one of {} bytes that lacks its end", bytes.len())
    }

    /// The pixels, and whether the file has them in CMYK: then they are in sRGB, by the profile if it can be used. `None`
    /// where the headers have oddities that only `image` accepts.
    ///
    /// # Errors
    ///
    /// Some coded pixels are missing, or are damaged so that the decoder cannot go on.
    pub(super) fn decode(&self, profile: Option<&[u8]>) -> Result<Option<(DynamicImage, bool)>> {
        let mut bytes = self.bytes.to_vec();
        // The decoder needs a marker right after the first scan of a progressive file.
        if !self.is_progressive || self.scans > 1 {
            bytes.extend(NO_CODE);
        }
        bytes.extend([0xff, 0xd9]);
        let options = DecoderOptions::default()
            .set_strict_mode(true)
            .set_max_width(usize::MAX)
            .set_max_height(usize::MAX);
        let mut decoder = JpegDecoder::new_with_options(Cursor::new(&bytes), options);
        let headers = decoder.decode_headers();
        let (Ok(()), Some((width, height)), Some(space)) =
            (headers, decoder.dimensions(), decoder.input_colorspace())
        else {
            return Ok(None);
        };
        let is_grey = space == ColorSpace::Luma;
        let is_cmyk = matches!(space, ColorSpace::CMYK | ColorSpace::YCCK);
        let inks = profile.filter(|_| is_cmyk).and_then(Inks::of);
        let decoded = match (is_grey, &inks) {
            (true, _) => ColorSpace::Luma,
            (false, None) => ColorSpace::RGB,
            (false, Some(_)) => space,
        };
        decoder.set_options(options.jpeg_set_out_colorspace(decoded));
        let pixels = decoder.decode().context("expected a whole JPEG file, found a damaged one")?;
        let pixels = match inks {
            Some(inks) => {
                let colours = inks.colours(&inks_of(pixels, space));
                colours.context("cannot convert the colours of print by their profile")?
            }
            None => pixels,
        };
        let (width, height) = (u32::try_from(width)?, u32::try_from(height)?);
        let pixels = if is_grey {
            GrayImage::from_raw(width, height, pixels).map(DynamicImage::from)
        } else {
            RgbImage::from_raw(width, height, pixels).map(DynamicImage::from)
        };
        Ok(pixels.map(|pixels| (pixels, is_cmyk)))
    }
}

/// The inks of decoded pixels, from 0 for none to 255. Programs write them as Adobe's do, inverted.
///
/// Source: Adobe, "Supporting the DCT filters in PostScript level 2" (technical note 5116), section 18.
fn inks_of(mut pixels: Vec<u8>, space: ColorSpace) -> Vec<u8> {
    for pixel in pixels.as_chunks_mut::<4>().0 {
        let [first, second, third, black] = pixel;
        if space == ColorSpace::YCCK {
            let (y, cb, cr) =
                (f32::from(*first), f32::from(*second) - 128.0, f32::from(*third) - 128.0);
            // `as` keeps within 0 to 255.
            let red = y + 1.402 * cr;
            let green = y - 0.344_136 * cb - 0.714_136 * cr;
            let blue = y + 1.772 * cb;
            [*first, *second, *third] = [red, green, blue].map(|value| value.round() as u8);
        } else {
            [*first, *second, *third] = [*first, *second, *third].map(|value| 255 - value);
        }
        *black = 255 - *black;
    }
    pixels
}

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;
    use image::{ExtendedColorType, ImageEncoder};

    use super::*;

    fn encoded(pixels: &[u8], colour: ExtendedColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        JpegEncoder::new(&mut bytes).write_image(pixels, 64, 64, colour).unwrap();
        bytes
    }

    fn noise() -> Vec<u8> {
        let pixels: Vec<u8> = (0..64 * 64 * 3u32).map(|i| (i * i % 251) as u8).collect();
        encoded(&pixels, ExtendedColorType::Rgb8)
    }

    fn error(bytes: &[u8]) -> String {
        Jpeg::find_end(bytes).err().expect("refused").to_string()
    }

    #[test]
    fn every_cut_is_noticed() {
        let whole = noise();
        Jpeg::find_end(&whole).unwrap();
        assert!((0..whole.len()).all(|length| Jpeg::find_end(&whole[..length]).is_err()));
    }

    /// Telephones put a film or a second picture after the end.
    #[test]
    fn what_follows_the_end_does_not_matter() {
        let mut followed = noise();
        followed.extend([0xff, 0x02, 0, 0]);
        Jpeg::find_end(&followed).unwrap();
    }

    #[test]
    fn zeros_in_place_of_the_end_are_noticed() {
        let mut zeros = noise();
        let middle = zeros.len() / 2;
        zeros[middle..].fill(0);
        assert!(error(&zeros).contains("lacks its end"));
    }

    /// As the decoder of `image` reads it, also where a row of pixels takes a few bits.
    #[test]
    fn whole_files_are_read() {
        let grey: Vec<u8> = (0..64 * 64u32).map(|i| (i * i % 251) as u8).collect();
        for whole in [
            noise(),
            encoded(&grey, ExtendedColorType::L8),
            encoded(&[128; 64 * 64 * 3], ExtendedColorType::Rgb8),
            encoded(&[0; 64 * 64], ExtendedColorType::L8),
        ] {
            let expected = image::load_from_memory(&whole).unwrap();
            assert_eq!(
                Jpeg::find_end(&whole).unwrap().decode(None).unwrap(),
                Some((expected, false))
            );
        }
    }

    /// Eight mixtures of inks, with a profile whose inks are dull; and a light grey in YCCK with the same profile. The
    /// expected colours are LittleCMS's (Pillow 13, `ImageCms`).
    #[test]
    fn colours_of_print_follow_their_profile() {
        let cmyk = include_bytes!("../../tests/pictures_of_others/cmyk-profile.jpg");
        let ycck = include_bytes!("../../tests/pictures_of_others/ycck.jpg");
        let read = |bytes: &[u8]| {
            let picture = crate::pictures::with_bytes(bytes, |picture| picture.on(255)).unwrap();
            move |x, y| picture.get_pixel(x, y).0
        };
        let assert_near = |found: [u8; 3], expected: [u8; 3]| {
            let differ = |(a, b): (&u8, u8)| a.abs_diff(b) > 10;
            assert!(!found.iter().zip(expected).any(differ), "{found:?} {expected:?}");
        };
        let expected = [
            [[232, 232, 233], [0, 194, 242], [247, 118, 178], [238, 218, 79]],
            [[219, 125, 90], [127, 134, 140], [138, 155, 174], [116, 98, 184]],
        ];
        let pixel = read(cmyk);
        for (row, colours) in (0u32..).zip(expected) {
            for (column, colour) in (0u32..).zip(colours) {
                assert_near(pixel(8 * column + 4, 8 * row + 4), colour);
            }
        }
        assert_near(read(ycck)(9, 9), [217, 217, 217]);
        let start = cmyk.windows(2).position(|bytes| bytes == [0xff, 0xe2]).unwrap();
        let length = usize::from(u16::from_be_bytes([cmyk[start + 2], cmyk[start + 3]]));
        let with_profile = [&ycck[..2], &cmyk[start..start + 2 + length], &ycck[2..]].concat();
        assert_near(read(&with_profile)(9, 9), [216, 212, 210]);
    }

    /// The file ends as it should, but not all of its pixels are coded.
    #[test]
    fn missing_pixels_are_noticed() {
        let whole = noise();
        let start = whole.windows(2).position(|bytes| bytes == [0xff, 0xda]).unwrap() + 14;
        for from in (start..whole.len() - 8).filter(|&from| whole[from - 1] != 0xff) {
            let mut cut = whole.clone();
            cut.drain(from..whole.len() - 2);
            let error = Jpeg::find_end(&cut).unwrap().decode(None).unwrap_err().to_string();
            assert_eq!(error, "expected a whole JPEG file, found a damaged one", "{from}");
        }
    }
}
