//! What the families' networks are, and how their configs fit together.

use burn::prelude::*;

use super::denoiser::Denoiser;
use super::text::TextModel;
use crate::cascade::CascadeConfig;
use crate::config::ConfigError;
use crate::decoder::DecoderConfig;
use crate::error::LoadError;
use crate::family::Family;
use crate::model_files::ModelFiles;
use crate::part::{Part, PartConfig};
use crate::prior::PriorConfig;
use crate::text::{PooledTextConfig, TextEncoderConfig};
use crate::token_decoder::{TokenDecoder, TokenDecoderConfig};
use crate::vision::ImageEncoderConfig;
use crate::vqgan::VqganConfig;

/// The networks in which families differ, without their weights.
pub(super) struct Models {
    pub(super) prior_text: Text,
    pub(super) prior: Diffusion,
    /// `None` where Stage B takes the text of Stage C's encoder.
    pub(super) decoder_text: Option<Text>,
    pub(super) decoder: StageB,
}

/// What Stage B denoises, and by which model.
#[expect(clippy::large_enum_variant, reason = "there is one of them")]
pub(super) enum StageB {
    Latents(Diffusion),
    Tokens { model: TokenDecoder, labels: usize, size_multiple: usize },
}

/// A text encoder, and what its tokenizer has to fit.
pub(super) struct Text {
    pub(super) model: TextModel,
    pub(super) length: usize,
    pub(super) vocab_size: usize,
}

/// A diffusion model, and the shape of its latents.
pub(super) struct Diffusion {
    pub(super) model: Denoiser,
    pub(super) channels: usize,
    pub(super) size_multiple: usize,
    pub(super) smallest_side: usize,
}

/// Reads the configs of a model, checks that they fit together, and makes its networks.
type Read = fn(&ModelFiles, &Device) -> Result<Models, LoadError>;

/// The reader of each family, by its Stage C.
const READ: [(Part, Read); 3] =
    [(Part::PRIOR, wuerstchen), (Part::CASCADE_PRIOR, cascade), (Part::V1_PRIOR, wuerstchen_v1)];

impl Models {
    /// Makes the networks of a family.
    ///
    /// # Errors
    ///
    /// A config is missing, or two do not fit together.
    pub(super) fn read(
        family: &Family,
        files: &ModelFiles,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let own = READ.into_iter().find(|(prior, _)| *prior == family.prior());
        let (_, read) = own.expect("every family has its networks here");
        read(files, device)
    }
}

/// The networks of Würstchen v2.
fn wuerstchen(files: &ModelFiles, device: &Device) -> Result<Models, LoadError> {
    let prior: PriorConfig = files.part_config(Part::PRIOR)?;
    let decoder: DecoderConfig = files.part_config(Part::DECODER)?;
    let vqgan: VqganConfig = files.part_config(Part::VQGAN)?;
    let prior_text: TextEncoderConfig = files.part_config(Part::PRIOR_TEXT)?;
    let decoder_text: TextEncoderConfig = files.part_config(Part::DECODER_TEXT)?;
    let width = |text: &TextEncoderConfig| ("its text encoder's hidden_size", text.hidden_size);
    agree("prior", "c_cond", prior.c_cond, width(&prior_text))?;
    agree("decoder", "clip_embd", decoder.clip_embd, width(&decoder_text))?;
    agree("decoder", "effnet_embd", decoder.effnet_embd, ("the prior's c_in", prior.c_in))?;
    agree("decoder", "c_in", decoder.c_in, ("the VQGAN's latent_channels", vqgan.latent_channels))?;
    let size_multiple = decoder.size_multiple();
    Ok(Models {
        prior_text: plain_text(&prior_text, device),
        prior: plain_prior(&prior, device),
        decoder_text: Some(plain_text(&decoder_text, device)),
        decoder: StageB::Latents(Diffusion {
            model: Denoiser::Decoder(decoder.init(device)),
            channels: decoder.c_in,
            size_multiple,
            smallest_side: size_multiple,
        }),
    })
}

/// The networks of Würstchen v1.
fn wuerstchen_v1(files: &ModelFiles, device: &Device) -> Result<Models, LoadError> {
    let prior: PriorConfig = files.part_config(Part::V1_PRIOR)?;
    let decoder: TokenDecoderConfig = files.part_config(Part::V1_DECODER)?;
    let vqgan: VqganConfig = files.part_config(Part::V1_VQGAN)?;
    let text: TextEncoderConfig = files.part_config(Part::V1_TEXT)?;
    let width = ("the text encoder's hidden_size", text.hidden_size);
    agree("prior", "c_cond", prior.c_cond, width)?;
    agree("token decoder", "byt5_embd", decoder.byt5_embd, width)?;
    agree("token decoder", "effnet_embd", decoder.effnet_embd, ("the prior's c_in", prior.c_in))?;
    let codes = ("the VQGAN's num_vq_embeddings", vqgan.num_vq_embeddings);
    agree("token decoder", "num_labels", decoder.num_labels, codes)?;
    Ok(Models {
        prior_text: plain_text(&text, device),
        prior: plain_prior(&prior, device),
        decoder_text: None,
        decoder: StageB::Tokens {
            model: decoder.init(device),
            labels: decoder.num_labels,
            size_multiple: decoder.size_multiple(),
        },
    })
}

fn plain_text(config: &TextEncoderConfig, device: &Device) -> Text {
    Text {
        model: TextModel::Plain(config.init(device)),
        length: config.max_position_embeddings,
        vocab_size: config.vocab_size,
    }
}

/// Stage C of both versions of Würstchen, which makes embeddings of any size.
fn plain_prior(config: &PriorConfig, device: &Device) -> Diffusion {
    Diffusion {
        model: Denoiser::Prior(config.init(device)),
        channels: config.c_in,
        size_multiple: 1,
        smallest_side: 1,
    }
}

/// The networks of Stable Cascade.
fn cascade(files: &ModelFiles, device: &Device) -> Result<Models, LoadError> {
    let prior: CascadeConfig = files.part_config(Part::CASCADE_PRIOR)?;
    let decoder: CascadeConfig = files.part_config(Part::CASCADE_DECODER)?;
    let vqgan: VqganConfig = files.part_config(Part::CASCADE_VQGAN)?;
    let text: PooledTextConfig = files.part_config(Part::CASCADE_TEXT)?;
    let (pooled, width) = (text.projection_dim, text.text.hidden_size);
    agree(
        "prior",
        "clip_text_in_channels",
        prior.clip_text_in_channels,
        ("the text encoder's hidden_size", width),
    )?;
    for (part, config) in [("prior", &prior), ("decoder", &decoder)] {
        agree(
            part,
            "clip_text_pooled_in_channels",
            config.clip_text_pooled_in_channels,
            ("the text encoder's projection_dim", pooled),
        )?;
        agree(
            part,
            "out_channels",
            config.out_channels,
            ("its own in_channels", config.in_channels),
        )?;
    }
    agree(
        "decoder",
        "clip_text_in_channels",
        decoder.clip_text_in_channels,
        ("that of a Stage B", None),
    )?;
    agree(
        "decoder",
        "effnet_in_channels",
        decoder.effnet_in_channels,
        ("the prior's in_channels", prior.in_channels),
    )?;
    agree(
        "decoder",
        "in_channels",
        decoder.in_channels,
        ("the VQGAN's latent_channels", vqgan.latent_channels),
    )?;
    if let Ok(encoder) = files.part_config::<ImageEncoderConfig>(Part::CASCADE_IMAGE_ENCODER) {
        let seen = prior.clip_image_in_channels;
        agree(
            "prior",
            "clip_image_in_channels",
            seen,
            ("the image encoder's projection_dim", encoder.projection_dim),
        )?;
    }
    let diffusion = |config: &CascadeConfig| Diffusion {
        model: Denoiser::Cascade(config.init(device)),
        channels: config.in_channels,
        size_multiple: config.size_multiple(),
        smallest_side: config.smallest_side(),
    };
    Ok(Models {
        prior_text: Text {
            model: TextModel::Pooled(text.init(device)),
            length: text.text.max_position_embeddings,
            vocab_size: text.text.vocab_size,
        },
        prior: diffusion(&prior),
        decoder_text: None,
        decoder: StageB::Latents(diffusion(&decoder)),
    })
}

/// Checks a width that two parts share; `None` where a part has none.
pub(super) fn agree(
    part: &'static str,
    field: &'static str,
    found: impl Into<Option<usize>>,
    (of_other, other): (&str, impl Into<Option<usize>>),
) -> Result<(), ConfigError> {
    let (found, other) = (found.into(), other.into());
    if found == other {
        return Ok(());
    }
    let text = |width: Option<usize>| width.map_or("null".to_owned(), |width| width.to_string());
    let expected = format!("{}, as {of_other} is", text(other));
    Err(ConfigError::new(part, field, expected, text(found)))
}
