//! A part of a model: one of its networks, with all that loading and writing its weights needs.
//!
//! Which parts there are is in [`crate::family`].

use std::fmt;

use burn::module::Module;
use burn::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::config::ConfigError;
use crate::error::LoadError;
use crate::json::reason;
use crate::weights::{KeyTable, check, load, tensors};

/// Names the steps of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// All text encoders.
    Text,
    /// Stage C.
    Prior,
    /// Stage B.
    Decoder,
    /// Stage A.
    Vqgan,
}

impl Stage {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "the text encoders",
            Self::Prior => "Stage C",
            Self::Decoder => "Stage B",
            Self::Vqgan => "Stage A",
        }
    }
}

/// The config of a part, which is of one type for each kind of network.
pub trait PartConfig: Serialize + DeserializeOwned {
    /// The network.
    type Model: Module;

    /// What diffusers or transformers call the network in its config.
    const CLASS: &'static str;

    /// What diffusers or transformers call the network's file of weights.
    const WEIGHTS_FILE: &'static str = "diffusion_pytorch_model.safetensors";

    /// The names of the network's fields in a checkpoint.
    const KEYS: KeyTable;

    /// Whether the weights determine what the config leaves out, so that a part needs no config.
    const TOLD_BY_WEIGHTS: bool = false;

    /// Checks what the architecture needs of the sizes.
    ///
    /// # Errors
    ///
    /// Names the first field that cannot be used and what it needs.
    fn validate(&self) -> Result<(), ConfigError>;

    /// Initializes the network on `device` as the authors start training.
    fn init(&self, device: &Device) -> Self::Model;

    /// Infers the sizes from the weights; sizes that the weights do not determine are as published. `None` where the
    /// weights are not those of such a network.
    fn infer(weights: &Checkpoint) -> Option<Self>;

    /// Reads the config of `part`. `text` is the content of its file, or the error where there is no file; `weights`
    /// fill in what the text does not say, if [`Self::TOLD_BY_WEIGHTS`].
    ///
    /// # Errors
    ///
    /// There is no config, it does not fit, or the architecture cannot be of these sizes.
    fn read(
        part: Part,
        text: Result<&str, LoadError>,
        weights: Option<&Checkpoint>,
    ) -> Result<Self, LoadError> {
        let fail = |reason: String| LoadError::File { path: part.config_path(), reason };
        let unfit = |error: serde_json::Error| fail(error.to_string());
        let unread = |text: &str, error: serde_json::Error| fail(reason(text, &error));
        let config: Self = if Self::TOLD_BY_WEIGHTS {
            let read = |text| serde_json::from_str(text).map_err(|error| unread(text, error));
            let given: Map<String, Value> = match text {
                Ok(text) => read(text)?,
                Err(_) if weights.is_none() => {
                    let reason = "the model lacks this part".to_owned();
                    return Err(LoadError::File { path: part.to_string(), reason });
                }
                Err(_) => Map::new(),
            };
            let told = weights.and_then(Self::infer).map(|config| config.to_json());
            let mut fields = told.unwrap_or_default();
            fields.extend(given);
            serde_json::from_value(fields.into()).map_err(unfit)?
        } else {
            let text = text?;
            serde_json::from_str(text).map_err(|error| unread(text, error))?
        };
        config.validate()?;
        Ok(config)
    }

    /// The fields of the config's file.
    fn to_json(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            other => unreachable!("a config is a JSON object, not {other:?}"),
        }
    }

    /// The network with its weights.
    ///
    /// # Errors
    ///
    /// Every missing, unexpected and misshapen tensor, all at once, or a tensor of a type that no weights have, or with
    /// values that are not finite.
    fn load(&self, weights: &Checkpoint, device: &Device) -> Result<Self::Model, LoadError> {
        load(self.init(device), weights, Self::KEYS)
    }

    /// The weights of `part`, under their names in a checkpoint.
    fn weights(part: Part, model: &Self::Model) -> Checkpoint {
        Checkpoint::from_tensors(part.folder(), tensors(model, Self::KEYS))
    }
}

/// Compares the weights of a part with the text of its config, or fails with the error that stands in its place.
type Check = fn(Part, Result<&str, LoadError>, &Checkpoint, &Device) -> Result<(), LoadError>;

/// What there is to say about all networks of a kind, whatever the type of their config.
pub struct Network {
    class: &'static str,
    weights_file: &'static str,
    keys: KeyTable,
    told_by_weights: bool,
    infer: fn(&Checkpoint) -> Option<Map<String, Value>>,
    check: Check,
}

impl Network {
    /// The networks whose config is of type `C`.
    pub(crate) const fn of<C: PartConfig>() -> Self {
        Self {
            class: C::CLASS,
            weights_file: C::WEIGHTS_FILE,
            keys: C::KEYS,
            told_by_weights: C::TOLD_BY_WEIGHTS,
            infer: |weights| C::infer(weights).map(|config| config.to_json()),
            check: |part, text, weights, device| {
                let config = C::read(part, text, Some(weights))?;
                // Nothing is put on the device: parameters wait for their values.
                check(&config.init(device), weights, C::KEYS)
            },
        }
    }

    /// As [`Self::of`], with another way to read a config off weights.
    pub(crate) const fn inferred(
        mut self,
        infer: fn(&Checkpoint) -> Option<Map<String, Value>>,
    ) -> Self {
        self.infer = infer;
        self
    }
}

/// What makes a part what it is.
pub(crate) struct Description {
    /// Its folder in that of the model.
    pub(crate) folder: &'static str,
    /// The stage that it works for; `None` where a picture from a prompt does not need it.
    pub(crate) stage: Option<Stage>,
    /// A tensor that no other kind of network has.
    pub(crate) mark: &'static str,
    /// A tensor that the part does not have: it tells another family's network of this kind, which has `mark` as well.
    pub(crate) lacks: Option<&'static str>,
    /// Tells parts of the same kind apart: another part, and its tensor whose second axis is as long as
    /// that of `mark`.
    pub(crate) beside: Option<(Part, &'static str)>,
    /// Its network.
    pub(crate) network: Network,
}

/// A part of a model. Parts are equal where their folders are, and sorted by them.
#[derive(Clone, Copy)]
pub struct Part(pub(crate) &'static Description);

impl Part {
    /// Its folder in that of the model, which is its name in files and messages too.
    pub fn folder(self) -> &'static str {
        self.0.folder
    }

    /// The path of its config in the model's folder.
    pub fn config_path(self) -> String {
        format!("{}/config.json", self.0.folder)
    }

    /// The path of its weights in the model's folder.
    pub fn weights_path(self) -> String {
        format!("{}/{}", self.0.folder, self.0.network.weights_file)
    }

    /// The stage that it works for; `None` where a picture from a prompt does not need it.
    pub fn stage(self) -> Option<Stage> {
        self.0.stage
    }

    /// What diffusers or transformers call its network.
    pub fn class(self) -> &'static str {
        self.0.network.class
    }

    /// Whether the class in a config is that of its network; transformers has several for one.
    pub fn is_of_class(self, class: &str) -> bool {
        class.starts_with(self.0.network.class)
    }

    /// Whether the weights determine what its config leaves out, so that the part needs no config.
    pub fn is_told_by_weights(self) -> bool {
        self.0.network.told_by_weights
    }

    /// Whether these may be its weights, judged by their tensors.
    pub(crate) fn may_be(self, weights: &Checkpoint) -> bool {
        weights.has(self.0.mark) && !self.0.lacks.is_some_and(|name| weights.has(name))
    }

    /// Whether its weights can be recognised without those of another part.
    pub(crate) fn stands_alone(self) -> bool {
        self.0.beside.is_none()
    }

    /// Whether `weights` fit the weights of the part that they need beside them, which `others` gives; true if they
    /// need none.
    pub(crate) fn is_beside<'a>(
        self,
        weights: &Checkpoint,
        others: impl FnOnce(Self) -> Option<&'a Checkpoint>,
    ) -> bool {
        self.0.beside.is_none_or(|(part, name)| {
            let width = others(part).and_then(|other| other.side(name, 1));
            width.is_some() && width == weights.side(self.0.mark, 1)
        })
    }

    pub(crate) fn keys(self) -> KeyTable {
        self.0.network.keys
    }

    pub(crate) fn infer(self, weights: &Checkpoint) -> Option<Map<String, Value>> {
        (self.0.network.infer)(weights)
    }

    pub(crate) fn check(
        self,
        text: Result<&str, LoadError>,
        weights: &Checkpoint,
        device: &Device,
    ) -> Result<(), LoadError> {
        (self.0.network.check)(self, text, weights, device)
    }
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.folder() == other.folder()
    }
}

impl Eq for Part {}

impl PartialOrd for Part {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Part {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.folder().cmp(other.folder())
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.folder())
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.folder(), f)
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.folder())
    }
}
