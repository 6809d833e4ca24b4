//! `wuerstchen generate`: a prompt to PNG files.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_lite::future::block_on;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use wuerstchen::{GenerateOptions, Pipeline, Progress, Provenance, Residency, Settings, Stage};

use crate::devices::{self, Choice};
use crate::files;

/// Arguments of `wuerstchen generate`.
#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// What the picture shows
    prompt: String,
    /// The PNG file to write; several pictures are numbered, out-0.png, out-1.png, …
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    output: PathBuf,
    /// A model folder (diffusers layout or web bundle) or a bundle file [default: the built-in model]
    #[arg(short, long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Where to run
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// Which parts of the model stay on the device
    #[arg(long, value_enum, default_value = "auto")]
    residency: Residency,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: GenerateOptions,
}

/// What `--json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    files: Vec<String>,
    device: &'a str,
    load_secs: f64,
    generate_secs: f64,
    prompt: &'a str,
    settings: &'a Settings,
}

/// Generates and writes.
pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let folder = args.output.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        bail!("cannot write {}: there is no folder {}", args.output.display(), folder.display());
    }
    let files = files::read_model(args.model.as_deref())?;
    let found = devices::choose(args.device)?;
    let started = Instant::now();
    let pipeline =
        Pipeline::load(&files, &found.device, args.residency).context("cannot load the model")?;
    let load_secs = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let bar = Bars::default();
    let mut on_step = async |progress: Progress<'_>| bar.show(&progress);
    let generated = block_on(pipeline.generate(&args.prompt, &args.options, &mut on_step));
    bar.0.finish_and_clear();
    let generated = generated?;
    let generate_secs = started.elapsed().as_secs_f64();

    let mut written = Vec::new();
    for (i, image) in generated.images.iter().enumerate() {
        let path = numbered(&args.output, i, generated.images.len());
        let provenance = Provenance {
            prompt: args.prompt.clone(),
            model: pipeline.card.name.clone(),
            image: i,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: serde_json::to_value(&generated.settings)?,
        };
        files::write(&path, &provenance.to_png(image).context("cannot encode the picture")?)?;
        eprintln!("wrote {}", path.display());
        written.push(path.display().to_string());
    }
    if args.json {
        let report = Report {
            files: written,
            device: &found.name,
            load_secs,
            generate_secs,
            prompt: &args.prompt,
            settings: &generated.settings,
        };
        crate::print(&serde_json::to_string(&report)?)?;
    }
    Ok(())
}

/// A bar for the stage that runs.
struct Bars(ProgressBar);

impl Default for Bars {
    fn default() -> Self {
        let style = ProgressStyle::with_template("{msg:<28} {bar:32} {pos}/{len}")
            .expect("the template is well-formed");
        Self(ProgressBar::new(0).with_style(style))
    }
}

impl Bars {
    fn show(&self, progress: &Progress) -> ControlFlow<()> {
        self.0.set_message(match progress.stage {
            Stage::Text => "text",
            Stage::Prior => "image embedding (Stage C)",
            Stage::Decoder => "latents (Stage B)",
            Stage::Vqgan => "picture (Stage A)",
        });
        self.0.set_length(progress.steps as u64);
        self.0.set_position(progress.step as u64);
        ControlFlow::Continue(())
    }
}

/// `out.png`, or `out-3.png` where there are several.
fn numbered(path: &Path, i: usize, count: usize) -> PathBuf {
    if count == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    let extension = path.extension().map(|extension| extension.to_string_lossy());
    path.with_file_name(format!("{stem}-{i}.{}", extension.unwrap_or("png".into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_picture_keeps_its_name() {
        let name = |i, count| numbered(Path::new("a/out.png"), i, count);
        assert_eq!(name(0, 1), Path::new("a/out.png"));
        assert_eq!(name(1, 2), Path::new("a/out-1.png"));
    }
}
