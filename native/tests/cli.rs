//! The command line as its users run it: goldens, pictures, training, mistakes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn wuerstchen(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wuerstchen")).args(arguments).output().unwrap()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn goldens() -> String {
    repository().join("tests/golden/small").display().to_string()
}

/// An empty folder for one test.
fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn verify(folder: &str, device: &str) -> (Option<i32>, Value) {
    let output = wuerstchen(&["verify", folder, "--device", device, "--json"]);
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap_or_else(|_| panic!("{}", text(&output.stderr))))
}

fn assert_all_agree(device: &str) {
    let (code, report) = verify(&goldens(), device);
    let checks = report["checks"].as_array().unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| check["ok"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(code, Some(0));
    for file in [
        "prior",
        "decoder",
        "vqgan",
        "effnet",
        "clip_prior",
        "clip_decoder",
        "interpolate",
        "scheduler",
        "tokenizer",
        "pipeline",
        "train_prior",
        "train_decoder",
        "train_vqgan",
        "original/prior",
        "original/decoder",
        "original/vqgan",
        "original/effnet",
    ] {
        assert!(checks.iter().any(|check| check["file"] == file), "{file} was not compared");
    }
}

#[test]
fn every_golden_agrees_on_the_cpu() {
    assert_all_agree("cpu");
}

/// On any adapter, a software one too; only an explicit `WUERSTCHEN_GPU_TESTS=no` skips it.
#[test]
fn every_golden_agrees_on_the_gpu() {
    if std::env::var("WUERSTCHEN_GPU_TESTS").is_ok_and(|value| value == "no") {
        return;
    }
    assert_all_agree("gpu");
}

/// A golden with one weight changed must be noticed, or the comparison shows nothing.
#[test]
fn a_changed_weight_is_noticed() {
    let folder = scratch("changed");
    let copied = Command::new("cp").args(["-r", &format!("{}/.", goldens())]).arg(&folder).status();
    assert!(copied.unwrap().success());
    let weights = folder.join("wuerstchen-prior/prior/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&3.0f32.to_le_bytes());
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, bytes).unwrap();
    let (code, report) = verify(&folder.display().to_string(), "cpu");
    assert_eq!((code, report["ok"].as_bool()), (Some(1), Some(false)));
}

#[test]
fn one_seed_gives_one_picture_that_tells_how_it_was_made() {
    let folder = scratch("generate");
    let path = |name: &str| folder.join(name).display().to_string();
    let generate = |name: &str, more: &[&str]| {
        let prompt = "a large red star on a white background";
        let mut arguments = vec!["generate", prompt, "--device", "cpu", "--seed", "5"];
        let output = path(name);
        arguments.extend(["-o", &output, "--prior-steps", "4", "--decoder-steps", "2"]);
        arguments.extend(more);
        let output = wuerstchen(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    generate("one.png", &[]);
    generate("again.png", &[]);
    generate("many.png", &["--count", "2"]);
    let bytes = |name: &str| fs::read(folder.join(name)).unwrap();
    assert_eq!(bytes("one.png"), bytes("again.png"));
    assert_ne!(bytes("many-0.png"), bytes("many-1.png"));

    let output = wuerstchen(&["inspect", &path("one.png"), "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["prompt"], "a large red star on a white background");
    assert_eq!(told["settings"]["seed"], 5);
}

#[test]
fn mistakes_are_named_and_have_their_exit_code() {
    for (arguments, code, message) in [
        (vec!["generate", "x", "--width", "65"], 2, "width must be a size that the model can make"),
        (vec!["generate", "x", "--prior-steps", "0"], 2, "prior_steps must be between 1 and 1000"),
        (vec!["generate", "x", "--model", "/no/such/model"], 4, "/no/such/model"),
        (vec!["verify", "/no/such/folder"], 4, "/no/such/folder"),
        (vec!["train", "a", "-c", "/no/such/config.toml"], 4, "/no/such/config.toml"),
        (vec!["nonsense"], 2, "nonsense"),
    ] {
        let output = wuerstchen(&arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
}

/// All stages from nothing; the model that comes out generates.
#[test]
fn the_smoke_preset_trains_a_model_that_generates() {
    let folder = scratch("train");
    let run = folder.join("run").display().to_string();
    let config = repository().join("configs/smoke.toml").display().to_string();
    let steps = ["a.steps=30", "b.steps=8", "c.steps=30"];
    let mut arguments = vec!["train", "all", "-c", &config, "-o", &run, "--device", "cpu"];
    arguments.extend(steps.iter().flat_map(|change| ["--set", change]));
    arguments.extend(["--set", "b.cached_scenes=64", "--set", "c.cached_scenes=64"]);
    let output = wuerstchen(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let metrics = fs::read_to_string(folder.join("run/a/metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap())
        .collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert_eq!(losses.len(), 30);
    assert!(mean(&losses[25..]) < 0.8 * mean(&losses[..5]), "{losses:?}");

    for model in ["run/model", "run/model.safetensors"] {
        let model = folder.join(model).display().to_string();
        let picture = folder.join("out.png").display().to_string();
        let output = wuerstchen(&["generate", "a star", "-m", &model, "-o", &picture]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}
