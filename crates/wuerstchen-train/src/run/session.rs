//! The updates of a stage: states, metrics, sample grids, and who hears of them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use wuerstchen::Image;

use super::{Event, RunError, Start};
use crate::config::{StageName, UpdateConfig};
use crate::stages::Stage;
use crate::store::Store;
use crate::tensorboard;
use crate::trainer::{Metrics, Trainer};

/// Time between saved states.
const SAVE_EVERY: Duration = Duration::from_secs(120);

/// Steps in a row that change nothing, after which nothing better will come.
const MAX_SKIPPED: u32 = 100;

/// Pictures in a row of a sample grid.
pub(crate) const GRID_SIDE: usize = 8;

/// What a run's listener is.
type Listener = Box<dyn FnMut(&Event<'_>) -> ControlFlow<()>>;

/// Where a run keeps its files, and who hears of what happens.
pub(crate) struct Session {
    pub(crate) store: Arc<dyn Store>,
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
}

impl Session {
    /// A session that nobody listens to.
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, listener: None, stops: false }
    }

    /// Reports what happens to `listener`.
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

    /// Fails if a stage that starts anew would overwrite a state.
    pub(crate) fn check_start(
        &self,
        stage: StageName,
        folder: &str,
        start: &Start,
    ) -> Result<(), RunError> {
        let name = state_name(folder);
        if matches!(start, Start::Anew) && self.store.contains(&name) {
            let state = self.store.describe(&name);
            return Err(RunError::StateExists { stage, state });
        }
        Ok(())
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

/// Does the updates of a stage. `sample` makes the pictures of a grid, `save` keeps the trained weights.
pub(crate) fn updates<H: AsMut<Session>, S: Stage>(
    host: &mut H,
    Job { stage, folder, config, start }: Job<'_>,
    mut trainer: Trainer<S>,
    sample: impl Fn(&H, &S::Model) -> Result<Vec<Image>, RunError>,
    save: impl Fn(&H, &S::Model) -> Result<(), RunError>,
) -> Result<ControlFlow<()>, RunError> {
    let (store, state) = (host.as_mut().store.clone(), state_name(folder));
    let resumes = matches!(start, Start::Resume);
    trainer = match start {
        Start::Anew => trainer,
        Start::Resume => match store.read(&state)? {
            Some(bytes) => trainer.restore(&store.describe(&state), bytes)?,
            None => trainer,
        },
        Start::State { name, bytes } => trainer.restore(&name, bytes)?,
    };
    let first = trainer.steps_done();
    if resumes {
        host.as_mut().forget_steps_after(folder, first)?;
    }
    host.as_mut().tell(&Event::Begin { stage, step: first, steps: config.steps });
    let (begun, mut saved) = (Instant::now(), Instant::now());
    // TensorBoard takes the files of one folder for one run, and of a step the last that is told.
    let now = seconds_since_1970();
    let events = format!("{folder}/events.out.tfevents.{now:.0}");
    store.append(&events, &tensorboard::header(now))?;
    // Steps in a row that changed nothing.
    let mut skipped = 0;
    while !trainer.is_done() {
        let metrics = match trainer.step() {
            Ok(metrics) => metrics,
            Err(error) => {
                store.write(&state, &trainer.save())?;
                return Err(RunError::Sample(error));
            }
        };
        let samples = (metrics.step - first) * config.batch_size as u64;
        let samples_per_sec = samples as f64 / begun.elapsed().as_secs_f64();
        host.as_mut().log(folder, &metrics, samples_per_sec)?;
        store.append(&events, &events_of(&metrics, samples_per_sec))?;
        skipped = if metrics.applied { 0 } else { skipped + 1 };
        if skipped == MAX_SKIPPED {
            return Err(RunError::Diverged { stage, steps: MAX_SKIPPED, step: metrics.step });
        }
        host.as_mut().tell(&Event::Update { metrics: &metrics, samples_per_sec });
        let stops = host.as_mut().stops;
        let last = trainer.is_done();
        if metrics.step % config.sample_every == 0 || last {
            let samples = sample(host, &trainer.averaged()).map_err(|error| match error {
                RunError::Generate(wuerstchen::Error::NotFinite { .. }) => {
                    RunError::NotFinite { stage, step: metrics.step }
                }
                error => error,
            });
            let grid = Image::grid(&samples?, GRID_SIDE);
            let png = grid.to_png().map_err(|error| RunError::Picture(error.to_string()))?;
            store.write(&format!("{folder}/samples-{:06}.png", metrics.step), &png)?;
            let (size, now) = ([grid.width, grid.height], seconds_since_1970());
            let picture = tensorboard::picture(metrics.step, now, "samples", &png, size);
            store.append(&events, &picture)?;
        }
        // What was saved before the steps were skipped is where a run that diverges can go on from.
        let is_due = saved.elapsed() >= SAVE_EVERY && skipped == 0;
        if last || stops || is_due {
            store.write(&state, &trainer.save())?;
            save(host, &trainer.averaged())?;
            saved = Instant::now();
            host.as_mut().tell(&Event::Saved);
        }
        if stops && !last {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn state_name(folder: &str) -> String {
    format!("{folder}/state.safetensors")
}

/// The file of a stage's metrics: a line of JSON for every step.
fn metrics_name(folder: &str) -> String {
    format!("{folder}/metrics.jsonl")
}

/// The metrics of an update for `TensorBoard`.
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
