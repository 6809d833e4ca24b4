//! The config of a training run, one TOML file.

mod decoder;
mod read;
mod shards;
mod stages;
mod tune;

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wuerstchen::card::LATENT_MEANS;
use wuerstchen::config::between;
use wuerstchen::pipeline::MAX_SIDE;
use wuerstchen::{
    CompressorConfig, ConfigError, Defaults, PartConfig, PriorConfig, Recipe, Schedule,
    TextEncoderConfig, VqganConfig,
};

pub use self::decoder::StageBModel;
pub use self::read::ReadConfigError;
pub use self::shards::{FilterConfig, ShardsConfig};
pub(crate) use self::stages::is_false;
pub use self::stages::{
    AdversarialConfig, CodebookConfig, DiffusionConfig, StageAConfig, StageBConfig, StageCConfig,
    UpdateConfig,
};
pub use self::tune::{
    LoraConfig, PicturesConfig, SamplesConfig, TuneConfig, TuneCorpusConfig, TuneUpdates, is_match,
};
use crate::lesson::Lesson;
use crate::limits::{folder_name, positive};
use crate::tokenizer::{MAX_VOCAB_SIZE, MIN_VOCAB_SIZE};

/// The tables of a model's parts, as errors name them.
const VQGAN: &str = "model.vqgan";
const DECODER: &str = "model.decoder";
const PRIOR: &str = "model.prior";

/// One training run of the three stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the model.
    pub name: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Side of the training pictures in pixels, 1 to 4096.
    pub image_size: usize,
    /// The power that the machine takes while it trains, in watts, for the energy in the run's report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watts: Option<f64>,
    /// The corpus.
    #[serde(default)]
    pub corpus: CorpusConfig,
    /// The sizes of the models.
    pub model: ModelConfig,
    /// Training of Stage A.
    pub a: StageAConfig,
    /// Training of Stage B and the semantic compressor.
    pub b: StageBConfig,
    /// Training of Stage C.
    pub c: StageCConfig,
    /// The defaults of the trained model, for options that a caller leaves out.
    pub defaults: Defaults,
}

/// One of the three stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageName {
    /// The VQGAN.
    A,
    /// The decoder, with the semantic compressor.
    B,
    /// The prior.
    C,
}

impl StageName {
    /// All stages in the order in which they are trained.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::C];

    /// The name of its table in the config: `a`, `b` or `c`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
        }
    }

    /// The name of the stage in errors of its config.
    pub(crate) fn part(self) -> &'static str {
        match self {
            Self::A => "stage a",
            Self::B => "stage b",
            Self::C => "stage c",
        }
    }
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

/// The corpus of a run: drawn scenes, a folder of pictures, or shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorpusConfig {
    /// Which scenes are drawn if there is neither a folder nor shards.
    pub scenes: Scenes,
    /// The folder with the art of [`Scenes::Emoji`]; by default the one that `models/fetch_emoji.sh`
    /// fills.
    pub art: Option<PathBuf>,
    /// A folder of captioned pictures, relative to the current folder.
    pub folder: Option<PathBuf>,
    /// `.tar` or Parquet shards of captioned pictures, in place of a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<ShardsConfig>,
    /// The largest number of tokens of the tokenizer that is learnt from the captions of pictures.
    pub vocab_size: usize,
    /// The licence of the trained weights. It depends on the pictures, so only the user knows it.
    pub licence: String,
}

impl Default for CorpusConfig {
    fn default() -> Self {
        Self {
            scenes: Scenes::Shapes,
            art: None,
            folder: None,
            shards: None,
            vocab_size: 4096,
            licence: String::new(),
        }
    }
}

impl CorpusConfig {
    /// Whether the corpus is the user's own pictures, in a folder or in shards.
    pub fn is_own(&self) -> bool {
        self.folder.is_some() || self.shards.is_some()
    }

    /// The licence of weights that were trained on this corpus.
    pub fn licence(&self) -> &str {
        match self.scenes {
            _ if self.is_own() => &self.licence,
            Scenes::Shapes => "MIT OR Apache-2.0",
            Scenes::Emoji => {
                "MIT OR Apache-2.0; learnt from Noto Emoji (Apache-2.0), Fluent Emoji (MIT) and \
                 Twemoji (Copyright Twitter, Inc and other contributors, CC-BY-4.0)"
            }
        }
    }

    /// A description for the model's card.
    pub fn describe(&self) -> &'static str {
        match self.scenes {
            _ if self.shards.is_some() => "shards of pictures",
            _ if self.folder.is_some() => "a folder of pictures",
            Scenes::Shapes => "the built-in corpus `shapes`",
            Scenes::Emoji => "the corpus `emoji`",
        }
    }
}

/// Most tokens of a prompt: the memory of attention grows with their square. Published models read 77.
const MAX_TOKENS: usize = 1024;

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
    /// default it is `image_size`. If the compressor of a model for larger pictures sees them at the size of a
    /// smaller model, both models have the same image embeddings, and the larger one can take over the smaller
    /// one's Stage C.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressor_side: Option<usize>,
    /// Stage B; the family of the model depends on what it denoises.
    pub decoder: StageBModel,
    /// Stage B's text encoder. Where Stage B denoises tokens, it equals `prior_text`: both stages then have one text
    /// encoder.
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

impl TrainConfig {
    /// Checks that the parts fit each other and the architecture.
    ///
    /// # Errors
    ///
    /// Names the first field that cannot be used and what it needs.
    pub fn validate(&self) -> Result<(), ConfigError> {
        folder_name("training", &self.name)?;
        let model = &self.model;
        let table = |part| move |error| ConfigError { part, ..error };
        model.vqgan.validate().map_err(table(VQGAN))?;
        model.compressor.validate().map_err(table("model.compressor"))?;
        model.decoder.validate().map_err(table(DECODER))?;
        model.prior.validate().map_err(table(PRIOR))?;
        let decoder_text = model.decoder_text.encoder(1, model.max_tokens);
        decoder_text.validate().map_err(table("model.decoder_text"))?;
        let prior_text = model.prior_text.encoder(1, model.max_tokens);
        prior_text.validate().map_err(table("model.prior_text"))?;
        for (field, channels) in
            [("in_channels", model.vqgan.in_channels), ("out_channels", model.vqgan.out_channels)]
        {
            if channels != 3 {
                let expected = "3, as pictures have red, green and blue";
                return Err(ConfigError::new(VQGAN, field, expected, channels));
            }
        }
        let expect = |part, field, (as_in, expected): (&str, usize), found: usize| {
            if expected == found {
                Ok(())
            } else {
                let expected = format!("{expected}, as model.{as_in} is");
                Err(ConfigError::new(part, field, expected, found))
            }
        };
        let (decoder, prior) = (&model.decoder, &model.prior);
        let c_latent = ("compressor.c_latent", model.compressor.c_latent);
        let text = ("decoder_text.hidden_size", model.decoder_text.hidden_size);
        match decoder {
            StageBModel::Latents(decoder) => {
                let latents = ("vqgan.latent_channels", model.vqgan.latent_channels);
                expect(DECODER, "c_in", latents, decoder.c_in)?;
                expect(DECODER, "c_out", latents, decoder.c_out)?;
                expect(DECODER, "effnet_embd", c_latent, decoder.effnet_embd)?;
                expect(DECODER, "clip_embd", text, decoder.clip_embd)?;
            }
            StageBModel::Tokens(decoder) => {
                let codes = ("vqgan.num_vq_embeddings", model.vqgan.num_vq_embeddings);
                expect(DECODER, "num_labels", codes, decoder.num_labels)?;
                expect(DECODER, "effnet_embd", c_latent, decoder.effnet_embd)?;
                expect(DECODER, "byt5_embd", text, decoder.byt5_embd)?;
                if model.decoder_text != model.prior_text {
                    let expected = "as prior_text: both stages have one text encoder";
                    let found = format!("{:?}", model.decoder_text);
                    return Err(ConfigError::new("model", "decoder_text", expected, found));
                }
            }
        }
        self.validate_losses()?;
        expect(PRIOR, "c_in", c_latent, prior.c_in)?;
        let text = ("prior_text.hidden_size", model.prior_text.hidden_size);
        expect(PRIOR, "c_cond", text, prior.c_cond)?;
        if let Some(scale) = model.embedding_scale {
            between("model", "embedding_scale", scale, LATENT_MEANS)?;
        }
        model.schedule.validate()?;
        if model.max_tokens > MAX_TOKENS {
            let expected = format!("at most {MAX_TOKENS}");
            return Err(ConfigError::new("model", "max_tokens", expected, model.max_tokens));
        }
        if let Some(watts) = self.watts {
            positive("training", "watts", watts)?;
        }
        if self.image_size > MAX_SIDE {
            let expected = format!("at most {MAX_SIDE}");
            return Err(ConfigError::new("training", "image_size", expected, self.image_size));
        }
        self.validate_corpus()?;
        self.a.validate(self.image_size, MAX_SIDE)?;
        self.b.validate()?;
        self.c.validate()?;
        for stage in StageName::ALL {
            self.updates(stage).validate_pixels(stage.part(), self.image_size)?;
        }
        let compressed = model.compressor.downscale();
        let side = self.compressor_side();
        if side == 0 || !side.is_multiple_of(compressed) {
            let expected = format!("a multiple of {compressed}");
            let (part, field) = match model.compressor_side {
                Some(_) => ("model", "compressor_side"),
                None => ("training", "image_size"),
            };
            return Err(ConfigError::new(part, field, expected, side));
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

    /// Checks that the settings of every stage's loss fit its model.
    fn validate_losses(&self) -> Result<(), ConfigError> {
        let has_tokens = self.model.decoder.has_tokens();
        if has_tokens && self.b.diffusion.p2_weighting {
            let expected = "false where Stage B denoises tokens, whose loss has no such weights";
            return Err(ConfigError::new("stage b", "p2_weighting", expected, true));
        }
        if let Some(gamma) = self.b.diffusion.min_snr_gamma.filter(|_| has_tokens) {
            let expected = "left out where Stage B denoises tokens, whose loss has no such weights";
            return Err(ConfigError::new("stage b", "min_snr_gamma", expected, gamma));
        }
        // The text encoder is trained with one of the stages.
        let (part, expected, loss) = if has_tokens {
            ("stage c", "0 where the text encoder is trained with Stage B", self.c.text_loss)
        } else {
            ("stage b", "0 but where Stage B denoises tokens", self.b.text_loss)
        };
        if loss > 0.0 {
            return Err(ConfigError::new(part, "text_loss", expected, loss));
        }
        Ok(())
    }

    /// Checks that the model can make pictures with its default options. The sizes of the model were checked before.
    fn validate_defaults(&self) -> Result<(), ConfigError> {
        let Defaults { width, height, .. } = self.defaults;
        // Side in pixels of a cell of the image embedding, and of the smallest piece of Stage B's latents.
        let cell = self.image_size / self.embedding_side();
        let piece = self.model.vqgan.downscale() * self.model.decoder.size_multiple();
        for (field, side) in [("width", width), ("height", height)] {
            let fits = side.is_multiple_of(cell) && side.is_multiple_of(piece);
            if !fits || !(1..=MAX_SIDE).contains(&side) {
                let multiple =
                    if cell == piece { cell.to_string() } else { format!("{cell} and of {piece}") };
                let expected = format!("a multiple of {multiple}, at most {MAX_SIDE}");
                return Err(ConfigError::new("defaults", field, expected, side));
            }
        }
        self.defaults.validate()?;
        let Defaults { recipe, prior_shift, decoder_shift, tokens, .. } = &self.defaults;
        let has_tokens = self.model.decoder.has_tokens();
        if tokens.is_some() && !has_tokens {
            let expected = "left out where Stage B denoises latents";
            return Err(ConfigError::new("defaults", "tokens", expected, "a table"));
        }
        // With the authors' recipe, the network is told a time that fits any shift.
        let trained = self.model.schedule.shift;
        let shifts = [("prior_shift", *prior_shift), ("decoder_shift", *decoder_shift)];
        let shifts = &shifts[..if has_tokens { 1 } else { 2 }];
        let other = shifts.iter().find(|(_, shift)| *shift != trained);
        if let (Recipe::Diffusers, Some((field, shift))) = (recipe, other) {
            let expected = format!("{trained}, as model.schedule.shift is");
            return Err(ConfigError::new("defaults", field, expected, shift));
        }
        Ok(())
    }

    /// The updates of a stage.
    pub fn updates(&self, stage: StageName) -> &UpdateConfig {
        match stage {
            StageName::A => &self.a.updates,
            StageName::B => &self.b.updates,
            StageName::C => &self.c.updates,
        }
    }

    /// Whether Stage B reads image embeddings that its training does not change.
    pub(crate) fn b_has_fixed_embeddings(&self) -> bool {
        self.b.freeze_compressor && self.model.decoder.takes_embedding()
    }

    /// Whether a stage starts from existing weights and keeps some of them frozen.
    pub(crate) fn is_frozen_in_part(&self, stage: StageName) -> bool {
        match stage {
            StageName::A => self.a.freeze_encoder,
            StageName::B => self.b.freeze_compressor,
            StageName::C => false,
        }
    }

    /// Side of the pictures that the compressor sees, in pixels.
    pub fn compressor_side(&self) -> usize {
        self.model.compressor_side.unwrap_or(self.image_size)
    }

    /// Side of the image embeddings of the training pictures.
    pub fn embedding_side(&self) -> usize {
        self.compressor_side() / self.model.compressor.downscale()
    }

    /// Channels, height and width of the image embeddings of the training pictures.
    pub fn embedding_shape(&self) -> [usize; 3] {
        let side = self.embedding_side();
        [self.model.compressor.c_latent, side, side]
    }

    /// Checks the corpus, and that no stage has a setting that does not fit it.
    fn validate_corpus(&self) -> Result<(), ConfigError> {
        let is_own = self.corpus.is_own();
        if let Some(shards) = &self.corpus.shards {
            shards.validate()?;
            if self.corpus.folder.is_some() {
                let found = "both";
                return Err(ConfigError::new("training", "corpus", "a folder or shards", found));
            }
        }
        for stage in StageName::ALL {
            let lesson = self.updates(stage).lesson;
            let Lesson { tinted, plain_relations, first_leads, .. } = lesson;
            let no_value = |field, reason: &str| {
                let expected = format!("left out: {reason}");
                Err(ConfigError::new(stage.part(), field, expected, "a value"))
            };
            let is_of_emoji = self.corpus.scenes == Scenes::Emoji;
            if is_own && lesson != Lesson::default() {
                return no_value("lesson", "only a built-in corpus has lessons");
            } else if !is_of_emoji && tinted.is_some() {
                return no_value("lesson.tinted", "only scenes of emoji are tinted");
            } else if is_of_emoji && plain_relations != 0.0 {
                return no_value("lesson.plain_relations", "only scenes of shapes have it");
            } else if is_of_emoji && first_leads != 0.0 {
                return no_value("lesson.first_leads", "only scenes of shapes have it");
            }
        }
        let least = crate::shapes::MIN_SIDE as usize;
        if !is_own && self.corpus.scenes == Scenes::Shapes && self.image_size < least {
            let expected = format!("at least {least} with scenes of shapes");
            return Err(ConfigError::new("training", "image_size", expected, self.image_size));
        }
        if !is_own {
            return Ok(());
        }
        let found = self.corpus.vocab_size;
        if !(MIN_VOCAB_SIZE..=MAX_VOCAB_SIZE).contains(&found) {
            let expected = format!("from {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE}");
            return Err(ConfigError::new("corpus", "vocab_size", expected, found));
        }
        for (part, stage) in [("stage b", &self.b.diffusion), ("stage c", &self.c.diffusion)] {
            if stage.unknown_words > 0.0 {
                let expected = "0 with pictures, whose tokenizer splits words it does not know";
                let found = stage.unknown_words;
                return Err(ConfigError::new(part, "unknown_words", expected, found));
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
            include_str!("../../../configs/shapes-latent-diffusion.toml"),
            include_str!("../../../configs/shapes-v1.toml"),
            include_str!("../../../models/shapes.config.toml"),
        ] {
            let config = TrainConfig::from_toml(text).unwrap();
            assert_eq!(config.validate(), Ok(()), "{}", config.name);
        }
    }

    /// The smoke config's cells of the embedding have 16 pixels, its pieces of latents 16.
    #[test]
    fn values_that_cannot_be_used_are_named() {
        type Change = fn(&mut TrainConfig);
        let changes: [(Change, &str); 56] = [
            (
                |config| config.image_size = 16,
                "image_size must be at least 32 with scenes of shapes",
            ),
            (|config| config.image_size = 8192, "training config: image_size must be at most 4096"),
            (
                |config| config.a.updates.sample_every = 0,
                "stage a config: sample_every must be at least 1",
            ),
            (|config| config.name = "..".into(), "name must be the name of a folder"),
            (|config| config.model.schedule.s = f64::NAN, "schedule config: s must be from 0 to 1"),
            (
                |config| config.model.schedule.scaler = f64::INFINITY,
                "scaler must be from 0.01 to 100",
            ),
            (|config| config.model.schedule.shift = 0.0, "shift must be from 0.01 to 100, got 0"),
            (
                |config| config.defaults.prior_shift = f64::NAN,
                "prior_shift must be from 0.01 to 100",
            ),
            (
                |config| config.model.vqgan.embed_dim = 1 << 30,
                "embed_dim must be from 1 to 1048576",
            ),
            (|config| config.model.max_tokens = 1025, "max_tokens must be at most 1024, got 1025"),
            (
                |config| config.a.updates.batch_size = 1 << 17,
                "batch_size must be at most 65536 with pictures of 32 x 32 pixels",
            ),
            (
                |config| {
                    let shards = config.corpus.shards.get_or_insert_default();
                    shards.paths = vec!["a.tar".into()];
                    shards.filter.max_unsafe = Some(f64::INFINITY);
                },
                "filter.max_unsafe must be a finite number, or left out, got inf",
            ),
            (
                |config| {
                    let shards = config.corpus.shards.get_or_insert_default();
                    shards.paths = vec!["a.tar".into()];
                    shards.filter.min_aesthetic = Some(f64::NAN);
                },
                "filter.min_aesthetic must be a finite number, or left out, got NaN",
            ),
            (
                |config| config.name = "a/b".into(),
                r#"name must be the name of a folder, without separators, got "a/b""#,
            ),
            (
                |config| config.a.updates.steps = 0,
                "stage a config: steps must be at least 1, got 0",
            ),
            (
                |config| config.b.updates.shards = 0,
                "stage b config: shards must be at least 1, got 0",
            ),
            (|config| config.b.updates.data_threads = 0, "data_threads must be at least 1, got 0"),
            (
                |config| config.b.updates.shards_at_once = Some(0),
                "shards_at_once must be from 1 to shards = 1, or left out, got 0",
            ),
            (
                |config| config.c.updates.batch_size = 0,
                "batch_size must be a positive multiple of shards = 1",
            ),
            (
                |config| config.a.max_zoom = 129,
                "stage a config: max_zoom must be between 1 and 128",
            ),
            (
                |config| config.b.embedding_noise = 0.96,
                "embedding_noise must be at most 0.95, what",
            ),
            (
                |config| config.c.diffusion.cached_scenes = 1 << 32,
                "cached_scenes must be at most 4294967295",
            ),
            (|config| config.a.quantized = 1.5, "quantized must be a share from 0 to 1, got 1.5"),
            (|config| config.a.edge_loss = -1.0, "edge_loss must be a number of at least 0"),
            (|config| config.b.diffusion.caption_drop = -0.1, "stage b config: caption_drop"),
            (|config| config.b.diffusion.unknown_words = f64::NAN, "unknown_words"),
            (|config| config.b.embedding_drop = 2.0, "embedding_drop"),
            (|config| config.b.embedding_noise = 2.0, "embedding_noise"),
            (|config| config.c.text_loss = f64::INFINITY, "stage c config: text_loss"),
            (|config| config.watts = Some(0.0), "training config: watts"),
            (
                |config| config.model.vqgan.in_channels = 4,
                "model.vqgan config: in_channels must be 3, as pictures have red, green and blue, got 4",
            ),
            (|config| config.model.vqgan.out_channels = 1, "out_channels must be 3"),
            (
                |config| config.model.embedding_scale = Some(1e30),
                "model config: embedding_scale must be from 0.000001 to 1000000, got 1",
            ),
            (
                |config| config.c.updates.optimizer.learning_rate = 1e-320,
                "learning_rate must be a positive",
            ),
            (|config| config.c.diffusion.p2_k = -1.0, "p2_k"),
            (|config| config.b.diffusion.time_shift = 0.0, "time_shift"),
            (|config| config.c.diffusion.time_shift = 101.0, "time_shift"),
            (|config| config.c.updates.shards_at_once = Some(9), "shards_at_once"),
            (
                |config| config.c.updates.optimizer.learning_rate = 0.0,
                "learning_rate must be a positive",
            ),
            (
                |config| config.c.updates.optimizer.learning_rate = 1e30,
                "learning_rate must be a positive number of at most 1, got 1000000000000000000",
            ),
            (
                |config| config.c.updates.optimizer.beta1 = 1.0,
                "beta1 must be at least 0 and below 1",
            ),
            (|config| config.c.updates.optimizer.ema_beta = f64::NAN, "ema_beta"),
            (
                |config| config.c.updates.optimizer.ema_every = 0,
                "ema_every must be at least 1, got 0",
            ),
            (|config| config.c.updates.optimizer.cooldown = 1.1, "cooldown"),
            (|config| config.c.updates.optimizer.max_grad_norm = 0.0, "max_grad_norm"),
            // In f32 it is 0.
            (|config| config.c.updates.optimizer.epsilon = 1e-300, "epsilon must be a positive"),
            (|config| config.c.updates.optimizer.weight_decay = -0.1, "weight_decay"),
            (
                |config| config.c.updates.optimizer.weight_decay = 1e6,
                "weight_decay must be at most 1 / learning_rate",
            ),
            (|config| config.defaults.width = 0, "width must be a multiple of 16, at most"),
            (|config| config.defaults.height = 40, "defaults config: height"),
            (|config| config.defaults.prior_steps = 0, "prior_steps must be from 1 to 1000"),
            (|config| config.defaults.decoder_shift = 2.0, "1, as model.schedule.shift is, got 2"),
            (|config| config.model.schedule.shift = 2.0, "prior_shift must be 2, as model"),
            (|config| config.defaults.tokens = Some(Default::default()), "tokens must be left out"),
            (|config| config.defaults.decoder_steps = 1001, "decoder_steps"),
            (|config| config.defaults.decoder_guidance_scale = -1.0, "decoder_guidance_scale"),
        ];
        for (change, expected) in changes {
            let mut config = TrainConfig::from_toml(SMOKE).unwrap();
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(expected), "expected {expected:?}: {error}");
        }
    }
}
