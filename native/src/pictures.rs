//! Pictures that people bring.

use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result};
use image::{DynamicImage, ImageDecoder, ImageReader};
use wuerstchen::{Image, Mask};

use crate::files;

/// Reads a PNG, JPEG or WebP file, upright as its EXIF data say, without what is transparent about it.
pub(crate) fn read_image(path: &Path) -> Result<Image> {
    let pixels = decode(path)?.into_rgb8();
    let [width, height] = [pixels.width(), pixels.height()].map(|side| side as usize);
    Ok(Image { width, height, rgb: pixels.into_raw() })
}

/// Reads a mask: the brightness of such a file.
pub(crate) fn read_mask(path: &Path) -> Result<Mask> {
    let pixels = decode(path)?.into_luma8();
    let [width, height] = [pixels.width(), pixels.height()].map(|side| side as usize);
    Ok(Mask { width, height, values: pixels.into_raw() })
}

/// Reads a picture, upright as its EXIF data say.
pub(crate) fn decode(path: &Path) -> Result<DynamicImage> {
    let cannot = || format!("cannot read the picture {}", path.display());
    let bytes = Cursor::new(files::read(path)?);
    let reader = ImageReader::new(bytes).with_guessed_format().with_context(cannot)?;
    let mut decoder = reader.into_decoder().with_context(cannot)?;
    let orientation = decoder.orientation().with_context(cannot)?;
    let mut image = DynamicImage::from_decoder(decoder).with_context(cannot)?;
    image.apply_orientation(orientation);
    Ok(image)
}
