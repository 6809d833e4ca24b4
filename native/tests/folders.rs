//! Folders of pictures as people have them: which files are used for training, and what is reported about the others.

mod program;

use std::fs;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageFormat, RgbImage};

use program::{scratch, text, wuerstchen};

/// A folder that is to be trained on.
struct Folder(PathBuf);

/// The output of `--dry-run` for a folder.
struct Told {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Folder {
    fn new(name: &str) -> Self {
        Self(scratch(&format!("folder-{name}")))
    }

    fn picture(&self, name: &str) {
        self.picture_of(name, ImageFormat::Png);
    }

    fn picture_of(&self, name: &str, format: ImageFormat) {
        let pixels = DynamicImage::from(RgbImage::from_fn(64, 64, |x, y| {
            image::Rgb([(x * 37 + y * 91) as u8, (x * y) as u8, (x + y) as u8])
        }));
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        pixels.save_with_format(path, format).unwrap();
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn told(&self) -> Told {
        let native = Path::new(env!("CARGO_MANIFEST_DIR"));
        let config = native.with_file_name("configs/pictures.toml").display().to_string();
        let folder = format!("corpus.folder={}", self.0.display());
        let arguments = ["train", "all", "-c", &config, "--device", "cpu", "--set", &folder];
        let output = wuerstchen(&[&arguments[..], &["--dry-run"]].concat());
        Told {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// The dry run finds these numbers of pictures and captions, and reports these lines.
    fn has(&self, pictures: usize, captions: usize, lines: &[&str]) {
        let told = self.told();
        assert_eq!(told.code, Some(0), "{}", told.stderr);
        let ending = |count: usize| if count == 1 { "" } else { "s" };
        let pictures = format!("{pictures} picture{}", ending(pictures));
        let counts = format!("\n{pictures} with {captions} caption{}\n", ending(captions));
        assert!(told.stdout.contains(&counts), "expected {counts:?}: {}", told.stdout);
        for line in lines {
            assert!(told.stderr.contains(line), "expected {line:?}: {}", told.stderr);
        }
        let is_silent = told.stderr == "running on the CPU\n";
        assert!(!lines.is_empty() || is_silent, "{}", told.stderr);
    }

    /// The folder is refused, for this reason.
    fn is_refused(&self, reason: &str) {
        let told = self.told();
        assert_eq!(told.code, Some(4), "{}", told.stdout);
        assert!(told.stderr.contains(reason), "expected {reason:?}: {}", told.stderr);
    }
}

#[test]
fn every_type_of_picture_and_text_is_found() {
    let folder = Folder::new("types");
    for (name, format) in [
        ("a.png", ImageFormat::Png),
        ("b.JPG", ImageFormat::Jpeg),
        ("c.jfif", ImageFormat::Jpeg),
        ("d.webp", ImageFormat::WebP),
        ("e.gif", ImageFormat::Gif),
        ("f.bmp", ImageFormat::Bmp),
        ("g.TIFF", ImageFormat::Tiff),
    ] {
        folder.picture_of(name, format);
    }
    folder.write("a.txt", "a fox");
    folder.write("b.TXT", "a fox");
    folder.write("c.caption", "a fox");
    folder.write("d.webp.txt", "a fox");
    folder.write("e.Caption", "a fox\nanother");
    folder.write("f.tags", "fox, snow");
    folder.write("g.txt", "a fox");
    folder.has(7, 8, &[]);

    folder.write("h.avif", "x");
    folder.write("i.mp4", "x");
    folder.write("j.MP4", "x");
    folder.write("a.caption", "a vixen");
    folder.write("nobody.txt", "x");
    let lines = [
        "left out: files that are not PNG, JPEG, WebP, GIF, BMP or TIFF: .avif (1), .mp4 (2)",
        "left out: 1 text file of pictures that have captions",
        "left out: 1 text file without a picture, such as",
    ];
    folder.has(7, 8, &lines);
}

/// Programs put files of their own beside those of people.
#[test]
fn hidden_files_are_passed_over() {
    let folder = Folder::new("hidden");
    folder.picture("a.png");
    folder.write("a.txt", "a fox");
    let resource_fork = b"\x00\x05\x16\x07\xff\xfe";
    folder.write("._a.png", resource_fork);
    folder.write("._a.txt", resource_fork);
    folder.picture(".ipynb_checkpoints/a-checkpoint.png");
    folder.picture("@eaDir/a.png/SYNOPHOTO_THUMB_M.png");
    folder.write("__MACOSX/._a.png", resource_fork);
    folder.has(1, 1, &["left out: hidden files and folders (5)"]);
}

/// Files that hold no captions are refused before a tokenizer is learnt from them.
#[test]
fn captions_have_a_limit() {
    let folder = Folder::new("long-caption");
    folder.picture("a.png");
    folder.write("a.txt", "fox ".repeat(1 << 18) + "!");
    folder.is_refused("a.txt: expected at most 1048576 bytes, found 1048577");
}

/// The samples that a run draws are no pictures to train on.
#[test]
fn folders_of_runs_are_passed_over() {
    let folder = Folder::new("runs");
    folder.picture("a.png");
    folder.write("a.txt", "a fox");
    folder.write("runs/smoke/run.lock", "");
    folder.picture("runs/smoke/a/samples-000002.png");
    folder.has(1, 1, &["runs/smoke, which a training run has written"]);
}

/// A run may write into the folder that it is trained on, and links lead to what others have written.
#[cfg(unix)]
#[test]
fn what_runs_have_written_is_passed_over_wherever_it_lies() {
    use std::os::unix::fs::symlink;
    let run = |folder: &Folder| {
        folder.write("run.lock", "");
        folder.write("c/metrics.jsonl", "");
        folder.picture("c/samples-000002.png");
    };
    let (elsewhere, folder) = (Folder::new("runs-elsewhere"), Folder::new("runs-within"));
    run(&elsewhere);
    run(&folder);
    folder.picture("a.png");
    folder.write("a.txt", "a fox");
    // A folder of pictures that has the name of a stage.
    folder.picture("b/b.png");
    folder.write("b/b.txt", "a fox");
    symlink(elsewhere.0.join("c"), folder.0.join("samples")).unwrap();
    symlink(elsewhere.0.join("c/samples-000002.png"), folder.0.join("last.png")).unwrap();
    let told = folder.told();
    assert!(told.stdout.contains("\n2 pictures with 2 captions\n"), "{}", told.stdout);
    for name in ["c", "samples", "last.png"] {
        let line = format!(
            "left out: {}, which a training run has written",
            folder.0.join(name).display()
        );
        assert!(told.stderr.contains(&line), "expected {line:?}: {}", told.stderr);
    }
}

#[cfg(unix)]
#[test]
fn links_in_circles_come_to_an_end() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new("links");
    for name in ["x/a.png", "y/b.png", "z/c.png"] {
        folder.picture(name);
        folder.write(&name.replace("png", "txt"), "a fox");
    }
    let link = |target: &str, name: &str| symlink(target, folder.0.join(name)).unwrap();
    link(".", "self");
    link("..", "above");
    link("nowhere", "broken");
    for (from, to) in [("x", "y"), ("x", "z"), ("y", "x"), ("y", "z"), ("z", "x"), ("z", "y")] {
        link(&format!("../{to}"), &format!("{from}/{to}"));
    }
    folder.has(3, 3, &["broken, which is no file", "self, which is no file"]);

    // Files behind links are read once.
    let elsewhere = Folder::new("links-elsewhere");
    elsewhere.picture("d.png");
    elsewhere.write("d.txt", "a fox");
    for name in ["one", "two"] {
        symlink(&elsewhere.0, folder.0.join(name)).unwrap();
    }
    folder.has(4, 4, &["two, which is no file"]);
}

#[test]
fn metadata_may_have_several_rows_of_a_picture() {
    let folder = Folder::new("rows");
    folder.picture("a.png");
    folder.picture("sub/b.png");
    let row = |i: usize| format!("{{\"file_name\": \"a.png\", \"text\": \"caption {i}\"}}");
    let mut rows: Vec<_> = (0..5).map(row).collect();
    rows.push(r#"{"file_name": "sub\\b.png", "text": "a fox", "caption": "a red fox"}"#.to_owned());
    folder.write("metadata.jsonl", format!("\u{feff}{}\r\n", rows.join("\r\n")));
    folder.has(2, 7, &[]);

    // The same picture by the absolute name that it had elsewhere, and by the one that it has here.
    rows.push(r#"{"file_name": "C:\\data\\sub\\b.png", "text": "a third fox"}"#.to_owned());
    folder.write("metadata.jsonl", rows.join("\n"));
    folder.has(2, 8, &["1 absolute name is looked for in its folder"]);
    let here = folder.0.join("a.png").display().to_string();
    rows.push(serde_json::json!({"file_name": here, "text": "another"}).to_string());
    folder.write("metadata.jsonl", rows.join("\n"));
    folder.has(2, 9, &["2 absolute names are looked for in its folder"]);

    fs::remove_file(folder.0.join("metadata.jsonl")).unwrap();
    folder.write("metadata.csv", "file_name;caption\na.png;a fox, red\n");
    folder.write("sub/metadata.csv", "file_name,text\n../a.png,too\nb.png,\"a \"\"fox\"\"\"\n");
    folder.has(2, 3, &[]);
    folder.write("sub/metadata.jsonl", "");
    folder.is_refused("expected one file of metadata, found metadata.csv and metadata.jsonl");
}

/// In a folder that was moved, only the ends of absolute names count, and several files may share an end.
#[test]
fn absolute_names_of_one_picture_are_refused() {
    let folder = Folder::new("absolute");
    folder.picture("1.png");
    folder.write("metadata.csv", "file_name,text\n/old/cats/1.png,a cat\n/old/dogs/1.png,a dog\n");
    folder.is_refused(r#""/old/cats/1.png" and "/old/dogs/1.png" are different files"#);
}

/// Two names that differ only in bytes that are not UTF-8 keep their own captions.
#[cfg(target_os = "linux")]
#[test]
fn names_that_are_not_utf_8_are_different() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::new("bytes");
    folder.picture("a.png");
    for (byte, captions) in [(0xe8, "one"), (0xe9, "one\ntwo")] {
        let path =
            |ending: &[u8]| folder.0.join(OsStr::from_bytes(&[&[b'x', byte], ending].concat()));
        fs::copy(folder.0.join("a.png"), path(b".png")).unwrap();
        fs::write(path(b".txt"), captions).unwrap();
    }
    folder.write("a.txt", "a fox");
    folder.has(3, 4, &[]);
}

#[test]
fn metadata_that_name_what_is_not_read_are_refused() {
    let folder = Folder::new("named");
    folder.picture("a.png");
    folder.write("b.avif", "x");
    let row = |name: &str| format!("{{\"file_name\": \"{name}\", \"text\": \"x\"}}\n");
    folder.write("metadata.jsonl", row("a.png") + &row("b.avif"));
    folder.is_refused("a picture named in metadata but of another type than PNG");
    folder.write("metadata.jsonl", row("a.png") + &row("c.png"));
    folder.is_refused("c.png (metadata.jsonl, line 2)");
    folder.is_refused("named in metadata.jsonl or metadata.csv but not there");
    folder.write("metadata.jsonl", row("a.png") + &row("/old/c.png"));
    folder.is_refused("but not in the folder, where absolute names are looked for by their ends");
    folder.write("sub/metadata.jsonl", row("../a.png"));
    folder.write("metadata.jsonl", row("a.png"));
    // Both rows have the same caption, which counts once.
    folder.has(1, 1, &["left out: files that are not"]);
    folder.picture("../outside.png");
    folder.write("metadata.jsonl", row("a.png") + &row("../outside.png"));
    folder.is_refused("outside of the corpus, which their names may not leave");
    fs::remove_file(folder.0.join("../outside.png")).unwrap();
}

/// macOS writes letters with accents as two characters, most others as one.
#[test]
fn accents_are_the_same_in_both_forms() {
    let folder = Folder::new("accents");
    folder.picture("cafe\u{301}.png");
    folder.write("caf\u{e9}.txt", "a café");
    folder.picture("u\u{308}ber/b.png");
    folder.write("metadata.jsonl", "{\"file_name\": \"\u{fc}ber/b.png\", \"text\": \"x\"}");
    folder.has(2, 2, &[]);
}

#[test]
fn captions_may_have_byte_order_marks_and_no_other_encoding() {
    let folder = Folder::new("encodings");
    for name in ["a", "b", "c"] {
        folder.picture(&format!("{name}.png"));
    }
    folder.write("a.txt", "\u{feff}a fox\r\n");
    let utf_16 = "\u{feff}ein Fuchs".encode_utf16().flat_map(u16::to_le_bytes);
    folder.write("b.txt", utf_16.collect::<Vec<_>>());
    folder.write("c.txt", "a café");
    folder.has(3, 3, &[]);
    folder.write("c.txt", b"a fox\na caf\xe9");
    folder.is_refused("c.txt: line 2: expected text in UTF-8, or UTF-16 with a byte-order mark, found the byte 0xe9");
    folder.write("b.txt", b"\xe9");
    let error = "2 pictures whose text cannot be read:";
    folder.is_refused(error);
    folder.write("b.txt", "a fox");
    folder.write("c.txt", "\u{feff}\r\n");
    folder.is_refused(
        "a picture without a caption in a file of the same name that ends in .txt, .caption",
    );
}

/// Pictures that are cut off after a third, as in interrupted downloads.
#[test]
fn truncated_pictures_are_refused() {
    let folder = Folder::new("truncated");
    let mut whole = Vec::new();
    for (name, format) in [
        ("a.png", ImageFormat::Png),
        ("b.jpg", ImageFormat::Jpeg),
        ("c.webp", ImageFormat::WebP),
        ("d.gif", ImageFormat::Gif),
        ("e.bmp", ImageFormat::Bmp),
        ("f.tif", ImageFormat::Tiff),
    ] {
        folder.picture_of(name, format);
        whole.push((name, fs::read(folder.0.join(name)).unwrap()));
    }
    let progressive = include_bytes!("pictures_of_others/progressive.jpg").to_vec();
    whole.push(("g.jpg", progressive));
    for (name, bytes) in &whole {
        folder.write(name, &bytes[..bytes.len() / 3]);
        let stem = name.split_once('.').unwrap().0;
        folder.write(&format!("{stem}.txt"), "a fox");
    }
    folder.is_refused("7 pictures that cannot be read");
    for (name, bytes) in &whole {
        folder.write(name, bytes);
    }
    folder.has(7, 7, &["1 picture of less than 64 pixels in width or height will be enlarged"]);

    // Where pixels are missing between the markers, a JPEG file still ends as it should.
    for (name, bytes) in [&whole[1], &whole[6]] {
        let mut damaged = bytes.clone();
        let last_scan = bytes.windows(2).rposition(|marker| marker == [0xff, 0xda]).unwrap();
        damaged.drain((last_scan + bytes.len()) / 2..bytes.len() - 2);
        folder.write(name, damaged);
    }
    folder.is_refused("2 pictures that cannot be read");
}

/// Windows ignores case, and its programs may write a name in any case.
#[test]
fn capitals_do_not_matter_where_names_are_clear() {
    let folder = Folder::new("capitals");
    folder.picture("Fox.PNG");
    folder.picture("owl.png");
    folder.write("FOX.Txt", "a fox");
    folder.write("OWL.TXT", "an owl");
    folder.has(2, 2, &[]);
    // This is skipped where the file system takes both names for one.
    if !folder.0.join("owl.txt").exists() {
        folder.write("owl.txt", "one\ntwo");
        folder.write("owl.TXT", "three\nfour\nfive");
        folder.has(2, 3, &["in another text file, such as", "owl.TXT"]);
        fs::remove_file(folder.0.join("owl.txt")).unwrap();
        fs::remove_file(folder.0.join("owl.TXT")).unwrap();
    }
    // Another picture of that name leaves open whose caption it is.
    folder.picture("OwL.png");
    folder.is_refused("2 pictures without a caption");
    fs::remove_file(folder.0.join("OwL.png")).unwrap();
    folder.write("Metadata.CSV", "File_Name,Text\nFOX.png,a vixen\nfox.png,in snow\n");
    folder.has(2, 3, &["left out: 1 text file of pictures that have captions"]);
    folder.picture("fox.png");
    folder.is_refused("named in metadata.jsonl or metadata.csv but not there");
}

/// A black picture of one bit a pixel that is far smaller as a file than in memory.
#[test]
fn pictures_that_are_too_large_are_refused() {
    let folder = Folder::new("large");
    let side = 30_000u32;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side, side);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&vec![0; (side / 8 * side) as usize]).unwrap();
    writer.finish().unwrap();
    folder.write("a.png", bytes);
    folder.write("a.txt", "a fox");
    folder.is_refused("expected at most 134217728 pixels, found 30000 x 30000 = 900000000");
}

/// A line of pixels that is scaled to cover a square would be huge.
#[test]
fn pictures_that_are_too_thin_are_refused() {
    let folder = Folder::new("thin");
    folder.write("a.txt", "a fox");
    RgbImage::new(1, 65).save(folder.0.join("a.png")).unwrap();
    folder.is_refused("expected sides of at most 64 to 1, found 1 x 65 pixels");
    RgbImage::new(64, 1).save(folder.0.join("a.png")).unwrap();
    folder.picture("b.png");
    folder.write("b.txt", "a fox");
    let line = "1 picture of less than 64 pixels in width or height will be enlarged, such as ";
    folder.has(2, 2, &[line]);
}

#[test]
fn animations_and_long_captions_are_told_of() {
    let folder = Folder::new("animations");
    folder.write("a.png", include_bytes!("pictures_of_others/animated.png"));
    folder.write("b.webp", include_bytes!("pictures_of_others/animated.webp"));
    folder.write("a.txt", "a fox");
    folder.write("b.txt", "word ".repeat(400));
    let lines = [
        "of 2 pictures with several frames or pages the first is taken",
        "1 caption is longer than model.max_tokens = 32, which leaves out what follows, such as \"wo",
    ];
    folder.has(2, 2, &lines);
    let stats = wuerstchen(&["data", "stats", &folder.0.display().to_string()]);
    let told = text(&stats.stderr);
    assert!(told.contains(lines[0]), "{told}");
}

#[test]
fn numbers_of_repeats_have_no_effect() {
    let folder = Folder::new("repeats");
    folder.picture("10_sks dog/a.png");
    folder.write("10_sks dog/a.txt", "a dog");
    let line = "10_sks dog, has no effect: every picture is seen once an epoch";
    folder.has(1, 1, &[line]);
}

/// A folder may be called like a number or a date.
#[test]
fn names_of_folders_are_texts() {
    let native = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = native.with_file_name("configs/smoke.toml").display().to_string();
    for name in ["2024-05-01", "2024", "true", "1.5", "nan"] {
        let folder = format!("corpus.folder={name}");
        let arguments = ["train", "a", "-c", &config, "--dry-run", "--set", &folder];
        let unknown = ["--set", "b.unknown_words=0", "--set", "c.unknown_words=0"];
        let output = wuerstchen(&[&arguments[..], &unknown].concat());
        let error = text(&output.stderr);
        assert!(error.contains(&format!("cannot open {name}")), "{name}: {error}");
    }
}
