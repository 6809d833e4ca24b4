//! Processes that train together, as threads.
#![cfg(all(feature = "cpu", feature = "fs"))]

use std::ops::ControlFlow;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use wuerstchen::noise::Philox;
use wuerstchen::weights::{KeyTable, tensors};
use wuerstchen::{Image, PartConfig};
use wuerstchen_train::Lesson;
use wuerstchen_train::config::{AdversarialConfig, CodebookConfig};
use wuerstchen_train::corpus::{CorpusError, Samples, Shapes};
use wuerstchen_train::optimizer::Method;
use wuerstchen_train::peers::{add, agree};
use wuerstchen_train::stages::{Stage, StageA, StageC};
use wuerstchen_train::store::{Memory, Store};
use wuerstchen_train::tokenizer::shapes_tokenizer;
use wuerstchen_train::{
    Event, Metrics, Peers, Recipe, Run, RunError, Source, StageName, Start, TrainConfig, Trainer,
};

/// Initial weights come from the device's one random generator, so these tests take turns.
static GENERATOR: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that plays the role of a process.
struct Thread {
    rank: usize,
    meeting: Arc<Meeting>,
}

/// The meeting point of the threads.
struct Meeting {
    barrier: Barrier,
    /// The contribution of every rank.
    brought: Mutex<Vec<Vec<Vec<f32>>>>,
    told: Mutex<Vec<u8>>,
}

impl Thread {
    fn all(size: usize) -> impl Iterator<Item = Self> {
        let meeting = Arc::new(Meeting {
            barrier: Barrier::new(size),
            brought: Mutex::new(vec![Vec::new(); size]),
            told: Mutex::default(),
        });
        (0..size).map(move |rank| Self { rank, meeting: meeting.clone() })
    }
}

impl Peers for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.meeting.brought.lock().unwrap().len()
    }

    fn host(&self) -> String {
        format!("thread{}", self.rank)
    }

    fn sum(&self, addends: Vec<Vec<f32>>) -> Vec<f32> {
        self.meeting.brought.lock().unwrap()[self.rank] = addends;
        self.meeting.barrier.wait();
        let all = self.meeting.brought.lock().unwrap().concat();
        self.meeting.barrier.wait();
        let mut sum = all[0].clone();
        all[1..].iter().for_each(|addend| add(&mut sum, addend));
        sum
    }

    fn broadcast(&self, from: usize, bytes: &mut Vec<u8>) {
        if self.rank == from {
            self.meeting.told.lock().unwrap().clone_from(bytes);
        }
        self.meeting.barrier.wait();
        bytes.clone_from(&self.meeting.told.lock().unwrap());
        self.meeting.barrier.wait();
    }
}

/// The results of all threads.
fn together<T: Send>(size: usize, work: impl Fn(Arc<Thread>) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads = Thread::all(size).map(|thread| scope.spawn(move || work(Arc::new(thread))));
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn config(shards: usize, method: Method) -> TrainConfig {
    let mut config = TrainConfig::from_toml(include_str!("../../../configs/smoke.toml")).unwrap();
    for updates in [&mut config.a.updates, &mut config.b.updates, &mut config.c.updates] {
        (updates.steps, updates.batch_size, updates.shards) = (3, 12, shards);
        updates.optimizer.method = method;
    }
    config
}

fn recipe(config: TrainConfig) -> Recipe {
    Recipe::new(config, shapes_tokenizer()).unwrap()
}

/// Stage A, with batch norms, and pictures that are drawn for every batch and cut out of larger ones.
fn trainer_a(recipe: &Recipe) -> Trainer<StageA> {
    let (mut config, device) = (recipe.config.clone(), Device::flex().autodiff());
    config.a.max_zoom = 2;
    device.seed(1);
    let shapes = Shapes { seed: 1, lesson: Lesson::default() };
    let corpus = recipe.corpus(Arc::new(shapes)).unwrap();
    let model = recipe.init_vqgan(&device);
    let updates = config.a.updates.clone();
    Trainer::new(StageA::new(&config, corpus, device.clone()), model, updates, 1, device)
}

/// With a discriminator from the second update on, and codes that follow their latents.
fn trainer_a_against_a_discriminator(recipe: &Recipe) -> Trainer<StageA> {
    let (mut config, device) = (recipe.config.clone(), Device::flex().autodiff());
    config.a.codebook = Some(CodebookConfig { decay: 0.5, revive_below: 0.7 });
    config.a.adversarial =
        Some(AdversarialConfig { start: 1, channels: 4, layers: 2, ..Default::default() });
    device.seed(1);
    let recipe = self::recipe(config);
    let shapes = Shapes { seed: 1, lesson: Lesson::default() };
    let corpus = recipe.corpus(Arc::new(shapes)).unwrap();
    let model = recipe.init_vqgan(&device);
    let updates = recipe.config.a.updates.clone();
    Trainer::new(StageA::new(&recipe.config, corpus, device.clone()), model, updates, 1, device)
}

/// With captions, noise, and matrices for Muon.
fn trainer_c(recipe: &Recipe) -> Trainer<StageC> {
    let device = Device::flex().autodiff();
    device.seed(1);
    let shapes = Shapes { seed: 1, lesson: Lesson::default() };
    let compressor = recipe.config.model.compressor.init(&Device::flex());
    // Weights are drawn when they are first used, in whichever thread that is.
    let _ = tensors(&compressor, KeyTable::FIELDS);
    let corpus = recipe.corpus(Arc::new(shapes)).unwrap();
    let stage = StageC::new(&recipe.config, corpus, (compressor, 4.6), device.clone());
    let model = recipe.init_prior(&device);
    Trainer::new(stage, model, recipe.config.c.updates.clone(), 1, device)
}

/// The state, and the metrics without times, after three updates.
fn trained<S: Stage>(mut trainer: Trainer<S>) -> (Vec<u8>, Vec<[f64; 3]>) {
    let of = |metrics: Metrics| [metrics.loss, metrics.grad_norm, metrics.learning_rate];
    let metrics = (0..3).map(|_| of(trainer.step().unwrap())).collect();
    (trainer.save(), metrics)
}

/// Four shares give the same bits on one, two and four processes, and other bits than a batch without shares.
fn assert_equal<S: Stage>(trainer: impl Fn(&Recipe) -> Trainer<S> + Sync, method: Method) {
    let recipe = recipe(config(4, method));
    let alone = trained(trainer(&recipe));
    for size in [2, 4] {
        let trainers = Mutex::new((0..size).map(|_| trainer(&recipe)).collect::<Vec<_>>());
        let start = trainer(&recipe).save();
        let all = together(size, |peers| {
            let trainer = trainers.lock().unwrap().pop().unwrap();
            trained(trainer.restore("start", Arc::new(start.clone())).unwrap().with_peers(peers))
        });
        for (rank, together) in all.iter().enumerate() {
            assert_eq!(together.1, alone.1, "metrics of rank {rank} of {size}");
            assert!(together.0 == alone.0, "state of rank {rank} of {size}");
        }
    }
    let whole = trained(trainer(&self::recipe(config(1, method))));
    // The metrics of one update may be equal by chance.
    assert!(whole.0 != alone.0 && whole.1 != alone.1, "shares change nothing");
}

#[test]
fn processes_with_batch_norms_train_as_one() {
    let _turn = turn();
    assert_equal(trainer_a, Method::AdamW);
}

#[test]
fn processes_with_a_discriminator_train_as_one() {
    let _turn = turn();
    assert_equal(trainer_a_against_a_discriminator, Method::AdamW);
}

#[test]
fn processes_with_captions_and_muon_train_as_one() {
    let _turn = turn();
    assert_equal(trainer_c, Method::Muon);
}

#[test]
fn processes_with_a_discriminator_and_adafactor_train_as_one() {
    let _turn = turn();
    assert_equal(trainer_a_against_a_discriminator, Method::Adafactor);
}

#[test]
fn processes_with_recomputation_and_adafactor_train_as_one() {
    let _turn = turn();
    let trainer = |recipe: &Recipe| {
        let mut config = recipe.config.clone();
        config.c.recompute = true;
        trainer_c(&self::recipe(config))
    };
    assert_equal(trainer, Method::Adafactor);
}

#[test]
fn processes_agree_on_stops_and_failures() {
    assert_eq!(together(3, |peers| agree(&*peers, Ok(false))), vec![Ok(false); 3]);
    assert_eq!(together(3, |peers| agree(&*peers, Ok(peers.rank == 2))), vec![Ok(true); 3]);
    let failed = together(3, |peers| match peers.rank {
        0 => agree(&*peers, Ok(true)),
        rank => agree(&*peers, Err(format!("cause {rank}"))),
    });
    for failure in failed {
        assert_eq!(failure.unwrap_err().to_string(), "rank 1 of 3 on thread1: cause 1");
    }
}

/// A run of a stage in every process; rank 0's store, and how each has ended.
fn run<'a>(
    stage: StageName,
    configs: [TrainConfig; 2],
    source: impl Fn(usize) -> Source + Sync + 'a,
    listener: impl Fn(usize, &Event<'_>) -> ControlFlow<()> + Sync + Send + Copy + 'static,
) -> (Arc<Memory>, [Result<ControlFlow<()>, RunError>; 2]) {
    let stores = [0, 1].map(|_| Arc::new(Memory::default()));
    let done = together(2, |peers| {
        let rank = peers.rank;
        let recipe = recipe(configs[rank].clone());
        let run = Run::new(recipe, source(rank), stores[rank].clone(), Device::flex());
        let mut run = run.with_peers(peers);
        run.listen(move |event| listener(rank, event));
        run.train(stage, Start::Resume)
    });
    (stores[0].clone(), done.try_into().unwrap_or_else(|_| unreachable!("there are two")))
}

fn go_on(_rank: usize, _event: &Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn steps_in(store: &Memory) -> usize {
    let metrics = store.read("a/metrics.jsonl").unwrap().unwrap_or_default();
    String::from_utf8(metrics).unwrap().lines().count()
}

/// Rank 1 wishes to stop after the first update; both stop after the second, and go on together.
#[test]
fn a_stop_on_one_process_stops_all_at_the_same_step() {
    let _turn = turn();
    let configs = [0, 1].map(|_| config(2, Method::AdamW));
    let (store, done) = run(
        StageName::A,
        configs,
        |_| Source::Shapes,
        |rank, event| match event {
            Event::Update { .. } if rank == 1 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    );
    assert!(done.iter().all(|done| done.as_ref().unwrap().is_break()));
    assert_eq!(steps_in(&store), 2);
    assert!(store.contains("a/state.safetensors"));
    assert!(store.names().iter().any(|name| name.ends_with("vqgan/config.json")));
}

/// Shapes of which one process cannot draw some.
struct Torn {
    shapes: Shapes,
    from: u64,
}

impl Samples for Torn {
    fn picture(&self, number: u64, side: usize) -> Result<Image, CorpusError> {
        // Sample grids show numbers far from those that are trained on.
        if (self.from..1 << 20).contains(&number) {
            let (name, reason) = (format!("{number}.png"), "torn".to_owned());
            return Err(CorpusError::Picture { name, reason });
        }
        self.shapes.picture(number, side)
    }

    fn captions(&self, number: u64) -> Vec<String> {
        self.shapes.captions(number)
    }

    fn caption(&self, number: u64, rng: &mut Philox) -> String {
        self.shapes.caption(number, rng)
    }

    fn prompt(&self, number: u64) -> String {
        self.shapes.prompt(number)
    }
}

/// Of every twelve samples rank 1 has the last six: it fails in the second update, at the last picture.
#[test]
fn an_error_of_one_process_ends_all_and_leaves_a_state() {
    let _turn = turn();
    let configs = [0, 1].map(|_| config(2, Method::AdamW));
    let source = |rank| {
        let from = [1 << 20, 23][rank];
        let shapes = Shapes { seed: 1, lesson: Lesson::default() };
        Source::Samples(Arc::new(Torn { shapes, from }))
    };
    let (store, done) = run(StageName::A, configs, source, go_on);
    let [first, second] = done.map(Result::unwrap_err);
    let text = "rank 1 of 2 on thread1: training has stopped and saved its state: cannot read the picture \
                23.png: torn";
    assert_eq!([first.to_string(), second.to_string()], [text, text]);
    assert!(matches!(first, RunError::Failed { own: None, .. }));
    assert!(matches!(second, RunError::Failed { own: Some(own), .. }
        if matches!(*own, RunError::Sample(_))));
    assert_eq!(steps_in(&store), 1);
    assert!(store.contains("a/state.safetensors"));
}

#[test]
fn processes_are_started_alike() {
    let _turn = turn();
    let configs = [2, 3].map(|seed| TrainConfig { seed, ..config(2, Method::AdamW) });
    let (store, done) = run(StageName::A, configs, |_| Source::Shapes, go_on);
    let text = "rank 1 of 2 on thread1: expected seed = 2 as rank 0 has, found seed = 3";
    for error in done.map(Result::unwrap_err) {
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(steps_in(&store), 0);

    let configs = [0, 1].map(|_| config(3, Method::AdamW));
    let (_, done) = run(StageName::A, configs, |_| Source::Shapes, go_on);
    for error in done.map(Result::unwrap_err) {
        let error = error.to_string();
        let expected = "shards must be a multiple of the 2 processes, such as 2, got 3";
        assert!(error.contains(expected), "{error}");
    }
}

/// Only rank 0 has an error, from its store; the others are told of it.
#[test]
fn a_stage_that_rank_0_cannot_start_starts_nowhere() {
    let _turn = turn();
    let configs = [0, 1].map(|_| config(2, Method::AdamW));
    let (_, done) = run(StageName::C, configs, |_| Source::Shapes, go_on);
    for error in done.map(Result::unwrap_err) {
        let error = error.to_string();
        assert!(error.starts_with("rank 0 of 2 on thread0: "), "{error}");
        assert!(error.contains("Stage B of this run is not trained yet"), "{error}");
    }
}
