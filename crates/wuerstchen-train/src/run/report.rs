//! A run as one page of HTML that needs nothing else: curves, sample grids over time, config and cost.

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use crate::store::{METRICS, Store, StoreError};

/// Most points of a curve; each is the mean of an equal number of steps.
const POINTS: usize = 240;

/// Most sample grids that are shown for a stage, evenly spread over its steps.
const GRIDS: usize = 8;

/// Width and height of a curve, in pixels.
const CURVE: [f64; 2] = [640.0, 180.0];

const STYLE: &str = "
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: 0.1rem 1.5rem 0.1rem 0; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; }
svg path { fill: none; stroke: #2a7de1; stroke-width: 1.5; }
svg line { stroke: #8886; }
svg text { font-size: 11px; fill: currentColor; }
figure { margin: 1rem 0; }
img { width: 100%; image-rendering: pixelated; }
pre { overflow-x: auto; background: #8881; padding: 0.5rem; }
";

/// A line of a stage's metrics; lines of older versions lack some fields.
#[derive(Deserialize)]
struct Line {
    step: u64,
    /// `None` if it was infinite or NaN, which JSON has no numbers for.
    loss: Option<f64>,
    /// As [`Self::loss`].
    grad_norm: Option<f64>,
    learning_rate: f64,
    #[serde(default = "yes")]
    applied: bool,
    #[serde(default)]
    data_wait: f64,
    secs: Option<f64>,
    /// Further numbers that the stage measures, and anything else on the line.
    #[serde(flatten)]
    measures: BTreeMap<String, serde_json::Value>,
}

/// The numbers that a stage can measure besides the loss, and the titles of their curves.
const MEASURES: [(&str, &str); 16] = [
    ("codes_used", "share of the codes that a batch uses"),
    ("perplexity", "perplexity of the codes"),
    ("reconstruction_loss", "loss of the reconstruction"),
    ("perceptual_loss", "LPIPS of the reconstruction"),
    ("adversarial_loss", "loss that the discriminator gives"),
    ("adversarial_weight", "weight of that loss"),
    ("discriminator_loss", "loss of the discriminator"),
    ("discriminator_grad_norm", "norm of the discriminator's gradients"),
    ("error_t0", "squared error at times from 0 to 1/8"),
    ("error_t1", "squared error at times from 1/8 to 2/8"),
    ("error_t2", "squared error at times from 2/8 to 3/8"),
    ("error_t3", "squared error at times from 3/8 to 4/8"),
    ("error_t4", "squared error at times from 4/8 to 5/8"),
    ("error_t5", "squared error at times from 5/8 to 6/8"),
    ("error_t6", "squared error at times from 6/8 to 7/8"),
    ("error_t7", "squared error at times from 7/8 to 1"),
];

fn yes() -> bool {
    true
}

/// The name of the page among a run's files.
const REPORT: &str = "report.html";

/// What the page says of a run besides its files.
pub(crate) struct About<'a> {
    pub(crate) name: &'a str,
    /// The machine's power while it trains.
    pub(crate) watts: Option<f64>,
    /// The config as TOML.
    pub(crate) config: &'a str,
}

/// Writes the page of a run. `stages` has each stage's folder, its title, and the number of pictures in an update.
pub(crate) fn write_report(
    about: &About<'_>,
    stages: &[(&str, &str, usize)],
    store: &dyn Store,
) -> Result<(), StoreError> {
    store.write(REPORT, report(about, stages, store)?.as_bytes())
}

fn report(
    about: &About<'_>,
    stages: &[(&str, &str, usize)],
    store: &dyn Store,
) -> Result<String, StoreError> {
    let mut page = String::new();
    let name = escaped(about.name);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{name}</title>\n\
         <style>{STYLE}</style>\n<h1>The run {name}</h1>\n"
    );
    for (folder, title, batch_size) in stages {
        let Some(bytes) = store.read(&format!("{folder}/{METRICS}"))? else { continue };
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<Line> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if lines.is_empty() {
            continue;
        }
        let _ = writeln!(page, "<h2>{title}</h2>");
        page.push_str(&summary(&lines, *batch_size, about.watts));
        for (what, value) in [
            ("loss", (|line| line.loss.unwrap_or(f64::NAN)) as fn(&Line) -> f64),
            ("norm of the gradients", |line| line.grad_norm.unwrap_or(f64::NAN)),
            ("learning rate", |line| line.learning_rate),
        ] {
            page.push_str(&curve(what, &lines, value));
        }
        for (name, what) in MEASURES {
            // The curve passes over updates that do not measure this number.
            let value = |line: &Line| {
                let value = line.measures.get(name).and_then(serde_json::Value::as_f64);
                value.unwrap_or(f64::NAN)
            };
            page.push_str(&curve(what, &lines, value));
        }
        page.push_str(&grids(folder, &lines, store)?);
    }
    let config = escaped(about.config);
    let _ = write!(page, "<h2>Config</h2>\n<pre>{config}</pre>\n</html>\n");
    Ok(page)
}

/// A table of the updates of a stage: their number, loss, time and energy.
fn summary(lines: &[Line], batch_size: usize, watts: Option<f64>) -> String {
    let last = lines.len().saturating_sub(100);
    let mean = |lines: &[Line], value: fn(&Line) -> Option<f64>| {
        let values: Vec<_> = lines.iter().filter_map(value).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    let skipped = lines.iter().filter(|line| !line.applied).count();
    let mut rows = vec![
        ("updates", lines.last().map_or(0, |line| line.step).to_string()),
        ("pictures an update", batch_size.to_string()),
        ("mean loss of the last 100 updates", format!("{:.4}", mean(&lines[last..], |l| l.loss))),
        ("updates that changed nothing", skipped.to_string()),
        (
            "time that waited for data",
            format!("{:.1} %", 100.0 * mean(lines, |l| Some(l.data_wait))),
        ),
    ];
    let secs: Option<f64> = lines.iter().map(|line| line.secs).sum();
    if let Some(secs) = secs {
        let per_sec = (lines.len() * batch_size) as f64 / secs;
        rows.push(("hours", format!("{:.2}", secs / 3600.0)));
        rows.push(("pictures a second", format!("{per_sec:.1}")));
        if let Some(watts) = watts {
            rows.push(("energy at the config's watts", format!("{:.3} kWh", watts * secs / 3.6e6)));
        }
    }
    let row = |(what, value): &(&str, String)| format!("<tr><th>{what}<td>{value}\n");
    format!("<table>\n{}</table>\n", rows.iter().map(row).collect::<String>())
}

/// A curve over the steps, with the least and the largest value.
fn curve(what: &str, lines: &[Line], value: impl Fn(&Line) -> f64) -> String {
    let [width, height] = CURVE;
    let means = lines.chunks(lines.len().div_ceil(POINTS)).map(|lines| {
        let finite: Vec<_> = lines.iter().map(&value).filter(|value| value.is_finite()).collect();
        (lines[0].step as f64, finite.iter().sum::<f64>() / finite.len() as f64)
    });
    let points: Vec<_> = means.filter(|(_, value)| value.is_finite()).collect();
    let Some(&(first, _)) = points.first() else { return String::new() };
    let last = points[points.len() - 1].0;
    let least = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let most = points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let x = |step: f64| width * (step - first) / (last - first).max(1.0);
    let y = |value: f64| height * (1.0 - (value - least) / (most - least).max(f64::MIN_POSITIVE));
    let mut path = String::new();
    for (i, &(step, value)) in points.iter().enumerate() {
        let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, x(step), y(value));
    }
    format!(
        "<figure><figcaption>{what}</figcaption>\n\
         <svg viewBox=\"-60 -10 {:.0} {:.0}\" role=\"img\" aria-label=\"{what} by step\">\
         <line x1=\"0\" x2=\"{width}\" y1=\"0\" y2=\"0\"/>\
         <line x1=\"0\" x2=\"{width}\" y1=\"{height}\" y2=\"{height}\"/>\
         <text x=\"-58\" y=\"4\">{most:.3e}</text><text x=\"-58\" y=\"{:.0}\">{least:.3e}</text>\
         <text x=\"0\" y=\"{:.0}\">step {first}</text>\
         <text x=\"{width}\" y=\"{:.0}\" text-anchor=\"end\">{last}</text>\
         <path d=\"{path}\"/></svg></figure>\n",
        width + 70.0,
        height + 35.0,
        height + 4.0,
        height + 18.0,
        height + 18.0,
    )
}

/// Some of the grids of samples that a stage has made.
fn grids(folder: &str, lines: &[Line], store: &dyn Store) -> Result<String, StoreError> {
    let name = |step: u64| format!("{folder}/samples-{step:06}.png");
    let steps: Vec<_> =
        lines.iter().map(|line| line.step).filter(|&step| store.contains(&name(step))).collect();
    let shown = GRIDS.min(steps.len());
    let mut html = String::new();
    for i in 1..=shown {
        let step = steps[i * steps.len() / shown - 1];
        let Some(png) = store.read(&name(step))? else { continue };
        let _ = writeln!(
            html,
            "<figure><figcaption>samples after step {step}</figcaption>\n\
             <img alt=\"samples after step {step}\" src=\"data:image/png;base64,{}\"></figure>",
            BASE64_STANDARD.encode(png)
        );
    }
    Ok(html)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Memory;

    #[test]
    fn a_report_shows_curves_grids_and_what_it_took() {
        let about = About { name: "a<b", watts: Some(1800.0), config: "name = \"a<b\"" };
        let store = Memory::default();
        for step in 1..=1000 {
            let (loss, applied) = (1.0 / f64::from(step), step != 7);
            let grad_norm = if applied { 1.0 } else { f64::INFINITY };
            let line = serde_json::json!({
                "step": step, "loss": loss, "grad_norm": grad_norm, "learning_rate": 1e-3,
                "applied": applied, "data_wait": 0.25, "secs": 2.0, "perplexity": 20.0,
            });
            store.append("a/metrics.jsonl", format!("{line}\n").as_bytes()).unwrap();
        }
        for step in [100, 200, 1000] {
            store.write(&format!("a/samples-{step:06}.png"), b"picture").unwrap();
        }
        let page = report(&about, &[("a", "Stage A", 4), ("b", "Stage B", 4)], &store).unwrap();
        assert!(page.contains("<h1>The run a&lt;b</h1>") && page.contains("<h2>Stage A</h2>"));
        assert!(!page.contains("Stage B"), "it has not been trained");
        for row in [
            "<th>updates<td>1000",
            "<th>mean loss of the last 100 updates<td>0.0011",
            "<th>updates that changed nothing<td>1\n",
            "<th>time that waited for data<td>25.0 %",
            "<th>hours<td>0.56",
            "<th>pictures a second<td>2.0",
            "<td>1.000 kWh",
        ] {
            assert!(page.contains(row), "{row} is not in {page}");
        }
        assert_eq!(page.matches("<svg").count(), 4);
        assert!(page.contains("perplexity of the codes") && !page.contains("LPIPS"));
        assert_eq!(page.matches("base64,cGljdHVyZQ==").count(), 3);
        assert!(page.contains("samples after step 1000"));
        assert!(page.contains("<pre>name = \"a&lt;b\"</pre>"));
    }
}
