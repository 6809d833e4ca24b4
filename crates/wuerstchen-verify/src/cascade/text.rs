//! The text encoder of both stages.

use burn::prelude::*;
use wuerstchen::{ModelFiles, Part, PooledTextConfig};

use crate::compare::Recorder;
use crate::report::VerifyError;
use crate::stages::EXACT_BOUND;
use crate::text::prompts;

pub(crate) fn encoder(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let (config, model) = files.load::<PooledTextConfig>(Part::CASCADE_TEXT, device)?;
    let prompts = prompts(recorder, config.text.vocab_size)?;
    let embedding = model.forward_observed(&prompts, &mut |i, h| {
        recorder.check(&format!("hidden_states.{i}"), h.clone(), EXACT_BOUND);
    });
    recorder.check("prompt_embeds", embedding.tokens.clone(), EXACT_BOUND);
    recorder.check("last_hidden_state", model.last_hidden_state(embedding.tokens), EXACT_BOUND);
    if let Some(pooled) = embedding.pooled {
        recorder.check("prompt_embeds_pooled", pooled.clone(), EXACT_BOUND);
        recorder.check("text_embeds", pooled, EXACT_BOUND);
    }
    Ok(())
}
