//! `wuerstchen verify`: compares our tensors with those of the authors' code.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use futures_lite::future::block_on;
use indicatif::{ProgressBar, ProgressStyle};
use same_file::is_same_file;
use serde::Serialize;
use wuerstchen::ModelFiles;
use wuerstchen_verify::{Check, GPU_SLACK, Subject, Verification, verify};

use crate::devices::{self, Choice};
use crate::files;

/// Arguments of `wuerstchen verify`.
#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// A model folder that contains golden/ and may contain original/
    folder: PathBuf,
    /// Where to run
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write the computed tensors to this folder, under the goldens' names
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    device: &'a str,
    checks: &'a [Check],
    /// Goldens that were compared with nothing.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    unchecked: &'a [String],
    /// Stages that have no goldens.
    #[serde(skip_serializing_if = "<[&str]>::is_empty")]
    without_golden: &'a [&'static str],
}

/// Compares everything; returns false if an error is above its bound.
pub(crate) fn run(args: &VerifyArgs) -> Result<bool> {
    if let Some(folder) = &args.dump {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let read = ["", "golden", "original"].map(|part| args.folder.join(part));
        if read.iter().any(|read| is_same_file(folder, read).unwrap_or(false)) {
            let error = anyhow!("cannot write to {}: its files are compared", folder.display());
            return Err(crate::usage(&error));
        }
    }
    let files = files::read_model(Some(&args.folder))?;
    let goldens = files::read_goldens(&args.folder)?;
    let weights = files::read_originals(&args.folder, files.family())?;
    let originals = ModelFiles { texts: files.texts.clone(), weights };
    let lora = files::read_original_lora(&args.folder)?;
    let found = devices::choose(args.device)?;
    let slack = if found.is_cpu() { 1.0 } else { GPU_SLACK };
    let subject = Subject {
        files: &files,
        originals: &originals,
        lora: lora.as_ref(),
        goldens: &goldens,
        device: &found.device,
        slack,
    };
    let verification = verify_with_progress(&subject)?;
    if let Some(folder) = &args.dump {
        for (name, bytes) in &verification.computed {
            let name = name.replace('/', "_");
            wuerstchen::fs::write(&folder.join(format!("{name}.safetensors")), bytes)?;
        }
    }
    let ok = verification.ok();
    if args.json {
        let report = Report {
            ok,
            device: &found.name,
            checks: &verification.checks,
            unchecked: &verification.left_out,
            without_golden: &verification.without_golden,
        };
        crate::print(&serde_json::to_string(&report)?)?;
    } else {
        let left_out = verification.left_out.iter().map(|name| format!("not checked: {name}"));
        let absent = verification.without_golden.iter();
        let absent =
            absent.map(|name| format!("not checked: {name}, which has no file in golden/"));
        let lines = std::iter::once(table(&verification.checks)).chain(left_out).chain(absent);
        crate::print(&lines.collect::<Vec<_>>().join("\n"))?;
    }
    Ok(ok)
}

/// Shows which file is being computed, because a GPU takes long to compile its shaders.
fn verify_with_progress(subject: &Subject) -> Result<Verification> {
    let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}")
        .expect("the template is well-formed");
    let spinner = ProgressBar::new_spinner().with_style(style);
    spinner.enable_steady_tick(Duration::from_millis(200));
    let result = block_on(verify(subject, &mut |file| spinner.set_message(file.to_owned())));
    spinner.finish_and_clear();
    Ok(result?)
}

/// A line for every module of every file, with its worst tensor, then every failed tensor.
fn table(checks: &[Check]) -> String {
    let mut lines = Vec::new();
    lines.push(format!(
        "{:<24}{:<22}{:>7}  {:>9}  {:>9}",
        "file", "module", "tensors", "relative", "bound"
    ));
    let mut files: Vec<&str> = Vec::new();
    for check in checks {
        if files.last() != Some(&check.file.as_str()) {
            files.push(&check.file);
        }
    }
    for file in files {
        let mut modules: BTreeMap<String, Vec<&Check>> = BTreeMap::new();
        for check in checks.iter().filter(|check| check.file == file) {
            modules.entry(module(&check.name)).or_default().push(check);
        }
        for (module, checks) in modules {
            let share = |check: &&&Check| check.relative / check.bound.max(f64::MIN_POSITIVE);
            let worst = checks.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
            let Some(worst) = worst else { continue };
            let verdict = if checks.iter().all(|check| check.ok) { "ok" } else { "FAILED" };
            lines.push(format!(
                "{file:<24}{module:<22}{:>7}  {:>9.1e}  {:>9.1e}  {verdict}",
                checks.len(),
                worst.relative,
                worst.bound
            ));
        }
    }
    for check in checks.iter().filter(|check| !check.ok) {
        lines.push(format!(
            "FAILED {}/{}: {:.3e} is above {:.1e} (largest difference {:.3e})",
            check.file, check.name, check.relative, check.bound, check.absolute
        ));
    }
    let failed = checks.iter().filter(|check| !check.ok).count();
    lines.push(format!("{} of {} tensors agree", checks.len() - failed, checks.len()));
    lines.join("\n")
}

/// The first two parts of a tensor's name.
fn module(name: &str) -> String {
    let name = name.strip_prefix("act/").unwrap_or(name).trim_end_matches(":out");
    let parts: Vec<_> = name.split(['.', '/']).take(2).collect();
    parts.join(".")
}
