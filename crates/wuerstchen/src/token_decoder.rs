//! Stage B of Würstchen v1: the model that denoises Stage A's tokens.

use burn::module::{Initializer, Module, Param};
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::activation::silu;
use serde::{Deserialize, Serialize};
use wuerstchen_kernels::layer_norm;

#[cfg(feature = "gpu")]
use crate::blocks::width;
use crate::blocks::{
    AttentionBlockConfig, Block, Conditions, DepthwiseConv, Downscale, Kept, Observer,
    ResBlockConfig, TimestepBlockConfig, Upscale, affine, channels_first, channels_last,
    condition_mapper, embed, linear_layer, pixel_shuffle, pixel_unshuffle, time_embedding,
};
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, PerLevel, heads_divide, layers, one_per_level, size};
use crate::decoder::{LevelConfig, level_of_weights};
use crate::part::PartConfig;
use crate::weights::KeyTable;

/// Configuration of a [`TokenDecoder`], with the authors' field names.
///
/// Every list has one entry per level, the finest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenDecoderConfig {
    /// Width of a token's embedding.
    pub c_in: usize,
    /// Width of the features that a token's logits are made of; as wide as the embedding.
    pub c_out: usize,
    /// Number of tokens, the size of Stage A's codebook.
    pub num_labels: usize,
    /// Width of the time embedding.
    pub c_r: usize,
    /// Side of the patches of tokens that the first layer packs into channels.
    pub patch_size: usize,
    /// Width of text and image embedding inside the model.
    pub c_cond: usize,
    /// Width of every level.
    pub c_hidden: Vec<usize>,
    /// Attention heads of every level; -1 where the level has no attention.
    pub nhead: Vec<i64>,
    /// How often every level repeats its blocks.
    pub blocks: Vec<usize>,
    /// The blocks of every level: `C`onvolution, `T`imestep, `A`ttention.
    pub level_config: Vec<LevelConfig>,
    /// Channels of the image embedding.
    pub effnet_embd: usize,
    /// Width of the text encoder; the authors' name is left over from another one.
    pub byt5_embd: usize,
    /// Side of the depthwise kernels.
    #[serde(default = "default_kernel_size")]
    pub kernel_size: usize,
    /// Dropout probability while training; one value, or one per level.
    #[serde(default)]
    pub dropout: PerLevel<f64>,
    /// Whether the tokens attend to each other too; otherwise they attend to the conditions alone.
    #[serde(default = "attends_itself")]
    pub self_attn: PerLevel<bool>,
}

fn default_kernel_size() -> usize {
    3
}

fn attends_itself() -> PerLevel<bool> {
    PerLevel::One(true)
}

/// Channels of an attention head in the published model; weights do not tell it.
const HEAD_CHANNELS: usize = 80;

/// Gain of the first layer at the start of training.
const EMBEDDING_GAIN: f64 = 0.02;

/// Predicts which tokens a picture has, from noised ones, the time, the image embedding and the prompt.
///
/// A U-Net whose attention sees the cells of the image embedding and the text as one sequence. Nothing marks
/// where a cell lies: that is in what the compressor writes into it.
///
/// Source: `Paella` in `modules.py` of dome272/Wuerstchen, until June 2023.
#[derive(Module, Debug)]
pub struct TokenDecoder {
    byt5_mapper: Linear,
    effnet_mapper: Linear,
    /// `[num_labels, c_in]`.
    in_mapper: Param<Tensor<2>>,
    embedding: Linear,
    down_blocks: Vec<Vec<Block>>,
    up_blocks: Vec<Vec<Block>>,
    clf: Linear,
    out_mapper: Linear,
    patch_size: usize,
    time_channels: usize,
}

impl PartConfig for TokenDecoderConfig {
    type Model = TokenDecoder;

    const CLASS: &'static str = "Paella";
    const KEYS: KeyTable = KeyTable::DIFFUSION;

    fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("c_in", self.c_in),
            ("num_labels", self.num_labels),
            ("c_cond", self.c_cond),
            ("patch_size", self.patch_size),
            ("effnet_embd", self.effnet_embd),
            ("byt5_embd", self.byt5_embd),
        ] {
            size(PART, field, value)?;
        }
        if self.c_out != self.c_in {
            let expected = format!("{} as c_in", self.c_in);
            return Err(ConfigError::new(PART, "c_out", expected, self.c_out));
        }
        if self.c_r < 4 {
            return Err(ConfigError::new(PART, "c_r", "at least 4", self.c_r));
        }
        if self.kernel_size.is_multiple_of(2) {
            return Err(ConfigError::new(PART, "kernel_size", "odd", self.kernel_size));
        }
        let levels = self.levels();
        crate::config::levels(PART, "c_hidden", levels)?;
        self.dropout.check_dropout(PART, levels)?;
        self.self_attn.check_count(PART, "self_attn", levels)?;
        let lists = [
            ("nhead", self.nhead.len()),
            ("blocks", self.blocks.len()),
            ("level_config", self.level_config.len()),
        ];
        one_per_level(PART, levels, &lists)?;
        (0..levels).try_for_each(|level| self.validate_level(level))
    }

    fn init(&self, device: &Device) -> TokenDecoder {
        let (levels, widths) = (self.levels(), &self.c_hidden);
        let down = |level: usize| {
            let shrink = (level > 0).then(|| {
                Block::Downscale(Downscale::init(widths[level - 1], widths[level], device))
            });
            shrink.into_iter().chain(self.level(level, false, device)).collect()
        };
        let up = |level: usize| {
            let has_skip = level + 1 < levels;
            let grow = (level > 0)
                .then(|| Block::Upscale(Upscale::init(widths[level], widths[level - 1], device)));
            self.level(level, has_skip, device).into_iter().chain(grow).collect()
        };
        let patch = self.patch_size * self.patch_size;
        let std = (1.0 / self.num_labels as f64).sqrt();
        let tokens = Initializer::Normal { mean: 0.0, std };
        let in_mapper: Param<Tensor<2>> = tokens.init([self.num_labels, self.c_in], device);
        // Both ends start alike, and are trained apart.
        let outputs = in_mapper.val().transpose().detach();
        TokenDecoder {
            byt5_mapper: condition_mapper(self.byt5_embd, self.c_cond, device),
            effnet_mapper: condition_mapper(self.effnet_embd, self.c_cond, device),
            in_mapper,
            embedding: linear_layer(self.c_in * patch, widths[0], EMBEDDING_GAIN, device),
            down_blocks: (0..levels).map(down).collect(),
            up_blocks: (0..levels).rev().map(up).collect(),
            clf: linear_layer(widths[0], self.c_out * patch, 0.0, device),
            out_mapper: Linear { weight: Param::from_tensor(outputs), bias: None },
            patch_size: self.patch_size,
            time_channels: self.c_r,
        }
    }

    fn infer(weights: &Checkpoint) -> Option<Self> {
        let [num_labels, c_in] =
            [0, 1].map(|axis| weights.side("in_mapper.0.weight", axis).unwrap_or_default());
        let patch = weights.side("embedding.1.weight", 1)?.checked_div(c_in)?;
        let mut config = Self {
            c_in,
            c_out: c_in,
            num_labels,
            c_r: weights.side("down_blocks.0.1.mapper.weight", 1)?,
            patch_size: patch.isqrt(),
            c_cond: weights.side("byt5_mapper.weight", 0)?,
            c_hidden: Vec::new(),
            nhead: Vec::new(),
            blocks: Vec::new(),
            level_config: Vec::new(),
            effnet_embd: weights.side("effnet_mapper.weight", 1)?,
            byt5_embd: weights.side("byt5_mapper.weight", 1)?,
            kernel_size: weights.side("down_blocks.0.0.depthwise.weight", 2)?,
            dropout: PerLevel::One(0.1),
            self_attn: attends_itself(),
        };
        for (letters, repeats) in (0..).map_while(|level| level_of_weights(weights, level)) {
            let level = config.levels();
            let first = format!("down_blocks.{level}.{}.depthwise.weight", usize::from(level > 0));
            let channels = weights.side(&first, 0)?;
            config.nhead.push(if !letters.contains('A') {
                -1
            } else if channels.is_multiple_of(HEAD_CHANNELS) {
                i64::try_from(channels / HEAD_CHANNELS).ok()?
            } else {
                return None;
            });
            config.c_hidden.push(channels);
            config.blocks.push(repeats);
            config.level_config.push(LevelConfig::Letters(letters));
        }
        Some(config)
    }
}

/// The name of this model in errors.
const PART: &str = "token decoder";

impl TokenDecoderConfig {
    /// Number of resolutions.
    pub fn levels(&self) -> usize {
        self.c_hidden.len()
    }

    /// The letters of a level's blocks, without repetitions.
    pub(crate) fn letters(&self, level: usize) -> String {
        self.level_config[level].letters()
    }

    /// The height and width in tokens must be multiples of this.
    pub fn size_multiple(&self) -> usize {
        self.patch_size << (self.levels() - 1)
    }

    fn validate_level(&self, level: usize) -> Result<(), ConfigError> {
        let letters = self.letters(level);
        size(PART, "c_hidden", self.c_hidden[level])?;
        layers(PART, "blocks", self.blocks[level])?;
        if !letters.contains('C') || !letters.chars().all(|letter| "CTA".contains(letter)) {
            let expected = "letters C, T, A, a C among them";
            return Err(ConfigError::new(PART, "level_config", expected, letters));
        }
        if letters.contains('A') {
            let heads = usize::try_from(self.nhead[level]).unwrap_or(0);
            heads_divide(PART, "nhead", heads, self.c_hidden[level])?;
        }
        Ok(())
    }

    /// The blocks of one level; the first takes the features of the way down if it `has_skip`.
    fn level(&self, level: usize, has_skip: bool, device: &Device) -> Vec<Block> {
        let channels = self.c_hidden[level];
        // The authors' code shrinks the last layer of every block by the number of all blocks.
        let output_gain = (1.0 / self.blocks.iter().sum::<usize>() as f64).sqrt();
        let letters = self.letters(level).repeat(self.blocks[level]);
        let block = |(i, letter): (usize, char)| match letter {
            'C' => {
                let config = ResBlockConfig {
                    channels,
                    skip_channels: 0,
                    kernel_size: self.kernel_size,
                    dropout: self.dropout.at(level),
                    output_gain,
                };
                let mut block = config.init(device);
                if has_skip && i == 0 {
                    block.depthwise =
                        DepthwiseConv::init_paired(channels, self.kernel_size, device);
                }
                Block::Res(block)
            }
            'T' => {
                let further = Default::default();
                let config = TimestepBlockConfig { channels, time_embedding: self.c_r, further };
                Block::Timestep(config.init(device))
            }
            _ => {
                let config = AttentionBlockConfig {
                    channels,
                    condition_channels: self.c_cond,
                    heads: usize::try_from(self.nhead[level]).expect("checked by `validate`"),
                    self_attention: self.self_attn.at(level),
                };
                Block::Attention(config.init(device))
            }
        };
        letters.chars().enumerate().map(block).collect()
    }
}

impl TokenDecoder {
    /// The logits of every token.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, H, W]`, height and width multiples of [`TokenDecoderConfig::size_multiple`]
    /// - times: `B` shares of replaced tokens, `[0, 1]`
    /// - `image_embedding`: `[B, effnet_embd, h, w]`, of any size
    /// - text: `[B, T, byt5_embd]`; `None` for none at all
    /// - output: `[B, num_labels, H, W]`
    pub fn forward(
        &self,
        tokens: Tensor<3, Int>,
        times: &[f32],
        image_embedding: Tensor<4>,
        text: Option<Tensor<3>>,
    ) -> Tensor<4> {
        let [batch, height, width] = tokens.dims();
        let features = self.prepare(image_embedding, text).forward(tokens, times, &mut |_, _| {});
        let [.., channels] = features.dims();
        let logits = self.classify(features.reshape([batch * height * width, channels]));
        let [_, labels] = logits.dims();
        channels_first(logits.reshape([batch, height, width, labels]))
    }

    /// For every level: how many tokens one pixel of its features covers along each axis, and the number of
    /// feature channels.
    #[cfg(feature = "gpu")]
    pub(crate) fn levels(&self) -> Vec<(usize, usize)> {
        let levels = self.down_blocks.iter().enumerate();
        levels.map(|(level, blocks)| (self.patch_size << level, width(blocks))).collect()
    }

    /// All blocks with their names in a checkpoint, in the order in which they are applied.
    pub fn blocks(&self) -> impl Iterator<Item = (String, &Block)> {
        let ways = [("down_blocks", &self.down_blocks), ("up_blocks", &self.up_blocks)];
        ways.into_iter().flat_map(|(way, levels)| {
            levels.iter().enumerate().flat_map(move |(level, blocks)| {
                let name = move |i| format!("{way}.{level}.{i}");
                blocks.iter().enumerate().map(move |(i, block)| (name(i), block))
            })
        })
    }

    /// Computes what stays the same at all steps of a picture: what every block makes of the conditions.
    ///
    /// # Shapes
    ///
    /// - `image_embedding`: `[B, effnet_embd, h, w]`, of any size
    /// - text: `[B, T, byt5_embd]`
    pub fn prepare(
        &self,
        image_embedding: Tensor<4>,
        text: Option<Tensor<3>>,
    ) -> PreparedTokens<'_> {
        let conditions = silu(layer_norm(self.conditions(image_embedding, text)));
        let keep = |levels: &[Vec<Block>]| {
            let keep = |block: &Block| block.keep(&conditions, None);
            levels.iter().map(|blocks| blocks.iter().map(keep).collect()).collect()
        };
        PreparedTokens { decoder: self, down: keep(&self.down_blocks), up: keep(&self.up_blocks) }
    }

    /// What the blocks attend to, before the norm: the cells of the image embedding row by row, then the text.
    ///
    /// # Shapes
    ///
    /// - `image_embedding`: `[B, effnet_embd, h, w]`
    /// - text: `[B, T, byt5_embd]`
    /// - output: `[B, h·w + T, c_cond]`
    pub fn conditions(&self, image_embedding: Tensor<4>, text: Option<Tensor<3>>) -> Tensor<3> {
        let cells = channels_last(image_embedding).flatten::<3>(1, 2);
        let cells = affine(&self.effnet_mapper, cells);
        match text {
            Some(text) => Tensor::cat(vec![cells, affine(&self.byt5_mapper, text)], 1),
            None => cells,
        }
    }

    /// The embeddings of tokens, before the norm.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, H, W]`
    /// - output: `[B, H, W, c_in]`
    pub fn embed_tokens(&self, tokens: Tensor<3, Int>) -> Tensor<4> {
        let [batch, height, width] = tokens.dims();
        let rows = embed(&self.in_mapper, tokens.reshape([-1]));
        let [_, channels] = rows.dims();
        rows.reshape([batch, height, width, channels])
    }

    /// The logits of tokens whose features are known.
    ///
    /// # Shapes
    ///
    /// - features: `[N, c_out]`
    /// - output: `[N, num_labels]`
    pub fn classify(&self, features: Tensor<2>) -> Tensor<2> {
        affine(&self.out_mapper, layer_norm(features))
    }
}

/// Stage B for certain image embeddings and texts.
pub struct PreparedTokens<'a> {
    decoder: &'a TokenDecoder,
    /// What every block keeps, level by level.
    down: Vec<Vec<Kept>>,
    up: Vec<Vec<Kept>>,
}

impl PreparedTokens<'_> {
    /// The features that [`TokenDecoder::classify`] makes the logits of; reports the embedded input, every
    /// block and the output.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, H, W]`
    /// - output: `[B, H, W, c_out]`
    pub fn forward(&self, tokens: Tensor<3, Int>, times: &[f32], observe: Observer) -> Tensor<4> {
        let decoder = self.decoder;
        let embedded = layer_norm(decoder.embed_tokens(tokens));
        let patches = pixel_unshuffle(embedded, decoder.patch_size);
        let mut h = layer_norm(affine(&decoder.embedding, patches));
        observe("embedding", &h);

        let time = time_embedding(times, decoder.time_channels, &h.device());
        let mut conditions = Conditions { time, skip: None, image: None };
        let mut outputs = Vec::new();
        for (level, (blocks, kept)) in decoder.down_blocks.iter().zip(&self.down).enumerate() {
            for (i, (block, kept)) in blocks.iter().zip(kept).enumerate() {
                h = block.forward(h, &mut conditions, kept);
                observe(&format!("down_blocks.{level}.{i}"), &h);
            }
            outputs.push(h.clone());
        }
        outputs.pop(); // the deepest output is the way up's input, not its skip
        for (up, (blocks, kept)) in decoder.up_blocks.iter().zip(&self.up).enumerate() {
            let skip = if up > 0 { outputs.pop() } else { None };
            // A level that begins with another block leaves the features of the way down out.
            conditions.skip = skip.filter(|_| matches!(blocks[0], Block::Res(_)));
            for (i, (block, kept)) in blocks.iter().zip(kept).enumerate() {
                h = block.forward(h, &mut conditions, kept);
                observe(&format!("up_blocks.{up}.{i}"), &h);
            }
        }
        let y = pixel_shuffle(affine(&decoder.clf, layer_norm(h)), decoder.patch_size);
        observe("clf", &y);
        y
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;
    use crate::relative_error::assert_close;

    fn config() -> TokenDecoderConfig {
        let level = |letters: &str| LevelConfig::Letters(letters.to_owned());
        TokenDecoderConfig {
            c_in: 6,
            c_out: 6,
            num_labels: 11,
            c_r: 7,
            patch_size: 2,
            c_cond: 10,
            c_hidden: vec![80, 160],
            nhead: vec![1, 2],
            blocks: vec![2, 1],
            level_config: vec![level("CTA"), level("CT")],
            effnet_embd: 3,
            byt5_embd: 5,
            kernel_size: 5,
            dropout: PerLevel::One(0.1),
            self_attn: PerLevel::One(true),
        }
    }

    #[test]
    fn sizes_are_read_off_the_weights() {
        let config = TokenDecoderConfig { nhead: vec![1, -1], ..config() };
        let part = crate::part::Part::V1_DECODER;
        let weights = TokenDecoderConfig::weights(part, &config.init(&Device::flex()));
        assert_eq!(TokenDecoderConfig::infer(&weights), Some(config));
    }

    /// The start of training: all logits are 0, as the last but one layer's weights are.
    #[test]
    fn every_token_is_as_likely_at_first() {
        let (device, config) = (Device::flex(), config());
        let model = config.init(&device);
        let tokens = Tensor::<3, Int>::from_data([[[1, 2, 3, 4], [5, 6, 7, 8]]], &device);
        let tokens = tokens.repeat_dim(1, 2);
        let image = Tensor::random([1, 3, 2, 3], Distribution::Default, &device);
        let logits = model.forward(tokens, &[0.5], image, None);
        assert_eq!(logits.dims(), [1, 11, 4, 4]);
        assert_eq!(logits.abs().max().into_scalar::<f32>(), 0.0);
    }

    /// The cells have no positions.
    #[test]
    fn the_order_of_the_cells_changes_nothing() {
        let (device, config) = (Device::flex(), config());
        let mut model = config.init(&device);
        let random = |shape: [usize; 2]| Tensor::random(shape, Distribution::Default, &device);
        model.clf.weight = Param::from_tensor(random([80, 24]));
        let image = Tensor::<4>::random([1, 3, 2, 2], Distribution::Default, &device);
        let turned = image.clone().flip([2, 3]);
        let tokens = Tensor::<3, Int>::from_data([[[1, 2, 3, 4], [5, 6, 7, 8]]], &device);
        let tokens = tokens.repeat_dim(1, 2);
        let logits = |image| model.forward(tokens.clone(), &[0.5], image, None);
        assert_close(logits(turned), logits(image), 1e-5);
    }
}
