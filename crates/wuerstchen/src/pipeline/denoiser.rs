//! The diffusion stages of all families as one type.

use burn::module::Module;
use burn::prelude::*;

use super::condition::Condition;
use super::tokens::TokenStage;
use crate::blocks::Observer;
#[cfg(feature = "gpu")]
use crate::blocks::width;
use crate::cascade::{Cascade, CascadeConditions, PreparedCascade};
use crate::decoder::{Decoder, PreparedDecoder};
#[cfg(feature = "gpu")]
use crate::error::LoadError;
use crate::prior::{PreparedPrior, Prior};
use crate::residency::{Load, Slot};
use crate::schedule::Schedule;

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
