//! From a path to a picture.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Device;
use futures_lite::future::block_on;

use super::error::{OpenError, Result};
use super::found::Found;
use crate::model_files::ModelFiles;
use crate::options::GenerateOptions;
use crate::pipeline::{Error, Generated, Pipeline, Progress};
use crate::residency::Residency;

impl ModelFiles {
    /// Opens a model: anything that [`Found::add`] takes. Weights stay where they are until they are
    /// needed.
    ///
    /// # Errors
    ///
    /// Names the file or folder that cannot be read or is no model.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let mut found = Found::default();
        found.add(path.as_ref())?;
        found.finish()
    }
}

impl Pipeline {
    /// Opens a model and loads it to `device`.
    ///
    /// # Errors
    ///
    /// Names the file or folder that cannot be read, or the weights or configs that do not fit.
    pub fn open(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::load(&ModelFiles::open(path)?, device, Residency::Auto).map_err(OpenError::from)
    }

    /// Makes pictures of a prompt, and returns when they are there.
    ///
    /// On a CPU it is faster if it is called by a thread of a rayon pool (`ThreadPool::install`): each kernel divides its
    /// work among the pool's threads, and does not have to hand all of it over to them.
    ///
    /// # Errors
    ///
    /// As [`Self::generate`].
    pub fn generate_blocking(
        &self,
        prompt: &str,
        options: &GenerateOptions,
    ) -> std::result::Result<Generated, Error> {
        let on_step = &mut async |_: Progress<'_>| ControlFlow::Continue(());
        block_on(self.generate(prompt, options, on_step))
    }
}
