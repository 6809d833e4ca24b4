//! The CLIP score: how well pictures show what their captions say.

use burn::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use wuerstchen::vision::PreparationConfig;
use wuerstchen::{
    Checkpoint, Image, ImageEncoder, ImageEncoderConfig, LoadError, PartConfig, PooledTextConfig,
    PooledTextEncoder, Tokenizer, TokenizerFiles,
};

use crate::compare::likeness::cosine;

/// Both encoders of a CLIP model.
///
/// Source: Radford et al., "Learning transferable visual models from natural language supervision"
/// (arXiv 2103.00020); `CLIPModel` in transformers.
pub struct ClipScore {
    text: PooledTextEncoder,
    images: ImageEncoder,
    tokenizer: Tokenizer,
    preparation: PreparationConfig,
    device: Device,
}

impl ClipScore {
    /// Reads a CLIP model in transformers' layout: its tensors, the text of its `config.json`, and its tokenizer.
    ///
    /// # Errors
    ///
    /// The tensors are not those of both encoders (names all that differ), or the config or the tokenizer does not fit.
    pub fn load(
        weights: &Checkpoint,
        config: &str,
        tokenizer: &TokenizerFiles,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let invalid = |reason: String| LoadError::File { path: "config.json".to_owned(), reason };
        let config: Value =
            serde_json::from_str(config).map_err(|error| invalid(error.to_string()))?;
        let part = |fields: &str, prefixes: [&str; 2]| {
            let is_own = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
            let tensors = weights.renamed(|name| is_own(name).then(|| name.to_owned()));
            let given = config[fields].as_object().cloned().unwrap_or_default();
            (tensors, given)
        };
        let (text_weights, given) = part("text_config", ["text_model.", "text_projection."]);
        let inferred = PooledTextConfig::infer(&text_weights).map(|mut config| {
            // The default of transformers.
            config.text.hidden_act = "quick_gelu".to_owned();
            config
        });
        let text_config: PooledTextConfig = read(inferred, &text_weights, given)?;
        let (image_weights, given) = part("vision_config", ["vision_model.", "visual_projection."]);
        let inferred = ImageEncoderConfig::infer(&image_weights);
        let image_config: ImageEncoderConfig = read(inferred, &image_weights, given)?;
        if text_config.projection_dim != image_config.projection_dim {
            let [text, images] = [text_config.projection_dim, image_config.projection_dim];
            let reason = format!(
                "expected embeddings of one width, found {text} of texts and {images} of pictures"
            );
            return Err(invalid(reason));
        }
        let tokenizer = Tokenizer::new(tokenizer, text_config.text.max_position_embeddings)
            .map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        let (tokens, known) = (tokenizer.id_count(), text_config.text.vocab_size);
        if tokens > known {
            let reason = format!(
                "expected at most {known} tokens, which the text encoder knows, found {tokens}"
            );
            return Err(LoadError::Tokenizer(reason));
        }
        Ok(Self {
            text: text_config.load(&text_weights, device)?,
            images: image_config.load(&image_weights, device)?,
            tokenizer,
            preparation: PreparationConfig::published(image_config.image_size),
            device: device.clone(),
        })
    }

    /// Whether a caption is longer than the text encoder reads.
    ///
    /// # Errors
    ///
    /// The tokenizer cannot split the caption.
    pub fn is_cut_off(&self, caption: &str) -> Result<bool, LoadError> {
        let end = self.tokenizer.cut_off(caption);
        end.map(|end| end.is_some()).map_err(|error| LoadError::Tokenizer(error.to_string()))
    }

    /// `100·max(cos, 0)` with the cosine of the embeddings of a picture and a caption. The end of a caption that is
    /// longer than the text encoder reads is cut off.
    ///
    /// Source: Hessel et al., "`CLIPScore`: a reference-free evaluation metric for image captioning" (arXiv
    /// 2104.08718), with the factor of 100 that is usual for generated pictures.
    ///
    /// # Errors
    ///
    /// The tokenizer cannot split the caption.
    pub fn score(&self, picture: &Image, caption: &str) -> Result<f64, LoadError> {
        let ids = self.tokenizer.encode(caption);
        let ids = ids.map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        let text = self.text.forward(&[ids]).pooled.expect("a pooled encoder pools");
        let pixels = Tensor::from_data(self.preparation.prepare(picture).pixels, &self.device);
        let image = self.images.forward(pixels).embedding;
        let [text, image] = [text, image].map(|embedding| {
            embedding.into_data().try_to_vec::<f32>().expect("embeddings are f32")
        });
        Ok(100.0 * cosine(&text, &image).max(0.0))
    }
}

/// A config whose sizes come from the weights, and whose other fields come from its file.
fn read<C: PartConfig + Serialize + DeserializeOwned>(
    inferred: Option<C>,
    weights: &Checkpoint,
    given: Map<String, Value>,
) -> Result<C, LoadError> {
    let invalid = |reason: String| LoadError::File { path: weights.part().to_owned(), reason };
    // The number of heads can be inferred only for the widths of published networks; for others, the file must give it.
    let mut fields = inferred.map(|config| config.to_json()).unwrap_or_default();
    fields.extend(given);
    let config: C = serde_json::from_value(fields.into())
        .map_err(|error| invalid(format!("expected the weights of a CLIP: {error}")))?;
    config.validate()?;
    Ok(config)
}
