//! `wuerstchen reconstruct`: what the stages keep of a picture.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::{Arg, Args};
use futures_lite::future::block_on;
use serde::Serialize;
use wuerstchen::{Batch, Error, GenerateOptions, Image, Pipeline, Progress, Settings};

use crate::generate::{tell_of_guidance, tell_of_prompt, tell_of_size};
use crate::model::ModelArgs;
use crate::output::png_files;
use crate::{as_option, pictures, usage};

/// Arguments of `wuerstchen reconstruct`.
#[derive(Args)]
pub(crate) struct ReconstructArgs {
    /// A PNG, JPEG, WebP, GIF, BMP or TIFF file
    image: PathBuf,
    /// The PNG file to write, with three pictures side by side: the given one, the same through Stage A, and through
    /// the compressor and stages B and A
    #[arg(short, long, value_name = "FILE", default_value = "reconstructed.png")]
    output: PathBuf,
    /// A prompt for Stage B that describes the picture
    #[arg(short, long, default_value = "")]
    prompt: String,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    options: GenerateOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is printed: peak signal-to-noise ratios to the picture, in decibels.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    file: String,
    width: usize,
    height: usize,
    psnr_through_a: f64,
    psnr_through_b_and_a: f64,
}

/// Reconstructs, writes and prints.
pub(crate) fn run(args: &ReconstructArgs) -> Result<()> {
    refuse_unused(&args.options)?;
    let inputs = [Some(&*args.image), args.model.path()];
    let inputs: Vec<_> = inputs.into_iter().flatten().collect();
    let output = png_files(&args.output, "reconstructed.png", 1, &inputs)?.swap_remove(0);
    let image = pictures::read_image(&args.image)?;
    let pipeline = args.model.load_decoder()?.pipeline;
    let settings = pipeline.settings(&args.options, Some(&image))?;
    tell_of_size(&image, &settings);
    let negative = ("negative_prompt", &*args.options.negative_prompt);
    for prompt in [("prompt", &*args.prompt), negative] {
        tell_of_prompt(&pipeline, prompt, settings.prompt_syntax)?;
    }
    tell_of_guidance(&settings, false);
    let [original, through_a, through_b_and_a] =
        block_on(reconstruct(&pipeline, &image, &args.prompt, settings))?;
    let report = Report {
        file: output.path.display().to_string(),
        width: original.width,
        height: original.height,
        psnr_through_a: original.psnr(&through_a),
        psnr_through_b_and_a: original.psnr(&through_b_and_a),
    };
    let grid = Image::grid(&[original, through_a, through_b_and_a], 3);
    let png = grid.to_png().context("cannot encode the pictures")?;
    wuerstchen::fs::write(&output.path, &png)?;
    output.tell();
    if args.json {
        return crate::print(&serde_json::to_string(&report)?);
    }
    crate::print(&format!(
        "{} x {} pixels\nthrough Stage A                          {:5.1} dB\n\
         through the compressor, stages B and A   {:5.1} dB",
        report.width, report.height, report.psnr_through_a, report.psnr_through_b_and_a
    ))
}

/// The options of Stage C alone, and whether they are given.
pub(crate) fn options_of_prior(options: &GenerateOptions) -> [(&'static str, bool); 6] {
    [
        ("prior_steps", options.prior_steps.is_some()),
        ("prior_guidance_scale", options.prior_guidance_scale.is_some()),
        ("timesteps", options.timesteps.is_some()),
        ("prior_shift", options.prior_shift.is_some()),
        ("control_scale", options.control_scale.is_some()),
        ("strength", options.strength.is_some()),
    ]
}

/// Options that change nothing here, and whether they are given. Stage C does not run, because the image embedding is
/// the picture's own.
fn unused(options: &GenerateOptions) -> impl Iterator<Item = (&'static str, bool)> {
    options_of_prior(options).into_iter().chain([("count", options.count.is_some())])
}

/// The first option that is given of those that change nothing, as it is typed.
pub(crate) fn first_given(
    options: impl IntoIterator<Item = (&'static str, bool)>,
) -> Option<String> {
    let given = options.into_iter().find(|(_, is_given)| *is_given);
    given.map(|(option, _)| as_option(option))
}

/// Leaves options that change nothing out of the help.
pub(crate) fn hide_unused(arg: Arg) -> Arg {
    let is_unused = unused(&GenerateOptions::default()).any(|(id, _)| arg.get_id() == id);
    if is_unused { arg.hide(true) } else { arg }
}

fn refuse_unused(options: &GenerateOptions) -> Result<()> {
    let Some(option) = first_given(unused(options)) else { return Ok(()) };
    let reason =
        "reconstruct makes one picture, and the image embedding is that of the picture itself";
    Err(usage(&anyhow!("{option} changes nothing here: {reason}")))
}

/// The picture in the size of the settings; the same through Stage A; and through the compressor and stages B and A.
async fn reconstruct(
    pipeline: &Pipeline,
    image: &Image,
    prompt: &str,
    settings: Settings,
) -> Result<[Image; 3], Error> {
    let [original, through_a] = pipeline.autoencode(image, &settings).await?;
    let origin = pipeline.origin(image, None, &settings).await?.embedding_only();
    let settings = Settings { strength: Some(0.0), ..settings };
    let batch = Batch { origin: Some(&origin), ..Batch::new(prompt, 1) };
    let go = &mut async |_: Progress<'_>| ControlFlow::Continue(());
    let mut made = pipeline.generate_batches(&[batch], &settings, go).await?;
    Ok([original, through_a, made.swap_remove(0).images.swap_remove(0)])
}
