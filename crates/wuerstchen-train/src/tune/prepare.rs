//! Pictures and captions as Stage C learns from them: image embeddings and hidden states.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::zip;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use burn::prelude::*;
use rayon::prelude::*;
use wuerstchen::card::PriorIndex;
use wuerstchen::noise::Philox;
use wuerstchen::text::TokenIds;
use wuerstchen::{
    CompressorConfig, Image, ModelFiles, Part, PartConfig, PipelineFolder, Statistics,
    TextEncoderConfig, Tokenizer, compressor,
};

use super::Pictures;
use super::buckets::{Buckets, Order};
use crate::batches::{Batches, MakeBatch};
use crate::config::PicturesConfig;
use crate::corpus::{CorpusError, draw_place};
use crate::rows::Rows;
use crate::run::RunError;
use crate::tensor_cache::{TensorCache, digest, digest_of, name_of};

/// Number of captions that the text encoder reads at a time.
const CAPTIONS_AT_ONCE: usize = 8;

/// The sizes of pictures and of their image embeddings.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    pub(super) buckets: Buckets,
    /// Pixels of a generated picture for every cell.
    pub(super) cell: f64,
    /// Pixels that the compressor sees for every cell.
    downscale: usize,
    /// Everything on which a cached embedding depends besides the picture and the compressor.
    key: String,
}

impl Sizes {
    /// The sizes that a config asks for, with a model whose own pictures have `side` pixels on a side. `cell` is the
    /// number of pixels for every cell.
    pub(super) fn new(
        config: &PicturesConfig,
        side: usize,
        cell: f64,
        compressor: &CompressorConfig,
    ) -> Result<Self, RunError> {
        let size = config.image_size.unwrap_or(side);
        let cells = (size as f64 / cell).round() as usize;
        if cells == 0 {
            let reason =
                format!("needs an image_size of at least {} pixels, found {size}", cell.ceil());
            return Err(RunError::Model { reason });
        }
        let buckets = Buckets::new(cells, config.max_aspect, config.bucket_step);
        let downscale = compressor.downscale();
        let key = format!("{:?} {cell} {downscale}", buckets.sizes());
        Ok(Self { buckets, cell, downscale, key })
    }

    /// How a picture of this height and width fits the compressor, or why it cannot be used.
    fn fit(&self, picture: [usize; 2]) -> Result<Fit, String> {
        let least = self.cell.ceil() as usize;
        let [height, width] = picture;
        if height.min(width) < least {
            return Err(format!(
                "expected at least {least} x {least} pixels, a cell of the image embedding, found \
                 {width} x {height}"
            ));
        }
        let cells = self.buckets.nearest(picture);
        Ok(Fit { cells, is_enlarged: self.is_enlarged(picture, cells) })
    }

    /// Whether a picture of this height and width has fewer pixels on a side than the compressor sees.
    fn is_enlarged(&self, picture: [usize; 2], cells: [usize; 2]) -> bool {
        zip(picture, self.pixels(cells)).any(|(found, seen)| found < seen)
    }

    /// The height and width in pixels that the compressor sees.
    fn pixels(&self, cells: [usize; 2]) -> [usize; 2] {
        cells.map(|side| side * self.downscale)
    }
}

/// How a picture fits the compressor.
#[derive(Clone, Copy, Default)]
struct Fit {
    /// Height and width of its embedding.
    cells: [usize; 2],
    /// Whether it has fewer pixels on a side than the compressor sees.
    is_enlarged: bool,
}

/// How many pictures have one size in cells.
#[derive(Clone, Copy, Default)]
pub(super) struct Bucket {
    pub(super) pictures: usize,
    /// How many of them are enlarged.
    pub(super) enlarged: usize,
}

/// The buckets by height and width in cells.
pub(super) type Filled = BTreeMap<[usize; 2], Bucket>;

/// Counts a picture.
fn fill(buckets: &mut Filled, Fit { cells, is_enlarged }: Fit) {
    let bucket = buckets.entry(cells).or_default();
    bucket.pictures += 1;
    bucket.enlarged += usize::from(is_enlarged);
}

/// Pictures and captions whose image embeddings and hidden states are in a cache.
pub struct Prepared {
    cache: TensorCache,
    pictures: Vec<Entry>,
    /// Channels of an embedding.
    channels: usize,
    /// Name in the cache of the hidden states of the empty caption.
    empty: String,
    /// The shape of a caption's hidden states: tokens, and values of each.
    text_shape: [usize; 2],
    order: Order,
    /// `latents = (embedding + shift) / scale`.
    scale: f32,
    shift: f32,
}

/// A picture, by the names of its tensors in the cache.
struct Entry {
    embedding: String,
    /// Height and width of the embedding.
    cells: [usize; 2],
    /// The captions' hidden states and their probabilities, which sum to 1.
    texts: Vec<(String, f64)>,
}

/// Everything that the preparation of pictures and captions needs.
pub(super) struct Sources<'a> {
    pub(super) model: &'a ModelFiles,
    pub(super) pictures: &'a Arc<dyn Pictures>,
    pub(super) cache: &'a TensorCache,
    pub(super) sizes: &'a Sizes,
    /// Number of threads that decode ahead.
    pub(super) threads: usize,
    /// The device, without autodiff.
    pub(super) device: &'a Device,
}

/// A picture on its way into the cache.
enum Unseen {
    /// Its embedding is in the cache.
    Cached(Embedded),
    /// The picture as the compressor sees it.
    Image(Embedded, Image),
    /// A picture that cannot be read.
    Broken,
    /// There are no more pictures.
    End,
}

/// The name of an embedding in the cache, and how its picture fits.
type Embedded = (String, Fit);

/// Called with what is being computed, how much of it is done, and how much there is; breaks to stop.
pub(super) type OnProgress<'a> = &'a mut dyn FnMut(&'static str, usize, usize) -> ControlFlow<()>;

/// The prepared pictures and their buckets.
pub(super) type Counted = (Prepared, Filled);

impl Prepared {
    /// Computes the embeddings and hidden states that are not in the cache; `None` if `on_progress` breaks.
    pub(super) fn new(
        sources: &Sources<'_>,
        [seed, batch_size]: [u64; 2],
        on_progress: OnProgress<'_>,
    ) -> Result<Option<Counted>, RunError> {
        let Sources { model, pictures, .. } = *sources;
        let Some(embeddings) = embeddings(sources, on_progress)? else { return Ok(None) };
        let captions: Vec<Vec<(String, f64)>> =
            (0..pictures.count()).map(|index| pictures.captions(index)).collect();
        let Some(texts) = texts(sources, &captions, on_progress)? else { return Ok(None) };
        let mut of_buckets: BTreeMap<[usize; 2], Vec<u32>> = BTreeMap::new();
        let (mut entries, mut buckets) = (Vec::new(), Filled::new());
        for (embedding, captions) in embeddings.into_iter().zip(&captions) {
            let Some((embedding, fit)) = embedding else { continue };
            fill(&mut buckets, fit);
            let cells = fit.cells;
            of_buckets.entry(cells).or_default().push(entries.len() as u32);
            let text = |(caption, chance): &(String, f64)| {
                (texts.names[caption.as_str()].clone(), *chance)
            };
            entries.push(Entry { embedding, cells, texts: captions.iter().map(text).collect() });
        }
        if entries.is_empty() {
            return Err(CorpusError::NoPicture { count: captions.len() }.into());
        }
        let index: PriorIndex = model.index(PipelineFolder::PRIOR)?;
        let compressor: CompressorConfig = model.part_config(Part::COMPRESSOR)?;
        let prepared = Self {
            cache: sources.cache.clone(),
            pictures: entries,
            channels: compressor.c_latent,
            empty: texts.names[""].clone(),
            text_shape: texts.shape,
            order: Order::new(seed, batch_size as usize, of_buckets.into_values().collect()),
            scale: index.latent_mean as f32,
            shift: index.latent_std as f32,
        };
        Ok(Some((prepared, buckets)))
    }

    /// The pictures of a step's batch.
    pub(crate) fn batch(&self, step: u64) -> Vec<u32> {
        self.order.batch(step)
    }

    /// Stage C's latents of the places `own` of pictures of one bucket.
    pub(crate) fn latents(&self, chosen: &[u32], own: &Range<usize>) -> Result<Rows, CorpusError> {
        let (mut shape, mut values) = ([0; 3], Vec::new());
        for &index in &chosen[own.clone()] {
            let Entry { embedding, cells: [height, width], .. } = &self.pictures[index as usize];
            shape = [self.channels, *height, *width];
            let embedding = self.cache.expect(embedding, &shape)?;
            values.extend(embedding.iter().map(|value| (value + self.shift) / self.scale));
        }
        Ok(Rows::new(shape, values).at(own.start))
    }

    /// The hidden states of one caption of each picture at the places `own`, rows of `[1, T, D]`; with the probability
    /// `drop`, those of the empty caption.
    pub(crate) fn texts(
        &self,
        chosen: &[u32],
        drop: f64,
        rng: &mut Philox,
        own: &Range<usize>,
    ) -> Result<Rows, CorpusError> {
        let mut draw = |&index: &u32| {
            let texts = &self.pictures[index as usize].texts;
            if f64::from(rng.uniform()) < drop {
                &self.empty
            } else {
                &texts[draw_place(texts.iter().map(|(_, chance)| *chance), rng)].0
            }
        };
        let names: Vec<_> = chosen.iter().map(&mut draw).collect();
        let [tokens, width] = self.text_shape;
        let mut values = Vec::new();
        for name in &names[own.clone()] {
            values.extend(self.cache.expect(name, &self.text_shape)?);
        }
        Ok(Rows::new([1, tokens, width], values).at(own.start))
    }
}

/// What the cache calls the embedding of a picture of this content. `own` is the compressor's digest.
fn name_of_embedding(own: &str, sizes: &Sizes, content: &[u8]) -> String {
    name_of("embeddings", &[own.as_bytes(), sizes.key.as_bytes(), content])
}

/// The buckets, and the errors of the pictures that cannot be used.
pub(super) type Checked = (Filled, Vec<CorpusError>);

/// Reads the pictures that have no embedding in the cache, and the sizes of the others.
pub(super) fn check(
    (model, pictures, cache, sizes): (&ModelFiles, &Arc<dyn Pictures>, &TensorCache, &Sizes),
    on_picture: impl Fn() + Sync,
) -> Result<Checked, RunError> {
    let own = digest_of(model, Part::COMPRESSOR)?;
    let fit_of = |index: usize| {
        let content = pictures.content(index)?;
        let name = name_of_embedding(&own, sizes, &content);
        if let Some([_, height, width]) = cache.shape(&name)?.as_deref() {
            let cells = [*height, *width];
            let is_enlarged = sizes.is_enlarged(pictures.size(index, &content)?, cells);
            return Ok(Fit { cells, is_enlarged });
        }
        let mut fit = Fit::default();
        // Only the size is needed, so the picture is scaled to a single pixel.
        pictures.picture(index, &mut |size| {
            fit = sizes.fit(size)?;
            Ok([1; 2])
        })?;
        Ok(fit)
    };
    let read = |index: usize| {
        let fit = fit_of(index);
        on_picture();
        fit
    };
    let read: Vec<Result<_, CorpusError>> =
        (0..pictures.count()).into_par_iter().map(read).collect();
    let (mut buckets, mut broken) = (Filled::new(), Vec::new());
    for fit in read {
        match fit {
            Ok(fit) => fill(&mut buckets, fit),
            Err(error @ CorpusError::Picture { .. }) => broken.push(error),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((buckets, broken))
}

/// The embedding of every picture, or `None` for a broken one that is left out; `None` as a whole if `on_progress`
/// breaks.
fn embeddings(
    sources: &Sources<'_>,
    on_progress: OnProgress<'_>,
) -> Result<Option<Vec<Option<Embedded>>>, RunError> {
    let Sources { model, pictures, cache, sizes, threads, device } = *sources;
    const WHAT: &str = "image embeddings";
    let own = digest_of(model, Part::COMPRESSOR)?;
    let (config, network) = model.load::<CompressorConfig>(Part::COMPRESSOR, device)?;
    let c_latent = config.c_latent;
    let count = pictures.count();
    let make: MakeBatch<Unseen> = {
        let (pictures, cache, sizes) = (pictures.clone(), cache.clone(), sizes.clone());
        Arc::new(move |number| {
            let index = number as usize;
            if index >= count {
                return Ok(Unseen::End);
            }
            let keep = |error| match error {
                CorpusError::Picture { .. } if pictures.leaves_out_broken() => Ok(Unseen::Broken),
                error => Err(error),
            };
            let content = match pictures.content(index) {
                Ok(content) => content,
                Err(error) => return keep(error),
            };
            let name = name_of_embedding(&own, &sizes, &content);
            if let Some(shape) = cache.shape(&name)? {
                let mut buckets = sizes.buckets.sizes().iter();
                let cells = buckets.find(|[height, width]| shape == [c_latent, *height, *width]);
                let expected = || {
                    let reason = format!(
                        "expected an embedding of {c_latent} channels and the cells of a bucket, found a tensor of \
                         {shape:?}"
                    );
                    cache.unfit(&name, &reason)
                };
                let cells = *cells.ok_or_else(expected)?;
                let is_enlarged = match pictures.size(index, &content) {
                    Ok(size) => sizes.is_enlarged(size, cells),
                    Err(error) => return keep(error),
                };
                return Ok(Unseen::Cached((name, Fit { cells, is_enlarged })));
            }
            let mut fit = Fit::default();
            let image = pictures.picture(index, &mut |size| {
                fit = sizes.fit(size)?;
                Ok(sizes.pixels(fit.cells))
            });
            match image {
                Ok(image) => Ok(Unseen::Image((name, fit), image)),
                Err(error) => keep(error),
            }
        })
    };
    let mut unseen = Batches::start(threads, 0, &make);
    let mut found = Vec::new();
    for done in 1..=count {
        found.push(match unseen.next()? {
            Unseen::Cached(embedded) => Some(embedded),
            Unseen::Image((name, fit), image) => {
                let seen = compressor::normalise(image.to_tensor(device));
                let embedding = network.forward(seen, Statistics::Running);
                let [_, channels, height, width] = embedding.dims();
                let values = embedding.into_data().try_to_vec::<f32>().expect("embeddings are f32");
                cache.put(&name, &[channels, height, width], values)?;
                Some((name, fit))
            }
            Unseen::Broken => None,
            Unseen::End => unreachable!("there are as many as are counted"),
        });
        if on_progress(WHAT, done, count).is_break() {
            return Ok(None);
        }
    }
    Ok(Some(found))
}

/// The hidden states of captions in the cache.
struct Texts<'a> {
    /// Their names, by the captions.
    names: BTreeMap<&'a str, String>,
    /// The shape of each: tokens, and values of each.
    shape: [usize; 2],
}

/// The hidden states of all captions and of the empty one; `None` if `on_progress` breaks.
fn texts<'a>(
    sources: &Sources<'_>,
    captions: &'a [Vec<(String, f64)>],
    on_progress: OnProgress<'_>,
) -> Result<Option<Texts<'a>>, RunError> {
    let Sources { model, cache, device, .. } = *sources;
    const WHAT: &str = "the text encoder's hidden states";
    let part = Part::PRIOR_TEXT;
    let config: TextEncoderConfig = model.part_config(part)?;
    let files = model.tokenizer(PipelineFolder::PRIOR);
    let tokenizer =
        Tokenizer::new(&files, config.max_position_embeddings).map_err(CorpusError::from)?;
    let shape = [tokenizer.length(), config.hidden_size];
    let tokenizer_files: Vec<&[u8]> = files.named().map(|(_, text)| text.as_bytes()).collect();
    let own = digest([digest_of(model, part)?.as_bytes(), digest(&tokenizer_files).as_bytes()]);
    let distinct: BTreeSet<&str> =
        captions.iter().flatten().map(|(caption, _)| caption.as_str()).collect();
    let name = |caption: &str| name_of("texts", &[own.as_bytes(), caption.as_bytes()]);
    let names: BTreeMap<&str, String> =
        distinct.into_iter().chain([""]).map(|caption| (caption, name(caption))).collect();
    let mut missing = Vec::new();
    for (&caption, name) in &names {
        match cache.shape(name)? {
            Some(found) => cache.check_shape(name, &found, &shape)?,
            None => missing.push((caption, name)),
        }
    }
    if missing.is_empty() {
        return Ok(Some(Texts { names, shape }));
    }
    let encoder = config.load(model.weights(part)?, device)?;
    let mut done = 0;
    for some in missing.chunks(CAPTIONS_AT_ONCE) {
        let ids = some.iter().map(|(caption, _)| tokenizer.encode(caption));
        let ids: Vec<TokenIds> = ids.collect::<Result<_, _>>().map_err(CorpusError::from)?;
        let states = encoder.forward(&ids);
        let [_, tokens, width] = states.dims();
        let values = states.into_data().try_to_vec::<f32>().expect("hidden states are f32");
        for ((_, name), values) in some.iter().zip(values.chunks(tokens * width)) {
            cache.put(name, &[tokens, width], values.to_vec())?;
        }
        done += some.len();
        if on_progress(WHAT, done, missing.len()).is_break() {
            return Ok(None);
        }
    }
    Ok(Some(Texts { names, shape }))
}
