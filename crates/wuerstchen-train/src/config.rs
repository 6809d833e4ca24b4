//! The config of a training run, one TOML file.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wuerstchen::pipeline::MAX_SIDE;
use wuerstchen::{
    CompressorConfig, ConfigError, DecoderConfig, Defaults, PartConfig, PriorConfig, Schedule,
    TextEncoderConfig, VqganConfig,
};

use crate::limits::{not_negative, positive, share};
use crate::optimizer::OptimizerConfig;
use crate::shapes::Lesson;
use crate::tokenizer::MIN_VOCAB_SIZE;

/// One training run of the three stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the model.
    pub name: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Side of the training pictures in pixels.
    pub image_size: usize,
    /// The corpus.
    #[serde(default)]
    pub corpus: CorpusConfig,
    /// The sizes of the models.
    pub model: ModelConfig,
    /// Training of Stage A.
    pub a: StageConfig,
    /// Training of Stage B and the semantic compressor.
    pub b: StageConfig,
    /// Training of Stage C.
    pub c: StageConfig,
    /// The defaults of the trained model, for options that a caller leaves out.
    pub defaults: Defaults,
}

/// The corpora whose pictures are drawn on the fly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scenes {
    /// Plain shapes.
    Shapes,
    /// Emoji, drawn from art that a script fetches.
    Emoji,
}

impl FromStr for Scenes {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "shapes" => Ok(Self::Shapes),
            "emoji" => Ok(Self::Emoji),
            other => Err(format!("expected shapes or emoji, found {other:?}")),
        }
    }
}

/// The corpus of a run: drawn scenes, or a folder of pictures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorpusConfig {
    /// Which scenes are drawn, if no folder is given.
    pub scenes: Scenes,
    /// The folder with the art of [`Scenes::Emoji`]; by default the one that `models/fetch_emoji.sh`
    /// fills.
    pub art: Option<PathBuf>,
    /// A folder of captioned pictures, relative to the current one.
    pub folder: Option<PathBuf>,
    /// The largest number of tokens of the tokenizer that is learnt from the folder's captions.
    pub vocab_size: usize,
    /// The licence of the trained weights. It depends on the pictures, so that only the user knows it.
    pub licence: String,
}

impl Default for CorpusConfig {
    fn default() -> Self {
        Self {
            scenes: Scenes::Shapes,
            art: None,
            folder: None,
            vocab_size: 4096,
            licence: String::new(),
        }
    }
}

impl CorpusConfig {
    /// The licence of weights that were trained on this corpus.
    pub fn licence(&self) -> &str {
        match (&self.folder, self.scenes) {
            (Some(_), _) => &self.licence,
            (None, Scenes::Shapes) => "MIT OR Apache-2.0",
            (None, Scenes::Emoji) => {
                "MIT OR Apache-2.0; learnt from Noto Emoji (Apache-2.0), Fluent Emoji (MIT) and \
                 Twemoji (Copyright Twitter, Inc and other contributors, CC-BY-4.0)"
            }
        }
    }

    /// A description for the model's card.
    pub fn describe(&self) -> &'static str {
        match (&self.folder, self.scenes) {
            (Some(_), _) => "a folder of pictures",
            (None, Scenes::Shapes) => "the built-in corpus `shapes`",
            (None, Scenes::Emoji) => "the corpus `emoji`",
        }
    }
}

/// The sizes of the models, with the published field names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Length of every prompt in tokens.
    pub max_tokens: usize,
    /// Stage A.
    pub vqgan: VqganConfig,
    /// The semantic compressor.
    pub compressor: CompressorConfig,
    /// Side of the pictures that the compressor sees, in pixels; training pictures are scaled to it. By
    /// default it is `image_size`. If a model for larger pictures sees them at the size of a smaller model,
    /// both have the same image embeddings, and the larger model can take over the smaller one's Stage C.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressor_side: Option<usize>,
    /// Stage B.
    pub decoder: DecoderConfig,
    /// Stage B's text encoder.
    pub decoder_text: TextSize,
    /// Stage C.
    pub prior: PriorConfig,
    /// Stage C's text encoder.
    pub prior_text: TextSize,
    /// The noise schedule of both diffusion stages.
    #[serde(default)]
    pub schedule: Schedule,
    /// The factor from Stage C's latents to image embeddings (`latent_mean` of the published pipeline). By
    /// default it is twice the standard deviation of the embeddings, which the run measures. The factor
    /// makes the latents small beside the noise: many values of an embedding tell the same fact, such as
    /// where an object lies, and together they would show it through noise of their own size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_scale: Option<f64>,
}

/// The sizes of a text encoder; its vocabulary follows from the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSize {
    /// Width of the model.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
}

impl TextSize {
    /// The config of the text encoder for a vocabulary and a prompt length.
    pub fn encoder(self, vocab_size: usize, length: usize) -> TextEncoderConfig {
        TextEncoderConfig {
            hidden_size: self.hidden_size,
            intermediate_size: 4 * self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            max_position_embeddings: length,
            vocab_size,
            layer_norm_eps: 1e-5,
            hidden_act: "gelu".into(),
        }
    }
}

/// How one stage is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Number of updates.
    pub steps: u64,
    /// Pictures in every update.
    pub batch_size: usize,
    /// Number of threads that each compute an equal share of the batch's gradients; on a CPU best the number
    /// of cores. Batch norms then see the statistics of a share.
    #[serde(default = "one")]
    pub shards: usize,
    /// Number of distinct scenes whose latents are computed once and kept; with 0, every scene is new.
    #[serde(default)]
    pub cached_scenes: usize,
    /// Steps between sample grids.
    pub sample_every: u64,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// What the scenes of `shapes` show; by default the whole corpus.
    #[serde(default)]
    pub lesson: Lesson,
    /// Probability that a sample's caption is dropped, for guidance.
    #[serde(default)]
    pub caption_drop: f64,
    /// Probability that a word of a drawn corpus is replaced by the unknown one.
    #[serde(default)]
    pub unknown_words: f64,
    /// Stage A: probability that a step decodes quantised latents.
    #[serde(default)]
    pub quantized: f64,
    /// Stage A: weight of the absolute error of the differences between neighbouring pixels, which keeps
    /// edges sharp.
    #[serde(default)]
    pub edge_loss: f64,
    /// Stage A: every picture is drawn larger by a random whole factor up to this one, and a square of the
    /// training size is cut out of it; 1 takes pictures whole. Crops teach the details of larger pictures.
    #[serde(default = "one")]
    pub max_zoom: usize,
    /// Stage B: probability that a sample's image embedding is zero.
    #[serde(default)]
    pub embedding_drop: f64,
    /// Stage B: probability that a sample's image embedding is noised.
    #[serde(default)]
    pub embedding_noise: f64,
    /// Stage B: does not train the compressor any further. Its embeddings can then be cached, and Stage C can
    /// be trained at the same time.
    #[serde(default)]
    pub freeze_compressor: bool,
    /// Stage C: weight of a second loss, which teaches the text encoder: the squared error of an image
    /// embedding that a linear layer predicts from the last text token alone. 0 turns it off.
    #[serde(default)]
    pub text_loss: f64,
    /// Whether the loss is weighted by the p2 weights of Choi et al. (arXiv 2204.00227).
    #[serde(default)]
    pub p2_weighting: bool,
    /// `k` of the p2 weights. The authors use 1; with a smaller `k`, noisier times count for more.
    #[serde(default = "authors_p2_k")]
    pub p2_k: f32,
}

impl StageConfig {
    /// `k` of the p2 weights; `None` if the loss is not weighted.
    pub fn p2_k(&self) -> Option<f32> {
        self.p2_weighting.then_some(self.p2_k)
    }

    /// Checks every value; `part` names the stage.
    fn validate(&self, part: &'static str) -> Result<(), ConfigError> {
        let (batch, shards) = (self.batch_size, self.shards);
        if batch == 0 || shards == 0 || batch % shards != 0 {
            let expected = format!("a positive multiple of shards = {shards}");
            return Err(ConfigError::new(part, "batch_size", expected, batch));
        }
        if self.sample_every == 0 {
            return Err(ConfigError::new(part, "sample_every", "at least 1", 0));
        }
        if self.max_zoom == 0 {
            return Err(ConfigError::new(part, "max_zoom", "at least 1", 0));
        }
        self.optimizer.validate(part)?;
        let Lesson { two_objects, plain_relations, first_leads } = self.lesson;
        share(part, "lesson.two_objects", two_objects.into())?;
        share(part, "lesson.plain_relations", plain_relations.into())?;
        share(part, "lesson.first_leads", first_leads.into())?;
        share(part, "caption_drop", self.caption_drop)?;
        share(part, "unknown_words", self.unknown_words)?;
        share(part, "quantized", self.quantized)?;
        share(part, "embedding_drop", self.embedding_drop)?;
        share(part, "embedding_noise", self.embedding_noise)?;
        not_negative(part, "edge_loss", self.edge_loss)?;
        not_negative(part, "text_loss", self.text_loss)?;
        not_negative(part, "p2_k", self.p2_k.into())
    }
}

fn one() -> usize {
    1
}

fn authors_p2_k() -> f32 {
    1.0
}

impl TrainConfig {
    /// Checks that the parts fit each other and the architecture.
    ///
    /// # Errors
    ///
    /// Names the first field that cannot be used and what it needs.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.model.vqgan.validate()?;
        self.model.compressor.validate()?;
        self.model.decoder.validate()?;
        self.model.prior.validate()?;
        self.model.decoder_text.encoder(1, self.model.max_tokens).validate()?;
        self.model.prior_text.encoder(1, self.model.max_tokens).validate()?;
        let expect = |part, field, expected: usize, found: usize| match expected == found {
            true => Ok(()),
            false => Err(ConfigError::new(part, field, expected, found)),
        };
        let model = &self.model;
        let (decoder, prior) = (&model.decoder, &model.prior);
        expect("decoder", "c_in", model.vqgan.latent_channels, decoder.c_in)?;
        expect("decoder", "c_out", model.vqgan.latent_channels, decoder.c_out)?;
        expect("decoder", "effnet_embd", model.compressor.c_latent, decoder.effnet_embd)?;
        expect("decoder", "clip_embd", model.decoder_text.hidden_size, decoder.clip_embd)?;
        expect("prior", "c_in", model.compressor.c_latent, prior.c_in)?;
        expect("prior", "c_cond", model.prior_text.hidden_size, prior.c_cond)?;
        if let Some(scale) = model.embedding_scale {
            positive("training", "embedding_scale", scale)?;
        }
        self.validate_corpus()?;
        self.a.validate("stage a")?;
        self.b.validate("stage b")?;
        self.c.validate("stage c")?;
        if self.image_size > MAX_SIDE {
            let expected = format!("at most {MAX_SIDE}");
            return Err(ConfigError::new("training", "image_size", expected, self.image_size));
        }
        let compressed = model.compressor.downscale();
        let side = self.compressor_side();
        if side == 0 || !side.is_multiple_of(compressed) {
            let expected = format!("a multiple of {compressed}");
            let field = model.compressor_side.map_or("image_size", |_| "compressor_side");
            return Err(ConfigError::new("training", field, expected, side));
        }
        let latents = model.vqgan.downscale() * decoder.size_multiple();
        let mut multiples = (1..).map(|i| i * latents);
        let multiple = multiples
            .find(|multiple| multiple.is_multiple_of(self.embedding_side()))
            .expect("one of the first as many as the embedding has cells");
        if self.image_size == 0 || !self.image_size.is_multiple_of(multiple) {
            let expected = format!("a multiple of {multiple}");
            return Err(ConfigError::new("training", "image_size", expected, self.image_size));
        }
        self.validate_defaults()
    }

    /// Checks that the model can make what its defaults say. The sizes of the model were checked before.
    fn validate_defaults(&self) -> Result<(), ConfigError> {
        let Defaults { width, height, prior_steps, decoder_steps, .. } = self.defaults;
        // Pixels of a cell of the image embedding, and of the smallest piece of Stage B's latents.
        let cell = self.image_size / self.embedding_side();
        let piece = self.model.vqgan.downscale() * self.model.decoder.size_multiple();
        for (field, side) in [("width", width), ("height", height)] {
            let fits = side.is_multiple_of(cell) && side.is_multiple_of(piece);
            if !fits || !(1..=MAX_SIDE).contains(&side) {
                let expected = format!("a multiple of {cell} and of {piece}, at most {MAX_SIDE}");
                return Err(ConfigError::new("defaults", field, expected, side));
            }
        }
        for (field, steps) in [("prior_steps", prior_steps), ("decoder_steps", decoder_steps)] {
            if !(1..=1000).contains(&steps) {
                return Err(ConfigError::new("defaults", field, "between 1 and 1000", steps));
            }
        }
        let Defaults { prior_guidance_scale, decoder_guidance_scale, .. } = self.defaults;
        not_negative("defaults", "prior_guidance_scale", prior_guidance_scale)?;
        not_negative("defaults", "decoder_guidance_scale", decoder_guidance_scale)
    }

    /// Side of the pictures that the compressor sees, in pixels.
    pub fn compressor_side(&self) -> usize {
        self.model.compressor_side.unwrap_or(self.image_size)
    }

    /// Side of the image embeddings of the training pictures.
    pub fn embedding_side(&self) -> usize {
        self.compressor_side() / self.model.compressor.downscale()
    }

    /// Checks that a folder is not combined with settings that only drawn corpora have.
    fn validate_corpus(&self) -> Result<(), ConfigError> {
        let is_folder = self.corpus.folder.is_some();
        for stage in [&self.a, &self.b, &self.c] {
            if stage.lesson != Lesson::default()
                && (is_folder || self.corpus.scenes != Scenes::Shapes)
            {
                let found = format!("{:?}", stage.lesson);
                let expected = "none but with scenes of shapes";
                return Err(ConfigError::new("training", "lesson", expected, found));
            }
        }
        if !is_folder {
            return Ok(());
        }
        let found = self.corpus.vocab_size;
        if found < MIN_VOCAB_SIZE {
            let expected = format!("at least {MIN_VOCAB_SIZE}");
            return Err(ConfigError::new("training", "vocab_size", expected, found));
        }
        for stage in [&self.a, &self.b, &self.c] {
            if stage.unknown_words > 0.0 {
                let expected = "0 with a folder, whose tokenizer splits words it does not know";
                let found = stage.unknown_words;
                return Err(ConfigError::new("training", "unknown_words", expected, found));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOKE: &str = include_str!("../../../configs/smoke.toml");

    #[test]
    fn released_configs_are_valid() {
        for text in [
            SMOKE,
            include_str!("../../../configs/shapes.toml"),
            include_str!("../../../configs/pictures.toml"),
            include_str!("../../../configs/emoji.toml"),
            include_str!("../../../configs/emoji-128.toml"),
        ] {
            let config: TrainConfig = toml::from_str(text).unwrap();
            assert_eq!(config.validate(), Ok(()), "{}", config.name);
        }
    }

    /// The smoke config's cells of the embedding have 16 pixels, its pieces of latents 16.
    #[test]
    fn values_that_cannot_be_used_are_named() {
        type Change = fn(&mut TrainConfig);
        let changes: [(Change, &str); 22] = [
            (|config| config.image_size = 8192, "training config: image_size must be at most 4096"),
            (|config| config.a.sample_every = 0, "stage a config: sample_every must be at least 1"),
            (|config| config.a.quantized = 1.5, "quantized must be a share from 0 to 1, got 1.5"),
            (|config| config.a.edge_loss = -1.0, "edge_loss must be a number of at least 0"),
            (|config| config.b.caption_drop = -0.1, "stage b config: caption_drop"),
            (|config| config.b.unknown_words = f64::NAN, "unknown_words"),
            (|config| config.b.embedding_drop = 2.0, "embedding_drop"),
            (|config| config.b.embedding_noise = 2.0, "embedding_noise"),
            (|config| config.c.text_loss = f64::INFINITY, "stage c config: text_loss"),
            (|config| config.c.p2_k = -1.0, "p2_k"),
            (|config| config.c.optimizer.learning_rate = 0.0, "learning_rate must be a positive"),
            (|config| config.c.optimizer.beta1 = 1.0, "beta1 must be at least 0 and below 1"),
            (|config| config.c.optimizer.ema_beta = f64::NAN, "ema_beta"),
            (|config| config.c.optimizer.ema_every = 0, "ema_every must be at least 1, got 0"),
            (|config| config.c.optimizer.cooldown = 1.1, "cooldown"),
            (|config| config.c.optimizer.max_grad_norm = 0.0, "max_grad_norm"),
            (|config| config.c.optimizer.weight_decay = -0.1, "weight_decay"),
            (|config| config.defaults.width = 0, "width must be a multiple of 16 and of 16"),
            (|config| config.defaults.height = 40, "defaults config: height"),
            (|config| config.defaults.prior_steps = 0, "prior_steps must be between 1 and 1000"),
            (|config| config.defaults.decoder_steps = 1001, "decoder_steps"),
            (|config| config.defaults.decoder_guidance_scale = -1.0, "decoder_guidance_scale"),
        ];
        for (change, expected) in changes {
            let mut config: TrainConfig = toml::from_str(SMOKE).unwrap();
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(expected), "expected {expected:?}: {error}");
        }
    }
}
