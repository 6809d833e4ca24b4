//! How each stage is trained.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};
use wuerstchen::config::below_one;
use wuerstchen::{ConfigError, Schedule};

use crate::lesson::Lesson;
use crate::limits::{at_least_one, learning_rate, not_negative, positive, share, time_shift};
use crate::optimizer::OptimizerConfig;
use crate::precision::Precision;

/// The settings of the updates, which all three stages have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// Number of updates, at least 1.
    pub steps: u64,
    /// Pictures in every update.
    pub batch_size: usize,
    /// Number of equal shares of the batch, 1 to 1024. Each share has threads of its own; processes that train together
    /// divide the shares among them. On a CPU the number of cores is best. Batch norms, the discriminator's norms and
    /// the adaptive weight see the statistics of one share; everything else stays the same up to rounding.
    #[serde(default = "one")]
    pub shards: usize,
    /// How many of these shares a process computes at a time, at least 1; by default all that it has. Fewer take less
    /// memory (gradient accumulation), and the results have the same bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards_at_once: Option<usize>,
    /// Number of threads, 1 to 1024, that draw, decode and tokenise the next batches; each keeps one ready. Results do
    /// not depend on this number.
    #[serde(default = "one")]
    pub data_threads: usize,
    /// The type of the numbers that matrix products multiply. Shaders in WGSL do not reach a GPU's matrix units, so that
    /// 16 bits may not take less time.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
    /// Updates between sample grids, at least 1.
    pub sample_every: u64,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// What the scenes of a built-in corpus show; by default all of it.
    #[serde(default)]
    pub lesson: Lesson,
}

/// The settings that both diffusion stages have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiffusionConfig {
    /// Number of distinct scenes whose latents are computed once and kept; with 0, every scene is new.
    #[serde(default)]
    pub cached_scenes: usize,
    /// Probability that a sample's caption is dropped, for guidance.
    #[serde(default)]
    pub caption_drop: f64,
    /// Probability that a word of a drawn corpus is replaced by the unknown one.
    #[serde(default)]
    pub unknown_words: f64,
    /// Whether the loss is weighted by the p2 weights of Choi et al. (arXiv 2204.00227).
    #[serde(default)]
    pub p2_weighting: bool,
    /// `γ` of the min-SNR loss weights `min(SNR, γ)/SNR` of Hang et al. (arXiv 2303.09556), in place of p2 weights.
    /// They recommend 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_snr_gamma: Option<f64>,
    /// `k` of the p2 weights. The authors use 1; with a smaller `k`, noisier times count for more.
    #[serde(default = "authors_p2_k")]
    pub p2_k: f32,
    /// Shift of the random times: above 1, noisier times are drawn more often than the authors do (arXiv 2403.03206).
    #[serde(default = "unshifted")]
    pub time_shift: f32,
}

/// How Stage A is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageAConfig {
    /// The updates.
    #[serde(flatten)]
    pub updates: UpdateConfig,
    /// Probability that a step decodes quantised latents.
    #[serde(default)]
    pub quantized: f64,
    /// Weight of the absolute error of the differences between neighbouring pixels, which keeps edges sharp.
    #[serde(default)]
    pub edge_loss: f64,
    /// Every picture is drawn larger by a random whole factor up to this one, and a square of the training
    /// size is cut out of it; 1 takes pictures whole. Crops teach the details of larger pictures.
    #[serde(default = "one")]
    pub max_zoom: usize,
    /// Weight of LPIPS between pictures and reconstructions, which needs `perceptual_weights`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub perceptual_loss: f64,
    /// The weights of LPIPS: one file of the backbone and its heads, or a file of VGG16 or `AlexNet` and one of the
    /// heads.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_more")]
    pub perceptual_weights: Vec<PathBuf>,
    /// Whether only the decoder is trained. The encoder and the codes stay as they are: a Stage B that has learnt to
    /// make their latents still fits, and its pictures get better with the decoder.
    #[serde(default, skip_serializing_if = "is_false")]
    pub freeze_encoder: bool,
    /// Moves the codes to the means of their latents, in place of a gradient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codebook: Option<CodebookConfig>,
    /// Trains a discriminator against Stage A.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adversarial: Option<AdversarialConfig>,
}

/// A codebook whose codes are moving averages of the latents that are nearest to them.
///
/// Source: van den Oord et al., "Neural discrete representation learning" (arXiv 1711.00937), appendix A.1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CodebookConfig {
    /// Decay of the averages at every update.
    pub decay: f64,
    /// A code is dead if its frequency is below this share of the frequency that each code would have if all were
    /// equally frequent. A dead code is replaced by a latent of the update's batch. 0 replaces none.
    pub revive_below: f64,
}

impl Default for CodebookConfig {
    fn default() -> Self {
        Self { decay: 0.99, revive_below: 0.1 }
    }
}

/// A discriminator of patches that learns to tell pictures from reconstructions, while Stage A learns to make
/// reconstructions that it takes for pictures.
///
/// Source: Esser et al., "Taming transformers for high-resolution image synthesis" (arXiv 2012.09841), section 3.1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdversarialConfig {
    /// The update of Stage A with which both losses begin, from 0.
    pub start: u64,
    /// Weight of the loss that the discriminator gives Stage A.
    pub weight: f64,
    /// Whether that weight is multiplied by the ratio of two gradients' norms at the decoder's last layer, that of the
    /// reconstruction's loss to that of the discriminator's, so that both pull with the same strength.
    pub adaptive: bool,
    /// Channels after the discriminator's first convolution.
    pub channels: usize,
    /// Number of convolutions of stride 2. Each about doubles the side of the patches, which is 70 pixels with three.
    pub layers: usize,
    /// Peak learning rate of the discriminator. It rises and falls as Stage A's does.
    pub learning_rate: f64,
    /// Decay of the first moment of its AdamW.
    pub beta1: f64,
    /// Decay of the second moment of its AdamW.
    pub beta2: f64,
    /// Largest global L2 norm of its gradients.
    pub max_grad_norm: f64,
}

impl Default for AdversarialConfig {
    /// Weight and moments of the authors' code (`custom_vqgan.yaml` of CompVis/taming-transformers).
    fn default() -> Self {
        Self {
            start: 0,
            weight: 0.8,
            adaptive: true,
            channels: 64,
            layers: 3,
            learning_rate: 1e-4,
            beta1: 0.5,
            beta2: 0.9,
            max_grad_norm: 1.0,
        }
    }
}

/// How Stage B and the semantic compressor are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageBConfig {
    /// The updates.
    #[serde(flatten)]
    pub updates: UpdateConfig,
    /// The captions and the loss.
    #[serde(flatten)]
    pub diffusion: DiffusionConfig,
    /// Probability that a sample's image embedding is zero.
    #[serde(default)]
    pub embedding_drop: f64,
    /// Probability that a sample's image embedding is noised.
    #[serde(default)]
    pub embedding_noise: f64,
    /// Whether the compressor is frozen. Its embeddings can then be cached, and Stage C can be trained at the same
    /// time.
    #[serde(default)]
    pub freeze_compressor: bool,
    /// As [`StageCConfig::text_loss`], for a Stage B that denoises tokens: the model's only text encoder is then
    /// trained with Stage B.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub text_loss: f64,
}

/// How Stage C is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageCConfig {
    /// The updates.
    #[serde(flatten)]
    pub updates: UpdateConfig,
    /// The captions and the loss.
    #[serde(flatten)]
    pub diffusion: DiffusionConfig,
    /// Weight of a second loss, which teaches the text encoder: the squared error of an image embedding that
    /// a linear layer predicts from the last text token alone. 0 turns it off.
    #[serde(default)]
    pub text_loss: f64,
    /// Whether the loss of every noise level is divided by its moving mean, as the authors of Stable Cascade do, in
    /// place of other weights: a level that is hard to learn then counts no more than the others.
    #[serde(default, skip_serializing_if = "is_false")]
    pub adaptive_weighting: bool,
    /// Whether the backward pass computes the features of the blocks again, one group after the other, instead of
    /// keeping them all. It takes less memory and more time. Results stay the same, but for rounding in the gradients
    /// of the layers before the blocks.
    #[serde(default, skip_serializing_if = "is_false")]
    pub recompute: bool,
}

/// A list, or its only item.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a path or a list of paths")]
    enum OneOrMore {
        One(PathBuf),
        More(Vec<PathBuf>),
    }
    Ok(match OneOrMore::deserialize(deserializer)? {
        OneOrMore::One(path) => vec![path],
        OneOrMore::More(paths) => paths,
    })
}

pub(crate) fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// Most data threads, more than any machine has work for.
const MAX_THREADS: usize = 1024;

/// Most channels and layers of a discriminator, more than any needs. The last layers have eight times as many channels.
const MAX_CHANNELS: usize = 1 << 8;
const MAX_LAYERS: usize = 16;

/// Most pictures in an update, more than any machine has memory for.
const MAX_BATCH: usize = 1 << 20;

/// Most pixels of a share of a batch, all of which are in memory at a time: 64 pictures of 1024 pixels a side.
const MAX_SHARE_PIXELS: usize = 1 << 26;

fn one() -> usize {
    1
}

fn authors_p2_k() -> f32 {
    1.0
}

pub(super) fn unshifted() -> f32 {
    1.0
}

impl UpdateConfig {
    /// How many of `own` shares a process computes at a time. With dropout it is one: all threads share the device's
    /// generator, which gives every share numbers of its own only one by one.
    pub(crate) fn at_once(&self, own: usize, has_dropout: bool) -> usize {
        if has_dropout { 1 } else { self.shards_at_once.unwrap_or(own).min(own) }
    }

    /// Checks every value; `part` names the stage.
    pub(super) fn validate(&self, part: &'static str) -> Result<(), ConfigError> {
        at_least_one(part, "steps", self.steps)?;
        at_least_one(part, "sample_every", self.sample_every)?;
        at_least_one(part, "data_threads", self.data_threads as u64)?;
        let (batch, shards) = (self.batch_size, self.shards);
        at_least_one(part, "shards", shards as u64)?;
        if let Some(at_once) = self.shards_at_once.filter(|at_once| !(1..=shards).contains(at_once))
        {
            let expected = format!("from 1 to shards = {shards}, or left out");
            return Err(ConfigError::new(part, "shards_at_once", expected, at_once));
        }
        for (field, threads) in [("data_threads", self.data_threads), ("shards", shards)] {
            if threads > MAX_THREADS {
                let expected = format!("at most {MAX_THREADS}");
                return Err(ConfigError::new(part, field, expected, threads));
            }
        }
        if batch > MAX_BATCH {
            let expected = format!("at most {MAX_BATCH}");
            return Err(ConfigError::new(part, "batch_size", expected, batch));
        }
        if batch == 0 || !batch.is_multiple_of(shards) {
            let expected = format!("a positive multiple of shards = {shards}");
            return Err(ConfigError::new(part, "batch_size", expected, batch));
        }
        self.optimizer.validate(part)?;
        let Lesson { two_objects, tinted, plain_relations, first_leads } = self.lesson;
        share(part, "lesson.two_objects", two_objects.unwrap_or_default())?;
        share(part, "lesson.tinted", tinted.unwrap_or_default())?;
        share(part, "lesson.plain_relations", plain_relations)?;
        share(part, "lesson.first_leads", first_leads)
    }

    /// Checks that a machine has memory for the pictures of a share, of `side` pixels a side. The other values were
    /// checked before.
    pub(super) fn validate_pixels(
        &self,
        part: &'static str,
        side: usize,
    ) -> Result<(), ConfigError> {
        let most = self.shards * (MAX_SHARE_PIXELS / (side * side).max(1)).max(1);
        if self.batch_size <= most {
            return Ok(());
        }
        let shares = if self.shards == 1 {
            String::new()
        } else {
            format!(" in {} shares (`shards`)", self.shards)
        };
        let expected = format!(
            "at most {most} with pictures of {side} x {side} pixels{shares}: {MAX_SHARE_PIXELS} pixels are trained \
             on at a time"
        );
        Err(ConfigError::new(part, "batch_size", expected, self.batch_size))
    }
}

impl DiffusionConfig {
    /// The weight of the loss at a time.
    pub(crate) fn weight(&self, schedule: &Schedule, time: f32) -> f32 {
        match self.min_snr_gamma {
            Some(gamma) => schedule.min_snr_weight(time, gamma as f32),
            None if self.p2_weighting => schedule.p2_weight(time, self.p2_k),
            None => 1.0,
        }
    }

    /// Checks every value; `part` names the stage.
    fn validate(&self, part: &'static str) -> Result<(), ConfigError> {
        if u32::try_from(self.cached_scenes).is_err() {
            let expected = format!("at most {}", u32::MAX);
            return Err(ConfigError::new(part, "cached_scenes", expected, self.cached_scenes));
        }
        share(part, "caption_drop", self.caption_drop)?;
        share(part, "unknown_words", self.unknown_words)?;
        time_shift(part, self.time_shift)?;
        if let Some(gamma) = self.min_snr_gamma {
            positive(part, "min_snr_gamma", gamma)?;
            if self.p2_weighting {
                let expected = "left out with p2_weighting, whose weights it replaces";
                return Err(ConfigError::new(part, "min_snr_gamma", expected, gamma));
            }
        }
        not_negative(part, "p2_k", self.p2_k.into())
    }
}

impl StageAConfig {
    /// Checks every value, with pictures of `image_size` pixels a side that may be drawn with up to `max_side` pixels a
    /// side.
    pub(super) fn validate(&self, image_size: usize, max_side: usize) -> Result<(), ConfigError> {
        const PART: &str = "stage a";
        self.updates.validate(PART)?;
        share(PART, "quantized", self.quantized)?;
        not_negative(PART, "edge_loss", self.edge_loss)?;
        let most = max_side / image_size.max(1);
        if !(1..=most.max(1)).contains(&self.max_zoom) {
            let expected =
                format!("between 1 and {most}, for pictures of at most {max_side} pixels");
            return Err(ConfigError::new(PART, "max_zoom", expected, self.max_zoom));
        }
        not_negative(PART, "perceptual_loss", self.perceptual_loss)?;
        let is_perceptual = self.perceptual_loss > 0.0;
        if is_perceptual == self.perceptual_weights.is_empty() {
            let expected = if is_perceptual {
                "files with the weights of LPIPS, which perceptual_loss needs"
            } else {
                "none without a perceptual_loss"
            };
            let found = format!("{:?}", self.perceptual_weights);
            return Err(ConfigError::new(PART, "perceptual_weights", expected, found));
        }
        if let Some(codebook) = &self.codebook {
            if self.freeze_encoder {
                let expected = "left out with freeze_encoder, which keeps the codes";
                return Err(ConfigError::new(PART, "codebook", expected, "a table"));
            }
            below_one(PART, "codebook.decay", codebook.decay)?;
            below_one(PART, "codebook.revive_below", codebook.revive_below)?;
        }
        self.adversarial.as_ref().map_or(Ok(()), |config| config.validate(image_size))
    }
}

impl AdversarialConfig {
    /// Checks every value, with pictures of `image_size` pixels a side.
    fn validate(&self, image_size: usize) -> Result<(), ConfigError> {
        const PART: &str = "stage a";
        positive(PART, "adversarial.weight", self.weight)?;
        learning_rate(PART, "adversarial.learning_rate", self.learning_rate)?;
        positive(PART, "adversarial.max_grad_norm", self.max_grad_norm)?;
        below_one(PART, "adversarial.beta1", self.beta1)?;
        below_one(PART, "adversarial.beta2", self.beta2)?;
        for (field, value, most) in [
            ("adversarial.channels", self.channels, MAX_CHANNELS),
            ("adversarial.layers", self.layers, MAX_LAYERS),
        ] {
            if !(1..=most).contains(&value) {
                let expected = format!("between 1 and {most}");
                return Err(ConfigError::new(PART, field, expected, value));
            }
        }
        // Each of the last two convolutions makes both sides a pixel shorter, and at least one verdict has to be left.
        let side = 3 << self.layers;
        if image_size < side {
            let expected = format!("fewer, as pictures of {image_size} pixels are below {side}");
            return Err(ConfigError::new(PART, "adversarial.layers", expected, self.layers));
        }
        Ok(())
    }
}

impl StageBConfig {
    /// Checks every value.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        const PART: &str = "stage b";
        self.updates.validate(PART)?;
        self.diffusion.validate(PART)?;
        share(PART, "embedding_drop", self.embedding_drop)?;
        share(PART, "embedding_noise", self.embedding_noise)?;
        let left = 1.0 - self.embedding_drop;
        if self.embedding_noise > left {
            let expected = format!("at most {left}, what embedding_drop leaves");
            return Err(ConfigError::new(PART, "embedding_noise", expected, self.embedding_noise));
        }
        not_negative(PART, "text_loss", self.text_loss)
    }
}

impl StageCConfig {
    /// Checks every value.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        const PART: &str = "stage c";
        self.updates.validate(PART)?;
        self.diffusion.validate(PART)?;
        let DiffusionConfig { p2_weighting, min_snr_gamma, .. } = self.diffusion;
        if self.adaptive_weighting && (p2_weighting || min_snr_gamma.is_some()) {
            let expected = "false with p2_weighting or min_snr_gamma, whose weights it replaces";
            return Err(ConfigError::new(PART, "adaptive_weighting", expected, true));
        }
        not_negative(PART, "text_loss", self.text_loss)
    }
}
