//! Random captioned scenes: a seed and an index give a sample.

use wuerstchen::noise::Philox;

use super::art::Art;
use super::caption::caption;
use super::held_out::{is_held_out, is_unseen_by_stage_a};
use super::scene::{Ground, Object, Request, Scene, Subject, Thing};
use super::words::{Colour, Size, Style, Tint};
use crate::lesson::Lesson;
use crate::lots::{pick, stream};
use crate::shapes::{Relation, Split};

/// Shares of training scenes with two objects, and with several of the same object; the others show one object.
const SHARE_TWO: f32 = 0.12;
const SHARE_MANY: f32 = 0.08;

/// Shares of training captions that state the style, the background and a size, and of objects that have a tint.
const SHARE_STYLE: f32 = 0.4;
const SHARE_GROUND: f32 = 0.55;
const SHARE_SIZE: f32 = 0.15;
const SHARE_TINT: f32 = 0.12;

/// Share of stated backgrounds that have two colours.
const SHARE_HALVES: f32 = 0.08;

/// Side of an object whose size is not stated, in sides of the picture.
const SIDES: [f32; 2] = [0.72, 0.90];

/// Largest distance of an object's centre from where it should lie, in sides of the picture.
const JITTER: f32 = 0.05;

/// Largest share of an object's pixels that may look like the background.
const MAX_SHARE_HIDDEN: f32 = 0.55;

/// Captions of one sample.
const WORDINGS: usize = 4;

/// The purpose of the random numbers of [`unseen_sample`].
const UNSEEN: u64 = 255;

/// How many objects a scene has, and how they are described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// One object.
    One,
    /// One object in a tint.
    Tinted,
    /// Two objects in a relation.
    Two,
    /// Two to four of the same.
    Many,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::One, Self::Tinted, Self::Two, Self::Many];
}

/// A scene with its captions.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// What the picture shows.
    pub scene: Scene,
    /// What the captions ask for; the scene fulfils it.
    pub request: Request,
    /// The request in words, in several wordings.
    pub captions: Vec<String>,
}

/// Sample number `index` of the training corpus of `seed`. It contains no held-out combination.
///
/// # Panics
///
/// Panics if `index` is 2⁵⁶ or more.
pub fn sample(art: &Art, seed: u64, index: u64, lesson: &Lesson) -> Sample {
    draw_training(art, lesson, &mut stream(seed, 0, index))
}

/// Sample number `index` of the corpus of Stage A. A tenth of the concepts never occurs in it: they measure how well
/// Stage A handles new ones.
///
/// # Panics
///
/// Panics if `index` is 2⁵⁶ or more.
pub fn stage_a_sample(art: &Art, seed: u64, index: u64, lesson: &Lesson) -> Sample {
    let mut random = stream(seed, 0, index);
    loop {
        let sample = draw_training(art, lesson, &mut random);
        if !sample.scene.objects.iter().any(|object| is_unseen(art, object)) {
            return sample;
        }
    }
}

/// Sample number `index` of one object that Stage A has never seen, on any background.
///
/// # Panics
///
/// Panics if `index` is 2⁵⁶ or more.
pub fn unseen_sample(art: &Art, seed: u64, index: u64) -> Sample {
    let mut random = stream(seed, UNSEEN, index);
    let shares = Shares { style: SHARE_STYLE, ground: SHARE_GROUND, size: 0.0 };
    loop {
        let sample = draw_lots(art, Kind::One, Split::Seen, &shares, &mut random);
        if sample.scene.objects.iter().all(|object| is_unseen(art, object)) {
            return sample;
        }
    }
}

fn is_unseen(art: &Art, object: &Object) -> bool {
    is_unseen_by_stage_a(&art.concepts()[object.thing.concept].name)
}

fn draw_training(art: &Art, lesson: &Lesson, random: &mut Philox) -> Sample {
    let two = lesson.two_objects.map_or(SHARE_TWO, |share| share as f32);
    let many = (1.0 - two) / (1.0 - SHARE_TWO) * SHARE_MANY;
    let lot = random.uniform();
    let kind = if lot < two {
        Kind::Two
    } else if lot < two + many {
        Kind::Many
    } else if random.uniform() < lesson.tinted.map_or(SHARE_TINT, |share| share as f32) {
        Kind::Tinted
    } else {
        Kind::One
    };
    let shares = Shares { style: SHARE_STYLE, ground: SHARE_GROUND, size: SHARE_SIZE };
    draw_lots(art, kind, Split::Seen, &shares, random)
}

/// Sample number `index` for the evaluation of one kind of scene. Its captions always state a plain background, and
/// never a size.
///
/// # Panics
///
/// Panics if `index` is 2⁵⁶ or more.
pub fn evaluation(art: &Art, kind: Kind, split: Split, seed: u64, index: u64) -> Sample {
    let purpose = 1 + kind as u64 * Split::ALL.len() as u64 + split as u64;
    let mut random = stream(seed, purpose, index);
    let shares = Shares { style: SHARE_STYLE, ground: 1.0, size: 0.0 };
    loop {
        let sample = draw_lots(art, kind, split, &shares, &mut random);
        if matches!(sample.scene.ground, Ground::Plain(_)) {
            return sample;
        }
    }
}

/// The shares of captions that state the style, the background and a size.
struct Shares {
    style: f32,
    ground: f32,
    size: f32,
}

fn draw_lots(art: &Art, kind: Kind, split: Split, shares: &Shares, random: &mut Philox) -> Sample {
    let request = loop {
        let request = request(art, kind, shares, random);
        let fits = is_held_out(&request, |thing| art.name(thing)) == (split == Split::HeldOut);
        if fits && can_be_seen(art, &request) {
            break request;
        }
    };
    let scene = Scene {
        ground: request.ground.unwrap_or(Ground::Plain(Colour::White)),
        style: request.style.unwrap_or(Style::Glossy),
        objects: place(&request.subject, random),
    };
    let captions = (0..WORDINGS).map(|_| caption(art, &request, random)).collect();
    Sample { scene, request, captions }
}

fn request(art: &Art, kind: Kind, shares: &Shares, random: &mut Philox) -> Request {
    let style = (random.uniform() < shares.style).then(|| pick(random, &Style::ALL));
    let ground = (random.uniform() < shares.ground).then(|| ground(random));
    let tint = |always: bool, random: &mut Philox| {
        let tinted = always || (kind != Kind::One && random.uniform() < SHARE_TINT);
        tinted.then(|| pick(random, &Tint::ALL))
    };
    let thing = |random: &mut Philox| Thing {
        concept: art.draw_concept(random.uniform()),
        tint: tint(kind == Kind::Tinted, random),
    };
    let subject = match kind {
        Kind::One | Kind::Tinted => {
            let said = random.uniform() < shares.size;
            let size = said.then(|| pick(random, &[Size::Small, Size::Small, Size::Large]));
            Subject::One { thing: thing(random), size }
        }
        Kind::Two => {
            let [first, mut second] = [thing(random), thing(random)];
            while second.concept == first.concept {
                second = thing(random);
            }
            Subject::Two { first, relation: pick(random, &Relation::ALL), second }
        }
        Kind::Many => Subject::Many { count: 2 + random.below(3), thing: thing(random) },
    };
    Request { ground, style, subject }
}

fn ground(random: &mut Philox) -> Ground {
    let upper = pick(random, &Colour::ALL);
    if random.uniform() >= SHARE_HALVES {
        return Ground::Plain(upper);
    }
    let mut lower = upper;
    while lower == upper {
        lower = pick(random, &Colour::ALL);
    }
    Ground::Halves { upper, lower }
}

/// Whether the style draws the objects, none of them looks like the background, and a tint does not
/// contradict a name such as "green apple".
fn can_be_seen(art: &Art, request: &Request) -> bool {
    let style = request.style.unwrap_or(Style::Glossy);
    let grounds: &[Colour] = match &request.ground {
        None => &[Colour::White],
        Some(Ground::Plain(plain)) => &[*plain],
        Some(Ground::Halves { upper, lower }) => &[*upper, *lower],
    };
    let seen = |thing: &Thing| {
        let concept = &art.concepts()[thing.concept];
        let has_colour = || {
            let is_colour = |word| Colour::ALL.iter().any(|colour| colour.name() == word);
            concept.name.split(' ').any(is_colour)
        };
        let hidden = |colour: &Colour| match thing.tint {
            Some(tint) => {
                let near = |(a, b): (u8, u8)| a.abs_diff(b) <= 60;
                tint.rgb().into_iter().zip(colour.rgb()).all(near)
            }
            None => concept.share_like(style, colour.rgb()) > MAX_SHARE_HIDDEN,
        };
        let contradicts = thing.tint.is_some() && has_colour();
        // Everything can be asked for on white, because a caption without a background means white.
        let hides = request.ground.is_some() && grounds.iter().any(hidden);
        concept.has(style) && !contradicts && !hides
    };
    match &request.subject {
        Subject::One { thing, .. } | Subject::Many { thing, .. } => seen(thing),
        Subject::Two { first, second, .. } => seen(first) && seen(second),
    }
}

fn place(subject: &Subject, random: &mut Philox) -> Vec<Object> {
    match *subject {
        Subject::One { thing, size } => {
            let side = between(size.map_or(SIDES, Size::sides), random);
            let room = (1.0 - side) / 2.0;
            // A small object may lie anywhere, others lie in the middle.
            let most = if size == Some(Size::Small) { room } else { room.min(JITTER) };
            let centre = [0; 2].map(|_| 0.5 + between([-most, most], random));
            vec![Object { thing, centre, side }]
        }
        Subject::Two { first, relation, second } => {
            let sides = [0; 2].map(|_| between([0.40, 0.48], random));
            let (axis, sign) = relation.axis();
            let mut centres = [[0.5; 2]; 2];
            for (centre, end) in centres.iter_mut().zip([-1.0, 1.0]) {
                centre[axis] = 0.5 + sign * end * between([0.245, 0.255], random);
                centre[1 - axis] = 0.5 + between([-2.0 * JITTER, 2.0 * JITTER], random);
            }
            let objects = [first, second].into_iter().zip(centres).zip(sides);
            objects.map(|((thing, centre), side)| Object { thing, centre, side }).collect()
        }
        Subject::Many { count, thing } => {
            let side = between([0.40, 0.46], random);
            let mut objects = arrangement(thing, count);
            for object in &mut objects {
                object.side = side;
                object.centre = object.centre.map(|middle| middle + between([-0.01, 0.01], random));
            }
            objects
        }
    }
}

/// One object in the middle, two side by side, three in a triangle, or four in a square.
pub(super) fn arrangement(thing: Thing, count: u32) -> Vec<Object> {
    let centres: &[[f32; 2]] = match count {
        1 => &[[0.5, 0.5]],
        2 => &[[0.25, 0.5], [0.75, 0.5]],
        3 => &[[0.5, 0.25], [0.25, 0.75], [0.75, 0.75]],
        _ => &[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]],
    };
    let side = if count == 1 { 0.81 } else { 0.43 };
    centres.iter().map(|&centre| Object { thing, centre, side }).collect()
}

fn between([low, high]: [f32; 2], random: &mut Philox) -> f32 {
    low + (high - low) * random.uniform()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emoji::invented::invented_art;

    #[test]
    fn training_shows_no_held_out_combination_and_every_concept() {
        let art = invented_art();
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..3_000 {
            let sample = sample(&art, 3, index, &Lesson::default());
            assert!(
                !is_held_out(&sample.request, |thing| art.name(thing)),
                "{:?}",
                sample.captions
            );
            seen.extend(sample.scene.objects.iter().map(|object| object.thing.concept));
        }
        assert_eq!(seen.len(), art.concepts().len());
    }

    #[test]
    fn lessons_show_more_of_two_and_of_tinted_emoji() {
        let art = invented_art();
        let shares = |lesson: Lesson| {
            let samples: Vec<_> = (0..4_000).map(|i| sample(&art, 3, i, &lesson).scene).collect();
            let share = |is: &dyn Fn(&Scene) -> bool| {
                samples.iter().filter(|scene| is(scene)).count() as f32 / samples.len() as f32
            };
            let tinted =
                |scene: &Scene| scene.objects.len() == 1 && scene.objects[0].thing.tint.is_some();
            let differ = |scene: &Scene| {
                scene.objects.len() == 2 && scene.objects[0].thing != scene.objects[1].thing
            };
            [share(&differ), share(&tinted)]
        };
        let near = |found: [f32; 2], expected: [f32; 2]| {
            let is_near = found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 0.03);
            assert!(is_near, "{found:?}, expected {expected:?}");
        };
        near(shares(Lesson::default()), [SHARE_TWO, 0.8 * SHARE_TINT]);
        // Half of the scenes have two objects, and of the rest as many as before have several.
        let lesson = Lesson { two_objects: Some(0.5), tinted: Some(0.5), ..Lesson::default() };
        near(shares(lesson), [0.5, 0.5 * 0.8 / 0.88 * 0.5]);
    }

    #[test]
    fn stage_a_sees_no_concept_that_measures_it() {
        let art = invented_art();
        let concepts = |sample: Sample| sample.scene.objects.into_iter().map(|o| o.thing.concept);
        let learnt: std::collections::BTreeSet<_> = (0..3_000)
            .flat_map(|i| concepts(stage_a_sample(&art, 3, i, &Lesson::default())))
            .collect();
        let unseen: std::collections::BTreeSet<_> =
            (0..300).flat_map(|i| concepts(unseen_sample(&art, 3, i))).collect();
        assert!(learnt.is_disjoint(&unseen));
        assert_eq!(learnt.len() + unseen.len(), art.concepts().len());
    }

    #[test]
    fn evaluation_keeps_to_its_split_and_says_a_plain_background() {
        let art = invented_art();
        for (kind, split) in Kind::ALL.into_iter().flat_map(|k| Split::ALL.map(|s| (k, s))) {
            for index in 0..100 {
                let sample = evaluation(&art, kind, split, 3, index);
                assert_eq!(
                    is_held_out(&sample.request, |thing| art.name(thing)),
                    split == Split::HeldOut
                );
                assert_eq!(sample.request.ground, Some(sample.scene.ground));
            }
        }
    }

    #[test]
    fn objects_lie_inside_the_picture_and_apart() {
        let art = invented_art();
        for index in 0..2_000 {
            let Sample { scene, request, .. } = sample(&art, 5, index, &Lesson::default());
            for (i, object) in scene.objects.iter().enumerate() {
                let half = object.side / 2.0;
                assert!(object.centre.iter().all(|c| (half - 0.001..=1.001 - half).contains(c)));
                assert!(art.concepts()[object.thing.concept].has(scene.style));
                for other in &scene.objects[..i] {
                    let apart = [0, 1].map(|axis| (object.centre[axis] - other.centre[axis]).abs());
                    let sides = (object.side + other.side) / 2.0;
                    assert!(apart[0].max(apart[1]) > sides - 0.001, "{request:?}");
                }
            }
        }
    }

    #[test]
    fn samples_repeat_and_differ_by_seed_and_index() {
        let art = invented_art();
        assert_eq!(sample(&art, 1, 2, &Lesson::default()), sample(&art, 1, 2, &Lesson::default()));
        assert_ne!(sample(&art, 1, 2, &Lesson::default()), sample(&art, 1, 3, &Lesson::default()));
        assert_ne!(sample(&art, 1, 2, &Lesson::default()), sample(&art, 2, 2, &Lesson::default()));
    }
}
