//! The blocks of a stage, whatever their kind.

use burn::module::Module;
use burn::prelude::*;

use super::attention_block::AttentionBlock;
use super::res_block::{MappedImage, ResBlock};
use super::resample::{Downscale, Upscale};
use super::timestep_block::TimestepBlock;

/// One entry of a stage's list of blocks, numbered as in the checkpoints.
#[derive(Module, Debug)]
pub enum Block {
    /// Depthwise convolution and channel MLP.
    Res(ResBlock),
    /// Scale and shift by the time embedding.
    Timestep(TimestepBlock),
    /// Attention to the picture and the text.
    Attention(AttentionBlock),
    /// Halves height and width.
    Downscale(Downscale),
    /// Doubles height and width.
    Upscale(Upscale),
}

/// What blocks see besides the features.
pub struct Conditions<'a> {
    /// The time embedding, `[B, R]`, those of further conditions behind it.
    pub time: Tensor<2>,
    /// The text, `[B, T, D]`.
    pub text: Tensor<3>,
    /// Features of the way down, `[B, H, W, …]`, which the next residual block takes.
    pub skip: Option<Tensor<4>>,
    /// The image embedding, as large as the features.
    pub image: Option<MappedImage<'a>>,
}

impl Block {
    /// Applies the block to features.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, H, W, C]`; a change of resolution changes all but `B`
    pub fn forward(&self, x: Tensor<4>, conditions: &mut Conditions<'_>) -> Tensor<4> {
        match self {
            Self::Res(block) => block.forward(x, conditions.skip.take(), conditions.image.as_ref()),
            Self::Timestep(block) => block.forward(x, conditions.time.clone()),
            Self::Attention(block) => block.forward(x, conditions.text.clone()),
            Self::Downscale(block) => block.forward(x),
            Self::Upscale(block) => block.forward(x),
        }
    }
}

/// Called with the checkpoint name of a block and its output, channels-last.
///
/// Stages report every block, so that goldens, previews and drawings of what a stage does need no
/// second forward pass.
pub type Observer<'a> = &'a mut dyn FnMut(&str, &Tensor<4>);
