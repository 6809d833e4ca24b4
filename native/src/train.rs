//! `wuerstchen train`: trains what the arguments, the config and the run's folder say.

mod captions;
mod config;
mod corpus;
mod progress;
mod stored;
mod tune;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use wuerstchen::fs::open;
use wuerstchen::{
    Checkpoint, Family, ModelFiles, Part, RUN_CONFIG, RUN_MODEL, Tokenizer, TokenizerFiles,
};
use wuerstchen_train::compare::lpips::Lpips;
use wuerstchen_train::config::{TrainConfig, UpdateConfig};
use wuerstchen_train::corpus::CorpusError;
use wuerstchen_train::run::ONE_FILE_MODEL;
use wuerstchen_train::tokenizer::{learn_tokenizer, shapes_tokenizer, word_tokenizer};
use wuerstchen_train::{
    Alone, Event, Peers, Recipe, Run, RunError, StageName, Start, emoji, store,
};

use self::captions::{tell_of_brackets, tell_of_captions};
pub(crate) use self::config::read_valid_config;
use self::corpus::{Corpus, DIGEST, tell_if_changed};
use self::progress::{TrainProgress, tell_partial};
use self::stored::{
    check_fits, check_folder, known_scale, known_tokenizer, remove_parts_of_run, stored_config,
    tell_of_changes, without_scale,
};
use crate::cache::remove_old_parts;
use crate::devices::{Choice, choose_for};
use crate::files::{read_model, read_tensors};
use crate::folder::Folder;
use crate::pictures::tell_of_frames;
use crate::terminal::{counted, visible};
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
    /// Stop at a picture in a shard of the corpus that cannot be read, and at a shard that is cut off or has zeros in
    /// place of samples, instead of leaving them out; pictures in a folder must always be readable
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
        check_fits(&output, stored, &config, args.resume.is_some())
            .map_err(|error| usage(&error))?;
    }
    let corpus = Corpus::open(&config)?;
    let init = read_initial_model(args, config.model.decoder.family())?;
    let is_measured = trains_compressor(args.stage, &config);
    if config.model.embedding_scale.is_none() && !is_measured {
        let family = config.model.decoder.family();
        config.model.embedding_scale = known_scale(&output, family, stored.as_ref(), init.as_ref());
    }
    if let (Some(stored), Some(_)) = (&stored, &args.resume) {
        tell_of_changes(&without_scale(stored), &without_scale(&config))?;
    }
    if let (Some(scale), true) = (config.model.embedding_scale, is_measured) {
        tell!(
            "the scale of the image embeddings is not measured: model.embedding_scale is {scale}"
        );
    }
    let tokenizer =
        find_tokenizer(args, &config, stored.as_ref(), init.as_ref(), &corpus, &output)?;
    let trains_a = args.stage.names().contains(&StageName::A);
    let perceptual = (trains_a && config.a.perceptual_loss > 0.0)
        .then(|| perceptual(&config.a.perceptual_weights))
        .transpose()?;
    let recipe = Recipe::new(config, tokenizer)?;
    tell_of_corpus(&recipe, &corpus)?;
    // A dry run keeps no hash.
    let digest = if args.dry_run { None } else { corpus.digest() };
    if let Corpus::Folder(folder) = &corpus {
        // A run that has begun with these pictures has read them before.
        let read = std::fs::read_to_string(output.join(DIGEST)).ok();
        if digest.is_none() || digest != read {
            check(folder, recipe.config.image_size)?;
        }
    }
    tell_of_updates(args, &recipe, &corpus);
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
        tell_of_cache(args.stage, run.recipe(), cache);
    }
    run.listen(ranks.listen(args)?);
    if let Some(model) = init {
        run.start_from(model)?;
    }
    if args.only_cache {
        fill_caches(args, &mut run)?;
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
    if ranks.peers.rank() == 0 { write_model(&run, &output) } else { Ok(()) }
}

/// Tells what each stage's updates leave out.
fn tell_of_updates(args: &TrainArgs, recipe: &Recipe, corpus: &Corpus) {
    for &stage in args.stage.names() {
        tell_of_warmup(&format!("{}.", stage.as_str()), recipe.config.updates(stage));
        let (cached, _) = recipe.cached(stage);
        if let Some(count) =
            corpus.pictures().filter(|count| args.dry_run && (1..*count).contains(&cached))
        {
            tell_partial(stage, cached, count);
        }
    }
}

/// Tells whether the folder of `--cache` is used.
fn tell_of_cache(stages: Stages, recipe: &Recipe, cache: &Path) {
    if stages.names().iter().any(|&stage| recipe.cached(stage).0 > 0) {
        tell!("keeping latents and image embeddings in {}", cache.display());
    } else {
        tell!("nothing is kept in {}: cached_scenes is 0", cache.display());
    }
}

/// The model of `--init`, which has to be of the family that the config trains.
fn read_initial_model(args: &TrainArgs, family: &Family) -> Result<Option<ModelFiles>> {
    let Some(path) = &args.run.init else { return Ok(None) };
    let model = read_model(Some(path))?;
    if model.family().name != family.name {
        bail!(
            "--init expects a model of {}, which is what this config trains, found one of {}",
            family.name,
            model.family().name
        );
    }
    Ok(Some(model))
}

/// The tokenizer that the run has, or that the model of `--init` has, or else one that is made for the corpus.
fn find_tokenizer(
    args: &TrainArgs,
    config: &TrainConfig,
    stored: Option<&TrainConfig>,
    init: Option<&ModelFiles>,
    corpus: &Corpus,
    output: &Path,
) -> Result<TokenizerFiles> {
    match corpus {
        Corpus::Folder(_) | Corpus::Shards(_) => {
            let family = config.model.decoder.family();
            let given = init.map(|model| model.tokenizer(family.pipelines[0]));
            let given = given.filter(TokenizerFiles::is_complete);
            let known = known_tokenizer(args, output, family, given);
            let known = known.map_err(|error| usage(&error))?;
            if let (Some(stored), Some(_)) = (stored, &known)
                && stored.corpus.vocab_size != config.corpus.vocab_size
            {
                tell!(
                    "corpus.vocab_size has no effect: the run goes on with the tokenizer that it has"
                );
            }
            let captions = corpus.captions().into_iter().flatten();
            match known {
                Some(known) => Ok(known),
                None => Ok(learn_tokenizer(captions, config.corpus.vocab_size)?),
            }
        }
        Corpus::Shapes => Ok(shapes_tokenizer()),
        Corpus::Emoji(art) => Ok(word_tokenizer(&emoji::vocabulary(art))),
    }
}

/// Reports the captions that the text encoder does not read as they stand; of drawn scenes, those of some.
fn tell_of_corpus(recipe: &Recipe, corpus: &Corpus) -> Result<()> {
    let tokenizer = Tokenizer::new(&recipe.tokenizer, recipe.config.model.max_tokens)?;
    if let Some(captions) = corpus.captions() {
        tell_of_brackets(corpus.captions().into_iter().flatten());
        return tell_of_captions(captions, "caption", "", &tokenizer, "model.max_tokens");
    }
    let updates = recipe.config.updates(StageName::C);
    let drawn = corpus.source().samples(StageName::C, recipe.config.seed, updates.lesson);
    let captions: Vec<_> = (0..DRAWN).flat_map(|number| drawn.captions(number)).collect();
    let captions = captions.iter().map(String::as_str);
    let of = format!(" of {DRAWN} drawn scenes");
    tell_of_captions(captions, "caption", &of, &tokenizer, "model.max_tokens")
}

/// Computes what the stages keep in the cache.
fn fill_caches(args: &TrainArgs, run: &mut Run) -> Result<()> {
    for &stage in args.stage.names() {
        if run.fill_cache(stage).map_err(with_remedy)?.is_break() {
            tell!("stopped; what is done is kept");
        }
    }
    Ok(())
}

/// Writes the model of the run, and reports what it lacks and which stages do not fit the others.
fn write_model(run: &Run, output: &Path) -> Result<()> {
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
                 which begins with these weights"
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

/// Whether the image embeddings change, so that their scale has to be measured anew before Stage C.
fn trains_compressor(stages: Stages, config: &TrainConfig) -> bool {
    matches!(stages, Stages::B | Stages::All) && !config.b.freeze_compressor
}

/// How many of the drawn scenes have their captions checked.
const DRAWN: u64 = 1000;

/// Bytes of a value while a model is trained.
const F32_BYTES: usize = 4;

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
    let output = visible(&output.display().to_string());
    let mut lines = vec![format!("run {:?} in {output}", config.name)];
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
        let (updates, samples) = (counted(*steps, "update"), counted(samples, "sample"));
        lines.push(format!("stage {name}: {updates} of {batch_size} = {samples}"));
    }
    crate::print(&lines.join("\n"))
}
