//! Reading the config of a training, with the changes of `--set`.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use wuerstchen::ConfigError;
use wuerstchen::fs::read_text;
use wuerstchen_train::config::{ReadConfigError, TrainConfig, TuneConfig};

use crate::usage;

/// As [`read_config`], with every value checked.
pub(crate) fn read_valid_config(path: &Path, changes: &[String]) -> Result<TrainConfig> {
    let config = read_config(path, changes)?;
    config.validate().map_err(|error| invalid(error, path, changes))?;
    Ok(config)
}

/// Reads the config and applies `KEY=VALUE` changes.
pub(super) fn read_config(path: &Path, changes: &[String]) -> Result<TrainConfig> {
    let fits = |table: &toml::Table| TrainConfig::from_table(table.clone()).is_ok();
    let (table, unfit) = read_table(path, changes, &fits)?;
    TrainConfig::from_table(table.clone()).map_err(|error| match (error, unfit) {
        (ReadConfigError::Toml(error), Some(change)) => unfit_change(change, &error),
        _ if TuneConfig::from_table(table.clone()).is_ok() => usage(&anyhow!(
            "{} is a config of fine-tuning, for train lora, and train c with --model: expected one of training \
             from nothing",
            path.display()
        )),
        (ReadConfigError::Config(error), _) => invalid(error, path, changes),
        (ReadConfigError::Toml(error), _) => {
            usage(&anyhow!("{} does not fit: {}", path.display(), plain(&error.to_string())))
        }
    })
}

/// Reads a config of fine-tuning and applies `KEY=VALUE` changes.
pub(super) fn read_tune_config(path: &Path, changes: &[String]) -> Result<TuneConfig> {
    let fits = |table: &toml::Table| TuneConfig::from_table(table.clone()).is_ok();
    let (table, unfit) = read_table(path, changes, &fits)?;
    TuneConfig::from_table(table).map_err(|error| match (error, unfit) {
        (ReadConfigError::Toml(error), Some(change)) => unfit_change(change, &error),
        (ReadConfigError::Config(error), _) => invalid(error, path, changes),
        (ReadConfigError::Toml(error), _) => usage(&anyhow!(
            "{} does not fit: expected a config of fine-tuning, such as configs/lora.toml: {}",
            path.display(),
            plain(&error.to_string())
        )),
    })
}

/// The error of a change after which a config does not fit.
fn unfit_change(change: &str, error: &toml::de::Error) -> anyhow::Error {
    usage(&anyhow!("--set {change}: {}", plain(error.message())))
}

/// The error of a value of a config that was read from a file and perhaps changed.
pub(super) fn invalid(error: ConfigError, path: &Path, changes: &[String]) -> anyhow::Error {
    let changes: Vec<_> = changes.iter().map(|change| format!(" --set {change}")).collect();
    let place = format!("{}{}", path.display(), changes.concat());
    usage(&anyhow::Error::from(error).context(place))
}

/// What serde calls the types of a config's values, and what they are called here.
const TYPES: [(&str, &str); 6] = [
    ("expected u64", "expected a whole number of at least 0"),
    ("expected u32", "expected a whole number of at least 0"),
    ("expected usize", "expected a whole number of at least 0"),
    ("expected f64", "expected a number"),
    ("expected f32", "expected a number"),
    ("expected a boolean", "expected true or false"),
];

/// An error of serde in one line, without Rust's names of types.
fn plain(error: &str) -> String {
    let mut error = error.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((start, name)) = error.split_once("expected struct ") {
        let end = name.split_once(' ').map_or(String::new(), |(_, end)| format!(" {end}"));
        error = format!("{start}expected a table{end}");
    }
    TYPES.iter().fold(error, |error, (name, plain)| error.replace(name, plain))
}

/// Reads a config as a table and applies `KEY=VALUE` changes; `fits` says whether a table is a config. Also returns the
/// first change after which the table is no config any more, if there is one.
fn read_table<'a>(
    path: &Path,
    changes: &'a [String],
    fits: &dyn Fn(&toml::Table) -> bool,
) -> Result<(toml::Table, Option<&'a str>)> {
    let text = read_text(path).context("cannot read the config")?;
    let table = text.parse().with_context(|| format!("{} is not TOML", path.display()));
    let mut table: toml::Table = table.map_err(|error| usage(&error))?;
    let (mut is_fit, mut unfit) = (fits(&table), None);
    for change in changes {
        let (key, value) = change
            .split_once('=')
            .with_context(|| format!("--set expects KEY=VALUE, got {change:?}"))
            .map_err(|error| usage(&error))?;
        apply(&mut table, key, value, fits)
            .with_context(|| format!("--set {change}"))
            .map_err(|error| usage(&error))?;
        let was_fit = std::mem::replace(&mut is_fit, fits(&table));
        if is_fit {
            unfit = None;
        } else if was_fit {
            unfit = Some(change.as_str());
        }
    }
    Ok((table, unfit))
}

/// Changes a value of the config. A value that looks like a number or a date is taken for a text, such as the name of a
/// folder, where the config accepts only that.
fn apply(
    table: &mut toml::Table,
    key: &str,
    value: &str,
    fits: &dyn Fn(&toml::Table) -> bool,
) -> Result<()> {
    let as_text = toml::Value::from(value);
    let parsed: Option<toml::Table> = format!("value = {value}").parse().ok();
    // After a line break a value could go on with other fields.
    let parsed = parsed.filter(|table| table.len() == 1);
    let is_number = parsed.is_some() || !value.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = parsed.map_or(as_text.clone(), |table| table["value"].clone());
    let with = |value: toml::Value| {
        let mut changed = table.clone();
        set(&mut changed, key, value)?;
        Ok::<_, anyhow::Error>(changed)
    };
    let (parsed, text) = (with(parsed)?, with(as_text)?);
    *table = match (fits(&parsed), fits(&text)) {
        (false, true) => text,
        (false, false) if !is_number => bail!("expected a number of at most {}", i64::MAX),
        _ => parsed,
    };
    Ok(())
}

fn set(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<()> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        // A table may be missing where all of its values have defaults.
        Some((first, rest)) => match table.entry(first).or_insert(toml::Table::new().into()) {
            toml::Value::Table(inner) => set(inner, rest, value),
            _ => bail!("{first:?} is no table of the config"),
        },
    }
}
