//! What a picture shows, and what a caption asks for.

use super::words::{Background, Colour, Relation, Shape, Size};

/// One shape in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Outline.
    pub shape: Shape,
    /// Colour.
    pub colour: Colour,
    /// Size that the radius belongs to.
    pub size: Size,
    /// Centre of the bounding box, x to the right and y down, in sides of the picture.
    pub centre: [f32; 2],
    /// Half of the longer side of the bounding box, in sides of the picture.
    pub radius: f32,
}

/// What a picture shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Colour behind the objects.
    pub background: Background,
    /// The objects; none overlaps another in a drawn scene.
    pub objects: Vec<Object>,
}

/// What a caption says about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Description {
    /// Size, if the caption states one.
    pub size: Option<Size>,
    /// Colour.
    pub colour: Colour,
    /// Outline.
    pub shape: Shape,
}

/// The objects a caption asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// One object.
    One(Description),
    /// Two objects of different colours.
    Two {
        /// The object whose place is described.
        first: Description,
        /// Where `first` lies, seen from `second`.
        relation: Relation,
        /// The object of reference.
        second: Description,
    },
    /// Several identical objects.
    Many {
        /// How many, 2 or 3.
        count: u32,
        /// What each of them is.
        each: Description,
    },
}

/// What a caption asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Background, if the caption states one.
    pub background: Option<Background>,
    /// The objects.
    pub subject: Subject,
}

impl Subject {
    /// How many objects it asks for.
    pub fn count(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Two { .. } => 2,
            Self::Many { count, .. } => *count as usize,
        }
    }
}
