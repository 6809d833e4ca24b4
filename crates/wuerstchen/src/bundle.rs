//! The files of a model: a folder in the diffusers layout, or the same in one file.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, ReadBytes, WeightDtype, read_header};
use crate::compressor::CompressorConfig;
use crate::text::TokenizerFiles;
use crate::weights::LoadError;

/// Where the parts of a model lie in its folder.
pub mod layout {
    /// The prior pipeline's folder.
    pub const PRIOR_PIPELINE: &str = "wuerstchen-prior";
    /// The decoder pipeline's folder.
    pub const DECODER_PIPELINE: &str = "wuerstchen";
    /// Stage C.
    pub const PRIOR: &str = "wuerstchen-prior/prior";
    /// Stage C's text encoder.
    pub const PRIOR_TEXT: &str = "wuerstchen-prior/text_encoder";
    /// Stage C's tokenizer.
    pub const PRIOR_TOKENIZER: &str = "wuerstchen-prior/tokenizer";
    /// Stage B.
    pub const DECODER: &str = "wuerstchen/decoder";
    /// Stage B's text encoder.
    pub const DECODER_TEXT: &str = "wuerstchen/text_encoder";
    /// Stage B's tokenizer.
    pub const DECODER_TOKENIZER: &str = "wuerstchen/tokenizer";
    /// Stage A.
    pub const VQGAN: &str = "wuerstchen/vqgan";
    /// The semantic compressor.
    pub const COMPRESSOR: &str = "effnet";
    /// What the model does where options say nothing, and what it is.
    pub const CARD: &str = "wuerstchen.json";
    /// Every part that has weights.
    pub const PARTS: [&str; 6] = [PRIOR, PRIOR_TEXT, DECODER, DECODER_TEXT, VQGAN, COMPRESSOR];
}

/// Version of the one-file format.
const FORMAT: u32 = 1;

/// The text files and weights of a model, by their paths in its folder.
#[derive(Clone, Default)]
pub struct ModelFiles {
    /// Configs, tokenizers, the card.
    pub texts: BTreeMap<String, String>,
    /// Weights, by the folder of their part.
    pub weights: BTreeMap<String, Checkpoint>,
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
    /// The bytes are not a safetensors file or carry no model header of a known version.
    pub fn from_bundle(name: &str, source: Arc<dyn ReadBytes>) -> Result<Self, LoadError> {
        let format = |reason: String| LoadError::Format { part: name.to_owned(), reason };
        let (metadata, _) = read_header(name, &*source)?;
        let header = metadata.metadata().as_ref().and_then(|map| map.get(HEADER_KEY));
        let header = header.ok_or_else(|| format("it holds no whole model".into()))?;
        let header: Header =
            serde_json::from_str(header).map_err(|error| format(error.to_string()))?;
        if header.format != FORMAT {
            return Err(format(format!(
                "it is of format {}, this program reads {FORMAT}",
                header.format
            )));
        }
        let all = Checkpoint::parse(name, source)?;
        let part = |part: &&str| {
            let checkpoint = all.under(&format!("{part}/"));
            checkpoint.names().next().is_some().then(|| ((*part).to_owned(), checkpoint.clone()))
        };
        Ok(Self { texts: header.files, weights: layout::PARTS.iter().filter_map(part).collect() })
    }

    /// The model as one safetensors file.
    ///
    /// # Errors
    ///
    /// A tensor is of a type that no weights have.
    pub fn to_bundle(&self, dtype: WeightDtype) -> Result<Vec<u8>, LoadError> {
        let header = Header { format: FORMAT, files: self.texts.clone() };
        let header = serde_json::to_string(&header).expect("a map of strings is JSON");
        let parts = self.weights.iter().map(|(part, weights)| (format!("{part}/"), weights));
        Checkpoint::write(parts, dtype, Some(HashMap::from([(HEADER_KEY.to_owned(), header)])))
    }

    /// A JSON file as a config.
    ///
    /// # Errors
    ///
    /// The file is missing or does not fit; the message says where.
    pub fn config<T: DeserializeOwned>(&self, path: &str) -> Result<T, LoadError> {
        let text = self.text(path)?;
        serde_json::from_str(text)
            .map_err(|error| LoadError::File { path: path.into(), reason: error.to_string() })
    }

    /// The semantic compressor's config; what the file does not say is read off the weights.
    ///
    /// # Errors
    ///
    /// The compressor is missing, or neither its config nor its weights tell the sizes.
    pub fn compressor_config(&self) -> Result<CompressorConfig, LoadError> {
        let path = format!("{}/config.json", layout::COMPRESSOR);
        let given: serde_json::Value = match self.texts.contains_key(&path) {
            true => self.config(&path)?,
            false => serde_json::Value::Null,
        };
        let config = if given.get("stages").is_some() {
            self.config(&path)?
        } else {
            let weights = self.weights(layout::COMPRESSOR)?;
            let shape = |name: &str| weights.shape(name).map(<[usize]>::to_vec);
            let mut config = CompressorConfig::infer(shape).ok_or_else(|| LoadError::File {
                path: path.clone(),
                reason: "no field \"stages\", and the weights are no EfficientNetV2's".into(),
            })?;
            let epsilon = |field: &str| given.get(field).and_then(serde_json::Value::as_f64);
            config.backbone_bn_eps = epsilon("backbone_bn_eps").unwrap_or(config.backbone_bn_eps);
            config.mapper_bn_eps = epsilon("mapper_bn_eps").unwrap_or(config.mapper_bn_eps);
            config
        };
        config.validate()?;
        Ok(config)
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
    pub fn weights(&self, part: &str) -> Result<&Checkpoint, LoadError> {
        self.weights.get(part).ok_or_else(|| LoadError::MissingFile {
            path: format!("{part}/*.safetensors"),
            found: self.weights.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// The tokenizer files of a folder.
    pub fn tokenizer(&self, folder: &str) -> TokenizerFiles {
        TokenizerFiles::from_named(|file| self.texts.get(&format!("{folder}/{file}")).cloned())
    }
}
