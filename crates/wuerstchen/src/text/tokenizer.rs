//! Token ids of prompts, as CLIP's tokenizer makes them.

use serde::Serialize;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, Encoding, SplitDelimiterBehavior};

use super::emphasis::Passage;
use crate::error::LoadError;

/// The text of the files of a tokenizer folder; those that are not there are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// `tokenizer.json`: everything in one file.
    pub tokenizer: Option<String>,
    /// `vocab.json`: token to id; needed where there is no `tokenizer.json`.
    pub vocab: Option<String>,
    /// `merges.txt`: pairs in order of merging; needed where there is no `tokenizer.json`.
    pub merges: Option<String>,
    /// `tokenizer_config.json`: padding token and length.
    pub tokenizer_config: Option<String>,
    /// `special_tokens_map.json`: the padding token where the config has none.
    pub special_tokens_map: Option<String>,
    /// `added_tokens.json`: token to id of words that were added to `vocab.json`.
    pub added_tokens: Option<String>,
}

impl TokenizerFiles {
    /// Their names.
    pub const NAMES: [&str; 6] = [
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        ADDED_TOKENS,
    ];

    /// The files whose text `text` gives for their names.
    pub fn from_named(text: impl Fn(&str) -> Option<String>) -> Self {
        let [tokenizer, vocab, merges, tokenizer_config, special_tokens_map, added_tokens] =
            Self::NAMES.map(text);
        Self { tokenizer, vocab, merges, tokenizer_config, special_tokens_map, added_tokens }
    }

    /// The files that are there: their names and texts.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let Self { tokenizer, vocab, merges, tokenizer_config, special_tokens_map, added_tokens } =
            self;
        let texts = [tokenizer, vocab, merges, tokenizer_config, special_tokens_map, added_tokens];
        let named = Self::NAMES.into_iter().zip(texts);
        named.filter_map(|(name, text)| Some((name, text.as_deref()?)))
    }

    /// Whether the files are enough for a tokenizer.
    pub fn is_complete(&self) -> bool {
        self.tokenizer.is_some() || (self.vocab.is_some() && self.merges.is_some())
    }
}

/// Why a tokenizer cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Neither `tokenizer.json` nor the pair of `vocab.json` and `merges.txt` is there.
    #[error("tokenizer: expected tokenizer.json, or vocab.json and merges.txt, found {0}")]
    NoVocabulary(&'static str),
    /// A file is not what it should be.
    #[error("tokenizer: {file}: {reason}")]
    File {
        /// Which file.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A special token is not in the vocabulary.
    #[error("tokenizer: the {role} token {token:?} is not in the vocabulary")]
    UnknownToken {
        /// What it is for.
        role: &'static str,
        /// Its text.
        token: String,
    },
    /// A prompt cannot be split.
    #[error("tokenizer: cannot encode {prompt:?}: {reason}")]
    Encode {
        /// The prompt.
        prompt: String,
        /// What the tokenizer says.
        reason: String,
    },
}

impl From<TokenizerError> for LoadError {
    fn from(error: TokenizerError) -> Self {
        Self::Tokenizer(error.to_string())
    }
}

/// A prompt as the text encoder takes it, padded to a fixed length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIds {
    /// Beginning, tokens, end, padding.
    pub ids: Vec<u32>,
    /// Whether a token is attended; false for padding.
    pub attended: Vec<bool>,
}

/// A prompt as tokens and how strong each is.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedTokens {
    /// Beginning, tokens, end, padding.
    pub tokens: TokenIds,
    /// One weight a token; 1 for beginning, end and padding.
    pub weights: Vec<f32>,
}

/// The parts of a prompt that have no influence on the picture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unread {
    /// The end of the prompt, where it is longer than the model reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_off: Option<String>,
    /// The words that the model has never seen; empty where its tokenizer splits such words into parts.
    pub unknown_words: Vec<String>,
}

/// Splits prompts into token ids of a fixed length.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pad: u32,
    end: u32,
    length: usize,
}

const ADDED_TOKENS: &str = "added_tokens.json";
const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// CLIP's pattern of words, from `CLIPConverter` in transformers.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

impl Tokenizer {
    /// Makes the tokenizer of a folder; prompts become `length` tokens, or fewer if `model_max_length` of
    /// `tokenizer_config.json` says so.
    ///
    /// # Errors
    ///
    /// Names the file that is missing or cannot be read, the special token that is unknown, or a `model_max_length` that
    /// leaves no room for a beginning and an end.
    pub fn new(files: &TokenizerFiles, length: usize) -> Result<Self, TokenizerError> {
        let config = json("tokenizer_config.json", files.tokenizer_config.as_deref())?;
        let map = json("special_tokens_map.json", files.special_tokens_map.as_deref())?;
        // Tokenizers without a limit have a number here that no integer can hold.
        let length = match config["model_max_length"].as_f64() {
            Some(most) if most < 2.0 => {
                let reason = format!("model_max_length must be at least 2, got {most}");
                return Err(TokenizerError::File { file: "tokenizer_config.json", reason });
            }
            Some(most) if most < length as f64 => most as usize,
            _ => length,
        };
        let special = |key: &str| {
            let token = text_of(&config[key]).or_else(|| text_of(&map[key]));
            token.unwrap_or_else(|| END.to_owned())
        };
        let (pad, end) = (special("pad_token"), special("eos_token"));
        let mut inner: tokenizers::Tokenizer = match (&files.tokenizer, &files.vocab, &files.merges)
        {
            (Some(tokenizer), ..) => without_decoder(tokenizer)?
                .parse()
                .map_err(|error: tokenizers::Error| file_error("tokenizer.json", error))?,
            (None, Some(vocab), Some(merges)) => {
                let mut tokenizer = from_vocabulary(vocab, merges, &pad)?;
                let added = json(ADDED_TOKENS, files.added_tokens.as_deref())?;
                add_words(&mut tokenizer, &added, [&config, &map])?;
                tokenizer
            }
            (None, Some(_), None) => return Err(TokenizerError::NoVocabulary("vocab.json alone")),
            (None, None, Some(_)) => return Err(TokenizerError::NoVocabulary("merges.txt alone")),
            (None, None, None) => return Err(TokenizerError::NoVocabulary("neither")),
        };
        // A file saved after use asks for padding and cutting too, which `encode` does itself.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| file_error("tokenizer.json", error))?;
        let id = |role, token: String| {
            let id = inner.token_to_id(&token);
            id.ok_or(TokenizerError::UnknownToken { role, token })
        };
        let (pad, end) = (id("padding", pad)?, id("end", end)?);
        Ok(Self { inner, pad, end, length })
    }

    /// Number of ids of a prompt, including the start and the end token.
    pub fn length(&self) -> usize {
        self.length
    }

    /// One more than the largest id, which is what an encoder needs embeddings for.
    pub fn id_count(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// The ids of a prompt: cut to the length, the end token kept, or padded to it.
    ///
    /// # Errors
    ///
    /// Names the prompt if the tokenizer cannot split it.
    pub fn encode(&self, prompt: &str) -> Result<TokenIds, TokenizerError> {
        let ids = self.split(prompt, true)?;
        let attended = (0..self.length).map(|i| i < ids.len()).collect();
        Ok(TokenIds { ids: self.fit(ids), attended })
    }

    /// The ids of passages that follow each other, each split by itself, with their weights.
    ///
    /// # Errors
    ///
    /// Names the passage if the tokenizer cannot split it.
    pub fn encode_passages(&self, passages: &[Passage]) -> Result<WeightedTokens, TokenizerError> {
        let mut ids = self.split("", true)?;
        let end = ids.iter().position(|&id| id == self.end).unwrap_or(ids.len());
        let closing = ids.split_off(end);
        let mut weights = vec![1.0; ids.len()];
        for passage in passages {
            ids.extend(self.split(&passage.text, false)?);
            weights.resize(ids.len(), passage.weight as f32);
        }
        ids.extend(closing);
        weights.truncate(self.length - 1);
        weights.resize(self.length, 1.0);
        let attended = (0..self.length).map(|i| i < ids.len()).collect();
        Ok(WeightedTokens { tokens: TokenIds { ids: self.fit(ids), attended }, weights })
    }

    /// The end of a prompt that [`Self::encode`] cuts off because it is too long; `None` where it reads all.
    ///
    /// # Errors
    ///
    /// Names the prompt if the tokenizer cannot split it.
    pub fn cut_off<'p>(&self, prompt: &'p str) -> Result<Option<&'p str>, TokenizerError> {
        let ends = self.split("", true)?.len();
        let encoding = self.encoding(prompt, false)?;
        let first = encoding.get_offsets().get(self.length.saturating_sub(ends));
        Ok(first.and_then(|&(start, _)| prompt.get(start..)).map(str::trim))
    }

    /// The words of a prompt that a tokenizer of whole words does not know, and pictographs such as emoji, in their
    /// order, each once; none where the tokenizer splits words that it does not know into parts.
    ///
    /// # Errors
    ///
    /// Names the prompt if the tokenizer cannot split it.
    pub fn unknown_words(&self, prompt: &str) -> Result<Vec<String>, TokenizerError> {
        let ModelWrapper::WordLevel(model) = self.inner.get_model() else { return Ok(Vec::new()) };
        let encoding = self.encoding(prompt, false)?;
        let tokens = encoding.get_tokens().iter().zip(encoding.get_offsets());
        let unknown = tokens.filter(|(token, _)| **token == model.unk_token);
        let unknown = unknown.map(|(_, &(start, end))| (start, prompt.get(start..end)));
        // A tokenizer of whole words takes pictographs for punctuation.
        let pictographs = prompt.char_indices().filter(|(_, c)| is_pictograph(*c));
        let pictographs =
            pictographs.map(|(start, c)| (start, prompt.get(start..start + c.len_utf8())));
        let mut found: Vec<_> = unknown.chain(pictographs).collect();
        found.sort_unstable();
        let mut words: Vec<String> = Vec::new();
        for (_, word) in found {
            let word = word.unwrap_or_default();
            if !words.iter().any(|known| known == word) {
                words.push(word.to_owned());
            }
        }
        Ok(words)
    }

    /// The ids of a text, with beginning and end if `special`.
    fn split(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.encoding(text, special)?.get_ids().to_vec())
    }

    fn encoding(&self, text: &str, special: bool) -> Result<Encoding, TokenizerError> {
        self.inner.encode(text, special).map_err(|error| TokenizerError::Encode {
            prompt: text.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Pads ids to the length, or cuts them to it and puts the end token last.
    fn fit(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if ids.len() > self.length {
            ids.truncate(self.length);
            ids[self.length - 1] = self.end;
        }
        ids.resize(self.length, self.pad);
        ids
    }
}

/// Whether a character is a picture: an arrow, a symbol, a dingbat or an emoji.
fn is_pictograph(c: char) -> bool {
    matches!(c, '\u{2190}'..='\u{2BFF}' | '\u{1F000}'..='\u{1FAFF}')
}

fn file_error(file: &'static str, reason: impl ToString) -> TokenizerError {
    TokenizerError::File { file, reason: reason.to_string() }
}

fn json(file: &'static str, text: Option<&str>) -> Result<Value, TokenizerError> {
    text.map_or(Ok(Value::Null), |text| {
        serde_json::from_str(text).map_err(|error| file_error(file, error))
    })
}

/// A special token is a string or an object with its `content`.
fn text_of(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

/// The text of `tokenizer.json` without its decoder, which turns ids back into text. Nobody needs it here, and a
/// damaged one makes the `tokenizers` crate panic.
fn without_decoder(text: &str) -> Result<String, TokenizerError> {
    let mut tokenizer = json("tokenizer.json", Some(text))?;
    if let Some(fields) = tokenizer.as_object_mut() {
        fields.remove("decoder");
    }
    // CLIP's is empty. With another one, the `tokenizers` crate panics at merges that lack it.
    let prefix = tokenizer["model"]["continuing_subword_prefix"].as_str();
    if let Some(prefix) = prefix.filter(|prefix| !prefix.is_empty()) {
        let reason = format!("expected no continuing_subword_prefix, found {prefix:?}");
        return Err(file_error("tokenizer.json", reason));
    }
    // `train` makes tokenizers of whole words for the emoji.
    let kind = tokenizer["model"]["type"].as_str().unwrap_or("BPE");
    if !["BPE", "WordLevel"].contains(&kind) {
        let reason = format!("expected a tokenizer of the kind BPE or WordLevel, found {kind}");
        return Err(file_error("tokenizer.json", reason));
    }
    Ok(tokenizer.to_string())
}

/// Most tokens that no merge makes: characters and special tokens aside, only words that somebody has added are such. In
/// a small vocabulary their share counts.
const MAX_UNMADE: usize = 256;
const MAX_UNMADE_SHARE: f64 = 0.1;
/// Tokens without a merge that any vocabulary may have.
const FEW_UNMADE: usize = 16;

/// Fails where so many tokens are made by no merge that the file of merges must be cut off.
fn check_merges(
    vocab: &std::collections::HashMap<String, u32>,
    pairs: &[(String, String)],
) -> Result<(), TokenizerError> {
    let made: std::collections::HashSet<String> =
        pairs.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let is_character =
        |token: &str| token.strip_suffix("</w>").unwrap_or(token).chars().count() <= 1;
    let mut unmade: Vec<_> =
        vocab.iter().filter(|(token, _)| !is_character(token) && !made.contains(*token)).collect();
    unmade.retain(|(token, _)| ![BEGIN, END].contains(&token.as_str()));
    let most = (MAX_UNMADE_SHARE * vocab.len() as f64) as usize;
    if unmade.len() <= most.clamp(FEW_UNMADE, MAX_UNMADE) {
        return Ok(());
    }
    unmade.sort_by_key(|(_, id)| **id);
    let (count, first) = (unmade.len(), unmade[0].0);
    let reason = format!(
        "expected merges that make the tokens of vocab.json, found none for {count} of them, such as {first:?}: the \
         file may be cut off"
    );
    Err(file_error("merges.txt", reason))
}

/// The tokenizer that `tokenizer.json` of CLIP describes, from the two files it was made of.
///
/// The padding token is never split, whatever it is: older tokenizers pad with `!`.
fn from_vocabulary(
    vocab: &str,
    merges: &str,
    pad: &str,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let vocab: std::collections::HashMap<String, u32> =
        serde_json::from_str(vocab).map_err(|error| file_error("vocab.json", error))?;
    let pairs = merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
    let pairs = pairs
        .map(|line| match line.split_once(' ') {
            Some((a, b)) => Ok((a.to_owned(), b.to_owned())),
            None => Err(file_error("merges.txt", format!("expected two parts, found {line:?}"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let id = |role, token: &str| {
        vocab.get(token).copied().ok_or(TokenizerError::UnknownToken { role, token: token.into() })
    };
    let (begin, end) = (id("begin", BEGIN)?, id("end", END)?);
    // Otherwise it may be among the words that are added.
    let has_pad = vocab.contains_key(pad);
    check_merges(&vocab, &pairs)?;
    let model = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), pairs)
        .unk_token(END.into())
        .end_of_word_suffix("</w>".into())
        .build()
        .map_err(|error| file_error("merges.txt", error))?;
    let pattern = |text: &str| SplitPattern::Regex(text.into());
    let split = Split::new(pattern(WORDS), SplitDelimiterBehavior::Removed, true)
        .map_err(|error| file_error("vocab.json", error))?;
    let spaces =
        Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()), " ")
            .map_err(|error| file_error("vocab.json", error))?;

    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let _ = tokenizer.with_normalizer(Some(Normalizers::new(vec![
        NFC.into(),
        spaces.into(),
        Lowercase.into(),
    ])));
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        split.into(),
        ByteLevel::new(false, true, true).into(),
    ])));
    tokenizer.with_post_processor(Some(
        tokenizers::processors::roberta::RobertaProcessing::new(
            (END.into(), end),
            (BEGIN.into(), begin),
        )
        .trim_offsets(false)
        .add_prefix_space(false),
    ));
    let mut special = vec![BEGIN, END];
    if has_pad && !special.contains(&pad) {
        special.push(pad);
    }
    // transformers keeps only CLIP's own two special tokens from the normaliser.
    let added = special.into_iter().enumerate();
    let added = added.map(|(i, token)| AddedToken::from(token, true).normalized(i < 2));
    tokenizer.add_special_tokens(added).map_err(|error| file_error("vocab.json", error))?;
    Ok(tokenizer)
}

/// Adds words to a tokenizer, each with an id behind all others: those of `added_tokens.json`, as transformers saves
/// them. `tokenizer_config.json` and `special_tokens_map.json` tell their properties.
fn add_words(
    tokenizer: &mut tokenizers::Tokenizer,
    added: &Value,
    [config, map]: [&Value; 2],
) -> Result<(), TokenizerError> {
    let lists = [config, map].map(|file| file["additional_special_tokens"].as_array());
    let listed: Vec<_> = lists.into_iter().flatten().flatten().filter_map(text_of).collect();
    let mut words: Vec<_> = match added {
        Value::Null => return Ok(()),
        Value::Object(words) => words.iter().map(|(word, id)| (id.as_u64(), word)).collect(),
        other => {
            let reason = format!("expected an object of ids by their words, found {other}");
            return Err(file_error(ADDED_TOKENS, reason));
        }
    };
    words.sort_unstable();
    for (id, word) in words {
        let own = &config["added_tokens_decoder"][id.unwrap_or_default().to_string()];
        let is = |property: &str, default| own[property].as_bool().unwrap_or(default);
        let special = is("special", listed.contains(word));
        let token = AddedToken::from(word.as_str(), special)
            .lstrip(is("lstrip", false))
            .rstrip(is("rstrip", false))
            .single_word(is("single_word", false))
            .normalized(is("normalized", !special));
        tokenizer.add_tokens([token]).map_err(|error| file_error(ADDED_TOKENS, error))?;
        let found = tokenizer.token_to_id(word).map(u64::from);
        if found != id {
            let found = found.unwrap_or_default();
            let reason = format!(
                "expected {found} as the id of {word:?}, the next one, found {}",
                added[word]
            );
            return Err(file_error(ADDED_TOKENS, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::emphasis::passages;

    /// Letters, each with and without the end of a word, and one pair.
    fn tokenizer(length: usize) -> Tokenizer {
        let letters = ('a'..='e').flat_map(|c| [c.to_string(), format!("{c}</w>")]);
        let tokens = letters.chain(["ab</w>".into(), BEGIN.into(), END.into()]);
        let vocab: serde_json::Map<_, _> =
            tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
        let files = TokenizerFiles {
            vocab: Some(Value::from(vocab).to_string()),
            merges: Some("#version: 0.2\na b</w>".into()),
            ..Default::default()
        };
        Tokenizer::new(&files, length).unwrap()
    }

    /// Ids: a 0, a</w> 1, b 2, …, ab</w> 10, beginning 11, end 12, which also pads.
    #[test]
    fn passages_carry_their_weights() {
        let found = tokenizer(8).encode_passages(&passages("ab (c:2) d")).unwrap();
        assert_eq!(found.tokens.ids, [11, 10, 5, 7, 12, 12, 12, 12]);
        assert_eq!(found.weights, [1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(found.tokens, tokenizer(8).encode("ab c d").unwrap());
    }

    #[test]
    fn the_end_is_kept_and_not_weighted() {
        let found = tokenizer(3).encode_passages(&passages("(a b c:2)")).unwrap();
        assert_eq!((found.tokens.ids, found.weights), (vec![11, 1, 12], vec![1.0, 2.0, 1.0]));
        assert_eq!(found.tokens.attended, [true; 3]);
    }

    /// The word is one token also where capitals are written and letters follow, as in transformers.
    #[test]
    fn words_are_added_behind_the_vocabulary() {
        let letters = ('a'..='e').flat_map(|c| [c.to_string(), format!("{c}</w>")]);
        let tokens = letters.chain([BEGIN.into(), END.into()]).enumerate();
        let vocab: serde_json::Map<_, _> = tokens.map(|(id, token)| (token, id.into())).collect();
        let of = |added: &str, config: &str| {
            let files = TokenizerFiles {
                vocab: Some(Value::from(vocab.clone()).to_string()),
                merges: Some("#version: 0.2".into()),
                added_tokens: Some(added.into()),
                tokenizer_config: Some(config.into()),
                ..Default::default()
            };
            Tokenizer::new(&files, 6)
        };
        // A padding token may be one of them.
        let pad = of(r#"{"<cat>": 12, "[PAD]": 13}"#, r#"{"pad_token": "[PAD]"}"#).unwrap();
        assert_eq!(pad.encode("<cat>").unwrap().ids, [10, 12, 11, 13, 13, 13]);
        let tokenizer = of(r#"{"<cat>": 12, "<dog>": 13}"#, "{}").unwrap();
        assert_eq!(tokenizer.encode("a <CAT>b<dog>").unwrap().ids, [10, 1, 12, 3, 13, 11]);
        assert_eq!(tokenizer.id_count(), 14);
        // transformers cuts and pads to this length, and writes the first of these numbers where there is none.
        let most = |most: &str| of("{}", &format!(r#"{{"model_max_length": {most}}}"#));
        assert_eq!(most("1000000000000000019884624838656").unwrap().length(), 6);
        assert_eq!(most("4").unwrap().encode("a b c").unwrap().ids, [10, 1, 3, 11]);
        assert_eq!(most("4").unwrap().encode("a").unwrap().ids, [10, 1, 11, 11]);
        let error = most("1").err().unwrap().to_string();
        let expected =
            "tokenizer: tokenizer_config.json: model_max_length must be at least 2, got 1";
        assert_eq!(error, expected);
        let error = of(r#"{"<cat>": 14}"#, "{}").err().unwrap().to_string();
        let expected = "tokenizer: added_tokens.json: expected 12 as the id of \"<cat>\", the next one, found 14";
        assert_eq!(error, expected);
    }

    #[test]
    fn files_of_merges_that_are_cut_off_are_refused() {
        let letters = || ('a'..='z').map(String::from);
        let pairs: Vec<_> =
            letters().flat_map(|a| letters().map(move |b| (a.clone(), b))).collect();
        let tokens = letters().chain(pairs.iter().map(|(a, b)| format!("{a}{b}")));
        let tokens = tokens.chain([BEGIN.to_owned(), END.to_owned()]).enumerate();
        let vocab: serde_json::Map<_, _> =
            tokens.map(|(id, token)| (token, Value::from(id))).collect();
        let made = |count: usize| {
            let merges: Vec<_> =
                pairs.iter().take(count).map(|(a, b)| format!("{a} {b}\n")).collect();
            let files = TokenizerFiles {
                vocab: Some(Value::Object(vocab.clone()).to_string()),
                merges: Some(merges.concat()),
                ..TokenizerFiles::default()
            };
            Tokenizer::new(&files, 8).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(made(pairs.len()), Ok(()));
        let error = made(300).unwrap_err();
        let expected = "tokenizer: merges.txt: expected merges that make the tokens of vocab.json, found none for 376 of \
                        them, such as \"lo\": the file may be cut off";
        assert_eq!(error, expected);
    }

    #[test]
    fn what_the_tokenizers_crate_panics_at_is_refused() {
        let text = r###"{"model": {"type": "BPE", "continuing_subword_prefix": "##"}}"###;
        let files = TokenizerFiles { tokenizer: Some(text.into()), ..Default::default() };
        let error = Tokenizer::new(&files, 8).err().unwrap().to_string();
        let expected =
            "tokenizer: tokenizer.json: expected no continuing_subword_prefix, found \"##\"";
        assert_eq!(error, expected);
    }

    /// Of eight tokens two are the beginning and the end.
    #[test]
    fn what_is_cut_off_is_told() {
        let cut_off = |prompt| tokenizer(8).cut_off(prompt).unwrap().map(str::to_owned);
        assert_eq!(cut_off("ab c d e a b"), None);
        assert_eq!(cut_off("ab  c d e\u{301} a b"), Some("b".to_owned()));
        assert_eq!(cut_off("ab c d e a b  c d "), Some("c d".to_owned()));
    }
}
