//! LoRAs of Stable Cascade's authors, whose layers have numbers in place of names.

use std::sync::Arc;

use super::MAX_RANK;
use super::{and_tokens, counted_layers, tokens};
use crate::checkpoint::{Checkpoint, NamedTensor};
use crate::error::LoadError;
use crate::model_files::ModelFiles;

/// What the output projection of a block and its fused projections are called here, in the order in which the
/// authors number them.
const OUTPUT: &str = "to_out.0";
const FUSED: [&str; 3] = ["to_q", "to_k", "to_v"];

/// The largest side of a matrix: no layer of a published model is a tenth as wide.
const LARGEST_SIDE: usize = 1 << 17;

/// The tensors of such a file under the names of the layers of `model`; `None` where they have names. The
/// layers are numbered over the attention blocks of Stage C, two for each block: the output projection, then
/// queries, keys and values as one. Their alpha is 1.
///
/// Source: `train/train_c_lora.py` and `get_lora` in `modules/lora.py` of Stability-AI/StableCascade.
///
/// # Errors
///
/// A tensor cannot be read.
pub(super) fn with_names(
    tensors: &Checkpoint,
    model: &ModelFiles,
) -> Result<Option<Checkpoint>, LoadError> {
    let count = tensors.count(|number| key(number, "down"));
    let blocks = attention_blocks(model);
    // Another number of layers means another model: the tensors keep their numbers, so that they are reported.
    if count == 0 || count != 2 * blocks.len() {
        return Ok(None);
    }
    // A few bytes of a PyTorch file can claim any shape.
    let fits = |key: String| {
        let sides = tensors.shape(&key).unwrap_or_default();
        sides.iter().all(|side| *side <= LARGEST_SIDE)
            && sides.iter().min().is_some_and(|rank| *rank <= MAX_RANK)
    };
    if !(0..count).all(|number| ["down", "up"].iter().all(|half| fits(key(number, half)))) {
        return Ok(None);
    }
    let read = |number: usize, half: &str| {
        let key = key(number, half);
        let values = tensors.values(&key)?;
        Ok::<_, LoadError>((tensors.shape(&key).unwrap_or_default().to_vec(), values))
    };
    let mut named = Vec::new();
    for (i, block) in blocks.iter().enumerate() {
        for (number, projections) in [(2 * i, &[OUTPUT][..]), (2 * i + 1, &FUSED[..])] {
            let (down_shape, down) = read(number, "down")?;
            let (up_shape, up) = read(number, "up")?;
            let &[all_rows, rank] = &up_shape[..] else { return Ok(None) };
            let rows = all_rows / projections.len();
            if rows * rank == 0 || rows * projections.len() != all_rows {
                return Ok(None);
            }
            let parts = up.chunks(rows * rank);
            for (projection, up) in projections.iter().zip(parts) {
                let layer = format!("{block}.{projection}");
                let down =
                    NamedTensor::new(format!("{layer}.lora_A.weight"), &down_shape, down.clone());
                let up =
                    NamedTensor::new(format!("{layer}.lora_B.weight"), &[rows, rank], up.to_vec());
                let alpha = NamedTensor::new(format!("{layer}.alpha"), &[], vec![1.0]);
                named.extend([down, up, alpha]);
            }
        }
    }
    let mut named = Checkpoint::from_tensors(tensors.part(), named);
    // A tensor that is no layer keeps its name, so that it is reported.
    for (name, dtype, shape, bytes) in tensors.describe() {
        if !name.starts_with("weights.") {
            let stored = Arc::new(tensors.stored(name)?.bytes);
            named.insert(name, dtype, shape, stored, 0..bytes)?;
        }
    }
    Ok(Some(named))
}

/// The name of one of the two matrices of a layer, `down` or `up`.
fn key(number: usize, half: &str) -> String {
    format!("weights.{number}.lora_{half}")
}

/// What such a file holds; `None` where its layers have names, or it is no LoRA.
pub(super) fn summary(tensors: &Checkpoint) -> Option<String> {
    let count = tensors.count(|number| key(number, "down"));
    let rank = *tensors.shape(&key(0, "down"))?.iter().min()?;
    let layers = counted_layers(count);
    let tokens = and_tokens(tokens::count(tensors));
    Some(format!(
        "a LoRA as Stable Cascade's authors write it, of {layers} with numbers in place of names, rank {rank}, alpha \
         1{tokens}"
    ))
}

/// The attention blocks of Stage C in the order of the authors' modules: the way down, then the way up.
fn attention_blocks(model: &ModelFiles) -> Vec<String> {
    let Some(weights) = model.weights.get(&model.family().prior()) else { return Vec::new() };
    let block = |name: &str| {
        let block = name.strip_suffix(".to_q.weight")?;
        let mut parts = block.split('.');
        let way = parts.next()?;
        let numbers: Vec<usize> = parts.map_while(|part| part.parse().ok()).collect();
        Some((way.to_owned(), numbers, block.to_owned()))
    };
    let mut blocks: Vec<_> = weights.names().filter_map(block).collect();
    // "down_blocks" sorts before "up_blocks".
    blocks.sort();
    blocks.into_iter().map(|(_, _, block)| block).collect()
}
