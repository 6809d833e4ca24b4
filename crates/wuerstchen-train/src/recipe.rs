//! What a run trains, and its model as every program here can load it.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::nn::LinearConfig;
use burn::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};
use wuerstchen::{
    CARD, Checkpoint, Compressor, CompressorConfig, DecoderConfig, Family, LoadError, ModelCard,
    ModelFiles, Part, PartConfig, PipelineFolder, PriorConfig, TextEncoderConfig, Tokenizer,
    TokenizerFiles, Vqgan, VqganConfig,
};

use crate::config::TrainConfig;
use crate::corpus::{Corpus, CorpusError, Samples};
use crate::stages::{DecoderModel, PriorModel};

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

    /// Samples as the run takes them.
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

    /// Stage B's model as training starts it.
    pub fn init_decoder(&self, device: &Device) -> DecoderModel {
        DecoderModel {
            decoder: self.config.model.decoder.init(device),
            text_encoder: self.decoder_text().init(device),
            compressor: self.config.model.compressor.init(device),
        }
    }

    /// Stage C's model as training starts it.
    pub fn init_prior(&self, device: &Device) -> PriorModel {
        let text = self.prior_text();
        let side = self.config.embedding_side();
        let values = self.config.model.prior.c_in * side * side;
        let guess = (self.config.c.text_loss > 0.0)
            .then(|| LinearConfig::new(text.hidden_size, values).init(device));
        PriorModel {
            prior: self.config.model.prior.init(device),
            text_encoder: text.init(device),
            guess,
        }
    }

    /// The model of a run: its configs, the trained weights, and the starting weights of the stages
    /// that are not trained yet, so that samples can be drawn at any time.
    pub fn model_files(&self, trained: Weights, device: &Device) -> ModelFiles {
        let mut weights = vqgan_weights(&self.config.model.vqgan.init(device));
        weights.extend(decoder_weights(&self.init_decoder(device)));
        weights.extend(prior_weights(&self.init_prior(device)));
        weights.extend(trained);
        ModelFiles { texts: self.texts(), weights }
    }

    /// Stage A from a model.
    ///
    /// # Errors
    ///
    /// The model has no Stage A of the run's config.
    pub fn load_vqgan(&self, files: &Weights, device: &Device) -> Result<Vqgan, LoadError> {
        self.config.model.vqgan.load(trained(files, Part::VQGAN, "a")?, device)
    }

    /// Stage B's model from a model.
    ///
    /// # Errors
    ///
    /// The model has no Stage B of the run's config.
    pub fn load_decoder(
        &self,
        files: &Weights,
        device: &Device,
    ) -> Result<DecoderModel, LoadError> {
        let (part, model) = (|part| trained(files, part, "b"), &self.config.model);
        Ok(DecoderModel {
            decoder: model.decoder.load(part(Part::DECODER)?, device)?,
            text_encoder: self.decoder_text().load(part(Part::DECODER_TEXT)?, device)?,
            compressor: model.compressor.load(part(Part::COMPRESSOR)?, device)?,
        })
    }

    /// Stage C's model from a model.
    ///
    /// # Errors
    ///
    /// The model has no Stage C of the run's config.
    pub fn load_prior(&self, files: &Weights, device: &Device) -> Result<PriorModel, LoadError> {
        let part = |part| trained(files, part, "c");
        let PriorModel { guess, .. } = self.init_prior(device);
        Ok(PriorModel {
            prior: self.config.model.prior.load(part(Part::PRIOR)?, device)?,
            text_encoder: self.prior_text().load(part(Part::PRIOR_TEXT)?, device)?,
            guess,
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

    /// Every config and tokenizer of the model, by its path in the model folder.
    pub(crate) fn texts(&self) -> BTreeMap<String, String> {
        let (config, model) = (&self.config, &self.config.model);
        let mut texts = BTreeMap::new();
        let mut insert = |path: String, value: Value| {
            let text = serde_json::to_string_pretty(&value).expect("JSON values are JSON");
            texts.insert(path, text);
        };
        for (part, fields) in [
            (Part::PRIOR, model.prior.to_json()),
            (Part::PRIOR_TEXT, self.prior_text().to_json()),
            (Part::DECODER, model.decoder.to_json()),
            (Part::DECODER_TEXT, self.decoder_text().to_json()),
            (Part::VQGAN, model.vqgan.to_json()),
            (Part::COMPRESSOR, model.compressor.to_json()),
        ] {
            insert(part.config_path(), with_class(part.class(), fields.into()));
        }
        let embedding = config.image_size as f64 / config.embedding_side() as f64;
        let prior_index = json!({
            "latent_mean": model.embedding_scale.unwrap_or(1.0), "latent_std": 0.0,
            "resolution_multiple": embedding,
        });
        let decoder_index = json!({"latent_dim_scale": embedding / model.vqgan.downscale() as f64});
        for (pipeline, index) in
            [(PipelineFolder::PRIOR, prior_index), (PipelineFolder::DECODER, decoder_index)]
        {
            insert(pipeline.index(), with_class(pipeline.class, index));
            let schedule = with_class("DDPMWuerstchenScheduler", to_json(&model.schedule));
            insert(pipeline.scheduler(), schedule);
        }
        let card = ModelCard {
            name: config.name.clone(),
            licence: config.corpus.licence().to_owned(),
            provenance: format!("trained by `wuerstchen train` on {}", config.corpus.describe()),
            defaults: config.defaults.clone(),
        };
        insert(CARD.into(), to_json(&card));
        for pipeline in Family::WUERSTCHEN.pipelines {
            let folder = pipeline.tokenizer();
            for (file, text) in self.tokenizer.named() {
                texts.insert(format!("{folder}/{file}"), text.to_owned());
            }
        }
        texts
    }
}

/// The weights of some parts.
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
fn trained<'a>(weights: &'a Weights, part: Part, stage: &str) -> Result<&'a Checkpoint, LoadError> {
    weights.get(&part).ok_or_else(|| LoadError::MissingFile {
        path: part.to_string(),
        found: format!("a run whose stage {stage} is not trained; train it first"),
    })
}

fn to_json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("configs are JSON")
}

fn with_class(class: &str, mut value: Value) -> Value {
    value["_class_name"] = json!(class);
    value
}
