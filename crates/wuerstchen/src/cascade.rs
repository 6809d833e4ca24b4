//! Stages C and B of Stable Cascade, the authors' third version: one U-Net with two sets of sizes.
//!
//! The model predicts the noise itself. Both stages see the pooled text embedding; Stage C also sees the embeddings of
//! all tokens and the CLIP embeddings of pictures.

mod config;

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::activation::silu;
use wuerstchen_kernels::layer_norm;

pub use self::config::{BlockType, CascadeConfig};
#[cfg(feature = "gpu")]
use crate::blocks::width;
use crate::blocks::{
    Block, Conditions, Downscale, Kept, Observer, Upscale, affine, affine_gelu, channels_first,
    channels_last, linear_layer, pixel_shuffle, pixel_unshuffle, time_embedding,
};
use crate::resize::{Filter, resize};

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
    has_sca: bool,
    has_crp: bool,
    clip_tokens: usize,
    pixel_channels: usize,
    image_channels: usize,
}

/// Two 1x1 convolutions with GELU between, then a layer norm.
#[derive(Module, Debug)]
struct PixelMapper {
    inner: Linear,
    outer: Linear,
}

/// A step between two levels, after a layer norm.
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

impl Switch {
    fn init(input: usize, output: usize, enabled: bool, device: &Device) -> Self {
        Self { map: linear_layer(input, output, 1.0, device), enabled }
    }
}

/// What a prediction depends on besides the latents and the time.
pub struct CascadeConditions {
    /// The pooled text embedding, `[B, clip_text_pooled_in_channels]`.
    pub text_pooled: Tensor<2>,
    /// The embedding of every token, `[B, T, clip_text_in_channels]`, where the model sees tokens.
    pub text: Option<Tensor<3>>,
    /// CLIP embeddings of `k` pictures, `[B, k, clip_image_in_channels]`, where the model sees some;
    /// without them it sees one of zeros.
    pub images: Option<Tensor<3>>,
    /// The image embedding, `[B, effnet_in_channels, h, w]`, for Stage B.
    pub image_embedding: Option<Tensor<4>>,
    /// A small picture, `[B, pixel_mapper_in_channels, h, w]`, for Stage B; without it the model sees
    /// zeros.
    pub pixels: Option<Tensor<4>>,
    /// The further conditions of the timestep blocks, 0 in all published samplings.
    pub sca: f32,
    /// The second further condition, as `sca`.
    pub crp: f32,
    /// What a ControlNet adds.
    pub control: Vec<AddedFeatures>,
}

/// What is added to the features before a residual block, resized to their height and width.
#[derive(Clone)]
pub struct AddedFeatures {
    /// The number of the block, counted from 0 in the order in which the model runs its residual blocks. A block of a
    /// level that is run again counts again.
    pub block: usize,
    /// `[B, h, w, C]`, or `[1, h, w, C]` for all samples of a batch.
    pub features: Tensor<4>,
}

impl CascadeConditions {
    /// A pooled text and nothing else.
    pub const fn new(text_pooled: Tensor<2>) -> Self {
        Self {
            text_pooled,
            text: None,
            images: None,
            image_embedding: None,
            pixels: None,
            sca: 0.0,
            crp: 0.0,
            control: Vec::new(),
        }
    }
}

/// The tokens that the blocks attend to, and what they are made of: `[B, T, D]` each.
pub struct CascadeTokens {
    /// The mapped text, where the model sees it.
    pub text: Option<Tensor<3>>,
    /// The mapped pooled text, `[B, clip_seq, conditioning_dim]`.
    pub pooled: Tensor<3>,
    /// The mapped pictures, where the model sees some.
    pub images: Option<Tensor<3>>,
    /// All of them in this order, normalised: `[B, T, conditioning_dim]`.
    pub all: Tensor<3>,
}

/// Side of the empty small picture that Stage B sees.
const EMPTY_PICTURE: usize = 8;

impl Cascade {
    /// Predicts the noise in `x`.
    ///
    /// # Shapes
    ///
    /// - x: `[B, in_channels, H, W]`, sides multiples of `patch_size`, at least
    ///   [`CascadeConfig::smallest_side`]
    /// - times: `B` diffusion times in `[0, 1]`, 1 is pure noise
    /// - output: `[B, out_channels, H, W]`
    pub fn forward(
        &self,
        x: Tensor<4>,
        times: &[f32],
        conditions: &CascadeConditions,
    ) -> Tensor<4> {
        let [.., height, width] = x.dims();
        self.prepare(conditions, [height, width]).forward(x, times, &mut |_, _| {})
    }

    /// For every level: how many latent pixels one pixel of its features covers along each axis, and the number
    /// of feature channels.
    #[cfg(feature = "gpu")]
    pub(crate) fn levels(&self) -> Vec<(usize, usize)> {
        let mut downscale = self.patch_size;
        let levels = self.down_blocks.iter().zip(&self.down_downscalers);
        let level = |(blocks, downscaler): (&Vec<Block>, &Option<Resampler>)| {
            let halves = match downscaler {
                Some(Resampler::Shrink(switch)) => switch.enabled,
                Some(_) => true,
                None => false,
            };
            downscale <<= u32::from(halves);
            (downscale, width(blocks))
        };
        levels.map(level).collect()
    }

    /// Computes what stays the same at all steps of a picture: what every block makes of the tokens, and the
    /// mapped pictures as large as the features.
    ///
    /// # Shapes
    ///
    /// - size: height and width of the latents
    pub fn prepare(&self, conditions: &CascadeConditions, size: [usize; 2]) -> PreparedCascade<'_> {
        let tokens = silu(self.embed_text(conditions).all);
        let keep = |levels: &[Vec<Block>]| {
            let keep = |block: &Block| block.keep(&tokens, None);
            levels.iter().map(|blocks| blocks.iter().map(keep).collect()).collect()
        };
        let size = size.map(|side| side / self.patch_size);
        let image = self.effnet_mapper.as_ref().zip(conditions.image_embedding.clone());
        let pixels = self.pixels_mapper.as_ref().map(|mapper| {
            let [batch, ..] = tokens.dims();
            let shape = [batch, EMPTY_PICTURE, EMPTY_PICTURE, self.pixel_channels];
            let pixels = match conditions.pixels.clone() {
                Some(pixels) => channels_last(pixels),
                None => Tensor::zeros(shape, &tokens.device()),
            };
            mapper.forward(pixels)
        });
        PreparedCascade {
            cascade: self,
            image: image.map(|(mapper, image)| mapper.forward(fit(channels_last(image), size))),
            pixels: pixels.map(|mapped| (fit(mapped.clone(), size), mapped)),
            further: [conditions.sca, conditions.crp],
            control: conditions.control.clone(),
            down: keep(&self.down_blocks),
            up: keep(&self.up_blocks),
        }
    }

    /// The embedding of the times, followed by those of the further conditions that the blocks have.
    ///
    /// # Shapes
    ///
    /// - output: `[B, R·(1 + conditions)]`
    pub fn embed_times(&self, times: &[f32], [sca, crp]: [f32; 2], device: &Device) -> Tensor<2> {
        let embed = |times: &[f32]| time_embedding(times, self.time_channels, device);
        let further = [(self.has_sca, sca), (self.has_crp, crp)];
        let further = further.into_iter().filter(|(has, _)| *has);
        let further = further.map(|(_, value)| embed(&vec![value; times.len()]));
        Tensor::cat(std::iter::once(embed(times)).chain(further).collect(), 1)
    }

    /// The tokens that the blocks attend to.
    pub fn embed_text(&self, conditions: &CascadeConditions) -> CascadeTokens {
        // Every embedding becomes `clip_seq` tokens.
        let tokens_of = |mapper: &Linear, x: Tensor<3>| {
            let [batch, count, _] = x.dims();
            let y = affine(mapper, x);
            let width = y.dims()[2] / self.clip_tokens;
            y.reshape([batch, count * self.clip_tokens, width])
        };
        let [batch, _] = conditions.text_pooled.dims();
        let text = self.clip_txt_mapper.as_ref().zip(conditions.text.clone());
        let text = text.map(|(mapper, text)| affine(mapper, text));
        let pooled = conditions.text_pooled.clone().unsqueeze_dim(1);
        let pooled = tokens_of(&self.clip_txt_pooled_mapper, pooled);
        let none = || Tensor::zeros([batch, 1, self.image_channels], &pooled.device());
        let images = self
            .clip_img_mapper
            .as_ref()
            .map(|mapper| tokens_of(mapper, conditions.images.clone().unwrap_or_else(none)));
        let all = [text.clone(), Some(pooled.clone()), images.clone()];
        let all = layer_norm(Tensor::cat(all.into_iter().flatten().collect(), 1));
        CascadeTokens { text, pooled, images, all }
    }
}

/// A [`Cascade`] for certain conditions.
pub struct PreparedCascade<'a> {
    cascade: &'a Cascade,
    /// The mapped image embedding, as large as the features.
    image: Option<Tensor<4>>,
    /// The mapped small picture, resized to the features, and as it was before.
    pixels: Option<(Tensor<4>, Tensor<4>)>,
    /// The further conditions of the timestep blocks.
    further: [f32; 2],
    /// What a ControlNet adds.
    control: Vec<AddedFeatures>,
    /// What every block of every level keeps on the way down.
    down: Vec<Vec<Kept>>,
    /// The same on the way up.
    up: Vec<Vec<Kept>>,
}

impl PreparedCascade<'_> {
    /// As [`Cascade::forward`], and reports every block; `#1` at the end of a name means its second pass in a repeated
    /// level.
    pub fn forward(&self, x: Tensor<4>, times: &[f32], observe: Observer) -> Tensor<4> {
        let (cascade, x) = (self.cascade, channels_last(x));
        let time = cascade.embed_times(times, self.further, &x.device());
        let mut seen = Conditions { time, skip: None, image: None };

        let mut x = layer_norm(affine(&cascade.embedding, pixel_unshuffle(x, cascade.patch_size)));
        observe("embedding", &x);
        if let Some(image) = &self.image {
            observe("effnet_mapper", image);
            x = x + image.clone();
        }
        if let Some((fitted, mapped)) = &self.pixels {
            observe("pixels_mapper", mapped);
            x = x + fitted.clone();
        }
        let mut control = Control { added: &self.control, next: 0 };
        let mut outputs = Vec::new();
        for (number, blocks) in cascade.down_blocks.iter().enumerate() {
            if let Some(downscaler) = &cascade.down_downscalers[number] {
                x = downscaler.forward(x);
                observe(&format!("down_downscalers.{number}"), &x);
            }
            let (kept, repeat) = (&self.down[number], &cascade.down_repeat_mappers[number]);
            let level = Level { way: "down", number, blocks, kept, repeat };
            x = level.forward(x, None, &mut seen, &mut control, observe);
            outputs.push(x.clone());
        }
        outputs.pop(); // the deepest output is the way up's input, not its skip
        for (number, blocks) in cascade.up_blocks.iter().enumerate() {
            let skip = if number > 0 { outputs.pop() } else { None };
            let (kept, repeat) = (&self.up[number], &cascade.up_repeat_mappers[number]);
            let level = Level { way: "up", number, blocks, kept, repeat };
            x = level.forward(x, skip.as_ref(), &mut seen, &mut control, observe);
            if let Some(upscaler) = &cascade.up_upscalers[number] {
                x = upscaler.forward(x);
                observe(&format!("up_upscalers.{number}"), &x);
            }
        }
        let x = pixel_shuffle(affine(&cascade.clf, layer_norm(x)), cascade.patch_size);
        observe("clf", &x);
        channels_first(x)
    }
}

/// The blocks of a level of one way, what they keep, and the linear layers between its passes.
struct Level<'a> {
    way: &'static str,
    number: usize,
    blocks: &'a [Block],
    kept: &'a [Kept],
    repeat: &'a [Linear],
}

impl Level<'_> {
    /// Runs the blocks once, and again after every linear layer of `repeat`. The first block of every pass takes
    /// `skip`, to whose size the features are resized.
    fn forward(
        &self,
        mut x: Tensor<4>,
        skip: Option<&Tensor<4>>,
        conditions: &mut Conditions,
        control: &mut Control,
        observe: Observer,
    ) -> Tensor<4> {
        let Self { way, number, blocks, kept, repeat } = self;
        for pass in 0..=repeat.len() {
            if let Some(skip) = skip {
                let [_, height, width, _] = skip.dims();
                x = fit(x, [height, width]);
            }
            conditions.skip = skip.cloned();
            let number_of_pass = if pass > 0 { format!("#{pass}") } else { String::new() };
            for (j, (block, kept)) in blocks.iter().zip(*kept).enumerate() {
                if let Block::Res(_) = block {
                    x = control.add(x);
                }
                x = block.forward(x, conditions, kept);
                observe(&format!("{way}_blocks.{number}.{j}{number_of_pass}"), &x);
            }
            if let Some(mapper) = repeat.get(pass) {
                x = affine(mapper, x);
                observe(&format!("{way}_repeat_mappers.{number}.{pass}"), &x);
            }
        }
        x
    }
}

/// Counts the residual blocks while the model runs, and adds what belongs before each.
struct Control<'a> {
    added: &'a [AddedFeatures],
    next: usize,
}

impl Control<'_> {
    /// The input of the next residual block, given the features before it.
    fn add(&mut self, x: Tensor<4>) -> Tensor<4> {
        let block = self.next;
        self.next += 1;
        let [_, height, width, _] = x.dims();
        let added = self.added.iter().filter(|added| added.block == block);
        added.fold(x, |x, added| x + fit(added.features.clone(), [height, width]))
    }
}

/// Features of another size.
fn fit(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    resize(x, size, Filter::BilinearAlignedCorners)
}

impl Resampler {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Downscale(block) => block.forward(x),
            Self::Upscale(block) => block.forward(x),
            Self::Shrink(switch) => {
                let x = affine(&switch.map, layer_norm(x));
                let [_, height, width, _] = x.dims();
                if switch.enabled { fit(x, [height / 2, width / 2]) } else { x }
            }
            Self::Grow(switch) => {
                let x = layer_norm(x);
                let [_, height, width, _] = x.dims();
                let x = if switch.enabled { fit(x, [2 * height, 2 * width]) } else { x };
                affine(&switch.map, x)
            }
        }
    }
}

impl PixelMapper {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        layer_norm(affine(&self.outer, affine_gelu(&self.inner, x)))
    }
}
