//! The ControlNets of Stable Cascade: what a picture adds to the features of Stage C.

use burn::module::Module;
use burn::nn::{
    Gelu, LayerNorm, LayerNormConfig, LeakyRelu, LeakyReluConfig, Linear, LinearConfig,
};
use burn::prelude::*;
use burn::tensor::activation::leaky_relu;
use serde::{Deserialize, Serialize};

use crate::batch_norm::Statistics;
use crate::blocks::{affine, channels_last};
use crate::cascade::CascadeConfig;
use crate::checkpoint::Checkpoint;
use crate::compressor::{EfficientNetConfig, Stage, features};
use crate::config::{ConfigError, layers, size};
use crate::part::PartConfig;
use crate::previewer::Conv;
use crate::weights::KeyTable;

/// Configuration of a [`ControlNet`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlNetConfig {
    /// Channels of the input.
    pub c_in: usize,
    /// What makes features of the input.
    pub backbone: BackboneConfig,
    /// Channels of the features.
    pub c_hidden: usize,
    /// Channels of Stage C's features, to which the projected features are added.
    pub c_proj: usize,
    /// Number of projections.
    pub projections: usize,
    /// For each projection, the number of the residual block before which it is added. Blocks are counted from 0 in
    /// the order in which Stage C runs them.
    pub blocks: Vec<usize>,
}

/// The layers that make features of the input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackboneConfig {
    /// EfficientNetV2, for pictures. A cell of its features is 32 pixels wide.
    EfficientNet(EfficientNetConfig),
    /// Convolutions that keep the resolution, for embeddings.
    Convolutions(ConvolutionsConfig),
}

/// Two convolutions with a leaky `ReLU` between, then residual blocks, and maybe a last convolution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConvolutionsConfig {
    /// Side of the kernels of the first two convolutions.
    pub kernel: usize,
    /// Channels after the first convolution.
    pub expanded: usize,
    /// Channels after the second convolution.
    pub channels: usize,
    /// Number of residual blocks; without any there is no last convolution either.
    pub residual_blocks: usize,
}

/// Before which residual blocks the published ControlNets add their eight projections.
const PUBLISHED_BLOCKS: [usize; 8] = [0, 4, 8, 12, 51, 55, 59, 63];

/// The residual blocks of the published Stage C; the authors' ControlNet for faces has a projection for each.
const ALL_BLOCKS: usize = 64;

/// Slope of the leaky `ReLU` for negative values.
const SLOPE: f64 = 0.2;

/// Channels of a picture with its mask.
const PICTURE_AND_MASK: usize = 4;

/// The name of the network in errors.
const PART: &str = "controlnet";

/// Makes what is added to the features of Stage C before some of its residual blocks.
///
/// Source: `ControlNet` in `modules/controlnet.py` of Stability-AI/StableCascade.
#[derive(Module, Debug)]
pub struct ControlNet {
    backbone: Backbone,
    projections: Vec<Projection>,
}

#[derive(Module, Debug)]
enum Backbone {
    Features(Vec<Stage>),
    Convolutions(Vec<Layer>),
}

#[derive(Module, Debug)]
enum Layer {
    Conv(Conv),
    Activation(LeakyRelu),
    Residual(Residual),
}

/// Twice a layer norm, GELU and a 3x3 convolution; the input is added to the result.
#[derive(Module, Debug)]
struct Residual {
    blocks: Vec<ResidualLayer>,
}

#[derive(Module, Debug)]
enum ResidualLayer {
    Norm(LayerNorm),
    Activation(Gelu),
    Conv(Conv),
}

/// Two 1x1 convolutions without biases, with a leaky `ReLU` between.
#[derive(Module, Debug)]
struct Projection {
    inner: Linear,
    outer: Linear,
}

/// What a ControlNet takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControlInput {
    /// The edges of a picture.
    Edges,
    /// A picture and the part of it to paint anew.
    Painting,
    /// The image embedding of a smaller picture.
    Embedding,
}

impl PartConfig for ControlNetConfig {
    type Model = ControlNet;

    const CLASS: &'static str = "ControlNet";
    const KEYS: KeyTable = KeyTable::CONTROLNET;
    const TOLD_BY_WEIGHTS: bool = true;

    fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in
            [("c_in", self.c_in), ("c_hidden", self.c_hidden), ("c_proj", self.c_proj)]
        {
            size(PART, field, value)?;
        }
        layers(PART, "projections", self.projections)?;
        let features = match &self.backbone {
            BackboneConfig::EfficientNet(config) => config.head,
            BackboneConfig::Convolutions(config) if config.residual_blocks == 0 => config.channels,
            BackboneConfig::Convolutions(_) => self.c_hidden,
        };
        if self.c_hidden != features {
            let expected = format!("{features}, as the channels of the backbone's features are");
            return Err(ConfigError::new(PART, "c_hidden", expected, self.c_hidden));
        }
        let is_rising = self.blocks.is_sorted_by(|a, b| a < b);
        if self.blocks.len() != self.projections || !is_rising {
            let expected = format!(
                "a list in config.json of {} rising numbers of residual blocks, one for each projection",
                self.projections
            );
            return Err(ConfigError::new(PART, "blocks", expected, format!("{:?}", self.blocks)));
        }
        match &self.backbone {
            BackboneConfig::EfficientNet(config) => config.validate(PART),
            BackboneConfig::Convolutions(config) => config.validate(),
        }
    }

    fn init(&self, device: &Device) -> ControlNet {
        let layer =
            |output: usize| LinearConfig::new(self.c_hidden, output).with_bias(false).init(device);
        let projection = |_| Projection { inner: layer(self.c_hidden), outer: layer(self.c_proj) };
        let backbone = match &self.backbone {
            BackboneConfig::EfficientNet(config) => {
                Backbone::Features(config.init(self.c_in, device))
            }
            BackboneConfig::Convolutions(config) => {
                Backbone::Convolutions(config.init(self.c_in, self.c_hidden, device))
            }
        };
        ControlNet { backbone, projections: (0..self.projections).map(projection).collect() }
    }

    /// The weights do not tell which blocks the projections belong to: those of the published ControlNets are assumed
    /// for 8 and for 64 projections.
    fn infer(weights: &Checkpoint) -> Option<Self> {
        // A damaged file may lack one of the two layers.
        let layer = |i: usize, layer: usize| format!("projections.{i}.{layer}.weight");
        let has = |i: &usize| [0, 2].iter().any(|number| weights.has(&layer(*i, *number)));
        let projections = (0..).take_while(has).count();
        let side = |axis| (0..projections).find_map(|i| weights.side(&layer(i, 2), axis));
        let (backbone, first) = match ConvolutionsConfig::infer(weights) {
            Some(config) => (BackboneConfig::Convolutions(config), "backbone.0.weight"),
            None => {
                let config = EfficientNetConfig::infer(weights)?;
                (BackboneConfig::EfficientNet(config), "backbone.0.0.weight")
            }
        };
        Some(Self {
            c_in: weights.side(first, 1)?,
            backbone,
            c_hidden: side(1)?,
            c_proj: side(0)?,
            projections,
            blocks: match projections {
                ALL_BLOCKS => (0..ALL_BLOCKS).collect(),
                _ if projections == PUBLISHED_BLOCKS.len() => PUBLISHED_BLOCKS.to_vec(),
                _ => Vec::new(),
            },
        })
    }
}

impl ControlNetConfig {
    /// Fails if the network does not fit a Stage C.
    ///
    /// # Errors
    ///
    /// It adds to a block that Stage C does not have, or makes features of another width.
    pub fn check(&self, prior: &CascadeConfig) -> Result<(), ConfigError> {
        let widths = prior.res_block_widths();
        for &block in &self.blocks {
            let Some(&width) = widths.get(block) else {
                let expected = format!(
                    "numbers below {}, of as many residual blocks as Stage C has",
                    widths.len()
                );
                return Err(ConfigError::new(PART, "blocks", expected, block));
            };
            if width != self.c_proj {
                let expected = format!("{width}, as wide as Stage C is before block {block}");
                return Err(ConfigError::new(PART, "c_proj", expected, self.c_proj));
            }
        }
        Ok(())
    }

    /// What the network takes, in words.
    pub fn takes(&self) -> String {
        match self.input() {
            Some(ControlInput::Edges) => "the edges of a picture".to_owned(),
            Some(ControlInput::Painting) => "a picture and a mask".to_owned(),
            Some(ControlInput::Embedding) => {
                "the image embedding of a picture in half its resolution".to_owned()
            }
            None => format!("{} channels, which no picture is made into", self.c_in),
        }
    }

    /// What the network takes; `None` where no picture can be made to fit it.
    pub(crate) fn input(&self) -> Option<ControlInput> {
        match (&self.backbone, self.c_in) {
            (BackboneConfig::EfficientNet(_), 1) => Some(ControlInput::Edges),
            (BackboneConfig::EfficientNet(_), PICTURE_AND_MASK) => Some(ControlInput::Painting),
            (BackboneConfig::Convolutions(config), _) if config.residual_blocks > 0 => {
                Some(ControlInput::Embedding)
            }
            _ => None,
        }
    }
}

impl ConvolutionsConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        size(PART, "expanded", self.expanded)?;
        size(PART, "channels", self.channels)?;
        if self.kernel.is_multiple_of(2) {
            return Err(ConfigError::new(PART, "kernel", "odd", self.kernel));
        }
        match self.residual_blocks {
            0 => Ok(()),
            blocks => layers(PART, "residual_blocks", blocks),
        }
    }

    fn init(&self, input: usize, output: usize, device: &Device) -> Vec<Layer> {
        let Self { kernel, expanded, channels, residual_blocks } = *self;
        let conv =
            |input, output, kernel| Conv::init([output, input, kernel, kernel], output, device);
        let norm = || ResidualLayer::Norm(LayerNormConfig::new(channels).init(device));
        let half = || {
            let conv = ResidualLayer::Conv(conv(channels, channels, 3));
            [norm(), ResidualLayer::Activation(Gelu::new()), conv]
        };
        let mut all = vec![
            Layer::Conv(conv(input, expanded, kernel)),
            Layer::Activation(LeakyReluConfig::new().with_negative_slope(SLOPE).init()),
            Layer::Conv(conv(expanded, channels, kernel)),
        ];
        for _ in 0..residual_blocks {
            let blocks = half().into_iter().chain(half()).collect();
            all.push(Layer::Residual(Residual { blocks }));
        }
        if residual_blocks > 0 {
            all.push(Layer::Conv(conv(channels, output, 1)));
        }
        all
    }

    fn infer(weights: &Checkpoint) -> Option<Self> {
        Some(Self {
            kernel: weights.side("backbone.0.weight", 2)?,
            expanded: weights.side("backbone.0.weight", 0)?,
            channels: weights.side("backbone.2.weight", 0)?,
            residual_blocks: weights.count(|i| format!("backbone.{}.blocks.0.weight", i + 3)),
        })
    }
}

impl ControlNet {
    /// Makes what is added to the features of Stage C, one tensor for each projection.
    ///
    /// # Shapes
    ///
    /// - input: `[B, c_in, H, W]`
    /// - output: `[B, h, w, c_proj]`
    pub fn forward(&self, input: Tensor<4>) -> Vec<Tensor<4>> {
        let x = channels_last(input);
        let x = match &self.backbone {
            Backbone::Features(stages) => features(stages, x, Statistics::Running, &mut |_, _| {}),
            Backbone::Convolutions(layers) => layers.iter().fold(x, |x, layer| match layer {
                Layer::Conv(conv) => conv.forward(x),
                Layer::Activation(activation) => activation.forward(x),
                Layer::Residual(block) => block.forward(x),
            }),
        };
        let project = |projection: &Projection| projection.forward(x.clone());
        self.projections.iter().map(project).collect()
    }
}

impl Projection {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        affine(&self.outer, leaky_relu(affine(&self.inner, x), SLOPE))
    }
}

impl Residual {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = self.blocks.iter().fold(x.clone(), |y, layer| match layer {
            ResidualLayer::Norm(norm) => norm.forward(y),
            ResidualLayer::Activation(gelu) => gelu.forward(y),
            ResidualLayer::Conv(conv) => conv.forward(y),
        });
        x + y
    }
}

/// What PyTorch and OpenCV compute.
#[cfg(test)]
pub(crate) mod golden {
    use std::sync::Arc;

    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/controlnets.safetensors");

    pub(crate) fn all() -> Checkpoint {
        Checkpoint::parse("controlnets", Arc::new(GOLDEN)).unwrap()
    }

    pub(crate) fn tensor(name: &str) -> Tensor<4> {
        let all = all();
        let values = TensorData::new(all.values(name).unwrap(), all.shape(name).unwrap());
        Tensor::from_data(values, &Device::flex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relative_error::assert_close;

    /// Each kind of published ControlNet computes what PyTorch computes, and is told by its weights.
    #[test]
    fn all_kinds_agree_with_pytorch() {
        let (golden, device) = (golden::all(), Device::flex());
        let inputs = [
            ("edges", Some(ControlInput::Edges)),
            ("painting", Some(ControlInput::Painting)),
            ("embedding", Some(ControlInput::Embedding)),
        ];
        for (kind, input) in inputs {
            let weights = golden.under(&format!("{kind}.weights."));
            let config = ControlNetConfig::infer(&weights).unwrap();
            assert_eq!(config.validate(), Ok(()));
            assert_eq!((config.input(), &config.blocks[..]), (input, &PUBLISHED_BLOCKS[..]));
            let model = config.load(&weights, &device).unwrap();
            let tensor = |name: &str| golden::tensor(&format!("{kind}.{name}"));
            let found = model.forward(tensor("input"));
            assert_eq!(found.len(), PUBLISHED_BLOCKS.len());
            for (i, found) in found.into_iter().enumerate() {
                let expected = tensor(&format!("projection.{i}"));
                assert_close(found, channels_last(expected), 1e-5);
            }
        }
    }

    #[test]
    fn blocks_that_weights_do_not_tell_have_to_be_in_the_config() {
        let config = ControlNetConfig {
            c_in: 5,
            backbone: BackboneConfig::Convolutions(ConvolutionsConfig {
                kernel: 3,
                expanded: 20,
                channels: 5,
                residual_blocks: 0,
            }),
            c_hidden: 5,
            c_proj: 24,
            projections: 3,
            blocks: Vec::new(),
        };
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "controlnet config: blocks must be a list in config.json of 3 rising numbers of residual blocks, one for \
             each projection, got []"
        );
        let config = ControlNetConfig { blocks: vec![0, 2, 5], ..config };
        assert_eq!((config.validate(), config.input()), (Ok(()), None));
        let config = ControlNetConfig { c_hidden: 6, ..config };
        assert!(config.validate().unwrap_err().to_string().contains("c_hidden must be 5"));
    }
}
