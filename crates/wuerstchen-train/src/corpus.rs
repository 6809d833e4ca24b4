//! Batches of the built-in corpus and its tokenizer.

use burn::prelude::*;
use serde_json::json;
use wuerstchen::noise::Philox;
use wuerstchen::text::{TokenIds, TokenizerError};
use wuerstchen::{Image, Tokenizer, TokenizerFiles};

use crate::shapes::{Lesson, Sample, draw, sample, vocabulary};

const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const UNKNOWN: &str = "<|unknown|>";

/// Number of tokens: the words and the three special ones.
pub fn vocab_size() -> usize {
    vocabulary().len() + 3
}

/// The files of a tokenizer that knows the words of the corpus.
pub fn tokenizer_files() -> TokenizerFiles {
    let words = vocabulary();
    let special = [BEGIN, END, UNKNOWN];
    let vocab: serde_json::Map<_, _> = special
        .iter()
        .chain(&words)
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), json!(id)))
        .collect();
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
    let config = json!({"pad_token": END, "eos_token": END, "bos_token": BEGIN});
    TokenizerFiles {
        tokenizer: Some(tokenizer.to_string()),
        tokenizer_config: Some(config.to_string()),
        ..Default::default()
    }
}

/// The built-in corpus at one picture size.
pub struct Corpus {
    seed: u64,
    image_size: usize,
    lesson: Lesson,
    tokenizer: Tokenizer,
    empty: TokenIds,
}

impl Corpus {
    /// The corpus of a seed, its pictures `image_size` pixels wide and its captions `length` tokens
    /// long.
    ///
    /// # Errors
    ///
    /// The tokenizer cannot be made.
    pub fn new(seed: u64, image_size: usize, length: usize) -> Result<Self, TokenizerError> {
        let tokenizer = Tokenizer::new(&tokenizer_files(), length)?;
        let empty = tokenizer.encode("")?;
        Ok(Self { seed, image_size, lesson: Lesson::default(), tokenizer, empty })
    }

    /// The same with scenes of a lesson.
    pub fn with_lesson(self, lesson: Lesson) -> Self {
        Self { lesson, ..self }
    }

    /// Side of the pictures in pixels.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// Number `index` of the training samples.
    pub fn sample(&self, index: u64) -> Sample {
        sample(self.seed, index, &self.lesson)
    }

    /// The pictures of samples, `[B, 3, H, W]` in `[0, 1]`.
    pub fn pictures(&self, samples: &[Sample], device: &Device) -> Tensor<4> {
        let side = self.image_size;
        let planes = samples.iter().flat_map(|sample| {
            let rgb = draw(&sample.scene, side as u32);
            Image { width: side, height: side, rgb }.to_planes()
        });
        let data = TensorData::new(planes.collect::<Vec<_>>(), [samples.len(), 3, side, side]);
        Tensor::from_data(data, device)
    }

    /// The token ids of a caption; each word becomes unknown with probability `unknown`, and with
    /// probability `drop` the caption is empty.
    pub fn caption(&self, caption: &str, [drop, unknown]: [f64; 2], rng: &mut Philox) -> TokenIds {
        if f64::from(rng.uniform()) < drop {
            return self.empty.clone();
        }
        let mut token_ids =
            self.tokenizer.encode(caption).expect("captions are of the tokenizer's words");
        for (id, attended) in token_ids.ids.iter_mut().zip(&token_ids.attended) {
            if *attended && *id >= UNKNOWN_ID && f64::from(rng.uniform()) < unknown {
                *id = UNKNOWN_ID;
            }
        }
        token_ids
    }
}

/// Number of the unknown word; those of the corpus follow.
const UNKNOWN_ID: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_known_words_of_fixed_length() {
        let corpus = Corpus::new(1, 64, 24).unwrap();
        let mut rng = Philox::new(1, 1);
        for index in 0..500 {
            let sample = corpus.sample(index);
            let ids = corpus.caption(&sample.caption, [0.0, 0.0], &mut rng);
            let words = sample.caption.split_whitespace().count();
            assert_eq!(ids.ids.len(), 24);
            assert_eq!(ids.attended.iter().filter(|&&attended| attended).count(), words + 2);
            assert!(!ids.ids.contains(&UNKNOWN_ID), "{}", sample.caption);
        }
    }

    #[test]
    fn case_and_punctuation_do_not_matter() {
        let tokenizer = Tokenizer::new(&tokenizer_files(), 24).unwrap();
        let encode = |prompt| tokenizer.encode(prompt).unwrap();
        assert_eq!(encode("A red circle, on WHITE!"), encode("a red circle on white"));
        assert_eq!(encode("a zebra").ids[2], UNKNOWN_ID);
    }
}
