//! What the stages see of prompts.

use burn::prelude::*;

use crate::interpolate::lerp;

/// The embedding of prompts.
#[derive(Clone, Debug)]
pub struct TextEmbedding {
    /// The embedding of every token, `[B, T, D]`.
    pub tokens: Tensor<3>,
    /// The embedding of the whole prompt, `[B, P]`, where the encoder makes one.
    pub pooled: Option<Tensor<2>>,
}

impl TextEmbedding {
    /// Number of prompts `B`.
    pub fn batch(&self) -> usize {
        self.tokens.dims()[0]
    }

    /// The embedding of one prompt, `count` times.
    pub fn repeat(self, count: usize) -> Self {
        let pooled = self.pooled.map(|pooled| pooled.repeat_dim(0, count));
        Self { tokens: self.tokens.repeat_dim(0, count), pooled }
    }

    /// Appends `other` to this batch. Both have pooled embeddings, or neither has.
    pub fn cat(self, other: Self) -> Self {
        let pooled = self.pooled.zip(other.pooled).map(|(a, b)| Tensor::cat(vec![a, b], 0));
        Self { tokens: Tensor::cat(vec![self.tokens, other.tokens], 0), pooled }
    }

    /// Linear interpolation: `self` at 0, `other` at 1.
    pub fn lerp(self, other: Self, share: f32) -> Self {
        let pooled = self.pooled.zip(other.pooled).map(|(a, b)| lerp(a, b, share));
        Self { tokens: lerp(self.tokens, other.tokens, share), pooled }
    }
}
