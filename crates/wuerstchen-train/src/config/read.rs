//! A config as TOML.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Error};
use toml::{Table, Value};
use wuerstchen::ConfigError;

use super::{DiffusionConfig, StageName, TrainConfig, UpdateConfig};

/// Why a text is no config of a training run.
#[derive(Debug, thiserror::Error)]
pub enum ReadConfigError {
    /// The text is not TOML, or fields are missing, unknown or of other types.
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
    /// A stage has a field that only other stages have.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// A field that not every stage has.
struct Field {
    name: &'static str,
    /// The stages that have it.
    stages: &'static str,
    /// The value with which it has no effect. Runs of older versions stored all fields with every stage, with
    /// this value where nobody had set another.
    without_effect: f64,
}

const fn field(name: &'static str, stages: &'static str, without_effect: f64) -> Field {
    Field { name, stages, without_effect }
}

/// The fields that older versions stored with every stage, though not every stage has them.
const FIELDS: [Field; 13] = [
    field("quantized", "a", 0.0),
    field("edge_loss", "a", 0.0),
    field("max_zoom", "a", 1.0),
    field("cached_scenes", "b, c", 0.0),
    field("caption_drop", "b, c", 0.0),
    field("unknown_words", "b, c", 0.0),
    field("p2_weighting", "b, c", 0.0),
    field("p2_k", "b, c", 1.0),
    field("time_shift", "b, c", 1.0),
    field("embedding_drop", "b", 0.0),
    field("embedding_noise", "b", 0.0),
    field("freeze_compressor", "b", 0.0),
    field("text_loss", "b, c", 0.0),
];

impl TrainConfig {
    /// Reads a config. [`Self::validate`] checks its values.
    ///
    /// # Errors
    ///
    /// The text is not TOML, fields are missing, unknown or of other types, or a stage has a field of another stage.
    pub fn from_toml(text: &str) -> Result<Self, ReadConfigError> {
        Self::from_table(text.parse()?)
    }

    /// As [`Self::from_toml`], for a text that is parsed already.
    ///
    /// # Errors
    ///
    /// Fields are missing, unknown or of other types, or a stage has a field of another.
    pub fn from_table(mut table: Table) -> Result<Self, ReadConfigError> {
        for stage in StageName::ALL {
            if let Some(Value::Table(fields)) = table.get_mut(stage.as_str()) {
                remove_fields_of_others(stage, fields)?;
            }
        }
        Ok(read_fields(table)?)
    }

    /// The config as TOML.
    ///
    /// # Errors
    ///
    /// A number is larger than TOML's, whose largest is 2⁶³ − 1.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }
}

/// Reads the fields of a config.
pub(super) fn read_fields<T: DeserializeOwned>(table: Table) -> Result<T, toml::de::Error> {
    read_strictly(table.clone().into()).map_err(|error| error_of_a_stage(&table).unwrap_or(error))
}

/// Reads a value and refuses unknown fields. The sizes of models do not refuse them by themselves: published
/// `config.json` files have further ones.
pub(super) fn read_strictly<T: DeserializeOwned>(value: Value) -> Result<T, toml::de::Error> {
    let mut unknown = None;
    let read = serde_ignored::deserialize(value, |path| {
        unknown.get_or_insert_with(|| path.to_string());
    });
    let Some(field) = unknown else { return read };
    // A field whose name is misspelt is missing, too.
    let missing = read.err().map(|error| format!("; {}", error.message()));
    Err(toml::de::Error::custom(format!("unknown field `{field}`{}", missing.unwrap_or_default())))
}

/// What is wrong with a field that several stages share. This is found anew because serde forgets the names of fields
/// that it flattens: the error of the whole config names only the stage.
fn error_of_a_stage(table: &Table) -> Option<toml::de::Error> {
    #[derive(Deserialize)]
    struct Stage<T> {
        #[serde(rename = "a", alias = "b", alias = "c")]
        _fields: T,
    }
    ["a", "b", "c"].into_iter().find_map(|stage| {
        let fields = table.get(stage).filter(|fields| fields.is_table())?;
        let alone = Table::from_iter([(stage.to_owned(), fields.clone())]);
        let updates = alone.clone().try_into::<Stage<UpdateConfig>>().err();
        updates.or_else(|| alone.try_into::<Stage<DiffusionConfig>>().err())
    })
}

/// Removes the fields of other stages that have no effect; fails if one has.
fn remove_fields_of_others(stage: StageName, fields: &mut Table) -> Result<(), ConfigError> {
    for field in FIELDS.iter().filter(|field| !field.stages.contains(stage.as_str())) {
        let Some(value) = fields.remove(field.name) else { continue };
        let number = match value {
            Value::Boolean(set) => Some(f64::from(u8::from(set))),
            Value::Integer(number) => Some(number as f64),
            Value::Float(number) => Some(number),
            _ => None,
        };
        if number != Some(field.without_effect) {
            let expected = format!("left out: only [{}] has it", field.stages);
            return Err(ConfigError::new(stage.part(), field.name, expected, value));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOKE: &str = include_str!("../../../../configs/smoke.toml");

    fn with(stage: &str, name: &str, value: impl Into<Value>) -> Result<TrainConfig, String> {
        let mut table: Table = SMOKE.parse().unwrap();
        let Some(Value::Table(fields)) = table.get_mut(stage) else { panic!("no {stage}") };
        fields.insert(name.to_owned(), value.into());
        TrainConfig::from_table(table).map_err(|error| error.to_string())
    }

    #[test]
    fn a_config_comes_back_from_its_toml() {
        let config = TrainConfig::from_toml(SMOKE).unwrap();
        assert_eq!(TrainConfig::from_toml(&config.to_toml().unwrap()).unwrap(), config);
    }

    /// Each of the 39 pairs of a stage and a field: the field's own stages take a value, the others only the
    /// one without effect, as older versions stored it.
    #[test]
    fn a_stage_refuses_the_fields_of_others() {
        let config = TrainConfig::from_toml(SMOKE).unwrap();
        for (stage, field) in
            ["a", "b", "c"].iter().flat_map(|stage| FIELDS.iter().map(move |f| (stage, f)))
        {
            let changed: Value = match field.name {
                // The config has `true` where it has the field at all.
                "p2_weighting" => (!field.stages.contains(stage)).into(),
                "freeze_compressor" => true.into(),
                "max_zoom" | "cached_scenes" => 3.into(),
                _ => 0.75.into(),
            };
            let read = with(stage, field.name, changed.clone());
            if field.stages.contains(stage) {
                assert_ne!(read.unwrap(), config, "{stage}.{}", field.name);
                continue;
            }
            let expected = format!(
                "stage {stage} config: {} must be left out: only [{}] has it, got {changed}",
                field.name, field.stages
            );
            assert_eq!(read.unwrap_err(), expected);
            let without: Value = match field.name {
                "p2_weighting" | "freeze_compressor" => false.into(),
                "max_zoom" | "cached_scenes" => (field.without_effect as i64).into(),
                _ => field.without_effect.into(),
            };
            assert_eq!(with(stage, field.name, without).unwrap(), config, "{stage}.{}", field.name);
        }
    }

    #[test]
    fn fields_of_wrong_types_are_named() {
        for (stage, name) in [("a", "steps"), ("b", "cached_scenes"), ("c", "caption_drop")] {
            let error = with(stage, name, "200").unwrap_err();
            assert!(error.contains(&format!("`{stage}.{name}`")), "{error}");
        }
        let optimizer = Table::from_iter([("beta1".to_owned(), "0.9".into())]);
        let error = with("b", "optimizer", optimizer).unwrap_err();
        assert!(error.contains("`b.optimizer.beta1`"), "{error}");
    }

    #[test]
    fn unknown_fields_are_named() {
        for (stage, name) in
            [("a", "step"), ("b", "shard"), ("c", "text_los"), ("defaults", "widht")]
        {
            let error = with(stage, name, 1).unwrap_err();
            assert!(error.contains(&format!("unknown field `{name}`")), "{error}");
        }
        for part in ["vqgan", "compressor", "decoder", "decoder_text", "prior", "prior_text"] {
            let mut table: Table = SMOKE.parse().unwrap();
            let sizes = table["model"][part].as_table_mut().unwrap();
            sizes.insert("dropuot".to_owned(), 0.5.into());
            let error = TrainConfig::from_table(table).unwrap_err().to_string();
            assert!(
                error.contains("unknown field") && error.contains("dropuot"),
                "{part}: {error}"
            );
        }
    }
}
