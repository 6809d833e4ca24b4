//! The tokenizers of corpora: the words of a built-in corpus, or parts of words learnt from captions.

use std::borrow::Cow;

use serde_json::json;
use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::roberta::RobertaProcessing;
use wuerstchen::TokenizerFiles;
use wuerstchen::text::TokenizerError;

use crate::shapes;

const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const UNKNOWN: &str = "<|unknown|>";

/// Number of the unknown word in a tokenizer of words; the words follow.
pub(crate) const UNKNOWN_ID: u32 = 2;

/// Fewest tokens of a tokenizer of [`learn_tokenizer`]: every byte, beginning and end.
pub const MIN_VOCAB_SIZE: usize = 258;

/// Most tokens that may be asked for: the trainer takes memory for all of them, whatever the captions are. CLIP's
/// tokenizer has 49 408.
pub const MAX_VOCAB_SIZE: usize = 1_000_000;

/// The tokenizer that knows the words of the built-in scenes of shapes.
pub fn shapes_tokenizer() -> TokenizerFiles {
    word_tokenizer(&shapes::vocabulary())
}

/// A tokenizer that knows these words, in lower case, and no others; punctuation separates words.
pub fn word_tokenizer(words: &[impl AsRef<str>]) -> TokenizerFiles {
    let special = [BEGIN, END, UNKNOWN];
    let words = special.into_iter().chain(words.iter().map(AsRef::as_ref));
    let vocab: serde_json::Map<_, _> =
        words.enumerate().map(|(id, word)| (word.to_owned(), json!(id))).collect();
    let added = special.iter().enumerate().map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": "[^\\p{L}\\p{N}\\s]+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "RobertaProcessing", "sep": [END, 1], "cls": [BEGIN, 0],
                           "trim_offsets": false, "add_prefix_space": false},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN},
    });
    files(tokenizer.to_string())
}

/// Longest word, in letters, that the parts of words are learnt from. The trainer's time grows with its square.
const LONGEST_WORD: usize = 256;

/// A tokenizer of at most `vocab_size` tokens, the parts of words that are frequent in captions (byte-level BPE): it
/// can split any text in any language, and the same captions always give the same tokenizer.
///
/// # Errors
///
/// The `tokenizers` crate cannot learn the tokenizer; the error is its own.
pub fn learn_tokenizer<'a>(
    captions: impl Iterator<Item = &'a str> + Send,
    vocab_size: usize,
) -> Result<TokenizerFiles, TokenizerError> {
    let error = |reason: tokenizers::Error| TokenizerError::File {
        file: "tokenizer.json",
        reason: reason.to_string(),
    };
    let spaces =
        Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()), " ");
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    let normalizer = Sequence::new(vec![
        NFC.into(),
        Lowercase.into(),
        spaces.map_err(error)?.into(),
        Strip::new(true, true).into(),
    ]);
    tokenizer.with_normalizer(Some(normalizer)).map_err(error)?;
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(true, false, true)));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .special_tokens([BEGIN, END].map(|token| AddedToken::from(token, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build()
        .into();
    tokenizer.train(&mut trainer, captions.map(without_long_words)).map_err(error)?;
    let ends = RobertaProcessing::new((END.into(), 1), (BEGIN.into(), 0));
    tokenizer.with_post_processor(Some(ends.trim_offsets(false).add_prefix_space(false)));
    Ok(files(tokenizer.to_string(false).map_err(error)?))
}

/// The text with spaces inside words that are too long, such as those of a picture's bytes as text.
fn without_long_words(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST_WORD || text.split_whitespace().all(|word| word.len() <= LONGEST_WORD)
    {
        return Cow::Borrowed(text);
    }
    let mut cut = String::with_capacity(text.len());
    let mut length = 0;
    for c in text.chars() {
        length = if c.is_whitespace() { 0 } else { length + 1 };
        if length > LONGEST_WORD {
            cut.push(' ');
            length = 1;
        }
        cut.push(c);
    }
    Cow::Owned(cut)
}

fn files(tokenizer: String) -> TokenizerFiles {
    let config = json!({"pad_token": END, "eos_token": END, "bos_token": BEGIN});
    TokenizerFiles {
        tokenizer: Some(tokenizer),
        tokenizer_config: Some(config.to_string()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use wuerstchen::Tokenizer;

    use super::*;

    #[test]
    fn long_words_are_cut_up() {
        let text = |length: usize| format!("a {} b", "x".repeat(length));
        assert_eq!(without_long_words(&text(256)), text(256));
        let cut = format!("a {} x b", "x".repeat(256));
        assert_eq!(without_long_words(&text(257)), cut);
    }

    #[test]
    fn case_and_punctuation_do_not_matter_to_shapes() {
        let tokenizer = Tokenizer::new(&shapes_tokenizer(), 24).unwrap();
        let encode = |prompt| tokenizer.encode(prompt).unwrap();
        assert_eq!(encode("A red circle, on WHITE!"), encode("a red circle on white"));
        assert_eq!(encode("a zebra").ids[2], UNKNOWN_ID);
    }

    /// Words that occur twice are one token each; beginning and end are two more.
    #[test]
    fn frequent_words_are_learnt_and_any_text_can_be_split() {
        let captions = ["a fox in the snow", "the fox sleeps", "a house in the snow"];
        let learn = || learn_tokenizer(captions.into_iter(), 400).unwrap();
        assert_eq!(learn(), learn());
        let tokenizer = Tokenizer::new(&learn(), 64).unwrap();
        let count = |prompt: &str| {
            let ids = tokenizer.encode(prompt).unwrap();
            ids.attended.iter().filter(|&&attended| attended).count()
        };
        assert_eq!(count("a fox in the snow"), 7);
        assert_eq!(count("  A Fox in\nthe snow "), 7);
        assert_eq!(count(""), 2);
        assert!(count("雪の中の狐 🦊") > 5);
        assert!(tokenizer.id_count() <= 400);
    }

    #[test]
    fn the_vocabulary_is_as_large_as_asked_for() {
        let captions = ["abcd abcd abcd efgh efgh"];
        let tokenizer = learn_tokenizer(captions.into_iter(), MIN_VOCAB_SIZE + 2).unwrap();
        assert_eq!(Tokenizer::new(&tokenizer, 8).unwrap().id_count(), MIN_VOCAB_SIZE + 2);
    }
}
