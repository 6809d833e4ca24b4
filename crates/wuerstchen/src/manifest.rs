//! A model for the browser: a manifest that says everything, and shards of weights.
//!
//! A shard is fetched, checked, handed to the device and dropped before the next, so that the
//! weights are never in memory all at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::bundle::{ModelFiles, layout};
use crate::options::Defaults;
use crate::pipeline::{ModelCard, Pipeline, Stage};
use crate::preview::EmbeddingColours;
use crate::self_test::SelfTest;
use crate::weights::{Checkpoint, LoadError, Stored, StoredDtype, is_counter};

/// Version of the format.
pub const FORMAT: u32 = 1;

/// Most bytes of a shard. No tensor lies in two.
pub const MAX_SHARD_BYTES: usize = 16 << 20;

/// Shards are closed from this size on, so that progress is smooth and little is fetched again.
const SHARD_BYTES: usize = 2 << 20;

/// Offsets are multiples of what WebGPU wants of a storage buffer's.
const ALIGNMENT: usize = 256;

/// `manifest.json`: all of a model but its weights, and where those lie.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of the format.
    pub format: u32,
    /// Name and a hash of the content: two models never share one.
    pub id: String,
    /// A name for people.
    pub name: String,
    /// Licence of the weights.
    pub licence: String,
    /// How the weights were made.
    pub provenance: String,
    /// The options that the model takes where the caller gives none, as JavaScript names them.
    pub defaults: Value,
    /// What the stages weigh.
    pub stages: BTreeMap<Stage, StageInfo>,
    /// Configs, scheduler constants, tokenizers, by their paths in a model folder.
    pub files: BTreeMap<String, String>,
    /// The files of weights.
    pub shards: Vec<Shard>,
    /// Where every tensor lies.
    pub tensors: Vec<TensorEntry>,
    /// What a sound device makes.
    #[serde(default)]
    pub self_test: Option<SelfTest>,
    /// How image embeddings are shown while they are made.
    #[serde(default)]
    pub preview: Option<EmbeddingColours>,
}

/// What the weights of a stage weigh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageInfo {
    /// Number of values.
    pub params: usize,
    /// Bytes in the shards.
    pub bytes: usize,
    /// How most of them are stored.
    pub dtype: StoredDtype,
}

/// A file of weights beside the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// A plain file name.
    pub file: String,
    /// Its length.
    pub bytes: usize,
    /// SHA-256 of its content, in hex.
    pub sha256: String,
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Folder of its part, see [`layout`].
    pub part: String,
    /// Name in the part.
    pub name: String,
    /// As in PyTorch.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub dtype: StoredDtype,
    /// Index of the shard.
    pub shard: usize,
    /// Of the first byte.
    pub offset: usize,
}

impl Manifest {
    /// Splits a model into shards, which `write` takes by their file names; the semantic compressor,
    /// which makes no pictures, is left out.
    ///
    /// # Errors
    ///
    /// A part is missing, a tensor is larger than a shard, or `write` failed.
    pub fn write<E: From<LoadError>>(
        files: &ModelFiles,
        dtype: StoredDtype,
        mut write: impl FnMut(&str, &[u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let (mut tensors, mut shards, mut open) = (Vec::new(), Vec::new(), Vec::new());
        let mut stages = BTreeMap::new();
        let mut close = |bytes: &mut Vec<u8>, shards: &mut Vec<Shard>| {
            let file = format!("shard-{:03}.bin", shards.len());
            write(&file, bytes)?;
            shards.push(Shard { file, bytes: bytes.len(), sha256: hex(&Sha256::digest(&*bytes)) });
            bytes.clear();
            Ok::<_, E>(())
        };
        for part in Pipeline::PARTS {
            let weights = files.weights(part)?;
            for (name, _, shape) in weights.describe().filter(|(name, ..)| !is_counter(name)) {
                let stored = Stored::new(shape, &weights.values(name)?, dtype);
                if stored.bytes.len() > MAX_SHARD_BYTES {
                    let reason = format!(
                        "tensor {name:?} has {} bytes, a shard at most {MAX_SHARD_BYTES}",
                        stored.bytes.len()
                    );
                    return Err(LoadError::Format { part: part.into(), reason }.into());
                }
                if open.len() + stored.bytes.len() > SHARD_BYTES && !open.is_empty() {
                    close(&mut open, &mut shards)?;
                }
                open.resize(open.len().next_multiple_of(ALIGNMENT), 0);
                let info =
                    stages.entry(stage(part)).or_insert(StageInfo { params: 0, bytes: 0, dtype });
                info.params += shape.iter().product::<usize>();
                info.bytes += stored.bytes.len();
                tensors.push(TensorEntry {
                    part: part.to_owned(),
                    name: name.to_owned(),
                    shape: shape.to_vec(),
                    dtype: stored.dtype,
                    shard: shards.len(),
                    offset: open.len(),
                });
                open.extend_from_slice(&stored.bytes);
            }
        }
        close(&mut open, &mut shards)?;
        let card = match files.texts.contains_key(layout::CARD) {
            true => files.config(layout::CARD)?,
            false => ModelCard::default(),
        };
        let is_used = |path: &&String| !path.starts_with(layout::COMPRESSOR);
        let texts = files.texts.iter().filter(|(path, _)| is_used(path));
        let texts: BTreeMap<_, _> =
            texts.map(|(path, text)| (path.clone(), text.clone())).collect();
        Ok(Self {
            format: FORMAT,
            id: id(&card.name, &texts, &shards),
            defaults: defaults(&card.defaults),
            name: card.name,
            licence: card.licence,
            provenance: card.provenance,
            stages,
            files: texts,
            shards,
            tensors,
            self_test: None,
            preview: None,
        })
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    ///
    /// It is no manifest of this version, or what it says cannot be: a file name with a path, a
    /// tensor outside of its shard.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        let fail = |reason: String| LoadError::File { path: "manifest.json".into(), reason };
        let format = |value: &Value| value.get("format").and_then(Value::as_u64);
        let value: Value = serde_json::from_str(text).map_err(|error| fail(error.to_string()))?;
        match format(&value) {
            Some(found) if found == u64::from(FORMAT) => {}
            Some(found) => {
                return Err(fail(format!("it is of format {found}, this program reads {FORMAT}")));
            }
            None => return Err(fail("it has no field \"format\"".into())),
        }
        let manifest: Self =
            serde_json::from_value(value).map_err(|error| fail(error.to_string()))?;
        for shard in &manifest.shards {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if shard.file.is_empty()
                || shard.file.starts_with('.')
                || !shard.file.chars().all(plain)
            {
                return Err(fail(format!("{:?} is no plain file name", shard.file)));
            }
            if shard.bytes > MAX_SHARD_BYTES {
                let reason = format!("has {} bytes, at most {MAX_SHARD_BYTES}", shard.bytes);
                return Err(fail(format!("shard {} {reason}", shard.file)));
            }
        }
        for tensor in &manifest.tensors {
            if manifest.range(tensor).is_none() {
                let TensorEntry { part, name, .. } = tensor;
                return Err(fail(format!("tensor {part}/{name} lies outside of its shard")));
            }
        }
        Ok(manifest)
    }

    /// The bytes of a tensor in its shard; `None` if they are not in it.
    fn range(&self, tensor: &TensorEntry) -> Option<std::ops::Range<usize>> {
        let end = tensor.offset.checked_add(tensor.dtype.size(&tensor.shape)?)?;
        (end <= self.shards.get(tensor.shard)?.bytes).then_some(tensor.offset..end)
    }

    /// Checks that `bytes` are those of a shard.
    ///
    /// # Errors
    ///
    /// Names the shard, and what was expected.
    pub fn verify(&self, shard: usize, bytes: &[u8]) -> Result<(), LoadError> {
        let shard = self.shard(shard)?;
        let found = hex(&Sha256::digest(bytes));
        match found == shard.sha256 {
            true => Ok(()),
            false => {
                let reason = format!("its SHA-256 is {found}, expected {}", shard.sha256);
                Err(LoadError::File { path: shard.file.clone(), reason })
            }
        }
    }

    /// The weights of a shard by their parts; whether it is intact tells [`Self::verify`].
    ///
    /// # Errors
    ///
    /// There is no such shard, or it is of another length.
    pub fn weights(
        &self,
        shard: usize,
        bytes: &[u8],
    ) -> Result<BTreeMap<String, Checkpoint>, LoadError> {
        let expected = self.shard(shard)?;
        if bytes.len() != expected.bytes {
            let reason = format!("it has {} bytes, expected {}", bytes.len(), expected.bytes);
            return Err(LoadError::File { path: expected.file.clone(), reason });
        }
        let mut parts: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for tensor in self.tensors.iter().filter(|tensor| tensor.shard == shard) {
            let range = self.range(tensor).expect("parse has checked all ranges");
            let entry = (tensor.name.as_str(), tensor.dtype, &tensor.shape[..], &bytes[range]);
            parts.entry(tensor.part.clone()).or_default().push(entry);
        }
        let checkpoint = |(part, tensors): (String, Vec<_>)| {
            let weights = Checkpoint::from_stored(&part, tensors)?;
            Ok((part, weights))
        };
        parts.into_iter().map(checkpoint).collect()
    }

    fn shard(&self, index: usize) -> Result<&Shard, LoadError> {
        self.shards.get(index).ok_or_else(|| LoadError::File {
            path: "manifest.json".into(),
            reason: format!("it has {} shards, no number {index}", self.shards.len()),
        })
    }

    /// The configs and tokenizers, without weights.
    pub fn texts(&self) -> ModelFiles {
        ModelFiles { texts: self.files.clone(), weights: BTreeMap::new() }
    }

    /// The whole model; `read` gives the bytes of a shard's file.
    ///
    /// # Errors
    ///
    /// A shard is damaged, or `read` failed.
    pub fn read<E: From<LoadError>>(
        &self,
        mut read: impl FnMut(&str) -> Result<Vec<u8>, E>,
    ) -> Result<ModelFiles, E> {
        let mut parts: BTreeMap<String, Vec<Checkpoint>> = BTreeMap::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let bytes = read(&shard.file)?;
            self.verify(index, &bytes)?;
            for (part, weights) in self.weights(index, &bytes)? {
                parts.entry(part).or_default().push(weights);
            }
        }
        let mut files = self.texts();
        for (part, shards) in parts {
            let weights = Checkpoint::join(&part, &shards)?;
            files.weights.insert(part, weights);
        }
        Ok(files)
    }
}

/// The stage that a part counts for.
fn stage(part: &str) -> Stage {
    match part {
        layout::PRIOR => Stage::Prior,
        layout::DECODER => Stage::Decoder,
        layout::VQGAN => Stage::Vqgan,
        _ => Stage::Text,
    }
}

fn id(name: &str, texts: &BTreeMap<String, String>, shards: &[Shard]) -> String {
    let mut hasher = Sha256::new();
    for shard in shards {
        hasher.update(&shard.sha256);
    }
    for (path, text) in texts {
        hasher.update(path);
        hasher.update(text);
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = name.chars().map(plain).collect();
    let hash = hex(&hasher.finalize());
    format!("{}-{}", if name.is_empty() { "model" } else { &name }, &hash[..12])
}

/// The defaults under the names that JavaScript callers use.
fn defaults(defaults: &Defaults) -> Value {
    json!({
        "width": defaults.width,
        "height": defaults.height,
        "priorSteps": defaults.prior_steps,
        "priorGuidanceScale": defaults.prior_guidance_scale,
        "decoderSteps": defaults.decoder_steps,
        "decoderGuidanceScale": defaults.decoder_guidance_scale,
        "sampler": defaults.sampler,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One shard of 16 bytes with two tensors: f32 of 2 values, i8 of 1 x 4 with its scale.
    fn manifest() -> Value {
        let (part, bytes) = (layout::PRIOR, [0u8; 16]);
        json!({
            "format": FORMAT, "id": "a", "name": "a", "licence": "", "provenance": "",
            "defaults": {}, "stages": {}, "files": {},
            "shards": [{"file": "s.bin", "bytes": 16, "sha256": hex(&Sha256::digest(bytes))}],
            "tensors": [
                {"part": part, "name": "x", "shape": [2], "dtype": "f32", "shard": 0, "offset": 0},
                {"part": part, "name": "y", "shape": [1, 4], "dtype": "i8", "shard": 0, "offset": 8},
            ],
        })
    }

    fn parse(change: impl FnOnce(&mut Value)) -> Result<Manifest, String> {
        let mut value = manifest();
        change(&mut value);
        Manifest::parse(&value.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_tensors_from_a_shard() {
        let mut bytes = Vec::new();
        for value in [1.0f32, -2.0, 0.5] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend([1u8, 2, 255, 128]); // 1, 2, -1, -128
        let parts = parse(|_| {}).unwrap().weights(0, &bytes).unwrap();
        let weights = &parts[layout::PRIOR];
        assert_eq!(weights.values("x").unwrap(), [1.0, -2.0]);
        assert_eq!(weights.values("y").unwrap(), [0.5, 1.0, -0.5, -64.0]);
    }

    #[test]
    fn damage_is_noticed() {
        let manifest = parse(|_| {}).unwrap();
        assert!(manifest.verify(0, &[0; 16]).is_ok());
        assert!(manifest.verify(0, &[1; 16]).is_err());
        let short = manifest.weights(0, &[0; 15]).err().unwrap();
        assert_eq!(short.to_string(), "s.bin: it has 15 bytes, expected 16");
        assert!(manifest.weights(1, &[0; 16]).is_err());
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let format = parse(|value| value["format"] = 2.into()).unwrap_err();
        assert_eq!(format, "manifest.json: it is of format 2, this program reads 1");
        for file in ["../s.bin", "/s.bin", "a/b", ".s", "", "a\\b", "c:s"] {
            let error = parse(|value| value["shards"][0]["file"] = file.into()).unwrap_err();
            assert!(error.contains("is no plain file name"), "{error}");
        }
        for (tensor, field, lie) in [
            (0, "offset", json!(12)),
            (0, "offset", json!(u64::MAX)),
            (0, "shape", json!([1u64 << 40, 1u64 << 40])),
            (1, "shard", json!(1)),
        ] {
            let error = parse(|value| value["tensors"][tensor][field] = lie).unwrap_err();
            assert!(error.contains("lies outside of its shard"), "{error}");
        }
        let large = parse(|value| value["shards"][0]["bytes"] = (MAX_SHARD_BYTES + 1).into());
        assert!(large.unwrap_err().contains("at most 16777216"));
    }

    /// The largest value of each row is exact, the others within half a step.
    #[test]
    fn eight_bits_keep_each_rows_scale() {
        let values = [1.0f32, -0.26, 100.0, 30.0];
        let stored = Stored::new(&[2, 2], &values, StoredDtype::I8);
        let entry = [("x", stored.dtype, &stored.shape[..], &stored.bytes[..])];
        let found = Checkpoint::from_stored("part", entry).unwrap().values("x").unwrap();
        assert!((found[0] - 1.0).abs() < 1e-6 && (found[2] - 100.0).abs() < 1e-4, "{found:?}");
        assert!((found[1] + 0.26).abs() <= 0.5 / 127.0 && (found[3] - 30.0).abs() <= 50.0 / 127.0);
    }
}
