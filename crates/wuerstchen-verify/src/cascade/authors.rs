//! The samplings of Stable Cascade's authors, step by step. The authors take the spread of guided predictions over a
//! whole batch, the pipelines here over each picture. Batches of one picture are sampled by the pipeline too.

use std::ops::ControlFlow;

use burn::prelude::*;
use wuerstchen::cascade::{AddedFeatures, Cascade, CascadeConditions};
use wuerstchen::guidance::{guide, rescale};
use wuerstchen::pipeline::{Guided, PriorCondition, Sampling};
use wuerstchen::sampler::{add_noise, clean_latents};
use wuerstchen::schedule::uniform_timesteps;
use wuerstchen::vqgan::STAGE_A_SCALE;
use wuerstchen::{
    CascadeConfig, ModelFiles, Part, Progress, Recipe, Sampler, Schedule, TextEmbedding,
};

use super::samplings::Studio;
use crate::compare::Recorder;
use crate::pictures::{SAMPLING_BOUND, check_picture, replay};
use crate::report::VerifyError;

/// What the authors recommend for a stage.
struct Recommended {
    guidance: f64,
    shift: f64,
    rescale: f64,
}

const PRIOR: Recommended = Recommended { guidance: 4.0, shift: 2.0, rescale: 0.7 };
const DECODER: Recommended = Recommended { guidance: 1.1, shift: 1.0, rescale: 0.7 };

/// The time that a picture to start from is noised to.
const NOISE_LEVEL: f32 = 0.8;

/// One sampling: what it starts from and depends on.
struct Task<'a> {
    variant: &'a str,
    recommended: Recommended,
    initial: Tensor<4>,
    times: Vec<f32>,
    noises: Vec<Tensor<4>>,
    text: Guided<TextEmbedding>,
    pictures: Option<Tensor<3>>,
    embedding: Option<Tensor<4>>,
    /// What a ControlNet adds to Stage C's features.
    control: Vec<AddedFeatures>,
}

/// What a sampling made, one of each for every step.
#[derive(Default)]
struct Made {
    predictions: Vec<Tensor<4>>,
    states: Vec<Tensor<4>>,
    cleans: Vec<Tensor<4>>,
}

/// A sampling of Stage C with what a ControlNet adds, and the scales that its golden names.
pub(super) async fn controlled_sampling(
    recorder: &mut Recorder<'_>,
    studio: &Studio<'_>,
    files: &ModelFiles,
    prior: &Cascade,
    control: Vec<AddedFeatures>,
) -> Result<(), VerifyError> {
    let task = Task::of_prior(recorder, studio, "sample", &[&studio.case.second], PRIOR)?;
    let task = Task { control, ..task };
    let result = task.run(recorder, prior, studio, files).await?;
    recorder.check("sample.result", result, SAMPLING_BOUND);
    Ok(())
}

/// All samplings that the golden has.
pub(super) async fn samplings(
    recorder: &mut Recorder<'_>,
    studio: &Studio<'_>,
    files: &ModelFiles,
) -> Result<(), VerifyError> {
    let (_, prior) = files.load::<CascadeConfig>(Part::CASCADE_PRIOR, studio.device)?;
    let both = [&*studio.case.prompt, &*studio.case.second];
    for (variant, prompts, rescale) in [
        ("text", &both[..], PRIOR.rescale),
        ("text_no_rho", &both[..], 0.0),
        ("variation", &[""][..], PRIOR.rescale),
        ("img2img", &both[1..], PRIOR.rescale),
    ] {
        if recorder.has(&format!("{variant}.result")) {
            let recommended = Recommended { rescale, ..PRIOR };
            let task = Task::of_prior(recorder, studio, variant, prompts, recommended)?;
            let result = task.run(recorder, &prior, studio, files).await?;
            recorder.check(&format!("{variant}.result"), result, SAMPLING_BOUND);
        }
    }
    if recorder.has("stage_b.result") {
        let task = Task::of_decoder(recorder, studio)?;
        let (_, decoder) = files.load::<CascadeConfig>(Part::CASCADE_DECODER, studio.device)?;
        let result = task.run(recorder, &decoder, studio, files).await?;
        recorder.check("stage_b.result", result.clone(), SAMPLING_BOUND);
        // The authors' Stage A has the weights of diffusers' here, and a scale of its own.
        let vqgan = studio.pipeline.vqgan().map_err(VerifyError::from)?;
        let picture = vqgan.decode(result * STAGE_A_SCALE);
        check_picture(recorder, "stage_b.image_u8", picture.clamp(0.0, 1.0)).await?;
    }
    Ok(())
}

impl<'a> Task<'a> {
    fn of_prior(
        recorder: &mut Recorder<'_>,
        studio: &Studio<'_>,
        variant: &'a str,
        prompts: &[&str],
        recommended: Recommended,
    ) -> Result<Self, VerifyError> {
        let device = studio.device;
        let name = |what: &str| format!("{variant}.{what}");
        // The sampling without rescaling has the noise of the one with it.
        let shared = |recorder: &Recorder, what: &str| {
            if recorder.has(&name(what)) { name(what) } else { format!("text.{what}") }
        };
        let noises = recorder.entries(&shared(recorder, "noise"), device)?;
        let (initial, times) = if recorder.has(&name("start_noise")) {
            let latents = recorder.tensor(&name("latents"), device)?;
            let noise = recorder.tensor(&name("start_noise"), device)?;
            let start = add_noise(&Schedule::default(), latents, noise, &[NOISE_LEVEL]);
            recorder.check(&name("start"), start.clone(), SAMPLING_BOUND);
            let steps = uniform_timesteps(noises.len());
            (start, steps.into_iter().map(|t| t * NOISE_LEVEL).collect())
        } else {
            let initial = recorder.tensor(&shared(recorder, "initial"), device)?;
            (initial, uniform_timesteps(noises.len()))
        };
        let negative = vec![""; prompts.len()];
        let text = studio.prior_text.guided(prompts, &negative, 1, recommended.guidance)?;
        let pictures = recorder.optional(&name("clip_img"), device)?;
        Ok(Self {
            variant,
            recommended,
            initial,
            times,
            noises,
            text,
            pictures,
            embedding: None,
            control: Vec::new(),
        })
    }

    fn of_decoder(recorder: &Recorder<'_>, studio: &Studio<'_>) -> Result<Self, VerifyError> {
        let (variant, device) = ("stage_b", studio.device);
        let name = |what: &str| format!("{variant}.{what}");
        let noises = recorder.entries(&name("noise"), device)?;
        let embedding: Tensor<4> = recorder.tensor("text.result", device)?;
        let prompt = [&*studio.case.prompt];
        Ok(Self {
            variant,
            recommended: DECODER,
            initial: recorder.tensor(&name("initial"), device)?,
            times: uniform_timesteps(noises.len()),
            noises,
            text: studio.prior_text.guided(&prompt, &[""], 1, DECODER.guidance)?,
            pictures: None,
            embedding: Some(embedding.narrow(0, 0, 1)),
            control: Vec::new(),
        })
    }

    /// Samples, and compares what the golden has of every step. Returns the pipeline's result where the pipeline
    /// samples as the authors do.
    async fn run(
        &self,
        recorder: &mut Recorder<'_>,
        model: &Cascade,
        studio: &Studio<'_>,
        files: &ModelFiles,
    ) -> Result<Tensor<4>, VerifyError> {
        let Made { predictions, states, cleans } = self.denoise(model);
        let last = cleans[cleans.len() - 1].clone();
        let name = |what: &str| format!("{}.{what}", self.variant);
        recorder.check_parts(&name("pred"), predictions, SAMPLING_BOUND);
        recorder.check_parts(&name("x"), states, SAMPLING_BOUND);
        recorder.check_parts(&name("x0"), cleans, SAMPLING_BOUND);
        let pipelines = files.family().pipelines;
        let pipeline = pipelines[usize::from(self.embedding.is_some())];
        let schedule: Schedule = files.config(&pipeline.scheduler())?;
        let [batch, ..] = self.initial.dims();
        if batch > 1 || schedule != Schedule::default() {
            return Ok(last);
        }
        let Recommended { guidance, shift, rescale } = self.recommended;
        let sampling = Sampling {
            guidance_rescale: rescale,
            recipe: Recipe::Authors,
            shift,
            ..Sampling::new(&self.times, guidance, Sampler::Ddpm)
        };
        let (mut noises, x) = (self.noises.clone().into_iter(), self.initial.clone());
        let noise = &mut replay(&mut noises, studio.device);
        let go = &mut async |_: Progress<'_>| ControlFlow::Continue(());
        let text = Guided {
            conditional: self.text.conditional.clone(),
            unconditional: self.text.unconditional.clone(),
        };
        let pipeline = &studio.pipeline;
        Ok(match self.embedding.clone() {
            Some(embedding) => {
                pipeline.sample_decoder(x, embedding, text, &sampling, noise, go).await?
            }
            None => {
                let (pictures, control) = (self.pictures.clone(), self.control.clone());
                let condition = PriorCondition { text, pictures, control };
                pipeline.sample_prior(x, condition, &sampling, noise, go).await?
            }
        })
    }

    fn denoise(&self, model: &Cascade) -> Made {
        let Recommended { guidance, shift, rescale: rho } = self.recommended;
        let schedule = Schedule { shift, ..Schedule::default() };
        let mut x = self.initial.clone();
        let [batch, channels, height, width] = x.dims();
        let whole = |x: Tensor<4>| x.reshape([1, batch * channels, height, width]);
        let mut made = Made::default();
        for (pair, noise) in self.times.windows(2).zip(&self.noises) {
            let t = vec![schedule.model_time(pair[0]); batch];
            let conditional = self.predict(model, &x, &t, Some(&self.text.conditional));
            let unconditional = self.predict(model, &x, &t, None);
            let mut epsilon = guide(conditional.clone(), unconditional, guidance);
            if rho > 0.0 {
                let rescaled = rescale(whole(epsilon), whole(conditional), rho);
                epsilon = rescaled.reshape([batch, channels, height, width]);
            }
            made.cleans.push(clean_latents(&schedule, x.clone(), epsilon.clone(), pair[0]));
            let times = [pair[0], pair[1]];
            x = Sampler::Ddpm.noisy_step(&schedule, x, epsilon.clone(), noise.clone(), times);
            made.predictions.push(epsilon);
            made.states.push(x.clone());
        }
        made
    }

    /// The prediction of one side of the guidance: with a text, or without one. The latter has zeros for pictures and
    /// embedding.
    fn predict(
        &self,
        model: &Cascade,
        x: &Tensor<4>,
        times: &[f32],
        text: Option<&TextEmbedding>,
    ) -> Tensor<4> {
        let zeros = text.is_none();
        let text = text.or(self.text.unconditional.as_ref()).cloned();
        let TextEmbedding { tokens, pooled } = text.expect("both sides are embedded");
        let conditions = CascadeConditions {
            text: Some(tokens),
            images: side(&self.pictures, zeros),
            image_embedding: side(&self.embedding, zeros),
            control: self.control.clone(),
            ..CascadeConditions::new(pooled.expect("the text encoder pools"))
        };
        model.forward(x.clone(), times, &conditions)
    }
}

/// A condition, or zeros in its place.
fn side<const D: usize>(condition: &Option<Tensor<D>>, zeros: bool) -> Option<Tensor<D>> {
    condition
        .as_ref()
        .map(|condition| if zeros { condition.zeros_like() } else { condition.clone() })
}
