//! Training on shards: tar files of pictures, as a `WebDataset` has them, and Parquet files.

mod program;

use std::fs;
use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use image::{ImageFormat, Rgb, RgbImage};
use tar::{Builder, Header};

use program::{scratch, text, wuerstchen};

fn add(tar: &mut Builder<File>, name: &str, bytes: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, name, bytes).unwrap();
}

/// Three shards of eight pictures each; one picture is torn, one has a watermark, one no caption.
fn shards(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for shard in 0..3u8 {
        let file = File::create(folder.join(format!("0000{shard}.tar"))).unwrap();
        let mut tar = Builder::new(file);
        for i in 0..8u8 {
            let (name, number) = (format!("0000{shard}000{i}"), 8 * shard + i);
            let pixels = RgbImage::from_pixel(40, 50, Rgb([10 * number, 255 - 9 * number, 77]));
            let mut png = Cursor::new(Vec::new());
            pixels.write_to(&mut png, ImageFormat::Png).unwrap();
            let mut png = png.into_inner();
            if number == 5 {
                png.truncate(60);
            }
            let watermark = if number == 9 { 0.9 } else { 0.1 };
            let json = format!(r#"{{"width": 40, "height": 50, "pwatermark": {watermark}}}"#);
            add(&mut tar, &format!("{name}.json"), json.as_bytes());
            add(&mut tar, &format!("{name}.png"), &png);
            if number != 12 {
                add(&mut tar, &format!("{name}.txt"), format!("field number {number}").as_bytes());
            }
        }
        tar.finish().unwrap();
    }
}

struct Case(PathBuf);

impl Case {
    fn new(name: &str) -> Self {
        let case = Self(scratch(&format!("shards-{name}")));
        shards(&case.0.join("data"));
        case
    }

    fn arguments(&self, stage: &str, run: &str, more: &[&str]) -> Vec<String> {
        let native = Path::new(env!("CARGO_MANIFEST_DIR"));
        let smoke = native.with_file_name("configs/smoke.toml").display().to_string();
        let paths = format!("corpus.shards.paths=[\"{}/*.tar\"]", self.0.join("data").display());
        let run = self.0.join(run).display().to_string();
        let mut arguments = vec!["train", stage, "-c", &smoke, "-o", &run, "--device", "cpu"];
        for change in [
            &paths,
            "corpus.vocab_size=300",
            "corpus.shards.shuffle=5",
            "corpus.shards.filter.max_watermark=0.5",
            "a.steps=40",
            "a.batch_size=4",
            "a.data_threads=2",
            "a.sample_every=40",
            "b.unknown_words=0",
            "c.unknown_words=0",
        ] {
            arguments.extend(["--set", change]);
        }
        arguments.extend(more);
        arguments.into_iter().map(str::to_owned).collect()
    }

    fn run(&self, stage: &str, run: &str, more: &[&str]) -> Output {
        wuerstchen(&self.arguments(stage, run, more))
    }
}

/// Killed in the middle of the second epoch and resumed, a run has the bits of one that was not. The torn
/// picture is left out and listed.
#[cfg(unix)]
#[test]
fn a_killed_run_on_shards_goes_on_to_the_same_bits() {
    let case = Case::new("kill");
    let straight = case.run("a", "straight", &[]);
    let told = text(&straight.stderr);
    assert!(straight.status.success(), "{told}");
    for line in [
        "left out: 1 sample: no caption",
        "left out: 1 sample: pwatermark above 0.5",
        "22 pictures in 3 shards",
        "1 picture that cannot be read was left out",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    let list = fs::read_to_string(case.0.join("straight/left-out.txt")).unwrap();
    assert!(list.contains("00000.tar/000000005.png: "), "{list}");
    assert_eq!(list.lines().count(), 1);

    let stopped = case.run("a", "stopped", &["--max-seconds", "0"]);
    assert!(stopped.status.success(), "{}", text(&stopped.stderr));
    let arguments = case.arguments("a", "stopped", &["--resume", "auto"]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_wuerstchen"))
        .args(arguments)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let metrics = case.0.join("stopped/a/metrics.jsonl");
    while fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 8 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it ended before it was killed");
    let path = case.0.join("stopped/left-out.txt");
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
    fs::write(&path, "an earlier line\n").unwrap();
    let resumed = case.run("a", "stopped", &["--resume", "auto"]);
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    let state = |run: &str| fs::read(case.0.join(run).join("a/state.safetensors")).unwrap();
    assert!(state("straight") == state("stopped"));
    let resumed_list = fs::read_to_string(&path).unwrap();
    assert!(resumed_list.starts_with("an earlier line\n"), "{resumed_list}");
    assert_eq!(resumed_list.lines().count(), 2, "{resumed_list}");
}

#[test]
fn a_torn_picture_ends_a_strict_run() {
    let case = Case::new("strict");
    let output = case.run("a", "run", &["--strict"]);
    let told = text(&output.stderr);
    assert!(!output.status.success() && told.contains("00000005.png"), "{told}");
    let none = case.run("a", "none", &["--set", "corpus.shards.filter.min_width=4000"]);
    let told = text(&none.stderr);
    assert!(!none.status.success(), "{told}");
    assert!(told.contains("found none; left out: 24 samples: width below 4000"), "{told}");
}

/// Shards that are named twice, captions that are no text, unused files and changed pictures are reported.
#[test]
fn nothing_of_shards_is_changed_without_a_line() {
    let case = Case::new("told");
    let data = case.0.join("data");
    let mut latin = Builder::new(File::create(data.join("00003.tar")).unwrap());
    add(&mut latin, "1.json", br#"{"pwatermark": 0.1}"#);
    add(&mut latin, "1.png", include_bytes!("pictures_of_others/animated.png"));
    add(&mut latin, "1.txt", b"caf\xe9");
    add(&mut latin, "1.caption", b"a cafe");
    latin.finish().unwrap();
    let twice = format!("corpus.shards.paths=[\"{0}/*.tar\", \"{0}/00000.tar\"]", data.display());
    let run = |more: &[&str]| {
        let output = case.run("a", "run", &[&["--max-seconds", "0"], more].concat());
        (output.status.code(), text(&output.stderr))
    };
    let (code, told) = run(&["--set", &twice]);
    assert_eq!(code, Some(0), "{told}");
    for line in [
        "00000.tar is named twice, and read once",
        "not read in the shards: txt that is no text in UTF-8 or UTF-16 (1)",
        "23 pictures in 4 shards",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    let stats = wuerstchen(&["data", "stats", &data.join("00003.tar").display().to_string()]);
    let stats = text(&stats.stderr);
    let frames = "of 1 picture with several frames or pages the first is taken";
    assert!(stats.contains(frames), "{stats}");
    let (_, same) = run(&["--resume", "auto"]);
    assert!(!same.contains("the run began with other pictures"), "{same}");
    let (_, other) = run(&["--resume", "auto", "--set", "corpus.shards.filter.max_watermark=1"]);
    assert!(other.contains("the run began with other pictures, captions or filters"), "{other}");
    let changed = "corpus.shards.filter.max_watermark was 0.5, and is now 1";
    assert!(other.contains(changed), "{other}");
    let (code, none) = run(&["--set", "corpus.shards.captions={blip=1.0}"]);
    assert!(
        code != Some(0)
            && none.contains(
                "found \"blip\", in which none has a caption; the fields of the samples: "
            ),
        "{none}"
    );
}

/// Training works wherever in the order of an epoch the only good picture lies.
#[test]
fn one_good_picture_among_torn_ones_is_found() {
    let case = Case::new("one");
    let data = case.0.join("few");
    fs::create_dir(&data).unwrap();
    let mut png = Cursor::new(Vec::new());
    RgbImage::new(40, 40).write_to(&mut png, ImageFormat::Png).unwrap();
    let mut few = Builder::new(File::create(data.join("0.tar")).unwrap());
    for i in 0..5 {
        let bytes = if i < 4 { &png.get_ref()[..50] } else { png.get_ref() };
        add(&mut few, &format!("{i}.json"), br#"{"pwatermark": 0.1}"#);
        add(&mut few, &format!("{i}.png"), bytes);
        add(&mut few, &format!("{i}.txt"), b"black");
    }
    few.finish().unwrap();
    let paths = format!("corpus.shards.paths=[\"{}/0.tar\"]", data.display());
    let output = case.run("a", "run", &["--set", &paths, "--set", "a.steps=6"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Fine-tuning takes shards as well.
#[test]
fn a_lora_is_trained_on_shards() {
    let case = Case::new("lora");
    let native = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = case.0.join("lora.toml");
    let lora = fs::read_to_string(native.with_file_name("configs/lora.toml")).unwrap();
    // A row of the Parquet file has no picture.
    let odd = if cfg!(feature = "parquet") { golden("odd.parquet") } else { String::new() };
    let odd = if odd.is_empty() { odd } else { format!(", \"{odd}\"") };
    let data = case.0.join("data").display().to_string();
    let shards = format!("[corpus.shards]\npaths = [\"{data}/*.tar\"{odd}]");
    let lora =
        lora.replace("folder = \"my/pictures\"", &shards).replace("steps = 1000", "steps = 2");
    fs::write(&config, lora.replace("sample_every = 250", "sample_every = 2")).unwrap();
    let path = |name: &str| case.0.join(name).display().to_string();
    let (config, run, cache) = (config.display().to_string(), path("run"), path("cache"));
    let mut arguments = vec!["train", "lora", "-c", &config, "-o", &run, "--cache", &cache];
    arguments.extend(["--device", "cpu", "--set", "samples.prior_steps=2"]);
    let output = wuerstchen(&arguments);
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    let list = fs::read_to_string(case.0.join("run/left-out.txt")).unwrap();
    assert!(list.contains("00000.tar/000000005.png: "), "{list}");
    let row = "odd.parquet/row 1 of group 0: expected a picture in the row, found none\n";
    assert_eq!(list.contains(row), cfg!(feature = "parquet"), "{list}");
    for line in list.lines() {
        assert!(told.contains(&format!("left out: {line}\n")), "{told}");
    }
    let pictures = match list.lines().count() {
        1 => "1 picture that cannot be read was".to_owned(),
        count => format!("{count} pictures that cannot be read were"),
    };
    assert!(told.contains(&format!("{pictures} left out")), "{told}");
    assert!(case.0.join("run/pytorch_lora_weights.safetensors").is_file());
}

/// The content of a folder is reported, packed, and read back as the same pictures and captions.
#[test]
fn a_folder_is_looked_through_and_packed() {
    let folder = scratch("shards-data");
    let pictures = folder.join("pictures");
    fs::create_dir_all(&pictures).unwrap();
    for (i, (width, height)) in [(64, 64), (96, 48), (40, 80)].into_iter().enumerate() {
        RgbImage::new(width, height).save(pictures.join(format!("{i}.png"))).unwrap();
        fs::write(pictures.join(format!("{i}.txt")), "a b c\nd\n").unwrap();
    }
    let path = |name: &str| folder.join(name).display().to_string();
    let stats = |of: &str| {
        let output = wuerstchen(&["data", "stats", of, "--json", "--grid", &path("grid.png")]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let told = stats(&path("pictures"));
    assert!(told.contains(r#""pictures":3,"captions":6,"words_per_caption":2.0"#), "{told}");
    assert!(told.contains(r#""shorter_sides":{"32":2,"64":1}"#), "{told}");
    assert!(fs::read(folder.join("grid.png")).unwrap().starts_with(b"\x89PNG"));
    let (from, to) = (path("pictures"), path("packed"));
    let pack = ["data", "pack", &from, "-o", &to, "--samples", "2"];
    assert!(wuerstchen(&pack).status.success());
    assert!(folder.join("packed/00001.tar").is_file());
    assert_eq!(stats(&path("packed/{00000..00001}.tar")), told);
    let again = wuerstchen(&pack);
    assert!(
        text(&again.stderr).contains("expected a new or an empty folder"),
        "{}",
        text(&again.stderr)
    );

    let both = wuerstchen(&["data", "stats", &from, &path("packed/00000.tar")]);
    assert!(text(&both.stderr).contains("expected one folder, or shards"));
    fs::write(pictures.join("2.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    let torn = wuerstchen(&["data", "pack", &from, "-o", &path("torn")]);
    let told = text(&torn.stderr);
    assert!(told.contains("2.png") && told.contains("1 picture cannot be read"), "{told}");
    assert!(!folder.join("torn").exists());
    let picture = wuerstchen(&["data", "stats", &pictures.join("0.png").display().to_string()]);
    let told = text(&picture.stderr);
    assert!(told.contains("found a picture: name its folder"), "{told}");
}

/// Captions are found in any field that the caller names; a corpus without captions lists its fields.
#[test]
fn captions_of_shards_are_looked_for_in_named_fields() {
    let folder = scratch("shards-fields");
    let path = folder.join("0.tar");
    let mut tar = Builder::new(File::create(&path).unwrap());
    let mut png = Cursor::new(Vec::new());
    RgbImage::from_pixel(8, 8, Rgb([1, 2, 3])).write_to(&mut png, ImageFormat::Png).unwrap();
    add(&mut tar, "0.png", png.get_ref());
    add(&mut tar, "0.json", br#"{"Blip": "a fox", "width": 8}"#);
    tar.finish().unwrap();
    let stats = |more: &[&str]| {
        let output = wuerstchen(&[&["data", "stats", path.to_str().unwrap()], more].concat());
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (code, told) = stats(&[]);
    assert_eq!(code, Some(4));
    assert!(
        told.contains("the fields of the samples: Blip, width; captions are looked for in"),
        "{told}"
    );
    let (code, told) = stats(&["--captions", "blip"]);
    assert_eq!(code, Some(0));
    assert!(told.contains("1 picture with 1 caption of 2.0 words"), "{told}");
    let grid = folder.join("grid.png").display().to_string();
    let (code, told) = stats(&["--captions", "blip", "--grid", &grid]);
    assert_eq!(code, Some(0), "{told}");
    // In a folder that is the corpus, the grid would be one of its pictures.
    fs::write(folder.join("1.png"), &png.get_ref()[..40]).unwrap();
    fs::write(folder.join("1.txt"), "a fox").unwrap();
    fs::remove_file(&grid).unwrap();
    let output = wuerstchen(&["data", "stats", folder.to_str().unwrap(), "--grid", &grid]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("it would become one of its pictures"), "{told}");
    let output = wuerstchen(&["data", "stats", folder.to_str().unwrap()]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert!(told.contains("expected at least one picture that can be read, found none"), "{told}");
}

/// A file of shards that a script has made.
fn golden(name: &str) -> String {
    let native = Path::new(env!("CARGO_MANIFEST_DIR"));
    native.with_file_name("tests/golden/shards").join(name).display().to_string()
}

/// A Parquet file trains to the bits of a tar file with the same samples, also if it is stopped and goes on.
#[cfg(feature = "parquet")]
#[test]
fn parquet_files_are_read_as_tar_files_are() {
    let case = Case::new("parquet");
    let paths = ["00000.tar", "00000.parquet"]
        .map(|file| format!("corpus.shards.paths=[\"{}\"]", golden(file)));
    for (run, paths) in ["tar", "parquet"].into_iter().zip(&paths) {
        let output = case.run("a", run, &["--set", paths]);
        let told = text(&output.stderr);
        assert!(output.status.success(), "{told}");
        for line in [
            "left out: 1 sample: no caption",
            "left out: 1 sample: no value in pwatermark",
            "left out: 1 sample: pwatermark above 0.5",
            "8 pictures in 1 shard",
            "1 picture that cannot be read was left out",
        ] {
            assert!(told.contains(line), "{line}: {told}");
        }
        let failed = "not read in the shards: rows of the status failed_to_download (1)";
        assert_eq!(told.contains(failed), run == "parquet", "{told}");
        let list = fs::read_to_string(case.0.join(run).join("left-out.txt")).unwrap();
        assert!(list.contains(&format!("00000.{run}/000000005")), "{list}");
    }
    let stopped = ["--set", &paths[1], "--max-seconds", "0"];
    assert!(case.run("a", "stopped", &stopped).status.success());
    let output = case.run("a", "stopped", &["--set", &paths[1], "--resume", "auto"]);
    let told = text(&output.stderr);
    assert!(output.status.success() && !told.contains("the run began with other"), "{told}");
    let state = |run: &str| fs::read(case.0.join(run).join("a/state.safetensors")).unwrap();
    assert!(state("tar") == state("parquet"), "tar and Parquet differ");
    assert!(state("parquet") == state("stopped"), "the run that was stopped differs");

    let output = case.run("a", "strict", &["--set", &paths[1], "--strict"]);
    let told = text(&output.stderr);
    assert!(!output.status.success() && told.contains("00000.parquet/000000005"), "{told}");
}

/// Parquet files of other programs are read, or the reason why not is reported.
#[cfg(feature = "parquet")]
#[test]
fn what_is_odd_in_parquet_files_is_told() {
    let folder = scratch("shards-odd");
    let stats = |path: &str| {
        let output = wuerstchen(&["data", "stats", path, "--json"]);
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, found, told) = stats(&golden("odd.parquet"));
    assert_eq!(code, Some(0), "{told}");
    for line in [
        "left out: 1 sample: no caption",
        "captions of more than 1048576 bytes (1)",
        "the column aesthetic (5)",
        "pictures in png are taken where a row has none in jpg",
        "txt that is no text in UTF-8 (1)",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(found.contains(r#""pictures":4,"captions":5,"#), "{found}");
    assert!(
        found.contains("row 1 of group 0: expected a picture in the row, found none"),
        "{found}"
    );

    let (code, found, told) = stats(&golden("datasets.parquet"));
    let line = "text that is no text in UTF-8 (1)";
    assert!(code == Some(0) && told.contains(line), "{told}");
    assert!(found.contains(r#""pictures":2,"captions":2,"#), "{found}");

    for (file, expected) in [
        (
            "metadata.parquet",
            "expected pictures in a column image, img or named by their type, such as jpg, or in its field bytes, \
             found the columns key, url, ",
        ),
        (
            "lz4.parquet",
            "expected columns that are compressed with snappy, gzip or zstd, or not at all, found LZ4",
        ),
    ] {
        let (code, _, told) = stats(&golden(file));
        assert!(code == Some(4) && told.contains(expected), "{told}");
    }
    for (name, content, expected) in [
        ("text.parquet", "hello", "expected a tar or Parquet file, found one of 5 bytes"),
        ("empty.parquet", "", "expected a tar or Parquet file, found one of 0 bytes"),
    ] {
        let path = folder.join(name).display().to_string();
        fs::write(&path, content).unwrap();
        let (code, _, told) = stats(&path);
        assert!(code == Some(4) && told.contains(expected), "{told}");
    }
    let cut = folder.join("cut.parquet").display().to_string();
    let whole = fs::read(golden("00000.parquet")).unwrap();
    // The crate that reads Parquet files panics at this byte.
    let mut broken = whole.clone();
    broken[4866] ^= 0x80;
    fs::write(&cut, broken).unwrap();
    let (code, found, told) = stats(&cut);
    assert_eq!(code, Some(0), "{told}");
    assert!((found + &told).contains("the Parquet file is broken"), "{told}");
    assert!(!told.contains("panicked"), "{told}");
    fs::write(&cut, &whole[..whole.len() - 100]).unwrap();
    let (code, _, told) = stats(&cut);
    assert!(code == Some(4) && told.contains("cut.parquet cannot be read: "), "{told}");
}
