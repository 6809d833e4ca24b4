//! Training can stop anywhere and go on as if it had not.

use std::sync::{Arc, Mutex, MutexGuard};

use burn::prelude::*;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::weights::{KeyTable, tensors};
use wuerstchen::{Checkpoint, Image, PartConfig, PerLevel, relative_error};
use wuerstchen_tests::gpu;
use wuerstchen_train::Lesson;
use wuerstchen_train::config::StageBModel;
use wuerstchen_train::corpus::{Corpus, CorpusError, Samples, Shapes};
use wuerstchen_train::optimizer::Method;
use wuerstchen_train::stages::{Cache, Stage, StageA, StageB, StageC, image_embeddings};
use wuerstchen_train::store::Memory;
use wuerstchen_train::tokenizer::shapes_tokenizer;
use wuerstchen_train::{Precision, Recipe, Run, Source, StageName, Start, TrainConfig, Trainer};

fn recipe() -> Recipe {
    let config = TrainConfig::from_toml(include_str!("../../configs/smoke.toml")).unwrap();
    Recipe::new(config, shapes_tokenizer()).unwrap()
}

fn corpus(recipe: &Recipe) -> Corpus {
    let shapes = Shapes { seed: recipe.config.seed, lesson: Lesson::default() };
    recipe.corpus(Arc::new(shapes)).unwrap()
}

fn steps<S: Stage>(mut trainer: Trainer<S>, count: usize) -> Trainer<S> {
    for _ in 0..count {
        let metrics = trainer.step().unwrap();
        assert!(metrics.applied, "{metrics:?}");
    }
    trainer
}

/// Initial weights come from the device's one random generator, so these tests take turns.
static GENERATOR: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    GENERATOR.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Six steps in one go, and three steps, a save, a restore into a fresh trainer, and three more, give the same weights,
/// average and moments to the last bit.
fn assert_resumes<S: Stage>(trainer: impl Fn() -> Trainer<S>) {
    let straight = steps(trainer(), 6);
    let saved = steps(trainer(), 3).save();
    let resumed = steps(trainer().restore("state", Arc::new(saved)).unwrap(), 3);
    let weights =
        |trainer: &Trainer<S>| -> Vec<NamedTensor> { tensors(trainer.model(), KeyTable::FIELDS) };
    assert!(weights(&straight) == weights(&resumed), "weights differ");
    assert!(weights(&straight) != weights(&trainer()), "nothing was learnt");
    assert!(straight.save() == resumed.save(), "moments or averages differ");
}

fn trainer_a(recipe: &Recipe) -> Trainer<StageA> {
    let (config, device) = (&recipe.config, Device::flex().autodiff());
    device.seed(config.seed);
    let stage = StageA::new(config, corpus(recipe), device.clone());
    let model = recipe.init_vqgan(&device);
    Trainer::new(stage, model, config.a.updates.clone(), config.seed, device)
}

fn trainer_b(recipe: &Recipe) -> Trainer<StageB> {
    let (config, device) = (&recipe.config, Device::flex().autodiff());
    device.seed(config.seed);
    let vqgan = load_copy(config.model.vqgan.init(&Device::flex()));
    let stage = StageB::new(config, corpus(recipe), vqgan, device.clone());
    let model = recipe.init_decoder(&device);
    Trainer::new(stage, model, config.b.updates.clone(), config.seed, device)
}

fn trainer_c(recipe: &Recipe) -> Trainer<StageC> {
    trainer_c_on(recipe, &Device::flex())
}

/// Stage C with a cache of 40 scenes.
fn trainer_c_on(recipe: &Recipe, plain: &Device) -> Trainer<StageC> {
    let (config, device) = (&recipe.config, plain.clone().autodiff());
    device.seed(config.seed);
    let compressor = load_copy(config.model.compressor.init(plain));
    let encode = |x| image_embeddings(&compressor, x, config.compressor_side());
    let corpus = corpus(recipe);
    let embeddings = Cache::fill(&corpus, 40, plain, encode, |_| {}).unwrap();
    let mut stage = StageC::new(config, corpus, (compressor, 4.6), device.clone());
    stage.embeddings = embeddings;
    let model = recipe.init_prior(&device);
    Trainer::new(stage, model, config.c.updates.clone(), config.seed, device)
}

#[test]
fn stage_a_resumes_bit_equal() {
    let _turn = turn();
    let recipe = recipe();
    assert_resumes(|| trainer_a(&recipe));
}

#[test]
fn stage_b_resumes_bit_equal() {
    let _turn = turn();
    let recipe = recipe();
    assert_resumes(|| trainer_b(&recipe));
}

#[test]
fn stage_c_resumes_bit_equal() {
    let _turn = turn();
    let recipe = recipe();
    assert_resumes(|| trainer_c(&recipe));
}

/// Stage C has recomputation and dropout; Stage A has convolutions.
#[test]
fn adafactor_resumes_bit_equal() {
    let _turn = turn();
    let mut recipe = recipe();
    recipe.config.model.prior.dropout = 0.1;
    recipe.config.c.recompute = true;
    for updates in [&mut recipe.config.a.updates, &mut recipe.config.c.updates] {
        updates.optimizer.method = Method::Adafactor;
    }
    assert_resumes(|| trainer_a(&recipe));
    assert_resumes(|| trainer_c(&recipe));
}

/// Without an average, the weights stand for it. A run that resumes with an average starts it from the weights.
#[test]
fn without_a_moving_average_none_is_kept() {
    let _turn = turn();
    let mut recipe = recipe();
    recipe.config.c.updates.optimizer.ema_beta = 0.0;
    assert_resumes(|| trainer_c(&recipe));
    let trainer = steps(trainer_c(&recipe), 2);
    let all = |model: &_| -> Vec<NamedTensor> { tensors(model, KeyTable::FIELDS) };
    assert!(all(&trainer.averaged()) == all(trainer.model()));
    let saved = trainer.save();
    let parts = Checkpoint::parse("state", Arc::new(saved.clone())).unwrap();
    assert!(parts.names().all(|name| !name.starts_with("ema/")));
    recipe.config.c.updates.optimizer.ema_beta = 0.9;
    let averaged = trainer_c(&recipe).restore("state", Arc::new(saved)).unwrap().averaged();
    assert!(all(&averaged) == all(trainer.model()));
}

/// The gradients of update number four, by name. By then no gradient is zero any more. Stage C has dropout, and its
/// text encoder has a loss of its own.
fn gradients(recipe: &mut Recipe, state: &[u8], recompute: bool) -> Vec<(String, Vec<f32>)> {
    recipe.config.c.recompute = recompute;
    let trainer = trainer_c(recipe).restore("state", Arc::new(state.to_vec())).unwrap();
    let saved = steps(trainer, 1).save();
    // The first moments, which are the gradients where they do not decay.
    let first = Checkpoint::parse("state", Arc::new(saved)).unwrap().under("first/");
    let values = |name: &str| (name.to_owned(), first.values(name).unwrap());
    first.names().map(values).collect()
}

/// Bound for the layers before the blocks, where the text's gradients are summed in another order. It is relative to
/// all of these gradients, because some are nothing but rounding, such as those of the keys' biases, on which no
/// softmax depends.
const RECOMPUTED_BOUND: f64 = 1e-6;

/// All gradients have the same bits, except those of the layers that embed the text and of its encoder.
#[test]
fn recomputed_features_have_the_same_gradients() {
    let _turn = turn();
    let mut recipe = recipe();
    (recipe.config.model.prior.depth, recipe.config.model.prior.dropout) = (4, 0.2);
    recipe.config.c.text_loss = 1.0;
    let optimizer = &mut recipe.config.c.updates.optimizer;
    (optimizer.beta1, optimizer.max_grad_norm) = (0.0, 1e9);
    let state = steps(trainer_c(&recipe), 3).save();
    let expected = gradients(&mut recipe, &state, false);
    let found = gradients(&mut recipe, &state, true);
    let mut before = [const { Vec::new() }; 2];
    for ((name, expected), (same, found)) in expected.iter().zip(&found) {
        assert_eq!(name, same);
        assert!(expected.iter().any(|&number| number != 0.0), "{name}");
        if name.starts_with("text_encoder.") || name.starts_with("prior.cond_") {
            before[0].extend(found);
            before[1].extend(expected);
        } else {
            assert!(found == expected, "{name}");
        }
    }
    let error = relative_error(&before[0], &before[1]);
    assert!(!before[0].is_empty() && error < RECOMPUTED_BOUND, "{error}");
    assert!(gradients(&mut recipe, &state, true) == found);
    recipe.config.model.prior.dropout = 0.0;
    assert!(gradients(&mut recipe, &state, true) != found, "dropout changes nothing");
}

/// The saved state after four updates, with any number of threads that make batches.
#[test]
fn results_do_not_depend_on_the_threads_that_make_batches() {
    let _turn = turn();
    let saved = |threads: usize| {
        let mut recipe = recipe();
        recipe.config.a.max_zoom = 2;
        for updates in [
            &mut recipe.config.a.updates,
            &mut recipe.config.b.updates,
            &mut recipe.config.c.updates,
        ] {
            updates.data_threads = threads;
        }
        [
            steps(trainer_a(&recipe), 4).save(),
            steps(trainer_b(&recipe), 4).save(),
            steps(trainer_c(&recipe), 4).save(),
        ]
    };
    let one = saved(1);
    for threads in [2, 5] {
        assert!(saved(threads) == one, "{threads} threads");
    }
}

/// Bound of the differences between numbers of shares: gradients are summed in another order, and f32 rounds the sums
/// of 16 samples to about 1e-6 of their size.
const SHARDS_BOUND: f64 = 1e-5;

/// Compares the loss and the norm of the gradients of the first update, before which all runs have the same weights.
/// Stage C fits because it has no batch norms, which would see only a share of the batch.
#[test]
fn shards_compute_the_same_update() {
    let _turn = turn();
    let first = |shards: usize| {
        let mut recipe = recipe();
        recipe.config.c.text_loss = 1.0;
        recipe.config.c.updates.shards = shards;
        let metrics = trainer_c(&recipe).step().unwrap();
        [metrics.loss as f32, metrics.grad_norm as f32]
    };
    let one = first(1);
    assert!(one.iter().all(|&value| value > 0.0), "{one:?}");
    for shards in [2, 4] {
        let error = relative_error(&first(shards), &one);
        assert!(error < SHARDS_BOUND, "{shards} shards: {error}");
    }
}

/// Gradient accumulation: the shares run one after the other, or two and then one.
#[test]
fn shards_in_turns_have_the_same_bits() {
    let _turn = turn();
    let saved = |at_once: Option<usize>, recompute: bool, dropout: f64| {
        let mut recipe = recipe();
        recipe.config.model.prior.dropout = dropout;
        if let StageBModel::Latents(decoder) = &mut recipe.config.model.decoder {
            decoder.dropout = PerLevel::One(dropout);
        }
        for updates in [&mut recipe.config.b.updates, &mut recipe.config.c.updates] {
            (updates.batch_size, updates.shards, updates.shards_at_once) = (12, 3, at_once);
        }
        recipe.config.c.recompute = recompute;
        [steps(trainer_b(&recipe), 2).save(), steps(trainer_c(&recipe), 2).save()]
    };
    for recompute in [false, true] {
        let all = saved(None, recompute, 0.0);
        for at_once in [1, 2, 7] {
            assert!(saved(Some(at_once), recompute, 0.0) == all, "{at_once} at once");
        }
        let dropped = saved(None, recompute, 0.3);
        assert!(dropped.iter().zip(&all).all(|(dropped, all)| dropped != all));
        assert!(saved(Some(2), recompute, 0.3) == dropped, "with dropout");
    }
}

fn losses<S: Stage>(mut trainer: Trainer<S>, updates: usize) -> Vec<f64> {
    let loss = |_| {
        let metrics = trainer.step().unwrap();
        assert!(metrics.applied, "{metrics:?}");
        metrics.loss
    };
    (0..updates).map(loss).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Precisions of 11 and of 8 bits, and how far their losses may be from those in f32. The effects of rounding add up
/// over the updates.
const HALVES: [(Precision, f64); 2] = [(Precision::F16, 0.004), (Precision::BF16, 0.02)];

/// The mean distance of the losses from exact ones, relative to these. Most of the losses must differ, or nothing was
/// rounded; a single one may be the same by chance. The first two do not count, because outputs are zero there.
fn distance(found: &[f64], exact: &[f64]) -> f64 {
    let errors = found.iter().zip(exact).map(|(found, exact)| (found / exact - 1.0).abs());
    let errors: Vec<_> = errors.collect();
    let differ = errors[2..].iter().filter(|&&error| error > 0.0).count();
    assert!(2 * differ > errors.len() - 2, "{errors:?}");
    mean(&errors)
}

/// The losses of updates are near to those in f32.
fn assert_follows<S: Stage>(updates: usize, trainer: impl Fn(Precision) -> Trainer<S>) {
    let exact = losses(trainer(Precision::F32), updates);
    let (first, last) = (&exact[..updates / 10], &exact[updates * 3 / 4..]);
    assert!(mean(last) < 0.9 * mean(first), "nothing was learnt");
    for (precision, bound) in HALVES {
        let distance = distance(&losses(trainer(precision), updates), &exact);
        eprintln!("{precision:?}: {distance}");
        assert!(distance < bound, "{precision:?}: {distance}");
    }
}

#[test]
fn stage_b_in_16_bits_follows_f32() {
    let _turn = turn();
    assert_follows(60, |precision| {
        let mut recipe = recipe();
        recipe.config.b.updates.precision = precision;
        trainer_b(&recipe)
    });
}

/// With recomputation, which multiplies in the backward pass too.
#[test]
fn stage_c_in_16_bits_follows_f32() {
    let _turn = turn();
    assert_follows(200, |precision| {
        let mut recipe = recipe();
        recipe.config.c.text_loss = 1.0;
        recipe.config.c.recompute = true;
        recipe.config.c.updates.precision = precision;
        trainer_c(&recipe)
    });
}

/// WGSL has f16, on devices that support it, and no bf16.
#[test]
fn a_gpu_multiplies_in_f16_and_refuses_bf16() {
    let Some(gpu) = gpu() else { return };
    let _turn = turn();
    let trainer = |precision| {
        let mut recipe = recipe();
        (recipe.config.model.prior.depth, recipe.config.c.updates.batch_size) = (1, 4);
        recipe.config.c.updates.precision = precision;
        trainer_c_on(&recipe, &gpu)
    };
    let [exact, found] = [Precision::F32, Precision::F16].map(|p| losses(trainer(p), 8));
    let distance = distance(&found, &exact);
    assert!(distance < HALVES[0].1, "{distance}");
    let mut recipe = recipe();
    recipe.config.c.updates.precision = Precision::BF16;
    let run = Run::new(recipe, Source::Shapes, Arc::new(Memory::default()), gpu);
    let error = run.check_start(StageName::C, &Start::Anew).unwrap_err().to_string();
    assert!(error.contains("precision must be f32 or f16, with which the device"), "{error}");
}

/// An update that changes nothing leaves the running averages of batch norms as they were, with one share and with two.
#[test]
fn an_update_that_changes_nothing_moves_no_running_averages() {
    let _turn = turn();
    for shards in [1, 2] {
        let mut recipe = recipe();
        recipe.config.a.updates.shards = shards;
        recipe.config.a.updates.optimizer.skip_grad_norm = Some(1e-12);
        let mut trainer = trainer_a(&recipe);
        let weights = |trainer: &Trainer<StageA>| -> Vec<NamedTensor> {
            tensors(trainer.model(), KeyTable::FIELDS)
        };
        let before = weights(&trainer);
        assert!(!trainer.step().unwrap().applied);
        assert!(weights(&trainer) == before, "{shards} shards");
    }
}

/// The loss is so large that its gradients overflow at first: updates change nothing until the scale has fallen. A
/// saved state contains the scale.
#[test]
fn the_scale_of_the_loss_falls_until_gradients_are_finite() {
    let _turn = turn();
    let mut recipe = recipe();
    recipe.config.c.text_loss = 1e5;
    recipe.config.c.updates.precision = Precision::F16;
    let update = |trainer: &mut Trainer<StageC>| {
        let metrics = trainer.step().unwrap();
        (metrics.applied, metrics.measures["loss_scale"])
    };
    let mut trainer = trainer_c(&recipe);
    assert_eq!(update(&mut trainer), (false, 65536.0));
    assert_eq!(update(&mut trainer), (false, 32768.0));
    let mut restored = trainer_c(&recipe).restore("state", Arc::new(trainer.save())).unwrap();
    let scale = (0..20).map(|_| update(&mut restored)).find(|(applied, _)| *applied).unwrap().1;
    assert!((1.0..32768.0).contains(&scale), "{scale}");
    // A resumed run goes on the same way. In f32 it drops the scale.
    let straight =
        steps(trainer_c(&recipe).restore("state", Arc::new(restored.save())).unwrap(), 2).save();
    assert!(straight == steps(restored, 2).save());
    recipe.config.c.updates.precision = Precision::F32;
    let exact = steps(trainer_c(&recipe).restore("state", Arc::new(straight)).unwrap(), 1).save();
    assert!(!String::from_utf8_lossy(&exact[..4096]).contains("loss_scale"));
}

/// Draws the lazily initialised weights, so that every clone has the same.
fn load_copy<M: burn::module::Module>(module: M) -> M {
    let _ = tensors(&module, KeyTable::FIELDS);
    module
}

#[test]
fn a_state_of_another_seed_is_refused() {
    let _turn = turn();
    let trainer = |seed| {
        let mut recipe = recipe();
        recipe.config.seed = seed;
        trainer_a(&recipe)
    };
    let error = trainer(2).restore("state", Arc::new(trainer(1).save())).err().unwrap().to_string();
    assert_eq!(error, "state: a training state of seed 1, the config says 2");
}

#[test]
fn a_state_of_another_optimizer_is_refused() {
    let _turn = turn();
    let trainer = |method| {
        let mut recipe = recipe();
        recipe.config.a.updates.optimizer.method = method;
        trainer_a(&recipe)
    };
    let saved = trainer(Method::Adafactor).save();
    let error = trainer(Method::AdamW).restore("state", Arc::new(saved)).err().unwrap().to_string();
    let expected = "state: a training state of adafactor, the config says method = \"adamw\"";
    assert_eq!(error, expected);
    let saved: Arc<Vec<u8>> = Arc::new(trainer(Method::Muon).save());
    for method in [Method::Adafactor, Method::AdamW] {
        let error = trainer(method).restore("state", saved.clone()).err().unwrap().to_string();
        let expected = "state: a training state of muon, the config says method = ";
        assert!(error.starts_with(expected), "{error}");
    }
    let saved = Arc::new(trainer(Method::AdamW).save());
    trainer(Method::Muon).restore("state", saved).unwrap();
}

/// The built-in scenes, of which one cannot be read.
struct Torn(Shapes, u64);

impl Samples for Torn {
    fn picture(&self, number: u64, side: usize) -> Result<Image, CorpusError> {
        if number == self.1 {
            return Err(CorpusError::Picture { name: "torn.png".into(), reason: "torn".into() });
        }
        self.0.picture(number, side)
    }

    fn captions(&self, number: u64) -> Vec<String> {
        self.0.captions(number)
    }

    fn prompt(&self, number: u64) -> String {
        self.captions(number).swap_remove(0)
    }
}

/// The third batch has the picture that cannot be read: two updates are done, and can be saved.
#[test]
fn a_picture_that_cannot_be_read_costs_no_update() {
    let _turn = turn();
    let (recipe, device) = (recipe(), Device::flex().autodiff());
    let config = recipe.config.a.clone();
    let shapes = Shapes { seed: recipe.config.seed, lesson: Lesson::default() };
    let torn = Torn(shapes, 2 * config.updates.batch_size as u64 + 3);
    let corpus = recipe.corpus(Arc::new(torn)).unwrap();
    let stage = StageA::new(&recipe.config, corpus, device.clone());
    let model = recipe.init_vqgan(&device);
    let mut trainer = steps(Trainer::new(stage, model, config.updates, 1, device), 2);
    let saved = trainer.save();
    assert_eq!(trainer.step().unwrap_err().to_string(), "cannot read the picture torn.png: torn");
    assert_eq!(trainer.steps_done(), 2);
    assert!(trainer.save() == saved);
}
