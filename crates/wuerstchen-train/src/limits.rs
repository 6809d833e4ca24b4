//! Checks of single values of a config.

use wuerstchen::ConfigError;

/// Fails unless `name` can be the name of a folder: no separators, not empty, and neither `.` nor `..`.
pub(crate) fn folder_name(part: &'static str, name: &str) -> Result<(), ConfigError> {
    if !["", ".", ".."].contains(&name) && !name.contains(['/', '\\']) {
        Ok(())
    } else {
        let expected = "the name of a folder, without separators";
        Err(ConfigError::new(part, "name", expected, format!("{name:?}")))
    }
}

/// Fails unless a value is a probability or another share of a whole.
pub(crate) fn share(
    part: &'static str,
    field: &'static str,
    value: f64,
) -> Result<(), ConfigError> {
    if (0.0..=1.0).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::new(part, field, "a share from 0 to 1", value))
    }
}

/// Fails unless a value is a finite number above 0, also in f32, in which training computes.
pub(crate) fn positive(
    part: &'static str,
    field: &'static str,
    value: f64,
) -> Result<(), ConfigError> {
    if value as f32 > 0.0 && value.is_finite() {
        Ok(())
    } else {
        Err(ConfigError::new(part, field, "a positive number", value))
    }
}

/// The largest learning rate: AdamW and Muon move every weight by about as much in an update, and trained weights are
/// well below 1.
const MAX_LEARNING_RATE: f64 = 1.0;

/// The largest shift of the times of training. With this one, a picture hardly ever shows through the noise.
const MAX_TIME_SHIFT: f32 = 100.0;

/// Fails unless a shift of the times of training is above 0 and at most [`MAX_TIME_SHIFT`].
pub(crate) fn time_shift(part: &'static str, value: f32) -> Result<(), ConfigError> {
    positive_up_to(part, "time_shift", value.into(), MAX_TIME_SHIFT.into())
}

/// Fails unless a learning rate is above 0 and at most [`MAX_LEARNING_RATE`].
pub(crate) fn learning_rate(
    part: &'static str,
    field: &'static str,
    value: f64,
) -> Result<(), ConfigError> {
    positive_up_to(part, field, value, MAX_LEARNING_RATE)
}

/// Fails unless a value is above 0, also in f32, and at most `most`.
fn positive_up_to(
    part: &'static str,
    field: &'static str,
    value: f64,
    most: f64,
) -> Result<(), ConfigError> {
    if value as f32 > 0.0 && value <= most {
        Ok(())
    } else {
        let expected = format!("a positive number of at most {most}");
        Err(ConfigError::new(part, field, expected, value))
    }
}

/// Fails unless a value is a finite number of at least 0.
pub(crate) fn not_negative(
    part: &'static str,
    field: &'static str,
    value: f64,
) -> Result<(), ConfigError> {
    if value >= 0.0 && value.is_finite() {
        Ok(())
    } else {
        Err(ConfigError::new(part, field, "a number of at least 0", value))
    }
}

/// Fails unless a count is at least 1.
pub(crate) fn at_least_one(
    part: &'static str,
    field: &'static str,
    value: u64,
) -> Result<(), ConfigError> {
    if value == 0 { Err(ConfigError::new(part, field, "at least 1", value)) } else { Ok(()) }
}
