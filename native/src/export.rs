//! `wuerstchen export`: a model in another form.

mod picture;
mod plan;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::Device;
use clap::{Args, Subcommand, ValueEnum};
use futures_lite::future::block_on;
use same_file::is_same_file;
use wuerstchen::fs::{OpenError, open};
use wuerstchen::{
    Checkpoint, EmbeddingColours, GenerateOptions, ModelFiles, Pipeline, Residency, SelfTest,
    StoredDtype, WebBundle,
};

use self::picture::{SELF_TEST_PROMPT, generate};
use self::plan::{Plan, PlanArgs};
use self::report::Report;
use crate::devices::{self, Choice};
use crate::files;
use crate::new_folder::{NewFolder, check_new};
use crate::output::{check_output, folder_of};
use crate::progress::bytes_bar;

/// Arguments of `wuerstchen export`.
#[derive(Args)]
pub(crate) struct ExportArgs {
    #[command(subcommand)]
    form: Form,
}

#[derive(Subcommand)]
enum Form {
    /// Write a browser bundle: a manifest and files of weights
    Web(WebArgs),
}

#[derive(Args)]
struct WebArgs {
    /// The model, as `generate` takes it [default: the built-in model]
    #[arg(short, long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// How weights are stored [default: i4 or i8 if all linear layers of the model are, else f16]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Where to make the pictures; the golden vectors are always the CPU's
    #[arg(long, value_enum, default_value = "cpu")]
    device: Choice,
    #[command(flatten)]
    plan: PlanArgs,
    /// Write the error of every tensor as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// How weights are stored.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Dtype {
    /// 32 bits
    #[value(aliases = ["fp32", "float32"])]
    F32,
    /// 16 bits
    #[value(aliases = ["fp16", "float16"])]
    F16,
    /// 8 bits with a scale and zero-point for every 64 weights of a linear layer
    #[value(alias = "int8")]
    I8,
    /// 4 bits with a scale and zero-point for every 64 weights of a linear layer
    #[value(alias = "int4")]
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

impl Dtype {
    /// The type in which a model's weights are written if the user names none. If no linear layer has more bits than 4
    /// or 8, more would take more space and gain nothing.
    pub(crate) fn default_of(model: &ModelFiles) -> Self {
        let quantisable = |(name, _, shape, _): &(&str, StoredDtype, &[usize], usize)| {
            StoredDtype::I4.of_tensor(name, shape) == StoredDtype::I4
        };
        let stored = |weights: &Checkpoint| -> Vec<_> {
            weights.describe().filter(quantisable).map(|(_, dtype, ..)| dtype).collect()
        };
        let stored: Vec<_> = model.weights.values().flat_map(stored).collect();
        let all_in = |types: &[StoredDtype]| {
            !stored.is_empty() && stored.iter().all(|dtype| types.contains(dtype))
        };
        if all_in(&[StoredDtype::I4]) {
            Self::I4
        } else if all_in(&[StoredDtype::I4, StoredDtype::I8]) {
            Self::I8
        } else {
            Self::F16
        }
    }
}

const CANNOT_LOAD: &str = "cannot load the model";

/// Exports.
pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    let Form::Web(args) = &args.form;
    let inputs = args.model.as_deref();
    let report_file = args.report.as_deref().map(|path| check_output(path, inputs.as_slice()));
    let report_file = report_file.transpose()?;
    let is_output = |report: &&Path| {
        report.file_name() == args.output.file_name()
            && folder_of(report).is_some_and(|folder| Some(folder) == folder_of(&args.output))
    };
    if let Some(report) = args.report.as_deref().filter(is_output) {
        let error = anyhow!("--report {} is --output, a folder: expected a file", report.display());
        return Err(crate::usage(&error));
    }
    if let Some(model) = &args.model
        && is_same_file(model, &args.output).unwrap_or(false)
    {
        let error = anyhow!("cannot write {}: it is the model itself", args.output.display());
        return Err(crate::usage(&error));
    }
    check_new(&args.output)?;
    let model = files::read_model(args.model.as_deref())?;
    if let Some(part) = model.missing_parts().first() {
        bail!("the model lacks {part}: a browser needs all parts");
    }
    let device = devices::choose(args.device)?.device;
    // This reads no weights, but reports a model that does not fit before minutes of work.
    let given = Pipeline::load(&model, &device, Residency::PerStage).context(CANNOT_LOAD)?;
    let parts = model.family().needed().filter_map(|part| model.weights.get(&part));
    args.plan.check(&given)?;
    let plan = Plan::new(&args.plan, &given, parts.map(Checkpoint::parameters).sum());
    say!("{}", plan.text(&given)?);

    let folder = NewFolder::begin(&args.output)?;
    let dtype = args.dtype.unwrap_or_else(|| Dtype::default_of(&model));
    let bundle = write_shards(&model, dtype, &folder)?;
    // The browser must reproduce the results of the stored weights, not those of the given ones.
    let open = |file: &str| open(&args.output.join(file));
    let stored = bundle.open::<OpenError>(open)?;
    let self_test = self_test(&stored, plan.self_test)?;
    let pipeline = Pipeline::load(&stored, &device, Residency::Auto).context(CANNOT_LOAD)?;
    let preview = plan.preview.map(|options| preview(&pipeline, &options)).transpose()?;
    finish_bundle(&bundle.with_tests(Some(self_test), preview), folder)?;
    let mut report = Report::new(&model, &stored)?;
    if let Some(options) = &plan.check {
        report.add_pictures(&given, &pipeline, options)?;
    }
    if let Some(file) = report_file {
        wuerstchen::fs::write(&file.path, serde_json::to_string_pretty(&report)?.as_bytes())?;
        file.tell();
    }
    crate::print(&report.text())
}

/// Writes the weights of a model to a folder, which is a model when [`finish_bundle`] has written the rest.
pub(crate) fn write_shards(
    model: &ModelFiles,
    dtype: Dtype,
    folder: &NewFolder,
) -> Result<WebBundle> {
    let value = dtype.to_possible_value().expect("every type can be given");
    let (what, dtype) = (format!("storing the weights as {}", value.get_name()), dtype.into());
    let bar = bytes_bar(&what, WebBundle::bytes(model, dtype));
    let bundle = WebBundle::write(model, dtype, |file, bytes| {
        bar.inc(bytes.len() as u64);
        wuerstchen::fs::write(&folder.file(file), bytes)
    })?;
    bar.finish_and_clear();
    Ok(bundle)
}

/// Writes the files that a folder with all shards still lacks, and reports what was written.
pub(crate) fn finish_bundle(bundle: &WebBundle, folder: NewFolder) -> Result<()> {
    let mut sizes = Vec::new();
    for (file, text) in bundle.files() {
        wuerstchen::fs::write(&folder.file(file), text.as_bytes())?;
        sizes.push(format!("{file} {}", text.len()));
    }
    let shards = &bundle.manifest().shards;
    let bytes: usize = shards.iter().map(|shard| shard.bytes).sum();
    let (path, count, sizes) = (folder.path().display(), shards.len(), sizes.join(", "));
    let shards = crate::terminal::counted(count, "weight shard");
    say!("wrote {path}: {shards}, {bytes} bytes; {sizes}");
    folder.keep();
    Ok(())
}

/// Golden vectors, computed by the CPU, whose results tests compare with the reference.
fn self_test(stored: &ModelFiles, options: GenerateOptions) -> Result<SelfTest> {
    let pipeline = Pipeline::load(stored, &Device::flex(), Residency::Auto).context(CANNOT_LOAD)?;
    Ok(block_on(SelfTest::record(&pipeline, SELF_TEST_PROMPT, options))?)
}

/// Fits the colours of image embeddings to pictures that the model makes of an empty prompt.
fn preview(pipeline: &Pipeline, options: &GenerateOptions) -> Result<EmbeddingColours> {
    let made = generate(pipeline, "", options)?;
    Ok(EmbeddingColours::fit(&made.image_embeddings, &made.images))
}
