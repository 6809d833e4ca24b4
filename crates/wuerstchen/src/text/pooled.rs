//! The CLIP text transformer as Stable Cascade uses it: tokens before the last norm, and a projection
//! of the whole prompt.

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::embedding::TextEmbedding;
use super::encoder::{TextEncoder, TextEncoderConfig};
use crate::blocks::{affine, linear_layer};
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, size};
use crate::part::PartConfig;
use crate::text::TokenIds;
use crate::weights::KeyTable;

/// Configuration of a [`PooledTextEncoder`], with the published field names
/// (`text_encoder/config.json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PooledTextConfig {
    /// The transformer.
    #[serde(flatten)]
    pub text: TextEncoderConfig,
    /// Width of the pooled embedding.
    pub projection_dim: usize,
    /// The token that ends a prompt, at which the embedding is pooled; 2, of old configs, stands for the
    /// largest id of the prompt.
    #[serde(default = "default_end")]
    pub eos_token_id: u32,
}

/// CLIP's `<|endoftext|>`.
fn default_end() -> u32 {
    49407
}

/// The id that configs of older versions of transformers give, although CLIP's prompts do not end with it.
const END_OF_OLD_CONFIGS: u32 = 2;

/// Turns token ids into one embedding per token, and one of the whole prompt.
///
/// Source: `CLIPTextModelWithProjection` in transformers; `StableCascadePriorPipeline.encode_prompt` in
/// diffusers.
#[derive(Module, Debug)]
pub struct PooledTextEncoder {
    text: TextEncoder,
    text_projection: Linear,
    end: u32,
}

impl PartConfig for PooledTextConfig {
    type Model = PooledTextEncoder;

    const CLASS: &'static str = "CLIPTextModelWithProjection";
    const KEYS: KeyTable = KeyTable::TEXT;
    const WEIGHTS_FILE: &'static str = "model.safetensors";

    fn validate(&self) -> Result<(), ConfigError> {
        size("text encoder", "projection_dim", self.projection_dim)?;
        self.text.validate()
    }

    fn init(&self, device: &Device) -> PooledTextEncoder {
        let projection = linear_layer(self.text.hidden_size, self.projection_dim, 1.0, device);
        PooledTextEncoder {
            text: self.text.init(device),
            text_projection: Linear { bias: None, ..projection },
            end: self.eos_token_id,
        }
    }

    fn infer(weights: &Checkpoint) -> Option<Self> {
        Some(Self {
            text: TextEncoderConfig::infer(weights)?,
            projection_dim: weights.side("text_projection.weight", 0)?,
            eos_token_id: default_end(),
        })
    }
}

impl PooledTextEncoder {
    /// The hidden state of every token before the last norm, and the projection of the normed state of the
    /// token that ends the prompt.
    ///
    /// # Shapes
    ///
    /// - prompts: `B` lists of `T` ids, `T` at most `max_position_embeddings`
    /// - output: `[B, T, hidden_size]` and `[B, projection_dim]`
    pub fn forward(&self, prompts: &[TokenIds]) -> TextEmbedding {
        self.forward_observed(prompts, &mut |_, _| {})
    }

    /// As [`Self::forward`], and reports every hidden state with its number; 0 is the embedding.
    pub fn forward_observed(
        &self,
        prompts: &[TokenIds],
        observe: &mut dyn FnMut(usize, &Tensor<3>),
    ) -> TextEmbedding {
        let tokens = self.text.hidden_state(prompts, observe);
        let [_, _, width] = tokens.dims();
        let normed = self.last_hidden_state(tokens.clone());
        let pooled = prompts.iter().enumerate().map(|(row, prompt)| {
            let place = end_of(&prompt.ids, self.end);
            normed.clone().narrow(0, row, 1).narrow(1, place, 1).reshape([1, width])
        });
        let pooled = affine(&self.text_projection, Tensor::cat(pooled.collect(), 0));
        TextEmbedding { tokens, pooled: Some(pooled) }
    }

    /// Applies the last norm to the tokens of [`Self::forward`], `[B, T, D]`.
    pub fn last_hidden_state(&self, tokens: Tensor<3>) -> Tensor<3> {
        self.text.normalise(tokens)
    }
}

/// The place of the token that ends a prompt; the first one where there is none, as in transformers.
fn end_of(ids: &[u32], end: u32) -> usize {
    let end = match end {
        END_OF_OLD_CONFIGS => ids.iter().copied().max().unwrap_or_default(),
        end => end,
    };
    ids.iter().position(|&id| id == end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_configs_mean_the_largest_id() {
        let ids = [6, 3, 9, 2, 9, 7];
        assert_eq!(end_of(&ids, 9), 2);
        assert_eq!(end_of(&ids, 7), 5);
        assert_eq!(end_of(&ids, END_OF_OLD_CONFIGS), 2);
        assert_eq!(end_of(&ids, 8), 0);
    }
}
