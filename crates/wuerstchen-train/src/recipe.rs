//! What a run trains, and its model as every program here can load it.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::nn::LinearConfig;
use burn::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};
use wuerstchen::text::TokenizerError;
use wuerstchen::weights::{KeyTable, load, tensors};
use wuerstchen::{
    Checkpoint, Compressor, LoadError, ModelCard, ModelFiles, TextEncoderConfig, Tokenizer,
    TokenizerFiles, Vqgan, layout,
};

use crate::config::TrainConfig;
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
    /// The tokenizer cannot be made.
    pub fn new(config: TrainConfig, tokenizer: TokenizerFiles) -> Result<Self, TokenizerError> {
        let vocab_size = Tokenizer::new(&tokenizer, config.model.max_tokens)?.id_count();
        Ok(Self { config, tokenizer, vocab_size })
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
        let weights = weights(files, layout::VQGAN, "a")?;
        load(self.config.model.vqgan.init(device), weights, KeyTable::VQGAN)
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
        let DecoderModel { decoder, text_encoder, compressor } = self.init_decoder(device);
        let part = |folder| weights(files, folder, "b");
        Ok(DecoderModel {
            decoder: load(decoder, part(layout::DECODER)?, KeyTable::DIFFUSION)?,
            text_encoder: load(text_encoder, part(layout::DECODER_TEXT)?, KeyTable::TEXT)?,
            compressor: load(compressor, part(layout::COMPRESSOR)?, KeyTable::COMPRESSOR)?,
        })
    }

    /// Stage C's model from a model.
    ///
    /// # Errors
    ///
    /// The model has no Stage C of the run's config.
    pub fn load_prior(&self, files: &Weights, device: &Device) -> Result<PriorModel, LoadError> {
        let PriorModel { prior, text_encoder, guess } = self.init_prior(device);
        let part = |folder| weights(files, folder, "c");
        Ok(PriorModel {
            prior: load(prior, part(layout::PRIOR)?, KeyTable::DIFFUSION)?,
            text_encoder: load(text_encoder, part(layout::PRIOR_TEXT)?, KeyTable::TEXT)?,
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
        let weights = weights(files, layout::COMPRESSOR, "b")?;
        load(self.config.model.compressor.init(device), weights, KeyTable::COMPRESSOR)
    }

    /// Every config and tokenizer of the model, by its path in the model folder.
    fn texts(&self) -> BTreeMap<String, String> {
        let (config, model) = (&self.config, &self.config.model);
        let mut texts = BTreeMap::new();
        let mut insert = |path: String, value: Value| {
            let text = serde_json::to_string_pretty(&value).expect("JSON values are JSON");
            texts.insert(path, text);
        };
        for (folder, class, value) in [
            (layout::PRIOR, "WuerstchenPrior", to_json(&model.prior)),
            (layout::PRIOR_TEXT, "CLIPTextModel", to_json(&self.prior_text())),
            (layout::DECODER, "WuerstchenDiffNeXt", to_json(&model.decoder)),
            (layout::DECODER_TEXT, "CLIPTextModel", to_json(&self.decoder_text())),
            (layout::VQGAN, "PaellaVQModel", to_json(&model.vqgan)),
            (layout::COMPRESSOR, "EfficientNetEncoder", to_json(&model.compressor)),
        ] {
            insert(format!("{folder}/config.json"), with_class(class, value));
        }
        let embedding = config.image_size as f64 / config.embedding_side() as f64;
        let prior_index = json!({
            "latent_mean": model.embedding_scale.unwrap_or(1.0), "latent_std": 0.0,
            "resolution_multiple": embedding,
        });
        let decoder_index = json!({"latent_dim_scale": embedding / model.vqgan.downscale() as f64});
        for (folder, class, index) in [
            (layout::PRIOR_PIPELINE, "WuerstchenPriorPipeline", prior_index),
            (layout::DECODER_PIPELINE, "WuerstchenDecoderPipeline", decoder_index),
        ] {
            insert(format!("{folder}/model_index.json"), with_class(class, index));
            let schedule = with_class("DDPMWuerstchenScheduler", to_json(&model.schedule));
            insert(format!("{folder}/scheduler/scheduler_config.json"), schedule);
        }
        let card = ModelCard {
            name: config.name.clone(),
            licence: config.corpus.licence().to_owned(),
            provenance: format!("trained by `wuerstchen train` on {}", config.corpus.describe()),
            defaults: config.defaults.clone(),
        };
        insert(layout::CARD.into(), to_json(&card));
        for folder in [layout::PRIOR_TOKENIZER, layout::DECODER_TOKENIZER] {
            for (file, text) in self.tokenizer.named() {
                texts.insert(format!("{folder}/{file}"), text.to_owned());
            }
        }
        texts
    }
}

/// Weights by the folder of their part.
pub type Weights = BTreeMap<String, Checkpoint>;

fn part<M: Module>(folder: &str, module: &M, keys: KeyTable) -> (String, Checkpoint) {
    (folder.to_owned(), Checkpoint::from_tensors(folder, tensors(module, keys)))
}

/// Stage A's weights.
pub fn vqgan_weights(model: &Vqgan) -> Weights {
    Weights::from([part(layout::VQGAN, model, KeyTable::VQGAN)])
}

/// The weights of Stage B, its text encoder and the compressor.
pub fn decoder_weights(model: &DecoderModel) -> Weights {
    Weights::from([
        part(layout::DECODER, &model.decoder, KeyTable::DIFFUSION),
        part(layout::DECODER_TEXT, &model.text_encoder, KeyTable::TEXT),
        part(layout::COMPRESSOR, &model.compressor, KeyTable::COMPRESSOR),
    ])
}

/// The weights of Stage C and its text encoder.
pub fn prior_weights(model: &PriorModel) -> Weights {
    Weights::from([
        part(layout::PRIOR, &model.prior, KeyTable::DIFFUSION),
        part(layout::PRIOR_TEXT, &model.text_encoder, KeyTable::TEXT),
    ])
}

fn weights<'a>(files: &'a Weights, folder: &str, stage: &str) -> Result<&'a Checkpoint, LoadError> {
    files.get(folder).ok_or_else(|| LoadError::MissingFile {
        path: folder.to_owned(),
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
