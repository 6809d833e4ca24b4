//! Checkpoints: reading, naming, strict loading, writing.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

/// Why weights cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is not a safetensors file.
    #[error("{part}: not a safetensors file: {reason}")]
    Format {
        /// Which weights.
        part: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is of a type that no weights have.
    #[error("{part}: tensor {name:?} is {found}, expected f64, f32, f16 or bf16")]
    Dtype {
        /// Which weights.
        part: String,
        /// Name of the tensor.
        name: String,
        /// Its type.
        found: String,
    },
    /// The tensors are not those of the model.
    #[error("{part}: the weights do not fit the config{differences}")]
    Mismatch {
        /// Which weights.
        part: String,
        /// Every tensor that differs.
        differences: Differences,
    },
    /// A file of the model is not there.
    #[error("expected the file {path:?} in the model, found {}", if found.is_empty() { "nothing" } else { found })]
    MissingFile {
        /// Its path in the model folder.
        path: String,
        /// What is there instead.
        found: String,
    },
    /// A text file is not what it should be.
    #[error("{path}: {reason}")]
    File {
        /// Its path in the model folder.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A config asks for what the architecture cannot be.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A tokenizer cannot be made.
    #[error(transparent)]
    Tokenizer(#[from] crate::text::TokenizerError),
}

/// Every difference between a model's parameters and a checkpoint's tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Names that the model needs and the checkpoint lacks.
    pub missing: Vec<String>,
    /// Names that the checkpoint has and the model does not know.
    pub unexpected: Vec<String>,
    /// Name, expected shape, found shape.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl Differences {
    /// `value` if nothing differs.
    fn into_result<T>(self, part: &str, value: T) -> Result<T, LoadError> {
        match self == Self::default() {
            true => Ok(value),
            false => Err(LoadError::Mismatch { part: part.to_owned(), differences: self }),
        }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.missing {
            write!(f, "\n  missing: {name}")?;
        }
        for name in &self.unexpected {
            write!(f, "\n  unexpected: {name}")?;
        }
        for (name, expected, found) in &self.misshapen {
            write!(f, "\n  misshapen: {name}: expected {expected:?}, found {found:?}")?;
        }
        Ok(())
    }
}

/// Storage type of written weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightDtype {
    /// 32 bits.
    F32,
    /// 16 bits; what lies outside ±65504 becomes infinite.
    F16,
}

/// A tensor as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Type of the values.
    pub dtype: StoredDtype,
    /// As in PyTorch.
    pub shape: Vec<usize>,
    /// The values, little-endian; for [`StoredDtype::I8`] behind the scales of the first axis.
    pub bytes: Vec<u8>,
}

/// Type of a stored tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredDtype {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// 8 bits, times the scale of its index on the first axis.
    I8,
}

impl Stored {
    /// Stores values as `dtype`; vectors are too few to be worth 8 bits and become f16.
    pub fn new(shape: &[usize], values: &[f32], dtype: StoredDtype) -> Self {
        let (dtype, bytes) = match dtype {
            StoredDtype::F32 => (StoredDtype::F32, bytemuck::cast_slice(values).to_vec()),
            StoredDtype::I8 if shape.len() > 1 => (StoredDtype::I8, quantize(shape[0], values)),
            _ => {
                let halves = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes());
                (StoredDtype::F16, halves.collect())
            }
        };
        Self { dtype, shape: shape.to_vec(), bytes }
    }
}

impl StoredDtype {
    /// Bytes of a tensor of this type, `None` if they are more than can be counted.
    pub fn size(self, shape: &[usize]) -> Option<usize> {
        let count = shape.iter().try_fold(1usize, |size, &side| size.checked_mul(side))?;
        match self {
            Self::F32 => count.checked_mul(4),
            Self::F16 => count.checked_mul(2),
            Self::I8 => shape.first()?.checked_mul(4)?.checked_add(count),
        }
    }

    /// The values of stored bytes of the right size.
    fn values(self, shape: &[usize], bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytemuck::pod_collect_to_vec(bytes),
            Self::F16 => {
                bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            Self::I8 => {
                let (scales, values) = bytes.split_at(4 * shape[0]);
                let scales: Vec<f32> = bytemuck::pod_collect_to_vec(scales);
                let width = (values.len() / shape[0].max(1)).max(1);
                let rows = values.chunks(width).zip(scales);
                rows.flat_map(|(row, scale)| row.iter().map(move |&v| f32::from(v as i8) * scale))
                    .collect()
            }
        }
    }
}

/// One scale a row, so that its largest value becomes 127, then the rounded values.
fn quantize(rows: usize, values: &[f32]) -> Vec<u8> {
    let width = (values.len() / rows.max(1)).max(1);
    let scale = |row: &[f32]| row.iter().fold(0.0f32, |max, v| max.max(v.abs())) / 127.0;
    let scales: Vec<f32> = values.chunks(width).map(scale).collect();
    let mut bytes = bytemuck::cast_slice(&scales).to_vec();
    for (row, &scale) in values.chunks(width).zip(&scales) {
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        bytes.extend(row.iter().map(|v| (v * inverse).round_ties_even() as i8 as u8));
    }
    bytes
}

/// Named tensors over shared bytes: a safetensors file in memory or mapped.
#[derive(Clone)]
pub struct Checkpoint {
    part: String,
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    range: std::ops::Range<usize>,
}

/// A tensor's name, shape and values.
pub type NamedTensor = (String, Vec<usize>, Vec<f32>);

impl Checkpoint {
    /// Reads the header of a safetensors file; `part` names it in errors.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the header.
    pub fn parse(part: &str, bytes: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Result<Self, LoadError> {
        let data = (*bytes).as_ref();
        let (length, metadata) = SafeTensors::read_metadata(data)
            .map_err(|error| LoadError::Format { part: part.into(), reason: error.to_string() })?;
        let start = length + 8;
        let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
            let (from, to) = info.data_offsets;
            let range = start + from..start + to;
            (name, Entry { dtype: info.dtype, shape: info.shape.clone(), range })
        };
        let tensors = metadata.tensors().into_iter().map(entry).collect();
        Ok(Self { part: part.into(), bytes, tensors })
    }

    /// A checkpoint in memory.
    pub fn from_tensors(part: &str, tensors: impl IntoIterator<Item = NamedTensor>) -> Self {
        let mut bytes = Vec::new();
        let mut entries = BTreeMap::new();
        for (name, shape, values) in tensors {
            let start = bytes.len();
            bytes.extend_from_slice(bytemuck::cast_slice(&values));
            let range = start..bytes.len();
            entries.insert(name, Entry { dtype: Dtype::F32, shape, range });
        }
        Self { part: part.into(), bytes: Arc::new(bytes), tensors: entries }
    }

    /// Stored tensors as a checkpoint of f32 values.
    ///
    /// # Errors
    ///
    /// Names a tensor whose bytes are not as many as its shape says.
    pub fn from_stored<'a>(
        part: &str,
        tensors: impl IntoIterator<Item = (&'a str, StoredDtype, &'a [usize], &'a [u8])>,
    ) -> Result<Self, LoadError> {
        let read = |(name, dtype, shape, bytes): (&str, StoredDtype, &[usize], &[u8])| {
            if dtype.size(shape) != Some(bytes.len()) {
                let found = bytes.len();
                let reason = format!("tensor {name:?} of {shape:?} {dtype:?} has {found} bytes");
                return Err(LoadError::Format { part: part.into(), reason });
            }
            Ok((name.to_owned(), shape.to_vec(), dtype.values(shape, bytes)))
        };
        let tensors = tensors.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::from_tensors(part, tensors))
    }

    /// Several files as one checkpoint.
    ///
    /// # Errors
    ///
    /// Two of them have a tensor of the same name.
    pub fn join(part: &str, shards: &[Self]) -> Result<Self, LoadError> {
        let mut bytes = Vec::new();
        let mut tensors = BTreeMap::new();
        for shard in shards {
            for (name, entry) in &shard.tensors {
                let start = bytes.len();
                bytes.extend_from_slice(&(*shard.bytes).as_ref()[entry.range.clone()]);
                let entry = Entry { range: start..bytes.len(), ..entry.clone() };
                if tensors.insert(name.clone(), entry).is_some() {
                    let reason = format!("two of its files have a tensor {name:?}");
                    return Err(LoadError::Format { part: part.into(), reason });
                }
            }
        }
        Ok(Self { part: part.into(), bytes: Arc::new(bytes), tensors })
    }

    /// What errors call these weights.
    pub fn part(&self) -> &str {
        &self.part
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Name, type and shape of every tensor, sorted by name.
    pub fn describe(&self) -> impl Iterator<Item = (&str, String, &[usize])> {
        self.tensors.iter().map(|(name, entry)| {
            (name.as_str(), format!("{:?}", entry.dtype).to_lowercase(), &entry.shape[..])
        })
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.shape)
    }

    /// The values of a tensor as f32.
    ///
    /// # Errors
    ///
    /// The tensor is missing or of a type that no weights have.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let entry = self.tensors.get(name).ok_or_else(|| LoadError::Mismatch {
            part: self.part.clone(),
            differences: Differences { missing: vec![name.into()], ..Default::default() },
        })?;
        let bytes = &(*self.bytes).as_ref()[entry.range.clone()];
        let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        Ok(match entry.dtype {
            Dtype::F32 => bytemuck::pod_collect_to_vec(bytes),
            Dtype::F64 => {
                let values: Vec<f64> = bytemuck::pod_collect_to_vec(bytes);
                values.into_iter().map(|value| value as f32).collect()
            }
            Dtype::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => {
                return Err(LoadError::Dtype {
                    part: self.part.clone(),
                    name: name.into(),
                    found: format!("{other:?}"),
                });
            }
        })
    }

    /// The integers of a tensor of 64-bit integers, as goldens hold them.
    pub fn integers(&self, name: &str) -> Option<Vec<i64>> {
        let entry = self.tensors.get(name).filter(|entry| entry.dtype == Dtype::I64)?;
        Some(bytemuck::pod_collect_to_vec(&(*self.bytes).as_ref()[entry.range.clone()]))
    }

    /// The bytes of a tensor of bytes, as goldens hold pictures.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let entry = self.tensors.get(name).filter(|entry| entry.dtype == Dtype::U8)?;
        Some(&(*self.bytes).as_ref()[entry.range.clone()])
    }

    /// The tensors whose names start with `prefix`, without it.
    pub fn under(&self, prefix: &str) -> Self {
        let entries = self.tensors.iter().filter_map(|(name, entry)| {
            Some((name.strip_prefix(prefix)?.to_owned(), entry.clone()))
        });
        Self {
            part: prefix.trim_end_matches(['/', '.']).to_owned(),
            bytes: self.bytes.clone(),
            tensors: entries.collect(),
        }
    }

    /// The authors' original layout as diffusers names it: fused attention projections are split,
    /// and the codebook is called an embedding.
    ///
    /// # Errors
    ///
    /// A tensor is of a type that no weights have.
    ///
    /// Source: `convert_wuerstchen.py` in diffusers.
    pub fn from_original(&self) -> Result<Self, LoadError> {
        let mut tensors = Vec::new();
        for (name, entry) in &self.tensors {
            if is_counter(name) {
                continue;
            }
            let (values, shape) = (self.values(name)?, entry.shape.clone());
            match name.rsplit_once(".attn.in_proj_") {
                Some((block, kind)) => {
                    let third = values.len() / 3;
                    let shape: Vec<_> =
                        std::iter::once(shape[0] / 3).chain(shape[1..].iter().copied()).collect();
                    for (i, projection) in ["to_q", "to_k", "to_v"].into_iter().enumerate() {
                        let values = values[i * third..][..third].to_vec();
                        tensors.push((
                            format!("{block}.{projection}.{kind}"),
                            shape.clone(),
                            values,
                        ));
                    }
                }
                None => {
                    let name = name.replace(".attn.out_proj.", ".to_out.0.");
                    let name = name.replace("vquantizer.codebook.", "vquantizer.embedding.");
                    tensors.push((name, shape, values));
                }
            }
        }
        Ok(Self::from_tensors(&self.part, tensors))
    }

    /// Writes named checkpoints as one safetensors file, each under its prefix.
    ///
    /// # Errors
    ///
    /// A tensor is of a type that no weights have.
    pub fn write<'a>(
        parts: impl IntoIterator<Item = (String, &'a Self)>,
        dtype: WeightDtype,
        metadata: Option<std::collections::HashMap<String, String>>,
    ) -> Result<Vec<u8>, LoadError> {
        let (dtype, stored) = match dtype {
            WeightDtype::F32 => (Dtype::F32, StoredDtype::F32),
            WeightDtype::F16 => (Dtype::F16, StoredDtype::F16),
        };
        let mut all = Vec::new();
        for (prefix, part) in parts {
            for (name, entry) in &part.tensors {
                let stored = Stored::new(&entry.shape, &part.values(name)?, stored);
                all.push((format!("{prefix}{name}"), stored));
            }
        }
        let views = all.iter().map(|(name, stored)| {
            let view = TensorView::new(dtype, stored.shape.clone(), &stored.bytes);
            (name, view.expect("as many bytes as the shape says"))
        });
        let bytes = safetensors::serialize(views, metadata);
        Ok(bytes.expect("shapes and sizes agree"))
    }
}

/// Training counters of batch norms and position numbers, which no model needs.
pub(crate) fn is_counter(name: &str) -> bool {
    name.ends_with("num_batches_tracked") || name.ends_with("position_ids")
}

/// How a model's field names become checkpoint names: pairs of path segments, applied in order.
#[derive(Clone, Copy, Debug)]
pub struct KeyTable(&'static [(&'static str, &'static str)]);

impl KeyTable {
    /// The field names themselves, as training states use them.
    pub const FIELDS: Self = Self(&[]);

    /// Names of the prior and the decoder.
    pub const DIFFUSION: Self = Self(&[
        ("cond_in", "cond_mapper.0"),
        ("cond_out", "cond_mapper.2"),
        ("out", "out.1"),
        ("clf", "clf.1"),
        ("embedding", "embedding.1"),
        ("Res", ""),
        ("Timestep", ""),
        ("Attention", ""),
        ("Downscale", "1"),
        ("Upscale", "1"),
        ("expand", "0"),
        ("response_norm", "2"),
        ("contract", "4"),
        ("scale_shift", "mapper"),
        ("to_out", "to_out.0"),
        ("kv_mapper", "kv_mapper.1"),
    ]);

    /// Names of the VQGAN.
    pub const VQGAN: Self = Self(&[
        ("in_block", "in_block.1"),
        ("out_block", "out_block.0"),
        ("Mixing", ""),
        ("Downscale", ""),
        ("Upscale", ""),
        ("ToLatents.map", "0"),
        ("ToLatents.norm", "1"),
        ("FromLatents.map", "0"),
        ("depthwise", "depthwise.1"),
        ("expand", "0"),
        ("contract", "2"),
        ("vquantizer.embedding", "vquantizer.embedding.weight"),
    ]);

    /// Names of the semantic compressor.
    pub const COMPRESSOR: Self = Self(&[
        ("projection", "mapper"),
        ("Conv", ""),
        ("Blocks", ""),
        ("Squeeze", ""),
        ("conv", "0.weight"),
        ("norm", "1"),
    ]);

    /// Names of the text encoder.
    pub const TEXT: Self = Self(&[
        ("token_embedding", "text_model.embeddings.token_embedding.weight"),
        ("position_embedding", "text_model.embeddings.position_embedding.weight"),
        ("layers", "text_model.encoder.layers"),
        ("final_layer_norm", "text_model.final_layer_norm"),
        ("gamma", "weight"),
        ("beta", "bias"),
    ]);

    fn name(self, path: &[String]) -> String {
        let mut name = format!(".{}.", path.join("."));
        for (field, key) in self.0 {
            let key = if key.is_empty() { ".".to_owned() } else { format!(".{key}.") };
            name = name.replace(&format!(".{field}."), &key);
        }
        name.trim_matches('.').to_owned()
    }
}

/// Loads a checkpoint into a module, strictly.
///
/// # Errors
///
/// Every missing, unexpected and misshapen tensor, all at once, or a tensor of a type that no
/// weights have.
pub fn load<M: Module>(module: M, checkpoint: &Checkpoint, keys: KeyTable) -> Result<M, LoadError> {
    let mut loaded = BTreeSet::new();
    let (module, mut differences) = fill(module, checkpoint, keys, &mut loaded)?;
    differences.missing = missing(&module, keys, &loaded);
    differences.into_result(checkpoint.part(), module)
}

/// Loads the tensors that a checkpoint has, a part of the module's; `loaded` collects their names.
///
/// # Errors
///
/// Every unexpected and misshapen tensor, all at once, or a tensor of a type that no weights have.
pub fn load_some<M: Module>(
    module: M,
    checkpoint: &Checkpoint,
    keys: KeyTable,
    loaded: &mut BTreeSet<String>,
) -> Result<M, LoadError> {
    let (module, differences) = fill(module, checkpoint, keys, loaded)?;
    differences.into_result(checkpoint.part(), module)
}

/// Fails where parameters of a module are not among those `loaded`.
///
/// # Errors
///
/// Every missing tensor; `part` names the weights.
pub fn all_loaded<M: Module>(
    module: &M,
    part: &str,
    keys: KeyTable,
    loaded: &BTreeSet<String>,
) -> Result<(), LoadError> {
    let missing = missing(module, keys, loaded);
    Differences { missing, ..Default::default() }.into_result(part, ())
}

fn fill<M: Module>(
    module: M,
    checkpoint: &Checkpoint,
    keys: KeyTable,
    loaded: &mut BTreeSet<String>,
) -> Result<(M, Differences), LoadError> {
    let differences = Differences::default();
    let path = Path::default();
    let mut loader = Loader { path, keys, checkpoint, loaded, differences, error: None };
    let module = module.map(&mut loader);
    if let Some(error) = loader.error {
        return Err(error);
    }
    let (mut differences, loaded) = (loader.differences, loader.loaded);
    let unused = checkpoint.names().filter(|name| !loaded.contains(*name) && !is_counter(name));
    differences.unexpected = unused.map(str::to_owned).collect();
    Ok((module, differences))
}

/// The names of a module's parameters that are not in `loaded`.
fn missing<M: Module>(module: &M, keys: KeyTable, loaded: &BTreeSet<String>) -> Vec<String> {
    let mut names = Names { path: Path::default(), keys, names: Vec::new() };
    module.visit(&mut names);
    names.names.retain(|name| !loaded.contains(name));
    names.names
}

/// The weights of a module under their checkpoint names and in PyTorch's layout.
pub fn tensors<M: Module>(module: &M, keys: KeyTable) -> Vec<NamedTensor> {
    Reader::read(module, keys, &Values)
}

/// The gradients of a module's parameters, named and laid out as [`tensors`] does; parameters that
/// the loss does not reach are left out.
#[cfg(feature = "train")]
pub fn gradients<M: Module>(
    module: &M,
    gradients: &burn::tensor::Gradients,
    keys: KeyTable,
) -> Vec<NamedTensor> {
    Reader::read(module, keys, gradients)
}

/// Where a traversal of a module is.
#[derive(Default)]
struct Path {
    names: Vec<String>,
    containers: Vec<String>,
}

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        self.names.push(name.to_owned());
        self.containers.push(container.to_owned());
    }

    fn exit(&mut self) {
        self.names.pop();
        self.containers.pop();
    }

    /// The checkpoint name of the parameter here, and a tensor of its shape in PyTorch's layout.
    fn describe<const D: usize>(&self, keys: KeyTable, tensor: Tensor<D>) -> NamedTensor {
        let data = tensor.into_data().convert::<f32>();
        let shape = data.shape().to_vec();
        let values = data.try_to_vec::<f32>().expect("converted to f32");
        let name = keys.name(&self.names);
        match self.is_linear_weight() {
            true => (name, vec![shape[1], shape[0]], transpose(&values, shape[1])),
            false => (name, shape, values),
        }
    }

    /// Whether the parameter here is the matrix of a linear layer, which burn keeps transposed.
    fn is_linear_weight(&self) -> bool {
        self.containers.last().is_some_and(|container| container == "Struct:Linear")
            && self.names.last().is_some_and(|name| name == "weight")
    }
}

struct Loader<'a> {
    path: Path,
    keys: KeyTable,
    checkpoint: &'a Checkpoint,
    loaded: &'a mut BTreeSet<String>,
    differences: Differences,
    error: Option<LoadError>,
}

impl Loader<'_> {
    /// The values of the parameter `name` of shape `expected`, transposed if `linear`.
    fn read(&mut self, name: &str, expected: &[usize], linear: bool) -> Option<Vec<f32>> {
        let found = self.checkpoint.shape(name)?;
        self.loaded.insert(name.to_owned());
        let torch = match linear {
            true => vec![expected[1], expected[0]],
            false => expected.to_vec(),
        };
        // A 1x1 convolution is a linear layer with two more axes of length 1.
        let squeezed = match found {
            [rows, columns, 1, 1] if linear => Cow::Owned(vec![*rows, *columns]),
            _ => Cow::Borrowed(found),
        };
        if *squeezed != torch {
            self.differences.misshapen.push((name.to_owned(), torch, found.to_vec()));
            return None;
        }
        match self.checkpoint.values(name) {
            Ok(values) if linear => Some(transpose(&values, torch[1])),
            Ok(values) => Some(values),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }
}

/// Transposes rows of `columns` values.
fn transpose(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let (name, linear) = (self.keys.name(&self.path.names), self.path.is_linear_weight());
        let Some(values) = self.read(&name, shape.as_slice(), linear) else { return param };
        let tensor = Tensor::from_data(TensorData::new(values, shape), &param.lazy_device());
        let id = param.id;
        param.transform_for_load(tensor, id)
    }
}

/// What a [`Reader`] collects of every parameter.
trait Source {
    /// `None` to leave the parameter out.
    fn tensor<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>>;
}

/// The parameters themselves.
struct Values;

impl Source for Values {
    fn tensor<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
        Some(param.val())
    }
}

#[cfg(feature = "train")]
impl Source for burn::tensor::Gradients {
    fn tensor<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
        param.val().grad(self)
    }
}

struct Reader<'a, S> {
    path: Path,
    keys: KeyTable,
    source: &'a S,
    tensors: Vec<NamedTensor>,
}

impl<'a, S: Source> Reader<'a, S> {
    fn read<M: Module>(module: &M, keys: KeyTable, source: &'a S) -> Vec<NamedTensor> {
        let mut reader = Self { path: Path::default(), keys, source, tensors: Vec::new() };
        module.visit(&mut reader);
        reader.tensors
    }
}

impl<S: Source> ModuleVisitor for Reader<'_, S> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(tensor) = self.source.tensor(param) {
            self.tensors.push(self.path.describe(self.keys, tensor));
        }
    }
}

/// Lists names without touching values, which would initialise parameters that wait for them.
struct Names {
    path: Path,
    keys: KeyTable,
    names: Vec<String>,
}

impl ModuleVisitor for Names {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
        self.names.push(self.keys.name(&self.path.names));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PriorConfig;

    fn prior_config() -> PriorConfig {
        PriorConfig { c_in: 2, c: 4, c_cond: 3, c_r: 4, depth: 1, nhead: 2, dropout: 0.0 }
    }

    #[test]
    fn writes_what_it_reads() {
        let device = Device::flex();
        let written = tensors(&prior_config().init(&device), KeyTable::DIFFUSION);
        let checkpoint = Checkpoint::from_tensors("prior", written.clone());
        let loaded = load(prior_config().init(&device), &checkpoint, KeyTable::DIFFUSION).unwrap();
        assert_eq!(tensors(&loaded, KeyTable::DIFFUSION), written);
        let bytes = Checkpoint::write([("".into(), &checkpoint)], WeightDtype::F32, None).unwrap();
        let parsed = Checkpoint::parse("prior", Arc::new(bytes)).unwrap();
        assert!(load(loaded, &parsed, KeyTable::DIFFUSION).is_ok());
    }

    #[test]
    fn reports_every_difference_at_once() {
        let device = Device::flex();
        let mut tensors = tensors(&prior_config().init(&device), KeyTable::DIFFUSION);
        tensors.retain(|(name, ..)| name != "blocks.2.kv_mapper.1.bias");
        tensors.push(("surprise".into(), vec![1], vec![0.0]));
        let bias = tensors.iter_mut().find(|(name, ..)| name == "projection.bias").unwrap();
        *bias = ("projection.bias".into(), vec![2], vec![0.0; 2]);
        let checkpoint = Checkpoint::from_tensors("prior", tensors);
        let error = load(prior_config().init(&device), &checkpoint, KeyTable::DIFFUSION);
        let message = error.unwrap_err().to_string();
        assert_eq!(
            message,
            "prior: the weights do not fit the config\n  missing: blocks.2.kv_mapper.1.bias\n  \
             unexpected: surprise\n  misshapen: projection.bias: expected [4], found [2]"
        );
    }
}
