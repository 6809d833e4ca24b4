//! Evaluation on scenes of shapes.

use serde::Serialize;
use wuerstchen::{Error, Image};

use super::{EvalRow, Evaluation, SOURCES, Source, Truth, share};
use crate::shapes::{self, Kind, Sample, Split, Verdict, chance, draw, judge, read_scene};

/// Shares of right answers, `[0, 1]`; `None` where the kind of scene has no such attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ShapesScores {
    /// The background is right.
    pub background: Option<f64>,
    /// The number of objects is right.
    pub count: Option<f64>,
    /// Every object's colour is right.
    pub colour: Option<f64>,
    /// Every object's shape is right.
    pub shape: Option<f64>,
    /// Every object's colour and shape are right.
    pub objects: Option<f64>,
    /// Every stated size is right.
    pub size: Option<f64>,
    /// The relation is right, among pictures whose objects are right.
    pub relation: Option<f64>,
}

/// The kinds and splits that are evaluated.
const GROUPS: [(Kind, Split); 5] = [
    (Kind::One, Split::Seen),
    (Kind::One, Split::HeldOut),
    (Kind::Two, Split::Seen),
    (Kind::Two, Split::HeldOut),
    (Kind::Many, Split::Seen),
];

/// Evaluates a pipeline on scenes of shapes.
///
/// `on_row` is called with every row as soon as it is known.
///
/// # Errors
///
/// The pipeline cannot generate.
pub async fn evaluate_shapes(
    evaluation: &Evaluation<'_>,
    on_row: &mut dyn FnMut(&EvalRow<ShapesScores>),
) -> Result<(), Error> {
    let config = &evaluation.config;
    for (kind, split) in GROUPS {
        let sample = |i: usize| shapes::evaluation(kind, split, config.seed, i as u64);
        let samples: Vec<_> = (0..config.prompts).map(sample).collect();
        for source in SOURCES {
            let (prompts, scores) = match source {
                Source::Chance => (0, chance_scores(kind)),
                source => {
                    let verdict = |sample: &Sample, picture: &Image| {
                        judge(&sample.request, &read_scene(&picture.rgb, picture.width as u32))
                    };
                    let verdicts = evaluation.verdicts(&samples, source, truth, verdict).await?;
                    (verdicts.len(), scores(&verdicts))
                }
            };
            let kind = match kind {
                Kind::One => "one",
                Kind::Two => "two",
                Kind::Many => "many",
            };
            on_row(&EvalRow { kind, split: split.name(), source, prompts, scores });
        }
    }
    Ok(())
}

fn truth(samples: &[Sample]) -> Truth<'_> {
    Truth {
        prompts: samples.iter().map(|sample| sample.caption.as_str()).collect(),
        draw: Box::new(|i, side| draw(&samples[i].scene, side)),
    }
}

fn scores(verdicts: &[Verdict]) -> ShapesScores {
    let share =
        |answer: &dyn Fn(&Verdict) -> Option<bool>| share(verdicts.iter().filter_map(answer));
    ShapesScores {
        background: share(&|verdict| verdict.background),
        count: share(&|verdict| Some(verdict.count)),
        colour: share(&|verdict| Some(verdict.colour)),
        shape: share(&|verdict| Some(verdict.shape)),
        objects: share(&|verdict| Some(verdict.colour && verdict.shape)),
        size: share(&|verdict| verdict.size),
        relation: share(&|verdict| verdict.relation),
    }
}

fn chance_scores(kind: Kind) -> ShapesScores {
    let chance = chance(kind);
    ShapesScores {
        background: Some(chance.background),
        count: Some(chance.count),
        colour: Some(chance.colour),
        shape: Some(chance.shape),
        objects: None,
        size: Some(chance.size),
        relation: chance.relation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two verdicts, one of them wrong in colour and without a relation.
    #[test]
    fn shares_count_only_what_was_asked() {
        let right = Verdict {
            background: Some(true),
            count: true,
            colour: true,
            shape: true,
            size: None,
            relation: Some(true),
        };
        let wrong = Verdict { colour: false, relation: None, ..right };
        let scores = scores(&[right, wrong]);
        assert_eq!(
            (scores.colour, scores.shape, scores.objects),
            (Some(0.5), Some(1.0), Some(0.5))
        );
        assert_eq!((scores.size, scores.relation), (None, Some(1.0)));
    }
}
