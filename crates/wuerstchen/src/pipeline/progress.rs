//! What a generation reports to its caller: its steps, or why it failed.

use std::fmt::Debug;
use std::ops::ControlFlow;
use std::pin::Pin;

use burn::tensor::TensorData;

use crate::error::LoadError;
use crate::options::OptionsError;
use crate::part::Stage;
use crate::text::TokenizerError;

/// Why no picture was made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options cannot be run.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The prompt cannot be split into tokens.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The weights of a part cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// The latents of a stage have values that are infinite or NaN.
    #[error(
        "the latents of {} are infinite or NaN from step {step} on: expected smaller scales of \
         guidance or of a ControlNet, or other weights",
        stage.name()
    )]
    NotFinite {
        /// Which stage.
        stage: Stage,
        /// Its first step with such latents, from 1.
        step: usize,
    },
    /// The caller asked to stop.
    #[error("stopped on request")]
    Cancelled,
}

impl Error {
    /// The error of a device.
    pub(super) fn of_device(error: impl Debug) -> Self {
        Self::Device(format!("{error:?}"))
    }
}

/// Reported after every step.
pub struct Progress<'a> {
    /// Which stage.
    pub stage: Stage,
    /// Steps done, from 1.
    pub step: usize,
    /// Steps of this stage.
    pub steps: usize,
    /// What the step made, `[B, C, H, W]`; text embeddings as `[B, T, D]`.
    pub latents: &'a TensorData,
}

/// What is told of every step. Each closure `async |progress: Progress<'_>| ControlFlow::Continue(())` is one.
///
/// A trait object, so that the code of a generation is compiled once and not for every closure.
pub trait OnStep {
    /// Called after a step; `Break` stops the generation.
    fn call<'a>(
        &'a mut self,
        progress: Progress<'a>,
    ) -> Pin<Box<dyn Future<Output = ControlFlow<()>> + 'a>>;
}

impl<F: AsyncFnMut(Progress<'_>) -> ControlFlow<()>> OnStep for F {
    fn call<'a>(
        &'a mut self,
        progress: Progress<'a>,
    ) -> Pin<Box<dyn Future<Output = ControlFlow<()>> + 'a>> {
        Box::pin(async move { self(progress).await })
    }
}
