//! Files with several pictures: animations and documents.

use std::io::Cursor;

use image::ImageFormat;
use image::codecs::webp::WebPDecoder;

use super::ifd::Directory;
use super::png;

/// Whether the file of a picture that can be read has more frames or pages. Unpacks none of them: they may be larger
/// than the first one, by any amount.
pub(super) fn has_several(format: ImageFormat, bytes: &[u8]) -> bool {
    match format {
        ImageFormat::Png => png::is_animated(bytes),
        ImageFormat::WebP => {
            WebPDecoder::new(Cursor::new(bytes)).is_ok_and(|decoder| decoder.has_animation())
        }
        ImageFormat::Gif => has_two_pictures(bytes).unwrap_or(false),
        ImageFormat::Tiff => Directory::first(bytes).is_some_and(|first| first.has_next()),
        _ => false,
    }
}

/// Whether a GIF has a second picture, whatever that is.
///
/// Source: GIF89a, sections 15 to 26.
fn has_two_pictures(bytes: &[u8]) -> Option<bool> {
    const EXTENSION: u8 = 0x21;
    const PICTURE: u8 = 0x2c;
    let colours = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    // Pieces of up to 255 bytes, the last of which is empty.
    let after_pieces = |mut at: usize| loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at);
        }
    };
    let mut at = 13 + colours(*bytes.get(10)?);
    let mut pictures = 0;
    loop {
        match *bytes.get(at)? {
            EXTENSION => at = after_pieces(at + 2)?,
            PICTURE if pictures == 1 => return Some(true),
            PICTURE => {
                pictures += 1;
                at = after_pieces(at + 11 + colours(*bytes.get(at + 9)?))?;
            }
            _ => return Some(false),
        }
    }
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
        let two = gif(2);
        assert!(has_several(ImageFormat::Gif, &two));
        assert!(!has_several(ImageFormat::Gif, &two[..40]));
        assert!(!has_several(ImageFormat::Jpeg, &[]));
    }
}
