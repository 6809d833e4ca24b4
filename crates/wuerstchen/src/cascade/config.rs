//! Sizes of Stable Cascade's U-Net.

use burn::nn::Linear;
use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Cascade, PixelMapper, Resampler, Switch};
use crate::blocks::{
    AttentionBlockConfig, Block, Downscale, FurtherConditions, ResBlockConfig, TimestepBlockConfig,
    Upscale, condition_mapper, linear_layer,
};
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, PerLevel, heads_divide, layers, published_heads, size};
use crate::part::PartConfig;
use crate::weights::KeyTable;

/// Configuration of a [`Cascade`], with the published field names (`config.json` of
/// `StableCascadeUNet`).
///
/// Lists have one entry per level. Lists for the way up begin with the deepest level, all others with the
/// finest.
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
    /// Attention heads of every level; not used where the level has no attention.
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
    /// Width of the text encoder; none where the model does not see its tokens.
    #[serde(default)]
    pub clip_text_in_channels: Option<usize>,
    /// Width of the pooled text embedding.
    pub clip_text_pooled_in_channels: usize,
    /// Width of a picture's CLIP embedding; none where the model sees no pictures.
    #[serde(default)]
    pub clip_image_in_channels: Option<usize>,
    /// Tokens that each pooled embedding becomes.
    pub clip_seq: usize,
    /// Channels of the image embedding; none for Stage C.
    #[serde(default)]
    pub effnet_in_channels: Option<usize>,
    /// Channels of a small picture that the model also sees; `None` for Stage C.
    #[serde(default)]
    pub pixel_mapper_in_channels: Option<usize>,
    /// Side of the depthwise kernels.
    pub kernel_size: usize,
    /// Dropout probability while training.
    pub dropout: PerLevel<f64>,
    /// Whether a level's attention sees the picture too.
    pub self_attn: PerLevel<bool>,
    /// Further conditions of the timestep blocks: some of `sca` and `crp`, in this order.
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

/// The name of this model in errors.
const PART: &str = "cascade";

/// Side of the patches of the published Stage B; those of Stage C are single pixels.
const DECODER_PATCH: usize = 2;

impl PartConfig for CascadeConfig {
    type Model = Cascade;

    const CLASS: &'static str = "StableCascadeUNet";
    const KEYS: KeyTable = KeyTable::DIFFUSION;

    fn validate(&self) -> Result<(), ConfigError> {
        let levels = self.levels();
        crate::config::levels(PART, "block_out_channels", levels)?;
        for (field, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("patch_size", self.patch_size),
            ("conditioning_dim", self.conditioning_dim),
            ("clip_text_pooled_in_channels", self.clip_text_pooled_in_channels),
            ("clip_seq", self.clip_seq),
        ] {
            size(PART, field, value)?;
        }
        if self.timestep_ratio_embedding_dim < 4 {
            let found = self.timestep_ratio_embedding_dim;
            let field = "timestep_ratio_embedding_dim";
            return Err(ConfigError::new(PART, field, "at least 4", found));
        }
        if self.kernel_size.is_multiple_of(2) {
            return Err(ConfigError::new(PART, "kernel_size", "odd", self.kernel_size));
        }
        let conditions: Vec<_> =
            self.timestep_conditioning_type.iter().map(String::as_str).collect();
        if !matches!(conditions[..], [] | ["sca"] | ["crp"] | ["sca", "crp"]) {
            let field = "timestep_conditioning_type";
            let expected = "some of \"sca\" and \"crp\", in this order";
            return Err(ConfigError::new(PART, field, expected, format!("{conditions:?}")));
        }
        let length = |list: &Option<Vec<usize>>| list.as_ref().map_or(levels, Vec::len);
        for (field, found) in [
            ("num_attention_heads", self.num_attention_heads.len()),
            ("down_num_layers_per_block", self.down_num_layers_per_block.len()),
            ("up_num_layers_per_block", self.up_num_layers_per_block.len()),
            ("block_types_per_layer", self.block_types_per_layer.len()),
            ("down_blocks_repeat_mappers", length(&self.down_blocks_repeat_mappers)),
            ("up_blocks_repeat_mappers", length(&self.up_blocks_repeat_mappers)),
        ] {
            if found != levels {
                let expected = format!("{levels} values, one per level of block_out_channels");
                return Err(ConfigError::new(PART, field, expected, found));
            }
        }
        self.self_attn.check_count(PART, "self_attn", levels)?;
        for (field, counts) in [
            ("down_num_layers_per_block", Some(&self.down_num_layers_per_block)),
            ("up_num_layers_per_block", Some(&self.up_num_layers_per_block)),
            ("down_blocks_repeat_mappers", self.down_blocks_repeat_mappers.as_ref()),
            ("up_blocks_repeat_mappers", self.up_blocks_repeat_mappers.as_ref()),
        ] {
            counts.into_iter().flatten().try_for_each(|&count| layers(PART, field, count))?;
        }
        self.dropout.check_dropout(PART, levels)?;
        if let Some(switches) = self.switch_level.as_ref().filter(|s| s.len() + 1 < levels) {
            let expected = format!("{} values, one per step between levels", levels - 1);
            return Err(ConfigError::new(PART, "switch_level", expected, switches.len()));
        }
        (0..levels).try_for_each(|level| self.validate_level(level))
    }

    fn init(&self, device: &Device) -> Cascade {
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
            has_sca: self.further().sca,
            has_crp: self.further().crp,
            clip_tokens: self.clip_seq,
            pixel_channels: self.pixel_mapper_in_channels.unwrap_or(0),
            image_channels: self.clip_image_in_channels.unwrap_or(0),
        }
    }

    /// Patches and heads cannot be read off weights; those of the published models are assumed.
    fn infer(weights: &Checkpoint) -> Option<Self> {
        let levels = weights.count(|i| format!("down_blocks.{i}.0.depthwise.weight"));
        let effnet_in_channels = weights.side("effnet_mapper.0.weight", 1);
        let patch_size = if effnet_in_channels.is_some() { DECODER_PATCH } else { 1 };
        let per_patch = |channels: usize| channels.checked_div(patch_size * patch_size);
        let pooled = "clip_txt_pooled_mapper.weight";
        let block = |way: &str, i: usize, j: usize| -> Option<BlockType> {
            let has = |name: &str| weights.has(&format!("{way}_blocks.{i}.{j}.{name}.weight"));
            if has("depthwise") {
                Some(BlockType::Res)
            } else if has("mapper") {
                Some(BlockType::Timestep)
            } else {
                has("attention.to_q").then_some(BlockType::Attention)
            }
        };
        let blocks = |way: &str, i: usize| -> Vec<BlockType> {
            (0..).map_while(|j| block(way, i, j)).collect()
        };
        let widths: Vec<_> = (0..levels)
            .map(|i| weights.side(&format!("down_blocks.{i}.0.depthwise.weight"), 0))
            .collect::<Option<_>>()?;
        let layer = |i: usize| -> Vec<BlockType> {
            let all = blocks("down", i);
            let next = all.iter().skip(1).position(|kind| *kind == BlockType::Res);
            all[..next.map_or(all.len(), |next| next + 1)].to_vec()
        };
        let layers: Vec<_> = (0..levels).map(layer).collect();
        let repeats = |way: &str, i: usize| {
            1 + weights.count(|k| format!("{way}_repeat_mappers.{i}.{k}.weight"))
        };
        let deepest_first = |u: usize| levels - 1 - u;
        let heads = |i: usize| {
            if layers[i].contains(&BlockType::Attention) {
                published_heads(widths[i]).and_then(|heads| i64::try_from(heads).ok())
            } else {
                Some(0)
            }
        };
        let condition = |name: &&str| weights.has(&format!("down_blocks.0.1.mapper_{name}.weight"));
        let conditions = ["sca", "crp"].into_iter().filter(condition);
        let switched = weights.has("down_downscalers.1.1.blocks.0.weight");
        let conditioning_dim =
            weights.side("down_blocks.0.2.kv_mapper.1.weight", 1).or_else(|| {
                let deepest = levels.checked_sub(1)?;
                weights.side(&format!("down_blocks.{deepest}.2.kv_mapper.1.weight"), 1)
            })?;
        Some(Self {
            in_channels: per_patch(weights.side("embedding.1.weight", 1)?)?,
            out_channels: per_patch(weights.side("clf.1.weight", 0)?)?,
            timestep_ratio_embedding_dim: weights.side("down_blocks.0.1.mapper.weight", 1)?,
            patch_size,
            conditioning_dim,
            num_attention_heads: (0..levels).map(heads).collect::<Option<_>>()?,
            down_num_layers_per_block: (0..levels)
                .map(|i| blocks("down", i).len().checked_div(layers[i].len()))
                .collect::<Option<_>>()?,
            up_num_layers_per_block: (0..levels)
                .map(|u| blocks("up", u).len().checked_div(layers[deepest_first(u)].len()))
                .collect::<Option<_>>()?,
            down_blocks_repeat_mappers: Some((0..levels).map(|i| repeats("down", i)).collect()),
            up_blocks_repeat_mappers: Some((0..levels).map(|u| repeats("up", u)).collect()),
            block_types_per_layer: layers,
            clip_text_in_channels: weights.side("clip_txt_mapper.weight", 1),
            clip_text_pooled_in_channels: weights.side(pooled, 1)?,
            clip_image_in_channels: weights.side("clip_img_mapper.weight", 1),
            clip_seq: weights.side(pooled, 0)?.checked_div(conditioning_dim)?,
            effnet_in_channels,
            pixel_mapper_in_channels: weights.side("pixels_mapper.0.weight", 1),
            kernel_size: weights.side("down_blocks.0.0.depthwise.weight", 2)?,
            dropout: PerLevel::One(0.0),
            self_attn: PerLevel::One(true),
            timestep_conditioning_type: conditions.map(str::to_owned).collect(),
            switch_level: switched.then(|| vec![false; levels.saturating_sub(1)]),
            block_out_channels: widths,
        })
    }
}

impl CascadeConfig {
    /// Number of levels.
    pub fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    fn validate_level(&self, level: usize) -> Result<(), ConfigError> {
        let width = self.block_out_channels[level];
        size(PART, "block_out_channels", width)?;
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

    /// The number of channels of each residual block, in the order in which the model runs them.
    pub(crate) fn res_block_widths(&self) -> Vec<usize> {
        let levels = self.levels();
        let of_level = |level: usize, layers: usize, repeats: &Option<Vec<usize>>, i: usize| {
            let is_res = |kind: &&BlockType| **kind == BlockType::Res;
            let blocks = self.block_types_per_layer[level].iter().filter(is_res).count();
            let runs = repeats.as_ref().map_or(1, |repeats| repeats[i]);
            vec![self.block_out_channels[level]; blocks * layers * runs]
        };
        let down = (0..levels).flat_map(|i| {
            of_level(i, self.down_num_layers_per_block[i], &self.down_blocks_repeat_mappers, i)
        });
        let up = (0..levels).flat_map(|u| {
            let layers = self.up_num_layers_per_block[u];
            of_level(levels - 1 - u, layers, &self.up_blocks_repeat_mappers, u)
        });
        down.chain(up).collect()
    }

    /// What the blocks are conditioned on besides the time.
    fn further(&self) -> FurtherConditions {
        let has = |name: &str| self.timestep_conditioning_type.iter().any(|found| found == name);
        FurtherConditions { sca: has("sca"), crp: has("crp") }
    }

    /// The sides of the latents are multiples of this.
    pub fn size_multiple(&self) -> usize {
        self.patch_size
    }

    /// The least side of the latents: the deepest level has one pixel left.
    pub fn smallest_side(&self) -> usize {
        let halvings = match &self.switch_level {
            Some(switches) => {
                // As many as there are steps between levels; a list may be longer.
                let switches = switches.iter().take(self.levels() - 1);
                switches.filter(|enabled| **enabled).count()
            }
            None => self.levels() - 1,
        };
        self.patch_size << halvings
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
                    further: self.further(),
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
