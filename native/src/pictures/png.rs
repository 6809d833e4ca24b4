//! What PNG files have besides their pixels.
//!
//! Source: PNG 3, sections 5.3 and 11.3; for EXIF data as text, ImageMagick's `coders/png.c`.

use std::borrow::Cow;
use std::io::Read;

use anyhow::{Result, bail};
use flate2::read::ZlibDecoder;

/// Most bytes of a colour profile, or of EXIF data as text, that are unpacked.
const MOST_UNPACKED: u64 = 16 << 20;

/// The key of EXIF data that older programs write as a text of hexadecimal digits.
const RAW_EXIF: &[u8] = b"Raw profile type exif\0";

/// The chunks of a file: their types and contents. They end where the file is cut off.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = bytes.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (kind, after) = after.split_at_checked(4)?;
        let (data, after) = after.split_at_checked(length)?;
        rest = after.get(4..).unwrap_or_default();
        Some((kind, data))
    })
}

/// Whether the file is an animation.
pub(super) fn is_animated(bytes: &[u8]) -> bool {
    chunks(bytes).take_while(|(kind, _)| *kind != b"IDAT").any(|(kind, _)| kind == b"acTL")
}

/// The EXIF data, wherever they are in the file.
pub(super) fn exif(bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
    let of = |wanted: &'static [u8]| {
        chunks(bytes).filter(move |(kind, _)| *kind == wanted).map(|(_, data)| data)
    };
    if let Some(exif) = of(b"eXIf").next() {
        return Some(exif.into());
    }
    let packed = of(b"zTXt").find_map(|data| data.strip_prefix(RAW_EXIF)?.get(1..));
    if let Some(packed) = packed {
        let mut text = Vec::new();
        ZlibDecoder::new(packed).take(MOST_UNPACKED).read_to_end(&mut text).ok()?;
        return Some(from_digits(&text)?.into());
    }
    let plain = of(b"tEXt").find_map(|data| data.strip_prefix(RAW_EXIF))?;
    Some(from_digits(plain)?.into())
}

/// The bytes of a text that has a name and a length in lines of their own, and then digits.
fn from_digits(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.trim_ascii_start().splitn(3, |&byte| byte == b'\n').nth(2)?;
    let digits: Vec<_> = digits.iter().filter_map(|&byte| char::from(byte).to_digit(16)).collect();
    Some(digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

/// Fails for a colour profile of which a few bytes become a great many.
pub(super) fn check_profile(bytes: &[u8]) -> Result<()> {
    let Some((_, profile)) = chunks(bytes).find(|(kind, _)| *kind == b"iCCP") else {
        return Ok(());
    };
    let name = profile.iter().position(|&byte| byte == 0).unwrap_or(profile.len());
    let packed = profile.get(name + 2..).unwrap_or_default();
    let mut unpacked = ZlibDecoder::new(packed).take(MOST_UNPACKED + 1);
    // Whatever else is wrong with it is reported by its reader.
    let length = std::io::copy(&mut unpacked, &mut std::io::sink()).unwrap_or(0);
    if length > MOST_UNPACKED {
        bail!("expected a colour profile of at most {MOST_UNPACKED} bytes, found a larger one");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    fn file(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let chunk = |(kind, data): &(&[u8; 4], &[u8])| {
            [&(data.len() as u32).to_be_bytes()[..], *kind, data, &[0; 4]].concat()
        };
        [b"\x89PNG\r\n\x1a\n".to_vec(), chunks.iter().flat_map(chunk).collect()].concat()
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn an_animation_says_so_before_its_pixels() {
        assert!(is_animated(&file(&[(b"IHDR", &[]), (b"acTL", &[0; 8]), (b"IDAT", &[])])));
        assert!(!is_animated(&file(&[(b"IHDR", &[]), (b"IDAT", &[]), (b"acTL", &[0; 8])])));
        assert!(!is_animated(b"\x89PNG"));
    }

    #[test]
    fn exif_data_are_found_behind_the_pixels_and_in_texts() {
        let found = |chunk: (&[u8; 4], &[u8])| {
            let file = file(&[(b"IDAT", b"x"), chunk]);
            exif(&file).map(Cow::into_owned)
        };
        assert_eq!(found((b"eXIf", b"II*")), Some(b"II*".to_vec()));
        let text = b"\nexif\n       3\n4949\n2a\n";
        let plain = [RAW_EXIF, text].concat();
        assert_eq!(found((b"tEXt", &plain)), Some(b"II*".to_vec()));
        let small = [RAW_EXIF, b"\0", &packed(text)].concat();
        assert_eq!(found((b"zTXt", &small)), Some(b"II*".to_vec()));
        assert_eq!(found((b"tEXt", b"Comment\0x")), None);
    }

    #[test]
    fn profiles_that_unpack_to_too_much_are_refused() {
        let check = |bytes: usize| {
            let profile = [b"name\0\0", &packed(&vec![0; bytes])[..]].concat();
            check_profile(&file(&[(b"iCCP", &profile), (b"IDAT", b"x")]))
        };
        assert!(check(1 << 20).is_ok());
        let error = check((16 << 20) + 1).unwrap_err().to_string();
        assert_eq!(
            error,
            "expected a colour profile of at most 16777216 bytes, found a larger one"
        );
        assert!(check_profile(&file(&[(b"iCCP", b"name")])).is_ok());
    }
}
