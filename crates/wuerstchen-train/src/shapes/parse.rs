//! The second half of reading a picture: from the pixels of an object to its shape and place.
//!
//! Area and centre of mass survive blur and noise. For every shape they give the radius and the centre that the
//! object would have; the shape that then covers the pixels best wins.

use std::sync::LazyLock;

use super::MIN_SIDE;
use super::draw::coverage;
use super::scene::{Object, Scene};
use super::segment::{Blob, Picture, nearest, neighbours};
use super::words::{Shape, Size};

/// Pixels around an object's bounding box in which templates are compared.
const WINDOW_MARGIN: usize = 3;

/// Radius in pixels at which the moments of the shapes are measured.
const MOMENT_RADIUS: f32 = 60.0;

/// Moments of every shape at radius 1, in the order of `Shape::ALL`.
static MOMENTS: LazyLock<[Moments; Shape::ALL.len()]> = LazyLock::new(|| {
    Shape::ALL.map(|shape| {
        const SIDE: u32 = 128;
        let middle = SIDE as f32 / 2.0;
        let values = coverage(shape, [middle; 2], MOMENT_RADIUS, [SIDE; 2]);
        let moments = Moments::of(&values, SIDE as usize);
        Moments {
            area: moments.area / (MOMENT_RADIUS * MOMENT_RADIUS),
            centre: moments.centre.map(|c| (c - middle) / MOMENT_RADIUS),
        }
    })
});

/// Area and centre of mass of a window of coverages.
struct Moments {
    area: f32,
    centre: [f32; 2],
}

/// Coverages of one object, in `[0, 1]`, in a window of the picture.
struct Window {
    corner: [usize; 2],
    size: [usize; 2],
    values: Vec<f32>,
}

/// One shape placed to have the moments of an object, in pixels of the window.
struct Fit {
    shape: Shape,
    centre: [f32; 2],
    radius: f32,
    error: f32,
}

/// Reads a picture back: `side` rows of `side` pixels of red, green and blue. The objects are in the order of falling
/// radius.
///
/// The border decides the background. Connected pixels whose colour is far from it are an object; objects that
/// touch are told apart by colour; specks are ignored. This works on blurred and noisy pictures too.
///
/// # Panics
///
/// Panics if `side` is below [`MIN_SIDE`] or `rgb` has another length.
pub fn read_scene(rgb: &[u8], side: u32) -> Scene {
    assert!(side >= MIN_SIDE, "a picture of {side} pixels is too small to read");
    let side = side as usize;
    assert_eq!(rgb.len(), side * side * 3, "bytes of a picture of {side} by {side} pixels");
    let picture = Picture::new(rgb, side);
    let blobs = picture.blobs();
    let mut owners = vec![None; side * side];
    for (number, blob) in blobs.iter().enumerate() {
        for pixel in &blob.pixels {
            owners[*pixel] = Some(number);
        }
    }
    let read = |(number, blob)| {
        let window =
            Window::new(&picture, blob, |pixel| owners[pixel].is_none_or(|owner| owner == number));
        window.object(blob, side as f32)
    };
    let mut objects: Vec<Object> = blobs.iter().enumerate().map(read).collect();
    objects.sort_by(|a, b| b.radius.total_cmp(&a.radius));
    Scene { background: picture.background, objects }
}

impl Moments {
    fn of(values: &[f32], width: usize) -> Self {
        let mut sums = [0.0; 3];
        for (i, value) in values.iter().enumerate() {
            let [x, y] = [i % width, i / width].map(|c| c as f32 + 0.5);
            sums[0] += value;
            sums[1] += value * x;
            sums[2] += value * y;
        }
        let area = sums[0].max(f32::MIN_POSITIVE);
        Self { area, centre: [sums[1] / area, sums[2] / area] }
    }
}

impl Window {
    /// Coverages of `blob` and of the edge pixels around it that `is_free` allows.
    fn new(picture: &Picture, blob: &Blob, is_free: impl Fn(usize) -> bool) -> Self {
        let side = picture.side;
        let range = |coordinate: fn(usize, usize) -> usize| {
            let values = blob.pixels.iter().map(|pixel| coordinate(*pixel, side));
            let (low, high) = values.fold((side, 0), |(low, high), v| (low.min(v), high.max(v)));
            (low.saturating_sub(WINDOW_MARGIN), (high + 1 + WINDOW_MARGIN).min(side))
        };
        let [columns, rows] =
            [range(|pixel, side| pixel % side), range(|pixel, side| pixel / side)];
        let size = [columns.1 - columns.0, rows.1 - rows.0];
        let mut values = vec![0.0; size[0] * size[1]];
        let colour = picture.inner_colour(&blob.pixels);
        // The pixels around the blob hold the faint part of its edges.
        let edge = blob.pixels.iter().flat_map(|p| neighbours(*p, side)).filter(|p| is_free(*p));
        for pixel in blob.pixels.iter().copied().chain(edge) {
            let [x, y] = [pixel % side - columns.0, pixel / side - rows.0];
            values[y * size[0] + x] = picture.unmix(pixel, colour).0;
        }
        Self { corner: [columns.0, rows.0], size, values }
    }

    fn object(&self, blob: &Blob, side: f32) -> Object {
        let moments = Moments::of(&self.values, self.size[0]);
        let smoothed = smooth(&self.values, self.size);
        let fits = Shape::ALL.map(|shape| self.fit(shape, &moments, &smoothed));
        let best = &fits[nearest(0..fits.len(), |i| fits[i].error)];
        let centre = [0, 1].map(|axis| (best.centre[axis] + self.corner[axis] as f32) / side);
        let radius = best.radius / side;
        let (shape, colour, size) = (best.shape, blob.colour, Size::of_radius(radius));
        Object { shape, colour, size, centre, radius }
    }

    /// Places `shape` so that it has the area and centre of mass of the object.
    fn fit(&self, shape: Shape, moments: &Moments, smoothed: &[f32]) -> Fit {
        let unit = &MOMENTS[shape as usize];
        let radius = (moments.area / unit.area).sqrt();
        let centre = [0, 1].map(|axis| moments.centre[axis] - radius * unit.centre[axis]);
        let template = coverage(shape, centre, radius, self.size.map(|size| size as u32));
        let template = smooth(&template, self.size);
        let error = template.iter().zip(smoothed).map(|(t, v)| (t - v) * (t - v)).sum();
        Fit { shape, centre, radius, error }
    }
}

/// Weights 1, 2, 1 along both axes, so that pictures of any sharpness compare alike.
fn smooth(values: &[f32], [width, height]: [usize; 2]) -> Vec<f32> {
    let along = |values: &[f32], step: usize, position: fn(usize, usize) -> usize, size: usize| {
        let weigh = |i: usize| {
            let before = if position(i, width) > 0 { values[i - step] } else { 0.0 };
            let after = if position(i, width) + 1 < size { values[i + step] } else { 0.0 };
            (before + 2.0 * values[i] + after) / 4.0
        };
        (0..values.len()).map(weigh).collect::<Vec<f32>>()
    };
    let rows = along(values, 1, |i, width| i % width, width);
    along(&rows, width, |i, width| i / width, height)
}

#[cfg(test)]
mod tests {
    use wuerstchen::noise::Philox;

    use super::*;
    use crate::shapes::{Kind, Split, draw, evaluation};

    /// Standard deviation of the noise of degraded pictures, in 8-bit steps.
    const SIGMA: f32 = 6.0;

    /// Shares of scenes of which background, number, colours, shapes, sizes and centres are read correctly, and the
    /// share with everything correct.
    fn accuracies(
        scenes: impl Iterator<Item = Scene>,
        side: u32,
        degrade: impl Fn(Vec<u8>) -> Vec<u8>,
    ) -> [f32; 7] {
        let mut right = [0; 7];
        let mut count = 0;
        for scene in scenes {
            let read = read_scene(&degrade(draw(&scene, side)), side);
            for (right, is_right) in right.iter_mut().zip(compare(&scene, &read)) {
                *right += u32::from(is_right);
            }
            count += 1;
        }
        right.map(|right| right as f32 / count as f32)
    }

    fn scenes(kind: Kind, count: u64) -> impl Iterator<Item = Scene> {
        let split = |index| Split::ALL[index as usize % 2];
        (0..count).map(move |index| evaluation(kind, split(index), 11, index).scene)
    }

    fn compare(drawn: &Scene, read: &Scene) -> [bool; 7] {
        let pairs: Vec<_> =
            drawn.objects.iter().map(|object| (object, closest(object, read))).collect();
        let all = |is_right: fn(&Object, &Object) -> bool| {
            pairs.iter().all(|(drawn, read)| read.is_some_and(|read| is_right(drawn, read)))
        };
        let mut right = [
            drawn.background == read.background,
            drawn.objects.len() == read.objects.len(),
            all(|drawn, read| drawn.colour == read.colour),
            all(|drawn, read| drawn.shape == read.shape),
            all(|drawn, read| drawn.size == read.size),
            all(|drawn, read| apart(drawn, read) < 0.02),
            true,
        ];
        right[6] = right.iter().all(|right| *right);
        right
    }

    fn closest<'a>(object: &Object, scene: &'a Scene) -> Option<&'a Object> {
        scene.objects.iter().min_by(|a, b| apart(object, a).total_cmp(&apart(object, b)))
    }

    fn apart(a: &Object, b: &Object) -> f32 {
        (a.centre[0] - b.centre[0]).hypot(a.centre[1] - b.centre[1])
    }

    /// The mean over 3 by 3 pixels, cut off at the edges.
    fn blur(rgb: &[u8], side: usize) -> Vec<u8> {
        let mean = |pixel| {
            let (mut sums, mut count) = ([0; 3], 0);
            for around in neighbours(pixel, side).chain([pixel]) {
                (0..3).for_each(|c| sums[c] += u32::from(rgb[around * 3 + c]));
                count += 1;
            }
            sums.map(|sum| (sum / count) as u8)
        };
        (0..side * side).flat_map(mean).collect()
    }

    /// Adds noise that starts at another place of a table for every picture.
    fn add_noise(rgb: &[u8], noise: &[f32]) -> Vec<u8> {
        let start = rgb.iter().map(|value| usize::from(*value)).sum::<usize>() % noise.len();
        let noise = noise.iter().cycle().skip(start);
        rgb.iter()
            .zip(noise)
            .map(|(value, noise)| (f32::from(*value) + noise).round() as u8)
            .collect()
    }

    /// Nearly normal numbers: the sum of twelve uniform ones has variance 1.
    fn noise() -> Vec<f32> {
        let mut random = Philox::new(5, 0);
        let mut normal = || (0..12).map(|_| random.uniform()).sum::<f32>() - 6.0;
        (0..50_021).map(|_| SIGMA * normal()).collect()
    }

    /// Colour at half resolution and lightness in steps of 8, much as JPEG does.
    fn coarsen(rgb: &[u8], side: usize) -> Vec<u8> {
        let lightness = |p: usize| (0..3).map(|c| f32::from(rgb[p * 3 + c])).sum::<f32>() / 3.0;
        let value = |i: usize| {
            let [pixel, channel] = [i / 3, i % 3];
            let [x, y] = [pixel % side / 2 * 2, pixel / side / 2 * 2];
            let block = [0, 1, side, side + 1].map(|offset| y * side + x + offset);
            let colour: f32 =
                block.iter().map(|p| f32::from(rgb[p * 3 + channel]) - lightness(*p)).sum();
            ((lightness(pixel) / 8.0).round() * 8.0 + colour / 4.0).round() as u8
        };
        (0..rgb.len()).map(value).collect()
    }

    #[test]
    fn clean_pictures_are_read_rightly() {
        for kind in Kind::ALL {
            for (side, count) in [(64, 500), (128, 20)] {
                let right = accuracies(scenes(kind, count), side, |picture| picture);
                assert!(right.iter().all(|share| *share >= 0.995), "{kind:?} {side} {right:?}");
            }
        }
    }

    #[test]
    fn blurred_and_noisy_pictures_are_read_rightly() {
        let noise = noise();
        let noisy = |picture: Vec<u8>| add_noise(&blur(&picture, 64), &noise);
        let coarse = |picture: Vec<u8>| add_noise(&coarsen(&blur(&picture, 64), 64), &noise);
        for kind in Kind::ALL {
            let noisy = accuracies(scenes(kind, 100), 64, noisy);
            for right in [noisy, accuracies(scenes(kind, 100), 64, coarse)] {
                assert!(right.iter().all(|share| *share >= 0.97), "{kind:?} {right:?}");
            }
        }
    }

    /// The comparison can fail: a picture of another scene is not read as this one.
    #[test]
    fn other_pictures_are_told_apart() {
        let scene = |index| evaluation(Kind::One, Split::Seen, 11, index).scene;
        let same = |index| compare(&scene(index), &read_scene(&draw(&scene(index + 1), 64), 64))[6];
        assert!(!(0..50).any(same));
    }

    #[test]
    fn an_empty_picture_has_no_objects() {
        let scene = read_scene(&[128; 64 * 64 * 3], 64);
        assert_eq!(scene.background, crate::shapes::Background::Gray);
        assert!(scene.objects.is_empty());
    }
}
