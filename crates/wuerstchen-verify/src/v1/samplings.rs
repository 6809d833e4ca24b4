//! Whole samplings of Würstchen v1, from the reference's random numbers to tokens and pictures.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use burn::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use wuerstchen::guidance::guide;
use wuerstchen::pipeline::{Guided, PriorCondition, Sampling, TokenDraws, TokenStart, TokenSteps};
use wuerstchen::sampler::add_noise;
use wuerstchen::schedule::{linspace, uniform_timesteps};
use wuerstchen::tokens::{probabilities, replace, replaced};
use wuerstchen::{
    Image, ModelFiles, Part, Pipeline, PriorConfig, Progress, Residency, Sampler, Schedule,
    TextEmbedding, TokenDecoderConfig, TokenSampling, Vqgan, VqganConfig,
};

use super::prefixed;
use crate::compare::{Recorder, read};
use crate::pictures::{BYTES_BOUND, SAMPLING_BOUND, keep, replay, slices};
use crate::report::VerifyError;
use crate::stages::{DIFFUSION_BOUND, EXACT_BOUND};

/// `golden/pipeline.json`.
#[derive(Deserialize)]
struct Case {
    prompt: String,
    #[serde(default)]
    negative: String,
    stage_c: PriorRun,
    stage_b: TokenRun,
}

/// A sampling of Stage C.
#[derive(Deserialize)]
struct PriorRun {
    timesteps: usize,
    /// No guidance where there is none.
    cfg: Option<f64>,
    #[serde(default)]
    sampler: Sampler,
}

/// A sampling of Stage B.
#[derive(Deserialize)]
struct TokenRun {
    steps: usize,
    /// Of the first and of the last step.
    temperature: [f32; 2],
    cfg: [f32; 2],
    renoise_steps: Option<usize>,
    #[serde(default)]
    mode: TokenSampling,
    /// From this step on there is no guidance.
    sampling_conditional_steps: Option<usize>,
    /// From this step on the nearest code of the mean is taken.
    sampling_quant_steps: Option<usize>,
    #[serde(default = "at_noise")]
    t_start: f32,
    #[serde(default)]
    t_end: f32,
}

fn at_noise() -> f32 {
    1.0
}

impl TokenRun {
    fn steps(&self) -> TokenSteps {
        let count = self.steps;
        let from = |step: Option<usize>| step.unwrap_or(count).min(count);
        let mut guidance_scales = linspace(self.cfg[0], self.cfg[1], count);
        guidance_scales[from(self.sampling_conditional_steps)..].fill(1.0);
        let mut choices = vec![self.mode; count];
        choices[from(self.sampling_quant_steps)..].fill(TokenSampling::Quant);
        TokenSteps {
            times: linspace(self.t_start, self.t_end, count + 1),
            temperatures: linspace(self.temperature[0], self.temperature[1], count),
            guidance_scales,
            choices,
            renoise_steps: self.renoise_steps.unwrap_or(count.saturating_sub(1)),
        }
    }
}

/// The reference's random numbers.
struct Recorded {
    /// One for every token and class of each step that draws, `[S, B·H·W, K]`.
    exponential: Option<Tensor<3>>,
    /// One for every token of each step that is followed by noise.
    uniform: Vec<Vec<f32>>,
}

impl Recorded {
    fn read(
        recorder: &Recorder,
        name: impl Fn(&str) -> String,
        device: &Device,
    ) -> Result<Self, VerifyError> {
        let exponential = name("exponential");
        let exponential = if recorder.has(&exponential) {
            let all: Tensor<5> = recorder.tensor(&exponential, device)?;
            let [steps, batch, height, width, labels] = all.dims();
            Some(all.reshape([steps, batch * height * width, labels]))
        } else {
            None
        };
        let name = name("mask_uniform");
        let uniform = if recorder.has(&name) {
            let count = recorder.count(&name).unwrap_or(1).max(1);
            let all = recorder.values(&name)?;
            all.chunks((all.len() / count).max(1)).map(<[f32]>::to_vec).collect()
        } else {
            Vec::new()
        };
        Ok(Self { exponential, uniform })
    }
}

impl TokenDraws for Recorded {
    /// As `torch.multinomial` does: the largest of the probabilities over exponential numbers.
    fn choose(
        &mut self,
        step: usize,
        range: Range<usize>,
        probabilities: Tensor<2>,
    ) -> Tensor<1, Int> {
        let exponential = self.exponential.clone().expect("a run that draws has numbers");
        let numbers = exponential.narrow(0, step, 1).squeeze_dim::<2>(0);
        (probabilities / numbers.narrow(0, range.start, range.len())).argmax(1).squeeze_dim(1)
    }

    fn uniform(&mut self, step: usize) -> Vec<f32> {
        self.uniform[step].clone()
    }
}

/// A pipeline and what it is asked.
pub(super) struct Studio<'a> {
    pipeline: Pipeline,
    vqgan: Vqgan,
    vqgan_config: VqganConfig,
    case: Case,
    device: &'a Device,
}

impl<'a> Studio<'a> {
    pub(super) fn load(
        files: &ModelFiles,
        case: &str,
        device: &'a Device,
    ) -> Result<Self, VerifyError> {
        let pipeline = Pipeline::load(files, device, Residency::All)?;
        let vqgan_config: VqganConfig = files.part_config(Part::V1_VQGAN)?;
        let vqgan = pipeline.vqgan()?;
        Ok(Self { pipeline, vqgan, vqgan_config, case: parse("pipeline", case)?, device })
    }

    /// Both sides of a guidance, for `count` samples.
    fn text(&self, count: usize) -> Result<Guided<TextEmbedding>, VerifyError> {
        let embed =
            |text: &str| self.pipeline.prior_text.embed(&[text]).map(|text| text.repeat(count));
        let unconditional = Some(embed(&self.case.negative)?);
        Ok(Guided { conditional: embed(&self.case.prompt)?, unconditional })
    }

    /// The schedule, and every run of Stage C.
    pub(super) async fn prior_runs(
        &self,
        recorder: &mut Recorder<'_>,
        runs: &str,
        files: &ModelFiles,
    ) -> Result<(), VerifyError> {
        let runs: BTreeMap<String, PriorRun> = parse("stage_c_sampling", runs)?;
        self.schedule(recorder)?;
        for (run, settings) in &runs {
            let name = prefixed(run);
            if !recorder.has(&name("initial")) {
                continue;
            }
            let initial: Tensor<4> = recorder.tensor(&name("initial"), self.device)?;
            if recorder.has(&name("x_init")) && !recorder.has(&name("mask")) {
                // It starts from the embedding as it is.
                let x: Tensor<4> = recorder.tensor(&name("x_init"), self.device)?;
                recorder.check(&name("initial"), x, EXACT_BOUND);
            }
            let times = recorder.values(&name("r"))?;
            if times.first() == Some(&1.0) {
                let ours = uniform_timesteps(settings.timesteps);
                recorder.check_values(&name("r"), &[&ours], EXACT_BOUND);
            }
            let is_empty = recorder.shape(&name("noise"))?.len() != 5;
            let noises =
                if is_empty { vec![] } else { recorder.entries(&name("noise"), self.device)? };
            let states = if recorder.has(&name("mask")) {
                self.inpaint(recorder, run, settings, (initial, noises, &times), files).await?
            } else {
                let mut states = Vec::new();
                self.prior_run(settings, (initial, noises, &times), &mut states).await?;
                states
            };
            recorder.check_values(&name("x"), &slices(&states), SAMPLING_BOUND);
        }
        Ok(())
    }

    fn schedule(&self, recorder: &mut Recorder<'_>) -> Result<(), VerifyError> {
        let schedule = Schedule::default();
        let alphas: Vec<f32> =
            recorder.values("t")?.into_iter().map(|t| schedule.alpha_cumprod(t)).collect();
        recorder.check_values("alpha_cumprod", &[&alphas], EXACT_BOUND);
        let times = recorder.values("diffuse.t")?;
        let x = recorder.tensor("diffuse.x0", self.device)?;
        let noise = recorder.tensor("diffuse.noise", self.device)?;
        recorder.check("diffuse.y", add_noise(&schedule, x, noise, &times), DIFFUSION_BOUND);
        let weights: Vec<f32> = times.iter().map(|&t| schedule.p2_weight(t, 1.0)).collect();
        recorder.check_values("p2_weight", &[&weights], DIFFUSION_BOUND);
        Ok(())
    }

    /// Denoises an image embedding by the pipeline; keeps the state after every step.
    async fn prior_run(
        &self,
        settings: &PriorRun,
        (initial, noises, times): (Tensor<4>, Vec<Tensor<4>>, &[f32]),
        states: &mut Vec<Vec<f32>>,
    ) -> Result<Tensor<4>, VerifyError> {
        let mut text = self.text(initial.dims()[0])?;
        if settings.cfg.is_none() {
            text.unconditional = None;
        }
        let sampling = Sampling::new(times, settings.cfg.unwrap_or(0.0), settings.sampler);
        let mut noises = noises.into_iter();
        let noise = &mut replay(&mut noises, self.device);
        let on_step = &mut async |p: Progress<'_>| keep(states, p);
        let condition = PriorCondition::new(text);
        Ok(self.pipeline.sample_prior(initial, condition, &sampling, noise, on_step).await?)
    }

    /// The authors' inpainting: the part to keep is put back before every prediction, with fresh noise.
    async fn inpaint(
        &self,
        recorder: &mut Recorder<'_>,
        run: &str,
        settings: &PriorRun,
        (initial, noises, times): (Tensor<4>, Vec<Tensor<4>>, &[f32]),
        files: &ModelFiles,
    ) -> Result<Vec<Vec<f32>>, VerifyError> {
        let name = prefixed(run);
        let (_, model) = files.load::<PriorConfig>(Part::V1_PRIOR, self.device)?;
        let clean: Tensor<4> = recorder.tensor(&name("x_init"), self.device)?;
        let mask: Tensor<4> = recorder.tensor(&name("mask"), self.device)?;
        let [batch, ..] = initial.dims();
        let Guided { conditional, unconditional } = self.text(batch)?;
        let prepared = model.prepare(conditional.tokens);
        let away = unconditional.map(|text| model.prepare(text.tokens));
        let (schedule, mut x, mut states) = (Schedule::default(), initial, Vec::new());
        for (pair, noises) in times.windows(2).zip(noises.chunks(2)) {
            let [known, fresh] = [&noises[0], &noises[noises.len() - 1]].map(Tensor::clone);
            let t = vec![pair[0]; batch];
            let kept = add_noise(&schedule, clean.clone(), known, &t);
            x = x * mask.clone() + kept * (mask.clone() * -1.0 + 1.0);
            let mut epsilon = prepared.forward(x.clone(), &t, &mut |_, _| {});
            if let (Some(cfg), Some(away)) = (settings.cfg, &away) {
                epsilon = guide(epsilon, away.forward(x.clone(), &t, &mut |_, _| {}), cfg);
            }
            x = settings.sampler.step(&schedule, x, epsilon, fresh, [pair[0], pair[1]]);
            states.push(read(x.clone()).await?);
        }
        Ok(states)
    }

    /// Every run of Stage B.
    pub(super) async fn token_runs(
        &self,
        recorder: &mut Recorder<'_>,
        runs: &str,
        files: &ModelFiles,
    ) -> Result<(), VerifyError> {
        let runs: BTreeMap<String, TokenRun> = parse("stage_b_sampling", runs)?;
        for (run, settings) in &runs {
            let name = prefixed(run);
            if !recorder.has(&name("init_tokens")) {
                continue;
            }
            let embedding: Tensor<4> = recorder.tensor(&name("effnet"), self.device)?;
            let [count, ..] = embedding.dims();
            let text = |side: &str| {
                let text: Tensor<3> = recorder.tensor(&name(side), self.device)?;
                let repeats = count / text.dims()[0].max(1);
                let tokens = text.repeat_dim(0, repeats.max(1));
                Ok::<_, VerifyError>(TextEmbedding { tokens, pooled: None })
            };
            let text =
                Guided { conditional: text("text")?, unconditional: Some(text("text_uncond")?) };
            let steps = settings.steps();
            self.logits(recorder, run, &steps, (&embedding, &text), files).await?;
            let (tokens, _) = self.token_run(recorder, run, &steps, embedding, text).await?;
            if recorder.has(&name("decoded")) {
                let shape = recorder.shape(&name("init_tokens"))?;
                let data = TensorData::new(tokens, shape.to_vec());
                let codes = self.vqgan.look_up(Tensor::from_data(data, self.device));
                recorder.check(&name("decoded"), self.vqgan.decode(codes), SAMPLING_BOUND);
            }
        }
        Ok(())
    }

    /// Samples tokens by the pipeline, and compares them after every step. Returns them and their latents.
    async fn token_run(
        &self,
        recorder: &mut Recorder<'_>,
        run: &str,
        steps: &TokenSteps,
        embedding: Tensor<4>,
        text: Guided<TextEmbedding>,
    ) -> Result<(Vec<i32>, Tensor<4>), VerifyError> {
        let name = prefixed(run);
        recorder.check_values(&name("t"), &[&steps.times], EXACT_BOUND);
        recorder.check_values(&name("temperatures"), &[&steps.temperatures], EXACT_BOUND);
        let shape = recorder.shape(&name("init_tokens"))?;
        let size = [shape[shape.len() - 2], shape[shape.len() - 1]];
        let integers = |what: &str| {
            let integers = recorder.integers(&name(what))?;
            Ok::<_, VerifyError>(integers.into_iter().map(|i| i as i32).collect::<Vec<_>>())
        };
        let noise = integers("init_tokens")?;
        let tokens =
            if recorder.has(&name("init_x")) { integers("init_x")? } else { noise.clone() };
        let mut draws = Recorded::read(recorder, prefixed(run), self.device)?;
        let (mut seen, mut renoised) = (tokens.clone(), Vec::new());
        let mut drawn: Vec<i32> = Vec::new();
        let mut latents = Vec::new();
        let start = (TokenStart { noise: noise.clone(), tokens, kept: None }, size);
        let on_step = &mut async |progress: Progress<'_>| {
            latents.push(progress.latents.clone());
            ControlFlow::Continue(())
        };
        let made =
            self.pipeline.sample_tokens(start, embedding, text, steps, &mut draws, on_step).await?;
        // The latents that a step reports are codes; their numbers are the tokens that the step has chosen.
        for (step, latents) in latents.into_iter().enumerate() {
            let chosen = self.tokens_of(latents).await?;
            if step < steps.renoise_steps {
                let mask: Vec<bool> =
                    replaced(&draws.uniform[step], steps.times[step + 1]).collect();
                renoised.extend(replace(&chosen, &noise, &mask));
            }
            if step + 1 < steps.count() {
                let area = chosen.len();
                let is_noised = step < steps.renoise_steps;
                let next = if is_noised { &renoised[renoised.len() - area..] } else { &chosen[..] };
                seen.extend_from_slice(next);
            }
            if steps.choices[step] == TokenSampling::Multinomial {
                drawn.extend(chosen);
            }
        }
        for (what, ours) in
            [("drawn", &drawn), ("renoised", &renoised), ("tokens_in", &seen), ("tokens", &made.0)]
        {
            self.check_tokens(recorder, &name(what), ours)?;
        }
        Ok(made)
    }

    fn check_tokens(
        &self,
        recorder: &mut Recorder<'_>,
        name: &str,
        ours: &[i32],
    ) -> Result<(), VerifyError> {
        if !recorder.has(name) {
            return Ok(());
        }
        let ours: Vec<i64> = ours.iter().map(|&token| i64::from(token)).collect();
        let golden = recorder.integers(name)?;
        recorder.check_equal(name, &ours, &golden);
        Ok(())
    }

    /// The tokens of latents that are codes.
    async fn tokens_of(&self, latents: TensorData) -> Result<Vec<i32>, VerifyError> {
        let latents = Tensor::<4>::from_data(latents, self.device) * self.vqgan_config.scale_factor;
        let indices = self.vqgan.quantize(latents).indices;
        let values = read(indices.float()).await?;
        Ok(values.into_iter().map(|value| value as i32).collect())
    }

    /// Logits of single steps from the golden's tokens, and the probabilities that they mean.
    async fn logits(
        &self,
        recorder: &mut Recorder<'_>,
        run: &str,
        steps: &TokenSteps,
        (embedding, text): (&Tensor<4>, &Guided<TextEmbedding>),
        files: &ModelFiles,
    ) -> Result<(), VerifyError> {
        let name = prefixed(run);
        if recorder.has(&name("cfgs")) {
            self.check_guidance(recorder, run, steps)?;
        }
        let numbers =
            (0..steps.count()).filter(|step| recorder.has(&name(&format!("{step}.logits"))));
        let numbers: Vec<usize> = numbers.collect();
        if numbers.is_empty() {
            return Ok(());
        }
        let (_, model) = files.load::<TokenDecoderConfig>(Part::V1_DECODER, self.device)?;
        let &[_, batch, height, width] = recorder.shape(&name("tokens_in"))? else {
            return Err(recorder.error(format!("expected 4 axes of {run}.tokens_in")));
        };
        let all = recorder.integers(&name("tokens_in"))?;
        let size = batch * height * width;
        for step in numbers {
            let tokens: Vec<i32> = all[step * size..][..size].iter().map(|&i| i as i32).collect();
            let tokens = TensorData::new(tokens, [batch, height, width]);
            let tokens: Tensor<3, Int> = Tensor::from_data(tokens, self.device);
            let times = vec![steps.times[step]; batch];
            let conditional = text.conditional.tokens.clone();
            let logits =
                model.forward(tokens.clone(), &times, embedding.clone(), Some(conditional));
            recorder.check(&name(&format!("{step}.logits")), logits.clone(), DIFFUSION_BOUND);
            let away = text.unconditional.as_ref().map(|text| text.tokens.clone());
            let away = model.forward(tokens, &times, embedding.zeros_like(), away);
            recorder.check(&name(&format!("{step}.logits_uncond")), away.clone(), DIFFUSION_BOUND);
            let scale = steps.guidance_scales[step];
            let mixed = logits * scale + away * (1.0 - scale);
            let [_, labels, ..] = mixed.dims();
            let rows = mixed.permute([0, 2, 3, 1]).reshape([size, labels]);
            let scores = probabilities(rows, steps.temperatures[step]);
            recorder.check(&name(&format!("{step}.scores")), scores, SAMPLING_BOUND);
        }
        Ok(())
    }

    /// The guidance scales, which the reference lists beyond the step where guidance ends too.
    fn check_guidance(
        &self,
        recorder: &mut Recorder<'_>,
        run: &str,
        steps: &TokenSteps,
    ) -> Result<(), VerifyError> {
        let name = format!("{run}.cfgs");
        let golden = recorder.values(&name)?;
        let is_off = |step: usize| steps.guidance_scales[step] == 1.0;
        let ours: Vec<f32> = (0..steps.count())
            .map(|step| if is_off(step) { golden[step] } else { steps.guidance_scales[step] })
            .collect();
        recorder.check_values(&name, &[&ours], EXACT_BOUND);
        Ok(())
    }

    /// From the prompt to the picture.
    pub(super) async fn pipeline(&self, recorder: &mut Recorder<'_>) -> Result<(), VerifyError> {
        let Case { prompt, negative, stage_c, stage_b } = &self.case;
        self.token_ids(recorder, &[prompt, negative])?;
        let initial: Tensor<4> = recorder.tensor("stage_c.initial", self.device)?;
        let [count, ..] = initial.dims();
        let text = self.text(count)?;
        let sides = [
            ("stage_b.text", Some(&text.conditional)),
            ("stage_b.text_uncond", text.unconditional.as_ref()),
        ];
        for (name, side) in sides {
            if let Some(side) = side {
                recorder.check(name, side.tokens.clone(), EXACT_BOUND);
            }
        }
        let noises = recorder.entries("stage_c.noise", self.device)?;
        let times = uniform_timesteps(stage_c.timesteps);
        let mut states = Vec::new();
        let made = self.prior_run(stage_c, (initial, noises, &times), &mut states).await?;
        let embedding = self.pipeline.image_embedding(made);
        recorder.check("stage_c.embedding", embedding.clone(), SAMPLING_BOUND);

        let steps = stage_b.steps();
        if recorder.has("stage_b.cfgs") {
            self.check_guidance(recorder, "stage_b", &steps)?;
        }
        let (_, latents) = self.token_run(recorder, "stage_b", &steps, embedding, text).await?;
        let picture = self.pipeline.decode(latents)?;
        recorder.check("unclamped", picture.clone(), SAMPLING_BOUND);
        let shape = picture.dims();
        let data = TensorData::new(read(picture).await?, shape);
        // The golden's bytes lie plane by plane.
        let planes = Image::from_data(&data).into_iter().flat_map(|image| image.to_planes());
        let bytes: Vec<u8> = planes.map(|value| (value * 255.0).round() as u8).collect();
        recorder.check_bytes("image_u8", &bytes, BYTES_BOUND);
        Ok(())
    }

    fn token_ids(
        &self,
        recorder: &mut Recorder<'_>,
        prompts: &[&String],
    ) -> Result<(), VerifyError> {
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let tokens = self.pipeline.prior_text.tokenizer.encode(prompt);
            let tokens = tokens.map_err(wuerstchen::Error::from)?;
            ids.extend(tokens.ids.iter().map(|&id| i64::from(id)));
            mask.extend(tokens.attended.iter().map(|&attended| i64::from(attended)));
        }
        for (name, ours) in [("input_ids", ids), ("attention_mask", mask)] {
            if recorder.has(name) {
                let golden = recorder.integers(name)?;
                recorder.check_equal(name, &ours, &golden);
            }
        }
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, VerifyError> {
    serde_json::from_str(text).map_err(|error| VerifyError::Golden {
        file: format!("{name}.json"),
        reason: error.to_string(),
    })
}
