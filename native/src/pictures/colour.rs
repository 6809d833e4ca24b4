//! Colour profiles: telephones take pictures in Display P3, and models see sRGB.

use std::sync::Arc;

use image::{DynamicImage, Rgb, RgbImage, RgbaImage};
use moxcms::{ColorProfile, DataColorSpace, Layout, Transform8BitExecutor, TransformOptions};

/// Colours of a profile that differ from those of sRGB by no more than this are the same.
const SAME: u8 = 2;

/// The pixels in sRGB, with 8 bits a colour where they had others. Damaged profiles are left out, as browsers do, and
/// so are profiles of other colours than the pixels.
pub(super) fn to_srgb(pixels: DynamicImage, profile: &[u8]) -> DynamicImage {
    converted(&pixels, profile).unwrap_or(pixels)
}

/// The pixels in sRGB; `None` where they are as good as that, or the profile cannot be used.
fn converted(pixels: &DynamicImage, profile: &[u8]) -> Option<DynamicImage> {
    let (has_color, has_alpha) = (pixels.color().has_color(), pixels.color().has_alpha());
    let space = if has_color { DataColorSpace::Rgb } else { DataColorSpace::Gray };
    let own = match (has_color, has_alpha) {
        (true, true) => Layout::Rgba,
        (true, false) => Layout::Rgb,
        (false, true) => Layout::GrayAlpha,
        (false, false) => Layout::Gray,
    };
    let made = if has_alpha { Layout::Rgba } else { Layout::Rgb };
    let transform = transform(profile, (space, own), made)?;
    let convert = |pixels: &DynamicImage| {
        let from = match own {
            Layout::Gray => pixels.to_luma8().into_raw(),
            Layout::GrayAlpha => pixels.to_luma_alpha8().into_raw(),
            Layout::Rgb => pixels.to_rgb8().into_raw(),
            _ => pixels.to_rgba8().into_raw(),
        };
        let mut to = vec![0; from.len() / own.channels() * made.channels()];
        transform.transform(&from, &mut to).ok()?;
        Some(to)
    };
    // Six levels of each colour, or of grey.
    let probe = RgbImage::from_fn(36, 6, |x, y| {
        let levels = if has_color { [x / 6, x % 6, y] } else { [x % 6; 3] };
        Rgb(levels.map(|level| 51 * level as u8))
    });
    let found = convert(&probe.clone().into())?;
    let differs = |(a, b): (&u8, &u8)| a.abs_diff(*b) > SAME;
    let mut pairs = probe.pixels().zip(found.chunks(made.channels()));
    if !pairs.any(|(given, found)| given.0.iter().zip(found).any(differs)) {
        return None;
    }
    let (width, height, converted) = (pixels.width(), pixels.height(), convert(pixels)?);
    if has_alpha {
        RgbaImage::from_raw(width, height, converted).map(DynamicImage::from)
    } else {
        RgbImage::from_raw(width, height, converted).map(DynamicImage::from)
    }
}

/// From colours of a profile, which must be of this space, to sRGB; `None` where the profile is damaged or of others.
fn transform(
    profile: &[u8],
    (space, from): (DataColorSpace, Layout),
    to: Layout,
) -> Option<Arc<Transform8BitExecutor>> {
    let profile = ColorProfile::new_from_slice(profile).ok()?;
    if profile.color_space != space {
        return None;
    }
    let (srgb, options) = (ColorProfile::new_srgb(), TransformOptions::default());
    profile.create_transform_8bit(from, &srgb, to, options).ok()
}

/// How the inks of a printer look in sRGB.
pub(super) struct Inks(Arc<Transform8BitExecutor>);

impl Inks {
    /// The inks of a profile; `None` where it is damaged or has other colours.
    pub(super) fn of(profile: &[u8]) -> Option<Self> {
        // The layout of four inks is that of any four values.
        transform(profile, (DataColorSpace::Cmyk, Layout::Rgba), Layout::Rgb).map(Self)
    }

    /// The colours of pixels, of which each has four values from 0 for no ink to 255: cyan, magenta, yellow, black.
    pub(super) fn colours(&self, inks: &[u8]) -> Option<Vec<u8>> {
        let mut colours = vec![0; inks.len() / 4 * 3];
        self.0.transform(inks, &mut colours).ok()?;
        Some(colours)
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

    /// A grey of gamma 1 is half as bright as white where sRGB has 188 of 255.
    #[test]
    fn grey_becomes_srgb() {
        let profile = ColorProfile::new_gray_with_gamma(1.0);
        let pixels = DynamicImage::from(image::GrayImage::from_pixel(1, 1, image::Luma([128])));
        let made = to_srgb(pixels.clone(), &profile.encode().unwrap()).into_rgb8();
        assert!(made.get_pixel(0, 0).0.iter().all(|level| level.abs_diff(188) <= 1), "{made:?}");
        let veiled =
            DynamicImage::from(image::GrayAlphaImage::from_pixel(1, 1, image::LumaA([128, 9])));
        let made = to_srgb(veiled, &profile.encode().unwrap()).into_rgba8();
        assert!(made.get_pixel(0, 0).0[0].abs_diff(188) <= 1 && made.get_pixel(0, 0).0[3] == 9);
        // A profile of other colours than the pixels.
        let display_p3 = ColorProfile::new_display_p3().encode().unwrap();
        assert_eq!(to_srgb(pixels.clone(), &display_p3), pixels);
    }

    #[test]
    fn srgb_and_damaged_profiles_change_nothing() {
        let pixels = DynamicImage::from(RgbaImage::from_pixel(1, 1, Rgba([234, 51, 35, 128])));
        assert_eq!(in_srgb([234, 51, 35, 128], &ColorProfile::new_srgb()), pixels);
        assert_eq!(to_srgb(pixels.clone(), b"no profile"), pixels);
    }
}
