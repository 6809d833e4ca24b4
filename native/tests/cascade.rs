//! Stable Cascade on the command line.

mod program;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use wuerstchen::Checkpoint;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::fs::open;

use program::{copy, save, scratch, text, wuerstchen};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("tests/golden/cascade").join(path)
}

/// Runs the program, which must succeed, and reads the JSON that it prints.
fn run(arguments: &[&str]) -> Value {
    let output = wuerstchen(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A small picture by the model of a folder; `more` are further arguments.
fn picture(model: &Path, name: &str, more: &[&str]) -> Vec<u8> {
    let file = scratch(&format!("cascade-picture-{name}")).join("out.png");
    let (model, output) = (model.display().to_string(), file.display().to_string());
    let size = ["--width", "128", "--height", "128", "--prior-steps", "2", "--decoder-steps", "2"];
    let mut arguments = vec!["generate", "-m", &model, "-o", &output, "--device", "cpu", "--json"];
    arguments.extend(size.into_iter().chain(more.iter().copied()));
    run(&arguments);
    fs::read(file).unwrap()
}

/// The number of tensors of each file that are compared.
const COUNTS: [(&str, usize); 16] = [
    ("combined", 5),
    ("controlnet", 5),
    ("effnet", 3),
    ("gdf", 36),
    ("image_encoder", 28),
    ("lora", 3),
    ("original/unet_b", 53),
    ("original/unet_c", 34),
    ("original/vqgan", 4),
    ("pipeline", 25),
    ("scheduler", 10),
    ("text_prior", 7),
    ("tokenizer", 104),
    ("unet_b", 53),
    ("unet_c", 34),
    ("vqgan", 4),
];

/// The goldens that nothing is compared with: what the authors' formulas do not use.
const UNCHECKED: [&str; 3] = [
    "gdf/steps.x",
    "scheduler/ratio.linear.timesteps",
    "scheduler/ratio.squaredcos_cap_v2.timesteps",
];

#[test]
fn every_golden_of_stable_cascade_agrees_on_the_cpu() {
    let folder = golden("").display().to_string();
    let report = run(&["verify", &folder, "--device", "cpu", "--json"]);
    let checks = report["checks"].as_array().unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| check["ok"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    for (file, count) in COUNTS {
        let found = checks.iter().filter(|check| check["file"] == file).count();
        assert_eq!(found, count, "{file}");
    }
    assert_eq!(checks.len(), COUNTS.iter().map(|(_, count)| count).sum::<usize>());
    let mut unchecked: Vec<&str> =
        report["unchecked"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    unchecked.sort_unstable();
    assert_eq!(unchecked, UNCHECKED);
}

/// Words, a picture, both, and the authors' sampling make four different pictures.
#[test]
fn prompts_are_words_and_pictures() {
    let photo = scratch("cascade-photo").join("photo.png");
    let photo = photo.display().to_string();
    assert!(wuerstchen(&["generate", "a red circle", "-o", &photo]).status.success());
    let model = golden("");
    let make = |name: &str, more: &[&str]| picture(&model, name, more);
    let pictures = [
        make("words", &["a red hat"]),
        make("picture", &["--picture-prompt", &photo]),
        make("both", &["a red hat", "--picture-prompt", &photo]),
        make("authors", &["a red hat", "--recipe", "authors"]),
        make("prior-shift", &["a red hat", "--prior-shift", "2"]),
        make("decoder-shift", &["a red hat", "--decoder-shift", "2"]),
    ];
    for (i, picture) in pictures.iter().enumerate() {
        assert!(!pictures[..i].contains(picture), "{i}");
    }
    assert_eq!(pictures[0], make("words-again", &["a red hat"]));
}

/// Residual blocks of the golden model's Stage C.
const RES_BLOCKS: usize = 6;

/// A folder with the golden ControlNet of a kind, whose projections belong to these residual blocks of Stage C.
fn controlnet(kind: &str, blocks: [usize; RES_BLOCKS]) -> PathBuf {
    let path = golden("").with_file_name("controlnets.safetensors");
    let all = Checkpoint::parse("controlnets", open(&path).unwrap()).unwrap();
    let is_extra = |name: &str| {
        let rest = name.strip_prefix("projections.").and_then(|rest| rest.split('.').next());
        rest.is_some_and(|number| number.parse::<usize>().unwrap() >= RES_BLOCKS)
    };
    let weights = all.under(&format!("{kind}.weights."));
    let weights = weights.renamed(|name| (!is_extra(name)).then(|| name.to_owned()));
    let folder = scratch(&format!("controlnet-{kind}-{}", blocks[RES_BLOCKS - 1]));
    save(folder.join("model.safetensors"), &weights);
    fs::write(folder.join("config.json"), format!(r#"{{"blocks": {blocks:?}}}"#)).unwrap();
    folder
}

/// A ControlNet changes the picture, as far as its scale says, whether it lies in the model's folder or not.
#[test]
fn a_controlnet_makes_stage_c_follow_a_picture() {
    let photo = scratch("controlnet-photo").join("photo.png").display().to_string();
    assert!(wuerstchen(&["generate", "a red circle", "-o", &photo]).status.success());
    let [edges, painting, embedding] = ["edges", "painting", "embedding"]
        .map(|kind| controlnet(kind, [0, 1, 2, 3, 4, 5]).display().to_string());
    let model = golden("");
    let pixels = |name: &str, more: &[&str]| {
        let more: Vec<_> = ["a hat"].iter().chain(more).copied().collect();
        let png = picture(&model, name, &more);
        image::load_from_memory(&png).unwrap().into_rgb8()
    };
    let control = ["--control-image", &photo, "--controlnet", &edges];
    let with = |more: &[&'static str]| {
        control.iter().copied().chain(more.iter().copied()).collect::<Vec<_>>()
    };
    let free = pixels("free", &[]);
    let followed = pixels("followed", &control);
    assert!(free != followed);
    assert!(free == pixels("scale-0", &with(&["--control-scale", "0"])));
    assert!(followed != pixels("scale-2", &with(&["--control-scale", "2"])));
    let plain = scratch("controlnet-plain");
    let [flat, output] = ["flat.png", "out.png"].map(|file| plain.join(file).display().to_string());
    image::RgbImage::new(64, 64).save(&flat).unwrap();
    let (model_path, size) = (model.display().to_string(), ["--width", "64", "--height", "64"]);
    let arguments = ["generate", "a hat", "-m", &model_path, "--device", "cpu", "-o", &output];
    let of_nothing = ["--control-image", &flat, "--controlnet", &edges];
    let told = text(&wuerstchen(&[&arguments[..], &size, &of_nothing].concat()).stderr);
    assert!(told.contains("no edges were found in the --control-image"), "{told}");

    let painted = ["--control-image", &photo, "--controlnet", &painting];
    let masked: Vec<_> = painted.iter().copied().chain(["--control-mask", &photo]).collect();
    assert!(free != pixels("masked", &masked));
    // The content of a picture needs the compressor, which `import` puts into one file with the rest.
    let whole = scratch("controlnet-whole").join("model.safetensors");
    let [folder, effnet] =
        ["", "original/effnet_encoder.safetensors"].map(|path| golden(path).display().to_string());
    run(&["import", "--json", &folder, &effnet, "-o", &whole.display().to_string()]);
    let content = ["--control-image", &photo, "--controlnet", &embedding];
    let made = |name: &str, more: &[&str]| {
        let more: Vec<_> = ["a hat"].iter().chain(more).copied().collect();
        image::load_from_memory(&picture(&whole, name, &more)).unwrap().into_rgb8()
    };
    assert!(made("whole", &[]) != made("content", &content));

    let refuse = |more: &[&str], reason: &str| {
        let model = model.display().to_string();
        let arguments: Vec<_> =
            ["generate", "a hat", "-m", &model].iter().chain(more).copied().collect();
        let output = wuerstchen(&arguments);
        let error = text(&output.stderr);
        assert!(!output.status.success() && error.contains(reason), "{error}");
    };
    refuse(&painted, "--control-image needs a --control-mask");
    refuse(
        &with(&["--control-mask"]).into_iter().chain([&*photo]).collect::<Vec<_>>(),
        "takes no mask",
    );
    refuse(&control[..2], "--control-image needs a model with a ControlNet");
    refuse(&content, "--control-image needs a model with the semantic compressor");
    let beyond = controlnet("edges", [0, 1, 2, 3, 4, 6]).display().to_string();
    let beyond = ["--control-image", &photo, "--controlnet", &beyond];
    refuse(
        &beyond,
        "blocks must be numbers below 6, of as many residual blocks as Stage C has, got 6",
    );
    refuse(&["--control-scale", "2"], "--control-scale needs a --control-image");
    let original = golden("original/controlnet.safetensors").display().to_string();
    refuse(
        &["--control-image", &photo, "--controlnet", &original],
        "blocks must be a list in config.json of 3",
    );
    let lora = golden("original/stage_a.safetensors").display().to_string();
    refuse(
        &["--control-image", &photo, "--controlnet", &lora],
        "expected a ControlNet and nothing else",
    );
}

/// The repository of Stage B has several ControlNets in a folder. They are left out with a line; one of them can be
/// named, and has to fit Stage C. The only one in such a folder is the model's.
#[test]
fn one_of_several_controlnets_has_to_be_named() {
    let folder = scratch("controlnets");
    for pipeline in ["stable-cascade", "stable-cascade-prior"] {
        copy(&golden(pipeline), &folder.join(pipeline));
    }
    let [pipeline, prior] =
        ["stable-cascade", "stable-cascade-prior"].map(|name| folder.join(name));
    let own = pipeline.join("controlnet");
    fs::create_dir(&own).unwrap();
    let net = controlnet("edges", [0, 1, 2, 3, 4, 5]);
    for name in ["canny.safetensors", "inpainting.safetensors"] {
        fs::copy(net.join("model.safetensors"), own.join(name)).unwrap();
    }
    fs::copy(net.join("config.json"), own.join("config.json")).unwrap();
    let misfit = controlnet("edges", [0, 1, 2, 3, 4, 7]).join("model.safetensors");
    let canny = own.join("canny.safetensors");
    let import = |more: &[&Path]| {
        let paths = [&*pipeline, &*prior].into_iter().chain(more.iter().copied());
        let paths = paths.map(|path| path.to_str().unwrap());
        wuerstchen(&["import", "--json"].into_iter().chain(paths).collect::<Vec<_>>())
    };
    let has_controlnet = |output: &[u8]| {
        let report: Value = serde_json::from_slice(output).unwrap();
        let parts = report["parts"].as_array().unwrap();
        parts.iter().any(|part| part["part"] == "controlnet")
    };
    let output = import(&[]);
    let told = text(&output.stderr);
    assert!(output.status.success() && !has_controlnet(&output.stdout), "{told}");
    let line = format!("{} is left out; one of its files can be named", own.display());
    assert!(told.contains(&line), "{told}");
    let output = import(&[&canny]);
    assert!(output.status.success() && has_controlnet(&output.stdout), "{}", text(&output.stderr));
    let error = text(&import(&[&misfit]).stderr);
    assert!(error.contains("blocks must be numbers below 6"), "{error}");

    fs::remove_file(own.join("inpainting.safetensors")).unwrap();
    for model in [&folder, &pipeline] {
        let told = run(&["inspect", "--json", model.to_str().unwrap()]);
        assert!(told["parts"]["controlnet"].is_object(), "{told:#}");
    }
}

/// Every multiple of 8 pixels from the least on comes out as asked; odd levels are fitted to each other.
#[test]
fn any_multiple_of_eight_pixels_is_made() {
    let file = scratch("cascade-size").join("out.png").display().to_string();
    let model = golden("").display().to_string();
    let ask = |width: &str, height: &str| {
        let steps = ["--prior-steps", "1", "--decoder-steps", "1"];
        let mut arguments = vec!["generate", "-m", &model, "a hat", "-o", &file, "--json"];
        arguments.extend(["--device", "cpu", "-W", width, "-H", height].into_iter().chain(steps));
        wuerstchen(&arguments)
    };
    let output = ask("168", "104");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let png = fs::read(&file).unwrap();
    let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!((side(16), side(20)), (168, 104));
    let error = text(&ask("56", "104").stderr);
    assert!(error.contains("width must be a size that the model can make"), "{error}");
    let error = text(&ask("130", "104").stderr);
    assert!(error.contains("the nearest being 128 and 136"), "{error}");
}

/// Stage B has a text encoder of its own in diffusers' folders, which is left out. If it is another one, a line says so.
#[test]
fn another_text_encoder_of_stage_b_is_told_of() {
    let folder = scratch("cascade-encoders").join("model");
    copy(&golden("."), &folder);
    let path = folder.display().to_string();
    let line = "stable-cascade/text_encoder is left out, although it differs from";
    let inspected = wuerstchen(&["inspect", &path]);
    assert!(inspected.status.success() && !text(&inspected.stderr).contains(line));
    let file = folder.join("stable-cascade/text_encoder/model.safetensors");
    let weights = Checkpoint::parse("text encoder", open(&file).unwrap()).unwrap();
    let changed = weights.describe().map(|(name, _, shape, _)| {
        let values = weights.values(name).unwrap().iter().map(|value| 1.01 * value).collect();
        NamedTensor::new(name, shape, values)
    });
    let changed = changed.collect::<Vec<_>>();
    save(&file, &Checkpoint::from_tensors("text encoder", changed));
    let told = text(&wuerstchen(&["inspect", &path]).stderr);
    assert!(told.contains(line), "{told}");
}

/// The bundle has one text encoder, and what it makes is what its weights make.
#[test]
fn a_bundle_for_the_browser_makes_the_same_picture() {
    let folder = scratch("cascade-web");
    let (model, output) = (golden("").display().to_string(), folder.join("web"));
    let arguments = ["export", "web", "-m", &model, "--dtype", "f32", "--preview-pictures", "0"];
    let small = ["--check", "0", "--picture-size", "128"];
    let mut arguments = Vec::from(arguments);
    let path = output.display().to_string();
    arguments.extend(small.into_iter().chain(["-o", &path]));
    let exported = wuerstchen(&arguments);
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    let manifest = fs::read(output.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["picturePrompts"], true);
    let told = run(&["inspect", &path, "--json"]);
    let parts: Vec<&str> = told["parts"].as_object().unwrap().keys().map(String::as_str).collect();
    assert!(!parts.contains(&"stable-cascade/text_encoder"), "{parts:?}");
    assert!(parts.contains(&"stable-cascade-prior/image_encoder"), "{parts:?}");
    let make = |model: &Path, name: &str| picture(model, name, &["a red hat"]);
    assert_eq!(make(&golden(""), "folder"), make(&output, "bundle"));
}

/// The norm after its mapper tells the compressor from v2's, and the parts beside it tell Stage A.
#[test]
fn single_files_are_told_by_their_tensors() {
    let folder = golden("stable-cascade-prior").display().to_string();
    let original = |file: &str| golden("original").join(file).display().to_string();
    let [a, b, effnet, previewer] = ["stage_a", "stage_b", "effnet_encoder", "previewer"]
        .map(|name| original(&format!("{name}.safetensors")));
    // The heads of a model that is not published stand in its config alone.
    let error = text(&wuerstchen(&["import", &folder, &b]).stderr);
    assert!(error.contains("stable-cascade/decoder/config.json: it is missing"), "{error}");
    let report = run(&["import", "--json", &folder, &a, &effnet, &previewer]);
    assert_eq!(report["ok"], true, "{report}");
    let parts = report["parts"].as_array().unwrap();
    let parts: Vec<&str> = parts.iter().filter_map(|part| part["part"].as_str()).collect();
    assert_eq!(
        parts,
        [
            "effnet_encoder",
            "previewer",
            "stable-cascade-prior/image_encoder",
            "stable-cascade-prior/prior",
            "stable-cascade-prior/text_encoder",
            "stable-cascade/vqgan",
        ]
    );
    assert_eq!(report["lacking"].as_array().unwrap(), &["stable-cascade/decoder"]);
}
