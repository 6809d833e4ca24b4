//! The text encoder of both stages.

use burn::prelude::*;
use wuerstchen::text::TokenIds;
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

/// The embeddings of prompts with a LoRA that changes tokens. The authors attend to a prompt up to its end.
pub(super) fn changed_encoder(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let (config, model) = files.load::<PooledTextConfig>(Part::CASCADE_TEXT, device)?;
    let &[_, length] = recorder.shape("input_ids")? else {
        return Err(recorder.error("expected [B, T] in \"input_ids\"".into()));
    };
    let ids: Vec<u32> = recorder.integers("input_ids")?.into_iter().map(|id| id as u32).collect();
    let prompts: Vec<TokenIds> = ids
        .chunks(length)
        .map(|ids| {
            let end = ids.iter().position(|&id| id == config.eos_token_id).unwrap_or(length);
            TokenIds {
                ids: ids.to_vec(),
                attended: (0..length).map(|place| place <= end).collect(),
            }
        })
        .collect();
    let embedding = model.forward(&prompts);
    recorder.check("prompt_embeds", embedding.tokens, EXACT_BOUND);
    if let Some(pooled) = embedding.pooled {
        recorder.check("text_embeds", pooled, EXACT_BOUND);
    }
    Ok(())
}
