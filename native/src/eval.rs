//! `wuerstchen eval`: how well a model's pictures show what their prompts say.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Arg, Args};
use futures_lite::future::block_on;
use serde::Serialize;
use serde_json::Value;
use wuerstchen::options::MAX_PIXELS_AT_ONCE;
use wuerstchen::{
    CompressorConfig, Family, GenerateOptions, ModelCard, PartConfig, Pipeline, Residency,
    Settings, VqganConfig,
};
use wuerstchen_train::config::Scenes;
use wuerstchen_train::eval::{
    Ceiling, EmojiScores, EvalConfig, EvalRow, Evaluation, ShapesScores, evaluate_emoji,
    evaluate_shapes, stage_a_psnr,
};
use wuerstchen_train::shapes::MIN_SIDE;

use crate::art::read_art;
use crate::devices::{Choice, choose};
use crate::generate::{tell_of_guidance, tell_of_prompt};
use crate::reconstruct::{first_given, options_of_prior};
use crate::{print, usage};

/// Arguments of `wuerstchen eval`.
#[derive(Args)]
pub(crate) struct EvalArgs {
    /// Model folder or file [default: the built-in model]
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// Prompts for every kind of scene, seen and held out
    #[arg(long, value_name = "NUMBER", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=MAX_PROMPTS))]
    prompts: u32,
    /// What the prompts ask for [default: what the model was trained on]
    #[arg(long, value_name = "shapes|emoji")]
    scenes: Option<Scenes>,
    /// Folder with the art of `emoji` [default: where models/fetch_emoji.sh puts it]
    #[arg(long)]
    art: Option<PathBuf>,
    /// Pictures at a time
    #[arg(long, default_value = "64")]
    batch_size: NonZeroUsize,
    /// Let Stage B make the pictures from the prompt and an image embedding of zeros, without Stage C, with the steps
    /// and the guidance scale of Stage B
    #[arg(long)]
    without_prior: bool,
    #[command(flatten)]
    options: GenerateOptions,
    /// Where to run
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// Print JSON lines instead of a table
    #[arg(long)]
    json: bool,
}

/// Leaves the options that an evaluation refuses out of the help.
pub(crate) fn hide_refused(arg: Arg) -> Arg {
    let is_refused = ["count", "strength", "control_scale"].iter().any(|id| arg.get_id() == id);
    if is_refused { arg.hide(true) } else { arg }
}

pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    let of_prior = options_of_prior(&args.options);
    if let Some(option) = first_given(of_prior).filter(|_| args.without_prior) {
        return Err(usage(&anyhow!("{option} changes nothing with --without-prior")));
    }
    let device = choose(args.device)?.device;
    let files = crate::files::read_model(args.model.as_deref())?;
    let family = files.family();
    if family.name == Family::CASCADE.name {
        bail!("eval takes models of Würstchen v1 and v2, found one of {}", family.name);
    }
    let load = if args.without_prior { Pipeline::load_decoder } else { Pipeline::load };
    let pipeline = load(&files, &device, Residency::All)?;
    let config = files.part_config::<CompressorConfig>(family.compressor);
    let config = config.context("the evaluation needs the semantic compressor")?;
    let downscale = config.downscale();
    let compressor = config.load(files.weights(family.compressor)?, &device)?;
    let vqgan_config: VqganConfig = files.part_config(family.vqgan)?;
    let settings = args.options.resolve(&pipeline.card.defaults)?;
    let negative = ("negative_prompt", &*settings.negative_prompt);
    tell_of_prompt(&pipeline, negative, settings.prompt_syntax)?;
    tell_of_guidance(&settings, !args.without_prior);
    if args.options.control_scale.is_some() {
        return Err(usage(&anyhow!("eval takes no ControlNet: leave --control-scale out")));
    }
    if args.options.count.is_some() {
        return Err(usage(&anyhow!("eval makes one picture of each prompt: leave --count out")));
    }
    let (width, height) = (settings.width, settings.height);
    if width != height {
        return Err(usage(&anyhow!("eval expects square pictures, got {width} x {height}")));
    }
    let one = Settings { count: 1, ..settings.clone() };
    one.check_pixels().map_err(|error| usage(&error.into()))?;
    let (batch, most) = (args.batch_size.get(), settings.most_at_once());
    if batch > most {
        return Err(usage(&anyhow!(
            "--batch-size must be at most {most} with pictures of {width} x {height} pixels, as \
             {MAX_PIXELS_AT_ONCE} pixels are made at once, got {batch}"
        )));
    }
    let ([_, columns], _) =
        pipeline.sizes(settings.height, settings.width).map_err(wuerstchen::Error::from)?;
    let ceiling = Ceiling {
        compressor: &compressor,
        compressor_side: columns * downscale,
        vqgan_config: &vqgan_config,
    };
    let scenes = args.scenes.unwrap_or_else(|| scenes_of(&pipeline.card));
    if args.art.is_some() && scenes == Scenes::Shapes {
        let reason = "--art is for --scenes emoji, and the prompts are of shapes: leave --art out";
        return Err(usage(&anyhow!(reason)));
    }
    if scenes == Scenes::Shapes && width < MIN_SIDE as usize {
        return Err(usage(&anyhow!(
            "eval expects pictures of shapes of at least {MIN_SIDE} x {MIN_SIDE} pixels, got {width} x {height}"
        )));
    }
    let config = EvalConfig {
        prompts: args.prompts as usize,
        batch_size: args.batch_size.get(),
        seed: args.options.seed,
    };
    let without_prior = args.without_prior;
    let evaluation = Evaluation { pipeline: &pipeline, ceiling, settings, without_prior, config };
    let columns: &[&str] = match scenes {
        Scenes::Shapes => &SHAPES_COLUMNS,
        Scenes::Emoji => &EMOJI_COLUMNS,
    };
    let art = matches!(scenes, Scenes::Emoji).then(|| read_art(args.art.as_deref())).transpose()?;
    if !args.json {
        print(&header(columns))?;
    }
    let mut written = Ok(());
    let mut write = |row: Value| {
        let text = if args.json { row.to_string() } else { line(&row, columns) };
        if written.is_ok() {
            written = print(&text);
        }
    };
    match art {
        None => {
            let on_row = &mut |row: &EvalRow<ShapesScores>| write(to_json(row));
            block_on(evaluate_shapes(&evaluation, on_row))?;
        }
        Some(art) => {
            let psnr = block_on(stage_a_psnr(&evaluation, &art))?;
            say!("Stage A on concepts that it has not seen: PSNR {psnr:.2} dB");
            let on_row = &mut |row: &EvalRow<EmojiScores>| write(to_json(row));
            block_on(evaluate_emoji(&evaluation, &art, on_row))?;
        }
    }
    written
}

/// The scenes that a model was trained on, as its card tells; `shapes`, and a line that says so, where it does not.
fn scenes_of(card: &ModelCard) -> Scenes {
    if card.provenance.contains("`emoji`") {
        return Scenes::Emoji;
    }
    if !card.provenance.contains("`shapes`") {
        tell!("the model does not tell that it was trained on scenes: --scenes shapes is taken");
    }
    Scenes::Shapes
}

fn to_json(row: &impl Serialize) -> Value {
    serde_json::to_value(row).expect("a report is JSON")
}

/// Most prompts for a kind of scene: they are in memory together.
const MAX_PROMPTS: i64 = 100_000;

const SHAPES_COLUMNS: [&str; 7] =
    ["background", "count", "colour", "shape", "objects", "size", "relation"];

const EMOJI_COLUMNS: [&str; 6] = ["background", "concept", "top5", "tint", "relation", "count"];

fn header(columns: &[&str]) -> String {
    let columns: Vec<_> = columns.iter().map(|name| format!("{name:>10}")).collect();
    format!("{:<5} {:<9} {:<17}{}", "kind", "split", "pictures", columns.concat())
}

fn line(row: &Value, columns: &[&str]) -> String {
    let cell = |name: &&str| match row["scores"][*name].as_f64() {
        Some(share) => format!("{share:>10.3}"),
        None => format!("{:>10}", "-"),
    };
    let cells: Vec<_> = columns.iter().map(cell).collect();
    let [kind, split, source] =
        ["kind", "split", "source"].map(|name| row[name].as_str().unwrap_or_default());
    format!("{kind:<5} {split:<9} {source:<17}{}", cells.concat())
}
