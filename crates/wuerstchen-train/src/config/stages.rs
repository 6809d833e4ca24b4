//! How each stage is trained.

use serde::{Deserialize, Serialize};
use wuerstchen::ConfigError;

use crate::limits::{at_least_one, not_negative, positive, share};
use crate::optimizer::OptimizerConfig;
use crate::shapes::Lesson;

/// The updates of a stage: what all three stages have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// Number of updates, at least 1.
    pub steps: u64,
    /// Pictures in every update.
    pub batch_size: usize,
    /// Number of equal shares of the batch, whose gradients are computed by a thread each, or by processes that
    /// train together; on a CPU best the number of cores. Batch norms then see the statistics of a share; all else
    /// stays the same up to rounding.
    #[serde(default = "one")]
    pub shards: usize,
    /// How many of these shares a process computes at a time, at least 1; all of its own if left out. Fewer take less
    /// memory, which is also called gradient accumulation, and the results have the same bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards_at_once: Option<usize>,
    /// Number of threads that draw, decode and tokenise the next batches; each keeps one that is ready.
    /// Results do not depend on it.
    #[serde(default = "one")]
    pub data_threads: usize,
    /// Steps between sample grids, at least 1.
    pub sample_every: u64,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// What the scenes of `shapes` show; by default the whole corpus.
    #[serde(default)]
    pub lesson: Lesson,
}

/// What both diffusion stages have.
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
    /// `k` of the p2 weights. The authors use 1; with a smaller `k`, noisier times count for more.
    #[serde(default = "authors_p2_k")]
    pub p2_k: f32,
    /// Draws noisier times than the authors where it is above 1, as shifted schedules do (arXiv 2403.03206).
    #[serde(default = "unshifted")]
    pub time_shift: f32,
}

/// How Stage A is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageAConfig {
    /// Its updates.
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
}

/// How Stage B and the semantic compressor are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageBConfig {
    /// Its updates.
    #[serde(flatten)]
    pub updates: UpdateConfig,
    /// Its captions and its loss.
    #[serde(flatten)]
    pub diffusion: DiffusionConfig,
    /// Probability that a sample's image embedding is zero.
    #[serde(default)]
    pub embedding_drop: f64,
    /// Probability that a sample's image embedding is noised.
    #[serde(default)]
    pub embedding_noise: f64,
    /// Does not train the compressor any further. Its embeddings can then be cached, and Stage C can be
    /// trained at the same time.
    #[serde(default)]
    pub freeze_compressor: bool,
    /// As [`StageCConfig::text_loss`], where Stage B denoises tokens: the model's only text encoder is trained
    /// with Stage B then.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub text_loss: f64,
}

/// How Stage C is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageCConfig {
    /// Its updates.
    #[serde(flatten)]
    pub updates: UpdateConfig,
    /// Its captions and its loss.
    #[serde(flatten)]
    pub diffusion: DiffusionConfig,
    /// Weight of a second loss, which teaches the text encoder: the squared error of an image embedding that
    /// a linear layer predicts from the last text token alone. 0 turns it off.
    #[serde(default)]
    pub text_loss: f64,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// More threads than any machine has work for.
const MAX_THREADS: usize = 1024;

/// More pictures in an update than any machine has memory for.
const MAX_BATCH: usize = 1 << 20;

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
    /// How many of `own` shares a process computes at a time.
    pub(crate) fn at_once(&self, own: usize) -> usize {
        self.shards_at_once.unwrap_or(own).min(own)
    }

    /// Checks every value; `part` names the stage.
    pub(super) fn validate(&self, part: &'static str) -> Result<(), ConfigError> {
        at_least_one(part, "steps", self.steps)?;
        at_least_one(part, "sample_every", self.sample_every)?;
        at_least_one(part, "data_threads", self.data_threads as u64)?;
        let (batch, shards) = (self.batch_size, self.shards);
        at_least_one(part, "shards", shards as u64)?;
        at_least_one(part, "shards_at_once", self.shards_at_once.unwrap_or(1) as u64)?;
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
        let Lesson { two_objects, plain_relations, first_leads } = self.lesson;
        share(part, "lesson.two_objects", two_objects.into())?;
        share(part, "lesson.plain_relations", plain_relations.into())?;
        share(part, "lesson.first_leads", first_leads.into())
    }
}

impl DiffusionConfig {
    /// `k` of the p2 weights; `None` if the loss is not weighted.
    pub fn p2_k(&self) -> Option<f32> {
        self.p2_weighting.then_some(self.p2_k)
    }

    /// Checks every value; `part` names the stage.
    fn validate(&self, part: &'static str) -> Result<(), ConfigError> {
        if u32::try_from(self.cached_scenes).is_err() {
            let expected = format!("at most {}", u32::MAX);
            return Err(ConfigError::new(part, "cached_scenes", expected, self.cached_scenes));
        }
        share(part, "caption_drop", self.caption_drop)?;
        share(part, "unknown_words", self.unknown_words)?;
        positive(part, "time_shift", self.time_shift.into())?;
        not_negative(part, "p2_k", self.p2_k.into())
    }
}

impl StageAConfig {
    /// Checks every value, with pictures of `image_size` pixels that may be drawn up to `max_side` large.
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
        not_negative(PART, "text_loss", self.text_loss)
    }
}
