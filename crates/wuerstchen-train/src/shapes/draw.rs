//! Scenes to pictures.

use std::f32::consts::TAU;
use std::sync::LazyLock;

use tiny_skia::{
    Color, FillRule, Mask, Paint, Path, PathBuilder, Pixmap, PremultipliedColorU8, Transform,
};

use super::MIN_SIDE;
use super::scene::Scene;
use super::words::Shape;

/// Half the width of the diamond, whose half height is 1.
const DIAMOND_WIDTH: f32 = 0.78;

/// Half the width of the cross's bars.
const CROSS_ARM: f32 = 0.34;

/// Radius of the ring's hole.
const RING_HOLE: f32 = 0.55;

/// Distance of the star's points and of its notches from its centre. Points and notches at 1.05
/// and 0.47 fill the unit box better than the pentagram, whose thin points blur away.
const STAR_RADII: [f32; 2] = [1.05, 0.47];

/// How far below the middle of its bounding box the star's centre lies.
const STAR_SHIFT: f32 = 0.05;

/// Outlines of every shape in a box from (-1, -1) to (1, 1), y down, in the order of `Shape::ALL`.
static OUTLINES: LazyLock<[Path; Shape::ALL.len()]> = LazyLock::new(|| {
    Shape::ALL.map(|shape| outline(shape).expect("the outlines are finite and not empty"))
});

/// The picture of `scene`: `side` rows of `side` pixels of red, green and blue, in sRGB, edges
/// smoothed.
///
/// # Panics
///
/// Panics if `side` is below [`MIN_SIDE`].
pub fn draw(scene: &Scene, side: u32) -> Vec<u8> {
    assert!(side >= MIN_SIDE, "a picture of {side} pixels is too small to read");
    let mut pixmap = Pixmap::new(side, side).expect("the side is not zero");
    let [red, green, blue] = scene.background.rgb();
    pixmap.fill(Color::from_rgba8(red, green, blue, u8::MAX));
    let mut paint = Paint::default();
    for object in &scene.objects {
        let [red, green, blue] = object.colour.rgb();
        paint.set_color_rgba8(red, green, blue, u8::MAX);
        let scale = side as f32;
        let placement = placement(object.centre.map(|c| c * scale), object.radius * scale);
        let outline = &OUTLINES[object.shape as usize];
        pixmap.fill_path(outline, &paint, FillRule::EvenOdd, placement, None);
    }
    let rgb = |pixel: &PremultipliedColorU8| [pixel.red(), pixel.green(), pixel.blue()];
    pixmap.pixels().iter().flat_map(rgb).collect()
}

/// How much of each pixel of a `width` by `height` window a shape covers, in `[0, 1]`. Centre and
/// radius are in pixels.
pub(super) fn coverage(
    shape: Shape,
    centre: [f32; 2],
    radius: f32,
    [width, height]: [u32; 2],
) -> Vec<f32> {
    let mut mask = Mask::new(width, height).expect("the window is not empty");
    let placement = placement(centre, radius);
    mask.fill_path(&OUTLINES[shape as usize], FillRule::EvenOdd, true, placement);
    mask.data().iter().map(|value| f32::from(*value) / f32::from(u8::MAX)).collect()
}

fn placement(centre: [f32; 2], radius: f32) -> Transform {
    Transform::from_row(radius, 0.0, 0.0, radius, centre[0], centre[1])
}

fn outline(shape: Shape) -> Option<Path> {
    const A: f32 = CROSS_ARM;
    match shape {
        Shape::Circle => PathBuilder::from_circle(0.0, 0.0, 1.0),
        Shape::Square => polygon(&[[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]),
        Shape::Triangle => polygon(&[[0.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]),
        Shape::Diamond => {
            polygon(&[[0.0, -1.0], [DIAMOND_WIDTH, 0.0], [0.0, 1.0], [-DIAMOND_WIDTH, 0.0]])
        }
        Shape::Star => polygon(&star()),
        Shape::Heart => heart(),
        Shape::Cross => polygon(&[
            [-A, -1.0],
            [A, -1.0],
            [A, -A],
            [1.0, -A],
            [1.0, A],
            [A, A],
            [A, 1.0],
            [-A, 1.0],
            [-A, A],
            [-1.0, A],
            [-1.0, -A],
            [-A, -A],
        ]),
        Shape::Ring => {
            let mut builder = PathBuilder::new();
            builder.push_circle(0.0, 0.0, 1.0);
            builder.push_circle(0.0, 0.0, RING_HOLE);
            builder.finish()
        }
    }
}

fn polygon(corners: &[[f32; 2]]) -> Option<Path> {
    let mut builder = PathBuilder::new();
    builder.move_to(corners[0][0], corners[0][1]);
    for [x, y] in &corners[1..] {
        builder.line_to(*x, *y);
    }
    builder.close();
    builder.finish()
}

fn star() -> Vec<[f32; 2]> {
    let corner = |i: usize| {
        let (sin, cos) = (i as f32 / 10.0 * TAU).sin_cos();
        let radius = STAR_RADII[i % 2];
        [radius * sin, STAR_SHIFT - radius * cos]
    };
    (0..10).map(corner).collect()
}

fn heart() -> Option<Path> {
    let mut builder = PathBuilder::new();
    builder.move_to(0.0, 1.0);
    // Up the left side into the notch, then the mirror images of the same curves down the right.
    builder.cubic_to(-0.45, 0.55, -1.0, 0.2, -1.0, -0.35);
    builder.cubic_to(-1.0, -1.08, -0.2, -1.18, 0.0, -0.52);
    builder.cubic_to(0.2, -1.18, 1.0, -1.08, 1.0, -0.35);
    builder.cubic_to(1.0, 0.2, 0.45, 0.55, 0.0, 1.0);
    builder.close();
    builder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lesson::Lesson;
    use crate::shapes::{Background, Colour, Object, Size, sample};

    #[test]
    fn outlines_fill_their_unit_boxes() {
        for (shape, outline) in Shape::ALL.into_iter().zip(OUTLINES.iter()) {
            let bounds = outline.compute_tight_bounds().unwrap();
            let half = bounds.width().max(bounds.height()) / 2.0;
            assert!((0.94..=1.001).contains(&half), "{shape:?} {bounds:?}");
            assert!(bounds.left() >= -1.001 && bounds.right() <= 1.001, "{shape:?} {bounds:?}");
            assert!(bounds.top() >= -1.001 && bounds.bottom() <= 1.001, "{shape:?} {bounds:?}");
        }
    }

    /// Half a pixel from the object's middle, inside every shape but the ring, and in the corner.
    #[test]
    fn the_middle_has_the_object_s_colour_and_the_corner_the_background_s() {
        for shape in Shape::ALL {
            for colour in Colour::ALL {
                let object =
                    Object { shape, colour, size: Size::Large, centre: [0.5; 2], radius: 0.2 };
                let scene = Scene { background: Background::Teal, objects: vec![object] };
                let picture = draw(&scene, 64);
                let middle = (32 * 64 + 32) * 3;
                let expected =
                    if shape == Shape::Ring { Background::Teal.rgb() } else { colour.rgb() };
                assert_eq!(picture[middle..middle + 3], expected);
                assert_eq!(picture[..3], Background::Teal.rgb());
            }
        }
    }

    #[test]
    fn a_circle_covers_its_area() {
        let area: f32 = coverage(Shape::Circle, [32.3, 31.8], 20.0, [64, 64]).iter().sum();
        assert!((area / (20.0 * 20.0 * TAU / 2.0) - 1.0).abs() < 0.01, "{area}");
    }

    #[test]
    fn pictures_repeat_and_have_the_size_asked_for() {
        for side in [32, 64, 100] {
            let scene = sample(0, 0, &Lesson::default()).scene;
            assert_eq!(draw(&scene, side), draw(&scene, side));
            assert_eq!(draw(&scene, side).len(), (side * side * 3) as usize);
        }
    }
}
