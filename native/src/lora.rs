//! LoRAs as they lie on disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result};
use wuerstchen::{Checkpoint, Lora, ModelFiles, layout};

use crate::files;

/// A file and how strong it is: `FILE[:WEIGHT]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoraArg {
    pub(crate) path: PathBuf,
    pub(crate) weight: f64,
}

impl FromStr for LoraArg {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let weighted = text.rsplit_once(':').and_then(|(path, weight)| {
            Some(Self { path: path.into(), weight: weight.parse().ok()? })
        });
        Ok(weighted.unwrap_or_else(|| Self { path: text.into(), weight: 1.0 }))
    }
}

/// The names that peft and diffusers give to files in a folder of their own.
const FILES: [&str; 2] = ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"];

/// What peft writes beside the first of them.
const CONFIG: &str = "adapter_config.json";

/// Changes Stage C of a model.
pub(crate) fn apply(model: &mut ModelFiles, arguments: &[LoraArg]) -> Result<()> {
    if arguments.is_empty() {
        return Ok(());
    }
    let weights = model.weights(layout::PRIOR)?;
    let mut loras = Vec::new();
    for argument in arguments {
        let lora = read(argument, weights)?;
        let ranks: Vec<_> = lora.ranks().iter().map(usize::to_string).collect();
        let (path, layers) = (argument.path.display(), lora.targets().count());
        eprintln!(
            "{path}: changes {layers} layers of Stage C, rank {}, weight {}",
            ranks.join(" and "),
            argument.weight
        );
        loras.push(lora);
    }
    let changed = weights.with_loras(loras)?;
    model.weights.insert(layout::PRIOR.to_owned(), changed);
    Ok(())
}

fn read(argument: &LoraArg, weights: &Checkpoint) -> Result<Lora> {
    let path = match argument.path.is_dir() {
        true => {
            let mut files = FILES.iter().map(|file| argument.path.join(file));
            files.find(|file| file.is_file()).with_context(|| {
                format!("{}: expected {} in it", argument.path.display(), FILES.join(" or "))
            })?
        }
        false => argument.path.clone(),
    };
    let name = path.display().to_string();
    let file = Checkpoint::parse(&name, Arc::new(files::read(&path)?))?;
    let config = config_of(&path).map(|path| {
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    });
    Ok(Lora::read(&file, weights, config.transpose()?.as_deref(), argument.weight)?)
}

/// The config that belongs to a file of peft.
fn config_of(path: &Path) -> Option<PathBuf> {
    let is_adapter = path.file_name().is_some_and(|name| name == FILES[0]);
    is_adapter.then(|| path.with_file_name(CONFIG)).filter(|config| config.is_file())
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
    }
}
