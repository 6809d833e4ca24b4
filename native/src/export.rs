//! `wuerstchen export`: a model in another form.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use clap::{Args, Subcommand, ValueEnum};
use futures_lite::future::block_on;
use serde::Serialize;
use wuerstchen::headroom::{LARGEST_HALF, LargestActivations};
use wuerstchen::{
    Checkpoint, EmbeddingColours, GenerateOptions, Manifest, ModelFiles, Pipeline, Residency,
    SelfTest, StoredDtype,
};

use crate::files;

/// Arguments of `wuerstchen export`.
#[derive(Args)]
pub(crate) struct ExportArgs {
    #[command(subcommand)]
    form: Form,
}

#[derive(Subcommand)]
enum Form {
    /// A manifest and shards of weights, as the browser loads them
    Web(WebArgs),
}

#[derive(Args)]
struct WebArgs {
    /// A model folder or bundle file [default: the built-in model]
    #[arg(short, long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// How weights are stored
    #[arg(long, value_enum, default_value = "f16")]
    dtype: Dtype,
    /// Pictures to make on the CPU to fit the colours of previews; 0 for a model without previews
    #[arg(long, value_name = "N", default_value_t = 64)]
    preview_pictures: usize,
    /// Pictures to make with the stored and with the given weights, to tell what storing costs
    #[arg(long, value_name = "N", default_value_t = 2)]
    check: usize,
    /// Write the error of every tensor as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// How weights are stored.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Dtype {
    /// 32 bits
    F32,
    /// 16 bits
    F16,
    /// 8 bits with a scale and zero-point for every 64 weights of a linear layer
    I8,
    /// 4 bits, likewise
    I4,
}

impl From<Dtype> for StoredDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::I8 => Self::I8,
            Dtype::I4 => Self::I4,
        }
    }
}

/// The prompt of the golden vectors.
const SELF_TEST_PROMPT: &str = "a red circle on a white background";

/// Exports.
pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    let Form::Web(args) = &args.form;
    args.report.as_deref().map(files::check_writable).transpose()?;
    let model = files::read_model(args.model.as_deref())?;
    if let Some(part) = Pipeline::PARTS.iter().find(|part| !model.weights.contains_key(**part)) {
        bail!("the model lacks {part}: a browser needs all parts");
    }
    let cannot = || format!("cannot create {}", args.output.display());
    fs::create_dir_all(&args.output).with_context(cannot)?;
    let write = |file: &str, bytes: &[u8]| files::write(&args.output.join(file), bytes);
    let mut manifest = Manifest::write(&model, args.dtype.into(), write)?;

    // What the browser must reproduce is what the stored weights make, not the original ones.
    let open = |file: &str| files::open(&args.output.join(file));
    let stored = manifest.open::<anyhow::Error>(open)?;
    let pipeline = Pipeline::load(&stored, &Device::flex(), Residency::Auto)
        .context("cannot load the model")?;
    manifest.self_test = Some(block_on(SelfTest::record(&pipeline, SELF_TEST_PROMPT))?);
    manifest.preview = preview(&pipeline, args.preview_pictures)?;

    let text = serde_json::to_string(&manifest)?;
    write(files::MANIFEST, text.as_bytes())?;
    let bytes: usize = manifest.shards.iter().map(|shard| shard.bytes).sum();
    eprintln!(
        "wrote {}: {} shards, {bytes} bytes, {} of manifest",
        args.output.display(),
        manifest.shards.len(),
        text.len()
    );
    let report = Report::new(&model, &stored, &pipeline, args.check)?;
    if let Some(path) = &args.report {
        files::write(path, serde_json::to_string_pretty(&report)?.as_bytes())?;
    }
    crate::print(&report.text())
}

/// Fits the colours of image embeddings to pictures that the model makes of nothing in particular.
fn preview(pipeline: &Pipeline, pictures: usize) -> Result<Option<EmbeddingColours>> {
    if pictures == 0 {
        return Ok(None);
    }
    let options = GenerateOptions { count: Some(pictures), ..Default::default() };
    let go = &mut async |_: wuerstchen::Progress<'_>| std::ops::ControlFlow::Continue(());
    let generated = block_on(pipeline.generate("", &options, go))?;
    Ok(Some(EmbeddingColours::fit(&generated.image_embeddings, &generated.images)))
}

/// What the storage type costs.
#[derive(Serialize)]
struct Report {
    parts: BTreeMap<String, PartError>,
    /// Largest activation of every stage; half precision holds 65504.
    largest_activations: LargestActivations,
    /// Peak signal-to-noise ratio in decibels of pictures of the stored weights against pictures of
    /// the given ones, of seeds 0, 1, ….
    psnr: Vec<f64>,
}

#[derive(Serialize)]
struct PartError {
    /// `||stored - given|| / ||given||`.
    relative: f64,
    tensors: BTreeMap<String, TensorError>,
}

#[derive(Serialize)]
struct TensorError {
    dtype: StoredDtype,
    /// `||stored - given|| / ||given||`.
    relative: f64,
    /// The largest difference.
    absolute: f64,
}

impl Report {
    fn new(
        model: &ModelFiles,
        stored: &ModelFiles,
        pipeline: &Pipeline,
        pictures: usize,
    ) -> Result<Self> {
        let parts = Pipeline::PARTS.iter().map(|part| {
            Ok(((*part).to_owned(), PartError::new(model.weights(part)?, stored.weights(part)?)?))
        });
        let mut report = Self {
            parts: parts.collect::<Result<_>>()?,
            largest_activations: LargestActivations::new(),
            psnr: Vec::new(),
        };
        if pictures == 0 {
            return Ok(report);
        }
        let settings = GenerateOptions::default().resolve(&pipeline.card.defaults)?;
        report.largest_activations =
            block_on(pipeline.largest_activations(SELF_TEST_PROMPT, &settings))?;
        let given = Pipeline::load(model, &Device::flex(), Residency::Auto)?;
        let options = GenerateOptions { count: Some(pictures), ..Default::default() };
        let generate = |pipeline: &Pipeline| {
            let go = &mut async |_: wuerstchen::Progress<'_>| std::ops::ControlFlow::Continue(());
            block_on(pipeline.generate(SELF_TEST_PROMPT, &options, go))
        };
        let (ours, theirs) = (generate(pipeline)?.images, generate(&given)?.images);
        report.psnr = ours.iter().zip(&theirs).map(|(ours, theirs)| ours.psnr(theirs)).collect();
        Ok(report)
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("{:<32}{:>16}  worst tensor", "part", "relative error")];
        for (part, error) in &self.parts {
            let worst = error.tensors.iter().max_by(|a, b| a.1.relative.total_cmp(&b.1.relative));
            let worst = worst.map(|(name, error)| format!("{name}, {:.1e}", error.relative));
            lines.push(format!(
                "{part:<32}{:>16.1e}  {}",
                error.relative,
                worst.unwrap_or_default()
            ));
        }
        for (stage, largest) in &self.largest_activations {
            let share = LARGEST_HALF / largest;
            let stage = format!("{stage:?}").to_lowercase();
            lines.push(format!(
                "{stage}: largest activation {largest:.1}, {share:.0} times below f16's largest"
            ));
        }
        if !self.psnr.is_empty() {
            let psnr: Vec<_> = self.psnr.iter().map(|psnr| format!("{psnr:.1}")).collect();
            lines.push(format!(
                "pictures against those of the given weights: {} dB",
                psnr.join(", ")
            ));
        }
        lines.join("\n")
    }
}

impl PartError {
    fn new(given: &Checkpoint, stored: &Checkpoint) -> Result<Self> {
        let (mut all, mut norm, mut tensors) = (0.0f64, 0.0f64, BTreeMap::new());
        for name in stored.names() {
            let (mut squares, mut size, mut absolute) = (0.0f64, 0.0f64, 0.0f64);
            for (a, b) in given.values(name)?.iter().zip(stored.values(name)?) {
                let difference = f64::from(a - b);
                squares += difference.powi(2);
                size += f64::from(*a).powi(2);
                absolute = absolute.max(difference.abs());
            }
            let dtype = stored.dtype(name).expect("its name is known");
            let relative = (squares / size.max(f64::MIN_POSITIVE)).sqrt();
            tensors.insert(name.to_owned(), TensorError { dtype, relative, absolute });
            all += squares;
            norm += size;
        }
        Ok(Self { relative: (all / norm).sqrt(), tensors })
    }
}
