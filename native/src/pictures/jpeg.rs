//! Whether a JPEG file is whole: the decoder paints what is missing of one grey and says nothing.

use anyhow::{Result, bail};

/// Walks over the segments of a JPEG file to the marker of its end.
///
/// Source: ITU-T T.81, annex B.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let mut at = 0;
    while let Some(&[first, marker]) = bytes.get(at..at + 2) {
        match (first, marker) {
            // Coded pixels, a byte that fills up, or what decoders pass over.
            (0..0xff, _) | (0xff, 0xff) => at += 1,
            // A coded 0xff, a restart, the beginning, or a marker for private use.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, 0xd9) => return Ok(()),
            (0xff, 0x02..=0xbf) => {
                bail!("expected a whole JPEG file, found the unknown marker 0x{marker:02x} in it")
            }
            (0xff, 0xc0..=0xfe) => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { break };
                at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
    bail!("expected a whole JPEG file, found one of {} bytes that lacks its end", bytes.len())
}

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;
    use image::{ExtendedColorType, ImageEncoder};

    use super::*;

    fn noise() -> Vec<u8> {
        let pixels: Vec<u8> = (0..64 * 64 * 3u32).map(|i| (i * i % 251) as u8).collect();
        let mut bytes = Vec::new();
        let encoder = JpegEncoder::new(&mut bytes);
        encoder.write_image(&pixels, 64, 64, ExtendedColorType::Rgb8).unwrap();
        bytes
    }

    #[test]
    fn every_cut_is_noticed() {
        let whole = noise();
        check(&whole).unwrap();
        assert!((0..whole.len()).all(|length| check(&whole[..length]).is_err()));
    }

    /// Telephones put a film or a second picture behind the end.
    #[test]
    fn what_follows_the_end_does_not_matter() {
        let mut followed = noise();
        followed.extend([0xff, 0x02, 0, 0]);
        check(&followed).unwrap();
    }

    #[test]
    fn zeros_in_place_of_the_end_are_noticed() {
        let mut zeros = noise();
        let middle = zeros.len() / 2;
        zeros[middle..].fill(0);
        assert!(check(&zeros).unwrap_err().to_string().contains("lacks its end"));
    }
}
