//! Stage A decodes a large picture in the memory of a small one, stages keep nothing from update to update, and Stage C
//! trains in less memory than its features take.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::prelude::*;
use peak_alloc::PeakAlloc;
use wuerstchen::weights::{KeyTable, tensors};
use wuerstchen::{PartConfig, VqganConfig};
use wuerstchen_tests::{error_of, values};
use wuerstchen_train::Lesson;
use wuerstchen_train::config::StageBModel;
use wuerstchen_train::corpus::{Corpus, Shapes};
use wuerstchen_train::optimizer::Method;
use wuerstchen_train::stages::{
    Cache, Stage, StageA, StageB, StageBTokens, StageC, image_embeddings,
};
use wuerstchen_train::tokenizer::shapes_tokenizer;
use wuerstchen_train::tune::{Memory, Work};
use wuerstchen_train::{Precision, Recipe, TrainConfig, Trainer};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The largest amount of memory, in bytes, that `work` takes besides what is taken already.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let result = work();
    (result, MEMORY.peak_usage() - before)
}

/// There is one allocator, so these tests take turns.
static ALLOCATOR: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    ALLOCATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sizes of the built-in model; 1024 x 256 pixels.
#[test]
fn strips_take_the_memory_of_a_strip() {
    let _turn = turn();
    let device = Device::flex();
    let config = VqganConfig {
        in_channels: 3,
        out_channels: 3,
        up_down_scale_factor: 2,
        levels: 2,
        bottleneck_blocks: 3,
        embed_dim: 64,
        latent_channels: 4,
        num_vq_embeddings: 1024,
        scale_factor: 1.0,
    };
    let vqgan = config.init(&device);
    let latents: Tensor<4> = values([1, 4, 256, 64], 1, &device);
    // Weights are made when they are first used.
    let whole = vqgan.decode(latents.clone());
    let (whole_again, at_once) = peak(|| vqgan.decode(latents.clone()));
    drop(whole_again);
    let (strips, in_strips) = peak(|| vqgan.decode_strips(latents, 16).collect::<Vec<_>>());
    assert!(error_of(Tensor::cat(strips, 2), whole) < 1e-6);
    // 16 of 256 rows and those that the blocks keep, and the picture that both make.
    assert!(in_strips * 5 < at_once, "{in_strips} bytes in strips, {at_once} at once");
}

/// Fails if updates leave something in memory: autodiff keeps every graph that no backward pass takes down.
fn assert_keeps_nothing<S: Stage>(mut trainer: Trainer<S>) {
    let mut taken_after = |updates: usize| {
        for _ in 0..updates {
            trainer.step().unwrap();
        }
        MEMORY.current_usage()
    };
    // The moments of the optimizer and a batch that is made ahead come with the first updates.
    let first = taken_after(3);
    let later = taken_after(6);
    // A batch of 16 pictures leaves 5 MB of features of the compressor.
    assert!(later < first + 3_000_000, "{first} bytes after 3 updates, {later} after 9");
}

/// A config after `change`.
fn changed(toml: &str, change: impl FnOnce(&mut TrainConfig)) -> TrainConfig {
    let mut config = TrainConfig::from_toml(toml).unwrap();
    change(&mut config);
    config
}

/// What a run with this config trains, and its pictures.
fn shapes(config: TrainConfig) -> (Recipe, Corpus) {
    let recipe = Recipe::new(config, shapes_tokenizer()).unwrap();
    let corpus = recipe.corpus(Arc::new(Shapes { seed: 1, lesson: Lesson::default() })).unwrap();
    (recipe, corpus)
}

const SMOKE: &str = include_str!("../../configs/smoke.toml");

fn stage_b(change: impl FnOnce(&mut TrainConfig)) -> Trainer<StageB> {
    let (recipe, corpus) = shapes(changed(SMOKE, change));
    let (config, device) = (&recipe.config, Device::flex().autodiff());
    let vqgan = config.model.vqgan.init(&Device::flex());
    let stage = StageB::new(config, corpus, vqgan, device.clone());
    let model = recipe.init_decoder(&device);
    Trainer::new(stage, model, config.b.updates.clone(), 1, device)
}

#[test]
fn stage_a_keeps_nothing() {
    let _turn = turn();
    for freeze_encoder in [false, true] {
        let config = changed(SMOKE, |config| config.a.freeze_encoder = freeze_encoder);
        let (recipe, corpus) = shapes(config);
        let (config, device) = (&recipe.config, Device::flex().autodiff());
        let stage = StageA::new(config, corpus, device.clone());
        let model = recipe.init_vqgan(&device);
        assert_keeps_nothing(Trainer::new(stage, model, config.a.updates.clone(), 1, device));
    }
}

#[test]
fn stage_b_keeps_nothing_of_a_compressor_that_does_not_learn() {
    let _turn = turn();
    assert_keeps_nothing(stage_b(|config| config.b.freeze_compressor = true));
    assert_keeps_nothing(stage_b(|config| {
        let StageBModel::Latents(decoder) = &mut config.model.decoder else {
            panic!("the smoke test's Stage B makes latents");
        };
        decoder.inject_effnet = vec![false, false];
    }));
}

#[test]
fn version_1_keeps_nothing_of_networks_that_do_not_learn() {
    let _turn = turn();
    let (recipe, corpus) =
        shapes(changed(include_str!("../../configs/shapes-v1.toml"), |config| {
            config.b.freeze_compressor = true;
            (config.b.updates.batch_size, config.c.updates.batch_size) = (8, 16);
        }));
    let (config, device) = (&recipe.config, Device::flex().autodiff());
    let vqgan = config.model.vqgan.init(&Device::flex());
    let stage = StageBTokens::new(config, corpus.clone(), vqgan, device.clone());
    let model = recipe.init_token_decoder(&device);
    let updates = config.b.updates.clone();
    assert_keeps_nothing(Trainer::new(stage, model, updates, 1, device.clone()));
    let compressor = config.model.compressor.init(&Device::flex());
    let stage = StageC::new(config, corpus, (compressor, 4.6), device.clone());
    let model = recipe.init_prior(&device);
    assert_keeps_nothing(Trainer::new(stage, model, config.c.updates.clone(), 1, device));
}

/// Stage C of eight groups on embeddings of 8 x 8 cells, 64 pictures in a batch, so that what is kept for the backward
/// pass is many times as large as the weights.
fn config() -> TrainConfig {
    changed(SMOKE, |config| {
        config.image_size = 128;
        (config.defaults.width, config.defaults.height) = (128, 128);
        (config.model.prior.depth, config.model.prior.dropout) = (8, 0.1);
        (config.c.updates.steps, config.c.updates.batch_size) = (3, 64);
    })
}

/// A trainer of Stage C that has done two updates, and has its moments.
fn trainer(config: TrainConfig) -> Trainer<StageC> {
    let device = Device::flex().autodiff();
    let (recipe, corpus) = shapes(config);
    let config = &recipe.config;
    let compressor = config.model.compressor.init(&Device::flex());
    // Weights are made when they are first used, and clones of them have their own.
    let _ = tensors(&compressor, KeyTable::FIELDS);
    let encode = |x| image_embeddings(&compressor, x, config.compressor_side());
    let embeddings = Cache::fill(&corpus, 8, &Device::flex(), encode, |_| {}).unwrap();
    let mut stage = StageC::new(config, corpus, (compressor, 4.6), device.clone());
    stage.embeddings = embeddings;
    let model = recipe.init_prior(&device);
    let mut trainer = Trainer::new(stage, model, config.c.updates.clone(), 1, device);
    for _ in 0..2 {
        trainer.step().unwrap();
    }
    trainer.prepare().unwrap();
    trainer
}

/// By how much the count may differ from what is measured: it leaves out the gradients of features, which live for an
/// operation or two, and batches that are made ahead.
const COUNT_BOUND: f64 = 0.1;

fn assert_near(measured: usize, counted: usize) {
    let error = (measured as f64 - counted as f64).abs() / counted as f64;
    assert!(error < COUNT_BOUND, "measured {measured} bytes, counted {counted}");
}

/// The memory that an update takes at its peak.
fn update(recompute: bool, precision: Precision) -> usize {
    let mut config = config();
    config.c.recompute = recompute;
    config.c.updates.precision = precision;
    let mut trainer = trainer(config);
    peak(|| trainer.step().unwrap()).1
}

/// The count leaves out the copies in 16 bits that products keep: they take the place of larger ones.
#[test]
fn products_in_16_bits_take_less_memory() {
    let _turn = turn();
    for recompute in [false, true] {
        let [exact, halves] =
            [Precision::F32, Precision::F16].map(|precision| update(recompute, precision));
        assert!(halves < exact, "{halves} bytes in f16, {exact} in f32");
    }
}

#[test]
fn recomputation_takes_the_memory_of_a_group() {
    let _turn = turn();
    let [kept, recomputed] = [false, true].map(|recompute| update(recompute, Precision::F32));
    assert!(recomputed * 3 < kept, "{recomputed} bytes with recomputation, {kept} without");
    let config = config();
    let counted = |recompute: bool| {
        let work = Work {
            frozen: 0,
            trained: 0,
            moments: 0,
            average: false,
            recompute,
            cells: 8 * 8,
            tokens: config.model.max_tokens,
            batch: 64,
            shares: 1,
        };
        Memory::count(&config.model.prior, &work).activations
    };
    assert_near(kept - recomputed, counted(false) - counted(true));
}

/// The memory that is taken between updates: AdamW's two moments and an average, or nearly nothing.
#[test]
fn adafactor_without_an_average_keeps_the_weights_alone() {
    let _turn = turn();
    let measured = |method: Method, ema_beta: f64| {
        let mut config = config();
        (config.c.updates.batch_size, config.model.prior.c) = (1, 256);
        let optimizer = &mut config.c.updates.optimizer;
        (optimizer.method, optimizer.ema_beta, optimizer.ema_start) = (method, ema_beta, 0);
        let before = MEMORY.current_usage();
        let trainer = trainer(config);
        let taken = MEMORY.current_usage() - before;
        (taken, 4 * burn::module::Module::num_params(trainer.model()))
    };
    // The first update makes threads and tables that stay.
    measured(Method::AdamW, 0.9);
    let (most, weights) = measured(Method::AdamW, 0.9);
    let (moments, _) = measured(Method::AdamW, 0.0);
    let (least, _) = measured(Method::Adafactor, 0.0);
    assert_near(most - moments, weights);
    assert_near(moments - least, 2 * weights);
}
