//! `wuerstchen import`: turns published weights into a model of one folder.

use std::path::PathBuf;

use anyhow::{Context, Result};
use burn::tensor::Device;
use clap::Args;
use serde::Serialize;
use wuerstchen::card::CARD;
use wuerstchen::fs::{Found, LORA_FILES, PartOrigin};
use wuerstchen::import::complete;
use wuerstchen::{Checkpoint, LoadError, ModelFiles, Part, Pipeline, Residency};

use crate::export::{Dtype, finish_bundle, write_shards};
use crate::files;
use crate::lora::{self, LoraArg};
use crate::new_folder::{NewFolder, check_new};
use crate::terminal::visible_lines;

/// Arguments of `wuerstchen import`.
#[derive(Args)]
pub(crate) struct ImportArgs {
    /// Folders in the diffusers layout, safetensors files, the authors' .pt files, in any order. The tensors of a
    /// file tell which part it is
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The folder to write [default: only report]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Merge a LoRA into Stage C and its text encoder, with a weight after a colon [default: 1]; may be given
    /// several times
    #[arg(long, value_name = "FILE[:WEIGHT]")]
    lora: Vec<LoraArg>,
    /// How weights are stored [default: i4 or i8 if all linear layers are and no LoRA is merged, else
    /// f16]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What became of the files.
#[derive(Serialize)]
struct Report {
    /// Whether every part that is there is whole, and all together are a model if none is lacking.
    ok: bool,
    parts: Vec<PartReport>,
    /// Configs that no file had. They were read off the weights, or are the published ones.
    assumed: Vec<String>,
    /// The parts that a picture from a prompt still needs.
    lacking: Vec<String>,
}

#[derive(Serialize)]
struct PartReport {
    part: Part,
    #[serde(flatten)]
    origin: PartOrigin,
    tensors: usize,
    parameters: usize,
    /// The missing, unexpected and misshapen tensors; or those with infinite values or NaN.
    problem: Option<String>,
}

/// Imports; false if a part is not whole.
pub(crate) fn run(args: &ImportArgs) -> Result<bool> {
    args.output.as_deref().map(check_new).transpose()?;
    let mut found = Found::default();
    for path in &args.paths {
        files::add(&mut found, path)?;
    }
    let mut model = found.finish()?;
    let assumed = complete(&mut model)?;
    lora::apply(&mut model, &args.lora)?;
    write_merged(&mut model, &args.lora)?;
    args.paths.iter().for_each(|path| files::tell_of_missing(path));
    // What is written is checked on the way.
    let mut report = report(&found, &model, assumed, args.output.is_none());
    let mut loaded = Ok(());
    if report.ok && report.lacking.is_empty() {
        // This reads no weights, but reports what no program could load before minutes of work.
        loaded = Pipeline::load(&model, &Device::flex(), Residency::PerStage)
            .and_then(|_| check_controlnet(&model));
        report.ok = loaded.is_ok();
    }
    crate::print(&if args.json {
        serde_json::to_string(&report)?
    } else {
        visible_lines(&text(&report))
    })?;
    loaded.context(match &args.output {
        Some(_) => "the parts are no model together, so nothing is written",
        None => "the parts are no model together",
    })?;
    let Some(output) = args.output.as_ref().filter(|_| report.ok) else { return Ok(report.ok) };
    let folder = NewFolder::begin(output)?;
    let default = || if args.lora.is_empty() { Dtype::default_of(&model) } else { Dtype::F16 };
    let dtype = args.dtype.unwrap_or_else(default);
    finish_bundle(&write_shards(&model, dtype, &folder)?, folder)?;
    Ok(true)
}

/// Fails if the model has a ControlNet that does not fit its Stage C.
fn check_controlnet(model: &ModelFiles) -> Result<(), LoadError> {
    let part = model.family().controlnet.filter(|part| model.weights.contains_key(part));
    part.map_or(Ok(()), |part| model.controlnet_config(part).map(|_| ()))
}

/// Writes into the model's card which LoRAs are merged into it.
fn write_merged(model: &mut ModelFiles, loras: &[LoraArg]) -> Result<()> {
    if loras.is_empty() {
        return Ok(());
    }
    let name = |lora: &LoraArg| {
        let path = lora.path.canonicalize().unwrap_or_else(|_| lora.path.clone());
        // Trainers give all LoRA files of a kind the same name, so that only the folder tells them apart.
        let named =
            if LORA_FILES.iter().any(|file| path.ends_with(file)) { path.parent() } else { None };
        let named = named.unwrap_or(&path);
        // The name of a folder has no ending, though it may have a dot.
        let name = if named.is_dir() { named.file_name() } else { named.file_stem() };
        name.unwrap_or_default().display().to_string()
    };
    let merged: Vec<_> =
        loras.iter().map(|lora| format!("{} at weight {}", name(lora), lora.weight)).collect();
    let mut card = model.card()?;
    let merged = format!("with the LoRA {}", merged.join(", the LoRA "));
    card.name = format!("{} {merged}", card.name).trim().to_owned();
    card.provenance = match card.provenance.trim_end_matches('.') {
        "" => format!("merged {merged}"),
        own => format!("{own}; merged {merged}"),
    };
    model.texts.insert(CARD.into(), serde_json::to_string_pretty(&card)?);
    Ok(())
}

fn report(found: &Found, model: &ModelFiles, assumed: Vec<String>, reads_values: bool) -> Report {
    let device = Device::flex();
    let problem = |part: Part, weights: &Checkpoint| {
        model.check(part, &device)?;
        if reads_values { weights.check_finite() } else { Ok(()) }
    };
    let part = |(&part, origin): (&Part, &PartOrigin)| {
        let weights = &model.weights[&part];
        PartReport {
            part,
            origin: origin.clone(),
            tensors: weights.names().count(),
            parameters: weights.parameters(),
            problem: problem(part, weights).err().map(|error| error.to_string()),
        }
    };
    let parts: Vec<_> = found.origins.iter().map(part).collect();
    let family = model.family();
    let mut lacking: Vec<_> = model.missing_parts().iter().map(Part::to_string).collect();
    // Stage B needs a tokenizer where it has a text encoder.
    let encoders = [Some(family.prior_text), family.decoder_text];
    for (pipeline, _) in family.pipelines.iter().zip(encoders).filter(|(_, text)| text.is_some()) {
        if !model.tokenizer(*pipeline).is_complete() {
            lacking.push(pipeline.tokenizer());
        }
    }
    Report { ok: parts.iter().all(|part| part.problem.is_none()), parts, assumed, lacking }
}

fn text(report: &Report) -> String {
    let mut lines =
        vec![format!("{:<36}{:<16}{:>8}{:>16}  from", "part", "layout", "tensors", "parameters")];
    for part in &report.parts {
        lines.push(format!(
            "{:<36}{:<16}{:>8}{:>16}  {}",
            part.part,
            part.origin.layout.name(),
            part.tensors,
            part.parameters,
            part.origin.path.display()
        ));
    }
    lines.extend(report.parts.iter().filter_map(|part| part.problem.clone()));
    lines.extend(report.assumed.iter().map(|path| format!("assumed: {path}")));
    lines.extend(report.lacking.iter().map(|part| format!("lacking for pictures: {part}")));
    lines.join("\n")
}
