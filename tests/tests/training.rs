//! Training can stop anywhere and go on as if it had not.

use std::sync::{Arc, Mutex, MutexGuard};

use burn::prelude::*;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::weights::{KeyTable, tensors};
use wuerstchen::{Image, PartConfig};
use wuerstchen_train::Trainer;
use wuerstchen_train::corpus::{Corpus, CorpusError, Samples, Shapes};
use wuerstchen_train::recipe::Recipe;
use wuerstchen_train::shapes::Lesson;
use wuerstchen_train::stages::{Cache, Stage, StageA, StageB, StageC, image_embeddings};
use wuerstchen_train::tokenizer::shapes_tokenizer;

fn recipe() -> Recipe {
    let config = toml::from_str(include_str!("../../configs/smoke.toml")).unwrap();
    Recipe::new(config, shapes_tokenizer()).unwrap()
}

fn corpus(recipe: &Recipe) -> Corpus {
    let shapes = Shapes { seed: recipe.config.seed, lesson: Lesson::default() };
    recipe.corpus(Arc::new(shapes)).unwrap()
}

fn steps<S: Stage>(mut trainer: Trainer<S>, count: usize) -> Trainer<S> {
    for _ in 0..count {
        let metrics = trainer.step().unwrap();
        assert!(metrics.finite, "{metrics:?}");
    }
    trainer
}

/// Initial weights come from the device's one random generator, so these tests take turns.
static GENERATOR: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    GENERATOR.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The weights, their average and both moments after six steps, and after three, saving, restoring
/// into a fresh trainer, and three more: equal to the last bit.
fn assert_resumes<S: Stage>(trainer: impl Fn() -> Trainer<S>) {
    let straight = steps(trainer(), 6);
    let saved = steps(trainer(), 3).save();
    let resumed = steps(trainer().restore("state", saved).unwrap(), 3);
    let weights =
        |trainer: &Trainer<S>| -> Vec<NamedTensor> { tensors(trainer.model(), KeyTable::FIELDS) };
    assert!(weights(&straight) == weights(&resumed), "weights differ");
    assert!(weights(&straight) != weights(&trainer()), "nothing was learnt");
    assert!(straight.save() == resumed.save(), "moments or averages differ");
}

#[test]
fn stage_a_resumes_bit_equal() {
    let _turn = turn();
    let (recipe, device) = (recipe(), Device::flex().autodiff());
    let config = &recipe.config;
    assert_resumes(|| {
        device.seed(config.seed);
        let stage =
            StageA { corpus: corpus(&recipe), config: config.a.clone(), device: device.clone() };
        let model = config.model.vqgan.init(&device);
        Trainer::new(stage, model, config.a.clone(), config.seed, device.clone())
    });
}

#[test]
fn stage_b_resumes_bit_equal() {
    let _turn = turn();
    let (recipe, device) = (recipe(), Device::flex().autodiff());
    let config = &recipe.config;
    device.seed(config.seed);
    let vqgan = config.model.vqgan.init(&Device::flex());
    let vqgan = load_copy(vqgan);
    assert_resumes(|| {
        device.seed(config.seed);
        let corpus = corpus(&recipe);
        let latents = Cache::fill(&corpus, 0, &Device::flex(), |x| x, |_| {}).unwrap();
        let stage = StageB {
            corpus,
            config: config.b.clone(),
            device: device.clone(),
            schedule: config.model.schedule,
            latents,
            embeddings: Cache::fill(&self::corpus(&recipe), 0, &Device::flex(), |x| x, |_| {})
                .unwrap(),
            compressor_side: config.compressor_side(),
            vqgan: vqgan.clone(),
            vqgan_config: config.model.vqgan.clone(),
        };
        let model = recipe.init_decoder(&device);
        Trainer::new(stage, model, config.b.clone(), config.seed, device.clone())
    });
}

#[test]
fn stage_c_resumes_bit_equal() {
    let _turn = turn();
    let (recipe, device) = (recipe(), Device::flex().autodiff());
    let config = &recipe.config;
    device.seed(config.seed);
    let compressor = load_copy(config.model.compressor.init(&Device::flex()));
    assert_resumes(|| {
        device.seed(config.seed);
        let corpus = corpus(&recipe);
        let encode = |x| image_embeddings(&compressor, x, config.compressor_side());
        let embeddings = Cache::fill(&corpus, 40, &Device::flex(), encode, |_| {}).unwrap();
        let stage = StageC {
            corpus,
            config: config.c.clone(),
            device: device.clone(),
            schedule: config.model.schedule,
            embeddings,
            compressor: compressor.clone(),
            compressor_side: config.compressor_side(),
            embedding_scale: 4.6,
        };
        let model = recipe.init_prior(&device);
        Trainer::new(stage, model, config.c.clone(), config.seed, device.clone())
    });
}

/// Draws the lazily initialised weights, so that every clone has the same.
fn load_copy<M: burn::module::Module>(module: M) -> M {
    let _ = tensors(&module, KeyTable::FIELDS);
    module
}

#[test]
fn a_state_of_another_seed_is_refused() {
    let _turn = turn();
    let (recipe, device) = (recipe(), Device::flex().autodiff());
    let config = &recipe.config;
    let trainer = |seed| {
        let stage =
            StageA { corpus: corpus(&recipe), config: config.a.clone(), device: device.clone() };
        let model = config.model.vqgan.init(&device);
        Trainer::new(stage, model, config.a.clone(), seed, device.clone())
    };
    let error = trainer(2).restore("state", trainer(1).save()).err().unwrap().to_string();
    assert_eq!(error, "state: a training state of seed 1, the config says 2");
}

/// The built-in scenes, of which one cannot be read.
struct Torn(Shapes, u64);

impl Samples for Torn {
    fn picture(&self, number: u64, side: usize) -> Result<Image, CorpusError> {
        match number == self.1 {
            true => Err(CorpusError::Picture { name: "torn.png".into(), reason: "torn".into() }),
            false => self.0.picture(number, side),
        }
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
    let torn = Torn(shapes, 2 * config.batch_size as u64 + 3);
    let corpus = recipe.corpus(Arc::new(torn)).unwrap();
    let stage = StageA { corpus, config: config.clone(), device: device.clone() };
    let model = recipe.config.model.vqgan.init(&device);
    let mut trainer = steps(Trainer::new(stage, model, config, 1, device), 2);
    let saved = trainer.save();
    assert_eq!(trainer.step().unwrap_err().to_string(), "cannot read the picture torn.png: torn");
    assert_eq!(trainer.steps_done(), 2);
    assert!(trainer.save() == saved);
}
