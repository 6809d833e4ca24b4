//! Training as its users run it: from nothing, stopped and resumed, on pictures of their own.

mod program;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use image::{Rgba, RgbaImage};
use serde_json::Value;
use wuerstchen::Checkpoint;

use program::{scratch, text, wuerstchen};

fn smoke() -> String {
    of_repository("configs/smoke.toml")
}

/// A path of the repository.
fn of_repository(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(name).display().to_string()
}

/// `train` reads what `data cache` has kept, and adds nothing to it.
#[test]
fn a_cache_is_filled_before_training() {
    let folder = scratch("data-cache");
    let path = |name: &str| folder.join(name).display().to_string();
    let (run, cache) = (path("run"), path("cache"));
    let (config, model) =
        (of_repository("configs/shapes.toml"), of_repository("models/shapes.safetensors"));
    let files = || {
        let all = walkdir::WalkDir::new(&cache).into_iter().map(Result::unwrap);
        all.filter(|entry| entry.file_type().is_file()).count()
    };
    let common = [
        "-c",
        &config,
        "-o",
        &run,
        "--init",
        &model,
        "--device",
        "cpu",
        "--set",
        "c.cached_scenes=70",
    ];
    let output = wuerstchen(&[&["data", "cache", "c", "--cache", &cache], &common[..]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    // 64 and 6.
    assert_eq!(files(), 2);
    // Files that a killed program has left; another program may still be writing the second one.
    let parts = ["embeddings/0.safetensors.12.part", "embeddings/1.safetensors.13.part"];
    for (part, age) in parts.iter().zip([7200, 10]) {
        let file = fs::File::create(Path::new(&cache).join(part)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    let updates = ["--set", "c.steps=1", "--set", "c.batch_size=2", "--set", "c.shards=1"];
    let train = ["train", "c", "--resume", "auto", "--cache", &cache];
    let output = wuerstchen(&[&train[..], &common, &updates].concat());
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    let removed = format!("removed 1 unfinished file of programs that were killed from {cache}");
    assert!(told.contains(&removed), "{told}");
    assert_eq!(parts.map(|part| Path::new(&cache).join(part).exists()), [false, true]);
    assert_eq!(files(), 3);
    for (arguments, expected) in [
        (vec!["data", "cache", "a", "--cache", &cache], "expected b, c or lora"),
        (vec!["data", "cache", "c"], "name a folder with --cache"),
    ] {
        let output = wuerstchen(&[&arguments[..], &common].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
}

/// All stages from nothing; the model that comes out generates.
#[test]
fn the_smoke_preset_trains_a_model_that_generates() {
    let folder = scratch("train");
    let run = folder.join("run").display().to_string();
    let config = smoke();
    let steps = ["a.steps=30", "b.steps=8", "c.steps=30"];
    let mut arguments = vec!["train", "all", "-c", &config, "-o", &run, "--device", "cpu"];
    arguments.extend(steps.iter().flat_map(|change| ["--set", change]));
    arguments.extend(["--set", "b.cached_scenes=64", "--set", "c.cached_scenes=64"]);
    let output = wuerstchen(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));

    for line in
        ["stage a: step 30 of 30, loss 0.", "stage b: step 8 of 8", "stage c: step 30 of 30"]
    {
        assert!(text(&output.stderr).contains(line), "{line}: {}", text(&output.stderr));
    }
    assert!(text(&output.stderr).contains(" % waiting for data, ETA"), "{}", text(&output.stderr));

    let metrics = fs::read_to_string(folder.join("run/a/metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap())
        .collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert_eq!(losses.len(), 30);
    assert!(mean(&losses[25..]) < 0.8 * mean(&losses[..5]), "{losses:?}");

    let files = fs::read_dir(folder.join("run/a")).unwrap().map(|file| file.unwrap().path());
    let is_events =
        |path: &std::path::PathBuf| path.to_string_lossy().contains("/events.out.tfevents.");
    let events: Vec<_> = files.filter(is_events).map(|path| fs::read(path).unwrap()).collect();
    // Numbers of every step, and the last grid.
    let count = |tag: &[u8]| events[0].windows(tag.len()).filter(|found| *found == tag).count();
    let counts = ["\u{4}loss", "\u{9}grad_norm", "brain.Event:2", "\u{7}samples", "IHDR"];
    assert_eq!(counts.map(|tag| count(tag.as_bytes())), [30, 30, 1, 1, 1]);

    let report = fs::read_to_string(folder.join("run/report.html")).unwrap();
    // Three curves of every stage, three more of Stage A, and of the others the errors of eight parts of time.
    assert_eq!((report.matches("<svg").count(), report.matches("<img").count()), (28, 3));

    for model in ["run/model", "run/model.safetensors"] {
        let model = folder.join(model).display().to_string();
        let picture = folder.join("out.png").display().to_string();
        let output = wuerstchen(&["generate", "a star", "-m", &model, "-o", &picture]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

/// Ctrl-C and `--max-seconds` save and stop; `--resume auto` goes on with the next step.
#[cfg(unix)]
#[test]
fn training_stops_on_request_and_goes_on() {
    let folder = scratch("stop");
    let run = folder.display().to_string();
    let config = smoke();
    let train = ["train", "a", "-c", &config, "-o", &run, "--device", "cpu", "--resume", "auto"];
    let endless = ["--set", "a.steps=1000000", "--set", "a.sample_every=1000000"];
    let steps = || -> Vec<u64> {
        let metrics = fs::read_to_string(folder.join("a/metrics.jsonl")).unwrap_or_default();
        let step = |line: &str| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64();
        metrics.lines().filter_map(step).collect()
    };
    let stopped = |output: &Output| {
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("stopped; go on with --resume auto"));
        steps().last().copied().unwrap()
    };

    let program = env!("CARGO_BIN_EXE_wuerstchen");
    let mut command = Command::new(program);
    let child = command.args(train).args(endless).stderr(std::process::Stdio::piped()).spawn();
    let child = child.unwrap();
    while steps().len() < 2 {
        std::thread::sleep(Duration::from_millis(50));
    }
    let second = wuerstchen(&train);
    assert_eq!(second.status.code(), Some(4), "{second:?}");
    let error = text(&second.stderr);
    assert!(error.contains("another program is training in"), "{error}");
    // `timeout` signals a program and then its group: two signals in quick succession are one request.
    let twice = format!("kill -TERM {0}; kill -TERM {0}", child.id());
    assert!(Command::new("sh").args(["-c", &twice]).status().unwrap().success());
    let first = stopped(&child.wait_with_output().unwrap());

    // As if it had been killed a while after it saved.
    let metrics = fs::OpenOptions::new().append(true).open(folder.join("a/metrics.jsonl"));
    write!(metrics.unwrap(), "{{\"step\": {}, \"loss\": 1}}\n{{\"step\": 99, \"lo", first + 1)
        .unwrap();
    let output = wuerstchen(&[&train[..], &endless, &["--max-seconds", "0"]].concat());
    let second = stopped(&output);
    assert_eq!(second, first + 1);
    assert_eq!(steps(), (1..=second).collect::<Vec<_>>());
}

/// Three captioned pictures: one with a text file, two in metadata.
fn own_pictures(folder: &Path) {
    let field = |name: &str, colour| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbaImage::from_pixel(50, 40, Rgba(colour)).save(path).unwrap();
    };
    field("red.png", [200, 0, 0, 255]);
    fs::write(folder.join("red.txt"), "a red field\n\nthe field is red\n").unwrap();
    field("more/green.png", [0, 200, 0, 255]);
    field("more/glass.png", [0, 0, 0, 0]);
    let metadata = [
        r#"{"file_name": "green.png", "text": "a green field"}"#,
        r#"{"file_name": "glass.png", "caption": ["a pane of glass", "nothing"]}"#,
    ];
    fs::write(folder.join("more/metadata.jsonl"), metadata.join("\n")).unwrap();
}

/// Trains stages on the pictures, with few steps.
fn train_on(pictures: &Path, run: &Path, arguments: &[&str]) -> Output {
    let (pictures, run, config) = (pictures.display(), run.display().to_string(), smoke());
    let folder = format!("corpus.folder={pictures}");
    let mut all = vec!["train", arguments[0], "-c", &config, "-o", &run, "--device", "cpu"];
    let changes = [
        &folder,
        "corpus.vocab_size=300",
        "corpus.licence=CC0-1.0",
        "a.steps=2",
        "b.steps=2",
        "b.cached_scenes=3",
        "b.unknown_words=0",
        "c.steps=2",
        "c.cached_scenes=0",
        "c.unknown_words=0",
    ];
    all.extend(changes.iter().flat_map(|change| ["--set", change]));
    all.extend(&arguments[1..]);
    wuerstchen(&all)
}

/// A model of somebody's pictures generates, knows its licence, and keeps its tokens when pictures come.
#[test]
fn pictures_of_a_folder_train_a_model() {
    let folder = scratch("own");
    let (pictures, run) = (folder.join("pictures"), folder.join("run"));
    own_pictures(&pictures);
    let output = train_on(&pictures, &run, &["all", "--dry-run"]);
    assert!(text(&output.stdout).contains("3 pictures with 5 captions"), "{output:?}");
    let trained = train_on(&pictures, &run, &["all"]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));

    let grid = image::open(run.join("a/samples-000002.png")).unwrap().into_rgb8();
    let colours: Vec<_> = (0..8).map(|i| grid.get_pixel(32 * i + 16, 16).0).collect();
    for colour in [[200, 0, 0], [0, 200, 0], [255, 255, 255]] {
        assert!(colours.contains(&colour), "{colour:?} is not among {colours:?}");
    }
    let model = run.join("model.safetensors").display().to_string();
    let picture = folder.join("out.png").display().to_string();
    let output = wuerstchen(&["generate", "a red field", "-m", &model, "-o", &picture]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let card = fs::read_to_string(run.join("model/wuerstchen.json")).unwrap();
    assert!(card.contains("CC0-1.0") && card.contains("a folder of pictures"), "{card}");

    let read = |file: &str| fs::read_to_string(run.join(file)).unwrap();
    let config: toml::Table = read("config.toml").parse().unwrap();
    let scale = config["model"]["embedding_scale"].as_float().unwrap();
    let index: Value =
        serde_json::from_str(&read("model/wuerstchen-prior/model_index.json")).unwrap();
    assert!(text(&trained.stderr).contains(&format!("embedding_scale = {scale}")), "{scale}");
    assert!(scale > 0.0 && index["latent_mean"] == scale, "{scale}, {index}");

    let tokenizer =
        || fs::read(run.join("model/wuerstchen-prior/tokenizer/tokenizer.json")).unwrap();
    let before = tokenizer();
    fs::copy(pictures.join("red.png"), pictures.join("late.png")).unwrap();
    fs::write(pictures.join("late.txt"), "words words words that nobody knew").unwrap();
    let output = train_on(&pictures, &run, &["c", "--resume", "auto", "--set", "c.steps=3"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(tokenizer(), before);
    assert!(!text(&output.stderr).contains("embedding_scale"), "{}", text(&output.stderr));
    let resumed: toml::Table = read("config.toml").parse().unwrap();
    assert_eq!(resumed["model"], config["model"]);

    // A compressor that goes on learning makes other embeddings; a frozen one does not.
    let frozen = ["b", "--set", "b.freeze_compressor=true"];
    let further = ["b", "--resume", "auto", "--set", "b.steps=3"];
    for (stage_b, measured) in [(&frozen[..], false), (&further[..], true)] {
        let output = train_on(&pictures, &run, stage_b);
        let told = text(&output.stderr);
        let later =
            "stage c of this run was trained with other weights of the stages before it: remove ";
        assert!(output.status.success() && told.contains(later) == measured, "{told}");
        let output = train_on(&pictures, &run, &["c", "--resume", "auto", "--set", "c.steps=4"]);
        let told = text(&output.stderr);
        assert!(output.status.success() && told.contains("embedding_scale") == measured, "{told}");
    }
}

/// A frozen encoder and its codes keep their bits while the decoder learns, in a folder of its own.
#[test]
fn stage_a_learns_with_a_frozen_encoder() {
    let folder = scratch("frozen");
    let (pictures, run) = (folder.join("pictures"), folder.join("run"));
    own_pictures(&pictures);
    let frozen = ["a", "--set", "a.freeze_encoder=true"];
    let refused = train_on(&pictures, &run, &frozen);
    let error = text(&refused.stderr);
    assert!(!refused.status.success() && error.contains("vqgan"), "{error}");
    let output = train_on(&pictures, &run, &["a", "--max-seconds", &u64::MAX.to_string()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = train_on(&pictures, &run, &["b"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let weights = || {
        let path = run.join("model/wuerstchen/vqgan/diffusion_pytorch_model.safetensors");
        let file = Checkpoint::parse("vqgan", Arc::new(fs::read(path).unwrap())).unwrap();
        let values = |name: &str| (name.to_owned(), file.values(name).unwrap());
        file.names().map(values).collect::<BTreeMap<_, _>>()
    };
    let before = weights();
    let codes = [&frozen[..], &["--set", "a.codebook.decay=0.5"]].concat();
    let error = text(&train_on(&pictures, &run, &codes).stderr);
    assert!(error.contains("codebook must be left out with freeze_encoder"), "{error}");
    // The moving average of a frozen weight is not rounded anew in every update, so that Stage B still fits.
    let output = train_on(&pictures, &run, &[&frozen[..], &["--set", "a.steps=12"]].concat());
    let told = text(&output.stderr);
    assert!(output.status.success() && !told.contains("was trained with other weights"), "{told}");
    assert!(run.join("a-frozen/state.safetensors").is_file());
    for (name, values) in weights() {
        let learns = name.starts_with("up_blocks.") || name.starts_with("out_block.");
        assert_eq!(values != before[&name], learns, "{name}");
    }
    // A stage whose state is gone says that it begins anew.
    fs::remove_file(run.join("a/state.safetensors")).unwrap();
    let output = train_on(&pictures, &run, &["a", "--resume", "auto"]);
    let told = text(&output.stderr);
    assert!(output.status.success() && told.contains("its state is not there"), "{told}");
}

/// A model need not have all stages to start from: here only Stage A.
#[test]
fn a_run_starts_from_what_a_model_has() {
    let folder = scratch("init");
    let (pictures, first, second) = (folder.join("pictures"), folder.join("1"), folder.join("2"));
    own_pictures(&pictures);
    let output = train_on(&pictures, &first, &["a"]);
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("not trained yet, so that it makes no pictures: wuerstchen-prior/"),
        "{told}"
    );
    let bundle = first.join("model.safetensors");
    let refused = wuerstchen(&["generate", "a star", "-m", bundle.to_str().unwrap()]);
    let error = text(&refused.stderr);
    assert!(error.contains("the model lacks wuerstchen-prior/"), "{error}");
    let vqgan = first.join("model/wuerstchen/vqgan/diffusion_pytorch_model.safetensors");
    let init = ["b", "--init", vqgan.to_str().unwrap()];
    let output = train_on(&pictures, &second, &init);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // The state of another model tells one tensor, not all.
    let state = first.join("a/state.safetensors").display().to_string();
    let third = folder.join("3");
    let other = ["a", "--resume", &state, "--set", "model.vqgan.embed_dim=16"];
    let output = train_on(&pictures, &third, &other);
    let error = text(&output.stderr);
    let expected = format!("{state}: the training state of another model: expected ");
    assert!(error.contains(&expected) && error.contains(" tensors more"), "{error}");
    assert!(error.lines().count() < 4, "{error}");
    let same = second.join("model/wuerstchen/vqgan/diffusion_pytorch_model.safetensors");
    assert_eq!(fs::read(vqgan).unwrap(), fs::read(same).unwrap());
    assert!(second.join("model/wuerstchen/decoder/diffusion_pytorch_model.safetensors").is_file());
}

/// A run goes on with its own kind of pictures and with its own tokenizer, and nothing replaces a model whose states
/// are gone.
#[test]
fn what_was_learnt_otherwise_is_refused() {
    let folder = scratch("otherwise");
    let [pictures, others] = ["pictures", "others"].map(|name| folder.join(name));
    let [first, second] = ["1", "2"].map(|name| folder.join(name));
    own_pictures(&pictures);
    own_pictures(&others);
    fs::write(others.join("red.txt"), "ein rotes (Feld)\n").unwrap();
    let trained = |pictures: &Path, run: &Path, stage: &str| {
        let output = train_on(pictures, run, &[stage]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let refused = |output: Output, reason: &str| {
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains(reason), "{told}");
    };
    trained(&pictures, &first, "all");
    let (run, config) = (first.display().to_string(), smoke());
    let drawn = ["train", "a", "-c", &config, "-o", &run, "--device", "cpu", "--resume", "auto"];
    refused(wuerstchen(&drawn), "holds a run whose corpus is ");

    let told = trained(&others, &second, "a");
    assert!(told.contains("1 caption with brackets or backslashes"), "{told}");
    let tokenizer =
        |run: &Path| fs::read(run.join("model/wuerstchen-prior/tokenizer/tokenizer.json")).unwrap();
    let own = tokenizer(&second);
    assert!(own != tokenizer(&first));
    // A text encoder brings its own, until one of the run has learnt.
    let output = train_on(&others, &folder.join("5"), &["a"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = train_on(&others, &folder.join("5"), &["b", "--init", &run]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(tokenizer(&folder.join("5")) == tokenizer(&first));
    trained(&others, &second, "b");
    let other = "--init has another tokenizer than ";
    refused(train_on(&others, &second, &["c", "--init", &run]), other);
    let state = first.join("c/state.safetensors").display().to_string();
    let other = "was trained with the tokenizer in ";
    refused(train_on(&others, &second, &["c", "--resume", &state]), other);

    // The other stages of a model are made for its own Stage A.
    let third = folder.join("3");
    let output = train_on(&pictures, &third, &["a", "--init", &run]);
    let told = text(&output.stderr);
    let later =
        "stage b is that of --init, which was trained with other weights of the stages before it";
    assert!(output.status.success() && told.contains(later), "{told}");

    let short = train_on(
        &pictures,
        &folder.join("4"),
        &["a", "--set", "a.steps=90000", "--max-seconds", "0"],
    );
    assert!(short.status.success(), "{}", text(&short.stderr));
    let output = train_on(&pictures, &folder.join("4"), &["b", "--set", "a.steps=90000"]);
    let told = text(&output.stderr);
    assert!(
        output.status.success()
            && told.contains(" of 90000 updates; stage b takes its weights as they are"),
        "{told}"
    );

    for stage in ["a", "b", "c"] {
        fs::remove_dir_all(first.join(stage)).unwrap();
    }
    for stage in ["a", "c"] {
        let output = train_on(&pictures, &first, &[stage]);
        refused(output, " is the result of a training whose state, ");
    }

    // Killed before it saved anything, a run has a tokenizer that nothing has learnt with.
    for entry in ["a", "b"] {
        fs::remove_dir_all(second.join(entry)).unwrap();
    }
    fs::remove_file(second.join("model.safetensors")).unwrap();
    for part in ["vqgan", "text_encoder", "decoder"] {
        fs::remove_dir_all(second.join("model/wuerstchen").join(part)).unwrap();
    }
    fs::remove_dir_all(second.join("model/effnet")).unwrap();
    fs::write(others.join("red.txt"), "un champ rouge et rond\n").unwrap();
    trained(&others, &second, "a");
    assert!(tokenizer(&second) != own);
}

/// The parts that a stage needs from others, and the memory that it takes, are checked before anything is made or
/// trained.
#[test]
fn what_is_missing_or_does_not_fit_is_told_at_once() {
    let folder = scratch("checked");
    let (pictures, first, second) = (folder.join("pictures"), folder.join("1"), folder.join("2"));
    own_pictures(&pictures);
    assert!(train_on(&pictures, &first, &["a"]).status.success());
    let vqgan = first.join("model/wuerstchen/vqgan/diffusion_pytorch_model.safetensors");
    let vqgan = vqgan.to_str().unwrap();
    let nowhere = folder.join("nowhere").display().to_string();
    let of_stage_a = "Stage A of this run is not trained yet: train it first";
    let of_stage_b = "Stage B of this run is not trained yet: train it first";
    let misfit = "expected in_block.1.weight of ";
    for (arguments, reasons) in [
        (vec!["b"], vec![of_stage_a]),
        (vec!["c"], vec![of_stage_b]),
        (vec!["c", "--init", vqgan], vec![of_stage_b, "--init"]),
        (vec!["a", "--init", &nowhere], vec!["cannot open", "nowhere"]),
        (vec!["a", "--resume", &nowhere], vec!["cannot open", "nowhere"]),
        (
            vec!["a", "--init", vqgan, "--set", "model.vqgan.embed_dim=16"],
            vec!["--init", "vqgan: the weights do not fit the config: ", misfit, " tensors more"],
        ),
        (
            vec!["all", "--set", "model.prior.c=1048576"],
            vec!["the weights of the sizes in [model] would take ", ", this machine has "],
        ),
    ] {
        for more in [&["--dry-run"][..], &[]] {
            let output = train_on(&pictures, &second, &[&arguments[..], more].concat());
            let error = text(&output.stderr);
            assert!(!output.status.success(), "{arguments:?}: {error}");
            for reason in &reasons {
                assert!(error.contains(reason), "{arguments:?}: expected {reason:?}: {error}");
            }
            assert!(error.lines().count() < 5, "{error}");
            assert!(!second.join("model").exists(), "{arguments:?} has written a model");
        }
    }
    let file = folder.join("file");
    fs::write(&file, "").unwrap();
    for run in [file.clone(), file.join("run")] {
        let output = train_on(&pictures, &run, &["a", "--dry-run"]);
        let error = text(&output.stderr);
        let expected = format!(
            "{}: expected a folder, as runs and caches are folders of files",
            file.display()
        );
        assert!(output.status.code() == Some(2) && error.contains(&expected), "{error}");
    }
    let dry = ["b", "--init", vqgan, "--dry-run"];
    let output = train_on(&pictures, &second, &dry);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Training refuses Stable Cascade, whose parts differ from those that are trained.
#[test]
fn a_run_starts_from_no_model_of_another_family() {
    let folder = scratch("init-cascade");
    let pictures = folder.join("pictures");
    own_pictures(&pictures);
    let cascade = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/cascade");
    let output = train_on(&pictures, &folder.join("run"), &["a", "--init", cascade]);
    let error = text(&output.stderr);
    assert!(!output.status.success() && error.contains("--init expects a model of "), "{error}");
    assert!(!folder.join("run").exists());
}

/// A run's folder fits only one corpus and one model.
#[test]
fn a_folder_keeps_one_run() {
    let folder = scratch("one-run");
    let (pictures, others, run) = (folder.join("1"), folder.join("2"), folder.join("run"));
    own_pictures(&pictures);
    own_pictures(&others);
    let stage_b = ["b", "--set", "b.cached_scenes=2"];
    let told = |pictures: &Path, arguments: &[&str], code| {
        let output = train_on(pictures, &run, arguments);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    told(&pictures, &["a"], 0);
    let error = told(&others, &["a"], 2);
    assert!(error.contains("holds a run whose corpus is") && error.contains("--output"), "{error}");
    let error = told(&pictures, &["b", "--set", "model.prior.depth=3"], 2);
    assert!(error.contains("whose model.prior.depth is 2, the config says 3"), "{error}");
    let config = fs::read(run.join("config.toml")).unwrap();
    let goes_on = ["b", "--resume", "auto", "--set", "model.prior.depth=3"];
    let error = told(&pictures, &goes_on, 2);
    let file = run.join("config.toml");
    let expected =
        format!("{} holds a run whose model.prior.depth is 2, the config says 3", file.display());
    assert!(error.contains(&expected), "{error}");
    assert!(fs::read(&file).unwrap() == config, "the config of the run has changed");

    let lines = told(&pictures, &stage_b, 0);
    assert!(lines.contains("stage b trains on 2 of 3 pictures (b.cached_scenes)"), "{lines}");
    let lines = told(&pictures, &["c", "--set", "c.cached_scenes=9"], 0);
    assert!(!lines.contains("trains on"), "{lines}");
    let state = || fs::read(run.join("a/state.safetensors")).unwrap();
    let before = state();
    for stage in ["a", "all"] {
        let error = told(&pictures, &[stage], 2);
        assert!(error.contains("a/state.safetensors is the state of stage a"), "{error}");
        let remedy = "go on with --resume auto, or name another folder with --output";
        assert!(error.contains(remedy), "{error}");
    }
    assert!(state() == before, "the state has changed");

    // The folder of a run is a model.
    let (run, picture) = (run.display().to_string(), folder.join("out.png").display().to_string());
    let output = wuerstchen(&["generate", "a red field", "-m", &run, "-o", &picture]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// A dry run too reports the reasons why a run cannot go on; the run reports what has changed.
#[test]
fn a_state_is_looked_at_before_a_run_goes_on() {
    let folder = scratch("state");
    let (run, config) = (folder.display().to_string(), smoke());
    let train = |more: &[&str]| {
        let mut arguments = vec!["train", "a", "-c", &config, "-o", &run, "--device", "cpu"];
        arguments.extend(["--set", "a.batch_size=2"]);
        arguments.extend(more);
        let output = wuerstchen(&arguments);
        (output.status.code(), text(&output.stderr))
    };
    let (code, told) = train(&["--set", "a.steps=3"]);
    assert_eq!(code, Some(0), "{told}");
    let resumed = ["--resume", "auto", "--set", "a.steps=2"];
    let (code, told) = train(&resumed);
    let line = "stage a has done 3 steps before, and the config says 2: nothing is left to train";
    assert!(code == Some(0) && told.contains(line), "{told}");
    let resumed = ["--resume", "auto", "--set", "a.steps=4", "--set", "a.precision=bf16"];
    let (code, told) = train(&resumed);
    for line in [
        "stage a has been trained in f32, and goes on in bf16",
        "a.steps was 2, and is now 4",
        "a.precision was not given, and is now \"bf16\"",
    ] {
        assert!(code == Some(0) && told.contains(line), "{line}: {told}");
    }

    let state = folder.join("a/state.safetensors");
    let whole = fs::read(&state).unwrap();
    for dry in [&["--dry-run"][..], &[]] {
        let fails = |more: &[&str], expected: &str| {
            let (code, told) = train(&[more, dry].concat());
            assert!(code != Some(0) && told.contains(expected), "{expected}: {told}");
        };
        fails(&[], "a new start would overwrite it");
        fails(&["--resume", "auto", "--set", "seed=99"], "a training state of seed ");
        let method = ["--resume", "auto", "--set", "a.optimizer.method=adafactor"];
        fails(&method, "a training state of adamw or muon, the config says method = \"adafactor\"");
        for (change, expected) in [
            (("\"dtype\":\"F32\"", "\"dtype\":\"I32\""), " is I32, expected f64, f32, f16 or bf16"),
            (("\"ema/", "\"emu/"), ": the training state of another model: expected "),
        ] {
            fs::write(&state, replaced(&whole, change)).unwrap();
            fails(&["--resume", "auto"], &format!("{}", state.display()));
            fails(&["--resume", "auto"], expected);
        }
        let no_number = [&whole[..whole.len() - 4], &f32::NAN.to_le_bytes()].concat();
        fs::write(&state, no_number).unwrap();
        fails(&["--resume", "auto"], ": weights: not a number or infinite: ");
        fs::write(&state, &whole[..whole.len() - 9]).unwrap();
        let cut = format!("{}: no training state: it has ", state.display());
        fails(&["--resume", "auto"], &cut);
        fails(&["--resume", state.to_str().unwrap()], &cut);
        fs::write(&state, &whole).unwrap();
    }
}

/// A state with the first place of a text in its header changed to one of the same length.
fn replaced(state: &[u8], (old, new): (&str, &str)) -> Vec<u8> {
    let place = state.windows(old.len()).position(|bytes| bytes == old.as_bytes()).unwrap();
    let mut changed = state.to_vec();
    changed[place..place + new.len()].copy_from_slice(new.as_bytes());
    changed
}

/// The error names the one of several `--set` changes that does not fit.
#[test]
fn the_change_that_does_not_fit_is_named() {
    let config = smoke();
    let changes = ["--set", "a.steps=3", "--set", "b.steps=many", "--set", "c.steps=4"];
    let train = ["train", "a", "-c", &config, "--dry-run", "--device", "cpu"];
    let output = wuerstchen(&[&train[..], &changes].concat());
    let error = text(&output.stderr);
    assert!(output.status.code() == Some(2) && error.contains("--set b.steps=many: "), "{error}");
    assert!(!error.contains("a.steps=3") && !error.contains("c.steps=4"), "{error}");
}

/// Steps that change nothing, and weights that are infinite, end a run; the state before stays.
#[test]
fn training_that_diverges_stops() {
    let folder = scratch("diverges");
    let run = folder.display().to_string();
    let config = smoke();
    let train = |changes: &[&str]| {
        let mut arguments = vec!["train", "a", "-c", &config, "-o", &run, "--device", "cpu"];
        arguments.extend(["--set", "a.batch_size=2", "--resume", "auto"]);
        arguments.extend(changes.iter().flat_map(|change| ["--set", change]));
        wuerstchen(&arguments)
    };
    assert!(train(&["a.steps=1"]).status.success());
    let state = || fs::read(folder.join("a/state.safetensors")).unwrap();
    let before = state();
    let model = || {
        fs::read(folder.join("model/wuerstchen/vqgan/diffusion_pytorch_model.safetensors")).unwrap()
    };
    let weights = model();
    let skipped = ["a.optimizer.skip_grad_norm=1e-30", "a.steps=1000", "a.sample_every=1000"];
    let output = train(&skipped);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("stage a diverged: the gradients of the 100 steps up to"), "{error}");
    assert_eq!(state(), before);
    let large = ["a.optimizer.learning_rate=1", "a.optimizer.warmup_steps=0", "a.steps=5"];
    let output = train(&large);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let expected = format!(
        "stage a diverged: the weights after step 5 are infinite, NaN, or too large for f16; what was saved before \
         is kept in {}",
        folder.join("a/state.safetensors").display()
    );
    assert!(error.contains(&expected), "{error}");
    assert!(state() == before && model() == weights, "a file has changed");
    let output = train(&["a.optimizer.learning_rate=1e30"]);
    let error = text(&output.stderr);
    let expected = "learning_rate must be a positive number of at most 1";
    assert!(output.status.code() == Some(2) && error.contains(expected), "{error}");
}

/// The faults of a folder are named; once they are corrected, training begins.
#[test]
fn mistakes_in_a_folder_are_named() {
    let folder = scratch("own-mistakes");
    let (pictures, run) = (folder.join("pictures"), folder.join("run"));
    fs::create_dir(&pictures).unwrap();
    let fails = |code, message: &str, arguments: &[&str]| {
        let output = train_on(&pictures, &run, arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{message}: {error}");
        assert!(error.contains(message), "expected {message:?}: {error}");
    };
    fails(4, "expected PNG, JPEG, WebP, GIF, BMP or TIFF files, found none", &["a"]);
    own_pictures(&pictures);
    fails(2, "unknown_words must be 0 with pictures", &["a", "--set", "c.unknown_words=0.1"]);
    for size in ["100", "1000001"] {
        let sizes = "vocab_size must be from 258 to 1000000";
        fails(2, sizes, &["a", "--set", &format!("corpus.vocab_size={size}")]);
    }

    fs::write(pictures.join("silent.webp"), "").unwrap();
    fs::write(pictures.join("silent.txt"), "\n").unwrap();
    fails(4, "a picture without a caption", &["a"]);
    fails(4, "silent.webp", &["a"]);
    fs::write(pictures.join("silent.txt"), "a broken picture").unwrap();
    fails(4, "a picture that cannot be read", &["a", "--dry-run"]);
    fails(4, "cannot read the picture", &["a"]);
    fs::write(pictures.join("silent.txt"), "\n<!DOCTYPE html><html>404</html>").unwrap();
    fails(4, "silent.txt: expected captions, found an HTML page", &["a"]);
    fs::write(pictures.join("silent.txt"), "a broken picture").unwrap();

    fs::remove_file(pictures.join("silent.webp")).unwrap();
    let output = train_on(&pictures, &run, &["a"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // Another picture that comes after a stage is read before the next one.
    fs::write(pictures.join("silent.webp"), "").unwrap();
    for more in [&["b"][..], &["b", "--resume", "auto"]] {
        fails(4, "a picture that cannot be read", more);
    }
    fs::remove_file(pictures.join("silent.webp")).unwrap();
    fs::remove_file(pictures.join("more/green.png")).unwrap();
    fails(4, "a picture named in metadata.jsonl or metadata.csv but not there", &["a"]);
    fs::write(pictures.join("more/metadata.jsonl"), "{}").unwrap();
    fails(4, "metadata.jsonl: line 1: expected", &["a"]);
}
