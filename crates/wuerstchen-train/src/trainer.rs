//! The training loop's body: one update, and the state that lets it go on later.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use burn::module::{Module, ModuleVisitor, Param};
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use wuerstchen::checkpoint::{self, ReadBytes};
use wuerstchen::kernels::autocast;
use wuerstchen::noise::Philox;
use wuerstchen::weights::{KeyTable, check_shapes, load, shapes, tensors};
use wuerstchen::{Checkpoint, LoadError, WeightDtype};

use crate::batches::{Batches, MakeBatch};
use crate::config::{UpdateConfig, is_false};
use crate::corpus::CorpusError;
use crate::optimizer::{Method, Optimizer, moments};
use crate::peers::{Alone, Peers};
use crate::precision::{LossScale, Precision};
use crate::shares::{
    Share, ShareThreads, models, move_running_averages, running_averages, set_running_averages,
};
use crate::stages::{Adversary, Stage};
use crate::values::{Values, global_norm, values, with_values};

/// Trains one stage, one update at a time.
///
/// All random numbers are counted from the seed and the number of the step, so that the state is
/// the weights, the moments and one number. Batches are made ahead, on threads of their own.
pub struct Trainer<S: Stage> {
    stage: Arc<S>,
    /// The batches from the next step on; `None` before the first update and after an error.
    batches: Option<Batches<S::Batch>>,
    /// This step's batch, if it has been waited for, and how long that took.
    ready: Option<(S::Batch, Duration)>,
    /// `None` only while the optimizer has the model, to change it in place.
    model: Option<S::Model>,
    optimizer: Optimizer,
    /// The networks that are trained against the rest of the model, and their optimizer.
    adversary: Option<(Adversary, Optimizer)>,
    /// The scale of the loss, for a stage whose products are in f16.
    loss_scale: Option<LossScale>,
    config: UpdateConfig,
    seed: u64,
    step: u64,
    device: Device,
    peers: Arc<dyn Peers>,
    /// Made with the first update, when the number of processes is known.
    share_threads: OnceLock<ShareThreads>,
    /// The hash of the weights that the stage takes from other parts, then those that states of older versions have for
    /// the same weights; empty if it takes none.
    frozen: Vec<String>,
}

/// What one update did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Updates done.
    pub step: u64,
    /// The loss of this batch.
    pub loss: f64,
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Whether the weights changed: not if the gradients were not finite, or above the optimizer's
    /// `skip_grad_norm`.
    pub applied: bool,
    /// Share of the update's time in which it waited for its batch, `[0, 1]`.
    pub data_wait: f64,
    /// Seconds that the update took.
    pub secs: f64,
    /// Further numbers that the stage measures, by name.
    #[serde(flatten)]
    pub measures: BTreeMap<&'static str, f64>,
}

/// What a saved state says about itself.
#[derive(Serialize, Deserialize)]
pub(crate) struct Header {
    format: u32,
    pub(crate) step: u64,
    seed: u64,
    /// Whether the moments are Adafactor's.
    #[serde(default, skip_serializing_if = "is_false")]
    adafactor: bool,
    /// Whether the last updates were Muon's, which keeps no second moments of matrices; states of older versions do not
    /// say so.
    #[serde(default, skip_serializing_if = "is_false")]
    muon: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss_scale: Option<LossScale>,
    /// The precision of the last updates; states of older versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) precision: Option<Precision>,
    /// A hash of the weights of other parts with which the stage was trained, if it takes any; of a fine-tuning also the
    /// rank, alpha and layers of its LoRA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frozen: Option<String>,
}

impl Header {
    /// Whether the stage was trained with other weights of the parts that it takes than those with one of these hashes.
    pub(crate) fn has_other_parts(&self, frozen: &[String]) -> bool {
        self.frozen.as_ref().is_some_and(|own| !frozen.contains(own))
    }

    /// Fails unless the state is of this seed and of a method with all moments that this one needs.
    pub(crate) fn check(&self, name: &str, seed: u64, method: Method) -> Result<(), RestoreError> {
        if self.seed != seed {
            let (name, found, expected) = (name.to_owned(), self.seed, seed);
            return Err(RestoreError::Seed { name, found, expected });
        }
        // Second moments of zero would make AdamW's updates thirty times too large.
        let lacks_moments = self.muon && method == Method::AdamW;
        if lacks_moments || self.adafactor != (method == Method::Adafactor) {
            let found = match self {
                Self { adafactor: true, .. } => "adafactor",
                Self { muon: true, .. } => "muon",
                _ => "adamw or muon",
            };
            let (name, expected) = (name.to_owned(), method.name());
            return Err(RestoreError::Method { name, found, expected });
        }
        Ok(())
    }
}

const FORMAT: u32 = 1;
/// The reason why `model` cannot be `None`.
const PRESENT: &str = "the optimizer has given the model back";

const HEADER_KEY: &str = "wuerstchen-training";

/// Why training cannot go on from a state.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file is no training state.
    #[error("{name}: no training state: {reason}")]
    NoState {
        /// Which file.
        name: String,
        /// What it is, or what is wrong with it.
        reason: String,
    },
    /// The state is of another version of this program.
    #[error("{name}: a training state of format {found}, this program reads {FORMAT}")]
    Format {
        /// Which file.
        name: String,
        /// Its format.
        found: u32,
    },
    /// The state is of a run with another seed.
    #[error("{name}: a training state of seed {found}, the config says {expected}")]
    Seed {
        /// Which file.
        name: String,
        /// Its seed.
        found: u64,
        /// The run's.
        expected: u64,
    },
    /// The state is of a run with another optimizer, whose moments have other shapes.
    #[error("{name}: a training state of {found}, the config says method = {expected:?}")]
    Method {
        /// Which file.
        name: String,
        /// Its optimizer.
        found: &'static str,
        /// The run's.
        expected: &'static str,
    },
    /// The state is of another stage, or of a model of other sizes.
    #[error("{name}: the training state of another model: {difference}")]
    Sizes {
        /// Which file.
        name: String,
        /// The first tensor that differs, how, and how many more do.
        difference: String,
    },
    /// The tensors cannot be read.
    #[error(transparent)]
    Load(LoadError),
}

impl RestoreError {
    /// The same error, but it names only the first tensor: a model of other sizes has hundreds that differ.
    fn of(name: &str, error: LoadError) -> Self {
        match error {
            LoadError::Mismatch { differences, .. } => {
                Self::Sizes { name: name.to_owned(), difference: differences.shortened() }
            }
            error => Self::Load(error),
        }
    }
}

impl<S: Stage> Trainer<S> {
    /// Starts training `model`, which is on a device with autodiff.
    pub fn new(stage: S, model: S::Model, config: UpdateConfig, seed: u64, device: Device) -> Self {
        let optimizer = Optimizer::new(config.optimizer.clone(), &model);
        let adversary = stage.adversary(&model).map(|adversary| {
            let optimizer = Optimizer::without_average(adversary.optimizer.clone());
            (adversary, optimizer)
        });
        let (stage, model) = (Arc::new(stage), Some(model));
        let peers = Arc::new(Alone);
        Self {
            stage,
            batches: None,
            ready: None,
            model,
            optimizer,
            adversary,
            loss_scale: LossScale::new(config.precision),
            config,
            seed,
            step: 0,
            device,
            peers,
            share_threads: OnceLock::new(),
            frozen: Vec::new(),
        }
    }

    /// Keeps in saved states the first of these hashes, that of the weights of other parts with which the stage is
    /// trained. The others are what older versions kept for the same weights.
    pub(crate) fn with_frozen(self, hashes: Vec<String>) -> Self {
        Self { frozen: hashes, ..self }
    }

    /// Trains together with other processes, which do the same updates: each computes its part of the shares of a
    /// batch. Their models must be equal: [`Self::save`] one's and [`Self::restore`] it in the others.
    ///
    /// # Panics
    ///
    /// An update panics if the config's shares cannot be divided by the number of processes.
    pub fn with_peers(self, peers: Arc<dyn Peers>) -> Self {
        Self { peers, share_threads: OnceLock::new(), ..self }
    }

    /// The hashes given to [`Self::with_frozen`].
    pub(crate) fn frozen(&self) -> &[String] {
        &self.frozen
    }

    /// Updates done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Whether all updates are done.
    pub fn is_done(&self) -> bool {
        self.step >= self.config.steps
    }

    /// Does one update.
    ///
    /// # Errors
    ///
    /// A sample cannot be read. Processes that train together must not do their updates after that: see
    /// [`Self::prepare`].
    pub fn step(&mut self) -> Result<Metrics, CorpusError> {
        self.prepare()?;
        let start = Instant::now();
        let (batch, waited) = self.ready.take().expect("the batch is prepared");
        // The forward pass moves the running averages; an update that changes nothing puts them back.
        let before = running_averages(self.model());
        let mut total = self.shares(&batch, &before);
        let learning_rate = self.config.optimizer.learning_rate_at(self.step, self.config.steps);
        let model = self.model.take().expect(PRESENT);
        let (mut gradients, step) = (std::mem::take(&mut total.gradients), self.step);
        let opposing = self.adversary.as_ref().map(|(adversary, _)| {
            adversary.parameters.iter().filter_map(|id| gradients.remove_entry(id)).collect()
        });
        // The update waits for the device only here, and once more for an adversary.
        let (loss, told, norm) = total.ask(global_norm(&model, &gradients));
        let gradients = (gradients, norm.into());
        let (mut model, report) =
            self.optimizer.step_of_norm(model, gradients, step, learning_rate);
        let mut measures: BTreeMap<_, _> = self.stage.measures(&told, step).into_iter().collect();
        if let Some(scale) = &mut self.loss_scale {
            measures.insert("loss_scale", scale.scale());
            *scale = scale.follow(report.grad_norm.is_finite());
        }
        if !report.applied {
            model = set_running_averages(model, before);
        } else {
            model = move_running_averages(model, total.moves);
            if let (Some(gradients), Some((adversary, optimizer))) = (opposing, &mut self.adversary)
                && step >= adversary.start
            {
                let rate = adversary.optimizer.learning_rate_at(step, self.config.steps);
                let own = step - adversary.start;
                let (opposed, report) = optimizer.step(model, gradients, own, rate);
                measures.insert("discriminator_grad_norm", report.grad_norm);
                model = opposed;
            }
            model = self.stage.settle(model, &told, step);
            self.optimizer.average(&model, step);
        }
        self.model = Some(model);
        self.step += 1;
        let secs = (waited + start.elapsed()).as_secs_f64();
        Ok(Metrics {
            step: self.step,
            loss: loss.into(),
            grad_norm: report.grad_norm,
            learning_rate,
            applied: report.applied,
            data_wait: waited.as_secs_f64() / secs.max(f64::MIN_POSITIVE),
            secs,
            measures,
        })
    }

    /// Waits for this step's batch, which [`Self::step`] then takes. This is the only part of an update that can fail.
    ///
    /// # Errors
    ///
    /// A sample cannot be read.
    pub fn prepare(&mut self) -> Result<(), CorpusError> {
        if self.ready.is_none() {
            let start = Instant::now();
            self.ready = Some((self.batch()?, start.elapsed()));
        }
        Ok(())
    }

    /// This step's batch.
    fn batch(&mut self) -> Result<S::Batch, CorpusError> {
        let (stage, seed, size) = (&self.stage, self.seed, self.config.batch_size as u64);
        let own = self.own_shares();
        let own = own.start * self.share_size()..own.end * self.share_size();
        let batches = self.batches.get_or_insert_with(|| {
            let stage = stage.clone();
            let make: MakeBatch<S::Batch> = Arc::new(move |step| {
                stage.batch(&mut Philox::new(seed, step), step * size..(step + 1) * size, &own)
            });
            Batches::start(self.config.data_threads, self.step, &make)
        });
        let batch = batches.next();
        if batch.is_err() {
            // The step can be tried again: its batch is then made anew.
            self.batches = None;
        }
        batch
    }

    /// The shares of a batch that this process computes.
    fn own_shares(&self) -> Range<usize> {
        let (count, ranks) = (self.config.shards, self.peers.size());
        assert!(count.is_multiple_of(ranks), "{count} shares for {ranks} processes");
        let own = count / ranks;
        self.peers.rank() * own..(self.peers.rank() + 1) * own
    }

    /// Samples of a share.
    fn share_size(&self) -> usize {
        self.config.batch_size / self.config.shards
    }

    /// The sum of the shares of a batch. Each of this process's shares has threads of its own, and the config says how
    /// many are computed at a time. `before` are the model's running averages.
    fn shares(&self, batch: &S::Batch, before: &Values) -> Share {
        let (count, size, own) = (self.config.shards, self.share_size(), self.own_shares());
        let (stage, model, peers) = (&*self.stage, self.model(), &*self.peers);
        let (device, seed) = (&self.device, self.seed ^ self.step);
        let products = self.config.precision.dtype();
        let parts = (count, self.loss_scale.map_or(1.0, LossScale::scale));
        let share = |model: &S::Model, before: &Values, i: usize| {
            if stage.has_dropout() {
                device.seed(seed ^ ((i as u64) << 48));
            }
            let loss = || stage.loss(model, batch, i * size..(i + 1) * size);
            autocast(products, || Share::new(model, before, loss(), parts))
        };
        let at_once = self.config.at_once(own.len(), stage.has_dropout());
        let threads = self.share_threads.get_or_init(|| ShareThreads::new(at_once, &self.device));
        if count == 1 {
            // The only share uses the model itself, whose running averages move in the forward pass.
            return Share::sum(threads.map(vec![model], |model| share(model, &Values::new(), 0)));
        }
        let share = |(i, model): (usize, S::Model)| share(&model, before, i);
        let mut shares = Vec::new();
        for first in own.clone().step_by(at_once) {
            let turn = first..own.end.min(first + at_once);
            let models = models(model, turn.len());
            shares.extend(threads.map(turn.zip(models).collect(), share));
            // Other processes add to each share in its turn; alone, the sum so far needs no more than one share.
            if peers.size() == 1 {
                shares = vec![Share::sum(shares)];
            }
        }
        if peers.size() == 1 { Share::sum(shares) } else { Share::sum_of_all(model, shares, peers) }
    }

    /// The model with the moving average of the weights, without autodiff.
    pub fn averaged(&self) -> S::Model {
        if self.config.optimizer.keeps_average() {
            with_values(self.model(), &self.optimizer.ema)
        } else {
            self.model().valid()
        }
    }

    /// The model being trained.
    pub fn model(&self) -> &S::Model {
        self.model.as_ref().expect(PRESENT)
    }

    /// A hash (CRC-32C) of the weights, in the order in which the model is visited.
    pub(crate) fn weights_hash(&self) -> u32 {
        struct Hash(u32);
        impl ModuleVisitor for Hash {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let data = param.val().into_data();
                self.0 = crc32c::crc32c_append(self.0, data.as_bytes());
            }
        }
        let mut hash = Hash(0);
        self.model().visit(&mut hash);
        hash.0
    }

    fn is_adafactor(&self) -> bool {
        self.config.optimizer.method == Method::Adafactor
    }

    /// The state from which training can go on, as a safetensors file.
    pub fn save(&self) -> Vec<u8> {
        let part = |name: &str, module: &S::Model| {
            Checkpoint::from_tensors(name, tensors(module, KeyTable::STATES))
        };
        let optimizers = [Some(&self.optimizer), self.adversary.as_ref().map(|(_, own)| own)];
        let moments = |name: &str, of: fn(&Optimizer) -> &Values| {
            let all = optimizers.into_iter().flatten().flat_map(of);
            let all: Values = all.map(|(id, value)| (*id, value.clone())).collect();
            if self.is_adafactor() {
                moments::write(name, self.model(), &all)
            } else {
                part(name, &with_values(self.model(), &all))
            }
        };
        let mut parts = vec![
            ("weights", part("weights", self.model())),
            ("first", moments("first", |optimizer| &optimizer.first)),
            ("second", moments("second", |optimizer| &optimizer.second)),
        ];
        if self.config.optimizer.keeps_average() {
            parts.push(("ema", part("ema", &self.averaged())));
        }
        let header = Header {
            format: FORMAT,
            step: self.step,
            seed: self.seed,
            adafactor: self.is_adafactor(),
            muon: self.config.optimizer.method == Method::Muon,
            loss_scale: self.loss_scale,
            precision: Some(self.config.precision),
            frozen: self.frozen.first().cloned(),
        };
        let header = serde_json::to_string(&header).expect("plain values are JSON");
        let metadata = HashMap::from([(HEADER_KEY.to_owned(), header)]);
        let parts = parts.iter().map(|(name, part)| (format!("{name}/"), part));
        Checkpoint::write(parts, WeightDtype::F32, Some(metadata)).expect("all tensors are f32")
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    ///
    /// The file is no training state; it has another seed; its moments are Adafactor's but the config has another
    /// method, or the other way round; Muon made it and the config has AdamW; or its tensors do not fit the model or are
    /// not finite.
    pub fn restore(mut self, name: &str, state: Arc<dyn ReadBytes>) -> Result<Self, RestoreError> {
        let own = (self.seed, self.config.optimizer.method);
        let header = check_state(name, state.clone(), self.model(), own)?;
        let unfit = |error| RestoreError::of(name, error);
        let all = Checkpoint::parse(name, state).map_err(unfit)?;
        let part = |part: &str| all.under(&format!("{part}/"));
        let template = self.model().clone();
        let read = |name: &str| {
            let module = load(template.valid(), &part(name), KeyTable::STATES).map_err(unfit)?;
            Ok::<_, RestoreError>(values(&module))
        };
        let read_moments = |name: &str| {
            if header.adafactor {
                let device = self.device.clone().inner();
                moments::read(&template, &part(name), &device).map_err(unfit)
            } else {
                read(name)
            }
        };
        self.optimizer.first = read_moments("first")?;
        self.optimizer.second = read_moments("second")?;
        if let Some((adversary, optimizer)) = &mut self.adversary {
            let take = |moments: &mut Values| -> Values {
                adversary.parameters.iter().filter_map(|id| moments.remove_entry(id)).collect()
            };
            optimizer.first = take(&mut self.optimizer.first);
            optimizer.second = take(&mut self.optimizer.second);
        }
        if self.config.optimizer.keeps_average() {
            // The average of a run that kept none begins with the weights.
            let name = if part("ema").names().next().is_some() { "ema" } else { "weights" };
            self.optimizer.ema = read(name)?;
        }
        let model = load(template, &part("weights"), KeyTable::STATES).map_err(unfit)?;
        self.model = Some(model);
        self.step = header.step;
        // A run that had another precision goes on with a new scale, or without one.
        self.loss_scale = self.loss_scale.map(|new| header.loss_scale.unwrap_or(new));
        (self.batches, self.ready) = (None, None);
        Ok(self)
    }
}

/// The header of a state, after a check of all of its tensors.
///
/// # Errors
///
/// As [`Trainer::restore`] into a trainer of `model`, the seed and the method.
pub(crate) fn check_state<M: Module>(
    name: &str,
    state: Arc<dyn ReadBytes>,
    model: &M,
    (seed, method): (u64, Method),
) -> Result<Header, RestoreError> {
    let header = read_header(name, &*state)?;
    header.check(name, seed, method)?;
    let unfit = |error| RestoreError::of(name, error);
    let all = Checkpoint::parse(name, state).map_err(unfit)?;
    let expected = shapes(model, KeyTable::STATES);
    for part in ["weights", "first", "second", "ema"] {
        let own = all.under(&format!("{part}/")).named(&format!("{name}: {part}"));
        let has_none = own.names().next().is_none();
        match part {
            // A state of a run that keeps no average has no such tensors.
            "ema" if has_none => {}
            "first" | "second" if header.adafactor => moments::check(model, &own).map_err(unfit)?,
            _ => check_shapes(&expected, &own).map_err(unfit)?,
        }
        let mut not_finite = Vec::new();
        for tensor in own.names() {
            let mut is_finite = true;
            let look = |values: &[f32]| is_finite &= values.iter().all(|value| value.is_finite());
            own.pieces(tensor, look).map_err(unfit)?;
            if !is_finite {
                not_finite.push(tensor.to_owned());
            }
        }
        if !not_finite.is_empty() {
            let part = own.part().to_owned();
            return Err(RestoreError::Load(LoadError::NotFinite { part, names: not_finite }));
        }
    }
    Ok(header)
}

/// The header of a state; fails if the file is no state, or not whole.
pub(crate) fn read_header(name: &str, state: &dyn ReadBytes) -> Result<Header, RestoreError> {
    let fail = |reason: String| RestoreError::NoState { name: name.to_owned(), reason };
    let (metadata, _) = checkpoint::read_header(name, state).map_err(|error| match error {
        LoadError::Format { reason, .. } => fail(reason),
        error => RestoreError::Load(error),
    })?;
    let header = metadata.metadata().as_ref().and_then(|map| map.get(HEADER_KEY));
    let header = header.ok_or_else(|| fail("a safetensors file of other tensors".to_owned()))?;
    let header: Header = serde_json::from_str(header).map_err(|error| fail(error.to_string()))?;
    if header.format != FORMAT {
        let (name, found) = (name.to_owned(), header.format);
        return Err(RestoreError::Format { name, found });
    }
    Ok(header)
}
