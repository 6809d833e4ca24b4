//! Stage A with a perceptual loss, a discriminator, and codes that follow their latents.
#![cfg(all(feature = "cpu", feature = "fs"))]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use wuerstchen::Checkpoint;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::noise::Philox;
use wuerstchen::weights::{KeyTable, tensors};
use wuerstchen_train::Lesson;
use wuerstchen_train::compare::lpips::Lpips;
use wuerstchen_train::config::{AdversarialConfig, CodebookConfig};
use wuerstchen_train::corpus::Shapes;
use wuerstchen_train::stages::StageA;
use wuerstchen_train::store::{Memory, Store};
use wuerstchen_train::tokenizer::shapes_tokenizer;
use wuerstchen_train::{Metrics, Recipe, Run, Source, StageName, Start, TrainConfig, Trainer};

/// Initial weights come from the device's one random generator, so these tests take turns.
static GENERATOR: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An `AlexNet` of four channels and its heads, with random weights.
fn perceptual() -> Checkpoint {
    let mut rng = Philox::new(9, 0);
    let mut random = |name: String, shape: &[usize]| {
        let count: usize = shape.iter().product();
        let scale = (2.0 * shape[0] as f32 / count as f32).sqrt();
        let values = rng.normal(count).into_iter().map(|x| (x * scale).abs()).collect();
        NamedTensor::new(name, shape, values)
    };
    let layers = [(0, 3, 11), (3, 4, 5), (6, 4, 3), (8, 4, 3), (10, 4, 3)];
    let mut all = Vec::new();
    for (i, (feature, input, side)) in layers.into_iter().enumerate() {
        all.push(random(format!("features.{feature}.weight"), &[4, input, side, side]));
        all.push(random(format!("features.{feature}.bias"), &[4]));
        all.push(random(format!("lin{i}.model.1.weight"), &[1, 4, 1, 1]));
    }
    Checkpoint::from_tensors("perceptual", all)
}

fn smoke() -> TrainConfig {
    let mut config = TrainConfig::from_toml(include_str!("../../../configs/smoke.toml")).unwrap();
    (config.a.updates.batch_size, config.a.updates.steps) = (4, 6);
    config
}

/// A config with every loss and extra network of Stage A; the discriminator begins with the third update.
fn config() -> TrainConfig {
    let mut config = smoke();
    config.a.perceptual_loss = 0.5;
    config.a.perceptual_weights = vec!["alex.pth".into()];
    config.a.codebook = Some(CodebookConfig { decay: 0.8, revive_below: 0.5 });
    config.a.adversarial =
        Some(AdversarialConfig { start: 2, channels: 4, layers: 2, ..Default::default() });
    config.validate().unwrap();
    config
}

fn trainer(config: TrainConfig) -> Trainer<StageA> {
    let recipe = Recipe::new(config, shapes_tokenizer()).unwrap();
    let (config, device) = (&recipe.config, Device::flex().autodiff());
    device.seed(config.seed);
    let shapes = Shapes { seed: config.seed, lesson: Lesson::default() };
    let corpus = recipe.corpus(Arc::new(shapes)).unwrap();
    let mut stage = StageA::new(config, corpus, device.clone());
    if config.a.perceptual_loss > 0.0 {
        stage = stage.with_perceptual(Lpips::load(&perceptual(), &Device::flex()).unwrap());
    }
    let model = recipe.init_vqgan(&device);
    Trainer::new(stage, model, config.a.updates.clone(), config.seed, device)
}

fn steps(mut trainer: Trainer<StageA>, count: usize) -> (Trainer<StageA>, Vec<Metrics>) {
    let metrics = (0..count).map(|_| trainer.step().unwrap()).collect();
    (trainer, metrics)
}

fn vqgan(trainer: &Trainer<StageA>) -> Vec<NamedTensor> {
    tensors(&trainer.model().vqgan, KeyTable::VQGAN)
}

/// Six updates in one go equal two, three or four of them, a save, a restore into a fresh trainer, and the rest. So
/// the save lies before and after the start of the discriminator.
#[test]
fn a_stage_with_a_discriminator_resumes_bit_equal() {
    let _turn = turn();
    let (straight, metrics) = steps(trainer(config()), 6);
    assert!(metrics.iter().all(|metrics| metrics.applied && metrics.loss.is_finite()));
    for first in [2, 3, 4] {
        let saved = steps(trainer(config()), first).0.save();
        let restored = trainer(config()).restore("state", Arc::new(saved)).unwrap();
        let (resumed, rest) = steps(restored, 6 - first);
        assert!(resumed.save() == straight.save(), "after {first} updates");
        for (metrics, expected) in rest.iter().zip(&metrics[first..]) {
            assert_eq!(metrics.measures, expected.measures, "after {first} updates");
        }
    }
}

/// The metrics of an update depend on what it trains.
#[test]
fn metrics_tell_of_every_loss() {
    let _turn = turn();
    let (_, metrics) = steps(trainer(config()), 3);
    let names = |metrics: &Metrics| metrics.measures.keys().copied().collect::<Vec<_>>();
    let before = ["codes_used", "perceptual_loss", "perplexity", "reconstruction_loss"];
    assert_eq!(names(&metrics[1]), before);
    let all = [
        "adversarial_loss",
        "adversarial_weight",
        "codes_used",
        "discriminator_grad_norm",
        "discriminator_loss",
        "perceptual_loss",
        "perplexity",
        "reconstruction_loss",
    ];
    assert_eq!(names(&metrics[2]), all);
    let measures = &metrics[2].measures;
    assert!((0.0..=1.0).contains(&measures["codes_used"]) && measures["perplexity"] >= 1.0);
    assert!(measures["adversarial_weight"] > 0.0 && measures["discriminator_loss"] > 0.0);
    let json = serde_json::to_value(&metrics[2]).unwrap();
    assert_eq!(json["perplexity"], measures["perplexity"]);

    let (_, plain) = steps(trainer(smoke()), 1);
    assert_eq!(names(&plain[0]), ["codes_used", "perplexity", "reconstruction_loss"]);
}

/// Before a discriminator begins, it changes nothing in Stage A; afterwards it does, and learns.
#[test]
fn a_discriminator_changes_stage_a_when_it_begins() {
    let _turn = turn();
    let after = |start: Option<u64>| {
        let mut config = smoke();
        let adversarial = |start| AdversarialConfig { start, channels: 4, ..Default::default() };
        config.a.adversarial = start.map(adversarial);
        steps(trainer(config), 3).0
    };
    let plain = after(None);
    let late = after(Some(3));
    assert!(vqgan(&plain) == vqgan(&late), "it has not begun");
    let heard = after(Some(1));
    assert!(vqgan(&plain) != vqgan(&heard), "it has begun");
    let discriminator = |trainer: &Trainer<StageA>| {
        tensors(trainer.model().discriminator.as_ref().unwrap(), KeyTable::FIELDS)
    };
    assert!(discriminator(&late) != discriminator(&heard), "it has learnt nothing");
}

/// The discriminator learns to tell reconstructions from pictures if its loss has little weight for Stage A.
#[test]
fn the_loss_of_a_discriminator_falls() {
    let _turn = turn();
    let mut config = smoke();
    config.a.adversarial = Some(AdversarialConfig {
        weight: 1e-6,
        adaptive: false,
        channels: 8,
        layers: 2,
        learning_rate: 1e-2,
        ..Default::default()
    });
    config.a.updates.steps = 30;
    config.a.updates.optimizer.warmup_steps = 1;
    let (_, metrics) = steps(trainer(config), 30);
    let mean = |metrics: &[Metrics]| {
        metrics.iter().map(|metrics| metrics.measures["discriminator_loss"]).sum::<f64>()
    };
    let [first, last] = [mean(&metrics[..5]), mean(&metrics[25..])];
    assert!(last < 0.5 * first, "{first}, {last}");
}

/// With more codes than its latents need, dead ones come back.
#[test]
fn codes_that_follow_latents_are_used_more() {
    let _turn = turn();
    let used = |codebook: Option<CodebookConfig>| {
        let mut config = smoke();
        config.a.updates.steps = 40;
        config.a.codebook = codebook;
        let (_, metrics) = steps(trainer(config), 40);
        metrics[39].measures["perplexity"]
    };
    let plain = used(None);
    let followed = used(Some(CodebookConfig { decay: 0.8, revive_below: 0.2 }));
    assert!(followed > 1.2 * plain, "{plain}, {followed}");
}

#[test]
fn values_that_cannot_be_used_are_named() {
    let error = |change: fn(&mut TrainConfig)| {
        let mut config = config();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    fn adversarial(config: &mut TrainConfig) -> &mut AdversarialConfig {
        config.a.adversarial.as_mut().unwrap()
    }
    for (found, field) in [
        (error(|c| c.a.perceptual_loss = -1.0), "perceptual_loss"),
        (error(|c| c.a.perceptual_weights.clear()), "perceptual_weights"),
        (error(|c| c.a.perceptual_loss = 0.0), "perceptual_weights"),
        (error(|c| c.a.codebook.as_mut().unwrap().decay = 1.0), "codebook.decay"),
        (error(|c| c.a.codebook.as_mut().unwrap().revive_below = -0.1), "codebook.revive_below"),
        (error(|c| adversarial(c).weight = 0.0), "adversarial.weight"),
        (error(|c| adversarial(c).channels = 0), "adversarial.channels"),
        (error(|c| adversarial(c).layers = 4), "adversarial.layers"),
        (error(|c| adversarial(c).learning_rate = f64::NAN), "adversarial.learning_rate"),
        (error(|c| adversarial(c).beta1 = 1.0), "adversarial.beta1"),
        (error(|c| adversarial(c).max_grad_norm = 0.0), "adversarial.max_grad_norm"),
        (error(|c| c.c.diffusion.min_snr_gamma = Some(0.0)), "min_snr_gamma"),
        (error(|c| c.c.diffusion.min_snr_gamma = Some(5.0)), "min_snr_gamma"),
    ] {
        assert!(found.contains(&format!(" {field} must be ")), "{field}: {found}");
    }
    // The tables of a config, and a single file in place of a list.
    let toml = config().to_toml().unwrap();
    assert_eq!(TrainConfig::from_toml(&toml).unwrap(), config());
    let single =
        toml.replace("perceptual_weights = [\"alex.pth\"]", "perceptual_weights = \"alex.pth\"");
    assert_ne!(single, toml);
    assert_eq!(TrainConfig::from_toml(&single).unwrap(), config());
}

/// A run takes the weights of LPIPS from whoever starts it.
#[test]
fn a_run_needs_the_weights_of_its_perceptual_loss() {
    let _turn = turn();
    let run = |store: &Arc<Memory>| {
        let mut config = config();
        config.a.updates.steps = 3;
        let recipe = Recipe::new(config, shapes_tokenizer()).unwrap();
        Run::new(recipe, Source::Shapes, store.clone(), Device::flex())
    };
    let store = Arc::new(Memory::default());
    let error = run(&store).train(StageName::A, Start::Anew).unwrap_err().to_string();
    assert!(error.contains("perceptual_weights must be "), "{error}");
    let mut with_weights = run(&store).with_perceptual(perceptual());
    assert!(with_weights.train(StageName::A, Start::Anew).unwrap().is_continue());
    // The model lacks the networks that only training needs.
    let names = store.names();
    let name = names.iter().find(|name| name.contains("vqgan/diffusion_pytorch_model")).unwrap();
    let bytes = store.read(name).unwrap().unwrap();
    let weights = Checkpoint::parse("vqgan", Arc::new(bytes)).unwrap();
    assert!(
        !weights.names().any(|name| name.contains("discriminator") || name.contains("codebook."))
    );
}
