//! The CLIP image encoder, which turns a picture into a prompt.

mod prepare;

use burn::module::{Initializer, Module, Param};
use burn::nn::{LayerNorm, Linear};
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use wuerstchen_kernels::{Epilogue, linear};

pub use self::prepare::{PreparationConfig, Prepared};
use crate::blocks::{affine, channels_last, linear_layer, pixel_unshuffle};
use crate::checkpoint::Checkpoint;
use crate::clip::{ClipConfig, ClipLayer};
use crate::config::{ConfigError, published_heads, size};
use crate::part::PartConfig;
use crate::weights::KeyTable;

/// Configuration of an [`ImageEncoder`], with the published field names
/// (`image_encoder/config.json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageEncoderConfig {
    /// Width of the model.
    pub hidden_size: usize,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Side of the pictures in pixels, a multiple of `patch_size`.
    pub image_size: usize,
    /// Side of the patches in pixels.
    pub patch_size: usize,
    /// Colours of the pictures.
    #[serde(default = "colours")]
    pub num_channels: usize,
    /// Width of the embedding.
    pub projection_dim: usize,
    /// Epsilon of the layer norms.
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f64,
    /// The activation of the feed-forward layers: `gelu` or `quick_gelu`.
    #[serde(default = "hidden_act")]
    pub hidden_act: String,
}

/// The defaults of `CLIPVisionConfig` in transformers.
fn colours() -> usize {
    3
}

fn layer_norm_eps() -> f64 {
    1e-5
}

fn hidden_act() -> String {
    "quick_gelu".to_owned()
}

/// Turns pictures into one embedding each.
///
/// Source: Radford et al., "Learning transferable visual models from natural language supervision"
/// (arXiv 2103.00020), section 2.4; `CLIPVisionModelWithProjection` in transformers.
#[derive(Module, Debug)]
pub struct ImageEncoder {
    /// `[D]`: the token whose last state is the picture's.
    class_embedding: Param<Tensor<1>>,
    /// `[D, colours, P, P]`.
    patch_embedding: Param<Tensor<4>>,
    /// `[1 + patches, D]`.
    position_embedding: Param<Tensor<2>>,
    pre_norm: LayerNorm,
    layers: Vec<ClipLayer>,
    post_norm: LayerNorm,
    visual_projection: Linear,
}

/// What the encoder makes of pictures.
pub struct ImageEmbedding {
    /// The state of the class token before the last norm, `[B, hidden_size]`.
    pub pooled: Tensor<2>,
    /// The same state after the last norm, `[B, hidden_size]`.
    pub normed: Tensor<2>,
    /// The projection of the normed state, `[B, projection_dim]`.
    pub embedding: Tensor<2>,
}

/// The name of this model in errors.
const PART: &str = "image encoder";

impl PartConfig for ImageEncoderConfig {
    type Model = ImageEncoder;

    const CLASS: &'static str = "CLIPVisionModelWithProjection";
    const KEYS: KeyTable = KeyTable::VISION;
    const WEIGHTS_FILE: &'static str = "model.safetensors";

    fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("projection_dim", self.projection_dim),
        ] {
            size(PART, field, value)?;
        }
        if self.num_channels != colours() {
            let expected = format!("{}, the colours of a picture", colours());
            return Err(ConfigError::new(PART, "num_channels", expected, self.num_channels));
        }
        if !self.image_size.is_multiple_of(self.patch_size) {
            let expected = format!("a multiple of {}", self.patch_size);
            return Err(ConfigError::new(PART, "image_size", expected, self.image_size));
        }
        self.layers().validate()
    }

    fn init(&self, device: &Device) -> ImageEncoder {
        let (width, layers) = (self.hidden_size, self.layers());
        let embedding = Initializer::Normal { mean: 0.0, std: 0.02 };
        let side = self.image_size / self.patch_size;
        let patch = [width, self.num_channels, self.patch_size, self.patch_size];
        let projection = linear_layer(width, self.projection_dim, 1.0, device);
        ImageEncoder {
            class_embedding: embedding.init([width], device),
            patch_embedding: embedding.init(patch, device),
            position_embedding: embedding.init([1 + side * side, width], device),
            pre_norm: layers.norm(device),
            layers: layers.layers(device),
            post_norm: layers.norm(device),
            visual_projection: Linear { bias: None, ..projection },
        }
    }

    fn infer(weights: &Checkpoint) -> Option<Self> {
        let patches = "vision_model.embeddings.patch_embedding.weight";
        let positions = "vision_model.embeddings.position_embedding.weight";
        let layer = |i: usize| format!("vision_model.encoder.layers.{i}.mlp.fc1.weight");
        let (width, patch_size) = (weights.side(patches, 0)?, weights.side(patches, 2)?);
        let side = weights.side(positions, 0)?.checked_sub(1)?.isqrt();
        Some(Self {
            hidden_size: width,
            intermediate_size: weights.side(&layer(0), 0)?,
            num_hidden_layers: weights.count(layer),
            num_attention_heads: published_heads(width)?,
            image_size: side.checked_mul(patch_size)?,
            patch_size,
            num_channels: weights.side(patches, 1)?,
            projection_dim: weights.side("visual_projection.weight", 0)?,
            layer_norm_eps: layer_norm_eps(),
            hidden_act: hidden_act(),
        })
    }
}

impl ImageEncoderConfig {
    fn layers(&self) -> ClipConfig<'_> {
        ClipConfig {
            part: PART,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            layer_norm_eps: self.layer_norm_eps,
            hidden_act: &self.hidden_act,
        }
    }
}

impl ImageEncoder {
    /// Embeds pictures as [`PreparationConfig::prepare`] makes them.
    ///
    /// # Shapes
    ///
    /// - pixels: `[B, 3, image_size, image_size]`
    pub fn forward(&self, pixels: Tensor<4>) -> ImageEmbedding {
        self.forward_observed(pixels, &mut |_, _| {})
    }

    /// As [`Self::forward`], and reports every hidden state with its number; 0 is the embedding.
    pub fn forward_observed(
        &self,
        pixels: Tensor<4>,
        observe: &mut dyn FnMut(usize, &Tensor<3>),
    ) -> ImageEmbedding {
        let kernel = self.patch_embedding.val();
        let ([width, colours, patch, _], [batch, ..]) = (kernel.dims(), pixels.dims());
        // The convolution's windows do not overlap: one matrix product of all of them.
        let windows = pixel_unshuffle(channels_last(pixels), patch);
        let [_, rows, columns, size] = windows.dims();
        let matrix = kernel.reshape([width, colours * patch * patch]).transpose();
        let patches =
            linear(windows.reshape([batch, rows * columns, size]), matrix, Epilogue::new(None));
        let class = self.class_embedding.val().reshape([1, 1, width]).repeat_dim(0, batch);
        let tokens = Tensor::cat(vec![class, patches], 1);
        let mut h = self.pre_norm.forward(tokens + self.position_embedding.val().unsqueeze());
        observe(0, &h);
        for (i, layer) in self.layers.iter().enumerate() {
            h = layer.forward(h, None);
            observe(i + 1, &h);
        }
        let pooled = h.narrow(1, 0, 1).reshape([batch, width]);
        let normed = self.post_norm.forward(pooled.clone());
        let embedding = affine(&self.visual_projection, normed.clone());
        ImageEmbedding { pooled, normed, embedding }
    }
}
