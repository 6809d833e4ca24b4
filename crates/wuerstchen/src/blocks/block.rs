//! The blocks of a stage, whatever their kind.

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;

use super::attention_block::{AttendedText, AttentionBlock};
use super::linear::Folded;
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

/// The inputs of blocks besides the features; they change at every step.
pub struct Conditions {
    /// The time embedding, `[B, R]`, followed by those of further conditions.
    pub time: Tensor<2>,
    /// Features of the way down, `[B, H, W, …]`, which the next residual block takes.
    pub skip: Option<Tensor<4>>,
    /// The image embedding, as large as the features, `[B, H, W, N]`.
    pub image: Option<Tensor<4>>,
}

/// What a block computes once for a whole picture, from inputs that stay the same at all steps.
#[derive(Clone, Debug)]
pub enum Kept {
    /// The block keeps nothing.
    Nothing,
    /// The text as an attention block sees it.
    Text(AttendedText),
    /// A residual block's layer together with the one that widens the image embedding.
    Image(Folded),
}

impl Block {
    /// Computes what stays the same for a whole picture.
    ///
    /// # Shapes
    ///
    /// - text: `[B, T, D]`, after the `SiLU` that every attention block begins with
    /// - `image_mapper`: `N` channels of the image embedding to those that a residual block appends
    pub fn keep(&self, text: &Tensor<3>, image_mapper: Option<&Linear>) -> Kept {
        match (self, image_mapper) {
            (Self::Attention(block), _) => Kept::Text(block.keep(text.clone())),
            (Self::Res(block), Some(mapper)) => Kept::Image(block.fold(mapper)),
            _ => Kept::Nothing,
        }
    }

    /// Applies the block to features.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, H, W, C]`; a change of resolution changes all but `B`
    ///
    /// # Panics
    ///
    /// Panics if what was kept is another block's.
    pub fn forward(&self, x: Tensor<4>, conditions: &mut Conditions, kept: &Kept) -> Tensor<4> {
        match (self, kept) {
            (Self::Res(block), Kept::Image(folded)) => {
                let image = conditions.image.clone().expect("a mapper has an image embedding");
                block.forward(x, conditions.skip.take(), Some(MappedImage { image, folded }))
            }
            (Self::Res(block), _) => block.forward(x, conditions.skip.take(), None),
            (Self::Timestep(block), _) => block.forward(x, conditions.time.clone()),
            (Self::Attention(block), Kept::Text(text)) => block.forward(x, text),
            (Self::Attention(_), _) => panic!("an attention block keeps the text"),
            (Self::Downscale(block), _) => block.forward(x),
            (Self::Upscale(block), _) => block.forward(x),
        }
    }
}

/// Number of feature channels, as the residual block among `blocks` has it.
#[cfg(feature = "gpu")]
pub(crate) fn width(blocks: &[Block]) -> usize {
    let width = |block: &Block| match block {
        Block::Res(block) => Some(block.channelwise.contract.weight.dims()[1]),
        _ => None,
    };
    blocks.iter().find_map(width).expect("a level has a residual block")
}

/// Called with the checkpoint name of a block and its output, channels-last.
///
/// Stages report every block, so that goldens, previews and drawings of what a stage does need no
/// second forward pass.
pub type Observer<'a> = &'a mut dyn FnMut(&str, &Tensor<4>);
