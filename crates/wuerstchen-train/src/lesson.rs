//! Which scenes of a built-in corpus a stage sees.

use serde::{Deserialize, Serialize};

/// What training scenes show and how captions say it, so that a model can begin with what is easy, or see more of
/// what it has not learnt. By default it is the whole corpus.
///
/// Which of two objects lies left is hard to learn from the whole corpus `shapes`. "Left" and "right" mean
/// nothing to a model that ignores which object is named first, and the order of the names means nothing to a
/// model that ignores "left" and "right". If the first object always lies left or above, a model profits from
/// learning the order alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lesson {
    /// Share of scenes with two objects, `[0, 1]`; if left out, 0.45 of `shapes` and 0.12 of `emoji`. The other kinds
    /// of scenes keep their shares of the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub two_objects: Option<f64>,
    /// Of `emoji`: share of the scenes of one emoji in which it is tinted, `[0, 1]`; if left out, 0.12.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tinted: Option<f64>,
    /// Of `shapes`: share of relations that are said in the plain wording, `A left of B`, `[0, 1]`; the others are
    /// said in any of the five.
    pub plain_relations: f64,
    /// Of `shapes`: share of relations in which the object named first always lies left or above, `[0, 1]`; in the
    /// others it lies on any side.
    pub first_leads: f64,
}
