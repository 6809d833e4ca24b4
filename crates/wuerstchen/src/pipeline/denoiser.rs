//! The diffusion stages of all families as one type.

use burn::module::Module;
use burn::prelude::*;

use super::sampling::Guided;
use super::tokens::TokenStage;
use crate::blocks::Observer;
#[cfg(feature = "gpu")]
use crate::blocks::width;
use crate::cascade::{AddedFeatures, Cascade, CascadeConditions, PreparedCascade};
use crate::decoder::{Decoder, PreparedDecoder};
#[cfg(feature = "gpu")]
use crate::error::LoadError;
use crate::prior::{PreparedPrior, Prior};
use crate::residency::{Load, Slot};
use crate::schedule::Schedule;
use crate::text::TextEmbedding;

/// What predicts the noise of a stage.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "there are two of them")]
pub(crate) enum Denoiser {
    /// Stage C of Würstchen.
    Prior(Prior),
    /// Stage B of Würstchen v2.
    Decoder(Decoder),
    /// Either stage of Stable Cascade.
    Cascade(Cascade),
}

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

/// A diffusion stage: its network, and the latents that it makes.
pub(crate) struct DiffusionStage {
    pub(crate) denoiser: Slot<Denoiser>,
    /// Channels of the latents.
    pub(crate) channels: usize,
    pub(crate) schedule: Schedule,
    /// The sides of the latents are multiples of this.
    pub(crate) size_multiple: usize,
    /// The least side of the latents.
    pub(crate) smallest_side: usize,
}

/// Stage B, by what it denoises.
#[expect(clippy::large_enum_variant, reason = "there is one of them")]
pub(crate) enum DecoderStage {
    /// Latents.
    Latents(DiffusionStage),
    /// Tokens.
    Tokens(TokenStage),
}

impl DecoderStage {
    /// Whether latents may have so many pixels on a side.
    pub(super) fn fits(&self, side: usize) -> bool {
        match self {
            Self::Latents(stage) => stage.fits(side),
            Self::Tokens(stage) => side > 0 && side.is_multiple_of(stage.size_multiple),
        }
    }

    /// The place of its network.
    pub(super) fn slot(&mut self) -> &mut dyn Load {
        match self {
            Self::Latents(stage) => &mut stage.denoiser,
            Self::Tokens(stage) => &mut stage.network,
        }
    }

    /// As [`Denoiser::levels`].
    #[cfg(feature = "gpu")]
    pub(crate) fn levels(&self) -> Result<Vec<(usize, usize)>, LoadError> {
        Ok(match self {
            Self::Latents(stage) => stage.denoiser.get()?.levels(),
            Self::Tokens(stage) => stage.network.get()?.levels(),
        })
    }
}

impl DiffusionStage {
    /// Whether latents may have so many pixels on a side.
    pub(super) fn fits(&self, side: usize) -> bool {
        side >= self.smallest_side && side.is_multiple_of(self.size_multiple)
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

impl Denoiser {
    /// For every level: how many latent pixels one pixel of its features covers along each axis, and the number
    /// of feature channels.
    #[cfg(feature = "gpu")]
    pub(crate) fn levels(&self) -> Vec<(usize, usize)> {
        match self {
            Self::Prior(prior) => vec![(1, width(&prior.blocks))],
            Self::Decoder(decoder) => decoder.levels(),
            Self::Cascade(cascade) => cascade.levels(),
        }
    }

    /// Computes what stays the same at all steps of a picture with latents of a height and width.
    ///
    /// # Panics
    ///
    /// Panics if the condition lacks what the stage needs, which a pipeline checks when it is loaded.
    pub(crate) fn prepare(&self, condition: Condition, size: [usize; 2]) -> Prepared<'_> {
        let Condition { text, pictures, image_embedding, control } = condition;
        match self {
            Self::Prior(prior) => Prepared::Prior(prior.prepare(text.tokens)),
            Self::Decoder(decoder) => {
                let image = image_embedding.expect("Stage B gets Stage C's result");
                Prepared::Decoder(decoder.prepare(image, text.tokens, size))
            }
            Self::Cascade(cascade) => {
                let pooled = text.pooled.expect("the family's text encoder pools");
                let conditions = CascadeConditions {
                    text: Some(text.tokens),
                    images: pictures,
                    image_embedding,
                    control,
                    ..CascadeConditions::new(pooled)
                };
                Prepared::Cascade(cascade.prepare(&conditions, size))
            }
        }
    }
}

/// A stage for certain conditions.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(crate) enum Prepared<'a> {
    Prior(PreparedPrior<'a>),
    Decoder(PreparedDecoder<'a>),
    Cascade(PreparedCascade<'a>),
}

impl Prepared<'_> {
    /// Predicts the noise in `x` at the times `t`, and reports every block.
    pub(crate) fn forward_observed(&self, x: Tensor<4>, t: &[f32], observe: Observer) -> Tensor<4> {
        match self {
            Self::Prior(prior) => prior.forward(x, t, observe),
            Self::Decoder(decoder) => decoder.forward(x, t, observe),
            Self::Cascade(cascade) => cascade.forward(x, t, observe),
        }
    }

    /// As [`Self::forward_observed`], and reports nothing.
    pub(super) fn forward(&self, x: Tensor<4>, t: &[f32]) -> Tensor<4> {
        self.forward_observed(x, t, &mut |_, _| {})
    }
}
