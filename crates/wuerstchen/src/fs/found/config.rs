//! The configs that lie beside weights, and what they say that these are.

use std::path::Path;

use serde_json::Value;

use super::super::error::{OpenError, Result, unfit};
use super::{ORIGINALS, read_if_there};
use crate::authors_config;
use crate::family::Family;
use crate::json::reason;
use crate::part::Part;

/// The text of the `config.json` beside a file of weights, or of the authors' one for all stages beside the
/// folder of their files.
pub(super) fn config_beside(weights: &Path) -> Result<Option<String>> {
    let path = weights.with_file_name("config.json");
    if let Some(config) = read_if_there(&path)? {
        check_object(&path, &config)?;
        return Ok(Some(config));
    }
    let Some(folder) = weights.parent() else { return Ok(None) };
    let path = folder.with_file_name("config.json");
    let Some(config) = read_if_there(&path)? else { return Ok(None) };
    if folder.ends_with(ORIGINALS) {
        check_object(&path, &config)?;
    }
    Ok(Some(config).filter(|text| authors_config::is_one(text)))
}

/// Fails where a config is no JSON object.
fn check_object(path: &Path, config: &str) -> Result<()> {
    match serde_json::from_str(config) {
        Ok(Value::Object(_)) => Ok(()),
        Ok(_) => Err(unfit(path, "expected a JSON object".to_owned())),
        Err(error) => {
            Err(unfit(path, format!("expected a JSON object: {}", reason(config, &error))))
        }
    }
}

/// Whether a config is not of another kind of part, as far as it says what it is of.
pub(super) fn describes(config: &str, part: Part) -> bool {
    class_of(config).is_none_or(|class| part.is_of_class(&class))
}

/// Fails where a folder says that it holds a pipeline of another model.
pub(super) fn refuse_other_pipeline(folder: &Path) -> Result<()> {
    let index = read_if_there(&folder.join("model_index.json"))?;
    let mut known = Family::ALL.into_iter().flat_map(|family| family.pipelines);
    match index.as_deref().and_then(class_of) {
        Some(class) if !known.any(|own| class.starts_with(own.family_class)) => {
            Err(other_pipeline(folder, &class))
        }
        _ => Ok(()),
    }
}

/// The error of a folder that holds a pipeline of another model.
pub(super) fn other_pipeline(folder: &Path, class: &str) -> OpenError {
    unfit(folder, format!("expected a pipeline of Würstchen, found a {class}"))
}

/// The class of diffusers or transformers that a config is of.
pub(super) fn class_of(config: &str) -> Option<String> {
    let config: Value = serde_json::from_str(config).ok()?;
    let class = config["_class_name"].as_str().or_else(|| config["architectures"][0].as_str());
    class.map(str::to_owned)
}
