//! Low-rank changes of a model's linear layers (LoRA), read from the files that trainers write.
//!
//! A change of a layer is `W + weight·alpha/rank·B·A`. It is added to the weights as they are read,
//! so that a changed model runs as fast as any other.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;

use crate::checkpoint::{Checkpoint, NamedTensor, ReadBytes};
use crate::stored::StoredDtype;
use crate::weights::{Differences, LoadError};

/// Why a LoRA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// Its file cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Its tensors do not belong to the model's linear layers.
    #[error("{name}: the LoRA does not fit the model{differences}")]
    Mismatch {
        /// Which LoRA.
        name: String,
        /// Every tensor that differs.
        differences: Differences,
    },
    /// A number that scales a layer is none.
    #[error("{name}: {key} must be a finite number, found {found}")]
    Scale {
        /// Which LoRA.
        name: String,
        /// Where it stands.
        key: String,
        /// What stands there.
        found: String,
    },
    /// What `adapter_config.json` says is not known here.
    #[error("{name}: adapter_config.json: {reason}")]
    Config {
        /// Which LoRA.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// The fields of peft's `adapter_config.json` that change what the weights mean.
#[derive(Deserialize)]
struct AdapterConfig {
    lora_alpha: Option<f64>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
}

/// Changes of some linear layers of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// By the name of the changed tensor.
    layers: BTreeMap<String, LowRank>,
}

/// The change of one layer: `scale·up·down`.
#[derive(Clone, Debug, PartialEq)]
struct LowRank {
    scale: f32,
    /// `[rank, input]`.
    down: Vec<f32>,
    /// `[output, rank]`.
    up: Vec<f32>,
    rank: usize,
}

/// What a tensor of a LoRA is, by the end of its name. `.default` is peft's name of an adapter.
const ROLES: [(&str, Role); 12] = [
    (".lora_A.weight", Role::Down),
    (".lora_A.default.weight", Role::Down),
    (".lora_down.weight", Role::Down),
    (".lora.down.weight", Role::Down),
    ("_lora.down.weight", Role::Down),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_B.default.weight", Role::Up),
    (".lora_up.weight", Role::Up),
    (".lora.up.weight", Role::Up),
    ("_lora.up.weight", Role::Up),
    (".lora_linear_layer.up.weight", Role::Up),
];

/// Ends of the names of the numbers that scale a layer.
const ALPHA: &str = ".alpha";

/// What trainers put in front of the names of a layer.
const PREFIXES: [&str; 6] = [
    "base_model.model.prior.",
    "base_model.model.",
    "prior.",
    "unet.",
    "lora_prior_unet_",
    "lora_unet_",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Down,
    Up,
    Alpha,
}

/// The tensors of one layer while a file is read.
#[derive(Default)]
struct Found {
    down: Option<NamedTensor>,
    up: Option<NamedTensor>,
    alpha: Option<f64>,
}

impl Lora {
    /// Reads a LoRA of `model`, `weight` times as strong as it was trained. Without a stored `alpha` it
    /// is the rank.
    ///
    /// Known names are those of diffusers, with and without processors, of peft, and of kohya-ss and
    /// `OneTrainer`. `adapter_config` is the text of the file that peft writes beside its weights.
    ///
    /// # Errors
    ///
    /// Every tensor that belongs to no layer, every half of a pair without the other and every wrong
    /// shape, all at once; numbers that are none; variants of the method that are not known.
    pub fn read(
        file: &Checkpoint,
        model: &Checkpoint,
        adapter_config: Option<&str>,
        weight: f64,
    ) -> Result<Self, LoraError> {
        let name = file.part().to_owned();
        let scaling = Scaling::new(&name, adapter_config, weight)?;
        // All spellings of a layer's name are one without dots.
        let layers: BTreeMap<String, (&str, [usize; 2])> = model
            .names()
            .filter_map(|target| {
                let layer = target.strip_suffix(".weight")?;
                Some((layer.replace('.', "_"), (target, matrix(model.shape(target)?)?)))
            })
            .collect();

        let mut found: BTreeMap<&str, Found> = BTreeMap::new();
        let mut differences = Differences::default();
        for key in file.names() {
            let known = layer_of(key).and_then(|(layer, role)| Some((layers.get(&layer)?.0, role)));
            let Some((target, role)) = known else {
                differences.unexpected.push(key.to_owned());
                continue;
            };
            let (shape, values) = (file.shape(key).unwrap_or_default().to_vec(), file.values(key)?);
            let entry = found.entry(target).or_default();
            let twice = match role {
                Role::Down => entry.down.replace((key.to_owned(), shape, values)).is_some(),
                Role::Up => entry.up.replace((key.to_owned(), shape, values)).is_some(),
                Role::Alpha => {
                    let alpha = scaling.finite(key, &values)?;
                    entry.alpha.replace(alpha).is_some()
                }
            };
            if twice {
                differences.unexpected.push(key.to_owned());
            }
        }
        let sides: BTreeMap<&str, [usize; 2]> = layers.into_values().collect();
        let mut layers = BTreeMap::new();
        for (target, found) in found {
            if let Some(layer) = found.join(target, sides[target], &scaling, &mut differences) {
                layers.insert(target.to_owned(), layer);
            }
        }
        match differences == Differences::default() {
            true => Ok(Self { layers }),
            false => Err(LoraError::Mismatch { name, differences }),
        }
    }

    /// Adds the change to the values of a tensor, rows of its outputs; other tensors stay.
    pub fn apply(&self, name: &str, values: &mut [f32]) {
        let Some(layer) = self.layers.get(name) else { return };
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

    /// Names of the changed tensors.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// The different ranks of its layers.
    pub fn ranks(&self) -> BTreeSet<usize> {
        self.layers.values().map(|layer| layer.rank).collect()
    }
}

/// A tensor that is changed when it is read.
struct Changed {
    weights: Checkpoint,
    name: String,
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
        let mut values = self.weights.values(&self.name).map_err(std::io::Error::other)?;
        for lora in &*self.loras {
            lora.apply(&self.name, &mut values);
        }
        Ok(Cow::Owned(bytemuck::cast_slice(&values)[range].to_vec()))
    }
}

impl Checkpoint {
    /// The weights with all changes of `loras`, which are made when a tensor is read. Changed tensors
    /// are of f32, also where the weights are packed.
    ///
    /// # Errors
    ///
    /// A changed tensor is too large to be counted.
    pub fn with_loras(&self, loras: Vec<Lora>) -> Result<Self, LoadError> {
        let (mut changed, loras) = (self.clone(), Arc::<[Lora]>::from(loras));
        for name in loras.iter().flat_map(Lora::targets) {
            let Some(shape) = self.shape(name) else { continue };
            let bytes = 4 * shape.iter().product::<usize>();
            let (weights, name, loras) = (self.clone(), name.to_owned(), loras.clone());
            let source = Arc::new(Changed { weights, name: name.clone(), bytes, loras });
            changed.insert(&name, StoredDtype::F32, shape, source, 0..bytes)?;
        }
        Ok(changed)
    }
}

/// How strong a layer is from its alpha and rank.
struct Scaling<'a> {
    name: &'a str,
    weight: f64,
    config: Option<AdapterConfig>,
}

impl<'a> Scaling<'a> {
    fn new(name: &'a str, config: Option<&str>, weight: f64) -> Result<Self, LoraError> {
        let error = |reason: String| LoraError::Config { name: name.to_owned(), reason };
        let config: Option<AdapterConfig> = config
            .map(serde_json::from_str)
            .transpose()
            .map_err(|invalid| error(invalid.to_string()))?;
        if let Some(config) = &config {
            if config.use_dora {
                return Err(error(
                    "use_dora must be false, weight-decomposed LoRA is not known".into(),
                ));
            }
            if !config.alpha_pattern.is_empty() {
                return Err(error("alpha_pattern must be empty, one alpha is expected".into()));
            }
        }
        let scaling = Self { name, weight, config };
        scaling.finite("weight", &[weight as f32])?;
        Ok(scaling)
    }

    /// The one value of a tensor.
    fn finite(&self, key: &str, values: &[f32]) -> Result<f64, LoraError> {
        match values {
            [value] if value.is_finite() => Ok(f64::from(*value)),
            _ => Err(LoraError::Scale {
                name: self.name.to_owned(),
                key: key.to_owned(),
                found: format!("{values:?}"),
            }),
        }
    }

    fn of(&self, alpha: Option<f64>, rank: usize) -> f32 {
        let config = self.config.as_ref();
        let alpha = alpha.or(config.and_then(|config| config.lora_alpha));
        let rank = rank as f64;
        let divisor = match config.is_some_and(|config| config.use_rslora) {
            true => rank.sqrt(),
            false => rank,
        };
        (self.weight * alpha.map_or(1.0, |alpha| alpha / divisor)) as f32
    }
}

impl Found {
    /// Both halves as a change of a layer of `output` and `input` channels.
    fn join(
        self,
        target: &str,
        [output, input]: [usize; 2],
        scaling: &Scaling<'_>,
        differences: &mut Differences,
    ) -> Option<LowRank> {
        let (down, up) = match (self.down, self.up) {
            (Some(down), Some(up)) => (down, up),
            (down, up) => {
                let layer = target.trim_end_matches(".weight");
                let missing = [(down.is_none(), "lora_A"), (up.is_none(), "lora_B")];
                let missing = missing.into_iter().filter(|(missing, _)| *missing);
                differences
                    .missing
                    .extend(missing.map(|(_, half)| format!("{layer}.{half}.weight")));
                return None;
            }
        };
        let rank = down.1.first().copied().unwrap_or(0).max(1);
        let mut fits = true;
        for ((key, found, _), expected) in [(&down, [rank, input]), (&up, [output, rank])] {
            if matrix(found) != Some(expected) {
                differences.misshapen.push((key.clone(), expected.to_vec(), found.clone()));
                fits = false;
            }
        }
        let scale = scaling.of(self.alpha, rank);
        fits.then_some(LowRank { scale, down: down.2, up: up.2, rank })
    }
}

/// Rows and columns of a linear layer or of a 1x1 convolution, which has two more axes of length 1.
fn matrix(shape: &[usize]) -> Option<[usize; 2]> {
    match *shape {
        [rows, columns] | [rows, columns, 1, 1] => Some([rows, columns]),
        _ => None,
    }
}

/// The layer that a tensor of a LoRA belongs to, its dots replaced by underscores.
fn layer_of(key: &str) -> Option<(String, Role)> {
    let roles = ROLES.into_iter().chain([(ALPHA, Role::Alpha)]);
    let (layer, role) =
        roles.filter_map(|(end, role)| Some((key.strip_suffix(end)?, role))).next()?;
    let layer = PREFIXES.iter().find_map(|prefix| layer.strip_prefix(prefix)).unwrap_or(layer);
    let mut layer = layer.replace(".processor.", ".").replace('.', "_");
    // Processors call the output projection by the name of the list that it is the first of.
    if layer.ends_with("_to_out") {
        layer.push_str("_0");
    }
    Some((layer, role))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four layers of two outputs and three inputs.
    fn model() -> Checkpoint {
        let attention = |name: &str| format!("blocks.2.attention.{name}");
        let weights = ["to_q", "to_k", "to_v", "to_out.0"]
            .map(|name| (format!("{}.weight", attention(name)), vec![2, 3], vec![1.0; 6]));
        let bias = (attention("to_q.bias"), vec![2], vec![1.0; 2]);
        Checkpoint::from_tensors("prior", weights.into_iter().chain([bias]))
    }

    fn read(tensors: &[(&str, &[usize], &[f32])], weight: f64) -> Result<Lora, LoraError> {
        let tensors = tensors
            .iter()
            .map(|(name, shape, values)| ((*name).to_owned(), shape.to_vec(), values.to_vec()));
        Lora::read(&Checkpoint::from_tensors("style", tensors), &model(), None, weight)
    }

    const DOWN: [f32; 3] = [1.0, 2.0, 3.0];
    const UP: [f32; 2] = [10.0, -1.0];

    /// Rank 1, alpha 4, weight 0.5: `0.5·4/1·[10, −1]ᵀ·[1, 2, 3]` on top of ones.
    #[test]
    fn adds_the_scaled_product() {
        let tensors: [(&str, &[usize], &[f32]); 3] = [
            ("prior.blocks.2.attention.to_q.lora_A.weight", &[1, 3], &DOWN),
            ("prior.blocks.2.attention.to_q.lora_B.weight", &[2, 1], &UP),
            ("prior.blocks.2.attention.to_q.alpha", &[], &[4.0]),
        ];
        let lora = read(&tensors, 0.5).unwrap();
        let mut values = [1.0; 6];
        lora.apply("blocks.2.attention.to_q.weight", &mut values);
        assert_eq!(values, [21.0, 41.0, 61.0, -1.0, -3.0, -5.0]);
        let mut others = [1.0; 6];
        lora.apply("blocks.2.attention.to_k.weight", &mut others);
        assert_eq!(others, [1.0; 6]);
    }

    /// Two of the LoRA above; tensors that it does not change are those of the model.
    #[test]
    fn a_checkpoint_carries_the_changes() {
        let tensors: [(&str, &[usize], &[f32]); 3] = [
            ("blocks.2.attention.to_q.lora_A.weight", &[1, 3], &DOWN),
            ("blocks.2.attention.to_q.lora_B.weight", &[2, 1], &UP),
            ("blocks.2.attention.to_q.alpha", &[], &[4.0]),
        ];
        let lora = read(&tensors, 0.5).unwrap();
        let changed = model().with_loras(vec![lora.clone(), lora]).unwrap();
        let values = |name: &str| changed.values(&format!("blocks.2.attention.{name}")).unwrap();
        assert_eq!(values("to_q.weight"), [41.0, 81.0, 121.0, -3.0, -7.0, -11.0]);
        assert_eq!((values("to_k.weight"), values("to_q.bias")), (vec![1.0; 6], vec![1.0; 2]));
        assert!(changed.names().eq(model().names()));
    }

    /// Rank 2 without alpha: `[[1, 0], [0, 2]]·[[1, 2, 3], [4, 5, 6]]`.
    #[test]
    fn without_alpha_the_scale_is_the_weight() {
        let tensors: [(&str, &[usize], &[f32]); 2] = [
            ("blocks.2.attention.to_v.lora.down.weight", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            ("blocks.2.attention.to_v.lora.up.weight", &[2, 2], &[1.0, 0.0, 0.0, 2.0]),
        ];
        let mut values = [0.0; 6];
        read(&tensors, 1.0).unwrap().apply("blocks.2.attention.to_v.weight", &mut values);
        assert_eq!(values, [1.0, 2.0, 3.0, 8.0, 10.0, 12.0]);
    }

    #[test]
    fn knows_the_names_of_other_programs() {
        for (down, up, target) in [
            ("blocks.2.attention.processor.to_q_lora.down.weight", "", "to_q"),
            ("prior.blocks.2.attention.processor.to_out_lora.down.weight", "", "to_out.0"),
            ("unet.blocks.2.attention.to_out.0.lora.down.weight", "", "to_out.0"),
            ("base_model.model.blocks.2.attention.to_k.lora_A.weight", "B", "to_k"),
            ("base_model.model.blocks.2.attention.to_k.lora_A.default.weight", "B", "to_k"),
            ("lora_prior_unet_blocks_2_attention_to_v.lora_down.weight", "", "to_v"),
            ("prior.blocks.2.attention.to_out.0.lora_linear_layer.down.weight", "", "to_out.0"),
        ] {
            let up = match up {
                "B" => down.replace("lora_A", "lora_B"),
                _ => down.replace("down", "up"),
            };
            let lora = read(&[(down, &[1, 3], &DOWN), (&up, &[2, 1], &UP)], 1.0).unwrap();
            let expected = format!("blocks.2.attention.{target}.weight");
            assert_eq!(lora.targets().collect::<Vec<_>>(), [expected], "{down}");
            assert_eq!(lora.ranks(), BTreeSet::from([1]));
        }
    }

    #[test]
    fn names_everything_that_does_not_fit() {
        let error = read(
            &[
                ("text_encoder.layers.0.q_proj.lora_A.weight", &[1, 3], &DOWN),
                ("blocks.2.attention.to_q.lora_A.weight", &[1, 3], &DOWN),
                ("blocks.2.attention.to_k.lora_A.weight", &[1, 2], &[1.0, 2.0]),
                ("blocks.2.attention.to_k.lora_B.weight", &[2, 3], &[0.0; 6]),
                ("blocks.2.attention.to_q.lora_magnitude_vector", &[2], &UP),
            ],
            1.0,
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "style: the LoRA does not fit the model\
             \n  missing: blocks.2.attention.to_q.lora_B.weight\
             \n  unexpected: blocks.2.attention.to_q.lora_magnitude_vector\
             \n  unexpected: text_encoder.layers.0.q_proj.lora_A.weight\
             \n  misshapen: blocks.2.attention.to_k.lora_A.weight: expected [1, 3], found [1, 2]\
             \n  misshapen: blocks.2.attention.to_k.lora_B.weight: expected [2, 1], found [2, 3]"
        );
    }

    #[test]
    fn scales_as_the_adapter_config_says() {
        let file = || {
            let layer = "base_model.model.blocks.2.attention.to_q";
            let down = (format!("{layer}.lora_A.weight"), vec![4, 3], vec![1.0; 12]);
            Checkpoint::from_tensors(
                "adapter",
                [down, (format!("{layer}.lora_B.weight"), vec![2, 4], vec![1.0; 8])],
            )
        };
        let first = |config: &str| -> Result<f32, LoraError> {
            let mut values = [0.0; 6];
            let lora = Lora::read(&file(), &model(), Some(config), 1.0)?;
            lora.apply("blocks.2.attention.to_q.weight", &mut values);
            Ok(values[0])
        };
        assert_eq!(first(r#"{"lora_alpha": 8, "r": 4}"#).unwrap(), 8.0 / 4.0 * 4.0);
        assert_eq!(first(r#"{"lora_alpha": 8, "use_rslora": true}"#).unwrap(), 8.0 / 2.0 * 4.0);
        let error = first(r#"{"lora_alpha": 8, "use_dora": true}"#).unwrap_err().to_string();
        assert!(
            error.starts_with("adapter: adapter_config.json: use_dora must be false"),
            "{error}"
        );
    }

    #[test]
    fn numbers_must_be_numbers() {
        let error = read(&[], f64::NAN).unwrap_err().to_string();
        assert_eq!(error, "style: weight must be a finite number, found [NaN]");
        let alpha: (&str, &[usize], &[f32]) =
            ("blocks.2.attention.to_q.alpha", &[], &[f32::INFINITY]);
        assert!(read(&[alpha], 1.0).unwrap_err().to_string().contains("to_q.alpha must be"));
    }
}
