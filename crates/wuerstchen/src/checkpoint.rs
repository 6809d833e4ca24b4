//! Named tensors where they lie, in memory or in files; each is read when it is wanted.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorView};
use wuerstchen_kernels::{Packing, Planes};

use crate::error::{Differences, LoadError};
use crate::parallel::try_for_each;
use crate::stored::{Stored, StoredDtype, Unfit, planes};

/// Whether a tensor is a training counter of a batch norm or a list of positions, which no model needs.
pub(crate) fn is_counter(name: &str) -> bool {
    name.ends_with("num_batches_tracked") || name.ends_with("position_ids")
}

/// Bytes that are read by range: a buffer, a file, several pieces of files.
pub trait ReadBytes: Send + Sync {
    /// Number of bytes.
    fn length(&self) -> usize;

    /// The bytes of `range`, which lies within the length.
    ///
    /// # Errors
    ///
    /// Says why the bytes cannot be read.
    fn read(&self, range: Range<usize>) -> std::io::Result<Cow<'_, [u8]>>;

    /// Whether reading a range costs less than reading all bytes.
    fn has_parts(&self) -> bool {
        true
    }
}

impl<T: AsRef<[u8]> + Send + Sync> ReadBytes for T {
    fn length(&self) -> usize {
        self.as_ref().len()
    }

    fn read(&self, range: Range<usize>) -> std::io::Result<Cow<'_, [u8]>> {
        Ok(Cow::Borrowed(&self.as_ref()[range]))
    }
}

/// Pieces of other sources, one after the other.
pub struct Pieces(pub Vec<(Arc<dyn ReadBytes>, Range<usize>)>);

impl ReadBytes for Pieces {
    fn length(&self) -> usize {
        self.0.iter().map(|(_, range)| range.len()).sum()
    }

    fn read(&self, range: Range<usize>) -> std::io::Result<Cow<'_, [u8]>> {
        let mut bytes = Vec::with_capacity(range.len());
        let mut start = 0;
        for (source, piece) in &self.0 {
            // The wanted bytes of this piece, counted from its own start.
            let from = range.start.clamp(start, start + piece.len()) - start;
            let to = range.end.clamp(start, start + piece.len()) - start;
            if from < to {
                bytes.extend_from_slice(&source.read(piece.start + from..piece.start + to)?);
            }
            start += piece.len();
        }
        Ok(Cow::Owned(bytes))
    }
}

/// Storage type of written safetensors files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightDtype {
    /// 32 bits.
    F32,
    /// 16 bits, for values within ±65504.
    F16,
}

/// Bytes of a tensor that are read at a time, unless one row of it is longer.
const PIECE_BYTES: usize = 1 << 20;

/// Named tensors, none of which has been read yet.
#[derive(Clone)]
pub struct Checkpoint {
    part: String,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Clone)]
struct Entry {
    dtype: StoredDtype,
    shape: Vec<usize>,
    source: Arc<dyn ReadBytes>,
    range: Range<usize>,
}

/// How much of a tensor is read at a time: whole rows (all axes but the first).
struct Piece {
    bytes: usize,
    values: usize,
}

impl Entry {
    fn piece(&self) -> Piece {
        let rows = self.shape.first().copied().unwrap_or(1).max(1);
        let row = self.shape.iter().skip(1).product::<usize>();
        // Values, scales and zero-points of quantised rows lie apart.
        let is_quantised = matches!(self.dtype, StoredDtype::I8 | StoredDtype::I4);
        if is_quantised || !self.source.has_parts() {
            return Piece { bytes: self.range.len(), values: rows * row };
        }
        let row_bytes = self.range.len() / rows;
        let rows = (PIECE_BYTES / row_bytes.max(1)).max(1);
        Piece { bytes: rows * row_bytes, values: rows * row }
    }

    /// Where the pieces lie in the source, in their order.
    fn pieces(&self) -> impl Iterator<Item = Range<usize>> {
        let (size, end) = (self.piece().bytes.max(1), self.range.end);
        self.range.clone().step_by(size).map(move |start| start..(start + size).min(end))
    }
}

/// A tensor of a checkpoint in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape, as in PyTorch.
    pub shape: Vec<usize>,
    /// Row-major: the last axis changes fastest.
    pub values: Vec<f32>,
}

impl NamedTensor {
    /// A tensor of these values.
    pub fn new(name: impl Into<String>, shape: &[usize], values: Vec<f32>) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), values }
    }
}

/// Longest header of a safetensors file in bytes, as in the `safetensors` crate.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// What a file of weights holds, or what lies in its place when a download went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// Safetensors.
    Safetensors,
    /// A PyTorch file: a zip archive or a pickle.
    Pytorch,
    /// A pointer of Git LFS, whose file `git lfs pull` fetches.
    LfsPointer,
    /// A web page.
    WebPage,
    /// JSON.
    Json,
    /// A picture.
    Picture,
    /// Another text.
    Text,
}

impl FileType {
    /// Bytes at the start of a file that tell its type.
    pub const START_BYTES: usize = 64;

    /// The type of a file that starts with these bytes; `None` where they tell nothing.
    pub fn of(start: &[u8]) -> Option<Self> {
        // A length of 64 bits, whose upper bytes are zero, and the JSON of that length.
        if matches!(start, [_, _, _, _, _, 0, 0, 0, b'{', ..]) {
            return Some(Self::Safetensors);
        }
        if start.starts_with(b"PK\x03\x04") || matches!(start, [0x80, 2..=5, ..]) {
            return Some(Self::Pytorch);
        }
        let pictures: [&[u8]; 4] = [b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF"];
        if pictures.iter().any(|picture| start.starts_with(picture)) {
            return Some(Self::Picture);
        }
        let text = start.trim_ascii_start().to_ascii_lowercase();
        let begins = |with: &[u8]| text.starts_with(with);
        if begins(b"version https://git-lfs") {
            Some(Self::LfsPointer)
        } else if begins(b"<!doctype html") || begins(b"<html") {
            Some(Self::WebPage)
        } else if begins(b"{") || begins(b"[") {
            Some(Self::Json)
        } else if !text.is_empty()
            && text.iter().all(|c| c.is_ascii_graphic() || c.is_ascii_whitespace())
        {
            Some(Self::Text)
        } else {
            None
        }
    }

    /// The type for messages, with its article.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "a safetensors file",
            Self::Pytorch => "a file of PyTorch",
            Self::LfsPointer => "a pointer of Git LFS, whose file `git lfs pull` fetches",
            Self::WebPage => "a web page",
            Self::Json => "JSON",
            Self::Picture => "a picture",
            Self::Text => "a text",
        }
    }
}

/// Reads and checks the header of a safetensors file: the tensors' places and where they start.
///
/// # Errors
///
/// Says what is wrong with the header.
pub fn read_header(part: &str, source: &dyn ReadBytes) -> Result<(Metadata, usize), LoadError> {
    let fail = |reason: String| LoadError::Format { part: part.to_owned(), reason };
    let length = source.length();
    let read = |range| source.read(range).map_err(|error| fail(error.to_string()));
    if length < 8 {
        return Err(fail(format!("it has {length} bytes, a header has at least 8")));
    }
    let size: [u8; 8] = (*read(0..8)?).try_into().expect("eight bytes");
    let size = usize::try_from(u64::from_le_bytes(size)).unwrap_or(usize::MAX);
    if size > MAX_HEADER_BYTES.min(length - 8) {
        // The first bytes of a text make a size of many digits, which says nothing to anybody.
        if let Some(found) = FileType::of(&read(0..length.min(FileType::START_BYTES))?)
            && found != FileType::Safetensors
        {
            return Err(fail(format!("it is {}", found.name())));
        }
        return Err(fail(format!("its header claims {size} bytes, the file has {length}")));
    }
    let header = read(8..8 + size)?;
    // Checks that the tensors follow each other without gaps, as long as their shapes say.
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| fail(error.to_string()))?;
    let expected = metadata.data_len().checked_add(8 + size);
    if expected != Some(length) {
        let expected = expected.map_or("more".to_owned(), |bytes| bytes.to_string());
        return Err(fail(format!("it has {length} bytes, its header tells of {expected}")));
    }
    Ok((metadata, 8 + size))
}

impl Checkpoint {
    /// Reads the header of a safetensors file; `part` names it in errors.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the header, or names a tensor of a type that is not read.
    pub fn parse(part: &str, source: Arc<dyn ReadBytes>) -> Result<Self, LoadError> {
        let (metadata, start) = read_header(part, &*source)?;
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let dtype = stored_dtype(info.dtype).ok_or_else(|| LoadError::Dtype {
                part: part.to_owned(),
                name: name.clone(),
                found: format!("{:?}", info.dtype),
            })?;
            let (from, to) = info.data_offsets;
            let (shape, range) = (info.shape.clone(), start + from..start + to);
            tensors.insert(name, Entry { dtype, shape, source: source.clone(), range });
        }
        Ok(Self { part: part.into(), tensors })
    }

    /// A checkpoint in memory.
    pub fn from_tensors(part: &str, tensors: impl IntoIterator<Item = NamedTensor>) -> Self {
        let entry = |NamedTensor { name, shape, values }| {
            let bytes: Vec<u8> = bytemuck::cast_slice(&values).to_vec();
            let range = 0..bytes.len();
            (name, Entry { dtype: StoredDtype::F32, shape, source: Arc::new(bytes), range })
        };
        Self { part: part.into(), tensors: tensors.into_iter().map(entry).collect() }
    }

    /// An empty checkpoint, to be filled by [`Self::insert`].
    pub fn empty(part: &str) -> Self {
        Self { part: part.into(), tensors: BTreeMap::new() }
    }

    /// Adds a tensor that lies in `range` of `source`, and replaces one of the same name.
    ///
    /// # Errors
    ///
    /// The range is not as long as the shape says, or not within the source.
    pub fn insert(
        &mut self,
        name: &str,
        dtype: StoredDtype,
        shape: &[usize],
        source: Arc<dyn ReadBytes>,
        range: Range<usize>,
    ) -> Result<(), LoadError> {
        let fits = range.start <= range.end && range.end <= source.length();
        if !fits || dtype.size(shape) != Some(range.len()) {
            let found = range.end.saturating_sub(range.start);
            let reason = format!("tensor {name:?} of {shape:?} {dtype:?} has {found} bytes");
            return Err(LoadError::Format { part: self.part.clone(), reason });
        }
        self.tensors.insert(name.to_owned(), Entry { dtype, shape: shape.to_vec(), source, range });
        Ok(())
    }

    /// Takes over all tensors of another checkpoint, in place of those of the same names.
    pub fn replace(&mut self, by: Self) {
        self.tensors.extend(by.tensors);
    }

    /// Several files as one checkpoint.
    ///
    /// # Errors
    ///
    /// Two of them have a tensor of the same name.
    pub fn join(part: &str, shards: &[Self]) -> Result<Self, LoadError> {
        let mut all = Self::empty(part);
        let mut places: BTreeMap<&str, &str> = BTreeMap::new();
        for shard in shards {
            for (name, entry) in &shard.tensors {
                if let Some(first) = places.insert(name, &shard.part) {
                    let files = [first, &shard.part].map(str::to_owned);
                    return Err(LoadError::Doubled {
                        part: part.into(),
                        name: name.clone(),
                        files,
                    });
                }
                all.tensors.insert(name.clone(), entry.clone());
            }
        }
        Ok(all)
    }

    /// What errors call these weights.
    pub fn part(&self) -> &str {
        &self.part
    }

    /// The same tensors, which errors call `part`.
    pub fn named(self, part: &str) -> Self {
        Self { part: part.to_owned(), ..self }
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Name, type, shape and bytes of every tensor, sorted by name.
    pub fn describe(&self) -> impl Iterator<Item = (&str, StoredDtype, &[usize], usize)> {
        self.tensors
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.dtype, &entry.shape[..], entry.range.len()))
    }

    /// The shape of a tensor; `None` if there is none of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.shape)
    }

    /// The length of a tensor along an axis; `None` if there is no such tensor or axis.
    pub fn side(&self, name: &str, axis: usize) -> Option<usize> {
        self.shape(name)?.get(axis).copied()
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// How many of the numbers 0, 1, 2, … are in the name of a tensor, up to the first that is not.
    pub fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&number| self.has(&name(number))).count()
    }

    /// The type of a tensor; `None` if there is none of this name.
    pub fn dtype(&self, name: &str) -> Option<StoredDtype> {
        Some(self.tensors.get(name)?.dtype)
    }

    /// The values of a tensor as f32.
    ///
    /// # Errors
    ///
    /// The tensor is missing, cannot be read, or is of a type that no weights have.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let entry = self.entry(name)?;
        let mut values = vec![0.0; entry.shape.iter().product()];
        let places = values.chunks_mut(entry.piece().values.max(1));
        try_for_each(entry.pieces().zip(places).collect(), |(piece, place)| {
            self.decode(name, entry, piece).map(|values| place.copy_from_slice(&values))
        })?;
        Ok(values)
    }

    /// The values of a tensor as f32, some rows (all axes but the first) at a time, so that what is read
    /// of a large one is never in memory twice.
    ///
    /// # Errors
    ///
    /// As [`Self::values`]; pieces before the error have been taken.
    pub fn pieces(&self, name: &str, mut take: impl FnMut(&[f32])) -> Result<(), LoadError> {
        let entry = self.entry(name)?;
        for piece in entry.pieces() {
            take(&self.decode(name, entry, piece)?);
        }
        Ok(())
    }

    /// Reads a piece of a tensor as f32.
    fn decode(
        &self,
        name: &str,
        entry: &Entry,
        piece: Range<usize>,
    ) -> Result<Vec<f32>, LoadError> {
        let bytes = self.read(name, entry, piece)?;
        Ok(match entry.dtype {
            StoredDtype::F32 => bytemuck::pod_collect_to_vec(&bytes),
            StoredDtype::F64 => {
                let values: Vec<f64> = bytemuck::pod_collect_to_vec(&bytes);
                values.into_iter().map(|value| value as f32).collect()
            }
            StoredDtype::F16 => bytemuck::pod_collect_to_vec::<_, f16>(&bytes).to_f32_vec(),
            StoredDtype::Bf16 => bytemuck::pod_collect_to_vec::<_, bf16>(&bytes).to_f32_vec(),
            StoredDtype::I8 | StoredDtype::I4 => entry.dtype.decode(&entry.shape, &bytes),
            found @ (StoredDtype::I64 | StoredDtype::I32 | StoredDtype::U8) => {
                return Err(LoadError::Dtype {
                    part: self.part.clone(),
                    name: name.into(),
                    found: format!("{found:?}"),
                });
            }
        })
    }

    /// A tensor as it is stored.
    ///
    /// # Errors
    ///
    /// The tensor is missing or cannot be read.
    pub fn stored(&self, name: &str) -> Result<Stored, LoadError> {
        let entry = self.entry(name)?;
        let bytes = self.read(name, entry, entry.range.clone())?.into_owned();
        Ok(Stored { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
    }

    /// The planes of a matrix that is to stay packed on the device; `None` where its type is never packed, or where it
    /// is so small that packing costs more time than it saves memory.
    ///
    /// # Errors
    ///
    /// The tensor cannot be read.
    pub fn planes(&self, name: &str) -> Result<Option<(Packing, Planes)>, LoadError> {
        let entry = self.entry(name)?;
        let Some(packing) = entry.dtype.packing(&entry.shape) else { return Ok(None) };
        let bytes = self.read(name, entry, entry.range.clone())?;
        Ok(Some((packing, planes(packing, &entry.shape, &bytes))))
    }

    /// Number of learnt values: running statistics of batch norms and counters do not count, because training
    /// measures them.
    pub fn parameters(&self) -> usize {
        let buffers = ["running_mean", "running_var", "num_batches_tracked", "position_ids"];
        let learnt = self
            .tensors
            .iter()
            .filter(|(name, _)| !buffers.iter().any(|buffer| name.ends_with(buffer)));
        learnt.map(|(_, entry)| entry.shape.iter().product::<usize>()).sum()
    }

    /// Bytes that the tensors take on a device: as they are stored where they stay packed, else f32.
    pub fn device_bytes(&self) -> usize {
        let bytes = |entry: &Entry| match entry.dtype.packing(&entry.shape) {
            Some(_) => entry.range.len(),
            None => 4 * entry.shape.iter().product::<usize>(),
        };
        self.tensors.values().map(bytes).sum()
    }

    fn entry(&self, name: &str) -> Result<&Entry, LoadError> {
        self.tensors.get(name).ok_or_else(|| LoadError::Mismatch {
            part: self.part.clone(),
            differences: Differences { missing: vec![name.into()], ..Default::default() },
        })
    }

    fn read<'a>(
        &self,
        name: &str,
        entry: &'a Entry,
        range: Range<usize>,
    ) -> Result<Cow<'a, [u8]>, LoadError> {
        entry.source.read(range).map_err(|error| LoadError::Read {
            part: self.part.clone(),
            name: name.to_owned(),
            reason: error.to_string(),
        })
    }

    /// The integers of a tensor of signed integers of 64 or 32 bits, or of bytes; `None` for any other tensor, or if it
    /// cannot be read.
    pub fn integers(&self, name: &str) -> Option<Vec<i64>> {
        let entry = self.tensors.get(name)?;
        let bytes = self.read(name, entry, entry.range.clone()).ok()?;
        match entry.dtype {
            StoredDtype::I64 => Some(bytemuck::pod_collect_to_vec(&bytes)),
            StoredDtype::I32 => {
                let integers: Vec<i32> = bytemuck::pod_collect_to_vec(&bytes);
                Some(integers.into_iter().map(i64::from).collect())
            }
            StoredDtype::U8 => Some(bytes.iter().copied().map(i64::from).collect()),
            _ => None,
        }
    }

    /// The bytes of a tensor of bytes, as goldens hold pictures; `None` for any other tensor, or if it cannot be
    /// read.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let entry = self.tensors.get(name).filter(|entry| entry.dtype == StoredDtype::U8)?;
        Some(self.read(name, entry, entry.range.clone()).ok()?.into_owned())
    }

    /// The tensors whose names start with `prefix`, without it.
    pub fn under(&self, prefix: &str) -> Self {
        let entries = self.tensors.iter().filter_map(|(name, entry)| {
            Some((name.strip_prefix(prefix)?.to_owned(), entry.clone()))
        });
        let part = prefix.trim_end_matches(['/', '.']).to_owned();
        Self { part, tensors: entries.collect() }
    }

    /// The tensors under the names that `name` gives them; those to which it gives none are left out. Of two with
    /// the same new name, the one whose old name sorts last stays.
    pub fn renamed(&self, name: impl Fn(&str) -> Option<String>) -> Self {
        let entries =
            self.tensors.iter().filter_map(|(old, entry)| Some((name(old)?, entry.clone())));
        Self { part: self.part.clone(), tensors: entries.collect() }
    }

    /// Without what PyTorch writes before the name of every tensor of a network that several GPUs trained
    /// (`DataParallel`) or that was compiled (`torch.compile`).
    pub fn unwrapped(self) -> Self {
        self.without_wrappers(&["module.", "_orig_mod."])
    }

    /// Without those of the given beginnings that the names of all tensors have.
    pub(crate) fn without_wrappers(self, wrappers: &[&str]) -> Self {
        for wrapper in wrappers {
            if !self.tensors.is_empty() && self.names().all(|name| name.starts_with(wrapper)) {
                return self
                    .renamed(|name| name.strip_prefix(wrapper).map(str::to_owned))
                    .without_wrappers(wrappers);
            }
        }
        self
    }

    /// The authors' original layout as diffusers names it: fused attention projections are split,
    /// and the codebook is called an embedding. Names of diffusers stay as they are. A tensor keeps its name where the
    /// weights have a tensor of the new name too: loading them then fails, because no part has both.
    ///
    /// Source: `convert_wuerstchen.py` and `convert_stable_cascade.py` in diffusers.
    pub fn from_original(&self) -> Self {
        // Stable Cascade's Stage B calls its only text mapper as v2's does.
        let is_cascade = self.has("effnet_mapper.0.weight");
        let mut tensors = BTreeMap::new();
        for (name, entry) in &self.tensors {
            let fused = name.rsplit_once(".attn.in_proj_");
            let fused = fused.filter(|_| entry.shape.first().is_some_and(|n| n % 3 == 0));
            let mut renamed = Vec::new();
            if let Some((block, kind)) = fused {
                let third = entry.range.len() / 3;
                let mut shape = entry.shape.clone();
                shape[0] /= 3;
                for (i, projection) in ["to_q", "to_k", "to_v"].into_iter().enumerate() {
                    let start = entry.range.start + i * third;
                    let range = start..start + third;
                    let entry = Entry { shape: shape.clone(), range, ..entry.clone() };
                    renamed.push((format!("{block}.{projection}.{kind}"), entry));
                }
            } else {
                let name = name.replace(".attn.out_proj.", ".to_out.0.");
                let name = name.replace("vquantizer.codebook.", "vquantizer.embedding.");
                let name = match name.strip_prefix("clip_mapper.") {
                    Some(rest) if is_cascade => format!("clip_txt_pooled_mapper.{rest}"),
                    _ => name,
                };
                renamed.push((name, entry.clone()));
            }
            if renamed.iter().any(|(other, _)| other != name && self.has(other)) {
                renamed = vec![(name.clone(), entry.clone())];
            }
            tensors.extend(renamed);
        }
        Self { part: self.part.clone(), tensors }
    }

    /// Reads all values and fails with the names of the tensors that have infinite ones or NaN.
    ///
    /// # Errors
    ///
    /// There are such tensors, or one cannot be read.
    pub fn check_finite(&self) -> Result<(), LoadError> {
        let mut names = Vec::new();
        for name in self.names().filter(|name| !is_counter(name)) {
            let mut is_finite = true;
            self.pieces(name, |values| is_finite &= values.iter().all(|value| value.is_finite()))?;
            if !is_finite {
                names.push(name.to_owned());
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        Err(LoadError::NotFinite { part: self.part.clone(), names })
    }

    /// Writes named checkpoints as one safetensors file, each under its prefix.
    ///
    /// Counters that no model needs are left out.
    ///
    /// # Errors
    ///
    /// A tensor cannot be read, is of a type that no weights have, or has values that f16 does not hold.
    pub fn write<'a>(
        parts: impl IntoIterator<Item = (String, &'a Self)>,
        dtype: WeightDtype,
        metadata: Option<HashMap<String, String>>,
    ) -> Result<Vec<u8>, LoadError> {
        let (dtype, stored) = match dtype {
            WeightDtype::F32 => (Dtype::F32, StoredDtype::F32),
            WeightDtype::F16 => (Dtype::F16, StoredDtype::F16),
        };
        let (mut all, mut unfit) = (Vec::new(), UnfitTensors::default());
        for (prefix, part) in parts {
            for (name, entry) in part.tensors.iter().filter(|(name, _)| !is_counter(name)) {
                let (name, values) = (format!("{prefix}{name}"), part.values(name)?);
                let stored = match stored {
                    // Moments of a training run may be infinite.
                    StoredDtype::F32 => Ok(Stored::new(&entry.shape, &values, stored)),
                    _ => Stored::fitting(&entry.shape, &values, stored),
                };
                if let Some(stored) = unfit.sort(&name, stored) {
                    all.push((name, stored));
                }
            }
        }
        unfit.into_result(stored)?;
        let views = all.iter().map(|(name, stored)| {
            let view = TensorView::new(dtype, stored.shape.clone(), &stored.bytes);
            (name, view.expect("as many bytes as the shape says"))
        });
        let bytes = safetensors::serialize(views, metadata);
        Ok(bytes.expect("shapes and sizes agree"))
    }
}

/// Names of tensors that cannot be stored.
#[derive(Default)]
pub(crate) struct UnfitTensors {
    not_finite: Vec<String>,
    too_large: Vec<String>,
}

impl UnfitTensors {
    /// The tensor as it is stored; where it cannot be stored, keeps its name and returns `None`.
    pub(crate) fn sort(&mut self, name: &str, stored: Result<Stored, Unfit>) -> Option<Stored> {
        let names = match stored {
            Ok(stored) => return Some(stored),
            Err(Unfit::NotFinite) => &mut self.not_finite,
            Err(Unfit::TooLarge) => &mut self.too_large,
        };
        names.push(name.to_owned());
        None
    }

    /// Whether all can be stored so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.not_finite.is_empty() && self.too_large.is_empty()
    }

    /// Fails with the names of a model's tensors that cannot be stored as `dtype`, if there are any.
    pub(crate) fn into_result(self, dtype: StoredDtype) -> Result<(), LoadError> {
        let part = "the model".to_owned();
        if !self.not_finite.is_empty() {
            return Err(LoadError::NotFinite { part, names: self.not_finite });
        }
        if self.too_large.is_empty() {
            Ok(())
        } else {
            Err(LoadError::TooLarge { part, dtype, names: self.too_large })
        }
    }
}

fn stored_dtype(dtype: Dtype) -> Option<StoredDtype> {
    Some(match dtype {
        Dtype::F64 => StoredDtype::F64,
        Dtype::F32 => StoredDtype::F32,
        Dtype::F16 => StoredDtype::F16,
        Dtype::BF16 => StoredDtype::Bf16,
        Dtype::I64 => StoredDtype::I64,
        Dtype::I32 => StoredDtype::I32,
        Dtype::U8 => StoredDtype::U8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_across_their_borders() {
        let a: Arc<dyn ReadBytes> = Arc::new(vec![0u8, 1, 2, 3]);
        let b: Arc<dyn ReadBytes> = Arc::new(vec![4u8, 5, 6]);
        let pieces = Pieces(vec![(a, 1..4), (b, 0..2)]);
        assert_eq!(pieces.length(), 5);
        assert_eq!(*pieces.read(0..5).unwrap(), [1, 2, 3, 4, 5]);
        assert_eq!(*pieces.read(2..4).unwrap(), [3, 4]);
    }

    #[test]
    fn a_layer_of_two_layouts_keeps_both() {
        let names = |names: &[&str]| {
            let tensors = names.iter().map(|name| NamedTensor::new(*name, &[3], vec![0.0; 3]));
            let weights = Checkpoint::from_tensors("a", tensors).from_original();
            weights.names().map(str::to_owned).collect::<Vec<_>>()
        };
        let [fused, q] = ["b.attn.in_proj_bias", "b.to_q.bias"];
        assert_eq!(names(&[fused]), ["b.to_k.bias", q, "b.to_v.bias"]);
        assert_eq!(names(&[fused, q]), [fused, q]);
        let [original, diffusers] = ["b.attn.out_proj.bias", "b.to_out.0.bias"];
        assert_eq!(names(&[original]), [diffusers]);
        assert_eq!(names(&[original, diffusers]), [original, diffusers]);
    }

    #[test]
    fn a_wrapped_network_loses_its_wrappers() {
        let names = |wrapped: [&str; 2]| {
            let tensors = wrapped.map(|name| NamedTensor::new(name, &[1], vec![0.0]));
            let weights = Checkpoint::from_tensors("a", tensors).unwrapped();
            weights.names().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(names(["module._orig_mod.x.weight", "module._orig_mod.y"]), ["x.weight", "y"]);
        assert_eq!(names(["module.x.weight", "y"]), ["module.x.weight", "y"]);
    }

    #[test]
    fn halves_that_would_be_infinite_are_not_written() {
        let written = |value: f32, dtype| {
            let tensor = NamedTensor::new("bias", &[2], vec![0.5, value]);
            let weights = Checkpoint::from_tensors("a", [tensor]);
            Checkpoint::write([("vqgan/".to_owned(), &weights)], dtype, None)
        };
        assert!(written(65504.0, WeightDtype::F16).is_ok());
        assert!(written(-65520.0, WeightDtype::F32).is_ok());
        for (value, expected) in [
            (-65520.0, "the model: too large for F16, which f32 holds: vqgan/bias"),
            (f32::NAN, "the model: not a number or infinite: vqgan/bias"),
        ] {
            let error = written(value, WeightDtype::F16).unwrap_err().to_string();
            assert_eq!(error, expected);
        }
    }

    /// A header of `json`, and `data` bytes behind it.
    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn refusal(bytes: Vec<u8>) -> String {
        Checkpoint::parse("file", Arc::new(bytes)).err().expect("refused").to_string()
    }

    /// What lies in the place of weights when a download went wrong.
    #[test]
    fn other_types_of_files_are_named() {
        for (start, expected) in [
            ("version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of Git LFS"),
            ("\n<!DOCTYPE html><html>", "a web page"),
            (r#"{"error": "not found"}"#, "JSON"),
            ("PK\x03\x04\0\0\x08\x08\0\0\0\0", "a file of PyTorch"),
            ("GIF89a\0\0\0\0\0\0", "a picture"),
        ] {
            let error = refusal(start.into());
            assert!(error.starts_with("file: not a safetensors file: it is "), "{error}");
            assert!(error.contains(expected), "expected {expected:?}: {error}");
        }
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let tensor = |shape: &str, from: usize, to: usize| {
            format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
        };
        let one = |tensor: String| format!(r#"{{"a":{tensor}}}"#);
        assert!(Checkpoint::parse("file", Arc::new(file(&one(tensor("[2]", 0, 8)), 8))).is_ok());
        assert!(refusal(vec![1, 2, 3]).contains("it has 3 bytes"));
        assert!(refusal(u64::MAX.to_le_bytes().to_vec()).contains("its header claims"));
        let short = file(&one(tensor("[2]", 0, 8)), 7);
        assert!(refusal(short).contains("its header tells of"));
        for (shape, from, to) in [
            ("[3]", 0, 8),
            ("[2]", 4, 12),
            ("[2]", 8, 0),
            ("[4294967296,4294967296,4294967296]", 0, 8),
        ] {
            refusal(file(&one(tensor(shape, from, to)), 8));
        }
        let overlapping =
            format!(r#"{{"a":{},"b":{}}}"#, tensor("[2]", 0, 8), tensor("[2]", 4, 12));
        refusal(file(&overlapping, 12));
    }
}
