//! `wuerstchen inspect`: what is in a picture or a model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use wuerstchen::fs::{open, open_lora, read};
use wuerstchen::import::complete;
use wuerstchen::{CARD, Checkpoint, ControlNetConfig, ModelFiles, Part, Provenance};

use crate::files;
use crate::terminal::{visible, visible_lines};

/// Arguments of `wuerstchen inspect`.
#[derive(Args)]
pub(crate) struct InspectArgs {
    /// A generated PNG file, a LoRA, a model, a part of a model, or a file of weights as `import` takes them
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is known about a part of a model.
#[derive(Serialize)]
struct PartReport {
    tensors: usize,
    parameters: usize,
    bytes: usize,
    dtypes: BTreeSet<String>,
    config: Value,
    /// What a ControlNet takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    takes: Option<String>,
}

#[derive(Serialize)]
struct Model {
    card: Value,
    parameters: usize,
    bytes: usize,
    parts: BTreeMap<Part, PartReport>,
}

const PNG_SIGNATURE: &[u8] = b"\x89PNG";

/// Prints what the file tells.
pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    if args.path.is_file() {
        let cannot = || format!("cannot read {}", args.path.display());
        let file = open(&args.path)?;
        let start = file.read(0..file.length().min(PNG_SIGNATURE.len())).with_context(cannot)?;
        if *start == *PNG_SIGNATURE {
            let bytes = read(&args.path)?;
            let found = Provenance::from_png(&bytes).with_context(cannot)?;
            let Some(found) = found else {
                bail!("{}: this picture does not tell how it was made", args.path.display());
            };
            return print_picture(&found, args.json);
        }
    }
    if let Ok(file) = open_lora(&args.path) {
        let lines = file.summary()?;
        if let [lora, left_out @ ..] = &lines[..] {
            let text = json!({"lora": lora, "leftOut": left_out}).to_string();
            let lines = visible_lines(&lines.join("\n"));
            return crate::print(if args.json { &text } else { &lines });
        }
    }
    let mut files = files::read_model(Some(&args.path))?;
    // Files of weights may have no configs. Where the weights do not tell the sizes either, the sizes stay unknown.
    let _ = complete(&mut files);
    let model = describe(&files);
    if args.json {
        crate::print(&serde_json::to_string(&model)?)
    } else {
        crate::print(visible_lines(&model_text(&model)).trim_end())
    }
}

fn print_picture(found: &Provenance, json: bool) -> Result<()> {
    if json {
        return crate::print(&serde_json::to_string(found)?);
    }
    let mut lines = vec![format!("prompt: {}", found.prompt)];
    if !found.model.is_empty() {
        lines.push(format!("model: {}", found.model));
    }
    lines.push(format!("image: {}", found.image));
    lines.push(format!("version: {}", found.version));
    for (name, value) in found.settings.as_object().into_iter().flatten() {
        lines.push(format!("{name}: {value}"));
    }
    // A prompt may have lines of its own, which must not pass for those of this report.
    let lines: Vec<_> = lines.iter().map(|line| visible(line)).collect();
    crate::print(&lines.join("\n"))
}

fn describe(files: &ModelFiles) -> Model {
    let json = |path: &str| {
        let text = files.texts.get(path);
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null)
    };
    let part = |(&part, weights): (&Part, &Checkpoint)| {
        let mut report = describe_part(weights, json(&part.config_path()));
        // Published ControlNets have no config: their weights tell.
        if part == Part::CASCADE_CONTROLNET
            && let Ok(config) = files.part_config::<ControlNetConfig>(part)
        {
            report.takes = Some(config.takes());
            report.config = serde_json::to_value(config).unwrap_or_default();
        }
        (part, report)
    };
    let parts: BTreeMap<_, _> = files.weights.iter().map(part).collect();
    Model {
        card: json(CARD),
        parameters: parts.values().map(|part| part.parameters).sum(),
        bytes: parts.values().map(|part| part.bytes).sum(),
        parts,
    }
}

fn describe_part(weights: &Checkpoint, config: Value) -> PartReport {
    let parameters = weights.parameters();
    let dtypes = BTreeSet::new();
    let mut part = PartReport { tensors: 0, parameters, bytes: 0, dtypes, config, takes: None };
    for (_, dtype, _, bytes) in weights.describe() {
        part.tensors += 1;
        part.bytes += bytes;
        part.dtypes.insert(format!("{dtype:?}").to_lowercase());
    }
    part
}

fn model_text(model: &Model) -> String {
    let mut lines = Vec::new();
    lines.push(format!("{:<36}{:>8}{:>16}{:>16}  types", "part", "tensors", "parameters", "bytes"));
    for (name, part) in &model.parts {
        let types: Vec<_> = part.dtypes.iter().map(String::as_str).collect();
        lines.push(format!(
            "{name:<36}{:>8}{:>16}{:>16}  {}",
            part.tensors,
            part.parameters,
            part.bytes,
            types.join(", ")
        ));
    }
    lines.push(format!("{:<44}{:>16}{:>16}", "all", model.parameters, model.bytes));
    for (name, part) in &model.parts {
        if let Some(config) = part.config.as_object() {
            lines.push(format!("\n{name}"));
            for (field, value) in config.iter().filter(|(field, _)| !field.starts_with('_')) {
                lines.push(format!("  {field}: {value}"));
            }
        }
        lines.extend(part.takes.as_ref().map(|takes| format!("  takes: {takes}")));
    }
    if let Some(card) = model.card.as_object() {
        lines.push("\nmodel".to_string());
        for (field, value) in card {
            lines.push(format!("  {field}: {value}"));
        }
    }
    lines.join("\n")
}
