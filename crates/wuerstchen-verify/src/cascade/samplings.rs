//! Whole samplings, from the reference's noise to pictures.

use std::ops::ControlFlow;

use burn::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value};
use wuerstchen::guidance::is_guided;
use wuerstchen::pipeline::{Guided, PriorCondition, Sampling};
use wuerstchen::schedule::uniform_timesteps;
use wuerstchen::{
    Checkpoint, Image, LoadError, ModelFiles, Part, PartConfig, Pipeline, PipelineFolder,
    PooledTextConfig, PooledTextEncoder, Progress, Recipe, Residency, Sampler, TextEmbedding,
    Tokenizer,
};

use super::networks::picture;
use crate::compare::Recorder;
use crate::pictures::{SAMPLING_BOUND, check_picture, keep, replay, slices};
use crate::report::VerifyError;

/// What the goldens were asked for: `golden/pipeline.json` or `golden/combined.json`.
#[derive(Clone, Deserialize)]
pub(super) struct Case {
    pub(super) prompt: String,
    negative_prompt: String,
    #[serde(default)]
    pub(super) second: String,
    /// What was run, in words.
    #[serde(default)]
    runs: Map<String, Value>,
    /// The same, of `combined.json`.
    #[serde(flatten)]
    further: Map<String, Value>,
}

/// A run in words, as numbers.
struct Run {
    words: String,
    guidance: f64,
    /// The numbers of the pictures that are part of the prompt.
    pictures: Vec<usize>,
}

impl Run {
    /// Reads `…, picture 0 of image_encoder, 4 steps, guidance 3`, or `no guidance`.
    fn of(words: &str) -> Self {
        let after = |word: &'static str| words.split(word).skip(1);
        let number = |text: &str| -> Option<f64> {
            let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.'));
            text[..end.unwrap_or(text.len())].trim_end_matches('.').parse().ok()
        };
        let guidance = after("guidance ").find_map(number).unwrap_or(0.0);
        let numbers = |text: &str| -> Vec<usize> {
            let is_part = |word: &&str| word.parse::<usize>().is_ok() || *word == "and";
            let words = text.split([' ', ',']).take_while(is_part);
            words.filter_map(|word| word.parse().ok()).collect()
        };
        let pictures = after("picture ").chain(after("pictures ")).flat_map(numbers).collect();
        Self { words: words.to_owned(), guidance, pictures }
    }

    fn says(&self, words: &str) -> bool {
        self.words.contains(words)
    }
}

/// A text encoder with its tokenizer, as each of diffusers' pipelines has one.
pub(super) struct Text {
    tokenizer: Tokenizer,
    encoder: PooledTextEncoder,
}

impl Text {
    fn load(
        files: &ModelFiles,
        part: Part,
        pipeline: PipelineFolder,
        device: &Device,
    ) -> Result<Self, VerifyError> {
        let config: PooledTextConfig = files.part_config(part)?;
        let length = config.text.max_position_embeddings;
        let tokenizer = Tokenizer::new(&files.tokenizer(pipeline), length);
        let encoder = config.load(files.weights(part)?, device)?;
        Ok(Self { tokenizer: tokenizer.map_err(LoadError::from)?, encoder })
    }

    fn embed(&self, prompts: &[&str]) -> Result<TextEmbedding, VerifyError> {
        let encode = |prompt: &&str| self.tokenizer.encode(prompt).map_err(LoadError::from);
        let ids = prompts.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        Ok(self.encoder.forward(&ids))
    }

    /// Both sides of a guidance; each prompt `repeats` times.
    pub(super) fn guided(
        &self,
        prompts: &[&str],
        negative: &[&str],
        repeats: usize,
        guidance: f64,
    ) -> Result<Guided<TextEmbedding>, VerifyError> {
        let all = |prompts: &[&str]| {
            let each = prompts.iter().flat_map(|&prompt| vec![prompt; repeats]);
            self.embed(&each.collect::<Vec<_>>())
        };
        let unconditional = is_guided(guidance).then(|| all(negative)).transpose()?;
        Ok(Guided { conditional: all(prompts)?, unconditional })
    }
}

/// A pipeline, what it is asked, and the pictures that it is shown.
pub(super) struct Studio<'a> {
    pub(super) pipeline: Pipeline,
    pub(super) prior_text: Text,
    decoder_text: Text,
    pub(super) case: Case,
    pictures: &'a Checkpoint,
    pub(super) device: &'a Device,
}

impl<'a> Studio<'a> {
    pub(super) fn load(
        files: &ModelFiles,
        pictures: &'a Checkpoint,
        case: &str,
        device: &'a Device,
    ) -> Result<Self, VerifyError> {
        let [prior, decoder] = [PipelineFolder::CASCADE_PRIOR, PipelineFolder::CASCADE_DECODER];
        let prior_text = Text::load(files, Part::CASCADE_TEXT, prior, device)?;
        let decoder_text = if files.weights.contains_key(&Part::CASCADE_DECODER_TEXT) {
            Text::load(files, Part::CASCADE_DECODER_TEXT, decoder, device)?
        } else {
            Text::load(files, Part::CASCADE_TEXT, prior, device)?
        };
        let pipeline = Pipeline::load(files, device, Residency::All)?;
        let case = parse("pipeline.json", case)?;
        Ok(Self { pipeline, prior_text, decoder_text, case, pictures, device })
    }

    /// Every run of both pipelines by itself.
    pub(super) async fn variants(&self, recorder: &mut Recorder<'_>) -> Result<(), VerifyError> {
        for variant in recorder.stems(".initial") {
            let words = self.case.runs.get(&variant).and_then(Value::as_str);
            let expected = || recorder.error(format!("expected {variant:?} in pipeline.json"));
            let run = Run::of(words.ok_or_else(expected)?);
            if variant.starts_with("prior") {
                self.prior(recorder, &variant, &run).await?;
            } else {
                self.decoder(recorder, &variant, &run).await?;
            }
        }
        Ok(())
    }

    async fn prior(
        &self,
        recorder: &mut Recorder<'_>,
        variant: &str,
        run: &Run,
    ) -> Result<(), VerifyError> {
        let name = |what: &str| format!("{variant}.{what}");
        let initial: Tensor<4> = recorder.tensor(&name("initial"), self.device)?;
        let [count, ..] = initial.dims();
        let (prompts, negative) = self.prompts(run);
        let repeats = count / prompts.len();
        let text = self.prior_text.guided(&prompts, &negative, repeats, run.guidance)?;
        self.check_texts(recorder, &name, &text);
        let pictures = match recorder.optional::<3>(&name("image_embeds"), self.device)? {
            Some(given) => Some(given.repeat_dim(0, count)),
            None => self.embed_pictures(run, count).await?,
        };
        let times = recorder.values(&name("timesteps"))?;
        let sampling = Sampling::new(&times, run.guidance, Sampler::Ddpm);
        let mut noises = recorder.entries(&name("step_noise"), self.device)?.into_iter();
        let mut latents = Vec::new();
        let noise = &mut replay(&mut noises, self.device);
        let on_step = &mut async |p: Progress<'_>| keep(&mut latents, p);
        let condition = PriorCondition { text, pictures, control: Vec::new() };
        let result =
            self.pipeline.sample_prior(initial, condition, &sampling, noise, on_step).await?;
        recorder.check_values(&name("latents"), &slices(&latents), SAMPLING_BOUND);
        let embeddings = self.pipeline.image_embedding(result);
        recorder.check(&name("image_embeddings"), embeddings, SAMPLING_BOUND);
        Ok(())
    }

    async fn decoder(
        &self,
        recorder: &mut Recorder<'_>,
        variant: &str,
        run: &Run,
    ) -> Result<(), VerifyError> {
        let name = |what: &str| format!("{variant}.{what}");
        let initial: Tensor<4> = recorder.tensor(&name("initial"), self.device)?;
        let [count, ..] = initial.dims();
        let embedding = self.embedding_of(recorder, variant, run)?;
        let (mut prompts, negative) = self.prompts(run);
        if run.says("both prompts") {
            prompts = vec![&self.case.prompt, &self.case.second];
        }
        let repeats = count / prompts.len();
        let text = self.decoder_text.guided(&prompts, &negative, repeats, run.guidance)?;
        let times = recorder.values(&name("timesteps"))?;
        let sampling = Sampling::new(&times, run.guidance, Sampler::Ddpm);
        let mut noises = recorder.entries(&name("step_noise"), self.device)?.into_iter();
        let mut latents = Vec::new();
        let noise = &mut replay(&mut noises, self.device);
        let on_step = &mut async |p: Progress<'_>| keep(&mut latents, p);
        let result = self
            .pipeline
            .sample_decoder(initial, embedding, text, &sampling, noise, on_step)
            .await?;
        // Short runs have the last latents only.
        if recorder.shape(&name("latents"))?.len() == 4 {
            latents.drain(..latents.len().saturating_sub(1));
        }
        recorder.check_values(&name("latents"), &slices(&latents), SAMPLING_BOUND);
        let picture = self.pipeline.decode(result)?;
        recorder.check(&name("unclamped"), picture.clone(), SAMPLING_BOUND);
        check_picture(recorder, &name("image_u8"), picture.clamp(0.0, 1.0)).await
    }

    /// The image embedding that a run of the decoder starts from.
    fn embedding_of(
        &self,
        recorder: &Recorder,
        variant: &str,
        run: &Run,
    ) -> Result<Tensor<4>, VerifyError> {
        let own = format!("{variant}.image_embeddings");
        if recorder.has(&own) {
            return recorder.tensor(&own, self.device);
        }
        if run.says("prior_batch") {
            // Rows 1 and 2: one of each prompt.
            let all: Tensor<4> = recorder.tensor("prior_batch.image_embeddings", self.device)?;
            return Ok(all.narrow(0, 1, 2));
        }
        recorder.tensor("prior_default.image_embeddings", self.device)
    }

    /// The prompts and negative prompts of a run.
    fn prompts(&self, run: &Run) -> (Vec<&str>, Vec<&str>) {
        let Case { prompt, negative_prompt, second, .. } = &self.case;
        if run.says("[prompt, second]") {
            return (vec![prompt, second], vec![negative_prompt, ""]);
        }
        let prompt = if run.says("empty prompt") {
            ""
        } else if run.says("second prompt") {
            second
        } else {
            prompt
        };
        let negative = if run.says("negative prompt") { negative_prompt } else { "" };
        (vec![prompt], vec![negative])
    }

    /// The prompts' embeddings, where a run has them.
    fn check_texts(
        &self,
        recorder: &mut Recorder,
        name: &dyn Fn(&str) -> String,
        text: &Guided<TextEmbedding>,
    ) {
        let sides =
            [("prompt", Some(&text.conditional)), ("negative_prompt", text.unconditional.as_ref())];
        for (side, embedding) in sides {
            let Some(TextEmbedding { tokens, pooled }) = embedding.cloned() else { continue };
            recorder.check(&name(&format!("{side}_embeds")), tokens, SAMPLING_BOUND);
            if let Some(pooled) = pooled {
                recorder.check(&name(&format!("{side}_embeds_pooled")), pooled, SAMPLING_BOUND);
            }
        }
    }

    /// The CLIP embeddings of the pictures of a run, `[count, k, D]`.
    async fn embed_pictures(
        &self,
        run: &Run,
        count: usize,
    ) -> Result<Option<Tensor<3>>, VerifyError> {
        if run.pictures.is_empty() {
            return Ok(None);
        }
        let recorder = Recorder::new("image_encoder", self.pictures, 1.0);
        let picture = |number: &usize| picture(&recorder, &format!("{number}.picture"));
        let images = run.pictures.iter().map(picture).collect::<Result<Vec<Image>, _>>()?;
        let prompt = self.pipeline.picture_prompt(&images, Recipe::Diffusers).await?;
        let embeddings = Tensor::<3>::from_data(prompt.embeddings, self.device);
        Ok(Some(embeddings.repeat_dim(0, count)))
    }

    /// Both stages in a row, with the noises in the order in which they are drawn.
    pub(super) async fn combined(
        &self,
        recorder: &mut Recorder<'_>,
        case: &str,
    ) -> Result<(), VerifyError> {
        let case: Case = parse("combined.json", case)?;
        for variant in recorder.stems(".noise.0") {
            let name = |what: &str| format!("{variant}.{what}");
            let mut noises: Vec<Tensor<4>> = Vec::new();
            while recorder.has(&name(&format!("noise.{}", noises.len()))) {
                let next = name(&format!("noise.{}", noises.len()));
                noises.push(recorder.tensor(&next, self.device)?);
            }
            let first = noises[0].dims();
            let split = noises.iter().take_while(|noise| noise.dims() == first).count();
            let mut decoder_noises = noises.split_off(split).into_iter();
            let mut prior_noises = noises.into_iter();
            let (Some(initial), Some(latents)) = (prior_noises.next(), decoder_noises.next())
            else {
                return Err(recorder.error("expected noises for both stages".into()));
            };
            let words = case.further.get(&variant).and_then(Value::as_str);
            let words = words
                .and_then(|words| words.split_once("decoder"))
                .ok_or_else(|| recorder.error(format!("expected {variant:?} in combined.json")))?;
            let (prior, decoder) = (Run::of(words.0), Run::of(words.1));

            // The decoder takes the prior's embeddings.
            let [count, ..] = first;
            let (prompts, negative) = ([&*case.prompt], [&*case.negative_prompt]);
            let text = |run: &Run| self.prior_text.guided(&prompts, &negative, count, run.guidance);
            let pictures = self.embed_pictures(&prior, count).await?;
            let times = uniform_timesteps(prior_noises.len());
            let sampling = Sampling::new(&times, prior.guidance, Sampler::Ddpm);
            let noise = &mut replay(&mut prior_noises, self.device);
            let on_step = &mut async |_: Progress<'_>| ControlFlow::Continue(());
            let text_of_prior = text(&prior)?;
            let condition = PriorCondition { text: text_of_prior, pictures, control: Vec::new() };
            let result =
                self.pipeline.sample_prior(initial, condition, &sampling, noise, on_step).await?;
            let embedding = self.pipeline.image_embedding(result);
            recorder.check(&name("image_embeddings"), embedding.clone(), SAMPLING_BOUND);

            let times = uniform_timesteps(decoder_noises.len());
            let sampling = Sampling::new(&times, decoder.guidance, Sampler::Ddpm);
            let noise = &mut replay(&mut decoder_noises, self.device);
            let on_step = &mut async |_: Progress<'_>| ControlFlow::Continue(());
            let text = text(&decoder)?;
            let result = self
                .pipeline
                .sample_decoder(latents, embedding, text, &sampling, noise, on_step)
                .await?;
            recorder.check(&name("latents"), result.clone(), SAMPLING_BOUND);
            let picture = self.pipeline.decode(result)?;
            check_picture(recorder, &name("image_u8"), picture.clamp(0.0, 1.0)).await?;
        }
        Ok(())
    }
}

pub(super) fn parse<'a, T: Deserialize<'a>>(file: &str, text: &'a str) -> Result<T, VerifyError> {
    serde_json::from_str(text)
        .map_err(|error| VerifyError::Golden { file: file.into(), reason: error.to_string() })
}
