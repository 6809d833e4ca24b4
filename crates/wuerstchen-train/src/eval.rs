//! How well pictures show what their prompts say, measured by a parser of pictures.

use std::ops::ControlFlow;

use burn::prelude::*;
use serde::Serialize;
use wuerstchen::noise::Philox;
use wuerstchen::pipeline::{Guided, Sampling};
use wuerstchen::{Compressor, Error, Image, Pipeline, Progress, Settings, Statistics, VqganConfig};

use crate::shapes::{Kind, Sample, Split, Verdict, chance, draw, evaluation, judge, read_scene};
use crate::stages::image_embeddings;

/// What is evaluated.
pub struct EvalConfig {
    /// Prompts for every kind of scene, seen and held out.
    pub prompts: usize,
    /// Pictures in one forward pass.
    pub batch_size: usize,
    /// Seed of the prompts and of the noise.
    pub seed: u64,
}

/// Where the judged pictures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The prompt, through stages C, B and A.
    Generated,
    /// The true scene, through the compressor and stages B and A: what Stage C can reach at best.
    ReconstructedAb,
    /// The true scene, through Stage A's encoder and decoder.
    ReconstructedA,
    /// A blind guess.
    Chance,
}

/// The share of right answers, `[0, 1]`; none where the kind has no such attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// Prompts judged.
    pub prompts: usize,
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

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalRow {
    /// `one`, `two` or `many` objects.
    pub kind: &'static str,
    /// `seen` or `held_out` in training.
    pub split: &'static str,
    /// Where the pictures come from.
    pub source: Source,
    /// The shares.
    pub scores: Scores,
}

/// The kinds and splits that are evaluated.
const GROUPS: [(Kind, Split); 5] = [
    (Kind::One, Split::Seen),
    (Kind::One, Split::HeldOut),
    (Kind::Two, Split::Seen),
    (Kind::Two, Split::HeldOut),
    (Kind::Many, Split::Seen),
];

/// Stage A's and the compressor's share in an evaluation.
pub struct Ceiling<'a> {
    /// Makes the image embeddings of the true scenes.
    pub compressor: &'a Compressor,
    /// The config of the pipeline's Stage A.
    pub vqgan_config: &'a VqganConfig,
}

/// Evaluates a pipeline on the built-in corpus.
///
/// `on_row` hears every line as soon as it is known.
///
/// # Errors
///
/// The pipeline cannot generate.
pub async fn evaluate(
    pipeline: &Pipeline,
    ceiling: &Ceiling<'_>,
    settings: &Settings,
    config: &EvalConfig,
    on_row: &mut dyn FnMut(&EvalRow),
) -> Result<Vec<EvalRow>, Error> {
    let mut rows = Vec::new();
    for (kind, split) in GROUPS {
        let sample = |i: usize| evaluation(kind, split, config.seed, i as u64);
        let samples: Vec<_> = (0..config.prompts).map(sample).collect();
        for source in
            [Source::Generated, Source::ReconstructedAb, Source::ReconstructedA, Source::Chance]
        {
            let scores = match source {
                Source::Chance => chance_scores(kind),
                source => {
                    let mut verdicts = Vec::new();
                    for (batch, samples) in samples.chunks(config.batch_size).enumerate() {
                        let seed = config.seed + (batch as u64);
                        let pictures =
                            pictures(pipeline, ceiling, settings, samples, source, seed).await?;
                        let judged = samples.iter().zip(pictures).map(|(sample, picture)| {
                            let scene = read_scene(&picture.rgb, picture.width as u32);
                            judge(&sample.request, &scene)
                        });
                        verdicts.extend(judged);
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
            let row = EvalRow { kind, split, source, scores };
            on_row(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}

async fn pictures(
    pipeline: &Pipeline,
    ceiling: &Ceiling<'_>,
    settings: &Settings,
    samples: &[Sample],
    source: Source,
    seed: u64,
) -> Result<Vec<Image>, Error> {
    let prompts: Vec<_> = samples.iter().map(|sample| sample.caption.as_str()).collect();
    let settings = Settings { seed, ..settings.clone() };
    if source == Source::Generated {
        let go = &mut async |_: Progress<'_>| ControlFlow::Continue(());
        return Ok(pipeline.generate_each(&prompts, settings, go).await?.images);
    }
    let device = pipeline.device();
    let truth = true_pictures(samples, settings.width, device);
    let decoded = match source {
        Source::ReconstructedA => {
            let vqgan = pipeline.vqgan()?;
            vqgan.decode(vqgan.encode(truth, Statistics::Running))
        }
        _ => {
            let embedding = image_embeddings(ceiling.compressor, truth);
            reconstruct(pipeline, ceiling.vqgan_config, &settings, embedding, &prompts).await?
        }
    };
    let data = decoded.clamp(0.0, 1.0).into_data_async().await;
    Ok(Image::from_data(&data.map_err(|error| Error::Device(format!("{error:?}")))?))
}

/// Decodes image embeddings through stages B and A, without guidance; pictures `[B, 3, H, W]`, not
/// clamped.
///
/// # Errors
///
/// The pipeline cannot sample.
pub async fn reconstruct(
    pipeline: &Pipeline,
    vqgan_config: &VqganConfig,
    settings: &Settings,
    embedding: Tensor<4>,
    prompts: &[&str],
) -> Result<Tensor<4>, Error> {
    let text = Guided { conditional: pipeline.decoder_text.embed(prompts)?, unconditional: None };
    let sampling = Sampling {
        timesteps: &settings.decoder_timesteps,
        guidance_scale: 0.0,
        sampler: settings.sampler,
    };
    let mut rng = Philox::new(settings.seed, 0);
    let device = embedding.device();
    let mut noise = |shape| rng.normal_tensor(shape, &device);
    let [height, width] =
        [settings.height, settings.width].map(|side| side / vqgan_config.downscale());
    let initial = noise([prompts.len(), vqgan_config.latent_channels, height, width]);
    let go = &mut async |_: Progress<'_>| ControlFlow::Continue(());
    let latents =
        pipeline.sample_decoder(initial, embedding, text, &sampling, &mut noise, go).await?;
    Ok(pipeline.decode(latents)?)
}

fn true_pictures(samples: &[Sample], side: usize, device: &Device) -> Tensor<4> {
    let planes = samples.iter().flat_map(|sample| {
        let rgb = draw(&sample.scene, side as u32);
        Image { width: side, height: side, rgb }.to_planes()
    });
    let values: Vec<f32> = planes.collect();
    Tensor::from_data(TensorData::new(values, [samples.len(), 3, side, side]), device)
}

fn scores(verdicts: &[Verdict]) -> Scores {
    let share = |answer: &dyn Fn(&Verdict) -> Option<bool>| {
        let answers: Vec<bool> = verdicts.iter().filter_map(answer).collect();
        let right = answers.iter().filter(|&&right| right).count();
        (!answers.is_empty()).then(|| right as f64 / answers.len() as f64)
    };
    Scores {
        prompts: verdicts.len(),
        background: share(&|verdict| verdict.background),
        count: share(&|verdict| Some(verdict.count)),
        colour: share(&|verdict| Some(verdict.colour)),
        shape: share(&|verdict| Some(verdict.shape)),
        objects: share(&|verdict| Some(verdict.colour && verdict.shape)),
        size: share(&|verdict| verdict.size),
        relation: share(&|verdict| verdict.relation),
    }
}

fn chance_scores(kind: Kind) -> Scores {
    let chance = chance(kind);
    Scores {
        prompts: 0,
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
