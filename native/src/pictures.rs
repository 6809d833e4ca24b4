//! Pictures that people bring.

mod colour;
mod frames;
mod ifd;
mod jpeg;
mod png;
mod tiff;

use std::borrow::Cow;
use std::io::Cursor;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use image::error::ImageFormatHint;
use image::metadata::Orientation;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits,
    RgbImage,
};
use wuerstchen::fs::read_at_most;
use wuerstchen::{FileType, Image, Mask};

use self::ifd::Directory;
use self::jpeg::Jpeg;
use crate::terminal::counted;

/// Ends of names of pictures, in lower case.
pub(crate) const ENDINGS: [&str; 10] =
    ["png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff"];

/// The types of pictures that are read, for messages.
pub(crate) const TYPES: &str = "PNG, JPEG, WebP, GIF, BMP or TIFF";

/// Most pixels of a picture: a few hundred bytes can claim any number of them.
const MAX_PIXELS: u64 = 1 << 27;

/// Largest ratio of a picture's sides: a line of pixels that is scaled to cover a picture would take gigabytes.
const MAX_RATIO: u64 = 64;

/// Bytes of a pixel of the deepest type, four colours of 16 bits.
const MAX_PIXEL_BYTES: u64 = 8;

/// Pictures with more pixels than this are in memory only one at a time.
const LARGE_PIXELS: u64 = 1 << 24;

/// Held while a large picture is in memory.
static LARGE: Mutex<()> = Mutex::new(());

/// A picture, turned upright as its EXIF data say, and in sRGB where it has a colour profile.
pub(crate) struct Picture {
    pub(crate) pixels: DynamicImage,
    /// Whether it is the first frame or page of several.
    pub(crate) has_frames: bool,
}

/// Reads a picture file, on white where it is transparent; reports a file with several frames.
pub(crate) fn read_image(path: &Path) -> Result<Image> {
    with_picture(path, |picture| {
        picture.tell_of_frames(path);
        let pixels = picture.on(u8::MAX);
        let [width, height] = [pixels.width(), pixels.height()].map(|side| side as usize);
        Image { width, height, rgb: pixels.into_raw() }
    })
}

/// Reads a mask: the brightness of a picture file, on black where it is transparent; reports a mask that paints
/// nothing.
pub(crate) fn read_mask(path: &Path) -> Result<Mask> {
    with_picture(path, |picture| {
        picture.tell_of_frames(path);
        let pixels = if picture.pixels.color().has_alpha() {
            DynamicImage::from(picture.on(0)).into_luma8()
        } else {
            picture.pixels.into_luma8()
        };
        if pixels.iter().all(|&value| value == 0) {
            say!("{}: the mask is all black, so nothing is painted anew", path.display());
        }
        let [width, height] = [pixels.width(), pixels.height()].map(|side| side as usize);
        Mask { width, height, values: pixels.into_raw() }
    })
}

/// Reads a picture file for `work`.
pub(crate) fn with_picture<T>(path: &Path, work: impl FnOnce(Picture) -> T) -> Result<T> {
    with_file(path, |bytes| with_bytes(bytes, work))
}

/// The height and width of a picture file, turned upright.
pub(crate) fn size_of(path: &Path) -> Result<[usize; 2]> {
    with_file(path, |bytes| Ok(look_at(bytes)?.0))
}

fn with_file<T>(path: &Path, work: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
    let bytes = read_at_most(path, MAX_PIXELS * MAX_PIXEL_BYTES)?;
    work(&bytes).with_context(|| format!("cannot read the picture {}", path.display()))
}

/// Reports of how many pictures only a part is taken, if of any.
pub(crate) fn tell_of_frames(count: usize) {
    if count > 0 {
        let pictures = counted(count, "picture");
        tell!("of {pictures} with several frames or pages the first is taken");
    }
}

/// The height and width of the picture in the bytes of a file, turned upright, and whether the file has several frames
/// or pages. Decodes no pixels.
pub(crate) fn look_at(bytes: &[u8]) -> Result<([usize; 2], bool)> {
    let (format, mut decoder) = decoder_of(bytes)?;
    let (width, height) = decoder.dimensions();
    let [width, height] = [width, height].map(|side| side as usize);
    // The first four orientations of EXIF do not lie on their side.
    let is_turned = orientation_of(format, bytes, &mut decoder)?.to_exif() > 4;
    let size = if is_turned { [width, height] } else { [height, width] };
    Ok((size, frames::has_several(format, bytes)))
}

/// The format of the bytes of a picture file, and what decodes them; fails for a picture that is too large.
fn decoder_of(bytes: &[u8]) -> Result<(ImageFormat, impl ImageDecoder + '_)> {
    if bytes.is_empty() {
        bail!("expected {TYPES}, found an empty file");
    }
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_PIXELS * MAX_PIXEL_BYTES);
    reader.limits(limits);
    let Some(format) = reader.format() else {
        let start = &bytes[..bytes.len().min(FileType::START_BYTES)];
        let known = FileType::of(start).filter(|found| *found != FileType::Picture);
        let found = other_type(start).or(known.map(FileType::name)).unwrap_or("another type");
        bail!("expected {TYPES}, found {found}");
    };
    if !format.reading_enabled() {
        bail!("expected {TYPES}, found {}", format!("{format:?}").to_uppercase());
    }
    match format {
        ImageFormat::Tiff => tiff::check_values(bytes)?,
        ImageFormat::Png => png::check_profile(bytes)?,
        _ => {}
    }
    let decoder = reader.into_decoder().map_err(in_words)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_PIXELS {
        bail!("expected at most {MAX_PIXELS} pixels, found {width} x {height} = {pixels}");
    }
    let (short, long) = (width.min(height), width.max(height));
    if long == 0 {
        bail!("expected pixels, found a picture of 0 x 0");
    }
    if u64::from(long) > MAX_RATIO * u64::from(short) {
        bail!("expected sides of at most {MAX_RATIO} to 1, found {width} x {height} pixels");
    }
    Ok((format, decoder))
}

/// Which side of a picture is up. EXIF data are looked for in all places where programs put them.
fn orientation_of(
    format: ImageFormat,
    bytes: &[u8],
    decoder: &mut impl ImageDecoder,
) -> Result<Orientation> {
    const ORIENTATION: usize = 0x112;
    let exif = match format {
        ImageFormat::Tiff => return Ok(decoder.orientation()?),
        ImageFormat::Png => png::exif(bytes),
        _ => decoder.exif_metadata()?.map(Cow::from),
    };
    let value = exif.and_then(|exif| {
        // As in a JPEG, where this begins the segment.
        let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif);
        Directory::first(exif)?.value(ORIENTATION)
    });
    let known = value.and_then(|value| Orientation::from_exif(u8::try_from(value).ok()?));
    Ok(known.unwrap_or(Orientation::NoTransforms))
}

/// An error of a decoder; some tell only that there were no more bytes.
fn in_words(error: ImageError) -> anyhow::Error {
    if error.to_string().contains("failed to fill whole buffer") {
        return anyhow!("expected a whole file, found one that is cut off");
    }
    if let ImageError::Unsupported(unsupported) = &error
        && unsupported.format_hint() == ImageFormatHint::Exact(ImageFormat::Tiff)
    {
        return anyhow!(
            "expected a TIFF in grey or RGB of 8 or 16 bits, or in RGB of fractions, found another \
             kind ({error})"
        );
    }
    error.into()
}

/// A type of pictures that is not read, if the start of a file is of one.
fn other_type(start: &[u8]) -> Option<&'static str> {
    const TYPES: [(&[u8], &str); 5] = [
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"II+\0", "BigTIFF"),
        (b"MM\0+", "BigTIFF"),
        (b"8BPS", "a picture of Photoshop's own type"),
    ];
    if let Some((_, name)) = TYPES.into_iter().find(|(begin, _)| start.starts_with(begin)) {
        return Some(name);
    }
    match start.get(4..12)? {
        [b'f', b't', b'y', b'p', b'h', b'e', ..] => Some("HEIC, the type of telephones"),
        b"ftypmif1" | b"ftypmsf1" => Some("HEIF"),
        _ => None,
    }
}

/// Decodes the bytes of a picture file for `work`.
pub(crate) fn with_bytes<T>(bytes: &[u8], work: impl FnOnce(Picture) -> T) -> Result<T> {
    let (format, mut decoder) = decoder_of(bytes)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    let jpeg = match format {
        ImageFormat::Jpeg => Some(Jpeg::find_end(bytes)?),
        _ => None,
    };
    let _turn =
        (pixels > LARGE_PIXELS).then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    let orientation = orientation_of(format, bytes, &mut decoder)?;
    // A profile that cannot be read is none.
    let profile = match format {
        ImageFormat::Tiff => tiff::profile(bytes),
        _ => decoder.icc_profile().ok().flatten(),
    };
    let of_file = decoder.original_color_type();
    let decoded = jpeg.map(|jpeg| jpeg.decode(profile.as_deref())).transpose()?.flatten();
    let (mut pixels, is_cmyk) = match decoded {
        Some(decoded) => decoded,
        None => {
            let is_cmyk = matches!(of_file, ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16);
            (DynamicImage::from_decoder(decoder).map_err(in_words)?, is_cmyk)
        }
    };
    if format == ImageFormat::Tiff {
        tiff::check_fractions(&pixels)?;
        if tiff::are_multiplied(bytes) {
            pixels = tiff::divided(pixels);
        }
    }
    // The profile of a picture in CMYK is not for the colours into which it was decoded.
    if let Some(profile) = profile.filter(|_| !is_cmyk) {
        pixels = colour::to_srgb(pixels, &profile);
    }
    pixels.apply_orientation(orientation);
    Ok(work(Picture { pixels, has_frames: frames::has_several(format, bytes) }))
}

impl Picture {
    /// The picture, on a ground of the given brightness where it is transparent.
    pub(crate) fn on(self, ground: u8) -> RgbImage {
        if !self.pixels.color().has_alpha() {
            return self.pixels.into_rgb8();
        }
        let pixels = self.pixels.into_rgba8();
        let mut opaque = RgbImage::new(pixels.width(), pixels.height());
        let ground = u32::from(ground);
        for (from, to) in pixels.pixels().zip(opaque.pixels_mut()) {
            let [red, green, blue, alpha] = from.0.map(u32::from);
            let over = |colour| ((colour * alpha + ground * (255 - alpha)) / 255) as u8;
            to.0 = [over(red), over(green), over(blue)];
        }
        opaque
    }

    fn tell_of_frames(&self, path: &Path) {
        if self.has_frames {
            say!("{}: of several frames or pages the first is taken", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{Luma, LumaA, Rgba};

    use super::*;

    fn on(pixels: impl Into<DynamicImage>, ground: u8) -> [u8; 3] {
        let picture = Picture { pixels: pixels.into(), has_frames: false };
        picture.on(ground).get_pixel(0, 0).0
    }

    #[test]
    fn types_that_are_not_read_are_named() {
        let error = |start: &[u8]| with_bytes(start, |_| ()).unwrap_err().to_string();
        for (start, name) in [
            (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], "HEIC, the type of telephones"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "HEIF"),
            (b"\xff\x0a\x10\x40", "JPEG XL"),
            (b"II+\0\x08\0\0\0", "BigTIFF"),
            (b"P6 1 1 255\n", "PNM"),
            (b"qoif\0\0\0\x01", "QOI"),
            (b"{}", "JSON"),
            (b"\x01\x02", "another type"),
        ] {
            assert_eq!(error(start), format!("expected {TYPES}, found {name}"));
        }
    }

    /// A share of 51/255 = 0.2 of the colour on 0.8 of the ground; colours of no share do not matter.
    #[test]
    fn what_is_transparent_shows_the_ground() {
        let pixel = |rgba| image::RgbaImage::from_pixel(1, 1, Rgba(rgba));
        assert_eq!(on(pixel([10, 20, 30, 255]), 255), [10, 20, 30]);
        assert_eq!(on(pixel([10, 20, 30, 0]), 255), [255; 3]);
        assert_eq!(on(pixel([100, 0, 255, 51]), 255), [224, 204, 255]);
        assert_eq!(on(pixel([255, 255, 255, 51]), 0), [51; 3]);
        assert_eq!(on(image::GrayAlphaImage::from_pixel(1, 1, LumaA([9, 0])), 255), [255; 3]);
        let deep = image::ImageBuffer::<Luma<u16>, _>::from_pixel(1, 1, Luma([0x8080]));
        assert_eq!(on(DynamicImage::ImageLuma16(deep), 255), [0x80; 3]);
    }
}
