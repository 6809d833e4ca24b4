//! The authors' own files: dictionaries of tensors in PyTorch's format.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn_store::pytorch_reader::{DType, PickleValue, PytorchReader, Tensor};

use super::error::{Result, cannot, unfit};
use crate::checkpoint::{Checkpoint, ReadBytes};
use crate::error::LoadError;
use crate::import::recognise;
use crate::lora::is_lora;
use crate::stored::StoredDtype;

/// The dictionaries of weights that the authors' files hold, the better one of two first; the last one is what lies
/// outside of these.
const DICTIONARIES: [&str; 5] =
    ["ema_state_dict", "state_dict_ema", "state_dict", "effnet_state_dict", ""];

/// Most names of tensors in a message.
const NAMES: usize = 3;

/// How deep in a file other programs put the dictionary of a network.
const DEPTH: usize = 3;

/// The dictionaries of a PyTorch file whose tensors are those of a part, one of each kind.
///
/// # Errors
///
/// The file is no PyTorch file, or holds no weights of a part.
pub fn read_pytorch(path: &Path) -> Result<Vec<Checkpoint>> {
    Ok(read_pytorch_shards(&[path.to_owned()])?.weights)
}

/// The result of reading PyTorch's files.
pub(super) struct Read {
    pub(super) weights: Vec<Checkpoint>,
    /// Which dictionaries are read and which hold the same weights once more, where some do; a sentence each.
    pub(super) notes: Vec<String>,
}

/// Reads several files that hold one dictionary together; at least one.
pub(super) fn read_pytorch_shards(paths: &[PathBuf]) -> Result<Read> {
    let name = paths[0].display().to_string();
    let (mut all, mut names) = (BTreeMap::<String, Vec<Checkpoint>>::new(), Vec::new());
    for path in paths {
        let mut of_file = BTreeMap::new();
        for (key, tensor) in tensors(path)? {
            if names.len() < NAMES {
                names.push(key.clone());
            }
            let split = key.split_once('.').filter(|(first, _)| DICTIONARIES.contains(first));
            let (dictionary, key) = split.unwrap_or(("", &key));
            let empty = || Checkpoint::empty(&path.display().to_string());
            let weights = of_file.entry(dictionary.to_owned()).or_insert_with(empty);
            // Integers are counters beside weights, such as the number of steps, and other types are of other networks.
            let is_counter = stored_dtype(tensor.dtype())
                .is_none_or(|dtype| dtype.is_integer() && tensor.shape().is_empty());
            if !is_counter {
                insert(weights, key, tensor)?;
            }
        }
        for (dictionary, weights) in of_file {
            all.entry(dictionary).or_default().push(weights);
        }
    }
    let mut dictionaries = Vec::new();
    for (dictionary, shards) in all {
        find(dictionary, Checkpoint::join(&name, &shards)?, DEPTH, &mut dictionaries);
    }
    let read = choose(&name, dictionaries);
    if read.weights.is_empty() {
        let expected = "a dictionary of the tensors of a part of Würstchen";
        let found = match &names[..] {
            [] => "no tensors".to_owned(),
            _ if is_lora(&read_pytorch_tensors(&paths[0])?) => {
                "a LoRA, which changes a model".to_owned()
            }
            names => format!("other tensors, such as {}", names.join(", ")),
        };
        return Err(unfit(&paths[0], format!("expected {expected}, found {found}")));
    }
    Ok(read)
}

/// Finds the networks in a dictionary: itself, or dictionaries in it.
fn find(name: String, weights: Checkpoint, depth: usize, found: &mut Vec<(String, Checkpoint)>) {
    let weights = weights.unwrapped();
    if !recognise(&weights).is_empty() {
        found.push((name, weights));
    } else if depth > 0 {
        let inner: BTreeSet<&str> =
            weights.names().filter_map(|name| Some(name.split_once('.')?.0)).collect();
        for inner in inner {
            let dot = if name.is_empty() { "" } else { "." };
            let prefix = format!("{inner}.");
            let weights = weights.renamed(|name| name.strip_prefix(&prefix).map(str::to_owned));
            find(format!("{name}{dot}{inner}"), weights, depth - 1, found);
        }
    }
}

/// Chooses the best dictionary of each kind. `name` is the file's.
fn choose(name: &str, mut all: Vec<(String, Checkpoint)>) -> Read {
    // Moving averages make the better pictures.
    all.sort_by_key(|(name, _)| {
        let known = DICTIONARIES.iter().position(|known| known == name);
        (!name.contains("ema"), known.unwrap_or(DICTIONARIES.len()))
    });
    // The parts that a dictionary may belong to are its kind. Each kind lists its better dictionaries first.
    let mut kinds: BTreeMap<_, Vec<(String, Checkpoint)>> = BTreeMap::new();
    for (dictionary, weights) in all {
        kinds.entry(recognise(&weights)).or_default().push((dictionary, weights));
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
/// The file is no PyTorch file.
pub fn read_pytorch_tensors(path: &Path) -> Result<Checkpoint> {
    let mut all = Checkpoint::empty(&path.display().to_string());
    for (key, tensor) in tensors(path)? {
        insert(&mut all, &key, tensor)?;
    }
    Ok(all.without_wrappers(&[WRAPPER]))
}

/// The numbers in the dictionary of a PyTorch file, or in dictionaries in it, which are no tensors but Python's own. Of
/// two with one name the outer one counts.
pub(super) fn read_numbers(path: &Path) -> Result<BTreeMap<String, f64>> {
    let values = PytorchReader::read_pickle_data(path, None).map_err(cannot("read", path))?;
    let mut numbers = BTreeMap::new();
    add_numbers(values, DEPTH, &mut numbers);
    Ok(numbers)
}

fn add_numbers(values: PickleValue, depth: usize, numbers: &mut BTreeMap<String, f64>) {
    let PickleValue::Dict(values) = values else { return };
    let mut inner = BTreeMap::new();
    for (key, value) in values {
        match value {
            PickleValue::Float(number) => _ = numbers.entry(key).or_insert(number),
            PickleValue::Int(number) => _ = numbers.entry(key).or_insert(number as f64),
            value => _ = inner.insert(key, value),
        }
    }
    if depth > 0 {
        inner.into_values().for_each(|values| add_numbers(values, depth - 1, numbers));
    }
}

fn tensors(path: &Path) -> Result<impl IntoIterator<Item = (String, Tensor)> + use<>> {
    // The reader's own error would say twice why a file cannot be opened.
    File::open(path).map_err(cannot("open", path))?;
    let reader = PytorchReader::new(path).map_err(|error| {
        // The end of a zip archive tells what is in it.
        let text = error.to_string();
        if text.contains("Could not find EOCD") || text.contains("invalid Zip archive") {
            return unfit(path, "expected a PyTorch file, found one that is cut off".to_owned());
        }
        cannot("read", path)(error)
    })?;
    Ok(reader.into_tensors())
}

/// Adds a tensor.
fn insert(weights: &mut Checkpoint, key: &str, tensor: Tensor) -> Result<()> {
    let dtype = stored_dtype(tensor.dtype()).ok_or_else(|| LoadError::Dtype {
        part: weights.part().to_owned(),
        name: key.to_owned(),
        found: format!("{:?}", tensor.dtype()),
    })?;
    let (shape, length) = (tensor.shape().to_vec(), tensor.byte_len());
    Ok(weights.insert(key, dtype, &shape, Arc::new(PytorchTensor(tensor)), 0..length)?)
}

fn stored_dtype(dtype: DType) -> Option<StoredDtype> {
    Some(match dtype {
        DType::F64 => StoredDtype::F64,
        DType::F32 => StoredDtype::F32,
        DType::F16 => StoredDtype::F16,
        DType::BF16 => StoredDtype::Bf16,
        DType::I64 => StoredDtype::I64,
        DType::I32 => StoredDtype::I32,
        DType::U8 | DType::Bool => StoredDtype::U8,
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
        let of = |(name, value): (&str, f32)| {
            let tensor = NamedTensor::new(Part::PRIOR.0.mark, &[1], vec![value]);
            (name.to_owned(), Checkpoint::from_tensors("file", [tensor]))
        };
        let read = choose("x.pt", [("state_dict", 1.0), ("ema_state_dict", 2.0)].map(of).into());
        let values: Vec<_> = read
            .weights
            .iter()
            .map(|weights| weights.values(Part::PRIOR.0.mark).unwrap())
            .collect();
        assert_eq!(values, [[2.0]]);
        assert_eq!(read.notes, ["x.pt: reads ema_state_dict; left out: state_dict"]);
        assert!(choose("x.pt", [("", 1.0)].map(of).into()).notes.is_empty());
    }

    #[test]
    fn networks_are_found_where_other_programs_put_them() {
        let mark = Part::PRIOR.0.mark;
        let names = ["net.params.module", "net.params_ema"].map(|name| format!("{name}.{mark}"));
        let tensors = names.map(|name| NamedTensor::new(name, &[1], vec![3.0]));
        let mut found = Vec::new();
        find(String::new(), Checkpoint::from_tensors("file", tensors), DEPTH, &mut found);
        let read = choose("x.pt", found);
        assert_eq!(read.notes, ["x.pt: reads net.params_ema; left out: net.params"]);
        assert_eq!(read.weights[0].names().collect::<Vec<_>>(), [mark]);
    }
}
