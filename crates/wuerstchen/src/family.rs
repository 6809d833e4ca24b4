//! The families of models and the parts that each is made of: the only place that names their folders.

use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::card::{DecoderIndex, PriorIndex};
use crate::compressor::CompressorConfig;
use crate::decoder::DecoderConfig;
use crate::error::LoadError;
use crate::part::{Description, Network, Part, Stage};
use crate::prior::PriorConfig;
use crate::text::TextEncoderConfig;
use crate::vqgan::VqganConfig;

/// Models that are made of the same parts.
pub struct Family {
    /// The parts in the order in which a picture needs them; those that it does not need come last.
    pub parts: &'static [Part],
    /// The folders of diffusers' pipelines.
    pub pipelines: &'static [PipelineFolder],
}

impl Family {
    /// Würstchen v2.
    pub const WUERSTCHEN: Self = Self {
        parts: &[
            Part::PRIOR_TEXT,
            Part::PRIOR,
            Part::DECODER_TEXT,
            Part::DECODER,
            Part::VQGAN,
            Part::COMPRESSOR,
        ],
        pipelines: &[PipelineFolder::PRIOR, PipelineFolder::DECODER],
    };

    /// All families.
    pub const ALL: [Self; 1] = [Self::WUERSTCHEN];

    /// The parts that a picture from a prompt needs.
    pub fn needed(&self) -> impl Iterator<Item = Part> + use<> {
        self.parts.iter().copied().filter(|part| part.stage().is_some())
    }
}

/// The parts of Würstchen v2.
impl Part {
    /// Stage C's text encoder.
    pub const PRIOR_TEXT: Self = Self(&Description {
        folder: "wuerstchen-prior/text_encoder",
        stage: Some(Stage::Text),
        mark: TEXT_MARK,
        beside: Some((Self::PRIOR, PRIOR_MARK)),
        network: Network::of::<TextEncoderConfig>(),
    });

    /// Stage C.
    pub const PRIOR: Self = Self(&Description {
        folder: "wuerstchen-prior/prior",
        stage: Some(Stage::Prior),
        mark: PRIOR_MARK,
        beside: None,
        network: Network::of::<PriorConfig>(),
    });

    /// Stage B's text encoder.
    pub const DECODER_TEXT: Self = Self(&Description {
        folder: "wuerstchen/text_encoder",
        stage: Some(Stage::Text),
        mark: TEXT_MARK,
        beside: Some((Self::DECODER, DECODER_MARK)),
        network: Network::of::<TextEncoderConfig>(),
    });

    /// Stage B.
    pub const DECODER: Self = Self(&Description {
        folder: "wuerstchen/decoder",
        stage: Some(Stage::Decoder),
        mark: DECODER_MARK,
        beside: None,
        network: Network::of::<DecoderConfig>(),
    });

    /// Stage A.
    pub const VQGAN: Self = Self(&Description {
        folder: "wuerstchen/vqgan",
        stage: Some(Stage::Vqgan),
        mark: "in_block.1.weight",
        beside: None,
        network: Network::of::<VqganConfig>(),
    });

    /// The semantic compressor, which pictures to start from need.
    pub const COMPRESSOR: Self = Self(&Description {
        folder: "effnet",
        stage: None,
        mark: "mapper.0.weight",
        beside: None,
        network: Network::of::<CompressorConfig>(),
    });
}

/// The matrices that take a text encoder's output: their second axes are as long as its width.
const PRIOR_MARK: &str = "cond_mapper.0.weight";
const DECODER_MARK: &str = "clip_mapper.weight";

/// The embeddings of a text encoder's tokens.
const TEXT_MARK: &str = "text_model.embeddings.token_embedding.weight";

impl Part {
    /// The parts of all families.
    pub fn all() -> impl Iterator<Item = Self> {
        Family::ALL.into_iter().flat_map(|family| family.parts.iter().copied())
    }

    /// The part whose folder a path of the model leads into.
    ///
    /// # Errors
    ///
    /// There is no such part.
    pub fn of_path(path: &str) -> Result<Self, LoadError> {
        let holds = |part: &Self| {
            path.strip_prefix(part.folder()).is_some_and(|rest| rest.starts_with('/'))
        };
        Self::all().find(holds).ok_or_else(|| unknown(path))
    }
}

impl FromStr for Part {
    type Err = LoadError;

    fn from_str(folder: &str) -> Result<Self, LoadError> {
        Self::all().find(|part| part.folder() == folder).ok_or_else(|| unknown(folder))
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn unknown(found: &str) -> LoadError {
    let expected: Vec<_> = Part::all().map(Part::folder).collect();
    LoadError::UnknownPart { found: found.to_owned(), expected: expected.join(", ") }
}

/// The folder of a pipeline of diffusers: some of the parts, and what is said about them together.
#[derive(Clone, Copy)]
pub struct PipelineFolder {
    /// Its name in the model's folder.
    pub name: &'static str,
    /// What diffusers calls the pipeline.
    pub class: &'static str,
    /// What is put before the names in it where diffusers saves all pipelines in one folder.
    pub prefix: &'static str,
    /// The part that the pipeline runs.
    pub main: Part,
    /// What `model_index.json` says where the model has none.
    pub default_index: fn() -> Value,
}

impl PipelineFolder {
    /// Stage C.
    pub const PRIOR: Self = Self {
        name: "wuerstchen-prior",
        class: "WuerstchenPriorPipeline",
        prefix: "prior_",
        main: Part::PRIOR,
        default_index: || json!(PriorIndex::default()),
    };

    /// Stages B and A.
    pub const DECODER: Self = Self {
        name: "wuerstchen",
        class: "WuerstchenDecoderPipeline",
        prefix: "",
        main: Part::DECODER,
        default_index: || json!(DecoderIndex::default()),
    };

    /// The path of the constants of the pipeline.
    pub fn index(self) -> String {
        format!("{}/model_index.json", self.name)
    }

    /// The path of the constants of the noise schedule.
    pub fn scheduler(self) -> String {
        format!("{}/scheduler/scheduler_config.json", self.name)
    }

    /// The folder of the tokenizer.
    pub fn tokenizer(self) -> String {
        format!("{}/tokenizer", self.name)
    }

    /// The parts in this folder, with their names in it.
    pub fn parts(self) -> impl Iterator<Item = (&'static str, Part)> {
        Part::all().filter_map(move |part| {
            let name = part.folder().strip_prefix(self.name)?.strip_prefix('/')?;
            Some((name, part))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_by_their_folders_and_others_refused() {
        for part in Part::all() {
            assert_eq!(part.folder().parse::<Part>().unwrap(), part);
            assert_eq!(Part::of_path(&part.weights_path()).unwrap(), part);
        }
        for path in ["wuerstchen/unet", "wuerstchen/decoder2/a", "wuerstchen/decoder"] {
            let error = Part::of_path(path).unwrap_err().to_string();
            let expected = format!("unknown part {path:?}: expected one of wuerstchen-prior/text_");
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn pipelines_name_their_parts_as_diffusers_does() {
        let names =
            |pipeline: PipelineFolder| pipeline.parts().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(PipelineFolder::PRIOR), ["text_encoder", "prior"]);
        assert_eq!(names(PipelineFolder::DECODER), ["text_encoder", "decoder", "vqgan"]);
    }
}
