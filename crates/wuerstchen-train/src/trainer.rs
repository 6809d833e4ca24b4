//! The training loop's body: one update, and the state that lets it go on later.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use burn::module::Module;
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use wuerstchen::noise::Philox;
use wuerstchen::weights::{KeyTable, load, tensors};
use wuerstchen::{Checkpoint, LoadError, WeightDtype};

use crate::batches::{Batches, MakeBatch};
use crate::config::UpdateConfig;
use crate::corpus::CorpusError;
use crate::optimizer::{Optimizer, Values, collect_gradients, values, with_values};
use crate::stages::Stage;

/// Trains one stage, one update at a time.
///
/// All random numbers are counted from the seed and the number of the step, so that the state is
/// the weights, the moments and one number. Batches are made ahead, on threads of their own.
pub struct Trainer<S: Stage> {
    stage: Arc<S>,
    /// The batches from the next step on; `None` before the first update and after an error.
    batches: Option<Batches<S::Batch>>,
    /// `None` only while the optimizer has it, which changes it in place.
    model: Option<S::Model>,
    optimizer: Optimizer,
    config: UpdateConfig,
    seed: u64,
    step: u64,
    device: Device,
}

/// What one update did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
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
}

/// What a saved state says about itself.
#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    step: u64,
    seed: u64,
}

const FORMAT: u32 = 1;
/// Why a trainer has a model.
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
    /// The tensors do not fit the model.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl<S: Stage> Trainer<S> {
    /// Starts training `model`, which lives on a device with autodiff.
    pub fn new(stage: S, model: S::Model, config: UpdateConfig, seed: u64, device: Device) -> Self {
        let optimizer = Optimizer::new(config.optimizer.clone(), &model);
        let (stage, model) = (Arc::new(stage), Some(model));
        Self { stage, batches: None, model, optimizer, config, seed, step: 0, device }
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
    /// A sample cannot be read.
    pub fn step(&mut self) -> Result<Metrics, CorpusError> {
        let start = Instant::now();
        let batch = self.batch()?;
        let waited = start.elapsed();
        // Only dropout draws from the device's own generator.
        self.device.seed(self.seed ^ self.step);
        let (gradients, loss) = self.gradients(&batch);
        let learning_rate = self.config.optimizer.learning_rate_at(self.step, self.config.steps);
        let model = self.model.take().expect(PRESENT);
        let (model, report) = self.optimizer.step(model, gradients, self.step, learning_rate);
        self.model = Some(model);
        self.step += 1;
        let secs = start.elapsed().as_secs_f64();
        Ok(Metrics {
            step: self.step,
            loss,
            grad_norm: report.grad_norm,
            learning_rate,
            applied: report.applied,
            data_wait: waited.as_secs_f64() / secs.max(f64::MIN_POSITIVE),
            secs,
        })
    }

    /// This step's batch.
    fn batch(&mut self) -> Result<S::Batch, CorpusError> {
        let (stage, seed, size) = (&self.stage, self.seed, self.config.batch_size as u64);
        let batches = self.batches.get_or_insert_with(|| {
            let stage = stage.clone();
            let make: MakeBatch<S::Batch> = Arc::new(move |step| {
                stage.batch(&mut Philox::new(seed, step), step * size..(step + 1) * size)
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

    /// The gradients and the loss of a batch, each shard of it on its own thread.
    fn gradients(&self, batch: &S::Batch) -> (Values, f64) {
        let shards = self.config.shards;
        let size = self.config.batch_size / shards;
        let (stage, model, device) = (&*self.stage, self.model(), &self.device);
        let shard = |range: Range<usize>| {
            // Its own graph: burn's autodiff would wait for the other shards' otherwise.
            let model = match shards {
                1 => model.clone(),
                _ => model.clone().fork(device),
            };
            let loss = stage.loss(&model, batch, range);
            let gradients = collect_gradients(&model, &loss.backward());
            (gradients, f64::from(loss.into_scalar::<f32>()))
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let shard = &shard;
            let run = |i| scope.spawn(move || shard(i * size..(i + 1) * size));
            let threads: Vec<_> = (1..shards).map(run).collect();
            let first = shard(0..size);
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            std::iter::once(first).chain(threads.into_iter().map(join)).collect()
        });
        let share = 1.0 / shards as f64;
        let (mut total, mut loss) = (Values::new(), 0.0);
        for (gradients, shard_loss) in results {
            loss += shard_loss * share;
            for (id, gradient) in gradients {
                let gradient = gradient * share;
                let sum = match total.remove(&id) {
                    Some(sum) => sum + gradient,
                    None => gradient,
                };
                total.insert(id, sum);
            }
        }
        (total, loss)
    }

    /// The model with the moving average of the weights, without autodiff.
    pub fn averaged(&self) -> S::Model {
        with_values(self.model(), &self.optimizer.ema)
    }

    /// The model being trained.
    pub fn model(&self) -> &S::Model {
        self.model.as_ref().expect(PRESENT)
    }

    /// Everything that is needed to go on, as a safetensors file.
    pub fn save(&self) -> Vec<u8> {
        let part = |name: &str, module: &S::Model| {
            Checkpoint::from_tensors(name, tensors(module, KeyTable::FIELDS))
        };
        let of = |values| with_values(self.model(), values);
        let parts = [
            ("weights", part("weights", self.model())),
            ("ema", part("ema", &self.averaged())),
            ("first", part("first", &of(&self.optimizer.first))),
            ("second", part("second", &of(&self.optimizer.second))),
        ];
        let header = Header { format: FORMAT, step: self.step, seed: self.seed };
        let header = serde_json::to_string(&header).expect("three numbers are JSON");
        let metadata = HashMap::from([(HEADER_KEY.to_owned(), header)]);
        let parts = parts.iter().map(|(name, part)| (format!("{name}/"), part));
        Checkpoint::write(parts, WeightDtype::F32, Some(metadata)).expect("all tensors are f32")
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    ///
    /// The file is no training state, of another seed, or its tensors do not fit the model.
    pub fn restore(mut self, name: &str, bytes: Vec<u8>) -> Result<Self, RestoreError> {
        let header = read_header(name, &bytes)?;
        if header.seed != self.seed {
            let (name, found, expected) = (name.to_owned(), header.seed, self.seed);
            return Err(RestoreError::Seed { name, found, expected });
        }
        let all = Checkpoint::parse(name, Arc::new(bytes))?;
        let part = |part: &str| all.under(&format!("{part}/"));
        let template = self.model().clone();
        let read = |name: &str| {
            load(template.valid(), &part(name), KeyTable::FIELDS).map(|module| values(&module))
        };
        self.optimizer.ema = read("ema")?;
        self.optimizer.first = read("first")?;
        self.optimizer.second = read("second")?;
        self.model = Some(load(template, &part("weights"), KeyTable::FIELDS)?);
        self.step = header.step;
        self.batches = None;
        Ok(self)
    }
}

fn read_header(name: &str, bytes: &[u8]) -> Result<Header, RestoreError> {
    let fail = |reason: String| RestoreError::NoState { name: name.to_owned(), reason };
    let metadata = safetensors::SafeTensors::read_metadata(bytes);
    let (_, metadata) = metadata.map_err(|error| fail(error.to_string()))?;
    let header = metadata.metadata().as_ref().and_then(|map| map.get(HEADER_KEY));
    let header = header.ok_or_else(|| fail("a safetensors file of other tensors".to_owned()))?;
    let header: Header = serde_json::from_str(header).map_err(|error| fail(error.to_string()))?;
    if header.format != FORMAT {
        let (name, found) = (name.to_owned(), header.format);
        return Err(RestoreError::Format { name, found });
    }
    Ok(header)
}
