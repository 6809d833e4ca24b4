//! LoRAs from their tensors.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::method::other_method;
use super::names::{Role, layer_of, peft_layer_of, plain_layer_of, role_of, spelling};
use super::scaling::Scaling;
use super::{Lora, LoraError, LowRank, MAX_RANK, alpha_text, counted_layers, strengths_text};
use super::{tokens, unnamed};
use crate::checkpoint::{Checkpoint, NamedTensor, ReadBytes, read_header};
use crate::error::{Differences, LoadError};
use crate::model_files::ModelFiles;
use crate::part::Part;
use crate::stored::matrix;

/// The beginning of the names of embeddings of a user's own words, which `OneTrainer` puts beside a LoRA.
const WORDS: &str = "bundle_emb.";

/// Key in the header under which kohya-ss notes the alpha of a training. It has no effect, not in kohya-ss either: the
/// alphas beside the matrices count.
const ALPHA_OF_KOHYA: &str = "ss_network_alpha";

/// A name that diffusers gives to the first matrix of a layer. Where such a layer has no alpha, diffusers takes the
/// rank for it; so does this program.
const DOWN_OF_DIFFUSERS: &str = ".lora.down.weight";

/// What peft stores for the layers of `modules_to_save`, and what a model consists of.
const WHOLE_LAYERS: &str = "whole layers";

/// Most faults in a summary.
const SHOWN_FAULTS: usize = 4;

/// The file of a LoRA, and the configs that tell how strong it is.
pub struct LoraFile {
    tensors: Checkpoint,
    /// The texts in the header of a safetensors file.
    header: HashMap<String, String>,
    adapter_config: Option<String>,
}

impl LoraFile {
    /// Reads the header of a safetensors file; `name` names it in errors.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::parse`].
    pub fn parse(name: &str, source: Arc<dyn ReadBytes>) -> Result<Self, LoadError> {
        let header = read_header(name, &*source)?.0.metadata().clone().unwrap_or_default();
        Ok(Self { header, ..Self::from(Checkpoint::parse(name, source)?) })
    }

    /// What the file has, for people, without a model to compare it with: the number of its layers and their
    /// ranks and alphas, then a sentence on each thing that is not used; nothing where it has no tensor of a LoRA.
    ///
    /// # Errors
    ///
    /// An alpha cannot be read, or as [`Lora::read`] for other methods than LoRA and configs that cannot be followed.
    pub fn summary(&self) -> Result<Vec<String>, LoraError> {
        let tensors = &self.tensors;
        let name = tensors.part();
        let (mut stored, mut downs, mut ups) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        for key in tensors.names() {
            match plain_layer_of(key) {
                Some((layer, Role::Alpha)) => {
                    stored.insert(layer, numbers(tensors, key)?);
                }
                Some((layer, Role::Down)) => downs.push((key, layer)),
                Some((layer, Role::Up)) => {
                    ups.insert(layer, key);
                }
                None => {}
            }
        }
        if downs.is_empty() {
            let unnamed = unnamed::summary(tensors);
            // Whole layers are those of a model.
            if unnamed.is_none()
                && let Err(error @ LoraError::Method { .. }) = refuse_other_methods(tensors)
            {
                return Err(error);
            }
            return Ok(unnamed.into_iter().collect());
        }
        refuse_other_methods(tensors)?;
        let parts = [Part::PRIOR, Part::PRIOR_TEXT];
        let scaling = Scaling::new(name, 1.0, parts, &self.header, self.adapter_config.as_deref())?;
        let (mut ranks, mut alphas, mut has_unknown) = (BTreeSet::new(), BTreeSet::new(), false);
        let names: Vec<_> = downs.iter().map(|(key, layer)| [peft_layer_of(key), *layer]).collect();
        for ((key, layer), names) in downs.iter().zip(&names) {
            let part = parts[usize::from(layer.starts_with("text_model"))];
            let rank = tensors.side(key, 0).unwrap_or_default();
            let alpha = stored
                .get(layer)
                .map(|alpha| scaling.finite(&format!("{layer}.alpha"), alpha))
                .transpose()?;
            let alpha = known_alpha(scaling.of(part, *names, alpha, rank)?.1, key, rank);
            ranks.insert(rank);
            has_unknown |= alpha.is_none();
            alphas.insert(alpha_text(alpha));
        }
        let layers = counted_layers(downs.len());
        let strengths = strengths_text(&ranks, alphas, scaling.is_by_root_of_rank());
        let lora = format!("a LoRA of {layers}, {strengths}");
        let unused = scaling.unused_patterns(&names);
        let left_out = scaling.left_out.into_iter().chain(unused);
        let faults = self.faults(&downs, ups);
        let notes = left_out.chain(self.alpha_of_kohya(has_unknown)).chain(faults);
        Ok([lora].into_iter().chain(notes).collect())
    }

    /// Why no model can take the LoRA: matrices without the other of their pair, and pairs of different ranks.
    fn faults(&self, downs: &[(&str, &str)], mut ups: BTreeMap<&str, &str>) -> Option<String> {
        let tensors = &self.tensors;
        let mut faults = Vec::new();
        for &(down, layer) in downs {
            let Some(up) = ups.remove(layer) else {
                faults.push(format!("{down} is alone"));
                continue;
            };
            let [of_down, of_up] = [(down, 0), (up, 1)].map(|(key, axis)| tensors.side(key, axis));
            if of_down != of_up || of_down == Some(0) {
                let [of_down, of_up] = [of_down, of_up].map(Option::unwrap_or_default);
                faults.push(format!("{down} has the rank {of_down}, {up} the rank {of_up}"));
            }
        }
        faults.extend(ups.into_values().map(|up| format!("{up} is alone")));
        let more = faults.len().saturating_sub(SHOWN_FAULTS);
        faults.truncate(SHOWN_FAULTS);
        if more > 0 {
            faults.push(format!("and {more} more"));
        }
        (!faults.is_empty()).then(|| format!("it fits no model: {}", faults.join("; ")))
    }

    /// A sentence on kohya's alpha in the header, if some layers have no alpha beside their matrices.
    fn alpha_of_kohya(&self, has_unknown: bool) -> Option<String> {
        let alpha = self.header.get(ALPHA_OF_KOHYA).filter(|_| has_unknown)?;
        let why = "alphas stand beside the matrices";
        Some(format!("its header's {ALPHA_OF_KOHYA} = {alpha} is left out: {why}"))
    }

    /// Adds the text of the `adapter_config.json` that peft writes beside its weights.
    pub fn with_adapter_config(self, text: Option<String>) -> Self {
        Self { adapter_config: text, ..self }
    }
}

/// Tensors of a file without a header.
impl From<Checkpoint> for LoraFile {
    fn from(tensors: Checkpoint) -> Self {
        Self { tensors, header: HashMap::new(), adapter_config: None }
    }
}

/// A tensor that may be changed: its part, its name and its sides.
type Target = (Part, String, [usize; 2]);

/// The tensors of one layer while a file is read.
#[derive(Default)]
struct Found {
    down: Option<NamedTensor>,
    up: Option<NamedTensor>,
    alpha: Option<f64>,
}

impl Lora {
    /// Reads a LoRA for `model`, that is, for its Stage C and Stage C's text encoder, `weight` times as strong as it
    /// was trained. A layer whose alpha stands nowhere has its rank as alpha. Layers whose change is zero are left
    /// out.
    ///
    /// It knows the names that diffusers gives, with and without processors, those of peft, kohya-ss and
    /// `OneTrainer`, and the numbers of Stable Cascade's authors, whose files may also add to embeddings of tokens.
    ///
    /// # Errors
    ///
    /// Names every tensor that belongs to no layer, every matrix without the other of its pair and every wrong
    /// shape, all at once. Also fails for scales that are not finite, and for other methods than LoRA.
    pub fn read(file: &LoraFile, model: &ModelFiles, weight: f64) -> Result<Self, LoraError> {
        let family = model.family();
        let parts = [family.prior(), family.prior_text];
        let tensors = &match unnamed::with_names(&file.tensors, model)? {
            Some(named) => named,
            None => file.tensors.clone(),
        };
        let name = tensors.part().to_owned();
        if tensors.names().next().is_none() {
            return Err(LoraError::Empty { name });
        }
        let adapter_config = file.adapter_config.as_deref();
        let scaling = Scaling::new(&name, weight, parts, &file.header, adapter_config)?;
        refuse_other_methods(tensors)?;
        let targets = targets(model);

        let (mut differences, mut words) = (Differences::default(), BTreeSet::new());
        let mut has_tokens = false;
        let mut found: BTreeMap<&str, Found> = BTreeMap::new();
        for key in tensors.names() {
            if tokens::is_of_tokens(key) {
                has_tokens = true;
                continue;
            }
            if let Some(word) = key.strip_prefix(WORDS) {
                words.insert(word.rsplit_once('.').map_or(word, |(word, _)| word));
                continue;
            }
            let layer = layer_of(key);
            let known =
                layer.and_then(|(layer, role)| Some((targets.get_key_value(&layer)?.0, role)));
            let is_first = match known {
                Some((layer, role)) => {
                    let sides = targets[layer].2;
                    let layer = found.entry(layer.as_str()).or_default();
                    layer.take(tensors, (key, role), sides, &scaling)?
                }
                None => false,
            };
            if !is_first {
                differences.unexpected.push(key.to_owned());
            }
        }
        if let (true, Some(example)) = (found.is_empty(), differences.unexpected.first()) {
            let (count, example) = (differences.unexpected.len(), example.clone());
            return Err(LoraError::OtherModel { name, count, example });
        }
        let names = tensors.names().filter_map(|key| {
            let (_, target, _) = targets.get(&layer_of(key)?.0)?;
            Some([peft_layer_of(key), target.trim_end_matches(".weight")])
        });
        let unused = scaling.unused_patterns(&names.collect::<Vec<_>>());
        let mut layers = BTreeMap::new();
        for (layer, found) in found {
            let (part, target, _) = &targets[layer];
            if let Some(layer) = found.join(&targets[layer], &scaling, &mut differences)? {
                layers.insert((*part, target.clone()), layer);
            }
        }
        let mut left_out: Vec<_> = scaling.left_out.clone().into_iter().chain(unused).collect();
        let embedding = |word| format!("its embedding of the word {word:?} is left out");
        left_out.extend(words.into_iter().map(embedding));
        let mut tables = BTreeMap::new();
        if has_tokens {
            let text = family.prior_text;
            let (rows, unknown) = tokens::read(tensors, model, text, &scaling, &mut differences)?;
            tables.extend(rows.map(|rows| ((text, tokens::TABLE.to_owned()), rows)));
            left_out.extend(unknown);
        }
        let has_unknown = layers.values().any(|layer: &LowRank| layer.alpha.is_none());
        left_out.extend(file.alpha_of_kohya(has_unknown));
        if differences == Differences::default() {
            let by_root_of_rank = scaling.is_by_root_of_rank();
            Ok(Self { layers, tables, by_root_of_rank, left_out })
        } else {
            Err(LoraError::Mismatch { name, differences })
        }
    }
}

/// The linear layers of the parts that LoRAs change, by the one spelling of their names.
fn targets(model: &ModelFiles) -> BTreeMap<String, Target> {
    let of_part = |part: Part| {
        let weights = model.weights.get(&part);
        let names =
            weights.into_iter().flat_map(|weights| weights.names().map(move |n| (weights, n)));
        names.filter_map(move |(weights, target)| {
            let layer = target.strip_suffix(".weight")?;
            let sides = matrix(weights.shape(target)?)?;
            Some((spelling(layer), (part, target.to_owned(), sides)))
        })
    };
    let family = model.family();
    [family.prior(), family.prior_text].into_iter().flat_map(of_part).collect()
}

/// Whether tensors are those of a LoRA, by their names.
pub fn is_lora(tensors: &Checkpoint) -> bool {
    let is_down = |key| plain_layer_of(key).is_some_and(|(_, role)| role == Role::Down);
    unnamed::summary(tensors).is_some() || tensors.names().any(is_down)
}

fn refuse_other_methods(tensors: &Checkpoint) -> Result<(), LoraError> {
    let method = |key: &str| {
        let layer = key.strip_suffix(".bias");
        let weight = layer.map(|layer| format!("{layer}.weight"));
        let is_whole = |weight: String| tensors.has(&weight) && role_of(&weight).is_none();
        if weight.is_some_and(is_whole) { Some(WHOLE_LAYERS) } else { other_method(key) }
    };
    let mut others = tensors.names().filter_map(|key| Some((key, method(key)?)));
    let Some((example, method)) = others.next() else { return Ok(()) };
    let name = tensors.part().to_owned();
    if method == WHOLE_LAYERS && !is_lora(tensors) {
        return Err(LoraError::NoLora { name, example: example.to_owned() });
    }
    Err(LoraError::Method {
        name,
        method,
        tensors: 1 + others.filter(|(_, other)| *other == method).count(),
        example: example.to_owned(),
    })
}

impl Found {
    /// Reads a tensor of the layer, whose matrix has these sides; false if there was one of the same role before.
    fn take(
        &mut self,
        tensors: &Checkpoint,
        (key, role): (&str, Role),
        [output, input]: [usize; 2],
        scaling: &Scaling<'_>,
    ) -> Result<bool, LoraError> {
        let half = match role {
            Role::Down => &mut self.down,
            Role::Up => &mut self.up,
            Role::Alpha => {
                let is_first = self.alpha.is_none();
                self.alpha = Some(scaling.finite(key, &numbers(tensors, key)?)?);
                return Ok(is_first);
            }
        };
        if half.is_some() {
            return Ok(false);
        }
        let shape = tensors.shape(key).unwrap_or_default();
        let [rows, columns] = matrix(shape).unwrap_or_default();
        let (rank, fits) = match role {
            Role::Down => (rows, columns == input),
            _ => (columns, rows == output),
        };
        if rank > MAX_RANK {
            let (name, key) = (tensors.part().to_owned(), key.to_owned());
            return Err(LoraError::Rank { name, key, found: rank });
        }
        // A few bytes of a PyTorch file can claim any shape: what does not fit is named by its shape, and not read.
        let values = if fits { tensors.values(key)? } else { Vec::new() };
        scaling.all_finite(key, &values)?;
        *half = Some(NamedTensor::new(key, shape, values));
        Ok(true)
    }

    /// Both matrices as the change of a layer; `None` where they do not fit it or change nothing.
    fn join(
        self,
        (part, target, [output, input]): &Target,
        scaling: &Scaling<'_>,
        differences: &mut Differences,
    ) -> Result<Option<LowRank>, LoraError> {
        let layer = target.trim_end_matches(".weight");
        let (down, up) = match (self.down, self.up) {
            (Some(down), Some(up)) => (down, up),
            (down, up) => {
                let halves = [(down.is_none(), "lora_A"), (up.is_none(), "lora_B")];
                let missing = halves.into_iter().filter(|(is_missing, _)| *is_missing);
                let missing = missing.map(|(_, half)| format!("{layer}.{half}.weight"));
                differences.missing.extend(missing);
                return Ok(None);
            }
        };
        let rank = down.shape.first().copied().unwrap_or(0).max(1);
        let mut fits = true;
        for (half, expected) in [(&down, [rank, *input]), (&up, [*output, rank])] {
            let NamedTensor { name, shape, .. } = half;
            if matrix(shape) != Some(expected) {
                differences.misshapen.push((name.clone(), expected.to_vec(), shape.clone()));
                fits = false;
            }
        }
        let changes = [&down, &up].iter().all(|half| half.values.iter().any(|v| *v != 0.0));
        if !fits || !changes {
            return Ok(None);
        }
        let names = [peft_layer_of(&down.name), layer];
        let (scale, alpha) = scaling.of(*part, names, self.alpha, rank)?;
        if scale == 0.0 {
            return Ok(None);
        }
        let size = |half: &NamedTensor| half.values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let found = scale.abs() * rank as f32 * size(&down) * size(&up);
        scaling.check_strength(layer, found)?;
        let alpha = known_alpha(alpha, &down.name, rank);
        Ok(Some(LowRank { scale, alpha, down: down.values, up: up.values, rank }))
    }
}

/// The alpha of a layer as the file or a config has it, or else the rank where the first matrix has diffusers' name.
fn known_alpha(told: Option<f64>, down: &str, rank: usize) -> Option<f64> {
    told.or_else(|| down.ends_with(DOWN_OF_DIFFUSERS).then_some(rank as f64))
}

/// The values of a tensor that may hold integers, because some trainers store an alpha as one.
fn numbers(tensors: &Checkpoint, key: &str) -> Result<Vec<f32>, LoadError> {
    match tensors.integers(key) {
        Some(integers) => Ok(integers.into_iter().map(|value| value as f32).collect()),
        None => tensors.values(key),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Four layers of Stage C and one of its text encoder, of two outputs and three inputs.
    pub(crate) fn model() -> ModelFiles {
        let attention = |name: &str| format!("blocks.2.attention.{name}");
        let weights = ["to_q", "to_k", "to_v", "to_out.0"]
            .map(|name| NamedTensor::new(attention(name) + ".weight", &[2, 3], vec![1.0; 6]));
        let bias = NamedTensor::new(attention("to_q.bias"), &[2], vec![1.0; 2]);
        let text = "text_model.encoder.layers.0.self_attn.q_proj.weight";
        let mut files = ModelFiles::default();
        let mut insert = |part: Part, tensors: Vec<NamedTensor>| {
            files.weights.insert(part, Checkpoint::from_tensors(part.folder(), tensors));
        };
        insert(Part::PRIOR, weights.into_iter().chain([bias]).collect());
        insert(Part::PRIOR_TEXT, vec![NamedTensor::new(text, &[2, 3], vec![1.0; 6])]);
        files
    }

    type Tensors<'a> = [(&'a str, &'a [usize], &'a [f32])];

    pub(crate) fn read(tensors: &Tensors<'_>, weight: f64) -> Result<Lora, LoraError> {
        let tensors = tensors
            .iter()
            .map(|(name, shape, values)| NamedTensor::new(*name, shape, values.to_vec()));
        let tensors = Checkpoint::from_tensors("style", tensors);
        Lora::read(&tensors.into(), &model(), weight)
    }

    const DOWN: [f32; 3] = [1.0, 2.0, 3.0];
    const UP: [f32; 2] = [10.0, -1.0];
    const TEXT: &str = "lora_prior_te_text_model_encoder_layers_0_self_attn_q_proj";

    #[test]
    fn the_text_encoder_is_changed_too_unless_its_change_is_zero() {
        let names = [format!("{TEXT}.lora_down.weight"), format!("{TEXT}.lora_up.weight")];
        let targets = |up: &[f32]| {
            let lora = read(&[(&names[0], &[1, 3], &DOWN), (&names[1], &[2, 1], up)], 1.0).unwrap();
            let names = lora.targets(Part::PRIOR_TEXT).map(str::to_owned);
            (names.collect::<Vec<_>>(), lora.targets(Part::PRIOR).count())
        };
        let target = "text_model.encoder.layers.0.self_attn.q_proj.weight".to_owned();
        assert_eq!(targets(&UP), (vec![target], 0));
        assert_eq!(targets(&[0.0; 2]), (vec![], 0));
    }

    #[test]
    fn embeddings_of_words_are_left_out_with_a_word() {
        let lora = read(
            &[
                ("blocks.2.attention.to_q.lora_A.weight", &[1, 3], &DOWN),
                ("blocks.2.attention.to_q.lora_B.weight", &[2, 1], &UP),
                ("bundle_emb.<sks>.clip_g", &[1, 3], &DOWN),
                ("bundle_emb.<sks>.clip_g_out", &[1, 3], &DOWN),
            ],
            1.0,
        );
        let left_out = r#"its embedding of the word "<sks>" is left out"#.to_owned();
        assert_eq!(lora.unwrap().left_out(), [left_out]);
    }

    #[test]
    fn names_everything_that_does_not_fit() {
        let error = read(
            &[
                ("text_encoder.layers.0.q_proj.lora_A.weight", &[1, 3], &DOWN),
                ("blocks.2.attention.to_q.lora_A.weight", &[1, 3], &DOWN),
                ("blocks.2.attention.to_k.lora_A.weight", &[1, 2], &[1.0, 2.0]),
                ("blocks.2.attention.to_k.lora_B.weight", &[2, 3], &[0.0; 6]),
                ("blocks.2.attention.to_k.lora_A.one.weight", &[1, 3], &DOWN),
            ],
            1.0,
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "style: the LoRA does not fit the model\
             \n  missing: blocks.2.attention.to_q.lora_B.weight\
             \n  unexpected: blocks.2.attention.to_k.lora_A.weight\
             \n  unexpected: text_encoder.layers.0.q_proj.lora_A.weight\
             \n  misshapen: blocks.2.attention.to_k.lora_B.weight: expected [2, 1], found [2, 3]"
        );
    }

    #[test]
    fn other_methods_and_other_models_are_told_in_a_sentence() {
        let (layer, rank) = ("lora_prior_unet_blocks_2_attention_to_q", &[1, 3][..]);
        let names = ["hada_w1_a", "hada_w1_b"].map(|end| format!("{layer}.{end}"));
        let error = read(&[(&names[0], rank, &DOWN), (&names[1], rank, &DOWN)], 1.0).unwrap_err();
        let expected = "style: expected LoRA, found LoHa in 2 tensors, such as \
                        \"lora_prior_unet_blocks_2_attention_to_q.hada_w1_a\"";
        assert_eq!(error.to_string(), expected);
        let name = "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight";
        let error = read(&[(name, rank, &DOWN)], 1.0).unwrap_err().to_string();
        assert!(error.starts_with("style: none of its 1 tensors belongs to Stage C"), "{error}");
    }

    /// A view that shows one number again and again needs no memory in its file.
    #[test]
    fn ranks_have_a_limit() {
        let layer = |rank: usize| {
            let down = ("blocks.2.attention.to_q.lora_A.weight", [rank, 3], vec![1.0; rank * 3]);
            let up = ("blocks.2.attention.to_q.lora_B.weight", [2, rank], vec![1.0; rank * 2]);
            read(&[(down.0, &down.1, &down.2), (up.0, &up.1, &up.2)], 1.0)
        };
        let told = layer(4096).unwrap().summary();
        let expected =
            "changes 1 layer of Stage C, rank 4096, alpha unknown (taken to be the rank)";
        assert_eq!(told, expected);
        let expected = "style: blocks.2.attention.to_q.lora_A.weight has a rank of 4097, expected at most 4096";
        assert_eq!(layer(4097).unwrap_err().to_string(), expected);
    }

    #[test]
    fn numbers_must_be_numbers() {
        let down: (&str, &[usize], &[f32]) =
            ("blocks.2.attention.to_q.lora_A.weight", &[1, 3], &DOWN);
        let error = read(&[down], f64::NAN).unwrap_err().to_string();
        assert_eq!(error, "style: weight must be a finite number, found [NaN]");
        let alpha: (&str, &[usize], &[f32]) =
            ("blocks.2.attention.to_q.alpha", &[], &[f32::INFINITY]);
        assert!(read(&[alpha], 1.0).unwrap_err().to_string().contains("to_q.alpha must be"));
        let down: (&str, &[usize], &[f32]) =
            ("blocks.2.attention.to_q.lora_A.weight", &[1, 3], &[1.0, f32::NAN, 0.0]);
        let expected = "style: every value of blocks.2.attention.to_q.lora_A.weight must be a finite number, \
                        found NaN";
        assert_eq!(read(&[down], 1.0).unwrap_err().to_string(), expected);
    }

    #[test]
    fn strengths_have_a_limit_and_none_changes_nothing() {
        let with_alpha = |alpha: f32| {
            let layer = "blocks.2.attention.to_q";
            let names = ["lora_A.weight", "lora_B.weight", "alpha"].map(|e| format!("{layer}.{e}"));
            let (down, up) =
                ((&*names[0], &[1, 3][..], &DOWN[..]), (&*names[1], &[2, 1][..], &UP[..]));
            read(&[down, up, (&names[2], &[], &[alpha])], 1.0)
        };
        assert_eq!(with_alpha(0.0).unwrap().summary(), "changes nothing");
        let expected =
            "style: it changes blocks.2.attention.to_q by up to 3e9, expected at most 6.5504e4";
        assert_eq!(with_alpha(1e8).unwrap_err().to_string(), expected);
        assert!(with_alpha(f32::MAX).is_err());
        assert_eq!(
            read(&[], 1.0).unwrap_err().to_string(),
            "style: expected a LoRA, found a file without tensors"
        );
    }

    #[test]
    fn a_file_tells_of_itself_what_a_model_would() {
        let file = |config: &str| {
            let layer = "base_model.model.blocks.2.attention.to_q";
            let tensors = [
                NamedTensor::new(format!("{layer}.lora_A.weight"), &[1, 3], DOWN.to_vec()),
                NamedTensor::new(format!("{layer}.lora_B.weight"), &[2, 1], UP.to_vec()),
            ];
            let file = LoraFile::from(Checkpoint::from_tensors("style", tensors));
            file.with_adapter_config(Some(config.to_owned()))
        };
        let summary = |config: &str| file(config).summary().map_err(|error| error.to_string());
        let told = |alpha: &str| Ok(vec![format!("a LoRA of 1 layer, rank 1, alpha {alpha}")]);
        assert_eq!(summary("{}"), told("unknown (taken to be the rank)"));
        let patterns = r#"{"lora_alpha": 8, "alpha_pattern": {"to_q": 3}}"#;
        assert_eq!(summary(patterns), told("3"));
        let by_root = r#"{"lora_alpha": 8, "use_rslora": true}"#;
        assert_eq!(summary(by_root), told("8 (over the square root of the rank)"));
        let lora = Lora::read(&file(by_root), &model(), 1.0).unwrap().summary();
        let expected =
            "changes 1 layer of Stage C, rank 1, alpha 8 (over the square root of the rank)";
        assert_eq!(lora, expected);
        let of_kohya = |config: &str| {
            let header = HashMap::from([(ALPHA_OF_KOHYA.to_owned(), "16".to_owned())]);
            let file = LoraFile { header, ..file(config) };
            let left_out = Lora::read(&file, &model(), 1.0).unwrap().left_out().to_vec();
            (file.summary().unwrap().split_off(1), left_out)
        };
        let told = vec![
            "its header's ss_network_alpha = 16 is left out: alphas stand beside the matrices"
                .to_owned(),
        ];
        assert_eq!(of_kohya("{}"), (told.clone(), told));
        assert_eq!(of_kohya(patterns), (vec![], vec![]));
        let refused = "style: adapter_config.json: use_dora must be false, found true";
        assert_eq!(summary(r#"{"use_dora": true}"#), Err(refused.to_owned()));
    }

    #[test]
    fn a_file_tells_that_it_fits_no_model() {
        let faults = |shapes: &[(&str, [usize; 2])]| {
            let tensor = |&(name, shape): &(&str, [usize; 2])| {
                NamedTensor::new(name, &shape, vec![1.0; shape.iter().product()])
            };
            let file = LoraFile::from(Checkpoint::from_tensors("style", shapes.iter().map(tensor)));
            file.summary().unwrap().split_off(1)
        };
        let (down, up) = ("prior.a.lora_A.weight", "prior.a.lora_B.weight");
        assert!(faults(&[(down, [1, 3]), (up, [2, 1])]).is_empty());
        let alone = format!("it fits no model: {down} is alone");
        assert_eq!(faults(&[(down, [1, 3])]), [alone]);
        for (of_down, of_up) in [(2, 1), (0, 0)] {
            let expected =
                format!("it fits no model: {down} has the rank {of_down}, {up} the rank {of_up}");
            assert_eq!(faults(&[(down, [of_down, 3]), (up, [2, of_up])]), [expected]);
        }
        let (other, others) = ("b.lora_up.weight", (down, [1, 3]));
        let expected = format!("it fits no model: {down} is alone; {other} is alone");
        assert_eq!(faults(&[others, (other, [2, 1])]), [expected]);
    }

    proptest! {
        /// Whatever a file holds is read or refused, and what is read fits.
        #[test]
        fn any_file_is_read_or_refused(
            names in prop::collection::vec((
                "(prior\\.|lora_prior_unet_|)blocks[._]2[._]attention[._]to_(q|k|out)(\\.0)?",
                "\\.(lora_[AB](\\.x)?\\.weight|lora_(up|down)\\.weight|alpha|dora_scale)",
                prop::collection::vec(0usize..4, 0..4),
            ), 0..6),
            header in prop::option::of("(\\{\"prior\\.(r|lora_alpha)\": [0-9]\\}|\\PC{0,9})"),
        ) {
            let tensors = names.into_iter().map(|(layer, end, shape)| {
                let values = vec![0.5; shape.iter().product()];
                NamedTensor { name: layer + &end, shape, values }
            });
            let mut file = LoraFile::from(Checkpoint::from_tensors("style", tensors));
            file.header.extend(header.map(|text| ("lora_adapter_metadata".to_owned(), text)));
            let _ = file.summary();
            if let Ok(lora) = Lora::read(&file, &model(), 1.0) {
                let (before, mut changed) = (model(), model());
                changed.add_loras(vec![lora]).unwrap();
                for (part, weights) in &changed.weights {
                    for name in weights.names() {
                        prop_assert_eq!(weights.shape(name), before.weights[part].shape(name));
                        prop_assert!(weights.values(name).unwrap().iter().all(|v| v.is_finite()));
                    }
                }
            }
        }
    }
}
