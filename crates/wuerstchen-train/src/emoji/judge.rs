//! Judges what a picture shows: the nearest of all pictures that the art can draw.
//!
//! Pictures are compared by their crops: the square around all pixels that differ from the background, at
//! [`CROP_SIDE`] pixels. The distance of two crops is the mean squared difference of red, green and blue.

use std::sync::OnceLock;

use rayon::prelude::*;
use resvg::tiny_skia::{Pixmap, Transform};

use super::art::Art;
use super::draw::tinted;
use super::sample::arrangement;
use super::scene::{Ground, Request, Scene, Subject, Thing};
use super::words::{Colour, Style, Tint};
use crate::shapes::Relation;

/// Side of a concept's picture before it is cropped, in pixels.
const SPRITE_SIDE: usize = 48;

/// Side of a crop in pixels.
const CROP_SIDE: usize = 16;

/// A pixel belongs to an object if one of its channels differs from the background by more than this, out of 255.
const DIFFERENCE: f32 = 48.0;

/// Where the cut between two objects may lie, in sides of the picture.
const CUTS: [f32; 2] = [0.36, 0.64];

/// A crop: red, green and blue of every pixel.
type Crop = [[f32; 3]; CROP_SIDE * CROP_SIDE];

/// Compares pictures with all of the art.
pub struct Judge<'a> {
    art: &'a Art,
    /// Every concept's picture in a style, made when it is first needed.
    sprites: [OnceLock<Vec<Option<Pixmap>>>; Style::ALL.len()],
}

/// What is right about a picture; `None` where the request does not ask for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// No other colour is nearer to the background than the one asked for.
    pub background: Option<bool>,
    /// How many concepts are at least as near as the one asked for, counted from 1; for two objects the
    /// larger of both ranks.
    pub rank: Option<usize>,
    /// The tint is nearer than the others and than none.
    pub tint: Option<bool>,
    /// The relation holds; asked only where both objects are right.
    pub relation: Option<bool>,
    /// The picture is nearer to that many than to any other number from 1 to 4.
    pub count: Option<bool>,
}

/// A square picture of red, green and blue.
struct View<'a> {
    rgb: &'a [u8],
    side: usize,
}

impl<'a> Judge<'a> {
    /// A judge of pictures of this art.
    pub fn new(art: &'a Art) -> Self {
        Self { art, sprites: [const { OnceLock::new() }; Style::ALL.len()] }
    }

    /// Judges a picture, `side` rows of `side` pixels of red, green and blue, by what was asked for.
    ///
    /// # Panics
    ///
    /// Panics if the style does not draw a concept of the request, or `rgb` has fewer than `3·side²` bytes.
    pub fn judge(&self, request: &Request, rgb: &[u8], side: usize) -> Verdict {
        let view = View { rgb, side };
        let border = view.border();
        let style = request.style.unwrap_or(Style::Glossy);
        let asked = match request.ground {
            None => Some(Colour::White),
            Some(Ground::Plain(colour)) => Some(colour),
            Some(Ground::Halves { .. }) => None,
        };
        let mut verdict = Verdict {
            background: asked.map(|asked| Colour::nearest(border) == asked),
            rank: None,
            tint: None,
            relation: None,
            count: None,
        };
        let whole = [0, 0, side, side];
        match request.subject {
            Subject::One { thing, .. } => {
                let crop = view.crop(whole, border);
                verdict.rank = Some(self.rank(thing, style, border, &crop));
                verdict.tint =
                    thing.tint.map(|tint| self.is_tint(thing, tint, style, border, &crop));
            }
            Subject::Two { first, relation, second } => {
                let (axis, parts) = view.halves(border);
                let crops = parts.map(|part| view.crop(part, border));
                let ranks = |order: [Thing; 2]| {
                    let rank = |i: usize| self.rank(order[i], style, border, &crops[i]);
                    rank(0).max(rank(1))
                };
                let (straight, turned) = (ranks([first, second]), ranks([second, first]));
                verdict.rank = Some(straight.min(turned));
                verdict.relation = (straight.min(turned) == 1).then(|| {
                    let first_leads = straight <= turned;
                    let leads = matches!(relation, Relation::LeftOf | Relation::Above);
                    axis == relation.axis().0 && first_leads == leads
                });
            }
            Subject::Many { count, thing } => {
                verdict.count = Some(self.count(thing, style, border, &view) == count);
            }
        }
        verdict
    }

    /// How many concepts are at least as near to the crop as the one of `thing`, with its tint.
    fn rank(&self, thing: Thing, style: Style, background: [f32; 3], crop: &Crop) -> usize {
        let distance = |concept| self.distance(Thing { concept, ..thing }, style, background, crop);
        let own = distance(thing.concept).expect("the style draws what was asked for");
        // All cores work on this, because the picture is compared with more than a thousand concepts.
        let concepts = (0..self.art.concepts().len()).into_par_iter();
        let others = concepts.filter(|&other| other != thing.concept);
        1 + others.filter_map(distance).filter(|&other| other <= own).count()
    }

    fn is_tint(
        &self,
        thing: Thing,
        asked: Tint,
        style: Style,
        background: [f32; 3],
        crop: &Crop,
    ) -> bool {
        let tints = Tint::ALL.into_iter().map(Some).chain([None]);
        let distance = |tint: &Option<Tint>| {
            let thing = Thing { tint: *tint, ..thing };
            self.distance(thing, style, background, crop).expect("the style draws it")
        };
        tints.min_by(|a, b| distance(a).total_cmp(&distance(b))) == Some(Some(asked))
    }

    /// The distance of a thing on this background from a crop; `None` where the style does not draw the thing.
    fn distance(
        &self,
        thing: Thing,
        style: Style,
        background: [f32; 3],
        crop: &Crop,
    ) -> Option<f32> {
        let sprite = self.sprites(style)[thing.concept].as_ref()?;
        let rgb = sprite.pixels().iter().flat_map(|pixel| {
            let pixel = thing.tint.map_or(*pixel, |tint| tinted(*pixel, tint));
            let rest = 1.0 - f32::from(pixel.alpha()) / 255.0;
            let own = [pixel.red(), pixel.green(), pixel.blue()];
            [0, 1, 2].map(|i| (f32::from(own[i]) + rest * background[i]).round() as u8)
        });
        let rgb: Vec<u8> = rgb.collect();
        let view = View { rgb: &rgb, side: SPRITE_SIDE };
        let own = view.crop([0, 0, SPRITE_SIDE, SPRITE_SIDE], background);
        Some(squared_difference(&own, crop))
    }

    /// The number of a thing from 1 to 4 whose arrangement is nearest to the picture.
    fn count(&self, thing: Thing, style: Style, background: [f32; 3], view: &View<'_>) -> u32 {
        let whole = [0, 0, view.side, view.side];
        let seen = view.scaled(whole, background);
        let ground = Ground::Plain(Colour::nearest(background));
        let distance = |count: u32| {
            let scene = Scene { ground, style, objects: arrangement(thing, count) };
            let rgb = self.art.draw(&scene, view.side as u32);
            let drawn = View { rgb: &rgb, side: view.side }.scaled(whole, background);
            squared_difference(&drawn, &seen)
        };
        (1..=4).min_by(|&a, &b| distance(a).total_cmp(&distance(b))).expect("there are four")
    }

    fn sprites(&self, style: Style) -> &[Option<Pixmap>] {
        let side = SPRITE_SIDE as f32;
        self.sprites[style as usize].get_or_init(|| {
            let sprite = |concept: &super::Concept| {
                concept.has(style).then(|| {
                    let mut sprite =
                        Pixmap::new(SPRITE_SIDE as u32, SPRITE_SIDE as u32).expect("it has pixels");
                    concept.render(style, Transform::from_scale(side, side), &mut sprite);
                    sprite
                })
            };
            self.art.concepts().iter().map(sprite).collect()
        })
    }
}

fn squared_difference(a: &Crop, b: &Crop) -> f32 {
    let pixels = a.iter().zip(b);
    let sum: f32 = pixels.map(|(a, b)| (0..3).map(|i| (a[i] - b[i]).powi(2)).sum::<f32>()).sum();
    sum / (3 * a.len()) as f32
}

impl View<'_> {
    fn pixel(&self, x: usize, y: usize) -> [f32; 3] {
        let start = 3 * (y * self.side + x);
        [0, 1, 2].map(|i| f32::from(self.rgb[start + i]))
    }

    /// The median colour of the outermost pixels.
    fn border(&self) -> [f32; 3] {
        let last = self.side - 1;
        let edge = (0..self.side).flat_map(|i| [(i, 0), (i, last), (0, i), (last, i)]);
        let pixels: Vec<_> = edge.map(|(x, y)| self.pixel(x, y)).collect();
        [0, 1, 2].map(|i| {
            let mut values: Vec<_> = pixels.iter().map(|pixel| pixel[i]).collect();
            let middle = values.len() / 2;
            *values.select_nth_unstable_by(middle, f32::total_cmp).1
        })
    }

    fn is_object(&self, x: usize, y: usize, background: [f32; 3]) -> bool {
        let pixel = self.pixel(x, y);
        (0..3).any(|i| (pixel[i] - background[i]).abs() > DIFFERENCE)
    }

    /// The square around the object's pixels in a part of the picture (left, top, right, bottom).
    fn crop(&self, part: [usize; 4], background: [f32; 3]) -> Crop {
        let [left, top, right, bottom] = part;
        let mut found = [right, bottom, left, top];
        for y in top..bottom {
            for x in (left..right).filter(|&x| self.is_object(x, y, background)) {
                found[0] = found[0].min(x);
                found[1] = found[1].min(y);
                found[2] = found[2].max(x + 1);
                found[3] = found[3].max(y + 1);
            }
        }
        if found[0] < found[2] {
            self.scaled(found, background)
        } else {
            [background; CROP_SIDE * CROP_SIDE]
        }
    }

    /// The smallest square around a part, at [`CROP_SIDE`] pixels by bilinear interpolation; outside the
    /// part lies the background.
    fn scaled(&self, [left, top, right, bottom]: [usize; 4], background: [f32; 3]) -> Crop {
        let side = (right - left).max(bottom - top) as f32;
        let [x0, y0] = [left + right, top + bottom].map(|sum| (sum as f32 - side) / 2.0);
        let inside = |x: isize, y: isize| {
            let is_inside = x >= left as isize
                && x < right as isize
                && y >= top as isize
                && y < bottom as isize;
            if is_inside { self.pixel(x as usize, y as usize) } else { background }
        };
        let at = |x: f32, y: f32| {
            let [column, row] = [x.floor(), y.floor()];
            let [share_x, share_y] = [x - column, y - row];
            let mut mixed = [0.0; 3];
            for (dx, dy, weight) in [
                (0, 0, (1.0 - share_x) * (1.0 - share_y)),
                (1, 0, share_x * (1.0 - share_y)),
                (0, 1, (1.0 - share_x) * share_y),
                (1, 1, share_x * share_y),
            ] {
                let pixel = inside(column as isize + dx, row as isize + dy);
                (0..3).for_each(|i| mixed[i] += weight * pixel[i]);
            }
            mixed
        };
        // Four samples a pixel, so that thin lines are not missed.
        let step = side / CROP_SIDE as f32;
        let mut crop = [[0.0; 3]; CROP_SIDE * CROP_SIDE];
        for (i, pixel) in crop.iter_mut().enumerate() {
            let [column, row] = [i % CROP_SIDE, i / CROP_SIDE].map(|i| i as f32);
            for (dx, dy) in [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)] {
                let sample = at(x0 + (column + dx) * step - 0.5, y0 + (row + dy) * step - 0.5);
                (0..3).for_each(|i| pixel[i] += sample[i] / 4.0);
            }
        }
        crop
    }

    /// The axis (0 is x) along which two objects are parted best, and both parts. The cut lies near the middle where
    /// it crosses the fewest pixels of objects.
    fn halves(&self, background: [f32; 3]) -> (usize, [[usize; 4]; 2]) {
        let side = self.side;
        let [first, last] = CUTS.map(|cut| (cut * side as f32).round() as usize);
        let crossed = |axis: usize, cut: usize| {
            let is_object = |i: &usize| match axis {
                0 => self.is_object(cut, *i, background),
                _ => self.is_object(*i, cut, background),
            };
            (0..side).filter(is_object).count()
        };
        let cuts = [0, 1].into_iter().flat_map(|axis| (first..=last).map(move |cut| (axis, cut)));
        let middle = |cut: usize| (2 * cut).abs_diff(side);
        let (axis, cut) = cuts
            .min_by_key(|&(axis, cut)| (crossed(axis, cut), middle(cut)))
            .expect("the middle has pixels");
        let parts = match axis {
            0 => [[0, 0, cut, side], [cut, 0, side, side]],
            _ => [[0, 0, side, cut], [0, cut, side, side]],
        };
        (axis, parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emoji::invented::invented_art;
    use crate::emoji::{Kind, Split, evaluation};

    /// True pictures are right in every respect, nearly always: some patterns tell little when small.
    #[test]
    fn true_pictures_are_right_and_others_wrong() {
        const PROMPTS: usize = 60;
        let art = invented_art();
        let judge = Judge::new(&art);
        for kind in Kind::ALL {
            let sample = |i: usize| evaluation(&art, kind, Split::Seen, 1, i as u64);
            let (mut right, mut lucky) = (0, 0);
            for i in 0..PROMPTS {
                let asked = sample(i).request;
                let all = |scene: &Scene| {
                    let verdict = judge.judge(&asked, &art.draw(scene, 64), 64);
                    let Verdict { background, rank, tint, relation, count } = verdict;
                    rank.is_none_or(|rank| rank == 1)
                        && [background, tint, relation, count].into_iter().flatten().all(|it| it)
                };
                right += usize::from(all(&sample(i).scene));
                lucky += usize::from(all(&sample(i + PROMPTS).scene));
            }
            assert!(right >= PROMPTS - 3, "{kind:?}: {right}");
            assert!(lucky <= 3, "{kind:?}: {lucky}");
        }
    }

    #[test]
    fn an_empty_picture_shows_nothing() {
        let art = invented_art();
        let asked = evaluation(&art, Kind::One, Split::Seen, 1, 0).request;
        let verdict = Judge::new(&art).judge(&asked, &[255; 3 * 64 * 64], 64);
        assert!(verdict.rank.unwrap() > 1);
    }
}
