//! Fine-tuning as its users run it: a LoRA and a whole Stage C of an existing model on their own pictures.

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use image::{Rgb, RgbImage};

use program::{scratch, text, wuerstchen};

/// A one-file model in which one value of a part is another one.
fn with_changed_part(model: &[u8], part: &str) -> Vec<u8> {
    let length = u64::from_le_bytes(model[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&model[8..][..length]).unwrap();
    let tensors = header.as_object().unwrap();
    let (_, tensor) = tensors.iter().find(|(name, _)| name.starts_with(part)).unwrap();
    let mut changed = model.to_vec();
    // The lowest byte of a number, so that it stays finite.
    changed[8 + length + tensor["data_offsets"][0].as_u64().unwrap() as usize] ^= 1;
    changed
}

/// A folder with pictures of three aspect ratios, and the folder that a run may use.
struct Case {
    folder: PathBuf,
}

/// The small model that draws shapes.
fn shapes() -> String {
    let native = Path::new(env!("CARGO_MANIFEST_DIR"));
    native.with_file_name("models").join("shapes.safetensors").display().to_string()
}

impl Case {
    fn new(name: &str) -> Self {
        let case = Self { folder: scratch(&format!("tune-{name}")) };
        let sizes = [(64, 64), (96, 48), (48, 96), (80, 80), (200, 100), (64, 70)];
        for (i, (width, height)) in sizes.into_iter().enumerate() {
            let path = case.pictures().join(format!("{i}.png"));
            fs::create_dir_all(case.pictures()).unwrap();
            let colour = [40 * i as u8, 255 - 30 * i as u8, 90];
            let pixels = RgbImage::from_fn(width, height, |x, y| {
                if (x / 8 + y / 8) % 2 == 0 { Rgb(colour) } else { Rgb([255; 3]) }
            });
            pixels.save(&path).unwrap();
            fs::write(path.with_extension("txt"), format!("a board {i}\nboard number {i}\n"))
                .unwrap();
        }
        case
    }

    fn pictures(&self) -> PathBuf {
        self.folder.join("pictures")
    }

    /// Arguments of a run of a few updates, of `shapes` unless `more`, which comes behind them, names a model.
    fn arguments(&self, stage: &str, run: &str, more: &[&str]) -> Vec<String> {
        let native = Path::new(env!("CARGO_MANIFEST_DIR"));
        let config = if stage == "lora" { "lora.toml" } else { "finetune.toml" };
        let config = native.with_file_name("configs").join(config).display().to_string();
        let run = self.folder.join(run).display().to_string();
        let cache = self.folder.join("cache").display().to_string();
        let pictures = format!("corpus.folder={}", self.pictures().display());
        let mut arguments = vec!["train", stage, "-c", &config, "-o", &run, "--cache", &cache];
        arguments.extend(["--device", "cpu", "--set", &pictures]);
        for change in [
            "c.steps=4",
            "c.batch_size=2",
            "c.sample_every=4",
            "c.optimizer.warmup_steps=1",
            "c.optimizer.learning_rate=0.01",
            "samples.prior_steps=2",
        ] {
            arguments.extend(["--set", change]);
        }
        let shapes = shapes();
        if !more.contains(&"-m") {
            arguments.extend(["-m", &shapes]);
        }
        arguments.extend(more);
        arguments.into_iter().map(str::to_owned).collect()
    }

    fn run(&self, stage: &str, run: &str, more: &[&str]) -> Output {
        wuerstchen(&self.arguments(stage, run, more))
    }

    fn trained(&self, stage: &str, run: &str, more: &[&str]) -> String {
        let output = self.run(stage, run, more);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    }

    /// The updates that a run has reported.
    fn steps(&self, stage: &str) -> usize {
        let metrics = self.folder.join(stage).join("metrics.jsonl");
        fs::read_to_string(metrics).unwrap_or_default().lines().count()
    }

    /// Ends a run as Ctrl-C does, after its first update.
    #[cfg(unix)]
    fn interrupted(&self, stage: &str, run: &str, more: &[&str]) {
        let program = env!("CARGO_BIN_EXE_wuerstchen");
        let mut command = Command::new(program);
        command.args(self.arguments(stage, run, more)).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        while self.steps(&format!("{run}/{stage}")) == 0 {
            assert!(child.try_wait().unwrap().is_none(), "it ended before its first update");
            std::thread::sleep(Duration::from_millis(5));
        }
        let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        let output = child.wait_with_output().unwrap();
        let told = text(&output.stderr);
        assert!(output.status.success() && told.contains("go on with --resume auto"), "{told}");
    }

    fn refused(&self, stage: &str, run: &str, more: &[&str], expected: &str) {
        let output = self.run(stage, run, more);
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains(expected), "{expected}: {told}");
        assert!(!self.folder.join(run).join("lora/state.safetensors").exists(), "{expected}");
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// The picture of a prompt, by `shapes` unless `more` names a model.
    fn generate(&self, more: &[&str]) -> Vec<u8> {
        let out = self.folder.join("out.png").display().to_string();
        let mut arguments =
            vec!["generate", "a board 1", "--seed", "3", "--device", "cpu", "-o", &out];
        arguments.extend(["--prior-steps", "2"]);
        arguments.extend(more);
        let shapes = shapes();
        if !more.contains(&"-m") {
            arguments.extend(["-m", &shapes]);
        }
        let output = wuerstchen(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        image::open(out).unwrap().into_rgb8().into_raw()
    }

    fn path(&self, file: &str) -> String {
        self.folder.join(file).display().to_string()
    }
}

#[test]
fn enlarged_pictures_are_counted() {
    let case = Case::new("enlarged");
    RgbImage::new(63, 80).save(case.pictures().join("3.png")).unwrap();
    let bucket = "bucket of 64 x 64 pixels (4 x 4 cells): 4 pictures";
    // An animation of 16 x 16 pixels, whose first frame is taken.
    let animation = include_bytes!("pictures_of_others/animated.png");
    fs::write(case.pictures().join("6.png"), animation).unwrap();
    fs::write(case.pictures().join("6.txt"), "frames").unwrap();
    // The second run fills the cache, in which the third finds the embeddings, and not the sizes.
    for (run, more) in [("checked", &["--dry-run"][..]), ("first", &[]), ("again", &[])] {
        let told = case.trained("lora", run, more);
        assert!(told.contains(&format!("{bucket}, 2 enlarged\n")), "{run}: {told}");
        assert_eq!(told.matches(" enlarged").count(), 1, "{run}: {told}");
        let frames = "of 1 picture with several frames or pages the first is taken\n";
        assert!(told.contains(frames), "{run}: {told}");
    }
}

/// A LoRA trains on pictures of three aspect ratios, is read back in both forms and changes the picture alike;
/// merged into the weights it makes the same picture up to rounding.
#[test]
fn a_lora_is_trained_read_and_merged() {
    let case = Case::new("lora");
    let told = case.trained("lora", "run", &["--set", "lora.rank=4", "--set", "lora.alpha=8"]);
    for line in [
        "6 pictures with 12 captions, 4 updates",
        "memory by count: ",
        "bucket of 64 x 64 pixels",
        "stage c: step 4 of 4",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(told.matches("bucket of ").count() == 3, "{told}");
    for file in ["lora/state.safetensors", "lora/metrics.jsonl", "config.toml"] {
        assert!(!case.read(&format!("run/{file}")).is_empty(), "{file}");
    }
    assert!(case.read("run/lora/samples-000004.png").starts_with(b"\x89PNG"));

    let plain = case.generate(&[]);
    let diffusers = case.generate(&["--lora", &case.path("run")]);
    let peft = case.generate(&["--lora", &case.path("run/peft")]);
    let differ = |a: &[u8], b: &[u8]| a.iter().zip(b).filter(|(a, b)| a.abs_diff(**b) > 1).count();
    assert!(differ(&plain, &diffusers) > plain.len() / 100, "the LoRA changes nothing");
    assert_eq!(differ(&diffusers, &peft), 0);

    let model = shapes();
    let (merged, run) = (case.path("merged"), case.path("run"));
    let import = ["import", &model, "--lora", &run, "-o", &merged, "--dtype", "f32"];
    let output = wuerstchen(&import);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(differ(&diffusers, &case.generate(&["-m", &merged])), 0);

    let output = wuerstchen(&["inspect", &case.path("run/pytorch_lora_weights.safetensors")]);
    assert!(text(&output.stdout).contains("rank 4, alpha 4"), "{}", text(&output.stdout));
    let output = wuerstchen(&["inspect", &case.path("run/peft")]);
    assert!(text(&output.stdout).contains("rank 4, alpha 8"), "{}", text(&output.stdout));
}

/// A file of the cache that holds something else is named before the first update; a stop is heard while the cache
/// fills.
#[test]
fn a_cache_is_checked_and_filled_in_part() {
    let case = Case::new("cache");
    let told = case.trained("lora", "stopped", &["--max-seconds", "0"]);
    assert!(told.contains("stopped; go on with --resume auto"), "{told}");
    assert_eq!(walkdir(&case.folder.join("cache")).len(), 1);
    assert!(!case.folder.join("stopped/lora/state.safetensors").exists());
    case.trained("lora", "run", &[]);
    let file_in = |kind: &str| walkdir(&case.folder.join("cache").join(kind)).remove(0);
    let (text, embedding) = (file_in("texts"), file_in("embeddings"));
    for (broken, other, expected) in [
        (&text, &embedding, "expected a tensor of [20, 128], found one of ["),
        (&embedding, &text, "expected an embedding of "),
    ] {
        let whole = fs::read(broken).unwrap();
        fs::copy(other, broken).unwrap();
        case.refused("lora", "other", &[], expected);
        case.refused("lora", "other", &[], &format!("{}: ", broken.display()));
        fs::write(broken, whole).unwrap();
    }
}

/// A run that is killed goes on with its last state, and ends with the bits of one that was not; its second
/// run computes no embedding again.
#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_to_the_same_bits() {
    let case = Case::new("kill");
    let more = ["--set", "c.steps=40", "--set", "c.sample_every=40"];
    let resume = ["--resume", "auto"];
    case.trained("lora", "straight", &more);
    let cached = || -> Vec<_> {
        let entries = walkdir(&case.folder.join("cache"));
        entries
            .into_iter()
            .map(|path| (path.metadata().unwrap().modified().unwrap(), path))
            .collect()
    };
    let before = cached();
    // Embeddings of six pictures, texts of twelve captions and of none.
    assert_eq!(before.len(), 6 + 13);

    case.interrupted("lora", "stopped", &more);
    assert!(case.folder.join("stopped/lora/state.safetensors").exists());
    let arguments = case.arguments("lora", "stopped", &[&more[..], &resume].concat());
    let program = env!("CARGO_BIN_EXE_wuerstchen");
    let mut child = Command::new(program).args(arguments).stderr(Stdio::null()).spawn().unwrap();
    let steps = case.steps("stopped/lora");
    while case.steps("stopped/lora") < steps + 2 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it ended before it was killed");
    case.trained("lora", "stopped", &[&more[..], &resume].concat());
    for file in ["lora/state.safetensors", "pytorch_lora_weights.safetensors"] {
        assert_eq!(case.read(&format!("straight/{file}")), case.read(&format!("stopped/{file}")));
    }
    assert_eq!(cached(), before);
}

fn walkdir(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walkdir(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// A model whose Stage C was trained whole is one file that generates another picture.
#[test]
fn a_whole_stage_c_becomes_a_model() {
    let case = Case::new("whole");
    case.trained("c", "run", &["-m", &shapes()]);
    let tuned = case.path("run/model.safetensors");
    assert_ne!(case.generate(&["-m", &tuned]), case.generate(&[]));
    let output = wuerstchen(&["inspect", &tuned]);
    assert!(text(&output.stdout).contains("trained further"), "{}", text(&output.stdout));
}

/// The least memory: features that are computed again, Adafactor, one share at a time. The run stops after the first
/// update and goes on to the same bits; a LoRA has the bits of one whose features stay in memory.
#[cfg(unix)]
#[test]
fn runs_in_little_memory_go_on_and_keep_their_bits() {
    let case = Case::new("memory");
    let recompute = ["--set", "c.recompute=true"];
    case.trained("lora", "kept", &[]);
    case.trained("lora", "recomputed", &recompute);
    for file in ["lora/state.safetensors", "pytorch_lora_weights.safetensors"] {
        assert_eq!(case.read(&format!("kept/{file}")), case.read(&format!("recomputed/{file}")));
    }

    let model = shapes();
    let least = ["-m", &model, "--set", "c.optimizer.method=adafactor", "--set", "c.shards=2"];
    let least = [&least[..], &recompute, &["--set", "c.shards_at_once=1"]].concat();
    // Enough of them that the signal comes before the last one.
    let least = [&least[..], &["--set", "c.steps=24", "--set", "c.sample_every=24"]].concat();
    let told = case.trained("c", "straight", &least);
    assert!(told.contains("moments 0.00, moving average 0.00"), "{told}");
    case.interrupted("c", "stopped", &least);
    case.trained("c", "stopped", &[&least[..], &["--resume", "auto"]].concat());
    for file in ["c/state.safetensors", "c/prior.safetensors", "model.safetensors"] {
        assert_eq!(case.read(&format!("straight/{file}")), case.read(&format!("stopped/{file}")));
    }
    let adamw = ["-m", &model, "--resume", "auto"];
    let output = case.run("c", "stopped", &adamw);
    let told = text(&output.stderr);
    assert!(!output.status.success() && told.contains("a training state of adafactor"), "{told}");
}

#[test]
fn what_cannot_be_done_is_told_before_it_begins() {
    let case = Case::new("refused");
    let set = |change: &'static str| ["--set", change];
    case.refused("lora", "run", &set("samples.width=7"), "samples: width must be a size");
    let large = "samples: width times height must be at most 67108864 pixels, got 10000000 x ";
    case.refused("lora", "run", &set("samples.width=10000000"), large);
    case.refused("lora", "run", &set("samples.prior_steps=0"), "samples: prior_steps must be");
    case.refused("lora", "run", &set("lora.rank=0"), "rank must be from 1 to 4096");
    case.refused("lora", "run", &set("lora.modules=[\"to_x\"]"), "attention.to_q");
    case.refused("lora", "run", &set("corpus.folder=nowhere"), "nowhere");
    case.refused("lora", "run", &set("pictures.max_aspect=0"), "max_aspect must be between");
    case.refused("lora", "run", &set("c.recompute=1"), "recompute");
    case.refused("lora", "run", &set("c.optimizer.method=adam"), "adafactor");
    case.refused("lora", "run", &set("lora.rang=1"), "unknown field `rang`");
    let empty = case.folder.join("empty");
    fs::create_dir_all(&empty).unwrap();
    let empty = format!("corpus.folder={}", empty.display());
    case.refused("lora", "run", &["--set", &empty], "found none");

    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("tests").join("golden");
    let part = goldens.join("small/wuerstchen-prior").display().to_string();
    case.refused("lora", "run", &["-m", &part], "no semantic compressor");
    let cascade = goldens.join("cascade").display().to_string();
    case.refused("lora", "run", &["-m", &cascade], "is one of Stable Cascade");

    RgbImage::new(5, 5).save(case.pictures().join("tiny.png")).unwrap();
    fs::write(case.pictures().join("tiny.txt"), "a dot").unwrap();
    case.refused("lora", "run", &[], "a cell of the image embedding, found 5 x 5");
    // All that are broken are named at once, before any embedding is computed.
    fs::write(case.pictures().join("torn.png"), "torn").unwrap();
    fs::write(case.pictures().join("torn.txt"), "a tear").unwrap();
    for more in [&[][..], &["--dry-run"]] {
        for expected in ["tiny.png: expected at least", "torn.png: ", "2 pictures cannot be used"] {
            case.refused("lora", "run", more, expected);
        }
    }
    for folder in ["cache", "run"] {
        assert!(!case.folder.join(folder).exists(), "{folder}");
    }
    fs::remove_file(case.pictures().join("tiny.png")).unwrap();
    fs::remove_file(case.pictures().join("torn.png")).unwrap();

    case.trained("lora", "used", &["--set", "c.steps=1"]);
    let output = case.run("lora", "used", &["--set", "lora.rank=2", "--resume", "auto"]);
    assert!(
        text(&output.stderr).contains("holds a run of a LoRA of rank 16"),
        "{}",
        text(&output.stderr)
    );
    let native = Path::new(env!("CARGO_MANIFEST_DIR"));
    let other = native.with_file_name("models").join("emoji.safetensors").display().to_string();
    let output = case.run("lora", "used", &["-m", &other, "--resume", "auto"]);
    assert!(text(&output.stderr).contains("has another Stage C"), "{}", text(&output.stderr));
    for (part, name) in
        [("wuerstchen-prior/text_encoder/", "text encoder"), ("effnet/", "semantic compressor")]
    {
        let other = case.folder.join("other.safetensors");
        fs::write(&other, with_changed_part(&fs::read(shapes()).unwrap(), part)).unwrap();
        let output = case.run("lora", "used", &["-m", other.to_str().unwrap(), "--resume", "auto"]);
        let told = text(&output.stderr);
        assert!(told.contains(&format!("has another {name} than the one with which")), "{told}");
    }
    let output = case.run("lora", "used", &[]);
    assert!(
        text(&output.stderr).contains("a new start would overwrite it"),
        "{}",
        text(&output.stderr)
    );
    let state = case.folder.join("used/lora/state.safetensors").display().to_string();
    for change in ["lora.alpha=160", "lora.modules=[\"attention.to_k\"]"] {
        let more = ["--resume", &state, "--set", change];
        case.refused("lora", "elsewhere", &more, "or [lora] is another one than that with which");
    }
    // The same pictures in another place, and then in their own again.
    let moved = case.folder.join("moved");
    fs::rename(case.pictures(), &moved).unwrap();
    let place = format!("corpus.folder={}", moved.display());
    let more = ["--set", &place, "--set", "c.steps=2", "--resume", "auto"];
    let told = case.trained("lora", "used", &more);
    assert!(!told.contains("corpus.folder") && !told.contains("began with other"), "{told}");
    fs::rename(&moved, case.pictures()).unwrap();
    // What is wrong with the config of a run is told.
    let smoke = fs::read_to_string(native.with_file_name("configs/smoke.toml")).unwrap();
    fs::create_dir(case.folder.join("odd")).unwrap();
    for (config, expected) in [
        (&*smoke, "holds a run that is no fine-tuning"),
        ("steps = ", "odd/config.toml is not TOML"),
        ("steps = 1", "odd/config.toml does not fit: "),
    ] {
        fs::write(case.folder.join("odd/config.toml"), config).unwrap();
        case.refused("lora", "odd", &["--resume", "auto"], expected);
    }
    // The result of a training stays, even if its state is gone.
    fs::remove_file(case.folder.join("used/lora/state.safetensors")).unwrap();
    let before = case.read("used/pytorch_lora_weights.safetensors");
    for more in [&[][..], &["--resume", "auto"]] {
        case.refused("lora", "used", more, "is the result of a training whose state, ");
    }
    assert_eq!(case.read("used/pytorch_lora_weights.safetensors"), before);

    // Settings without effect and captions that are cut off are reported.
    let long = format!("samples.prompts=[\"{}\"]", "star ".repeat(40));
    let output = case.run("lora", "run", &["--dry-run", "--set", &long]);
    let told = text(&output.stderr);
    assert!(told.contains("1 sample prompt is longer than "), "{told}");
    let expected = "optimizer.warmup_steps = 50 is more than steps = 4";
    let output = case.run("lora", "run", &["--dry-run", "--set", "c.optimizer.warmup_steps=50"]);
    assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
}
