//! Stages C and B of Stable Cascade, the authors' third version: one U-Net with two sets of sizes.
//!
//! The model predicts the noise itself; both stages see the pooled text embedding, Stage C all of the
//! text and a picture's CLIP embedding besides. There is no pipeline for it here.

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use wuerstchen_kernels::{gelu, layer_norm};

use crate::blocks::{
    AttentionBlockConfig, Block, Conditions, Downscale, ResBlockConfig, TimestepBlockConfig,
    Upscale, affine, channels_first, channels_last, condition_mapper, linear_layer, pixel_shuffle,
    pixel_unshuffle, time_embedding,
};
use crate::config::{ConfigError, PerLevel, heads_divide, positive};
use crate::resize::{Filter, resize};

/// Configuration of a [`Cascade`], with the published field names (`config.json` of
/// `StableCascadeUNet`).
///
/// Lists have one entry per level, those of the way down and of both ways the finest first, those of
/// the way up the deepest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CascadeConfig {
    /// Channels of the latents that come in.
    pub in_channels: usize,
    /// Channels of the predicted noise.
    pub out_channels: usize,
    /// Width of the time embedding.
    pub timestep_ratio_embedding_dim: usize,
    /// Side of the patches that the first layer packs into channels.
    pub patch_size: usize,
    /// Width of the text inside the model.
    pub conditioning_dim: usize,
    /// Width of every level.
    pub block_out_channels: Vec<usize>,
    /// Attention heads of every level; of no meaning where the level has no attention.
    pub num_attention_heads: Vec<i64>,
    /// How often every level repeats its blocks on the way down.
    pub down_num_layers_per_block: Vec<usize>,
    /// The same on the way up.
    pub up_num_layers_per_block: Vec<usize>,
    /// How often every level is run on the way down, with a linear layer between.
    #[serde(default)]
    pub down_blocks_repeat_mappers: Option<Vec<usize>>,
    /// The same on the way up.
    #[serde(default)]
    pub up_blocks_repeat_mappers: Option<Vec<usize>>,
    /// The blocks of every level.
    pub block_types_per_layer: Vec<Vec<BlockType>>,
    /// Width of the text encoder; none where its tokens are not seen.
    #[serde(default)]
    pub clip_text_in_channels: Option<usize>,
    /// Width of the pooled text embedding.
    pub clip_text_pooled_in_channels: usize,
    /// Width of a picture's CLIP embedding; none where there is none.
    #[serde(default)]
    pub clip_image_in_channels: Option<usize>,
    /// Tokens that each pooled embedding becomes.
    pub clip_seq: usize,
    /// Channels of the image embedding; none for Stage C.
    #[serde(default)]
    pub effnet_in_channels: Option<usize>,
    /// Channels of a small picture that is seen besides; none for Stage C.
    #[serde(default)]
    pub pixel_mapper_in_channels: Option<usize>,
    /// Side of the depthwise kernels.
    pub kernel_size: usize,
    /// Dropout probability while training.
    pub dropout: PerLevel<f64>,
    /// Whether a level's attention sees the picture too.
    pub self_attn: PerLevel<bool>,
    /// Further conditions of the timestep blocks: `sca`, `crp`, or the first of them.
    pub timestep_conditioning_type: Vec<String>,
    /// Whether a step between levels changes the resolution; none for strided convolutions, which
    /// always do.
    #[serde(default)]
    pub switch_level: Option<Vec<bool>>,
}

/// The three kinds of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockType {
    /// Depthwise convolution and channel MLP.
    #[serde(rename = "SDCascadeResBlock")]
    Res,
    /// Scale and shift by the time and the further conditions.
    #[serde(rename = "SDCascadeTimestepBlock")]
    Timestep,
    /// Attention to the picture and the text.
    #[serde(rename = "SDCascadeAttnBlock")]
    Attention,
}

/// Further conditions of the timestep blocks, in the order in which checkpoints have them.
const CONDITIONS: [&str; 2] = ["sca", "crp"];

/// Predicts the noise in latents, given the time and the prompt, and for Stage B the image embedding.
///
/// Source: `StageC` and `StageB` in `modules/` of Stability-AI/StableCascade; `StableCascadeUNet` in
/// diffusers.
#[derive(Module, Debug)]
pub struct Cascade {
    effnet_mapper: Option<PixelMapper>,
    pixels_mapper: Option<PixelMapper>,
    clip_txt_pooled_mapper: Linear,
    clip_txt_mapper: Option<Linear>,
    clip_img_mapper: Option<Linear>,
    embedding: Linear,
    down_downscalers: Vec<Option<Resampler>>,
    down_blocks: Vec<Vec<Block>>,
    down_repeat_mappers: Vec<Vec<Linear>>,
    up_blocks: Vec<Vec<Block>>,
    up_repeat_mappers: Vec<Vec<Linear>>,
    up_upscalers: Vec<Option<Resampler>>,
    clf: Linear,
    patch_size: usize,
    time_channels: usize,
    conditions: usize,
    clip_tokens: usize,
    pixel_channels: usize,
}

/// Two 1x1 convolutions with GELU between, then a layer norm.
#[derive(Module, Debug)]
struct PixelMapper {
    inner: Linear,
    outer: Linear,
}

/// A step between two levels, behind a layer norm.
#[derive(Module, Debug)]
enum Resampler {
    Downscale(Downscale),
    Upscale(Upscale),
    Shrink(Switch),
    Grow(Switch),
}

/// A 1x1 convolution, and an interpolation if `enabled`.
#[derive(Module, Debug)]
struct Switch {
    map: Linear,
    enabled: bool,
}

impl CascadeConfig {
    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    /// Checks what the architecture needs of the sizes.
    ///
    /// # Errors
    ///
    /// Names the first field that cannot be used and what it needs.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let levels = self.levels();
        for (field, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("patch_size", self.patch_size),
            ("conditioning_dim", self.conditioning_dim),
            ("block_out_channels", levels),
            ("clip_text_pooled_in_channels", self.clip_text_pooled_in_channels),
            ("clip_seq", self.clip_seq),
        ] {
            positive(PART, field, value)?;
        }
        if self.timestep_ratio_embedding_dim < 4 {
            let found = self.timestep_ratio_embedding_dim;
            let field = "timestep_ratio_embedding_dim";
            return Err(ConfigError::new(PART, field, "at least 4", found));
        }
        if self.kernel_size.is_multiple_of(2) {
            return Err(ConfigError::new(PART, "kernel_size", "odd", self.kernel_size));
        }
        let conditions = &self.timestep_conditioning_type;
        let known = conditions.iter().zip(CONDITIONS).filter(|(found, known)| found == known);
        if known.count() != conditions.len() {
            let expected = format!("the first of {CONDITIONS:?}");
            let field = "timestep_conditioning_type";
            return Err(ConfigError::new(PART, field, expected, format!("{conditions:?}")));
        }
        let length = |list: &Option<Vec<usize>>| list.as_ref().map_or(levels, Vec::len);
        for (field, fits) in [
            ("num_attention_heads", self.num_attention_heads.len() == levels),
            ("down_num_layers_per_block", self.down_num_layers_per_block.len() == levels),
            ("up_num_layers_per_block", self.up_num_layers_per_block.len() == levels),
            ("block_types_per_layer", self.block_types_per_layer.len() == levels),
            ("down_blocks_repeat_mappers", length(&self.down_blocks_repeat_mappers) == levels),
            ("up_blocks_repeat_mappers", length(&self.up_blocks_repeat_mappers) == levels),
            ("dropout", self.dropout.fits(levels)),
            ("self_attn", self.self_attn.fits(levels)),
        ] {
            if !fits {
                let expected = format!("{levels} values, one per level of block_out_channels");
                return Err(ConfigError::new(PART, field, expected, "another number"));
            }
        }
        if let Some(switches) = self.switch_level.as_ref().filter(|s| s.len() + 1 < levels) {
            let expected = format!("{} values, one per step between levels", levels - 1);
            return Err(ConfigError::new(PART, "switch_level", expected, switches.len()));
        }
        (0..levels).try_for_each(|level| self.validate_level(level))
    }

    fn validate_level(&self, level: usize) -> Result<(), ConfigError> {
        let width = self.block_out_channels[level];
        positive(PART, "block_out_channels", width)?;
        let types = &self.block_types_per_layer[level];
        if types.first() != Some(&BlockType::Res) {
            let field = "block_types_per_layer";
            let found = format!("{types:?}");
            return Err(ConfigError::new(PART, field, "lists that start with a ResBlock", found));
        }
        if types.contains(&BlockType::Attention) {
            let heads = usize::try_from(self.num_attention_heads[level]).unwrap_or(0);
            heads_divide(PART, "num_attention_heads", heads, width)?;
        }
        Ok(())
    }

    /// Initializes the model on `device`.
    pub fn init(&self, device: &Device) -> Cascade {
        let (levels, widths, width) =
            (self.levels(), &self.block_out_channels, self.conditioning_dim);
        let up = |u: usize| levels - 1 - u;
        let repeats = |list: &Option<Vec<usize>>, i: usize| list.as_ref().map_or(1, |list| list[i]);
        let between = |width: usize, repeats: usize| -> Vec<Linear> {
            (1..repeats).map(|_| linear_layer(width, width, 1.0, device)).collect()
        };
        let pixels = |channels: usize| PixelMapper {
            inner: condition_mapper(channels, 4 * widths[0], device),
            outer: condition_mapper(4 * widths[0], widths[0], device),
        };
        let tokens = |channels: usize| condition_mapper(channels, width * self.clip_seq, device);
        let patch = self.patch_size * self.patch_size;
        Cascade {
            effnet_mapper: self.effnet_in_channels.map(pixels),
            pixels_mapper: self.pixel_mapper_in_channels.map(pixels),
            clip_txt_pooled_mapper: tokens(self.clip_text_pooled_in_channels),
            clip_txt_mapper: self.clip_text_in_channels.map(|c| condition_mapper(c, width, device)),
            clip_img_mapper: self.clip_image_in_channels.map(tokens),
            embedding: linear_layer(self.in_channels * patch, widths[0], 1.0, device),
            down_downscalers: (0..levels).map(|level| self.downscaler(level, device)).collect(),
            down_blocks: (0..levels)
                .map(|i| self.level(i, self.down_num_layers_per_block[i], 0, device))
                .collect(),
            down_repeat_mappers: (0..levels)
                .map(|i| between(widths[i], repeats(&self.down_blocks_repeat_mappers, i)))
                .collect(),
            up_blocks: (0..levels)
                .map(|u| {
                    let skip = if u > 0 { widths[up(u)] } else { 0 };
                    self.level(up(u), self.up_num_layers_per_block[u], skip, device)
                })
                .collect(),
            up_repeat_mappers: (0..levels)
                .map(|u| between(widths[up(u)], repeats(&self.up_blocks_repeat_mappers, u)))
                .collect(),
            up_upscalers: (0..levels).map(|u| self.upscaler(up(u), device)).collect(),
            clf: linear_layer(widths[0], self.out_channels * patch, 0.0, device),
            patch_size: self.patch_size,
            time_channels: self.timestep_ratio_embedding_dim,
            conditions: self.timestep_conditioning_type.len(),
            clip_tokens: self.clip_seq,
            pixel_channels: self.pixel_mapper_in_channels.unwrap_or(0),
        }
    }

    /// The step from the level above to `level`.
    fn downscaler(&self, level: usize, device: &Device) -> Option<Resampler> {
        let above = level.checked_sub(1)?;
        let [input, output] = [above, level].map(|level| self.block_out_channels[level]);
        Some(match &self.switch_level {
            Some(switches) => {
                Resampler::Shrink(Switch::init(input, output, switches[above], device))
            }
            None => Resampler::Downscale(Downscale::init(input, output, device)),
        })
    }

    /// The step from `level` to the one above.
    fn upscaler(&self, level: usize, device: &Device) -> Option<Resampler> {
        let above = level.checked_sub(1)?;
        let [input, output] = [level, above].map(|level| self.block_out_channels[level]);
        Some(match &self.switch_level {
            Some(switches) => Resampler::Grow(Switch::init(input, output, switches[above], device)),
            None => Resampler::Upscale(Upscale::init(input, output, device)),
        })
    }

    /// The blocks of one level; the first takes `skip` channels of the way down.
    fn level(&self, level: usize, layers: usize, skip: usize, device: &Device) -> Vec<Block> {
        let channels = self.block_out_channels[level];
        let output_gain =
            (1.0 / self.down_num_layers_per_block.iter().sum::<usize>() as f64).sqrt();
        let types = &self.block_types_per_layer[level];
        let block = |(i, kind): (usize, &BlockType)| match kind {
            BlockType::Res => {
                let config = ResBlockConfig {
                    channels,
                    skip_channels: if i == 0 { skip } else { 0 },
                    kernel_size: self.kernel_size,
                    dropout: self.dropout.at(level),
                    output_gain,
                };
                Block::Res(config.init(device))
            }
            BlockType::Timestep => {
                let config = TimestepBlockConfig {
                    channels,
                    time_embedding: self.timestep_ratio_embedding_dim,
                    conditions: self.timestep_conditioning_type.len(),
                };
                Block::Timestep(config.init(device))
            }
            BlockType::Attention => {
                let heads = self.num_attention_heads[level];
                let config = AttentionBlockConfig {
                    channels,
                    condition_channels: self.conditioning_dim,
                    heads: usize::try_from(heads).expect("checked by `validate`"),
                    self_attention: self.self_attn.at(level),
                };
                Block::Attention(config.init(device))
            }
        };
        let types = types.iter().cycle().take(types.len() * layers);
        types.enumerate().map(block).collect()
    }
}

/// How errors call this model.
const PART: &str = "cascade";

impl Switch {
    fn init(input: usize, output: usize, enabled: bool, device: &Device) -> Self {
        Self { map: linear_layer(input, output, 1.0, device), enabled }
    }
}

/// What a prediction depends on besides the latents.
pub struct CascadeConditions<'a> {
    /// `B` diffusion times in `[0, 1]`, 1 is pure noise.
    pub times: &'a [f32],
    /// The pooled text embedding, `[B, clip_text_pooled_in_channels]`.
    pub text_pooled: Tensor<2>,
    /// Every token's, `[B, T, clip_text_in_channels]`, where the model sees them.
    pub text: Option<Tensor<3>>,
    /// A picture's CLIP embedding, `[B, clip_image_in_channels]`, where the model sees one.
    pub image: Option<Tensor<2>>,
    /// The image embedding, `[B, effnet_in_channels, h, w]`, for Stage B.
    pub image_embedding: Option<Tensor<4>>,
}

/// Side of the empty small picture that Stage B sees.
const EMPTY_PICTURE: usize = 8;

impl Cascade {
    /// Predicts the noise in `x`.
    ///
    /// # Shapes
    ///
    /// - x: `[B, in_channels, H, W]`
    /// - output: `[B, out_channels, H, W]`
    pub fn forward(&self, x: Tensor<4>, conditions: CascadeConditions<'_>) -> Tensor<4> {
        let (device, batch) = (x.device(), conditions.times.len());
        let embed = |times: &[f32]| time_embedding(times, self.time_channels, &device);
        let further = (0..self.conditions).map(|_| embed(&vec![0.0; batch]));
        let time: Vec<_> = std::iter::once(embed(conditions.times)).chain(further).collect();
        let text = self.embed_text(&conditions);
        let mut seen = Conditions { time: Tensor::cat(time, 1), skip: None, image: None };

        let mut x = channels_last(x);
        x = layer_norm(affine(&self.embedding, pixel_unshuffle(x, self.patch_size)));
        let [_, height, width, _] = x.dims();
        let fit = |x| resize(x, [height, width], Filter::BilinearAlignedCorners);
        if let (Some(mapper), Some(embedding)) = (&self.effnet_mapper, conditions.image_embedding) {
            x = x + mapper.forward(fit(channels_last(embedding)));
        }
        if let Some(mapper) = &self.pixels_mapper {
            let shape = [batch, EMPTY_PICTURE, EMPTY_PICTURE, self.pixel_channels];
            let picture = Tensor::zeros(shape, &device);
            x = x + fit(mapper.forward(picture));
        }
        let mut outputs = Vec::new();
        let levels = self.down_blocks.iter().zip(&self.down_repeat_mappers);
        for ((blocks, repeat), downscaler) in levels.zip(&self.down_downscalers) {
            x = resample(downscaler.as_ref(), x);
            x = run(blocks, repeat, x, None, &text, &mut seen);
            outputs.push(x.clone());
        }
        outputs.pop(); // the deepest output is the way up's input, not its skip
        let levels = self.up_blocks.iter().zip(&self.up_repeat_mappers);
        for (i, ((blocks, repeat), upscaler)) in levels.zip(&self.up_upscalers).enumerate() {
            let skip = (i > 0).then(|| outputs.pop()).flatten();
            x = run(blocks, repeat, x, skip.as_ref(), &text, &mut seen);
            x = resample(upscaler.as_ref(), x);
        }
        channels_first(pixel_shuffle(affine(&self.clf, layer_norm(x)), self.patch_size))
    }

    /// The tokens that the blocks attend to, `[B, T, conditioning_dim]`.
    fn embed_text(&self, conditions: &CascadeConditions<'_>) -> Tensor<3> {
        let pooled = |mapper: &Linear, x: &Tensor<2>| {
            let y = affine(mapper, x.clone());
            let [batch, width] = y.dims();
            y.reshape([batch, self.clip_tokens, width / self.clip_tokens])
        };
        let text = self.clip_txt_mapper.as_ref().zip(conditions.text.clone());
        let text = text.map(|(mapper, text)| affine(mapper, text));
        let image = self.clip_img_mapper.as_ref().zip(conditions.image.as_ref());
        let image = image.map(|(mapper, image)| pooled(mapper, image));
        let text_pooled = pooled(&self.clip_txt_pooled_mapper, &conditions.text_pooled);
        let tokens = [text, Some(text_pooled), image].into_iter().flatten().collect();
        layer_norm(Tensor::cat(tokens, 1))
    }
}

/// Runs the blocks of a level once, and again behind every linear layer of `repeat`; the first block of
/// every pass takes `skip`.
fn run(
    blocks: &[Block],
    repeat: &[Linear],
    mut x: Tensor<4>,
    skip: Option<&Tensor<4>>,
    text: &Tensor<3>,
    conditions: &mut Conditions,
) -> Tensor<4> {
    let kept: Vec<_> = blocks.iter().map(|block| block.keep(text, None)).collect();
    for pass in 0..=repeat.len() {
        conditions.skip = skip.cloned();
        let blocks = blocks.iter().zip(&kept);
        x = blocks.fold(x, |x, (block, kept)| block.forward(x, conditions, kept));
        if let Some(mapper) = repeat.get(pass) {
            x = affine(mapper, x);
        }
    }
    x
}

fn resample(resampler: Option<&Resampler>, x: Tensor<4>) -> Tensor<4> {
    let fit = |x: Tensor<4>, size| resize(x, size, Filter::BilinearAlignedCorners);
    match resampler {
        Some(Resampler::Downscale(block)) => block.forward(x),
        Some(Resampler::Upscale(block)) => block.forward(x),
        Some(Resampler::Shrink(switch)) => {
            let x = affine(&switch.map, layer_norm(x));
            let [_, height, width, _] = x.dims();
            if switch.enabled { fit(x, [height / 2, width / 2]) } else { x }
        }
        Some(Resampler::Grow(switch)) => {
            let x = layer_norm(x);
            let [_, height, width, _] = x.dims();
            let x = if switch.enabled { fit(x, [2 * height, 2 * width]) } else { x };
            affine(&switch.map, x)
        }
        None => x,
    }
}

impl PixelMapper {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        layer_norm(affine(&self.outer, gelu(affine(&self.inner, x))))
    }
}
