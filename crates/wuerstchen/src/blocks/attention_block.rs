//! Attention of the picture to itself and to the text.

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;
use wuerstchen_kernels::attention::has_kernel;
use wuerstchen_kernels::{attention, joined_attention, layer_norm};

use super::linear::{Joined, affine, affine_add, linear_layer};

/// Configuration of an [`AttentionBlock`].
#[derive(Clone, Debug)]
pub struct AttentionBlockConfig {
    /// Number of feature channels `C`.
    pub channels: usize,
    /// Width `D` of the text tokens.
    pub condition_channels: usize,
    /// Number of heads; divides `C`.
    pub heads: usize,
    /// Whether the block attends to the picture too; otherwise it attends to the text alone.
    pub self_attention: bool,
}

/// `y = x + attention(q = LN(x), kv = [LN(x), kv_mapper(text)])`.
///
/// The picture's own tokens come first among the keys, if they are attended, and padded text tokens
/// are attended too.
///
/// Source: `AttnBlock` in `modules.py` of dome272/Wuerstchen.
#[derive(Module, Debug)]
pub struct AttentionBlock {
    /// Multi-head attention.
    pub attention: Attention,
    /// `SiLU`, then `[D]` to `[C]`.
    pub kv_mapper: Linear,
    self_attention: bool,
}

/// Multi-head attention with biased projections and no mask.
#[derive(Module, Debug)]
pub struct Attention {
    /// Makes the queries, `[C]` to `[C]`.
    pub to_q: Linear,
    /// Makes the keys, `[C]` to `[C]`.
    pub to_k: Linear,
    /// Makes the values, `[C]` to `[C]`.
    pub to_v: Linear,
    /// Projects the joined heads to the output, `[C]` to `[C]`.
    pub to_out: Linear,
    heads: usize,
}

impl AttentionBlockConfig {
    /// Initializes the block on `device`.
    ///
    /// # Panics
    ///
    /// Panics if the heads do not divide the channels; [`PriorConfig`](crate::PriorConfig) and
    /// [`DecoderConfig`](crate::DecoderConfig) check it first.
    pub fn init(&self, device: &Device) -> AttentionBlock {
        let channels = self.channels;
        assert!(
            channels.is_multiple_of(self.heads),
            "{} heads do not divide {channels}",
            self.heads
        );
        let square = || linear_layer(channels, channels, 1.0, device);
        AttentionBlock {
            attention: Attention {
                to_q: square(),
                to_k: square(),
                to_v: square(),
                to_out: square(),
                heads: self.heads,
            },
            kv_mapper: linear_layer(self.condition_channels, channels, 1.0, device),
            self_attention: self.self_attention,
        }
    }
}

/// Keys and values of some tokens, before they are split into heads.
#[derive(Clone, Debug)]
pub struct KeysAndValues {
    /// `[B, K, C]`.
    pub keys: Tensor<3>,
    /// `[B, K, C]`.
    pub values: Tensor<3>,
}

/// What an attention block needs at a step besides the features.
#[derive(Clone, Debug)]
pub struct AttendedText {
    text: KeysAndValues,
    /// The projections of the picture's tokens as one product, where one launch is cheaper than three.
    projections: Option<Box<Joined>>,
}

impl AttentionBlock {
    /// Computes the text's keys and values for a single step.
    ///
    /// # Shapes
    ///
    /// - text: `[B, T, D]`, after the `SiLU` that begins [`Self::kv_mapper`]
    pub fn attend_once(&self, text: Tensor<3>) -> AttendedText {
        let text = self.attention.keys_and_values(affine(&self.kv_mapper, text));
        AttendedText { text, projections: None }
    }

    /// Computes the text's keys and values for all steps of a picture. On a GPU it also joins the projections
    /// of the picture's tokens into one product, which saves launches at every step.
    ///
    /// # Shapes
    ///
    /// As those of [`Self::attend_once`].
    pub fn keep(&self, text: Tensor<3>) -> AttendedText {
        let Attention { to_q, to_k, to_v, heads, .. } = &self.attention;
        let [channels, _] = to_q.weight.lazy_shape().dims();
        let joins = self.self_attention && has_kernel(&text.device(), channels, *heads);
        let projections = if joins { Joined::new(&[to_q, to_k, to_v]).map(Box::new) } else { None };
        AttendedText { projections, ..self.attend_once(text) }
    }

    /// Applies the block.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, H, W, C]`
    /// - kept: made from `B` prompts
    pub fn forward(&self, x: Tensor<4>, kept: &AttendedText) -> Tensor<4> {
        let [batch, height, width, channels] = x.dims();
        let tokens = layer_norm(x.clone()).reshape([batch, height * width, channels]);
        let AttendedText { text, projections } = kept;
        let attended = if let Some(projections) = projections {
            let text = [text.keys.clone(), text.values.clone()];
            joined_attention(projections.affine(tokens), text, self.attention.heads)
        } else {
            let own = self.self_attention.then(|| self.attention.keys_and_values(tokens.clone()));
            self.attention.attend(tokens, own, text)
        };
        affine_add(&self.attention.to_out, attended.reshape([batch, height, width, channels]), x)
    }
}

impl Attention {
    /// Keys and values of tokens.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, K, C]`
    pub fn keys_and_values(&self, tokens: Tensor<3>) -> KeysAndValues {
        let keys = affine(&self.to_k, tokens.clone());
        KeysAndValues { keys, values: affine(&self.to_v, tokens) }
    }

    /// Attends from `x` to its own keys, if there are any, and then to those of the text; without the
    /// output's projection.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, Q, C]`
    fn attend(&self, x: Tensor<3>, own: Option<KeysAndValues>, text: &KeysAndValues) -> Tensor<3> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for KeysAndValues { keys: k, values: v } in own.into_iter().chain([text.clone()]) {
            keys.push(k);
            values.push(v);
        }
        attention(affine(&self.to_q, x), keys, values, self.heads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    use crate::relative_error::assert_close;

    /// Equal keys get equal weights, so that attention to one repeated token is that token's value.
    #[test]
    fn equal_keys_are_averaged() {
        let device = Device::flex();
        let config = AttentionBlockConfig {
            channels: 4,
            condition_channels: 3,
            heads: 2,
            self_attention: true,
        };
        let attention = config.init(&device).attention;
        let x = Tensor::<3>::random([1, 2, 4], Distribution::Default, &device);
        let token = Tensor::<3>::random([1, 1, 4], Distribution::Default, &device);
        let expected = attention.to_v.forward(token.clone()).repeat_dim(1, 2);
        let several = |count| attention.keys_and_values(token.clone().repeat_dim(1, count));
        for own in [None, Some(several(2))] {
            let attended = attention.attend(x.clone(), own, &several(3));
            assert_close(attended, expected.clone(), 1e-5);
        }
    }
}
