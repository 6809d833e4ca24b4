//! Scenes to pictures.

use resvg::tiny_skia::{Color, Paint, Pixmap, PixmapPaint, PremultipliedColorU8, Rect, Transform};

use super::art::Art;
use super::scene::{Ground, Object, Scene};
use super::words::{Colour, Style, Tint};

impl Art {
    /// The picture of a scene: `side` rows of `side` pixels of red, green and blue, in sRGB.
    ///
    /// # Panics
    ///
    /// Panics if `side` is 0, or the style does not draw one of the concepts.
    pub fn draw(&self, scene: &Scene, side: u32) -> Vec<u8> {
        let mut picture = Pixmap::new(side, side).expect("the side is not zero");
        let colour = |colour: Colour| {
            let [red, green, blue] = colour.rgb();
            Color::from_rgba8(red, green, blue, u8::MAX)
        };
        match scene.ground {
            Ground::Plain(plain) => picture.fill(colour(plain)),
            Ground::Halves { upper, lower } => {
                picture.fill(colour(upper));
                let half = side as f32 / 2.0;
                let lower_half = Rect::from_xywh(0.0, half, side as f32, half);
                let mut paint = Paint::default();
                paint.set_color(colour(lower));
                let lower_half = lower_half.expect("it is finite and not empty");
                picture.fill_rect(lower_half, &paint, Transform::identity(), None);
            }
        }
        for object in &scene.objects {
            self.draw_object(object, scene.style, &mut picture);
        }
        let rgb = |pixel: &PremultipliedColorU8| [pixel.red(), pixel.green(), pixel.blue()];
        picture.pixels().iter().flat_map(rgb).collect()
    }

    fn draw_object(&self, object: &Object, style: Style, picture: &mut Pixmap) {
        let scale = picture.width() as f32;
        let side = object.side * scale;
        let [x, y] = object.centre.map(|centre| centre * scale - side / 2.0);
        let concept = &self.concepts()[object.thing.concept];
        let Some(tint) = object.thing.tint else {
            let transform = Transform::from_row(side, 0.0, 0.0, side, x, y);
            return concept.render(style, transform, picture);
        };
        // The object is drawn on a picture of its own, because the tint must not change what lies below.
        let mut own = Pixmap::new(picture.width(), picture.height()).expect("it has pixels");
        concept.render(style, Transform::from_row(side, 0.0, 0.0, side, x, y), &mut own);
        for pixel in own.pixels_mut() {
            *pixel = tinted(*pixel, tint);
        }
        let (paint, identity) = (PixmapPaint::default(), Transform::identity());
        picture.draw_pixmap(0, 0, own.as_ref(), &paint, identity, None);
    }
}

/// The pixel in shades of the tint: black and white stay, middle gray becomes the tint.
pub(super) fn tinted(pixel: PremultipliedColorU8, tint: Tint) -> PremultipliedColorU8 {
    let alpha = f32::from(pixel.alpha());
    if alpha == 0.0 {
        return pixel;
    }
    let [red, green, blue] = [pixel.red(), pixel.green(), pixel.blue()].map(f32::from);
    // Luma of Rec. 601.
    let luma = (0.299 * red + 0.587 * green + 0.114 * blue) / alpha;
    let channel = |tint: u8| {
        let tint = f32::from(tint) / 255.0;
        let shade =
            if luma < 0.5 { tint * 2.0 * luma } else { tint + (1.0 - tint) * (2.0 * luma - 1.0) };
        (shade * alpha).round().clamp(0.0, alpha) as u8
    };
    let [red, green, blue] = tint.rgb().map(channel);
    PremultipliedColorU8::from_rgba(red, green, blue, pixel.alpha())
        .expect("no channel is above alpha")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emoji::Thing;
    use crate::emoji::invented::invented_art;

    /// A gray of luma 0.25 halves the tint; black and white stay.
    #[test]
    fn tints_keep_black_and_white() {
        let opaque = |[r, g, b]: [u8; 3]| PremultipliedColorU8::from_rgba(r, g, b, 255).unwrap();
        let channels = |pixel: PremultipliedColorU8| [pixel.red(), pixel.green(), pixel.blue()];
        for gray in [0, 255] {
            assert_eq!(channels(tinted(opaque([gray; 3]), Tint::Blue)), [gray; 3]);
        }
        let half = channels(tinted(opaque([64; 3]), Tint::Blue));
        for (own, tint) in half.into_iter().zip(Tint::Blue.rgb()) {
            assert!(own.abs_diff(tint / 2) <= 1, "{half:?}");
        }
    }

    #[test]
    fn halves_lie_above_each_other_and_objects_on_them() {
        let art = invented_art();
        let object =
            Object { thing: Thing { concept: 0, tint: None }, centre: [0.5; 2], side: 0.5 };
        let ground = Ground::Halves { upper: Colour::Red, lower: Colour::Navy };
        let scene = Scene { ground, style: Style::Glossy, objects: vec![object] };
        let rgb = art.draw(&scene, 32);
        let pixel = |x: usize, y: usize| [0, 1, 2].map(|i| rgb[3 * (32 * y + x) + i]);
        assert_eq!([pixel(0, 15), pixel(31, 16)], [Colour::Red.rgb(), Colour::Navy.rgb()]);
        assert_eq!(pixel(16, 16), [0x70; 3]);
    }
}
