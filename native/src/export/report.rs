//! What a storage type costs: errors of weights and of pictures.

use std::collections::BTreeMap;

use anyhow::Result;
use futures_lite::future::block_on;
use indicatif::ProgressBar;
use serde::Serialize;
use wuerstchen::headroom::{LARGEST_HALF, LargestActivations};
use wuerstchen::{Checkpoint, GenerateOptions, ModelFiles, Part, Pipeline, StoredDtype};

use super::picture::{SELF_TEST_PROMPT, generate};
use crate::progress::bytes_bar;

/// The errors that a storage type makes.
#[derive(Serialize)]
pub(super) struct Report {
    parts: BTreeMap<Part, PartError>,
    /// Largest activation of every block of every stage; half precision holds 65504.
    largest_activations: LargestActivations,
    /// Peak signal-to-noise ratio in decibels of pictures of the stored weights against pictures of
    /// the given weights, for the seeds 0, 1, ….
    psnr: Vec<f64>,
}

#[derive(Serialize)]
struct PartError {
    /// `||stored - given|| / ||given||`.
    relative: f64,
    tensors: BTreeMap<String, TensorError>,
}

#[derive(Serialize)]
struct TensorError {
    dtype: StoredDtype,
    /// `||stored - given|| / ||given||`.
    relative: f64,
    /// The largest difference.
    absolute: f64,
}

impl Report {
    /// Compares the weights.
    pub(super) fn new(given: &ModelFiles, stored: &ModelFiles) -> Result<Self> {
        let weights = given.family().needed().filter_map(|part| stored.weights.get(&part));
        let bytes = weights.flat_map(Checkpoint::describe).map(|(.., bytes)| bytes).sum();
        let bar = bytes_bar("comparing the weights", bytes);
        let parts = given.family().needed().map(|part| {
            let error = PartError::new(given.weights(part)?, stored.weights(part)?, &bar)?;
            Ok((part, error))
        });
        let parts = parts.collect::<Result<_>>()?;
        bar.finish_and_clear();
        Ok(Self { parts, largest_activations: LargestActivations::new(), psnr: Vec::new() })
    }

    /// Compares pictures.
    pub(super) fn add_pictures(
        &mut self,
        given: &Pipeline,
        stored: &Pipeline,
        options: &GenerateOptions,
    ) -> Result<()> {
        let settings = stored.settings(options, None)?;
        self.largest_activations =
            block_on(stored.largest_activations(SELF_TEST_PROMPT, &settings))?;
        let ours = generate(stored, SELF_TEST_PROMPT, options)?.images;
        let theirs = generate(given, SELF_TEST_PROMPT, options)?.images;
        self.psnr = ours.iter().zip(&theirs).map(|(ours, theirs)| ours.psnr(theirs)).collect();
        Ok(())
    }

    /// The report for people.
    pub(super) fn text(&self) -> String {
        let mut lines = vec![format!("{:<36}{:>16}  worst tensor", "part", "relative error")];
        for (part, error) in &self.parts {
            let worst = error.tensors.iter().max_by(|a, b| a.1.relative.total_cmp(&b.1.relative));
            let worst = worst.map(|(name, error)| format!("{name}, {:.1e}", error.relative));
            lines.push(format!(
                "{part:<36}{:>16.1e}  {}",
                error.relative,
                worst.unwrap_or_default()
            ));
        }
        for (stage, blocks) in &self.largest_activations {
            let Some((block, largest)) = blocks.iter().max_by(|a, b| a.1.total_cmp(b.1)) else {
                continue;
            };
            let share = LARGEST_HALF / largest;
            let stage = format!("{stage:?}").to_lowercase();
            let digits = usize::from(share < 10.0);
            lines.push(format!(
                "{stage}: largest activation {largest:.1} in {block}, {share:.digits$} times below f16's \
                 largest"
            ));
        }
        if !self.psnr.is_empty() {
            let told = |&psnr: &f64| {
                if psnr.is_finite() { format!("{psnr:.1} dB") } else { "equal".to_owned() }
            };
            let psnr: Vec<_> = self.psnr.iter().map(told).collect();
            lines.push(format!("pictures against those of the given weights: {}", psnr.join(", ")));
        }
        lines.join("\n")
    }
}

impl PartError {
    fn new(given: &Checkpoint, stored: &Checkpoint, bar: &ProgressBar) -> Result<Self> {
        let (mut all, mut norm, mut tensors) = (0.0f64, 0.0f64, BTreeMap::new());
        for (name, dtype, _, bytes) in stored.describe() {
            let (mut squares, mut size, mut absolute) = (0.0f64, 0.0f64, 0.0f64);
            for (a, b) in given.values(name)?.iter().zip(stored.values(name)?) {
                let difference = f64::from(a - b);
                squares += difference.powi(2);
                size += f64::from(*a).powi(2);
                absolute = absolute.max(difference.abs());
            }
            let relative = (squares / size.max(f64::MIN_POSITIVE)).sqrt();
            tensors.insert(name.to_owned(), TensorError { dtype, relative, absolute });
            all += squares;
            norm += size;
            bar.inc(bytes as u64);
        }
        Ok(Self { relative: (all / norm).sqrt(), tensors })
    }
}
