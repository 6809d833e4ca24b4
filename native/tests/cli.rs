//! The command line as its users run it: goldens, pictures, mistakes.

mod program;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use program::{scratch, text, wuerstchen};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn goldens() -> String {
    repository().join("tests/golden/small").display().to_string()
}

fn verify(folder: &str, device: &str) -> (Option<i32>, Value) {
    let output = wuerstchen(&["verify", folder, "--device", device, "--json"]);
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap_or_else(|_| panic!("{}", text(&output.stderr))))
}

/// How many values of every golden file are compared.
const GOLDENS: [(&str, usize); 18] = [
    ("prior", 14),
    ("decoder", 35),
    ("vqgan", 18),
    ("effnet", 22),
    ("clip_prior", 5),
    ("clip_decoder", 6),
    ("interpolate", 16),
    ("scheduler", 13),
    ("tokenizer", 104),
    ("pipeline", 16),
    ("combined", 1),
    ("train_prior", 139),
    ("train_decoder", 286),
    ("train_vqgan", 59),
    ("original/prior", 14),
    ("original/decoder", 35),
    ("original/vqgan", 18),
    ("original/effnet", 22),
];

fn assert_all_agree(device: &str) {
    let (code, report) = verify(&goldens(), device);
    let checks = report["checks"].as_array().unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| check["ok"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(code, Some(0));
    let mut counts = BTreeMap::<&str, usize>::new();
    for check in checks {
        *counts.entry(check["file"].as_str().unwrap()).or_default() += 1;
    }
    assert_eq!(counts, BTreeMap::from(GOLDENS));
}

#[test]
fn every_golden_agrees_on_the_cpu() {
    assert_all_agree("cpu");
}

/// This runs on any adapter, including a software one; only an explicit `WUERSTCHEN_GPU_TESTS=no` skips it.
#[test]
fn every_golden_agrees_on_the_gpu() {
    if has_gpu() {
        assert_all_agree("gpu");
    }
}

/// Whether tests run on a GPU. If not, a line says which test is not run.
fn has_gpu() -> bool {
    let no = std::env::var("WUERSTCHEN_GPU_TESTS").is_ok_and(|value| value == "no");
    if no {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // Not `eprintln!`, whose output the test harness keeps back when a test passes.
        let line = format!("no GPU, as WUERSTCHEN_GPU_TESTS=no: {test} is not run");
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    !no
}

/// Launches are counted, because they are most of the cost of a small model's picture on a GPU.
#[test]
fn a_step_takes_few_launches() {
    if !has_gpu() {
        return;
    }
    let [model, config] = ["models/shapes.safetensors", "configs/smoke.toml"]
        .map(|name| repository().join(name).display().to_string());
    let output = wuerstchen(&["bench", "--launches", "-m", &model, "--config", &config]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for (step, dispatches) in [("prior_step", 80.0), ("decoder_step", 140.0)] {
        let found = |what: &str| report["generation"][step][what].as_f64().unwrap();
        assert!((1.0..=dispatches).contains(&found("dispatches")), "{report}");
        assert!((1.0..=6.0).contains(&found("submits")), "{report}");
        assert!((1.0..=dispatches).contains(&found("shader_dispatches")), "{report}");
        // The shaders read the weights, and more besides.
        assert!(found("shader_bytes") > found("weight_bytes"), "{report}");
        // The reads of the preview, which shows the progress of a picture.
        assert!((0.0..=1.0).contains(&found("reads")), "{report}");
    }
    let updates = report["training"]["updates"].as_array().unwrap();
    assert_eq!(
        updates.iter().map(|update| &update["stage"]).collect::<Vec<_>>(),
        ["a", "b", "b, cached latents", "c"]
    );
    assert!(updates.iter().all(|update| update["update"]["dispatches"].as_f64().unwrap() > 100.0));
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
    let smoke = repository().join("configs/smoke.toml").display().to_string();
    let half = format!("{smoke}:0,5");
    let change = "--set model.vqgan.latent_channels=5";
    let sizes = format!(
        "{smoke} {change}: model.decoder config: c_in must be 5, as model.vqgan.latent_channels is, got 4"
    );
    let dry_run =
        |change: &'static str| vec!["train", "c", "-c", &smoke, "--dry-run", "--set", change];
    for (arguments, code, message) in [
        (
            dry_run("c.lesson.two_objects=2"),
            2,
            "lesson.two_objects must be a share from 0 to 1, got 2",
        ),
        (dry_run("c.lesson.words=1"), 2, "unknown field `words`"),
        (dry_run("b.embeding_drop=0.1"), 2, "unknown field `embeding_drop`"),
        (
            dry_run("a.embedding_drop=0.1"),
            2,
            "stage a config: embedding_drop must be left out: only [b] has it, got 0.1",
        ),
        (dry_run("b.sample_every=0"), 2, "stage b config: sample_every must be at least 1, got 0"),
        (dry_run("c.shards=3"), 2, "batch_size must be a positive multiple of shards = 3, got 16"),
        (dry_run("seed.one=1"), 2, "\"seed\" is no table of the config"),
        (dry_run("c.steps=x"), 2, "expected a whole number of at least 0"),
        (dry_run("model.vqgan.latent_channels=5"), 2, &sizes),
        (dry_run("c.time_shift=1e9"), 2, "time_shift must be a positive number of at most 100"),
        (dry_run("c.shards_at_once=9"), 2, "shards_at_once must be from 1 to shards = 1"),
        (vec!["eval", "--prompts", "100001"], 2, "100001 is not in 1..=100000"),
        (
            vec!["eval", "--scenes", "shapes", "--art", ".", "--device", "cpu"],
            2,
            "--art is for --scenes emoji",
        ),
        (
            vec!["generate", "x", "--width", "65"],
            2,
            "--width must be a size that the model can make",
        ),
        (
            vec!["generate", "x", "--prior-steps", "0"],
            2,
            "--prior-steps must be between 1 and 1000",
        ),
        (vec!["generate", "x", "--seed", "-1"], 2, "invalid value '-1' for '--seed <SEED>'"),
        (vec!["generate", "x", "-W", "-64"], 2, "invalid value '-64' for '--width <WIDTH>'"),
        (vec!["generate", "x", "--lora", &half], 2, "expected a number as the weight of the LoRA"),
        (
            vec!["bench", "--stage", "vqgan", "--inputs", "x", "-c", &smoke],
            2,
            "'--stage <STAGE>' cannot be used with '--config <CONFIG>'",
        ),
        (vec!["generate", "x", "--model", "/no/such/model"], 4, "/no/such/model"),
        (vec!["verify", "/no/such/folder"], 4, "/no/such/folder"),
        (vec!["train", "a", "-c", "/no/such/config.toml"], 4, "/no/such/config.toml"),
        (
            vec!["train", "all", "-c", &smoke, "--dry-run", "--resume", "a/state.safetensors"],
            2,
            "a/state.safetensors is the state of one stage",
        ),
        (vec!["nonsense"], 2, "nonsense"),
    ] {
        let output = wuerstchen(&arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
}

/// A misspelt field is named, and not only the missing one.
#[cfg(feature = "gpu")]
#[test]
fn halves_need_a_gpu_and_tiles() {
    let model = repository().join("models/shapes.safetensors").display().to_string();
    for (tiling, message) in [
        ("auto", "--precision f16 needs a GPU whose shaders have f16, found"),
        ("direct", "--precision f16 is for tiles, and --tiling direct has none"),
    ] {
        let device = ["--device", "cpu", "--precision", "f16", "--tiling", tiling];
        let output = wuerstchen(&[&["generate", "x", "-m", &model][..], &device].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn misspelt_fields_of_a_config_are_named() {
    let smoke = fs::read_to_string(repository().join("configs/smoke.toml")).unwrap();
    let path = scratch("misspelt").join("run.toml");
    let run = |config: &str| {
        fs::write(&path, config).unwrap();
        let output = wuerstchen(&["train", "c", "-c", path.to_str().unwrap(), "--dry-run"]);
        assert_eq!(output.status.code(), Some(2));
        text(&output.stderr)
    };
    let misspelt = run(&smoke.replacen("image_size", "image_sise", 1));
    assert!(misspelt.contains("unknown field `image_sise`"), "{misspelt}");
    let misspelt = run(&smoke.replacen("c_cond =", "c_condd =", 1));
    for named in ["run.toml does not fit: unknown field", "c_condd", "missing field `c_cond`"] {
        assert!(misspelt.contains(named), "{named}: {misspelt}");
    }
    assert_eq!(misspelt.trim_end().lines().count(), 1, "{misspelt}");
}

/// What an export has written is gone when it is interrupted, so that the same command can be given again.
#[cfg(unix)]
#[test]
fn an_interrupted_export_leaves_nothing() {
    let output = scratch("interrupted").join("new/bundle");
    let mut export = Command::new(env!("CARGO_BIN_EXE_wuerstchen"))
        .args(["export", "web", "--preview-pictures", "256", "--picture-steps", "200"])
        .args(["-o", output.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while !output.join("shard-000.bin").exists() {
        assert!(export.try_wait().unwrap().is_none(), "the export ended before it was interrupted");
        sleep(Duration::from_millis(20));
    }
    let sent = Command::new("kill").args(["-INT", &export.id().to_string()]).status().unwrap();
    let ended = export.wait_with_output().unwrap();
    assert!(sent.success());
    assert_eq!(ended.status.code(), Some(130));
    assert!(text(&ended.stderr).contains("interrupted: what was written is removed"));
    assert!(!output.exists());
}

/// A browser bundle makes the same picture as the model it was exported from, and is read strictly.
#[test]
fn a_web_bundle_is_the_model_in_shards() {
    let folder = scratch("web-bundle");
    let bundle = folder.join("model");
    let [bundle, picture] = [bundle, folder.join("out.png")].map(|path| path.display().to_string());
    let shapes = repository().join("models/shapes.safetensors").display().to_string();
    let arguments = ["-m", &shapes, "-o", &bundle, "--preview-pictures", "4"];
    let export = wuerstchen(&[&["export", "web"], &arguments[..]].concat());
    assert_eq!(export.status.code(), Some(0), "{}", text(&export.stderr));
    let generate = |model: &str| {
        let prompt = ["generate", "a blue star", "--device", "cpu", "-o", &picture, "-m", model];
        let output = wuerstchen(&prompt);
        (output.status.code(), text(&output.stderr), fs::read(&picture).unwrap_or_default())
    };
    let original = generate(&shapes);
    let exported = generate(&bundle);
    assert_eq!((exported.0, &exported.2), (Some(0), &original.2), "{}", exported.1);

    let manifest = fs::read_to_string(Path::new(&bundle).join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let shard = Path::new(&bundle).join(manifest["shards"][0]["file"].as_str().unwrap());
    let mut bytes = fs::read(&shard).unwrap();
    assert_eq!(bytes.len() as u64, manifest["shards"][0]["bytes"]);
    bytes[1000] ^= 1;
    fs::write(&shard, &bytes).unwrap();
    let (code, message, _) = generate(&bundle);
    assert_eq!(code, Some(4));
    assert!(message.contains("shard-000.bin: its SHA-256 is"), "{message}");
}

/// A folder of diffusers has counters in it, which are no weights.
#[test]
fn a_model_of_diffusers_becomes_a_web_bundle() {
    let folder = scratch("web-bundle-diffusers");
    let [bundle, picture] = ["model", "out.png"].map(|f| folder.join(f).display().to_string());
    let arguments = ["-m", &goldens(), "--dtype", "f32", "--preview-pictures", "0"];
    let export = wuerstchen(&[&["export", "web", "-o", &bundle], &arguments[..]].concat());
    assert_eq!(export.status.code(), Some(0), "{}", text(&export.stderr));
    let generate = |model: &str| {
        let steps = ["-W", "128", "-H", "256", "--prior-steps", "2", "--decoder-steps", "2"];
        let prompt = ["generate", "a badger", "--device", "cpu", "-o", &picture, "-m", model];
        let output = wuerstchen(&[&prompt[..], &steps].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        fs::read(&picture).unwrap()
    };
    assert_eq!(generate(&bundle), generate(&goldens()));
}

/// An export reports before it begins what it will do, and what it cannot do.
#[test]
fn an_export_tells_its_plan() {
    let bundle = scratch("web-bundle-plan").join("model");
    let chosen = ["--preview-pictures", "1", "--picture-steps", "2", "--check", "0"];
    let export = |size: &str| {
        let output = ["export", "web", "-o", bundle.to_str().unwrap(), "--picture-size", size];
        let output = wuerstchen(&[&output[..], &chosen].concat());
        (output.status.code(), text(&output.stderr))
    };
    let (code, error) = export("100");
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("--picture-size must be a size that the model can make"), "{error}");
    assert!(!bundle.exists());

    let (code, told) = export("128");
    assert_eq!(code, Some(0), "{told}");
    let steps = "2 steps of Stage C and 2 of Stage B";
    let plan = format!(
        "running on the CPU\n\
         golden vectors: 1 picture of 128 x 128 pixels, {steps}\n\
         colours of previews: 1 picture of 128 x 128 pixels, {steps}\n\
         what storing costs: no pictures, only weights are compared\n\
         storing the weights as i8: "
    );
    assert!(told.starts_with(&plan), "{told}");
    let json = |file: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(bundle.join(file)).unwrap()).unwrap()
    };
    let (code, refused) = export("128");
    assert_eq!(code, Some(4), "{refused}");
    assert!(refused.contains("model holds a model already: name another folder"), "{refused}");
    assert_eq!(json("manifest.json")["selfTest"], true);
    assert_eq!(json("manifest.json").get("picturePrompts"), None);
    let contents = json("contents.json");
    assert_eq!(contents["selfTest"]["options"]["width"], 128);
    assert_eq!(contents["preview"]["weights"].as_array().map(Vec::len), Some(3));
}

/// 8 bits cost less than 1 % of the weights' norm.
#[test]
fn eight_bits_stay_close() {
    let bundle = scratch("web-bundle-i8").display().to_string();
    let shapes = repository().join("models/shapes.safetensors").display().to_string();
    let arguments = ["-m", &shapes, "--dtype", "i8", "--preview-pictures", "0"];
    let export = wuerstchen(&[&["export", "web", "-o", &bundle], &arguments[..]].concat());
    assert_eq!(export.status.code(), Some(0), "{}", text(&export.stderr));
    let report = text(&export.stdout);
    let error = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap();
    let errors: Vec<_> = report.lines().skip(1).take(5).map(error).collect();
    let largest = report.lines().filter(|line| line.contains("largest activation"));
    let blocks = largest.filter(|line| line.contains(" in ")).count();
    assert_eq!(blocks, 3, "{report}");
    assert!(report.contains("pictures against those of the given weights: "), "{report}");
    assert!(errors.iter().all(|error| (1e-5..1e-2).contains(error)), "{report}");
}

/// Ends the server when the test does, also when it fails.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn serves_a_folder_and_nothing_outside() {
    use std::io::{BufRead, BufReader, Read, Write};
    let folder = scratch("serve");
    fs::write(folder.join("secret.txt"), "secret").unwrap();
    let site = folder.join("site");
    fs::create_dir(&site).unwrap();
    fs::write(site.join("a.wasm"), "0123456789").unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_wuerstchen"))
        .args(["serve", &site.display().to_string(), "--port", "0"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let _server = Server(server);
    let address = line.trim().rsplit_once("http://").unwrap().1.trim_end_matches('/');
    let get = |path: &str, header: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let whole = get("/a.wasm", "");
    assert!(whole.starts_with("HTTP/1.1 200") && whole.ends_with("0123456789"), "{whole}");
    assert!(whole.contains("content-type: application/wasm"), "{whole}");
    assert!(whole.contains("cache-control: no-cache"), "{whole}");
    let part = get("/a.wasm", "Range: bytes=2-4\r\n");
    assert!(part.starts_with("HTTP/1.1 206") && part.ends_with("234"), "{part}");
    // The file may have changed since its first part was fetched.
    let whole = get("/a.wasm", "Range: bytes=2-4\r\nIf-Range: \"other\"\r\n");
    assert!(whole.starts_with("HTTP/1.1 200") && whole.ends_with("0123456789"), "{whole}");
    for path in ["/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/x"] {
        let answer = get(path, "");
        assert!(answer.starts_with("HTTP/1.1 4") && !answer.ends_with("secret"), "{answer}");
    }
}

/// Nobody reads the answer, so that the server waits in the middle of it.
#[cfg(unix)]
#[test]
fn a_stalled_download_does_not_keep_the_server() {
    use std::io::{BufRead, BufReader, Read, Write};
    let site = scratch("serve-stalled");
    fs::File::create(site.join("large.bin")).unwrap().set_len(1 << 28).unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_wuerstchen"))
        .args(["serve", &site.display().to_string(), "--port", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut server = Server(server);
    let address = line.trim().rsplit_once("http://").unwrap().1.trim_end_matches('/');
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 9]).unwrap();
    let sent = Command::new("kill").args(["-INT", &server.0.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let ended = (0..200).find_map(|_| {
        sleep(Duration::from_millis(50));
        server.0.try_wait().unwrap()
    });
    assert_eq!(ended.expect("the server ends").code(), Some(0));
}

#[test]
fn serving_what_is_not_there_is_an_error() {
    let output = wuerstchen(&["serve", "no/such/folder"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("no folder no/such/folder"));
}

/// Runs, and gives what was printed as JSON.
fn json(arguments: &[&str]) -> (Option<i32>, Value) {
    let output = wuerstchen(arguments);
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap_or_else(|_| panic!("{}", text(&output.stderr))))
}

#[test]
fn published_layouts_are_recognised_and_imported() {
    let folder = scratch("import");
    let (code, report) = json(&["import", &goldens(), "--json"]);
    assert_eq!((code, &report["ok"]), (Some(0), &Value::from(true)), "{report:#}");
    assert_eq!(report["parts"].as_array().unwrap().len(), 6);
    assert_eq!(report["lacking"], Value::Array(Vec::new()));

    // One file of the authors, beside the configs of the folder that it replaces the weights of.
    let original = |file: &str| repository().join("tests/golden/small/original").join(file);
    let stage_c = original("model_v2_stage_c.pt").display().to_string();
    let output = wuerstchen(&["import", &stage_c]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("put the config beside them"));
    let both = wuerstchen(&["import", &goldens(), &stage_c]);
    assert!(text(&both.stderr).contains("both hold wuerstchen-prior/prior"));

    let shapes = repository().join("models/shapes.safetensors").display().to_string();
    let bundle = folder.join("bundle").display().to_string();
    let import = ["import", &shapes, "-o", &bundle, "--dtype", "i4"];
    assert!(wuerstchen(&import).status.success());
    let again = wuerstchen(&import);
    assert_eq!(again.status.code(), Some(4));
    assert!(text(&again.stderr).contains("holds a model already"));
    let copy = folder.join("copy").display().to_string();
    let copied = wuerstchen(&["import", &bundle, "-o", &copy]);
    assert!(
        copied.status.success() && text(&copied.stderr).contains("storing the weights as i4: ")
    );
    let report = folder.join("web").display().to_string();
    let refused = wuerstchen(&["export", "web", "-m", &shapes, "-o", &report, "--report", &report]);
    assert!(text(&refused.stderr).contains("is --output, a folder: expected a file"));
    for (more, expected) in [
        (&["-W", "32"][..], "eval expects square pictures, got 32 x 64"),
        (&["--count", "2"], "eval makes one picture of each prompt: leave --count out"),
        (&["--control-scale", "1"], "eval takes no ControlNet: leave --control-scale out"),
        (
            &["-W", "16", "-H", "16"],
            "eval expects pictures of shapes of at least 32 x 32 pixels, got 16 x 16",
        ),
    ] {
        let output = wuerstchen(&[&["eval", "-m", &shapes, "--device", "cpu"], more].concat());
        let told = text(&output.stderr);
        assert!(output.status.code() == Some(2) && told.contains(expected), "{told}");
    }
    let run = folder.join("run");
    fs::create_dir_all(run.join("model")).unwrap();
    fs::write(run.join("config.toml"), "").unwrap();
    let untrained = wuerstchen(&["generate", "x", "-m", &run.display().to_string()]);
    let told = text(&untrained.stderr);
    assert!(told.contains("the run has not trained a part yet: expected a model"), "{told}");

    let other = folder.join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("notes.txt"), "mine").unwrap();
    let other = other.display().to_string();
    for command in [&["import", &shapes][..], &["export", "web", "-m", &shapes]] {
        let output = wuerstchen(&[command, &["-o", &other]].concat());
        let told = text(&output.stderr);
        let expected = "other: expected a new or an empty folder, found one with notes.txt";
        assert!(output.status.code() == Some(4) && told.contains(expected), "{told}");
    }
    let (_, inspected) = json(&["inspect", &bundle, "--json"]);
    let dtypes = inspected["parts"]["wuerstchen-prior/prior"]["dtypes"].to_string();
    assert_eq!(dtypes, r#"["f16","i4"]"#);

    let picture = |name: &str, residency: &str| {
        let file = folder.join(name).display().to_string();
        let steps = ["--prior-steps", "2", "--decoder-steps", "2", "--device", "cpu"];
        let arguments =
            ["generate", "a red star", "-m", &bundle, "-o", &file, "--residency", residency];
        assert!(wuerstchen(&[&arguments[..], &steps].concat()).status.success());
        fs::read(file).unwrap()
    };
    assert_eq!(picture("all.png", "all"), picture("parts.png", "per-stage"));
}

#[test]
fn harmful_models_are_refused_with_a_reason() {
    let folder = scratch("harmful");
    let bundle = folder.join("bundle");
    let shapes = repository().join("models/shapes.safetensors").display().to_string();
    let made = wuerstchen(&["import", &shapes, "-o", &bundle.display().to_string()]);
    assert!(made.status.success());
    let refusal = |path: &Path| {
        let path = path.display().to_string();
        let output = wuerstchen(&["generate", "x", "-m", &path, "-o", "never.png"]);
        assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let manifest = fs::read_to_string(bundle.join("manifest.json")).unwrap();
    let shard = fs::read(bundle.join("shard-000.bin")).unwrap();

    let mut flipped = shard.clone();
    flipped[1000] ^= 1;
    fs::write(bundle.join("shard-000.bin"), flipped).unwrap();
    assert!(refusal(&bundle).contains("shard-000.bin: its SHA-256 is"));
    fs::write(bundle.join("shard-000.bin"), &shard[..shard.len() - 1]).unwrap();
    assert!(refusal(&bundle).contains("shard-000.bin"));
    fs::remove_file(bundle.join("shard-000.bin")).unwrap();
    assert!(refusal(&bundle).contains("shard-000.bin"));
    let escape = manifest.replace("shard-000.bin", "../shard-000.bin");
    fs::write(bundle.join("manifest.json"), escape).unwrap();
    assert!(refusal(&bundle).contains("is no plain file name"));

    // A file of weights that are NaN.
    let good = fs::read(&shapes).unwrap();
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut infinite = good.clone();
    infinite[8 + header..].fill(0xff);
    let file = folder.join("nan.safetensors");
    fs::write(&file, infinite).unwrap();
    assert!(refusal(&file).contains("not a number or infinite: "));
    let output = folder.join("imported");
    let paths = [&file, &output].map(|path| path.display().to_string());
    let import = wuerstchen(&["import", &paths[0], "-o", &paths[1]]);
    let error = text(&import.stderr);
    assert_eq!(import.status.code(), Some(4), "{error}");
    assert!(error.contains("infinite: wuerstchen-prior/text_encoder/text_model."), "{error}");
    assert!(!output.join("manifest.json").exists());
    let reported = wuerstchen(&["import", &paths[0]]);
    let report = text(&reported.stdout);
    assert!(!reported.status.success(), "{report}");
    assert!(report.contains("not a number or infinite: text_model."), "{report}");
    let mut long = good;
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&file, long).unwrap();
    assert!(refusal(&file).contains("its header claims"));
}

/// The output file is checked before a picture is made.
#[test]
fn pictures_are_written_where_they_can_be() {
    let folder = scratch("output");
    fs::create_dir(folder.join("dir")).unwrap();
    let generate = |output: &str| {
        let output = format!("{}/{output}", folder.display());
        let steps = ["--prior-steps", "1", "--decoder-steps", "1", "--device", "cpu"];
        wuerstchen(&[&["generate", "a star", "-o", &output], &steps[..]].concat())
    };
    for (output, code, message) in [
        ("out.jpg", 2, "out.jpg: expected a name that ends in .png"),
        ("out.svg", 2, "out.svg: expected a name that ends in .png"),
        ("a.b", 2, "a.b: expected a name that ends in .png"),
        ("plain", 2, "plain: expected a name that ends in .png"),
        ("new/", 4, "there is no folder"),
        ("new/out.png", 4, "there is no folder"),
    ] {
        let refused = generate(output);
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(code), "{output}: {error}");
        assert!(error.contains(message), "{output}: {error}");
    }
    let image = folder.join("missing.png").display().to_string();
    let output = folder.join("out.webp").display().to_string();
    let refused = wuerstchen(&["reconstruct", &image, "-o", &output]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    for output in ["dir", "dir/", "a.PNG"] {
        assert!(generate(output).status.success(), "{output}");
    }
    let mut files: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["a.PNG", "dir"]);
    assert!(folder.join("dir/out.png").is_file());
}

/// Every one of several pictures is written; replacing a file is reported.
#[test]
fn every_picture_has_a_place_before_one_is_made() {
    let folder = scratch("output-many");
    let path = |name: &str| folder.join(name).display().to_string();
    let generate = |output: &str, more: &[&str]| {
        let steps = ["--prior-steps", "1", "--decoder-steps", "1", "--device", "cpu"];
        let output = path(output);
        let output =
            wuerstchen(&[&["generate", "a star", "-o", &output], &steps[..], more].concat());
        (output.status.code(), text(&output.stderr))
    };
    fs::create_dir(folder.join("out-1.png")).unwrap();
    let (code, error) = generate("out.png", &["--count", "2"]);
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("out-1.png: expected a file, found something else there"), "{error}");
    assert!(!error.contains("running on"), "{error}");
    assert!(!folder.join("out-0.png").exists());

    fs::remove_dir(folder.join("out-1.png")).unwrap();
    let (code, told) = generate("out.png", &["--count", "2"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(!told.contains("in place of"), "{told}");
    let (_, told) = generate("out-1.png", &[]);
    assert!(told.contains("out-1.png, in place of the file that was there"), "{told}");

    let file = folder.join("out-1.png");
    let mut rights = fs::metadata(&file).unwrap().permissions();
    rights.set_readonly(true);
    fs::set_permissions(&file, rights).unwrap();
    let (code, error) = generate("out-1.png", &[]);
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("out-1.png: the file there is write-protected"), "{error}");
}

#[test]
fn results_do_not_replace_what_they_are_made_of() {
    let folder = scratch("output-inputs");
    let path = |name: &str| folder.join(name).display().to_string();
    let (model, inputs, web) = (path("m.safetensors"), path("in.safetensors"), path("web"));
    fs::copy(repository().join("models/shapes.safetensors"), &model).unwrap();
    fs::write(&inputs, "tensors").unwrap();
    let golden = folder.join("golden");
    fs::create_dir(&golden).unwrap();
    fs::write(golden.join("prior.safetensors"), "tensors").unwrap();
    let picture = path("a.png");
    fs::write(&picture, "a picture").unwrap();
    let (all, golden) = (folder.display().to_string(), golden.display().to_string());
    let before = fs::read(&model).unwrap();
    for arguments in [
        vec!["export", "web", "-m", &model, "-o", &web, "--report", &model],
        vec!["export", "web", "-m", &all, "-o", &web, "--report", &model],
        vec!["bench", "--stage", "vqgan", "-m", &model, "--inputs", &inputs, "--dump", &model],
        vec!["bench", "--stage", "vqgan", "-m", &model, "--inputs", &inputs, "--dump", &inputs],
        vec!["verify", &all, "--dump", &golden],
        vec!["verify", &all, "--dump", &all],
        vec!["data", "stats", &all, "--grid", &picture],
    ] {
        let output = wuerstchen(&arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains("error: cannot write"), "{arguments:?}: {error}");
    }
    assert_eq!(fs::read(&model).unwrap(), before);
    assert_eq!(fs::read(&inputs).unwrap(), b"tensors");
}

#[cfg(unix)]
#[test]
fn inputs_and_links_are_not_replaced() {
    let folder = scratch("output-links");
    let path = |name: &str| folder.join(name).display().to_string();
    let steps = ["--prior-steps", "1", "--decoder-steps", "1", "--device", "cpu"];
    let generate = |arguments: &[&str]| {
        let output = wuerstchen(&[&["generate", "a star"], arguments, &steps[..]].concat());
        (output.status.code(), text(&output.stderr))
    };
    let (start, alias) = (path("start.png"), path("alias.png"));
    assert_eq!(generate(&["-o", &start]).0, Some(0));
    std::os::unix::fs::symlink("start.png", &alias).unwrap();
    let before = fs::read(&start).unwrap();
    for output in [&start, &alias] {
        let (code, error) = generate(&["--image", &start, "--strength", "1", "-o", output]);
        assert_eq!(code, Some(2), "{error}");
        assert!(error.contains(".png: it is an input of this command"), "{error}");
        let refused = wuerstchen(&["reconstruct", &start, "-o", output]);
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    }
    assert_eq!(fs::read(&start).unwrap(), before);

    assert_eq!(generate(&["-o", &alias, "--seed", "9"]).0, Some(0));
    assert!(fs::symlink_metadata(&alias).unwrap().is_symlink());
    assert_ne!(fs::read(&start).unwrap(), before);
    std::os::unix::fs::symlink("nowhere.png", folder.join("lost.png")).unwrap();
    let (code, error) = generate(&["-o", &path("lost.png")]);
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("cannot write") && error.contains("lost.png"), "{error}");

    let bundle = path("bundle");
    let shapes = repository().join("models/shapes.safetensors").display().to_string();
    assert!(wuerstchen(&["import", &shapes, "-o", &bundle]).status.success());
    let refused = wuerstchen(&["export", "web", "-m", &bundle, "-o", &bundle]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("bundle: it is the model itself"));
}

/// A prompt must not control the terminal that shows it, nor look like another line of the report.
#[test]
fn texts_of_pictures_are_shown_and_not_obeyed() {
    let picture = scratch("control").join("out.png").display().to_string();
    let steps = ["--prior-steps", "1", "--decoder-steps", "1", "--device", "cpu"];
    let prompt = "a red \u{1b}[2Jstar\nmodel: another";
    assert!(
        wuerstchen(&[&["generate", prompt, "-o", &picture], &steps[..]].concat()).status.success()
    );
    let shown = text(&wuerstchen(&["inspect", &picture]).stdout);
    let first = shown.lines().next().unwrap();
    assert_eq!(first, r"prompt: a red \u{1b}[2Jstar\nmodel: another");
    let json = wuerstchen(&["inspect", &picture, "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["prompt"], prompt);
}

/// A text of 64 MiB that is stored compressed.
#[test]
fn texts_of_pictures_are_unpacked_up_to_a_limit() {
    let folder = scratch("text-bomb");
    let path = folder.join("bomb.png").display().to_string();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 8, 8);
    let mut long = png::text_metadata::ITXtChunk::new("wuerstchen", " ".repeat(64 << 20));
    long.compressed = true;
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().unwrap();
    writer.write_text_chunk(&long).unwrap();
    writer.write_image_data(&[0; 64]).unwrap();
    writer.finish().unwrap();
    fs::write(&path, bytes).unwrap();
    let output = wuerstchen(&["inspect", &path]);
    assert_eq!(output.status.code(), Some(4));
    let error = text(&output.stderr);
    assert!(error.contains("to unpack to at most 4194304 bytes"), "{error}");
}
