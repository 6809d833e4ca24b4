//! The combinations that training never shows.
//!
//! A hash of the words decides, so the choice is the same for every seed and every run.

use super::scene::Subject;
use super::words::{Colour, Relation, Shape};

/// One combination in this many is held out.
const ONE_IN: u64 = 10;

/// Hashed before the words; chosen so that every shape and colour keeps enough seen pairs.
const SALT: &str = "shapes 5785";

/// Source: Fowler, Noll and Vo, "FNV hash", 64-bit FNV-1a offset basis and prime.
const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01B3;

/// Whether objects of this shape and colour occur in evaluation only.
pub fn is_held_out_pair(shape: Shape, colour: Colour) -> bool {
    is_chosen(&[colour.name(), shape.name()])
}

/// Whether this arrangement of two shapes occurs in evaluation only. "A right of B" is the same
/// arrangement as "B left of A", and "A below B" as "B above A".
pub fn is_held_out_triple(first: Shape, relation: Relation, second: Shape) -> bool {
    let (first, relation, second) = match relation {
        Relation::LeftOf | Relation::Above => (first, relation, second),
        Relation::RightOf | Relation::Below => (second, relation.converse(), first),
    };
    is_chosen(&[first.name(), relation.name(), second.name()])
}

/// Whether any pair or the triple of `subject` is held out.
pub(super) fn is_held_out(subject: &Subject) -> bool {
    match subject {
        Subject::One(each) | Subject::Many { each, .. } => {
            is_held_out_pair(each.shape, each.colour)
        }
        Subject::Two { first, relation, second } => {
            is_held_out_pair(first.shape, first.colour)
                || is_held_out_pair(second.shape, second.colour)
                || is_held_out_triple(first.shape, *relation, second.shape)
        }
    }
}

fn is_chosen(words: &[&str]) -> bool {
    is_held_out_words(&[&[SALT], words].concat())
}

/// Whether a hash of the words holds their combination out.
pub(crate) fn is_held_out_words(words: &[&str]) -> bool {
    let mut hash = FNV_OFFSET;
    for word in words {
        // The space keeps ("ab", "c") apart from ("a", "bc").
        for byte in word.bytes().chain([b' ']) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
    }
    // The high half: the low bits of FNV-1a mix little.
    (hash >> 32).is_multiple_of(ONE_IN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_out_pairs() -> Vec<(Shape, Colour)> {
        let pairs = Shape::ALL.into_iter().flat_map(|s| Colour::ALL.map(|c| (s, c)));
        pairs.filter(|(shape, colour)| is_held_out_pair(*shape, *colour)).collect()
    }

    /// Of 64 pairs, and of 8 · 2 · 8 = 128 triples.
    #[test]
    fn about_a_tenth_is_held_out() {
        let mut triples = 0;
        for first in Shape::ALL {
            for second in Shape::ALL {
                for relation in [Relation::LeftOf, Relation::Above] {
                    triples += usize::from(is_held_out_triple(first, relation, second));
                }
            }
        }
        let pairs = held_out_pairs();
        assert!((5..=8).contains(&pairs.len()), "{pairs:?}");
        assert!((10..=16).contains(&triples), "{triples}");
    }

    #[test]
    fn every_shape_and_colour_is_seen_in_most_pairs() {
        let pairs = held_out_pairs();
        for shape in Shape::ALL {
            assert!(pairs.iter().filter(|pair| pair.0 == shape).count() <= 3);
        }
        for colour in Colour::ALL {
            assert!(pairs.iter().filter(|pair| pair.1 == colour).count() <= 3);
        }
    }

    #[test]
    fn converse_arrangements_are_held_out_together() {
        for (first, second) in Shape::ALL.into_iter().flat_map(|a| Shape::ALL.map(|b| (a, b))) {
            for relation in Relation::ALL {
                assert_eq!(
                    is_held_out_triple(first, relation, second),
                    is_held_out_triple(second, relation.converse(), first)
                );
            }
        }
    }
}
