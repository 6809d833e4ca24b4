//! The semantic compressor: EfficientNetV2 features mapped to a very small image embedding.

use burn::module::{Initializer, Module, Param};
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::Slice;
use burn::tensor::activation::sigmoid;
use serde::{Deserialize, Serialize};
use wuerstchen_kernels::{
    DepthwiseOptions, Epilogue, Padding, depthwise_conv, linear, patches, silu,
};

use crate::batch_norm::{ChannelBatchNorm, Statistics};
use crate::blocks::{Observer, affine, channels_first, channels_last, linear_layer};
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, below_one, between, layers, size};
use crate::part::PartConfig;
use crate::resize::cover;
use crate::weights::KeyTable;

/// Configuration of a [`Compressor`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompressorConfig {
    /// Channels of the image embedding.
    pub c_latent: usize,
    /// Channels of the first convolution, which halves the picture's height and width.
    pub stem: usize,
    /// The stages of the backbone.
    pub stages: Vec<StageConfig>,
    /// Channels of the features that are mapped to the embedding.
    pub head: usize,
    /// Epsilon of the backbone's batch norms.
    #[serde(default = "default_backbone_epsilon")]
    pub backbone_bn_eps: f64,
    /// Epsilon of the batch norm after the mapper.
    #[serde(default = "default_mapper_epsilon")]
    pub mapper_bn_eps: f64,
    /// Whether that norm has a scale and a shift of its own; Stable Cascade's has none.
    #[serde(default = "is_affine", skip_serializing_if = "Clone::clone")]
    pub mapper_bn_affine: bool,
}

fn is_affine() -> bool {
    true
}

fn default_backbone_epsilon() -> f64 {
    1e-3
}

fn default_mapper_epsilon() -> f64 {
    1e-5
}

/// A run of equal blocks; only the first changes the resolution and the channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageConfig {
    /// Which kind of block.
    pub block: BlockKind,
    /// Factor from a block's input channels to its inner ones.
    pub expand: usize,
    /// Output channels.
    pub channels: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Stride of the first block.
    pub stride: usize,
    /// Side of the kernels of dense and depthwise convolutions; 3 in all published models.
    #[serde(default = "published_kernel", skip_serializing_if = "is_published_kernel")]
    pub kernel: usize,
}

fn published_kernel() -> usize {
    3
}

fn is_published_kernel(kernel: &usize) -> bool {
    *kernel == published_kernel()
}

/// The two kinds of EfficientNetV2 blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// A dense convolution, then a 1x1 one unless `expand` is 1.
    Fused,
    /// 1x1, depthwise, squeeze-and-excitation, 1x1.
    Inverted,
}

/// The name of the compressor in errors.
const PART: &str = "compressor";

/// Channels of a picture.
pub(crate) const COLOURS: usize = 3;

/// The largest product of all strides: half of the pixels, along an axis, that a cell of the features may stand for.
const LARGEST_STRIDE: usize = 512;

/// Strides of EfficientNetV2-L, whose weights do not tell them; EfficientNetV2-S has the first six stages.
const V2_STRIDES: [usize; 7] = [1, 2, 2, 2, 1, 2, 1];

/// Strides of a smaller backbone whose cells are 32 pixels wide too.
const SMALL_STRIDES: [usize; 5] = [1, 2, 2, 2, 2];

/// Mean and standard deviation of ImageNet's colours, `[0, 1]`.
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// The layers of EfficientNetV2 that make features of pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EfficientNetConfig {
    /// Channels of the first convolution, which halves the picture's height and width.
    pub stem: usize,
    /// The stages.
    pub stages: Vec<StageConfig>,
    /// Channels of the features.
    pub head: usize,
    /// Epsilon of the batch norms.
    #[serde(default = "default_backbone_epsilon")]
    pub backbone_bn_eps: f64,
}

/// Makes the image embedding that Stage B starts from and Stage C learns to make.
///
/// Source: `EfficientNetEncoder` in `modules.py` of dome272/Wuerstchen; `efficientnet_v2_s` in
/// torchvision, `efficientnet_v2_l` in Würstchen v1.
#[derive(Module, Debug)]
pub struct Compressor {
    /// Stem, stages, head, numbered as in torchvision.
    backbone: Vec<Stage>,
    /// Checkpoints call it `mapper`, which `derive(Module)` reserves.
    projection: ConvNorm,
}

#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "only the first and the last are small")]
pub(crate) enum Stage {
    Conv(ConvNorm),
    Blocks(Vec<InvertedBlock>),
}

/// A convolution without bias, a batch norm and maybe SiLU.
#[derive(Module, Debug)]
pub(crate) struct ConvNorm {
    /// `[C_out, C_in, K, K]`, or `[C, 1, K, K]` if depthwise.
    conv: Param<Tensor<4>>,
    norm: ChannelBatchNorm,
    stride: usize,
    /// Whether `(K − 1) / 2` pixels of zeros are around the picture.
    padded: bool,
    depthwise: bool,
    activation: bool,
}

#[derive(Module, Debug)]
pub(crate) struct InvertedBlock {
    block: Vec<Layer>,
    residual: bool,
}

#[derive(Module, Debug)]
enum Layer {
    Conv(ConvNorm),
    Squeeze(SqueezeExcitation),
}

/// Scales every channel by a function of all channels' means.
#[derive(Module, Debug)]
struct SqueezeExcitation {
    fc1: Linear,
    fc2: Linear,
}

impl PartConfig for CompressorConfig {
    type Model = Compressor;

    const CLASS: &'static str = "EfficientNetEncoder";
    const KEYS: KeyTable = KeyTable::COMPRESSOR;
    const TOLD_BY_WEIGHTS: bool = true;

    fn validate(&self) -> Result<(), ConfigError> {
        size(PART, "c_latent", self.c_latent)?;
        below_one(PART, "mapper_bn_eps", self.mapper_bn_eps)?;
        self.backbone().validate(PART)
    }

    fn init(&self, device: &Device) -> Compressor {
        let shape = [self.c_latent, self.head, 1, 1];
        let projection = ConvNorm::init(shape, 1, self.mapper_bn_eps, device).without_activation();
        let projection = if self.mapper_bn_affine {
            projection
        } else {
            ConvNorm { norm: projection.norm.without_affine(), ..projection }
        };
        Compressor { backbone: self.backbone().init(COLOURS, device), projection }
    }

    /// Strides cannot be read off weights; see [`EfficientNetConfig`].
    fn infer(weights: &Checkpoint) -> Option<Self> {
        let EfficientNetConfig { stem, stages, head, backbone_bn_eps } =
            EfficientNetConfig::infer(weights)?;
        Some(Self {
            c_latent: weights.side("mapper.0.weight", 0)?,
            stem,
            stages,
            head,
            backbone_bn_eps,
            mapper_bn_eps: default_mapper_epsilon(),
            mapper_bn_affine: weights.has("mapper.1.weight"),
        })
    }
}

impl CompressorConfig {
    /// How many pixels one cell of the embedding stands for, along each axis.
    pub fn downscale(&self) -> usize {
        self.stages.iter().map(|stage| stage.stride).product::<usize>() * 2
    }

    fn backbone(&self) -> EfficientNetConfig {
        EfficientNetConfig {
            stem: self.stem,
            stages: self.stages.clone(),
            head: self.head,
            backbone_bn_eps: self.backbone_bn_eps,
        }
    }
}

impl EfficientNetConfig {
    /// Checks what the architecture needs; `part` is the network in errors.
    pub(crate) fn validate(&self, part: &'static str) -> Result<(), ConfigError> {
        let sizes = [("stem", self.stem), ("head", self.head)];
        let stages = self.stages.iter().flat_map(|stage| {
            [("expand", stage.expand), ("channels", stage.channels), ("stride", stage.stride)]
        });
        below_one(part, "backbone_bn_eps", self.backbone_bn_eps)?;
        let even = self.stages.iter().map(|stage| stage.kernel).find(|n| n.is_multiple_of(2));
        if let Some(found) = even {
            return Err(ConfigError::new(part, "kernel", "odd", found));
        }
        sizes.into_iter().chain(stages).try_for_each(|(field, value)| size(part, field, value))?;
        let mut input = self.stem;
        for stage in &self.stages {
            for width in [input, stage.channels] {
                size(part, "expand", width * stage.expand)?;
            }
            input = stage.channels;
        }
        let stride =
            self.stages.iter().try_fold(1usize, |all, stage| all.checked_mul(stage.stride));
        between(part, "stride", stride.unwrap_or(usize::MAX), 1..=LARGEST_STRIDE)?;
        self.stages.iter().try_for_each(|stage| layers(part, "layers", stage.layers))
    }

    /// The layers over pictures with `input` channels. Where these are no colours, the first convolution has no padding,
    /// as the one by which the authors replace it.
    pub(crate) fn init(&self, input: usize, device: &Device) -> Vec<Stage> {
        let epsilon = self.backbone_bn_eps;
        let conv = |shape, stride| ConvNorm::init(shape, stride, epsilon, device);
        let stem = ConvNorm { padded: input == COLOURS, ..conv([self.stem, input, 3, 3], 2) };
        let mut backbone = vec![Stage::Conv(stem)];
        let mut input = self.stem;
        for stage in &self.stages {
            let mut blocks = Vec::new();
            for i in 0..stage.layers {
                let stride = if i == 0 { stage.stride } else { 1 };
                blocks.push(stage.block(input, stride, &conv, device));
                input = stage.channels;
            }
            backbone.push(Stage::Blocks(blocks));
        }
        backbone.push(Stage::Conv(conv([self.head, input, 1, 1], 1)));
        backbone
    }

    /// Reads the sizes off weights under `backbone.`. Strides cannot be read off them; those of EfficientNetV2 are
    /// assumed, or those of one stage less than EfficientNetV2-S has.
    pub(crate) fn infer(weights: &Checkpoint) -> Option<Self> {
        let stages = (1..).take_while(|i| weights.has(&format!("backbone.{i}.0.block.0.0.weight")));
        let stages = stages.count();
        let all = [&V2_STRIDES[..], &V2_STRIDES[..6], &SMALL_STRIDES[..]];
        let strides = all.into_iter().find(|strides| strides.len() == stages)?;
        let stage = |i: usize| {
            let layer = |number: usize| format!("backbone.{i}.0.block.{number}.0.weight");
            let (inner, input) = (weights.side(&layer(0), 0)?, weights.side(&layer(0), 1)?);
            let is_single = !weights.has(&layer(1));
            let is_inverted = weights.has(&layer(3));
            Some(StageConfig {
                block: if is_inverted { BlockKind::Inverted } else { BlockKind::Fused },
                expand: if is_single { 1 } else { inner / input.max(1) },
                // The last layer's; blocks have four of them, two or one.
                channels: [3, 1, 0].into_iter().find_map(|last| weights.side(&layer(last), 0))?,
                layers: weights.count(|l| format!("backbone.{i}.{l}.block.0.0.weight")),
                stride: strides[i - 1],
                kernel: weights.side(&layer(usize::from(is_inverted)), 2)?,
            })
        };
        Some(Self {
            stem: weights.side("backbone.0.0.weight", 0)?,
            stages: (1..=stages).map(stage).collect::<Option<_>>()?,
            head: weights.side(&format!("backbone.{}.0.weight", stages + 1), 0)?,
            backbone_bn_eps: default_backbone_epsilon(),
        })
    }
}

impl StageConfig {
    fn block(
        &self,
        input: usize,
        stride: usize,
        conv: &impl Fn([usize; 4], usize) -> ConvNorm,
        device: &Device,
    ) -> InvertedBlock {
        let (inner, output, kernel) = (input * self.expand, self.channels, self.kernel);
        let project = || Layer::Conv(conv([output, inner, 1, 1], 1).without_activation());
        let block = match self.block {
            BlockKind::Fused if self.expand == 1 => {
                vec![Layer::Conv(conv([output, input, kernel, kernel], stride))]
            }
            BlockKind::Fused => {
                vec![Layer::Conv(conv([inner, input, kernel, kernel], stride)), project()]
            }
            BlockKind::Inverted => {
                let shape = [inner, 1, kernel, kernel];
                let depthwise = ConvNorm { depthwise: true, ..conv(shape, stride) };
                let squeezed = (input / 4).max(1);
                let squeeze = SqueezeExcitation {
                    fc1: linear_layer(inner, squeezed, 1.0, device),
                    fc2: linear_layer(squeezed, inner, 1.0, device),
                };
                let expand = Layer::Conv(conv([inner, input, 1, 1], 1));
                vec![expand, Layer::Conv(depthwise), Layer::Squeeze(squeeze), project()]
            }
        };
        InvertedBlock { block, residual: stride == 1 && input == output }
    }
}

impl Compressor {
    /// Makes the image embedding of prepared pictures (see [`prepare`]).
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, H, W]`, normalised as [`normalise`] does
    /// - output: `[B, c_latent, H / downscale, W / downscale]`, rounded up
    pub fn forward(&self, image: Tensor<4>, statistics: Statistics) -> Tensor<4> {
        self.forward_observed(image, statistics, &mut |_, _| {})
    }

    /// As [`Self::forward`], and reports every block.
    pub fn forward_observed(
        &self,
        image: Tensor<4>,
        statistics: Statistics,
        observe: Observer,
    ) -> Tensor<4> {
        let x = features(&self.backbone, channels_last(image), statistics, observe);
        channels_first(self.projection.forward(x, statistics))
    }
}

/// What the layers of an EfficientNet make of `[B, H, W, C]`; reports every block.
pub(crate) fn features(
    backbone: &[Stage],
    mut x: Tensor<4>,
    statistics: Statistics,
    observe: Observer,
) -> Tensor<4> {
    for (i, stage) in backbone.iter().enumerate() {
        match stage {
            Stage::Conv(conv) => x = conv.forward(x, statistics),
            Stage::Blocks(blocks) => {
                for (j, block) in blocks.iter().enumerate() {
                    x = block.forward(x, statistics);
                    observe(&format!("backbone.{i}.{j}"), &x);
                }
            }
        }
        observe(&format!("backbone.{i}"), &x);
    }
    x
}

impl InvertedBlock {
    fn forward(&self, x: Tensor<4>, statistics: Statistics) -> Tensor<4> {
        let y = self.block.iter().fold(x.clone(), |y, layer| match layer {
            Layer::Conv(layer) => layer.forward(y, statistics),
            Layer::Squeeze(layer) => layer.forward(y),
        });
        if self.residual { x + y } else { y }
    }
}

impl SqueezeExcitation {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let means = x.clone().mean_dim(1).mean_dim(2);
        x * sigmoid(affine(&self.fc2, silu(affine(&self.fc1, means))))
    }
}

impl ConvNorm {
    fn init(shape: [usize; 4], stride: usize, epsilon: f64, device: &Device) -> Self {
        let [output, _, size, _] = shape;
        // torchvision starts EfficientNet with Kaiming-normal weights over the outputs.
        let std = (2.0 / (output * size * size) as f64).sqrt();
        Self {
            conv: Initializer::Normal { mean: 0.0, std }.init(shape, device),
            norm: ChannelBatchNorm::init(output, epsilon, device),
            stride,
            padded: true,
            depthwise: false,
            activation: true,
        }
    }

    fn without_activation(self) -> Self {
        Self { activation: false, ..self }
    }

    fn forward(&self, x: Tensor<4>, statistics: Statistics) -> Tensor<4> {
        let weight = self.conv.val();
        let [output, ..] = weight.dims();
        let y = if self.depthwise {
            let options = DepthwiseOptions { stride: self.stride, padding: Padding::Zeros };
            depthwise_conv(x.clone(), weight, Tensor::zeros([output], &x.device()), options)
        } else if self.padded {
            dense_conv(x, weight, None, self.stride)
        } else {
            unpadded_conv(x, weight, self.stride)
        };
        let y = self.norm.forward(y, statistics);
        if self.activation { silu(y) } else { y }
    }
}

/// A convolution padded by `(K − 1) / 2`, as one matrix product of all windows.
pub(crate) fn dense_conv(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
) -> Tensor<4> {
    let [.., size, _] = weight.dims();
    let windows = if (size, stride) == (1, 1) { x } else { patches(x, size, stride) };
    linear(windows, window_weight(weight), Epilogue::new(bias))
}

/// A convolution without padding and bias, whose result is smaller than the picture: `(H − K) / stride + 1` rows.
fn unpadded_conv(x: Tensor<4>, weight: Tensor<4>, stride: usize) -> Tensor<4> {
    let ([_, height, width, _], [.., size, _]) = (x.dims(), weight.dims());
    let every = |first: usize, side: usize| {
        let last = first + (side - size) / stride * stride;
        Slice::new(first as isize, Some(last as isize + 1), stride as isize)
    };
    let window = |i: usize| {
        let (row, column) = (every(i / size, height), every(i % size, width));
        x.clone().slice([Slice::full(), row, column])
    };
    let windows = Tensor::cat((0..size * size).map(window).collect(), 3);
    linear(windows, window_weight(weight), Epilogue::new(None))
}

/// The weights of a convolution as a matrix over the values of a window.
fn window_weight(weight: Tensor<4>) -> Tensor<2> {
    let [output, input, size, _] = weight.dims();
    weight.permute([2, 3, 1, 0]).reshape([size * size * input, output])
}

/// Prepares pictures for the compressor: they cover `size` (height, width; bilinear, antialiased),
/// the parts beyond its edges are cut off, colours are normalised with the mean and deviation of ImageNet.
///
/// # Shapes
///
/// - image: `[B, 3, H, W]` in `[0, 1]`
/// - output: `[B, 3, height, width]`
pub fn prepare(image: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    normalise(cover(image, size))
}

/// Normalises the colours of `[B, 3, H, W]` in `[0, 1]` with the mean and deviation of ImageNet.
pub fn normalise(image: Tensor<4>) -> Tensor<4> {
    normalise_by(image, IMAGENET_MEAN, IMAGENET_STD)
}

/// Subtracts a mean from the colours of `[B, 3, H, W]` and divides them by a deviation.
pub(crate) fn normalise_by(image: Tensor<4>, mean: [f32; 3], std: [f32; 3]) -> Tensor<4> {
    let device = image.device();
    let channel = |values: [f32; 3]| Tensor::<1>::from_data(values, &device).reshape([1, 3, 1, 1]);
    (image - channel(mean)) / channel(std)
}
