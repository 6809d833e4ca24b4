//! Whole samplings, from the reference's noise to pictures.

use std::ops::ControlFlow;

use burn::prelude::*;
use serde::Deserialize;
use wuerstchen::guidance::is_guided;
use wuerstchen::pipeline::{Guided, PriorCondition, Sampling, TextPart};
use wuerstchen::{
    Checkpoint, Image, ModelFiles, Pipeline, Progress, Residency, Sampler, TextEmbedding,
};

use crate::Subject;
use crate::compare::{Recorder, read};
use crate::report::{Verification, VerifyError};

/// Largest relative error of latents after all steps and of pictures: every step multiplies the
/// error of the one before.
pub(crate) const SAMPLING_BOUND: f64 = 1e-3;

/// Largest share of picture bytes that are more than one level off.
pub(crate) const BYTES_BOUND: f64 = 1e-3;

/// Decoder guidance of the golden `dec_cfg`.
const DECODER_GUIDANCE: f64 = 2.0;

/// The combined pipeline's default: none.
const COMBINED_DECODER_GUIDANCE: f64 = 0.0;

/// `golden/pipeline.json`.
#[derive(Deserialize)]
struct Case {
    prompt: String,
    negative: String,
    prior_guidance: f64,
    #[serde(default = "decoder_guidance")]
    decoder_guidance: f64,
    height: usize,
    width: usize,
}

fn decoder_guidance() -> f64 {
    DECODER_GUIDANCE
}

/// Compares the bytes of pictures `[B, 3, H, W]` in `[0, 1]`.
pub(crate) async fn check_picture(
    recorder: &mut Recorder<'_>,
    name: &str,
    pictures: Tensor<4>,
) -> Result<(), VerifyError> {
    let shape = pictures.dims();
    let data = TensorData::new(read(pictures).await?, shape);
    let rgb: Vec<u8> = Image::from_data(&data).into_iter().flat_map(|i| i.rgb).collect();
    recorder.check_bytes(name, &rgb, BYTES_BOUND);
    Ok(())
}

/// Compares whole samplings; `on_file` is called before each file.
pub(crate) async fn samplings(
    subject: &Subject<'_>,
    result: &mut Verification,
    on_file: &mut dyn FnMut(&str),
) -> Result<(), VerifyError> {
    let Subject { files, goldens, device, slack, .. } = *subject;
    let (Some(golden), Some(case)) =
        (goldens.tensors.get("pipeline"), goldens.texts.get("pipeline"))
    else {
        return Ok(());
    };
    on_file("pipeline");
    let studio = Studio::load(files, golden, case, device)?;
    let mut recorder = Recorder::new("pipeline", golden, slack);
    studio.variants(&mut recorder).await?;
    recorder.finish(result).await?;
    if let Some(golden) = goldens.tensors.get("combined") {
        on_file("combined");
        let mut recorder = Recorder::new("combined", golden, slack);
        studio.combined(&mut recorder).await?;
        recorder.finish(result).await?;
    }
    Ok(())
}

/// A pipeline and what it is asked.
pub(crate) struct Studio<'a> {
    pipeline: Pipeline,
    case: Case,
    golden: &'a Checkpoint,
    device: &'a Device,
}

impl<'a> Studio<'a> {
    fn load(
        files: &ModelFiles,
        golden: &'a Checkpoint,
        case: &str,
        device: &'a Device,
    ) -> Result<Self, VerifyError> {
        let case = serde_json::from_str(case).map_err(|error| VerifyError::Golden {
            file: "pipeline.json".into(),
            reason: error.to_string(),
        })?;
        let pipeline = Pipeline::load(files, device, Residency::All)?;
        Ok(Self { pipeline, case, golden, device })
    }

    /// Both diffusion stages with and without guidance, and the pictures.
    async fn variants(&self, recorder: &mut Recorder<'_>) -> Result<(), VerifyError> {
        for variant in recorder.stems(".initial") {
            if variant.starts_with("prior") {
                self.prior(recorder, &variant).await?;
            } else {
                self.decoder(recorder, &variant).await?;
            }
        }
        Ok(())
    }

    async fn prior(&self, recorder: &mut Recorder<'_>, variant: &str) -> Result<(), VerifyError> {
        let name = |what: &str| format!("{variant}.{what}");
        let initial: Tensor<4> = recorder.tensor(&name("initial"), self.device)?;
        let scale = scale_of(variant, self.case.prior_guidance);
        // The reference made this one variant without a negative prompt.
        let negative = if variant.contains("stagec") { "" } else { &self.case.negative };
        let text = self.embed(&self.pipeline.prior_text, initial.dims()[0], scale, negative)?;
        let (times, noises) = self.schedule_of(recorder, variant)?;
        let sampling = Sampling::new(&times, scale, Sampler::Ddpm);
        let mut noises = noises.into_iter();
        let mut latents = Vec::new();
        let result = self
            .pipeline
            .sample_prior(
                initial,
                PriorCondition::new(text),
                &sampling,
                &mut replay(&mut noises, self.device),
                &mut async |p: Progress<'_>| keep(&mut latents, p),
            )
            .await?;
        recorder.check_values(&name("latents"), &slices(&latents), SAMPLING_BOUND);
        let embeddings = self.pipeline.image_embedding(result);
        recorder.check(&name("image_embeddings"), embeddings, SAMPLING_BOUND);
        Ok(())
    }

    async fn decoder(&self, recorder: &mut Recorder<'_>, variant: &str) -> Result<(), VerifyError> {
        let name = |what: &str| format!("{variant}.{what}");
        let initial: Tensor<4> = recorder.tensor(&name("initial"), self.device)?;
        let embeddings = recorder.tensor("prior_cfg.image_embeddings", self.device)?;
        let scale = scale_of(variant, self.case.decoder_guidance);
        let (part, negative) = (self.pipeline.decoder_text(), &self.case.negative);
        let text = self.embed(part, initial.dims()[0], scale, negative)?;
        let (times, noises) = self.schedule_of(recorder, variant)?;
        let sampling = Sampling::new(&times, scale, Sampler::Ddpm);
        let mut noises = noises.into_iter();
        let mut latents = Vec::new();
        let noise = &mut replay(&mut noises, self.device);
        let result = self
            .pipeline
            .sample_decoder(
                initial,
                embeddings,
                text,
                &sampling,
                noise,
                &mut async |p: Progress<'_>| keep(&mut latents, p),
            )
            .await?;
        recorder.check_values(&name("latents"), &slices(&latents), SAMPLING_BOUND);
        let picture = self.pipeline.decode(result)?;
        recorder.check(&name("unclamped"), picture.clone(), SAMPLING_BOUND);
        self.picture(recorder, &name("image"), picture).await?;
        self.sizes(recorder, &name("sizes"));
        Ok(())
    }

    async fn picture(
        &self,
        recorder: &mut Recorder<'_>,
        name: &str,
        picture: Tensor<4>,
    ) -> Result<(), VerifyError> {
        let picture = picture.clamp(0.0, 1.0);
        recorder.check(name, picture.clone(), SAMPLING_BOUND);
        let bytes = format!("{name}_u8");
        if recorder.has(&bytes) {
            check_picture(recorder, &bytes, picture).await?;
        }
        Ok(())
    }

    /// Whether the model gives the picture's size the latent sizes that the reference took.
    fn sizes(&self, recorder: &mut Recorder, name: &str) {
        let Case { height, width, .. } = self.case;
        // A size that the model refuses differs from any golden.
        let (embedding, latents) = self.pipeline.sizes(height, width).unwrap_or_default();
        let ours: Vec<i64> = [embedding, latents].concat().iter().map(|&s| s as i64).collect();
        let side = |name: &str, axis: usize| {
            let side = self.golden.shape(name).and_then(|shape| shape.get(axis));
            side.map_or(0, |&side| side as i64)
        };
        let variant = name.trim_end_matches("sizes");
        let (prior, decoder) = ("prior_cfg.initial", format!("{variant}initial"));
        let golden = [side(prior, 2), side(prior, 3), side(&decoder, 2), side(&decoder, 3)];
        recorder.check_equal(name, &ours, &golden);
    }

    /// Both stages in a row, with the noises in the order in which they are drawn.
    async fn combined(&self, recorder: &mut Recorder<'_>) -> Result<(), VerifyError> {
        let mut noises: Vec<Tensor<4>> = Vec::new();
        while recorder.has(&format!("noise.{}", noises.len())) {
            noises.push(recorder.tensor(&format!("noise.{}", noises.len()), self.device)?);
        }
        let Some(first) = noises.first().map(Tensor::dims) else {
            return Err(recorder.error("expected tensors \"noise.0\", …".into()));
        };
        let split = noises.iter().take_while(|noise| noise.dims() == first).count();
        let mut decoder_noises = noises.split_off(split).into_iter();
        let mut prior_noises = noises.into_iter();
        let (Some(initial), Some(latents)) = (prior_noises.next(), decoder_noises.next()) else {
            return Err(recorder.error("expected noises for both stages".into()));
        };

        let scale = self.case.prior_guidance;
        let text = self.embed(&self.pipeline.prior_text, first[0], scale, &self.case.negative)?;
        let times = wuerstchen::schedule::uniform_timesteps(prior_noises.len());
        let sampling = Sampling::new(&times, scale, Sampler::Ddpm);
        let noise = &mut replay(&mut prior_noises, self.device);
        let on_step = &mut async |_: Progress<'_>| ControlFlow::Continue(());
        let condition = PriorCondition::new(text);
        let result =
            self.pipeline.sample_prior(initial, condition, &sampling, noise, on_step).await?;
        let embedding = self.pipeline.image_embedding(result);

        let scale = COMBINED_DECODER_GUIDANCE;
        let text =
            self.embed(self.pipeline.decoder_text(), first[0], scale, &self.case.negative)?;
        let times = wuerstchen::schedule::uniform_timesteps(decoder_noises.len());
        let sampling = Sampling::new(&times, scale, Sampler::Ddpm);
        let noise = &mut replay(&mut decoder_noises, self.device);
        let on_step = &mut async |_: Progress<'_>| ControlFlow::Continue(());
        let result = self
            .pipeline
            .sample_decoder(latents, embedding, text, &sampling, noise, on_step)
            .await?;
        self.picture(recorder, "image", self.pipeline.decode(result)?).await
    }

    fn embed(
        &self,
        part: &TextPart,
        count: usize,
        scale: f64,
        negative: &str,
    ) -> Result<Guided<TextEmbedding>, VerifyError> {
        let embed = |prompt: &str| part.embed(&[prompt]).map(|text| text.repeat(count));
        let negative = is_guided(scale).then(|| embed(negative)).transpose()?;
        Ok(Guided { conditional: embed(&self.case.prompt)?, unconditional: negative })
    }

    /// The times and noises of a variant.
    fn schedule_of(
        &self,
        recorder: &Recorder,
        variant: &str,
    ) -> Result<(Vec<f32>, Vec<Tensor<4>>), VerifyError> {
        let times = recorder.values(&format!("{variant}.timesteps"))?;
        let noises = recorder.entries(&format!("{variant}.step_noise"), self.device)?;
        if noises.len() + 1 == times.len() {
            Ok((times, noises))
        } else {
            Err(recorder.error(format!("expected a noise for every step of {variant}")))
        }
    }
}

fn scale_of(variant: &str, scale: f64) -> f64 {
    if variant.contains("nocfg") { 0.0 } else { scale }
}

/// Hands out recorded noises, then zeros.
pub(crate) fn replay<'a>(
    noises: &'a mut impl Iterator<Item = Tensor<4>>,
    device: &'a Device,
) -> impl FnMut([usize; 4]) -> Tensor<4> + 'a {
    move |shape| noises.next().unwrap_or_else(|| Tensor::zeros(shape, device))
}

pub(crate) fn keep(latents: &mut Vec<Vec<f32>>, progress: Progress) -> ControlFlow<()> {
    let data = progress.latents.clone().convert::<f32>();
    latents.push(data.try_to_vec::<f32>().expect("converted to f32"));
    ControlFlow::Continue(())
}

pub(crate) fn slices(parts: &[Vec<f32>]) -> Vec<&[f32]> {
    parts.iter().map(Vec::as_slice).collect()
}
