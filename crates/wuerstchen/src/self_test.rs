//! Golden vectors that tell whether a device computes what the CPU computes.
//!
//! A browser skips a shader that fails validation without an error, and the buffer keeps its former content. Only a
//! comparison shows this.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::options::GenerateOptions;
use crate::pipeline::{Error, Generated, Pipeline};
use crate::relative_error::relative_error;

/// A short generation and its results.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SelfTest {
    prompt: String,
    options: GenerateOptions,
    /// Stage C's result.
    image_embedding: Vec<f32>,
    /// Stage B's result.
    latents: Vec<f32>,
    /// Every [`PICTURE_STRIDE`]-th byte of the picture.
    picture: Vec<f32>,
}

/// A prime number, so that all colours are sampled, and all columns where it does not divide the width.
const PICTURE_STRIDE: usize = 7;

/// Bound of the relative errors: devices differ in the order of sums by less than 1e-4, stale data by
/// about 1.
const BOUND: f64 = 1e-2;

/// The same where Stage B draws tokens: logits that differ in their last digits draw a few other tokens.
const TOKEN_BOUND: f64 = 0.25;

/// The result of a device's self-test.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SelfTestReport {
    /// Whether every check was within its bound.
    pub ok: bool,
    /// The largest relative error.
    pub max_error: f64,
    /// All comparisons.
    pub checks: Vec<SelfTestCheck>,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SelfTestCheck {
    /// What was compared.
    pub name: &'static str,
    /// `||out - ref|| / ||ref||`.
    pub relative: f64,
    /// Largest value that passes.
    pub bound: f64,
    /// Whether it passed.
    pub ok: bool,
}

impl SelfTest {
    /// The options of a short generation of `side` pixels, or of the model's own size.
    pub fn options(side: Option<usize>) -> GenerateOptions {
        GenerateOptions {
            seed: 1,
            width: side,
            height: side,
            prior_steps: Some(2),
            decoder_steps: Some(2),
            ..Default::default()
        }
    }

    /// Records what this device makes. It should be the CPU, whose results tests compare with the reference.
    ///
    /// # Errors
    ///
    /// The pipeline cannot generate.
    pub async fn record(
        pipeline: &Pipeline,
        prompt: &str,
        options: GenerateOptions,
    ) -> Result<Self, Error> {
        let [image_embedding, latents, picture] = run(pipeline, prompt, &options).await?;
        Ok(Self { prompt: prompt.to_owned(), options, image_embedding, latents, picture })
    }

    /// Compares what the pipeline's device makes with what was recorded.
    ///
    /// # Errors
    ///
    /// The pipeline cannot generate.
    pub async fn run(&self, pipeline: &Pipeline) -> Result<SelfTestReport, Error> {
        let found = match run(pipeline, &self.prompt, &self.options).await {
            // Missing results count as the largest error.
            Err(Error::NotFinite { .. }) => Default::default(),
            found => found?,
        };
        let expected = [
            ("image embedding (Stage C)", &self.image_embedding),
            ("latents (Stage B)", &self.latents),
            ("picture (Stage A)", &self.picture),
        ];
        let of_tokens = if pipeline.has_tokens() { TOKEN_BOUND } else { BOUND };
        let bounds = [BOUND, of_tokens, of_tokens];
        let mut checks = Vec::new();
        for (((name, expected), found), bound) in expected.into_iter().zip(&found).zip(bounds) {
            let relative = relative_error(found, expected);
            checks.push(SelfTestCheck { name, relative, bound, ok: relative <= bound });
        }
        let max_error = checks.iter().fold(0.0f64, |max, check| max.max(check.relative));
        Ok(SelfTestReport { ok: checks.iter().all(|check| check.ok), max_error, checks })
    }
}

async fn run(
    pipeline: &Pipeline,
    prompt: &str,
    options: &GenerateOptions,
) -> Result<[Vec<f32>; 3], Error> {
    let go = &mut async |_: crate::Progress<'_>| ControlFlow::Continue(());
    let Generated { images, image_embeddings, latents, .. } =
        pipeline.generate(prompt, options, go).await?;
    let values = |data: burn::tensor::TensorData| {
        data.convert::<f32>().try_to_vec::<f32>().expect("converted to f32")
    };
    let picture = images[0].rgb.iter().step_by(PICTURE_STRIDE).map(|&v| f32::from(v)).collect();
    Ok([values(image_embeddings), values(latents), picture])
}
