//! `wuerstchen eval`: how well a model's pictures show what their prompts say.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use futures_lite::future::block_on;
use wuerstchen::weights::{KeyTable, load};
use wuerstchen::{GenerateOptions, Pipeline, Residency, VqganConfig, layout};
use wuerstchen_train::eval::{Ceiling, EvalConfig, EvalRow, evaluate};

use crate::devices::{Choice, choose};
use crate::print;

/// Arguments of `wuerstchen eval`.
#[derive(Args)]
pub(crate) struct EvalArgs {
    /// Model folder or file [default: the built-in model]
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// Prompts for every kind of scene, seen and held out
    #[arg(long, default_value_t = 512)]
    prompts: usize,
    /// Pictures at a time
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    #[command(flatten)]
    options: GenerateOptions,
    /// Where to run
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// Print JSON lines instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    let device = choose(args.device)?.device;
    let files = crate::files::read_model(args.model.as_deref())?;
    let pipeline = Pipeline::load(&files, &device, Residency::All)?;
    let compressor =
        files.compressor_config().context("the evaluation needs the semantic compressor")?;
    let weights = files.weights(layout::COMPRESSOR)?;
    let compressor = load(compressor.init(&device), weights, KeyTable::COMPRESSOR)?;
    let vqgan_config: VqganConfig = files.config(&format!("{}/config.json", layout::VQGAN))?;
    let ceiling = Ceiling { compressor: &compressor, vqgan_config: &vqgan_config };
    let settings = args.options.resolve(&pipeline.card.defaults)?;
    let eval = EvalConfig {
        prompts: args.prompts.max(1),
        batch_size: args.batch_size.max(1),
        seed: args.options.seed,
    };
    if !args.json {
        print(&header())?;
    }
    let mut written = Ok(());
    let mut on_row = |row: &EvalRow| {
        let text = match args.json {
            true => serde_json::to_string(row).expect("a report is JSON"),
            false => line(row),
        };
        if written.is_ok() {
            written = print(&text);
        }
    };
    block_on(evaluate(&pipeline, &ceiling, &settings, &eval, &mut on_row))?;
    written
}

const COLUMNS: [&str; 7] =
    ["background", "count", "colour", "shape", "objects", "size", "relation"];

fn header() -> String {
    let columns: Vec<_> = COLUMNS.iter().map(|name| format!("{name:>10}")).collect();
    format!("{:<5} {:<9} {:<17}{}", "kind", "split", "pictures", columns.concat())
}

fn line(row: &EvalRow) -> String {
    let scores = serde_json::to_value(row.scores).expect("scores are JSON");
    let source = serde_json::to_value(row.source).expect("a source is JSON");
    let cell = |name: &str| match scores[name].as_f64() {
        Some(share) => format!("{share:>10.3}"),
        None => format!("{:>10}", "-"),
    };
    let cells: Vec<_> = COLUMNS.iter().map(|name| cell(name)).collect();
    let source = source.as_str().unwrap_or_default();
    format!("{:<5} {:<9} {source:<17}{}", row.kind, row.split, cells.concat())
}
