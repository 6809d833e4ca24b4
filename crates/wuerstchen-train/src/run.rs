//! A training run: trains the three stages and keeps what it makes in a store.

mod error;
mod stages;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use burn::tensor::Device;
use wuerstchen::{
    Checkpoint, Image, ModelFiles, Part, Pipeline, RUN_CONFIG, RUN_MODEL, Residency, WeightDtype,
};

pub use self::error::RunError;
use crate::config::{StageName, UpdateConfig};
use crate::corpus::Source;
use crate::recipe::{Recipe, Weights};
use crate::report::report;
use crate::stages::Stage;
use crate::store::Store;
use crate::tensorboard;
use crate::trainer::{Metrics, Trainer};

/// Time between saved states.
const SAVE_EVERY: Duration = Duration::from_secs(120);

/// Steps in a row that change nothing, after which nothing better will come.
const MAX_SKIPPED: u32 = 100;

/// Pictures in a row of a sample grid.
const GRID_SIDE: usize = 8;

/// The page that shows how the run went.
const REPORT: &str = "report.html";

/// The file of the whole model.
const BUNDLE: &str = "model.safetensors";

/// What a stage starts from.
pub enum Start {
    /// Its first step. A state that is there is an error, so that it is not overwritten.
    Anew,
    /// The run's own state, or the first step if there is none.
    Resume,
    /// A state from elsewhere.
    State {
        /// What errors call it, such as its path.
        name: String,
        /// Its bytes.
        bytes: Vec<u8>,
    },
}

/// What happens in a run.
pub enum Event<'a> {
    /// A stage is trained on some of the pictures only, as it caches no more.
    Partial {
        /// Which stage.
        stage: StageName,
        /// How many pictures it sees.
        cached: usize,
        /// Of how many.
        pictures: usize,
    },
    /// What does not change while a stage trains is being computed.
    Caching {
        /// What it is.
        what: &'static str,
        /// For how many scenes it is done.
        done: usize,
        /// For how many scenes it is computed.
        scenes: usize,
    },
    /// The scale of the image embeddings has been measured.
    EmbeddingScale {
        /// Standard deviation of the embeddings.
        spread: f32,
        /// What Stage C divides them by.
        scale: f64,
    },
    /// The updates of a stage begin.
    Begin {
        /// Which stage.
        stage: StageName,
        /// Updates done before.
        step: u64,
        /// Updates in all.
        steps: u64,
    },
    /// An update is done.
    Update {
        /// What it did.
        metrics: &'a Metrics,
        /// Samples a second since the updates began.
        samples_per_sec: f64,
    },
    /// State and weights are saved.
    Saved,
}

/// What a run's listener is.
type Listener = Box<dyn FnMut(&Event<'_>) -> ControlFlow<()>>;

/// A training run.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use wuerstchen::Device;
/// use wuerstchen_train::store::Memory;
/// use wuerstchen_train::tokenizer::shapes_tokenizer;
/// use wuerstchen_train::{Recipe, Run, Source, TrainConfig};
///
/// # fn example(toml: &str) -> Result<(), Box<dyn std::error::Error>> {
/// let recipe = Recipe::new(TrainConfig::from_toml(toml)?, shapes_tokenizer())?;
/// let mut run = Run::new(recipe, Source::Shapes, Arc::new(Memory::default()), Device::flex());
/// let model = run.train_all()?;
/// # Ok(())
/// # }
/// ```
pub struct Run {
    recipe: Recipe,
    source: Source,
    store: Arc<dyn Store>,
    device: Device,
    /// Whether stages whose weights are there start from them.
    warm: bool,
    listener: Option<Listener>,
    /// Whether the listener has asked to stop the stage.
    stops: bool,
}

impl Run {
    /// A run that keeps its files in a store and trains on a device without autodiff.
    pub fn new(recipe: Recipe, source: Source, store: Arc<dyn Store>, device: Device) -> Self {
        Self { recipe, source, store, device, warm: false, listener: None, stops: false }
    }

    /// Reports what happens to `listener`. If it breaks, the run saves and stops after the update that is done
    /// or comes next.
    pub fn listen(&mut self, listener: impl FnMut(&Event<'_>) -> ControlFlow<()> + 'static) {
        self.listener = Some(Box::new(listener));
    }

    /// Starts stages from a model's weights instead of random ones. Parts that the run has trained stay its own.
    ///
    /// # Errors
    ///
    /// The store cannot write, or another program trains in it.
    pub fn start_from(&mut self, model: ModelFiles) -> Result<(), RunError> {
        self.store.claim()?;
        let decoder = &self.recipe.config.model.decoder;
        let given = decoder
            .parts()
            .filter_map(|part| Some((part, model.weights.get(&decoder.part(part))?.clone())));
        let mut weights: Weights = given.collect();
        weights.retain(|&part, _| !self.store.contains(&self.weights_name(part)));
        self.write_weights(weights)?;
        self.warm = true;
        Ok(())
    }

    /// Trains all stages from their own states, if there are any, and writes the model; `None` if the listener
    /// has stopped a stage.
    ///
    /// # Errors
    ///
    /// As [`Self::train`] and [`Self::write_model`].
    pub fn train_all(&mut self) -> Result<Option<ModelFiles>, RunError> {
        for stage in StageName::ALL {
            if self.train(stage, Start::Resume)?.is_break() {
                return Ok(None);
            }
        }
        self.write_model().map(Some)
    }

    /// Fails if a stage that starts anew would overwrite a state.
    ///
    /// # Errors
    ///
    /// There is a state.
    pub fn check_start(&self, stage: StageName, start: &Start) -> Result<(), RunError> {
        let name = state_name(self.folder(stage));
        if matches!(start, Start::Anew) && self.store.contains(&name) {
            let state = self.store.describe(&name);
            return Err(RunError::StateExists { stage, state });
        }
        Ok(())
    }

    /// Trains one stage; breaks if the listener did before its last update.
    ///
    /// # Errors
    ///
    /// [`RunError`] lists what can be wrong.
    pub fn train(&mut self, stage: StageName, start: Start) -> Result<ControlFlow<()>, RunError> {
        self.store.claim()?;
        self.check_start(stage, &start)?;
        self.stops = false;
        self.write_config()?;
        self.write_tokenizer()?;
        match stage {
            StageName::A => self.stage_a(start),
            StageName::B => self.stage_b(start),
            StageName::C => self.stage_c(start),
        }
    }

    /// Does the updates of a stage. `sample` makes the pictures of a grid.
    fn updates<S: Stage>(
        &mut self,
        stage: StageName,
        start: Start,
        mut trainer: Trainer<S>,
        sample: impl Fn(&Self, &S::Model) -> Result<Vec<Image>, RunError>,
        weights: fn(&S::Model) -> Weights,
    ) -> Result<ControlFlow<()>, RunError> {
        let (folder, config) = (self.folder(stage), self.updates_of(stage).clone());
        let state = state_name(folder);
        let resumes = matches!(start, Start::Resume);
        trainer = match start {
            Start::Anew => trainer,
            Start::Resume => match self.store.read(&state)? {
                Some(bytes) => trainer.restore(&self.store.describe(&state), bytes)?,
                None => trainer,
            },
            Start::State { name, bytes } => trainer.restore(&name, bytes)?,
        };
        let first = trainer.steps_done();
        if resumes {
            self.forget_steps_after(folder, first)?;
        }
        self.tell(&Event::Begin { stage, step: first, steps: config.steps });
        let (begun, mut saved) = (Instant::now(), Instant::now());
        // TensorBoard takes the files of one folder for one run, and of a step the last that is told.
        let now = seconds_since_1970();
        let events = format!("{folder}/events.out.tfevents.{now:.0}");
        self.store.append(&events, &tensorboard::header(now))?;
        // Steps in a row that changed nothing.
        let mut skipped = 0;
        while !trainer.is_done() {
            let metrics = match trainer.step() {
                Ok(metrics) => metrics,
                Err(error) => {
                    self.store.write(&state, &trainer.save())?;
                    return Err(RunError::Sample(error));
                }
            };
            let samples = (metrics.step - first) * config.batch_size as u64;
            let samples_per_sec = samples as f64 / begun.elapsed().as_secs_f64();
            self.log(folder, &metrics, samples_per_sec)?;
            self.store.append(&events, &events_of(&metrics, samples_per_sec))?;
            skipped = if metrics.applied { 0 } else { skipped + 1 };
            if skipped == MAX_SKIPPED {
                return Err(RunError::Diverged { stage, steps: MAX_SKIPPED, step: metrics.step });
            }
            self.tell(&Event::Update { metrics: &metrics, samples_per_sec });
            let stops = self.stops;
            let last = trainer.is_done();
            if metrics.step % config.sample_every == 0 || last {
                let grid = Image::grid(&sample(self, &trainer.averaged())?, GRID_SIDE);
                let png = grid.to_png().map_err(|error| RunError::Picture(error.to_string()))?;
                self.store.write(&format!("{folder}/samples-{:06}.png", metrics.step), &png)?;
                let (size, now) = ([grid.width, grid.height], seconds_since_1970());
                let picture = tensorboard::picture(metrics.step, now, "samples", &png, size);
                self.store.append(&events, &picture)?;
            }
            // What was saved before the steps were skipped is where a run that diverges can go on from.
            let is_due = saved.elapsed() >= SAVE_EVERY && skipped == 0;
            if last || stops || is_due {
                self.store.write(&state, &trainer.save())?;
                self.write_weights(weights(&trainer.averaged()))?;
                self.write_texts()?;
                saved = Instant::now();
                self.tell(&Event::Saved);
            }
            if stops && !last {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn tell(&mut self, event: &Event<'_>) {
        if let Some(listener) = &mut self.listener {
            self.stops |= listener(event).is_break();
        }
    }

    fn updates_of(&self, stage: StageName) -> &UpdateConfig {
        let config = &self.recipe.config;
        match stage {
            StageName::A => &config.a.updates,
            StageName::B => &config.b.updates,
            StageName::C => &config.c.updates,
        }
    }

    /// The folder of a stage. Stage B has two, as its states have other tensors with a frozen compressor.
    fn folder(&self, stage: StageName) -> &'static str {
        if stage == StageName::B && self.recipe.config.b.freeze_compressor {
            "b-frozen"
        } else {
            stage.as_str()
        }
    }

    fn log(&self, folder: &str, metrics: &Metrics, samples_per_sec: f64) -> Result<(), RunError> {
        let mut line = serde_json::to_value(metrics).expect("metrics are numbers");
        line["samples_per_sec"] = samples_per_sec.into();
        Ok(self.store.append(&metrics_name(folder), format!("{line}\n").as_bytes())?)
    }

    /// Removes the metrics of steps that were done after the state was saved, and that are now done again.
    fn forget_steps_after(&self, folder: &str, step: u64) -> Result<(), RunError> {
        let name = metrics_name(folder);
        let Some(bytes) = self.store.read(&name)? else { return Ok(()) };
        let is_kept = |line: &&str| {
            let metrics: Option<serde_json::Value> = serde_json::from_str(line).ok();
            metrics.and_then(|metrics| metrics["step"].as_u64()).is_some_and(|of| of <= step)
        };
        let text = String::from_utf8_lossy(&bytes);
        let kept: String = text.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect();
        if kept.len() < bytes.len() {
            self.store.write(&name, kept.as_bytes())?;
        }
        Ok(())
    }

    fn pipeline(&self, trained: Weights) -> Result<Pipeline, RunError> {
        let files = self.recipe.model_files(trained, &self.device);
        Ok(Pipeline::load(&files, &self.device, Residency::All)?)
    }

    fn write_config(&self) -> Result<(), RunError> {
        Ok(self.store.write(RUN_CONFIG, self.recipe.config.to_toml()?.as_bytes())?)
    }

    /// Writes the tokenizer before anything is trained: captions that come later must not change the numbers
    /// of the tokens.
    fn write_tokenizer(&self) -> Result<(), RunError> {
        let folder = self.recipe.config.model.decoder.family().pipelines[0].tokenizer();
        for (file, text) in self.recipe.tokenizer.named() {
            self.store.write(&format!("{RUN_MODEL}/{folder}/{file}"), text.as_bytes())?;
        }
        Ok(())
    }

    /// Writes the configs beside the weights, so that a model opens while it is trained, too.
    fn write_texts(&self) -> Result<(), RunError> {
        for (path, text) in self.recipe.texts() {
            self.store.write(&format!("{RUN_MODEL}/{path}"), text.as_bytes())?;
        }
        Ok(())
    }

    /// The file of the weights of what does in the run's family what a part of v2 does.
    fn weights_name(&self, part: Part) -> String {
        format!("{RUN_MODEL}/{}", self.recipe.config.model.decoder.part(part).weights_path())
    }

    fn write_weights(&self, weights: Weights) -> Result<(), RunError> {
        for (&part, checkpoint) in &weights {
            let bytes = Checkpoint::write([(String::new(), checkpoint)], WeightDtype::F32, None)?;
            self.store.write(&self.weights_name(part), &bytes)?;
        }
        Ok(())
    }

    /// The weights that the run has trained so far.
    fn read_weights(&self) -> Result<Weights, RunError> {
        let mut weights = Weights::new();
        for part in self.recipe.config.model.decoder.parts() {
            if let Some(bytes) = self.store.read(&self.weights_name(part))? {
                weights.insert(part, Checkpoint::parse(part.folder(), Arc::new(bytes))?);
            }
        }
        Ok(weights)
    }

    /// Writes the configs beside the weights, the whole model as one file, and the run's report. Parts that are not
    /// trained have random weights.
    ///
    /// # Errors
    ///
    /// The store cannot read or write.
    pub fn write_model(&self) -> Result<ModelFiles, RunError> {
        let files = self.recipe.model_files(self.read_weights()?, &self.device);
        self.write_texts()?;
        self.store.write(BUNDLE, &files.to_bundle(WeightDtype::F16)?)?;
        self.write_report()?;
        Ok(files)
    }

    fn write_report(&self) -> Result<(), RunError> {
        let config = &self.recipe.config;
        let titles = [
            (StageName::A, "a", "Stage A"),
            (StageName::B, "b", "Stage B and the compressor"),
            (StageName::B, "b-frozen", "Stage B"),
            (StageName::C, "c", "Stage C"),
        ];
        let stages =
            titles.map(|(name, folder, title)| (folder, title, self.updates_of(name).batch_size));
        Ok(self.store.write(REPORT, report(config, &stages, &*self.store)?.as_bytes())?)
    }
}

/// The metrics of an update for TensorBoard.
fn events_of(metrics: &Metrics, samples_per_sec: f64) -> Vec<u8> {
    let values = [
        ("loss", metrics.loss),
        ("grad_norm", metrics.grad_norm),
        ("learning_rate", metrics.learning_rate),
        ("samples_per_sec", samples_per_sec),
        ("data_wait", metrics.data_wait),
    ];
    tensorboard::scalars(metrics.step, seconds_since_1970(), &values)
}

fn seconds_since_1970() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |time| time.as_secs_f64())
}

fn state_name(folder: &str) -> String {
    format!("{folder}/state.safetensors")
}

/// The file of a stage's metrics: a line of JSON for every step.
fn metrics_name(folder: &str) -> String {
    format!("{folder}/metrics.jsonl")
}
