//! Each stage as a run trains it: its model, what it caches, and what its sample grids show.

use std::ops::ControlFlow;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use futures_lite::future::block_on;
use serde::Serialize;
use wuerstchen::options::most_at_once;
use wuerstchen::{
    Compressor, ConfigError, GenerateOptions, Image, LoadError, Part, Progress, Statistics, Vqgan,
};

use super::{Event, GRID_SIDE, Run, RunError, Start};
use crate::compare::lpips::Lpips;
use crate::config::StageName;
use crate::corpus::Corpus;
use crate::eval::reconstruct;
use crate::lesson::Lesson;
use crate::recipe::{
    Weights, decoder_weights, lone_prior_weights, prior_weights, token_decoder_weights,
    vqgan_weights,
};
use crate::stages::{
    Cache, DecoderModel, Kept, PriorModel, StageA, StageB, StageBTokens, StageC, TokenModel,
    VqganModel, image_embeddings, stage_a_latents, stage_a_tokens,
};
use crate::tensor_cache::digest_of_taken;
use crate::trainer::Trainer;

/// Number of pictures from whose image embeddings the spread of all is measured.
const MEASURED_PICTURES: u64 = 64;

impl Run {
    pub(super) fn stage_a(&mut self, start: Start) -> Result<ControlFlow<()>, RunError> {
        let is_warm = self.is_warm(StageName::A);
        let device = self.autodiff();
        let (recipe, config) = (&self.recipe, &self.recipe.config);
        let corpus = self.corpus(StageName::A, config.a.updates.lesson)?;
        let mut stage = StageA::new(config, corpus, device.clone());
        if let Some(lpips) = self.perceptual()? {
            stage = stage.with_perceptual(lpips);
        }
        let weights = self.read_weights()?;
        let model = if config.a.freeze_encoder || is_warm {
            recipe.vqgan_model(recipe.load_vqgan(&weights, &device)?, &device)
        } else {
            recipe.init_vqgan(&device)
        };
        let trainer = Trainer::new(stage, model, config.a.updates.clone(), config.seed, device);
        let (_, pictures) = self.grid()?;
        let sample = |_: &Self, model: &VqganModel| {
            let latents = model.vqgan.encode(pictures.clone(), Statistics::Running);
            let decoded = model.vqgan.decode(latents).clamp(0.0, 1.0);
            Ok(to_images(Tensor::cat(vec![pictures.clone(), decoded], 0)))
        };
        self.updates(StageName::A, start, trainer, sample, |model| vqgan_weights(&model.vqgan))
    }

    /// The network of Stage A's perceptual loss, if it has one.
    fn perceptual(&self) -> Result<Option<Lpips>, RunError> {
        let config = &self.recipe.config;
        let part = StageName::A.part();
        if config.a.perceptual_loss == 0.0 {
            return Ok(None);
        }
        let Some(weights) = &self.perceptual else {
            let expected = "files that whoever starts the run has read (Run::with_perceptual)";
            let found = "none";
            return Err(ConfigError::new(part, "perceptual_weights", expected, found).into());
        };
        let lpips = Lpips::load(weights, &self.device)?;
        let least = lpips.backbone().min_side();
        if config.image_size < least {
            let expected = format!("0 with pictures of fewer than {least} pixels a side");
            let found = config.a.perceptual_loss;
            return Err(ConfigError::new(part, "perceptual_loss", expected, found).into());
        }
        Ok(Some(lpips))
    }

    pub(super) fn stage_b(&mut self, start: Start) -> Result<ControlFlow<()>, RunError> {
        if self.recipe.config.model.decoder.has_tokens() {
            return self.stage_b_tokens(start);
        }
        let is_warm = self.is_warm(StageName::B);
        let device = self.autodiff();
        let config = self.recipe.config.clone();
        let weights = self.read_weights()?;
        let vqgan = self.recipe.load_vqgan(&weights, &self.device)?;
        let corpus = self.corpus(StageName::B, config.b.updates.lesson)?;
        let Some(latents) = self.cached_latents(&corpus, &vqgan, &weights)? else {
            return Ok(ControlFlow::Break(()));
        };
        let mut stage = StageB::new(&config, corpus.clone(), vqgan, device.clone());
        stage.latents = latents;
        let model = if config.b.freeze_compressor || is_warm {
            self.recipe.load_decoder(&weights, &device)?
        } else {
            self.recipe.init_decoder(&device)
        };
        let fixed = self.fixed_embeddings(&corpus, &model.compressor, &weights)?;
        let Some(embeddings) = fixed else { return Ok(ControlFlow::Break(())) };
        stage.embeddings = embeddings;
        let trainer = Trainer::new(stage, model, config.b.updates.clone(), config.seed, device);
        let grid = self.grid()?;
        let sample = |run: &Self, model: &DecoderModel| {
            run.reconstructions(&grid, &model.compressor, decoder_weights(model))
        };
        self.updates(StageName::B, start, trainer, sample, decoder_weights)
    }

    fn stage_b_tokens(&mut self, start: Start) -> Result<ControlFlow<()>, RunError> {
        let is_warm = self.is_warm(StageName::B);
        let device = self.autodiff();
        let config = self.recipe.config.clone();
        let weights = self.read_weights()?;
        let vqgan = self.recipe.load_vqgan(&weights, &self.device)?;
        let corpus = self.corpus(StageName::B, config.b.updates.lesson)?;
        let Some(tokens) = self.cached_latents(&corpus, &vqgan, &weights)? else {
            return Ok(ControlFlow::Break(()));
        };
        let mut stage = StageBTokens::new(&config, corpus.clone(), vqgan, device.clone());
        stage.tokens = tokens;
        let model = if config.b.freeze_compressor || is_warm {
            self.recipe.load_token_decoder(&weights, &device)?
        } else {
            self.recipe.init_token_decoder(&device)
        };
        let fixed = self.fixed_embeddings(&corpus, &model.compressor, &weights)?;
        let Some(embeddings) = fixed else { return Ok(ControlFlow::Break(())) };
        stage.embeddings = embeddings;
        let trainer = Trainer::new(stage, model, config.b.updates.clone(), config.seed, device);
        let grid = self.grid()?;
        let sample = |run: &Self, model: &TokenModel| {
            run.reconstructions(&grid, &model.compressor, token_decoder_weights(model))
        };
        self.updates(StageName::B, start, trainer, sample, token_decoder_weights)
    }

    /// The image embeddings that Stage B takes, if they do not change while it trains, else none; `None` if the listener
    /// has stopped it.
    fn fixed_embeddings(
        &mut self,
        corpus: &Corpus,
        compressor: &Compressor,
        weights: &Weights,
    ) -> Result<Option<Cache>, RunError> {
        if self.recipe.config.b_has_fixed_embeddings() {
            self.cached_embeddings(StageName::B, corpus, &compressor.valid(), weights)
        } else {
            Ok(Some(Cache::none()))
        }
    }

    /// The pictures of a grid, and below them the pictures that Stage B makes of their image embeddings. `trained` are
    /// the weights that are being trained.
    fn reconstructions(
        &self,
        (captions, pictures): &(Vec<String>, Tensor<4>),
        compressor: &Compressor,
        trained: Weights,
    ) -> Result<Vec<Image>, RunError> {
        let config = &self.recipe.config;
        let embedding = image_embeddings(compressor, pictures.clone(), config.compressor_side());
        let mut weights = self.read_weights()?;
        weights.extend(trained);
        let pipeline = self.pipeline(weights)?;
        let prompts: Vec<_> = captions.iter().map(String::as_str).collect();
        // The size of the corpus's pictures, from which the model's default size may differ.
        let side = Some(config.image_size);
        let options = GenerateOptions { width: side, height: side, ..GenerateOptions::default() };
        let settings = options.resolve(&self.recipe.defaults())?;
        let decoded = reconstruct(&pipeline, &config.model.vqgan, &settings, embedding, &prompts);
        let decoded = block_on(decoded)?.clamp(0.0, 1.0);
        Ok(to_images(Tensor::cat(vec![pictures.clone(), decoded], 0)))
    }

    pub(super) fn stage_c(&mut self, start: Start) -> Result<ControlFlow<()>, RunError> {
        let embedding_scale = self.embedding_scale()?;
        let is_warm = self.is_warm(StageName::C);
        let device = self.autodiff();
        let config = self.recipe.config.clone();
        let weights = self.read_weights()?;
        let compressor = self.recipe.load_compressor(&weights, &self.device)?;
        let corpus = self.corpus(StageName::C, config.c.updates.lesson)?;
        let cached = self.cached_embeddings(StageName::C, &corpus, &compressor, &weights)?;
        let Some(embeddings) = cached else { return Ok(ControlFlow::Break(())) };
        let frozen = (compressor, embedding_scale);
        let mut stage = StageC::new(&config, corpus.clone(), frozen, device.clone());
        stage.embeddings = embeddings;
        let model = if is_warm {
            self.recipe.load_prior(&weights, &device)?
        } else {
            self.recipe.init_prior(&device)
        };
        let has_tokens = config.model.decoder.has_tokens();
        let model = if has_tokens {
            PriorModel { text_encoder: self.recipe.load_text(&weights, &device)?, ..model }
        } else {
            model
        };
        let own_weights = if has_tokens { lone_prior_weights } else { prior_weights };
        let trainer = Trainer::new(stage, model, config.c.updates.clone(), config.seed, device);
        let samples = self.source.samples(StageName::C, config.seed, Lesson::default());
        let pictures = self.grid_pictures(StageName::C) as u64;
        let prompts: Vec<_> = (0..pictures).map(|i| samples.prompt(i)).collect();
        let sample = |run: &Self, model: &PriorModel| {
            let mut trained = run.read_weights()?;
            trained.extend(own_weights(model));
            let pipeline = run.pipeline(trained)?;
            let prompts: Vec<_> = prompts.iter().map(String::as_str).collect();
            let settings = GenerateOptions::default().resolve(&pipeline.card.defaults)?;
            let go = &mut async |_: Progress<'_>| ControlFlow::Continue(());
            Ok(block_on(pipeline.generate_each(&prompts, settings, go))?.images)
        };
        self.updates(StageName::C, start, trainer, sample, own_weights)
    }

    /// The device with autodiff, whose random numbers start anew: initial weights depend on the seed alone.
    fn autodiff(&self) -> Device {
        let device = self.device.clone().autodiff();
        device.seed(self.recipe.config.seed);
        device
    }

    /// Whether a stage starts from weights that are there. Those of a stage that the run has not trained are of the
    /// model from which the run has started, maybe in an earlier session.
    fn is_warm(&mut self, stage: StageName) -> bool {
        let mut told = vec![u8::from(self.warm || !self.has_trained(stage))];
        // Only rank 0 has the metrics of earlier sessions.
        self.session.peers.broadcast(0, &mut told);
        let has = |part: &Part| self.session.store.contains(&self.weights_name(*part));
        let is_warm = told == [1] && self.recipe.parts_of(stage).iter().any(has);
        if is_warm && !self.warm {
            self.tell(&Event::GivenWeights { stage });
        }
        is_warm
    }

    fn corpus(&self, stage: StageName, lesson: Lesson) -> Result<Corpus, RunError> {
        let samples = self.source.samples(stage, self.recipe.config.seed, lesson);
        Ok(self.recipe.corpus(samples)?)
    }

    /// Width and height in pixels of the pictures of a stage's sample grid.
    fn grid_size(&self, stage: StageName) -> [usize; 2] {
        let config = &self.recipe.config;
        match stage {
            StageName::A | StageName::B => [config.image_size; 2],
            StageName::C => [config.defaults.width, config.defaults.height],
        }
    }

    /// How many pictures a stage makes for its sample grid. It makes all at once, so a grid of large pictures has
    /// fewer.
    pub(super) fn grid_pictures(&self, stage: StageName) -> usize {
        let usual = if stage == StageName::C { 2 * GRID_SIDE } else { GRID_SIDE };
        usual.min(most_at_once(self.grid_size(stage)))
    }

    /// Reports that the sample grid is small because its pictures are large.
    pub(super) fn tell_of_grid(&mut self, stage: StageName) {
        let pictures = self.grid_pictures(stage);
        if pictures < GRID_SIDE {
            let size = self.grid_size(stage);
            self.tell(&Event::SmallGrid { stage, pictures, size });
        }
    }

    /// The captions and pictures of sample grids. Of drawn scenes, training sees only the first of these.
    fn grid(&self) -> Result<(Vec<String>, Tensor<4>), RunError> {
        let corpus = self.corpus(StageName::C, Lesson::default())?;
        let pictures = self.grid_pictures(StageName::B) as u64;
        let numbers: Vec<_> = (0..pictures).map(|i| i << 40).collect();
        let captions = numbers.iter().map(|&number| corpus.caption(number)).collect();
        Ok((captions, corpus.pictures(&numbers)?.tensor(&(0..numbers.len()), &self.device)))
    }

    /// How many scenes a stage caches: at most as many as there are pictures. Reports it if the stage does not see all
    /// pictures.
    fn cached_scenes(&mut self, stage: StageName) -> usize {
        let (cached, _) = self.recipe.cached(stage);
        let samples = self.source.samples(stage, self.recipe.config.seed, Lesson::default());
        let Some(pictures) = samples.count() else { return cached };
        if (1..pictures).contains(&cached) {
            self.tell(&Event::Partial { stage, cached, pictures });
        }
        cached.min(pictures)
    }

    /// Fills the cache of a stage and trains nothing, so that a run with the same cache begins at once. Returns `Break`
    /// if the listener breaks.
    ///
    /// # Errors
    ///
    /// The stage caches nothing, it lacks the weights of a stage before it, a picture cannot be read, or the cache
    /// cannot be written.
    pub fn fill_cache(&mut self, stage: StageName) -> Result<ControlFlow<()>, RunError> {
        if stage == StageName::A {
            let (expected, found) = ("that of stage b or c", "that of stage a");
            return Err(ConfigError::new("cache", "cached_scenes", expected, found).into());
        }
        if self.recipe.cached(stage).0 == 0 {
            let expected = "at least 1 to fill a cache";
            return Err(ConfigError::new(stage.part(), "cached_scenes", expected, 0).into());
        }
        self.session.begin();
        let weights = self.read_weights()?;
        let corpus = self.corpus(stage, self.recipe.config.updates(stage).lesson)?;
        let has_embeddings = stage == StageName::C || self.recipe.config.b_has_fixed_embeddings();
        if stage == StageName::B {
            let vqgan = self.recipe.load_vqgan(&weights, &self.device)?;
            if self.cached_latents(&corpus, &vqgan, &weights)?.is_none() {
                return Ok(ControlFlow::Break(()));
            }
        }
        if has_embeddings {
            let compressor = self.recipe.load_compressor(&weights, &self.device)?;
            if self.cached_embeddings(stage, &corpus, &compressor, &weights)?.is_none() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What Stage B learns to make of its cached scenes: Stage A's latents or tokens. `None` if the listener breaks.
    fn cached_latents(
        &mut self,
        corpus: &Corpus,
        vqgan: &Vqgan,
        weights: &Weights,
    ) -> Result<Option<Cache>, RunError> {
        let model = &self.recipe.config.model;
        let (sizes, has_tokens) = (model.vqgan.clone(), model.decoder.has_tokens());
        let scenes = self.cached_scenes(StageName::B);
        let network = self.network(&sizes, Part::VQGAN, weights)?;
        if has_tokens {
            let encode = |x| stage_a_tokens(vqgan, x);
            self.cache(("Stage A's tokens", "tokens", network), corpus, scenes, encode)
        } else {
            let encode = |x| stage_a_latents(vqgan, &sizes, x);
            self.cache(("Stage A's latents", "latents", network), corpus, scenes, encode)
        }
    }

    /// The image embeddings of a stage's cached scenes, by a compressor that is not trained. `None` if the listener
    /// breaks.
    fn cached_embeddings(
        &mut self,
        stage: StageName,
        corpus: &Corpus,
        compressor: &Compressor,
        weights: &Weights,
    ) -> Result<Option<Cache>, RunError> {
        let side = self.recipe.config.compressor_side();
        let scenes = self.cached_scenes(stage);
        let sizes = (&self.recipe.config.model.compressor, side);
        let network = self.network(&sizes, Part::COMPRESSOR, weights)?;
        let encode = |x| image_embeddings(compressor, x, side);
        let what = ("the compressor's image embeddings", "embeddings", network);
        self.cache(what, corpus, scenes, encode)
    }

    /// A hash of a network, by its sizes and its weights, where a cache needs it.
    fn network(
        &self,
        sizes: &impl Serialize,
        part: Part,
        weights: &Weights,
    ) -> Result<Option<String>, LoadError> {
        let sizes = || serde_json::to_string(sizes).expect("sizes are JSON");
        let network = self.cache.as_ref().map(|_| digest_of_taken(&sizes(), part, &weights[&part]));
        network.transpose()
    }

    /// Fills a cache with values that do not change. `what` names them for people, `kind` in the store, and `network`
    /// is the hash of the network that makes them. `None` if the listener breaks.
    fn cache(
        &mut self,
        (what, kind, network): (&'static str, &'static str, Option<String>),
        corpus: &Corpus,
        scenes: usize,
        encode: impl Fn(Tensor<4>) -> Tensor<4>,
    ) -> Result<Option<Cache>, RunError> {
        let (device, cache) = (self.device.clone(), self.cache.clone());
        let kept =
            cache.as_ref().zip(network).map(|(cache, network)| Kept { cache, kind, network });
        let on_batch = |done| {
            self.tell(&Event::Caching { what, done, scenes });
            // Several processes agree on a stop when the updates begin, not here.
            if self.session.stops_alone() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        Ok(Cache::fill_and_keep(corpus, scenes, (&device, kept), encode, on_batch)?)
    }

    /// The factor from Stage C's latents to image embeddings. If the config does not have it, it is measured and then
    /// kept in the run's config.
    fn embedding_scale(&mut self) -> Result<f64, RunError> {
        if let Some(scale) = self.recipe.config.model.embedding_scale {
            return Ok(scale);
        }
        let measured = self.measure_embeddings();
        let (spread, scale) = self.session.agree(measured)?;
        // All processes take rank 0's scale, because their devices may round differently.
        let mut told = scale.to_le_bytes().to_vec();
        self.session.peers.broadcast(0, &mut told);
        let scale = f64::from_le_bytes(told.try_into().expect("a number has eight bytes"));
        self.tell(&Event::EmbeddingScale { spread, scale });
        self.recipe.config.model.embedding_scale = Some(scale);
        self.write_config()?;
        Ok(scale)
    }

    /// The standard deviation of the image embeddings, and the scale by which to divide them.
    fn measure_embeddings(&self) -> Result<(f32, f64), RunError> {
        let compressor = self.recipe.load_compressor(&self.read_weights()?, &self.device)?;
        let corpus = self.corpus(StageName::C, self.recipe.config.c.updates.lesson)?;
        let numbers: Vec<_> = (0..MEASURED_PICTURES).collect();
        let (pictures, side) = (corpus.pictures(&numbers)?, self.recipe.config.compressor_side());
        let embed = |part| image_embeddings(&compressor, part, side);
        let embeddings = pictures.through(&self.device, embed);
        let spread = embeddings.flatten::<1>(0, 3).var(0).sqrt().into_scalar::<f32>();
        // Three digits are as much as 64 pictures tell.
        let scale = format!("{:.2e}", 2.0 * spread).parse().expect("a number's digits are one");
        if scale > 0.0 && scale < f64::INFINITY {
            Ok((spread, scale))
        } else {
            Err(RunError::Spread { spread })
        }
    }
}

fn to_images(x: Tensor<4>) -> Vec<Image> {
    Image::from_data(&x.into_data())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::TrainConfig;
    use crate::corpus::Source;
    use crate::recipe::Recipe;
    use crate::store::Memory;
    use crate::tokenizer::shapes_tokenizer;

    /// Four pictures of 4096 pixels a side have as many pixels as are made at once.
    #[test]
    fn grids_of_large_pictures_have_fewer() {
        let smoke = include_str!("../../../../configs/smoke.toml");
        let mut config = TrainConfig::from_toml(smoke).unwrap();
        (config.defaults.width, config.defaults.height) = (4096, 4096);
        let recipe = Recipe::new(config, shapes_tokenizer()).unwrap();
        let store = Arc::new(Memory::default());
        let run = Run::new(recipe, Source::Shapes, store, Device::flex());
        assert_eq!([StageName::A, StageName::C].map(|stage| run.grid_pictures(stage)), [8, 4]);
    }
}
