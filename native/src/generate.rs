//! `wuerstchen generate`: a prompt to PNG files.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_lite::future::block_on;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wuerstchen::{GenerateOptions, Image, Pipeline, Progress, Settings, Stage};

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
    /// A model folder in the diffusers layout, or a bundle file [default: the built-in model]
    #[arg(short, long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Where to run
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: GenerateOptions,
}

/// Keyword of the PNG text that holds the [`Provenance`] as JSON.
pub(crate) const PNG_KEY: &str = "wuerstchen";

/// Keyword of the PNG text for people and other programs.
const PNG_PARAMETERS: &str = "parameters";

/// How a picture was made, as its PNG file tells.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Provenance {
    /// What was asked for.
    pub(crate) prompt: String,
    /// Name of the model.
    pub(crate) model: String,
    /// Which of the pictures of one call, from 0.
    pub(crate) image: usize,
    /// Version of this program.
    pub(crate) version: String,
    /// Every option that took effect.
    pub(crate) settings: Value,
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
    let pipeline = Pipeline::load(&files, &found.device).context("cannot load the model")?;
    let load_secs = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let bar = Bars::default();
    let mut on_step = |progress: Progress| bar.show(&progress);
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
        files::write(&path, &encode(image, &provenance)?)?;
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

/// A PNG file that tells how it was made.
fn encode(image: &Image, provenance: &Provenance) -> Result<Vec<u8>> {
    let side = |pixels: usize| u32::try_from(pixels).context("the picture is too large for PNG");
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side(image.width)?, side(image.height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let json = serde_json::to_string(provenance)?;
    encoder.add_itxt_chunk(PNG_KEY.into(), json)?;
    encoder.add_itxt_chunk(PNG_PARAMETERS.into(), describe(provenance))?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&image.rgb)?;
    writer.finish()?;
    Ok(bytes)
}

/// The prompt, then one line of settings.
fn describe(provenance: &Provenance) -> String {
    let mut lines = vec![provenance.prompt.clone()];
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if let Some(settings) = provenance.settings.as_object() {
        let parts: Vec<_> =
            settings.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect();
        lines.push(parts.join(", "));
    }
    lines.join("\n")
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

    #[test]
    fn pictures_tell_how_they_were_made() {
        let image = Image { width: 2, height: 1, rgb: vec![0, 1, 2, 3, 4, 5] };
        let provenance = Provenance {
            prompt: "ein blauer Kreis – ✓".into(),
            model: "tiny".into(),
            image: 0,
            version: "1".into(),
            settings: serde_json::json!({ "seed": 7 }),
        };
        let bytes = encode(&image, &provenance).unwrap();
        let read = crate::inspect::provenance(&bytes).unwrap().unwrap();
        assert_eq!(read.prompt, provenance.prompt);
        assert_eq!(read.settings, provenance.settings);
    }
}
