//! Models as other programs and this one lay them out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use wuerstchen::import::{Kind, recognise, text_part};
use wuerstchen::{Checkpoint, Manifest, ModelFiles, TokenizerFiles, WebBundle, layout};

use crate::files::{MANIFEST, file_name, open, read, subfolders};
use crate::hub::snapshot;
use crate::pytorch::{read_pytorch, read_pytorch_shards};
use crate::shards::{Shards, files_of_weights, is_pytorch};
use crate::text::read_text;
use crate::train::{CONFIG, MODEL};

/// Files of a model, from wherever its parts lie.
#[derive(Default)]
pub(crate) struct Found {
    /// What has a place in a model.
    pub(crate) files: ModelFiles,
    /// Where every part comes from.
    pub(crate) origins: BTreeMap<String, Origin>,
    /// Text encoders whose stage only the other parts tell, with their configs.
    texts: Vec<(Checkpoint, Option<String>, Origin)>,
}

/// Where a part comes from.
#[derive(Clone, Serialize)]
pub(crate) struct Origin {
    /// A file, or a folder of shards.
    pub(crate) path: PathBuf,
    /// Whose layout it has.
    pub(crate) layout: Layout,
}

/// The layouts of weights that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Layout {
    /// Hugging Face's.
    Diffusers,
    /// The authors' own.
    Original,
    /// One of this program's.
    Bundle,
}

impl Origin {
    fn of(path: &Path, weights: &Checkpoint) -> Self {
        let is_original = weights
            .names()
            .any(|name| name.contains(".attn.in_proj_") || name.starts_with("vquantizer.codebook"));
        let layout = if is_original { Layout::Original } else { Layout::Diffusers };
        Self { path: path.to_owned(), layout }
    }
}

impl Found {
    /// Adds what is in a file or folder: a model, a pipeline or a part in the diffusers layout, in one
    /// file or several; the folder of a training run; a folder of Hugging Face's cache; a file of the
    /// authors; a bundle of this program.
    pub(crate) fn add(&mut self, path: &Path) -> Result<()> {
        let kind = fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
        match kind.is_file() {
            true => self.add_file(path),
            false => self.add_folder(path),
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let config = config_beside(path)?;
        if is_pytorch(path)? {
            for weights in read_pytorch(path)? {
                let origin = Origin::of(path, &weights);
                self.add_weights(weights, config.clone(), origin, None)?;
            }
            return Ok(());
        }
        let (name, source) = (path.display().to_string(), open(path)?);
        if let Ok(files) = ModelFiles::from_bundle(&name, source.clone()) {
            let origin = Origin { path: path.to_owned(), layout: Layout::Bundle };
            return self.merge(files, &origin);
        }
        let weights = Checkpoint::parse(&name, source)?;
        let origin = Origin::of(path, &weights);
        self.add_weights(weights, config, origin, None)
    }

    fn add_folder(&mut self, path: &Path) -> Result<()> {
        let path = &snapshot(path)?;
        if path.join(MANIFEST).is_file() {
            let bundle = read_manifest(path)?;
            tell_of_others(path, bundle.manifest())?;
            let origin = Origin { path: path.to_owned(), layout: Layout::Bundle };
            return self.merge(read_web_bundle(path, &bundle)?, &origin);
        }
        let model = path.join(MODEL);
        if path.join(CONFIG).is_file() && model.is_dir() {
            return self.add_folder(&model);
        }
        let before = self.origins.len() + self.texts.len();
        // The folder itself may be a pipeline, or hold pipelines.
        let mut folders = vec![path.to_owned()];
        for folder in subfolders(path)? {
            folders.push(snapshot(&folder)?);
        }
        for folder in &folders {
            let has = |part: &str| folder.join(part).is_dir();
            // The name of diffusers' pipeline of both, which is saved in one folder.
            let is_combined = has("prior_prior");
            if is_combined {
                self.add_pipeline(folder, layout::PRIOR_PIPELINE, "prior_")?;
            } else if has("prior") {
                self.add_pipeline(folder, layout::PRIOR_PIPELINE, "")?;
            }
            if has("decoder") || has("vqgan") {
                self.add_pipeline(folder, layout::DECODER_PIPELINE, "")?;
            }
        }
        self.add_text(&path.join(layout::CARD), layout::CARD)?;
        let compressor = path.join(layout::COMPRESSOR);
        if compressor.is_dir() {
            self.add_part(&compressor, Some(layout::COMPRESSOR))?;
        }
        if self.origins.len() + self.texts.len() == before {
            self.add_part(path, None)?;
        }
        if self.origins.len() + self.texts.len() == before {
            bail!(
                "{} is no model: expected folders such as {} with safetensors or PyTorch files",
                path.display(),
                layout::PRIOR
            );
        }
        Ok(())
    }

    /// Adds what a pipeline's folder has, in folders whose names begin with `prefix`.
    fn add_pipeline(&mut self, folder: &Path, pipeline: &str, prefix: &str) -> Result<()> {
        let index = format!("{pipeline}/model_index.json");
        self.add_text(&folder.join("model_index.json"), &index)?;
        if let Some(class) = self.files.texts.get(&index).and_then(|text| class_of(text))
            && !class.contains("Wuerstchen")
        {
            bail!("{}: expected a pipeline of Würstchen, found a {class}", folder.display());
        }
        let tokenizer = TokenizerFiles::NAMES.map(|file| format!("tokenizer/{file}"));
        for file in tokenizer.into_iter().chain(["scheduler/scheduler_config.json".to_owned()]) {
            let path = folder.join(format!("{prefix}{file}"));
            self.add_text(&path, &format!("{pipeline}/{file}"))?;
        }
        for part in layout::PARTS {
            if let Some(name) = part.strip_prefix(&format!("{pipeline}/")) {
                self.add_part(&folder.join(format!("{prefix}{name}")), Some(part))?;
            }
        }
        Ok(())
    }

    /// Adds the weights of a folder, one file or several shards, and their config; says which of its
    /// files are left out.
    fn add_part(&mut self, folder: &Path, part: Option<&str>) -> Result<()> {
        let Some(Shards { files, left_out }) = Shards::of(folder)? else { return Ok(()) };
        if !left_out.is_empty() {
            let names = |paths: &[PathBuf]| {
                paths.iter().map(|path| file_name(path)).collect::<Vec<_>>().join(", ")
            };
            let (taken, left_out) = (names(&files), names(&left_out));
            eprintln!("{}: reads {taken}; left out: {left_out}", folder.display());
        }
        let config = config_beside(&files[0])?;
        let path = if files.len() == 1 { &files[0] } else { folder };
        if is_pytorch(&files[0])? {
            for weights in read_pytorch_shards(&files)? {
                let origin = Origin::of(path, &weights);
                self.add_weights(weights, config.clone(), origin, part)?;
            }
            return Ok(());
        }
        let name = part.map_or_else(|| folder.display().to_string(), str::to_owned);
        let shards = files
            .iter()
            .map(|path| Ok(Checkpoint::parse(&path.display().to_string(), open(path)?)?))
            .collect::<Result<Vec<_>>>()?;
        let weights = Checkpoint::join(&name, &shards)?;
        let origin = Origin::of(path, &weights);
        match part {
            Some(part) => self.place(part, weights.from_original(), config, origin),
            None => self.add_weights(weights, config, origin, None),
        }
    }

    /// Adds weights that their tensors tell, but for which stage a text encoder is: that tells the
    /// folder.
    fn add_weights(
        &mut self,
        weights: Checkpoint,
        config: Option<String>,
        origin: Origin,
        folder: Option<&str>,
    ) -> Result<()> {
        let weights = weights.from_original();
        let kind = recognise(&weights);
        // One config may lie beside the weights of several parts.
        let config = config.filter(|config| kind.is_some_and(|kind| describes(config, kind)));
        let part = match kind {
            Some(Kind::Prior) => layout::PRIOR,
            Some(Kind::Decoder) => layout::DECODER,
            Some(Kind::Vqgan) => layout::VQGAN,
            Some(Kind::Compressor) => layout::COMPRESSOR,
            Some(Kind::TextEncoder) => match folder {
                Some(part) => part,
                None => {
                    self.texts.push((weights, config, origin));
                    return Ok(());
                }
            },
            None => bail!(
                "{}: its tensors are those of no part of Würstchen, such as {}",
                origin.path.display(),
                weights.names().take(3).collect::<Vec<_>>().join(", ")
            ),
        };
        self.place(part, weights, config, origin)
    }

    fn place(
        &mut self,
        part: &str,
        weights: Checkpoint,
        config: Option<String>,
        origin: Origin,
    ) -> Result<()> {
        if let Some(other) = self.origins.get(part) {
            let (path, other) = (origin.path.display(), other.path.display());
            bail!("{path} and {other} both hold {part}: leave one of them out");
        }
        if let Some(config) = config {
            self.files.texts.insert(format!("{part}/config.json"), config);
        }
        self.files.weights.insert(part.to_owned(), weights.named(part));
        self.origins.insert(part.to_owned(), origin);
        Ok(())
    }

    fn add_text(&mut self, path: &Path, name: &str) -> Result<()> {
        if path.is_file() {
            self.files.texts.insert(name.to_owned(), read_text(path)?);
        }
        Ok(())
    }

    /// Adds all of another model.
    fn merge(&mut self, files: ModelFiles, origin: &Origin) -> Result<()> {
        self.files.texts.extend(files.texts);
        for (part, weights) in files.weights {
            self.place(&part, weights, None, origin.clone())?;
        }
        Ok(())
    }

    /// The model, once all files are there.
    pub(crate) fn finish(&mut self) -> Result<ModelFiles> {
        for (weights, config, origin) in std::mem::take(&mut self.texts) {
            let part = text_part(&self.files, &weights).with_context(|| {
                let path = origin.path.display();
                format!(
                    "{path}: cannot tell whether this text encoder is Stage C's or Stage B's; \
                         put it into the folder of its pipeline"
                )
            })?;
            self.place(part, weights, config, origin)?;
        }
        Ok(self.files.clone())
    }
}

/// Folders that hold parts of a model where it is no web bundle.
const PARTS_OF_OTHERS: [&str; 7] = [
    layout::PRIOR_PIPELINE,
    layout::DECODER_PIPELINE,
    layout::COMPRESSOR,
    "prior",
    "prior_prior",
    "decoder",
    "vqgan",
];

/// Reads all of a web bundle but its shards.
fn read_manifest(folder: &Path) -> Result<WebBundle> {
    let in_folder = || format!("cannot read the model in {}", folder.display());
    let manifest = Manifest::parse(&read_text(&folder.join(MANIFEST))?).with_context(in_folder)?;
    let contents = read(&folder.join(&manifest.contents.file))?;
    manifest.with_contents(&contents).with_context(in_folder)
}

/// Says which other folders and files of weights lie beside a web bundle.
fn tell_of_others(folder: &Path, manifest: &Manifest) -> Result<()> {
    let parts = PARTS_OF_OTHERS.iter().map(|part| folder.join(part)).filter(|part| part.is_dir());
    let files = files_of_weights(folder)?.into_iter().flatten();
    let others: Vec<_> = parts.chain(files).collect();
    let is_shard = |name: &String| manifest.shards.iter().any(|shard| shard.file == *name);
    let others = others.iter().map(|path| file_name(path)).filter(|name| !is_shard(name));
    let others = others.collect::<Vec<_>>().join(", ");
    if !others.is_empty() {
        eprintln!("{}: reads the web bundle of {MANIFEST}; left out: {others}", folder.display());
    }
    Ok(())
}

/// Opens a model that was exported for the browser, and checks the shards' hashes.
fn read_web_bundle(folder: &Path, bundle: &WebBundle) -> Result<ModelFiles> {
    let in_folder = || format!("cannot read the model in {}", folder.display());
    for (index, shard) in bundle.manifest().shards.iter().enumerate() {
        bundle.verify(index, &read(&folder.join(&shard.file))?).with_context(in_folder)?;
    }
    bundle.open(|file| open(&folder.join(file))).with_context(in_folder)
}

/// The text of the `config.json` beside a file of weights.
fn config_beside(weights: &Path) -> Result<Option<String>> {
    let config = weights.with_file_name("config.json");
    config.is_file().then(|| read_text(&config)).transpose()
}

/// Whether a config is not of another kind of part, as far as it says what it is of.
fn describes(config: &str, kind: Kind) -> bool {
    class_of(config).is_none_or(|class| match kind {
        Kind::Prior => class == "WuerstchenPrior",
        Kind::Decoder => class == "WuerstchenDiffNeXt",
        Kind::Vqgan => class == "PaellaVQModel",
        Kind::TextEncoder => class.starts_with("CLIPText"),
        Kind::Compressor => false,
    })
}

/// The class of diffusers or transformers that a config is of.
fn class_of(config: &str) -> Option<String> {
    let config: Value = serde_json::from_str(config).ok()?;
    let class = config["_class_name"].as_str().or_else(|| config["architectures"][0].as_str());
    class.map(str::to_owned)
}
