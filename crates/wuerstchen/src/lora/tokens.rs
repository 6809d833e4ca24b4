//! What the LoRAs of Stable Cascade's authors add to the embeddings of tokens.

use super::scaling::Scaling;
use super::{LoraError, Rows};
use crate::checkpoint::Checkpoint;
use crate::error::Differences;
use crate::model_files::ModelFiles;
use crate::part::Part;

/// What is added, `[n, width]`.
const VALUES: &str = "embeddings.embeddings";

/// The numbers of the tokens, `[n]`.
const NUMBERS: &str = "embeddings.indices";

/// The table in the text encoder.
pub(super) const TABLE: &str = "text_model.embeddings.token_embedding.weight";

/// Whether a tensor of a LoRA is about tokens.
pub(super) fn is_of_tokens(key: &str) -> bool {
    [VALUES, NUMBERS].contains(&key)
}

/// How many tokens a file is about.
pub(super) fn count(tensors: &Checkpoint) -> usize {
    tensors.integers(NUMBERS).map_or(0, |numbers| numbers.len())
}

/// What a file adds to tokens of the text encoder `part`, times the weight of the LoRA, and a sentence on what is left
/// out. Tokens that the model does not have are left out, because their words stand nowhere in the file.
///
/// Source: `setup_models` in `train/train_c_lora.py` of Stability-AI/StableCascade.
///
/// # Errors
///
/// A tensor cannot be read; what does not fit the model goes to `differences`.
pub(super) fn read(
    tensors: &Checkpoint,
    model: &ModelFiles,
    part: Part,
    scaling: &Scaling<'_>,
    differences: &mut Differences,
) -> Result<(Option<Rows>, Option<String>), LoraError> {
    let (Some(shape), Some(numbers)) = (tensors.shape(VALUES), tensors.integers(NUMBERS)) else {
        let missing = if tensors.has(VALUES) { NUMBERS } else { VALUES };
        differences.missing.push(missing.to_owned());
        return Ok((None, None));
    };
    let table = model.weights.get(&part).and_then(|weights| weights.shape(TABLE));
    let &[tokens, width] = table.unwrap_or_default() else {
        differences.unexpected.push(VALUES.to_owned());
        return Ok((None, None));
    };
    let expected = vec![numbers.len(), width];
    if shape != expected {
        differences.misshapen.push((VALUES.to_owned(), expected, shape.to_vec()));
        return Ok((None, None));
    }
    let values = tensors.values(VALUES)?;
    scaling.all_finite(VALUES, &values)?;
    let weight = scaling.weight as f32;
    let largest = values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    scaling.check_strength("the embeddings of tokens", weight.abs() * largest)?;
    let mut rows = Rows { scale: weight, numbers: Vec::new(), values: Vec::new() };
    for (number, row) in numbers.iter().zip(values.chunks(width)) {
        if let Some(number) = usize::try_from(*number).ok().filter(|number| *number < tokens) {
            rows.numbers.push(number);
            rows.values.extend(row);
        }
    }
    let unknown = numbers.len() - rows.numbers.len();
    let left_out = (unknown > 0).then(|| {
        format!("{unknown} of its tokens are left out: the model lacks them, and the file lacks their words")
    });
    Ok(((!rows.numbers.is_empty()).then_some(rows), left_out))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::*;
    use crate::checkpoint::NamedTensor;
    use crate::stored::StoredDtype;

    const TEXT: Part = Part::CASCADE_TEXT;

    /// Three tokens of two numbers, all ones.
    fn model() -> ModelFiles {
        let table = NamedTensor::new(TABLE, &[3, 2], vec![1.0; 6]);
        let mut files = ModelFiles::default();
        files.weights.insert(TEXT, Checkpoint::from_tensors("text", [table]));
        files
    }

    /// Of a LoRA without configs.
    fn scaling(weight: f64) -> Scaling<'static> {
        Scaling::new("lora", weight, [Part::PRIOR, TEXT], &HashMap::new(), None).unwrap()
    }

    fn file(values: &[f32], shape: [usize; 2], numbers: &[i64]) -> Checkpoint {
        let mut file =
            Checkpoint::from_tensors("lora", [NamedTensor::new(VALUES, &shape, values.to_vec())]);
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let range = 0..bytes.len();
        file.insert(NUMBERS, StoredDtype::I64, &[numbers.len()], Arc::new(bytes), range).unwrap();
        file
    }

    /// Half of `[2, 4]` is added to row 1; the fourth token, which the table lacks, is reported.
    #[test]
    fn rows_are_added_to_known_tokens() {
        let file = file(&[2.0, 4.0, 8.0, 8.0], [2, 2], &[1, 3]);
        let mut differences = Differences::default();
        let (rows, left_out) =
            read(&file, &model(), TEXT, &scaling(0.5), &mut differences).unwrap();
        let mut table = [1.0; 6];
        rows.unwrap().add_to(&mut table);
        assert_eq!(table, [1.0, 1.0, 2.0, 3.0, 1.0, 1.0]);
        assert!(left_out.unwrap().starts_with("1 of its tokens are left out"));
        assert_eq!(differences, Differences::default());
    }

    #[test]
    fn values_must_be_usable() {
        let refused = |value: f32| {
            let file = file(&[2.0, value], [1, 2], &[1]);
            read(&file, &model(), TEXT, &scaling(0.5), &mut Differences::default())
                .unwrap_err()
                .to_string()
        };
        let expected =
            "lora: every value of embeddings.embeddings must be a finite number, found NaN";
        assert_eq!(refused(f32::NAN), expected);
        let expected =
            "lora: it changes the embeddings of tokens by up to 5e29, expected at most 6.5504e4";
        assert_eq!(refused(1e30), expected);
    }

    #[test]
    fn rows_of_another_width_do_not_fit() {
        let mut differences = Differences::default();
        let (rows, _) =
            read(&file(&[2.0; 3], [1, 3], &[1]), &model(), TEXT, &scaling(1.0), &mut differences)
                .unwrap();
        assert_eq!(rows, None);
        assert_eq!(differences.misshapen, [(VALUES.to_owned(), vec![1, 2], vec![1, 3])]);
    }
}
