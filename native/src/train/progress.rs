//! What a training run shows on stderr, and when it stops.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use wuerstchen_train::{Event, StageName};

use crate::terminal::{counted, is_silent};

/// Signals that follow each other within this time are one request, because `timeout` and other programs signal a
/// program and then its whole group.
const ONE_REQUEST: Duration = Duration::from_millis(500);

/// The progress of a run.
pub(super) struct TrainProgress {
    bar: ProgressBar,
    /// Whether somebody has pressed Ctrl-C, or asked the program to end in another way.
    interrupted: Arc<AtomicBool>,
    /// When the run has to stop.
    deadline: Option<Instant>,
}

impl TrainProgress {
    /// Listens to Ctrl-C and to other signals that ask a program to end. A second signal ends it without saving.
    pub(super) fn new(deadline: Option<Instant>) -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let (handler, mut first) = (interrupted.clone(), None);
        let on_signal = move || {
            handler.store(true, Ordering::Relaxed);
            if first.get_or_insert_with(Instant::now).elapsed() > ONE_REQUEST {
                std::process::exit(130);
            }
        };
        ctrlc::set_handler(on_signal).context("cannot listen to Ctrl-C")?;
        Ok(Self { bar: ProgressBar::hidden(), interrupted, deadline })
    }

    /// Shows an event; breaks if the run has to stop.
    pub(super) fn show(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        match *event {
            Event::Partial { stage, cached, pictures } => tell_partial(stage, cached, pictures),
            Event::Bucket { .. } => tell_bucket(event),
            Event::Caching { what, done, scenes } => self.show_caching(what, done, scenes),
            Event::EmbeddingScale { spread, scale } => {
                tell!("the image embeddings spread by {spread:.2}: embedding_scale = {scale}");
            }
            Event::Precision { stage, from, to } => {
                let (stage, from, to) = (stage.as_str(), from.name(), to.name());
                tell!("stage {stage} has been trained in {from}, and goes on in {to}");
            }
            Event::NoState { stage } => {
                let stage = stage.as_str();
                tell!(
                    "stage {stage} has been trained in this folder before, but its state is not there: it begins anew, \
                     and replaces the metrics and the weights"
                );
            }
            Event::GivenWeights { stage } => {
                let stage = stage.as_str();
                tell!(
                    "stage {stage} starts from the weights of the model that --init has named before"
                );
            }
            Event::OtherParts { stage } => {
                let stage = stage.as_str();
                tell!(
                    "stage {stage} has been trained with other weights of the stages before it, and goes on with those \
                     that are there now"
                );
            }
            Event::SmallGrid { stage, pictures, size: [width, height] } => {
                let (stage, pictures) = (stage.as_str(), counted(pictures, "picture"));
                tell!(
                    "the sample grids of stage {stage} are of {pictures}: more of {width} x {height} pixels take \
                     more memory than machines have"
                );
            }
            Event::Begin { stage, step, steps } => {
                if step >= steps {
                    let (stage, done) = (stage.as_str(), counted(step, "step"));
                    tell!(
                        "stage {stage} has done {done} before, and the config says {steps}: nothing is left to train"
                    );
                }
                self.bar.abandon();
                self.bar = shown(ProgressBar::new(steps).with_style(updates_style()));
                self.bar.set_prefix(format!("stage {}", stage.as_str()));
                self.bar.set_position(step);
                self.bar.reset_eta();
            }
            Event::Update { metrics, samples_per_sec } => {
                let (loss, wait) = (metrics.loss, 100.0 * metrics.data_wait);
                if !metrics.applied {
                    let (stage, step, norm) = (self.bar.prefix(), metrics.step, metrics.grad_norm);
                    self.bar.suspend(|| {
                        let scale = metrics.measures.get("loss_scale");
                        let scale = scale.filter(|_| !norm.is_finite()).map_or_else(String::new, |scale| {
                            format!(", and the scale of the loss, {scale}, is halved")
                        });
                        tell!("{stage}: step {step} changed nothing: the norm of its gradients is {norm}{scale}");
                    });
                }
                self.bar.set_position(metrics.step);
                let measure = |name| metrics.measures.get(name);
                let codes = match (measure("codes_used"), measure("perplexity")) {
                    (Some(used), Some(perplexity)) => {
                        format!(
                            "{:.0} % of the codes used, perplexity {perplexity:.0}, ",
                            100.0 * used
                        )
                    }
                    _ => String::new(),
                };
                self.bar.set_message(format!(
                    "loss {loss:.4}, {codes}{samples_per_sec:.0} samples/s, {wait:.0} % waiting for data"
                ));
            }
            Event::Saved => self.tell_saved(),
        }
        let is_late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if is_late || self.interrupted.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn show_caching(&mut self, what: &str, done: usize, scenes: usize) {
        if self.bar.message() != what {
            self.bar.abandon();
            let style = ProgressStyle::with_template("caching {msg}: {pos}").expect("it is valid");
            let bar = ProgressBar::new_spinner().with_style(style);
            self.bar = shown(bar.with_message(what.to_owned()));
        }
        self.bar.set_position(done as u64);
        if done == scenes {
            self.bar.finish_and_clear();
        }
    }

    /// Without a terminal there is no bar, so a line for the log says it.
    fn tell_saved(&self) {
        let bar = &self.bar;
        if bar.is_hidden() {
            let (stage, step, message) = (bar.prefix(), bar.position(), bar.message());
            let (steps, rest) = (bar.length().unwrap_or_default(), HumanDuration(bar.eta()));
            tell!("{stage}: step {step} of {steps}, {message}, ETA {rest}");
        }
    }
}

/// Reports that a stage does not see all pictures.
pub(super) fn tell_partial(stage: StageName, cached: usize, pictures: usize) {
    let stage = stage.as_str();
    tell!("stage {stage} trains on {cached} of {pictures} pictures ({stage}.cached_scenes)");
}

impl Drop for TrainProgress {
    /// Leaves the last state of the bar on the screen.
    fn drop(&mut self) {
        self.bar.abandon();
    }
}

/// A bar, which is hidden where another process shows how the work goes.
fn shown(bar: ProgressBar) -> ProgressBar {
    if is_silent() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

fn updates_style() -> ProgressStyle {
    let template = "{prefix} {bar:30} {pos}/{len} {msg} ETA {eta}";
    ProgressStyle::with_template(template).expect("the template is valid")
}

/// Reports the pictures of a bucket; ignores other events.
pub(super) fn tell_bucket(event: &Event<'_>) {
    let Event::Bucket { cells: [rows, columns], pixels: [height, width], pictures, enlarged } =
        *event
    else {
        return;
    };
    let enlarged = match enlarged {
        0 => String::new(),
        count => format!(", {count} enlarged"),
    };
    tell!(
        "bucket of {width} x {height} pixels ({columns} x {rows} cells): {}{enlarged}",
        counted(pictures, "picture")
    );
}
