//! Goldens of Würstchen v1.

mod networks;
mod samplings;
mod training;

use wuerstchen::Part;

use crate::compare::Recorder;
use crate::report::{Verification, VerifyError};
use crate::{Compare, Subject};

use self::samplings::Studio;

/// Each network by itself, and the noising of tokens.
const NETWORKS: [(&str, Compare); 4] = [
    ("stage_a", networks::vqgan),
    ("stage_b", networks::decoder),
    ("stage_c", networks::prior),
    ("noising", training::noising),
];

/// Computes every golden again and compares; `on_file` is called before each file.
pub(crate) async fn verify(
    subject: &Subject<'_>,
    result: &mut Verification,
    on_file: &mut dyn FnMut(&str),
) -> Result<(), VerifyError> {
    let Subject { files, goldens, device, slack, .. } = *subject;
    for (name, compare) in NETWORKS {
        let Some(golden) = goldens.tensors.get(name) else { continue };
        on_file(name);
        let mut recorder = Recorder::new(name, golden, slack);
        compare(&mut recorder, files, device)?;
        recorder.finish(result).await?;
    }
    // The compressor sees the pictures of Stage A's goldens.
    let (effnet, stage_a) = (goldens.tensors.get("effnet"), goldens.tensors.get("stage_a"));
    if let (Some(golden), Some(pictures)) = (effnet, stage_a) {
        on_file("effnet");
        let pictures = networks::pictures(pictures, device)?;
        let mut recorder = Recorder::new("effnet", golden, slack);
        networks::compressor(&mut recorder, files, pictures.clone())?;
        recorder.finish(result).await?;
        if let Some(joint) = goldens.tensors.get("train_joint") {
            on_file("train_joint");
            let size = golden.shape("preprocessed").unwrap_or_default();
            let mut recorder = Recorder::new("train_joint", joint, slack);
            let prepared = networks::prepared(pictures, size);
            training::joint(&mut recorder, files, prepared)?;
            recorder.finish(result).await?;
        }
    }
    if let Some(golden) = goldens.tensors.get("train_stage_b") {
        on_file("train_stage_b");
        let mut recorder = Recorder::new("train_stage_b", golden, slack);
        training::decoder(&mut recorder, files, device)?;
        recorder.finish(result).await?;
    }
    // Samplings need what the goldens' prompts say.
    let Some(case) = goldens.texts.get("pipeline") else { return Ok(()) };
    let studio = Studio::load(files, case, device)?;
    for name in ["stage_c_sampling", "stage_b_sampling", "pipeline"] {
        let Some(golden) = goldens.tensors.get(name) else { continue };
        let Some(runs) = goldens.texts.get(name) else { continue };
        on_file(name);
        let mut recorder = Recorder::new(name, golden, slack);
        match name {
            "stage_c_sampling" => studio.prior_runs(&mut recorder, runs, files).await?,
            "stage_b_sampling" => studio.token_runs(&mut recorder, runs, files).await?,
            _ => studio.pipeline(&mut recorder).await?,
        }
        recorder.finish(result).await?;
    }
    Ok(())
}

/// Whether a model is of this family.
pub(crate) fn is_one(prior: Part) -> bool {
    prior == Part::V1_PRIOR
}

/// The prefix of a run's goldens.
fn prefixed<'a>(run: &'a str) -> impl Fn(&str) -> String + 'a {
    move |what| format!("{run}.{what}")
}
