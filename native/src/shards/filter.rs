//! Which samples of shards are taken, and with which captions.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use wuerstchen_train::config::{FilterConfig, ShardsConfig};

use super::index::{Found, Tally};
use crate::terminal::{counted, is_or_are};

/// Names of fields, as img2dataset and the LAION sets write them. A sample's names may be in any case.
const WIDTH: [&str; 2] = ["width", "original_width"];
const HEIGHT: [&str; 2] = ["height", "original_height"];
const AESTHETIC: [&str; 3] = ["aesthetic", "aesthetic_score", "aesthetic_score_laion_v2"];
const WATERMARK: [&str; 3] = ["pwatermark", "p_watermark", "watermark_prob"];
const UNSAFE: [&str; 3] = ["punsafe", "p_unsafe", "NSFW_prob"];

/// The fields in which captions are looked for, unless the config names others.
pub(super) const CAPTIONS: [&str; 6] = ["captions", "txt", "caption", "text", "prompt", "cap"];

/// The fields that are read: those of bounds and of captions.
pub(super) fn fields_of(config: &ShardsConfig) -> BTreeSet<&str> {
    let of_bounds: [&[&str]; 5] = [&WIDTH, &HEIGHT, &AESTHETIC, &WATERMARK, &UNSAFE];
    let captions = config.captions.keys().map(String::as_str).chain(CAPTIONS);
    of_bounds.into_iter().flatten().copied().chain(captions).collect()
}

/// The numbers of samples and captions that are left out.
#[derive(Default)]
pub(super) struct LeftOut {
    /// Numbers of samples, by the reason.
    samples: BTreeMap<String, Tally>,
    /// Numbers of texts of samples that are taken, by the ends of their names, besides those that are captions.
    pub(super) unused: BTreeMap<String, usize>,
    /// Number of values among the captions of samples that are no text.
    no_texts: usize,
}

impl LeftOut {
    /// The captions of a sample and their probabilities; `None` where the sample is left out, whose reason is counted.
    /// `name` tells the sample and its shard.
    pub(super) fn take(
        &mut self,
        config: &ShardsConfig,
        found: &Found,
        name: impl FnOnce() -> String,
    ) -> Option<(Vec<String>, Vec<f64>)> {
        let read = fields_read(config, found);
        let fault = found.fault.map(str::to_owned);
        let taken = match fault.or_else(|| refusal(&config.filter, &found.fields)) {
            Some(reason) => Err(reason),
            None => captions_of(&read, found).ok_or_else(|| "no caption".to_owned()),
        };
        self.no_texts += no_texts(&read, found);
        if taken.is_ok() {
            let is_used =
                |ending: &str| read.iter().any(|(field, _)| *ending == field.to_lowercase());
            for ending in found.texts.keys().filter(|ending| !is_used(ending)) {
                *self.unused.entry(ending.clone()).or_default() += 1;
            }
        }
        taken.map_err(|reason| self.samples.entry(reason).or_default().add(&name())).ok()
    }

    /// A line for each reason.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        let samples = self.samples.iter();
        let samples = samples.map(|(reason, Tally { count, first })| {
            format!("left out: {}: {reason}, such as {first}", counted(*count, "sample"))
        });
        let no_texts = Some(self.no_texts).filter(|count| *count > 0);
        samples.chain(no_texts.map(|count| {
            let (captions, are) = (counted(count, "caption"), is_or_are(count));
            format!("left out: {captions} that {are} no text")
        }))
    }

    /// All lines in one, for an error.
    pub(super) fn inline(&self) -> String {
        self.lines().map(|line| format!("; {line}")).collect()
    }
}

/// Why the filter leaves a sample out.
fn refusal(filter: &FilterConfig, fields: &Map<String, Value>) -> Option<String> {
    let bounds: [(&[&str], Option<f64>, bool); 5] = [
        (&WIDTH, filter.min_width.map(|side| side as f64), true),
        (&HEIGHT, filter.min_height.map(|side| side as f64), true),
        (&AESTHETIC, filter.min_aesthetic, true),
        (&WATERMARK, filter.max_watermark, false),
        (&UNSAFE, filter.max_unsafe, false),
    ];
    bounds.into_iter().find_map(|(names, bound, is_least)| {
        let (bound, name) = (bound?, names[0]);
        let mut known = names.iter().filter_map(|name| Some((name, value_of(fields, name)?)));
        let (empty, value) = (known.clone().next(), known.find(|(_, value)| !value.is_null()));
        let Some((_, value)) = value else {
            return Some(match empty {
                Some((name, _)) => format!("no value in {name}"),
                None => format!("no field {name}"),
            });
        };
        // Tables that went through CSV have numbers as text.
        let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
        // The text "nan" is neither below a bound nor above it.
        match number.filter(|number| !number.is_nan()) {
            None => Some(format!("{name} is no number")),
            Some(value) if is_least && value < bound => Some(format!("{name} below {bound}")),
            Some(value) if !is_least && value > bound => Some(format!("{name} above {bound}")),
            Some(_) => None,
        }
    })
}

/// The value of a field: the one of exactly this name, or else the first whose name differs in case alone.
pub(super) fn value_of<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let in_any_case = || fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name));
    fields.get(name).or_else(|| in_any_case().map(|(_, value)| value))
}

/// The captions of a sample in the fields that are `read`, and their probabilities in the shares of the fields, which sum
/// to 1.
fn captions_of(read: &[(&str, f64)], found: &Found) -> Option<(Vec<String>, Vec<f64>)> {
    // The captions of one field divide its share equally.
    let of_field = |&(field, share): &(&str, f64)| {
        let texts = texts_of(found, field);
        let part = share / texts.len() as f64;
        texts.into_iter().map(move |text| (text, part)).collect::<Vec<_>>()
    };
    let captions: Vec<_> = read.iter().flat_map(of_field).collect();
    let whole: f64 = captions.iter().map(|(_, share)| share).sum();
    let of_whole = |(text, share): (String, f64)| (text, share / whole);
    (whole > 0.0).then(|| captions.into_iter().map(of_whole).unzip())
}

/// How many captions of a sample are no texts; null stands for no caption and does not count.
fn no_texts(read: &[(&str, f64)], found: &Found) -> usize {
    let is_no_text = |value: &Value| match value {
        Value::Null => false,
        value => value.as_str().is_none_or(|text| !is_text(text)),
    };
    let in_field = |field: &str| match value_of(&found.fields, field) {
        Some(Value::Array(list)) => list.iter().filter(|value| is_no_text(value)).count(),
        value => usize::from(value.is_some_and(is_no_text)),
    };
    read.iter().map(|(field, _)| in_field(field)).sum()
}

/// The fields in which captions are looked for, with their shares: those that the config names, or the usual ones up to
/// the first that has any.
fn fields_read<'a>(config: &'a ShardsConfig, found: &Found) -> Vec<(&'a str, f64)> {
    if !config.captions.is_empty() {
        return config.captions.iter().map(|(field, share)| (field.as_str(), *share)).collect();
    }
    let first = CAPTIONS.iter().position(|field| !texts_of(found, field).is_empty());
    let read = &CAPTIONS[..first.map_or(CAPTIONS.len(), |first| first + 1)];
    read.iter().map(|field| (*field, 1.0)).collect()
}

/// The captions in a field of a sample.
pub(super) fn texts_of(found: &Found, field: &str) -> Vec<String> {
    // The ends of files' names are in lower case already.
    let file = found.texts.get(&field.to_lowercase());
    let mut texts: Vec<&str> = file.map(String::as_str).into_iter().collect();
    if texts.is_empty() {
        match value_of(&found.fields, field) {
            Some(Value::String(text)) => texts.push(text),
            Some(Value::Array(list)) => texts.extend(list.iter().filter_map(Value::as_str)),
            _ => {}
        }
    }
    let texts = texts.into_iter().filter(|text| is_text(text)).map(str::trim);
    texts.filter(|text| !text.is_empty()).map(str::to_owned).collect()
}

/// Whether a value is a text: what has zeros in it is a text in another encoding, or none, as in text files.
fn is_text(value: &str) -> bool {
    !value.contains('\0')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::index::Place;
    use super::*;

    fn found(fields: Value) -> Found {
        let Value::Object(fields) = fields else { panic!("no object") };
        let texts = BTreeMap::from([("txt".to_owned(), " a fox \n".to_owned())]);
        let place = Place::Bytes { offset: 0, length: 1 };
        Found { name: "0.jpg".into(), place, texts, fields, fault: None }
    }

    #[test]
    fn bounds_leave_samples_out() {
        let filter = FilterConfig {
            min_width: Some(100),
            min_aesthetic: Some(5.0),
            max_watermark: Some(0.5),
            ..FilterConfig::default()
        };
        let config = ShardsConfig { filter, ..ShardsConfig::default() };
        let mut left_out = LeftOut::default();
        let mut takes = |fields: Value| {
            left_out.take(&config, &found(fields), || "a.tar/0.jpg".into()).is_some()
        };
        assert!(takes(json!({"width": 100, "AESTHETIC_SCORE": 5.0, "pwatermark": 0.5})));
        assert!(!takes(json!({"width": 99, "AESTHETIC_SCORE": 6, "pwatermark": 0.1})));
        assert!(!takes(json!({"width": 100, "aesthetic": 4.9, "pwatermark": 0.1})));
        assert!(!takes(json!({"width": 100, "aesthetic": 5.1, "p_watermark": 0.6})));
        assert!(!takes(json!({"aesthetic": 5.1, "p_watermark": 0.6})));
        assert!(!takes(json!({"width": 100, "aesthetic": 5.1, "p_watermark": null})));
        assert!(!takes(json!({"width": 100, "aesthetic": 5.1, "pwatermark": "nan"})));
        let lines: Vec<_> = left_out.lines().collect();
        assert_eq!(
            lines,
            [
                "left out: 1 sample: aesthetic below 5, such as a.tar/0.jpg",
                "left out: 1 sample: no field width, such as a.tar/0.jpg",
                "left out: 1 sample: no value in p_watermark, such as a.tar/0.jpg",
                "left out: 1 sample: pwatermark above 0.5, such as a.tar/0.jpg",
                "left out: 1 sample: pwatermark is no number, such as a.tar/0.jpg",
                "left out: 1 sample: width below 100, such as a.tar/0.jpg",
            ]
        );
    }

    /// Shares of 1 and 3 of those that are there.
    #[test]
    fn captions_have_their_shares() {
        let captions =
            |config: &ShardsConfig, found: &Found| captions_of(&fields_read(config, found), found);
        let shares = [("txt", 1.0), ("blip", 3.0), ("none", 9.0)];
        let shares = shares.map(|(field, share)| (field.to_owned(), share)).into();
        let config = ShardsConfig { captions: shares, ..ShardsConfig::default() };
        let found = found(json!({"blip": "an animal", "caption": "x"}));
        let (texts, chances) = captions(&config, &found).unwrap();
        assert_eq!(texts, ["an animal", "a fox"]);
        assert_eq!(chances, [0.75, 0.25]);
        let (texts, chances) = captions(&ShardsConfig::default(), &found).unwrap();
        assert_eq!((texts, chances), (vec!["a fox".to_owned()], vec![1.0]));
        let several = self::found(json!({"captions": ["one", " ", "two"]}));
        let (texts, chances) = captions(&ShardsConfig::default(), &several).unwrap();
        assert_eq!((texts, chances), (vec!["one".to_owned(), "two".to_owned()], vec![0.5; 2]));
    }

    #[test]
    fn names_of_fields_may_be_in_any_case() {
        let filter = FilterConfig { min_width: Some(100), ..FilterConfig::default() };
        let config = ShardsConfig { filter, ..ShardsConfig::default() };
        let take = |fields: Value| {
            let found = Found { texts: BTreeMap::new(), ..found(fields) };
            let (captions, _) = LeftOut::default().take(&config, &found, String::new)?;
            Some(captions.concat())
        };
        assert_eq!(take(json!({"TEXT": "a dog", "Width": 100})).as_deref(), Some("a dog"));
        // The exact name comes first.
        let both = json!({"Text": "a dog", "text": "a cat", "WIDTH": 99, "width": 100});
        assert_eq!(take(both).as_deref(), Some("a cat"));
        assert_eq!(take(json!({"text": "a dog", "WIDTH": 99})), None);
    }

    #[test]
    fn captions_that_are_no_texts_are_counted() {
        let mut left_out = LeftOut::default();
        let mut take = |fields: Value| {
            let taken = left_out.take(&ShardsConfig::default(), &found(fields), String::new);
            taken.map(|(texts, _)| texts)
        };
        let captions = json!({"captions": ["a", 5, null, {}, "b\0c"]});
        assert_eq!(take(captions), Some(vec!["a".to_owned()]));
        // The text file comes first.
        assert_eq!(take(json!({"caption": 5})), Some(vec!["a fox".to_owned()]));
        let lines: Vec<_> = left_out.lines().collect();
        assert_eq!(lines, ["left out: 3 captions that are no text"]);
        // The first sample has captions in its fields, and a text that is none.
        assert_eq!(left_out.unused, BTreeMap::from([("txt".to_owned(), 1)]));
    }
}
