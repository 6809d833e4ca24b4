//! `wuerstchen train`: trains what the arguments, the config and the run's folder say.

mod corpus;
mod progress;
mod tune;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use same_file::is_same_file;
use serde::Serialize;
use wuerstchen::card::PriorIndex;
use wuerstchen::fs::{check_writable, open, read_text};
use wuerstchen::text::emphasis::is_plain;
use wuerstchen::{
    Checkpoint, ConfigError, Family, ModelFiles, Part, RUN_CONFIG, RUN_MODEL, Tokenizer,
    TokenizerFiles,
};
use wuerstchen_train::config::{
    ModelConfig, ReadConfigError, TrainConfig, TuneConfig, UpdateConfig,
};
use wuerstchen_train::corpus::CorpusError;
use wuerstchen_train::lpips::Lpips;
use wuerstchen_train::run::{ONE_FILE_MODEL, STAGE_FOLDERS};
use wuerstchen_train::tokenizer::{learn_tokenizer, shapes_tokenizer, word_tokenizer};
use wuerstchen_train::{
    Alone, Event, Peers, Recipe, Run, RunError, StageName, Start, emoji, store,
};

use self::corpus::{Corpus, DIGEST, tell_if_changed};
use self::progress::{TrainProgress, tell_partial};
use crate::cache::remove_old_parts;
use crate::devices::{Choice, choose_for};
use crate::files::{read_model, read_tensors};
use crate::folder::Folder;
use crate::pictures::tell_of_frames;
use crate::terminal::{counted, is_or_are, visible};
use crate::{memory, usage};

/// Arguments of `wuerstchen train`.
#[derive(Args)]
pub struct TrainArgs {
    /// What to train: a stage; `all` for A, then B with the compressor, then C; `lora`, or `c` with --model,
    /// to fine-tune Stage C of an existing model
    stage: Stages,
    #[command(flatten)]
    run: RunArgs,
    /// Go on from a saved state: `auto` takes the run's own if there is one, PATH is a file such as
    /// RUN/c/state.safetensors
    #[arg(long, value_name = "auto|PATH")]
    resume: Option<String>,
    /// Fills the cache and stops.
    #[arg(skip)]
    only_cache: bool,
    /// Stop at a picture in a shard of the corpus that cannot be read, instead of leaving it out; pictures in a folder
    /// must always be readable
    #[arg(long)]
    strict: bool,
    /// Save and stop after this many seconds
    #[arg(long)]
    max_seconds: Option<u64>,
    /// Say what would be trained and stop
    #[arg(long)]
    dry_run: bool,
}

/// The arguments about a run that `wuerstchen train` and `data cache` share.
#[derive(Args, Clone)]
struct RunArgs {
    /// The run's TOML file
    #[arg(short, long)]
    config: PathBuf,
    /// Folder of the run [default: runs/NAME, with the config's name]
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Change a value of the config, such as `c.steps=1000`; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Start from this model's weights instead of random ones. The model need not have all stages; parts that the
    /// run has trained already stay
    #[arg(long, value_name = "MODEL")]
    init: Option<PathBuf>,
    /// The Würstchen v2 model whose Stage C is fine-tuned, as `generate` takes it [default for lora: the built-in
    /// model]
    #[arg(short, long, value_name = "PATH", conflicts_with = "init")]
    model: Option<PathBuf>,
    /// Folder where latents, image embeddings and hidden states of texts are kept for other runs; `data cache b` and
    /// `data cache c` need it [default: for fine-tuning wuerstchen/tune in the user's cache, else none]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Where to train, or to fill a cache
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
}

/// A stage, or all of them.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stages {
    A,
    B,
    C,
    All,
    Lora,
}

impl Stages {
    fn names(self) -> &'static [StageName] {
        match self {
            Self::A => &[StageName::A],
            Self::B => &[StageName::B],
            Self::C | Self::Lora => &[StageName::C],
            Self::All => &StageName::ALL,
        }
    }
}

/// The list of pictures that are left out, in a run's folder.
const LEFT_OUT: &str = "left-out.txt";

/// The place of this process among those that train together.
pub struct Ranks {
    /// All processes.
    pub peers: Arc<dyn Peers>,
    /// Number of this process among those on this machine, from 0.
    pub local: usize,
    /// Called with every event before it is shown.
    pub listener: Arc<dyn Fn(&Event<'_>)>,
}

impl Ranks {
    /// One process.
    pub fn alone() -> Self {
        Self { peers: Arc::new(Alone), local: 0, listener: Arc::new(|_| ()) }
    }

    /// Where this process keeps a run's files: rank 0 in the folder, the others nowhere.
    fn store(&self, output: &Path) -> Arc<dyn store::Store> {
        if self.peers.rank() == 0 {
            Arc::new(store::Folder::new(output))
        } else {
            Arc::new(store::Memory::default())
        }
    }

    /// The start of a stage; rank 0 gives the state to the others.
    fn start(&self, args: &TrainArgs) -> Result<Start> {
        Ok(match args.resume.as_deref() {
            _ if self.peers.rank() > 0 => Start::Resume,
            None => Start::Anew,
            Some("auto") => Start::Resume,
            Some(path) if Path::new(path).is_dir() => {
                let reason = "expected `auto` or the file of a state, such as RUN/c/state.safetensors, found a folder";
                return Err(usage(&anyhow!("--resume {path}: {reason}")));
            }
            Some(path) => {
                let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
                memory::check(&format!("the state {path}"), length as usize)?;
                Start::State { name: path.to_owned(), bytes: open(Path::new(path))? }
            }
        })
    }

    /// Lists the pictures that are left out in the run's folder, as they are found.
    fn list_pictures(&self, corpus: &Corpus, output: &Path) -> Result<()> {
        if self.peers.rank() > 0 { Ok(()) } else { corpus.list_in(&output.join(LEFT_OUT)) }
    }

    /// Tells how many pictures were enlarged or are not used whole, and where those that were left out are listed.
    fn tell_of_pictures(&self, corpus: &Corpus, output: &Path) {
        if self.peers.rank() > 0 {
            return;
        }
        tell_of_frames(corpus.with_frames());
        match corpus.enlarged() {
            0 => {}
            count => tell!(
                "enlarged, as their width or height was too small: {}",
                counted(count, "picture")
            ),
        }
        if let Some(count) = corpus.listed() {
            let pictures = counted(count, "picture");
            let (were, path) = (if count == 1 { "was" } else { "were" }, output.join(LEFT_OUT));
            tell!("{pictures} that cannot be read {were} left out: {}", path.display());
        }
    }

    /// Shows events, and says whether the run has to stop.
    fn listen(
        &self,
        args: &TrainArgs,
    ) -> Result<impl FnMut(&Event<'_>) -> ControlFlow<()> + use<>> {
        if cfg!(debug_assertions) && self.peers.rank() == 0 {
            tell!(
                "this program is not optimised; cargo build --release makes one that trains four times as fast"
            );
        }
        let mut progress = TrainProgress::new(args.deadline())?;
        let listener = self.listener.clone();
        Ok(move |event: &Event<'_>| {
            listener(event);
            progress.show(event)
        })
    }
}

/// Arguments of `wuerstchen data cache`.
#[derive(Args)]
pub(crate) struct CacheArgs {
    /// Whose cache to fill: that of Stage B or C, or of fine-tuning (lora, or c with --model)
    #[arg(value_parser = cached_stage)]
    stage: Stages,
    #[command(flatten)]
    run: RunArgs,
}

/// A stage that computes something before its first update.
fn cached_stage(name: &str) -> Result<Stages, String> {
    match name {
        "b" => Ok(Stages::B),
        "c" => Ok(Stages::C),
        "lora" => Ok(Stages::Lora),
        _ => Err("expected b, c or lora".to_owned()),
    }
}

/// Computes what a run would compute before its first update, and keeps it.
pub(crate) fn fill_cache(args: &CacheArgs) -> Result<()> {
    let is_tuned = args.stage == Stages::Lora || args.run.model.is_some();
    if !is_tuned && args.run.cache.is_none() {
        return Err(usage(&anyhow!("name a folder with --cache, which train --cache takes")));
    }
    let args = TrainArgs {
        stage: args.stage,
        run: args.run.clone(),
        resume: Some("auto".into()),
        only_cache: true,
        strict: false,
        max_seconds: None,
        dry_run: false,
    };
    run(&args, &Ranks::alone())
}

impl TrainArgs {
    /// The state that `--resume` names, if it names one.
    fn state(&self) -> Option<&str> {
        self.resume.as_deref().filter(|path| *path != "auto")
    }

    /// When the run has to stop.
    fn deadline(&self) -> Option<Instant> {
        // A time beyond the clock's end never comes.
        self.max_seconds.and_then(|secs| Instant::now().checked_add(Duration::from_secs(secs)))
    }
}

/// Runs `wuerstchen train`, in one of several processes if there are more. If one of them fails with another error than
/// [`RunError::Failed`], the caller must tell the others, which wait for it.
pub fn run(args: &TrainArgs, ranks: &Ranks) -> Result<()> {
    match (args.stage, &args.run.model) {
        (Stages::Lora, _) | (Stages::C, Some(_)) => tune::run(args, ranks),
        (_, Some(_)) => {
            let error =
                anyhow!("--model is for train lora and train c; --init starts from a model");
            Err(usage(&error))
        }
        _ => train(args, ranks),
    }
}

/// Trains a model of the config's sizes.
fn train(args: &TrainArgs, ranks: &Ranks) -> Result<()> {
    let mut config = read_valid_config(&args.run.config, &args.run.set)?;
    if let (Some(shards), true) = (&mut config.corpus.shards, args.strict) {
        shards.strict = true;
    }
    if let (Stages::All, Some(path)) = (args.stage, args.state()) {
        let error = anyhow!("{path} is the state of one stage: train that stage, or --resume auto");
        return Err(usage(&error));
    }
    let output = args.run.output.clone().unwrap_or_else(|| Path::new("runs").join(&config.name));
    check_folder(&output).map_err(|error| usage(&error))?;
    if let Some(cache) = &args.run.cache {
        check_folder(cache).map_err(|error| usage(&error))?;
    }
    let stored = stored_config(&output)?;
    if let Some(stored) = &stored {
        let fits = match args.resume {
            Some(_) => check_drawings(&output, stored, &config)
                .and_then(|()| check_sizes(&output, stored, &config)),
            None => check_fits(&output, stored, &config),
        };
        fits.and_then(|()| check_scale(&output, stored, &config)).map_err(|error| usage(&error))?;
    }
    let corpus = Corpus::open(&config)?;
    let init = args.run.init.as_deref().map(|model| read_model(Some(model))).transpose()?;
    let family = config.model.decoder.family();
    if let Some(model) = init.as_ref().filter(|model| model.family().name != family.name) {
        bail!(
            "--init expects a model of {}, which is what this config trains, found one of {}",
            family.name,
            model.family().name
        );
    }
    if config.model.embedding_scale.is_none() && !trains_compressor(args.stage, &config) {
        // A run's own compressor makes other embeddings than that of the model that it starts from.
        let own = output.join(RUN_MODEL).join(family.compressor.folder()).exists();
        let init = init.as_ref().filter(|_| !own);
        config.model.embedding_scale = known_scale(family, stored.as_ref(), init);
    }
    if let (Some(stored), Some(_)) = (&stored, &args.resume) {
        tell_of_changes(&without_scale(stored), &without_scale(&config))?;
    }
    if let (Some(scale), true) =
        (config.model.embedding_scale, trains_compressor(args.stage, &config))
    {
        tell!(
            "the scale of the image embeddings is not measured: model.embedding_scale is {scale}"
        );
    }
    let tokenizer = match &corpus {
        Corpus::Folder(_) | Corpus::Shards(_) => {
            let given = init.as_ref().map(|model| model.tokenizer(family.pipelines[0]));
            let given = given.filter(TokenizerFiles::is_complete);
            let own = own_tokenizer(&output, family)?;
            let known = known_tokenizer(args, &output, family, own, given);
            let known = known.map_err(|error| usage(&error))?;
            if let (Some(stored), Some(_)) = (&stored, &known)
                && stored.corpus.vocab_size != config.corpus.vocab_size
            {
                tell!(
                    "corpus.vocab_size has no effect: the run goes on with the tokenizer that it has"
                );
            }
            let captions = corpus.captions().into_iter().flatten();
            known.map_or_else(|| learn_tokenizer(captions, config.corpus.vocab_size), Ok)?
        }
        Corpus::Shapes => shapes_tokenizer(),
        Corpus::Emoji(art) => word_tokenizer(&emoji::vocabulary(art)),
    };
    let trains_a = args.stage.names().contains(&StageName::A);
    let perceptual = (trains_a && config.a.perceptual_loss > 0.0)
        .then(|| perceptual(&config.a.perceptual_weights))
        .transpose()?;
    let recipe = Recipe::new(config, tokenizer)?;
    let tokenizer = Tokenizer::new(&recipe.tokenizer, recipe.config.model.max_tokens)?;
    tell_of_brackets(corpus.captions().into_iter().flatten());
    if let Some(captions) = corpus.captions() {
        tell_of_captions(captions, "caption", "", &tokenizer, "model.max_tokens")?;
    } else {
        let updates = recipe.config.updates(StageName::C);
        let drawn = corpus.source().samples(StageName::C, recipe.config.seed, updates.lesson);
        let captions: Vec<_> = (0..DRAWN).flat_map(|number| drawn.captions(number)).collect();
        let captions = captions.iter().map(String::as_str);
        let of = format!(" of {DRAWN} drawn scenes");
        tell_of_captions(captions, "caption", &of, &tokenizer, "model.max_tokens")?;
    }
    // A dry run keeps no hash.
    let digest = if args.dry_run { None } else { corpus.digest() };
    if let Corpus::Folder(folder) = &corpus {
        // A run that has begun with these pictures has read them before.
        let read = std::fs::read_to_string(output.join(DIGEST)).ok();
        if digest.is_none() || digest != read {
            check(folder, recipe.config.image_size)?;
        }
    }
    for &stage in args.stage.names() {
        tell_of_warmup(&format!("{}.", stage.as_str()), recipe.config.updates(stage));
        let (cached, _) = recipe.cached(stage);
        if let Some(count) =
            corpus.pictures().filter(|count| args.dry_run && (1..*count).contains(&cached))
        {
            tell_partial(stage, cached, count);
        }
    }
    check_memory(&recipe, args.stage, corpus.pictures())?;
    let device = choose_for(args.run.device, ranks.local)?.device;
    let store = ranks.store(&output);
    let run = Run::new(recipe, corpus.source(), store.clone(), device);
    let run = run.with_peers(ranks.peers.clone());
    // Rank 0 has the weights.
    if ranks.peers.rank() == 0 {
        run.check_weights(args.stage.names(), init.as_ref()).map_err(|error| {
            match &args.run.init {
                Some(path) => anyhow!(error).context(format!("--init {}", path.display())),
                None => anyhow!(error),
            }
        })?;
    }
    let start = |&stage| Ok((stage, ranks.start(args)?));
    let stages = args.stage.names().iter().map(start).collect::<Result<Vec<_>>>()?;
    for (stage, start) in &stages {
        run.check_start(*stage, start).map_err(with_remedy)?;
    }
    if !args.only_cache && ranks.peers.rank() == 0 {
        if args.state().is_none() {
            run.check_results().map_err(with_remedy)?;
        }
        tell_of_starts(&run, args, &output)?;
    }
    if args.dry_run {
        return describe(run.recipe(), &corpus, &output);
    }
    let mut run = match perceptual {
        Some(weights) => run.with_perceptual(weights),
        None => run,
    };
    if let Some(digest) = digest {
        tell_if_changed(&digest, &*store, args.resume.is_some())?;
    }
    if ranks.peers.rank() == 0 {
        remove_parts_of_run(&output)?;
    }
    ranks.list_pictures(&corpus, &output)?;
    if let Some(cache) = &args.run.cache {
        remove_old_parts(cache)?;
        run = run.with_cache(Arc::new(store::Folder::new(cache)));
        if args.stage.names().iter().any(|&stage| run.recipe().cached(stage).0 > 0) {
            tell!("keeping latents and image embeddings in {}", cache.display());
        } else {
            tell!("nothing is kept in {}: cached_scenes is 0", cache.display());
        }
    }
    run.listen(ranks.listen(args)?);
    if let Some(model) = init {
        run.start_from(model)?;
    }
    if args.only_cache {
        for &stage in args.stage.names() {
            if run.fill_cache(stage).map_err(with_remedy)?.is_break() {
                tell!("stopped; what is done is kept");
            }
        }
        ranks.tell_of_pictures(&corpus, &output);
        return Ok(());
    }
    for (stage, start) in stages {
        let done = run.train(stage, start);
        ranks.tell_of_pictures(&corpus, &output);
        let is_stopped = done.map_err(with_remedy)?.is_break();
        if is_stopped {
            tell!("stopped; go on with --resume auto");
            return Ok(());
        }
    }
    if ranks.peers.rank() > 0 {
        return Ok(());
    }
    let model = run.write_model()?;
    let [folder, file] = [RUN_MODEL, ONE_FILE_MODEL].map(|name| output.join(name));
    tell!("wrote {} and {}", folder.display(), file.display());
    for (stage, state) in run.outdated()? {
        let stage = stage.as_str();
        match state {
            Some(state) => tell!(
                "stage {stage} of this run was trained with other weights of the stages before it: remove {state}, and \
                 train it again"
            ),
            None => tell!(
                "stage {stage} is that of --init, which was trained with other weights of the stages before it: train it, \
                 again with --init if it should begin with its weights"
            ),
        }
    }
    let missing: Vec<_> = model.missing_parts().iter().map(Part::to_string).collect();
    if !missing.is_empty() {
        tell!("not trained yet, so that it makes no pictures: {}", missing.join(", "));
    }
    Ok(())
}

/// Tells where the first stage begins, if that may not be what was meant: in a folder without a run, or after a stage
/// that is not done.
fn tell_of_starts(run: &Run, args: &TrainArgs, output: &Path) -> Result<()> {
    let stage = args.stage.names()[0];
    if args.resume.is_some() && !output.join(RUN_CONFIG).is_file() && args.state().is_none() {
        tell!("there is no run in {} yet: it begins", output.display());
    }
    for (before, step) in run.unfinished(stage)? {
        tell!(
            "stage {} has done {step} of {}; stage {} takes its weights as they are",
            before.as_str(),
            counted(run.recipe().config.updates(before).steps, "update"),
            stage.as_str()
        );
    }
    Ok(())
}

/// Removes what programs were writing in the folders of a run when they were killed. Other files and folders beside
/// these may be anyone's.
fn remove_parts_of_run(output: &Path) -> Result<()> {
    let folders = STAGE_FOLDERS.into_iter().chain([RUN_MODEL, "lora"]);
    folders.map(|folder| output.join(folder)).try_for_each(|folder| remove_old_parts(&folder))
}

/// Reads the weights of Stage A's perceptual loss, and fails unless they are those of LPIPS.
fn perceptual(paths: &[PathBuf]) -> Result<Checkpoint> {
    let read = || {
        let weights = read_tensors(paths)?;
        Lpips::load(&weights, &Device::flex())?;
        Ok::<_, anyhow::Error>(weights)
    };
    read().context("a.perceptual_weights cannot be used")
}

/// An error of a run, with the arguments that help.
fn with_remedy(error: RunError) -> anyhow::Error {
    let remedy = match error {
        RunError::StateExists { .. } => {
            let remedy = "go on with --resume auto, or name another folder with --output";
            return usage(&anyhow!("{error}: {remedy}"));
        }
        RunError::ResultExists { .. } => {
            let remedy = "name another folder with --output, or move it away";
            return usage(&anyhow!("{error}: {remedy}"));
        }
        RunError::Value(_) => return usage(&error.into()),
        RunError::Sample(CorpusError::Cache { .. }) => "go on with --resume auto after that",
        RunError::Sample(_) => "go on with --resume auto when the corpus is whole",
        _ => return error.into(),
    };
    anyhow::Error::from(error).context(remedy)
}

/// As [`read_config`], with every value checked.
pub(crate) fn read_valid_config(path: &Path, changes: &[String]) -> Result<TrainConfig> {
    let config = read_config(path, changes)?;
    config.validate().map_err(|error| invalid(error, path, changes))?;
    Ok(config)
}

/// Reads the config and applies `KEY=VALUE` changes.
fn read_config(path: &Path, changes: &[String]) -> Result<TrainConfig> {
    let fits = |table: &toml::Table| TrainConfig::from_table(table.clone()).is_ok();
    let (table, unfit) = read_table(path, changes, &fits)?;
    TrainConfig::from_table(table.clone()).map_err(|error| match (error, unfit) {
        (ReadConfigError::Toml(error), Some(change)) => unfit_change(change, &error),
        _ if TuneConfig::from_table(table.clone()).is_ok() => usage(&anyhow!(
            "{} is a config of fine-tuning, for train lora, and train c with --model: expected one of training \
             from nothing",
            path.display()
        )),
        (ReadConfigError::Config(error), _) => invalid(error, path, changes),
        (ReadConfigError::Toml(error), _) => {
            usage(&anyhow!("{} does not fit: {}", path.display(), plain(&error.to_string())))
        }
    })
}

/// The error of a change after which a config does not fit.
fn unfit_change(change: &str, error: &toml::de::Error) -> anyhow::Error {
    usage(&anyhow!("--set {change}: {}", plain(error.message())))
}

/// The error of a value of a config that was read from a file and perhaps changed.
fn invalid(error: ConfigError, path: &Path, changes: &[String]) -> anyhow::Error {
    let changes: Vec<_> = changes.iter().map(|change| format!(" --set {change}")).collect();
    let place = format!("{}{}", path.display(), changes.concat());
    usage(&anyhow::Error::from(error).context(place))
}

/// What serde calls the types of a config's values, and what they are called here.
const TYPES: [(&str, &str); 6] = [
    ("expected u64", "expected a whole number of at least 0"),
    ("expected u32", "expected a whole number of at least 0"),
    ("expected usize", "expected a whole number of at least 0"),
    ("expected f64", "expected a number"),
    ("expected f32", "expected a number"),
    ("expected a boolean", "expected true or false"),
];

/// An error of serde in one line, without Rust's names of types.
fn plain(error: &str) -> String {
    let mut error = error.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((start, name)) = error.split_once("expected struct ") {
        let end = name.split_once(' ').map_or(String::new(), |(_, end)| format!(" {end}"));
        error = format!("{start}expected a table{end}");
    }
    TYPES.iter().fold(error, |error, (name, plain)| error.replace(name, plain))
}

/// Reads a config as a table and applies `KEY=VALUE` changes; `fits` says whether a table is a config. Also returns the
/// first change after which the table is no config any more, if there is one.
fn read_table<'a>(
    path: &Path,
    changes: &'a [String],
    fits: &dyn Fn(&toml::Table) -> bool,
) -> Result<(toml::Table, Option<&'a str>)> {
    let text = read_text(path).context("cannot read the config")?;
    let table = text.parse().with_context(|| format!("{} is not TOML", path.display()));
    let mut table: toml::Table = table.map_err(|error| usage(&error))?;
    let (mut is_fit, mut unfit) = (fits(&table), None);
    for change in changes {
        let (key, value) = change
            .split_once('=')
            .with_context(|| format!("--set expects KEY=VALUE, got {change:?}"))
            .map_err(|error| usage(&error))?;
        apply(&mut table, key, value, fits)
            .with_context(|| format!("--set {change}"))
            .map_err(|error| usage(&error))?;
        let was_fit = std::mem::replace(&mut is_fit, fits(&table));
        if is_fit {
            unfit = None;
        } else if was_fit {
            unfit = Some(change.as_str());
        }
    }
    Ok((table, unfit))
}

/// Changes a value of the config. A value that looks like a number or a date is taken for a text, such as the name of a
/// folder, where the config accepts only that.
fn apply(
    table: &mut toml::Table,
    key: &str,
    value: &str,
    fits: &dyn Fn(&toml::Table) -> bool,
) -> Result<()> {
    let as_text = toml::Value::from(value);
    let parsed: Option<toml::Table> = format!("value = {value}").parse().ok();
    let parsed = parsed.map_or(as_text.clone(), |table| table["value"].clone());
    let with = |value: toml::Value| {
        let mut changed = table.clone();
        set(&mut changed, key, value)?;
        Ok::<_, anyhow::Error>(changed)
    };
    let (parsed, text) = (with(parsed)?, with(as_text)?);
    *table = if !fits(&parsed) && fits(&text) { text } else { parsed };
    Ok(())
}

fn set(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<()> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        // A table may be missing where all of its values have defaults.
        Some((first, rest)) => match table.entry(first).or_insert(toml::Table::new().into()) {
            toml::Value::Table(inner) => set(inner, rest, value),
            _ => bail!("{first:?} is no table of the config"),
        },
    }
}

/// Fails where a run or a cache cannot have its folder: a file is in its place or in that of a folder above it, or
/// nothing can be written there.
fn check_folder(path: &Path) -> Result<()> {
    let mut above = path.ancestors().map(|path| match path {
        empty if empty.as_os_str().is_empty() => Path::new("."),
        path => path,
    });
    // A link that leads nowhere is in the way, too.
    let is_there = |path: &&Path| path.exists() || path.is_symlink();
    let Some(there) = above.find(is_there) else { return Ok(()) };
    if !there.is_dir() {
        bail!("{}: expected a folder, as runs and caches are folders of files", there.display())
    }
    check_writable(&there.join("wuerstchen"))
        .with_context(|| format!("cannot write to {}", path.display()))
}

/// The config of the run that a folder holds, if there is one.
fn stored_config(output: &Path) -> Result<Option<TrainConfig>> {
    let path = output.join(RUN_CONFIG);
    path.is_file().then(|| read_config(&path, &[])).transpose()
}

/// Whether two runs are trained on the same pictures.
fn same_corpus(one: &TrainConfig, other: &TrainConfig) -> bool {
    if one.corpus.shards.is_some() || other.corpus.shards.is_some() {
        let paths = |config: &TrainConfig| Some(config.corpus.shards.as_ref()?.paths.clone());
        return paths(one) == paths(other);
    }
    match (&one.corpus.folder, &other.corpus.folder) {
        (None, None) => one.corpus.scenes == other.corpus.scenes,
        (Some(one), Some(other)) => same_place(one, other),
        _ => false,
    }
}

/// Whether two paths are equal or lead to the same place.
fn same_place(one: &Path, other: &Path) -> bool {
    one == other || is_same_file(one, other).unwrap_or(false)
}

/// Fails where a run cannot go on with what its folder holds: a stage takes the tokenizer, the scale and the
/// earlier stages from there.
fn check_fits(output: &Path, stored: &TrainConfig, config: &TrainConfig) -> Result<()> {
    if !same_corpus(stored, config) {
        return Err(other_corpus(output, stored, config));
    }
    check_model(output, stored, config)
}

/// The error of a run in a folder that is trained on other pictures than a config says.
fn other_corpus(output: &Path, stored: &TrainConfig, config: &TrainConfig) -> anyhow::Error {
    let corpus = |config: &TrainConfig| match (&config.corpus.folder, &config.corpus.shards) {
        (Some(folder), _) => folder.display().to_string(),
        (None, Some(shards)) => shards.paths.join(", "),
        (None, None) => format!("{:?}", config.corpus.scenes).to_lowercase(),
    };
    other_run(output, ("corpus".to_owned(), corpus(stored), corpus(config)))
}

/// Fails where a run would go on with drawings of another kind, or with pictures in place of drawings, or the other way
/// round: its tokenizer does not know their words.
fn check_drawings(output: &Path, stored: &TrainConfig, config: &TrainConfig) -> Result<()> {
    let drawn = |config: &TrainConfig| (!config.corpus.is_own()).then_some(config.corpus.scenes);
    if drawn(stored) == drawn(config) { Ok(()) } else { Err(other_corpus(output, stored, config)) }
}

/// Fails where a run that goes on would have models of other sizes than those that it has trained. The schedule does
/// not count as a size.
fn check_sizes(output: &Path, stored: &TrainConfig, config: &TrainConfig) -> Result<()> {
    let model = ModelConfig { schedule: config.model.schedule, ..stored.model.clone() };
    check_model(output, &TrainConfig { model, ..stored.clone() }, config)
}

/// Fails where two runs have models of other sizes.
fn check_model(output: &Path, stored: &TrainConfig, config: &TrainConfig) -> Result<()> {
    let [old, new] = [stored, config].map(|config| as_toml(&without_scale(config).model));
    let mut different = differences("model", Some(&old?), Some(&new?));
    if different.is_empty() { Ok(()) } else { Err(other_run(output, different.swap_remove(0))) }
}

/// Fails where Stage C would go on with embeddings of another scale than those that it has learnt.
fn check_scale(output: &Path, stored: &TrainConfig, config: &TrainConfig) -> Result<()> {
    match [stored, config].map(|config| config.model.embedding_scale) {
        [Some(old), Some(new)] if old != new && output.join("c/state.safetensors").exists() => {
            let field = ("model.embedding_scale".to_owned(), old.to_string(), new.to_string());
            Err(other_run(output, field))
        }
        _ => Ok(()),
    }
}

/// Most changes of a config that are reported.
const MOST_CHANGES: usize = 8;

/// Reports the values of a run's config that have changed since it was last trained; a folder that was moved is none of
/// them, and other pictures in it are reported elsewhere.
fn tell_of_changes(stored: &impl Serialize, config: &impl Serialize) -> Result<()> {
    let mut different = differences("", Some(&as_toml(stored)?), Some(&as_toml(config)?));
    different.retain(|(field, ..)| field != "corpus.folder");
    for (field, old, new) in different.iter().take(MOST_CHANGES) {
        tell!("{} was {}, and is now {}", visible(field), visible(old), visible(new));
    }
    match different.len().saturating_sub(MOST_CHANGES) {
        0 => {}
        more => tell!("and {} of the config", counted(more, "other change")),
    }
    Ok(())
}

/// The error of a field that differs between the run in a folder and a config, with both values.
fn other_run(output: &Path, (field, old, new): (String, String, String)) -> anyhow::Error {
    anyhow!(
        "{} holds a run whose {field} is {old}, the config says {new}: name another folder with \
         --output, or remove this one",
        output.join(RUN_CONFIG).display()
    )
}

/// A config without the scale of the image embeddings, which is measured.
fn without_scale(config: &TrainConfig) -> TrainConfig {
    let model = ModelConfig { embedding_scale: None, ..config.model.clone() };
    TrainConfig { model, ..config.clone() }
}

fn as_toml(config: &impl Serialize) -> Result<toml::Value> {
    toml::Value::try_from(config).context("cannot write the config as TOML")
}

/// The name of every value that differs, and both values.
fn differences(
    name: &str,
    old: Option<&toml::Value>,
    new: Option<&toml::Value>,
) -> Vec<(String, String, String)> {
    let (Some(toml::Value::Table(old)), Some(toml::Value::Table(new))) = (old, new) else {
        let text = |value: Option<&toml::Value>| {
            value.map_or_else(|| "not given".to_owned(), ToString::to_string)
        };
        let both = || (name.to_owned(), text(old), text(new));
        return (old != new).then(both).into_iter().collect();
    };
    let dot = if name.is_empty() { "" } else { "." };
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let of_key =
        |key: &String| differences(&format!("{name}{dot}{key}"), old.get(key), new.get(key));
    keys.into_iter().flat_map(of_key).collect()
}

/// The tokenizer in a run's folder, if there is a whole one.
fn own_tokenizer(run: &Path, family: &Family) -> Result<Option<TokenizerFiles>> {
    let (mut own, pipeline) = (ModelFiles::default(), family.pipelines[0]);
    for file in TokenizerFiles::NAMES {
        let file = format!("{}/{file}", pipeline.tokenizer());
        let path = run.join(RUN_MODEL).join(&file);
        if path.is_file() {
            own.texts.insert(file, read_text(&path)?);
        }
    }
    Ok(Some(own.tokenizer(pipeline)).filter(TokenizerFiles::is_complete))
}

/// The tokenizer that a run goes on with, of its own one and the one of `--init`; `None` if it has to learn one. The
/// run keeps its own one as soon as a text encoder has learnt with it. Before that, a text encoder of `--init` brings
/// its own.
///
/// Fails where a text encoder would get another tokenizer than the one with which it was trained.
fn known_tokenizer(
    args: &TrainArgs,
    output: &Path,
    family: &Family,
    own: Option<TokenizerFiles>,
    given: Option<TokenizerFiles>,
) -> Result<Option<TokenizerFiles>> {
    let has = |part: Part| output.join(RUN_MODEL).join(part.weights_path()).exists();
    let has_state = |folder: &str| output.join(folder).join("state.safetensors").exists();
    let mut texts = family.decoder_text.into_iter().chain([family.prior_text]);
    let has_all = texts.clone().all(has);
    let has_learnt = texts.any(has)
        || STAGE_FOLDERS.iter().any(|folder| !folder.starts_with('a') && has_state(folder));
    if has_learnt
        && !has_all
        && let (Some(own), Some(given)) = (&own, &given)
        && own != given
    {
        let folder = output.join(RUN_MODEL);
        bail!(
            "--init has another tokenizer than {}: name another folder with --output",
            folder.display()
        );
    }
    let has_begun = has_learnt
        || family.all_parts().any(has)
        || STAGE_FOLDERS.iter().any(|folder| has_state(folder));
    let known = match (own, given) {
        (Some(own), _) if has_learnt => Some(own),
        (_, Some(given)) => Some(given),
        // A run that was killed before it saved anything learns from the captions that there are now.
        (own, None) => own.filter(|_| has_begun),
    };
    // Stage A reads no texts.
    let state = args.state().filter(|_| args.stage != Stages::A);
    let Some(state) = state else { return Ok(known) };
    let run = Path::new(state).parent().and_then(Path::parent);
    let Some(run) = run.filter(|run| !same_place(run, output)) else { return Ok(known) };
    let theirs = own_tokenizer(run, family)?;
    if theirs.is_some() && theirs != known {
        bail!(
            "the state {state} was trained with the tokenizer in {}, and this run has another one: expected \
             --init {}, or the same --output",
            run.join(RUN_MODEL).display(),
            run.display()
        );
    }
    Ok(known)
}

/// Whether the image embeddings change, so that their scale has to be measured anew before Stage C.
fn trains_compressor(stages: Stages, config: &TrainConfig) -> bool {
    matches!(stages, Stages::B | Stages::All) && !config.b.freeze_compressor
}

/// The scale of Stage C's latents as the run has measured it before, or else that of the Stage C that it
/// starts from.
fn known_scale(
    family: &Family,
    stored: Option<&TrainConfig>,
    init: Option<&ModelFiles>,
) -> Option<f64> {
    stored.and_then(|stored| stored.model.embedding_scale).or_else(|| {
        let model = init.filter(|model| model.weights.contains_key(&family.prior()))?;
        let index: PriorIndex = model.config(&family.pipelines[0].index()).ok()?;
        Some(index.latent_mean)
    })
}

/// How many of the drawn scenes have their captions checked.
const DRAWN: u64 = 1000;

/// Bytes of a value while a model is trained.
const F32_BYTES: usize = 4;

/// Most characters of an example in a message.
const EXAMPLE_LETTERS: usize = 60;

/// Reports how many captions are longer than Stage C reads, naming the setting that limits the length, and how many
/// have words that its text encoder does not know. `of` says of what they are captions.
fn tell_of_captions<'a>(
    captions: impl Iterator<Item = &'a str>,
    noun: &str,
    of: &str,
    tokenizer: &Tokenizer,
    limit: &str,
) -> Result<()> {
    let (mut cut, mut unknown) = ((0, None), (0, None));
    for caption in captions {
        if let Some(end) = tokenizer.cut_off(caption)? {
            cut.0 += 1;
            cut.1.get_or_insert(end);
        }
        if let Some(word) = tokenizer.unknown_words(caption)?.into_iter().next() {
            unknown.0 += 1;
            unknown.1.get_or_insert(word);
        }
    }
    if let (count, Some(end)) = cut {
        tell!(
            "{}{of} {} longer than {limit} = {}, which leaves out what follows, such as {:?}",
            counted(count, noun),
            is_or_are(count),
            tokenizer.length(),
            example(end)
        );
    }
    if let (count, Some(word)) = unknown {
        tell!(
            "{}{of} with words that the text encoder does not know, such as {:?}",
            counted(count, noun),
            example(&word)
        );
    }
    Ok(())
}

/// Reports captions that would mean something else as prompts.
fn tell_of_brackets<'a>(captions: impl Iterator<Item = &'a str>) {
    let mut bracketed = captions.filter(|caption| !is_plain(caption));
    if let Some(first) = bracketed.next() {
        tell!(
            "{} with brackets or backslashes, which are learnt as they stand; in a prompt, brackets weigh words, unless \
             generate has --prompt-syntax plain: such as {:?}",
            counted(1 + bracketed.count(), "caption"),
            example(first)
        );
    }
}

/// The beginning of a text.
fn example(text: &str) -> String {
    text.chars().take(EXAMPLE_LETTERS).collect()
}

/// Reports that a stage ends before its learning rate has risen to that of the config, if so. `stage` is a prefix of
/// the fields' names.
fn tell_of_warmup(stage: &str, updates: &UpdateConfig) {
    let UpdateConfig { steps, optimizer, .. } = updates;
    let (warmup, peak) = (optimizer.warmup_steps, optimizer.learning_rate);
    if warmup > *steps {
        let reached = peak * *steps as f64 / warmup as f64;
        tell!(
            "{stage}optimizer.warmup_steps = {warmup} is more than {stage}steps = {steps}: the learning rate rises to \
             {reached:.2e}, and not to {peak:e}"
        );
    }
}

/// Reads all pictures.
fn check(folder: &Folder, image_size: usize) -> Result<()> {
    let bar = ProgressBar::new(folder.len() as u64).with_message("reading the pictures");
    folder.check(image_size, || bar.inc(1))?;
    bar.finish_and_clear();
    Ok(())
}

/// Fails where the weights, or the values that a stage caches for its pictures, take more memory than the machine has.
/// `pictures` is the size of the corpus, if it is limited.
fn check_memory(recipe: &Recipe, stages: Stages, pictures: Option<usize>) -> Result<()> {
    let weights = recipe.parameters().values().fold(0, |sum: usize, &own| sum.saturating_add(own));
    memory::check("the weights of the sizes in [model]", weights.saturating_mul(F32_BYTES))?;
    for &stage in stages.names() {
        let (scenes, values) = recipe.cached(stage);
        let scenes = pictures.map_or(scenes, |count| scenes.min(count));
        let what = format!("what {}.cached_scenes = {scenes} keeps", stage.as_str());
        memory::check(&what, scenes.saturating_mul(values).saturating_mul(F32_BYTES))?;
    }
    Ok(())
}

fn describe(recipe: &Recipe, corpus: &Corpus, output: &Path) -> Result<()> {
    let config = &recipe.config;
    let mut lines = vec![format!("run {:?} in {}", config.name, output.display())];
    if let Corpus::Emoji(art) = corpus {
        lines.push(counted(art.concepts().len(), "concept"));
    }
    if let (Some(pictures), Some(captions)) = (corpus.pictures(), corpus.captions()) {
        let pictures = counted(pictures, "picture");
        lines.push(format!("{pictures} with {}", counted(captions.count(), "caption")));
    }
    for (part, count) in recipe.parameters() {
        lines.push(format!("{part:<32} {count:>12} parameters"));
    }
    let updates = [&config.a.updates, &config.b.updates, &config.c.updates];
    for (name, updates) in ["a", "b", "c"].into_iter().zip(updates) {
        let UpdateConfig { steps, batch_size, .. } = updates;
        let samples = steps.saturating_mul(*batch_size as u64);
        let (steps, samples) = (counted(*steps, "step"), counted(samples, "sample"));
        lines.push(format!("stage {name}: {steps} of {batch_size} = {samples}"));
    }
    crate::print(&lines.join("\n"))
}
