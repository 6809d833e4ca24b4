//! Fine-tuning of a model's Stage C on pictures of any size, whole or by a LoRA.
//!
//! The model's tokenizer, text encoder and semantic compressor stay as they are. So the hidden states of the captions
//! and the image embeddings of the pictures are computed once and kept in a cache.

mod buckets;
mod memory;
mod prepare;
mod stage;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use burn::module::Module;
use burn::tensor::Device;
use futures_lite::future::block_on;
use wuerstchen::card::PriorIndex;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::weights::shapes;
use wuerstchen::{
    CARD, Checkpoint, CompressorConfig, ConfigError, Family, GenerateOptions, Image, Lora,
    LoraFile, ModelFiles, Part, PartConfig, Pipeline, PipelineFolder, Prior, PriorConfig, Progress,
    RUN_CONFIG, Residency, Settings, TextEncoderConfig, TrainedLayer, TrainedLora, WeightDtype,
};

pub use self::buckets::Buckets;
pub use self::memory::{Memory, Work};
pub use self::prepare::Prepared;
use self::prepare::{Bucket, Filled, Sizes, Sources};
pub use self::stage::{BatchTune, LoraLayer, LoraLayers, LowRank, StageTune, Tuned, Whole};
use crate::config::{LoraConfig, StageName, TuneConfig};
use crate::corpus::CorpusError;
use crate::peers::Peers;
use crate::run::{
    About, Event, GRID_SIDE, Job, RunError, Session, Start, essence, state_name, updates,
    write_report,
};
use crate::store::Store;
pub use crate::tensor_cache::digest;
use crate::tensor_cache::{TensorCache, digest_of};
use crate::trainer::{Trainer, read_header};

/// The file of a trained LoRA that diffusers reads.
pub use wuerstchen::TUNED_LORA as LORA;

/// The files that peft reads.
const PEFT: [&str; 2] = ["peft/adapter_model.safetensors", "peft/adapter_config.json"];

/// Stage C while it is trained whole, in f32.
const PRIOR: &str = "c/prior.safetensors";

/// Hashes of the parts with which the run has begun, a line each.
const BASE: &str = "base.sha256";

/// The parts whose weights a run begins with, and what errors call them.
const BASES: [(Part, &str); 3] = [
    (Part::PRIOR, "Stage C"),
    (Part::PRIOR_TEXT, "text encoder"),
    (Part::COMPRESSOR, "semantic compressor"),
];

/// The model with a Stage C that was trained whole.
pub use wuerstchen::TUNED_MODEL as MODEL;

/// Pictures in a grid where the config has no prompts.
const SAMPLES: usize = 4;

/// Captioned pictures of any size.
pub trait Pictures: Send + Sync {
    /// The number of pictures, at least one.
    fn count(&self) -> usize;

    /// The bytes of the picture's file. Pictures with equal bytes have the same embedding.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    fn content(&self, index: usize) -> Result<Vec<u8>, CorpusError>;

    /// The height and width of a picture, of whose file these are the bytes; those that [`Self::picture`] tells.
    ///
    /// # Errors
    ///
    /// The size cannot be read.
    fn size(&self, index: usize, content: &[u8]) -> Result<[usize; 2], CorpusError>;

    /// A picture at another size. `size` maps its own height and width to those of the result. The picture is scaled to
    /// cover the result, and the parts beyond its edges are cut off on both sides.
    ///
    /// # Errors
    ///
    /// The picture cannot be read, or `size` refuses it.
    fn picture(
        &self,
        index: usize,
        size: &mut dyn FnMut([usize; 2]) -> Result<[usize; 2], String>,
    ) -> Result<Image, CorpusError>;

    /// The captions of a picture, at least one, with their probabilities, which sum to 1.
    fn captions(&self, index: usize) -> Vec<(String, f64)>;

    /// Whether a picture that cannot be read is left out; otherwise it ends the run.
    fn leaves_out_broken(&self) -> bool {
        false
    }

    /// How many of the pictures that were read so far have several frames or pages, of which the first is taken.
    fn with_frames(&self) -> usize;
}

/// A fine-tuning of a model's Stage C.
pub struct Tune {
    config: TuneConfig,
    model: ModelFiles,
    pictures: Arc<dyn Pictures>,
    cache: TensorCache,
    session: Session,
    device: Device,
    prior: PriorConfig,
    sizes: Sizes,
    options: GenerateOptions,
    /// The hashes of [`Self::digests`], once they are computed.
    digests: OnceLock<Vec<String>>,
}

/// Everything that the updates need at the start.
struct Ready {
    pictures: Arc<Prepared>,
    /// The device with autodiff.
    device: Device,
    start: Start,
}

impl AsMut<Session> for Tune {
    fn as_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Tune {
    /// A fine-tuning of `model` that keeps its files in `store`, and image embeddings and hidden states in
    /// `cache`, which runs may share. Trains on a device without autodiff.
    ///
    /// # Errors
    ///
    /// A value of the config cannot be used, the model is of another family or lacks a part, a pattern of the LoRA fits
    /// none of its layers, or the samples would not fit in memory together.
    pub fn new(
        config: TuneConfig,
        model: ModelFiles,
        pictures: Arc<dyn Pictures>,
        [store, cache]: [Arc<dyn Store>; 2],
        device: Device,
    ) -> Result<Self, RunError> {
        config.validate()?;
        let family = model.family().name;
        let refuse = |reason: String| Err(RunError::Model { reason });
        if family != Family::WUERSTCHEN.name {
            return refuse(format!(
                "is one of {family}: fine-tuning takes those of {}",
                Family::WUERSTCHEN.name
            ));
        }
        if !model.weights.contains_key(&Part::COMPRESSOR) {
            return refuse(format!(
                "has no semantic compressor, which makes the image embeddings of pictures: expected the part \
                 {}",
                Part::COMPRESSOR
            ));
        }
        for part in Family::WUERSTCHEN.needed() {
            model.check(part, &device)?;
        }
        let prior: PriorConfig = model.part_config(Part::PRIOR)?;
        let text: TextEncoderConfig = model.part_config(Part::PRIOR_TEXT)?;
        let compressor: CompressorConfig = model.part_config(Part::COMPRESSOR)?;
        if compressor.c_latent != prior.c_in || text.hidden_size != prior.c_cond {
            return refuse(format!(
                "has a compressor of {} channels and a text encoder of {}, its Stage C takes {} and {}",
                compressor.c_latent, text.hidden_size, prior.c_in, prior.c_cond
            ));
        }
        let index: PriorIndex = model.index(PipelineFolder::PRIOR)?;
        let defaults = model.card()?.defaults;
        let sizes =
            Sizes::new(&config.pictures, defaults.width, index.resolution_multiple, &compressor)?;
        let samples = &config.samples;
        let options = GenerateOptions {
            seed: config.seed,
            width: samples.width,
            height: samples.height,
            prior_steps: samples.prior_steps,
            ..GenerateOptions::default()
        };
        let settings = options.resolve(&defaults)?;
        // All samples are made at once, so they must fit in memory together.
        let count = if samples.prompts.is_empty() { SAMPLES } else { samples.prompts.len() };
        Settings { count, ..settings.clone() }.check_pixels()?;
        // This reads no weights.
        let pipeline = Pipeline::load(&model, &device, Residency::PerStage)?;
        pipeline.sizes(settings.height, settings.width)?;
        let session = Session::new(store);
        let tune = Self {
            config,
            model,
            pictures,
            cache: TensorCache(cache),
            session,
            device,
            prior,
            sizes,
            options,
            digests: OnceLock::new(),
        };
        if let Some(lora) = &tune.config.lora {
            tune.targets(lora)?;
        }
        Ok(tune)
    }

    /// Tells `listener` what happens. If it breaks, the run saves and stops after the update that is done or comes
    /// next.
    pub fn listen(&mut self, listener: impl FnMut(&Event<'_>) -> ControlFlow<()> + 'static) {
        self.session.listen(listener);
    }

    /// Trains together with other processes. All but rank 0 need a store of their own, such as one in main memory; what
    /// they write is not needed later. All may share one cache. A listener in any process can stop all.
    pub fn with_peers(mut self, peers: Arc<dyn Peers>) -> Self {
        self.session.peers = peers;
        self
    }

    /// Fails if a start would overwrite a state, if the run has begun with another Stage C or cannot go on from its
    /// state, if the shares of a batch cannot be divided equally among the processes, or if the device cannot multiply
    /// in the config's precision.
    ///
    /// # Errors
    ///
    /// There is a state where the run starts anew; or the state is not whole, has another seed, method or model, is of
    /// a training of other layers or with another base, or has values that are not finite; or the number of shares is
    /// no multiple of the number of processes; or the device lacks the type.
    pub fn check_start(&self, start: &Start) -> Result<(), RunError> {
        self.check_base(start)?;
        self.check_state(start)?;
        self.check_results(start)?;
        let name = (StageName::C, self.folder());
        let own = (&self.config.c.updates, self.config.seed, &self.device);
        let device = &Device::flex();
        match &self.config.lora {
            Some(lora) => {
                let sides: Vec<_> =
                    self.changed(lora)?.into_iter().map(|(_, sides)| sides).collect();
                let model = LoraLayers::init(&sides, lora.rank, self.config.seed, device);
                self.session.check_start(name, start, own, &model)
            }
            None => self.session.check_start(name, start, own, &self.prior.init(device)),
        }
    }

    /// The memory that training takes, in bytes.
    ///
    /// # Errors
    ///
    /// A pattern of the LoRA fits no layer.
    pub fn memory(&self) -> Result<Memory, RunError> {
        let network = self.prior.init(&self.device);
        // The frozen network beside a LoRA runs without dropout.
        let (prior, trained) = match &self.config.lora {
            Some(lora) => {
                let shapes = self.changed(lora)?.into_iter().flat_map(|(_, [output, input])| {
                    [vec![lora.rank, input], vec![output, lora.rank]]
                });
                (PriorConfig { dropout: 0.0, ..self.prior.clone() }, shapes.collect())
            }
            None => {
                let shapes = shapes(&network, PriorConfig::KEYS);
                (self.prior.clone(), shapes.into_iter().map(|(_, shape)| shape).collect::<Vec<_>>())
            }
        };
        let base = self.model.weights(Part::PRIOR)?;
        let frozen = if self.config.lora.is_some() { base.device_bytes() } else { 0 };
        let [height, width] = self.sizes.buckets.sizes()[0];
        let text: TextEncoderConfig = self.model.part_config(Part::PRIOR_TEXT)?;
        let updates = &self.config.c.updates;
        let own = updates.shards / self.session.peers.size();
        let at_once = updates.at_once(own, prior.dropout > 0.0);
        // Alone, the process holds the shares that it computes and the sum of those before them; with others, all of
        // its own.
        let shares = match (self.session.peers.size(), at_once < own) {
            (1, true) => at_once + 1,
            (1, false) => at_once,
            _ => own,
        };
        let work = Work {
            frozen,
            trained: trained.iter().map(|shape| shape.iter().product::<usize>()).sum(),
            moments: trained.iter().map(|shape| updates.optimizer.method.moments(shape)).sum(),
            average: updates.optimizer.keeps_average(),
            recompute: self.config.c.recompute,
            cells: height * width,
            tokens: text.max_position_embeddings,
            batch: updates.batch_size / updates.shards * at_once,
            shares,
        };
        Ok(Memory::count(&prior, &work))
    }

    /// Trains. Returns `Break` if the listener broke before the last update. Every save writes a LoRA's files, as
    /// [`LORA`] and for peft. A Stage C that is trained whole is written into [`MODEL`] at the end.
    ///
    /// # Errors
    ///
    /// [`RunError`] lists what can be wrong.
    pub fn train(&mut self, start: Start) -> Result<ControlFlow<()>, RunError> {
        let done = self.train_all(start);
        self.session.conclude(done)
    }

    fn train_all(&mut self, start: Start) -> Result<ControlFlow<()>, RunError> {
        let begun = self.begin(&start);
        let essence = self.session.agree(begun)?;
        self.session.compare(&essence)?;
        // Rank 0 fills the cache: two processes must not write the same file.
        let first = if self.session.leads() { self.prepare() } else { Ok(None) };
        let prepared = match self.session.agree(first)? {
            Some(prepared) => Some(prepared),
            None if self.session.leads() => None,
            None => self.prepare()?,
        };
        let Some(prepared) = prepared else { return Ok(ControlFlow::Break(())) };
        let pictures = Arc::new(prepared);
        let device = self.device.clone().autodiff();
        device.seed(self.config.seed);
        let ready = Ready { pictures, device, start };
        match self.config.lora.clone() {
            Some(lora) => self.train_lora(&lora, ready),
            None => self.train_whole(ready),
        }
    }

    /// Claims the store and writes the files that do not change; returns what must be equal in all processes.
    fn begin(&mut self, start: &Start) -> Result<String, RunError> {
        self.session.store.claim()?;
        self.check_start(start)?;
        self.session.begin();
        let store = &self.session.store;
        if matches!(start, Start::Anew) || !store.contains(BASE) {
            store.write(BASE, self.digests()?.join("\n").as_bytes())?;
        }
        self.session.store.write(RUN_CONFIG, self.config.to_toml()?.as_bytes())?;
        self.essence()
    }

    /// What must be equal in processes that train together, in lines of text.
    fn essence(&self) -> Result<String, RunError> {
        if self.session.peers.size() == 1 {
            return Ok(String::new());
        }
        let config = toml::Value::try_from(&self.config)?;
        let mut lines = essence(&config, Some(self.pictures.count()));
        for ((part, _), digest) in BASES.iter().zip(self.digests()?) {
            lines += &format!("\n{part} of the hash {digest}");
        }
        Ok(lines)
    }

    /// The hashes of the weights that a run begins with, in the order of [`BASES`].
    fn digests(&self) -> Result<&[String], RunError> {
        if self.digests.get().is_none() {
            let digests = BASES.iter().map(|(part, _)| digest_of(&self.model, *part));
            let digests = digests.collect::<Result<_, _>>()?;
            self.digests.get_or_init(|| digests);
        }
        Ok(self.digests.get().map_or(&[], Vec::as_slice))
    }

    /// Fails if the run has begun with another Stage C, text encoder or compressor.
    fn check_base(&self, start: &Start) -> Result<(), RunError> {
        let store = &self.session.store;
        let begun = store.read(BASE)?.filter(|_| !matches!(start, Start::Anew));
        let Some(begun) = begun else { return Ok(()) };
        let begun = String::from_utf8_lossy(&begun);
        // Runs of older versions have only the hash of Stage C.
        let digests = self.digests()?;
        let mut of_parts = BASES.iter().zip(begun.lines().zip(digests));
        match of_parts.find(|(_, (begun, own))| begun != own) {
            None => Ok(()),
            Some(((_, part), _)) => {
                let file = store.describe(BASE);
                let reason = format!(
                    "has another {part} than the one with which the run began, whose hash is in {file}"
                );
                Err(RunError::Model { reason })
            }
        }
    }

    /// Fails if a state from elsewhere is of a training of other layers, of another alpha, or with another Stage C,
    /// text encoder or compressor. States of older versions do not say that.
    fn check_state(&self, start: &Start) -> Result<(), RunError> {
        let Start::State { name, bytes } = start else { return Ok(()) };
        let header = read_header(name, &**bytes)?;
        if !header.has_other_parts(&[self.setting()?]) {
            return Ok(());
        }
        let or_table = if self.config.lora.is_some() { "or [lora] " } else { "" };
        let reason = format!("{or_table}is another one than that with which {name} was trained");
        Err(RunError::Model { reason })
    }

    /// A hash of what must not change while a stage is trained: what it starts from, and what it changes.
    fn setting(&self) -> Result<String, RunError> {
        let mut parts = self.digests()?.to_vec();
        parts.extend(self.config.lora.as_ref().map(LoraConfig::to_string));
        Ok(digest(&parts))
    }

    /// Fails if the run would begin anew and overwrite the result of another one.
    fn check_results(&self, start: &Start) -> Result<(), RunError> {
        let (store, state) = (&self.session.store, state_name(self.folder()));
        if matches!(start, Start::State { .. }) || store.contains(&state) {
            return Ok(());
        }
        let results: &[&str] =
            if self.config.lora.is_some() { &[LORA, PEFT[0]] } else { &[MODEL, PRIOR] };
        let result = results.iter().find(|result| store.contains(result));
        let Some(result) = result else { return Ok(()) };
        let [result, state] = [result, state.as_str()].map(|name| store.describe(name));
        Err(RunError::ResultExists { result, state })
    }

    fn train_lora(&mut self, lora: &LoraConfig, ready: Ready) -> Result<ControlFlow<()>, RunError> {
        let targets = self.targets(lora)?;
        // The frozen network runs as it does when it makes pictures.
        let config = PriorConfig { dropout: 0.0, ..self.prior.clone() };
        let base = config.load(self.model.weights(Part::PRIOR)?, &ready.device)?;
        let (names, sides): (Vec<_>, Vec<_>) = self.changed(lora)?.into_iter().unzip();
        let model = LoraLayers::init(&sides, lora.rank, self.config.seed, &ready.device);
        let tuned = LowRank::new(base, targets, lora.alpha() / lora.rank as f64);
        let trained = |model: &LoraLayers| trained_lora(lora, &names, model);
        let sample = |tune: &Self, model: &LoraLayers| {
            let mut files = tune.model.clone();
            let file = LoraFile::from(trained(model).for_diffusers());
            files.add_loras(vec![Lora::read(&file, &files, 1.0)?])?;
            tune.sample(&files)
        };
        let save = |tune: &Self, model: &LoraLayers| tune.write_lora(&trained(model));
        self.updates((tuned, model), ready, sample, save)
    }

    fn train_whole(&mut self, ready: Ready) -> Result<ControlFlow<()>, RunError> {
        let dense = in_f32(self.model.weights(Part::PRIOR)?)?;
        let model = self.prior.load(&dense, &ready.device)?;
        drop(dense);
        let sample = |tune: &Self, model: &Prior| tune.sample(&tune.with_prior(prior(model)));
        let save = |tune: &Self, model: &Prior| {
            let weights = prior(model);
            let bytes = Checkpoint::write([(String::new(), &weights)], WeightDtype::F32, None)?;
            Ok(tune.session.store.write(PRIOR, &bytes)?)
        };
        let whole = Whole { has_dropout: self.prior.dropout > 0.0 };
        let done = self.updates((whole, model), ready, sample, save)?;
        if done.is_continue() && self.session.leads() {
            self.write_model()?;
        }
        Ok(done)
    }

    fn updates<T: Tuned>(
        &mut self,
        (tuned, model): (T, T::Model),
        Ready { pictures, device, start }: Ready,
        sample: impl Fn(&Self, &T::Model) -> Result<Vec<Image>, RunError>,
        save: impl Fn(&Self, &T::Model) -> Result<(), RunError>,
    ) -> Result<ControlFlow<()>, RunError> {
        let schedule = self.model.schedule(PipelineFolder::PRIOR)?;
        let (config, seed) = (self.config.c.clone(), self.config.seed);
        let stage = StageTune::new(tuned, pictures, config.clone(), schedule, device.clone());
        let trainer = Trainer::new(stage, model, config.updates.clone(), seed, device);
        let trainer = trainer.with_frozen(vec![self.setting()?]);
        let (stage, folder) = (StageName::C, self.folder());
        let job = Job { stage, folder, config: &config.updates, start, columns: GRID_SIDE };
        let done = updates(self, job, trainer, sample, save)?;
        if done.is_continue() && self.session.leads() {
            let title = if self.config.lora.is_some() { "LoRA of Stage C" } else { "Stage C" };
            let stages = [(folder, title, config.updates.batch_size)];
            let toml = self.config.to_toml()?;
            let about = About { name: &self.config.name, watts: self.config.watts, config: &toml };
            write_report(&about, &stages, &*self.session.store)?;
        }
        Ok(done)
    }

    /// The folder of the run's states and samples.
    fn folder(&self) -> &'static str {
        if self.config.lora.is_some() { "lora" } else { StageName::C.as_str() }
    }

    /// Name and sides (output, input) of the linear layers that the LoRA changes.
    fn changed(&self, lora: &LoraConfig) -> Result<Vec<(String, [usize; 2])>, RunError> {
        let layers = self.prior.init(&self.device).linear_layers();
        let layers = layers.into_iter().zip(self.targets(lora)?);
        Ok(layers.filter_map(|(layer, is_changed)| is_changed.then_some(layer)).collect())
    }

    /// For every linear layer, whether the LoRA changes it.
    fn targets(&self, lora: &LoraConfig) -> Result<Vec<bool>, RunError> {
        let layers = self.prior.init(&self.device).linear_layers();
        let targets: Vec<_> = layers.iter().map(|(name, _)| lora.changes(name)).collect();
        let unmatched = lora.modules.iter().find(|pattern| {
            let alone = LoraConfig { modules: vec![(*pattern).clone()], ..lora.clone() };
            !layers.iter().any(|(name, _)| alone.changes(name))
        });
        let Some(unmatched) = unmatched else { return Ok(targets) };
        let mut ends: Vec<&str> = layers.iter().map(|(name, _)| kind_of(name)).collect();
        ends.sort_unstable();
        ends.dedup();
        let expected = format!("patterns of linear layers, which are {}", ends.join(", "));
        Err(ConfigError::new("lora", "modules", expected, format!("{unmatched:?}")).into())
    }

    /// Reads the pictures whose image embeddings are not in the cache, reports the buckets to the listener, and returns
    /// the errors of pictures that cannot be used. `on_picture` is called after each picture.
    ///
    /// # Errors
    ///
    /// The model's weights cannot be read.
    pub fn check_pictures(
        &mut self,
        on_picture: impl Fn() + Sync,
    ) -> Result<Vec<CorpusError>, RunError> {
        let sources = (&self.model, &self.pictures, &self.cache, &self.sizes);
        let (buckets, broken) = prepare::check(sources, on_picture)?;
        self.tell_buckets(buckets);
        Ok(broken)
    }

    /// Reports how many pictures each bucket has.
    fn tell_buckets(&mut self, buckets: Filled) {
        let cell = self.sizes.cell;
        for (cells, Bucket { pictures, enlarged }) in buckets {
            let pixels = cells.map(|side| (side as f64 * cell).round() as usize);
            self.session.tell(&Event::Bucket { cells, pixels, pictures, enlarged });
        }
    }

    /// Fills the cache and trains nothing, so that a run with the same cache begins at once. Returns `Break` if the
    /// listener breaks.
    ///
    /// # Errors
    ///
    /// A picture cannot be read or is too small, and broken ones are not left out; or the cache cannot be read or
    /// written.
    pub fn fill_cache(&mut self) -> Result<ControlFlow<()>, RunError> {
        self.session.begin();
        let is_filled = self.prepare()?.is_some();
        Ok(if is_filled { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    }

    /// Fills the cache and reports the buckets; `None` if the listener breaks.
    fn prepare(&mut self) -> Result<Option<Prepared>, RunError> {
        let updates = &self.config.c.updates;
        let order = [self.config.seed, updates.batch_size as u64];
        let sources = Sources {
            model: &self.model,
            pictures: &self.pictures,
            cache: &self.cache,
            sizes: &self.sizes,
            threads: updates.data_threads,
            device: &self.device,
        };
        let session = &mut self.session;
        let on_progress = &mut |what, done, scenes| {
            session.tell(&Event::Caching { what, done, scenes });
            // Several processes agree on a stop when the updates begin, not here.
            if session.stops_alone() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let Some((prepared, buckets)) = Prepared::new(&sources, order, on_progress)? else {
            return Ok(None);
        };
        self.tell_buckets(buckets);
        Ok(Some(prepared))
    }

    /// The pictures of a grid, one of every prompt.
    fn sample(&self, files: &ModelFiles) -> Result<Vec<Image>, RunError> {
        let pipeline = Pipeline::load(files, &self.device, Residency::Auto)?;
        let captions = || {
            let indices = 0..self.pictures.count().min(SAMPLES);
            indices.map(|index| self.pictures.captions(index).swap_remove(0).0).collect()
        };
        let own = &self.config.samples.prompts;
        let prompts: Vec<String> = if own.is_empty() { captions() } else { own.clone() };
        let prompts: Vec<_> = prompts.iter().map(String::as_str).collect();
        let settings = self.options.resolve(&pipeline.card.defaults)?;
        let go = &mut async |_: Progress<'_>| ControlFlow::Continue(());
        Ok(block_on(pipeline.generate_each(&prompts, settings, go))?.images)
    }

    fn write_lora(&self, lora: &TrainedLora) -> Result<(), RunError> {
        let store = &self.session.store;
        let bytes = |tensors: Checkpoint, metadata| {
            Checkpoint::write([(String::new(), &tensors)], WeightDtype::F32, metadata)
        };
        // Programs on PyTorch refuse safetensors files without this field.
        let format = Some([("format".to_owned(), "pt".to_owned())].into());
        store.write(LORA, &bytes(lora.for_diffusers(), format.clone())?)?;
        store.write(PEFT[0], &bytes(lora.for_peft(), format)?)?;
        Ok(store.write(PEFT[1], lora.adapter_config().as_bytes())?)
    }

    /// The model with another Stage C.
    fn with_prior(&self, weights: Checkpoint) -> ModelFiles {
        let mut files = self.model.clone();
        files.weights.insert(Part::PRIOR, weights);
        files
    }

    /// Writes the whole model with the trained Stage C as one file.
    fn write_model(&self) -> Result<(), RunError> {
        let store = &self.session.store;
        let Some(bytes) = store.read(PRIOR)? else { return Ok(()) };
        let weights = Checkpoint::parse(Part::PRIOR.folder(), Arc::new(bytes))?;
        let mut files = self.with_prior(weights);
        let mut card = files.card()?;
        card.provenance = format!(
            "Stage C of {:?} trained further by `wuerstchen train` on pictures; {}",
            card.name, card.provenance
        );
        card.name.clone_from(&self.config.name);
        if !self.config.corpus.licence.is_empty() {
            card.licence =
                format!("{}; the pictures: {}", card.licence, self.config.corpus.licence);
        }
        let card = serde_json::to_string_pretty(&card).expect("a card is JSON");
        files.texts.insert(CARD.into(), card);
        Ok(store.write(MODEL, &files.to_one_file(WeightDtype::F16)?)?)
    }
}

/// The end of a layer's name that layers of its kind share, such as `attention.to_q`.
fn kind_of(name: &str) -> &str {
    let mut pieces = name.splitn(3, '.');
    match (pieces.next(), pieces.next(), pieces.next()) {
        (Some("blocks"), Some(_), Some(kind)) => kind,
        _ => name,
    }
}

fn prior(model: &Prior) -> Checkpoint {
    PriorConfig::weights(Part::PRIOR, model)
}

/// The weights in f32, so that none stays packed on the device.
fn in_f32(weights: &Checkpoint) -> Result<Checkpoint, RunError> {
    let mut tensors = Vec::new();
    for name in weights.names() {
        let shape = weights.shape(name).unwrap_or_default();
        tensors.push(NamedTensor::new(name, shape, weights.values(name)?));
    }
    Ok(Checkpoint::from_tensors(weights.part(), tensors))
}

fn trained_lora(config: &LoraConfig, names: &[String], model: &LoraLayers) -> TrainedLora {
    let values = |tensor: burn::tensor::Tensor<2>| {
        tensor.into_data().try_to_vec::<f32>().expect("weights are f32")
    };
    let model = model.valid();
    let layers = names.iter().zip(&model.layers).map(|(name, layer)| {
        let layer = TrainedLayer { down: values(layer.down.val()), up: values(layer.up.val()) };
        (name.clone(), layer)
    });
    let layers: BTreeMap<_, _> = layers.collect();
    TrainedLora { rank: config.rank, alpha: config.alpha(), layers }
}
