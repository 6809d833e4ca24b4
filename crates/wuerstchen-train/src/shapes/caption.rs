//! Requests in words: paraphrases chosen at random from a small grammar.

use wuerstchen::noise::Philox;

use super::scene::{Description, Request, Subject};
use super::words::{Background, Colour, Relation, Shape, Size};
use crate::lots::pick;

/// Most words a caption has.
pub const MAX_CAPTION_WORDS: usize = 18;

/// Words of captions that name no attribute.
const GLUE: [&str; 24] = [
    "a",
    "an",
    "and",
    "are",
    "background",
    "drawing",
    "group",
    "in",
    "is",
    "it",
    "its",
    "left",
    "of",
    "on",
    "over",
    "picture",
    "right",
    "the",
    "there",
    "three",
    "to",
    "two",
    "under",
    "with",
];

/// Second words for attributes.
const SYNONYMS: [&str; 3] = ["tiny", "big", "grey"];

/// Share of plain words that are replaced by a synonym.
const SYNONYM_SHARE: f32 = 0.25;

/// Every word that captions use, sorted and without duplicates.
pub fn vocabulary() -> Vec<&'static str> {
    let mut words: Vec<&'static str> = GLUE.into_iter().chain(SYNONYMS).collect();
    words.extend(Background::ALL.map(Background::name));
    words.extend(Colour::ALL.map(Colour::name));
    words.extend(Shape::ALL.map(Shape::name));
    words.extend(Shape::ALL.map(Shape::plural));
    words.extend(Size::ALL.map(Size::name));
    words.extend(Relation::ALL.iter().flat_map(|relation| relation.name().split(' ')));
    words.sort_unstable();
    words.dedup();
    words
}

/// A caption of at most [`MAX_CAPTION_WORDS`] lower-case words without punctuation; `plain` is the
/// share of relations in the plain wording.
pub(super) fn caption(request: &Request, plain: f32, random: &mut Philox) -> String {
    loop {
        let caption = paraphrase(request, plain, random);
        if caption.split(' ').count() <= MAX_CAPTION_WORDS {
            return caption;
        }
    }
}

fn paraphrase(request: &Request, plain: f32, random: &mut Philox) -> String {
    let subject = match &request.subject {
        Subject::One(each) => noun(each, random),
        Subject::Two { first, relation, second } if plain > 0.0 && random.uniform() < plain => {
            format!("{} {} {}", noun(first, random), relation.name(), noun(second, random))
        }
        Subject::Two { first, relation, second } => two(first, *relation, second, random),
        Subject::Many { count, each } => many(*count, each, random),
    };
    let there =
        if matches!(request.subject, Subject::Many { .. }) { "there are " } else { "there is " };
    let openings = ["", "", "a picture of ", "picture of ", "a drawing of ", "drawing of ", there];
    let opening = pick(random, &openings);
    let Some(background) = request.background else {
        return format!("{opening}{subject}");
    };
    let background = match background {
        Background::Gray => either("gray", "grey", random),
        other => other.name(),
    };
    match random.below(5) {
        0 | 1 => format!("{opening}{subject} on a {background} background"),
        2 => format!("{opening}{subject} on {background}"),
        3 => format!("a {background} background with {subject}"),
        _ => format!("{background} background with {subject}"),
    }
}

fn two(
    first: &Description,
    relation: Relation,
    second: &Description,
    random: &mut Philox,
) -> String {
    let [first, second] = [noun(first, random), noun(second, random)];
    let converse = relation.converse();
    match random.below(5) {
        0 => format!("{first} {} {second}", preposition(relation, random)),
        1 => format!("{second} {} {first}", preposition(converse, random)),
        2 => format!("{first} and {} {second}", beside_it(converse, random)),
        3 => format!("{second} and {} {first}", beside_it(relation, random)),
        _ => format!("{first} with {second} {}", beside_it(converse, random)),
    }
}

fn many(count: u32, each: &Description, random: &mut Philox) -> String {
    let number = if count == 2 { "two" } else { "three" };
    let group = if random.below(5) == 0 { "a group of " } else { "" };
    let [size, colour, shapes] = [size(each, random), each.colour.name(), each.shape.plural()];
    match random.below(4) {
        0 => format!("{group}{number} {size}{shapes} in {colour}"),
        _ => format!("{group}{number} {size}{colour} {shapes}"),
    }
}

/// A description with its article.
fn noun(each: &Description, random: &mut Philox) -> String {
    let [size, colour, shape] = [size(each, random), each.colour.name(), each.shape.name()];
    let noun = match random.below(6) {
        0 => format!("{size}{shape} in {colour}"),
        _ => format!("{size}{colour} {shape}"),
    };
    format!("{} {noun}", article(&noun))
}

/// "a" or "an".
pub(crate) fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// The word for the size with a space after it, or nothing.
fn size(each: &Description, random: &mut Philox) -> &'static str {
    match each.size {
        None => "",
        Some(Size::Small) => either("small ", "tiny ", random),
        Some(Size::Large) => either("large ", "big ", random),
    }
}

pub(crate) fn preposition(relation: Relation, random: &mut Philox) -> &'static str {
    let choices = match relation {
        Relation::LeftOf => ["left of", "to the left of"],
        Relation::RightOf => ["right of", "to the right of"],
        Relation::Above => ["above", "over"],
        Relation::Below => ["below", "under"],
    };
    pick(random, &choices)
}

pub(crate) fn beside_it(relation: Relation, random: &mut Philox) -> &'static str {
    let choices = match relation {
        Relation::LeftOf => ["to the left of it", "to its left"],
        Relation::RightOf => ["to the right of it", "to its right"],
        Relation::Above => ["above it", "over it"],
        Relation::Below => ["below it", "under it"],
    };
    pick(random, &choices)
}

fn either(plain: &'static str, synonym: &'static str, random: &mut Philox) -> &'static str {
    if random.uniform() < SYNONYM_SHARE { synonym } else { plain }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::lesson::Lesson;
    use crate::shapes::sample;

    #[test]
    fn captions_use_all_of_the_vocabulary_and_nothing_else() {
        let mut used = BTreeSet::new();
        for index in 0..20_000 {
            let caption = sample(0, index, &Lesson::default()).caption;
            assert!(caption.split(' ').count() <= MAX_CAPTION_WORDS, "{caption}");
            used.extend(caption.split(' ').map(str::to_owned));
        }
        assert_eq!(used.into_iter().collect::<Vec<_>>(), vocabulary());
    }

    /// Reads the five forms of a relation back: the wording must not turn it round.
    #[test]
    fn every_wording_of_a_relation_means_the_same() {
        let describe = |colour, shape| Description { size: None, colour, shape };
        let first = describe(Colour::Red, Shape::Square);
        let second = describe(Colour::Blue, Shape::Ring);
        let mut random = Philox::new(0, 0);
        for _ in 0..500 {
            let words = two(&first, Relation::LeftOf, &second, &mut random);
            let red_comes_first = words.find("red") < words.find("blue");
            let says_left = words.contains("left");
            // "it" and "its" stand for what came first, so the direction is the other's.
            let is_about_the_other = words.contains(" it");
            assert_eq!(red_comes_first != is_about_the_other, says_left, "{words}");
        }
    }

    #[test]
    fn one_request_has_many_wordings() {
        let each =
            Description { size: Some(Size::Small), colour: Colour::Orange, shape: Shape::Star };
        let second = Description { colour: Colour::Red, ..each };
        let subjects = [
            Subject::One(each),
            Subject::Two { first: each, relation: Relation::Above, second },
            Subject::Many { count: 2, each },
        ];
        for subject in subjects {
            let request = Request { background: Some(Background::Gray), subject };
            let mut random = Philox::new(1, 0);
            let wordings: BTreeSet<_> =
                (0..400).map(|_| caption(&request, 0.0, &mut random)).collect();
            assert!(wordings.len() > 40, "{wordings:?}");
            assert!(wordings.iter().all(|words| !words.contains("a orange")));
        }
    }
}
