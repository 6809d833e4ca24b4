//! Stage B: the diffusion model that makes VQGAN latents from an image embedding.

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::activation::{sigmoid, silu};
use serde::{Deserialize, Serialize};
use wuerstchen_kernels::layer_norm;

#[cfg(feature = "gpu")]
use crate::blocks::width;
use crate::blocks::{
    AttentionBlockConfig, Block, Conditions, Downscale, Kept, Observer, ResBlockConfig,
    TimestepBlockConfig, Upscale, affine, channels_first, channels_last, condition_mapper,
    linear_layer, pixel_shuffle, pixel_unshuffle, time_embedding,
};
use crate::checkpoint::Checkpoint;
use crate::config::{
    ConfigError, PerLevel, heads_divide, layers, one_per_level, published_heads, size,
};
use crate::part::PartConfig;
use crate::resize::resize_bicubic;
use crate::weights::KeyTable;

/// Configuration of a [`Decoder`], with the published field names (`decoder/config.json`).
///
/// Every list has one entry per level, the finest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// Channels of the latents that come in.
    pub c_in: usize,
    /// Channels of the predicted noise.
    pub c_out: usize,
    /// Width of the time embedding.
    pub c_r: usize,
    /// Side of the patches that the first layer packs into channels.
    pub patch_size: usize,
    /// Width of text and image embedding inside the model.
    pub c_cond: usize,
    /// Width of every level.
    pub c_hidden: Vec<usize>,
    /// Attention heads of every level; -1 where the level has no attention.
    pub nhead: Vec<i64>,
    /// How often every level repeats its blocks.
    pub blocks: Vec<usize>,
    /// The blocks of every level: residual (C), timestep (T), attention (A); starts with C.
    pub level_config: Vec<LevelConfig>,
    /// Whether a level sees the image embedding.
    pub inject_effnet: Vec<bool>,
    /// Channels of the image embedding.
    pub effnet_embd: usize,
    /// Width of the text encoder.
    pub clip_embd: usize,
    /// Side of the depthwise kernels.
    #[serde(default = "default_kernel_size")]
    pub kernel_size: usize,
    /// Dropout probability while training; one value, or one per level.
    #[serde(default)]
    pub dropout: PerLevel<f64>,
}

fn default_kernel_size() -> usize {
    3
}

/// The blocks of a level, as a string such as `CTA` or a list of its letters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LevelConfig {
    /// `"CTA"`.
    Letters(String),
    /// `["C", "T", "A"]`.
    List(Vec<String>),
}

impl LevelConfig {
    /// The letters as one string.
    pub(crate) fn letters(&self) -> String {
        match self {
            Self::Letters(letters) => letters.clone(),
            Self::List(list) => list.concat(),
        }
    }
}

/// Bounds of the predicted noise scale: `sigmoid(b)·(1 − 2·margin) + margin`.
const SCALE_MARGIN: f64 = 1e-3;

/// Predicts the noise in VQGAN latents, given the time, the image embedding and the prompt.
///
/// A U-Net whose residual blocks see the image embedding, resized to the level's resolution.
///
/// Source: `DiffNeXt` in `modules.py` of dome272/Wuerstchen; `WuerstchenDiffNeXt` in diffusers.
#[derive(Module, Debug)]
pub struct Decoder {
    clip_mapper: Linear,
    effnet_mappers: Vec<Option<Linear>>,
    embedding: Linear,
    down_blocks: Vec<Vec<Block>>,
    up_blocks: Vec<Vec<Block>>,
    clf: Linear,
    patch_size: usize,
    time_channels: usize,
}

impl PartConfig for DecoderConfig {
    type Model = Decoder;

    const CLASS: &'static str = "WuerstchenDiffNeXt";
    const KEYS: KeyTable = KeyTable::DIFFUSION;

    fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("c_in", self.c_in),
            ("c_out", self.c_out),
            ("c_cond", self.c_cond),
            ("patch_size", self.patch_size),
            ("effnet_embd", self.effnet_embd),
            ("clip_embd", self.clip_embd),
        ] {
            size("decoder", field, value)?;
        }
        if self.c_out != self.c_in {
            let expected = format!("{} as c_in", self.c_in);
            return Err(ConfigError::new("decoder", "c_out", expected, self.c_out));
        }
        if self.c_r < 4 {
            return Err(ConfigError::new("decoder", "c_r", "at least 4", self.c_r));
        }
        if self.kernel_size.is_multiple_of(2) {
            return Err(ConfigError::new("decoder", "kernel_size", "odd", self.kernel_size));
        }
        let levels = self.levels();
        crate::config::levels("decoder", "c_hidden", levels)?;
        self.dropout.check_dropout("decoder", levels)?;
        let lists = [
            ("nhead", self.nhead.len()),
            ("blocks", self.blocks.len()),
            ("level_config", self.level_config.len()),
            ("inject_effnet", self.inject_effnet.len()),
        ];
        one_per_level("decoder", levels, &lists)?;
        (0..levels).try_for_each(|level| self.validate_level(level))
    }

    fn init(&self, device: &Device) -> Decoder {
        let (levels, widths) = (self.levels(), &self.c_hidden);
        let down = |level: usize| {
            let shrink = (level > 0).then(|| {
                Block::Downscale(Downscale::init(widths[level - 1], widths[level], device))
            });
            shrink.into_iter().chain(self.level(level, 0, device)).collect()
        };
        let up = |level: usize| {
            let skip = if level + 1 < levels { widths[level] } else { 0 };
            let grow = (level > 0)
                .then(|| Block::Upscale(Upscale::init(widths[level], widths[level - 1], device)));
            self.level(level, skip, device).into_iter().chain(grow).collect()
        };
        let mapper = |level: usize| {
            self.inject_effnet[level]
                .then(|| condition_mapper(self.effnet_embd, self.c_cond, device))
        };
        let patch = self.patch_size * self.patch_size;
        Decoder {
            clip_mapper: condition_mapper(self.clip_embd, self.c_cond, device),
            effnet_mappers: (0..levels).chain((0..levels).rev()).map(mapper).collect(),
            embedding: linear_layer(self.c_in * patch, widths[0], 1.0, device),
            down_blocks: (0..levels).map(down).collect(),
            up_blocks: (0..levels).rev().map(up).collect(),
            clf: linear_layer(widths[0], 2 * self.c_out * patch, 0.0, device),
            patch_size: self.patch_size,
            time_channels: self.c_r,
        }
    }

    fn infer(weights: &Checkpoint) -> Option<Self> {
        let levels = weights.count(|level| format!("down_blocks.{level}.1.mapper.weight")).max(
            weights.count(|level| format!("down_blocks.{level}.{}.depthwise.weight", level.min(1))),
        );
        // Patches of 2x2 pixels are assumed: weights tell only the product of channels and patch area.
        let patch_size = 2;
        let c_in = weights.side("embedding.1.weight", 1)? / (patch_size * patch_size);
        let mut config = Self {
            c_in,
            c_out: c_in,
            c_r: weights.side("down_blocks.0.1.mapper.weight", 1)?,
            patch_size,
            c_cond: weights.side("clip_mapper.weight", 0)?,
            c_hidden: Vec::new(),
            nhead: Vec::new(),
            blocks: Vec::new(),
            level_config: Vec::new(),
            inject_effnet: Vec::new(),
            effnet_embd: (0..levels)
                .find_map(|i| weights.side(&format!("effnet_mappers.{i}.weight"), 1))
                .unwrap_or(16),
            clip_embd: weights.side("clip_mapper.weight", 1)?,
            kernel_size: weights.side("down_blocks.0.0.depthwise.weight", 2)?,
            dropout: PerLevel::One(0.1),
        };
        for level in 0..levels {
            let (letters, repeats) = level_of_weights(weights, level)?;
            let first = format!("down_blocks.{level}.{}.depthwise.weight", usize::from(level > 0));
            let channels = weights.side(&first, 0)?;
            config.c_hidden.push(channels);
            config.nhead.push(if letters.contains('A') {
                i64::try_from(published_heads(channels)?).ok()?
            } else {
                -1
            });
            config.blocks.push(repeats);
            config.level_config.push(LevelConfig::Letters(letters));
            config.inject_effnet.push(weights.has(&format!("effnet_mappers.{level}.weight")));
        }
        Some(config)
    }
}

/// The letters of a level's blocks on the way down, without repetitions, and how often the level repeats them;
/// `None` where there is no such level.
pub(crate) fn level_of_weights(weights: &Checkpoint, level: usize) -> Option<(String, usize)> {
    // Every level but the first begins with a change of resolution.
    let first = usize::from(level > 0);
    let letter = |i: usize| {
        let marks =
            [("depthwise.weight", 'C'), ("mapper.weight", 'T'), ("attention.to_q.weight", 'A')];
        let name = |mark: &str| format!("down_blocks.{level}.{}.{mark}", first + i);
        let mark = |(mark, _): &(&str, char)| weights.has(&name(mark));
        marks.into_iter().find(mark).map(|(_, letter)| letter)
    };
    let letters: String = (0..).map_while(letter).collect();
    let unit = (1..=letters.len()).find(|&n| {
        letters.len().is_multiple_of(n) && letters[..n].repeat(letters.len() / n) == letters
    })?;
    Some((letters[..unit].to_owned(), letters.len() / unit))
}

impl DecoderConfig {
    /// The letters of a level's blocks, without repetitions.
    pub(crate) fn letters(&self, level: usize) -> String {
        self.level_config[level].letters()
    }

    /// Number of resolutions.
    pub fn levels(&self) -> usize {
        self.c_hidden.len()
    }

    /// The latents' height and width must be multiples of this.
    pub fn size_multiple(&self) -> usize {
        self.patch_size << (self.levels() - 1)
    }

    fn validate_level(&self, level: usize) -> Result<(), ConfigError> {
        let letters = self.level_config[level].letters();
        size("decoder", "c_hidden", self.c_hidden[level])?;
        layers("decoder", "blocks", self.blocks[level])?;
        if !letters.starts_with('C') || !letters.chars().all(|letter| "CTA".contains(letter)) {
            let expected = "letters C, T, A starting with C";
            return Err(ConfigError::new("decoder", "level_config", expected, letters));
        }
        if letters.contains('A') {
            let heads = usize::try_from(self.nhead[level]).unwrap_or(0);
            heads_divide("decoder", "nhead", heads, self.c_hidden[level])?;
        }
        Ok(())
    }

    /// The blocks of one level; the first takes `skip` channels of the way down besides the
    /// image embedding.
    fn level(&self, level: usize, skip: usize, device: &Device) -> Vec<Block> {
        let channels = self.c_hidden[level];
        let condition = if self.inject_effnet[level] { self.c_cond } else { 0 };
        // The authors' code shrinks the last layer of every block by the number of all blocks.
        let output_gain = (1.0 / self.blocks.iter().sum::<usize>() as f64).sqrt();
        let letters = self.level_config[level].letters().repeat(self.blocks[level]);
        let block = |(i, letter): (usize, char)| match letter {
            'C' => {
                let config = ResBlockConfig {
                    channels,
                    skip_channels: condition + if i == 0 { skip } else { 0 },
                    kernel_size: self.kernel_size,
                    dropout: self.dropout.at(level),
                    output_gain,
                };
                Block::Res(config.init(device))
            }
            'T' => {
                let time_embedding = self.c_r;
                let config =
                    TimestepBlockConfig { channels, time_embedding, further: Default::default() };
                Block::Timestep(config.init(device))
            }
            _ => {
                let config = AttentionBlockConfig {
                    channels,
                    condition_channels: self.c_cond,
                    heads: usize::try_from(self.nhead[level]).expect("checked by `validate`"),
                    self_attention: true,
                };
                Block::Attention(config.init(device))
            }
        };
        letters.chars().enumerate().map(block).collect()
    }
}

impl Decoder {
    /// Predicts the noise in `x`.
    ///
    /// # Shapes
    ///
    /// - x: `[B, c_in, H, W]`, height and width multiples of
    ///   [`DecoderConfig::size_multiple`]
    /// - times: `B` diffusion times in `[0, 1]`, 1 is pure noise
    /// - `image_embedding`: `[B, effnet_embd, h, w]`, of any size
    /// - text: `[B, T, clip_embd]`
    /// - output: `[B, c_out, H, W]`
    pub fn forward(
        &self,
        x: Tensor<4>,
        times: &[f32],
        image_embedding: Tensor<4>,
        text: Tensor<3>,
    ) -> Tensor<4> {
        let [.., height, width] = x.dims();
        self.prepare(image_embedding, text, [height, width]).forward(x, times, &mut |_, _| {})
    }

    /// For every level: how many latent pixels one pixel of its features covers along each axis, and the number
    /// of feature channels.
    #[cfg(feature = "gpu")]
    pub(crate) fn levels(&self) -> Vec<(usize, usize)> {
        let levels = self.down_blocks.iter().enumerate();
        levels.map(|(level, blocks)| (self.patch_size << level, width(blocks))).collect()
    }

    /// Computes what stays the same at all steps of a picture: what every block makes of the text, every block's
    /// first layer folded with the layer that widens the image embedding, and the image embedding resized to the
    /// features of every level.
    ///
    /// # Shapes
    ///
    /// - `image_embedding`: `[B, effnet_embd, h, w]`, of any size
    /// - text: `[B, T, clip_embd]`
    /// - size: height and width of the latents
    pub fn prepare(
        &self,
        image_embedding: Tensor<4>,
        text: Tensor<3>,
        [height, width]: [usize; 2],
    ) -> PreparedDecoder<'_> {
        let image_embedding = channels_last(image_embedding);
        let text = silu(self.embed_text(text));
        let levels = self.down_blocks.len();
        let keep = |number: usize, level: usize, blocks: &[Block]| {
            let mapper = self.effnet_mappers[number].as_ref();
            let size = [height, width].map(|side| (side / self.patch_size) >> level);
            KeptOfLevel {
                blocks: blocks.iter().map(|block| block.keep(&text, mapper)).collect(),
                image: mapper.map(|_| resize_bicubic(image_embedding.clone(), size)),
            }
        };
        let down = self.down_blocks.iter().enumerate();
        let up = self.up_blocks.iter().enumerate();
        PreparedDecoder {
            decoder: self,
            down: down.map(|(level, blocks)| keep(level, level, blocks)).collect(),
            up: up.map(|(i, blocks)| keep(levels + i, levels - 1 - i, blocks)).collect(),
        }
    }

    /// The text as the blocks see it: linear, layer norm.
    ///
    /// # Shapes
    ///
    /// - text: `[B, T, clip_embd]`
    /// - output: `[B, T, c_cond]`
    pub fn embed_text(&self, text: Tensor<3>) -> Tensor<3> {
        layer_norm(affine(&self.clip_mapper, text))
    }

    /// The image embedding as the blocks of a level see it: resized and mapped. `level` counts the way
    /// down, then the way up; `None` where it sees none.
    ///
    /// The blocks fold the map into their own layers; this is what the fold stands for.
    ///
    /// # Shapes
    ///
    /// - `image_embedding`: `[B, effnet_embd, h, w]`
    /// - output: `[B, height, width, c_cond]`
    ///
    /// # Panics
    ///
    /// Panics if there is no such level.
    pub fn map_image(
        &self,
        level: usize,
        image_embedding: Tensor<4>,
        size: [usize; 2],
    ) -> Option<Tensor<4>> {
        let mapper = self.effnet_mappers[level].as_ref()?;
        Some(affine(mapper, resize_bicubic(channels_last(image_embedding), size)))
    }
}

/// What stays the same for a whole picture at one level, on the way down or up.
struct KeptOfLevel {
    /// What every block keeps.
    blocks: Vec<Kept>,
    /// The image embedding as large as the features, `[B, H, W, effnet_embd]`, if the level sees it.
    image: Option<Tensor<4>>,
}

/// Stage B for certain image embeddings and texts.
pub struct PreparedDecoder<'a> {
    decoder: &'a Decoder,
    down: Vec<KeptOfLevel>,
    up: Vec<KeptOfLevel>,
}

impl PreparedDecoder<'_> {
    /// As [`Decoder::forward`], and reports the embedded input, every block, and the output's offset `a`
    /// and scale `b`.
    pub fn forward(&self, x: Tensor<4>, times: &[f32], observe: Observer) -> Tensor<4> {
        let (decoder, x) = (self.decoder, channels_last(x));
        let patches = pixel_unshuffle(x.clone(), decoder.patch_size);
        let mut h = layer_norm(affine(&decoder.embedding, patches));
        observe("embedding", &h);

        let time = time_embedding(times, decoder.time_channels, &x.device());
        let mut conditions = Conditions { time, skip: None, image: None };
        let mut outputs = Vec::new();
        for (level, (blocks, kept)) in decoder.down_blocks.iter().zip(&self.down).enumerate() {
            conditions.image.clone_from(&kept.image);
            for (i, (block, kept)) in blocks.iter().zip(&kept.blocks).enumerate() {
                h = block.forward(h, &mut conditions, kept);
                observe(&format!("down_blocks.{level}.{i}"), &h);
            }
            outputs.push(h.clone());
        }
        outputs.pop(); // the deepest output is the way up's input, not its skip
        for (up, (blocks, kept)) in decoder.up_blocks.iter().zip(&self.up).enumerate() {
            conditions.skip = if up > 0 { outputs.pop() } else { None };
            conditions.image.clone_from(&kept.image);
            for (i, (block, kept)) in blocks.iter().zip(&kept.blocks).enumerate() {
                h = block.forward(h, &mut conditions, kept);
                observe(&format!("up_blocks.{up}.{i}"), &h);
            }
        }

        let ab = pixel_shuffle(affine(&decoder.clf, layer_norm(h)), decoder.patch_size);
        observe("clf", &ab);
        let [.., channels] = x.dims();
        let a = ab.clone().narrow(3, 0, channels);
        let b = sigmoid(ab.narrow(3, channels, channels)) * (1.0 - 2.0 * SCALE_MARGIN);
        let b = b + SCALE_MARGIN;
        observe("a", &a);
        observe("b", &b);
        channels_first((x - a) / b)
    }
}
