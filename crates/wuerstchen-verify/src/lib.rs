//! Comparison of the whole system with tensors that the authors' code computed.
//!
//! A folder of goldens holds, for a tiny model, what each part makes of given inputs. Every golden
//! is computed again here from the same inputs and weights, and compared under a stated bound.

mod compare;
mod pictures;
mod report;
mod schedule;
mod stages;
mod text;
mod training;

use std::collections::BTreeMap;

use burn::prelude::*;
use wuerstchen::{Checkpoint, ModelFiles};

use compare::Recorder;
pub use report::{Check, Verification, VerifyError};

/// What is compared with what.
pub struct Subject<'a> {
    /// The model in the diffusers layout.
    pub files: &'a ModelFiles,
    /// The same weights from the authors' original files, under the names of diffusers; may lack
    /// parts.
    pub originals: &'a ModelFiles,
    /// What the reference computed.
    pub goldens: &'a Goldens,
    /// Where our code runs.
    pub device: &'a Device,
    /// Factor on every bound: 1 on a CPU, [`GPU_SLACK`] on a GPU.
    pub slack: f64,
}

/// A GPU sums in other orders and may round products to fewer bits.
pub const GPU_SLACK: f64 = 10.0;

/// The reference's tensors, by the name of their file.
#[derive(Clone, Default)]
pub struct Goldens {
    /// `golden/NAME.safetensors`.
    pub tensors: BTreeMap<String, Checkpoint>,
    /// `golden/NAME.json`.
    pub texts: BTreeMap<String, String>,
}

/// A group of goldens: its file and the function that computes it again.
type Compare = fn(&mut Recorder, &ModelFiles, &Device) -> Result<(), VerifyError>;

const STAGES: [(&str, Compare); 4] = [
    ("prior", stages::prior),
    ("decoder", stages::decoder),
    ("vqgan", stages::vqgan),
    ("effnet", stages::compressor),
];

const OTHERS: [(&str, Compare); 7] = [
    ("clip_prior", text::prior),
    ("clip_decoder", text::decoder),
    ("interpolate", schedule::interpolate),
    ("scheduler", schedule::scheduler),
    ("train_prior", training::prior),
    ("train_decoder", training::decoder),
    ("train_vqgan", training::vqgan),
];

/// Computes every golden again and compares; golden files that are not there are skipped.
/// Calls `on_file` with the name of each before it is computed.
///
/// # Errors
///
/// The model cannot be loaded, or a golden file lacks its inputs. Differences are no error but
/// failed checks.
pub async fn verify(
    subject: &Subject<'_>,
    on_file: &mut dyn FnMut(&str),
) -> Result<Verification, VerifyError> {
    let Subject { files, originals, goldens, device, slack } = *subject;
    let mut result = Verification::default();
    for (name, compare) in STAGES.into_iter().chain(OTHERS) {
        let Some(golden) = goldens.tensors.get(name) else { continue };
        on_file(name);
        let mut recorder = Recorder::new(name, golden, slack);
        compare(&mut recorder, files, device)?;
        recorder.finish(&mut result).await?;
    }
    if let Some(rows) = goldens.texts.get("tokenizer") {
        on_file("tokenizer");
        let empty = Checkpoint::from_tensors("tokenizer", []);
        let mut recorder = Recorder::new("tokenizer", &empty, slack);
        text::tokenizers(&mut recorder, files, rows)?;
        recorder.finish(&mut result).await?;
    }
    if let (Some(golden), Some(case)) =
        (goldens.tensors.get("pipeline"), goldens.texts.get("pipeline"))
    {
        on_file("pipeline");
        let studio = pictures::Studio::load(files, golden, case, device)?;
        let mut recorder = Recorder::new("pipeline", golden, slack);
        studio.variants(&mut recorder).await?;
        recorder.finish(&mut result).await?;
        if let Some(golden) = goldens.tensors.get("combined") {
            on_file("combined");
            let mut recorder = Recorder::new("combined", golden, slack);
            studio.combined(&mut recorder).await?;
            recorder.finish(&mut result).await?;
        }
    }
    for ((name, compare), part) in STAGES.into_iter().zip(stages::PARTS) {
        let Some(golden) = goldens.tensors.get(name) else { continue };
        if originals.weights.contains_key(&part) {
            let name = format!("original/{name}");
            on_file(&name);
            let mut recorder = Recorder::new(&name, golden, slack);
            compare(&mut recorder, originals, device)?;
            recorder.finish(&mut result).await?;
        }
    }
    Ok(result)
}
