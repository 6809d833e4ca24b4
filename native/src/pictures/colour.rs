//! Colour profiles: telephones take pictures in Display P3, and models see sRGB.

use image::{DynamicImage, RgbImage, RgbaImage};
use moxcms::{ColorProfile, DataColorSpace, Layout, TransformOptions};

/// Colours of a profile that differ from those of sRGB by no more than this are the same.
const SAME: u8 = 2;

/// The pixels in sRGB, with 8 bits a colour where they had others. Profiles that are damaged, or not of RGB, are left
/// out, as browsers do.
pub(super) fn to_srgb(pixels: DynamicImage, profile: &[u8]) -> DynamicImage {
    converted(&pixels, profile).unwrap_or(pixels)
}

/// The pixels in sRGB; `None` where they are as good as that, or the profile cannot be used.
fn converted(pixels: &DynamicImage, profile: &[u8]) -> Option<DynamicImage> {
    if !pixels.color().has_color() {
        return None;
    }
    let profile = ColorProfile::new_from_slice(profile).ok()?;
    if profile.color_space != DataColorSpace::Rgb {
        return None;
    }
    let has_alpha = pixels.color().has_alpha();
    let layout = if has_alpha { Layout::Rgba } else { Layout::Rgb };
    let (srgb, options) = (ColorProfile::new_srgb(), TransformOptions::default());
    let transform = profile.create_transform_8bit(layout, &srgb, layout, options).ok()?;
    let convert = |from: &[u8]| {
        let mut to = vec![0; from.len()];
        transform.transform(from, &mut to).ok()?;
        Some(to)
    };
    let probe: Vec<u8> = (0..6u8.pow(3))
        .flat_map(|i| [i / 36, i / 6 % 6, i % 6, 5].into_iter().take(if has_alpha { 4 } else { 3 }))
        .map(|level| 51 * level)
        .collect();
    if probe.iter().zip(convert(&probe)?).all(|(a, b)| a.abs_diff(b) <= SAME) {
        return None;
    }
    let (width, height) = (pixels.width(), pixels.height());
    if has_alpha {
        RgbaImage::from_raw(width, height, convert(&pixels.to_rgba8())?).map(DynamicImage::from)
    } else {
        RgbImage::from_raw(width, height, convert(&pixels.to_rgb8())?).map(DynamicImage::from)
    }
}

#[cfg(test)]
mod tests {
    use image::Rgba;

    use super::*;

    fn in_srgb(pixel: [u8; 4], profile: &ColorProfile) -> DynamicImage {
        let pixels = DynamicImage::from(RgbaImage::from_pixel(1, 1, Rgba(pixel)));
        to_srgb(pixels, &profile.encode().unwrap())
    }

    /// The red of sRGB is 0.9175, 0.2003 and 0.1387 in Display P3, of 255 each (CSS Color Module Level 4).
    #[test]
    fn display_p3_becomes_srgb() {
        let made = in_srgb([234, 51, 35, 128], &ColorProfile::new_display_p3()).into_rgba8();
        let [red, green, blue, alpha] = made.get_pixel(0, 0).0;
        assert!(red >= 253 && green <= 6 && blue <= 6 && alpha == 128, "{made:?}");
    }

    #[test]
    fn srgb_and_damaged_profiles_change_nothing() {
        let pixels = DynamicImage::from(RgbaImage::from_pixel(1, 1, Rgba([234, 51, 35, 128])));
        assert_eq!(in_srgb([234, 51, 35, 128], &ColorProfile::new_srgb()), pixels);
        assert_eq!(to_srgb(pixels.clone(), b"no profile"), pixels);
    }
}
