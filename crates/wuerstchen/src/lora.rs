//! Low-rank changes of a model's linear layers (LoRA), read from the files that trainers write.
//!
//! A change of a layer is `W + weight·alpha/rank·B·A`; some files also add to embeddings of tokens. Everything is
//! added to the weights as they are read, so that a changed model runs as fast as any other.

mod method;
mod names;
mod read;
mod scaling;
mod tokens;
mod unnamed;
mod write;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

pub use self::read::{LoraFile, is_lora};
pub use self::write::{TrainedLayer, TrainedLora};
use crate::checkpoint::{Checkpoint, ReadBytes};
use crate::error::{Differences, LoadError};
use crate::model_files::ModelFiles;
use crate::part::{Part, Stage};
use crate::stored::StoredDtype;

/// The largest rank of a LoRA: no layer of a published model is wider on both sides.
pub const MAX_RANK: usize = 4096;

/// Why a LoRA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// Its file cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// None of its tensors belongs to a part that LoRAs change.
    #[error(
        "{name}: none of its {count} tensors belongs to Stage C or its text encoder, such as \
         {example:?}: expected a LoRA of the model's version of Würstchen"
    )]
    OtherModel {
        /// Which LoRA.
        name: String,
        /// How many tensors it has.
        count: usize,
        /// The first of them.
        example: String,
    },
    /// Some of its tensors do not belong to the model's linear layers.
    #[error("{name}: the LoRA does not fit the model{differences}")]
    Mismatch {
        /// Which LoRA.
        name: String,
        /// Every tensor that differs.
        differences: Differences,
    },
    /// The file changes a model in another way than by adding products of two matrices.
    #[error("{name}: expected LoRA, found {method} in {tensors} tensors, such as {example:?}")]
    Method {
        /// Which file.
        name: String,
        /// The method that it uses instead of LoRA or besides it.
        method: &'static str,
        /// Number of tensors that show it.
        tensors: usize,
        /// The first of them.
        example: String,
    },
    /// The file holds whole layers and nothing of a LoRA, as the weights of a model do.
    #[error("{name}: expected a LoRA, found whole layers, such as {example:?}: is it a model?")]
    NoLora {
        /// Which file.
        name: String,
        /// The first of its tensors that shows it.
        example: String,
    },
    /// The matrices of a layer have a larger rank than any layer can use.
    #[error("{name}: {key} has a rank of {found}, expected at most {MAX_RANK}")]
    Rank {
        /// Which LoRA.
        name: String,
        /// Which tensor.
        key: String,
        /// Its rank.
        found: usize,
    },
    /// The file has no tensors.
    #[error("{name}: expected a LoRA, found a file without tensors")]
    Empty {
        /// Which file.
        name: String,
    },
    /// A layer's change is larger than a weight can be.
    #[error("{name}: it changes {layer} by up to {found:e}, expected at most {max:e}", max = f32::from(half::f16::MAX))]
    Strength {
        /// Which LoRA.
        name: String,
        /// Which layer.
        layer: String,
        /// The largest change that its numbers can make.
        found: f32,
    },
    /// A number that scales a layer is not finite.
    #[error("{name}: {key} must be a finite number, found {found}")]
    Scale {
        /// Which LoRA.
        name: String,
        /// The tensor or field that holds it.
        key: String,
        /// Its value.
        found: String,
    },
    /// The config beside the file or in its header asks for something that this program does not support.
    #[error("{name}: {place}: {reason}")]
    Config {
        /// Which LoRA.
        name: String,
        /// Which config.
        place: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// Changes of some linear layers of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lora {
    /// Changes of linear layers, by the part and the name of the changed tensor.
    layers: BTreeMap<(Part, String), LowRank>,
    /// Changes of tables of embeddings, likewise.
    tables: BTreeMap<(Part, String), Rows>,
    /// Whether some layers' alphas are divided by the square root of the rank, as rank-stabilised LoRAs have it.
    by_root_of_rank: bool,
    left_out: Vec<String>,
}

/// The change of one layer: `scale·up·down`.
#[derive(Clone, Debug, PartialEq)]
struct LowRank {
    scale: f32,
    /// The alpha from the file or a config; `None` where neither has one.
    alpha: Option<f64>,
    /// `[rank, input]`.
    down: Vec<f32>,
    /// `[output, rank]`.
    up: Vec<f32>,
    rank: usize,
}

/// What is added to some rows of a table: `scale` times the values.
#[derive(Clone, Debug, PartialEq)]
struct Rows {
    scale: f32,
    numbers: Vec<usize>,
    /// One row for each number.
    values: Vec<f32>,
}

/// The embeddings of this many tokens, for people.
fn counted_embeddings(count: usize) -> String {
    match count {
        1 => "the embedding of one token".to_owned(),
        count => format!("the embeddings of {count} tokens"),
    }
}

/// The end of a sentence about a LoRA that adds to the embeddings of this many tokens.
fn and_tokens(count: usize) -> String {
    if count == 0 { String::new() } else { format!(", and {}", counted_embeddings(count)) }
}

/// A number of layers, for people.
fn counted_layers(count: usize) -> String {
    if count == 1 { "1 layer".to_owned() } else { format!("{count} layers") }
}

/// An alpha, for people.
fn alpha_text(alpha: Option<f64>) -> String {
    let unknown = || "unknown (taken to be the rank)".to_owned();
    alpha.map_or_else(unknown, |alpha| (alpha as f32).to_string())
}

/// The ranks and alphas of layers, for people; names the divisor of the alphas where it is not the rank.
fn strengths_text(
    ranks: &BTreeSet<usize>,
    alphas: BTreeSet<String>,
    by_root_of_rank: bool,
) -> String {
    let ranks: Vec<_> = ranks.iter().map(usize::to_string).collect();
    let alphas: Vec<_> = alphas.into_iter().collect();
    let divided = if by_root_of_rank { " (over the square root of the rank)" } else { "" };
    format!("rank {}, alpha {}{divided}", ranks.join(" and "), alphas.join(" and "))
}

impl Rows {
    fn add_to(&self, table: &mut [f32]) {
        let width = self.values.len() / self.numbers.len();
        for (&number, added) in self.numbers.iter().zip(self.values.chunks(width)) {
            let row = &mut table[number * width..][..width];
            row.iter_mut().zip(added).for_each(|(value, added)| *value += self.scale * added);
        }
    }
}

impl Lora {
    /// Adds the change to the values of a tensor, one row for each output; tensors without a change stay as they
    /// are.
    fn apply(&self, target: &(Part, String), values: &mut [f32]) {
        if let Some(rows) = self.tables.get(target) {
            rows.add_to(values);
        }
        let Some(layer) = self.layers.get(target) else { return };
        let inputs = layer.down.len() / layer.rank;
        let rows = values.chunks_mut(inputs).zip(layer.up.chunks(layer.rank));
        let mut change = vec![0.0f32; inputs];
        for (row, up) in rows {
            change.fill(0.0);
            for (&factor, down) in up.iter().zip(layer.down.chunks(inputs)) {
                change.iter_mut().zip(down).for_each(|(sum, value)| *sum += factor * value);
            }
            row.iter_mut().zip(&change).for_each(|(value, change)| *value += layer.scale * change);
        }
    }

    /// The names of the tensors of a part that the LoRA changes.
    pub fn targets(&self, part: Part) -> impl Iterator<Item = &str> {
        let names = self.changed().filter(move |(of, _)| *of == part);
        names.map(|(_, name)| name.as_str())
    }

    /// All tensors that the LoRA changes.
    fn changed(&self) -> impl Iterator<Item = &(Part, String)> {
        self.layers.keys().chain(self.tables.keys())
    }

    /// The different ranks of its layers.
    pub fn ranks(&self) -> BTreeSet<usize> {
        self.layers.values().map(|layer| layer.rank).collect()
    }

    /// The different alphas of its layers, for people.
    pub fn alphas(&self) -> BTreeSet<String> {
        self.layers.values().map(|layer| alpha_text(layer.alpha)).collect()
    }

    /// What the LoRA changes and how strongly, for people.
    pub fn summary(&self) -> String {
        let is_text = |part: &Part| part.stage() == Some(Stage::Text);
        let text = self.layers.keys().filter(|(part, _)| is_text(part)).count();
        let prior = self.layers.len() - text;
        let tokens: usize = self.tables.values().map(|rows| rows.numbers.len()).sum();
        if prior + text + tokens == 0 {
            return "changes nothing".to_owned();
        }
        if prior + text == 0 {
            return format!("changes {}", counted_embeddings(tokens));
        }
        let tokens = and_tokens(tokens);
        let text = match text {
            0 => String::new(),
            text => format!(" and {text} of its text encoder"),
        };
        let prior = counted_layers(prior);
        let strengths = strengths_text(&self.ranks(), self.alphas(), self.by_root_of_rank);
        format!("changes {prior} of Stage C{text}, {strengths}{tokens}")
    }

    /// What the file holds that is not used, and why; a sentence each.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }
}

/// A tensor that is changed when it is read.
struct Changed {
    weights: Checkpoint,
    target: (Part, String),
    bytes: usize,
    loras: Arc<[Lora]>,
}

impl ReadBytes for Changed {
    fn length(&self) -> usize {
        self.bytes
    }

    fn has_parts(&self) -> bool {
        false
    }

    fn read(&self, range: Range<usize>) -> std::io::Result<Cow<'_, [u8]>> {
        let mut values = self.weights.values(&self.target.1).map_err(std::io::Error::other)?;
        for lora in &*self.loras {
            lora.apply(&self.target, &mut values);
        }
        Ok(Cow::Owned(bytemuck::cast_slice(&values)[range].to_vec()))
    }
}

impl ModelFiles {
    /// Adds the changes of all `loras` to the weights. A change is computed whenever its tensor is read. Changed
    /// tensors are f32, even where the weights are packed.
    ///
    /// # Errors
    ///
    /// A changed tensor is too large to be counted.
    pub fn add_loras(&mut self, loras: Vec<Lora>) -> Result<(), LoadError> {
        let loras = Arc::from(loras);
        for (&part, weights) in &mut self.weights {
            weights.replace(weights.changed_by(part, &loras)?);
        }
        Ok(())
    }
}

impl Checkpoint {
    /// The tensors that `loras` change, with the changes as in [`ModelFiles::add_loras`]. `self` has all or some
    /// weights of `part`.
    ///
    /// # Errors
    ///
    /// A changed tensor is too large to be counted.
    pub fn changed_by(&self, part: Part, loras: &Arc<[Lora]>) -> Result<Self, LoadError> {
        self.targets_in_f32(part, loras, loras)
    }

    /// The same tensors in f32 without the changes. A model that is loaded with them in place of packed ones can
    /// take changes later and lose them again, because [`Pipeline::replace`](crate::Pipeline::replace) cannot
    /// replace packed tensors.
    ///
    /// # Errors
    ///
    /// As [`Self::changed_by`].
    pub fn to_be_changed_by(&self, part: Part, loras: &Arc<[Lora]>) -> Result<Self, LoadError> {
        self.targets_in_f32(part, loras, &Arc::default())
    }

    /// The targets of `loras`, with the changes of `applied`.
    fn targets_in_f32(
        &self,
        part: Part,
        loras: &[Lora],
        applied: &Arc<[Lora]>,
    ) -> Result<Self, LoadError> {
        let mut found = Self::empty(self.part());
        let targets: BTreeSet<_> = loras.iter().flat_map(Lora::changed).collect();
        for target in targets.into_iter().filter(|(of, _)| *of == part) {
            let Some(shape) = self.shape(&target.1) else { continue };
            let bytes = 4 * shape.iter().product::<usize>();
            let (weights, loras) = (self.clone(), applied.clone());
            let source = Changed { weights, target: target.clone(), bytes, loras };
            found.insert(&target.1, StoredDtype::F32, shape, Arc::new(source), 0..bytes)?;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::read::tests::{model, read};
    use super::*;

    const DOWN: [f32; 3] = [1.0, 2.0, 3.0];
    const UP: [f32; 2] = [10.0, -1.0];

    fn values(files: &ModelFiles, name: &str) -> Vec<f32> {
        let name = format!("blocks.2.attention.{name}");
        files.weights[&Part::PRIOR].values(&name).unwrap()
    }

    /// Rank 1, alpha 4, weight 0.5: `0.5·4/1·[10, −1]ᵀ·[1, 2, 3]` on top of ones, twice; tensors that
    /// it does not change are those of the model.
    #[test]
    fn a_model_carries_the_changes() {
        let tensors: [(&str, &[usize], &[f32]); 3] = [
            ("prior.blocks.2.attention.to_q.lora_A.weight", &[1, 3], &DOWN),
            ("prior.blocks.2.attention.to_q.lora_B.weight", &[2, 1], &UP),
            ("prior.blocks.2.attention.to_q.alpha", &[], &[4.0]),
        ];
        let lora = read(&tensors, 0.5).unwrap();
        let mut changed = model();
        changed.add_loras(vec![lora.clone()]).unwrap();
        assert_eq!(values(&changed, "to_q.weight"), [21.0, 41.0, 61.0, -1.0, -3.0, -5.0]);
        let mut changed = model();
        changed.add_loras(vec![lora.clone(), lora]).unwrap();
        assert_eq!(values(&changed, "to_q.weight"), [41.0, 81.0, 121.0, -3.0, -7.0, -11.0]);
        assert_eq!(values(&changed, "to_k.weight"), [1.0; 6]);
        assert_eq!(values(&changed, "to_q.bias"), [1.0; 2]);
        let names = |files: &ModelFiles| -> Vec<String> {
            files.weights[&Part::PRIOR].names().map(str::to_owned).collect()
        };
        assert_eq!(names(&changed), names(&model()));
    }

    /// Rank 2 without alpha: `[[1, 0], [0, 2]]·[[1, 2, 3], [4, 5, 6]]` on top of ones.
    #[test]
    fn without_alpha_the_scale_is_the_weight() {
        let tensors: [(&str, &[usize], &[f32]); 2] = [
            ("blocks.2.attention.to_v.lora.down.weight", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            ("blocks.2.attention.to_v.lora.up.weight", &[2, 2], &[1.0, 0.0, 0.0, 2.0]),
        ];
        let lora = read(&tensors, 1.0).unwrap();
        // This is how diffusers has written files whose alpha is the rank.
        assert_eq!(lora.alphas(), BTreeSet::from(["2".to_owned()]));
        let mut of_peft = tensors;
        of_peft[0].0 = "blocks.2.attention.to_v.lora_A.weight";
        of_peft[1].0 = "blocks.2.attention.to_v.lora_B.weight";
        let alphas = read(&of_peft, 1.0).unwrap().alphas();
        assert_eq!(alphas, BTreeSet::from(["unknown (taken to be the rank)".to_owned()]));
        let mut changed = model();
        changed.add_loras(vec![lora]).unwrap();
        assert_eq!(values(&changed, "to_v.weight"), [2.0, 3.0, 4.0, 9.0, 11.0, 13.0]);
    }
}
