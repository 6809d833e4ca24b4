//! What configs have in common: values per level, and what is wrong with one.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// A field of a config that the architecture cannot use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part} config: {field} must be {expected}, got {found}")]
pub struct ConfigError {
    /// Which model.
    pub part: &'static str,
    /// Which field.
    pub field: &'static str,
    /// The values that the architecture can use.
    pub expected: String,
    /// The value in the config.
    pub found: String,
}

impl ConfigError {
    /// An error of a model's or a run's config.
    pub fn new(
        part: &'static str,
        field: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self { part, field, expected: expected.to_string(), found: found.to_string() }
    }
}

/// One value, or one per level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected one value, or a list with one value for each level")]
pub enum PerLevel<T> {
    /// The same on every level.
    One(T),
    /// The finest first.
    Levels(Vec<T>),
}

impl<T: Copy> PerLevel<T> {
    pub(crate) fn at(&self, level: usize) -> T {
        match self {
            Self::One(value) => *value,
            Self::Levels(values) => values[level],
        }
    }

    /// Whether a value of some level is as said.
    pub fn any(&self, is: impl Fn(T) -> bool) -> bool {
        match self {
            Self::One(value) => is(*value),
            Self::Levels(values) => values.iter().any(|value| is(*value)),
        }
    }

    /// Fails unless there is one value for all levels or one for each; `part` and `field` name them.
    pub(crate) fn check_count(
        &self,
        part: &'static str,
        field: &'static str,
        levels: usize,
    ) -> Result<(), ConfigError> {
        match self {
            Self::Levels(values) if values.len() != levels => {
                let expected = format!("one value or {levels}, one per level");
                Err(ConfigError::new(part, field, expected, values.len()))
            }
            _ => Ok(()),
        }
    }
}

impl<T: Default> Default for PerLevel<T> {
    fn default() -> Self {
        Self::One(T::default())
    }
}

impl PerLevel<f64> {
    /// Checks probabilities of dropping an activation: one, or one of every level.
    pub(crate) fn check_dropout(
        &self,
        part: &'static str,
        levels: usize,
    ) -> Result<(), ConfigError> {
        self.check_count(part, "dropout", levels)?;
        (0..levels).try_for_each(|level| below_one(part, "dropout", self.at(level)))
    }
}

/// Checks a share that must leave something, such as a dropout or a decay.
///
/// # Errors
///
/// The value is not in `[0, 1)`.
pub fn below_one(part: &'static str, field: &'static str, value: f64) -> Result<(), ConfigError> {
    if (0.0..1.0).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::new(part, field, "at least 0 and below 1", value))
    }
}

/// Checks that a number lies in a range.
///
/// # Errors
///
/// The number is outside of the range, or NaN.
pub fn between<T: PartialOrd + Display>(
    part: &'static str,
    field: &'static str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), ConfigError> {
    if range.contains(&value) {
        Ok(())
    } else {
        let expected = format!("from {} to {}", range.start(), range.end());
        Err(ConfigError::new(part, field, expected, value))
    }
}

/// The largest width or other size of a layer; the largest one of published models is 49,408.
const LARGEST_SIZE: usize = 1 << 20;

/// Most layers of one kind that follow each other; published models have at most 64.
const MOST_LAYERS: usize = 1024;

/// Most resolutions of a network; published models have at most 4.
const MOST_LEVELS: usize = 16;

/// Checks a size of a layer. A larger one than any model has would end the program for lack of memory.
pub(crate) fn size(
    part: &'static str,
    field: &'static str,
    value: usize,
) -> Result<(), ConfigError> {
    between(part, field, value, 1..=LARGEST_SIZE)
}

/// Checks a number of layers. Many more than any model has would take too long to make.
pub(crate) fn layers(
    part: &'static str,
    field: &'static str,
    value: usize,
) -> Result<(), ConfigError> {
    between(part, field, value, 1..=MOST_LAYERS)
}

/// Checks a number of levels. Each has half the resolution of the one before, so that more would leave nothing of any
/// picture.
pub(crate) fn levels(
    part: &'static str,
    field: &'static str,
    value: usize,
) -> Result<(), ConfigError> {
    between(part, field, value, 1..=MOST_LEVELS)
}

/// Checks that lists, by their fields, have one value per level of `c_hidden`.
pub(crate) fn one_per_level(
    part: &'static str,
    levels: usize,
    lists: &[(&'static str, usize)],
) -> Result<(), ConfigError> {
    lists.iter().try_for_each(|&(field, length)| {
        if length == levels {
            Ok(())
        } else {
            let expected = format!("a list of {levels}, one per level of c_hidden");
            Err(ConfigError::new(part, field, expected, length))
        }
    })
}

/// Channels of an attention head in all published models; weights do not tell it.
const HEAD_CHANNELS: usize = 64;

/// The heads of a published model's attention over so many channels.
pub(crate) fn published_heads(channels: usize) -> Option<usize> {
    channels.is_multiple_of(HEAD_CHANNELS).then_some(channels / HEAD_CHANNELS)
}

pub(crate) fn heads_divide(
    part: &'static str,
    field: &'static str,
    heads: usize,
    channels: usize,
) -> Result<(), ConfigError> {
    if heads > 0 && channels.is_multiple_of(heads) {
        Ok(())
    } else {
        Err(ConfigError::new(part, field, format!("a divisor of {channels}"), heads))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_layers_have_limits() {
        assert!(size("prior", "c", 1).is_ok() && size("prior", "c", LARGEST_SIZE).is_ok());
        assert!(layers("prior", "depth", MOST_LAYERS).is_ok());
        assert!(size("prior", "c", 0).is_err() && size("prior", "c", LARGEST_SIZE + 1).is_err());
        let error = layers("prior", "depth", 1_000_000).unwrap_err().to_string();
        assert_eq!(error, "prior config: depth must be from 1 to 1024, got 1000000");
    }

    #[test]
    fn dropouts_are_probabilities_one_or_one_a_level() {
        let error = |dropout: PerLevel<f64>| dropout.check_dropout("decoder", 2).err();
        assert_eq!(error(PerLevel::One(0.0)), None);
        assert_eq!(error(PerLevel::Levels(vec![0.1, 0.9])), None);
        for wrong in [
            PerLevel::One(1.0),
            PerLevel::One(f64::NAN),
            PerLevel::Levels(vec![0.0, -0.1]),
            PerLevel::Levels(vec![0.0]),
            PerLevel::Levels(vec![]),
        ] {
            let error = error(wrong.clone()).unwrap_or_else(|| panic!("{wrong:?} is accepted"));
            assert_eq!((error.part, error.field), ("decoder", "dropout"));
        }
    }
}
