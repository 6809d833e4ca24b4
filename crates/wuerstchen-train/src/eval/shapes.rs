//! Evaluation on scenes of shapes.

use serde::Serialize;
use wuerstchen::{Error, Pipeline, Settings};

use super::{Ceiling, EvalConfig, EvalRow, SOURCES, Source, Truth, pictures, share};
use crate::shapes::{Kind, Split, Verdict, chance, draw, evaluation, judge, read_scene};

/// The share of right answers, `[0, 1]`; none where the kind has no such attribute.
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
    /// The relation is right, of those whose objects are.
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
/// `on_row` hears every line as soon as it is known.
///
/// # Errors
///
/// The pipeline cannot generate.
pub async fn evaluate_shapes(
    pipeline: &Pipeline,
    ceiling: &Ceiling<'_>,
    settings: &Settings,
    config: &EvalConfig,
    on_row: &mut dyn FnMut(&EvalRow<ShapesScores>),
) -> Result<(), Error> {
    for (kind, split) in GROUPS {
        let sample = |i: usize| evaluation(kind, split, config.seed, i as u64);
        let samples: Vec<_> = (0..config.prompts).map(sample).collect();
        for source in SOURCES {
            let mut verdicts = Vec::new();
            let scores = match source {
                Source::Chance => chance_scores(kind),
                source => {
                    for (batch, samples) in samples.chunks(config.batch_size).enumerate() {
                        let truth = Truth {
                            prompts: samples.iter().map(|sample| sample.caption.as_str()).collect(),
                            draw: &|i, side| draw(&samples[i].scene, side),
                        };
                        let settings =
                            Settings { seed: config.seed + batch as u64, ..settings.clone() };
                        let made = pictures(pipeline, ceiling, &settings, &truth, source).await?;
                        verdicts.extend(samples.iter().zip(made).map(|(sample, picture)| {
                            let scene = read_scene(&picture.rgb, picture.width as u32);
                            judge(&sample.request, &scene)
                        }));
                    }
                    scores(&verdicts)
                }
            };
            let kind = match kind {
                Kind::One => "one",
                Kind::Two => "two",
                Kind::Many => "many",
            };
            let split = match split {
                Split::Seen => "seen",
                Split::HeldOut => "held_out",
            };
            on_row(&EvalRow { kind, split, source, prompts: verdicts.len(), scores });
        }
    }
    Ok(())
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
