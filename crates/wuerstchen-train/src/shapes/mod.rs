//! `shapes`, the built-in corpus: captioned scenes of plain shapes, drawn on the fly, and a parser
//! that reads a picture back, so that the alignment of pictures with captions is measured exactly.
//!
//! Nothing is stored: a seed and an index give a [`Sample`], [`draw`] gives its picture. About a
//! tenth of the (shape, colour) pairs and of the (shape, relation, shape) triples never occur in
//! training ([`is_held_out_pair`], [`is_held_out_triple`]); evaluation asks for them to tell
//! composition from recall. The way back is [`read_scene`], which uses no network but looks for the nearest match, and
//! [`judge`], which compares what was asked with what was read.

mod caption;
mod draw;
mod held_out;
mod judge;
mod parse;
mod sample;
mod scene;
mod segment;
mod words;

pub use caption::{MAX_CAPTION_WORDS, vocabulary};
pub(crate) use caption::{article, beside_it, preposition};
pub use draw::draw;
pub(crate) use held_out::is_held_out_words;
pub use held_out::{is_held_out_pair, is_held_out_triple};
pub use judge::{Chance, Verdict, chance, judge};
pub use parse::read_scene;
pub use sample::{Kind, Sample, Split, evaluation, sample};
pub use scene::{Description, Object, Request, Scene, Subject};
pub(crate) use words::words;
pub use words::{Background, Colour, Relation, Shape, Size};

/// Smallest side of a picture in pixels: below it the smallest shapes are a few pixels wide.
pub const MIN_SIDE: u32 = 32;
