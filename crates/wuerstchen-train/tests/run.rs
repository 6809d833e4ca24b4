//! A training run as a program starts it.
#![cfg(all(feature = "cpu", feature = "fs"))]

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use wuerstchen::checkpoint::ReadBytes;
use wuerstchen::{GenerateOptions, Image, Pipeline};
use wuerstchen_train::Lesson;
use wuerstchen_train::corpus::{CorpusError, Samples, Shapes};
use wuerstchen_train::store::{Memory, Store};
use wuerstchen_train::tokenizer::shapes_tokenizer;
use wuerstchen_train::{Event, Recipe, Run, RunError, Source, StageName, Start, TrainConfig};

/// Initial weights come from the device's one random generator, so these tests take turns.
static GENERATOR: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The smoke test's sizes, with a few updates of four samples for every stage.
fn config(steps: u64) -> TrainConfig {
    let mut config = TrainConfig::from_toml(include_str!("../../../configs/smoke.toml")).unwrap();
    for updates in [&mut config.a.updates, &mut config.b.updates, &mut config.c.updates] {
        (updates.steps, updates.batch_size) = (steps, 4);
    }
    config.b.diffusion.cached_scenes = 8;
    config.c.diffusion.cached_scenes = 8;
    config
}

fn run_of(config: TrainConfig, source: Source, store: &Arc<Memory>) -> Run {
    let recipe = Recipe::new(config, shapes_tokenizer()).unwrap();
    Run::new(recipe, source, store.clone(), Device::flex())
}

fn run(steps: u64, store: &Arc<Memory>) -> Run {
    run_of(config(steps), Source::Shapes, store)
}

/// All stages train in a store in memory, and every event is reported.
#[test]
fn a_run_trains_all_stages_and_keeps_them() {
    let _turn = turn();
    let store = Arc::new(Memory::default());
    let events = Arc::new(Mutex::new(Vec::new()));
    let mut run = run(2, &store);
    let told = events.clone();
    run.listen(move |event| {
        told.lock().unwrap().push(match event {
            Event::Partial { .. } => "partial".to_owned(),
            Event::Bucket { .. } => "bucket".to_owned(),
            Event::Caching { what, done, scenes } => format!("{what}: {done} of {scenes}"),
            Event::EmbeddingScale { scale, .. } => format!("scale {}", *scale > 0.0),
            Event::Precision { .. } => "precision".to_owned(),
            Event::GivenWeights { .. } => "given weights".to_owned(),
            Event::OtherParts { .. } => "other parts".to_owned(),
            Event::NoState { .. } => "no state".to_owned(),
            Event::SmallGrid { .. } => "small grid".to_owned(),
            Event::Begin { stage, step, steps } => format!("{stage:?} {step} of {steps}"),
            Event::Update { metrics, samples_per_sec } => {
                assert!((0.0..=1.0).contains(&metrics.data_wait), "{metrics:?}");
                assert!(*samples_per_sec > 0.0, "{samples_per_sec}");
                format!("update {}", metrics.step)
            }
            Event::Saved => "saved".to_owned(),
        });
        ControlFlow::Continue(())
    });
    let model = run.train_all().unwrap().unwrap();

    let updates = ["update 1", "update 2", "saved"];
    let embeddings = "the compressor's image embeddings: 8 of 8";
    let expected = [
        &["A 0 of 2"][..],
        &updates,
        &["Stage A's latents: 8 of 8", "B 0 of 2"],
        &updates,
        &["scale true", embeddings, "C 0 of 2"],
        &updates,
    ];
    assert_eq!(*events.lock().unwrap(), expected.concat());
    for stage in ["a", "b", "c"] {
        let read = |file: &str| store.read(&format!("{stage}/{file}")).unwrap().unwrap();
        assert!(!read("state.safetensors").is_empty());
        assert!(read("samples-000002.png").starts_with(b"\x89PNG"));
        let metrics = String::from_utf8(read("metrics.jsonl")).unwrap();
        assert_eq!(metrics.lines().count(), 2);
        assert!(metrics.lines().all(|line| line.contains("\"data_wait\":")), "{metrics}");
    }
    assert!(store.contains("config.toml") && store.contains("model.safetensors"));
    let pipeline = Pipeline::load(&model, &Device::flex(), wuerstchen::Residency::All).unwrap();
    let made = pipeline.generate_blocking("a star", &GenerateOptions::default()).unwrap();
    assert_eq!([made.images[0].width, made.images[0].height], [32, 32]);
}

/// A run that started from a model starts later stages from it too, although nobody names the model again.
#[test]
fn the_model_that_a_run_started_from_is_not_forgotten() {
    let _turn = turn();
    let store = Arc::new(Memory::default());
    let given = run(2, &store).train_all().unwrap().unwrap();
    let first_loss = |store: &Memory| {
        let metrics = String::from_utf8(store.read("b/metrics.jsonl").unwrap().unwrap()).unwrap();
        let update: serde_json::Value =
            serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        update["loss"].as_f64().unwrap()
    };
    let losses = [true, false].map(|is_named_again| {
        let store = Arc::new(Memory::default());
        let mut first = run(2, &store);
        first.start_from(given.clone()).unwrap();
        assert!(first.train(StageName::A, Start::Anew).unwrap().is_continue());
        drop(first);
        let mut second = run(2, &store);
        let told = Arc::new(AtomicBool::new(false));
        let listener = told.clone();
        second.listen(move |event| {
            if matches!(event, Event::GivenWeights { stage: StageName::B }) {
                listener.store(true, Ordering::Relaxed);
            }
            ControlFlow::Continue(())
        });
        if is_named_again {
            second.start_from(given.clone()).unwrap();
        }
        assert!(second.train(StageName::B, Start::Resume).unwrap().is_continue());
        assert_eq!(told.load(Ordering::Relaxed), !is_named_again);
        first_loss(&store)
    });
    assert_eq!(losses[0], losses[1]);
    let fresh = Arc::new(Memory::default());
    let mut cold = run(2, &fresh);
    assert!(cold.train(StageName::A, Start::Anew).unwrap().is_continue());
    assert!(cold.train(StageName::B, Start::Anew).unwrap().is_continue());
    assert_ne!(first_loss(&fresh), losses[0]);
}

/// A run that is stopped after its first update and goes on ends with the bits of one that was not.
#[test]
fn a_run_stops_where_its_listener_breaks_and_goes_on() {
    let _turn = turn();
    let (straight, stopped) = (Arc::new(Memory::default()), Arc::new(Memory::default()));
    let trained = run(3, &straight).train(StageName::A, Start::Anew).unwrap();
    assert!(trained.is_continue());

    let mut first = run(3, &stopped);
    first.listen(|event| match event {
        Event::Update { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(first.train(StageName::A, Start::Anew).unwrap().is_break());
    let state = |store: &Memory| store.read("a/state.safetensors").unwrap().unwrap();
    let after_one = state(&stopped);
    assert_ne!(after_one, state(&straight));
    assert!(run(3, &stopped).train(StageName::A, Start::Resume).unwrap().is_continue());
    assert_eq!(state(&stopped), state(&straight));

    // From a state that lies elsewhere.
    let elsewhere = Arc::new(Memory::default());
    let start = Start::State { name: "kept".into(), bytes: Arc::new(after_one) };
    assert!(run(3, &elsewhere).train(StageName::A, start).unwrap().is_continue());
    assert_eq!(state(&elsewhere), state(&straight));

    // A run with no updates left has the result of its last update.
    let done = Arc::new(Memory::default());
    let start = Start::State { name: "done".into(), bytes: Arc::new(state(&straight)) };
    assert!(run(3, &done).train(StageName::A, start).unwrap().is_continue());
    assert_eq!(state(&done), state(&straight));
    let weights = "model/wuerstchen/vqgan/diffusion_pytorch_model.safetensors";
    assert_eq!(done.read(weights).unwrap(), straight.read(weights).unwrap());
    assert!(done.contains(weights));

    // If its model is lost, it is written again from the state.
    let lost = Arc::new(Memory::default());
    lost.write("a/state.safetensors", &state(&straight)).unwrap();
    assert!(run(3, &lost).train(StageName::A, Start::Resume).unwrap().is_continue());
    assert_eq!(lost.read(weights).unwrap(), straight.read(weights).unwrap());
}

/// A stage that goes on with another Stage A than the one that it was trained with says so.
#[test]
fn other_weights_of_stages_before_are_told() {
    let _turn = turn();
    let store = Arc::new(Memory::default());
    for stage in [StageName::A, StageName::B] {
        assert!(run(1, &store).train(stage, Start::Anew).unwrap().is_continue());
    }
    let is_told = || {
        let told = Arc::new(AtomicBool::new(false));
        let (mut run, heard) = (run(2, &store), told.clone());
        run.listen(move |event| {
            let is_told = matches!(event, Event::OtherParts { stage: StageName::B });
            heard.fetch_or(is_told, Ordering::Relaxed);
            ControlFlow::Continue(())
        });
        assert!(run.train(StageName::B, Start::Resume).unwrap().is_continue());
        told.load(Ordering::Relaxed)
    };
    assert!(!is_told());
    assert!(run(2, &store).train(StageName::A, Start::Resume).unwrap().is_continue());
    assert!(is_told());
}

/// Stage C's adaptive weights go on from the state, and change what is learnt.
#[test]
fn adaptive_weights_go_on_from_the_state() {
    let _turn = turn();
    let run = |is_adaptive, store: &Arc<Memory>| {
        let mut config = config(3);
        config.c.diffusion.p2_weighting = false;
        config.c.adaptive_weighting = is_adaptive;
        run_of(config, Source::Shapes, store)
    };
    let before = Arc::new(Memory::default());
    for stage in [StageName::A, StageName::B] {
        assert!(run(true, &before).train(stage, Start::Anew).unwrap().is_continue());
    }
    let copy = || {
        let copy = Memory::default();
        for name in before.names() {
            copy.write(&name, &before.read(&name).unwrap().unwrap()).unwrap();
        }
        Arc::new(copy)
    };
    let state = |store: &Memory| store.read("c/state.safetensors").unwrap().unwrap();
    let [straight, plain, stopped] = [copy(), copy(), copy()];
    assert!(run(true, &straight).train(StageName::C, Start::Anew).unwrap().is_continue());
    assert!(run(false, &plain).train(StageName::C, Start::Anew).unwrap().is_continue());
    assert_ne!(state(&straight), state(&plain));
    let mut first = run(true, &stopped);
    first.listen(|event| match event {
        Event::Update { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(first.train(StageName::C, Start::Anew).unwrap().is_break());
    assert!(run(true, &stopped).train(StageName::C, Start::Resume).unwrap().is_continue());
    assert_eq!(state(&stopped), state(&straight));
    let metrics = String::from_utf8(straight.read("c/metrics.jsonl").unwrap().unwrap()).unwrap();
    assert!(metrics.contains("\"error_t"), "{metrics}");
}

/// Two runs with one cache, and one without, make the same weights. The second run takes what the first has kept: it
/// notices a flipped bit in that.
#[test]
fn what_a_run_keeps_serves_others() {
    let _turn = turn();
    let before = Arc::new(Memory::default());
    assert!(run(2, &before).train(StageName::A, Start::Anew).unwrap().is_continue());
    let trained = |cache: Option<&Arc<Memory>>| {
        let store = Arc::new(Memory::default());
        for name in before.names() {
            store.write(&name, &before.read(&name).unwrap().unwrap()).unwrap();
        }
        let mut run = run(2, &store);
        if let Some(cache) = cache {
            run = run.with_cache(cache.clone());
        }
        for stage in [StageName::B, StageName::C] {
            assert!(run.train(stage, Start::Anew)?.is_continue());
        }
        let state = |stage: &str| store.read(&format!("{stage}/state.safetensors"));
        Ok::<_, RunError>(["b", "c"].map(|stage| state(stage).unwrap().unwrap()))
    };
    let (cache, straight) = (Arc::new(Memory::default()), trained(None).unwrap());
    for _ in 0..2 {
        assert!(trained(Some(&cache)).unwrap() == straight);
        // There is one file for every eight scenes.
        let mut kinds: Vec<_> =
            cache.names().iter().map(|name| name.split('/').next().unwrap().to_owned()).collect();
        kinds.sort();
        assert_eq!(kinds, ["embeddings", "latents"]);
    }
    let name = cache.names().into_iter().find(|name| name.starts_with("latents/")).unwrap();
    let mut bytes = cache.read(&name).unwrap().unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    cache.write(&name, &bytes).unwrap();
    let error = trained(Some(&cache)).err().unwrap().to_string();
    let expected = format!("{name}: its values are not those that were written; remove the file");
    assert!(error.contains(&expected), "{error}");
}

/// Grids are of the size that is trained on, whatever the model's default is.
#[test]
fn defaults_may_differ_from_the_size_that_is_trained_on() {
    let _turn = turn();
    let mut config = config(2);
    (config.defaults.width, config.defaults.height) = (64, 48);
    let store = Arc::new(Memory::default());
    let made = run_of(config, Source::Shapes, &store).train_all().unwrap();
    assert!(made.is_some());
}

/// A run that is asked to stop while a cache fills stops before its first update.
#[test]
fn a_run_stops_while_a_cache_fills() {
    let _turn = turn();
    let store = Arc::new(Memory::default());
    assert!(run(2, &store).train(StageName::A, Start::Anew).unwrap().is_continue());
    let mut stopped = run(2, &store);
    stopped.listen(|event| match event {
        Event::Caching { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(stopped.train(StageName::B, Start::Anew).unwrap().is_break());
    assert!(!store.contains("b/state.safetensors"));
    assert!(run(2, &store).train(StageName::B, Start::Anew).unwrap().is_continue());
}

#[test]
fn a_cache_is_filled_ahead() {
    let _turn = turn();
    let (store, cache) = (Arc::new(Memory::default()), Arc::new(Memory::default()));
    let mut run = run(2, &store).with_cache(cache.clone());
    let error = run.fill_cache(StageName::B).unwrap_err().to_string();
    assert!(error.contains("Stage A of this run is not trained yet"), "{error}");
    assert!(run.train(StageName::A, Start::Anew).unwrap().is_continue());
    assert!(run.fill_cache(StageName::B).unwrap().is_continue());
    assert_eq!(cache.names().len(), 1);
    assert!(!store.contains("b/state.safetensors"));
    let error = run.fill_cache(StageName::A).unwrap_err().to_string();
    assert!(error.contains("cached_scenes must be that of stage b or c"), "{error}");
    let mut config = config(2);
    config.b.diffusion.cached_scenes = 0;
    let error = run_of(config, Source::Shapes, &store).fill_cache(StageName::B).unwrap_err();
    assert!(error.to_string().contains("cached_scenes must be at least 1"), "{error}");
}

#[test]
fn a_new_start_does_not_overwrite_a_state() {
    let _turn = turn();
    let store = Arc::new(Memory::default());
    assert!(run(1, &store).train(StageName::A, Start::Anew).unwrap().is_continue());
    let before = store.names().into_iter().map(|name| (store.read(&name).unwrap(), name));
    let before: Vec<_> = before.collect();
    let error = run(2, &store).train(StageName::A, Start::Anew).unwrap_err();
    assert!(matches!(error, RunError::StateExists { stage: StageName::A, .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "a/state.safetensors is the state of stage a, and a new start would overwrite it"
    );
    let after = store.names().into_iter().map(|name| (store.read(&name).unwrap(), name));
    assert_eq!(after.collect::<Vec<_>>(), before);

    // The state of another run would overwrite it too. Its own is where it would go on anyway.
    let from = |store: &Memory| {
        let bytes: Arc<dyn ReadBytes> =
            Arc::new(store.read("a/state.safetensors").unwrap().unwrap());
        Start::State { name: "state".into(), bytes }
    };
    let other = Arc::new(Memory::default());
    assert!(run(2, &other).train(StageName::A, Start::Anew).unwrap().is_continue());
    let error = run(3, &store).train(StageName::A, from(&other)).unwrap_err();
    assert!(matches!(error, RunError::StateExists { stage: StageName::A, .. }), "{error}");
    assert!(run(1, &store).train(StageName::A, from(&store)).unwrap().is_continue());
}

#[test]
fn a_stage_needs_the_ones_before() {
    let _turn = turn();
    let store = Arc::new(Memory::default());
    let error = run(1, &store).train(StageName::B, Start::Anew).unwrap_err().to_string();
    assert!(error.contains("Stage A of this run is not trained yet"), "{error}");
}

/// A corpus of ten shapes, of which number 5 cannot be read.
struct Torn(Shapes);

impl Samples for Torn {
    fn picture(&self, number: u64, side: usize) -> Result<Image, CorpusError> {
        if number == 5 {
            return Err(CorpusError::Picture { name: "5.png".into(), reason: "torn".into() });
        }
        self.0.picture(number, side)
    }

    fn captions(&self, number: u64) -> Vec<String> {
        self.0.captions(number)
    }

    fn prompt(&self, number: u64) -> String {
        self.0.prompt(number)
    }

    fn count(&self) -> Option<usize> {
        Some(10)
    }
}

/// The second batch has the sample: one update is done, and saved.
#[test]
fn a_sample_that_cannot_be_read_saves_and_stops() {
    let _turn = turn();
    let store = Arc::new(Memory::default());
    let torn = Torn(Shapes { seed: 1, lesson: Lesson::default() });
    let source = Source::Samples(Arc::new(torn));
    let error = run_of(config(3), source, &store).train(StageName::A, Start::Anew).unwrap_err();
    let RunError::Sample(cause) = &error else { panic!("{error}") };
    assert_eq!(cause.to_string(), "cannot read the picture 5.png: torn");
    let metrics = store.read("a/metrics.jsonl").unwrap().unwrap();
    assert_eq!(String::from_utf8(metrics).unwrap().lines().count(), 1);
    assert!(run(3, &store).train(StageName::A, Start::Resume).unwrap().is_continue());
}

/// The program of the example, which cargo builds with the tests.
#[test]
fn the_example_trains_a_model() {
    let folder = std::env::temp_dir().join(format!("wuerstchen-train-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (toml, output) = (folder.join("config.toml"), folder.join("run"));
    std::fs::write(&toml, config(1).to_toml().unwrap()).unwrap();
    let test = std::env::current_exe().unwrap();
    let examples = test.parent().and_then(Path::parent).unwrap().join("examples");
    let program = examples.join("train").with_extension(std::env::consts::EXE_EXTENSION);
    let ran = Command::new(program).args([&toml, &output]).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let pipeline = Pipeline::open(&output, &Device::flex()).unwrap();
    let made = pipeline.generate_blocking("a star", &GenerateOptions::default()).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(made.images[0].width, 32);
}
