//! `wuerstchen bench --stage`: one stage of a given model on given inputs, timed and dumped.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::{Device, Int, Tensor, TensorData};
use clap::{Args, ValueEnum};
use serde_json::json;
use wuerstchen::cascade::CascadeConditions;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::fs::open;
use wuerstchen::{
    CascadeConfig, Checkpoint, DecoderConfig, ModelFiles, Part, PriorConfig, TokenDecoderConfig,
    VqganConfig, WeightDtype,
};

use crate::devices::Found;
use crate::files;
use crate::output::check_output;

/// The arguments that time one stage of a model.
#[derive(Args)]
pub(crate) struct StageArgs {
    /// Time one prediction of this stage of a model, instead of all stages with random weights
    #[arg(long, value_enum, requires = "inputs", conflicts_with = "config")]
    stage: Option<Stage>,
    /// The model that `--stage` or `--launches` measures, as `generate` takes it [default: the built-in model]
    #[arg(short, long, value_name = "PATH", requires = "of_a_model")]
    model: Option<PathBuf>,
    /// A safetensors file with the inputs STAGE/x, STAGE/t, STAGE/text, decoder/embedding, vqgan/latents. Stable
    /// Cascade takes STAGE/pooled too, and no decoder/text; for Würstchen v1 decoder/x has the numbers of tokens
    #[arg(long, value_name = "FILE", requires = "stage")]
    inputs: Option<PathBuf>,
    /// Write the last prediction as STAGE/out into this safetensors file
    #[arg(long, value_name = "FILE", requires = "stage")]
    dump: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Stage {
    Prior,
    Decoder,
    Vqgan,
}

impl StageArgs {
    /// The model that the arguments name.
    #[cfg(feature = "gpu")]
    pub(crate) fn model(&self) -> Option<&PathBuf> {
        self.model.as_ref()
    }
}

/// Times one stage if the arguments ask for it; returns whether they do.
pub(crate) fn run(args: &StageArgs, found: &Found, runs: usize) -> Result<bool> {
    let (Some(stage), Some(inputs)) = (args.stage, &args.inputs) else { return Ok(false) };
    let device = &found.device;
    if let Some(dump) = &args.dump {
        let read: Vec<_> = args.model.as_deref().into_iter().chain([inputs.as_path()]).collect();
        check_output(dump, &read)?;
    }
    let path = inputs.display().to_string();
    let inputs = Checkpoint::parse(&path, open(inputs)?)?;
    let started = Instant::now();
    let name = match stage {
        Stage::Prior => "prior",
        Stage::Decoder => "decoder",
        Stage::Vqgan => "vqgan",
    };
    let files = files::read_model(args.model.as_deref())?;
    let inputs = inputs.under(&format!("{name}/")).named(&format!("{path}, {name}/"));
    let family = files.family();
    let predict = if family.prior() == Part::CASCADE_PRIOR {
        cascade_predictor(stage, &files, &inputs, device)?
    } else if matches!(stage, Stage::Decoder) && family.decoder() == Part::V1_DECODER {
        token_predictor(&files, &inputs, device)?
    } else {
        predictor(stage, &files, &inputs, device)?
    };
    let load_secs = started.elapsed().as_secs_f64();
    let mut secs = Vec::new();
    let mut out = None;
    for _ in 0..runs {
        let started = Instant::now();
        out = Some(compute(predict()));
        secs.push(started.elapsed().as_secs_f64());
    }
    if let (Some(path), Some(out)) = (&args.dump, out) {
        write_dump(path, name, out)?;
    }
    let report = json!({"device": found.name, "stage": name, "load_secs": load_secs, "secs": secs});
    crate::print(&serde_json::to_string(&report)?)?;
    Ok(true)
}

/// The values of a tensor, read back to the host, because a GPU may not have computed them before.
pub(crate) fn compute<const D: usize>(x: Tensor<D>) -> TensorData {
    let data = x.into_data();
    std::hint::black_box(data.as_bytes());
    data
}

/// A stage with its weights and inputs.
fn predictor(
    stage: Stage,
    files: &ModelFiles,
    inputs: &Checkpoint,
    device: &Device,
) -> Result<Box<dyn Fn() -> Tensor<4>>> {
    Ok(match stage {
        Stage::Prior => {
            let (_, prior) = files.load::<PriorConfig>(files.family().prior(), device)?;
            let (x, t) = (tensor::<4>(inputs, "x", device)?, inputs.values("t")?);
            let text = tensor::<3>(inputs, "text", device)?;
            Box::new(move || prior.forward(x.clone(), &t, text.clone()))
        }
        Stage::Decoder => {
            let (_, decoder) = files.load::<DecoderConfig>(Part::DECODER, device)?;
            let (x, t) = (tensor::<4>(inputs, "x", device)?, inputs.values("t")?);
            let text = tensor::<3>(inputs, "text", device)?;
            let embedding = tensor::<4>(inputs, "embedding", device)?;
            Box::new(move || decoder.forward(x.clone(), &t, embedding.clone(), text.clone()))
        }
        Stage::Vqgan => vqgan_predictor(files.family().vqgan, files, inputs, device)?,
    })
}

/// A Stage B over tokens with its weights and inputs; it predicts logits.
fn token_predictor(
    files: &ModelFiles,
    inputs: &Checkpoint,
    device: &Device,
) -> Result<Box<dyn Fn() -> Tensor<4>>> {
    let (_, decoder) = files.load::<TokenDecoderConfig>(Part::V1_DECODER, device)?;
    let x = match inputs.integers("x") {
        Some(tokens) => tokens.into_iter().map(|token| token as i32).collect::<Vec<_>>(),
        None => inputs.values("x")?.into_iter().map(|token| token as i32).collect(),
    };
    let shape: [usize; 3] = inputs
        .shape("x")
        .and_then(|shape| shape.try_into().ok())
        .context("input \"x\" must have 3 axes: pictures, height and width in tokens")?;
    let x = Tensor::<3, Int>::from_data(TensorData::new(x, shape), device);
    let t = inputs.values("t")?;
    let text = tensor::<3>(inputs, "text", device)?;
    let embedding = tensor::<4>(inputs, "embedding", device)?;
    Ok(Box::new(move || decoder.forward(x.clone(), &t, embedding.clone(), Some(text.clone()))))
}

/// A stage of Stable Cascade with its weights and inputs.
fn cascade_predictor(
    stage: Stage,
    files: &ModelFiles,
    inputs: &Checkpoint,
    device: &Device,
) -> Result<Box<dyn Fn() -> Tensor<4>>> {
    let part = match stage {
        Stage::Prior => Part::CASCADE_PRIOR,
        Stage::Decoder => Part::CASCADE_DECODER,
        Stage::Vqgan => return vqgan_predictor(Part::CASCADE_VQGAN, files, inputs, device),
    };
    let (_, model) = files.load::<CascadeConfig>(part, device)?;
    let (x, t) = (tensor::<4>(inputs, "x", device)?, inputs.values("t")?);
    let pooled = tensor::<2>(inputs, "pooled", device)?;
    let text = inputs.has("text").then(|| tensor::<3>(inputs, "text", device)).transpose()?;
    let embedding = inputs.has("embedding").then(|| tensor::<4>(inputs, "embedding", device));
    let embedding = embedding.transpose()?;
    Ok(Box::new(move || {
        let conditions = CascadeConditions {
            text: text.clone(),
            image_embedding: embedding.clone(),
            ..CascadeConditions::new(pooled.clone())
        };
        model.forward(x.clone(), &t, &conditions)
    }))
}

fn vqgan_predictor(
    part: Part,
    files: &ModelFiles,
    inputs: &Checkpoint,
    device: &Device,
) -> Result<Box<dyn Fn() -> Tensor<4>>> {
    let (config, vqgan) = files.load::<VqganConfig>(part, device)?;
    let latents = tensor::<4>(inputs, "latents", device)? * config.scale_factor;
    Ok(Box::new(move || vqgan.decode(latents.clone())))
}

fn tensor<const D: usize>(inputs: &Checkpoint, name: &str, device: &Device) -> Result<Tensor<D>> {
    let values = inputs.values(name)?;
    let shape = inputs.shape(name).unwrap_or_default();
    let shape: [usize; D] = shape
        .try_into()
        .ok()
        .with_context(|| format!("input {name:?} must have {D} axes, has shape {shape:?}"))?;
    Ok(Tensor::from_data(TensorData::new(values, shape), device))
}

fn write_dump(path: &Path, name: &str, out: TensorData) -> Result<()> {
    let shape = out.shape().to_vec();
    let values = out.convert::<f32>().try_to_vec::<f32>().expect("converted to f32");
    let out = Checkpoint::from_tensors(
        "out",
        [NamedTensor { name: format!("{name}/out"), shape, values }],
    );
    let bytes = Checkpoint::write([(String::new(), &out)], WeightDtype::F32, None)?;
    Ok(wuerstchen::fs::write(path, &bytes)?)
}
