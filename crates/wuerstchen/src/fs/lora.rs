//! LoRAs as they lie on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Result, unfit};
use super::files;
use super::hub::snapshot;
use super::pytorch::{read_numbers, read_pytorch_tensors};
use super::shards::{PYTORCH, is_pytorch};
use super::text::read_text;
use crate::card::TUNED_LORA;
use crate::lora::LoraFile;
use crate::stored::StoredDtype;

/// The names that peft and diffusers give to LoRAs' files in folders of their own.
pub const LORA_FILES: [&str; 4] =
    ["adapter_model.safetensors", TUNED_LORA, "adapter_model.bin", "pytorch_lora_weights.bin"];

/// The config that peft writes beside a LoRA's file.
const CONFIG: &str = "adapter_config.json";

/// Opens a LoRA: a file of safetensors or of PyTorch, or a folder of peft or diffusers, with the config that
/// peft writes beside it.
///
/// # Errors
///
/// Names the file or folder that cannot be read or is no LoRA.
pub fn open_lora(path: &Path) -> Result<LoraFile> {
    let path = &if path.is_dir() { file_in(path)? } else { path.to_owned() };
    let file = if is_pytorch(path)? {
        let mut tensors = read_pytorch_tensors(path)?;
        // Some programs write the alpha as a number in place of a tensor.
        for (key, alpha) in read_numbers(path)? {
            if key.ends_with(".alpha") && !tensors.has(&key) {
                let bytes = Arc::new(alpha.to_le_bytes());
                tensors.insert(&key, StoredDtype::F64, &[], bytes, 0..8)?;
            }
        }
        LoraFile::from(tensors)
    } else {
        LoraFile::parse(&path.display().to_string(), Arc::new(files::read(path)?))?
    };
    let config = config_of(path)?.map(|path| read_text(&path)).transpose()?;
    Ok(file.with_adapter_config(config))
}

/// The LoRA in a folder: a file of a known name, or else that of a repository in Hugging Face's cache, or else the only
/// `.safetensors` file, or else the only one of PyTorch.
fn file_in(folder: &Path) -> Result<PathBuf> {
    let known: Vec<_> = LORA_FILES.into_iter().filter(|file| folder.join(file).is_file()).collect();
    // A repository may have the same LoRA in both formats.
    let stem = |file: &str| file.split_once('.').map(|(stem, _)| stem.to_owned());
    match known[..] {
        [] => {}
        [first, ..] if known.iter().all(|file| stem(file) == stem(first)) => {
            return Ok(folder.join(first));
        }
        _ => {
            let reason =
                format!("expected one LoRA, found {}: name one of the files", known.join(", "));
            return Err(unfit(folder, reason));
        }
    }
    let in_cache = snapshot(folder)?;
    if in_cache != folder {
        return file_in(&in_cache);
    }
    let mut found = files::with_extension(folder, "safetensors")?;
    if found.is_empty() {
        for extension in PYTORCH {
            found.extend(files::with_extension(folder, extension)?);
        }
    }
    match &found[..] {
        [only] => Ok(only.clone()),
        _ => {
            let (count, expected) = (found.len(), LORA_FILES.join(", "));
            let reason = format!(
                "expected a LoRA, that is {expected} or one file of safetensors or PyTorch, found {count} such files"
            );
            Err(unfit(folder, reason))
        }
    }
}

/// The config beside a file, unless that is of another file there. Its name may be in any case.
fn config_of(path: &Path) -> Result<Option<PathBuf>> {
    let is_named = |path: &Path| LORA_FILES.iter().any(|name| path.ends_with(name));
    let is_of_another =
        !is_named(path) && LORA_FILES.iter().any(|name| path.with_file_name(name).is_file());
    if is_of_another {
        return Ok(None);
    }
    let config = path.with_file_name(CONFIG);
    if config.is_file() {
        return Ok(Some(config));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let beside = files::with_extension(folder.unwrap_or(Path::new(".")), "json")?;
    let is_config =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.eq_ignore_ascii_case(CONFIG));
    Ok(beside.into_iter().find(is_config))
}
