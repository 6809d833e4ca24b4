//! Stage A: the VQGAN that turns pixels into latents and back.

use burn::module::{Initializer, Module, Param};
use burn::nn::Linear;
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use wuerstchen_kernels::{Epilogue, Padding, layer_norm, linear};

use crate::batch_norm::{ChannelBatchNorm, Statistics};
use crate::blocks::{
    DepthwiseConv, Observer, affine, affine_gelu, channels_first, channels_last, linear_layer,
    pixel_shuffle, pixel_unshuffle,
};
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, between, layers, size};
use crate::part::PartConfig;
use crate::weights::KeyTable;

/// Configuration of a [`Vqgan`], with the published field names (`vqgan/config.json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VqganConfig {
    /// Channels of the picture.
    pub in_channels: usize,
    /// Channels of the reconstruction.
    pub out_channels: usize,
    /// Side of the patches that the first layer packs into channels.
    pub up_down_scale_factor: usize,
    /// Number of resolutions; every one after the first halves the picture.
    pub levels: usize,
    /// Residual blocks at the lowest resolution of the decoder.
    pub bottleneck_blocks: usize,
    /// Channels at the lowest resolution, halved at every finer one.
    pub embed_dim: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Size of the codebook.
    pub num_vq_embeddings: usize,
    /// Factor between Stage B's latents and this model's.
    pub scale_factor: f64,
}

/// The scale of `stage_a.safetensors`, the authors' Stage A of Stable Cascade, which no config tells.
///
/// Source: `StageA` in `modules/stage_a.py` of Stability-AI/StableCascade.
pub const STAGE_A_SCALE: f64 = 0.43;

/// The largest `up_down_scale_factor`, the side in pixels of a patch; that of the published Stage A is 2.
const LARGEST_FACTOR: usize = 64;

/// Epsilon of the batch norm in front of the latents, PyTorch's default.
const NORM_EPSILON: f64 = 1e-5;

/// A VQGAN whose residual blocks mix pixels and channels in turn.
///
/// Source: `VQModel` in `vqgan.py` of dome272/Wuerstchen; `PaellaVQModel` in diffusers.
#[derive(Module, Debug)]
pub struct Vqgan {
    in_block: Linear,
    down_blocks: Vec<VqganBlock>,
    vquantizer: Quantizer,
    up_blocks: Vec<VqganBlock>,
    out_block: Linear,
    patch_size: usize,
}

/// One entry of the encoder's or decoder's list of blocks, numbered as in the checkpoints.
#[derive(Module, Debug)]
enum VqganBlock {
    Mixing(MixingBlock),
    Downscale(Conv4x4),
    Upscale(Conv4x4),
    ToLatents(LatentNorm),
    FromLatents(LatentMap),
}

/// The codebook.
#[derive(Module, Debug)]
struct Quantizer {
    /// `[K, latent_channels]`.
    embedding: Param<Tensor<2>>,
}

/// A linear map without bias and a batch norm.
#[derive(Module, Debug)]
struct LatentNorm {
    map: Linear,
    norm: ChannelBatchNorm,
}

#[derive(Module, Debug)]
struct LatentMap {
    map: Linear,
}

/// The weights of a 4x4 convolution, transposed or not, of stride 2 and padding 1.
#[derive(Module, Debug)]
struct Conv4x4 {
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
}

impl PartConfig for VqganConfig {
    type Model = Vqgan;

    const CLASS: &'static str = "PaellaVQModel";
    const KEYS: KeyTable = KeyTable::VQGAN;

    fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("embed_dim", self.embed_dim),
            ("latent_channels", self.latent_channels),
            ("num_vq_embeddings", self.num_vq_embeddings),
        ] {
            size("vqgan", field, value)?;
        }
        between("vqgan", "up_down_scale_factor", self.up_down_scale_factor, 1..=LARGEST_FACTOR)?;
        layers("vqgan", "levels", self.levels)?;
        layers("vqgan", "bottleneck_blocks", self.bottleneck_blocks)?;
        let multiple = 1usize << (self.levels - 1).min(31);
        if self.embed_dim == 0 || !self.embed_dim.is_multiple_of(multiple) {
            let expected = format!("a multiple of {multiple}");
            return Err(ConfigError::new("vqgan", "embed_dim", expected, self.embed_dim));
        }
        if !(self.scale_factor.is_finite() && self.scale_factor > 0.0) {
            let expected = "finite and above 0";
            return Err(ConfigError::new("vqgan", "scale_factor", expected, self.scale_factor));
        }
        Ok(())
    }

    fn init(&self, device: &Device) -> Vqgan {
        let widths: Vec<_> = (0..self.levels).rev().map(|i| self.embed_dim >> i).collect();
        let patch = self.up_down_scale_factor * self.up_down_scale_factor;
        let latents = self.latent_channels;
        let mut down_blocks = Vec::new();
        for (i, &width) in widths.iter().enumerate() {
            if i > 0 {
                let conv = Conv4x4::init([width, widths[i - 1]], width, device);
                down_blocks.push(VqganBlock::Downscale(conv));
            }
            down_blocks.push(VqganBlock::Mixing(MixingBlock::init(width, device)));
        }
        let map = Linear { bias: None, ..linear_layer(self.embed_dim, latents, 1.0, device) };
        let norm = ChannelBatchNorm::init(latents, NORM_EPSILON, device);
        down_blocks.push(VqganBlock::ToLatents(LatentNorm { map, norm }));

        let map = linear_layer(latents, self.embed_dim, 1.0, device);
        let mut up_blocks = vec![VqganBlock::FromLatents(LatentMap { map })];
        for (i, &width) in widths.iter().rev().enumerate() {
            for _ in 0..if i == 0 { self.bottleneck_blocks } else { 1 } {
                up_blocks.push(VqganBlock::Mixing(MixingBlock::init(width, device)));
            }
            if i + 1 < self.levels {
                let conv = Conv4x4::init([width, width / 2], width / 2, device);
                up_blocks.push(VqganBlock::Upscale(conv));
            }
        }

        // The latents leave a batch norm, so the codes start where they will be.
        let normal = Initializer::Normal { mean: 0.0, std: 1.0 };
        Vqgan {
            in_block: linear_layer(self.in_channels * patch, widths[0], 1.0, device),
            down_blocks,
            vquantizer: Quantizer {
                embedding: normal.init([self.num_vq_embeddings, latents], device),
            },
            up_blocks,
            out_block: linear_layer(widths[0], self.out_channels * patch, 1.0, device),
            patch_size: self.up_down_scale_factor,
        }
    }

    fn infer(weights: &Checkpoint) -> Option<Self> {
        let embed_dim = weights.side("up_blocks.0.0.weight", 0)?;
        let width = weights.side("in_block.1.weight", 0)?;
        let colours = 3;
        let patch = (weights.side("in_block.1.weight", 1)? / colours).isqrt();
        let bottleneck = |i: usize| format!("up_blocks.{}.gammas", i + 1);
        Some(Self {
            in_channels: colours,
            out_channels: weights.side("out_block.0.weight", 0)?.checked_div(patch * patch)?,
            up_down_scale_factor: patch,
            levels: 1 + embed_dim.checked_div(width)?.checked_ilog2()? as usize,
            bottleneck_blocks: weights.count(bottleneck),
            embed_dim,
            latent_channels: weights.side("up_blocks.0.0.weight", 1)?,
            num_vq_embeddings: weights.side("vquantizer.embedding.weight", 0)?,
            scale_factor: 0.3764,
        })
    }
}

impl VqganConfig {
    /// How many pixels one latent pixel stands for, along each axis.
    pub fn downscale(&self) -> usize {
        self.up_down_scale_factor << (self.levels - 1)
    }
}

/// What quantising latents gives.
pub struct Quantized {
    /// The nearest codes, `[B, C, H, W]`; the gradient passes straight through to the latents.
    pub latents: Tensor<4>,
    /// Their numbers in the codebook, `[B, H, W]`.
    pub indices: Tensor<3, Int>,
    /// `mean((z − sg(q))²)·0.25 + mean((sg(z) − q)²)`.
    pub loss: Tensor<1>,
}

/// Weight of the loss that commits the encoder to its codes.
pub const COMMITMENT: f64 = 0.25;

impl Vqgan {
    /// Encodes a picture into unscaled latents.
    ///
    /// Stage B works on these divided by [`VqganConfig::scale_factor`].
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, H, W]` in `[0, 1]`, height and width multiples of
    ///   [`VqganConfig::downscale`]
    /// - output: `[B, latent_channels, H / downscale, W / downscale]`
    pub fn encode(&self, image: Tensor<4>, statistics: Statistics) -> Tensor<4> {
        self.encode_observed(image, statistics, &mut |_, _| {})
    }

    /// As [`Self::encode`], and reports every block.
    pub fn encode_observed(
        &self,
        image: Tensor<4>,
        statistics: Statistics,
        observe: Observer,
    ) -> Tensor<4> {
        let patches = pixel_unshuffle(channels_last(image), self.patch_size);
        let x = affine(&self.in_block, patches);
        observe("in_block", &x);
        channels_first(run(&self.down_blocks, x, statistics, "down_blocks", observe))
    }

    /// Replaces every latent pixel by the nearest entry of the codebook, the first one on ties.
    ///
    /// # Shapes
    ///
    /// - latents: `[B, latent_channels, H, W]`, unscaled
    pub fn quantize(&self, latents: Tensor<4>) -> Quantized {
        let latents = channels_last(latents);
        let [batch, height, width, channels] = latents.dims();
        let rows = latents.reshape([batch * height * width, channels]);
        let indices = self.nearest(rows.clone().detach());
        let codes = self.vquantizer.embedding.val().select(0, indices.clone());
        let commitment = (rows.clone() - codes.clone().detach()).square().mean();
        let loss =
            commitment * COMMITMENT + (rows.clone().detach() - codes.clone()).square().mean();
        let straight_through = rows.clone() + (codes - rows).detach();
        Quantized {
            latents: channels_first(straight_through.reshape([batch, height, width, channels])),
            indices: indices.reshape([batch, height, width]),
            loss,
        }
    }

    /// The number of the nearest code of every row, the first one on ties.
    ///
    /// # Shapes
    ///
    /// - rows: `[N, latent_channels]`
    /// - output: `[N]`
    pub fn nearest(&self, rows: Tensor<2>) -> Tensor<1, Int> {
        let codebook = self.vquantizer.embedding.val();
        let norms = codebook.clone().square().sum_dim(1).transpose(); // [1, K]
        let distances = norms - rows.matmul(codebook.transpose()) * 2.0;
        distances.detach().argmin(1).squeeze_dim(1)
    }

    /// The codebook, `[num_vq_embeddings, latent_channels]`.
    pub fn codebook(&self) -> Tensor<2> {
        self.vquantizer.embedding.val()
    }

    /// The same model with other codes, one after the other.
    ///
    /// # Panics
    ///
    /// Panics if there are not as many values.
    pub fn with_codebook(mut self, codes: Vec<f32>) -> Self {
        self.vquantizer.embedding = self.vquantizer.embedding.map(|old| {
            let codes = Tensor::from_data(TensorData::new(codes, old.shape()), &old.device());
            codes.set_require_grad(old.is_require_grad())
        });
        self
    }

    /// The codes of tokens as unscaled latents; a token is the number of its code in the codebook.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, H, W]`
    /// - output: `[B, latent_channels, H, W]`
    pub fn look_up(&self, tokens: Tensor<3, Int>) -> Tensor<4> {
        let [batch, height, width] = tokens.dims();
        let codes = self.vquantizer.embedding.val().select(0, tokens.reshape([-1]));
        let [_, channels] = codes.dims();
        channels_first(codes.reshape([batch, height, width, channels]))
    }

    /// The mean code of every distribution over the codebook.
    ///
    /// # Shapes
    ///
    /// - probabilities: `[N, num_vq_embeddings]`
    /// - output: `[N, latent_channels]`
    pub fn mean_codes(&self, probabilities: Tensor<2>) -> Tensor<2> {
        probabilities.matmul(self.vquantizer.embedding.val())
    }

    /// Decodes unscaled latents into a picture, not clamped.
    ///
    /// # Shapes
    ///
    /// - latents: `[B, latent_channels, H, W]`
    /// - output: `[B, 3, H·downscale, W·downscale]`
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decode_observed(latents, &mut |_, _| {})
    }

    /// As [`Self::decode`], `rows` rows of latents at a time, so that only their features are in
    /// memory. Gives strips of the picture from top to bottom, of any height.
    ///
    /// Nothing in a decoder reaches further than its convolutions do: every block keeps the few rows
    /// that its next strip needs, so nothing is computed twice but those, and the strips are those of
    /// the whole picture.
    ///
    /// # Shapes
    ///
    /// - latents: `[B, latent_channels, H, W]`
    /// - strips: `[B, 3, h, W·downscale]`, `H·downscale` rows in all
    ///
    /// # Panics
    ///
    /// Panics if `rows` is 0.
    pub fn decode_strips(&self, latents: Tensor<4>, rows: usize) -> Strips<'_> {
        assert!(rows > 0, "a strip has rows");
        let states = self.up_blocks.iter().map(|_| StripState::default()).collect();
        Strips { vqgan: self, latents: channels_last(latents), rows, next: 0, states }
    }

    /// As [`Self::decode`], and reports every block.
    pub fn decode_observed(&self, latents: Tensor<4>, observe: Observer) -> Tensor<4> {
        let x = channels_last(latents);
        let x = run(&self.up_blocks, x, Statistics::Running, "up_blocks", observe);
        let patches = affine(&self.out_block, x);
        observe("out_block.0", &patches);
        channels_first(pixel_shuffle(patches, self.patch_size))
    }

    /// As [`Self::decode`]; also returns the features from which the last layer makes the picture, `[B, H, W, C]`.
    pub fn decode_with_features(&self, latents: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let x = channels_last(latents);
        let features = run(&self.up_blocks, x, Statistics::Running, "up_blocks", &mut |_, _| {});
        (self.to_pixels(features.clone()), features)
    }

    /// The gradient of the decoder's last matrix, `[C, 3·patch²]`, from the gradient of a picture.
    ///
    /// # Shapes
    ///
    /// - features: `[B, H, W, C]`, of [`Self::decode_with_features`]
    /// - gradient: `[B, 3, H·patch, W·patch]`
    pub fn last_layer_gradient(&self, features: Tensor<4>, gradient: Tensor<4>) -> Tensor<2> {
        let patches = pixel_unshuffle(channels_last(gradient), self.patch_size);
        features.flatten::<2>(0, 2).transpose().matmul(patches.flatten(0, 2))
    }

    fn to_pixels(&self, x: Tensor<4>) -> Tensor<4> {
        channels_first(pixel_shuffle(affine(&self.out_block, x), self.patch_size))
    }
}

/// Latent pixels up to which a picture is decoded at once: 512 x 512 pixels at the published scale.
const AT_ONCE: usize = 128 * 128;

/// Latent pixels of a strip of a larger picture.
const STRIP: usize = AT_ONCE / 2;

/// The default number of rows of latents of `[height, width]` that are decoded at a time; 0 for all rows.
pub fn strip_rows([height, width]: [usize; 2]) -> usize {
    if height * width <= AT_ONCE { 0 } else { (STRIP / width).max(1) }
}

/// A picture that is decoded strip by strip, see [`Vqgan::decode_strips`].
pub struct Strips<'a> {
    vqgan: &'a Vqgan,
    latents: Tensor<4>,
    rows: usize,
    /// The first row of latents that is still to be decoded.
    next: usize,
    states: Vec<StripState>,
}

/// What a block remembers between two strips.
#[derive(Default)]
struct StripState {
    /// The last rows of its input.
    kept: Option<Tensor<4>>,
    /// Whether the block has returned the top of the picture.
    started: bool,
}

impl Iterator for Strips<'_> {
    type Item = Tensor<4>;

    fn next(&mut self) -> Option<Tensor<4>> {
        let [_, height, ..] = self.latents.dims();
        // The first strips may have too few rows for the last block to return any.
        while self.next < height {
            let rows = self.rows.min(height - self.next);
            let strip = self.latents.clone().narrow(1, self.next, rows);
            self.next += rows;
            let last = self.next == height;
            let mut blocks = self.vqgan.up_blocks.iter().zip(&mut self.states);
            let decoded = blocks.try_fold(strip, |x, (block, state)| state.pass(block, x, last));
            if let Some(x) = decoded {
                return Some(self.vqgan.to_pixels(x));
            }
        }
        None
    }
}

impl StripState {
    /// The output of `block` for the next strip of its input, without rows that need input from below the strip.
    fn pass(&mut self, block: &VqganBlock, x: Tensor<4>, last: bool) -> Option<Tensor<4>> {
        let reach = block.reach();
        let x = match self.kept.take() {
            Some(kept) => Tensor::cat(vec![kept, x], 1),
            None => x,
        };
        let [_, rows, ..] = x.dims();
        // Next to a cut the block sees a border that the whole picture does not have.
        let top = if self.started { reach.wrong } else { 0 };
        let bottom = if last { 0 } else { reach.wrong };
        let output = (rows * reach.scale).checked_sub(top + bottom).filter(|&output| output > 0);
        let Some(output) = output else {
            self.kept = Some(x);
            return None;
        };
        if reach.kept > 0 && !last {
            self.kept = Some(x.clone().narrow(1, rows - reach.kept, reach.kept));
        }
        self.started = true;
        Some(block.forward(x, Statistics::Running).narrow(1, top, output))
    }
}

/// How far the outputs of a block depend on rows of its input around them.
struct Reach {
    /// Rows of output for every row of input.
    scale: usize,
    /// Rows of output next to a cut that differ from those of the whole picture.
    wrong: usize,
    /// Rows of input before a cut that the outputs after it need.
    kept: usize,
}

impl VqganBlock {
    fn reach(&self) -> Reach {
        match self {
            // A 3x3 convolution: the row at the cut is wrong, and the row before it is its neighbour.
            Self::Mixing(_) => Reach { scale: 1, wrong: 1, kept: 2 },
            // Rows 2i and 2i + 1 of a transposed 4x4 convolution of stride 2 and padding 1 need row i
            // and the one above or below.
            Self::Upscale(_) => Reach { scale: 2, wrong: 1, kept: 1 },
            Self::FromLatents(_) => Reach { scale: 1, wrong: 0, kept: 0 },
            Self::Downscale(_) | Self::ToLatents(_) => unreachable!("a decoder does not encode"),
        }
    }

    fn forward(&self, x: Tensor<4>, statistics: Statistics) -> Tensor<4> {
        match self {
            Self::Mixing(block) => block.forward(x),
            Self::Downscale(conv) => conv.downscale(x),
            Self::Upscale(conv) => conv.upscale(x),
            Self::ToLatents(block) => block.norm.forward(block.map.forward(x), statistics),
            Self::FromLatents(block) => affine(&block.map, x),
        }
    }
}

fn run(
    blocks: &[VqganBlock],
    mut x: Tensor<4>,
    statistics: Statistics,
    name: &str,
    observe: Observer,
) -> Tensor<4> {
    for (i, block) in blocks.iter().enumerate() {
        x = block.forward(x, statistics);
        observe(&format!("{name}.{i}"), &x);
    }
    x
}

/// A residual block that mixes pixels, then channels, each with learnt scalar modulation.
///
/// With scalars `g`: `x += g₂·depthwise(LN(x)·(1 + g₀) + g₁)`, then
/// `x += g₅·MLP(LN(x)·(1 + g₃) + g₄)`. The depthwise convolution replicates the border.
///
/// Source: `ResBlock` in `vqgan.py` of dome272/Wuerstchen.
#[derive(Module, Debug)]
struct MixingBlock {
    gammas: Param<Tensor<1>>,
    depthwise: DepthwiseConv,
    channelwise: MixingMlp,
}

#[derive(Module, Debug)]
struct MixingMlp {
    expand: Linear,
    contract: Linear,
}

impl MixingBlock {
    fn init(channels: usize, device: &Device) -> Self {
        Self {
            gammas: Initializer::Zeros.init([6], device),
            depthwise: DepthwiseConv::init(channels, 3, device),
            channelwise: MixingMlp {
                expand: linear_layer(channels, 4 * channels, 1.0, device),
                contract: linear_layer(4 * channels, channels, 1.0, device),
            },
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        #[cfg(feature = "train")]
        if x.device().is_autodiff() {
            return self.folded(x);
        }
        self.defined(x)
    }

    fn defined(&self, x: Tensor<4>) -> Tensor<4> {
        let gammas = self.gammas.val();
        let gamma = |i: usize| gammas.clone().narrow(0, i, 1).reshape([1, 1, 1, 1]);
        let h = layer_norm(x.clone()) * (gamma(0) + 1.0) + gamma(1);
        let x = x + self.depthwise.forward(h, Padding::Replicate) * gamma(2);
        let h = layer_norm(x.clone()) * (gamma(3) + 1.0) + gamma(4);
        let h = affine(&self.channelwise.contract, affine_gelu(&self.channelwise.expand, h));
        x + h * gamma(5)
    }

    /// As [`Self::defined`], with the scalars in the weights of the layers around them. While a graph is recorded, each
    /// multiplication of features by a scalar costs several passes over memory, in the backward pass too.
    ///
    /// A convolution that replicates the border makes of a constant `g` everywhere `g` times the sum of its taps, and a
    /// linear layer `g` times the sums of its columns.
    #[cfg(feature = "train")]
    fn folded(&self, x: Tensor<4>) -> Tensor<4> {
        use wuerstchen_kernels::{DepthwiseOptions, depthwise_conv};

        let gammas = self.gammas.val();
        let gamma = |i: usize| gammas.clone().narrow(0, i, 1);
        let (taps, bias) = (self.depthwise.weight.val(), self.depthwise.bias.val());
        let sums = taps.clone().flatten::<2>(1, 3).sum_dim(1).squeeze_dim::<1>(1);
        let bias = (bias + sums * gamma(1)) * gamma(2);
        let scale = (gamma(0) + 1.0) * gamma(2);
        let options = DepthwiseOptions { stride: 1, padding: Padding::Replicate };
        let taps = taps * scale.reshape([1, 1, 1, 1]);
        let x = x.clone() + depthwise_conv(layer_norm(x), taps, bias, options);

        let MixingMlp { expand, contract } = &self.channelwise;
        let parts = |layer: &Linear| (layer.weight.val(), layer.bias.as_ref().map(Param::val));
        let (weight, bias) = parts(expand);
        let sums = weight.clone().sum_dim(0).squeeze_dim::<1>(0) * gamma(4);
        let bias = match bias {
            Some(bias) => bias + sums,
            None => sums,
        };
        let weight = weight * (gamma(3) + 1.0).reshape([1, 1]);
        let epilogue = Epilogue { gelu: true, ..Epilogue::new(Some(bias)) };
        let h = linear(layer_norm(x.clone()), weight, epilogue);
        let (weight, bias) = parts(contract);
        let bias = bias.map(|bias| bias * gamma(5));
        let epilogue = Epilogue { bias, addend: Some(x), gelu: false };
        linear(h, weight * gamma(5).reshape([1, 1]), epilogue)
    }
}

impl Conv4x4 {
    fn init([a, b]: [usize; 2], output: usize, device: &Device) -> Self {
        let xavier = Initializer::XavierUniform { gain: 1.0 };
        let weight = xavier.init_with([a, b, 4, 4], Some(16 * b), Some(16 * a), device);
        Self { weight, bias: Initializer::Zeros.init([output], device) }
    }

    /// A 4x4 convolution of stride 2 is a 2x2 convolution of 2x2 patches: four shifted pictures
    /// side by side and one matrix product. Weight `[C_out, C_in, 4, 4]`.
    fn downscale(&self, x: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let [output, input, ..] = weight.dims();
        let blocks = pixel_unshuffle(x.pad([(1, 1), (1, 1), (0, 0)], 0.0f32), 2);
        let [_, rows, columns, _] = blocks.dims();
        let shifted = |a, b| blocks.clone().narrow(1, a, rows - 1).narrow(2, b, columns - 1);
        let patches =
            Tensor::cat(vec![shifted(0, 0), shifted(0, 1), shifted(1, 0), shifted(1, 1)], 3);
        let weight = weight
            .reshape([output, input, 2, 2, 2, 2]) // C_out, C_in, a, dy, b, dx
            .permute([2, 4, 1, 3, 5, 0])
            .reshape([16 * input, output]);
        linear(patches, weight, Epilogue::new(Some(self.bias.val())))
    }

    /// The transposed convolution: one matrix product gives each pixel's four overlapping 2x2
    /// patches, which are added where they lie. Weight `[C_in, C_out, 4, 4]`.
    fn upscale(&self, x: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let [input, output, ..] = weight.dims();
        let [_, height, width, _] = x.dims();
        let weight = weight
            .reshape([input, output, 2, 2, 2, 2]) // C_in, C_out, a, dy, b, dx
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([input, 16 * output]);
        let patches = linear(x, weight, Epilogue::new(None));
        let placed = |a: usize, b: usize| {
            let patch = patches.clone().narrow(3, (2 * a + b) * 4 * output, 4 * output);
            patch.pad([(a, 1 - a), (b, 1 - b), (0, 0)], 0.0f32)
        };
        let sum = placed(0, 0) + placed(0, 1) + placed(1, 0) + placed(1, 1);
        let y = pixel_shuffle(sum, 2).narrow(1, 1, 2 * height).narrow(2, 1, 2 * width);
        y + self.bias.val().reshape([1, 1, 1, output])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relative_error::assert_close;
    use burn::tensor::module::{conv_transpose2d, conv2d};
    use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};

    /// Outputs and gradients are those of the scalars where the definition has them.
    #[cfg(feature = "train")]
    #[test]
    fn scalars_may_be_in_the_weights() {
        let device = Device::flex().autodiff();
        device.seed(5);
        let normal = |shape: [usize; 4]| {
            Tensor::<4>::random(shape, burn::tensor::Distribution::Normal(0.0, 1.0), &device)
        };
        let mut block = MixingBlock::init(8, &device);
        let gammas = Tensor::from_floats([0.3, -0.2, 0.7, -0.4, 0.6, 0.9], &device);
        block.gammas = Param::from_tensor(gammas);
        let bias = |count| Some(Param::from_tensor(normal([1, 1, 1, count]).flatten::<1>(0, 3)));
        block.channelwise.expand.bias = bias(32);
        block.channelwise.contract.bias = bias(8);
        block.depthwise.bias = Param::from_tensor(normal([1, 1, 1, 8]).flatten::<1>(0, 3));
        let (x, weights) = (normal([2, 5, 3, 8]), normal([2, 5, 3, 8]));
        let gradients = |y: Tensor<4>| {
            let gradients = (y.clone() * weights.clone()).sum().backward();
            let of_gammas = block.gammas.val().grad(&gradients).unwrap();
            let of_taps = block.depthwise.weight.val().grad(&gradients).unwrap();
            let of_weight = block.channelwise.expand.weight.val().grad(&gradients).unwrap();
            let of_bias = block.channelwise.expand.bias.as_ref().unwrap().val();
            [
                y.inner().flatten::<1>(0, 3),
                of_gammas,
                of_taps.flatten::<1>(0, 3),
                of_weight.flatten::<1>(0, 1),
                of_bias.grad(&gradients).unwrap(),
            ]
        };
        let folded = gradients(block.folded(x.clone()));
        let defined = gradients(block.defined(x));
        for (folded, defined) in folded.into_iter().zip(defined) {
            assert_close(folded, defined, 1e-5);
        }
    }

    /// Both 4x4 convolutions against burn's own.
    #[test]
    fn matrix_products_are_the_convolutions() {
        let device = Device::flex();
        let conv = Conv4x4::init([3, 3], 3, &device);
        let x = Tensor::<4>::random([2, 3, 6, 4], burn::tensor::Distribution::Default, &device);
        let (weight, bias) = (conv.weight.val(), Some(conv.bias.val()));

        let options = ConvOptions::new([2, 2], [1, 1], [1, 1], 1);
        let expected = conv2d(x.clone(), weight.clone(), bias.clone(), options);
        let y = channels_first(conv.downscale(channels_last(x.clone())));
        assert_close(y, expected, 1e-5);

        let options = ConvTransposeOptions::new([2, 2], [1, 1], [0, 0], [1, 1], 1);
        let expected = conv_transpose2d(x.clone(), weight, bias, options);
        let y = channels_first(conv.upscale(channels_last(x)));
        assert_close(y, expected, 1e-5);
    }

    /// A decoder of `levels` resolutions whose every layer counts, and latents of `height` rows.
    fn decoder(levels: usize, height: usize) -> (Vqgan, Tensor<4>) {
        let device = Device::flex();
        let config = VqganConfig {
            in_channels: 3,
            out_channels: 3,
            up_down_scale_factor: 2,
            levels,
            bottleneck_blocks: 3,
            embed_dim: 8,
            latent_channels: 4,
            num_vq_embeddings: 16,
            scale_factor: 1.0,
        };
        let mut vqgan = config.init(&device);
        for block in &mut vqgan.up_blocks {
            if let VqganBlock::Mixing(block) = block {
                let gammas = Tensor::from_data([0.4f32, -0.3, 0.7, -0.2, 0.5, 0.9], &device);
                block.gammas = Param::from_tensor(gammas);
            }
        }
        let normal = burn::tensor::Distribution::Normal(0.0, 1.0);
        (vqgan, Tensor::random([2, 4, height, 5], normal, &device))
    }

    /// Strips of any height, and a picture lower than the blocks reach. The CPU's matrix products
    /// add in an order that depends on the number of rows.
    #[test]
    fn strips_make_the_whole_picture() {
        for (levels, height) in [(1, 7), (2, 1), (2, 23), (3, 16)] {
            let (vqgan, latents) = decoder(levels, height);
            let whole = vqgan.decode(latents.clone());
            for rows in [1, 2, 3, 5, 11, height, 100] {
                let strips: Vec<_> = vqgan.decode_strips(latents.clone(), rows).collect();
                let count = strips.len();
                assert!(rows < height || count == 1, "{count} strips of {rows} rows");
                assert_close(Tensor::cat(strips, 2), whole.clone(), 1e-5);
            }
        }
    }

    /// Of `k` rows, three mixing blocks hold back one each, the upscaling one half of one, and the one
    /// behind it the other half: `4·(k − 4)` rows of pixels are out until the last row comes.
    #[test]
    fn strips_come_as_soon_as_they_can() {
        let (vqgan, latents) = decoder(2, 9);
        let heights: Vec<_> =
            vqgan.decode_strips(latents, 1).map(|strip| strip.dims()[2]).collect();
        assert_eq!(heights, [4, 4, 4, 4, 20]);
    }
}
