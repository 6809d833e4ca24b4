//! Pictures that move.

use std::io::Cursor;

use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, ImageFormat, ImageResult};

/// Whether a picture that can be read has more than one frame.
pub(super) fn is_animated(format: ImageFormat, bytes: &[u8]) -> bool {
    let reader = Cursor::new(bytes);
    let found: ImageResult<bool> = match format {
        ImageFormat::Png => PngDecoder::new(reader).and_then(|decoder| decoder.is_apng()),
        ImageFormat::WebP => WebPDecoder::new(reader).map(|decoder| decoder.has_animation()),
        ImageFormat::Gif => {
            GifDecoder::new(reader).map(|decoder| decoder.into_frames().nth(1).is_some())
        }
        _ => Ok(false),
    };
    found.unwrap_or(false)
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
        assert!(!is_animated(ImageFormat::Gif, &gif(1)));
        assert!(is_animated(ImageFormat::Gif, &gif(2)));
        assert!(!is_animated(ImageFormat::Jpeg, &[]));
    }
}
