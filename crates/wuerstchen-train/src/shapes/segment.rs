//! The first half of reading a picture: its background and the pixels of each object.

use super::words::{Background, Colour};

/// Distance from the background, in 8-bit steps, from which a pixel belongs to an object: above the noise of a lossy
/// autoencoder, below half of every object's contrast.
const FOREGROUND_DISTANCE: f32 = 42.0;

/// Smallest area of an object, in squared sides; the smallest star that is drawn has five times as much.
const MIN_AREA: f32 = 0.004;

/// Share of the object in a mixed pixel from which the pixel votes on the object's colour.
const VOTING_SHARE: f32 = 0.6;

/// A picture as numbers, with what is known of its background.
pub(super) struct Picture {
    pub(super) side: usize,
    pub(super) background: Background,
    /// Median colour of the border pixels that show the background.
    pub(super) measured: [f32; 3],
    pixels: Vec<[f32; 3]>,
}

/// The pixels of one object.
pub(super) struct Blob {
    pub(super) colour: Colour,
    /// Indices of its pixels, row by row.
    pub(super) pixels: Vec<usize>,
}

impl Picture {
    /// Reads `side` rows of `side` pixels; the majority of the border is the background.
    pub(super) fn new(rgb: &[u8], side: usize) -> Self {
        let pixels: Vec<[f32; 3]> =
            rgb.chunks_exact(3).map(|p| [p[0], p[1], p[2]].map(f32::from)).collect();
        let on_border = |i: &usize| {
            let [x, y] = [i % side, i / side];
            x.min(y) == 0 || x.max(y) == side - 1
        };
        let border: Vec<[f32; 3]> =
            (0..pixels.len()).filter(on_border).map(|i| pixels[i]).collect();
        let nearest = |pixel: &[f32; 3]| {
            nearest(Background::ALL, |b| distance(*pixel, b.rgb().map(f32::from)))
        };
        let mut votes = [0; Background::ALL.len()];
        for pixel in &border {
            votes[nearest(pixel) as usize] += 1;
        }
        let background = nearest_by_votes(&votes);
        let measured = median(border.into_iter().filter(|p| nearest(p) == background).collect());
        Self { side, background, measured, pixels }
    }

    /// The pixels of every object, touching ones told apart by colour.
    pub(super) fn blobs(&self) -> Vec<Blob> {
        let is_foreground =
            |i: &usize| distance(self.pixels[*i], self.measured) > FOREGROUND_DISTANCE;
        let foreground: Vec<usize> = (0..self.pixels.len()).filter(is_foreground).collect();
        self.components(&foreground).iter().flat_map(|pixels| self.split(pixels)).collect()
    }

    /// Colour at the heart of the object: the median of the third of its pixels that differs most
    /// from the background, which edges do not reach.
    pub(super) fn inner_colour(&self, pixels: &[usize]) -> [f32; 3] {
        let contrast = |i: &usize| (distance(self.pixels[*i], self.measured), self.pixels[*i]);
        let mut inner: Vec<(f32, [f32; 3])> = pixels.iter().map(contrast).collect();
        inner.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        inner.truncate(inner.len().div_ceil(3));
        median(inner.into_iter().map(|(_, colour)| colour).collect())
    }

    /// How much of pixel `index` shows `colour` in front of the background, and the distance of
    /// the pixel from that mixture.
    pub(super) fn unmix(&self, index: usize, colour: [f32; 3]) -> (f32, f32) {
        let line = [0, 1, 2].map(|c| colour[c] - self.measured[c]);
        let pixel = [0, 1, 2].map(|c| self.pixels[index][c] - self.measured[c]);
        let length: f32 = line.iter().map(|v| v * v).sum();
        let along: f32 = line.iter().zip(pixel).map(|(l, p)| l * p).sum();
        let share = (along / length.max(1.0)).clamp(0.0, 1.0);
        (share, distance(pixel, line.map(|v| v * share)))
    }

    /// Splits a component where several colours have an area each.
    fn split(&self, pixels: &[usize]) -> Vec<Blob> {
        let mut votes = [0; Colour::ALL.len()];
        for index in pixels {
            let colour = self.colour_of(*index, &Colour::ALL);
            if self.unmix(*index, colour.rgb().map(f32::from)).0 > VOTING_SHARE {
                votes[colour as usize] += 1;
            }
        }
        let has_area = |colour: &Colour| votes[*colour as usize] >= self.min_pixels();
        let present: Vec<Colour> = Colour::ALL.into_iter().filter(has_area).collect();
        if present.len() < 2 {
            let colour = self.nearest_colour(self.inner_colour(pixels));
            return vec![Blob { colour, pixels: pixels.to_vec() }];
        }
        let part = |colour: Colour| {
            let own = |i: &usize| self.colour_of(*i, &present) == colour;
            let own: Vec<usize> = pixels.iter().copied().filter(own).collect();
            self.components(&own).into_iter().map(move |pixels| Blob { colour, pixels })
        };
        present.iter().flat_map(|colour| part(*colour)).collect()
    }

    /// The colour among `choices` whose mixture with the background is nearest to a pixel.
    fn colour_of(&self, index: usize, choices: &[Colour]) -> Colour {
        nearest(choices.iter().copied(), |c| self.unmix(index, c.rgb().map(f32::from)).1)
    }

    fn nearest_colour(&self, colour: [f32; 3]) -> Colour {
        nearest(Colour::ALL, |c| distance(colour, c.rgb().map(f32::from)))
    }

    /// Groups of neighbours, diagonal ones included, that have an object's area.
    fn components(&self, members: &[usize]) -> Vec<Vec<usize>> {
        let mut unseen = vec![false; self.pixels.len()];
        for index in members {
            unseen[*index] = true;
        }
        let mut components = Vec::new();
        for start in members {
            if !std::mem::take(&mut unseen[*start]) {
                continue;
            }
            let mut component = vec![*start];
            let mut next = 0;
            while next < component.len() {
                for neighbour in neighbours(component[next], self.side) {
                    if std::mem::take(&mut unseen[neighbour]) {
                        component.push(neighbour);
                    }
                }
                next += 1;
            }
            component.sort_unstable();
            components.push(component);
        }
        components.retain(|component| component.len() >= self.min_pixels());
        components
    }

    fn min_pixels(&self) -> usize {
        (MIN_AREA * (self.side * self.side) as f32).ceil() as usize
    }
}

/// The up to eight pixels around pixel `index`.
pub(super) fn neighbours(index: usize, side: usize) -> impl Iterator<Item = usize> {
    let [x, y] = [index % side, index / side];
    let rows = y.saturating_sub(1)..=(y + 1).min(side - 1);
    let columns = x.saturating_sub(1)..=(x + 1).min(side - 1);
    rows.flat_map(move |row| columns.clone().map(move |column| row * side + column))
        .filter(move |neighbour| *neighbour != index)
}

fn nearest_by_votes(votes: &[i32; Background::ALL.len()]) -> Background {
    nearest(Background::ALL, |b| -votes[b as usize] as f32)
}

/// The choice with the smallest cost; the earlier of equals.
pub(super) fn nearest<T: Copy>(choices: impl IntoIterator<Item = T>, cost: impl Fn(T) -> f32) -> T {
    let costs = choices.into_iter().map(|choice| (choice, cost(choice)));
    let (choice, _) = costs.min_by(|a, b| a.1.total_cmp(&b.1)).expect("there is a choice");
    choice
}

fn distance(a: [f32; 3], b: [f32; 3]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

/// Median of each channel.
fn median(mut colours: Vec<[f32; 3]>) -> [f32; 3] {
    let middle = colours.len() / 2;
    [0, 1, 2].map(|channel| {
        let by_channel = |a: &[f32; 3], b: &[f32; 3]| a[channel].total_cmp(&b[channel]);
        colours.select_nth_unstable_by(middle, by_channel).1[channel]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 32-pixel picture, gray but for the rectangles `[left, top, right, bottom]`.
    fn picture(rectangles: &[([usize; 4], Colour)]) -> Picture {
        let mut rgb = Background::Gray.rgb().repeat(32 * 32);
        for ([left, top, right, bottom], colour) in rectangles {
            for (x, y) in (*left..*right).flat_map(|x| (*top..*bottom).map(move |y| (x, y))) {
                rgb[(y * 32 + x) * 3..][..3].copy_from_slice(&colour.rgb());
            }
        }
        Picture::new(&rgb, 32)
    }

    #[test]
    fn touching_objects_are_told_apart_by_colour() {
        let touching = [([4, 4, 12, 12], Colour::Red), ([12, 6, 20, 14], Colour::Cyan)];
        let blobs = picture(&touching).blobs();
        let areas: Vec<_> = blobs.iter().map(|blob| (blob.colour, blob.pixels.len())).collect();
        assert_eq!(areas, [(Colour::Red, 64), (Colour::Cyan, 64)]);
    }

    /// 0.004 · 32² is 4.1: four pixels are a speck, six an object.
    #[test]
    fn specks_are_no_objects() {
        let specks = [([4, 4, 6, 6], Colour::Red), ([12, 6, 14, 9], Colour::Red)];
        let blobs = picture(&specks).blobs();
        assert_eq!(blobs.len(), 1);
        assert_eq!(blobs[0].pixels.len(), 6);
    }

    /// Half red in front of gray: share 0.5, no distance.
    #[test]
    fn unmixing_finds_the_share_of_an_edge_pixel() {
        let picture = picture(&[]);
        let red = Colour::Red.rgb().map(f32::from);
        let mut half = Picture { pixels: vec![[0.0; 3]], ..picture };
        half.pixels[0] = [0, 1, 2].map(|c| (half.measured[c] + red[c]) / 2.0);
        let (share, distance) = half.unmix(0, red);
        assert!((share - 0.5).abs() < 1e-5 && distance < 1e-3);
    }
}
