//! A browser bundle, a model for the browser: a small manifest, its contents, and shards of weights.
//!
//! A shard is fetched, checked, handed to the device and dropped, a few at a time, so that the weights are
//! never in memory all at once.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::checkpoint::{Checkpoint, Pieces, ReadBytes, UnfitTensors, is_counter};
use crate::error::LoadError;
use crate::family::Family;
use crate::model_files::ModelFiles;
use crate::options::Defaults;
use crate::part::{Part, Stage};
use crate::preview::EmbeddingColours;
use crate::self_test::SelfTest;
use crate::stored::{Stored, StoredDtype, Unfit};

/// Version of the format.
pub const FORMAT: u32 = 2;

/// Bytes of every shard but the last. Shards are so large that the cost of a request does not matter, and so small
/// that several fit in memory and one that fails is fetched again. A tensor may lie across the borders of shards.
pub const MAX_SHARD_BYTES: usize = 16 << 20;

/// The name of the file of [`Manifest`], which makes a folder a browser bundle.
pub const MANIFEST: &str = "manifest.json";

/// The name of the file of [`Contents`].
pub(crate) const CONTENTS: &str = "contents.json";

/// Offsets are multiples of this, as WebGPU demands of the offsets of storage buffers.
const ALIGNMENT: usize = 256;

/// `manifest.json`: what people want to know before a download, and what there is to download.
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
    /// Sizes, steps and guidance scales that the model takes where the caller gives none, as JavaScript names them.
    pub defaults: Value,
    /// The sizes of the stages' weights; the semantic compressor belongs to no stage.
    pub stages: BTreeMap<Stage, StageInfo>,
    /// Whether the contents hold a [`SelfTest`], with which browsers check their device.
    pub self_test: bool,
    /// Whether the model takes pictures as prompts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub picture_prompts: bool,
    /// The file of [`Contents`].
    pub contents: Shard,
    /// The files of weights.
    pub shards: Vec<Shard>,
}

/// `contents.json`: all of a model but its weights, and where those lie.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contents {
    /// Configs, scheduler constants, tokenizers, by their paths in a model folder.
    pub files: BTreeMap<String, String>,
    /// Where every tensor lies.
    pub tensors: Vec<TensorEntry>,
    /// What a sound device computes.
    #[serde(default)]
    pub self_test: Option<SelfTest>,
    /// How image embeddings are shown while they are made.
    #[serde(default)]
    pub preview: Option<EmbeddingColours>,
}

/// A browser bundle: a model in shards.
#[derive(Clone, Debug)]
pub struct WebBundle {
    manifest: Manifest,
    contents: Contents,
}

/// The size of a stage's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageInfo {
    /// Number of values.
    pub params: usize,
    /// Bytes in the shards.
    pub bytes: usize,
    /// How the large matrices among them are stored.
    pub dtype: StoredDtype,
}

/// A file beside the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// A plain file name.
    pub file: String,
    /// Its length in bytes.
    pub bytes: usize,
    /// SHA-256 of its content, in hex.
    pub sha256: String,
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Its part.
    pub part: Part,
    /// Name in the part.
    pub name: String,
    /// Its shape, as in PyTorch.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub dtype: StoredDtype,
    /// Index of the shard.
    pub shard: usize,
    /// The place of the first byte in that shard.
    pub offset: usize,
    /// The indices of the shards that continue the tensor where the first one ends, each from its start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<usize>,
}

impl WebBundle {
    /// Bytes of a model's tensors in the shards that [`Self::write`] makes, without the few bytes that align them.
    pub fn bytes(files: &ModelFiles, dtype: StoredDtype) -> usize {
        unstored(files, dtype).filter_map(|tensor| tensor.dtype.size(tensor.shape)).sum()
    }

    /// Splits the parts that a model has into shards, which `write` takes by their file names. The tensors
    /// are read and converted one after the other, each by all threads.
    ///
    /// # Errors
    ///
    /// A tensor cannot be read, `write` failed, or values are infinite, NaN or too large for their
    /// type; the error names all such tensors.
    pub fn write<E: From<LoadError>>(
        files: &ModelFiles,
        dtype: StoredDtype,
        mut write: impl FnMut(&str, &[u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let (mut tensors, mut shards, mut open) = (Vec::new(), Vec::new(), Vec::new());
        let mut stages = BTreeMap::new();
        let mut unfit = UnfitTensors::default();
        let mut close = |bytes: &mut Vec<u8>, shards: &mut Vec<Shard>| {
            let file = format!("shard-{:03}.bin", shards.len());
            write(&file, bytes)?;
            shards.push(Shard::of(&file, bytes));
            bytes.clear();
            Ok::<_, E>(())
        };
        for tensor in unstored(files, dtype) {
            let stored = tensor.store(&mut unfit)?;
            // Once a tensor is unfit, no model can be written: the others are only checked.
            let Some(stored) = stored.filter(|_| unfit.is_empty()) else { continue };
            let Unstored { part, name, shape, dtype, .. } = tensor;
            let bytes = stored.bytes.len();
            if let Some(stage) = part.stage() {
                let empty = StageInfo { params: 0, bytes: 0, dtype };
                let info = stages.entry(stage).or_insert(empty);
                info.params += shape.iter().product::<usize>();
                info.bytes += bytes;
                info.dtype = info.dtype.max(dtype);
            }
            open.resize(open.len().next_multiple_of(ALIGNMENT), 0);
            if open.len() == MAX_SHARD_BYTES {
                close(&mut open, &mut shards)?;
            }
            let (shard, offset) = (shards.len(), open.len());
            let (first, mut rest) = stored.bytes.split_at(bytes.min(MAX_SHARD_BYTES - offset));
            open.extend_from_slice(first);
            let mut more = Vec::new();
            while !rest.is_empty() {
                close(&mut open, &mut shards)?;
                more.push(shards.len());
                let (piece, after) = rest.split_at(rest.len().min(MAX_SHARD_BYTES));
                open.extend_from_slice(piece);
                rest = after;
            }
            tensors.push(TensorEntry {
                part,
                name: name.to_owned(),
                shape: shape.to_vec(),
                dtype,
                shard,
                offset,
                more,
            });
        }
        unfit.into_result(dtype)?;
        close(&mut open, &mut shards)?;
        let card = files.card()?;
        let contents = Contents { files: files.texts.clone(), tensors, ..Contents::default() };
        let manifest = Manifest {
            format: FORMAT,
            id: id(&card.name, &contents.files, &shards),
            defaults: defaults(&card.defaults),
            name: card.name,
            licence: card.licence,
            provenance: card.provenance,
            stages,
            self_test: false,
            picture_prompts: files
                .family()
                .image_encoder
                .is_some_and(|part| files.weights.contains_key(&part)),
            contents: Shard::of(CONTENTS, contents.to_json().as_bytes()),
            shards,
        };
        Ok(Self { manifest, contents })
    }

    /// Adds what a sound device computes, and how image embeddings are shown.
    pub fn with_tests(
        mut self,
        self_test: Option<SelfTest>,
        preview: Option<EmbeddingColours>,
    ) -> Self {
        self.manifest.self_test = self_test.is_some();
        self.contents = Contents { self_test, preview, ..self.contents };
        self.manifest.contents = Shard::of(CONTENTS, self.contents.to_json().as_bytes());
        self
    }

    /// The files besides the shards, by their names. The manifest comes last, because without it a folder is no model.
    pub fn files(&self) -> [(&str, String); 2] {
        let manifest = serde_json::to_string(&self.manifest).expect("numbers and texts are JSON");
        [(CONTENTS, self.contents.to_json()), (MANIFEST, manifest)]
    }

    /// What people want to know.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What is needed to read the weights.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    ///
    /// The text is no manifest of this version, or has an impossible value, such as a file name with a path or a shard
    /// that is too large.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        let fail = |reason: String| LoadError::File { path: MANIFEST.into(), reason };
        let format = |value: &Value| value.get("format").and_then(Value::as_u64);
        let value: Value = serde_json::from_str(text).map_err(|error| fail(error.to_string()))?;
        match format(&value) {
            Some(found) if found == u64::from(FORMAT) => {}
            Some(found) => {
                let remedy = if found < u64::from(FORMAT) {
                    "export the model anew"
                } else {
                    "a newer program reads it"
                };
                return Err(fail(format!(
                    "it is of format {found}, this program reads {FORMAT}: {remedy}"
                )));
            }
            None => return Err(fail("it has no field \"format\"".into())),
        }
        let manifest: Self =
            serde_json::from_value(value).map_err(|error| fail(error.to_string()))?;
        for shard in manifest.shards.iter().chain([&manifest.contents]) {
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
        Ok(manifest)
    }

    /// The bundle whose file of contents has these bytes.
    ///
    /// # Errors
    ///
    /// The bytes are another file, or have an impossible value, such as a tensor outside of its shards.
    pub fn with_contents(self, bytes: &[u8]) -> Result<WebBundle, LoadError> {
        self.contents.verify(bytes)?;
        let path = self.contents.file.clone();
        let fail = |reason: String| LoadError::File { path, reason };
        let contents = match serde_json::from_slice(bytes) {
            Ok(contents) => contents,
            Err(error) => return Err(fail(error.to_string())),
        };
        let bundle = WebBundle { manifest: self, contents };
        for tensor in &bundle.contents.tensors {
            let TensorEntry { part, name, dtype, .. } = tensor;
            use StoredDtype::{F16, F32, I4, I8};
            if !matches!(dtype, F32 | F16 | I8 | I4) {
                return Err(fail(format!("tensor {part}/{name} is of type {dtype:?}")));
            }
            if bundle.pieces(tensor).is_none() {
                return Err(fail(format!("tensor {part}/{name} lies outside of its shards")));
            }
        }
        Ok(bundle)
    }
}

impl Contents {
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts are JSON")
    }
}

impl Shard {
    /// The file with these bytes.
    pub fn of(file: &str, bytes: &[u8]) -> Self {
        let sha256 = hex(&Sha256::digest(bytes));
        Self { file: file.to_owned(), bytes: bytes.len(), sha256 }
    }

    /// Checks that `bytes` are those of the file.
    ///
    /// # Errors
    ///
    /// Names the file, and what was expected.
    fn verify(&self, bytes: &[u8]) -> Result<(), LoadError> {
        let found = hex(&Sha256::digest(bytes));
        if found == self.sha256 {
            Ok(())
        } else {
            let reason = format!("its SHA-256 is {found}, expected {}", self.sha256);
            Err(LoadError::File { path: self.file.clone(), reason })
        }
    }
}

impl WebBundle {
    /// The shards that a tensor lies in, and where; `None` if its bytes are not in them.
    fn pieces(&self, tensor: &TensorEntry) -> Option<Vec<(usize, Range<usize>)>> {
        let mut left = tensor.dtype.size(&tensor.shape)?;
        let mut pieces = Vec::new();
        for (i, &shard) in std::iter::once(&tensor.shard).chain(&tensor.more).enumerate() {
            let (start, end) =
                (if i == 0 { tensor.offset } else { 0 }, self.manifest.shards.get(shard)?.bytes);
            let length = left.min(end.checked_sub(start)?);
            // A list with an empty piece or the same shard twice is damaged.
            if (i > 0 && length == 0) || pieces.iter().any(|&(other, _)| other == shard) {
                return None;
            }
            pieces.push((shard, start..start + length));
            left -= length;
        }
        (left == 0).then_some(pieces)
    }

    /// Checks that `bytes` are those of a shard.
    ///
    /// # Errors
    ///
    /// Names the shard, and what was expected.
    pub fn verify(&self, shard: usize, bytes: &[u8]) -> Result<(), LoadError> {
        self.shard(shard)?.verify(bytes)
    }

    /// Checks that a shard is of the right length.
    fn check_length(&self, shard: usize, found: usize) -> Result<(), LoadError> {
        let shard = self.shard(shard)?;
        if found == shard.bytes {
            Ok(())
        } else {
            let reason = format!("it has {found} bytes, expected {}", shard.bytes);
            Err(LoadError::File { path: shard.file.clone(), reason })
        }
    }

    fn shard(&self, index: usize) -> Result<&Shard, LoadError> {
        self.manifest.shards.get(index).ok_or_else(|| LoadError::File {
            path: MANIFEST.into(),
            reason: format!("it has {} shards, no number {index}", self.manifest.shards.len()),
        })
    }

    /// The configs and tokenizers, without weights.
    pub fn texts(&self) -> ModelFiles {
        ModelFiles { texts: self.contents.files.clone(), weights: BTreeMap::new() }
    }

    /// The model with the names and shapes of its tensors, none of which can be read.
    pub fn outline(&self) -> ModelFiles {
        let mut files = self.texts();
        for tensor in &self.contents.tensors {
            let TensorEntry { part, name, dtype, shape, .. } = tensor;
            let bytes = dtype.size(shape).expect("all pieces have been checked");
            let weights = files.weights.entry(*part);
            let weights = weights.or_insert_with(|| Checkpoint::empty(part.folder()));
            let inserted = weights.insert(name, *dtype, shape, Arc::new(Absent(bytes)), 0..bytes);
            inserted.expect("it is as long as the shape says");
        }
        files
    }

    /// The whole model, of which nothing is read yet; `open` gives a shard's file.
    ///
    /// # Errors
    ///
    /// A shard is of another length, or `open` failed. [`Self::verify`] tells whether its content is intact.
    pub fn open<E: From<LoadError>>(
        &self,
        mut open: impl FnMut(&str) -> Result<Arc<dyn ReadBytes>, E>,
    ) -> Result<ModelFiles, E> {
        let mut shards = Vec::with_capacity(self.manifest.shards.len());
        for (index, shard) in self.manifest.shards.iter().enumerate() {
            let source = open(&shard.file)?;
            self.check_length(index, source.length())?;
            shards.push(source);
        }
        let mut files = self.texts();
        for tensor in &self.contents.tensors {
            let pieces = self.pieces(tensor).expect("all pieces have been checked");
            let part = files.weights.entry(tensor.part);
            let part = part.or_insert_with(|| Checkpoint::empty(tensor.part.folder()));
            let TensorEntry { name, dtype, shape, .. } = tensor;
            match &pieces[..] {
                [(shard, range)] => {
                    part.insert(name, *dtype, shape, shards[*shard].clone(), range.clone())?;
                }
                _ => {
                    let pieces = pieces.into_iter().map(|(shard, at)| (shards[shard].clone(), at));
                    let source = Arc::new(Pieces(pieces.collect()));
                    let range = 0..source.length();
                    part.insert(name, *dtype, shape, source, range)?;
                }
            }
        }
        Ok(files)
    }
}

/// A source of a tensor's length that has no bytes yet.
struct Absent(usize);

impl ReadBytes for Absent {
    fn length(&self) -> usize {
        self.0
    }

    fn read(&self, _: Range<usize>) -> std::io::Result<Cow<'_, [u8]>> {
        Err(std::io::Error::other("its shard has not come yet"))
    }
}

/// Puts tensors together from shards that arrive one after the other.
#[derive(Default)]
pub struct Unpacking {
    /// What has arrived of tensors that lie in several shards, by their places in the manifest.
    begun: BTreeMap<usize, Vec<u8>>,
}

impl Unpacking {
    /// The tensors that the shard with number `index` completes, by their parts. Shards must come in their order;
    /// [`WebBundle::verify`] tells whether one is intact.
    ///
    /// # Errors
    ///
    /// There is no such shard, it is of another length, or an earlier one has not come.
    pub fn add(
        &mut self,
        bundle: &WebBundle,
        index: usize,
        bytes: &[u8],
    ) -> Result<BTreeMap<Part, Checkpoint>, LoadError> {
        bundle.check_length(index, bytes.len())?;
        let mut parts: BTreeMap<Part, Checkpoint> = BTreeMap::new();
        for (place, tensor) in bundle.contents.tensors.iter().enumerate() {
            let pieces = bundle.pieces(tensor).expect("all pieces have been checked");
            let Some(number) = pieces.iter().position(|(shard, _)| *shard == index) else {
                continue;
            };
            let mut begun = self.begun.remove(&place).unwrap_or_default();
            let before: usize = pieces[..number].iter().map(|(_, range)| range.len()).sum();
            if begun.len() != before {
                let reason = format!("it came before the first of {}/{}", tensor.part, tensor.name);
                let path = bundle.manifest.shards[index].file.clone();
                return Err(LoadError::File { path, reason });
            }
            begun.extend_from_slice(&bytes[pieces[number].1.clone()]);
            if number + 1 < pieces.len() {
                self.begun.insert(place, begun);
                continue;
            }
            let part = parts.entry(tensor.part);
            let part = part.or_insert_with(|| Checkpoint::empty(tensor.part.folder()));
            let range = 0..begun.len();
            part.insert(&tensor.name, tensor.dtype, &tensor.shape, Arc::new(begun), range)?;
        }
        Ok(parts)
    }
}

/// A tensor that is to be stored.
struct Unstored<'a> {
    part: Part,
    weights: &'a Checkpoint,
    name: &'a str,
    shape: &'a [usize],
    /// How it is to be stored.
    dtype: StoredDtype,
}

/// The tensors of a model that is to be stored as `dtype`, those of a picture's parts first.
fn unstored(files: &ModelFiles, dtype: StoredDtype) -> impl Iterator<Item = Unstored<'_>> {
    let stored = Family::ALL.into_iter().flat_map(|family| family.parts.iter().copied());
    let parts = stored.filter_map(|part| Some((part, files.weights.get(&part)?)));
    parts.flat_map(move |(part, weights)| {
        let learnt = weights.describe().filter(|(name, ..)| !is_counter(name));
        learnt.map(move |(name, _, shape, _)| {
            let dtype = dtype.of_tensor(name, shape);
            Unstored { part, weights, name, shape, dtype }
        })
    })
}

impl Unstored<'_> {
    /// The tensor as it is to be stored; `None`, and its name is kept in `unfit`, where it cannot be.
    fn store(&self, unfit: &mut UnfitTensors) -> Result<Option<Stored>, LoadError> {
        let Self { part, weights, name, shape, dtype } = self;
        // A tensor that has the wanted type already is not rounded a second time.
        let stored = if weights.dtype(name) == Some(*dtype) {
            let stored = weights.stored(name)?;
            if stored.is_finite() { Ok(stored) } else { Err(Unfit::NotFinite) }
        } else {
            Stored::fitting(shape, &weights.values(name)?, *dtype)
        };
        Ok(unfit.sort(&format!("{part}/{name}"), stored))
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
    let mut value = json!({
        "width": defaults.width,
        "height": defaults.height,
        "priorSteps": defaults.prior_steps,
        "priorGuidanceScale": defaults.prior_guidance_scale,
        "decoderSteps": defaults.decoder_steps,
        "decoderGuidanceScale": defaults.decoder_guidance_scale,
        "sampler": defaults.sampler,
    });
    if let Some(tokens) = &defaults.tokens {
        value["temperature"] = json!(tokens.temperature);
        value["temperatureEnd"] = json!(tokens.temperature_end);
        value["tokenSampling"] = json!(tokens.token_sampling);
    }
    value
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::NamedTensor;

    /// One shard of 80 bytes with two tensors: f32 of 2 values, i8 of 1 x 4: a block of 64 bytes, a
    /// word with its scale, a word with its zero-point.
    fn parse(change: impl FnOnce(&mut Value, &mut Value)) -> Result<WebBundle, String> {
        let part = Part::PRIOR;
        let mut contents = json!({
            "files": {},
            "tensors": [
                {"part": part, "name": "x", "shape": [2], "dtype": "f32", "shard": 0, "offset": 0},
                {"part": part, "name": "y", "shape": [1, 4], "dtype": "i8", "shard": 0, "offset": 8},
            ],
        });
        let mut manifest = json!({
            "format": FORMAT, "id": "a", "name": "a", "licence": "", "provenance": "",
            "defaults": {}, "stages": {}, "selfTest": false, "contents": null,
            "shards": [Shard::of("s.bin", &[0; 80])],
        });
        change(&mut manifest, &mut contents);
        let contents = contents.to_string();
        manifest["contents"] = json!(Shard::of("c.json", contents.as_bytes()));
        let bundle = Manifest::parse(&manifest.to_string())
            .and_then(|manifest| manifest.with_contents(contents.as_bytes()));
        bundle.map_err(|error| error.to_string())
    }

    #[test]
    fn reads_tensors_from_a_shard() {
        let mut bytes = Vec::new();
        for value in [1.0f32, -2.0] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend([1u8, 2, 255, 3]);
        bytes.resize(8 + 64, 0);
        bytes.extend(half::f16::from_f32(0.5).to_le_bytes());
        bytes.extend([0, 0, 3, 0, 0, 0]); // the zero-point
        let bundle = parse(|_, _| {}).unwrap();
        let shard: Arc<dyn ReadBytes> = Arc::new(bytes.clone());
        let opened = bundle.open::<LoadError>(|_| Ok(shard.clone())).unwrap().weights;
        for parts in [Unpacking::default().add(&bundle, 0, &bytes).unwrap(), opened] {
            let weights = &parts[&Part::PRIOR];
            assert_eq!(weights.values("x").unwrap(), [1.0, -2.0]);
            assert_eq!(weights.values("y").unwrap(), [-1.0, -0.5, 126.0, 0.0]);
        }
    }

    /// A tensor of 40 MiB lies in three shards, and what follows it is still found.
    #[test]
    fn a_tensor_larger_than_a_shard_is_put_together() {
        let large: Vec<f32> = (0..10 << 20).map(|i| i as f32).collect();
        let tensors = [
            NamedTensor::new("a", &[2], vec![1.0, 2.0]),
            NamedTensor::new("b", &[10 << 20], large.clone()),
            NamedTensor::new("c", &[1], vec![3.0]),
        ];
        let mut model = ModelFiles::default();
        let weights = Checkpoint::from_tensors(Part::PRIOR.folder(), tensors);
        model.weights.insert(Part::PRIOR, weights);
        let mut files: BTreeMap<String, Arc<dyn ReadBytes>> = BTreeMap::new();
        let write = |file: &str, bytes: &[u8]| {
            files.insert(file.to_owned(), Arc::new(bytes.to_vec()));
            Ok::<_, LoadError>(())
        };
        let written = WebBundle::write(&model, StoredDtype::F32, write).unwrap();
        assert_eq!(WebBundle::bytes(&model, StoredDtype::F32), 4 * (2 + (10 << 20) + 1));
        let [(_, contents), (_, manifest)] = written.files();
        let bundle = Manifest::parse(&manifest).unwrap().with_contents(contents.as_bytes());
        let bundle = bundle.unwrap();
        assert_eq!(bundle.contents.tensors[1].more.len(), 2);
        let sizes: Vec<_> = bundle.manifest.shards.iter().map(|shard| shard.bytes).collect();
        // The first tensor's place is 256 bytes; so is the third one's distance from the second.
        assert_eq!(sizes, [MAX_SHARD_BYTES, MAX_SHARD_BYTES, (8 << 20) + 256 + 4]);

        let opened = bundle.open::<LoadError>(|file| Ok(files[file].clone())).unwrap();
        let mut unpacking = Unpacking::default();
        let mut streamed = Vec::new();
        for (index, shard) in bundle.manifest.shards.iter().enumerate() {
            let bytes = files[&shard.file].read(0..shard.bytes).unwrap();
            bundle.verify(index, &bytes).unwrap();
            streamed.extend(unpacking.add(&bundle, index, &bytes).unwrap().into_values());
        }
        let streamed = Checkpoint::join(Part::PRIOR.folder(), &streamed).unwrap();
        for weights in [streamed, opened.weights[&Part::PRIOR].clone()] {
            assert_eq!(weights.values("a").unwrap(), [1.0, 2.0]);
            assert_eq!(weights.values("b").unwrap(), large);
            assert_eq!(weights.values("c").unwrap(), [3.0]);
        }
        let shard = &bundle.manifest.shards[2];
        let second = files[&shard.file].read(0..shard.bytes).unwrap();
        let early = Unpacking::default().add(&bundle, 2, &second).err().unwrap().to_string();
        assert!(early.contains("came before the first of"), "{early}");
    }

    #[test]
    fn tensors_that_cannot_be_stored_are_named() {
        let error = |value: f32, dtype| {
            let tensors = ["a", "b", "c"].map(|name| {
                NamedTensor::new(name, &[1], vec![if name == "b" { 1.0 } else { value }])
            });
            let mut model = ModelFiles::default();
            let weights = Checkpoint::from_tensors(Part::PRIOR.folder(), tensors);
            model.weights.insert(Part::PRIOR, weights);
            WebBundle::write::<LoadError>(&model, dtype, |_, _| Ok(())).err().map(|e| e.to_string())
        };
        let names = "wuerstchen-prior/prior/a, wuerstchen-prior/prior/c";
        let expected = format!("the model: not a number or infinite: {names}");
        assert_eq!(error(f32::NAN, StoredDtype::F32), Some(expected));
        let expected = format!("the model: too large for F16, which f32 holds: {names}");
        assert_eq!(error(1e5, StoredDtype::F16), Some(expected));
        assert_eq!(error(1e5, StoredDtype::F32), None);
    }

    #[test]
    fn damage_is_noticed() {
        let bundle = parse(|_, _| {}).unwrap();
        assert!(bundle.verify(0, &[0; 80]).is_ok());
        assert!(bundle.verify(0, &[1; 80]).is_err());
        let add = |index, bytes: &[u8]| Unpacking::default().add(&bundle, index, bytes);
        let short = add(0, &[0; 79]).err().unwrap();
        assert_eq!(short.to_string(), "s.bin: it has 79 bytes, expected 80");
        assert!(add(1, &[0; 80]).is_err());
    }

    #[test]
    fn other_contents_are_noticed() {
        let bundle = parse(|_, _| {}).unwrap();
        let error = bundle.manifest.with_contents(b"{}").err().unwrap().to_string();
        assert!(error.starts_with("c.json: its SHA-256 is "), "{error}");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let format = parse(|manifest, _| manifest["format"] = 1.into()).unwrap_err();
        let expected = "it is of format 1, this program reads 2: export the model anew";
        assert_eq!(format, format!("manifest.json: {expected}"));
        let newer = parse(|manifest, _| manifest["format"] = 3.into()).unwrap_err();
        assert!(newer.ends_with("this program reads 2: a newer program reads it"), "{newer}");
        for file in ["../s.bin", "/s.bin", "a/b", ".s", "", "a\\b", "c:s"] {
            let error = parse(|manifest, _| manifest["shards"][0]["file"] = file.into());
            let error = error.unwrap_err();
            assert!(error.contains("is no plain file name"), "{error}");
        }
        for (tensor, field, lie) in [
            (0, "offset", json!(76)),
            (0, "offset", json!(u64::MAX)),
            (0, "shape", json!([1u64 << 40, 1u64 << 40])),
            (1, "shard", json!(1)),
            (1, "more", json!([0])),
            (1, "shape", json!([0, usize::MAX])),
        ] {
            let error = parse(|_, contents| contents["tensors"][tensor][field] = lie).unwrap_err();
            assert!(error.contains("lies outside of its shards"), "{error}");
        }
        let part = parse(|_, contents| {
            contents["tensors"][0]["part"] = "wuerstchen/unet".into();
        });
        assert!(part.unwrap_err().contains("unknown part \"wuerstchen/unet\": expected one of "));
        let large = |manifest: &mut Value, _: &mut Value| {
            manifest["shards"][0]["bytes"] = (MAX_SHARD_BYTES + 1).into();
        };
        assert!(parse(large).unwrap_err().contains("at most 16777216"));
    }
}
