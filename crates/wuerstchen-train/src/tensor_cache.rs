//! Tensors that are computed once, kept by a hash of what they are computed from.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use wuerstchen::checkpoint::{NamedTensor, read_header};
use wuerstchen::{Checkpoint, LoadError, ModelFiles, Part, WeightDtype};

use crate::corpus::CorpusError;
use crate::store::{Store, with_causes};

/// The name of the one tensor of a file.
const TENSOR: &str = "values";

/// Key in a file's header of the checksum of the tensor's bytes.
const CHECKSUM: &str = "crc32c";

fn checksum(bytes: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(bytes))
}

/// Tensors in a store.
#[derive(Clone)]
pub(crate) struct TensorCache(pub(crate) Arc<dyn Store>);

impl TensorCache {
    /// The tensor of a name, `None` if there is none; fails if its file is not whole.
    pub(crate) fn get(&self, name: &str) -> Result<Option<NamedTensor>, CorpusError> {
        let Some(bytes) = self.0.read(name).map_err(|error| cannot(with_causes(&*error)))? else {
            return Ok(None);
        };
        // A machine that loses its power can leave an empty file. It counts as missing.
        if bytes.is_empty() {
            return Ok(None);
        }
        let path = self.0.describe(name);
        let read = || {
            let (header, start) = read_header(&path, &bytes)?;
            let expected = header.metadata().as_ref().and_then(|of| of.get(CHECKSUM)).cloned();
            let found = checksum(&bytes[start..]);
            let file = Checkpoint::parse(&path, Arc::new(bytes))?;
            let shape = file.shape(TENSOR).unwrap_or_default().to_vec();
            let tensor = NamedTensor { name: TENSOR.into(), shape, values: file.values(TENSOR)? };
            // Files of older versions have no checksum.
            Ok::<_, LoadError>((tensor, expected.is_none_or(|expected| expected == found)))
        };
        match read() {
            Ok((tensor, true)) => Ok(Some(tensor)),
            Ok((_, false)) => Err(self.unfit(name, "its values are not those that were written")),
            Err(error) => Err(unfit(&with_causes(&error))),
        }
    }

    /// The shape of the tensor of a name, `None` if there is none; fails if its file is not whole. Reads no values.
    pub(crate) fn shape(&self, name: &str) -> Result<Option<Vec<usize>>, CorpusError> {
        let source = self.0.open(name).map_err(|error| cannot(with_causes(&*error)))?;
        let Some(source) = source.filter(|source| source.length() > 0) else { return Ok(None) };
        let file = Checkpoint::parse(&self.0.describe(name), source)
            .map_err(|error| unfit(&with_causes(&error)))?;
        Ok(Some(file.shape(TENSOR).unwrap_or_default().to_vec()))
    }

    /// What is wrong with a file.
    pub(crate) fn unfit(&self, name: &str, reason: &str) -> CorpusError {
        unfit(&format!("{}: {reason}", self.0.describe(name)))
    }

    /// The values of a tensor that was put there before and has this shape.
    pub(crate) fn expect(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CorpusError> {
        let gone = || cannot(format!("{} is gone since the run began", self.0.describe(name)));
        let found = self.get(name)?.ok_or_else(gone)?;
        self.check_shape(name, &found.shape, shape)?;
        if found.values.iter().all(|value| value.is_finite()) {
            Ok(found.values)
        } else {
            Err(self.unfit(name, "expected finite numbers, found others"))
        }
    }

    /// Fails unless the shape of a file's tensor is the one that it should have.
    pub(crate) fn check_shape(
        &self,
        name: &str,
        found: &[usize],
        expected: &[usize],
    ) -> Result<(), CorpusError> {
        if found == expected {
            Ok(())
        } else {
            let reason = format!("expected a tensor of {expected:?}, found one of {found:?}");
            Err(self.unfit(name, &reason))
        }
    }

    /// Keeps a tensor.
    pub(crate) fn put(
        &self,
        name: &str,
        shape: &[usize],
        values: Vec<f32>,
    ) -> Result<(), CorpusError> {
        let checksum = checksum(bytemuck::cast_slice(&values));
        let metadata = Some(HashMap::from([(CHECKSUM.to_owned(), checksum)]));
        let file = Checkpoint::from_tensors(name, [NamedTensor::new(TENSOR, shape, values)]);
        let bytes = Checkpoint::write([(String::new(), &file)], WeightDtype::F32, metadata)
            .map_err(|error| cannot(with_causes(&error)))?;
        self.0.write(name, &bytes).map_err(|error| cannot(with_causes(&*error)))
    }
}

/// `reason` names the file.
fn unfit(reason: &str) -> CorpusError {
    cannot(format!("{reason}; remove the file, and it is computed again"))
}

fn cannot(reason: String) -> CorpusError {
    CorpusError::Cache { reason }
}

/// The name of the file of a tensor of this `kind` that is computed from `sources`. Files are spread over 256 folders.
pub(crate) fn name_of(kind: &str, sources: &[&[u8]]) -> String {
    let digest = digest(sources);
    format!("{kind}/{}/{digest}.safetensors", &digest[..2])
}

/// A hash (SHA-256) of several pieces, in hexadecimal digits. It also depends on where a piece ends.
pub fn digest<P: AsRef<[u8]>>(pieces: impl IntoIterator<Item = P>) -> String {
    let mut hash = Sha256::new();
    for piece in pieces {
        let piece = piece.as_ref();
        hash.update((piece.len() as u64).to_le_bytes());
        hash.update(piece);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A hash of a part of a model: its config and all of its weights.
pub(crate) fn digest_of(model: &ModelFiles, part: Part) -> Result<String, LoadError> {
    let config = model.texts.get(&part.config_path()).map_or("", String::as_str);
    digest_of_weights(config, model.weights(part)?)
}

/// A hash of a config and of weights.
pub(crate) fn digest_of_weights(config: &str, weights: &Checkpoint) -> Result<String, LoadError> {
    digest_of_tensors(config, weights, |_| true)
}

/// A hash of a config and of those weights of a part that other stages learn from: all but Stage A's decoder.
pub(crate) fn digest_of_taken(
    config: &str,
    part: Part,
    weights: &Checkpoint,
) -> Result<String, LoadError> {
    let is_of_decoder =
        |name: &str| name.starts_with("up_blocks.") || name.starts_with("out_block.");
    digest_of_tensors(config, weights, |name| part != Part::VQGAN || !is_of_decoder(name))
}

fn digest_of_tensors(
    config: &str,
    weights: &Checkpoint,
    counts: impl Fn(&str) -> bool,
) -> Result<String, LoadError> {
    let mut hash = Sha256::new();
    hash.update(config);
    for (name, dtype, shape, _) in weights.describe().filter(|(name, ..)| counts(name)) {
        hash.update(format!("\n{name} {dtype:?} {shape:?}\n"));
        hash.update(&weights.stored(name)?.bytes);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Memory;

    #[test]
    fn an_empty_file_counts_as_missing_and_another_does_not() {
        let store = Arc::new(Memory::default());
        let cache = TensorCache(store.clone());
        store.write("empty", &[]).unwrap();
        assert!(cache.get("empty").unwrap().is_none() && cache.shape("empty").unwrap().is_none());
        cache.put("empty", &[2], vec![1.0, 2.0]).unwrap();
        assert_eq!(cache.shape("empty").unwrap().unwrap(), [2]);
        store.write("cut", &[0; 9]).unwrap();
        let error = cache.get("cut").err().unwrap().to_string();
        assert!(error.contains("remove the file, and it is computed again"), "{error}");
    }
}
