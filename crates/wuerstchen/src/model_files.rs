//! The files of a model: a folder in the diffusers layout, or the same in one file.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use burn::tensor::Device;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::card::{CARD, ModelCard};
use crate::checkpoint::{Checkpoint, ReadBytes, WeightDtype, read_header};
use crate::config::ConfigError;
use crate::controlnet::ControlNetConfig;
use crate::error::LoadError;
use crate::family::{Family, PipelineFolder};
use crate::json::reason;
use crate::part::{Part, PartConfig};
use crate::schedule::Schedule;
use crate::text::TokenizerFiles;

/// Version of the one-file format.
const FORMAT: u32 = 1;

/// The text files and weights of a model, by their paths in its folder.
#[derive(Clone, Default)]
pub struct ModelFiles {
    /// Configs, tokenizers, the card.
    pub texts: BTreeMap<String, String>,
    /// The weights of every part that the model has.
    pub weights: BTreeMap<Part, Checkpoint>,
}

/// What the metadata of a one-file model says.
#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    files: BTreeMap<String, String>,
}

/// Key of the header in the metadata of the safetensors file.
const HEADER_KEY: &str = "wuerstchen";

impl ModelFiles {
    /// Reads a one-file model; `name` names it in errors.
    ///
    /// # Errors
    ///
    /// The bytes are not a safetensors file, carry no model header of a known version, or have a tensor of
    /// no part.
    pub fn from_one_file(name: &str, source: Arc<dyn ReadBytes>) -> Result<Self, LoadError> {
        let format = |reason: String| LoadError::File { path: name.to_owned(), reason };
        let (metadata, _) = read_header(name, &*source)?;
        let header = metadata.metadata().as_ref().and_then(|map| map.get(HEADER_KEY));
        let header = header.ok_or_else(|| LoadError::NoModel { name: name.to_owned() })?;
        let header: Header =
            serde_json::from_str(header).map_err(|error| format(format!("metadata: {error}")))?;
        if header.format != FORMAT {
            let found = header.format;
            return Err(format(format!(
                "expected a model of format {FORMAT}, found format {found}"
            )));
        }
        let all = Checkpoint::parse(name, source)?;
        let mut weights = BTreeMap::new();
        for tensor in all.names() {
            let part = Part::of_path(tensor).map_err(|error| LoadError::File {
                path: name.to_owned(),
                reason: error.to_string(),
            })?;
            weights.entry(part).or_insert_with(|| all.under(&format!("{part}/")).clone());
        }
        Ok(Self { texts: header.files, weights })
    }

    /// The model as one safetensors file.
    ///
    /// # Errors
    ///
    /// A tensor cannot be read, is of a type that no weights have, or has values that f16 does not hold.
    pub fn to_one_file(&self, dtype: WeightDtype) -> Result<Vec<u8>, LoadError> {
        let header = Header { format: FORMAT, files: self.texts.clone() };
        let header = serde_json::to_string(&header).expect("a map of strings is JSON");
        let parts = self.weights.iter().map(|(part, weights)| (format!("{part}/"), weights));
        Checkpoint::write(parts, dtype, Some(HashMap::from([(HEADER_KEY.to_owned(), header)])))
    }

    /// The parts that a picture needs and that have no weights here.
    pub fn missing_parts(&self) -> Vec<Part> {
        self.missing_of(self.family().needed())
    }

    /// Those of the given parts that have no weights here.
    pub(crate) fn missing_of(&self, parts: impl Iterator<Item = Part>) -> Vec<Part> {
        parts.filter(|part| !self.weights.contains_key(part)).collect()
    }

    /// A JSON file as a config.
    ///
    /// # Errors
    ///
    /// The file is missing or does not fit; the message says where.
    pub fn config<T: DeserializeOwned>(&self, path: &str) -> Result<T, LoadError> {
        let text = self.text(path)?;
        serde_json::from_str(text)
            .map_err(|error| LoadError::File { path: path.into(), reason: reason(text, &error) })
    }

    /// The config of a part.
    ///
    /// # Errors
    ///
    /// The config is missing or does not fit, or the architecture cannot be of these sizes.
    pub fn part_config<C: PartConfig>(&self, part: Part) -> Result<C, LoadError> {
        C::read(part, self.text(&part.config_path()), self.weights.get(&part))
    }

    /// The config of a ControlNet, which is checked against Stage C's.
    ///
    /// # Errors
    ///
    /// There is no ControlNet, or its config or Stage C's does not fit.
    pub fn controlnet_config(&self, part: Part) -> Result<ControlNetConfig, LoadError> {
        let config: ControlNetConfig = self.part_config(part)?;
        config.check(&self.part_config(Part::CASCADE_PRIOR)?)?;
        Ok(config)
    }

    /// A part with its weights on a device, and its config.
    ///
    /// # Errors
    ///
    /// The config or the weights are missing, or do not fit.
    pub fn load<C: PartConfig>(
        &self,
        part: Part,
        device: &Device,
    ) -> Result<(C, C::Model), LoadError> {
        let config: C = self.part_config(part)?;
        let model = config.load(self.weights(part)?, device)?;
        Ok((config, model))
    }

    /// Compares the names and shapes of all tensors of a part with its config, and reads no values.
    ///
    /// # Errors
    ///
    /// The config does not fit, or every missing, unexpected and misshapen tensor, all at once.
    pub fn check(&self, part: Part, device: &Device) -> Result<(), LoadError> {
        part.check(self.text(&part.config_path()), self.weights(part)?, device)
    }

    /// The model's card; what the card does not say is as published for the model's family.
    ///
    /// # Errors
    ///
    /// The card does not fit.
    pub fn card(&self) -> Result<ModelCard, LoadError> {
        let defaults = (self.family().defaults)();
        let default = ModelCard { defaults, ..ModelCard::default() };
        let card: ModelCard = self.config_over(CARD, json!(default))?;
        card.defaults.validate().map_err(|error| unusable(CARD, &error))?;
        Ok(card)
    }

    /// The noise schedule of a pipeline.
    ///
    /// # Errors
    ///
    /// Its file is missing or does not fit.
    pub fn schedule(&self, pipeline: PipelineFolder) -> Result<Schedule, LoadError> {
        const CLASS: &str = "DDPMWuerstchenScheduler";
        let path = pipeline.scheduler();
        let config: Value = self.config(&path)?;
        if let Some(class) = config["_class_name"].as_str().filter(|class| *class != CLASS) {
            let reason = format!("expected a {CLASS}, found a {class}");
            return Err(LoadError::File { path, reason });
        }
        let schedule: Schedule = self.config(&path)?;
        schedule.validate().map_err(|error| unusable(&path, &error))?;
        Ok(schedule)
    }

    /// The constants of a pipeline; what its file does not say is as published.
    ///
    /// # Errors
    ///
    /// The file does not fit.
    pub fn index<T: DeserializeOwned>(&self, pipeline: PipelineFolder) -> Result<T, LoadError> {
        self.config_over(&pipeline.index(), (pipeline.default_index)())
    }

    /// A JSON file as a config; the fields that it lacks come from `default`.
    fn config_over<T: DeserializeOwned>(&self, path: &str, default: Value) -> Result<T, LoadError> {
        let fail = |error: serde_json::Error| LoadError::File {
            path: path.into(),
            reason: error.to_string(),
        };
        let mut value = default;
        if self.texts.contains_key(path) {
            fill(&mut value, self.config(path)?);
        }
        serde_json::from_value(value).map_err(fail)
    }

    /// The family that the model is of, by its configs and weights: the first one whose Stage C it has, or
    /// else any part.
    pub fn family(&self) -> &'static Family {
        let has = |part: Part| {
            self.weights.contains_key(&part) || self.texts.contains_key(&part.config_path())
        };
        let with_prior = Family::ALL.into_iter().find(|family| has(family.prior()));
        let with_any = || Family::ALL.into_iter().find(|family| family.all_parts().any(has));
        with_prior.or_else(with_any).unwrap_or(&Family::WUERSTCHEN)
    }

    /// The text of a file.
    ///
    /// # Errors
    ///
    /// The file is missing.
    pub fn text(&self, path: &str) -> Result<&str, LoadError> {
        let text = self.texts.get(path).map(String::as_str);
        text.ok_or_else(|| LoadError::MissingFile {
            path: path.into(),
            found: self.texts.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// The weights of a part.
    ///
    /// # Errors
    ///
    /// The part has none.
    pub fn weights(&self, part: Part) -> Result<&Checkpoint, LoadError> {
        self.weights.get(&part).ok_or_else(|| LoadError::MissingFile {
            path: format!("{part}/*.safetensors"),
            found: self.weights.keys().map(Part::to_string).collect::<Vec<_>>().join(", "),
        })
    }

    /// The tokenizer files of a pipeline.
    pub fn tokenizer(&self, pipeline: PipelineFolder) -> TokenizerFiles {
        let folder = pipeline.tokenizer();
        TokenizerFiles::from_named(|file| self.texts.get(&format!("{folder}/{file}")).cloned())
    }
}

/// An error of a field in the file at `path`.
fn unusable(path: &str, error: &ConfigError) -> LoadError {
    LoadError::File { path: path.to_owned(), reason: error.to_string() }
}

/// Puts the fields of `given` in place of those of `value`, recursively.
fn fill(value: &mut Value, given: Value) {
    match (value, given) {
        (Value::Object(fields), Value::Object(given)) => {
            for (name, given) in given {
                fill(fields.entry(name).or_insert(Value::Null), given);
            }
        }
        (value, given) => *value = given,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::NamedTensor;

    #[test]
    fn numbers_that_no_schedule_and_no_sampling_have_are_named_with_their_file() {
        let pipeline = Family::WUERSTCHEN.pipelines[0];
        let with = |path: &str, text: &str| ModelFiles {
            texts: BTreeMap::from([(path.to_owned(), text.to_owned())]),
            ..Default::default()
        };
        let schedule = |text: &str| {
            let error = with(&pipeline.scheduler(), text).schedule(pipeline).unwrap_err();
            error.to_string()
        };
        let file = "wuerstchen-prior/scheduler/scheduler_config.json: ";
        for (text, reason) in [
            (r#"{"scaler": 0, "s": 0.008}"#, "schedule config: scaler must be"),
            (r#"{"scaler": 1, "s": -1}"#, "schedule config: s must be from 0 to 1, got -1"),
            (r#"{"scaler": 1, "s": 0, "shift": 1e9}"#, "schedule config: shift must be"),
            (r#"{"scaler": NaN, "s": 0}"#, "expected value"),
        ] {
            let error = schedule(text);
            assert!(error.starts_with(&format!("{file}{reason}")), "{error}");
        }
        let card = |text: &str| with(CARD, text).card().map_err(|error| error.to_string());
        let error = card(r#"{"defaults": {"prior_shift": 0}}"#).unwrap_err();
        let expected =
            "wuerstchen.json: defaults config: prior_shift must be from 0.01 to 100, got 0";
        assert_eq!(error, expected);
        assert_eq!(card(r#"{"defaults": {"prior_shift": 2}}"#).unwrap().defaults.prior_shift, 2.0);
    }

    #[test]
    fn a_tensor_of_no_part_is_refused() {
        let weights =
            |part: &str| Checkpoint::from_tensors(part, [NamedTensor::new("a", &[1], vec![1.0])]);
        let files = |part: Part| ModelFiles {
            weights: BTreeMap::from([(part, weights(part.folder()))]),
            ..Default::default()
        };
        let bytes = files(Part::PRIOR).to_one_file(WeightDtype::F32).unwrap();
        let read = ModelFiles::from_one_file("sound", Arc::new(bytes)).unwrap();
        assert_eq!(read.weights[&Part::PRIOR].values("a").unwrap(), [1.0]);

        let header = serde_json::to_string(&Header { format: FORMAT, files: BTreeMap::new() });
        let metadata = HashMap::from([(HEADER_KEY.to_owned(), header.unwrap())]);
        let other = [("wuerstchen/unet/".to_owned(), &weights("other"))];
        let bytes = Checkpoint::write(other, WeightDtype::F32, Some(metadata)).unwrap();
        let error = ModelFiles::from_one_file("other", Arc::new(bytes)).err().unwrap().to_string();
        assert!(
            error.starts_with("other: unknown part \"wuerstchen/unet/a\": expected one of"),
            "{error}"
        );
    }
}
