//! Comparison of the whole system with tensors that the authors' code computed.
//!
//! A folder of goldens holds, for a tiny model, what each part makes of given inputs. Every golden
//! is computed again here from the same inputs and weights, and compared under a stated bound.

mod cascade;
mod compare;
mod pictures;
mod report;
mod schedule;
mod stages;
mod text;
mod training;
mod v1;

use std::collections::{BTreeMap, BTreeSet};

use burn::prelude::*;
use wuerstchen::import::recognise;
use wuerstchen::{Checkpoint, Family, LoraFile, ModelFiles, Part};

use compare::Recorder;
pub use report::{Check, Verification, VerifyError};

/// What is compared with what.
pub struct Subject<'a> {
    /// The model in the diffusers layout.
    pub files: &'a ModelFiles,
    /// The same weights from the authors' original files, under the names of diffusers; may lack
    /// parts.
    pub originals: &'a ModelFiles,
    /// A LoRA of the authors, where there is one that goldens were computed with.
    pub lora: Option<&'a LoraFile>,
    /// What the reference computed.
    pub goldens: &'a Goldens,
    /// Where our code runs.
    pub device: &'a Device,
    /// Factor on every bound: 1 on a CPU, [`GPU_SLACK`] on a GPU.
    pub slack: f64,
}

/// [`Subject::slack`] on a GPU, which sums in other orders and may round products to fewer bits.
pub const GPU_SLACK: f64 = 10.0;

/// The reference's tensors, by the name of their file.
#[derive(Clone, Default)]
pub struct Goldens {
    /// `golden/NAME.safetensors`.
    pub tensors: BTreeMap<String, Checkpoint>,
    /// `golden/NAME.json`.
    pub texts: BTreeMap<String, String>,
}

/// The authors' safetensors files as weights of a family's parts, under the names of diffusers. If two files hold the
/// same part, the first counts; files that hold no part are left out.
pub fn original_weights(
    family: &Family,
    files: impl IntoIterator<Item = Checkpoint>,
) -> BTreeMap<Part, Checkpoint> {
    let mut weights = BTreeMap::new();
    for file in files {
        let original = file.from_original();
        let mut parts = recognise(&original).into_iter();
        if let Some(part) = parts.find(|part| family.parts.contains(part)) {
            weights.entry(part).or_insert(original);
        }
    }
    weights
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
/// The model cannot be loaded, or a golden file lacks its inputs. A difference is not an error but a failed check.
pub async fn verify(
    subject: &Subject<'_>,
    on_file: &mut dyn FnMut(&str),
) -> Result<Verification, VerifyError> {
    let Subject { files, originals, goldens, device, slack, .. } = *subject;
    let mut result = Verification::default();
    if v1::is_one(files.family().prior()) {
        v1::verify(subject, &mut result, on_file).await?;
        return Ok(with_files_left_out(result, goldens));
    }
    let is_cascade = files.family().prior() == Part::CASCADE_PRIOR;
    let (stages, others, parts) = if is_cascade {
        (&cascade::STAGES, &cascade::OTHERS[..], cascade::PARTS)
    } else {
        (&STAGES, &OTHERS[..], stages::PARTS)
    };
    // Parts that only the original files have are compared in place of those of the folders.
    let mut all = files.clone();
    for (part, weights) in &originals.weights {
        all.weights.entry(*part).or_insert_with(|| weights.clone());
    }
    let is_there = |name: &str| goldens.tensors.contains_key(name);
    result.without_golden =
        stages.iter().map(|(name, _)| *name).filter(|name| !is_there(name)).collect();
    for &(name, compare) in stages.iter().chain(others) {
        let Some(golden) = goldens.tensors.get(name) else { continue };
        on_file(name);
        let mut recorder = Recorder::new(name, golden, slack);
        compare(&mut recorder, &all, device)?;
        recorder.finish(&mut result).await?;
    }
    if let Some(rows) = goldens.texts.get("tokenizer") {
        on_file("tokenizer");
        let empty = Checkpoint::from_tensors("tokenizer", []);
        let mut recorder = Recorder::new("tokenizer", &empty, slack);
        text::tokenizers(&mut recorder, files, rows)?;
        recorder.finish(&mut result).await?;
    }
    if is_cascade {
        cascade::samplings(subject, &mut result, on_file).await?;
    } else {
        pictures::samplings(subject, &mut result, on_file).await?;
    }
    for (&(name, compare), part) in stages.iter().zip(parts) {
        let Some(golden) = goldens.tensors.get(name) else { continue };
        // A part that lies in one place only has been compared already.
        if originals.weights.contains_key(&part) && files.weights.contains_key(&part) {
            let name = format!("original/{name}");
            on_file(&name);
            let mut recorder = Recorder::new(&name, golden, slack);
            compare(&mut recorder, originals, device)?;
            recorder.finish(&mut result).await?;
        }
    }
    Ok(with_files_left_out(result, goldens))
}

/// With the golden files that nothing was compared with.
fn with_files_left_out(mut result: Verification, goldens: &Goldens) -> Verification {
    let compared: BTreeSet<String> = result.computed.keys().cloned().collect();
    let files = goldens.tensors.keys().filter(|name| !compared.contains(*name));
    result.left_out.extend(files.cloned());
    result
}
