//! The combinations that training never shows; a hash of the words decides, the same for every seed.

use super::scene::{Ground, Request, Subject, Thing};
use super::words::{Colour, Tint};
use crate::shapes::{Relation, is_held_out_words};

/// Hashed before the words.
const SALT: &str = "emoji";

/// Whether the concept never lies on this colour in training. Every concept lies on white, because prompts without a
/// background mean white.
pub(super) fn is_held_out_background(concept: &str, colour: Colour) -> bool {
    colour != Colour::White && is_held_out_words(&[SALT, "on", colour.name(), concept])
}

/// Whether the concept never has this tint in training.
pub(super) fn is_held_out_tint(concept: &str, tint: Tint) -> bool {
    is_held_out_words(&[SALT, "tinted", tint.name(), concept])
}

/// Whether this arrangement never occurs in training. "A right of B" is the same arrangement as "B left of
/// A".
pub(super) fn is_held_out_triple(first: &str, relation: Relation, second: &str) -> bool {
    let (first, relation, second) = match relation {
        Relation::LeftOf | Relation::Above => (first, relation, second),
        Relation::RightOf | Relation::Below => (second, relation.converse(), first),
    };
    is_held_out_words(&[SALT, first, relation.name(), second])
}

/// Whether Stage A never sees the concept, so that pictures of it measure how well Stage A handles new ones.
pub(super) fn is_unseen_by_stage_a(concept: &str) -> bool {
    is_held_out_words(&[SALT, "stage a", concept])
}

/// Whether any combination of the request is held out; `name` gives that of a thing's concept.
pub(super) fn is_held_out<'a>(request: &Request, name: impl Fn(Thing) -> &'a str) -> bool {
    let things: &[Thing] = match &request.subject {
        Subject::One { thing, .. } | Subject::Many { thing, .. } => &[*thing],
        Subject::Two { first, second, .. } => &[*first, *second],
    };
    let plain = match request.ground {
        Some(Ground::Plain(colour)) => Some(colour),
        _ => None,
    };
    let of_one = |thing: &Thing| {
        plain.is_some_and(|colour| is_held_out_background(name(*thing), colour))
            || thing.tint.is_some_and(|tint| is_held_out_tint(name(*thing), tint))
    };
    let of_two = match request.subject {
        Subject::Two { first, relation, second } => {
            is_held_out_triple(name(first), relation, name(second))
        }
        _ => false,
    };
    of_two || things.iter().any(of_one)
}
