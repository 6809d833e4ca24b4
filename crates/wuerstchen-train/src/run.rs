//! A training run: trains the three stages and keeps what it makes in a store.

mod error;
mod report;
mod session;
mod stages;
mod tensorboard;

use std::ops::ControlFlow;
use std::sync::Arc;

use burn::tensor::Device;
use wuerstchen::checkpoint::ReadBytes;
use wuerstchen::{
    Checkpoint, Image, LoadError, ModelFiles, Part, Pipeline, RUN_CONFIG, RUN_MODEL, Residency,
    TokenizerFiles, WeightDtype,
};

pub use self::error::RunError;
pub(crate) use self::report::{About, write_report};
pub(crate) use self::session::{GRID_SIDE, Job, Session, metrics_name, state_name, updates};
use crate::config::{StageName, TrainConfig};
use crate::corpus::Source;
use crate::lesson::Lesson;
use crate::peers::Peers;
use crate::precision::Precision;
use crate::recipe::{Recipe, Weights, trained};
use crate::stages::Stage;
use crate::store::Store;
use crate::tensor_cache::{TensorCache, digest, digest_of_taken, digest_of_weights};
use crate::trainer::{Metrics, Trainer, read_header};

/// The folders of the stages, with their states. States of a stage that is frozen in part have other tensors, and a
/// folder of their own.
pub const STAGE_FOLDERS: [&str; 5] = ["a", "a-frozen", "b", "b-frozen", "c"];

/// The file of the whole model.
pub const ONE_FILE_MODEL: &str = "model.safetensors";

/// What must be equal in processes that train together: the program, how many pictures they see, and the config.
pub(crate) fn essence(config: &toml::Value, pictures: Option<usize>) -> String {
    fn add(lines: &mut Vec<String>, name: &str, value: &toml::Value) {
        match value {
            toml::Value::Table(fields) => {
                for (field, value) in fields {
                    let dot = if name.is_empty() { "" } else { "." };
                    add(lines, &format!("{name}{dot}{field}"), value);
                }
            }
            value => lines.push(format!("{name} = {value}")),
        }
    }
    let mut lines = vec![format!("version {}", env!("CARGO_PKG_VERSION"))];
    add(&mut lines, "", config);
    lines.extend(pictures.map(|count| format!("{count} pictures")));
    lines.join("\n")
}

/// What a stage starts from.
pub enum Start {
    /// Its first step. An existing state is an error, so that it is not overwritten.
    Anew,
    /// The run's own state, or the first step if there is none.
    Resume,
    /// A state from elsewhere.
    State {
        /// What errors call it, such as its path.
        name: String,
        /// Its bytes.
        bytes: Arc<dyn ReadBytes>,
    },
}

/// Something that happens in a run.
pub enum Event<'a> {
    /// A stage is trained on only some of the pictures, because it caches no more of them.
    Partial {
        /// Which stage.
        stage: StageName,
        /// How many pictures it sees.
        cached: usize,
        /// How many pictures there are.
        pictures: usize,
    },
    /// Pictures of about one aspect ratio, which are trained on together.
    Bucket {
        /// Height and width of their image embedding.
        cells: [usize; 2],
        /// The same height and width in pixels.
        pixels: [usize; 2],
        /// How many there are.
        pictures: usize,
        /// How many of them are smaller than the compressor sees them.
        enlarged: usize,
    },
    /// A cache is being filled with values that do not change while a stage trains.
    Caching {
        /// The values, for people.
        what: &'static str,
        /// Number of scenes whose values are computed.
        done: usize,
        /// Number of all scenes.
        scenes: usize,
    },
    /// The scale of the image embeddings has been measured.
    EmbeddingScale {
        /// Standard deviation of the embeddings.
        spread: f32,
        /// What Stage C divides them by.
        scale: f64,
    },
    /// A stage goes on in another precision than its state was trained in.
    Precision {
        /// Which stage.
        stage: StageName,
        /// The precision of the state.
        from: Precision,
        /// The precision of the updates to come.
        to: Precision,
    },
    /// A stage starts from weights that [`Run::start_from`] has taken in an earlier session.
    GivenWeights {
        /// Which stage.
        stage: StageName,
    },
    /// A stage that has been trained before begins anew, because its state is not there.
    NoState {
        /// Which stage.
        stage: StageName,
    },
    /// A stage goes on although the weights of a part that it takes differ from those with which its state was trained.
    OtherParts {
        /// Which stage.
        stage: StageName,
    },
    /// The sample grids of a stage have fewer pictures than usual, because more would not fit in memory.
    SmallGrid {
        /// Which stage.
        stage: StageName,
        /// Pictures in a grid.
        pictures: usize,
        /// Width and height of each in pixels.
        size: [usize; 2],
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
        /// The metrics of the update.
        metrics: &'a Metrics,
        /// Samples a second since the updates began.
        samples_per_sec: f64,
    },
    /// State and weights are saved.
    Saved,
}

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
    session: Session,
    device: Device,
    /// Whether stages start from weights of theirs that are there.
    warm: bool,
    /// The weights of Stage A's perceptual loss.
    perceptual: Option<Checkpoint>,
    /// Where latents and image embeddings are kept for other runs.
    cache: Option<TensorCache>,
}

impl AsMut<Session> for Run {
    fn as_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Run {
    /// A run that keeps its files in a store and trains on a device without autodiff.
    pub fn new(recipe: Recipe, source: Source, store: Arc<dyn Store>, device: Device) -> Self {
        let session = Session::new(store);
        Self { recipe, source, session, device, warm: false, perceptual: None, cache: None }
    }

    /// Gives Stage A's perceptual loss the weights of LPIPS, in any form that
    /// [`Lpips::load`](crate::compare::lpips::Lpips::load) takes.
    pub fn with_perceptual(self, weights: Checkpoint) -> Self {
        Self { perceptual: Some(weights), ..self }
    }

    /// Keeps Stage A's latents and image embeddings in `cache` too, and takes them from there. Their names are hashes
    /// of the pictures and of the network that makes them, so that runs may share a cache. It grows without limit.
    pub fn with_cache(self, cache: Arc<dyn Store>) -> Self {
        Self { cache: Some(TensorCache(cache)), ..self }
    }

    /// Trains together with other processes. All but rank 0 need a store of their own, such as one in main memory. They
    /// get rank 0's files, tokenizer and weights; what they write is not needed later. A listener in any process can
    /// stop all.
    pub fn with_peers(mut self, peers: Arc<dyn Peers>) -> Self {
        self.session.peers = peers;
        self
    }

    /// Tells `listener` what happens. If it breaks, the run saves and stops after the update that is done or comes
    /// next.
    pub fn listen(&mut self, listener: impl FnMut(&Event<'_>) -> ControlFlow<()> + 'static) {
        self.session.listen(listener);
    }

    /// What the run trains.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Fails unless the weights that stages take from earlier stages, or start from, are there and fit. If the run is
    /// to start from `model`, all of its weights must fit. Reads no values of the model's weights.
    ///
    /// # Errors
    ///
    /// A part is missing or does not fit.
    pub fn check_weights(
        &self,
        stages: &[StageName],
        model: Option<&ModelFiles>,
    ) -> Result<(), RunError> {
        let own = self.read_weights()?;
        let mut weights = model.map(|model| self.parts_in(model)).unwrap_or_default();
        weights.retain(|part, _| !own.contains_key(part));
        for (&part, given) in &weights {
            self.check(part, given)?;
        }
        weights.extend(own);
        let mut made: Vec<Part> = Vec::new();
        for &stage in stages {
            let parts = self.recipe.parts_of(stage);
            let has_any = parts.iter().any(|part| weights.contains_key(part));
            let is_given = model.is_some() || !self.has_trained(stage);
            let starts = self.recipe.config.is_frozen_in_part(stage) || is_given && has_any;
            let needed = self
                .recipe
                .parts_before(stage)
                .iter()
                .chain(starts.then_some(parts).into_iter().flatten());
            for part in needed.filter(|part| !made.contains(part)) {
                // Stage A's own part comes before Stage B, everything else before Stage C is of Stage B.
                let mut all = StageName::ALL.into_iter();
                let by = all.find(|by| self.recipe.parts_of(*by).contains(part));
                let by = by.unwrap_or(stage).as_str();
                self.check(*part, trained(&weights, *part, by)?)?;
            }
            made.extend(parts);
        }
        Ok(())
    }

    /// Fails unless the weights fit a part in the sizes of the run; the error names one tensor, not all.
    fn check(&self, part: Part, weights: &Checkpoint) -> Result<(), RunError> {
        self.recipe.check(part, weights).map_err(|error| match error {
            LoadError::Mismatch { part, differences } => {
                RunError::Misfit { part, difference: differences.shortened() }
            }
            error => error.into(),
        })
    }

    /// The weights of a model, each under the part of v2 that does the same.
    fn parts_in(&self, model: &ModelFiles) -> Weights {
        let decoder = &self.recipe.config.model.decoder;
        let given = decoder
            .parts()
            .filter_map(|part| Some((part, model.weights.get(&decoder.part(part))?.clone())));
        given.collect()
    }

    /// Starts stages from a model's weights instead of random ones, in later sessions too. Parts that the run has
    /// trained stay its own.
    ///
    /// # Errors
    ///
    /// The store cannot write, or another program trains in it.
    pub fn start_from(&mut self, model: ModelFiles) -> Result<(), RunError> {
        self.session.store.claim()?;
        let mut weights = self.parts_in(&model);
        weights.retain(|&part, _| !self.session.store.contains(&self.weights_name(part)));
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
        let shared = self.share_files();
        self.session.conclude(shared)?;
        self.write_model().map(Some)
    }

    /// Whether the run has trained a stage, which then has metrics.
    fn has_trained(&self, stage: StageName) -> bool {
        let mut folders = STAGE_FOLDERS.iter().filter(|folder| folder.starts_with(stage.as_str()));
        folders.any(|folder| self.session.store.contains(&metrics_name(folder)))
    }

    /// The stages whose weights were trained with other weights of the stages before them than the run has now, and
    /// their states. A stage of the model that the run has started from has no state. Left out is a stage whose state
    /// cannot be read, because nothing goes on from it, and one before which weights are missing.
    ///
    /// # Errors
    ///
    /// Weights cannot be read.
    pub fn outdated(&self) -> Result<Vec<(StageName, Option<String>)>, RunError> {
        let (store, mut outdated) = (&self.session.store, Vec::new());
        let has = |part: &Part| store.contains(&self.weights_name(*part));
        for stage in StageName::ALL {
            let (needed, name) = (self.recipe.parts_before(stage), state_name(self.folder(stage)));
            if !needed.iter().all(has) {
                continue;
            }
            let Some(state) = store.open(&name)? else {
                let is_needed = |part: &Part| needed.contains(part);
                let moves = |before: &StageName| {
                    store.contains(&state_name(before.as_str()))
                        && self.recipe.parts_of(*before).iter().any(is_needed)
                };
                let is_whole = self.recipe.parts_of(stage).iter().all(has);
                if is_whole && !self.has_trained(stage) && StageName::ALL.iter().any(moves) {
                    outdated.push((stage, None));
                }
                continue;
            };
            let Ok(header) = read_header(&name, &*state) else { continue };
            if header.has_other_parts(&self.frozen(stage)?) {
                outdated.push((stage, Some(store.describe(&name))));
            }
        }
        Ok(outdated)
    }

    /// The stages before `stage` that have not done all of their updates, and how many they have done.
    ///
    /// # Errors
    ///
    /// A state cannot be opened.
    pub fn unfinished(&self, stage: StageName) -> Result<Vec<(StageName, u64)>, RunError> {
        let mut unfinished = Vec::new();
        for before in StageName::ALL.into_iter().take_while(|before| *before != stage) {
            // The number of steps in the config is then that of another training.
            if self.recipe.config.is_frozen_in_part(before) {
                continue;
            }
            let name = state_name(before.as_str());
            let Some(state) = self.session.store.open(&name)? else { continue };
            let Ok(header) = read_header(&name, &*state) else { continue };
            if header.step < self.recipe.config.updates(before).steps {
                unfinished.push((before, header.step));
            }
        }
        Ok(unfinished)
    }

    /// Fails if the store has the model of an earlier run, but no state of any stage: a new start would overwrite the
    /// model.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn check_results(&self) -> Result<(), RunError> {
        let store = &self.session.store;
        let state = |folder: &&str| store.contains(&state_name(folder));
        if !store.contains(ONE_FILE_MODEL) || STAGE_FOLDERS.iter().any(state) {
            return Ok(());
        }
        let [result, state] =
            [ONE_FILE_MODEL, &state_name(STAGE_FOLDERS[0])].map(|name| store.describe(name));
        Err(RunError::ResultExists { result, state })
    }

    /// Fails if a stage that starts anew would overwrite a state, if it cannot go on from one, if its shares of a batch
    /// cannot be divided equally among the processes, or if the device cannot multiply in its precision.
    ///
    /// # Errors
    ///
    /// There is a state where the stage starts anew; or the state is not whole, has another seed, method or model, or
    /// has values that are not finite; or the number of shares is no multiple of the number of processes; or the device
    /// lacks the type.
    pub fn check_start(&self, stage: StageName, start: &Start) -> Result<(), RunError> {
        let (recipe, config) = (&self.recipe, &self.recipe.config);
        let (name, own) =
            ((stage, self.folder(stage)), (config.updates(stage), config.seed, &self.device));
        let (session, device) = (&self.session, &Device::flex());
        // Only names and shapes of a fresh model are compared, so that no weights are made.
        match (stage, config.model.decoder.has_tokens()) {
            (StageName::A, _) => session.check_start(name, start, own, &recipe.init_vqgan(device)),
            (StageName::B, false) => {
                session.check_start(name, start, own, &recipe.init_decoder(device))
            }
            (StageName::B, true) => {
                session.check_start(name, start, own, &recipe.init_token_decoder(device))
            }
            (StageName::C, _) => session.check_start(name, start, own, &recipe.init_prior(device)),
        }
    }

    /// Trains one stage. Returns `Break` if the listener broke before its last update.
    ///
    /// # Errors
    ///
    /// [`RunError`] lists what can be wrong.
    pub fn train(&mut self, stage: StageName, start: Start) -> Result<ControlFlow<()>, RunError> {
        let done = self.train_stage(stage, start);
        self.session.conclude(done)
    }

    fn train_stage(&mut self, stage: StageName, start: Start) -> Result<ControlFlow<()>, RunError> {
        let begun = self.begin(stage, &start);
        let essence = self.session.agree(begun)?;
        self.session.compare(&essence)?;
        self.share_files()?;
        match stage {
            StageName::A => self.stage_a(start),
            StageName::B => self.stage_b(start),
            StageName::C => self.stage_c(start),
        }
    }

    /// Claims the store and writes the files that do not change; returns what must be equal in all processes.
    fn begin(&mut self, stage: StageName, start: &Start) -> Result<String, RunError> {
        self.session.store.claim()?;
        self.check_start(stage, start)?;
        self.session.begin();
        self.write_config()?;
        self.write_tokenizer()?;
        self.essence()
    }

    /// What must be equal in processes that train together, in lines of text. The scale of the embeddings is not among
    /// them: rank 0 tells it to the others.
    fn essence(&self) -> Result<String, RunError> {
        if self.session.peers.size() == 1 {
            return Ok(String::new());
        }
        let mut config = self.recipe.config.clone();
        config.model.embedding_scale = None;
        let pictures = self.source.samples(StageName::A, config.seed, Lesson::default()).count();
        let mut lines = essence(&toml::Value::try_from(&config)?, pictures);
        if let Some(weights) = &self.perceptual {
            let hash = digest_of_weights("", weights)?;
            lines += &format!("\nperceptual weights of the hash {hash}");
        }
        Ok(lines)
    }

    /// Gives the other processes what rank 0 has: tokenizer, weights, and the scale of the embeddings.
    fn share_files(&mut self) -> Result<(), RunError> {
        if self.session.peers.size() == 1 {
            return Ok(());
        }
        let decoder = &self.recipe.config.model.decoder;
        let folder = decoder.family().pipelines[0].tokenizer();
        let tokenizer = |file: &str| format!("{RUN_MODEL}/{folder}/{file}");
        let mut names = vec![RUN_CONFIG.to_owned()];
        names.extend(TokenizerFiles::NAMES.map(tokenizer));
        names.extend(decoder.parts().map(|part| self.weights_name(part)));
        self.session.share_files(&names)?;
        if self.session.leads() {
            return Ok(());
        }
        let text = |name: &str| {
            let bytes = self.session.store.read(name).ok().flatten()?;
            String::from_utf8(bytes).ok()
        };
        let config = text(RUN_CONFIG).and_then(|config| TrainConfig::from_toml(&config).ok());
        let config = config.expect("rank 0 has written its config, which is as this one");
        let files = TokenizerFiles::from_named(|file| text(&tokenizer(file)));
        self.recipe = Recipe::new(config, files)?;
        Ok(())
    }

    /// Does the updates of a stage. `sample` makes the pictures of a grid.
    fn updates<S: Stage>(
        &mut self,
        stage: StageName,
        start: Start,
        trainer: Trainer<S>,
        sample: impl Fn(&Self, &S::Model) -> Result<Vec<Image>, RunError>,
        weights: fn(&S::Model) -> Weights,
    ) -> Result<ControlFlow<()>, RunError> {
        let config = self.recipe.config.updates(stage).clone();
        self.tell_of_grid(stage);
        let columns = self.grid_pictures(stage).min(GRID_SIDE);
        let trainer = trainer.with_frozen(self.frozen(stage)?);
        let job = Job { stage, folder: self.folder(stage), config: &config, start, columns };
        let save = |run: &Self, model: &S::Model| {
            run.write_weights(weights(model))?;
            run.write_texts()
        };
        updates(self, job, trainer, sample, save)
    }

    /// A hash of the weights that a stage takes from those before it, and what older versions had for it, which also
    /// counted Stage A's decoder; nothing where it takes none.
    fn frozen(&self, stage: StageName) -> Result<Vec<String>, RunError> {
        let (weights, mut own, mut older) = (self.read_weights()?, Vec::new(), Vec::new());
        for &part in self.recipe.parts_before(stage) {
            if let Some(weights) = weights.get(&part) {
                let taken = digest_of_taken("", part, weights)?;
                let is_whole = part != Part::VQGAN;
                older.push(if is_whole { taken.clone() } else { digest_of_weights("", weights)? });
                own.push(taken);
            }
        }
        Ok(if own.is_empty() { Vec::new() } else { vec![digest(&own), digest(&older)] })
    }

    fn tell(&mut self, event: &Event<'_>) {
        self.session.tell(event);
    }

    /// The folder of a stage, one of [`STAGE_FOLDERS`].
    fn folder(&self, stage: StageName) -> &'static str {
        match (stage, self.recipe.config.is_frozen_in_part(stage)) {
            (StageName::A, true) => "a-frozen",
            (StageName::B, true) => "b-frozen",
            (stage, _) => stage.as_str(),
        }
    }

    fn pipeline(&self, trained: Weights) -> Result<Pipeline, RunError> {
        let files = self.recipe.model_files(trained, &self.device);
        Ok(Pipeline::load(&files, &self.device, Residency::All)?)
    }

    fn write_config(&self) -> Result<(), RunError> {
        Ok(self.session.store.write(RUN_CONFIG, self.recipe.config.to_toml()?.as_bytes())?)
    }

    /// Writes the tokenizer before anything is trained: captions that come later must not change the numbers
    /// of the tokens.
    fn write_tokenizer(&self) -> Result<(), RunError> {
        let folder = self.recipe.config.model.decoder.family().pipelines[0].tokenizer();
        for (file, text) in self.recipe.tokenizer.named() {
            self.session.store.write(&format!("{RUN_MODEL}/{folder}/{file}"), text.as_bytes())?;
        }
        Ok(())
    }

    /// Writes the configs beside the weights, so that a model opens while it is trained, too.
    fn write_texts(&self) -> Result<(), RunError> {
        for (path, text) in self.recipe.texts() {
            self.session.store.write(&format!("{RUN_MODEL}/{path}"), text.as_bytes())?;
        }
        Ok(())
    }

    /// The file of the weights of the part that does, in the run's family, what the given part of Würstchen v2 does.
    fn weights_name(&self, part: Part) -> String {
        format!("{RUN_MODEL}/{}", self.recipe.config.model.decoder.part(part).weights_path())
    }

    fn write_weights(&self, weights: Weights) -> Result<(), RunError> {
        for (&part, checkpoint) in &weights {
            let bytes = Checkpoint::write([(String::new(), checkpoint)], WeightDtype::F32, None)?;
            self.session.store.write(&self.weights_name(part), &bytes)?;
        }
        Ok(())
    }

    /// The weights that the run has trained so far.
    fn read_weights(&self) -> Result<Weights, RunError> {
        let mut weights = Weights::new();
        for part in self.recipe.config.model.decoder.parts() {
            if let Some(bytes) = self.session.store.read(&self.weights_name(part))? {
                weights.insert(part, Checkpoint::parse(part.folder(), Arc::new(bytes))?);
            }
        }
        Ok(weights)
    }

    /// Writes the configs beside the weights, the model as one file, and the run's report. The model has only the parts
    /// that are trained.
    ///
    /// # Errors
    ///
    /// The store cannot read or write, or weights in it cannot be read.
    pub fn write_model(&self) -> Result<ModelFiles, RunError> {
        let trained = self.read_weights()?;
        let decoder = &self.recipe.config.model.decoder;
        let parts: Vec<_> = trained.keys().map(|part| decoder.part(*part)).collect();
        let mut files = self.recipe.model_files(trained, &self.device);
        files.weights.retain(|part, _| parts.contains(part));
        self.write_texts()?;
        self.session.store.write(ONE_FILE_MODEL, &files.to_one_file(WeightDtype::F16)?)?;
        self.write_report()?;
        Ok(files)
    }

    fn write_report(&self) -> Result<(), RunError> {
        let config = &self.recipe.config;
        let titles = [
            (StageName::A, "a", "Stage A"),
            (StageName::A, "a-frozen", "Stage A's decoder"),
            (StageName::B, "b", "Stage B and the compressor"),
            (StageName::B, "b-frozen", "Stage B"),
            (StageName::C, "c", "Stage C"),
        ];
        let stages = titles.map(|(name, folder, title)| {
            (folder, title, self.recipe.config.updates(name).batch_size)
        });
        let toml = config.to_toml()?;
        let about = About { name: &config.name, watts: config.watts, config: &toml };
        Ok(write_report(&about, &stages, &*self.session.store)?)
    }
}
