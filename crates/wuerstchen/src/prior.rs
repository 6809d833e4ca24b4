//! Stage C: the text-conditional prior that makes image embeddings.

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::activation::leaky_relu;
use serde::{Deserialize, Serialize};
use wuerstchen_kernels::layer_norm;

use crate::blocks::{
    AttentionBlockConfig, Block, Conditions, Kept, Observer, ResBlockConfig, TimestepBlockConfig,
    affine, channels_first, channels_last, condition_mapper, linear_layer, time_embedding,
};
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, below_one, heads_divide, layers, published_heads, size};
use crate::part::PartConfig;
use crate::weights::KeyTable;

/// Configuration of a [`Prior`], with the published field names (`prior/config.json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PriorConfig {
    /// Channels of the image embedding.
    pub c_in: usize,
    /// Width of the model.
    pub c: usize,
    /// Width of the text encoder.
    pub c_cond: usize,
    /// Width of the time embedding.
    pub c_r: usize,
    /// Number of groups of a residual, a timestep and an attention block.
    pub depth: usize,
    /// Number of attention heads; divides `c`.
    pub nhead: usize,
    /// Dropout probability while training.
    #[serde(default)]
    pub dropout: f64,
}

/// Kernel side of the prior's depthwise convolutions, fixed in the authors' code.
const KERNEL_SIZE: usize = 3;

/// Keeps the division of the output parametrisation finite.
const OUTPUT_EPSILON: f64 = 1e-5;

/// Predicts the noise in an image embedding, given the diffusion time and the prompt.
///
/// Source: Würstchen (arXiv 2306.00637), section 3; `Prior` in `modules.py` of dome272/Wuerstchen.
#[derive(Module, Debug)]
pub struct Prior {
    projection: Linear,
    cond_in: Linear,
    cond_out: Linear,
    pub(crate) blocks: Vec<Block>,
    out: Linear,
    time_channels: usize,
}

impl PartConfig for PriorConfig {
    type Model = Prior;

    const CLASS: &'static str = "WuerstchenPrior";
    const KEYS: KeyTable = KeyTable::DIFFUSION;

    fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [("c_in", self.c_in), ("c", self.c), ("c_cond", self.c_cond)] {
            size("prior", field, value)?;
        }
        layers("prior", "depth", self.depth)?;
        if self.c_r < 4 {
            return Err(ConfigError::new("prior", "c_r", "at least 4", self.c_r));
        }
        below_one("prior", "dropout", self.dropout)?;
        heads_divide("prior", "nhead", self.nhead, self.c)
    }

    fn init(&self, device: &Device) -> Prior {
        let output_gain = (1.0 / self.depth as f64).sqrt();
        let res = ResBlockConfig {
            channels: self.c,
            skip_channels: 0,
            kernel_size: KERNEL_SIZE,
            dropout: self.dropout,
            output_gain,
        };
        let timestep = TimestepBlockConfig {
            channels: self.c,
            time_embedding: self.c_r,
            further: Default::default(),
        };
        let attention = AttentionBlockConfig {
            channels: self.c,
            condition_channels: self.c,
            heads: self.nhead,
            self_attention: true,
        };
        let group = |_| {
            [
                Block::Res(res.init(device)),
                Block::Timestep(timestep.init(device)),
                Block::Attention(attention.init(device)),
            ]
        };
        Prior {
            projection: condition_mapper(self.c_in, self.c, device),
            cond_in: condition_mapper(self.c_cond, self.c, device),
            cond_out: condition_mapper(self.c, self.c, device),
            blocks: (0..self.depth).flat_map(group).collect(),
            out: linear_layer(self.c, 2 * self.c_in, 0.0, device),
            time_channels: self.c_r,
        }
    }

    fn infer(weights: &Checkpoint) -> Option<Self> {
        let c = weights.side("projection.weight", 0)?;
        Some(Self {
            c_in: weights.side("projection.weight", 1)?,
            c,
            c_cond: weights.side("cond_mapper.0.weight", 1)?,
            c_r: weights.side("blocks.1.mapper.weight", 1)?,
            depth: weights.count(|i| format!("blocks.{}.depthwise.weight", 3 * i)),
            nhead: published_heads(c)?,
            dropout: 0.1,
        })
    }
}

impl Prior {
    /// Predicts the noise in `x`.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, c_in, H, W]`
    /// - times: `B` diffusion times in `[0, 1]`, 1 is pure noise
    /// - text: `[B, T, c_cond]`
    pub fn forward(&self, x: Tensor<4>, times: &[f32], text: Tensor<3>) -> Tensor<4> {
        self.prepare(text).forward(x, times, &mut |_, _| {})
    }

    /// Computes what stays the same at all steps of a picture: what every block makes of the text.
    ///
    /// # Shapes
    ///
    /// - text: `[B, T, c_cond]`
    pub fn prepare(&self, text: Tensor<3>) -> PreparedPrior<'_> {
        let text = self.embed_text(text);
        let kept = self.blocks.iter().map(|block| block.keep(&text, None)).collect();
        PreparedPrior { prior: self, kept }
    }

    /// The text as the blocks see it: linear, leaky `ReLU`, linear.
    ///
    /// # Shapes
    ///
    /// - text: `[B, T, c_cond]`
    /// - output: `[B, T, c]`
    pub fn embed_text(&self, text: Tensor<3>) -> Tensor<3> {
        affine(&self.cond_out, leaky_relu(affine(&self.cond_in, text), 0.2))
    }
}

/// Stage C for certain texts.
pub struct PreparedPrior<'a> {
    prior: &'a Prior,
    /// Of every block.
    kept: Vec<Kept>,
}

impl PreparedPrior<'_> {
    /// As [`Prior::forward`], and reports the projected input, every block and the raw output.
    pub fn forward(&self, x: Tensor<4>, times: &[f32], observe: Observer) -> Tensor<4> {
        let (prior, x) = (self.prior, channels_last(x));
        let time = time_embedding(times, prior.time_channels, &x.device());
        let mut conditions = Conditions { time, skip: None, image: None };
        let mut h = affine(&prior.projection, x.clone());
        observe("projection", &h);
        for (i, (block, kept)) in prior.blocks.iter().zip(&self.kept).enumerate() {
            h = block.forward(h, &mut conditions, kept);
            observe(&format!("blocks.{i}"), &h);
        }
        let ab = affine(&prior.out, layer_norm(h));
        observe("out", &ab);
        let [.., channels] = x.dims();
        let a = ab.clone().narrow(3, 0, channels);
        let b = ab.narrow(3, channels, channels);
        channels_first((x - a) / ((b * -1.0 + 1.0).abs() + OUTPUT_EPSILON))
    }
}
