//! The corpus that the stages learn from: captioned pictures.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use wuerstchen::noise::Philox;
use wuerstchen::text::{TokenIds, TokenizerError};
use wuerstchen::{Image, Tokenizer};

use crate::config::StageName;
use crate::emoji;
use crate::emoji::Art;
use crate::lesson::Lesson;
use crate::rows::Rows;
use crate::shapes::{self, Kind, Split, draw, sample};
use crate::tokenizer::UNKNOWN_ID;

/// Why a corpus cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// A picture cannot be read.
    #[error("cannot read the picture {name}: {reason}")]
    Picture {
        /// Its path, or another name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that holds many pictures, or lists some, cannot be read or written. No picture is to blame.
    #[error("{reason}")]
    File {
        /// What is wrong, with the name of the file.
        reason: String,
    },
    /// Not one of the pictures can be read.
    #[error("not a single picture can be read, of {count}")]
    NoPicture {
        /// How many there are.
        count: usize,
    },
    /// A tensor in the cache cannot be read or written.
    #[error("cannot use the cache: {reason}")]
    Cache {
        /// What is wrong, with the name of the file.
        reason: String,
    },
    /// The tokenizer cannot be made, or cannot split a caption.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Draws one of several things, such as the captions of a picture: its place among them.
///
/// `chances` are those of all of them, at least one, with the sum 1. Rounding may leave something over, which goes to
/// the last one.
pub fn draw_place(mut chances: impl ExactSizeIterator<Item = f64>, rng: &mut Philox) -> usize {
    let last = chances.len() - 1;
    let mut left = f64::from(rng.uniform());
    let place = chances.position(|chance| {
        left -= chance;
        left < 0.0
    });
    place.unwrap_or(last)
}

/// Captioned pictures, numbered without end; the same number is always the same picture.
pub trait Samples: Send + Sync {
    /// A picture, `side` pixels wide and high.
    ///
    /// # Errors
    ///
    /// The picture cannot be read.
    fn picture(&self, number: u64, side: usize) -> Result<Image, CorpusError>;

    /// The captions of a sample; at least one.
    fn captions(&self, number: u64) -> Vec<String>;

    /// One of the captions.
    fn caption(&self, number: u64, rng: &mut Philox) -> String {
        let mut captions = self.captions(number);
        let chosen = if captions.len() > 1 { rng.below(captions.len() as u32) as usize } else { 0 };
        captions.swap_remove(chosen)
    }

    /// A prompt for a grid of pictures that shows how far training is.
    fn prompt(&self, number: u64) -> String;

    /// How many different samples there are; `None` if every number is a different one.
    fn count(&self) -> Option<usize> {
        None
    }

    /// Whether a sample whose picture cannot be read is replaced by another one, once that is known.
    fn replaces_broken(&self) -> bool {
        false
    }
}

/// The corpus of a run.
#[derive(Clone)]
pub enum Source {
    /// The built-in scenes of shapes.
    Shapes,
    /// Scenes of emoji.
    Emoji(Arc<Art>),
    /// Anything else.
    Samples(Arc<dyn Samples>),
}

impl Source {
    /// The samples from which a stage learns.
    pub fn samples(&self, stage: StageName, seed: u64, lesson: Lesson) -> Arc<dyn Samples> {
        match self {
            Self::Shapes => Arc::new(Shapes { seed, lesson }),
            Self::Emoji(art) => {
                let for_stage_a = stage == StageName::A;
                Arc::new(Emoji { seed, art: art.clone(), lesson, for_stage_a })
            }
            Self::Samples(samples) => samples.clone(),
        }
    }
}

/// The built-in scenes, drawn when they are needed.
pub struct Shapes {
    /// Seed of the scenes.
    pub seed: u64,
    /// What the scenes show.
    pub lesson: Lesson,
}

impl Samples for Shapes {
    fn picture(&self, number: u64, side: usize) -> Result<Image, CorpusError> {
        let rgb = draw(&sample(self.seed, number, &self.lesson).scene, side as u32);
        Ok(Image { width: side, height: side, rgb })
    }

    fn captions(&self, number: u64) -> Vec<String> {
        vec![sample(self.seed, number, &self.lesson).caption]
    }

    fn prompt(&self, number: u64) -> String {
        let kind = [Kind::One, Kind::Two][(number / 4 % 2) as usize];
        shapes::evaluation(kind, Split::Seen, self.seed, number).caption
    }
}

/// Scenes of emoji, drawn when they are needed.
pub struct Emoji {
    /// Seed of the scenes.
    pub seed: u64,
    /// The art from which they are drawn.
    pub art: Arc<Art>,
    /// What the scenes show.
    pub lesson: Lesson,
    /// Whether a tenth of the concepts is left out, as for Stage A.
    pub for_stage_a: bool,
}

impl Emoji {
    fn sample(&self, number: u64) -> emoji::Sample {
        if self.for_stage_a {
            emoji::stage_a_sample(&self.art, self.seed, number, &self.lesson)
        } else {
            emoji::sample(&self.art, self.seed, number, &self.lesson)
        }
    }
}

/// The first prompts of sample grids of emoji; prompts of the evaluation follow.
const EMOJI_PROMPTS: [&str; 12] = [
    "a slice of pizza",
    "a cat face",
    "a red apple on a blue background",
    "a rocket",
    "a dog",
    "a flat penguin on a yellow background",
    "a blue dog face",
    "a house on green",
    "two bananas",
    "a cat left of a car",
    "grinning face",
    "a small star on a navy background",
];

impl Samples for Emoji {
    fn picture(&self, number: u64, side: usize) -> Result<Image, CorpusError> {
        let scene = self.sample(number).scene;
        Ok(Image { width: side, height: side, rgb: self.art.draw(&scene, side as u32) })
    }

    fn captions(&self, number: u64) -> Vec<String> {
        self.sample(number).captions
    }

    fn prompt(&self, number: u64) -> String {
        match EMOJI_PROMPTS.get(number as usize) {
            Some(&prompt) => prompt.to_owned(),
            None => {
                let (kind, split) = (emoji::Kind::One, emoji::Split::Seen);
                let sample = emoji::evaluation(&self.art, kind, split, self.seed, number);
                sample.captions[0].clone()
            }
        }
    }
}

/// Pictures at one size, and captions as tokens.
#[derive(Clone)]
pub struct Corpus {
    samples: Arc<dyn Samples>,
    image_size: usize,
    tokenizer: Arc<Tokenizer>,
    empty: TokenIds,
}

impl Corpus {
    /// Samples at `image_size` pixels, their captions split by `tokenizer`.
    ///
    /// # Errors
    ///
    /// The tokenizer cannot split an empty caption.
    pub fn new(
        samples: Arc<dyn Samples>,
        image_size: usize,
        tokenizer: Tokenizer,
    ) -> Result<Self, CorpusError> {
        let empty = tokenizer.encode("")?;
        Ok(Self { samples, image_size, tokenizer: Arc::new(tokenizer), empty })
    }

    /// The pictures of samples, rows of `[3, H, W]` in `[0, 1]`.
    ///
    /// # Errors
    ///
    /// A picture cannot be read.
    pub fn pictures(&self, numbers: &[u64]) -> Result<Rows, CorpusError> {
        self.batch(numbers, |&number| self.samples.picture(number, self.image_size))
    }

    /// The pictures of the samples `own` of a batch.
    ///
    /// # Errors
    ///
    /// A picture cannot be read.
    pub fn own_pictures(&self, numbers: &[u64], own: &Range<usize>) -> Result<Rows, CorpusError> {
        let own = self.needed(numbers.len(), own);
        Ok(self.pictures(&numbers[own.clone()])?.at(own.start))
    }

    /// The samples of a batch to read where the samples `own` are needed. Samples that can be replaced are all read,
    /// because the captions of replacements, and the random numbers that these take, must be the same in all processes.
    fn needed(&self, count: usize, own: &Range<usize>) -> Range<usize> {
        if self.samples.replaces_broken() { 0..count } else { own.clone() }
    }

    /// Squares cut out of the pictures of the samples `own` of a batch, rows of `[3, H, W]` in `[0, 1]`. `zooms` has
    /// the number of each sample, and how many times as wide and high its picture is drawn; `rng` says where the
    /// square is cut out.
    ///
    /// # Errors
    ///
    /// A picture cannot be read.
    pub fn crops(
        &self,
        zooms: &[(u64, u32)],
        rng: &mut Philox,
        own: &Range<usize>,
    ) -> Result<Rows, CorpusError> {
        let side = self.image_size;
        let corner = |zoom: u32| [0; 2].map(|_| rng.below((zoom - 1) * side as u32 + 1) as usize);
        let corners: Vec<_> = zooms.iter().map(|&(_, zoom)| zoom).map(corner).collect();
        let crops: Vec<_> = zooms.iter().zip(corners).collect();
        let own = self.needed(zooms.len(), own);
        let rows = self.batch(&crops[own.clone()], |&(&(number, zoom), [top, left])| {
            let whole = self.samples.picture(number, side * zoom as usize)?;
            let row = |y: usize| &whole.rgb[3 * ((top + y) * whole.width + left)..][..3 * side];
            let rgb = (0..side).flat_map(row).copied().collect();
            Ok(Image { width: side, height: side, rgb })
        })?;
        Ok(rows.at(own.start))
    }

    /// Pictures of the corpus's size, made side by side.
    fn batch<T: Sync>(
        &self,
        items: &[T],
        picture: impl Fn(&T) -> Result<Image, CorpusError> + Sync,
    ) -> Result<Rows, CorpusError> {
        let planes = |item: &T| Ok(picture(item)?.to_planes());
        let planes = items.par_iter().map(planes).collect::<Result<Vec<_>, CorpusError>>()?;
        Ok(Rows::new([3, self.image_size, self.image_size], planes.concat()))
    }

    /// A sample's first caption.
    pub fn caption(&self, number: u64) -> String {
        self.samples.captions(number).swap_remove(0)
    }

    /// The token ids of one of a sample's captions; each word of the built-in corpus becomes unknown
    /// with probability `unknown`, and with probability `drop` the caption is empty.
    ///
    /// # Errors
    ///
    /// Names the caption if the tokenizer cannot split it.
    pub fn tokens(
        &self,
        number: u64,
        [drop, unknown]: [f64; 2],
        rng: &mut Philox,
    ) -> Result<TokenIds, CorpusError> {
        if f64::from(rng.uniform()) < drop {
            return Ok(self.empty.clone());
        }
        let mut token_ids = self.tokenizer.encode(&self.samples.caption(number, rng))?;
        for (id, attended) in token_ids.ids.iter_mut().zip(&token_ids.attended) {
            if *attended && *id >= UNKNOWN_ID && f64::from(rng.uniform()) < unknown {
                *id = UNKNOWN_ID;
            }
        }
        Ok(token_ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::shapes_tokenizer;

    #[test]
    fn captions_of_shapes_are_known_words_of_fixed_length() {
        let tokenizer = Tokenizer::new(&shapes_tokenizer(), 20).unwrap();
        let shapes = Shapes { seed: 1, lesson: Lesson::default() };
        let corpus = Corpus::new(Arc::new(shapes), 64, tokenizer).unwrap();
        let mut rng = Philox::new(1, 1);
        for number in 0..500 {
            let caption = corpus.caption(number);
            let ids = corpus.tokens(number, [0.0, 0.0], &mut rng).unwrap();
            let words = caption.split_whitespace().count();
            assert_eq!(ids.ids.len(), 20);
            assert_eq!(ids.attended.iter().filter(|&&attended| attended).count(), words + 2);
            assert!(!ids.ids.contains(&UNKNOWN_ID), "{caption}");
        }
    }
}
