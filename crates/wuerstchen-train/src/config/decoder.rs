//! The sizes of Stage B, of either kind.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use toml::{Table, Value};
use wuerstchen::{ConfigError, DecoderConfig, Family, Part, PartConfig, TokenDecoderConfig};

use super::read::read_strictly;

/// The sizes of a Stage B, by what it denoises.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum StageBModel {
    /// Latents, as in Würstchen v2.
    Latents(DecoderConfig),
    /// Tokens, as in Würstchen v1. A config with the field `num_labels` is of this kind.
    Tokens(TokenDecoderConfig),
}

impl<'de> Deserialize<'de> for StageBModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Table::deserialize(deserializer)?;
        let has_tokens = fields.contains_key("num_labels");
        let fields = Value::Table(fields);
        if has_tokens {
            read_strictly(fields).map(Self::Tokens).map_err(D::Error::custom)
        } else {
            read_strictly(fields).map(Self::Latents).map_err(D::Error::custom)
        }
    }
}

impl StageBModel {
    /// Whether it denoises tokens.
    pub fn has_tokens(&self) -> bool {
        matches!(self, Self::Tokens(_))
    }

    /// Whether it sees the image embedding.
    pub fn takes_embedding(&self) -> bool {
        match self {
            Self::Latents(config) => config.inject_effnet.contains(&true),
            Self::Tokens(_) => true,
        }
    }

    /// Whether training sets some activations to zero.
    pub fn has_dropout(&self) -> bool {
        match self {
            Self::Latents(config) => config.dropout.any(|share| share > 0.0),
            Self::Tokens(config) => config.dropout.any(|share| share > 0.0),
        }
    }

    /// The sides of its latents or tokens must be multiples of this.
    pub fn size_multiple(&self) -> usize {
        match self {
            Self::Latents(config) => config.size_multiple(),
            Self::Tokens(config) => config.size_multiple(),
        }
    }

    /// Multiply-adds of one prediction of `[height, width]` latents or tokens, with `text` tokens of the prompt and
    /// `cells` cells of the image embedding.
    pub fn multiply_adds(&self, size: [usize; 2], text: usize, cells: usize) -> usize {
        match self {
            Self::Latents(config) => config.multiply_adds(size, text),
            Self::Tokens(config) => config.multiply_adds(size, cells + text),
        }
    }

    /// Checks what the architecture needs of the sizes.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Latents(config) => config.validate(),
            Self::Tokens(config) => config.validate(),
        }
    }

    /// The family of a model with this Stage B.
    pub fn family(&self) -> &'static Family {
        match self {
            Self::Latents(_) => &Family::WUERSTCHEN,
            Self::Tokens(_) => &Family::WUERSTCHEN_V1,
        }
    }

    /// The parts of Würstchen v2 that a model with this Stage B has a counterpart of.
    pub fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        let has_two_texts = self.family().decoder_text.is_some();
        let parts = Family::WUERSTCHEN.parts.iter().copied();
        parts.filter(move |part| has_two_texts || *part != Part::DECODER_TEXT)
    }

    /// The part that does, in a model with this Stage B, what the given part of Würstchen v2 does.
    pub fn part(&self, of_v2: Part) -> Part {
        let family = self.family();
        let parts = [
            (Part::PRIOR_TEXT, family.prior_text),
            (Part::PRIOR, family.prior()),
            (Part::DECODER_TEXT, family.decoder_text.unwrap_or(family.prior_text)),
            (Part::DECODER, family.decoder()),
            (Part::VQGAN, family.vqgan),
            (Part::COMPRESSOR, family.compressor),
        ];
        let own = parts.into_iter().find(|(part, _)| *part == of_v2);
        own.expect("these are all parts of v2").1
    }
}
