//! What a run trains, and the files of the trained model.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};
use wuerstchen::weights::{check_shapes, shapes};
use wuerstchen::{
    CARD, Checkpoint, Compressor, CompressorConfig, DecoderConfig, Defaults, LoadError, ModelCard,
    ModelFiles, Part, PartConfig, PriorConfig, TextEncoder, TextEncoderConfig, TokenDecoderConfig,
    Tokenizer, TokenizerFiles, Vqgan, VqganConfig,
};

use crate::config::{StageBModel, StageName, TrainConfig};
use crate::corpus::{Corpus, CorpusError, Samples};
use crate::stages::{DecoderModel, LevelErrors, PriorModel, TokenModel, VqganModel};

/// What a run trains: the sizes in its config, and the tokenizer of its captions.
pub struct Recipe {
    /// The run's config.
    pub config: TrainConfig,
    /// The tokenizer of both text encoders.
    pub tokenizer: TokenizerFiles,
    vocab_size: usize,
}

impl Recipe {
    /// A recipe whose text encoders know the tokens of `tokenizer`.
    ///
    /// # Errors
    ///
    /// A value of the config cannot be used, or the tokenizer cannot be made.
    pub fn new(config: TrainConfig, tokenizer: TokenizerFiles) -> Result<Self, LoadError> {
        config.validate()?;
        let vocab_size = Tokenizer::new(&tokenizer, config.model.max_tokens)?.id_count();
        Ok(Self { config, tokenizer, vocab_size })
    }

    /// The samples as the run's corpus: at its picture size, with captions split by its tokenizer.
    ///
    /// # Errors
    ///
    /// The tokenizer cannot be made.
    pub fn corpus(&self, samples: Arc<dyn Samples>) -> Result<Corpus, CorpusError> {
        let tokenizer = Tokenizer::new(&self.tokenizer, self.config.model.max_tokens)?;
        Corpus::new(samples, self.config.image_size, tokenizer)
    }

    /// The config of Stage B's text encoder.
    pub fn decoder_text(&self) -> TextEncoderConfig {
        self.config.model.decoder_text.encoder(self.vocab_size, self.config.model.max_tokens)
    }

    /// The config of Stage C's text encoder.
    pub fn prior_text(&self) -> TextEncoderConfig {
        self.config.model.prior_text.encoder(self.vocab_size, self.config.model.max_tokens)
    }

    /// Stage A and the networks that are trained beside it, with random weights.
    pub fn init_vqgan(&self, device: &Device) -> VqganModel {
        self.vqgan_model(self.config.model.vqgan.init(device), device)
    }

    /// A given Stage A, and the networks that are trained beside it, with random weights.
    pub(crate) fn vqgan_model(&self, vqgan: Vqgan, device: &Device) -> VqganModel {
        VqganModel::new(vqgan, &self.config.a, self.config.seed, device)
    }

    /// The model of a Stage B over latents as training starts it.
    ///
    /// # Panics
    ///
    /// Panics if the run's Stage B denoises tokens.
    pub fn init_decoder(&self, device: &Device) -> DecoderModel {
        DecoderModel {
            decoder: self.latent_decoder().init(device),
            text_encoder: self.decoder_text().init(device),
            compressor: self.config.model.compressor.init(device),
        }
    }

    /// The model of a Stage B over tokens as training starts it.
    ///
    /// # Panics
    ///
    /// Panics if the run's Stage B denoises latents.
    pub fn init_token_decoder(&self, device: &Device) -> TokenModel {
        TokenModel {
            decoder: self.token_decoder().init(device),
            text_encoder: self.prior_text().init(device),
            compressor: self.config.model.compressor.init(device),
            guess: self.guess(self.config.b.text_loss, device),
        }
    }

    fn latent_decoder(&self) -> &DecoderConfig {
        match &self.config.model.decoder {
            StageBModel::Latents(config) => config,
            StageBModel::Tokens(_) => panic!("this run's Stage B denoises tokens"),
        }
    }

    fn token_decoder(&self) -> &TokenDecoderConfig {
        match &self.config.model.decoder {
            StageBModel::Tokens(config) => config,
            StageBModel::Latents(_) => panic!("this run's Stage B denoises latents"),
        }
    }

    /// The layer that predicts the image embedding from the last text token, if that loss has a weight.
    fn guess(&self, weight: f64, device: &Device) -> Option<Linear> {
        let side = self.config.embedding_side();
        let values = self.config.model.prior.c_in * side * side;
        let width = self.config.model.prior_text.hidden_size;
        (weight > 0.0).then(|| LinearConfig::new(width, values).init(device))
    }

    /// Stage C's model as training starts it.
    pub fn init_prior(&self, device: &Device) -> PriorModel {
        let guess = self.guess(self.config.c.text_loss, device);
        PriorModel {
            prior: self.config.model.prior.init(device),
            text_encoder: self.prior_text().init(device),
            guess,
            levels: self.config.c.adaptive_weighting.then(|| LevelErrors::new(device)),
        }
    }

    /// The model of a run: its configs, the trained weights, and the starting weights of the stages
    /// that are not trained yet, so that samples can be drawn at any time.
    pub fn model_files(&self, trained: Weights, device: &Device) -> ModelFiles {
        let mut weights = vqgan_weights(&self.config.model.vqgan.init(device));
        weights.extend(match self.config.model.decoder {
            StageBModel::Latents(_) => decoder_weights(&self.init_decoder(device)),
            StageBModel::Tokens(_) => token_decoder_weights(&self.init_token_decoder(device)),
        });
        weights.extend(prior_weights(&self.init_prior(device)));
        weights.extend(trained);
        let decoder = &self.config.model.decoder;
        let own = |(part, weights)| (decoder.part(part), weights);
        ModelFiles { texts: self.texts(), weights: weights.into_iter().map(own).collect() }
    }

    /// The names and shapes of a part's parameters. It allocates none of them.
    fn shapes_of(&self, part: Part, device: &Device) -> Vec<(String, Vec<usize>)> {
        fn of<C: PartConfig>(config: &C, device: &Device) -> Vec<(String, Vec<usize>)> {
            shapes(&config.init(device), C::KEYS)
        }
        let model = &self.config.model;
        match &model.decoder {
            StageBModel::Latents(decoder) if part == Part::DECODER => of(decoder, device),
            StageBModel::Tokens(decoder) if part == Part::DECODER => of(decoder, device),
            _ if part == Part::VQGAN => of(&model.vqgan, device),
            _ if part == Part::COMPRESSOR => of(&model.compressor, device),
            _ if part == Part::PRIOR => of(&model.prior, device),
            _ if part == Part::PRIOR_TEXT => of(&self.prior_text(), device),
            _ if part == Part::DECODER_TEXT => of(&self.decoder_text(), device),
            _ => unreachable!("a run has no part {part}"),
        }
    }

    /// How many parameters every part has, by its name in the run's family. It allocates none of them.
    pub fn parameters(&self) -> BTreeMap<Part, usize> {
        let (decoder, device) = (&self.config.model.decoder, Device::flex());
        let product = |shape: &Vec<usize>| {
            shape.iter().fold(1, |product: usize, &side| product.saturating_mul(side))
        };
        let count = |part: Part| {
            let shapes = self.shapes_of(part, &device);
            shapes.iter().fold(0, |sum: usize, (_, shape)| sum.saturating_add(product(shape)))
        };
        decoder.parts().map(|part| (decoder.part(part), count(part))).collect()
    }

    /// How many scenes a stage caches, and how many values for each scene.
    pub fn cached(&self, stage: StageName) -> (usize, usize) {
        let (config, model) = (&self.config, &self.config.model);
        let embedding: usize = config.embedding_shape().iter().product();
        let side = config.image_size / model.vqgan.downscale();
        match stage {
            StageName::A => (0, 0),
            StageName::B => {
                let channels =
                    if model.decoder.has_tokens() { 1 } else { model.vqgan.latent_channels };
                let embedding = if config.b_has_fixed_embeddings() { embedding } else { 0 };
                (config.b.diffusion.cached_scenes, channels * side * side + embedding)
            }
            StageName::C => (config.c.diffusion.cached_scenes, embedding),
        }
    }

    /// Fails unless the names and shapes of a part's weights are those of the config; reads no values.
    ///
    /// # Errors
    ///
    /// Every missing, unexpected and misshapen tensor, all at once.
    pub fn check(&self, part: Part, weights: &Checkpoint) -> Result<(), LoadError> {
        check_shapes(&self.shapes_of(part, &Device::flex()), weights)
    }

    /// The parts that a stage trains.
    pub(crate) fn parts_of(&self, stage: StageName) -> &'static [Part] {
        match (stage, self.config.model.decoder.has_tokens()) {
            (StageName::A, _) => &[Part::VQGAN],
            (StageName::B, false) => &[Part::DECODER, Part::DECODER_TEXT, Part::COMPRESSOR],
            (StageName::B, true) => &[Part::DECODER, Part::PRIOR_TEXT, Part::COMPRESSOR],
            (StageName::C, false) => &[Part::PRIOR, Part::PRIOR_TEXT],
            (StageName::C, true) => &[Part::PRIOR],
        }
    }

    /// The parts that a stage takes from the stages before it.
    pub(crate) fn parts_before(&self, stage: StageName) -> &'static [Part] {
        match (stage, self.config.model.decoder.has_tokens()) {
            (StageName::A, _) => &[],
            (StageName::B, _) => &[Part::VQGAN],
            (StageName::C, false) => &[Part::COMPRESSOR],
            (StageName::C, true) => &[Part::COMPRESSOR, Part::PRIOR_TEXT],
        }
    }

    /// Stage A from a model.
    ///
    /// # Errors
    ///
    /// The model has no Stage A of the run's config.
    pub fn load_vqgan(&self, files: &Weights, device: &Device) -> Result<Vqgan, LoadError> {
        self.config.model.vqgan.load(trained(files, Part::VQGAN, "a")?, device)
    }

    /// Stage B, its text encoder and the compressor from a model.
    ///
    /// # Errors
    ///
    /// The model has no Stage B of the run's config.
    ///
    /// # Panics
    ///
    /// Panics if the run's Stage B denoises tokens.
    pub fn load_decoder(
        &self,
        files: &Weights,
        device: &Device,
    ) -> Result<DecoderModel, LoadError> {
        let (part, model) = (|part| trained(files, part, "b"), &self.config.model);
        Ok(DecoderModel {
            decoder: self.latent_decoder().load(part(Part::DECODER)?, device)?,
            text_encoder: self.decoder_text().load(part(Part::DECODER_TEXT)?, device)?,
            compressor: model.compressor.load(part(Part::COMPRESSOR)?, device)?,
        })
    }

    /// The model of a Stage B over tokens from a model.
    ///
    /// # Errors
    ///
    /// The model has no Stage B of the run's config.
    ///
    /// # Panics
    ///
    /// Panics if the run's Stage B denoises latents.
    pub fn load_token_decoder(
        &self,
        files: &Weights,
        device: &Device,
    ) -> Result<TokenModel, LoadError> {
        let part = |part| trained(files, part, "b");
        Ok(TokenModel {
            decoder: self.token_decoder().load(part(Part::DECODER)?, device)?,
            text_encoder: self.load_text(files, device)?,
            compressor: self.load_compressor(files, device)?,
            guess: self.guess(self.config.b.text_loss, device),
        })
    }

    /// The text encoder that Stage B over tokens was trained with, from a model.
    ///
    /// # Errors
    ///
    /// The model has no text encoder of the run's config.
    pub fn load_text(&self, files: &Weights, device: &Device) -> Result<TextEncoder, LoadError> {
        self.prior_text().load(trained(files, Part::PRIOR_TEXT, "b")?, device)
    }

    /// Stage C and its text encoder from a model.
    ///
    /// # Errors
    ///
    /// The model has no Stage C of the run's config.
    pub fn load_prior(&self, files: &Weights, device: &Device) -> Result<PriorModel, LoadError> {
        let part = |part| trained(files, part, "c");
        let PriorModel { guess, levels, .. } = self.init_prior(device);
        Ok(PriorModel {
            prior: self.config.model.prior.load(part(Part::PRIOR)?, device)?,
            text_encoder: self.prior_text().load(part(Part::PRIOR_TEXT)?, device)?,
            guess,
            levels,
        })
    }

    /// The semantic compressor from a model.
    ///
    /// # Errors
    ///
    /// The model has no compressor of the run's config.
    pub fn load_compressor(
        &self,
        files: &Weights,
        device: &Device,
    ) -> Result<Compressor, LoadError> {
        self.config.model.compressor.load(trained(files, Part::COMPRESSOR, "b")?, device)
    }

    /// The model's default options.
    pub fn defaults(&self) -> Defaults {
        let defaults = self.config.defaults.clone();
        if self.config.model.decoder.has_tokens() {
            let tokens = Some(defaults.tokens.unwrap_or_default());
            Defaults { tokens, ..defaults }
        } else {
            defaults
        }
    }

    /// Every config and tokenizer of the model, by its path in the model folder.
    pub(crate) fn texts(&self) -> BTreeMap<String, String> {
        let (config, model) = (&self.config, &self.config.model);
        let mut texts = BTreeMap::new();
        let mut insert = |path: String, value: Value| {
            let text = serde_json::to_string_pretty(&value).expect("JSON values are JSON");
            texts.insert(path, text);
        };
        let decoder = match &model.decoder {
            StageBModel::Latents(config) => config.to_json(),
            StageBModel::Tokens(config) => config.to_json(),
        };
        for (part, fields) in [
            (Part::PRIOR, model.prior.to_json()),
            // Where both text encoders are one part, their configs are equal.
            (Part::PRIOR_TEXT, self.prior_text().to_json()),
            (Part::DECODER_TEXT, self.decoder_text().to_json()),
            (Part::DECODER, decoder),
            (Part::VQGAN, model.vqgan.to_json()),
            (Part::COMPRESSOR, model.compressor.to_json()),
        ] {
            let part = model.decoder.part(part);
            insert(part.config_path(), with_class(part.class(), fields.into()));
        }
        let embedding = config.image_size as f64 / config.embedding_side() as f64;
        let prior_index = json!({
            "latent_mean": model.embedding_scale.unwrap_or(1.0), "latent_std": 0.0,
            "resolution_multiple": embedding,
        });
        let decoder_index = json!({"latent_dim_scale": embedding / model.vqgan.downscale() as f64});
        let family = model.decoder.family();
        for (pipeline, index) in family.pipelines.into_iter().zip([prior_index, decoder_index]) {
            insert(pipeline.index(), with_class(pipeline.class, index));
            if pipeline.is_scheduled {
                let schedule = with_class("DDPMWuerstchenScheduler", to_json(&model.schedule));
                insert(pipeline.scheduler(), schedule);
            }
        }
        let card = ModelCard {
            name: config.name.clone(),
            licence: config.corpus.licence().to_owned(),
            provenance: format!("trained by `wuerstchen train` on {}", config.corpus.describe()),
            defaults: self.defaults(),
        };
        insert(CARD.into(), to_json(&card));
        let with_text = 1 + usize::from(family.decoder_text.is_some());
        for pipeline in &family.pipelines[..with_text] {
            let folder = pipeline.tokenizer();
            for (file, text) in self.tokenizer.named() {
                texts.insert(format!("{folder}/{file}"), text.to_owned());
            }
        }
        texts
    }
}

/// The weights of some parts. The key is the part of Würstchen v2 that does the same, whatever the family of the run.
pub type Weights = BTreeMap<Part, Checkpoint>;

/// Stage A's weights.
pub fn vqgan_weights(model: &Vqgan) -> Weights {
    Weights::from([weights::<VqganConfig>(Part::VQGAN, model)])
}

/// The weights of Stage B, its text encoder and the compressor.
pub fn decoder_weights(model: &DecoderModel) -> Weights {
    Weights::from([
        weights::<DecoderConfig>(Part::DECODER, &model.decoder),
        weights::<TextEncoderConfig>(Part::DECODER_TEXT, &model.text_encoder),
        weights::<CompressorConfig>(Part::COMPRESSOR, &model.compressor),
    ])
}

/// The weights of Stage B over tokens, the text encoder and the compressor.
pub fn token_decoder_weights(model: &TokenModel) -> Weights {
    Weights::from([
        weights::<TokenDecoderConfig>(Part::DECODER, &model.decoder),
        weights::<TextEncoderConfig>(Part::PRIOR_TEXT, &model.text_encoder),
        weights::<CompressorConfig>(Part::COMPRESSOR, &model.compressor),
    ])
}

/// The weights of a Stage C whose text encoder was trained before.
pub fn lone_prior_weights(model: &PriorModel) -> Weights {
    Weights::from([weights::<PriorConfig>(Part::PRIOR, &model.prior)])
}

/// The weights of Stage C and its text encoder.
pub fn prior_weights(model: &PriorModel) -> Weights {
    Weights::from([
        weights::<PriorConfig>(Part::PRIOR, &model.prior),
        weights::<TextEncoderConfig>(Part::PRIOR_TEXT, &model.text_encoder),
    ])
}

fn weights<C: PartConfig>(part: Part, model: &C::Model) -> (Part, Checkpoint) {
    (part, C::weights(part, model))
}

/// The weights of a part that the run's `stage` has trained.
pub(crate) fn trained<'a>(
    weights: &'a Weights,
    part: Part,
    stage: &str,
) -> Result<&'a Checkpoint, LoadError> {
    weights.get(&part).ok_or_else(|| LoadError::File {
        path: part.to_string(),
        reason: format!(
            "Stage {} of this run is not trained yet: train it first, or begin with a model that has this part; or its \
             weights were removed: go on with it, and it writes them again",
            stage.to_uppercase()
        ),
    })
}

fn to_json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("configs are JSON")
}

fn with_class(class: &str, mut value: Value) -> Value {
    value["_class_name"] = json!(class);
    value
}
