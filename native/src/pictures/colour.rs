//! Colour profiles: telephones take pictures in Display P3, and models see sRGB.

use image::{DynamicImage, RgbImage, RgbaImage};
use moxcms::{ColorProfile, DataColorSpace, Layout, TransformOptions};

/// Colours of a profile that differ from those of sRGB by no more than this are the same.
const SAME: u8 = 2;

/// The pixels in sRGB, with 8 bits a colour where they had others. Profiles that are damaged, or not of RGB, are left
/// out, as browsers do.
pub(super) fn to_srgb(pixels: DynamicImage, profile: &[u8]) -> DynamicImage {
    if !pixels.color().has_color() {
        return pixels;
    }
    let Some(profile) = ColorProfile::new_from_slice(profile)
        .ok()
        .filter(|profile| profile.color_space == DataColorSpace::Rgb)
    else {
        return pixels;
    };
    let convert = |from: &[u8], layout: Layout| {
        let options = TransformOptions::default();
        let transform = profile
            .create_transform_8bit(layout, &ColorProfile::new_srgb(), layout, options)
            .ok()?;
        let mut to = vec![0; from.len()];
        transform.transform(from, &mut to).ok()?;
        Some(to)
    };
    let probe: Vec<u8> =
        (0..6u8.pow(3)).flat_map(|i| [i / 36, i / 6 % 6, i % 6].map(|level| 51 * level)).collect();
    let is_srgb = |made: &[u8]| probe.iter().zip(made).all(|(a, b)| a.abs_diff(*b) <= SAME);
    if convert(&probe, Layout::Rgb).is_none_or(|made| is_srgb(&made)) {
        return pixels;
    }
    let (width, height) = (pixels.width(), pixels.height());
    let converted = if pixels.color().has_alpha() {
        let made = convert(&pixels.to_rgba8(), Layout::Rgba);
        made.and_then(|made| RgbaImage::from_raw(width, height, made)).map(DynamicImage::from)
    } else {
        let made = convert(&pixels.to_rgb8(), Layout::Rgb);
        made.and_then(|made| RgbImage::from_raw(width, height, made)).map(DynamicImage::from)
    };
    converted.unwrap_or(pixels)
}

#[cfg(test)]
mod tests {
    use image::Rgba;

    use super::*;

    fn converted(pixel: [u8; 4], profile: &ColorProfile) -> DynamicImage {
        let pixels = DynamicImage::from(RgbaImage::from_pixel(1, 1, Rgba(pixel)));
        to_srgb(pixels, &profile.encode().unwrap())
    }

    /// The red of sRGB is 0.9175, 0.2003 and 0.1387 in Display P3, of 255 each (CSS Color Module Level 4).
    #[test]
    fn display_p3_becomes_srgb() {
        let made = converted([234, 51, 35, 128], &ColorProfile::new_display_p3()).into_rgba8();
        let [red, green, blue, alpha] = made.get_pixel(0, 0).0;
        assert!(red >= 253 && green <= 6 && blue <= 6 && alpha == 128, "{made:?}");
    }

    #[test]
    fn srgb_and_damaged_profiles_change_nothing() {
        let pixels = DynamicImage::from(RgbaImage::from_pixel(1, 1, Rgba([234, 51, 35, 128])));
        assert_eq!(converted([234, 51, 35, 128], &ColorProfile::new_srgb()), pixels);
        assert_eq!(to_srgb(pixels.clone(), b"no profile"), pixels);
    }
}
