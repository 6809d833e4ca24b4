//! The edges of a picture, found as OpenCV's `Canny` finds them.

use burn::prelude::*;

/// The magnitudes of gradients between which a pixel is an edge only beside another one, as the authors choose them.
const THRESHOLDS: [i32; 2] = [100, 200];

/// The tangent of 22.5 degrees in units of 2^-15, with which OpenCV tells the directions of gradients apart.
const TANGENT: i32 = 13573;

/// The neighbours of a pixel, as steps of rows and columns.
const NEIGHBOURS: [[isize; 2]; 8] =
    [[-1, -1], [-1, 0], [-1, 1], [0, -1], [0, 1], [1, -1], [1, 0], [1, 1]];

/// A value for every pixel, row by row; outside of the picture, the value is 0.
struct Plane<T> {
    width: usize,
    height: usize,
    values: Vec<T>,
}

impl<T: Copy + Default> Plane<T> {
    fn at(&self, y: isize, x: isize) -> T {
        self.index(y, x).map_or(T::default(), |i| self.values[i])
    }

    fn index(&self, y: isize, x: isize) -> Option<usize> {
        let (y, x) = (usize::try_from(y).ok()?, usize::try_from(x).ok()?);
        (y < self.height && x < self.width).then_some(y * self.width + x)
    }
}

/// What a pixel is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Pixel {
    #[default]
    NoEdge,
    /// An edge if one of its neighbours is.
    MaybeEdge,
    Edge,
}

/// The edges of a picture `[1, C, H, W]` in `[0, 1]`: 1 where there is one, else 0, row by row.
///
/// Gradients are those of Sobel's 3x3 kernels over bytes, rounded down. A pixel has the gradient of the channel in which
/// it is strongest, measured by the sum of its absolute parts.
///
/// # Panics
///
/// Panics if `values` is not of that shape or not f32.
pub(crate) fn edges(values: &TensorData) -> Vec<f32> {
    let [_, channels, height, width] = values.shape().dims();
    let values = values.as_slice::<f32>().expect("pictures are f32");
    let area = height * width;
    let channel = |c: usize| {
        let bytes = values[c * area..][..area].iter().map(|&v| i32::from((v * 255.0) as u8));
        gradients(&Plane { width, height, values: bytes.collect() })
    };
    let all: Vec<_> = (0..channels).map(channel).collect();
    // The first of several equal ones, as OpenCV takes it.
    let strongest = |i: usize| {
        let each = all.iter().map(|gradients| gradients[i]);
        each.reduce(|a, b| if size(b) > size(a) { b } else { a }).unwrap_or_default()
    };
    let gradients: Vec<_> = (0..area).map(strongest).collect();
    let sizes = gradients.iter().map(|&gradient| size(gradient)).collect();
    let pixels = thin(&gradients, &Plane { width, height, values: sizes });
    follow(pixels).values.iter().map(|&pixel| f32::from(pixel == Pixel::Edge)).collect()
}

fn size([dx, dy]: [i32; 2]) -> i32 {
    dx.abs() + dy.abs()
}

/// Sobel's gradients `[dx, dy]` of every pixel; the border continues outside of the picture.
fn gradients(plane: &Plane<i32>) -> Vec<[i32; 2]> {
    let (width, height) = (plane.width as isize, plane.height as isize);
    let at = |y: isize, x: isize| plane.at(y.clamp(0, height - 1), x.clamp(0, width - 1));
    let gradient = |y: isize, x: isize| {
        let column = |x: isize| at(y - 1, x) + 2 * at(y, x) + at(y + 1, x);
        let row = |y: isize| at(y, x - 1) + 2 * at(y, x) + at(y, x + 1);
        [column(x + 1) - column(x - 1), row(y + 1) - row(y - 1)]
    };
    (0..height).flat_map(|y| (0..width).map(move |x| (y, x))).map(|(y, x)| gradient(y, x)).collect()
}

/// Leaves the pixels whose gradient is the largest along its direction.
fn thin(gradients: &[[i32; 2]], sizes: &Plane<i32>) -> Plane<Pixel> {
    let [low, high] = THRESHOLDS;
    let pixel = |i: usize| {
        let ([dx, dy], own) = (gradients[i], sizes.values[i]);
        let (y, x) = ((i / sizes.width) as isize, (i % sizes.width) as isize);
        if own <= low {
            return Pixel::NoEdge;
        }
        let (across, down) = (dx.abs(), dy.abs() << 15);
        let shallow = across * TANGENT;
        // The tangent of 67.5 degrees is that of 22.5 degrees plus 2.
        let steep = shallow + (across << 16);
        let is_largest = if down < shallow {
            own > sizes.at(y, x - 1) && own >= sizes.at(y, x + 1)
        } else if down > steep {
            own > sizes.at(y - 1, x) && own >= sizes.at(y + 1, x)
        } else {
            let side = if (dx ^ dy) < 0 { -1 } else { 1 };
            own > sizes.at(y - 1, x - side) && own > sizes.at(y + 1, x + side)
        };
        if !is_largest {
            Pixel::NoEdge
        } else if own > high {
            Pixel::Edge
        } else {
            Pixel::MaybeEdge
        }
    };
    let values = (0..gradients.len()).map(pixel).collect();
    Plane { width: sizes.width, height: sizes.height, values }
}

/// Makes edges of all pixels that may be edges and touch one.
fn follow(mut pixels: Plane<Pixel>) -> Plane<Pixel> {
    let is_edge = |i: &usize| pixels.values[*i] == Pixel::Edge;
    let mut open: Vec<usize> = (0..pixels.values.len()).filter(is_edge).collect();
    while let Some(i) = open.pop() {
        let (y, x) = ((i / pixels.width) as isize, (i % pixels.width) as isize);
        for [down, across] in NEIGHBOURS {
            if let Some(i) = pixels.index(y + down, x + across)
                && pixels.values[i] == Pixel::MaybeEdge
            {
                pixels.values[i] = Pixel::Edge;
                open.push(i);
            }
        }
    }
    pixels
}
