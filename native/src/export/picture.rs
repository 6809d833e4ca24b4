//! The pictures that an export makes.

use anyhow::Result;
use futures_lite::future::block_on;
use wuerstchen::{GenerateOptions, Generated, Pipeline, Progress};

use crate::progress::StepsBar;

/// The prompt of the golden vectors.
pub(super) const SELF_TEST_PROMPT: &str = "a red circle on a white background";

/// Makes pictures of a prompt and shows how far they are.
pub(super) fn generate(
    pipeline: &Pipeline,
    prompt: &str,
    options: &GenerateOptions,
) -> Result<Generated> {
    let bar = StepsBar::default();
    let mut on_step = async |progress: Progress<'_>| bar.show(&progress);
    let made = block_on(pipeline.generate(prompt, options, &mut on_step));
    bar.finish();
    Ok(made?)
}
