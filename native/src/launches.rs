//! `wuerstchen bench --launches`: what a step of each stage, and an update of its training, costs a GPU's queue.

use std::fmt::Write;
use std::ops::{ControlFlow, Sub};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::Device;
use clap::Args;
use futures_lite::future::block_on;
use log::{LevelFilter, Log, Metadata, Record};
use serde_json::{Value, json};
use wuerstchen::kernels::{
    Products, ShaderTraffic, Tiling, choose_products, runs_shaders, shader_traffic,
};
use wuerstchen::{GenerateOptions, ModelFiles, Part, Pipeline, Progress, Residency};
use wuerstchen_train::Trainer;
use wuerstchen_train::stages::Stage;

use crate::devices::Found;
use crate::{files, usage};

/// The arguments that count launches.
#[derive(Args)]
pub(crate) struct LaunchesArgs {
    /// Count dispatches, queue submits, buffer writes and reads for each step and each update, and the bytes of the
    /// hand-written shaders' tensors, instead of timing
    #[arg(long, conflicts_with_all = ["stage", "kernels", "inputs", "dump", "runs"])]
    pub(crate) launches: bool,
    /// Width of the picture in pixels [default: the model's]
    #[arg(short = 'W', long)]
    width: Option<usize>,
    /// Height of the picture in pixels [default: the model's]
    #[arg(short = 'H', long)]
    height: Option<usize>,
}

impl LaunchesArgs {
    /// Fails where a size is given without `--launches`.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.launches && (self.width.is_some() || self.height.is_some()) {
            bail!("--width and --height are for --launches");
        }
        Ok(())
    }
}

/// The beginnings of the lines of wgpu's log that report a call.
const CALLS: [&str; 4] =
    ["ComputePass::dispatch", "Queue::submit", "Queue::write_buffer", "Buffer::map_async"];

/// The beginning of a line that looks like a call, but reports its end.
const RETURNS: &str = "Queue::submit returned";

static COUNTS: [AtomicUsize; CALLS.len()] = [const { AtomicUsize::new(0) }; CALLS.len()];

/// Counts the lines of wgpu's log.
struct Counter;

impl Log for Counter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("wgpu_core")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = String::new();
        if write!(line, "{}", record.args()).is_err() || line.starts_with(RETURNS) {
            return;
        }
        let call = CALLS.iter().position(|call| line.starts_with(call));
        if let Some(call) = call {
            COUNTS[call].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// What is counted, as the report names it: the four [`CALLS`]; then how many of the dispatches are of hand-written
/// shaders, and the bytes of the tensors of these. Reads are of one buffer each; those that are asked for at once wait
/// only once for the work before them.
const FIELDS: [&str; 6] =
    ["dispatches", "submits", "buffer_writes", "reads", "shader_dispatches", "shader_bytes"];

/// What some work has cost the queue, in the order of [`FIELDS`].
#[derive(Clone, Copy)]
struct Counts([f64; FIELDS.len()]);

impl Counts {
    /// The counts since the program began.
    fn now() -> Self {
        let [dispatches, submits, buffer_writes, reads] =
            COUNTS.each_ref().map(|count| count.load(Ordering::Relaxed) as f64);
        let ShaderTraffic { launches, bytes } = shader_traffic();
        Self([dispatches, submits, buffer_writes, reads, launches as f64, bytes as f64])
    }

    fn over(self, parts: f64) -> Self {
        Self(self.0.map(|count| count / parts))
    }

    fn json(self) -> Value {
        FIELDS.into_iter().zip(self.0).collect()
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }
}

/// What `work` costs. The device has done the work when this returns.
fn count(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<Counts> {
    let sync = || device.sync().map_err(|error| anyhow::anyhow!("the device failed: {error:?}"));
    sync()?;
    let before = Counts::now();
    work()?;
    let counts = Counts::now() - before;
    sync()?;
    Ok(counts)
}

/// Begins to count, for a device.
pub(crate) fn begin(found: &Found) -> Result<()> {
    if !runs_shaders(&found.device) {
        let reason = "--launches counts a GPU's launches: expected --device gpu, found";
        return Err(usage(&anyhow!("{reason} {}", found.name)));
    }
    log::set_logger(&Counter)
        .map_err(|error| anyhow::anyhow!("cannot read wgpu's log: {error}"))?;
    log::set_max_level(LevelFilter::Trace);
    // Tiles are chosen as on a hardware GPU, because a software one would use none.
    choose_products(&found.device, Products { tiling: Some(Tiling::Small), halves: false });
    Ok(())
}

/// Counts for a picture by a model: a step of each stage, and everything else.
///
/// # Errors
///
/// The model cannot be read, or cannot make a picture of this size.
pub(crate) fn generation(
    model: Option<&PathBuf>,
    args: &LaunchesArgs,
    device: &Device,
) -> Result<Value> {
    let files = files::read_model(model.map(PathBuf::as_path))?;
    let pipeline =
        Pipeline::load(&files, device, Residency::All).context("cannot load the model")?;
    let picture = |prior: usize, decoder: usize| {
        let options = GenerateOptions {
            width: args.width,
            height: args.height,
            prior_steps: Some(prior),
            decoder_steps: Some(decoder),
            ..GenerateOptions::default()
        };
        count(device, || {
            let go = &mut async |_: Progress<'_>| ControlFlow::Continue(());
            block_on(pipeline.generate("", &options, go))?;
            Ok(())
        })
    };
    // The first picture compiles pipelines and fills caches.
    picture(1, 1)?;
    let least = picture(1, 1)?;
    let prior = (picture(3, 1)? - least).over(2.0);
    let decoder = (picture(1, 3)? - least).over(2.0);
    let family = files.family();
    let line = |step: Counts, part: Part| step_of(&files, step, part);
    Ok(json!({
        "model": pipeline.card.name,
        "prior_step": line(prior, family.prior())?,
        "decoder_step": line(decoder, family.decoder())?,
        "rest_of_a_picture": (least - prior - decoder).json(),
    }))
}

/// The counts of a step, with the bytes of the weights that it reads at least once.
fn step_of(files: &ModelFiles, step: Counts, part: Part) -> Result<Value> {
    let mut line = step.json();
    line["weight_bytes"] = files.weights(part)?.device_bytes().into();
    Ok(line)
}

/// Counts for one update of a stage's training, after two others.
///
/// # Errors
///
/// A sample cannot be read.
pub(crate) fn update<S: Stage>(mut trainer: Trainer<S>, device: &Device) -> Result<Value> {
    const UPDATES: usize = 2;
    let mut updates = || {
        count(device, || {
            for _ in 0..UPDATES {
                trainer.step()?;
            }
            Ok(())
        })
    };
    updates()?;
    Ok(updates()?.over(UPDATES as f64).json())
}
