//! Tokenizers and text encoders.

use burn::prelude::*;
use serde::Deserialize;
use wuerstchen::text::TokenIds;
use wuerstchen::{LoadError, ModelFiles, Part, TextEncoderConfig, Tokenizer, TokenizerFiles};

use crate::compare::Recorder;
use crate::report::VerifyError;
use crate::stages::EXACT_BOUND;

pub(crate) fn prior(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    encoder(recorder, files, Part::PRIOR_TEXT, device)
}

pub(crate) fn decoder(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    encoder(recorder, files, Part::DECODER_TEXT, device)
}

fn encoder(
    recorder: &mut Recorder,
    files: &ModelFiles,
    part: Part,
    device: &Device,
) -> Result<(), VerifyError> {
    let (config, model) = files.load::<TextEncoderConfig>(part, device)?;
    let attended = prompts(recorder, config.vocab_size)?;
    let last = model.forward_observed(&attended, &mut |i, h| {
        recorder.check(&format!("hidden_states.{i}"), h.clone(), EXACT_BOUND);
        let module = match i.checked_sub(1) {
            Some(layer) => format!("act/text_model.encoder.layers.{layer}:out"),
            None => "act/text_model.embeddings:out".to_owned(),
        };
        recorder.check(&module, h.clone(), EXACT_BOUND);
    });
    recorder.check("last_hidden_state", last, EXACT_BOUND);
    let all = |prompt: &TokenIds| TokenIds {
        ids: prompt.ids.clone(),
        attended: vec![true; prompt.ids.len()],
    };
    let unmasked = model.forward(&attended.iter().map(all).collect::<Vec<_>>());
    recorder.check("last_hidden_state.no_mask", unmasked, EXACT_BOUND);
    Ok(())
}

/// The prompts of a golden of a text encoder.
pub(crate) fn prompts(
    recorder: &Recorder,
    vocab_size: usize,
) -> Result<Vec<TokenIds>, VerifyError> {
    let &[count, length] = recorder.shape("input_ids")? else {
        return Err(recorder.error("expected [B, T] in \"input_ids\"".into()));
    };
    let ids = recorder.integers("input_ids")?;
    let mask = recorder.integers("attention_mask")?;
    if mask.len() != ids.len() {
        return Err(recorder.error("expected as much \"attention_mask\" as \"input_ids\"".into()));
    }
    let unknown = |&&id: &&i64| usize::try_from(id).map_or(true, |id| id >= vocab_size);
    if let Some(id) = ids.iter().find(unknown) {
        return Err(recorder.error(format!("expected ids below {vocab_size}, got {id}")));
    }
    let row = |i: usize| TokenIds {
        ids: ids[i * length..][..length].iter().map(|&id| id as u32).collect(),
        attended: mask[i * length..][..length].iter().map(|&seen| seen != 0).collect(),
    };
    Ok((0..count).map(row).collect())
}

/// `golden/tokenizer.json`.
#[derive(Deserialize)]
struct Rows {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    prompt: String,
    input_ids: Vec<i64>,
    attention_mask: Vec<i64>,
}

/// Every prompt through both tokenizers, from `tokenizer.json` and from the vocabulary files.
pub(crate) fn tokenizers(
    recorder: &mut Recorder,
    files: &ModelFiles,
    rows: &str,
) -> Result<(), VerifyError> {
    let rows: Rows =
        serde_json::from_str(rows).map_err(|error| recorder.error(error.to_string()))?;
    for (stage, pipeline) in ["prior", "decoder"].into_iter().zip(files.family().pipelines) {
        let whole = files.tokenizer(pipeline);
        if !whole.is_complete() {
            continue;
        }
        let split = TokenizerFiles { tokenizer: None, ..whole.clone() };
        let mut sources = vec![(stage.to_owned(), &whole)];
        if split.vocab.is_some() && split.merges.is_some() {
            sources.push((format!("{stage}.vocab"), &split));
        }
        for (source, tokenizer) in sources {
            for (i, row) in rows.rows.iter().enumerate() {
                let length = row.input_ids.len();
                let tokenizer = Tokenizer::new(tokenizer, length).map_err(LoadError::from)?;
                let encoded = tokenizer.encode(&row.prompt).map_err(LoadError::from)?;
                let ids: Vec<i64> = encoded.ids.iter().map(|&id| id.into()).collect();
                let mask: Vec<i64> = encoded.attended.iter().map(|&seen| seen.into()).collect();
                let name = |what: &str| format!("{source}.rows.{i}.{what}");
                recorder.check_equal(&name("input_ids"), &ids, &row.input_ids);
                recorder.check_equal(&name("attention_mask"), &mask, &row.attention_mask);
            }
        }
    }
    Ok(())
}
