//! The CLIP text transformer.

use burn::module::{Initializer, Module, Param};
use burn::nn::LayerNorm;
use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::blocks::embed;
use crate::checkpoint::Checkpoint;
use crate::clip::{ClipConfig, ClipLayer};
use crate::config::{ConfigError, published_heads, size};
use crate::part::PartConfig;
use crate::text::TokenIds;
use crate::weights::KeyTable;

/// Configuration of a [`TextEncoder`], with the published field names
/// (`text_encoder/config.json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextEncoderConfig {
    /// Width of the model.
    pub hidden_size: usize,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Length of every prompt in tokens, padding included.
    pub max_position_embeddings: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// The activation of the feed-forward layers: `gelu` or `quick_gelu`.
    pub hidden_act: String,
}

/// Turns token ids into one embedding per token.
///
/// A transformer with layer norms in front of its layers, whose tokens see the tokens before them
/// that are not padding.
///
/// Source: Radford et al., "Learning transferable visual models from natural language supervision"
/// (arXiv 2103.00020), section 2.4; `CLIPTextModel` in transformers.
#[derive(Module, Debug)]
pub struct TextEncoder {
    token_embedding: Param<Tensor<2>>,
    position_embedding: Param<Tensor<2>>,
    layers: Vec<ClipLayer>,
    final_layer_norm: LayerNorm,
}

impl PartConfig for TextEncoderConfig {
    type Model = TextEncoder;

    const CLASS: &'static str = "CLIPTextModel";
    const KEYS: KeyTable = KeyTable::TEXT;
    const WEIGHTS_FILE: &'static str = "model.safetensors";

    fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("max_position_embeddings", self.max_position_embeddings),
            ("vocab_size", self.vocab_size),
        ] {
            size(PART, field, value)?;
        }
        self.layers().validate()
    }

    fn init(&self, device: &Device) -> TextEncoder {
        let (width, layers) = (self.hidden_size, self.layers());
        let embedding = Initializer::Normal { mean: 0.0, std: 0.02 };
        TextEncoder {
            token_embedding: embedding.init([self.vocab_size, width], device),
            position_embedding: embedding.init([self.max_position_embeddings, width], device),
            layers: layers.layers(device),
            final_layer_norm: layers.norm(device),
        }
    }

    fn infer(weights: &Checkpoint) -> Option<Self> {
        let tokens = "text_model.embeddings.token_embedding.weight";
        let positions = "text_model.embeddings.position_embedding.weight";
        let width = weights.side(tokens, 1)?;
        let layer = |i: usize| format!("text_model.encoder.layers.{i}.mlp.fc1.weight");
        Some(Self {
            hidden_size: width,
            intermediate_size: weights.side(&layer(0), 0)?,
            num_hidden_layers: weights.count(layer),
            num_attention_heads: published_heads(width)?,
            max_position_embeddings: weights.side(positions, 0)?,
            vocab_size: weights.side(tokens, 0)?,
            layer_norm_eps: 1e-5,
            hidden_act: "gelu".to_owned(),
        })
    }
}

/// The name of this model in errors.
const PART: &str = "text encoder";

impl TextEncoderConfig {
    fn layers(&self) -> ClipConfig<'_> {
        ClipConfig {
            part: PART,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            layer_norm_eps: self.layer_norm_eps,
            hidden_act: &self.hidden_act,
        }
    }
}

impl TextEncoder {
    /// The last hidden state of every token.
    ///
    /// # Shapes
    ///
    /// - prompts: `B` lists of `T` ids, `T` at most `max_position_embeddings`
    /// - output: `[B, T, hidden_size]`
    pub fn forward(&self, prompts: &[TokenIds]) -> Tensor<3> {
        self.forward_observed(prompts, &mut |_, _| {})
    }

    /// As [`Self::forward`], and reports every hidden state with its number; 0 is the embedding.
    pub fn forward_observed(
        &self,
        prompts: &[TokenIds],
        observe: &mut dyn FnMut(usize, &Tensor<3>),
    ) -> Tensor<3> {
        self.normalise(self.hidden_state(prompts, observe))
    }

    /// Applies the last norm to any hidden state.
    pub(super) fn normalise(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.final_layer_norm.forward(hidden)
    }

    /// The output of the last layer, before the last norm.
    pub(super) fn hidden_state(
        &self,
        prompts: &[TokenIds],
        observe: &mut dyn FnMut(usize, &Tensor<3>),
    ) -> Tensor<3> {
        let (batch, length) = (prompts.len(), prompts[0].ids.len());
        let positions = self.position_embedding.val();
        let ([_, width], device) = (positions.dims(), &positions.device());
        let ids: Vec<_> = prompts.iter().flat_map(|p| p.ids.iter().map(|&id| id as i32)).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [batch * length]), device);
        let tokens = embed(&self.token_embedding, ids).reshape([batch, length, width]);
        let mut h = tokens + positions.narrow(0, 0, length).unsqueeze();
        let mask = attention_mask(prompts, device);
        observe(0, &h);
        for (i, layer) in self.layers.iter().enumerate() {
            h = layer.forward(h, Some(mask.clone()));
            observe(i + 1, &h);
        }
        h
    }
}

/// What is added to the attention scores, `[B, 1, T, T]`: 0 where a token may look, else a number
/// that softmax turns into 0.
fn attention_mask(prompts: &[TokenIds], device: &Device) -> Tensor<4> {
    const HIDDEN: f32 = -1e30;
    let length = prompts[0].ids.len();
    let mut mask = Vec::with_capacity(prompts.len() * length * length);
    for prompt in prompts {
        for query in 0..length {
            let visible = |key: usize| key <= query && prompt.attended[key];
            mask.extend((0..length).map(|key| if visible(key) { 0.0 } else { HIDDEN }));
        }
    }
    Tensor::from_data(TensorData::new(mask, [prompts.len(), 1, length, length]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder() -> TextEncoder {
        let config = TextEncoderConfig {
            hidden_size: 8,
            intermediate_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 4,
            vocab_size: 10,
            layer_norm_eps: 1e-5,
            hidden_act: "gelu".into(),
        };
        config.init(&Device::flex())
    }

    fn prompt(ids: [u32; 4], attended: [bool; 4]) -> TokenIds {
        TokenIds { ids: ids.to_vec(), attended: attended.to_vec() }
    }

    #[test]
    fn tokens_do_not_see_what_follows() {
        let encoder = encoder();
        let first_two = |ids| encoder.forward(&[prompt(ids, [true; 4])]).narrow(1, 0, 2);
        let (a, b) = (first_two([1, 2, 3, 4]), first_two([1, 2, 5, 6]));
        a.into_data().assert_eq(&b.into_data(), true);
    }

    #[test]
    fn padding_is_not_seen() {
        let encoder = encoder();
        let last = |id| encoder.forward(&[prompt([1, id, 3, 4], [true, false, true, true])]);
        let (a, b) = (last(2).narrow(1, 2, 2), last(7).narrow(1, 2, 2));
        a.into_data().assert_eq(&b.into_data(), true);
    }
}
