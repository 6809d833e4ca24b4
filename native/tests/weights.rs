//! Weights and LoRAs as other programs save them.

mod program;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use wuerstchen::Checkpoint;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::fs::open;

use program::{copy, save, scratch, text, wuerstchen};

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("tests/golden/small")
}

/// Fails unless all six parts, or all but the compressor, are there and whole; returns the reported lines.
fn import(paths: &[&Path], parts: usize) -> String {
    let paths = paths.iter().map(|path| path.to_str().unwrap());
    let arguments: Vec<_> = ["import", "--json"].into_iter().chain(paths).collect();
    let output = wuerstchen(&arguments);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["parts"].as_array().unwrap().len(), parts, "{report:#}");
    assert_eq!(report["lacking"], serde_json::json!([]), "{report:#}");
    error
}

/// The authors' file of Stage B has the compressor, which diffusers' folders lack. Its Stage B is left out with a line,
/// in whatever order files are named, and where the file lies in the repository of Stage B.
#[test]
fn the_compressor_comes_from_the_authors_file() {
    let folder = scratch("published");
    for pipeline in ["wuerstchen-prior", "wuerstchen"] {
        copy(&goldens().join(pipeline), &folder.join(pipeline));
    }
    let name = "model_v2_stage_b.pt";
    let file = folder.join(name);
    copy(&goldens().join("original").join(name), &file);
    let [prior, decoder] = ["wuerstchen-prior", "wuerstchen"].map(|name| folder.join(name));
    let left_out = format!("{}: left out: wuerstchen/decoder, which is read from", file.display());
    for paths in [[&prior, &decoder, &file], [&file, &prior, &decoder]] {
        let told = import(&paths.map(|path| path.as_path()), 6);
        assert!(told.contains(&left_out), "{told}");
    }
    // Beside the folders of both pipelines, and beside those of Stage B's parts.
    assert!(import(&[&folder], 6).contains(&left_out));
    fs::rename(&file, decoder.join(name)).unwrap();
    assert!(import(&[&folder], 6).contains("left out: wuerstchen/decoder"));
    let other = decoder.join("other.safetensors");
    copy(&goldens().join("effnet/diffusion_pytorch_model.safetensors"), &other);
    assert!(import(&[&folder], 6).contains("left out: other.safetensors"));
}

/// Programs put the name of the network in front of all names, in one word or two. In a checkpoint of several parts, or
/// in the state of a training, each part has a beginning of its own.
#[test]
fn beginnings_of_names_are_left_out_or_explained() {
    let folder = scratch("beginnings");
    let prior = goldens().join("wuerstchen-prior/prior");
    copy(&prior.join("config.json"), &folder.join("config.json"));
    let file = prior.join("diffusion_pytorch_model.safetensors");
    let weights = Checkpoint::parse("prior", open(&file).unwrap()).unwrap();
    let write = |name: &str, begin: &dyn Fn(usize) -> &'static str| {
        let tensor = |(i, name): (usize, &str)| {
            let shape = weights.shape(name).unwrap();
            let values = weights.values(name).unwrap();
            NamedTensor::new(format!("{}{name}", begin(i)), shape, values)
        };
        let tensors: Vec<_> = weights.names().enumerate().map(tensor).collect();
        let path = folder.join(format!("{name}.safetensors")).display().to_string();
        save(&path, &Checkpoint::from_tensors(name, tensors));
        let output = wuerstchen(&["import", &path]);
        (output.status.success(), text(&output.stderr))
    };
    for (name, beginning) in [("one", "generator."), ("two", "model.diffusion_model.")] {
        let (ok, told) = write(name, &|_| beginning);
        let line = format!("{beginning}, with which all names begin, is left out");
        assert!(ok && told.contains(&line), "{told}");
    }
    let network = "model.diffusion_model.";
    let (ok, told) = write("comfy", &|i| if i == 0 { "text." } else { network });
    assert!(!ok && told.contains("it is a checkpoint of ComfyUI"), "{told}");
    let (ok, told) = write("state", &|i| if i % 2 == 0 { "weights/" } else { "first/" });
    assert!(!ok && told.contains("found the state of a training"), "{told}");
}

/// What nothing could load is not written, though each part alone is whole.
#[test]
fn parts_that_do_not_fit_each_other_are_not_imported() {
    let folder = scratch("unfit");
    let model = folder.join("model");
    copy(&goldens().join("."), &model);
    fs::remove_dir_all(model.join("original")).unwrap();
    let tokenizer = model.join("wuerstchen-prior/tokenizer");
    let text = fs::read_to_string(tokenizer.join("tokenizer.json")).unwrap();
    let output = folder.join("out");
    let refused = |expected: &str| {
        let arguments = ["import", model.to_str().unwrap(), "-o", output.to_str().unwrap()];
        // What only reports says the same.
        for arguments in [&arguments[..], &arguments[..2]] {
            let found = wuerstchen(arguments);
            let told = self::text(&found.stderr);
            assert!(
                found.status.code() == Some(4) && told.contains(expected),
                "{expected}: {told}"
            );
        }
        assert!(!output.exists());
    };
    fs::write(tokenizer.join("tokenizer.json"), &text[..text.len() / 2]).unwrap();
    refused("tokenizer.json");
    let other = text.replacen(r#""BPE""#, r#""Unigram""#, 1);
    fs::write(tokenizer.join("tokenizer.json"), other).unwrap();
    refused("expected a tokenizer of the kind BPE or WordLevel, found Unigram");
    fs::write(tokenizer.join("tokenizer.json"), text).unwrap();
    let scheduler = model.join("wuerstchen-prior/text_encoder/config.json");
    let text = fs::read_to_string(&scheduler).unwrap();
    assert!(text.contains("hidden_size"));
    fs::remove_dir_all(model.join("wuerstchen-prior/text_encoder")).unwrap();
    let decoder = model.join("wuerstchen/text_encoder");
    copy(&decoder, &model.join("wuerstchen-prior/text_encoder"));
    refused("c_cond must be ");
}

/// A folder of a pipeline that may not be read is not taken for one that is not there.
#[cfg(unix)]
#[test]
fn folders_without_permission_are_named() {
    use std::os::unix::fs::PermissionsExt;
    let model = scratch("permission").join("model");
    copy(&goldens().join("."), &model);
    let prior = model.join("wuerstchen-prior");
    fs::set_permissions(&prior, fs::Permissions::from_mode(0o000)).unwrap();
    // Root may read everything.
    if prior.read_dir().is_ok() {
        // Not `eprintln!`, whose output the test harness keeps back when a test passes.
        let _ = writeln!(std::io::stderr(), "folders without permission were not tested, as root");
        return;
    }
    let output = wuerstchen(&["import", model.to_str().unwrap()]);
    fs::set_permissions(&prior, fs::Permissions::from_mode(0o755)).unwrap();
    let told = text(&output.stderr);
    let expected = format!("cannot read {}", prior.display());
    assert!(told.contains(&expected), "{told}");
}

/// The files that diffusers saves for the pipeline that joins both.
#[test]
fn both_pipelines_may_be_one_folder() {
    let folder = scratch("combined");
    for part in ["decoder", "scheduler", "text_encoder", "tokenizer", "vqgan"] {
        copy(&goldens().join("wuerstchen").join(part), &folder.join(part));
    }
    for part in ["prior", "scheduler", "text_encoder", "tokenizer"] {
        let to = folder.join(format!("prior_{part}"));
        copy(&goldens().join("wuerstchen-prior").join(part), &to);
    }
    let index = r#"{"_class_name": "WuerstchenCombinedPipeline"}"#;
    fs::write(folder.join("model_index.json"), index).unwrap();
    assert_eq!(import(&[&folder], 5), "");

    let generate = |model: &Path, name: &str| {
        let (model, picture) = (model.display().to_string(), folder.join(name));
        let steps = ["-W", "128", "-H", "256", "--prior-steps", "2", "--decoder-steps", "2"];
        let output = picture.display().to_string();
        let arguments = ["generate", "a badger", "--device", "cpu", "-m", &model, "-o", &output];
        let output = wuerstchen(&[&arguments[..], &steps].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        image::open(picture).unwrap()
    };
    assert_eq!(generate(&folder, "one.png"), generate(&goldens(), "two.png"));
    copy(&folder.join("prior_prior"), &folder.join("prior_prior_ema"));
    let told = import(&[&folder], 5);
    assert!(told.contains("reads prior_prior; left out: prior_prior_ema"), "{told}");
    fs::rename(folder.join("prior_prior"), folder.join("prior_prior_lite")).unwrap();
    let told = import(&[&folder], 5);
    assert!(told.contains("reads prior_prior_lite; left out: prior_prior_ema"), "{told}");

    let is_refused = |folder: &Path, class: &str| {
        let other = format!(r#"{{"_class_name": "{class}"}}"#);
        fs::write(folder.join("model_index.json"), other).unwrap();
        let output = wuerstchen(&["import", folder.to_str().unwrap()]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{error}");
        let expected = format!("expected a pipeline of Würstchen, found a {class}");
        assert!(error.contains(&expected), "{error}");
    };
    is_refused(&folder, "KandinskyPriorPipeline");
    // Other models have text encoders of the same kind.
    let folder = scratch("other-pipeline");
    copy(&goldens().join("wuerstchen-prior/text_encoder"), &folder.join("text_encoder"));
    is_refused(&folder, "StableDiffusionPipeline");
}

#[cfg(unix)]
#[test]
fn repositories_lie_in_a_cache() {
    let cache = scratch("hub");
    let repository = |name: &str| {
        let folder = cache.join(format!("models--warp-ai--{name}"));
        copy(&goldens().join(name), &folder.join("snapshots/abc"));
        fs::create_dir_all(folder.join("snapshots/def")).unwrap();
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::write(folder.join("refs/main"), "abc\n").unwrap();
        folder
    };
    let [prior, decoder] = ["wuerstchen-prior", "wuerstchen"].map(repository);
    import(&[&prior, &decoder], 5);
    import(&[&cache], 5);
    fs::remove_file(prior.join("refs/main")).unwrap();
    let output = wuerstchen(&["import", prior.to_str().unwrap()]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4));
    assert!(
        error.contains("expected one snapshot, or refs/main with its name, found 2"),
        "{error}"
    );
}

/// Beside safetensors, instead of them, with and without a name that tells what it is.
#[test]
fn weights_of_pytorch_lie_where_others_do() {
    let folder = scratch("pytorch");
    let part = folder.join("model/wuerstchen-prior/prior");
    copy(&goldens().join("."), &folder.join("model"));
    let original = goldens().join("original/model_v2_stage_c.pt");
    copy(&original, &part.join("diffusion_pytorch_model.bin"));
    fs::write(part.join("._diffusion_pytorch_model.safetensors"), "resource fork").unwrap();
    let told = import(&[&folder.join("model")], 6);
    assert!(told.contains("left out: diffusion_pytorch_model.bin"), "{told}");
    assert!(
        told.contains("reads the folders of its parts; left out: model_v2_stage_b.pt"),
        "{told}"
    );
    fs::remove_dir_all(folder.join("model/original")).unwrap();
    fs::remove_file(part.join("diffusion_pytorch_model.safetensors")).unwrap();
    assert_eq!(import(&[&folder.join("model")], 6), "");

    let alone = folder.join("alone");
    copy(&original, &alone.join("model_v2_stage_c.pt"));
    copy(&part.join("config.json"), &alone.join("config.json"));
    for path in [alone.join("model_v2_stage_c.pt"), alone] {
        let output = wuerstchen(&["import", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
}

/// A download of half-precision files brings the index of the others; phones and old programs write names in
/// capitals; a file is what its content says.
#[test]
fn weights_are_known_by_what_they_are() {
    let folder = scratch("weights-as-they-are");
    copy(&goldens().join("."), &folder.join("model"));
    fs::remove_dir_all(folder.join("model/original")).unwrap();
    let part = folder.join("model/wuerstchen-prior/prior");
    let (plain, half) =
        ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors");
    let rename = |from: &str, to: &str| fs::rename(part.join(from), part.join(to)).unwrap();
    rename(plain, half);
    let index = format!(r#"{{"weight_map": {{"a": "{plain}"}}}}"#);
    fs::write(part.join(format!("{plain}.index.json")), index).unwrap();
    let told = import(&[&folder.join("model")], 6);
    let line = format!("reads {half}; left out: {plain}.index.json");
    assert!(told.contains(&line), "{told}");
    fs::remove_file(part.join(format!("{plain}.index.json"))).unwrap();

    for name in ["DIFFUSION_PYTORCH_MODEL.SAFETENSORS", "weights.bin"] {
        rename(half, name);
        assert_eq!(import(&[&folder.join("model")], 6), "");
        rename(name, half);
    }
    fs::remove_file(part.join(half)).unwrap();
    copy(&goldens().join("original/model_v2_stage_c.pt"), &part.join(plain));
    assert_eq!(import(&[&folder.join("model")], 6), "");

    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n";
    fs::remove_file(part.join(plain)).unwrap();
    fs::write(part.join("diffusion_pytorch_model.bin"), pointer).unwrap();
    let output = wuerstchen(&["import", folder.join("model").to_str().unwrap()]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(error.contains("it is a pointer of Git LFS"), "{error}");
}

#[test]
fn a_bundle_among_other_weights_is_read_with_a_word() {
    let folder = scratch("bundle-and-parts");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("models/shapes.safetensors");
    let [from, bundle] = [&model, &folder].map(|path| path.to_str().unwrap());
    assert!(wuerstchen(&["import", from, "-o", bundle]).status.success());
    assert_eq!(import(&[&folder], 6), "");
    copy(&goldens().join("wuerstchen-prior"), &folder.join("wuerstchen-prior"));
    fs::write(folder.join("other.safetensors"), "").unwrap();
    let told = import(&[&folder], 6);
    let line =
        "reads the browser bundle of manifest.json; left out: wuerstchen-prior, other.safetensors";
    assert!(told.contains(line), "{told}");
}

#[test]
fn the_number_of_threads_changes_no_file() {
    let folder = scratch("threads");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("models/shapes.safetensors");
    let import = |threads: &str| {
        let folder = folder.join(threads);
        let output = Command::new(env!("CARGO_BIN_EXE_wuerstchen"))
            .env("RAYON_NUM_THREADS", threads)
            .args(["import", "--dtype", "i4"])
            .args([&model, Path::new("-o"), &folder])
            .output()
            .unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{error}");
        // Without a terminal a line tells what begins, and one what was done.
        let lines: Vec<_> = error.lines().collect();
        assert!(lines[0].starts_with("storing the weights as i4: "), "{error}");
        assert!(lines[1].starts_with("wrote "), "{error}");
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let file = |path: PathBuf| (path.file_name().unwrap().to_owned(), fs::read(path).unwrap());
        paths.map(file).collect::<BTreeMap<_, _>>()
    };
    assert!(import("1") == import("4"));
}

/// A safetensors file: a header of these texts, and tensors of f32.
fn safetensors(
    path: &Path,
    tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    header: &[(&str, &str)],
) {
    let mut json = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, (shape, values)) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let offsets = [start, data.len()];
        let tensor = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": offsets});
        json.insert(name.clone(), tensor);
    }
    let header: serde_json::Map<_, _> =
        header.iter().map(|(key, text)| ((*key).to_owned(), (*text).into())).collect();
    json.insert("__metadata__".to_owned(), header.into());
    let json = serde_json::Value::from(json).to_string();
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.into_bytes());
    bytes.extend(data);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A LoRA of two layers of the model `shapes`, whose names `name` makes.
fn lora(name: impl Fn(&str, &str) -> String, alpha: Option<f32>) -> Tensors {
    let values = |count: usize| (0..count).map(|i| (i as f32 * 0.7).sin() * 0.05).collect();
    let mut tensors = BTreeMap::new();
    for layer in ["blocks.2.attention.to_q", "blocks.5.attention.to_v"] {
        tensors.insert(name(layer, "down"), (vec![4, 128], values(4 * 128)));
        tensors.insert(name(layer, "up"), (vec![128, 4], values(128 * 4)));
        if let Some(alpha) = alpha {
            tensors.insert(name(layer, "alpha"), (vec![], vec![alpha]));
        }
    }
    tensors
}

fn diffusers(layer: &str, role: &str) -> String {
    match role {
        "down" => format!("prior.{layer}.lora_A.weight"),
        "up" => format!("prior.{layer}.lora_B.weight"),
        _ => format!("prior.{layer}.{role}"),
    }
}

fn kohya(prefix: &str) -> impl Fn(&str, &str) -> String {
    move |layer, role| {
        let layer = layer.replace('.', "_");
        match role {
            "alpha" => format!("{prefix}{layer}.alpha"),
            role => format!("{prefix}{layer}.lora_{role}.weight"),
        }
    }
}

/// The picture that `shapes` makes with a LoRA, and the reported lines.
fn with_lora(path: &Path) -> Result<(image::DynamicImage, String), String> {
    let picture = path.with_extension("png");
    let (lora, output) = (path.display().to_string(), picture.display().to_string());
    let steps = ["--prior-steps", "2", "--decoder-steps", "1", "--device", "cpu"];
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("models/shapes.safetensors");
    let shapes = shapes.display().to_string();
    let arguments = ["generate", "a red circle", "-m", &shapes, "--lora", &lora, "-o", &output];
    let output = wuerstchen(&[&arguments[..], &steps].concat());
    let error = text(&output.stderr);
    match output.status.code() {
        Some(0) => Ok((image::open(picture).unwrap(), error)),
        Some(4) => Err(error),
        code => panic!("{code:?}: {error}"),
    }
}

/// An alpha beside the matrices, in the header, or in a config beside the file gives the same LoRA.
#[test]
fn alpha_is_found_wherever_it_stands() {
    let folder = scratch("lora-alpha");
    let made = |name: &str, tensors: &Tensors, header: &[(&str, &str)], config: Option<&str>| {
        let path = folder.join(name).join("x.safetensors");
        safetensors(&path, tensors, header);
        if let Some(config) = config {
            fs::write(path.with_file_name("adapter_config.json"), config).unwrap();
        }
        with_lora(&path).unwrap()
    };
    let (expected, told) = made("tensors", &lora(diffusers, Some(64.0)), &[], None);
    assert!(told.contains("changes 2 layers of Stage C, rank 4, alpha 64, weight 1"), "{told}");
    let metadata = r#"{"prior.r": 4, "prior.lora_alpha": 64}"#;
    let header = [("format", "pt"), ("lora_adapter_metadata", metadata)];
    let bare = lora(diffusers, None);
    assert_eq!(made("header", &bare, &header, None).0, expected);
    let config = r#"{"r": 4, "lora_alpha": 1, "alpha_pattern": {"to_q": 64, "to_v": 64}}"#;
    assert_eq!(made("config", &bare, &[], Some(config)).0, expected);
    let by_kohya = lora(kohya("lora_prior_unet_"), None);
    assert_eq!(made("config-kohya", &by_kohya, &[], Some(config)).0, expected);
    let whole =
        r#"{"alpha_pattern": {"prior.blocks.2.attention.to_q": 64, "to_v": 64, "to_w": 2}}"#;
    let (picture, told) = made("unused", &bare, &[], Some(whole));
    assert_eq!(picture, expected);
    let unused = "its rank_pattern or alpha_pattern names what fits no layer: to_w";
    assert!(told.contains(unused), "{told}");
    let nested = r#"{"prior": {"r": 4, "lora_alpha": 64}}"#;
    let header = [("lora_adapter_metadata", nested)];
    assert_eq!(made("nested", &bare, &header, None).0, expected);
    let (other, told) = made("none", &bare, &[], None);
    assert!(told.contains("alpha unknown (taken to be the rank)"), "{told}");
    assert_ne!(other, expected);
    let named = |layer: &str, role: &str| diffusers(layer, role).replace("A.w", "A.style.w");
    let named = lora(|layer, role| named(layer, role).replace("B.w", "B.style.w"), Some(64.0));
    assert_eq!(made("named", &named, &[], None).0, expected);
}

#[test]
fn loras_of_onetrainer_are_read() {
    let folder = scratch("lora-onetrainer");
    let made = |name: &str, tensors: &Tensors| {
        let path = folder.join(name).join("x.safetensors");
        safetensors(&path, tensors, &[]);
        with_lora(&path).unwrap()
    };
    let plain = lora(kohya("lora_prior_unet_"), Some(4.0));
    let (expected, _) = made("plain", &plain);
    assert_eq!(made("old", &lora(kohya("lora_prior_prior_"), Some(4.0))).0, expected);

    let text = "lora_prior_te_text_model_encoder_layers_0_self_attn_q_proj";
    let with_text = |up: f32| {
        let mut tensors = plain.clone();
        tensors.insert(format!("{text}.lora_down.weight"), (vec![4, 128], vec![0.1; 512]));
        tensors.insert(format!("{text}.lora_up.weight"), (vec![128, 4], vec![up; 512]));
        tensors.insert(format!("{text}.alpha"), (vec![], vec![4.0]));
        tensors
    };
    assert_eq!(made("zero", &with_text(0.0)).0, expected);
    let (trained, told) = made("trained", &with_text(1.0));
    assert!(told.contains("2 layers of Stage C and 1 of its text encoder"), "{told}");
    assert_ne!(trained, expected);

    let mut with_word = plain.clone();
    with_word.insert("bundle_emb.<sks>.clip_g".to_owned(), (vec![1, 128], vec![0.0; 128]));
    let (picture, told) = made("word", &with_word);
    assert_eq!(picture, expected);
    assert!(told.contains("its embedding of the word \"<sks>\" is left out"), "{told}");
}

/// A header must not control the terminal that shows it. The name of a LoRA is that of its folder, with the dot in it.
#[test]
fn texts_of_loras_are_shown_and_not_obeyed() {
    let folder = scratch("lora-texts");
    let (style, merged) = (folder.join("style-1.5"), folder.join("merged"));
    let alpha = [("ss_network_alpha", "4\u{1b}[2J")];
    let file = style.join("pytorch_lora_weights.safetensors");
    safetensors(&file, &lora(kohya("lora_prior_unet_"), None), &alpha);
    let [style, merged] = [&style, &merged].map(|path| path.display().to_string());
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("models/shapes.safetensors");
    let shapes = shapes.display().to_string();
    let import = wuerstchen(&["import", &shapes, "--lora", &style, "-o", &merged]);
    assert!(import.status.success(), "{}", text(&import.stderr));
    let inspect = wuerstchen(&["inspect", &style]);
    for told in [text(&import.stderr), text(&inspect.stdout)] {
        assert!(told.contains(r"ss_network_alpha = 4\u{1b}[2J is left out"), "{told}");
    }
    let card = text(&wuerstchen(&["inspect", &merged]).stdout);
    assert!(card.contains("with the LoRA style-1.5 at weight 1"), "{card}");
}

#[test]
fn other_methods_are_refused_in_a_sentence() {
    let folder = scratch("lora-methods");
    let refusal = |name: &str, ends: &[(&str, &str)]| {
        let rename = |role: &str| ends.iter().find(|(from, _)| *from == role).map_or("x", |e| e.1);
        let layer = |layer: &str| format!("lora_prior_unet_{}", layer.replace('.', "_"));
        let tensors = lora(|of, role| format!("{}.{}", layer(of), rename(role)), None);
        let path = folder.join(name).join("x.safetensors");
        safetensors(&path, &tensors, &[]);
        with_lora(&path).unwrap_err()
    };
    let loha = refusal("loha", &[("down", "hada_w1_a"), ("up", "hada_w1_b")]);
    assert!(loha.contains("expected LoRA, found LoHa in 4 tensors, such as"), "{loha}");
    let lokr = refusal("lokr", &[("down", "lokr_w1"), ("up", "lokr_w2")]);
    assert!(lokr.contains("expected LoRA, found LoKr in 4 tensors"), "{lokr}");
    let inspect = wuerstchen(&["inspect", &folder.join("lokr").display().to_string()]);
    assert!(text(&inspect.stderr).contains("expected LoRA, found LoKr in 4 tensors"));
    let foreign = lora(kohya("lora_unet_down_blocks_0_"), Some(4.0));
    let path = folder.join("foreign/x.safetensors");
    safetensors(&path, &foreign, &[]);
    let error = with_lora(&path).unwrap_err();
    assert!(
        error.contains("none of its 6 tensors belongs to Stage C or its text encoder"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1, "{error}");

    let mut saved = lora(diffusers, Some(4.0));
    saved.insert("prior.clip_mapper.weight".into(), (vec![1, 1], vec![0.0]));
    saved.insert("prior.clip_mapper.bias".into(), (vec![1], vec![0.0]));
    let path = folder.join("saved/x.safetensors");
    safetensors(&path, &saved, &[]);
    let error = with_lora(&path).unwrap_err();
    assert!(error.contains("expected LoRA, found whole layers in 1 tensors"), "{error}");
    let path = folder.join("model/x.safetensors");
    saved.retain(|name, _| name.contains("clip_mapper"));
    safetensors(&path, &saved, &[]);
    let error = with_lora(&path).unwrap_err();
    assert!(
        error.contains("found whole layers, such as") && error.contains("is it a model?"),
        "{error}"
    );

    let path = folder.join("empty/x.safetensors");
    safetensors(&path, &Tensors::new(), &[]);
    let error = with_lora(&path).unwrap_err();
    assert!(
        error.contains("x.safetensors: expected a LoRA, found a file without tensors"),
        "{error}"
    );
}

/// Programs reserve the room of a file before they fetch it. Every such file is told once, as is a link to a file that a
/// hub's cache has lost.
#[test]
fn unfinished_downloads_are_told() {
    let folder = scratch("unfinished");
    let model = folder.join("model");
    for pipeline in ["wuerstchen-prior", "wuerstchen"] {
        copy(&goldens().join(pipeline), &model.join(pipeline));
    }
    let file = model.join("wuerstchen-prior/prior/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let whole = bytes.len();
    assert!(whole > 100_000);
    bytes[whole - (1 << 16)..].fill(0);
    fs::write(&file, bytes).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", model.join("model_index.json")).unwrap();
    let (model, out) = (model.display().to_string(), folder.join("out.png").display().to_string());
    let steps = ["--prior-steps", "1", "--decoder-steps", "1", "--device", "cpu"];
    let output = wuerstchen(&[&["generate", "a", "-m", &model, "-o", &out], &steps[..]].concat());
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    let zeros = format!("{}: its last 65536 bytes are zeros", file.display());
    assert_eq!(told.matches(&zeros).count(), 1, "{told}");
    assert_eq!(told.matches("bytes are zeros").count(), 1, "{told}");
    if cfg!(unix) {
        assert_eq!(told.matches("leads to a file that is not there").count(), 1, "{told}");
    }
}

/// Devices and pipes are refused, because a program that reads one may never come to its end.
#[cfg(unix)]
#[test]
fn devices_and_pipes_are_no_models() {
    let folder = scratch("no-models");
    let pipe = folder.join("pipe").display().to_string();
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let out = folder.join("out.png").display().to_string();
    for path in ["/dev/null", "/dev/zero", &pipe] {
        let generate = ["generate", "a star", "-m", path, "-o", &out];
        for arguments in [&["import", path][..], &["inspect", path], &generate] {
            let output = wuerstchen(arguments);
            let error = text(&output.stderr);
            let expected = format!(
                "{path}: expected the file or the folder of a model, found a pipe, a socket or a device"
            );
            assert!(!output.status.success() && error.contains(&expected), "{error}");
        }
    }
}
