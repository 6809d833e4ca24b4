//! Pictures compared with others, as users do it.

mod program;

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};
use serde_json::Value;
use wuerstchen::Checkpoint;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::noise::Philox;

use program::{save, scratch, text, wuerstchen};

/// Writes pictures of 40 x 36 pixels: a ramp, brighter by `shift`, and for each name another colour.
fn write_pictures(folder: &Path, names: &[&str], shift: u8) {
    fs::create_dir_all(folder).unwrap();
    for (i, name) in names.iter().enumerate() {
        let colour = |x: u32, y: u32| {
            let base = [3 * x, 4 * y, 40 * i as u32].map(|value| value as u8);
            Rgb(base.map(|value| value.saturating_add(shift)))
        };
        RgbImage::from_fn(40, 36, colour).save(folder.join(name)).unwrap();
    }
}

fn report(arguments: &[&str]) -> Value {
    let output = wuerstchen(&[&["compare", "--device", "cpu", "--json"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn error(arguments: &[&str]) -> (Option<i32>, String) {
    let output = wuerstchen(&[&["compare", "--device", "cpu"], arguments].concat());
    (output.status.code(), text(&output.stderr))
}

/// AlexNet of two channels and its heads, in two files.
fn write_lpips(folder: &Path) -> [String; 2] {
    let mut rng = Philox::new(5, 0);
    let mut random = |name: String, shape: &[usize]| {
        // Biases of 1 and heads above 0: no feature is 0 everywhere.
        let values = rng.normal(shape.iter().product()).into_iter();
        let values = values.map(|x| if shape.len() == 4 && shape[0] > 1 { x / 9.0 } else { 1.0 });
        NamedTensor::new(name, shape, values.collect())
    };
    let layers = [(0, 3, 11), (3, 2, 5), (6, 2, 3), (8, 2, 3), (10, 2, 3)];
    let trunk: Vec<_> = layers
        .iter()
        .flat_map(|&(feature, input, side)| {
            let weight = random(format!("features.{feature}.weight"), &[2, input, side, side]);
            [weight, random(format!("features.{feature}.bias"), &[2])]
        })
        .collect();
    let heads: Vec<_> =
        (0..5).map(|i| random(format!("lin{i}.model.1.weight"), &[1, 2, 1, 1])).collect();
    [("alexnet.safetensors", trunk), ("alex.safetensors", heads)].map(|(name, tensors)| {
        let path = folder.join(name);
        save(&path, &Checkpoint::from_tensors(name, tensors));
        path.display().to_string()
    })
}

/// A difference of 5 in every byte: 10·log₁₀(255²/25) = 34.15 dB.
#[test]
fn pictures_of_one_name_are_compared() {
    let folder = scratch("compare");
    let [true_ones, judged] = ["true", "judged"].map(|name| folder.join(name));
    write_pictures(&true_ones, &["a.png", "b.png", "c.png"], 0);
    write_pictures(&judged, &["a.bmp", "b.png"], 5);
    let [true_ones, judged] = [true_ones, judged].map(|path| path.display().to_string());
    let [trunk, heads] = write_lpips(&folder);

    let found = report(&[&true_ones, &judged, "--lpips", &trunk, "--lpips", &heads]);
    assert_eq!([&found["reference"], &found["pictures"], &found["pairs"]], [3, 2, 2]);
    let of_pairs = &found["ofPairs"];
    assert!((of_pairs["psnr"].as_f64().unwrap() - 34.15).abs() < 0.01, "{found}");
    let ssim = of_pairs["ssim"].as_f64().unwrap();
    // scikit-image 0.26 gives 0.73 for the darker picture and 0.99 for the other one.
    assert!((ssim - 0.862_561_650_745).abs() < 1e-9, "{found}");
    assert_eq!(of_pairs["lpips"]["network"], "AlexNet");
    assert!(of_pairs["lpips"]["mean"].as_f64().unwrap() > 0.0, "{found}");

    let same = report(&[&true_ones, &true_ones, "--lpips", &trunk, "--lpips", &heads]);
    assert_eq!(
        [&same["ofPairs"]["equal"], &same["ofPairs"]["ssim"]],
        [&Value::from(3), &Value::from(1.0)]
    );
    assert!(same["ofPairs"]["psnr"].is_null() && same["ofPairs"]["lpips"]["mean"] == 0.0, "{same}");

    let output = wuerstchen(&["compare", &true_ones, &judged, "--device", "cpu"]);
    let (table, notes) = (text(&output.stdout), text(&output.stderr));
    assert!(
        table.contains("3 true pictures, 2 judged, 2 pairs\nPSNR         34.15 dB\nSSIM"),
        "{table}"
    );
    assert!(notes.contains("1 true and 0 judged pictures have no other of their name"), "{notes}");
}

#[test]
fn the_nearest_picture_is_named() {
    let folder = scratch("nearest");
    let [true_ones, judged] = ["true", "judged"].map(|name| folder.join(name));
    write_pictures(&true_ones, &["a.png", "b.png", "c.png"], 0);
    write_pictures(&judged, &["x.png", "y.png"], 3);
    let [true_ones, judged] = [true_ones, judged].map(|path| path.display().to_string());
    let found = report(&[&true_ones, &judged, "--nearest", "pixels"]);
    let names = |i: usize| [&found["nearest"][i]["picture"], &found["nearest"][i]["nearest"]];
    assert_eq!([names(0), names(1)], [["x.png", "a.png"], ["y.png", "b.png"]]);
    // 3/255
    let distance = found["nearest"][0]["distance"].as_f64().unwrap();
    assert!((distance - 0.0118).abs() < 0.001, "{distance}");
    assert!(found.get("ofPairs").is_none(), "{found}");

    let (code, reason) = error(&[&true_ones, &judged]);
    assert!(code == Some(2) && reason.contains("has the name of one of"), "{reason}");
    let (code, reason) = error(&[&true_ones, &judged, "--nearest", "features"]);
    assert!(code == Some(2) && reason.contains("name its weights"), "{reason}");
}

#[test]
fn what_cannot_be_compared_is_named() {
    let folder = scratch("compare-wrong");
    let [true_ones, judged, empty] = ["true", "judged", "empty"].map(|name| folder.join(name));
    write_pictures(&true_ones, &["a.png"], 0);
    fs::create_dir_all(&judged).unwrap();
    fs::create_dir_all(&empty).unwrap();
    RgbImage::new(20, 36).save(judged.join("a.png")).unwrap();
    let [true_ones, judged, empty] =
        [true_ones, judged, empty].map(|path| path.display().to_string());
    let (code, reason) = error(&[&true_ones, &judged]);
    assert!(code == Some(4) && reason.contains("expected 40 x 36 pixels as"), "{reason}");
    assert!(reason.contains("found 20 x 36 pixels"), "{reason}");
    let (code, reason) = error(&[&true_ones, &empty]);
    assert!(code == Some(4) && reason.contains("files, found none"), "{reason}");
    let [trunk, _] = write_lpips(&folder);
    let (_, reason) = error(&[&true_ones, &true_ones, "--lpips", &trunk]);
    assert!(
        reason.contains("--lpips") && reason.contains("missing: lin0.model.1.weight"),
        "{reason}"
    );
    let (_, reason) = error(&[&true_ones, &true_ones, "--fid", &trunk]);
    assert!(
        reason.contains("--fid") && reason.contains("missing: Conv2d_1a_3x3.conv.weight"),
        "{reason}"
    );
    let clip = [&*true_ones, &true_ones, "--clip", &empty];
    let (_, reason) = error(&clip);
    assert!(reason.contains("a picture without a caption"), "{reason}");
    fs::write(Path::new(&true_ones).join("a.txt"), "a ramp").unwrap();
    let (_, reason) = error(&clip);
    assert!(reason.contains("--clip") && reason.contains("expected model.safetensors"), "{reason}");
}

/// The built-in shapes' model: its Stage A keeps flat pictures, here cut to 40 x 36 and 44 x 36 pixels.
#[test]
fn stage_a_is_judged_by_its_reconstructions() {
    let folder = scratch("compare-stage-a");
    RgbImage::from_pixel(41, 36, Rgb([200, 30, 60])).save(folder.join("a.png")).unwrap();
    RgbImage::from_pixel(44, 39, Rgb([20, 130, 60])).save(folder.join("b.png")).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("models/shapes.safetensors");
    let (model, folder) = (model.display().to_string(), folder.display().to_string());
    let found = report(&[&folder, "--stage-a", &model]);
    assert_eq!([&found["reference"], &found["pictures"], &found["pairs"]], [2, 2, 2]);
    assert!(found["ofPairs"]["psnr"].as_f64().unwrap() > 20.0, "{found}");
    let (code, reason) = error(&[&folder]);
    assert!(code == Some(2) && reason.contains("<PICTURES>"), "{reason}");
}
