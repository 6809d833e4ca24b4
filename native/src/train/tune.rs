//! `wuerstchen train lora` and `train c --model`: fine-tuning of an existing model.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::ProgressBar;
use wuerstchen::{ModelFiles, RUN_CONFIG, TextEncoderConfig, Tokenizer};
use wuerstchen_train::config::{SamplesConfig, TuneConfig};
use wuerstchen_train::corpus::CorpusError;
use wuerstchen_train::{RunError, Tune, store, tune};

use super::captions::{tell_of_brackets, tell_of_captions};
use super::config::{invalid, read_config, read_tune_config};
use super::corpus::{Corpus, tell_if_changed};
use super::progress::tell_bucket;
use super::stored::{check_folder, remove_parts_of_run, tell_of_changes};
use super::{Ranks, Stages, TrainArgs, tell_of_warmup, with_remedy};
use crate::cache::{cache_folder, remove_old_parts};
use crate::devices::choose_for;
use crate::files::read_model;
use crate::pictures::tell_of_frames;
use crate::terminal::{counted, visible};
use crate::{memory, usage};

/// Name of the default cache of fine-tuning, in `wuerstchen`'s folder of the user's cache.
const CACHE: &str = "tune";

/// Fine-tunes as the arguments and the config say.
pub(super) fn run(args: &TrainArgs, ranks: &Ranks) -> Result<()> {
    if args.run.init.is_some() {
        let reason = "--init is for training from nothing: fine-tuning starts from --model";
        return Err(usage(&anyhow!(reason)));
    }
    let mut config = read_tune_config(&args.run.config, &args.run.set)?;
    if let (Some(shards), true) = (&mut config.corpus.shards, args.strict) {
        shards.strict = true;
    }
    config.validate().map_err(|error| invalid(error, &args.run.config, &args.run.set))?;
    check_kind(args.stage, &config).map_err(|error| usage(&error))?;
    let output = args.run.output.clone().unwrap_or_else(|| Path::new("runs").join(&config.name));
    check_folder(&output).map_err(|error| usage(&error))?;
    let resumes = args.resume.is_some();
    let stored = check_output(&output, &config).map_err(|error| usage(&error))?;
    if let (Some(stored), true) = (stored, resumes) {
        tell_of_changes(&stored, &config)?;
    }
    let cache = match &args.run.cache {
        Some(path) => path.clone(),
        None => cache_folder(CACHE).context("name a folder with --cache")?,
    };
    check_folder(&cache).map_err(|error| usage(&error))?;
    let model = read_model(args.run.model.as_deref())?;
    let corpus = Corpus::open_tuned(&config)?;
    let own = corpus.own_pictures();
    let captions = corpus.captions().map_or(0, Iterator::count);
    tell_of_model_captions(&corpus, &config.samples, &model)?;
    tell_of_warmup("", &config.c.updates);
    let found = choose_for(args.run.device, ranks.local)?;
    let (device, is_cpu) = (found.device.clone(), found.is_cpu());
    let store = ranks.store(&output);
    let stores = [store.clone(), Arc::new(store::Folder::new(&cache))];
    let steps = config.c.updates.steps;
    let changed = changed_layers(&config, &model);
    let tune = Tune::new(config, model, own.clone(), stores, device);
    let mut tune = tune.map_err(of_config)?.with_peers(ranks.peers.clone());
    let [pictures, captions] =
        [(own.count(), "picture"), (captions, "caption")].map(|(count, noun)| counted(count, noun));
    tell!("{pictures} with {captions}, {}", counted(steps, "update"));
    let counted = tune.memory()?;
    tell!("memory by count: {counted}");
    if is_cpu {
        memory::check("the fine-tuning, by this count,", counted.total())?;
    }
    let from = ranks.start(args)?;
    tune.check_start(&from).map_err(with_remedy)?;
    if args.dry_run {
        tune.listen(|event| {
            tell_bucket(event);
            ControlFlow::Continue(())
        });
    }
    // Broken pictures in shards are left out later, when they are read.
    if args.dry_run || matches!(corpus, Corpus::Folder(_)) {
        let broken = check_pictures(&mut tune, own.count())?;
        tell_of_frames(own.with_frames());
        if !own.leaves_out_broken() {
            refuse(&broken)?;
        } else if broken.len() == own.count() {
            return Err(CorpusError::NoPicture { count: broken.len() }.into());
        }
    }
    if args.dry_run {
        return crate::print(&changed);
    }
    remove_old_parts(&cache)?;
    if args.only_cache {
        tune.listen(ranks.listen(args)?);
        let is_stopped = tune.fill_cache()?.is_break();
        tell_of_frames(corpus.with_frames());
        if is_stopped {
            tell!("stopped; what is done is kept");
        } else {
            tell!("kept in {}", cache.display());
        }
        return Ok(());
    }
    if let Some(digest) = corpus.digest() {
        tell_if_changed(&digest, &*store, resumes)?;
    }
    if ranks.peers.rank() == 0 {
        remove_parts_of_run(&output)?;
    }
    ranks.list_pictures(&corpus, &output)?;
    tune.listen(ranks.listen(args)?);
    let done = tune.train(from);
    ranks.tell_of_pictures(&corpus, &output);
    let is_stopped = done.map_err(with_remedy)?.is_break();
    if is_stopped {
        tell!("stopped; go on with --resume auto");
        return Ok(());
    }
    let file = if args.stage == Stages::Lora { tune::LORA } else { tune::MODEL };
    tell!("wrote {}", output.join(file).display());
    Ok(())
}

/// Reads the pictures, and returns the errors of those that cannot be used.
fn check_pictures(tune: &mut Tune, count: usize) -> Result<Vec<CorpusError>> {
    let bar = ProgressBar::new(count as u64).with_message("reading the pictures");
    let broken = tune.check_pictures(|| bar.inc(1))?;
    bar.finish_and_clear();
    Ok(broken)
}

/// Fails if there are pictures that cannot be used, before the work that they would interrupt.
fn refuse(broken: &[CorpusError]) -> Result<()> {
    match broken {
        [] => Ok(()),
        [error] => Err(anyhow!("{error}")),
        [first, ..] => {
            broken.iter().for_each(|error| tell!("{}", visible(&error.to_string())));
            bail!("{} cannot be used, such as: {first}", counted(broken.len(), "picture"))
        }
    }
}

/// Reports the captions, and the prompts of the grids, that the model's own text encoder does not read whole.
fn tell_of_model_captions(
    corpus: &Corpus,
    samples: &SamplesConfig,
    model: &ModelFiles,
) -> Result<()> {
    let family = model.family();
    let Ok(config) = model.part_config::<TextEncoderConfig>(family.prior_text) else {
        // The fine-tuning itself reports the part that the model lacks.
        return Ok(());
    };
    let files = model.tokenizer(family.pipelines[0]);
    let tokenizer = Tokenizer::new(&files, config.max_position_embeddings)?;
    let captions = corpus.captions().into_iter().flatten();
    let prompts = samples.prompts.iter().map(String::as_str);
    let limit = "what the model's text encoder and tokenizer take";
    tell_of_brackets(corpus.captions().into_iter().flatten());
    tell_of_captions(captions, "caption", "", &tokenizer, limit)?;
    tell_of_captions(prompts, "sample prompt", "", &tokenizer, limit)
}

/// Fails where the command and the config do not agree on what is trained.
fn check_kind(stage: Stages, config: &TuneConfig) -> Result<()> {
    match (stage, &config.lora) {
        (Stages::Lora, None) => {
            bail!("train lora expects a table [lora] in the config, found none")
        }
        (Stages::C, Some(_)) => bail!(
            "train c trains all weights, and the config has a table [lora]: use train lora, or remove the \
             table"
        ),
        _ => Ok(()),
    }
}

/// The config of the run that the folder holds, if there is one; fails where it is no run of this config.
fn check_output(output: &Path, config: &TuneConfig) -> Result<Option<TuneConfig>> {
    let path = output.join(RUN_CONFIG);
    if !path.is_file() {
        return Ok(None);
    }
    let remedy = "name another folder with --output, or remove this one";
    let stored = read_tune_config(&path, &[]).map_err(|error| match read_config(&path, &[]) {
        Ok(_) => anyhow!("{} holds a run that is no fine-tuning: {remedy}", output.display()),
        Err(_) => error,
    })?;
    let of = |config: &TuneConfig| match &config.lora {
        Some(lora) => format!("a LoRA of {lora}"),
        None => "all of Stage C".to_owned(),
    };
    let (old, new) = (of(&stored), of(config));
    if old != new {
        bail!("{} holds a run of {old}, the config says {new}: {remedy}", output.display());
    }
    Ok(Some(stored))
}

/// The layers that a LoRA changes, for people.
fn changed_layers(config: &TuneConfig, model: &ModelFiles) -> String {
    let Some(lora) = &config.lora else { return "all weights of Stage C are trained".to_owned() };
    let prior = wuerstchen::Part::PRIOR;
    let names = model.weights.get(&prior).into_iter().flat_map(|weights| weights.names());
    let layers = names.filter_map(|name| name.strip_suffix(".weight"));
    let changed: Vec<_> = layers.filter(|layer| lora.changes(layer)).collect();
    changed.join("\n")
}

/// Turns an error in a value of the config into one of the command line.
fn of_config(error: RunError) -> anyhow::Error {
    match error {
        RunError::Value(_) => usage(&anyhow!(error)),
        RunError::Options(error) => usage(&anyhow!("samples: {error}")),
        _ => error.into(),
    }
}
