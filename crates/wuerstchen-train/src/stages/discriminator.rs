//! The discriminator of patches that Stage A is trained against.

use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::activation::{leaky_relu, relu};
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;

use crate::config::AdversarialConfig;
use crate::lots::stream;

/// The purpose of the random numbers of the initial weights.
const START: u64 = 202;

/// Standard deviation of the initial weights.
const START_DEVIATION: f32 = 0.02;

/// Largest ratio of the number of channels to that after the first convolution.
const MOST_WIDTH: usize = 8;

/// Side, and padding, of every kernel.
const KERNEL: usize = 4;
const PADDING: usize = 1;

/// The slope of its activations, leaky `ReLU`s, below 0.
const SLOPE: f64 = 0.2;

/// Epsilon of the batch norms, PyTorch's default.
const NORM_EPSILON: f64 = 1e-5;

/// Judges for every patch of a picture how much it looks like a patch of a true picture.
///
/// Its batch norms use the statistics of the batch: it only runs in training.
///
/// Source: Isola et al., "Image-to-image translation with conditional adversarial networks" (arXiv 1611.07004), section
/// 3.2.2; `NLayerDiscriminator` of CompVis/taming-transformers.
#[derive(Module, Debug)]
pub struct Discriminator {
    convs: Vec<Conv>,
}

#[derive(Module, Debug)]
struct Conv {
    weight: Param<Tensor<4>>,
    /// The shift of a convolution without a norm.
    bias: Option<Param<Tensor<1>>>,
    norm: Option<Norm>,
    stride: usize,
}

#[derive(Module, Debug)]
struct Norm {
    scale: Param<Tensor<1>>,
    shift: Param<Tensor<1>>,
}

impl Discriminator {
    /// A discriminator of RGB pictures with random initial weights.
    pub fn init(config: &AdversarialConfig, seed: u64, device: &Device) -> Self {
        let width = |layer: usize| config.channels * (1 << layer).min(MOST_WIDTH);
        let last = config.layers + 1;
        let conv = |layer: usize| {
            let mut rng = stream(seed, START, layer as u64);
            let mut normal = |mean: f32, count: usize| -> Vec<f32> {
                rng.normal(count).into_iter().map(|x| mean + START_DEVIATION * x).collect()
            };
            let input = if layer == 0 { 3 } else { width(layer - 1) };
            let output = if layer == last { 1 } else { width(layer) };
            let shape = [output, input, KERNEL, KERNEL];
            let weight = TensorData::new(normal(0.0, shape.iter().product()), shape);
            let param = |values: Vec<f32>| {
                Param::from_tensor(Tensor::from_data(TensorData::new(values, [output]), device))
            };
            let has_norm = layer > 0 && layer < last;
            Conv {
                weight: Param::from_tensor(Tensor::from_data(weight, device)),
                bias: (!has_norm).then(|| param(vec![0.0; output])),
                norm: has_norm.then(|| Norm {
                    scale: param(normal(1.0, output)),
                    shift: param(vec![0.0; output]),
                }),
                stride: if layer < config.layers { 2 } else { 1 },
            }
        };
        Self { convs: (0..=last).map(conv).collect() }
    }

    /// The verdicts on the patches of pictures: above 0 for those that seem true.
    ///
    /// # Shapes
    ///
    /// - pictures: `[B, 3, H, W]` in `[0, 1]`, sides of at least `3·2^layers`
    /// - output: `[B, 1, h, w]`, with `h = ⌊H/2^layers⌋ − 2` and `w` likewise
    pub fn forward(&self, pictures: Tensor<4>) -> Tensor<4> {
        let mut x = pictures * 2.0 - 1.0;
        for (i, conv) in self.convs.iter().enumerate() {
            x = conv.forward(x);
            if i + 1 < self.convs.len() {
                x = leaky_relu(x, SLOPE);
            }
        }
        x
    }

    /// The loss of the discriminator: half the sum of the means of `max(0, 1 − D(true))` and of `max(0, 1 + D(made))`.
    ///
    /// Source: Lim and Ye, "Geometric GAN" (arXiv 1705.02894), equations 14 and 15; `hinge_d_loss` of
    /// CompVis/taming-transformers.
    ///
    /// # Shapes
    ///
    /// - pictures (the true ones), made: `[B, 3, H, W]`
    pub fn hinge_loss(&self, pictures: Tensor<4>, made: Tensor<4>) -> Tensor<1> {
        let on_true = relu(-self.forward(pictures) + 1.0).mean();
        let on_made = relu(self.forward(made) + 1.0).mean();
        (on_true + on_made) * 0.5
    }
}

impl Conv {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let options = ConvOptions::new([self.stride; 2], [PADDING; 2], [1, 1], 1);
        let bias = self.bias.as_ref().map(Param::val);
        let x = conv2d(x, self.weight.val(), bias, options);
        match &self.norm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }
}

impl Norm {
    /// Normalises every channel over the batch and the pixels.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mean = |x: Tensor<4>| x.mean_dim(0).mean_dim(2).mean_dim(3);
        let of_channels = |values: &Param<Tensor<1>>| {
            let values = values.val();
            let [channels] = values.dims();
            values.reshape([1, channels, 1, 1])
        };
        let centred = x.clone() - mean(x);
        let deviation = (mean(centred.clone().square()) + NORM_EPSILON).sqrt();
        centred / deviation * of_channels(&self.scale) + of_channels(&self.shift)
    }
}
