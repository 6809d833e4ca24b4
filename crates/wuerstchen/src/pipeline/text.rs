//! Prompts to text embeddings.

use burn::module::Module;
use burn::prelude::*;

use super::models::Text;
use super::progress::Error;
use super::sampling::Guided;
use crate::config::ConfigError;
use crate::error::LoadError;
use crate::guidance::is_guided;
use crate::options::{PromptSyntax, Settings};
use crate::origin::Batch;
use crate::part::Part;
use crate::residency::Slot;
use crate::text::emphasis::{is_plain, passages};
use crate::text::{
    PooledTextEncoder, TextEmbedding, TextEncoder, TokenIds, Tokenizer, TokenizerError,
    TokenizerFiles, Unread, WeightedTokens,
};

/// The network that embeds the tokens of prompts.
#[derive(Module, Debug)]
pub(crate) enum TextModel {
    /// It embeds tokens alone.
    Plain(TextEncoder),
    /// It embeds tokens, and the whole prompt too.
    Pooled(PooledTextEncoder),
}

impl TextModel {
    fn forward(&self, prompts: &[TokenIds]) -> TextEmbedding {
        match self {
            Self::Plain(encoder) => {
                TextEmbedding { tokens: encoder.forward(prompts), pooled: None }
            }
            Self::Pooled(encoder) => encoder.forward(prompts),
        }
    }
}

/// A text encoder and its tokenizer.
pub struct TextPart {
    /// Splits prompts.
    pub tokenizer: Tokenizer,
    /// Embeds tokens.
    pub(super) encoder: Slot<TextModel>,
}

impl TextPart {
    /// A text part whose weights are not loaded yet.
    pub(super) fn init(
        tokenizer: &TokenizerFiles,
        part: Part,
        text: Text,
    ) -> Result<Self, LoadError> {
        let tokenizer = Tokenizer::new(tokenizer, text.length)?;
        if tokenizer.id_count() > text.vocab_size {
            let expected = format!("at least {}, the tokenizer's", tokenizer.id_count());
            let found = text.vocab_size;
            return Err(ConfigError::new("text encoder", "vocab_size", expected, found).into());
        }
        Ok(Self { tokenizer, encoder: Slot::new(part, text.model) })
    }

    /// Embeds prompts.
    ///
    /// # Errors
    ///
    /// Names the prompt that cannot be split; or the weights cannot be loaded.
    pub fn embed(&self, prompts: &[&str]) -> Result<TextEmbedding, Error> {
        Ok(self.embed_with(&self.encoder.get()?, prompts, PromptSyntax::Plain)?)
    }

    /// The parts of a prompt that the encoder does not read.
    ///
    /// # Errors
    ///
    /// Names the prompt that cannot be split.
    pub fn unread(&self, prompt: &str, syntax: PromptSyntax) -> Result<Unread, TokenizerError> {
        let words = match syntax {
            PromptSyntax::Plain => prompt.to_owned(),
            PromptSyntax::Weighted => {
                passages(prompt).into_iter().map(|passage| passage.text).collect()
            }
        };
        Ok(Unread {
            cut_off: self.tokenizer.cut_off(&words)?.map(str::to_owned),
            unknown_words: self.tokenizer.unknown_words(&words)?,
        })
    }

    /// Embeds prompts, whose passages may have weights: the embedding `z` of a token of weight `w` becomes
    /// `z + (w − 1)·(z − e)`, where `e` is the embedding at the same place of the empty prompt. The embedding of a
    /// whole prompt stays as it is, because it has no tokens to weigh.
    ///
    /// Source: `ClipTokenWeightEncoder.encode_token_weights` of `ComfyUI`, `sd1_clip.py`.
    fn embed_with(
        &self,
        encoder: &TextModel,
        prompts: &[&str],
        syntax: PromptSyntax,
    ) -> Result<TextEmbedding, TokenizerError> {
        let encode = |prompt: &&str| {
            if syntax == PromptSyntax::Plain || is_plain(prompt) {
                let tokens = self.tokenizer.encode(prompt)?;
                let weights = vec![1.0; tokens.ids.len()];
                Ok(WeightedTokens { tokens, weights })
            } else {
                self.tokenizer.encode_passages(&passages(prompt))
            }
        };
        let tokens = prompts.iter().map(encode).collect::<Result<Vec<_>, TokenizerError>>()?;
        let changes: Vec<f32> =
            tokens.iter().flat_map(|tokens| tokens.weights.iter().map(|w| w - 1.0)).collect();
        let ids: Vec<TokenIds> = tokens.into_iter().map(|tokens| tokens.tokens).collect();
        let embedding = encoder.forward(&ids);
        if changes.iter().all(|&change| change == 0.0) {
            return Ok(embedding);
        }
        let TextEmbedding { tokens, pooled } = embedding;
        let [batch, length, _] = tokens.dims();
        let changes = TensorData::new(changes, [batch, length, 1]);
        let changes = Tensor::from_data(changes, &tokens.device());
        let empty = encoder.forward(&[self.tokenizer.encode("")?]).tokens;
        Ok(TextEmbedding { tokens: tokens.clone() + (tokens - empty) * changes, pooled })
    }
}

/// Embeds the prompts of every batch and, if the sampling is guided, the negative prompt as often.
pub(super) fn embed(
    part: &TextPart,
    batches: &[Batch<'_>],
    settings: &Settings,
    guidance_scale: f64,
) -> Result<Vec<Guided<TextEmbedding>>, Error> {
    let encoder = part.encoder.get()?;
    let embed = |prompts: &[&str]| part.embed_with(&encoder, prompts, settings.prompt_syntax);
    let unconditional =
        if is_guided(guidance_scale) { Some(embed(&[&settings.negative_prompt])?) } else { None };
    let guided = |batch: &Batch<'_>| {
        let (prompts, count) = (&batch.prompts, batch.prompts.len());
        let all_equal = prompts.windows(2).all(|pair| pair[0] == pair[1]);
        let mut conditional =
            if all_equal { embed(&prompts[..1])?.repeat(count) } else { embed(prompts)? };
        if let Some((prompt, share)) = batch.towards {
            let other = embed(&[prompt])?.repeat(count);
            conditional = conditional.lerp(other, share);
        }
        let unconditional = unconditional.clone().map(|text| text.repeat(count));
        Ok::<_, Error>(Guided { conditional, unconditional })
    };
    batches.iter().map(guided).collect()
}
