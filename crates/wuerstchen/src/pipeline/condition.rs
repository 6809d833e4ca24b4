//! What the predictions of a diffusion stage depend on besides the latents and the time.

use burn::prelude::*;

use super::sampling::Guided;
use crate::cascade::AddedFeatures;
use crate::text::TextEmbedding;

/// What a prediction depends on besides the latents and the time. A stage ignores what its network does not take.
#[derive(Clone)]
pub struct Condition {
    /// The prompts.
    pub text: TextEmbedding,
    /// CLIP embeddings of `k` pictures, `[B, k, D]`.
    pub pictures: Option<Tensor<3>>,
    /// Stage C's result, `[B, c, h, w]`.
    pub image_embedding: Option<Tensor<4>>,
    /// What a ControlNet adds to the features of every sample.
    pub control: Vec<AddedFeatures>,
}

/// What Stage C depends on besides the latents and the time.
pub struct PriorCondition {
    /// The prompts, and the negative prompts that guidance leads away from.
    pub text: Guided<TextEmbedding>,
    /// CLIP embeddings of `k` pictures, `[B, k, D]`; guidance leads away from zeros in their place.
    pub pictures: Option<Tensor<3>>,
    /// What a ControlNet adds to the features of every sample, on both sides of the guidance.
    pub control: Vec<AddedFeatures>,
}

impl PriorCondition {
    /// A text and nothing else.
    pub fn new(text: Guided<TextEmbedding>) -> Self {
        Self { text, pictures: None, control: Vec::new() }
    }

    /// The condition of a whole batch, as [`Guided::with`] makes it.
    pub(super) fn of_batch(self) -> Condition {
        Condition { control: self.control, ..self.text.with(self.pictures, None) }
    }
}

impl Condition {
    /// A text, and for Stage B the image embedding.
    pub(crate) fn new(text: TextEmbedding, image_embedding: Option<Tensor<4>>) -> Self {
        Self { text, pictures: None, image_embedding, control: Vec::new() }
    }

    /// The condition that guidance leads away from: another text, the same that a ControlNet adds, and zeros in place
    /// of everything else.
    fn away(&self, text: TextEmbedding) -> Self {
        Self {
            text,
            pictures: self.pictures.as_ref().map(Tensor::zeros_like),
            image_embedding: self.image_embedding.as_ref().map(Tensor::zeros_like),
            control: self.control.clone(),
        }
    }

    fn cat(self, other: Self) -> Self {
        fn both<const D: usize>(a: Option<Tensor<D>>, b: Option<Tensor<D>>) -> Option<Tensor<D>> {
            a.zip(b).map(|(a, b)| Tensor::cat(vec![a, b], 0))
        }
        Self {
            text: self.text.cat(other.text),
            pictures: both(self.pictures, other.pictures),
            image_embedding: both(self.image_embedding, other.image_embedding),
            control: self.control,
        }
    }
}

impl Guided<TextEmbedding> {
    /// The condition of a whole batch. Where the sampling is guided, the condition that guidance leads away from
    /// follows it: the negative text, no pictures, and an image embedding of zeros.
    pub(super) fn with(
        self,
        pictures: Option<Tensor<3>>,
        image_embedding: Option<Tensor<4>>,
    ) -> Condition {
        let (text, control) = (self.conditional, Vec::new());
        let condition = Condition { text, pictures, image_embedding, control };
        match self.unconditional {
            Some(text) => {
                let away = condition.away(text);
                condition.cat(away)
            }
            None => condition,
        }
    }
}
