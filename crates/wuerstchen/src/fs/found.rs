//! Models as other programs and this one lay them out.

mod bundle;
mod config;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use self::bundle::{others_beside, read_manifest, read_web_bundle};
use self::config::{class_of, config_beside, describes, other_pipeline, refuse_other_pipeline};
use super::error::{Result, cannot, unfit};
use super::files::{NO_FILE, file_name, has_extension, open, subfolders, with_extension};
use super::hub::snapshot;
use super::pytorch::read_pytorch_shards;
use super::shards::{Shards, files_of_weights, is_pytorch};
use super::text::read_text;
use crate::authors_config;
use crate::card::{CARD, RUN_CONFIG, RUN_MODEL, TUNED_LORA, TUNED_MODEL};
use crate::checkpoint::{Checkpoint, is_counter};
use crate::error::LoadError;
use crate::family::{Family, PREPARATION, PipelineFolder};
use crate::import::{complete, part_beside, recognise};
use crate::lora::is_lora;
use crate::manifest::{CONTENTS, MANIFEST};
use crate::model_files::ModelFiles;
use crate::part::{Part, Stage};
use crate::text::TokenizerFiles;

/// Where the authors' files may lie in a folder.
const ORIGINALS: &str = "original";

/// Ends of names of the authors' files, the published one first. Trainers write other files that end in `.bin`.
const AUTHORS_ENDINGS: [&str; 3] = ["pt", "pth", "ckpt"];

/// With what the names of a network's tensors begin in a checkpoint of ComfyUI.
const COMFYUI_NETWORK: &str = "model.diffusion_model.";

/// The authors' file of Stage B and the semantic compressor of Würstchen v2. Hugging Face's repository of Stage B has it
/// beside the folders of diffusers, which have no compressor.
const STAGE_B_FILE: &str = "model_v2_stage_b.pt";

/// How the names of folders with variants of a part end, the preferred one first: the large and the small one as
/// published, and the moving averages that trainings of diffusers keep beside the weights.
const VARIANTS: [&str; 3] = ["", "_lite", "_ema"];

/// Files of a model, from wherever its parts lie.
#[derive(Default)]
pub struct Found {
    /// The files that have a place in a model.
    files: ModelFiles,
    /// Where every part comes from.
    pub origins: BTreeMap<Part, PartOrigin>,
    /// Weights that may be of several parts, with their configs: the other parts tell which of them it is.
    ambiguous: Vec<(Checkpoint, Option<String>, PartOrigin)>,
    /// The files of a tokenizer that belongs to whatever text encoder the model has.
    tokenizer: BTreeMap<&'static str, String>,
    /// Whether a folder of the authors' files was added, which have no configs but that of their sizes.
    has_authors_folder: bool,
    notes: Vec<String>,
}

/// Where a part comes from.
#[derive(Clone, Serialize)]
pub struct PartOrigin {
    /// A file, or a folder of shards.
    pub path: PathBuf,
    /// Whose layout it has.
    pub layout: Layout,
    /// Whether the file holds other parts as well. The same part in a place of its own is preferred to it.
    #[serde(skip)]
    is_shared: bool,
}

/// The layouts of weights that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Hugging Face's.
    Diffusers,
    /// The authors' own.
    Original,
    /// A one-file model of this program.
    OneFile,
    /// A browser bundle of this program.
    BrowserBundle,
}

impl Serialize for Layout {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Layout {
    /// Its name for people and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::Original => "original",
            Self::OneFile => "one-file",
            Self::BrowserBundle => "browser-bundle",
        }
    }
}

impl PartOrigin {
    fn of(path: &Path, weights: &Checkpoint) -> Self {
        let is_original = weights
            .names()
            .any(|name| name.contains(".attn.in_proj_") || name.starts_with("vquantizer.codebook"));
        let layout = if is_original { Layout::Original } else { Layout::Diffusers };
        Self::new(path, layout)
    }

    fn new(path: &Path, layout: Layout) -> Self {
        Self { path: path.to_owned(), layout, is_shared: false }
    }
}

impl Found {
    /// Adds what is in a file or folder: a model, a pipeline or a part in the diffusers layout, in one file or several;
    /// the folder of a training run; a folder of Hugging Face's cache; a file of the authors, or a folder of these with
    /// a text encoder; a one-file model or a browser bundle of this program.
    ///
    /// # Errors
    ///
    /// Names the file or folder that cannot be read or is none of these.
    pub fn add(&mut self, path: &Path) -> Result<()> {
        let kind = fs::metadata(path).map_err(cannot("open", path))?;
        if kind.is_file() {
            self.add_file(path)?;
        } else if kind.is_dir() {
            self.add_folder(path)?;
        } else {
            let expected = "expected the file or the folder of a model";
            return Err(unfit(path, format!("{expected}, found {NO_FILE}")));
        }
        self.note_spare()
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        if is_pytorch(path)? {
            let config = config_beside(path)?;
            return self.add_pytorch(&[path.to_owned()], path, config.as_deref(), None);
        }
        let (name, source) = (path.display().to_string(), open(path)?);
        match ModelFiles::from_one_file(&name, source.clone()) {
            Err(LoadError::NoModel { .. }) => {}
            files => {
                let origin = PartOrigin::new(path, Layout::OneFile);
                return self.merge(files?, &origin);
            }
        }
        let config = config_beside(path)?;
        let weights = Checkpoint::parse(&name, source)?.unwrapped();
        let weights = self.without_prefix(weights, path);
        let origin = PartOrigin::of(path, &weights);
        self.add_weights(weights, config, origin, None)
    }

    fn add_folder(&mut self, path: &Path) -> Result<()> {
        let path = &snapshot(path)?;
        if path.join(MANIFEST).is_file() {
            let bundle = read_manifest(path)?;
            self.notes.extend(others_beside(path, bundle.manifest())?);
            let origin = PartOrigin::new(path, Layout::BrowserBundle);
            return self.merge(read_web_bundle(path, &bundle)?, &origin);
        }
        if path.join(CONTENTS).is_file() {
            return Err(unfit(
                path,
                format!("expected a browser bundle, found one without {MANIFEST}"),
            ));
        }
        if path.join(RUN_CONFIG).is_file() && self.add_run(path)? {
            return Ok(());
        }
        let before = self.count();
        // The folder itself may be a pipeline, or hold pipelines.
        let mut folders = vec![path.to_owned()];
        for folder in subfolders(path)? {
            // Otherwise a pipeline whose folder may not be read would count as absent.
            if is_of_pipeline(&folder) {
                folder.read_dir().map_err(cannot("read", &folder))?;
            }
            folders.push(snapshot(&folder)?);
        }
        let mut with_pipelines = Vec::new();
        for folder in &folders {
            for place in 0..Family::WUERSTCHEN.pipelines.len() {
                if self.add_pipeline_at(folder, place)? {
                    with_pipelines.push(folder);
                }
            }
        }
        self.add_text(&path.join(CARD), CARD)?;
        let mut places: Vec<&Path> = vec![path];
        places.extend(with_pipelines.iter().map(|folder| folder.as_path()));
        places.dedup();
        self.add_lone_parts(&places)?;
        if self.count() == before {
            self.add_authors_folder(path)?;
        } else {
            self.add_compressor_beside(&places)?;
            places.iter().try_for_each(|folder| self.note_unread(folder))?;
        }
        if self.count() == before {
            self.add_part(path, None)?;
        }
        if self.count() == before {
            refuse_other_pipeline(path)?;
            return Err(unfit(path, why_no_model(path)));
        }
        Ok(())
    }

    /// The number of weights that were found so far.
    fn count(&self) -> usize {
        self.origins.len() + self.ambiguous.len()
    }

    /// Adds what a training run has made; false if its folder has no model of its own.
    fn add_run(&mut self, path: &Path) -> Result<bool> {
        let model = path.join(RUN_MODEL);
        if model.is_dir() {
            self.add_folder(&model)?;
            return Ok(true);
        }
        // A fine-tuning has no folder of the model's parts, and a LoRA no model at all.
        let (bundle, lora) = (path.join(TUNED_MODEL), path.join(TUNED_LORA));
        if bundle.is_file() {
            self.add_file(&bundle)?;
            return Ok(true);
        }
        if lora.is_file() {
            let reason = "it holds a LoRA and no model: expected a model; `generate` takes a LoRA beside it with \
                          --lora, and `import` merges both";
            return Err(unfit(path, reason.to_owned()));
        }
        Ok(false)
    }

    /// Adds the parts that belong to no pipeline, from folders or files in these places.
    fn add_lone_parts(&mut self, places: &[&Path]) -> Result<()> {
        for part in lone_parts() {
            let own = places.iter().map(|place| place.join(part.folder())).find(|own| own.is_dir());
            if let Some(own) = own
                && let Err(error) = self.add_part(&own, Some(part))
            {
                // The authors publish several in one folder, of which a model has none by itself.
                if part != Part::CASCADE_CONTROLNET {
                    return Err(error);
                }
                let own = own.display();
                self.notes
                    .push(format!("{own} is left out; one of its files can be named: {error}"));
            }
            // The published ones are files beside the folders of a pipeline.
            let file = format!("{part}.safetensors");
            let file = places.iter().map(|place| place.join(&file)).find(|file| file.is_file());
            if let Some(file) = file
                && !self.origins.contains_key(&part)
            {
                self.add_file(&file)?;
            }
        }
        Ok(())
    }

    /// Adds the semantic compressor of Würstchen v2 from the file in which its authors published it, if it lies in one
    /// of these folders and the compressor was not found elsewhere.
    fn add_compressor_beside(&mut self, folders: &[&Path]) -> Result<()> {
        let is_wanted = self.origins.contains_key(&Part::DECODER)
            && !self.origins.contains_key(&Part::COMPRESSOR);
        let files = folders.iter().map(|folder| folder.join(STAGE_B_FILE));
        match files.into_iter().find(|file| is_wanted && file.is_file()) {
            Some(file) => self.add_file(&file),
            None => Ok(()),
        }
    }

    /// Notes which files of weights lie beside folders of parts that are read.
    fn note_unread(&mut self, folder: &Path) -> Result<()> {
        let mut unread = Vec::new();
        for place in [folder.to_owned(), folder.join(ORIGINALS)] {
            if place.is_dir() {
                unread.extend(files_of_weights(&place)?.into_iter().flatten());
            }
        }
        unread.retain(|file| !self.origins.values().any(|origin| origin.path == *file));
        if !unread.is_empty() {
            let names: Vec<_> = unread.iter().map(|file| file_name(file)).collect();
            let (folder, names) = (folder.display(), names.join(", "));
            self.notes.push(format!("{folder}: reads the folders of its parts; left out: {names}"));
        }
        Ok(())
    }

    /// Adds the authors' files in a folder and in `original/` of it, with a text encoder and a tokenizer in folders
    /// beside them.
    fn add_authors_folder(&mut self, folder: &Path) -> Result<()> {
        let text = folder.join("text_encoder");
        if !text.is_dir() {
            return Ok(());
        }
        // Trainers write other files beside the authors', and links may lead from one place to the other.
        let (mut seen, mut found_any) = (BTreeSet::new(), false);
        for place in [&folder.join(ORIGINALS), folder] {
            let mut files = Vec::new();
            for ending in AUTHORS_ENDINGS {
                files.extend(with_extension(place, ending)?);
            }
            files.retain(|file| file.canonicalize().map_or(true, |file| seen.insert(file)));
            let is_second = found_any;
            for file in files {
                match self.add_file(&file) {
                    Ok(()) => found_any = true,
                    Err(error) if is_second || !has_extension(&file, AUTHORS_ENDINGS[0]) => {
                        self.notes.push(format!("left out: {error}"));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if !found_any {
            // Other models have text encoders of the same kind.
            refuse_other_pipeline(folder)?;
        }
        self.has_authors_folder |= found_any;
        self.add_part(&text, None)?;
        for file in TokenizerFiles::NAMES {
            if let Some(text) = read_if_there(&folder.join("tokenizer").join(file))? {
                self.tokenizer.insert(file, text);
            }
        }
        Ok(())
    }

    /// Adds the pipeline in a folder that comes at this place among those of its family; false if there is none.
    fn add_pipeline_at(&mut self, folder: &Path, place: usize) -> Result<bool> {
        let mut found = Vec::new();
        for family in Family::ALL {
            let pipeline = family.pipelines[place];
            // Every pipeline has a text encoder.
            let has = |prefix: &str| {
                let is_text = |part: Part| part.stage() == Some(Stage::Text);
                let own = |part: Part| !is_text(part) && !family.spare.contains(&part);
                let mut parts = pipeline.parts().filter(|(_, part)| own(*part));
                parts.any(|(name, _)| !variants(folder, &format!("{prefix}{name}")).is_empty())
            };
            // The prefix is there where diffusers saves all pipelines in one folder.
            let prefixes = [pipeline.prefix, ""];
            if let Some(prefix) = prefixes.into_iter().find(|prefix| has(prefix)) {
                found.push((pipeline, prefix));
            }
        }
        let Some(&first) = found.first() else { return Ok(false) };
        // Families call their parts alike: what is written beside them tells the family.
        let index = read_if_there(&folder.join("model_index.json"))?;
        let (pipeline, prefix) = match index.as_deref().and_then(class_of) {
            Some(class) => {
                let fits =
                    |(pipeline, _): &&(PipelineFolder, _)| class.starts_with(pipeline.family_class);
                // The name of a family may begin with that of another.
                let best = found.iter().filter(fits).max_by_key(|(own, _)| own.family_class.len());
                *best.ok_or_else(|| other_pipeline(folder, &class))?
            }
            None => {
                found.iter().find(|found| is_described(folder, **found)).copied().unwrap_or(first)
            }
        };
        self.add_pipeline(folder, pipeline, prefix)?;
        Ok(true)
    }

    /// Adds what a pipeline's folder has, in folders whose names begin with `prefix`.
    fn add_pipeline(
        &mut self,
        folder: &Path,
        pipeline: PipelineFolder,
        prefix: &str,
    ) -> Result<()> {
        self.add_text(&folder.join("model_index.json"), &pipeline.index())?;
        let tokenizer = TokenizerFiles::NAMES.map(|file| format!("tokenizer/{file}"));
        let others = ["scheduler/scheduler_config.json", PREPARATION].map(str::to_owned);
        for file in tokenizer.into_iter().chain(others) {
            let path = folder.join(format!("{prefix}{file}"));
            self.add_text(&path, &format!("{}/{file}", pipeline.name))?;
        }
        for (name, part) in pipeline.parts() {
            let variants = variants(folder, &format!("{prefix}{name}"));
            let [taken, left_out @ ..] = &variants[..] else { continue };
            self.add_part(&folder.join(taken), Some(part))?;
            if !left_out.is_empty() {
                let (folder, left_out) = (folder.display(), left_out.join(", "));
                self.notes.push(format!("{folder}: reads {taken}; left out: {left_out}"));
            }
        }
        Ok(())
    }

    /// Adds the weights of a folder, one file or several shards, and their config; notes which of its files are left
    /// out. A lone file of no known part is added as if it were named itself.
    fn add_part(&mut self, folder: &Path, part: Option<Part>) -> Result<()> {
        let Some(Shards { files, left_out }) = Shards::of(folder)? else { return Ok(()) };
        if !left_out.is_empty() {
            let names = |paths: &[PathBuf]| {
                paths.iter().map(|path| file_name(path)).collect::<Vec<_>>().join(", ")
            };
            let (taken, left_out) = (names(&files), names(&left_out));
            let note = format!("{}: reads {taken}; left out: {left_out}", folder.display());
            self.notes.push(note);
        }
        if let (None, [file]) = (part, &files[..]) {
            return self.add_file(file);
        }
        let config = config_beside(&files[0])?;
        let path = if files.len() == 1 { &files[0] } else { folder };
        if is_pytorch(&files[0])? {
            return self.add_pytorch(&files, path, config.as_deref(), part);
        }
        let name = part.map_or_else(|| folder.display().to_string(), |part| part.to_string());
        let shards = files
            .iter()
            .map(|path| Ok(Checkpoint::parse(&path.display().to_string(), open(path)?)?))
            .collect::<Result<Vec<_>>>()?;
        let weights = Checkpoint::join(&name, &shards)?.unwrapped();
        let weights = self.without_prefix(weights, path);
        let origin = PartOrigin::of(path, &weights);
        match part {
            Some(part) => self.place(part, weights.from_original(), config, origin),
            None => self.add_weights(weights, config, origin, None),
        }
    }

    /// Weights without the beginning of all their names, one word or two that end in dots, if they are those of a part
    /// only then; notes it. Programs write the name of the network there, or of the average that the weights are.
    fn without_prefix(&mut self, weights: Checkpoint, path: &Path) -> Checkpoint {
        let is_known = |weights: &Checkpoint| !recognise(&weights.from_original()).is_empty();
        if is_known(&weights) {
            return weights;
        }
        let first = weights.names().next().unwrap_or_default();
        let prefixes = first.match_indices('.').take(2).map(|(dot, _)| first[..=dot].to_owned());
        for prefix in prefixes.collect::<Vec<_>>() {
            if !weights.names().all(|name| name.starts_with(&prefix)) {
                return weights;
            }
            let inner = weights.clone().without_wrappers(&[&prefix]);
            if is_known(&inner) {
                let path = path.display();
                let note = format!("{path}: {prefix}, with which all names begin, is left out");
                self.notes.push(note);
                return inner;
            }
        }
        weights
    }

    /// Adds the weights of PyTorch's files at `path`; notes which dictionaries are left out.
    fn add_pytorch(
        &mut self,
        files: &[PathBuf],
        path: &Path,
        config: Option<&str>,
        folder: Option<Part>,
    ) -> Result<()> {
        let read = read_pytorch_shards(files)?;
        self.notes.extend(read.notes);
        let is_shared = read.weights.len() > 1;
        for weights in read.weights {
            let origin = PartOrigin { is_shared, ..PartOrigin::of(path, &weights) };
            self.add_weights(weights, config.map(str::to_owned), origin, folder)?;
        }
        Ok(())
    }

    /// Adds weights whose tensors tell which part they are of. Where they may be of several, `folder` is
    /// the one that their folder is for.
    fn add_weights(
        &mut self,
        weights: Checkpoint,
        config: Option<String>,
        origin: PartOrigin,
        folder: Option<Part>,
    ) -> Result<()> {
        let weights = weights.from_original();
        let parts = recognise(&weights);
        if let Some((first, other)) = of_two_kinds(&parts) {
            let expected = "the tensors of one part";
            let reason = format!(
                "expected {expected}, found some of {first} and of {other}; files of several parts are named one by one"
            );
            return Err(unfit(&origin.path, reason));
        }
        // One config may lie beside the weights of several parts.
        let config = config.filter(|config| parts.iter().any(|part| describes(config, *part)));
        let part = match (&parts[..], folder) {
            ([], _) => return Err(unfit(&origin.path, why_no_part(&weights))),
            ([part], _) => *part,
            (parts, Some(part)) if parts.contains(&part) => part,
            _ => {
                self.ambiguous.push((weights, config, origin));
                return Ok(());
            }
        };
        self.place(part, weights, config, origin)
    }

    fn place(
        &mut self,
        part: Part,
        weights: Checkpoint,
        config: Option<String>,
        origin: PartOrigin,
    ) -> Result<()> {
        if let Some(other) = self.origins.get(&part) {
            let (taken, left_out) = match (origin.is_shared, other.is_shared) {
                (true, false) => (other, &origin),
                (false, true) => (&origin, other),
                _ => {
                    let other = other.path.display();
                    let reason = format!("it and {other} both hold {part}: leave one of them out");
                    return Err(unfit(&origin.path, reason));
                }
            };
            let (from, left_out) = (taken.path.display(), left_out.path.display());
            self.notes.push(format!("{left_out}: left out: {part}, which is read from {from}"));
            if origin.is_shared {
                return Ok(());
            }
            self.files.texts.remove(&part.config_path());
        }
        let config = match config {
            Some(text) if authors_config::is_one(&text) => authors_config::of_part(&text, part)
                .map_err(|error| match error {
                    LoadError::File { path, reason } => {
                        let path = format!("{path}, for {}", origin.path.display());
                        LoadError::File { path, reason }
                    }
                    error => error,
                })?,
            config => config,
        };
        if let Some(config) = config {
            self.files.texts.insert(part.config_path(), config);
        }
        self.files.weights.insert(part, weights.named(part.folder()));
        self.origins.insert(part, origin);
        Ok(())
    }

    fn add_text(&mut self, path: &Path, name: &str) -> Result<()> {
        if let Some(text) = read_if_there(path)? {
            self.files.texts.insert(name.to_owned(), text);
        }
        Ok(())
    }

    /// Adds all of another model.
    fn merge(&mut self, files: ModelFiles, origin: &PartOrigin) -> Result<()> {
        self.files.texts.extend(files.texts);
        for (part, weights) in files.weights {
            self.place(part, weights, None, origin.clone())?;
        }
        Ok(())
    }

    /// Which files are left out, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The model, once all files are there.
    ///
    /// # Errors
    ///
    /// The parts do not tell which of them a text encoder belongs to, they are of several families, or the authors'
    /// files do not tell their sizes.
    pub fn finish(&mut self) -> Result<ModelFiles> {
        let mut ambiguous = std::mem::take(&mut self.ambiguous);
        // Weights that only the parts beside them can identify come after those parts.
        ambiguous.sort_by_key(|(weights, ..)| {
            recognise(weights).iter().any(|part| !part.stands_alone())
        });
        for (weights, config, origin) in ambiguous {
            let Some(part) = part_beside(&self.files, &weights) else {
                self.check_family(self.files.family())?;
                return Err(unfit(&origin.path, self.unclear(&weights)));
            };
            self.place(part, weights, config, origin)?;
        }
        let family = self.files.family();
        self.check_family(family)?;
        let with_text = 1 + usize::from(family.decoder_text.is_some());
        for pipeline in &family.pipelines[..with_text] {
            for (file, text) in &self.tokenizer {
                let path = format!("{}/{file}", pipeline.tokenizer());
                self.files.texts.entry(path).or_insert_with(|| text.clone());
            }
        }
        if self.has_authors_folder {
            let lacks_decoder = !self.files.weights.contains_key(&family.decoder());
            complete(&mut self.files).map_err(|error| match error {
                LoadError::File { path, reason } if lacks_decoder => {
                    let reason = format!(
                        "{reason}; the file of Stage B, which tells Würstchen v1 from v2, is not there"
                    );
                    LoadError::File { path, reason }
                }
                error => error,
            })?;
        }
        Ok(self.files.clone())
    }

    /// Notes parts of the published pipelines that are left out although they differ from those that do the same. Norms,
    /// biases and positions are compared: they are few, and a training of all weights changes them. So are the matrices
    /// of the first layer's attention, which LoRAs change.
    fn note_spare(&mut self) -> Result<()> {
        let family = self.files.family();
        let pairs = family.spare.iter().map(|&spare| (spare, family.prior_text));
        for (spare, own) in pairs {
            let weights = &self.files.weights;
            let (Some(left_out), Some(taken)) = (weights.get(&spare), weights.get(&own)) else {
                continue;
            };
            let mut compared = left_out.names().filter(|name| {
                let is_vector = left_out.shape(name).is_some_and(|shape| shape.len() == 1);
                let is_of_start = name.contains(".layers.0.self_attn.");
                let is_few =
                    is_vector || is_of_start || name.ends_with("position_embedding.weight");
                is_few && !is_counter(name)
            });
            let differs = |name: &&str| {
                if taken.shape(name) != left_out.shape(name) {
                    return true;
                }
                // Values that cannot be read are reported elsewhere.
                let both = left_out.values(name).ok().zip(taken.values(name).ok());
                both.is_some_and(|(one, other)| !are_alike(&one, &other))
            };
            let more = || taken.names().find(|name| !left_out.has(name) && !is_counter(name));
            let Some(name) = compared.find(differs).or_else(more) else { continue };
            let note = format!(
                "{spare} is left out, although it differs from {own}, such as in {name}: both stages see the text of \
                 {own}"
            );
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        Ok(())
    }

    /// Why weights that may be of several parts are of none.
    fn unclear(&self, weights: &Checkpoint) -> String {
        let parts = recognise(weights);
        let mut missing = self.files.missing_parts();
        missing.retain(|part| !parts.contains(part));
        let text =
            |parts: &[Part]| parts.iter().map(Part::to_string).collect::<Vec<_>>().join(", ");
        let (names, missing) = (text(&parts), text(&missing));
        if missing.is_empty() {
            return format!(
                "cannot tell which of {names} it is: expected the folder of its pipeline around it"
            );
        }
        if self.files.family().decoder_text.is_some() {
            format!(
                "cannot tell which of {names} it is: expected {missing} beside it, or the folder of its pipeline \
                 around it"
            )
        } else {
            format!("cannot tell which of {names} it is: expected {missing} beside it")
        }
    }

    /// Fails where there are parts of another family, which would be left out without a word.
    fn check_family(&self, family: &Family) -> Result<()> {
        let stranger =
            self.origins.iter().find(|(part, _)| !family.all_parts().any(|own| own == **part));
        let Some((part, origin)) = stranger else { return Ok(()) };
        let reason = format!(
            "is {part} of {}, and other files are of {}: expected the files of one model",
            Family::of(*part).name,
            family.name
        );
        Err(unfit(&origin.path, reason))
    }
}

/// Why a folder in which no weights were found is no model.
fn why_no_model(folder: &Path) -> String {
    let is_of_run = folder.ends_with(RUN_MODEL)
        && folder.parent().is_some_and(|run| run.join(RUN_CONFIG).is_file());
    let mut places = [folder.join(ORIGINALS), folder.to_owned()].into_iter();
    let has_authors_files = places.any(|place| {
        with_extension(&place, AUTHORS_ENDINGS[0]).is_ok_and(|files| !files.is_empty())
    });
    if is_of_run {
        "the run has not trained a part yet: expected a model".to_owned()
    } else if has_authors_files {
        "expected the folders text_encoder and tokenizer beside the authors' files".to_owned()
    } else {
        format!(
            "it is no model: expected folders such as {} with safetensors or PyTorch files",
            Part::PRIOR
        )
    }
}

/// What weights are that are those of no part.
fn why_no_part(weights: &Checkpoint) -> String {
    let names = weights.names().take(3).collect::<Vec<_>>().join(", ");
    let is_state = ["weights/", "first/"]
        .iter()
        .all(|start| weights.names().any(|name| name.starts_with(start)));
    let is_model = weights.names().next().is_some_and(|name| Part::of_path(name).is_ok());
    if names.is_empty() {
        "expected weights, found a file without tensors".to_owned()
    } else if is_model {
        "it has the tensors of a one-file model, but not its metadata, in which the configs are: another program has \
         saved it without them"
            .to_owned()
    } else if is_state {
        "expected a part of a model, found the state of a training".to_owned()
    } else if is_lora(weights) {
        "expected a part of a model, found a LoRA, which changes a model".to_owned()
    } else if !recognise(&weights.under(COMFYUI_NETWORK).from_original()).is_empty() {
        "it is a checkpoint of ComfyUI, which holds several parts: expected the file of one part, as the authors or \
         diffusers write it"
            .to_owned()
    } else {
        format!("its tensors are those of no part of Würstchen, such as {names}")
    }
}

/// Whether a folder has the name of a pipeline.
fn is_of_pipeline(folder: &Path) -> bool {
    let mut pipelines = Family::ALL.into_iter().flat_map(|family| family.pipelines);
    pipelines.any(|pipeline| folder.ends_with(pipeline.name))
}

/// The text of a file, where there is one.
fn read_if_there(path: &Path) -> Result<Option<String>> {
    path.is_file().then(|| read_text(path)).transpose()
}

/// Whether the config of what a pipeline runs says that it is of this family.
fn is_described(folder: &Path, (pipeline, prefix): (PipelineFolder, &str)) -> bool {
    let own = pipeline.parts().find(|(_, part)| *part == pipeline.main);
    let name =
        own.and_then(|(name, _)| variants(folder, &format!("{prefix}{name}")).into_iter().next());
    let text = name.and_then(|name| read_text(&folder.join(name).join("config.json")).ok());
    text.and_then(|text| class_of(&text)).is_some_and(|class| pipeline.main.is_of_class(&class))
}

/// The folders in a pipeline's folder that hold variants of a part, the preferred one first.
fn variants(folder: &Path, name: &str) -> Vec<String> {
    let names = VARIANTS.map(|variant| format!("{name}{variant}"));
    names.into_iter().filter(|name| folder.join(name).is_dir()).collect()
}

/// The parts that belong to no pipeline.
fn lone_parts() -> impl Iterator<Item = Part> {
    Part::all().filter(|part| !part.folder().contains('/'))
}

/// Whether numbers are the same but for the rounding to 16 bits.
fn are_alike(one: &[f32], other: &[f32]) -> bool {
    const ROUNDING: f32 = 1.0 / 256.0;
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= ROUNDING * a.abs().max(b.abs()) + 1e-6;
    one.iter().zip(other).all(near)
}

/// Two parts of different kinds.
fn of_two_kinds(parts: &[Part]) -> Option<(Part, Part)> {
    let first = *parts.first()?;
    let other = parts.iter().find(|part| part.class() != first.class())?;
    Some((first, *other))
}
