//! `wuerstchen export`: a model in another form.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use burn::tensor::Device;
use clap::{Args, Subcommand, ValueEnum};
use futures_lite::future::block_on;
use wuerstchen::{
    EmbeddingColours, GenerateOptions, Manifest, ModelFiles, Pipeline, SelfTest, StoredDtype,
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
}

/// How weights are stored.
#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    /// 32 bits
    F32,
    /// 16 bits
    F16,
    /// 8 bits with a scale for every output channel
    I8,
}

/// The prompt of the golden vectors.
const SELF_TEST_PROMPT: &str = "a red circle on a white background";

/// Exports.
pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    let Form::Web(args) = &args.form;
    let model = files::read_model(args.model.as_deref())?;
    let dtype = match args.dtype {
        Dtype::F32 => StoredDtype::F32,
        Dtype::F16 => StoredDtype::F16,
        Dtype::I8 => StoredDtype::I8,
    };
    let cannot = || format!("cannot create {}", args.output.display());
    fs::create_dir_all(&args.output).with_context(cannot)?;
    let write = |file: &str, bytes: &[u8]| files::write(&args.output.join(file), bytes);
    let mut manifest = Manifest::write(&model, dtype, write)?;

    // What the browser must reproduce is what the stored weights make, not the original ones.
    let stored = manifest.read::<anyhow::Error>(|file| files::read(&args.output.join(file)))?;
    let pipeline = Pipeline::load(&stored, &Device::flex()).context("cannot load the model")?;
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
    crate::print(&errors(&model, &stored)?)
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

/// What the storage type costs: the relative error of every part's weights.
fn errors(model: &ModelFiles, stored: &ModelFiles) -> Result<String> {
    let mut lines = vec![format!("{:<32}{:>16}", "part", "relative error")];
    for part in Pipeline::PARTS {
        let (weights, stored) = (model.weights(part)?, stored.weights(part)?);
        let (mut difference, mut norm) = (0.0f64, 0.0f64);
        for name in stored.names() {
            for (a, b) in weights.values(name)?.iter().zip(stored.values(name)?) {
                difference += f64::from(a - b).powi(2);
                norm += f64::from(*a).powi(2);
            }
        }
        lines.push(format!("{part:<32}{:>16.1e}", (difference / norm).sqrt()));
    }
    Ok(lines.join("\n"))
}
