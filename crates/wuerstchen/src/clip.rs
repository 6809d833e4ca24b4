//! The layers that CLIP's text and image encoders share.

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear};
use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use wuerstchen_kernels::{attention, masked_attention};

use crate::blocks::{affine, affine_gelu, linear_layer};
use crate::config::{ConfigError, below_one, heads_divide, layers, size};

/// Sizes of the layers.
pub(crate) struct ClipConfig<'a> {
    /// Which encoder, for errors.
    pub(crate) part: &'static str,
    /// Width of the model.
    pub(crate) hidden_size: usize,
    /// Inner width of the feed-forward layers.
    pub(crate) intermediate_size: usize,
    /// Number of layers.
    pub(crate) num_hidden_layers: usize,
    /// Number of attention heads; divides `hidden_size`.
    pub(crate) num_attention_heads: usize,
    /// Epsilon of the layer norms.
    pub(crate) layer_norm_eps: f64,
    /// The activation of the feed-forward layers: `gelu` or `quick_gelu`.
    pub(crate) hidden_act: &'a str,
}

/// A layer with norms in front of its attention and its feed-forward part.
///
/// Source: Radford et al., "Learning transferable visual models from natural language supervision"
/// (arXiv 2103.00020), section 2.4; `CLIPEncoderLayer` in transformers.
#[derive(Module, Debug)]
pub(crate) struct ClipLayer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    mlp: FeedForward,
}

#[derive(Module, Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

#[derive(Module, Debug)]
struct FeedForward {
    fc1: Linear,
    fc2: Linear,
    quick_gelu: bool,
}

const GELU: &str = "gelu";
const QUICK_GELU: &str = "quick_gelu";

impl ClipConfig<'_> {
    /// Checks what the architecture needs of the sizes.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in
            [("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size)]
        {
            size(self.part, field, value)?;
        }
        layers(self.part, "num_hidden_layers", self.num_hidden_layers)?;
        below_one(self.part, "layer_norm_eps", self.layer_norm_eps)?;
        if ![GELU, QUICK_GELU].contains(&self.hidden_act) {
            let expected = format!("\"{GELU}\" or \"{QUICK_GELU}\"");
            return Err(ConfigError::new(self.part, "hidden_act", expected, self.hidden_act));
        }
        heads_divide(self.part, "num_attention_heads", self.num_attention_heads, self.hidden_size)
    }

    /// A layer norm of the model's width.
    pub(crate) fn norm(&self, device: &Device) -> LayerNorm {
        LayerNormConfig::new(self.hidden_size).with_epsilon(self.layer_norm_eps).init(device)
    }

    /// The layers.
    pub(crate) fn layers(&self, device: &Device) -> Vec<ClipLayer> {
        let width = self.hidden_size;
        let output_gain = (1.0 / (2 * self.num_hidden_layers) as f64).sqrt();
        let layer = |_| ClipLayer {
            layer_norm1: self.norm(device),
            self_attn: SelfAttention {
                q_proj: linear_layer(width, width, 1.0, device),
                k_proj: linear_layer(width, width, 1.0, device),
                v_proj: linear_layer(width, width, 1.0, device),
                out_proj: linear_layer(width, width, output_gain, device),
                heads: self.num_attention_heads,
            },
            layer_norm2: self.norm(device),
            mlp: FeedForward {
                fc1: linear_layer(width, self.intermediate_size, 1.0, device),
                fc2: linear_layer(self.intermediate_size, width, output_gain, device),
                quick_gelu: self.hidden_act == QUICK_GELU,
            },
        };
        (0..self.num_hidden_layers).map(layer).collect()
    }
}

impl ClipLayer {
    /// Applies the layer; `mask` is added to the attention scores.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, T, hidden_size]`
    /// - mask: `[B, 1, T, T]`
    pub(crate) fn forward(&self, x: Tensor<3>, mask: Option<Tensor<4>>) -> Tensor<3> {
        let h = self.self_attn.forward(self.layer_norm1.forward(x.clone()), mask);
        let x = x + h;
        x.clone() + self.mlp.forward(self.layer_norm2.forward(x))
    }
}

impl SelfAttention {
    fn forward(&self, x: Tensor<3>, mask: Option<Tensor<4>>) -> Tensor<3> {
        let q = affine(&self.q_proj, x.clone());
        let k = affine(&self.k_proj, x.clone());
        let v = affine(&self.v_proj, x);
        let attended = match mask {
            Some(mask) => masked_attention(q, k, v, mask, self.heads),
            None => attention(q, vec![k], vec![v], self.heads),
        };
        affine(&self.out_proj, attended)
    }
}

impl FeedForward {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let h = if self.quick_gelu {
            quick_gelu(affine(&self.fc1, x))
        } else {
            affine_gelu(&self.fc1, x)
        };
        affine(&self.fc2, h)
    }
}

/// `x·σ(1.702·x)`, near to GELU.
///
/// Source: Hendrycks and Gimpel, "Gaussian error linear units" (arXiv 1606.08415), section 2.
fn quick_gelu(x: Tensor<3>) -> Tensor<3> {
    x.clone() * sigmoid(x * 1.702)
}
