//! Random captioned scenes: a seed and an index give a sample.

use wuerstchen::noise::Philox;

use super::caption::caption;
use super::held_out::is_held_out;
use super::scene::{Description, Object, Request, Scene, Subject};
use super::words::{Background, Colour, Relation, Shape, Size};
use crate::lesson::Lesson;
use crate::lots::{pick, stream};

/// Smallest distance of an object from the edge, in sides of the picture.
const MARGIN: f32 = 0.015;

/// Smallest gap between the bounding boxes of two objects, in sides of the picture.
const GAP: f32 = 0.05;

/// Largest offset across a relation's axis, in offsets along it.
const MAX_OFFSET_ACROSS: f32 = 0.45;

/// Share of training scenes with two objects.
const SHARE_TWO: f32 = 0.45;

/// Share of scenes with one object among those without two; the others show several identical ones.
const SHARE_ONE: f32 = 0.40 / 0.55;

/// How many objects a scene has, and how they are described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// One object.
    One,
    /// Two objects in a relation.
    Two,
    /// Two or three identical small objects.
    Many,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::One, Self::Two, Self::Many];
}

/// Which combinations an evaluation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Split {
    /// Combinations that training shows too, in scenes it does not show.
    Seen,
    /// At least one pair, or the triple, is held out from training.
    HeldOut,
}

impl Split {
    /// Every split.
    pub const ALL: [Self; 2] = [Self::Seen, Self::HeldOut];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::HeldOut => "held_out",
        }
    }
}

/// A scene with its caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// What the picture shows.
    pub scene: Scene,
    /// What the caption asks for; the scene fulfils it.
    pub request: Request,
    /// The request in words.
    pub caption: String,
}

/// The shares of captions that do not state a size or the background.
struct Omissions {
    size: f32,
    background: f32,
}

/// Sample number `index` of the training corpus of `seed`. It contains no held-out combination.
///
/// # Panics
///
/// Panics if `index` is 2⁵⁶ or more.
pub fn sample(seed: u64, index: u64, lesson: &Lesson) -> Sample {
    let mut random = stream(seed, 0, index);
    let lot = random.uniform();
    let two = lesson.two_objects.map_or(SHARE_TWO, |share| share as f32);
    let one = (1.0 - two) * SHARE_ONE;
    let kind = if lot < one {
        Kind::One
    } else if lot < one + two {
        Kind::Two
    } else {
        Kind::Many
    };
    draw_lots(kind, Split::Seen, &Omissions { size: 0.3, background: 0.1 }, lesson, &mut random)
}

/// Sample number `index` for the evaluation of one kind of scene. Its caption always states the
/// background, and mostly the sizes.
///
/// # Panics
///
/// Panics if `index` is 2⁵⁶ or more.
pub fn evaluation(kind: Kind, split: Split, seed: u64, index: u64) -> Sample {
    let purpose = 1 + kind as u64 * Split::ALL.len() as u64 + split as u64;
    let mut random = stream(seed, purpose, index);
    let omissions = Omissions { size: 0.1, background: 0.0 };
    draw_lots(kind, split, &omissions, &Lesson::default(), &mut random)
}

fn draw_lots(
    kind: Kind,
    split: Split,
    omissions: &Omissions,
    lesson: &Lesson,
    random: &mut Philox,
) -> Sample {
    let mut subject = subject(kind, lesson, random);
    while is_held_out(&subject) != (split == Split::HeldOut) {
        subject = self::subject(kind, lesson, random);
    }
    let background = pick(random, &Background::ALL);
    let scene = Scene { background, objects: place(&subject, random) };
    let mut forget = |each: Description| {
        let size = each.size.filter(|_| random.uniform() >= omissions.size);
        Description { size, ..each }
    };
    let subject = match subject {
        Subject::One(each) => Subject::One(forget(each)),
        Subject::Two { first, relation, second } => {
            Subject::Two { first: forget(first), relation, second: forget(second) }
        }
        Subject::Many { count, each } => Subject::Many { count, each: forget(each) },
    };
    let background = Some(background).filter(|_| random.uniform() >= omissions.background);
    let request = Request { background, subject };
    let caption = caption(&request, lesson.plain_relations as f32, random);
    Sample { scene, request, caption }
}

/// A subject of the given kind with every size stated.
fn subject(kind: Kind, lesson: &Lesson, random: &mut Philox) -> Subject {
    let mut description = || Description {
        size: Some(pick(random, &Size::ALL)),
        colour: pick(random, &Colour::ALL),
        shape: pick(random, &Shape::ALL),
    };
    match kind {
        Kind::One => Subject::One(description()),
        Kind::Two => {
            let [first, mut second] = [description(), description()];
            while second.colour == first.colour {
                second = description();
            }
            let leads = lesson.first_leads > 0.0 && random.uniform() < lesson.first_leads as f32;
            let relation = if leads {
                pick(random, &[Relation::LeftOf, Relation::Above])
            } else {
                pick(random, &Relation::ALL)
            };
            Subject::Two { first, relation, second }
        }
        Kind::Many => {
            let each = Description { size: Some(Size::Small), ..description() };
            Subject::Many { count: 2 + random.below(2), each }
        }
    }
}

fn place(subject: &Subject, random: &mut Philox) -> Vec<Object> {
    match *subject {
        Subject::One(each) => {
            let radius = radius(&each, random);
            // The mean of two uniform numbers prefers the middle.
            let centre = [0; 2].map(|_| {
                let lots = [within(radius, random), within(radius, random)];
                (lots[0] + lots[1]) / 2.0
            });
            vec![object(&each, centre, radius)]
        }
        Subject::Two { first, relation, second } => loop {
            if let Some(objects) = place_two([&first, &second], relation, random) {
                break objects;
            }
        },
        Subject::Many { count, each } => loop {
            let radius = radius(&each, random);
            let centres: Vec<[f32; 2]> =
                (0..count).map(|_| [0; 2].map(|_| within(radius, random))).collect();
            if are_apart(&centres, 2.0 * radius + GAP) {
                break centres.into_iter().map(|centre| object(&each, centre, radius)).collect();
            }
        },
    }
}

/// Tries one placement of two objects.
fn place_two(
    descriptions: [&Description; 2],
    relation: Relation,
    random: &mut Philox,
) -> Option<Vec<Object>> {
    let radii = descriptions.map(|each| radius(each, random));
    let centres = radii.map(|radius| [0; 2].map(|_| within(radius, random)));
    let (axis, sign) = relation.axis();
    let along = sign * (centres[1][axis] - centres[0][axis]);
    let across = (centres[1][1 - axis] - centres[0][1 - axis]).abs();
    let fits = along >= radii[0] + radii[1] + GAP && across < MAX_OFFSET_ACROSS * along;
    fits.then(|| (0..2).map(|i| object(descriptions[i], centres[i], radii[i])).collect())
}

/// Whether every two centres are at least `distance` apart on one of the axes.
fn are_apart(centres: &[[f32; 2]], distance: f32) -> bool {
    centres.iter().enumerate().all(|(i, a)| {
        centres[..i].iter().all(|b| (a[0] - b[0]).abs().max((a[1] - b[1]).abs()) >= distance)
    })
}

fn object(description: &Description, centre: [f32; 2], radius: f32) -> Object {
    let Description { colour, shape, .. } = *description;
    Object { shape, colour, size: Size::of_radius(radius), centre, radius }
}

fn radius(description: &Description, random: &mut Philox) -> f32 {
    let size = description.size.expect("subjects are drawn with every size stated");
    let [low, high] = size.radii();
    low + (high - low) * random.uniform()
}

/// A coordinate at which an object of the given radius lies wholly inside the picture.
fn within(radius: f32, random: &mut Philox) -> f32 {
    let inset = radius + MARGIN;
    inset + (1.0 - 2.0 * inset) * random.uniform()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::judge;

    #[test]
    fn training_shows_no_held_out_combination_and_every_seen_colour_and_shape() {
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..20_000 {
            let sample = sample(3, index, &Lesson::default());
            assert!(!is_held_out(&sample.request.subject), "{}", sample.caption);
            seen.extend(sample.scene.objects.iter().map(|object| (object.shape, object.colour)));
        }
        let held_out = Shape::ALL.into_iter().flat_map(|shape| {
            Colour::ALL.into_iter().filter(move |c| super::super::is_held_out_pair(shape, *c))
        });
        assert_eq!(seen.len(), Shape::ALL.len() * Colour::ALL.len() - held_out.count());
    }

    #[test]
    fn evaluation_keeps_to_its_split_and_states_the_background() {
        for (kind, split) in Kind::ALL.into_iter().flat_map(|k| Split::ALL.map(|s| (k, s))) {
            for index in 0..500 {
                let sample = evaluation(kind, split, 3, index);
                assert_eq!(is_held_out(&sample.request.subject), split == Split::HeldOut);
                assert_eq!(sample.request.background, Some(sample.scene.background));
            }
        }
    }

    #[test]
    fn scenes_fulfil_their_requests_and_lie_inside_the_picture() {
        for index in 0..5_000 {
            let sample = sample(5, index, &Lesson::default());
            assert!(judge(&sample.request, &sample.scene).all(), "{sample:?}");
            for object in &sample.scene.objects {
                let [low, high] = object.size.radii();
                assert!((low..=high).contains(&object.radius));
                assert!(
                    object.centre.iter().all(|c| (object.radius..=1.0 - object.radius).contains(c))
                );
            }
        }
    }

    #[test]
    fn samples_repeat_and_differ_by_seed_index_and_purpose() {
        assert_eq!(sample(1, 2, &Lesson::default()), sample(1, 2, &Lesson::default()));
        assert_ne!(sample(1, 2, &Lesson::default()), sample(1, 3, &Lesson::default()));
        assert_ne!(sample(1, 2, &Lesson::default()), sample(2, 2, &Lesson::default()));
        let scene = |split| evaluation(Kind::Many, split, 1, 2).scene;
        assert_eq!(scene(Split::Seen), scene(Split::Seen));
        assert_ne!(scene(Split::Seen), scene(Split::HeldOut));
    }

    #[test]
    fn lessons_say_what_they_show() {
        let lesson = Lesson {
            two_objects: Some(1.0),
            plain_relations: 1.0,
            first_leads: 1.0,
            ..Lesson::default()
        };
        let plain = [" left of a", " above a"];
        for index in 0..500 {
            let Sample { request, caption, .. } = sample(7, index, &lesson);
            assert!(matches!(request.subject, Subject::Two { .. }));
            assert!(plain.iter().any(|words| caption.contains(words)), "{caption}");
        }
    }

    /// 20 000 samples: the standard deviation of a share is below 0.004.
    #[test]
    fn kinds_occur_in_their_shares() {
        let mut counts = [0; 3];
        for index in 0..20_000 {
            let kind = match sample(9, index, &Lesson::default()).request.subject {
                Subject::One(_) => Kind::One,
                Subject::Two { .. } => Kind::Two,
                Subject::Many { .. } => Kind::Many,
            };
            counts[kind as usize] += 1;
        }
        for (count, share) in counts.into_iter().zip([0.40, 0.45, 0.15]) {
            assert!((count as f32 / 20_000.0 - share).abs() < 0.015, "{counts:?}");
        }
    }
}
