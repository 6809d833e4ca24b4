//! Attention of the picture to itself and to the text.

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::activation::silu;
use wuerstchen_kernels::{layer_norm, softmax};

use super::linear::{affine, linear_layer};

/// Configuration of an [`AttentionBlock`].
#[derive(Clone, Debug)]
pub struct AttentionBlockConfig {
    /// Number of feature channels `C`.
    pub channels: usize,
    /// Width `D` of the text tokens.
    pub condition_channels: usize,
    /// Number of heads; divides `C`.
    pub heads: usize,
    /// Whether the picture is attended too, or the text alone.
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
    /// Queries.
    pub to_q: Linear,
    /// Keys.
    pub to_k: Linear,
    /// Values.
    pub to_v: Linear,
    /// Output.
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

impl AttentionBlock {
    /// Applies the block.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, H, W, C]`
    /// - text: `[B, T, D]`
    pub fn forward(&self, x: Tensor<4>, text: Tensor<3>) -> Tensor<4> {
        let [batch, height, width, channels] = x.dims();
        let tokens = layer_norm(x.clone()).reshape([batch, height * width, channels]);
        let text = affine(&self.kv_mapper, silu(text));
        let context =
            if self.self_attention { Tensor::cat(vec![tokens.clone(), text], 1) } else { text };
        x + self.attention.forward(tokens, context).reshape([batch, height, width, channels])
    }
}

impl Attention {
    /// Attends from `x` to `context`.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, Q, C]`
    /// - context: `[B, K, C]`
    pub fn forward(&self, x: Tensor<3>, context: Tensor<3>) -> Tensor<3> {
        let [batch, queries, channels] = x.dims();
        let size = channels / self.heads;
        let split = |x: Tensor<3>| {
            let [_, tokens, _] = x.dims();
            x.reshape([batch, tokens, self.heads, size]).swap_dims(1, 2)
        };
        let q = split(affine(&self.to_q, x) * (size as f64).powf(-0.5));
        let k = split(affine(&self.to_k, context.clone()));
        let v = split(affine(&self.to_v, context));
        let attended = attend(q, k.swap_dims(2, 3), v);
        let attended = attended.swap_dims(1, 2).reshape([batch, queries, channels]);
        affine(&self.to_out, attended)
    }
}

/// Most attention weights at a time: 16 MiB in f32, which caches hold better than more, and far less
/// than the 128 MiB that every WebGPU device binds.
const MAX_WEIGHTS: usize = 1 << 22;

/// `softmax(q·k)·v`, for as many queries at a time as [`MAX_WEIGHTS`] allows.
///
/// # Shapes
///
/// - q, output: `[B, heads, Q, D]`
/// - k: `[B, heads, D, K]`
/// - v: `[B, heads, K, D]`
fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let ([batch, heads, queries, _], [.., keys]) = (q.dims(), k.dims());
    let rows = (MAX_WEIGHTS / (batch * heads * keys)).max(1);
    let some = |q: Tensor<4>| softmax(q.matmul(k.clone())).matmul(v.clone());
    if rows >= queries {
        return some(q);
    }
    let starts = (0..queries).step_by(rows);
    let parts = starts.map(|start| some(q.clone().narrow(2, start, rows.min(queries - start))));
    Tensor::cat(parts.collect(), 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    use crate::relative_error::assert_close;

    /// As many keys as leave room for three queries at a time, and seven queries.
    #[test]
    fn queries_in_parts_are_the_whole() {
        let device = Device::flex();
        let keys = MAX_WEIGHTS / 3;
        let random = |shape| Tensor::<4>::random(shape, Distribution::Default, &device);
        let (q, k) = (random([1, 1, 7, 1]), random([1, 1, 1, keys]));
        let v = random([1, 1, keys, 1]);
        let whole = softmax(q.clone().matmul(k.clone())).matmul(v.clone());
        assert_close(attend(q, k, v), whole, 1e-6);
    }

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
        let value = attention.to_out.forward(attention.to_v.forward(token.clone()));
        let attended = attention.forward(x, token.repeat_dim(1, 5));
        assert_close(attended, value.repeat_dim(1, 2), 1e-5);
    }
}
