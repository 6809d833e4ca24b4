//! Requests in words: paraphrases chosen at random from a small grammar.

use std::collections::BTreeSet;

use wuerstchen::noise::Philox;

use super::art::{Art, Concept};
use super::scene::{Ground, Request, Subject, Thing};
use super::words::{Colour, Size, Style, Tint};
use crate::lots::pick;
use crate::shapes::{Relation, article, beside_it, preposition};

/// Most words a caption has.
pub const MAX_CAPTION_WORDS: usize = 18;

/// Words of captions that name no attribute.
const GLUE: [&str; 23] = [
    "a",
    "an",
    "and",
    "background",
    "drawing",
    "emoji",
    "four",
    "in",
    "it",
    "its",
    "left",
    "of",
    "on",
    "over",
    "picture",
    "right",
    "style",
    "the",
    "three",
    "to",
    "two",
    "under",
    "with",
];

/// Second words for sizes.
const SYNONYMS: [&str; 2] = ["tiny", "big"];

/// Share of names that a keyword replaces or is added to.
const SHARE_KEYWORD: f32 = 0.15;

/// Share of colours that are named by a synonym.
const SHARE_SYNONYM: f32 = 0.25;

/// Every word that captions use, sorted and without duplicates.
pub fn vocabulary(art: &Art) -> Vec<String> {
    let mut words: BTreeSet<String> = GLUE.iter().chain(&SYNONYMS).map(|&w| w.to_owned()).collect();
    let mut insert = |text: &str| words.extend(text.split(' ').map(str::to_owned));
    for colour in Colour::ALL {
        insert(colour.name());
        colour.synonyms().iter().for_each(|synonym| insert(synonym));
    }
    Style::ALL.iter().for_each(|style| insert(style.name()));
    Tint::ALL.iter().for_each(|tint| insert(tint.name()));
    Size::ALL.iter().for_each(|size| insert(size.name()));
    Relation::ALL.iter().for_each(|relation| insert(relation.name()));
    for concept in art.concepts() {
        insert(&concept.name);
        insert(&plural(&concept.name));
        concept.keywords.iter().for_each(|keyword| insert(keyword));
    }
    words.into_iter().collect()
}

/// A caption of at most [`MAX_CAPTION_WORDS`] lower-case words without punctuation.
pub(super) fn caption(art: &Art, request: &Request, random: &mut Philox) -> String {
    loop {
        let caption = paraphrase(art, request, random);
        if caption.split(' ').count() <= MAX_CAPTION_WORDS {
            return caption;
        }
    }
}

fn paraphrase(art: &Art, request: &Request, random: &mut Philox) -> String {
    let adjective = request.style.map_or("", Style::name);
    // "a flat cat", or "a cat in flat style".
    let leads = request.style.is_some() && random.below(2) == 0;
    let before = if leads { format!("{adjective} ") } else { String::new() };
    let mut words = match &request.subject {
        Subject::One { thing, size } => {
            let size = size.map_or("", |size| size_word(size, random));
            let mut words = noun(art, *thing, &format!("{before}{size}"), random);
            if random.below(12) == 0 {
                words.push_str(" emoji");
            }
            words
        }
        Subject::Two { first, relation, second } => {
            let [first, second] = [(first, &*before), (second, "")]
                .map(|(thing, before)| noun(art, *thing, before, random));
            two(&first, *relation, &second, random)
        }
        Subject::Many { count, thing } => {
            let number = ["two", "three", "four"][*count as usize - 2];
            let concept = &art.concepts()[thing.concept];
            format!("{number} {before}{}{}", tint_word(*thing), plural(&concept.name))
        }
    };
    if random.below(8) == 0 {
        let openings = ["a picture of ", "a drawing of ", "picture of ", "drawing of "];
        words.insert_str(0, pick(random, &openings));
    }
    let mut after = Vec::new();
    if request.style.is_some() && !leads {
        after.push(match random.below(2) {
            0 => format!("in {adjective} style"),
            _ => format!("{adjective} style"),
        });
    }
    if let Some(ground) = request.ground {
        let ground = match ground {
            Ground::Plain(colour) => colour_word(colour, random).to_owned(),
            Ground::Halves { upper, lower } => {
                let [upper, lower] = [upper, lower].map(|colour| colour_word(colour, random));
                format!("{upper} and {lower}")
            }
        };
        after.push(match random.below(4) {
            0 => format!("on {ground}"),
            1 => format!("{ground} background"),
            _ => format!("on {} {ground} background", article(&ground)),
        });
    }
    if after.len() == 2 && random.below(2) == 0 {
        after.swap(0, 1);
    }
    for each in after {
        words.push(' ');
        words.push_str(&each);
    }
    words
}

/// A thing with its tint and, mostly, an article; `before` are adjectives with a space after each.
fn noun(art: &Art, thing: Thing, before: &str, random: &mut Philox) -> String {
    let noun =
        format!("{before}{}{}", tint_word(thing), name(&art.concepts()[thing.concept], random));
    match random.below(3) {
        0 => noun,
        _ => format!("{} {noun}", article(&noun)),
    }
}

/// The name of a concept, one of its keywords, or both.
fn name(concept: &Concept, random: &mut Philox) -> String {
    let keywords = &concept.keywords;
    if keywords.is_empty() || random.uniform() >= SHARE_KEYWORD {
        return concept.name.clone();
    }
    let keyword = &keywords[random.below(keywords.len() as u32) as usize];
    match random.below(3) {
        0 => format!("{} {keyword}", concept.name),
        1 => format!("{keyword} {}", concept.name),
        _ => keyword.clone(),
    }
}

/// The tint with a space after it, or nothing.
fn tint_word(thing: Thing) -> String {
    thing.tint.map_or(String::new(), |tint| format!("{} ", tint.name()))
}

fn two(first: &str, relation: Relation, second: &str, random: &mut Philox) -> String {
    let converse = relation.converse();
    match random.below(8) {
        0..4 => format!("{first} {} {second}", preposition(relation, random)),
        4..6 => format!("{second} {} {first}", preposition(converse, random)),
        6 => format!("{first} and {} {second}", beside_it(converse, random)),
        _ => format!("{first} with {second} {}", beside_it(converse, random)),
    }
}

fn colour_word(colour: Colour, random: &mut Philox) -> &'static str {
    match colour.synonyms() {
        [] => colour.name(),
        _ if random.uniform() >= SHARE_SYNONYM => colour.name(),
        synonyms => pick(random, synonyms),
    }
}

/// The word for a size with a space after it.
fn size_word(size: Size, random: &mut Philox) -> &'static str {
    match size {
        Size::Small => pick(random, &["small ", "tiny "]),
        Size::Large => pick(random, &["large ", "big "]),
    }
}

/// A name for several, by the plain rules of English.
fn plural(name: &str) -> String {
    if let Some(stem) = name.strip_suffix('y')
        && !stem.ends_with(['a', 'e', 'o', 'u'])
    {
        return format!("{stem}ies");
    }
    let hisses = ["s", "x", "z", "ch", "sh"].iter().any(|end| name.ends_with(end));
    format!("{name}{}", if hisses { "es" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emoji::invented::invented_art;
    use crate::emoji::sample;
    use crate::lesson::Lesson;

    #[test]
    fn captions_use_words_of_the_vocabulary_and_nearly_all_of_it() {
        let art = invented_art();
        let known = vocabulary(&art);
        let mut used = BTreeSet::new();
        for index in 0..5_000 {
            for caption in sample(&art, 0, index, &Lesson::default()).captions {
                assert!(caption.split(' ').count() <= MAX_CAPTION_WORDS, "{caption}");
                used.extend(caption.split(' ').map(str::to_owned));
            }
        }
        assert_eq!(used.into_iter().collect::<Vec<_>>(), known);
    }

    #[test]
    fn plurals_follow_the_plain_rules() {
        let plurals = ["cat", "fox", "cherry", "monkey", "peach"].map(plural);
        assert_eq!(plurals, ["cats", "foxes", "cherries", "monkeys", "peaches"]);
    }
}
