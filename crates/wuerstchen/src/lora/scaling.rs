//! How strong the layers of a LoRA are, from all places that may tell it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use half::f16;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::LoraError;
use crate::json::reason;
use crate::part::Part;

/// Key in the header of a safetensors file under which diffusers writes the adapters' configs.
const HEADER: &str = "lora_adapter_metadata";

/// What errors call the file that peft writes beside its weights.
const FILE: &str = "adapter_config.json";

/// The fields of peft's config that change what the weights mean.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(expecting = "an object with the fields of peft's config")]
struct AdapterConfig {
    peft_type: Option<String>,
    /// Some programs write whole numbers as `4.0`.
    r: Option<f64>,
    lora_alpha: Option<f64>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    rank_pattern: Option<BTreeMap<String, f64>>,
    alpha_pattern: Option<BTreeMap<String, f64>>,
    /// `true`, or the name of a method.
    init_lora_weights: Option<Value>,
}

/// Ways to begin a training that change the model's own weights: the LoRA alone means nothing without those.
const CHANGING_BEGINNINGS: [&str; 5] = ["pissa", "olora", "corda", "lora_ga", "loftq"];

/// What scales the layers of one LoRA.
pub(super) struct Scaling<'a> {
    /// Which LoRA.
    name: &'a str,
    /// How many times as strong as it was trained the LoRA is to be.
    pub(super) weight: f64,
    /// The configs of parts, and where they stand.
    configs: BTreeMap<Part, (AdapterConfig, &'static str)>,
    /// A sentence if the config beside the file contradicts the header.
    pub(super) left_out: Option<String>,
}

impl<'a> Scaling<'a> {
    /// Reads the texts in the header of a file and the config beside it; the config counts where the header says
    /// nothing.
    pub(super) fn new(
        name: &'a str,
        weight: f64,
        parts: [Part; 2],
        header: &HashMap<String, String>,
        adapter_config: Option<&str>,
    ) -> Result<Self, LoraError> {
        let mut scaling = Self { name, weight, configs: BTreeMap::new(), left_out: None };
        scaling.finite("weight", &[weight as f32])?;
        if let Some(text) = header.get(HEADER) {
            let fields: Map<String, Value> = scaling.parse(HEADER, text)?;
            for (part, fields) in by_part(parts, fields) {
                let config = serde_json::from_value(Value::Object(fields));
                let config = config.map_err(|error| scaling.error(HEADER, error.to_string()))?;
                scaling.configs.insert(part, (config, HEADER));
            }
        }
        match adapter_config {
            Some(text) if !scaling.configs.is_empty() => {
                let beside: AdapterConfig = scaling.parse(FILE, text)?;
                let differs = |(config, _): &(AdapterConfig, _)| *config != beside;
                scaling.left_out = scaling.configs.values().any(differs).then(|| {
                    format!(
                        "{FILE} beside it is left out: its header's {HEADER} tells something else"
                    )
                });
            }
            Some(text) => {
                let config: AdapterConfig = scaling.parse(FILE, text)?;
                for part in parts {
                    scaling.configs.insert(part, (config.clone(), FILE));
                }
            }
            None => {}
        }
        for (config, place) in scaling.configs.values() {
            config.check().map_err(|reason| scaling.error(place, reason))?;
        }
        Ok(scaling)
    }

    /// Whether alphas of some part are divided by the square root of the rank.
    pub(super) fn is_by_root_of_rank(&self) -> bool {
        self.configs.values().any(|(config, _)| config.use_rslora == Some(true))
    }

    /// A sentence if keys of patterns fit none of the layers, each with the names that [`Self::of`] takes.
    pub(super) fn unused_patterns(&self, layers: &[[&str; 2]]) -> Option<String> {
        let configs = self.configs.values();
        let keys: BTreeSet<_> = configs.flat_map(|(config, _)| config.unused(layers)).collect();
        let keys: Vec<_> = keys.into_iter().collect();
        (!keys.is_empty()).then(|| {
            format!(
                "its rank_pattern or alpha_pattern names what fits no layer: {}",
                keys.join(", ")
            )
        })
    }

    fn parse<T: DeserializeOwned>(&self, place: &'static str, text: &str) -> Result<T, LoraError> {
        serde_json::from_str(text).map_err(|error| self.error(place, reason(text, &error)))
    }

    fn error(&self, place: &'static str, reason: String) -> LoraError {
        LoraError::Config { name: self.name.to_owned(), place, reason }
    }

    /// The value of a tensor; fails unless it is a single finite number.
    pub(super) fn finite(&self, key: &str, values: &[f32]) -> Result<f64, LoraError> {
        match values {
            [value] if value.is_finite() => Ok(f64::from(*value)),
            _ => Err(self.not_finite(key, format!("{values:?}"))),
        }
    }

    /// Fails with the first value of a tensor that is not finite.
    pub(super) fn all_finite(&self, key: &str, values: &[f32]) -> Result<(), LoraError> {
        match values.iter().find(|value| !value.is_finite()) {
            Some(found) => {
                Err(self.not_finite(&format!("every value of {key}"), found.to_string()))
            }
            None => Ok(()),
        }
    }

    /// Fails if a layer may change by more than a weight can be.
    pub(super) fn check_strength(&self, layer: &str, found: f32) -> Result<(), LoraError> {
        if found <= f16::MAX.to_f32() {
            return Ok(());
        }
        Err(LoraError::Strength { name: self.name.to_owned(), layer: layer.to_owned(), found })
    }

    /// The error of a tensor that should hold a finite number.
    fn not_finite(&self, key: &str, found: String) -> LoraError {
        LoraError::Scale { name: self.name.to_owned(), key: key.to_owned(), found }
    }

    /// The scale of a part's layer, and its alpha where something tells it: what is `stored` beside the
    /// layer's matrices, or else what the config says. Without an alpha it is the rank. The layer has the name that
    /// peft knows it by and the one that it has in its network.
    pub(super) fn of(
        &self,
        part: Part,
        names: [&str; 2],
        stored: Option<f64>,
        rank: usize,
    ) -> Result<(f32, Option<f64>), LoraError> {
        let Some((config, place)) = self.configs.get(&part) else {
            let scale = stored.map_or(1.0, |alpha| alpha / rank as f64);
            return Ok(((self.weight * scale) as f32, stored));
        };
        let told = config.of(names).map_err(|reason| self.error(place, reason))?;
        if let Some(expected) = told.rank.filter(|&expected| expected != rank as f64) {
            let reason = format!("{} must be of rank {expected}, found {rank}", names[1]);
            return Err(self.error(place, reason));
        }
        let alpha = stored.or(told.alpha);
        let rank = rank as f64;
        let divisor = if config.use_rslora == Some(true) { rank.sqrt() } else { rank };
        let scale = self.weight * alpha.map_or(1.0, |alpha| alpha / divisor);
        Ok((scale as f32, alpha))
    }
}

/// Splits `prior.lora_alpha` and the like, or `lora_alpha` of an object `prior`, into the fields of each part; those
/// without a part are of both.
fn by_part(parts: [Part; 2], fields: Map<String, Value>) -> BTreeMap<Part, Map<String, Value>> {
    let [prior, text_encoder] = parts;
    let mut found: BTreeMap<_, Map<String, Value>> = BTreeMap::new();
    let fields = fields.into_iter().flat_map(|(key, value)| match value {
        Value::Object(inner) if !key.ends_with("_pattern") => {
            inner.into_iter().map(|(field, value)| (format!("{key}.{field}"), value)).collect()
        }
        value => vec![(key, value)],
    });
    for (key, value) in fields {
        let (adapter, field) = key.rsplit_once('.').unwrap_or(("", &key));
        let of: &[Part] = match adapter {
            "" => &[prior, text_encoder],
            text if text.contains("text_encoder") => &[text_encoder],
            _ => &[prior],
        };
        for part in of {
            found.entry(*part).or_default().insert(field.to_owned(), value.clone());
        }
    }
    found
}

/// What a config says of one layer.
struct Told {
    rank: Option<f64>,
    alpha: Option<f64>,
}

impl AdapterConfig {
    /// Fails with the field that this program does not support.
    fn check(&self) -> Result<(), String> {
        if let Some(other) = self.peft_type.as_deref().filter(|found| *found != "LORA") {
            return Err(format!("peft_type must be \"LORA\", found {other:?}"));
        }
        if self.use_dora == Some(true) {
            return Err("use_dora must be false, found true".to_owned());
        }
        let beginning = self.init_lora_weights.as_ref().and_then(Value::as_str).unwrap_or_default();
        if CHANGING_BEGINNINGS.iter().any(|name| beginning.to_lowercase().starts_with(name)) {
            let why = "which has changed the model's own weights";
            return Err(format!("init_lora_weights must not be {beginning:?}, {why}"));
        }
        Ok(())
    }

    /// The keys of the patterns that fit none of these layers.
    fn unused<'a>(&'a self, layers: &'a [[&str; 2]]) -> impl Iterator<Item = &'a str> {
        let patterns = [&self.rank_pattern, &self.alpha_pattern].into_iter().flatten();
        let keys = patterns.flat_map(BTreeMap::keys).map(String::as_str);
        keys.filter(|key| !layers.iter().any(|names| fits(key, names) == Some(true)))
    }

    fn of(&self, names: [&str; 2]) -> Result<Told, String> {
        let rank = in_pattern("rank_pattern", self.rank_pattern.as_ref(), names)?;
        let alpha = in_pattern("alpha_pattern", self.alpha_pattern.as_ref(), names)?;
        Ok(Told { rank: rank.or(self.r), alpha: alpha.or(self.lora_alpha) })
    }
}

/// The number that a pattern of peft has for a layer of these names.
fn in_pattern(
    field: &str,
    pattern: Option<&BTreeMap<String, f64>>,
    names: [&str; 2],
) -> Result<Option<f64>, String> {
    let mut found: Option<f64> = None;
    for (key, &number) in pattern.into_iter().flatten() {
        let fits = fits(key, &names)
            .ok_or_else(|| format!("{field}: expected the name of a layer, found {key:?}"))?;
        if !fits {
            continue;
        }
        if found.is_some_and(|other| other != number) {
            return Err(format!("{field}: two keys with different numbers fit {}", names[1]));
        }
        found = Some(number);
    }
    Ok(found)
}

/// Whether the key of a pattern fits a layer: keys are one of its names, whole or the end of one from a dot on; `^`
/// begins a whole one. `None` for other regular expressions.
fn fits(key: &str, names: &[&str; 2]) -> Option<bool> {
    // peft takes the keys for regular expressions, in which a dot is any character.
    let plain = key.replace("\\.", ".");
    let (end, is_whole) = match plain.strip_prefix('^') {
        Some(whole) => (whole, true),
        None => (&plain[..], false),
    };
    let end = end.strip_suffix('$').unwrap_or(end);
    if end.contains(|c: char| "\\^$*+?()[]{}|".contains(c)) {
        return None;
    }
    let fits = |name: &&str| {
        let before = name.strip_suffix(end);
        before.is_some_and(|before| before.is_empty() || !is_whole && before.ends_with('.'))
    };
    Some(names.iter().any(fits))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: &str = "blocks.2.attention.to_q";

    fn scale(header: &str, config: Option<&str>, stored: Option<f64>) -> Result<f32, String> {
        let header = if header.is_empty() {
            HashMap::new()
        } else {
            HashMap::from([(HEADER.to_owned(), header.to_owned())])
        };
        let scaling = Scaling::new("style", 1.0, [Part::PRIOR, Part::PRIOR_TEXT], &header, config);
        let names = [&*format!("prior.{LAYER}"), LAYER];
        let of = |scaling: Scaling<'_>| scaling.of(Part::PRIOR, names, stored, 4);
        scaling.and_then(of).map(|(scale, _)| scale).map_err(|error| error.to_string())
    }

    fn beside(config: &str) -> Result<f32, String> {
        scale("", Some(config), None)
    }

    /// Alphas of 8 and 64 at rank 4; what is stored beside the matrices counts first.
    #[test]
    fn alpha_is_found_wherever_it_stands() {
        let header = r#"{"prior.r": 4, "prior.lora_alpha": 64, "text_encoder.lora_alpha": 1}"#;
        assert_eq!(scale(header, None, None), Ok(16.0));
        assert_eq!(scale(header, Some(r#"{"lora_alpha": 8}"#), None), Ok(16.0));
        assert_eq!(scale(header, None, Some(2.0)), Ok(0.5));
        assert_eq!(scale(r#"{"unet.lora_alpha": 8, "unet.r": 4}"#, None, None), Ok(2.0));
        assert_eq!(scale(r#"{"lora_alpha": 8}"#, None, None), Ok(2.0));
        let nested = r#"{"prior": {"r": 4, "lora_alpha": 64, "alpha_pattern": {"to_k": 1}}}"#;
        assert_eq!(scale(nested, None, None), Ok(16.0));
        assert_eq!(beside(r#"{"lora_alpha": 8, "r": 4, "use_rslora": null}"#), Ok(2.0));
        assert_eq!(beside(r#"{"lora_alpha": 8, "use_rslora": true}"#), Ok(4.0));
        assert_eq!(scale("", None, None), Ok(1.0));
    }

    #[test]
    fn two_configs_that_disagree_are_told() {
        let left_out = |beside: &str| {
            let header = r#"{"prior.r": 4, "prior.lora_alpha": 64}"#.to_owned();
            let header = HashMap::from([(HEADER.to_owned(), header)]);
            let parts = [Part::PRIOR, Part::PRIOR_TEXT];
            Scaling::new("style", 1.0, parts, &header, Some(beside)).unwrap().left_out
        };
        assert_eq!(left_out(r#"{"r": 4, "lora_alpha": 64, "task_type": null}"#), None);
        let told = left_out(r#"{"r": 4, "lora_alpha": 8}"#).unwrap();
        assert!(told.starts_with("adapter_config.json beside it is left out"), "{told}");
    }

    #[test]
    fn the_config_beside_counts_where_the_header_is_empty() {
        let header = HashMap::from([(HEADER.to_owned(), "{}".to_owned())]);
        let parts = [Part::PRIOR, Part::PRIOR_TEXT];
        let beside = r#"{"r": 4, "lora_alpha": 8}"#;
        let scaling = Scaling::new("style", 1.0, parts, &header, Some(beside)).unwrap();
        let config = serde_json::from_str(beside).unwrap();
        assert_eq!(scaling.configs[&Part::PRIOR], (config, FILE));
        assert_eq!(scaling.left_out, None);
    }

    #[test]
    fn patterns_are_for_the_layers_they_name() {
        for (pattern, expected) in [
            (r#"{"to_q": 32}"#, 8.0),
            (r#"{"attention.to_q": 32}"#, 8.0),
            (r#"{"^blocks.2.attention.to_q": 32}"#, 8.0),
            (r#"{"blocks\\.2\\.attention\\.to_q$": 32}"#, 8.0),
            (r#"{"^to_q": 32, "o_q": 32, "to_k": 32}"#, 2.0),
            (r#"{"prior.blocks.2.attention.to_q": 32}"#, 8.0),
            (r#"{"^prior.blocks.2.attention.to_q": 32}"#, 8.0),
            (r#"{"prior.attention.to_q": 32}"#, 2.0),
        ] {
            let config = format!(r#"{{"lora_alpha": 8, "r": 4, "alpha_pattern": {pattern}}}"#);
            assert_eq!(beside(&config), Ok(expected), "{pattern}");
        }
        let ranks = r#"{"lora_alpha": 8, "r": 16, "rank_pattern": {"to_q": 4}}"#;
        assert_eq!(beside(ranks), Ok(2.0));
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (config, reason) in [
            (r#"{"use_dora": true}"#, "use_dora must be false, found true"),
            (r#"{"peft_type": "LOHA"}"#, r#"peft_type must be "LORA", found "LOHA""#),
            (r#"{"r": 16.0}"#, "blocks.2.attention.to_q must be of rank 16, found 4"),
            (
                r#"{"init_lora_weights": "pissa_niter_4"}"#,
                "init_lora_weights must not be \"pissa_niter_4\", which has changed the model's own \
                 weights",
            ),
            (
                r#"{"alpha_pattern": {".*to_q": 1}}"#,
                r#"alpha_pattern: expected the name of a layer, found ".*to_q""#,
            ),
            (
                r#"{"alpha_pattern": {"to_q": 1, "attention.to_q": 2}}"#,
                "alpha_pattern: two keys with different numbers fit blocks.2.attention.to_q",
            ),
        ] {
            let expected = format!("style: adapter_config.json: {reason}");
            assert_eq!(beside(config), Err(expected));
        }
        let invalid = scale("[]", None, None).unwrap_err();
        assert!(invalid.starts_with("style: lora_adapter_metadata: invalid type"), "{invalid}");
    }
}
