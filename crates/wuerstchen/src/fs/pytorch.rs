//! The authors' own files: dictionaries of tensors in PyTorch's format.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn_store::pytorch_reader::{DType, PickleValue, PytorchReader, Tensor};

use super::error::{Result, cannot, unfit};
use crate::checkpoint::{Checkpoint, ReadBytes};
use crate::import::recognise;
use crate::stored::StoredDtype;

/// The dictionaries of weights that the authors' files hold, the better one of two first.
const DICTIONARIES: [&str; 5] =
    ["ema_state_dict", "state_dict_ema", "state_dict", "effnet_state_dict", ""];

/// The dictionaries of a PyTorch file whose tensors are those of a part, one of each kind.
///
/// # Errors
///
/// It is no PyTorch file, or holds no weights of a part.
pub fn read_pytorch(path: &Path) -> Result<Vec<Checkpoint>> {
    Ok(read_pytorch_shards(&[path.to_owned()])?.weights)
}

/// What is read of PyTorch's files.
pub(super) struct Read {
    pub(super) weights: Vec<Checkpoint>,
    /// Which dictionaries are read and which hold the same weights once more, where some do; a sentence each.
    pub(super) notes: Vec<String>,
}

/// The same of several files that hold one dictionary together; at least one.
pub(super) fn read_pytorch_shards(paths: &[PathBuf]) -> Result<Read> {
    let name = paths[0].display().to_string();
    let mut all: BTreeMap<&str, Checkpoint> = BTreeMap::new();
    for (key, tensor) in tensors(paths)? {
        let split = key.split_once('.').filter(|(first, _)| DICTIONARIES.contains(first));
        let (dictionary, key) = split.unwrap_or(("", &key));
        let Some(dictionary) = DICTIONARIES.iter().find(|known| **known == dictionary) else {
            continue;
        };
        insert(all.entry(dictionary).or_insert_with(|| Checkpoint::empty(&name)), key, tensor)?;
    }
    let read = choose(&name, all);
    if read.weights.is_empty() {
        let expected = "a dictionary of the tensors of a part of Würstchen";
        return Err(unfit(&paths[0], format!("expected {expected}, found none")));
    }
    Ok(read)
}

/// Of the dictionaries of a file the best one of each kind. `name` is the file's.
fn choose(name: &str, mut all: BTreeMap<&str, Checkpoint>) -> Read {
    // Which parts a dictionary may be of tells its kind. The dictionaries of one kind, the better one first.
    let mut kinds: BTreeMap<_, Vec<(&str, Checkpoint)>> = BTreeMap::new();
    for dictionary in DICTIONARIES {
        let Some(weights) = all.remove(dictionary) else { continue };
        let parts = recognise(&weights);
        if !parts.is_empty() {
            kinds.entry(parts).or_default().push((dictionary, weights));
        }
    }
    let (mut weights, mut notes) = (Vec::new(), Vec::new());
    for same in kinds.into_values() {
        let names: Vec<_> = same.iter().map(|(dictionary, _)| called(dictionary)).collect();
        if let [taken, left_out @ ..] = &names[..]
            && !left_out.is_empty()
        {
            notes.push(format!("{name}: reads {taken}; left out: {}", left_out.join(", ")));
        }
        weights.extend(same.into_iter().next().map(|(_, weights)| weights));
    }
    Read { weights, notes }
}

/// What a dictionary is called in messages.
fn called(dictionary: &str) -> &str {
    match dictionary {
        "" => "the tensors outside of dictionaries",
        name => name,
    }
}

/// The dictionary in which some programs save the whole of another one, and a dot.
const WRAPPER: &str = "state_dict.";

/// All tensors of a PyTorch file, of the dictionary `state_dict` if there is nothing beside it.
///
/// # Errors
///
/// It is no PyTorch file.
pub fn read_pytorch_tensors(path: &Path) -> Result<Checkpoint> {
    let mut all = Checkpoint::empty(&path.display().to_string());
    let tensors = tensors(&[path.to_owned()])?;
    let is_wrapped = tensors.iter().all(|(key, _)| key.starts_with(WRAPPER));
    for (key, tensor) in tensors {
        let key = key.strip_prefix(WRAPPER).filter(|_| is_wrapped).unwrap_or(&key);
        insert(&mut all, key, tensor)?;
    }
    Ok(all)
}

/// The numbers in the dictionary of a PyTorch file, which are no tensors but Python's own.
pub(super) fn read_numbers(path: &Path) -> Result<Vec<(String, f64)>> {
    let values = PytorchReader::read_pickle_data(path, None).map_err(cannot("read", path))?;
    let PickleValue::Dict(values) = values else { return Ok(Vec::new()) };
    let numbers = values.into_iter().filter_map(|(key, value)| match value {
        PickleValue::Float(number) => Some((key, number)),
        PickleValue::Int(number) => Some((key, number as f64)),
        _ => None,
    });
    Ok(numbers.collect())
}

fn tensors(paths: &[PathBuf]) -> Result<Vec<(String, Tensor)>> {
    let mut all = Vec::new();
    for path in paths {
        let reader = PytorchReader::new(path).map_err(cannot("read", path))?;
        all.extend(reader.into_tensors());
    }
    Ok(all)
}

/// Adds a tensor. Counters of batch norms, whose types weights never have, are left out.
fn insert(weights: &mut Checkpoint, key: &str, tensor: Tensor) -> Result<()> {
    let Some(dtype) = stored_dtype(tensor.dtype()) else { return Ok(()) };
    let (shape, length) = (tensor.shape().to_vec(), tensor.byte_len());
    Ok(weights.insert(key, dtype, &shape, Arc::new(PytorchTensor(tensor)), 0..length)?)
}

fn stored_dtype(dtype: DType) -> Option<StoredDtype> {
    Some(match dtype {
        DType::F64 => StoredDtype::F64,
        DType::F32 => StoredDtype::F32,
        DType::F16 => StoredDtype::F16,
        DType::BF16 => StoredDtype::Bf16,
        _ => return None,
    })
}

/// A tensor of a PyTorch file, which is read whenever it is wanted.
struct PytorchTensor(Tensor);

impl ReadBytes for PytorchTensor {
    fn length(&self) -> usize {
        self.0.byte_len()
    }

    fn has_parts(&self) -> bool {
        false
    }

    fn read(&self, range: Range<usize>) -> std::io::Result<Cow<'_, [u8]>> {
        let mut bytes = self.0.read()?;
        bytes.truncate(range.end);
        Ok(Cow::Owned(bytes.split_off(range.start)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::NamedTensor;
    use crate::part::Part;

    /// The weights of a training lie beside their moving averages, which make the better pictures.
    #[test]
    fn averages_are_read_with_a_word() {
        let of = |value: f32| {
            let tensor = NamedTensor::new(Part::PRIOR.0.mark, &[1], vec![value]);
            Checkpoint::from_tensors("file", [tensor])
        };
        let read =
            choose("x.pt", BTreeMap::from([("state_dict", of(1.0)), ("ema_state_dict", of(2.0))]));
        let values: Vec<_> = read
            .weights
            .iter()
            .map(|weights| weights.values(Part::PRIOR.0.mark).unwrap())
            .collect();
        assert_eq!(values, [[2.0]]);
        assert_eq!(read.notes, ["x.pt: reads ema_state_dict; left out: state_dict"]);
        assert!(choose("x.pt", BTreeMap::from([("", of(1.0))])).notes.is_empty());
    }
}
