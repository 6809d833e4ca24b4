//! Files with several pictures: animations and documents.

use std::io::Cursor;

use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, ImageFormat, ImageResult};

/// Whether the file of a picture that can be read has more frames or pages.
pub(super) fn has_several(format: ImageFormat, bytes: &[u8]) -> bool {
    let reader = Cursor::new(bytes);
    let found: ImageResult<bool> = match format {
        ImageFormat::Png => PngDecoder::new(reader).and_then(|decoder| decoder.is_apng()),
        ImageFormat::WebP => WebPDecoder::new(reader).map(|decoder| decoder.has_animation()),
        ImageFormat::Gif => {
            let frames = GifDecoder::new(reader).map(AnimationDecoder::into_frames);
            frames.map(|mut frames| frames.nth(1).is_some_and(|frame| frame.is_ok()))
        }
        ImageFormat::Tiff => return has_pages(bytes).unwrap_or(false),
        _ => Ok(false),
    };
    found.unwrap_or(false)
}

/// Whether the first directory of a TIFF file names a second one; `None` where it is cut off.
///
/// Source: TIFF 6.0, section 2.
fn has_pages(bytes: &[u8]) -> Option<bool> {
    let is_little = bytes.starts_with(b"II");
    let number = |at: usize, length: usize| {
        let digits = bytes.get(at..at.checked_add(length)?)?;
        let add = |sum: usize, &digit: &u8| sum << 8 | usize::from(digit);
        Some(if is_little { digits.iter().rev().fold(0, add) } else { digits.iter().fold(0, add) })
    };
    let directory = number(4, 4)?;
    let entries = number(directory, 2)?;
    Some(number(directory + 2 + 12 * entries, 4)? != 0)
}

#[cfg(test)]
mod tests {
    use image::codecs::gif::GifEncoder;
    use image::{Frame, RgbaImage};

    use super::*;

    #[test]
    fn two_frames_are_an_animation() {
        let gif = |frames: usize| {
            let mut bytes = Vec::new();
            let frame = || Frame::new(RgbaImage::new(2, 2));
            GifEncoder::new(&mut bytes).encode_frames((0..frames).map(|_| frame())).unwrap();
            bytes
        };
        assert!(!has_several(ImageFormat::Gif, &gif(1)));
        assert!(has_several(ImageFormat::Gif, &gif(2)));
        assert!(!has_several(ImageFormat::Jpeg, &[]));
    }

    /// A directory of one entry at byte 8, and where the next one is.
    #[test]
    fn a_second_directory_is_a_second_page() {
        let tiff = |next: u8| {
            let mut bytes = b"II\x2a\0\x08\0\0\0\x01\0".to_vec();
            bytes.extend([0; 12]);
            bytes.extend([next, 0, 0, 0]);
            bytes
        };
        assert!(has_several(ImageFormat::Tiff, &tiff(64)));
        assert!(!has_several(ImageFormat::Tiff, &tiff(0)));
        assert!(!has_several(ImageFormat::Tiff, &tiff(64)[..20]));
    }
}
