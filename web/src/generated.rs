//! What a generation made, for JavaScript.

use burn::tensor::TensorData;
use js_sys::{Float32Array, Uint32Array};
use serde_json::Value;
use wasm_bindgen::prelude::*;
use wuerstchen::{Generated as Made, Image, Prepared, Provenance, Unread};

use crate::error::error;

/// What a generation made.
#[wasm_bindgen]
pub struct Generated {
    pub(crate) prepared: Prepared,
    pub(crate) model: String,
    /// Each with its weight.
    pub(crate) loras: Vec<String>,
    pub(crate) unread: Unread,
    /// One for each batch of the request.
    pub(crate) made: Vec<Made>,
}

#[wasm_bindgen]
impl Generated {
    /// Number of pictures.
    #[wasm_bindgen(getter)]
    pub fn count(&self) -> usize {
        self.pictures().count()
    }

    /// A picture, `undefined` past the last.
    pub fn picture(&self, index: usize) -> Option<Picture> {
        let (image, place) = self.pictures().nth(index)?;
        let made = &self.made[place[0]];
        let mut provenance = self.prepared.provenance(&made.settings, &self.model, place);
        self.add_loras(&mut provenance.settings);
        Some(Picture { image: image.clone(), provenance: Some(provenance) })
    }

    /// All pictures, with the number of the batch and their number in it.
    fn pictures(&self) -> impl Iterator<Item = (&Image, [usize; 2])> {
        self.made.iter().enumerate().flat_map(|(batch, made)| {
            made.images.iter().enumerate().map(move |(i, image)| (image, [batch, i]))
        })
    }

    fn add_loras(&self, settings: &mut Value) {
        if !self.loras.is_empty() {
            settings["loras"] = self.loras.clone().into();
        }
    }

    /// JSON of the parts of the prompts that have no influence: `unknownWords`, and `cutOff` where a prompt is too
    /// long.
    #[wasm_bindgen(getter)]
    pub fn unread(&self) -> String {
        serde_json::to_string(&self.unread).expect("words are JSON")
    }

    /// JSON of the options with every gap filled.
    #[wasm_bindgen(getter)]
    pub fn settings(&self) -> String {
        let mut settings = self.prepared.describe(&self.made[0].settings, None);
        self.add_loras(&mut settings);
        settings.to_string()
    }

    /// `[B, C, h, w]`, all frames together.
    #[wasm_bindgen(getter, js_name = imageEmbeddingShape)]
    pub fn image_embedding_shape(&self) -> Uint32Array {
        shape_of(self.made.iter().map(|made| &made.image_embeddings))
    }

    /// Stage C's result.
    #[wasm_bindgen(getter, js_name = imageEmbedding)]
    pub fn image_embedding(&self) -> Float32Array {
        values_of(self.made.iter().map(|made| &made.image_embeddings))
    }

    /// `[B, C, h, w]`, all frames together.
    #[wasm_bindgen(getter, js_name = latentsShape)]
    pub fn latents_shape(&self) -> Uint32Array {
        shape_of(self.made.iter().map(|made| &made.latents))
    }

    /// Stage B's result.
    #[wasm_bindgen(getter)]
    pub fn latents(&self) -> Float32Array {
        values_of(self.made.iter().map(|made| &made.latents))
    }
}

/// The shape of batches that are put one after the other.
pub(crate) fn shape_of<'a>(mut batches: impl Iterator<Item = &'a TensorData>) -> Uint32Array {
    let mut shape: Vec<u32> = Vec::new();
    if let Some(first) = batches.next() {
        shape.extend(first.shape().iter().map(|&side| side as u32));
        shape[0] += batches.map(|batch| batch.shape()[0] as u32).sum::<u32>();
    }
    Uint32Array::from(&shape[..])
}

/// The values of batches that are put one after the other.
pub(crate) fn values_of<'a>(batches: impl Iterator<Item = &'a TensorData>) -> Float32Array {
    let values = batches.map(|data| data.as_slice::<f32>().expect("the pipeline reports f32"));
    Float32Array::from(&values.collect::<Vec<_>>().concat()[..])
}

/// A picture.
#[wasm_bindgen]
pub struct Picture {
    pub(crate) image: Image,
    pub(crate) provenance: Option<Provenance>,
}

#[wasm_bindgen]
impl Picture {
    /// Pixels.
    #[wasm_bindgen(getter)]
    pub fn width(&self) -> usize {
        self.image.width
    }

    /// Pixels.
    #[wasm_bindgen(getter)]
    pub fn height(&self) -> usize {
        self.image.height
    }

    /// Four bytes a pixel, opaque, as `ImageData` has them.
    pub fn rgba(&self) -> Vec<u8> {
        self.image.rgb.chunks(3).flat_map(|pixel| [pixel[0], pixel[1], pixel[2], u8::MAX]).collect()
    }

    /// A PNG file whose text chunks carry the prompt and the settings.
    pub fn png(&self) -> Result<Vec<u8>, JsValue> {
        let png = match &self.provenance {
            Some(provenance) => provenance.to_png(&self.image),
            None => self.image.to_png(),
        };
        png.map_err(|reason| error("internal", &reason.to_string()))
    }
}
