//! A training run: trains the three stages, in files that survive it.

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Tensor};
use futures_lite::future::block_on;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use wuerstchen::fs::{RUN_CONFIG, RUN_MODEL};
use wuerstchen::{
    Checkpoint, Family, GenerateOptions, Image, ModelFiles, Part, PartConfig, Pipeline, Residency,
    Statistics, WeightDtype,
};
use wuerstchen_train::config::StageConfig;
use wuerstchen_train::corpus::Corpus;
use wuerstchen_train::eval::reconstruct;
use wuerstchen_train::recipe::{self, Recipe, Weights};
use wuerstchen_train::shapes::Lesson;
use wuerstchen_train::stages::{
    Cache, Stage, StageA, StageB, StageC, image_embeddings, stage_a_latents,
};
use wuerstchen_train::{Metrics, Trainer};

use super::source::{Source, StageName};
use crate::files::{write, write_png_grid};

/// Pictures whose image embeddings tell how far all spread.
const MEASURED_PICTURES: u64 = 64;

/// Seconds between saved states.
const SAVE_SECS: u64 = 120;

/// Steps in a row without finite gradients after which nothing better will come.
const MAX_SKIPPED: u32 = 100;

/// What the compressor's cache is called while it fills.
const IMAGE_EMBEDDINGS: &str = "the compressor's image embeddings";

/// Pictures in a row of a sample grid.
const GRID_SIDE: usize = 8;

/// A stage whose gradients have ceased to be finite.
#[derive(Debug)]
pub(crate) struct Diverged {
    stage: String,
    /// Updates done, with those that changed nothing.
    step: u64,
}

impl std::fmt::Display for Diverged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stage, step } = self;
        write!(
            f,
            "stage {stage} diverged: the gradients of the {MAX_SKIPPED} steps up to step {step} are not \
             finite; what was saved before is kept; try a smaller optimizer.learning_rate"
        )
    }
}

impl std::error::Error for Diverged {}

/// One run: what it trains and where it is kept.
pub(super) struct Run {
    pub(super) recipe: Recipe,
    pub(super) source: Source,
    pub(super) output: PathBuf,
    pub(super) device: Device,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) deadline: Option<Instant>,
    /// Whether stages whose weights are there start from them.
    pub(super) warm: bool,
}

impl Run {
    /// Takes the weights of the parts that the run has not trained from a model.
    pub(super) fn adopt(&self, model: ModelFiles) -> Result<()> {
        let mut weights = model.weights;
        weights.retain(|&part, _| !self.weights_path(part).exists());
        self.write_weights(weights)
    }

    /// Whether a stage of these parts starts from weights that are there.
    fn is_warm(&self, weights: &Weights, parts: &[Part]) -> bool {
        self.warm && parts.iter().any(|part| weights.contains_key(part))
    }

    fn corpus(&self, stage: StageName, lesson: Lesson) -> Result<Corpus> {
        let samples = self.source.samples(stage, self.recipe.config.seed, lesson);
        Ok(self.recipe.corpus(samples)?)
    }

    /// The captions and pictures of sample grids; scenes far from those that are trained on.
    fn grid(&self) -> Result<(Vec<String>, Tensor<4>)> {
        let corpus = self.corpus(StageName::C, Lesson::default())?;
        let numbers: Vec<_> = (0..GRID_SIDE as u64).map(|i| i << 40).collect();
        let captions = numbers.iter().map(|&number| corpus.caption(number)).collect();
        Ok((captions, corpus.pictures(&numbers, &self.device)?))
    }

    /// How many scenes of a stage are cached: of a folder's pictures each at most once. Says where the stage
    /// does not see all of them.
    fn cached_scenes(&self, stage: &str, config: &StageConfig) -> usize {
        let cached = config.cached_scenes;
        let Source::Folder(folder) = &self.source else { return cached };
        let pictures = folder.len();
        if (1..pictures).contains(&cached) {
            eprintln!(
                "stage {stage} trains on {cached} of {pictures} pictures ({stage}.cached_scenes)"
            );
        }
        cached.min(pictures)
    }

    /// Computes once what does not change; `what` tells the user.
    fn cache(
        &self,
        what: &str,
        corpus: &Corpus,
        scenes: usize,
        encode: impl Fn(Tensor<4>) -> Tensor<4>,
    ) -> Result<Cache> {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{msg}: {pos}").expect("it is valid"));
        bar.set_message(format!("caching {what}"));
        let cache =
            Cache::fill(corpus, scenes, &self.device, encode, |n| bar.set_position(n as u64));
        bar.finish_and_clear();
        Ok(cache?)
    }

    pub(super) fn stage_a(&self, resume: Option<&str>) -> Result<bool> {
        let (recipe, device) = (&self.recipe, self.device.clone().autodiff());
        let config = &recipe.config;
        device.seed(config.seed);
        let stage = StageA {
            corpus: self.corpus(StageName::A, config.a.lesson)?,
            config: config.a.clone(),
            device: device.clone(),
        };
        let weights = self.read_weights()?;
        let model = match self.is_warm(&weights, &[Part::VQGAN]) {
            true => recipe.load_vqgan(&weights, &device)?,
            false => config.model.vqgan.init(&device),
        };
        let trainer = Trainer::new(stage, model, config.a.clone(), config.seed, device);
        let (_, pictures) = self.grid()?;
        self.train(
            "a",
            &config.a,
            trainer,
            resume,
            |model| {
                let pictures = pictures.clone();
                let latents = model.encode(pictures.clone(), Statistics::Running);
                let decoded = model.decode(latents).clamp(0.0, 1.0);
                Ok(to_images(Tensor::cat(vec![pictures, decoded], 0)))
            },
            recipe::vqgan_weights,
        )
    }

    pub(super) fn stage_b(&self, resume: Option<&str>) -> Result<bool> {
        let (recipe, device) = (&self.recipe, self.device.clone().autodiff());
        let config = &recipe.config;
        device.seed(config.seed);
        let weights = self.read_weights()?;
        let vqgan = recipe.load_vqgan(&weights, &self.device)?;
        let corpus = self.corpus(StageName::B, config.b.lesson)?;
        let encode = |x| stage_a_latents(&vqgan, &config.model.vqgan, x);
        let scenes = self.cached_scenes("b", &config.b);
        let latents = self.cache("Stage A's latents", &corpus, scenes, encode)?;
        let frozen = config.b.freeze_compressor;
        let parts = [Part::DECODER, Part::DECODER_TEXT, Part::COMPRESSOR];
        let model = match frozen || self.is_warm(&weights, &parts) {
            true => recipe.load_decoder(&weights, &device)?,
            false => recipe.init_decoder(&device),
        };
        let compressor = burn::module::Module::valid(&model.compressor);
        let encode = |x| image_embeddings(&compressor, x, config.compressor_side());
        let scenes = if frozen { scenes } else { 0 };
        let embeddings = self.cache(IMAGE_EMBEDDINGS, &corpus, scenes, encode)?;
        let stage = StageB {
            corpus,
            config: config.b.clone(),
            device: device.clone(),
            schedule: config.model.schedule,
            latents,
            embeddings,
            compressor_side: config.compressor_side(),
            vqgan,
            vqgan_config: config.model.vqgan.clone(),
        };
        let trainer = Trainer::new(stage, model, config.b.clone(), config.seed, device);
        let (captions, pictures) = self.grid()?;
        self.train(
            if frozen { "b-frozen" } else { "b" },
            &config.b,
            trainer,
            resume,
            |model| {
                let pictures = pictures.clone();
                let embedding =
                    image_embeddings(&model.compressor, pictures.clone(), config.compressor_side());
                let mut trained = self.read_weights()?;
                trained.extend(recipe::decoder_weights(model));
                let pipeline = self.pipeline(trained)?;
                let prompts: Vec<_> = captions.iter().map(String::as_str).collect();
                let settings = GenerateOptions::default().resolve(&config.defaults)?;
                let decoded =
                    reconstruct(&pipeline, &config.model.vqgan, &settings, embedding, &prompts);
                let decoded = block_on(decoded)?.clamp(0.0, 1.0);
                Ok(to_images(Tensor::cat(vec![pictures, decoded], 0)))
            },
            recipe::decoder_weights,
        )
    }

    pub(super) fn stage_c(&mut self, resume: Option<&str>) -> Result<bool> {
        let embedding_scale = self.embedding_scale()?;
        let (recipe, device) = (&self.recipe, self.device.clone().autodiff());
        let config = &recipe.config;
        device.seed(config.seed);
        let weights = self.read_weights()?;
        let compressor = recipe.load_compressor(&weights, &self.device)?;
        let corpus = self.corpus(StageName::C, config.c.lesson)?;
        let encode = |x| image_embeddings(&compressor, x, config.compressor_side());
        let scenes = self.cached_scenes("c", &config.c);
        let embeddings = self.cache(IMAGE_EMBEDDINGS, &corpus, scenes, encode)?;
        let stage = StageC {
            corpus,
            config: config.c.clone(),
            device: device.clone(),
            schedule: config.model.schedule,
            embeddings,
            compressor,
            compressor_side: config.compressor_side(),
            embedding_scale,
        };
        let model = match self.is_warm(&weights, &[Part::PRIOR, Part::PRIOR_TEXT]) {
            true => recipe.load_prior(&weights, &device)?,
            false => recipe.init_prior(&device),
        };
        let trainer = Trainer::new(stage, model, config.c.clone(), config.seed, device);
        let samples = self.source.samples(StageName::C, config.seed, Lesson::default());
        let prompts: Vec<_> = (0..2 * GRID_SIDE as u64).map(|i| samples.prompt(i)).collect();
        self.train(
            "c",
            &config.c,
            trainer,
            resume,
            |model| {
                let mut trained = self.read_weights()?;
                trained.extend(recipe::prior_weights(model));
                let pipeline = self.pipeline(trained)?;
                let prompts: Vec<_> = prompts.iter().map(String::as_str).collect();
                let settings = GenerateOptions::default().resolve(&pipeline.card.defaults)?;
                let go = &mut async |_: wuerstchen::Progress<'_>| ControlFlow::Continue(());
                Ok(block_on(pipeline.generate_each(&prompts, settings, go))?.images)
            },
            recipe::prior_weights,
        )
    }

    /// What Stage C's latents are multiplied with; measured where nothing has said it, and then kept in
    /// the run's config.
    fn embedding_scale(&mut self) -> Result<f64> {
        if let Some(scale) = self.recipe.config.model.embedding_scale {
            return Ok(scale);
        }
        let compressor = self.recipe.load_compressor(&self.read_weights()?, &self.device)?;
        let corpus = self.corpus(StageName::C, self.recipe.config.c.lesson)?;
        let numbers: Vec<_> = (0..MEASURED_PICTURES).collect();
        let embeddings = image_embeddings(
            &compressor,
            corpus.pictures(&numbers, &self.device)?,
            self.recipe.config.compressor_side(),
        );
        let spread = embeddings.flatten::<1>(0, 3).var(0).sqrt().into_scalar::<f32>();
        // Three digits are as much as 64 pictures tell.
        let scale = format!("{:.2e}", 2.0 * spread).parse().expect("a number's digits are one");
        if !(scale > 0.0 && scale < f64::INFINITY) {
            bail!("the image embeddings spread by {spread}: train b longer, or with smaller steps");
        }
        eprintln!("the image embeddings spread by {spread:.2}: embedding_scale = {scale}");
        self.recipe.config.model.embedding_scale = Some(scale);
        self.write_config()?;
        Ok(scale)
    }

    pub(super) fn write_config(&self) -> Result<()> {
        let config = toml::to_string_pretty(&self.recipe.config);
        let config = config.context("cannot write the config as TOML")?;
        write(&self.output.join(RUN_CONFIG), config.as_bytes())
    }

    /// Trains until the stage, the time or the user's patience ends; tells whether the stage did.
    fn train<S: Stage>(
        &self,
        name: &str,
        config: &StageConfig,
        mut trainer: Trainer<S>,
        resume: Option<&str>,
        sample: impl Fn(&S::Model) -> Result<Vec<Image>>,
        weights: impl Fn(&S::Model) -> Weights,
    ) -> Result<bool> {
        let folder = self.output.join(name);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let state = folder.join("state.safetensors");
        trainer = match resume {
            Some("auto") if !state.exists() => trainer,
            Some("auto") => restore(trainer, &state)?,
            Some(path) => restore(trainer, Path::new(path))?,
            None => {
                if state.exists() {
                    let (state, model) = (state.display(), self.output.join(RUN_MODEL));
                    eprintln!(
                        "stage {name} starts anew, as there is no --resume: it overwrites {state} \
                         and its weights in {}",
                        model.display()
                    );
                }
                trainer
            }
        };
        let mut log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("metrics.jsonl"))
            .context("cannot open metrics.jsonl")?;
        let bar = ProgressBar::new(config.steps);
        bar.set_style(progress_style());
        bar.set_prefix(format!("stage {name}"));
        bar.set_position(trainer.steps_done());
        bar.reset_eta();
        let (start, first) = (Instant::now(), trainer.steps_done());
        let mut saved = Instant::now();
        // Steps in a row that changed nothing, as their gradients were not finite.
        let mut skipped = 0;
        while !trainer.is_done() {
            let metrics = match trainer.step() {
                Ok(metrics) => metrics,
                Err(error) => {
                    bar.abandon();
                    write(&state, &trainer.save())?;
                    return Err(error).context("stopped and saved; go on with --resume auto");
                }
            };
            let secs = start.elapsed().as_secs_f64();
            let samples = (metrics.step - first) * config.batch_size as u64;
            let rate = samples as f64 / secs;
            log_metrics(&mut log, &metrics, rate)?;
            bar.set_position(metrics.step);
            skipped = if metrics.finite { 0 } else { skipped + 1 };
            if skipped == MAX_SKIPPED {
                bar.abandon();
                return Err(Diverged { stage: name.to_owned(), step: metrics.step }.into());
            }
            let message = format!("loss {:.4}, {rate:.0} samples/s", metrics.loss);
            bar.set_message(message.clone());
            let last = trainer.is_done();
            if metrics.step % config.sample_every == 0 || last {
                let path = folder.join(format!("samples-{:06}.png", metrics.step));
                write_png_grid(&path, &sample(&trainer.averaged())?, GRID_SIDE)?;
            }
            let time_is_up = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            let interrupted = time_is_up || self.stop.load(Ordering::Relaxed);
            // What was saved before the steps were skipped is where a run that diverges can go on from.
            let is_due = saved.elapsed().as_secs() >= SAVE_SECS && skipped == 0;
            if last || interrupted || is_due {
                write(&state, &trainer.save())?;
                self.write_weights(weights(&trainer.averaged()))?;
                saved = Instant::now();
                // Without a terminal there is no bar: a line for the log.
                if bar.is_hidden() {
                    let (step, steps) = (metrics.step, config.steps);
                    let rest = HumanDuration(bar.eta());
                    eprintln!("stage {name}: step {step} of {steps}, {message}, ETA {rest}");
                }
            }
            if interrupted && !last {
                bar.abandon();
                return Ok(false);
            }
        }
        bar.finish();
        Ok(true)
    }

    fn pipeline(&self, trained: Weights) -> Result<Pipeline> {
        let files = self.recipe.model_files(trained, &self.device);
        Ok(Pipeline::load(&files, &self.device, Residency::All)?)
    }

    fn weights_path(&self, part: Part) -> PathBuf {
        self.output.join(RUN_MODEL).join(part.weights_path())
    }

    fn write_weights(&self, weights: Weights) -> Result<()> {
        for (&part, checkpoint) in &weights {
            let bytes = Checkpoint::write([(String::new(), checkpoint)], WeightDtype::F32, None)?;
            let path = self.weights_path(part);
            fs::create_dir_all(path.parent().expect("it has a folder"))?;
            write(&path, &bytes)?;
        }
        Ok(())
    }

    /// The weights that the run has trained so far.
    fn read_weights(&self) -> Result<Weights> {
        let mut weights = Weights::new();
        for &part in Family::WUERSTCHEN.parts {
            let path = self.weights_path(part);
            if path.exists() {
                let bytes =
                    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                weights.insert(part, Checkpoint::parse(part.folder(), Arc::new(bytes))?);
            }
        }
        Ok(weights)
    }

    /// Writes the configs beside the weights, and the whole model as one file.
    pub(super) fn write_model(&self) -> Result<()> {
        let files = self.recipe.model_files(self.read_weights()?, &self.device);
        let folder = self.output.join(RUN_MODEL);
        for (path, text) in &files.texts {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().expect("it has a folder"))?;
            write(&path, text.as_bytes())?;
        }
        let bundle = self.output.join("model.safetensors");
        write(&bundle, &files.to_bundle(WeightDtype::F16)?)?;
        eprintln!("wrote {} and {}", folder.display(), bundle.display());
        Ok(())
    }
}

fn to_images(x: Tensor<4>) -> Vec<Image> {
    Image::from_data(&x.into_data())
}

fn restore<S: Stage>(trainer: Trainer<S>, path: &Path) -> Result<Trainer<S>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(trainer.restore(&path.display().to_string(), bytes)?)
}

fn log_metrics(log: &mut fs::File, metrics: &Metrics, samples_per_sec: f64) -> Result<()> {
    let mut line = serde_json::to_value(metrics)?;
    line["samples_per_sec"] = samples_per_sec.into();
    writeln!(log, "{line}").context("cannot write metrics.jsonl")
}

fn progress_style() -> ProgressStyle {
    let template = "{prefix} {bar:30} {pos}/{len} {msg} ETA {eta}";
    ProgressStyle::with_template(template).expect("the template is valid")
}
