//! A small network that shows Stable Cascade's image embeddings as pictures, 8 pixels a cell.

use burn::module::{Initializer, Module, Param};
use burn::nn::Gelu;
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use wuerstchen_kernels::{Epilogue, linear};

use crate::batch_norm::{ChannelBatchNorm, Statistics};
use crate::blocks::{channels_first, channels_last, pixel_shuffle};
use crate::checkpoint::Checkpoint;
use crate::compressor::{COLOURS, dense_conv};
use crate::config::{ConfigError, size};
use crate::part::PartConfig;
use crate::weights::KeyTable;

/// Configuration of a [`Previewer`]: the widths of its layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreviewerConfig {
    /// Channels of the image embedding.
    pub c_in: usize,
    /// Channels after the first layer.
    pub c_hidden: usize,
    /// Channels after every doubling of height and width.
    pub doublings: [usize; 3],
}

/// Turns image embeddings into small pictures.
///
/// Source: `Previewer` in `modules/previewer.py` of Stability-AI/StableCascade.
#[derive(Module, Debug)]
pub struct Previewer {
    blocks: Vec<Layer>,
}

#[derive(Module, Debug)]
enum Layer {
    Conv(Conv),
    Grow(Conv),
    Activation(Gelu),
    Norm(ChannelBatchNorm),
}

/// The weights of a convolution that keeps the resolution, `[C_out, C_in, K, K]`, or of a transposed one,
/// `[C_in, C_out, 2, 2]`.
#[derive(Module, Debug)]
pub(crate) struct Conv {
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
}

/// PyTorch's default.
const NORM_EPSILON: f64 = 1e-5;

impl PartConfig for PreviewerConfig {
    type Model = Previewer;

    const CLASS: &'static str = "Previewer";
    const KEYS: KeyTable = KeyTable::PREVIEWER;
    const TOLD_BY_WEIGHTS: bool = true;

    fn validate(&self) -> Result<(), ConfigError> {
        size("previewer", "c_in", self.c_in)?;
        size("previewer", "c_hidden", self.c_hidden)?;
        self.doublings.into_iter().try_for_each(|width| size("previewer", "doublings", width))
    }

    fn init(&self, device: &Device) -> Previewer {
        let conv = |shape, output| Conv::init(shape, output, device);
        let mut blocks = Vec::new();
        let normed = |blocks: &mut Vec<Layer>, layer: Layer, width: usize| {
            blocks.push(layer);
            blocks.push(Layer::Activation(Gelu::new()));
            blocks.push(Layer::Norm(ChannelBatchNorm::init(width, NORM_EPSILON, device)));
        };
        let mut width = self.c_hidden;
        let first = conv([width, self.c_in, 1, 1], width);
        normed(&mut blocks, Layer::Conv(first), width);
        for doubled in self.doublings {
            normed(&mut blocks, Layer::Conv(conv([width, width, 3, 3], width)), width);
            normed(&mut blocks, Layer::Grow(conv([width, doubled, 2, 2], doubled)), doubled);
            width = doubled;
        }
        normed(&mut blocks, Layer::Conv(conv([width, width, 3, 3], width)), width);
        blocks.push(Layer::Conv(conv([COLOURS, width, 1, 1], COLOURS)));
        Previewer { blocks }
    }

    fn infer(weights: &Checkpoint) -> Option<Self> {
        let width = |layer: usize| weights.side(&format!("blocks.{layer}.weight"), 1);
        Some(Self {
            c_in: width(0)?,
            c_hidden: weights.side("blocks.0.weight", 0)?,
            doublings: [width(6)?, width(12)?, width(18)?],
        })
    }
}

impl Previewer {
    /// Shows image embeddings.
    ///
    /// # Shapes
    ///
    /// - embedding: `[B, c_in, h, w]`
    /// - output: `[B, 3, 8h, 8w]`, about `[0, 1]`, not clamped
    pub fn forward(&self, embedding: Tensor<4>) -> Tensor<4> {
        let x = self.blocks.iter().fold(channels_last(embedding), |x, layer| match layer {
            Layer::Conv(conv) => conv.forward(x),
            Layer::Grow(conv) => conv.transposed(x),
            Layer::Activation(gelu) => gelu.forward(x),
            Layer::Norm(norm) => norm.forward(x, Statistics::Running),
        });
        channels_first(x)
    }
}

impl Conv {
    /// Xavier-uniform weights of this shape, and zero biases.
    pub(crate) fn init(shape: [usize; 4], output: usize, device: &Device) -> Self {
        let [first, second, height, width] = shape;
        let fans = [second, first].map(|channels| Some(channels * height * width));
        Self {
            weight: Initializer::XavierUniform { gain: 1.0 }
                .init_with(shape, fans[0], fans[1], device),
            bias: Initializer::Zeros.init([output], device),
        }
    }

    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        dense_conv(x, self.weight.val(), Some(self.bias.val()), 1)
    }

    /// The transposed convolution of stride 2, whose windows do not overlap.
    fn transposed(&self, x: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let [input, output, ..] = weight.dims();
        let patches = linear(x, weight.reshape([input, 4 * output]), Epilogue::new(None));
        pixel_shuffle(patches, 2) + self.bias.val().reshape([1, 1, 1, output])
    }
}
