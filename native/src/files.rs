//! Models, goldens and original weights as they lie on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use burn_store::pytorch_reader::{DType, PytorchReader, Tensor};
use half::{bf16, f16};
use wuerstchen::weights::NamedTensor;
use wuerstchen::{Checkpoint, Image, Manifest, ModelFiles, layout};
use wuerstchen_train::verify::Goldens;

/// Text files of a model, by their paths in its folder.
const TEXTS: [&str; 5] = [
    layout::CARD,
    "wuerstchen-prior/model_index.json",
    "wuerstchen/model_index.json",
    "wuerstchen-prior/scheduler/scheduler_config.json",
    "wuerstchen/scheduler/scheduler_config.json",
];

const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// The file that makes a folder a web bundle.
pub(crate) const MANIFEST: &str = "manifest.json";

/// The model that runs where none is named.
const BUILT_IN: &[u8] = include_bytes!("../../models/shapes.safetensors");

/// Reads a model: a folder in the diffusers layout, a web bundle, one bundle file, or the built-in
/// one.
pub(crate) fn read_model(path: Option<&Path>) -> Result<ModelFiles> {
    let Some(path) = path else {
        return Ok(ModelFiles::from_bundle("the built-in model", Arc::new(BUILT_IN))?);
    };
    let kind = fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
    if kind.is_file() {
        let name = path.display().to_string();
        return Ok(ModelFiles::from_bundle(&name, Arc::new(read(path)?))?);
    }
    if path.join(MANIFEST).is_file() {
        return read_web_bundle(path);
    }
    let mut files = ModelFiles::default();
    let configs = layout::PARTS.iter().map(|part| format!("{part}/config.json"));
    let tokenizers = [layout::PRIOR_TOKENIZER, layout::DECODER_TOKENIZER];
    let tokenizers = tokenizers
        .iter()
        .flat_map(|folder| TOKENIZER_FILES.iter().map(move |file| format!("{folder}/{file}")));
    for name in TEXTS.iter().map(|&name| name.to_owned()).chain(configs).chain(tokenizers) {
        let file = path.join(&name);
        if file.is_file() {
            let text = String::from_utf8(read(&file)?);
            let text = text.with_context(|| format!("{} is not text", file.display()))?;
            files.texts.insert(name, text);
        }
    }
    for part in layout::PARTS {
        if let Some(checkpoint) = read_part(&path.join(part), part)? {
            files.weights.insert(part.to_owned(), checkpoint);
        }
    }
    if files.weights.is_empty() {
        bail!(
            "{} is no model: expected folders such as {} with safetensors files",
            path.display(),
            layout::PRIOR
        );
    }
    Ok(files)
}

/// Reads a model that was exported for the browser.
fn read_web_bundle(folder: &Path) -> Result<ModelFiles> {
    let path = folder.join(MANIFEST);
    let text = String::from_utf8(read(&path)?);
    let text = text.with_context(|| format!("{} is not text", path.display()))?;
    let in_folder = || format!("cannot read the model in {}", folder.display());
    let manifest = Manifest::parse(&text).with_context(in_folder)?;
    manifest.read::<anyhow::Error>(|file| read(&folder.join(file))).with_context(in_folder)
}

/// The weights of a folder: one file or several shards. Half-precision variants are taken only
/// where there is nothing else.
fn read_part(folder: &Path, part: &str) -> Result<Option<Checkpoint>> {
    let files = with_extension(folder, "safetensors")?;
    let is_variant = |path: &PathBuf| {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        stem.is_some_and(|stem| stem.contains(".fp16") || stem.contains(".bf16"))
    };
    let (variants, full): (Vec<_>, Vec<_>) = files.into_iter().partition(is_variant);
    let chosen = if full.is_empty() { variants } else { full };
    let shards = chosen
        .iter()
        .map(|path| Ok(Checkpoint::parse(part, Arc::new(read(path)?))?))
        .collect::<Result<Vec<_>>>()?;
    Ok(match shards.len() {
        0 => None,
        1 => shards.into_iter().next(),
        _ => Some(Checkpoint::join(part, &shards)?),
    })
}

/// Reads `golden/` of a folder.
pub(crate) fn read_goldens(folder: &Path) -> Result<Goldens> {
    let folder = folder.join("golden");
    let mut goldens = Goldens::default();
    for path in with_extension(&folder, "safetensors")? {
        let name = stem(&path);
        let checkpoint = Checkpoint::parse(&format!("golden/{name}"), Arc::new(read(&path)?))?;
        goldens.tensors.insert(name, checkpoint);
    }
    for path in with_extension(&folder, "json")? {
        let text = String::from_utf8(read(&path)?);
        let text = text.with_context(|| format!("{} is not text", path.display()))?;
        goldens.texts.insert(stem(&path), text);
    }
    if goldens.tensors.is_empty() {
        bail!("no goldens: expected safetensors files in {}", folder.display());
    }
    Ok(goldens)
}

/// Which dictionaries of the authors' files hold which parts, by a word of the file's name.
const ORIGINALS: [(&str, &[&str], &str); 5] = [
    ("stage_c", &["ema_state_dict", "state_dict"], layout::PRIOR),
    ("stage_b", &["state_dict"], layout::DECODER),
    ("stage_b", &["effnet_state_dict"], layout::COMPRESSOR),
    ("vqgan", &["state_dict"], layout::VQGAN),
    ("effnet", &["effnet_state_dict", "state_dict"], layout::COMPRESSOR),
];

/// Reads `original/*.pt` of a folder into the weights of the parts, named as in diffusers.
pub(crate) fn read_originals(folder: &Path) -> Result<BTreeMap<String, Checkpoint>> {
    let mut weights = BTreeMap::new();
    for path in with_extension(&folder.join("original"), "pt")? {
        let name = stem(&path);
        for (word, keys, part) in ORIGINALS {
            if name.contains(word) {
                let checkpoint = read_pytorch(&path, keys, part)?;
                weights.insert(part.to_owned(), checkpoint.from_original()?);
            }
        }
    }
    Ok(weights)
}

/// Reads the first dictionary of `keys` that a PyTorch file has.
fn read_pytorch(path: &Path, keys: &[&str], part: &str) -> Result<Checkpoint> {
    let mut failure = None;
    for key in keys {
        match PytorchReader::with_top_level_key(path, key) {
            Ok(reader) if !reader.is_empty() => {
                let tensors = reader.into_tensors();
                let tensors = tensors.into_iter().filter(|(_, tensor)| is_float(tensor));
                let tensors = tensors.map(|(name, tensor)| read_tensor(name, &tensor));
                let tensors = tensors
                    .collect::<Result<Vec<_>>>()
                    .with_context(|| format!("cannot read {}", path.display()))?;
                return Ok(Checkpoint::from_tensors(part, tensors));
            }
            Ok(_) => {}
            Err(error) => failure = Some(error.to_string()),
        }
    }
    bail!(
        "{}: expected a dictionary {} of tensors{}",
        path.display(),
        keys.join(" or "),
        failure.map(|reason| format!(" ({reason})")).unwrap_or_default()
    )
}

/// Counters of batch norms are integers, weights are not.
fn is_float(tensor: &Tensor) -> bool {
    matches!(tensor.dtype(), DType::F64 | DType::F32 | DType::F16 | DType::BF16)
}

fn read_tensor(name: String, tensor: &Tensor) -> Result<NamedTensor> {
    let bytes = tensor.read()?;
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    let values = match tensor.dtype() {
        DType::F16 => pairs().map(|b| f16::from_ne_bytes(b).to_f32()).collect(),
        DType::BF16 => pairs().map(|b| bf16::from_ne_bytes(b).to_f32()).collect(),
        DType::F64 => {
            bytemuck::pod_collect_to_vec::<u8, f64>(&bytes).into_iter().map(|v| v as f32).collect()
        }
        _ => bytemuck::pod_collect_to_vec(&bytes),
    };
    Ok((name, tensor.shape().to_vec(), values))
}

/// The bytes of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file so that it is whole or not there: under another name first, then renamed.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    // Two programs may write the same file at a time.
    let part = path.with_added_extension(format!("{}.part", std::process::id()));
    let write = || {
        let mut file = fs::File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Writes pictures of one size side by side, `columns` in a row.
pub(crate) fn write_png_grid(path: &Path, images: &[Image], columns: usize) -> Result<()> {
    let Some(first) = images.first() else { return Ok(()) };
    let (width, height) = (first.width * columns, first.height * images.len().div_ceil(columns));
    let mut rgb = vec![u8::MAX; width * height * 3];
    for (i, image) in images.iter().enumerate() {
        let (left, top) = (i % columns * image.width, i / columns * image.height);
        for (y, row) in image.rgb.chunks(image.width * 3).enumerate() {
            let start = ((top + y) * width + left) * 3;
            rgb[start..start + row.len()].copy_from_slice(row);
        }
    }
    let grid = Image { width, height, rgb };
    write(path, &grid.to_png().context("cannot encode the pictures")?)
}

/// The files of a folder with an extension, sorted; none where there is no such folder.
fn with_extension(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let cannot = || format!("cannot list {}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if path.is_file() && path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}
