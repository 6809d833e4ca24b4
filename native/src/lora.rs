//! LoRAs as arguments.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Result;
use wuerstchen::fs::open_lora;
use wuerstchen::{Lora, ModelFiles};

use crate::terminal::visible;

/// A LoRA's file and its weight: `FILE[:WEIGHT]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoraArg {
    pub(crate) path: PathBuf,
    pub(crate) weight: f64,
}

impl FromStr for LoraArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The name of a file may end in a colon and a number itself.
        if Path::new(text).exists() {
            return Ok(Self { path: text.into(), weight: 1.0 });
        }
        let Some((path, weight)) = text.rsplit_once(':') else {
            return Ok(Self { path: text.into(), weight: 1.0 });
        };
        match weight.parse() {
            Ok(weight) => Ok(Self { path: path.into(), weight }),
            Err(_) if Path::new(path).exists() => {
                Err(format!("expected a number as the weight of the LoRA {path}, found {weight:?}"))
            }
            Err(_) => Ok(Self { path: text.into(), weight: 1.0 }),
        }
    }
}

/// Changes Stage C of a model and its text encoder; reports what every file changes and what of it is left out.
pub(crate) fn apply(model: &mut ModelFiles, arguments: &[LoraArg]) -> Result<()> {
    let mut loras = Vec::new();
    for argument in arguments {
        let file = open_lora(&argument.path)?;
        let lora = Lora::read(&file, model, argument.weight)?;
        let (path, summary) = (argument.path.display(), visible(&lora.summary()));
        say!("{path}: {summary}, weight {}", argument.weight);
        for line in lora.left_out() {
            say!("{path}: {}", visible(line));
        }
        loras.push(lora);
    }
    Ok(model.add_loras(loras)?)
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
