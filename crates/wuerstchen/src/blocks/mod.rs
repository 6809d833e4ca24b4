//! The layers that stages B and C share. Features are channels-last, `[B, H, W, C]`, throughout.

mod attention_block;
mod res_block;
mod resample;
mod timestep_block;

pub use attention_block::{Attention, AttentionBlock, AttentionBlockConfig};
pub use res_block::{
    ChannelMlp, DepthwiseConv, MappedImage, ResBlock, ResBlockConfig, ResponseNorm,
};
pub use resample::{Downscale, Upscale, pixel_shuffle, pixel_unshuffle};
pub use timestep_block::{TimestepBlock, TimestepBlockConfig, time_embedding};

use burn::module::{Initializer, Module, Param};
use burn::nn::Linear;
use burn::prelude::*;

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

/// Called with the checkpoint name of a block and its output, channels-last.
///
/// Stages report every block, so that goldens, previews and drawings of what a stage does need no
/// second forward pass.
pub type Observer<'a> = &'a mut dyn FnMut(&str, &Tensor<4>);

/// A linear layer with Xavier-uniform weights of the given gain and zero bias, as the authors start.
pub(crate) fn linear(input: usize, output: usize, gain: f64, device: &Device) -> Linear {
    let initializer = match gain == 0.0 {
        true => Initializer::Zeros,
        false => Initializer::XavierUniform { gain },
    };
    let weight = initializer.init_with([input, output], Some(input), Some(output), device);
    Linear { weight, bias: Some(Initializer::Zeros.init([output], device)) }
}

/// A linear layer with weights of N(0, 0.02²) and zero bias, as the authors start condition mappers.
pub(crate) fn condition_mapper(input: usize, output: usize, device: &Device) -> Linear {
    let weight = Initializer::Normal { mean: 0.0, std: 0.02 }.init([input, output], device);
    Linear { weight, bias: Some(Initializer::Zeros.init([output], device)) }
}

pub(crate) fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Initializer::Zeros.init(shape, device)
}

/// `[B, C, H, W]` to `[B, H, W, C]`.
pub fn channels_last(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 2, 3, 1])
}

/// `[B, H, W, C]` to `[B, C, H, W]`.
pub fn channels_first(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 3, 1, 2])
}
