//! The updates of a stage: states, metrics, sample grids, and reports to the listener.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use half::f16;
use wuerstchen::checkpoint::ReadBytes;
use wuerstchen::{ConfigError, Image};

use super::tensorboard;
use super::{Event, RunError, Start};
use crate::config::{StageName, UpdateConfig};
use crate::peers::{Alone, Peers, agree};
use crate::stages::Stage;
use crate::store::{METRICS, Store, StoreError, with_causes};
use crate::trainer::{Metrics, Trainer, check_state, read_header};

/// Time between saved states.
const SAVE_EVERY: Duration = Duration::from_secs(120);

/// Steps between comparisons of the weights of processes that train together, because different devices may round
/// differently.
const COMPARE_EVERY: u64 = 100;

/// Number of steps in a row that change nothing after which a run has diverged.
const MAX_SKIPPED: u32 = 100;

/// Pictures in a row of a sample grid, at most.
pub(crate) const GRID_SIDE: usize = 8;

/// A saved state, and what errors call it.
type State = (String, Arc<dyn ReadBytes>);

/// The listener of a run.
type Listener = Box<dyn FnMut(&Event<'_>) -> ControlFlow<()>>;

/// The store, the other processes and the listener of a run.
pub(crate) struct Session {
    pub(crate) store: Arc<dyn Store>,
    /// The processes that train together.
    pub(crate) peers: Arc<dyn Peers>,
    listener: Option<Listener>,
    /// Whether the listener has asked to stop the stage.
    stops: bool,
}

/// The updates of a stage.
pub(crate) struct Job<'a> {
    pub(crate) stage: StageName,
    /// The folder of its files in the store.
    pub(crate) folder: &'static str,
    pub(crate) config: &'a UpdateConfig,
    pub(crate) start: Start,
    /// Pictures in a row of a sample grid.
    pub(crate) columns: usize,
}

impl Session {
    /// A session that nobody listens to.
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, peers: Arc::new(Alone), listener: None, stops: false }
    }

    /// Tells `listener` what happens.
    pub(crate) fn listen(&mut self, listener: impl FnMut(&Event<'_>) -> ControlFlow<()> + 'static) {
        self.listener = Some(Box::new(listener));
    }

    /// Forgets that the listener has asked to stop.
    pub(crate) fn begin(&mut self) {
        self.stops = false;
    }

    pub(crate) fn tell(&mut self, event: &Event<'_>) {
        if let Some(listener) = &mut self.listener {
            self.stops |= listener(event).is_break();
        }
    }

    /// Whether the listener has asked to stop, and no other process has to hear of it.
    pub(crate) fn stops_alone(&self) -> bool {
        self.stops && self.peers.size() == 1
    }

    /// Whether this process keeps the run's files.
    pub(crate) fn leads(&self) -> bool {
        self.peers.rank() == 0
    }

    /// Waits until all processes come here or to another place where they agree; fails if one has failed.
    pub(crate) fn agree<T>(&self, own: Result<T, RunError>) -> Result<T, RunError> {
        self.agree_to_stop(own, false).map(|(value, _)| value)
    }

    /// As [`Self::agree`], but also returns whether one of the processes wishes to stop.
    fn agree_to_stop<T>(
        &self,
        own: Result<T, RunError>,
        wishes_to_stop: bool,
    ) -> Result<(T, bool), RunError> {
        if self.peers.size() == 1 {
            return own.map(|value| (value, wishes_to_stop));
        }
        let told = own.as_ref().map(|_| wishes_to_stop).map_err(|error| with_causes(error));
        match (agree(&*self.peers, told), own) {
            (Ok(stops), Ok(value)) => Ok((value, stops)),
            (Ok(_), Err(error)) => Err(error),
            (Err(failure), own) => Err(RunError::Failed { failure, own: own.err().map(Box::new) }),
        }
    }

    /// Ends what the processes do together: an error that only this process knows of reaches the others when they next
    /// agree.
    pub(crate) fn conclude<T>(&self, done: Result<T, RunError>) -> Result<T, RunError> {
        match done {
            Err(RunError::Failed { .. }) => done,
            done => self.agree(done),
        }
    }

    /// Fails if this process has been started with other lines of text than rank 0.
    pub(crate) fn compare(&self, own: &str) -> Result<(), RunError> {
        if self.peers.size() == 1 {
            return Ok(());
        }
        let mut expected = own.as_bytes().to_vec();
        self.peers.broadcast(0, &mut expected);
        let expected = String::from_utf8_lossy(&expected);
        let (mut all, mut own) = (expected.lines(), own.lines());
        let same = loop {
            match (all.next(), own.next()) {
                (None, None) => break Ok(()),
                (expected, found) if expected == found => {}
                (expected, found) => {
                    let [expected, found] =
                        [expected, found].map(|line| line.unwrap_or("nothing more").to_owned());
                    break Err(RunError::Differs { expected, found });
                }
            }
        };
        self.agree(same)
    }

    /// Copies files from rank 0's store into those of the others.
    pub(crate) fn share_files(&self, names: &[String]) -> Result<(), RunError> {
        if self.peers.size() == 1 {
            return Ok(());
        }
        for name in names {
            let bytes = if self.leads() { self.store.read(name) } else { Ok(None) };
            // Empty bytes stand for a file that is not there, as no file is empty.
            let mut bytes = self.agree(bytes.map_err(RunError::from))?.unwrap_or_default();
            self.peers.broadcast(0, &mut bytes);
            if !self.leads() && !bytes.is_empty() {
                self.store.write(name, &bytes)?;
            }
        }
        Ok(())
    }

    /// Fails if a stage that starts anew would overwrite a state, if `model` cannot go on from one, if its shares of a
    /// batch cannot be divided equally among the processes, or if the device cannot multiply in its precision.
    pub(crate) fn check_start<M: Module>(
        &self,
        (stage, folder): (StageName, &str),
        start: &Start,
        (updates, seed, device): (&UpdateConfig, u64, &Device),
        model: &M,
    ) -> Result<(), RunError> {
        updates.precision.check(stage.part(), device)?;
        let size = self.peers.size();
        if !updates.shards.is_multiple_of(size) {
            let expected = format!("a multiple of the {size} processes, such as {size}");
            return Err(ConfigError::new(stage.part(), "shards", expected, updates.shards).into());
        }
        let name = state_name(folder);
        if let Some(own) = self.store.open(&name)? {
            let is_kept = match start {
                Start::Anew => false,
                Start::Resume => true,
                Start::State { bytes, .. } => same_bytes(&*own, &**bytes),
            };
            if !is_kept {
                let state = self.store.describe(&name);
                return Err(RunError::StateExists { stage, state });
            }
        }
        if let Some((name, state)) = self.state(folder, start)? {
            check_state(&name, state, model, (seed, updates.optimizer.method))?;
        }
        Ok(())
    }

    /// The state from which a stage starts, and what errors call it; `None` where there is none.
    fn state(&self, folder: &str, start: &Start) -> Result<Option<State>, RunError> {
        Ok(match start {
            Start::Anew => None,
            Start::Resume => {
                let name = state_name(folder);
                self.store.open(&name)?.map(|state| (self.store.describe(&name), state))
            }
            Start::State { name, bytes } => Some((name.clone(), bytes.clone())),
        })
    }

    /// What a stage that has diverged can go on from, for people.
    fn kept(&self, folder: &str) -> String {
        let name = state_name(folder);
        if self.store.contains(&name) {
            format!("what was saved before is kept in {}", self.store.describe(&name))
        } else {
            "nothing was saved before".to_owned()
        }
    }

    /// The trainer with the state from which the job starts, if there is one. Removes the metrics of steps that come
    /// again, unless the state is of another run, and tells the listener from where the stage goes on.
    fn begin_updates<S: Stage>(
        &mut self,
        job: &Job<'_>,
        trainer: Trainer<S>,
        is_foreign: bool,
    ) -> Result<Trainer<S>, RunError> {
        let Job { stage, folder, config, ref start, .. } = *job;
        let begun = self.state(folder, start)?;
        let header = begun.as_ref().map(|(name, state)| read_header(name, &**state)).transpose()?;
        let trainer = self.restore(trainer, begun)?;
        let step = trainer.steps_done();
        if header.is_none() && self.store.contains(&metrics_name(folder)) {
            self.tell(&Event::NoState { stage });
        }
        if !is_foreign && self.leads() {
            self.forget_steps_after(folder, step)?;
        }
        if let Some(header) = header {
            if let Some(from) = header.precision.filter(|from| *from != config.precision) {
                self.tell(&Event::Precision { stage, from, to: config.precision });
            }
            if header.has_other_parts(trainer.frozen()) {
                self.tell(&Event::OtherParts { stage });
            }
        }
        self.tell(&Event::Begin { stage, step, steps: config.steps });
        Ok(trainer)
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
}

/// Does the updates of a stage. `sample` makes the pictures of a grid, and `save` keeps the trained weights. If several
/// processes train together, only rank 0 calls them.
pub(crate) fn updates<H: AsMut<Session>, S: Stage>(
    host: &mut H,
    job: Job<'_>,
    trainer: Trainer<S>,
    sample: impl Fn(&H, &S::Model) -> Result<Vec<Image>, RunError>,
    save: impl Fn(&H, &S::Model) -> Result<(), RunError>,
) -> Result<ControlFlow<()>, RunError> {
    let session = host.as_mut();
    let Job { stage, folder, config, columns, .. } = job;
    let (store, state, leads) = (session.store.clone(), state_name(folder), session.leads());
    // A state that is named may be the run's own.
    let is_foreign = matches!(job.start, Start::State { .. }) && !store.contains(&state);
    let mut trainer = session.begin_updates(&job, trainer, is_foreign)?;
    let is_alone = session.peers.size() == 1;
    let first = trainer.steps_done();
    if leads && trainer.is_done() {
        // No update is left to do, but the files that a run has after its last update may be missing.
        if is_foreign {
            store.write(&state, &trainer.save())?;
        }
        save(host, &trainer.averaged())?;
    }
    let (begun, mut saved) = (Instant::now(), Instant::now());
    // TensorBoard takes the files of one folder for one run. It would show the steps after the last saved state twice.
    let now = seconds_since_1970();
    let events = format!("{folder}/events.out.tfevents.{now:.0}");
    if leads && !trainer.is_done() {
        store.append(&events, &tensorboard::header(now))?;
        store.append(&events, &tensorboard::restart(first + 1, now))?;
    }
    // Steps in a row that changed nothing.
    let mut skipped = 0;
    while !trainer.is_done() {
        let session = host.as_mut();
        let ready = trainer.prepare().map_err(RunError::Sample);
        let agreed = match session.agree_to_stop(ready, session.stops) {
            Ok(((), stops)) => stops,
            Err(error) => {
                // As below: while steps are skipped, an earlier state is kept, and weights that are NaN or infinite are
                // never saved.
                let is_sound = skipped == 0 || !store.contains(&state);
                let is_saved = leads && is_sound && can_be_kept(trainer.model());
                let saved = if is_saved { store.write(&state, &trainer.save()) } else { Ok(()) };
                return Err(if_not_saved(error, saved));
            }
        };
        let metrics = trainer.step().map_err(RunError::Sample)?;
        let last = trainer.is_done();
        // Before rank 0 writes anything: if that fails, the others must not be in another exchange than rank 0 is.
        if !is_alone && (metrics.step.is_multiple_of(COMPARE_EVERY) || last) {
            let hash = trainer.weights_hash();
            session
                .compare(&format!("weights of the hash {hash:08x} after step {}", metrics.step))?;
        }
        let samples = (metrics.step - first) * config.batch_size as u64;
        let samples_per_sec = samples as f64 / begun.elapsed().as_secs_f64();
        if leads {
            session.log(folder, &metrics, samples_per_sec)?;
            store.append(&events, &events_of(&metrics, samples_per_sec))?;
        }
        skipped = if metrics.applied { 0 } else { skipped + 1 };
        // A short run may end before that many steps.
        let is_lost = last && 2 * u64::from(skipped) >= metrics.step;
        if skipped == MAX_SKIPPED || skipped > 0 && is_lost {
            return Err(RunError::Diverged { stage, steps: skipped, step: metrics.step });
        }
        session.tell(&Event::Update { metrics: &metrics, samples_per_sec });
        // Several processes agree before the next update whether to stop.
        let stops = if is_alone { session.stops } else { agreed };
        let is_sampled = leads && (metrics.step % config.sample_every == 0 || last);
        // While steps are skipped, no state is saved only because it is due: a run that diverges can then go on from an
        // earlier one.
        let is_due = saved.elapsed() >= SAVE_EVERY && skipped == 0;
        let is_saved = leads && (last || stops || is_due);
        if is_sampled || is_saved {
            let (averaged, step, kept) = (trainer.averaged(), metrics.step, session.kept(folder));
            if !can_be_kept(trainer.model()) || !can_be_kept(&averaged) {
                return Err(RunError::NotFinite { stage, what: "the weights", step, kept });
            }
            if is_sampled {
                let samples = sample(host, &averaged).map_err(|error| match error {
                    RunError::Generate(wuerstchen::Error::NotFinite { .. }) => {
                        RunError::NotFinite { stage, what: "the samples", step, kept }
                    }
                    error => error,
                });
                let name = format!("{folder}/samples-{step:06}.png");
                let grid = Image::grid(&samples?, columns);
                store.append(&events, &keep_samples(&*store, &name, &grid, step)?)?;
            }
            if is_saved {
                store.write(&state, &trainer.save())?;
                save(host, &averaged)?;
                saved = Instant::now();
                host.as_mut().tell(&Event::Saved);
            }
        }
        if stops && !last {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// An error that ends a run, with the reason why the state could not be saved then either.
fn if_not_saved(error: RunError, saved: Result<(), StoreError>) -> RunError {
    match (error, saved) {
        (error, Ok(())) => error,
        (RunError::Failed { mut failure, own }, Err(cannot)) => {
            failure.reason += &format!("; and the state cannot be saved: {cannot}");
            RunError::Failed { failure, own }
        }
        (_, Err(cannot)) => cannot.into(),
    }
}

/// Writes a grid of samples; returns the event that shows it in TensorBoard.
fn keep_samples(
    store: &dyn Store,
    name: &str,
    grid: &Image,
    step: u64,
) -> Result<Vec<u8>, RunError> {
    let png = grid.to_png().map_err(|error| RunError::Picture(error.to_string()))?;
    store.write(name, &png)?;
    let size = [grid.width, grid.height];
    Ok(tensorboard::picture(step, seconds_since_1970(), "samples", &png, size))
}

impl Session {
    /// The trainer at the start of a stage; if several processes train together, all get rank 0's state.
    fn restore<S: Stage>(
        &self,
        trainer: Trainer<S>,
        begun: Option<State>,
    ) -> Result<Trainer<S>, RunError> {
        let trainer = trainer.with_peers(self.peers.clone());
        self.agree(Ok(()))?;
        self.compare(&format!("{} parameters", trainer.model().num_params()))?;
        if !self.leads() {
            self.agree(Ok(()))?;
            let mut bytes = Vec::new();
            self.peers.broadcast(0, &mut bytes);
            return Ok(trainer.restore("rank 0's state", Arc::new(bytes))?);
        }
        let trainer = match begun {
            Some((name, state)) => trainer.restore(&name, state).map_err(RunError::from),
            None => Ok(trainer),
        };
        let trainer = self.agree(trainer)?;
        if self.peers.size() > 1 {
            self.peers.broadcast(0, &mut trainer.save());
        }
        Ok(trainer)
    }
}

/// Whether all weights are numbers that f16 holds, in which the model is written.
fn can_be_kept(model: &impl Module) -> bool {
    struct Kept(bool);
    impl ModuleVisitor for Kept {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let data = param.val().into_data();
            let values = data.as_slice::<f32>().expect("weights are f32");
            self.0 = self.0 && values.iter().all(|value| f16::from_f32(*value).is_finite());
        }
    }
    let mut all = Kept(true);
    model.visit(&mut all);
    all.0
}

/// Whether two files can be read and are the same.
fn same_bytes(one: &dyn ReadBytes, other: &dyn ReadBytes) -> bool {
    const PIECE: usize = 1 << 24;
    let length = one.length();
    let is_same = |start: usize| {
        let range = start..length.min(start + PIECE);
        matches!((one.read(range.clone()), other.read(range)), (Ok(one), Ok(other)) if one == other)
    };
    other.length() == length && (0..length).step_by(PIECE).all(is_same)
}

pub(crate) fn state_name(folder: &str) -> String {
    format!("{folder}/state.safetensors")
}

/// The file of a stage's metrics: a line of JSON for every step.
pub(crate) fn metrics_name(folder: &str) -> String {
    format!("{folder}/{METRICS}")
}

/// The metrics of an update for `TensorBoard`.
fn events_of(metrics: &Metrics, samples_per_sec: f64) -> Vec<u8> {
    let mut values = vec![
        ("loss", metrics.loss),
        ("grad_norm", metrics.grad_norm),
        ("learning_rate", metrics.learning_rate),
        ("samples_per_sec", samples_per_sec),
        ("data_wait", metrics.data_wait),
    ];
    values.extend(metrics.measures.iter().map(|(&name, &value)| (name, value)));
    tensorboard::scalars(metrics.step, seconds_since_1970(), &values)
}

fn seconds_since_1970() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |time| time.as_secs_f64())
}
