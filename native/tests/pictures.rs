//! Pictures that start from pictures, frames, batches, weights of words, LoRAs.

mod program;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use image::{GrayAlphaImage, GrayImage, Luma, LumaA, Rgb, RgbImage, Rgba, RgbaImage};
use serde_json::Value;
use wuerstchen::{ModelFiles, Part, WeightDtype};

use program::{scratch, text, wuerstchen};

/// An empty folder for one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        Self(scratch(name))
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Generates with few steps, by `shapes` unless the arguments, which follow the command, name a model.
    fn generate(&self, output: &str, arguments: &[&str]) {
        let (output, shapes) = (self.path(output), shapes());
        let steps =
            ["--prior-steps", "4", "--decoder-steps", "3", "--device", "cpu", "--seed", "5"];
        let model = if arguments.contains(&"-m") { vec![] } else { vec!["-m", &shapes] };
        let arguments = [&["generate", "-o", &output], &steps[..], &model, arguments].concat();
        let output = wuerstchen(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    fn pixels(&self, name: &str) -> RgbImage {
        image::open(self.0.join(name)).unwrap().into_rgb8()
    }
}

const PROMPT: &str = "a large red star on a white background";

/// Largest difference of two pictures' bytes.
fn difference(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// At strength 1 the source picture does not change a bit of the result; at less it does.
#[test]
fn strength_says_how_far_the_picture_is_left() {
    let folder = Folder::new("strength");
    folder.generate("start.png", &["a small blue circle on a black background"]);
    folder.generate("free.png", &[PROMPT]);
    let start = folder.path("start.png");
    folder.generate("left.png", &[PROMPT, "--image", &start, "--strength", "1"]);
    folder.generate("half.png", &[PROMPT, "--image", &start, "--strength", "0.5"]);
    assert_eq!(folder.pixels("left.png"), folder.pixels("free.png"));
    assert!(difference(&folder.pixels("half.png"), &folder.pixels("free.png")) > 50);

    let told = wuerstchen(&["inspect", &folder.path("half.png"), "--json"]);
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["settings"]["strength"], 0.5);
    assert_eq!(told["settings"]["image"], "start.png");
}

/// The right half is painted, the left one stays to the last bit.
#[test]
fn what_the_mask_leaves_stays() {
    let folder = Folder::new("mask");
    folder.generate("start.png", &["a small blue circle on a black background"]);
    let white = |x: u32| Luma([if x < 32 { 0 } else { 255 }]);
    let mask = GrayImage::from_fn(64, 64, |x, _| white(x));
    mask.save(folder.0.join("mask.png")).unwrap();
    let (start, mask) = (folder.path("start.png"), folder.path("mask.png"));
    folder.generate("painted.png", &[PROMPT, "--image", &start, "--mask", &mask]);
    let [start, painted] = ["start.png", "painted.png"].map(|name| folder.pixels(name));
    let half =
        |image: &RgbImage, left| image::imageops::crop_imm(image, left, 0, 32, 64).to_image();
    assert_eq!(half(&start, 0), half(&painted, 0));
    assert!(difference(&half(&start, 32), &half(&painted, 32)) > 50);
}

/// The first and the last frame are the pictures of both prompts, and the middle one is neither.
#[test]
fn frames_lead_from_one_prompt_to_the_other() {
    let folder = Folder::new("frames");
    let other = "a small blue circle on a black background";
    folder.generate("a.png", &[PROMPT]);
    folder.generate("b.png", &[other]);
    folder.generate("frame.png", &[PROMPT, "--prompt-to", other, "--frames", "3"]);
    let frames = [0, 1, 2].map(|i| folder.pixels(&format!("frame-{i}.png")));
    let ends = ["a.png", "b.png"].map(|name| folder.pixels(name));
    assert_eq!((&frames[0], &frames[2]), (&ends[0], &ends[1]));
    assert!(ends.iter().all(|end| difference(end, &frames[1]) > 50));
}

/// From one picture to another; the ends are what each picture alone leads to.
#[test]
fn frames_lead_from_one_picture_to_the_other() {
    let folder = Folder::new("image-frames");
    folder.generate("a.png", &[PROMPT]);
    folder.generate("b.png", &["a small blue circle on a black background"]);
    let (a, b) = (folder.path("a.png"), folder.path("b.png"));
    let way = ["--image", &a, "--image-to", &b, "--strength", "0", "--frames", "3"];
    folder.generate("frame.png", &way);
    folder.generate("only-a.png", &["--image", &a, "--strength", "0"]);
    folder.generate("only-b.png", &["--image", &b, "--strength", "0"]);
    let frames = [0, 1, 2].map(|i| folder.pixels(&format!("frame-{i}.png")));
    assert_eq!(frames[0], folder.pixels("only-a.png"));
    assert_eq!(frames[2], folder.pixels("only-b.png"));
    assert!(difference(&frames[0], &frames[1]) > 20);
}

#[test]
fn every_line_of_a_file_is_a_prompt() {
    let folder = Folder::new("prompts");
    let other = "a green square on a yellow background";
    fs::write(folder.0.join("prompts.txt"), format!("{PROMPT}\n\n  {other}\r\n")).unwrap();
    folder.generate("out.png", &["--prompts", &folder.path("prompts.txt"), "--count", "2"]);
    folder.generate("one.png", &[other]);
    folder.generate("two.png", &[other, "--count", "2"]);
    let line = [2, 3].map(|i| folder.pixels(&format!("out-{i}.png")));
    assert_eq!(line[0], folder.pixels("one.png"));
    assert_eq!(line[1], folder.pixels("two-1.png"));
    assert!(!folder.0.join("out-4.png").exists());
}

/// When the program is stopped, the pictures that are made stay.
#[test]
fn every_picture_is_written_when_it_is_made() {
    let folder = Folder::new("prompts-stopped");
    fs::write(folder.0.join("prompts.txt"), format!("{PROMPT}\n").repeat(200)).unwrap();
    let (prompts, output) = (folder.path("prompts.txt"), folder.path("out.png"));
    let mut running = Command::new(env!("CARGO_BIN_EXE_wuerstchen"))
        .args(["generate", "--prompts", &prompts, "-o", &output, "--device", "cpu"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(running.stderr.take().unwrap()).lines();
    let wrote = lines.find(|line| line.as_ref().unwrap().starts_with("wrote "));
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(wrote.unwrap().unwrap().ends_with("out-0.png"));
    assert_eq!(folder.pixels("out-0.png").dimensions(), (64, 64));
    assert!(!folder.0.join("out-199.png").exists());
}

#[test]
fn words_have_weights() {
    let folder = Folder::new("weights");
    folder.generate("plain.png", &[PROMPT]);
    folder.generate("one.png", &["a large (red:1) star on [(a white:1.1)] background"]);
    folder.generate("strong.png", &["a large (red:1.6) star on a white background"]);
    let bracketed = "a large (red:1.6) star on a white background";
    folder.generate("literal.png", &[bracketed, "--prompt-syntax", "plain"]);
    folder.generate("escaped.png", &[r"a large \(red:1.6\) star on a white background"]);
    let plain = folder.pixels("plain.png");
    assert_eq!(folder.pixels("one.png"), plain);
    assert!(difference(&folder.pixels("strong.png"), &plain) > 10);
    assert_eq!(folder.pixels("escaped.png"), folder.pixels("literal.png"));
}

/// Stage A's strips make the same picture.
#[test]
fn rows_do_not_change_the_picture() {
    let folder = Folder::new("rows");
    folder.generate("whole.png", &[PROMPT, "--vqgan-rows", "0"]);
    folder.generate("strips.png", &[PROMPT, "--vqgan-rows", "3"]);
    assert!(difference(&folder.pixels("whole.png"), &folder.pixels("strips.png")) <= 1);
}

/// Options that others make useless are told, and only those.
#[test]
fn options_without_effect_are_told() {
    let folder = Folder::new("unused");
    let start = folder.path("start.png");
    folder.generate("start.png", &[PROMPT]);
    let output = folder.path("out.png");
    let told = |more: &[&str]| {
        let generate = ["generate", PROMPT, "-m", &shapes(), "--device", "cpu", "-o", &output];
        let output = wuerstchen(&[&generate[..], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let options = ["--prior-steps", "3", "--guidance-rescale", "0.5"];
    let unused = told(&[&options[..], &["--image", &start, "--strength", "0"]].concat());
    for option in ["prior-steps", "guidance-rescale"] {
        assert!(unused.contains(&format!("the --{option} does nothing")), "{unused}");
    }
    assert!(!told(&options).contains("does nothing"));
}

/// A picture as in the corpus is reconstructed, better through Stage A alone than through all stages.
#[test]
fn reconstructs_a_picture() {
    let folder = Folder::new("reconstruct");
    let start = folder.path("start.png");
    let model = ["-m", &shapes(), "--device", "cpu"];
    let generate = wuerstchen(&[&["generate", PROMPT, "-o", &start], &model[..]].concat());
    assert!(generate.status.success(), "{}", text(&generate.stderr));
    let output = folder.path("out.png");
    let output = ["reconstruct", &start, "-o", &output, "--json"];
    let unguided = ["--negative-prompt", "a circle", "--decoder-guidance-scale", "1"];
    let output = wuerstchen(&[&output[..], &model, &unguided].concat());
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("the --negative-prompt does nothing"), "{told}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [a, ba] = ["psnrThroughA", "psnrThroughBAndA"].map(|key| report[key].as_f64().unwrap());
    assert!(a > 28.0 && ba > 18.0 && a > ba, "{report}");
    assert_eq!(folder.pixels("out.png").dimensions(), (3 * 64, 64));
}

/// A model without Stage C reconstructs a picture to the same bits, and its Stage B is judged on prompts alone.
#[test]
fn stage_b_works_without_stage_c() {
    let folder = Folder::new("without-prior");
    let start = folder.path("start.png");
    folder.generate("start.png", &[PROMPT]);
    let (shapes, model) = (shapes(), folder.path("model.safetensors"));
    let mut files =
        ModelFiles::from_one_file("shapes", Arc::new(fs::read(&shapes).unwrap())).unwrap();
    for part in [Part::PRIOR, Part::PRIOR_TEXT] {
        assert!(files.weights.remove(&part).is_some());
    }
    fs::write(&model, files.to_one_file(WeightDtype::F16).unwrap()).unwrap();
    let [whole, lone] = [(&shapes, "whole.png"), (&model, "lone.png")].map(|(model, name)| {
        let output = folder.path(name);
        let output =
            wuerstchen(&["reconstruct", &start, "-o", &output, "-m", model, "--device", "cpu"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        folder.pixels(name)
    });
    assert_eq!(whole, lone);

    let eval = |more: &[&str]| {
        let eval =
            ["eval", "-m", &model, "--scenes", "shapes", "--prompts", "8", "--device", "cpu"];
        wuerstchen(&[&eval[..], more].concat())
    };
    let told = text(&eval(&[]).stderr);
    let expected = "the model lacks wuerstchen-prior/text_encoder, wuerstchen-prior/prior, which";
    assert!(told.contains(expected), "{told}");
    for (option, value) in [("--prior-steps", "3"), ("--strength", "0.5")] {
        let refused = eval(&["--without-prior", option, value]);
        let told = text(&refused.stderr);
        let expected = format!("{option} changes nothing with --without-prior");
        assert!(refused.status.code() == Some(2) && told.contains(&expected), "{told}");
    }
    let [plain, guided] = ["1", "9"].map(|scale| {
        let negative = ["--negative-prompt", "a circle", "--decoder-guidance-scale", scale];
        let output = eval(&[&["--without-prior", "--json"], &negative[..]].concat());
        let told = text(&output.stderr);
        assert!(output.status.success(), "{told}");
        assert_eq!(told.contains("the --negative-prompt does nothing"), scale == "1", "{told}");
        let rows = text(&output.stdout);
        assert_eq!(rows.matches(r#""source":"generated""#).count(), 5, "{rows}");
        rows
    });
    assert_ne!(plain, guided);
}

/// How a picture is read: the left third of what `reconstruct` writes.
fn as_read(folder: &Folder, picture: &str) -> RgbImage {
    let output = folder.path("as-read.png");
    let output = wuerstchen(&["reconstruct", picture, "-o", &output, "--device", "cpu"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let read = folder.pixels("as-read.png");
    image::imageops::crop_imm(&read, 0, 0, read.width() / 3, read.height()).to_image()
}

/// A blue square on nothing, whose hidden colour nobody sees.
#[test]
fn what_is_transparent_is_white() {
    let folder = Folder::new("transparent");
    for hidden in [0, 255] {
        let path = folder.path("transparent.png");
        let pixel = |x: u32, y: u32| {
            if (16..48).contains(&x) && (16..48).contains(&y) {
                Rgba([0, 0, 255, 255])
            } else {
                Rgba([hidden, hidden, hidden, 0])
            }
        };
        RgbaImage::from_fn(64, 64, pixel).save(&path).unwrap();
        let read = as_read(&folder, &path);
        assert_eq!(
            [read.get_pixel(0, 0), read.get_pixel(32, 32)],
            [&Rgb([255; 3]), &Rgb([0, 0, 255])]
        );
    }
}

/// A mask that is white on transparent paints the white part.
#[test]
fn what_is_transparent_of_a_mask_stays() {
    let folder = Folder::new("transparent-mask");
    folder.generate("start.png", &["a small blue circle on a black background"]);
    let alpha = |x: u32| LumaA([255, if x < 32 { 0 } else { 255 }]);
    GrayAlphaImage::from_fn(64, 64, |x, _| alpha(x)).save(folder.0.join("alpha.png")).unwrap();
    let white = |x: u32| Luma([if x < 32 { 0 } else { 255 }]);
    GrayImage::from_fn(64, 64, |x, _| white(x)).save(folder.0.join("opaque.png")).unwrap();
    for mask in ["alpha", "opaque"] {
        let (image, path) = (folder.path("start.png"), folder.path(&format!("{mask}.png")));
        let output = format!("{mask}-painted.png");
        folder.generate(&output, &[PROMPT, "--image", &image, "--mask", &path]);
    }
    assert_eq!(folder.pixels("alpha-painted.png"), folder.pixels("opaque-painted.png"));
}

/// As Pillow reads them; `ycck` is the former's type with the colours of paper white and grey.
#[test]
fn colours_of_print_are_read() {
    let folder = Folder::new("cmyk");
    let others = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures_of_others");
    for (name, expected) in [("cmyk", [200, 40, 40]), ("ycck", [217, 217, 217])] {
        let path = others.join(format!("{name}.jpg")).display().to_string();
        let found = as_read(&folder, &path).get_pixel(9, 9).0;
        let near = found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 10);
        assert!(near, "{name}: expected {expected:?}, found {found:?}");
    }
}

/// A TIFF of 64 x 64 equal pixels of these samples with as many bits each, and with further tags.
fn tiff(samples: &[u32], bits: u16, further: &[(u16, u16)]) -> Vec<u8> {
    let count = samples.len() as u16;
    let pixel: Vec<u8> = match bits {
        1 => Vec::new(),
        8 => samples.iter().map(|&value| value as u8).collect(),
        _ => samples.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    // One sample of one bit: a byte is eight pixels.
    let pixels = if bits == 1 { vec![samples[0] as u8; 512] } else { pixel.repeat(64 * 64) };
    let photometric = if count < 3 { 1 } else { 2 };
    let mut tags =
        vec![(256, 64), (257, 64), (259, 1), (262, photometric), (277, count), (278, 64)];
    tags.extend(further);
    // The bits of each sample come after the directory, and the pixels after them.
    let directory = 8 + 2 + 12 * (tags.len() as u32 + 3) + 4;
    let short = |(tag, value): (u16, u16)| (tag, 3u16, 1u32, u32::from(value));
    let mut entries: Vec<_> = tags.into_iter().map(short).collect();
    let of_bits = if count < 3 { u32::from(bits) } else { directory };
    entries.push((258, 3, u32::from(count), of_bits));
    entries.push((273, 4, 1, directory + 8));
    entries.push((279, 4, 1, pixels.len() as u32));
    entries.sort_unstable();
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        bytes.extend(tag.to_le_bytes().into_iter().chain(kind.to_le_bytes()));
        bytes.extend(count.to_le_bytes().into_iter().chain(value.to_le_bytes()));
    }
    bytes.extend(0u32.to_le_bytes());
    bytes.extend([bits; 4].iter().flat_map(|bits| bits.to_le_bytes()));
    bytes.extend(pixels);
    bytes
}

/// Half a red on half an alpha is a whole red. What the decoder would read wrongly is refused.
#[test]
fn tags_of_tiff_files_count() {
    let folder = Folder::new("tiff");
    let path = folder.path("a.tif");
    let read = |bytes: Vec<u8>| {
        std::fs::write(&path, bytes).unwrap();
        as_read(&folder, &path).get_pixel(9, 9).0
    };
    let refused = |bytes: Vec<u8>, reason: &str| {
        std::fs::write(&path, bytes).unwrap();
        let output = wuerstchen(&["reconstruct", &path, "--device", "cpu"]);
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains(reason), "{told}");
    };
    assert_eq!(read(tiff(&[255, 0, 0, 128], 8, &[(338, 2)])), [255, 127, 127]);
    assert_eq!(read(tiff(&[128, 0, 0, 128], 8, &[(338, 1)])), [255, 127, 127]);
    let fraction = |value: f32| tiff(&[value.to_bits(); 3], 32, &[(339, 3)]);
    assert_eq!(read(fraction(1.0)), [255; 3]);
    refused(fraction(200.0), "expected fractions from 0 to 1, found 200");
    assert_eq!(read(tiff(&[0xff], 1, &[(266, 1)])), [255; 3]);
    refused(tiff(&[0x0f], 1, &[(266, 2)]), "found FillOrder 2");
}

/// A GIF may have a screen of nothing. Its one frame has a pixel.
#[test]
fn a_picture_without_pixels_is_refused() {
    let folder = Folder::new("no-pixels");
    let path = folder.path("a.gif");
    let gif = b"GIF89a\0\0\0\0\x80\0\0\xff\0\0\0\0\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
    std::fs::write(&path, gif).unwrap();
    for command in [&["reconstruct", &path][..], &["generate", "x", "--image", &path]] {
        let output = wuerstchen(&[command, &["--device", "cpu"]].concat());
        let told = text(&output.stderr);
        let expected = "a.gif: expected pixels, found a picture of 0 x 0";
        assert!(output.status.code() == Some(4) && told.contains(expected), "{told}");
    }
}

/// A thin picture is cut to the model's square, and a line says so.
#[test]
fn a_reconstruction_tells_what_it_cuts() {
    let folder = Folder::new("cut");
    let path = folder.path("thin.png");
    RgbImage::new(640, 10).save(&path).unwrap();
    let output =
        wuerstchen(&["reconstruct", &path, "-o", &folder.path("r.png"), "--device", "cpu"]);
    let told = text(&output.stderr);
    assert!(told.contains("a picture of 640 x 10 pixels is scaled and cut to 64 x 64"), "{told}");
}

/// Without a size, the result is as large as its picture up to twice the model's default size of 64 pixels.
#[test]
fn a_photo_of_a_camera_does_not_make_a_result_of_its_size() {
    let folder = Folder::new("photo");
    let size = |[width, height]: [u32; 2]| {
        let path = folder.path("photo.png");
        RgbImage::new(width, height).save(&path).unwrap();
        let output = folder.path("out.png");
        let steps = ["--strength", "0", "--decoder-steps", "1", "--device", "cpu"];
        let arguments = ["generate", "--image", &path, "-m", &shapes(), "-o", &output];
        let told = text(&wuerstchen(&[&arguments[..], &steps].concat()).stderr);
        (image::image_dimensions(&output).unwrap(), told.contains("scaled and cut"))
    };
    assert_eq!(size([128, 64]), ((128, 64), false));
    assert_eq!(size([136, 64]), ((64, 64), true));
    assert_eq!(size([4032, 3024]), ((64, 64), true));
}

/// The parts of a prompt that do nothing are reported, and nothing else.
#[test]
fn what_of_a_prompt_is_not_read_is_told() {
    let folder = Folder::new("long");
    // A zero character separates a prompt from its negative prompt.
    let told = |prompts: &str| {
        let (prompt, negative) = prompts.split_once('\0').unwrap_or((prompts, ""));
        let output = folder.path("out.png");
        let steps = ["--prior-steps", "1", "--decoder-steps", "1", "--device", "cpu"];
        let arguments = ["generate", prompt, "-n", negative, "-m", &shapes(), "-o", &output];
        text(&wuerstchen(&[&arguments[..], &steps].concat()).stderr)
    };
    let long = "a large red star above a small blue circle on a white background and also beside it \
                and below two green triangles";
    let cut =
        "the prompt is longer than the model reads, which leaves out \"below two green triangles\"";
    assert!(told(long).contains(cut), "{}", told(long));
    let weighted = long.replace("large red", "(large:1.2) [red]");
    assert!(told(&weighted).contains(cut), "{}", told(&weighted));
    assert!(!told(PROMPT).contains("prompt"), "{}", told(PROMPT));
    assert!(!told(PROMPT).contains("does not know"), "{}", told(PROMPT));
    let unknown = told("a (Zebra:1.2), a zebra and a red spaceship!");
    assert!(unknown.contains("the model does not know: Zebra, zebra, spaceship\n"), "{unknown}");
    let drawn = told("a \u{2764}\u{fe0f} and a \u{1f34e} — \u{1f34e}?");
    assert!(drawn.contains("the model does not know: \u{2764}, \u{1f34e}\n"), "{drawn}");
    let negative = told(&format!("{PROMPT}\0{long}, a (zebra:101)"));
    for line in [
        "the --negative-prompt is longer than the model reads",
        "does not know these words of the --negative-prompt: also, beside, zebra\n",
        "in the --negative-prompt is cut to",
    ] {
        assert!(negative.contains(line), "expected {line:?}: {negative}");
    }
    let lora = told("a star <lora:style:0.8>");
    assert!(lora.contains("\"<lora:style:0.8>\" in the prompt is taken for words"), "{lora}");
}

/// The small model that draws shapes.
fn shapes() -> String {
    repository().join("models/shapes.safetensors").display().to_string()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A LoRA that peft wrote, in its folder and with a weight; 0 changes nothing.
#[test]
fn loras_change_stage_c() {
    let folder = Folder::new("lora");
    let small = repository().join("tests/golden/small");
    let (model, style) = (small.display().to_string(), small.join("lora/style"));
    let generate = |name: &str, lora: Option<&str>| {
        let style = format!("{}:{}", style.display(), lora.unwrap_or_default());
        let mut arguments = vec!["teapot", "-m", &model, "-W", "128", "-H", "256"];
        if lora.is_some() {
            arguments.extend(["--lora", &style]);
        }
        folder.generate(name, &arguments);
        folder.pixels(name)
    };
    let without = generate("without.png", None);
    assert_eq!(generate("none.png", Some("0")), without);
    assert_ne!(generate("with.png", Some("1.5")), without);
    let told = wuerstchen(&["inspect", &folder.path("with.png"), "--json"]);
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["settings"]["loras"][0], "style:1.5");
    let (style, output) = (format!("{}:0", style.display()), folder.path("none.png"));
    let arguments =
        ["generate", "teapot", "-m", &model, "-W", "128", "-H", "256", "--device", "cpu"];
    let report =
        ["--lora", &style, "--json", "-o", &output, "--prior-steps", "1", "--decoder-steps", "1"];
    let report = wuerstchen(&[&arguments[..], &report[..]].concat());
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["settings"]["loras"][0], "style:0");
}

#[test]
fn mistakes_are_named_and_have_their_exit_code() {
    let folder = Folder::new("mistakes");
    let (image, mask) = (folder.path("image.png"), folder.path("mask.png"));
    RgbImage::new(64, 64).save(&image).unwrap();
    GrayImage::new(64, 32).save(&mask).unwrap();
    fs::write(folder.0.join("empty.txt"), "\n \n").unwrap();
    let (nothing, out) = (folder.path("empty.txt"), folder.path("out.png"));
    let style = repository().join("tests/golden/small/lora/detail.safetensors");
    let style = style.display().to_string();
    for (arguments, code, message) in [
        (vec!["x", "--strength", "0.5"], 2, "strength needs a picture to start from"),
        (vec!["x", "--image", &image, "--strength", "2"], 2, "strength must be between 0 and 1"),
        (
            vec!["x", "--image", &image, "--mask", &mask],
            2,
            "--mask must be of the picture's size, 64 x 64, got 64 x 32",
        ),
        (vec!["x", "--mask", &mask], 2, "--image"),
        (
            vec!["x", "--prior-guidance-scale", "1e30", "--device", "cpu"],
            2,
            "the latents of Stage B are infinite or NaN from step 1 on: expected smaller \
             scales of guidance or of a ControlNet, or other weights",
        ),
        (
            vec!["x", "--prior-guidance-scale", "1e300", "--device", "cpu"],
            2,
            "the latents of Stage C are infinite or NaN",
        ),
        (
            vec!["x", "--count", "65", "-W", "1024", "-H", "1024", "--device", "cpu"],
            2,
            "count must be at most 64 with pictures of 1024 x 1024 pixels",
        ),
        (vec!["x", "--frames", "3"], 2, "--frames needs --prompt-to or --image-to"),
        (vec!["x", "--prompt-to", "y", "--frames", "1"], 2, "frames must be between 2 and 256"),
        (vec!["x", "--prompt-to", "y", "--count", "2"], 2, "count must be 1 where frames are made"),
        (vec!["x", "--image", &nothing], 4, "cannot read the picture"),
        (vec!["--prompts", &nothing], 4, "expected a prompt on every line, found none"),
        (vec!["--strength", "1"], 2, "PROMPT"),
        (
            vec!["x", "--lora", &style],
            4,
            "misshapen: prior.blocks.2.attention.to_k.lora.down.weight: expected [2, 192], found [2, 24]",
        ),
    ] {
        let output = wuerstchen(&[&["generate", "-o", &out], &arguments[..]].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
}
