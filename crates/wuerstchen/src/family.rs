//! The families of models and the parts that each is made of: the only place that names their folders.

use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::card::{DecoderIndex, PriorIndex};
use crate::cascade::CascadeConfig;
use crate::compressor::CompressorConfig;
use crate::controlnet::ControlNetConfig;
use crate::decoder::DecoderConfig;
use crate::error::LoadError;
use crate::options::Defaults;
use crate::part::{Description, Network, Part, PartConfig, Stage};
use crate::previewer::PreviewerConfig;
use crate::prior::PriorConfig;
use crate::text::{PooledTextConfig, TextEncoderConfig};
use crate::token_decoder::TokenDecoderConfig;
use crate::vision::ImageEncoderConfig;
use crate::vqgan::{STAGE_A_SCALE, VqganConfig};

/// Models that are made of the same parts.
pub struct Family {
    /// What people call it.
    pub name: &'static str,
    /// The parts in the order in which a picture needs them; those that it does not need come last.
    pub parts: &'static [Part],
    /// Parts of the published pipelines that do again what another part does: they are read and checked, but
    /// neither run nor stored.
    pub spare: &'static [Part],
    /// The folders of diffusers' pipelines: Stage C's, then that of stages B and A.
    pub pipelines: [PipelineFolder; 2],
    /// Stage C's text encoder.
    pub prior_text: Part,
    /// Stage B's text encoder; `None` where it takes the text of Stage C's.
    pub decoder_text: Option<Part>,
    /// Stage A.
    pub vqgan: Part,
    /// The semantic compressor.
    pub compressor: Part,
    /// The encoder of picture prompts, where there is one.
    pub image_encoder: Option<Part>,
    /// The network that shows image embeddings, where there is one.
    pub previewer: Option<Part>,
    /// The network that makes Stage C follow a picture, where there is one.
    pub controlnet: Option<Part>,
    /// The default options of a model whose card says nothing.
    pub defaults: fn() -> Defaults,
    /// How pictures' sizes become those of latents.
    pub sizes: SizeRule,
}

/// What decides the size of a picture's latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeRule {
    /// The size of the image embedding decides. Only some sizes of pictures fit exactly.
    FromEmbedding,
    /// The size of the picture decides. Stage B takes an image embedding of any size.
    FromPixels,
}

impl Family {
    /// Würstchen v2.
    pub const WUERSTCHEN: Self = Self {
        name: "Würstchen v2",
        parts: &[
            Part::PRIOR_TEXT,
            Part::PRIOR,
            Part::DECODER_TEXT,
            Part::DECODER,
            Part::VQGAN,
            Part::COMPRESSOR,
        ],
        spare: &[],
        pipelines: [PipelineFolder::PRIOR, PipelineFolder::DECODER],
        prior_text: Part::PRIOR_TEXT,
        decoder_text: Some(Part::DECODER_TEXT),
        vqgan: Part::VQGAN,
        compressor: Part::COMPRESSOR,
        image_encoder: None,
        previewer: None,
        controlnet: None,
        defaults: Defaults::default,
        sizes: SizeRule::FromEmbedding,
    };

    /// Stable Cascade, the third version.
    pub const CASCADE: Self = Self {
        name: "Stable Cascade",
        parts: &[
            Part::CASCADE_TEXT,
            Part::CASCADE_PRIOR,
            Part::CASCADE_DECODER,
            Part::CASCADE_VQGAN,
            Part::CASCADE_IMAGE_ENCODER,
            Part::CASCADE_COMPRESSOR,
            Part::CASCADE_PREVIEWER,
            Part::CASCADE_CONTROLNET,
        ],
        spare: &[Part::CASCADE_DECODER_TEXT],
        pipelines: [PipelineFolder::CASCADE_PRIOR, PipelineFolder::CASCADE_DECODER],
        prior_text: Part::CASCADE_TEXT,
        decoder_text: None,
        vqgan: Part::CASCADE_VQGAN,
        compressor: Part::CASCADE_COMPRESSOR,
        image_encoder: Some(Part::CASCADE_IMAGE_ENCODER),
        previewer: Some(Part::CASCADE_PREVIEWER),
        controlnet: Some(Part::CASCADE_CONTROLNET),
        defaults: Defaults::stable_cascade,
        sizes: SizeRule::FromPixels,
    };

    /// Würstchen v1, the paper's first version, whose Stage B denoises tokens.
    pub const WUERSTCHEN_V1: Self = Self {
        name: "Würstchen v1",
        parts: &[
            Part::V1_TEXT,
            Part::V1_PRIOR,
            Part::V1_DECODER,
            Part::V1_VQGAN,
            Part::V1_COMPRESSOR,
        ],
        spare: &[],
        pipelines: [PipelineFolder::V1_PRIOR, PipelineFolder::V1_DECODER],
        prior_text: Part::V1_TEXT,
        decoder_text: None,
        vqgan: Part::V1_VQGAN,
        compressor: Part::V1_COMPRESSOR,
        image_encoder: None,
        previewer: None,
        controlnet: None,
        defaults: Defaults::wuerstchen_v1,
        sizes: SizeRule::FromPixels,
    };

    /// All families.
    pub const ALL: [&Self; 3] = [&Self::WUERSTCHEN, &Self::CASCADE, &Self::WUERSTCHEN_V1];

    /// The family of a part.
    pub fn of(part: Part) -> &'static Self {
        let has = |family: &&&Self| family.all_parts().any(|own| own == part);
        Self::ALL.iter().find(has).expect("every part is one of a family's")
    }

    /// The parts that a picture from a prompt needs.
    pub fn needed(&self) -> impl Iterator<Item = Part> + use<> {
        self.parts.iter().copied().filter(|part| part.stage().is_some())
    }

    /// The parts that a picture from an image embedding needs.
    pub fn needed_by_decoder(&self) -> impl Iterator<Item = Part> + use<> {
        let text = self.decoder_text.unwrap_or(self.prior_text);
        self.needed().filter(move |part| part.stage() >= Some(Stage::Decoder) || *part == text)
    }

    /// All parts, including those that are only read and checked.
    pub fn all_parts(&self) -> impl Iterator<Item = Part> + use<> {
        self.parts.iter().chain(self.spare).copied()
    }

    /// Stage C.
    pub fn prior(&self) -> Part {
        self.pipelines[0].main
    }

    /// Stage B.
    pub fn decoder(&self) -> Part {
        self.pipelines[1].main
    }
}

/// The parts of Würstchen v2.
impl Part {
    /// Stage C's text encoder.
    pub const PRIOR_TEXT: Self = Self(&Description {
        folder: "wuerstchen-prior/text_encoder",
        stage: Some(Stage::Text),
        mark: TEXT_MARK,
        lacks: Some(PROJECTION_MARK),
        beside: Some((Self::PRIOR, PRIOR_MARK)),
        network: Network::of::<TextEncoderConfig>(),
    });

    /// Stage C.
    pub const PRIOR: Self = Self(&Description {
        folder: "wuerstchen-prior/prior",
        stage: Some(Stage::Prior),
        mark: PRIOR_MARK,
        lacks: None,
        beside: None,
        network: Network::of::<PriorConfig>(),
    });

    /// Stage B's text encoder.
    pub const DECODER_TEXT: Self = Self(&Description {
        folder: "wuerstchen/text_encoder",
        stage: Some(Stage::Text),
        mark: TEXT_MARK,
        lacks: Some(PROJECTION_MARK),
        beside: Some((Self::DECODER, DECODER_MARK)),
        network: Network::of::<TextEncoderConfig>(),
    });

    /// Stage B.
    pub const DECODER: Self = Self(&Description {
        folder: "wuerstchen/decoder",
        stage: Some(Stage::Decoder),
        mark: DECODER_MARK,
        lacks: None,
        beside: None,
        network: Network::of::<DecoderConfig>(),
    });

    /// Stage A.
    pub const VQGAN: Self = Self(&Description {
        folder: "wuerstchen/vqgan",
        stage: Some(Stage::Vqgan),
        mark: VQGAN_MARK,
        lacks: None,
        beside: None,
        network: Network::of::<VqganConfig>(),
    });

    /// The semantic compressor, which pictures to start from need.
    pub const COMPRESSOR: Self = Self(&Description {
        folder: "effnet",
        stage: None,
        mark: AFFINE_COMPRESSOR_MARK,
        lacks: None,
        beside: None,
        network: Network::of::<CompressorConfig>(),
    });
}

/// The parts of Stable Cascade.
impl Part {
    /// The text encoder of both stages.
    pub const CASCADE_TEXT: Self = Self(&Description {
        folder: "stable-cascade-prior/text_encoder",
        stage: Some(Stage::Text),
        mark: PROJECTION_MARK,
        lacks: None,
        beside: Some((Self::CASCADE_PRIOR, CASCADE_PRIOR_MARK)),
        network: Network::of::<PooledTextConfig>(),
    });

    /// Stage C.
    pub const CASCADE_PRIOR: Self = Self(&Description {
        folder: "stable-cascade-prior/prior",
        stage: Some(Stage::Prior),
        mark: CASCADE_PRIOR_MARK,
        lacks: None,
        beside: None,
        network: Network::of::<CascadeConfig>(),
    });

    /// The encoder of picture prompts.
    pub const CASCADE_IMAGE_ENCODER: Self = Self(&Description {
        folder: "stable-cascade-prior/image_encoder",
        stage: None,
        mark: "visual_projection.weight",
        lacks: None,
        beside: None,
        network: Network::of::<ImageEncoderConfig>(),
    });

    /// The text encoder that diffusers' pipeline of Stage B has of its own; its weights are those of
    /// [`Self::CASCADE_TEXT`].
    pub const CASCADE_DECODER_TEXT: Self = Self(&Description {
        folder: "stable-cascade/text_encoder",
        stage: None,
        mark: PROJECTION_MARK,
        lacks: None,
        beside: Some((Self::CASCADE_TEXT, PROJECTION_MARK)),
        network: Network::of::<PooledTextConfig>(),
    });

    /// Stage B.
    pub const CASCADE_DECODER: Self = Self(&Description {
        folder: "stable-cascade/decoder",
        stage: Some(Stage::Decoder),
        mark: "effnet_mapper.0.weight",
        lacks: None,
        beside: None,
        network: Network::of::<CascadeConfig>(),
    });

    /// Stage A.
    pub const CASCADE_VQGAN: Self = Self(&Description {
        folder: "stable-cascade/vqgan",
        stage: Some(Stage::Vqgan),
        mark: VQGAN_MARK,
        lacks: None,
        beside: None,
        network: Network::of::<VqganConfig>().inferred(|weights| {
            let config = VqganConfig::infer(weights)?;
            Some(VqganConfig { scale_factor: STAGE_A_SCALE, ..config }.to_json())
        }),
    });

    /// The semantic compressor.
    pub const CASCADE_COMPRESSOR: Self = Self(&Description {
        folder: "effnet_encoder",
        stage: None,
        mark: COMPRESSOR_MARK,
        lacks: Some(AFFINE_COMPRESSOR_MARK),
        beside: None,
        network: Network::of::<CompressorConfig>(),
    });

    /// Shows image embeddings as small pictures.
    pub const CASCADE_PREVIEWER: Self = Self(&Description {
        folder: "previewer",
        stage: None,
        mark: "blocks.24.weight",
        lacks: None,
        beside: None,
        network: Network::of::<PreviewerConfig>(),
    });

    /// Makes Stage C follow a picture.
    pub const CASCADE_CONTROLNET: Self = Self(&Description {
        folder: "controlnet",
        stage: None,
        mark: "projections.0.0.weight",
        lacks: None,
        beside: None,
        network: Network::of::<ControlNetConfig>(),
    });
}

/// The parts of Würstchen v1. All but Stage B are of the kinds of v2, so that Stage B tells the family.
impl Part {
    /// The text encoder of both stages.
    pub const V1_TEXT: Self = Self(&Description {
        folder: "wuerstchen-v1-prior/text_encoder",
        stage: Some(Stage::Text),
        mark: TEXT_MARK,
        lacks: Some(PROJECTION_MARK),
        beside: Some((Self::V1_PRIOR, PRIOR_MARK)),
        network: Network::of::<TextEncoderConfig>(),
    });

    /// Stage C.
    pub const V1_PRIOR: Self = Self(&Description {
        folder: "wuerstchen-v1-prior/prior",
        stage: Some(Stage::Prior),
        mark: PRIOR_MARK,
        lacks: None,
        beside: None,
        network: Network::of::<PriorConfig>(),
    });

    /// Stage B, which denoises tokens.
    pub const V1_DECODER: Self = Self(&Description {
        folder: "wuerstchen-v1/decoder",
        stage: Some(Stage::Decoder),
        mark: "byt5_mapper.weight",
        lacks: None,
        beside: None,
        network: Network::of::<TokenDecoderConfig>(),
    });

    /// Stage A.
    pub const V1_VQGAN: Self = Self(&Description {
        folder: "wuerstchen-v1/vqgan",
        stage: Some(Stage::Vqgan),
        mark: VQGAN_MARK,
        lacks: None,
        beside: None,
        network: Network::of::<VqganConfig>(),
    });

    /// The semantic compressor.
    pub const V1_COMPRESSOR: Self = Self(&Description {
        folder: "effnet-v1",
        stage: None,
        mark: AFFINE_COMPRESSOR_MARK,
        lacks: None,
        beside: None,
        network: Network::of::<CompressorConfig>(),
    });
}

/// The matrices of Stable Cascade that take or make a text's embedding.
const CASCADE_PRIOR_MARK: &str = "clip_txt_mapper.weight";
const PROJECTION_MARK: &str = "text_projection.weight";

/// The mapper of a compressor, and the scale of the norm after it, which Stable Cascade's lacks.
const COMPRESSOR_MARK: &str = "mapper.0.weight";
const AFFINE_COMPRESSOR_MARK: &str = "mapper.1.weight";

/// The first layer of a VQGAN.
const VQGAN_MARK: &str = "in_block.1.weight";

/// The matrices that take a text encoder's output: their second axes are as long as its width.
const PRIOR_MARK: &str = "cond_mapper.0.weight";
const DECODER_MARK: &str = "clip_mapper.weight";

/// The embeddings of a text encoder's tokens.
const TEXT_MARK: &str = "text_model.embeddings.token_embedding.weight";

impl Part {
    /// The parts of all families.
    pub fn all() -> impl Iterator<Item = Self> {
        Family::ALL.into_iter().flat_map(Family::all_parts)
    }

    /// The part whose folder a path of the model leads into.
    ///
    /// # Errors
    ///
    /// There is no such part.
    pub fn of_path(path: &str) -> Result<Self, LoadError> {
        let holds = |part: &Self| {
            path.strip_prefix(part.folder()).is_some_and(|rest| rest.starts_with('/'))
        };
        Self::all().find(holds).ok_or_else(|| unknown(path))
    }
}

impl FromStr for Part {
    type Err = LoadError;

    fn from_str(folder: &str) -> Result<Self, LoadError> {
        Self::all().find(|part| part.folder() == folder).ok_or_else(|| unknown(folder))
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn unknown(found: &str) -> LoadError {
    let expected: Vec<_> = Part::all().map(Part::folder).collect();
    LoadError::UnknownPart { found: found.to_owned(), expected: expected.join(", ") }
}

/// The file in the folder of a pipeline that tells how pictures are prepared for its image encoder.
pub const PREPARATION: &str = "feature_extractor/preprocessor_config.json";

/// The folder of a pipeline of diffusers: some of the parts, and what is said about them together.
#[derive(Clone, Copy)]
pub struct PipelineFolder {
    /// Its name in the model's folder.
    pub name: &'static str,
    /// What diffusers calls the pipeline.
    pub class: &'static str,
    /// The beginning that diffusers' names of all pipelines of the family share.
    pub family_class: &'static str,
    /// What is put before the names in it where diffusers saves all pipelines in one folder.
    pub prefix: &'static str,
    /// The part that the pipeline runs.
    pub main: Part,
    /// What `model_index.json` says where the model has none.
    pub default_index: fn() -> Value,
    /// Whether the pipeline's network has a noise schedule; a network that denoises tokens has none.
    pub is_scheduled: bool,
}

impl PipelineFolder {
    /// Stage C.
    pub const PRIOR: Self = Self {
        name: "wuerstchen-prior",
        class: "WuerstchenPriorPipeline",
        family_class: "Wuerstchen",
        prefix: "prior_",
        main: Part::PRIOR,
        default_index: || json!(PriorIndex::default()),
        is_scheduled: true,
    };

    /// Stages B and A.
    pub const DECODER: Self = Self {
        name: "wuerstchen",
        class: "WuerstchenDecoderPipeline",
        family_class: "Wuerstchen",
        prefix: "",
        main: Part::DECODER,
        default_index: || json!(DecoderIndex::default()),
        is_scheduled: true,
    };

    /// Stage C of Stable Cascade.
    pub const CASCADE_PRIOR: Self = Self {
        name: "stable-cascade-prior",
        class: "StableCascadePriorPipeline",
        family_class: "StableCascade",
        prefix: "prior_",
        main: Part::CASCADE_PRIOR,
        default_index: unscaled_index,
        is_scheduled: true,
    };

    /// Stages B and A of Stable Cascade.
    pub const CASCADE_DECODER: Self = Self {
        name: "stable-cascade",
        class: "StableCascadeDecoderPipeline",
        family_class: "StableCascade",
        prefix: "",
        main: Part::CASCADE_DECODER,
        default_index: || json!(DecoderIndex::default()),
        is_scheduled: true,
    };

    /// Stage C of Würstchen v1. There is no such pipeline in diffusers.
    pub const V1_PRIOR: Self = Self {
        name: "wuerstchen-v1-prior",
        class: "WuerstchenV1PriorPipeline",
        family_class: "WuerstchenV1",
        prefix: "prior_",
        main: Part::V1_PRIOR,
        default_index: unscaled_index,
        is_scheduled: true,
    };

    /// Stages B and A of Würstchen v1.
    pub const V1_DECODER: Self = Self {
        name: "wuerstchen-v1",
        class: "WuerstchenV1DecoderPipeline",
        family_class: "WuerstchenV1",
        prefix: "",
        main: Part::V1_DECODER,
        default_index: || json!({}),
        is_scheduled: false,
    };

    /// The path of the constants of the pipeline.
    pub fn index(self) -> String {
        format!("{}/model_index.json", self.name)
    }

    /// The path of the constants of the noise schedule.
    pub fn scheduler(self) -> String {
        format!("{}/scheduler/scheduler_config.json", self.name)
    }

    /// The path of the file that tells how pictures are prepared for an image encoder in this folder.
    pub fn preparation(self) -> String {
        format!("{}/{PREPARATION}", self.name)
    }

    /// The folder of the tokenizer.
    pub fn tokenizer(self) -> String {
        format!("{}/tokenizer", self.name)
    }

    /// The parts in this folder, with their names in it.
    pub fn parts(self) -> impl Iterator<Item = (&'static str, Part)> {
        Part::all().filter_map(move |part| {
            let name = part.folder().strip_prefix(self.name)?.strip_prefix('/')?;
            Some((name, part))
        })
    }
}

/// The index of a Stage C that works on image embeddings as they are.
fn unscaled_index() -> Value {
    json!(PriorIndex { latent_mean: 1.0, latent_std: 0.0, ..PriorIndex::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_by_their_folders_and_others_refused() {
        for part in Part::all() {
            assert_eq!(part.folder().parse::<Part>().unwrap(), part);
            assert_eq!(Part::of_path(&part.weights_path()).unwrap(), part);
        }
        for path in ["wuerstchen/unet", "wuerstchen/decoder2/a", "wuerstchen/decoder"] {
            let error = Part::of_path(path).unwrap_err().to_string();
            let expected = format!("unknown part {path:?}: expected one of wuerstchen-prior/text_");
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn pipelines_name_their_parts_as_diffusers_does() {
        let names =
            |pipeline: PipelineFolder| pipeline.parts().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(PipelineFolder::PRIOR), ["text_encoder", "prior"]);
        assert_eq!(names(PipelineFolder::DECODER), ["text_encoder", "decoder", "vqgan"]);
        let prior = ["text_encoder", "prior", "image_encoder"];
        assert_eq!(names(PipelineFolder::CASCADE_PRIOR), prior);
        let decoder = ["decoder", "vqgan", "text_encoder"];
        assert_eq!(names(PipelineFolder::CASCADE_DECODER), decoder);
        assert_eq!(names(PipelineFolder::V1_PRIOR), ["text_encoder", "prior"]);
        assert_eq!(names(PipelineFolder::V1_DECODER), ["decoder", "vqgan"]);
    }
}
