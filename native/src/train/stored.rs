//! What the folder of a run holds already, and whether a training can go on with it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use same_file::is_same_file;
use serde::Serialize;
use wuerstchen::card::PriorIndex;
use wuerstchen::fs::{check_writable, read_text};
use wuerstchen::{Family, ModelFiles, Part, RUN_CONFIG, RUN_MODEL, TokenizerFiles};
use wuerstchen_train::config::{ModelConfig, TrainConfig};
use wuerstchen_train::run::STAGE_FOLDERS;

use super::config::read_config;
use super::{Stages, TrainArgs};
use crate::cache::remove_old_parts;
use crate::terminal::{counted, visible};

/// Fails where a run or a cache cannot have its folder: a file is in its place or in that of a folder above it, or
/// nothing can be written there.
pub(super) fn check_folder(path: &Path) -> Result<()> {
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

/// Removes what programs were writing in the folders of a run when they were killed. Other files and folders beside
/// these may be anyone's.
pub(super) fn remove_parts_of_run(output: &Path) -> Result<()> {
    let folders = STAGE_FOLDERS.into_iter().chain([RUN_MODEL, "lora"]);
    folders.map(|folder| output.join(folder)).try_for_each(|folder| remove_old_parts(&folder))
}

/// The config of the run that a folder holds, if there is one.
pub(super) fn stored_config(output: &Path) -> Result<Option<TrainConfig>> {
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

/// Fails where a run cannot use what its folder holds: a stage takes the tokenizer, the scale and the earlier stages from
/// there. A run that `resumes` may have other pictures and another schedule than before.
pub(super) fn check_fits(
    output: &Path,
    stored: &TrainConfig,
    config: &TrainConfig,
    resumes: bool,
) -> Result<()> {
    if resumes {
        check_drawings(output, stored, config)?;
        check_sizes(output, stored, config)?;
    } else if same_corpus(stored, config) {
        check_model(output, stored, config)?;
    } else {
        return Err(other_corpus(output, stored, config));
    }
    check_scale(output, stored, config)
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
pub(super) fn tell_of_changes(stored: &impl Serialize, config: &impl Serialize) -> Result<()> {
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
pub(super) fn without_scale(config: &TrainConfig) -> TrainConfig {
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
pub(super) fn known_tokenizer(
    args: &TrainArgs,
    output: &Path,
    family: &Family,
    given: Option<TokenizerFiles>,
) -> Result<Option<TokenizerFiles>> {
    let own = own_tokenizer(output, family)?;
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

/// The scale of Stage C's latents as the run has measured it before, or else that of the Stage C that it
/// starts from.
pub(super) fn known_scale(
    output: &Path,
    family: &Family,
    stored: Option<&TrainConfig>,
    init: Option<&ModelFiles>,
) -> Option<f64> {
    stored.and_then(|stored| stored.model.embedding_scale).or_else(|| {
        // A run's own compressor makes other embeddings than that of the model that it starts from.
        if output.join(RUN_MODEL).join(family.compressor.folder()).exists() {
            return None;
        }
        let model = init.filter(|model| model.weights.contains_key(&family.prior()))?;
        let index: PriorIndex = model.config(&family.pipelines[0].index()).ok()?;
        Some(index.latent_mean)
    })
}
