//! LPIPS: how different two pictures look, by the features of a network that was trained to name what they show.

use burn::module::{Initializer, Module, Param};
use burn::prelude::*;
use burn::tensor::activation::relu;
use burn::tensor::module::{conv2d, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use wuerstchen::weights::load;
use wuerstchen::{Checkpoint, KeyTable, LoadError};

/// The network whose features are compared; the weights tell which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backbone {
    /// VGG16 (Simonyan and Zisserman, arXiv 1409.1556), configuration D.
    Vgg16,
    /// `AlexNet` (Krizhevsky, arXiv 1404.5997).
    AlexNet,
}

/// How a backbone's convolutions follow each other. After each block its features are compared.
struct Plan {
    keys: KeyTable,
    /// Number of convolutions in every block.
    blocks: [usize; 5],
    /// Whether the features are pooled before each block.
    pooled: [bool; 5],
    /// Side of the windows that are pooled, two pixels apart.
    window: usize,
    /// Side, stride and padding of the first convolution's kernel.
    first: [usize; 3],
    /// The number of each convolution among torchvision's `features`.
    features: &'static [usize],
    /// The shortest side of a picture whose last features have at least one pixel.
    min_side: usize,
}

const VGG16: Plan = Plan {
    keys: KeyTable::LPIPS_VGG16,
    blocks: [2, 2, 3, 3, 3],
    pooled: [false, true, true, true, true],
    window: 2,
    first: [3, 1, 1],
    features: &[0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
    min_side: 16,
};

const ALEXNET: Plan = Plan {
    keys: KeyTable::LPIPS_ALEXNET,
    blocks: [1; 5],
    pooled: [false, true, true, false, false],
    window: 3,
    first: [11, 4, 2],
    features: &[0, 3, 6, 8, 10],
    min_side: 31,
};

impl Backbone {
    fn plan(self) -> &'static Plan {
        match self {
            Self::Vgg16 => &VGG16,
            Self::AlexNet => &ALEXNET,
        }
    }

    /// The shortest side of a picture that it can look at, in pixels.
    pub fn min_side(self) -> usize {
        self.plan().min_side
    }
}

/// The learned perceptual image patch similarity, version 0.1. Its weights are frozen.
///
/// Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric"
/// (arXiv 1801.03924), equation 1; `LPIPS` in the package lpips.
#[derive(Module, Debug)]
pub struct Lpips {
    convs: Vec<Conv>,
    /// The weight of every channel of a block's features, `[1, C, 1, 1]`.
    heads: Vec<Param<Tensor<4>>>,
    is_vgg16: bool,
}

#[derive(Module, Debug)]
struct Conv {
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
    stride: usize,
    padding: usize,
}

/// Mean and deviation by which the backbones expect colours in `[−1, 1]` to be normalised.
///
/// Source: `ScalingLayer` in the package lpips.
const COLOUR_MEAN: [f32; 3] = [-0.030, -0.088, -0.188];
const COLOUR_DEVIATION: [f32; 3] = [0.458, 0.448, 0.450];

/// Added to the squared norm of a pixel's features, so that the root's slope stays finite where all features are 0. It
/// is the square of the 1e-10 that the package adds to the norm.
const NORM_EPSILON: f64 = 1e-20;

impl Lpips {
    /// Reads the weights from a file of the backbone and its heads, `lpips.LPIPS(net='vgg').state_dict()`, or from one
    /// of torchvision's `vgg16` or `alexnet` joined with the package's heads (`lpips/weights/v0.1`).
    ///
    /// # Errors
    ///
    /// The tensors are not those of VGG16 or `AlexNet` with their heads; the error names all that differ.
    pub fn load(weights: &Checkpoint, device: &Device) -> Result<Self, LoadError> {
        let weights = weights.renamed(published_name);
        let backbone = match weights.side("features.0.weight", 2) {
            Some(3) => Backbone::Vgg16,
            Some(11) => Backbone::AlexNet,
            _ => {
                let reason = "expected the weights of LPIPS: VGG16's or AlexNet's features \
                              (features.0.weight or net.slice1.0.weight, with kernels of 3 or 11 \
                              pixels) and their heads (lin0.model.1.weight), found other tensors";
                let path = weights.part().to_owned();
                return Err(LoadError::File { path, reason: reason.to_owned() });
            }
        };
        let keys = backbone.plan().keys;
        Ok(load(Self::init(backbone, &weights, device), &weights, keys)?.no_grad())
    }

    /// A network of the widths that the weights have.
    fn init(backbone: Backbone, weights: &Checkpoint, device: &Device) -> Self {
        let plan = backbone.plan();
        // Loading reports a missing tensor, so any width does for it here.
        let width = |i: usize| {
            let name = format!("features.{}.weight", plan.features[i]);
            weights.side(&name, 0).unwrap_or(1)
        };
        let zeros = Initializer::Zeros;
        let conv = |i: usize| {
            let input = if i == 0 { 3 } else { width(i - 1) };
            let kernel = |first: usize, rest: usize| if i == 0 { first } else { rest };
            // AlexNet's second convolution is the only other one that is wider than 3.
            let is_wide = backbone == Backbone::AlexNet && i == 1;
            let side = kernel(plan.first[0], if is_wide { 5 } else { 3 });
            Conv {
                weight: zeros.init([width(i), input, side, side], device),
                bias: zeros.init([width(i)], device),
                stride: kernel(plan.first[1], 1),
                padding: kernel(plan.first[2], side / 2),
            }
        };
        let mut last = 0;
        let heads = plan.blocks.map(|count| {
            last += count;
            zeros.init([1, width(last - 1), 1, 1], device)
        });
        Self {
            convs: (0..plan.features.len()).map(conv).collect(),
            heads: heads.into(),
            is_vgg16: backbone == Backbone::Vgg16,
        }
    }

    /// The network whose features are compared.
    pub fn backbone(&self) -> Backbone {
        if self.is_vgg16 { Backbone::Vgg16 } else { Backbone::AlexNet }
    }

    /// How different each picture looks from the one at the same place in `others`: 0 for equal pictures, about 0.7
    /// for pictures that have nothing in common.
    ///
    /// This is the sum over the blocks of the mean over the pixels of `(f(pictures) − f(others))²·w`, with a block's
    /// features `f`, of length 1 at each pixel, and its head `w`.
    ///
    /// # Shapes
    ///
    /// - pictures, others: `[B, 3, H, W]` in `[0, 1]`, sides of at least [`Backbone::min_side`]
    /// - output: `[B]`
    pub fn forward(&self, pictures: Tensor<4>, others: Tensor<4>) -> Tensor<1> {
        let [batch, ..] = pictures.dims();
        let pairs = self.features(pictures).into_iter().zip(self.features(others));
        let distances = pairs.zip(&self.heads).map(|((a, b), head)| {
            let squares = (normalise(a) - normalise(b)).square() * head.val();
            let [_, _, height, width] = squares.dims();
            let sum = squares.reshape([batch as i32, -1]).sum_dim(1);
            sum.squeeze_dim::<1>(1) / (height * width) as f64
        });
        distances.reduce(|sum, distance| sum + distance).expect("there are five blocks")
    }

    /// The features of every block.
    fn features(&self, pictures: Tensor<4>) -> Vec<Tensor<4>> {
        let plan = self.backbone().plan();
        let device = pictures.device();
        let colours =
            |values: [f32; 3]| Tensor::<1>::from_data(values, &device).reshape([1, 3, 1, 1]);
        let mut x = pictures * 2.0 - 1.0;
        x = (x - colours(COLOUR_MEAN)) / colours(COLOUR_DEVIATION);
        let mut convs = self.convs.iter();
        let mut features = Vec::new();
        for (count, is_pooled) in plan.blocks.into_iter().zip(plan.pooled) {
            if is_pooled {
                let options =
                    MaxPoolOptions { stride: [2, 2], ..MaxPoolOptions::new([plan.window; 2]) };
                x = max_pool2d(x, options);
            }
            for conv in convs.by_ref().take(count) {
                x = relu(conv.forward(x));
            }
            features.push(x.clone());
        }
        features
    }
}

impl Conv {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let options = ConvOptions::new([self.stride; 2], [self.padding; 2], [1, 1], 1);
        conv2d(x, self.weight.val(), Some(self.bias.val()), options)
    }
}

/// Scales the features to length 1 at every pixel.
fn normalise(features: Tensor<4>) -> Tensor<4> {
    let norm = (features.clone().square().sum_dim(1) + NORM_EPSILON).sqrt();
    features / norm
}

/// The name in torchvision, or in the package's files of heads, of a tensor of the package lpips. `None` for tensors
/// that are not needed: the classifier, the constants of the colours, and a second name of the heads.
fn published_name(name: &str) -> Option<String> {
    if ["classifier.", "scaling_layer.", "lins."].iter().any(|other| name.starts_with(other)) {
        return None;
    }
    let Some(slice) = name.strip_prefix("net.slice") else { return Some(name.to_owned()) };
    let (_, feature) = slice.split_once('.')?;
    Some(format!("features.{feature}"))
}
