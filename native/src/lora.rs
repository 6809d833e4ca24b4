//! LoRAs as they lie on disk.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Result, bail};
use wuerstchen::{Lora, LoraFile, ModelFiles};

use crate::files;
use crate::pytorch::read_pytorch_tensors;
use crate::shards::is_pytorch;
use crate::text::read_text;

/// A file and how strong it is: `FILE[:WEIGHT]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoraArg {
    pub(crate) path: PathBuf,
    pub(crate) weight: f64,
}

impl FromStr for LoraArg {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The name of a file may end in a colon and a number itself.
        if Path::new(text).exists() {
            return Ok(Self { path: text.into(), weight: 1.0 });
        }
        let weighted = text.rsplit_once(':').and_then(|(path, weight)| {
            Some(Self { path: path.into(), weight: weight.parse().ok()? })
        });
        Ok(weighted.unwrap_or_else(|| Self { path: text.into(), weight: 1.0 }))
    }
}

/// The names that peft and diffusers give to files in a folder of their own.
const FILES: [&str; 4] = [
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
];

/// What peft writes beside them.
const CONFIG: &str = "adapter_config.json";

/// Changes Stage C of a model and its text encoder; says what every file does, and what of it is left
/// out.
pub(crate) fn apply(model: &mut ModelFiles, arguments: &[LoraArg]) -> Result<()> {
    let mut loras = Vec::new();
    for argument in arguments {
        let lora = read(argument, model)?;
        eprintln!("{}: {}, weight {}", argument.path.display(), lora.summary(), argument.weight);
        for line in lora.left_out() {
            eprintln!("{}: {line}", argument.path.display());
        }
        loras.push(lora);
    }
    Ok(model.add_loras(loras)?)
}

fn read(argument: &LoraArg, model: &ModelFiles) -> Result<Lora> {
    let path = match argument.path.is_dir() {
        true => file_in(&argument.path)?,
        false => argument.path.clone(),
    };
    let file = match is_pytorch(&path)? {
        true => LoraFile::from(read_pytorch_tensors(&path)?),
        false => LoraFile::parse(&path.display().to_string(), Arc::new(files::read(&path)?))?,
    };
    let config = config_of(&path).map(|path| read_text(&path)).transpose()?;
    Ok(Lora::read(&file.with_adapter_config(config), model, argument.weight)?)
}

/// The LoRA in a folder: a file of a known name, or else the only one of weights.
fn file_in(folder: &Path) -> Result<PathBuf> {
    let mut known = FILES.iter().map(|file| folder.join(file));
    if let Some(known) = known.find(|file| file.is_file()) {
        return Ok(known);
    }
    let found = files::with_extension(folder, "safetensors")?;
    match &found[..] {
        [only] => Ok(only.clone()),
        _ => {
            let (folder, count, expected) = (folder.display(), found.len(), FILES.join(", "));
            bail!("{folder}: expected one safetensors file or {expected}, found {count} files")
        }
    }
}

/// The config beside a file, unless that is of another file there.
fn config_of(path: &Path) -> Option<PathBuf> {
    let is_named = |path: &Path| FILES.iter().any(|name| path.ends_with(name));
    let is_of_another =
        !is_named(path) && FILES.iter().any(|name| path.with_file_name(name).is_file());
    Some(path.with_file_name(CONFIG)).filter(|config| !is_of_another && config.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_stand_behind_the_last_colon() {
        let parse = |text: &str| {
            let LoraArg { path, weight } = text.parse().unwrap();
            (path.display().to_string(), weight)
        };
        assert_eq!(parse("a.safetensors"), ("a.safetensors".into(), 1.0));
        assert_eq!(parse("a.safetensors:-0.5"), ("a.safetensors".into(), -0.5));
        assert_eq!(parse(r"c:\a.safetensors"), (r"c:\a.safetensors".into(), 1.0));
        assert_eq!(parse(r"c:\a.safetensors:2"), (r"c:\a.safetensors".into(), 2.0));
        let name = std::env::temp_dir().join(format!("wuerstchen-{}:2", std::process::id()));
        let name = name.display().to_string();
        assert_eq!(parse(&name).1, 2.0);
        std::fs::write(&name, "").unwrap();
        let (whole, weighted) = (parse(&name), parse(&format!("{name}:0.5")));
        std::fs::remove_file(&name).unwrap();
        assert_eq!((whole, weighted), ((name.clone(), 1.0), (name, 0.5)));
    }
}
