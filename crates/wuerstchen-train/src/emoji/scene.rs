//! What a picture shows, and what a caption asks for.

use super::words::{Colour, Size, Style, Tint};
use crate::shapes::Relation;

/// The background.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ground {
    /// One colour.
    Plain(Colour),
    /// The upper and the lower half differ.
    Halves {
        /// Colour of the upper half.
        upper: Colour,
        /// Colour of the lower half.
        lower: Colour,
    },
}

/// One emoji of a scene.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Which concept and tint.
    pub thing: Thing,
    /// Its centre, in sides of the picture from the upper left corner.
    pub centre: [f32; 2],
    /// Width and height of its square, in sides of the picture.
    pub side: f32,
}

/// What a picture shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The background.
    pub ground: Ground,
    /// The pack that all objects are drawn from.
    pub style: Style,
    /// The objects, none of which covers another.
    pub objects: Vec<Object>,
}

/// A concept, as it is or tinted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Thing {
    /// Number of the concept in the art.
    pub concept: usize,
    /// The hue that replaces all hues of the art, if there is one.
    pub tint: Option<Tint>,
}

/// What a caption is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Subject {
    /// One object.
    One {
        /// What it is.
        thing: Thing,
        /// Its size, where the caption states it.
        size: Option<Size>,
    },
    /// Two different objects.
    Two {
        /// The first.
        first: Thing,
        /// Where it lies, seen from the second.
        relation: Relation,
        /// The second.
        second: Thing,
    },
    /// Two to four of the same.
    Many {
        /// How many.
        count: u32,
        /// The object of which there are several.
        thing: Thing,
    },
}

/// What a caption asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// The background, where the caption states it; else it is white.
    pub ground: Option<Ground>,
    /// The style, where the caption states it; else it is glossy.
    pub style: Option<Style>,
    /// What it is about.
    pub subject: Subject,
}
