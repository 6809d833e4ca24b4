//! `wuerstchen inspect`: what is in a picture or a model.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use wuerstchen::{Checkpoint, ModelFiles, layout};

use crate::files;
use crate::generate::{PNG_KEY, Provenance};

/// Arguments of `wuerstchen inspect`.
#[derive(Args)]
pub(crate) struct InspectArgs {
    /// A generated PNG, a model folder or a bundle file
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is known about a part of a model.
#[derive(Serialize)]
struct Part {
    tensors: usize,
    parameters: usize,
    bytes: usize,
    dtypes: BTreeSet<String>,
    config: Value,
}

#[derive(Serialize)]
struct Model {
    card: Value,
    parameters: usize,
    bytes: usize,
    parts: BTreeMap<String, Part>,
}

const PNG_SIGNATURE: &[u8] = b"\x89PNG";

/// Prints what the file tells.
pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    if args.path.is_file() {
        let bytes = files::read(&args.path)?;
        if bytes.starts_with(PNG_SIGNATURE) {
            let found = provenance(&bytes)
                .with_context(|| format!("cannot read {}", args.path.display()))?;
            let Some(found) = found else {
                bail!("{}: this picture does not tell how it was made", args.path.display());
            };
            return print_picture(&found, args.json);
        }
    }
    let model = describe(&files::read_model(&args.path)?);
    match args.json {
        true => println!("{}", serde_json::to_string(&model)?),
        false => print_model(&model),
    }
    Ok(())
}

/// How a picture was made; `None` if it does not tell.
pub(crate) fn provenance(bytes: &[u8]) -> Result<Option<Provenance>> {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info()?;
    reader.finish()?;
    for chunk in &reader.info().utf8_text {
        if chunk.keyword == PNG_KEY {
            return Ok(Some(serde_json::from_str(&chunk.get_text()?)?));
        }
    }
    Ok(None)
}

fn print_picture(found: &Provenance, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(found)?);
        return Ok(());
    }
    println!("prompt: {}", found.prompt);
    if !found.model.is_empty() {
        println!("model: {}", found.model);
    }
    println!("image: {}", found.image);
    println!("version: {}", found.version);
    for (name, value) in found.settings.as_object().into_iter().flatten() {
        println!("{name}: {value}");
    }
    Ok(())
}

fn describe(files: &ModelFiles) -> Model {
    let json = |path: &str| {
        let text = files.texts.get(path);
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null)
    };
    let part = |(name, weights): (&String, &Checkpoint)| {
        (name.clone(), describe_part(weights, json(&format!("{name}/config.json"))))
    };
    let parts: BTreeMap<_, _> = files.weights.iter().map(part).collect();
    Model {
        card: json(layout::CARD),
        parameters: parts.values().map(|part| part.parameters).sum(),
        bytes: parts.values().map(|part| part.bytes).sum(),
        parts,
    }
}

fn describe_part(weights: &Checkpoint, config: Value) -> Part {
    let mut part = Part { tensors: 0, parameters: 0, bytes: 0, dtypes: BTreeSet::new(), config };
    for (_, dtype, shape) in weights.describe() {
        let count: usize = shape.iter().product();
        part.tensors += 1;
        part.parameters += count;
        part.bytes += count * dtype_bytes(&dtype);
        part.dtypes.insert(dtype);
    }
    part
}

/// Bytes of a value, from the number of bits in the type's name.
fn dtype_bytes(dtype: &str) -> usize {
    let bits: String = dtype.chars().filter(char::is_ascii_digit).collect();
    bits.parse::<usize>().map_or(1, |bits| bits / 8)
}

fn print_model(model: &Model) {
    println!("{:<32}{:>8}{:>16}{:>16}  types", "part", "tensors", "parameters", "bytes");
    for (name, part) in &model.parts {
        let types: Vec<_> = part.dtypes.iter().map(String::as_str).collect();
        println!(
            "{name:<32}{:>8}{:>16}{:>16}  {}",
            part.tensors,
            part.parameters,
            part.bytes,
            types.join(", ")
        );
    }
    println!("{:<40}{:>16}{:>16}", "all", model.parameters, model.bytes);
    for (name, part) in &model.parts {
        if let Some(config) = part.config.as_object() {
            println!("\n{name}");
            for (field, value) in config.iter().filter(|(field, _)| !field.starts_with('_')) {
                println!("  {field}: {value}");
            }
        }
    }
    if let Some(card) = model.card.as_object() {
        println!("\nmodel");
        for (field, value) in card {
            println!("  {field}: {value}");
        }
    }
}
