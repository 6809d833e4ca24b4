//! Evaluation on scenes of emoji.

use serde::Serialize;
use wuerstchen::{Error, Image, Statistics};

use super::{EvalRow, Evaluation, SOURCES, Source, Truth, share};
use crate::emoji::{self, Art, Colour, Judge, Kind, Sample, Split, Tint, Verdict, unseen_sample};

/// Number of pictures that measure how well Stage A handles concepts it has not seen.
const UNSEEN_PICTURES: usize = 256;

/// A concept among this many nearest ones is nearly right.
const NEAR: usize = 5;

/// Shares of right answers, `[0, 1]`; `None` where the kind of scene has no such attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct EmojiScores {
    /// The background is right.
    pub background: Option<f64>,
    /// Every other concept of the style is farther than the one asked for; of two objects, this holds for both.
    pub concept: Option<f64>,
    /// At most four concepts are nearer, or as near.
    pub top5: Option<f64>,
    /// The tint is right.
    pub tint: Option<f64>,
    /// The relation is right, among pictures whose objects are right.
    pub relation: Option<f64>,
    /// The number of objects is right.
    pub count: Option<f64>,
}

/// The kinds and splits that are evaluated.
const GROUPS: [(Kind, Split); 7] = [
    (Kind::One, Split::Seen),
    (Kind::One, Split::HeldOut),
    (Kind::Tinted, Split::Seen),
    (Kind::Tinted, Split::HeldOut),
    (Kind::Two, Split::Seen),
    (Kind::Two, Split::HeldOut),
    (Kind::Many, Split::Seen),
];

/// Evaluates a pipeline on scenes of emoji.
///
/// `on_row` is called with every row as soon as it is known.
///
/// # Errors
///
/// The pipeline cannot generate.
pub async fn evaluate_emoji(
    evaluation: &Evaluation<'_>,
    art: &Art,
    on_row: &mut dyn FnMut(&EvalRow<EmojiScores>),
) -> Result<(), Error> {
    let (config, judge) = (&evaluation.config, Judge::new(art));
    for (kind, split) in GROUPS {
        let sample = |i: usize| emoji::evaluation(art, kind, split, config.seed, i as u64);
        let samples: Vec<_> = (0..config.prompts).map(sample).collect();
        for source in SOURCES {
            let (prompts, scores) = match source {
                Source::Chance => (0, chance_scores(art, kind)),
                source => {
                    let verdict = |sample: &Sample, picture: &Image| {
                        judge.judge(&sample.request, &picture.rgb, picture.width)
                    };
                    let truth = |samples| truth(art, samples);
                    let verdicts = evaluation.verdicts(&samples, source, truth, verdict).await?;
                    (verdicts.len(), scores(&verdicts))
                }
            };
            let kind = match kind {
                Kind::One => "one",
                Kind::Tinted => "tint",
                Kind::Two => "two",
                Kind::Many => "many",
            };
            on_row(&EvalRow { kind, split: split.name(), source, prompts, scores });
        }
    }
    Ok(())
}

/// Stage A's mean peak signal-to-noise ratio in dB, for pictures of one concept that it has never seen, at
/// the size of the settings.
///
/// # Errors
///
/// The pipeline cannot decode.
pub async fn stage_a_psnr(evaluation: &Evaluation<'_>, art: &Art) -> Result<f64, Error> {
    let Evaluation { pipeline, settings, config, .. } = evaluation;
    let sample = |i: usize| unseen_sample(art, config.seed, i as u64);
    let samples: Vec<_> = (0..UNSEEN_PICTURES).map(sample).collect();
    let vqgan = pipeline.vqgan()?;
    let mut sum = 0.0;
    for samples in samples.chunks(config.batch_size) {
        let truth = truth(art, samples).pictures(settings.width, pipeline.device());
        let decoded = vqgan.decode(vqgan.encode(truth.clone(), Statistics::Running));
        let error = (decoded.clamp(0.0, 1.0) - truth).square().mean_dims(&[1, 2, 3]);
        let errors = error.into_data_async().await;
        let errors = errors.map_err(|error| Error::Device(format!("{error:?}")))?;
        let errors = errors.try_to_vec::<f32>().expect("pictures are f32");
        sum += errors.iter().map(|&error| -10.0 * f64::from(error).log10()).sum::<f64>();
    }
    Ok(sum / UNSEEN_PICTURES as f64)
}

fn truth<'a>(art: &'a Art, samples: &'a [Sample]) -> Truth<'a> {
    Truth {
        prompts: samples.iter().map(|sample| sample.captions[0].as_str()).collect(),
        draw: Box::new(|i, side| art.draw(&samples[i].scene, side)),
    }
}

fn scores(verdicts: &[Verdict]) -> EmojiScores {
    let share =
        |answer: &dyn Fn(&Verdict) -> Option<bool>| share(verdicts.iter().filter_map(answer));
    EmojiScores {
        background: share(&|verdict| verdict.background),
        concept: share(&|verdict| verdict.rank.map(|rank| rank == 1)),
        top5: share(&|verdict| verdict.rank.map(|rank| rank <= NEAR)),
        tint: share(&|verdict| verdict.tint),
        relation: share(&|verdict| verdict.relation),
        count: share(&|verdict| verdict.count),
    }
}

/// What a blind guess reaches.
fn chance_scores(art: &Art, kind: Kind) -> EmojiScores {
    let concepts = art.concepts().len() as f64;
    let one_of = |among: f64, power: i32| Some((among / concepts).powi(power));
    let objects = match kind {
        Kind::One | Kind::Tinted => Some(1),
        Kind::Two => Some(2),
        Kind::Many => None,
    };
    EmojiScores {
        background: Some(1.0 / Colour::ALL.len() as f64),
        concept: objects.and_then(|objects| one_of(1.0, objects)),
        top5: objects.and_then(|objects| one_of(NEAR as f64, objects)),
        tint: (kind == Kind::Tinted).then_some(1.0 / (Tint::ALL.len() + 1) as f64),
        relation: (kind == Kind::Two).then_some(0.25),
        count: (kind == Kind::Many).then_some(0.25),
    }
}
