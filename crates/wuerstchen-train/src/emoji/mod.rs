//! `emoji`, a corpus of captioned scenes of emoji, drawn on the fly from the art of four packs.
//!
//! The art is not a part of this crate: [`Art`] is made from the packs' files. A seed and an index give a
//! [`Sample`], and [`Art::draw`] gives its picture. About a tenth of the (concept, background), (concept,
//! tint) and (concept, relation, concept) combinations never occur in training (`held_out.rs`);
//! evaluation asks for them to tell composition from recall. [`Judge`] says what a picture shows. It is no
//! network: it looks for the nearest of all pictures that the art can make.

mod art;
mod caption;
mod draw;
mod held_out;
#[cfg(test)]
mod invented;
mod judge;
mod sample;
mod scene;
mod words;

pub use art::{Art, ArtError, ArtFiles, Concept, PackFiles};
pub use caption::{MAX_CAPTION_WORDS, vocabulary};
pub use judge::{Judge, Verdict};
pub use sample::{Kind, Sample, evaluation, sample, stage_a_sample, unseen_sample};
pub use scene::{Ground, Object, Request, Scene, Subject, Thing};
pub use words::{Colour, Size, Style, Tint};

pub use crate::shapes::Split;
