//! `wuerstchen bench`: times of every stage, with the sizes that a comparison with other programs needs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use burn::module::Module;
use burn::tensor::{Device, Distribution, Int, Tensor};
use clap::{ArgGroup, Args};
use futures_lite::future::block_on;
use serde_json::{Value, json};
use wuerstchen::speed::{Reach, Work, reach};
use wuerstchen::text::TokenIds;
use wuerstchen::{PartConfig, part};
use wuerstchen_train::Lesson;
use wuerstchen_train::config::{StageBModel, TrainConfig, UpdateConfig};
use wuerstchen_train::corpus::Shapes;
use wuerstchen_train::stages::{
    Cache, Stage, StageA, StageB, StageBTokens, StageC, stage_a_latents,
};
use wuerstchen_train::tokenizer::shapes_tokenizer;
use wuerstchen_train::{Recipe, Trainer};

#[cfg(feature = "gpu")]
use crate::devices::Found;
use crate::devices::{Choice, choose};
#[cfg(feature = "gpu")]
use crate::launches::{self, LaunchesArgs};
use crate::measure::{self, StageArgs};
use crate::train::read_valid_config;

/// Arguments of `wuerstchen bench`.
#[derive(Args)]
#[command(group(ArgGroup::new("of_a_model").args(OF_A_MODEL)))]
pub(crate) struct BenchArgs {
    /// A training config whose models are timed with random weights [default: configs/shapes.toml]
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// Runs of each measurement; the median is printed
    #[arg(long, default_value = "10", value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Where to run [default: cpu; gpu with --kernels and --launches]
    #[arg(long, value_enum)]
    device: Option<Choice>,
    /// Time the shaders of a GPU, beside what its arithmetic and memory reach, instead of a model
    #[cfg(feature = "gpu")]
    #[arg(long, conflicts_with_all = ["config", "stage", "runs"])]
    kernels: bool,
    #[cfg(feature = "gpu")]
    #[command(flatten)]
    launches: LaunchesArgs,
    #[command(flatten)]
    stage: StageArgs,
}

/// The arguments that measure a given model.
const OF_A_MODEL: &[&str] = if cfg!(feature = "gpu") { &["stage", "launches"] } else { &["stage"] };

/// The config that is timed where none is named.
const DEFAULT: &str = include_str!("../../configs/shapes.toml");

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    #[cfg(feature = "gpu")]
    args.launches.check().map_err(|error| crate::usage(&error))?;
    let config = match &args.config {
        Some(path) => read_valid_config(path, &[])?,
        None => TrainConfig::from_toml(DEFAULT)?,
    };
    #[cfg(feature = "gpu")]
    let default = if args.kernels || args.launches.launches { Choice::Gpu } else { Choice::Cpu };
    #[cfg(not(feature = "gpu"))]
    let default = Choice::Cpu;
    let found = choose(args.device.unwrap_or(default))?;
    #[cfg(feature = "gpu")]
    if args.kernels {
        return crate::kernels::run(&found);
    }
    let runs = usize::from(args.runs);
    if measure::run(&args.stage, &found, runs)? {
        return Ok(());
    }
    #[cfg(feature = "gpu")]
    if args.launches.launches {
        return count_launches(args, config, found);
    }
    let recipe = Recipe::new(config, shapes_tokenizer())?;
    let started = Instant::now();
    let clock = move || started.elapsed().as_secs_f64();
    let reach = block_on(reach(&found.device, &clock))?;
    let bench = Bench { recipe, device: found.device.clone(), runs };
    let report = json!({
        "device": found.name,
        "reach": reach,
        "threads": std::thread::available_parallelism().map_or(1, usize::from),
        "model": bench.recipe.config.name,
        "runs": bench.runs,
        "generation": bench.generation(&reach),
        "training": bench.training()?,
    });
    crate::print(&serde_json::to_string_pretty(&report)?)
}

/// Counts what a picture and updates cost a GPU's queue. The counts of updates do not depend on the batch size, so
/// batches have one sample.
#[cfg(feature = "gpu")]
fn count_launches(args: &BenchArgs, mut config: TrainConfig, found: Found) -> Result<()> {
    for updates in [&mut config.a.updates, &mut config.b.updates, &mut config.c.updates] {
        (updates.batch_size, updates.shards, updates.shards_at_once) = (1, 1, None);
    }
    let name = config.name.clone();
    let recipe = Recipe::new(config, shapes_tokenizer())?;
    launches::begin(&found)?;
    let generation = launches::generation(args.stage.model(), &args.launches, &found.device)?;
    let bench = Bench { recipe, device: found.device, runs: 0 };
    let report = json!({
        "device": found.name,
        "generation": generation,
        "training": {"config": name, "updates": bench.training()?},
    });
    crate::print(&serde_json::to_string_pretty(&report)?)
}

struct Bench {
    recipe: Recipe,
    device: Device,
    /// Runs of each measurement; 0 to count launches.
    runs: usize,
}

impl Bench {
    /// One forward pass of every stage for one picture, without guidance.
    fn generation(&self, reach: &Reach) -> Value {
        let (model, device) = (&self.recipe.config.model, &self.device);
        let tokens = model.max_tokens;
        let embedding = self.recipe.config.embedding_side();
        let latents = self.recipe.config.image_size / model.vqgan.downscale();
        let random =
            |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), device);
        let text =
            |width| Tensor::<3>::random([1, tokens, width], Distribution::Normal(0.0, 1.0), device);
        let x = random([1, model.prior.c_in, embedding, embedding]);
        let z = random([1, model.vqgan.latent_channels, latents, latents]);
        let ids = [TokenIds { ids: vec![0; tokens], attended: vec![true; tokens] }];

        let prior = model.prior.init(device);
        let vqgan = model.vqgan.init(device);
        let encoder = self.recipe.prior_text().init(device);
        let (prior_width, decoder_width) = (model.prior.c_cond, model.decoder_text.hidden_size);
        let [prior_input, decoder_input] = [text(prior_width), text(decoder_width)];
        let prior_secs = self.time(|| prior.forward(x.clone(), &[0.5], prior_input.clone()));
        let (size, cells) = ([latents; 2], embedding * embedding);
        let decoder_macs = model.decoder.multiply_adds(size, tokens, cells);
        let (decoder_params, decoder_secs) = match &model.decoder {
            StageBModel::Latents(config) => {
                let decoder = config.init(device);
                let predict =
                    || decoder.forward(z.clone(), &[0.5], x.clone(), decoder_input.clone());
                (decoder.num_params(), self.time(predict))
            }
            StageBModel::Tokens(config) => {
                let (decoder, x) = (config.init(device), x.clone());
                let z = Tensor::<3, Int>::zeros([1, latents, latents], device);
                let text = Some(decoder_input.clone());
                let predict = || decoder.forward(z.clone(), &[0.5], x.clone(), text.clone());
                (decoder.num_params(), self.time(predict))
            }
        };
        let vqgan_secs = self.time(|| vqgan.decode(z.clone()));
        let text_secs = self.time(|| encoder.forward(&ids));
        let line =
            |stage, input: Vec<usize>, parameters: usize, multiply_adds: usize, secs: f64| {
                let work = Work { stage, multiply_adds, weight_bytes: 4 * parameters };
                json!({"stage": stage, "input": input, "multiply_adds": multiply_adds, "secs": secs,
                   "gmac_per_sec": multiply_adds as f64 / secs / 1e9,
                   "weight_gb_per_sec": work.weight_bytes as f64 / secs / 1e9,
                   "share_of_reach": work.least_secs(reach) / secs})
            };
        let text_macs = self.recipe.prior_text().multiply_adds();
        let prior_macs = model.prior.multiply_adds([embedding; 2], tokens);
        let vqgan_macs = model.vqgan.decode_multiply_adds([latents; 2]);
        let (x, z) = (x.dims().to_vec(), z.dims().to_vec());
        let texts = encoder.num_params();
        json!([
            line(part::Stage::Text, vec![1, tokens], texts, text_macs, text_secs),
            line(part::Stage::Prior, x, prior.num_params(), prior_macs, prior_secs),
            line(part::Stage::Decoder, z.clone(), decoder_params, decoder_macs, decoder_secs),
            line(part::Stage::Vqgan, z, vqgan.num_params(), vqgan_macs, vqgan_secs),
        ])
    }

    /// Times or counts updates of every stage at the config's batch size, on freshly drawn scenes; those of Stage B over
    /// latents also on scenes whose latents Stage A has made before, as a run with `cached_scenes` has them.
    fn training(&self) -> Result<Value> {
        let device = self.device.clone().autodiff();
        let (recipe, config) = (&self.recipe, &self.recipe.config);
        let shapes = Shapes { seed: config.seed, lesson: Lesson::default() };
        let corpus = recipe.corpus(Arc::new(shapes))?;
        let a = StageA::new(config, corpus.clone(), device.clone());
        let mut lines =
            vec![self.updates("a", a, recipe.init_vqgan(&device), &config.a.updates)?];
        let vqgan = config.model.vqgan.init(&self.device);
        match &config.model.decoder {
            StageBModel::Latents(_) => {
                let stage = || StageB::new(config, corpus.clone(), vqgan.clone(), device.clone());
                let (fresh, mut cached) = (stage(), stage());
                let encode = |x| stage_a_latents(&vqgan, &config.model.vqgan, x);
                let scenes = config.b.updates.batch_size;
                cached.latents = Cache::fill(&corpus, scenes, &self.device, encode, |_| {})?;
                for (name, stage) in [("b", fresh), ("b, cached latents", cached)] {
                    let model = recipe.init_decoder(&device);
                    lines.push(self.updates(name, stage, model, &config.b.updates)?);
                }
            }
            StageBModel::Tokens(_) => {
                let stage = StageBTokens::new(config, corpus.clone(), vqgan, device.clone());
                let model = recipe.init_token_decoder(&device);
                lines.push(self.updates("b", stage, model, &config.b.updates)?);
            }
        }
        let compressor = config.model.compressor.init(&self.device);
        let c = StageC::new(config, corpus, (compressor, 1.0), device.clone());
        lines.push(self.updates("c", c, recipe.init_prior(&device), &config.c.updates)?);
        Ok(lines.into())
    }

    /// The time of an update, or its launches.
    fn updates<S: Stage>(
        &self,
        name: &str,
        stage: S,
        model: S::Model,
        config: &UpdateConfig,
    ) -> Result<Value> {
        let device = self.device.clone().autodiff();
        let mut trainer =
            Trainer::new(stage, model, config.clone(), self.recipe.config.seed, device);
        #[cfg(feature = "gpu")]
        if self.runs == 0 {
            let counts = launches::update(trainer, &self.device)?;
            return Ok(json!({"stage": name, "update": counts}));
        }
        trainer.step()?;
        let mut times = Vec::new();
        for _ in 0..self.runs {
            let start = Instant::now();
            trainer.step()?;
            times.push(start.elapsed().as_secs_f64());
        }
        let secs = median(times);
        let batch = config.batch_size;
        Ok(json!({"stage": name, "batch_size": batch, "secs": secs,
                  "samples_per_sec": batch as f64 / secs}))
    }

    /// Median seconds of a computation, including the read-back of its result; the first run does not count.
    fn time<const D: usize>(&self, compute: impl Fn() -> Tensor<D>) -> f64 {
        let once = || {
            let start = Instant::now();
            measure::compute(compute());
            start.elapsed().as_secs_f64()
        };
        once();
        median((0..self.runs).map(|_| once()).collect())
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
