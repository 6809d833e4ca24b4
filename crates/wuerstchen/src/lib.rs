//! Würstchen: text to image in three stages (arXiv 2306.00637).
//!
//! ```text
//! prompt ─► text embedding ─► image embedding ─► latents ─► picture
//!     text encoder      Stage C (prior)  Stage B (decoder)  Stage A (vqgan)
//! ```
//!
//! Stage A, a VQGAN, turns pictures into latents and back. Stage B, a diffusion model, makes A's latents from an
//! image embedding, which a semantic compressor defines. At the published sizes the latents have a quarter of the
//! picture's width and height, and the embedding a 42nd. Stage C, a diffusion model too, makes that embedding from
//! a prompt. Training goes the other way: A, then B with the compressor, then C.
//!
//! With the feature `fs` (`examples/generate.rs` is this program):
//!
//! ```no_run
//! # #[cfg(feature = "fs")]
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use wuerstchen::{Device, GenerateOptions, Pipeline};
//!
//! let pipeline = Pipeline::open("model.safetensors", &Device::flex())?;
//! let options = GenerateOptions { seed: 7, ..Default::default() };
//! let made = pipeline.generate_blocking("a red circle on white", &options)?;
//! std::fs::write("circle.png", made.images[0].to_png()?)?;
//! # Ok(())
//! # }
//! ```
//!
//! A [`Request`] also has a picture to start from, a mask, pictures as prompts and frames.
//! [`Pipeline::prepare`] encodes its pictures, and [`Pipeline::generate_batches`] makes the pictures that it asks
//! for.
//!
//! Without the feature the crate does no I/O: [`ModelFiles::from_one_file`] takes bytes, [`Pipeline::load`] a model,
//! and [`Pipeline::generate`] reports every step to a callback.

pub mod authors_config;
pub mod batch_norm;
pub mod blocks;
mod canny;
pub mod card;
pub mod cascade;
pub mod checkpoint;
mod clip;
pub mod compressor;
pub mod config;
pub mod controlnet;
pub mod decoder;
mod error;
pub mod family;
#[cfg(feature = "fs")]
pub mod fs;
pub mod guidance;
pub mod headroom;
pub mod image;
pub mod import;
pub mod interpolate;
pub mod json;
pub mod lora;
pub mod manifest;
pub mod model_files;
mod multiply_adds;
pub mod noise;
pub mod options;
pub mod origin;
mod parallel;
pub mod part;
pub mod pipeline;
pub mod preview;
pub mod previewer;
pub mod prior;
pub mod provenance;
mod relative_error;
pub mod request;
pub mod residency;
pub mod resize;
pub mod sampler;
pub mod schedule;
pub mod self_test;
pub mod speed;
pub mod stored;
pub mod text;
pub mod token_decoder;
pub mod tokens;
pub mod vision;
pub mod vqgan;
pub mod weights;

pub use batch_norm::Statistics;
pub use burn::tensor::Device;
pub use card::{CARD, ModelCard, RUN_CONFIG, RUN_MODEL, TUNED_LORA, TUNED_MODEL};
pub use cascade::{Cascade, CascadeConfig};
pub use checkpoint::{Checkpoint, FileType, ReadBytes, WeightDtype};
pub use compressor::{Compressor, CompressorConfig};
pub use config::{ConfigError, PerLevel};
pub use controlnet::{ControlNet, ControlNetConfig};
pub use decoder::{Decoder, DecoderConfig};
pub use error::{Differences, LoadError};
pub use family::{Family, PipelineFolder};
pub use image::{Image, Mask};
pub use lora::{Lora, LoraError, LoraFile, TrainedLayer, TrainedLora};
pub use manifest::{Manifest, WebBundle};
pub use model_files::ModelFiles;
pub use options::{Defaults, GenerateOptions, OptionsError, PromptSyntax, Settings};
pub use origin::{Batch, Control, Origin, PicturePrompt};
pub use part::{Part, PartConfig, Stage};
pub use pipeline::{Error, Generated, OnStep, Pipeline, PipelineLoader, Progress};
pub use preview::EmbeddingColours;
pub use prior::{GroupConditions, Prior, PriorConfig};
pub use provenance::{Provenance, ProvenanceError};
pub use relative_error::{relative_error, relative_error_above};
pub use request::{Prepared, Request, SourcePictures};
pub use residency::Residency;
pub use sampler::{Recipe, Sampler};
pub use schedule::Schedule;
pub use self_test::SelfTest;
pub use stored::StoredDtype;
pub use text::{
    PooledTextConfig, PooledTextEncoder, TextEmbedding, TextEncoder, TextEncoderConfig, Tokenizer,
    TokenizerFiles, Unread,
};
pub use token_decoder::{TokenDecoder, TokenDecoderConfig};
pub use tokens::TokenSampling;
pub use vision::{ImageEncoder, ImageEncoderConfig};
pub use vqgan::{Vqgan, VqganConfig};
pub use weights::KeyTable;
pub use wuerstchen_kernels as kernels;
