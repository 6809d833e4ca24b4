//! Würstchen v1 on the command line: the authors' files, whose Stage B denoises tokens.

mod program;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use program::{copy, scratch, text, wuerstchen};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("tests/golden/v1").join(path)
}

/// Runs the program, which must succeed, and reads the JSON that it prints.
fn run(arguments: &[&str]) -> Value {
    let output = wuerstchen(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A small picture by the model of a folder; `more` are further arguments.
fn picture(model: &Path, name: &str, more: &[&str]) -> Vec<u8> {
    let file = scratch(&format!("v1-picture-{name}")).join("out.png");
    let (model, output) = (model.display().to_string(), file.display().to_string());
    let size = ["--width", "64", "--height", "64", "--prior-steps", "2", "--decoder-steps", "3"];
    let mut arguments = vec!["generate", "-m", &model, "-o", &output, "--device", "cpu", "--json"];
    arguments.extend(size.into_iter().chain(more.iter().copied()));
    run(&arguments);
    fs::read(file).unwrap()
}

/// The number of tensors of each file that are compared.
const COUNTS: [(&str, usize); 9] = [
    ("effnet", 11),
    ("noising", 9),
    ("pipeline", 14),
    ("stage_a", 12),
    ("stage_b", 87),
    ("stage_b_sampling", 48),
    ("stage_c", 9),
    ("stage_c_sampling", 13),
    ("train_joint", 197),
];

/// Tensors of a training step, of which builds without an optimizer have fewer.
const TRAINING: usize = 276;

#[test]
fn every_golden_of_v1_agrees_on_the_cpu() {
    let dump = scratch("v1-dump");
    let (folder, dumped) = (golden("").display().to_string(), dump.display().to_string());
    let report = run(&["verify", &folder, "--device", "cpu", "--json", "--dump", &dumped]);
    let checks = report["checks"].as_array().unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| check["ok"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    for (file, count) in COUNTS.into_iter().chain([("train_stage_b", TRAINING)]) {
        let found = checks.iter().filter(|check| check["file"] == file).count();
        assert_eq!(found, count, "{file}");
        assert!(dump.join(format!("{file}.safetensors")).is_file(), "{file}");
    }
    let all: usize = COUNTS.iter().map(|(_, count)| count).sum();
    assert_eq!(checks.len(), all + TRAINING);
    // Counters of batches, which nothing reads.
    let unchecked = report["unchecked"].as_array().unwrap();
    let is_counter = |name: &&Value| name.as_str().unwrap().ends_with("num_batches_tracked");
    let others: Vec<_> = unchecked.iter().filter(|name| !is_counter(name)).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// Other options of tokens make another picture, and the same options make the same one.
#[test]
fn tokens_are_sampled_as_the_options_say() {
    let model = golden("");
    let make = |name: &str, more: &[&str]| {
        let mut arguments = vec!["a red hat"];
        arguments.extend(more);
        picture(&model, name, &arguments)
    };
    let pictures = [
        make("plain", &[]),
        make("seed", &["--seed", "3"]),
        make("cool", &["--temperature", "0.1"]),
        make("argmax", &["--token-sampling", "argmax"]),
        make("quant", &["--token-sampling", "quant"]),
        make("ramp", &["--decoder-guidance-scale-end", "8"]),
        make("once", &["--renoise-steps", "0"]),
        make("negative", &["--negative-prompt", "a cat"]),
    ];
    for (i, picture) in pictures.iter().enumerate() {
        assert!(!pictures[..i].contains(picture), "{i}");
    }
    assert_eq!(pictures[0], make("again", &[]));
    let refused = wuerstchen(&["generate", "a star", "--temperature", "0.5"]);
    assert_eq!(refused.status.code(), Some(2));
    let expected = "temperature needs a model whose Stage B denoises tokens";
    assert!(text(&refused.stderr).contains(expected), "{}", text(&refused.stderr));
    let model = model.display().to_string();
    let steps = ["--decoder-steps", "3", "--renoise-steps", "3"];
    let refused = wuerstchen(&[&["generate", "a hat", "-m", &model][..], &steps].concat());
    let expected = "--renoise-steps must be at most 2, one less than the decoder's steps, got 3";
    assert!(text(&refused.stderr).contains(expected), "{}", text(&refused.stderr));
}

/// Each folder of the authors' files lacks something or has too much. The error says what.
#[test]
fn mistakes_in_a_folder_of_the_authors_files_are_named() {
    let folder = scratch("v1-mistakes");
    let fails = |name: &str, change: &dyn Fn(&Path), reason: &str| {
        let folder = folder.join(name);
        copy(&golden("."), &folder);
        change(&folder);
        let output = wuerstchen(&["import", &folder.display().to_string()]);
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains(reason), "{name}: {told}");
    };
    let stage_c = "original/model_stage_c_ema.pt";
    let stage_b = "original/model_stage_b.pt";
    let v2 = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("tests/golden/small");
    fails(
        "both versions",
        &|folder| {
            for file in ["model_v2_stage_b.pt", "model_v2_stage_c.pt"] {
                fs::copy(v2.join("original").join(file), folder.join("original").join(file))
                    .unwrap();
            }
        },
        "and other files are of Würstchen v",
    );
    let remove =
        |file: &'static str| move |folder: &Path| fs::remove_file(folder.join(file)).unwrap();
    fails("no stage c", &remove(stage_c), "expected wuerstchen-v1-prior/prior beside it");
    fails("no stage b", &remove(stage_b), "the file of Stage B, which tells Würstchen v1 from v2");
    fails(
        "no text encoder",
        &|folder| fs::remove_dir_all(folder.join("text_encoder")).unwrap(),
        "expected the folders text_encoder and tokenizer beside the authors' files",
    );
    let config = |text: &'static str| {
        move |folder: &Path| fs::write(folder.join("config.json"), text).unwrap()
    };
    fails(
        "no JSON",
        &config("junk"),
        "config.json: expected a JSON object: expected value at line 1",
    );
    fails("no object", &config("[]"), "config.json: expected a JSON object");
    fails("no stage", &config(r#"{"stage_a": 5}"#), "config.json of all stages, stage_a, for ");
}

/// Endings that other programs give, files in both places, links, and files that hold no part.
#[test]
fn authors_files_are_found_by_any_ending() {
    let folder = scratch("v1-endings").join("model");
    copy(&golden("."), &folder);
    for (from, to) in [
        ("original/model_stage_c_ema.pt", "model_stage_c_ema.pt"),
        ("original/vqgan_f4_v1_500k.pt", "original/vqgan_f4_v1_500k.ckpt"),
    ] {
        fs::rename(folder.join(from), folder.join(to)).unwrap();
    }
    fs::write(folder.join("optimizer.pt"), "junk").unwrap();
    let stage_b = folder.join("original/model_stage_b.pt");
    std::os::unix::fs::symlink(stage_b, folder.join("model_stage_b.pt")).unwrap();
    let output = wuerstchen(&["import", &folder.display().to_string()]);
    let told = text(&output.stderr);
    assert!(output.status.success() && told.contains("left out: "), "{told}");
    assert!(told.contains("optimizer.pt"), "{told}");
}

/// Picture 1 of three is picture 1 of two.
#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let folder = scratch("v1-batch");
    let model = golden("").display().to_string();
    let make = |count: &str| {
        let output = folder.join(format!("{count}.png")).display().to_string();
        let size = ["-W", "64", "-H", "64", "--prior-steps", "2", "--decoder-steps", "2"];
        let mut arguments = vec!["generate", "a hat", "-m", &model, "--device", "cpu", "--json"];
        arguments.extend(size.into_iter().chain(["--count", count, "-o", &output]));
        let report = run(&arguments);
        report["files"][1].as_str().unwrap().to_owned()
    };
    let pixels = |file: String| image::open(file).unwrap().into_rgb8().into_raw();
    assert_eq!(pixels(make("2")), pixels(make("3")));
}

/// At strength 0 the picture's own tokens are decoded; a mask keeps its black part to the pixel.
#[test]
fn pictures_start_from_pictures() {
    let folder = scratch("v1-origin");
    let model = golden("").display().to_string();
    let photo = folder.join("photo.png").display().to_string();
    let made = wuerstchen(&["generate", "a red circle", "-o", &photo]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let from = |name: &str, more: &[&str]| {
        let mut arguments = vec!["a red hat", "--image", &*photo];
        arguments.extend(more);
        picture(Path::new(&model), name, &arguments)
    };
    let rgb = |png: &[u8]| image::load_from_memory(png).unwrap().into_rgb8();
    let [same, again] = ["1", "2"]
        .map(|seed| rgb(&from(&format!("same-{seed}"), &["--strength", "0", "--seed", seed])));
    assert_eq!(same, again);
    assert_ne!(rgb(&from("half", &["--strength", "0.5"])), same);
    let mask = folder.join("mask.png");
    let half =
        image::GrayImage::from_fn(64, 64, |x, _| image::Luma([if x < 32 { 0 } else { 255 }]));
    half.save(&mask).unwrap();
    let painted = rgb(&from("mask", &["--mask", &mask.display().to_string()]));
    let original = image::open(&photo).unwrap().into_rgb8();
    let left = |picture: &image::RgbImage| {
        picture.enumerate_pixels().filter(|(x, ..)| *x < 32).map(|(.., p)| *p).collect::<Vec<_>>()
    };
    assert_eq!(left(&painted), left(&original));
    assert_ne!(painted, original);
}

/// The authors' files in any order, without a folder around them, and the bundles made of them.
#[test]
fn authors_files_become_bundles() {
    let folder = scratch("v1-bundles");
    let file = |name: &str| golden(name).display().to_string();
    let [a, b, c] = ["vqgan_f4_v1_500k", "model_stage_b", "model_stage_c_ema"]
        .map(|name| file(&format!("original/{name}.pt")));
    let web = folder.join("imported").display().to_string();
    let arguments = ["import", &c, &a, &b, "--json"];
    let report = run(&arguments);
    assert_eq!(report["ok"], true, "{report}");
    let parts = report["parts"].as_array().unwrap().iter().filter_map(|part| part["part"].as_str());
    let parts: Vec<&str> = parts.collect();
    let expected =
        ["effnet-v1", "wuerstchen-v1-prior/prior", "wuerstchen-v1/decoder", "wuerstchen-v1/vqgan"];
    assert_eq!(parts, expected);
    let lacking: Vec<&str> =
        report["lacking"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(lacking.contains(&"wuerstchen-v1-prior/text_encoder"), "{lacking:?}");

    run(&["import", &file(""), "-o", &web, "--dtype", "f32", "--json"]);
    let exported = folder.join("exported").display().to_string();
    let small = ["--check", "0", "--picture-size", "64", "--preview-pictures", "2"];
    let mut arguments = vec!["export", "web", "-m", &web, "--dtype", "f32", "-o", &exported];
    arguments.extend(small);
    let output = wuerstchen(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let told = run(&["inspect", &exported, "--json"]);
    assert_eq!(told["parts"].as_object().unwrap().len(), 5, "{told}");
    let make = |model: &str, name: &str| picture(Path::new(model), name, &["a red hat"]);
    let first = make(&file(""), "folder");
    assert_eq!(first, make(&web, "imported"));
    assert_eq!(first, make(&exported, "exported"));
}

#[test]
fn reconstructs_a_picture_from_its_embedding() {
    let folder = scratch("v1-reconstruct");
    let photo = folder.join("photo.png").display().to_string();
    let made = wuerstchen(&["generate", "a red circle", "-o", &photo]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let output = folder.join("out.png").display().to_string();
    let model = golden("").display().to_string();
    let report = run(&["reconstruct", &photo, "-m", &model, "-o", &output, "--json"]);
    for name in ["psnrThroughA", "psnrThroughBAndA"] {
        assert!(report[name].as_f64().is_some_and(|psnr| psnr > 0.0), "{name} of {report}");
    }
    let [given, made] = [&photo, &output].map(|file| image::open(file).unwrap());
    // The picture, what Stage A keeps of it, and what the embedding keeps.
    assert_eq!((made.width(), made.height()), (3 * given.width(), given.height()));
}

/// All stages of the small config; a run that stopped goes on to the same bits.
#[test]
fn a_stage_b_over_tokens_is_trained() {
    let folder = scratch("v1-train");
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("configs/shapes-v1.toml");
    let config = config.display().to_string();
    // Stage B caches nothing: a run that has to stop stops while a cache fills.
    let steps =
        ["a.steps=20", "b.steps=12", "c.steps=6", "b.cached_scenes=0", "c.cached_scenes=64"];
    let train = |stage: &str, run: &Path, more: &[&str]| {
        let run = run.display().to_string();
        let mut arguments = vec!["train", stage, "-c", &config, "-o", &run, "--device", "cpu"];
        arguments.extend(steps.iter().flat_map(|change| ["--set", change]));
        arguments.extend(more);
        let output = wuerstchen(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    let [whole, parted] = ["whole", "parted"].map(|name| folder.join(name));
    train("all", &whole, &[]);
    train("a", &parted, &[]);
    // The time is over before the second update.
    train("b", &parted, &["--max-seconds", "0"]);
    let half = fs::read_to_string(parted.join("b/metrics.jsonl")).unwrap().lines().count();
    assert!(half < 12, "{half}");
    train("b", &parted, &["--resume", "auto"]);
    let weights = "model/wuerstchen-v1/decoder/diffusion_pytorch_model.safetensors";
    let [of_whole, of_parted] = [&whole, &parted].map(|run| fs::read(run.join(weights)).unwrap());
    assert_eq!(of_whole, of_parted);
    for model in ["model", "model.safetensors"] {
        let model = whole.join(model).display().to_string();
        let told = run(&["inspect", &model, "--json"]);
        assert_eq!(told["parts"].as_object().unwrap().len(), 5, "{told}");
        let output = folder.join("out.png").display().to_string();
        run(&["generate", "a star", "-m", &model, "-o", &output, "--device", "cpu", "--json"]);
    }
}
