//! The metrics of pictures against the reference code, `tests/golden/reference/make_metrics.py`.
#![cfg(all(feature = "cpu", feature = "fs"))]

use std::path::PathBuf;
use std::sync::Arc;

use burn::prelude::*;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::{Checkpoint, Image, TokenizerFiles, relative_error};
use wuerstchen_train::compare::clip_score::ClipScore;
use wuerstchen_train::compare::inception::{Inception, prepare};
use wuerstchen_train::compare::likeness::{frechet_distance, ssim};
use wuerstchen_train::compare::lpips::{Backbone, Lpips};

/// Bound of the differences: convolutions add in another order than PyTorch's.
const TOLERANCE: f64 = 1e-4;

/// The numbers in `[−1, 1)` that the script's `drawn` draws for a name.
fn drawn(name: &str, count: usize) -> Vec<f32> {
    let fnv = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let seed = name.bytes().fold(0x811C_9DC5, fnv);
    let number = |i: u32| {
        let mut x = i.wrapping_mul(0x9E37_79B9).wrapping_add(seed);
        x = (x ^ x >> 16).wrapping_mul(0x85EB_CA6B);
        x = (x ^ x >> 13).wrapping_mul(0xC2B2_AE35);
        (f64::from(x ^ x >> 16) / 2f64.powi(31) - 1.0) as f32
    };
    (0..count as u32).map(number).collect()
}

/// Whether the script takes a tensor for a variance or for the scale of a norm.
fn is_scale(name: &str) -> bool {
    let ends = ["running_var", "bn.weight", "norm.weight", "norm1.weight", "norm2.weight"];
    ends.iter().any(|end| name.ends_with(end))
}

/// A tensor of weights as the script's `draw_weights` draws it under its published name.
fn weight(name: &str, shape: &[usize]) -> NamedTensor {
    let count = shape.iter().product();
    let mut values = drawn(name, count);
    let fan_in = (count / shape.first().unwrap_or(&1)) as f32;
    for value in &mut values {
        *value = if name.starts_with("lin") {
            (*value + 1.0) / 2.0
        } else if shape.len() == 4 {
            *value * (6.0 / fan_in).sqrt()
        } else if is_scale(name) {
            1.0 + *value / 2.0
        } else if shape.len() == 2 {
            *value * (3.0 / fan_in).sqrt()
        } else {
            *value / 10.0
        };
    }
    NamedTensor { name: name.to_owned(), shape: shape.to_vec(), values }
}

fn golden() -> Checkpoint {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/metrics.safetensors");
    Checkpoint::parse("metrics", Arc::new(std::fs::read(path).unwrap())).unwrap()
}

fn assert_close(name: &str, found: &[f32]) {
    let expected = golden().values(name).unwrap();
    assert_eq!(found.len(), expected.len(), "{name}");
    let error = relative_error(found, &expected);
    assert!(error < TOLERANCE, "{name}: {error}");
}

/// Features of torchvision with their number, output and input channels, and kernel.
fn backbone(net: &str) -> (Backbone, Vec<[usize; 4]>, [usize; 5]) {
    if net == "vgg" {
        let widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512];
        let features = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28];
        let layer = |i: usize| [features[i], widths[i], if i == 0 { 3 } else { widths[i - 1] }, 3];
        (Backbone::Vgg16, (0..13).map(layer).collect(), [64, 128, 256, 512, 512])
    } else {
        let layers = [
            [0, 64, 3, 11],
            [3, 192, 64, 5],
            [6, 384, 192, 3],
            [8, 256, 384, 3],
            [10, 256, 256, 3],
        ];
        (Backbone::AlexNet, layers.to_vec(), [64, 192, 384, 256, 256])
    }
}

fn trunk(net: &str) -> Checkpoint {
    let (_, layers, _) = backbone(net);
    let tensors = layers.iter().flat_map(|&[feature, output, input, side]| {
        let name = |kind: &str| format!("features.{feature}.{kind}");
        [weight(&name("weight"), &[output, input, side, side]), weight(&name("bias"), &[output])]
    });
    Checkpoint::from_tensors("trunk", tensors)
}

fn heads(net: &str) -> Checkpoint {
    let (.., widths) = backbone(net);
    let head = |i: usize| weight(&format!("lin{i}.model.1.weight"), &[1, widths[i], 1, 1]);
    Checkpoint::from_tensors("heads", (0..5).map(head))
}

fn lpips(net: &str, device: &Device) -> Lpips {
    let weights = Checkpoint::join("lpips", &[trunk(net), heads(net)]).unwrap();
    Lpips::load(&weights, device).unwrap()
}

/// A picture of the script in `[0, 1]`.
fn picture(name: &str, device: &Device) -> Tensor<4> {
    let values = drawn(name, 2 * 3 * 40 * 33);
    let values: Vec<_> = values.iter().map(|value| (value + 1.0) / 2.0).collect();
    Tensor::from_data(TensorData::new(values, [2, 3, 40, 33]), device)
}

fn floats<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec::<f32>().unwrap()
}

#[test]
fn lpips_and_its_gradient_are_those_of_the_package() {
    let device = Device::flex().autodiff();
    for net in ["vgg", "alex"] {
        let lpips = lpips(net, &device);
        assert_eq!(lpips.backbone(), backbone(net).0);
        let a = picture("a", &device).require_grad();
        let distance = lpips.forward(a.clone(), picture("b", &device));
        let gradient = a.grad(&distance.clone().sum().backward()).unwrap();
        assert_close(&format!("lpips/{net}/distance"), &floats(distance));
        assert_close(&format!("lpips/{net}/gradient"), &floats(gradient));
        let same = lpips.forward(picture("a", &device), picture("a", &device));
        assert_eq!(floats(same), [0.0, 0.0]);
    }
}

/// Pictures whose features are all 0 have a finite gradient too.
#[test]
fn flat_features_have_a_finite_gradient() {
    let device = Device::flex().autodiff();
    let zeros =
        |tensor: NamedTensor| NamedTensor { values: vec![0.0; tensor.values.len()], ..tensor };
    let (trunk, heads) = (trunk("alex"), heads("alex"));
    let empty = trunk.describe().map(|(name, _, shape, _)| zeros(weight(name, shape)));
    let empty = Checkpoint::from_tensors("trunk", empty);
    let weights = Checkpoint::join("lpips", &[empty, heads]).unwrap();
    let lpips = Lpips::load(&weights, &device).unwrap();
    let a = picture("a", &device).require_grad();
    let distance = lpips.forward(a.clone(), picture("b", &device)).sum();
    let gradient = floats(a.grad(&distance.backward()).unwrap());
    assert!(gradient.iter().all(|value| value.is_finite()), "{gradient:?}");
}

/// The names of `lpips.LPIPS(net='vgg').state_dict()`, and what is in files of torchvision beside the features.
#[test]
fn lpips_reads_all_published_layouts() {
    let device = Device::flex();
    let distance = |weights: &Checkpoint| {
        let lpips = Lpips::load(weights, &device).unwrap();
        floats(lpips.forward(picture("a", &device), picture("b", &device)))
    };
    let (trunk, heads) = (trunk("alex"), heads("alex"));
    let two = Checkpoint::join("two", &[trunk.clone(), heads.clone()]).unwrap();
    let expected = distance(&two);

    let slices = trunk.renamed(|name| Some(name.replace("features.", "net.slice1.")));
    let again = heads.renamed(|name| Some(name.replace("lin", "lins.")));
    let constant =
        |name: &str| NamedTensor { name: name.into(), shape: vec![1], values: vec![1.0] };
    let rest = ["scaling_layer.shift", "scaling_layer.scale", "classifier.6.bias"].map(constant);
    let rest = Checkpoint::from_tensors("rest", rest);
    let one = Checkpoint::join("one", &[slices, heads.clone(), again, rest]).unwrap();
    assert_eq!(distance(&one), expected);

    let error = |weights: &Checkpoint| Lpips::load(weights, &device).err().unwrap().to_string();
    let without = error(&trunk);
    assert!(without.contains("missing: lin0.model.1.weight"), "{without}");
    let other = error(&heads);
    assert!(other.contains("expected the weights of LPIPS"), "{other}");
}

/// The bytes of a picture of the script.
fn image(name: &str, height: usize, width: usize) -> Image {
    let values = drawn(name, 3 * height * width);
    let rgb = values.iter().map(|value| ((value + 1.0) / 2.0 * 255.0) as u8).collect();
    Image { width, height, rgb }
}

#[test]
fn pictures_are_resized_as_clean_fid_does() {
    let device = Device::flex();
    let images = [image("c", 48, 70), image("d", 350, 310)];
    let resized = images.iter().flat_map(|image| {
        let pixels = floats(prepare(image, &device) * 128.0 + 128.0);
        let kept =
            |i: &usize| [i / 299 % 299, i % 299].iter().all(|place| place.is_multiple_of(23));
        (0..pixels.len()).filter(kept).map(|i| pixels[i]).collect::<Vec<_>>()
    });
    assert_close("fid/resized", &resized.collect::<Vec<_>>());
}

/// The names and shapes of pytorch-fid's file.
fn inception_shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = Vec::new();
    let mut conv = |name: &str, shape: [usize; 4]| {
        shapes.push((format!("{name}.conv.weight"), shape.to_vec()));
        for field in ["weight", "bias", "running_mean", "running_var"] {
            shapes.push((format!("{name}.bn.{field}"), vec![shape[0]]));
        }
    };
    conv("Conv2d_1a_3x3", [32, 3, 3, 3]);
    conv("Conv2d_2a_3x3", [32, 32, 3, 3]);
    conv("Conv2d_2b_3x3", [64, 32, 3, 3]);
    conv("Conv2d_3b_1x1", [80, 64, 1, 1]);
    conv("Conv2d_4a_3x3", [192, 80, 3, 3]);
    for (name, input, pool) in [("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)] {
        let of = |branch: &str| format!("Mixed_{name}.{branch}");
        conv(&of("branch1x1"), [64, input, 1, 1]);
        conv(&of("branch5x5_1"), [48, input, 1, 1]);
        conv(&of("branch5x5_2"), [64, 48, 5, 5]);
        conv(&of("branch3x3dbl_1"), [64, input, 1, 1]);
        conv(&of("branch3x3dbl_2"), [96, 64, 3, 3]);
        conv(&of("branch3x3dbl_3"), [96, 96, 3, 3]);
        conv(&of("branch_pool"), [pool, input, 1, 1]);
    }
    conv("Mixed_6a.branch3x3", [384, 288, 3, 3]);
    conv("Mixed_6a.branch3x3dbl_1", [64, 288, 1, 1]);
    conv("Mixed_6a.branch3x3dbl_2", [96, 64, 3, 3]);
    conv("Mixed_6a.branch3x3dbl_3", [96, 96, 3, 3]);
    for (name, width) in [("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)] {
        let of = |branch: &str| format!("Mixed_{name}.{branch}");
        conv(&of("branch1x1"), [192, 768, 1, 1]);
        conv(&of("branch7x7_1"), [width, 768, 1, 1]);
        conv(&of("branch7x7_2"), [width, width, 1, 7]);
        conv(&of("branch7x7_3"), [192, width, 7, 1]);
        conv(&of("branch7x7dbl_1"), [width, 768, 1, 1]);
        conv(&of("branch7x7dbl_2"), [width, width, 7, 1]);
        conv(&of("branch7x7dbl_3"), [width, width, 1, 7]);
        conv(&of("branch7x7dbl_4"), [width, width, 7, 1]);
        conv(&of("branch7x7dbl_5"), [192, width, 1, 7]);
        conv(&of("branch_pool"), [192, 768, 1, 1]);
    }
    conv("Mixed_7a.branch3x3_1", [192, 768, 1, 1]);
    conv("Mixed_7a.branch3x3_2", [320, 192, 3, 3]);
    conv("Mixed_7a.branch7x7x3_1", [192, 768, 1, 1]);
    conv("Mixed_7a.branch7x7x3_2", [192, 192, 1, 7]);
    conv("Mixed_7a.branch7x7x3_3", [192, 192, 7, 1]);
    conv("Mixed_7a.branch7x7x3_4", [192, 192, 3, 3]);
    for (name, input) in [("7b", 1280), ("7c", 2048)] {
        let of = |branch: &str| format!("Mixed_{name}.{branch}");
        conv(&of("branch1x1"), [320, input, 1, 1]);
        conv(&of("branch3x3_1"), [384, input, 1, 1]);
        conv(&of("branch3x3_2a"), [384, 384, 1, 3]);
        conv(&of("branch3x3_2b"), [384, 384, 3, 1]);
        conv(&of("branch3x3dbl_1"), [448, input, 1, 1]);
        conv(&of("branch3x3dbl_2"), [384, 448, 3, 3]);
        conv(&of("branch3x3dbl_3a"), [384, 384, 1, 3]);
        conv(&of("branch3x3dbl_3b"), [384, 384, 3, 1]);
        conv(&of("branch_pool"), [192, input, 1, 1]);
    }
    shapes.push(("fc.weight".into(), vec![1008, 2048]));
    shapes.push(("fc.bias".into(), vec![1008]));
    shapes
}

#[test]
fn inception_has_the_features_of_pytorch_fid() {
    let device = Device::flex();
    let tensors = inception_shapes().into_iter().map(|(name, shape)| weight(&name, &shape));
    let weights = Checkpoint::from_tensors("inception", tensors);
    let inception = Inception::load(&weights, &device).unwrap();
    let features = inception.features(&[image("c", 48, 70), image("d", 350, 310)]);
    assert_close("fid/features", &floats(features));

    let torchvision = weights.renamed(|name| Some(name.replace("Mixed_7c.", "Mixed_7d.")));
    let error = Inception::load(&torchvision, &device).err().unwrap().to_string();
    assert!(error.contains("missing: Mixed_7c.branch3x3_2a.conv.weight"), "{error}");
    assert!(error.contains("unexpected: Mixed_7d.branch1x1.conv.weight"), "{error}");
}

/// The names and shapes of the script's small CLIP, which knows 614 tokens.
fn clip_shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![("logit_scale".to_owned(), Vec::new())];
    for (part, width, inner) in [("text_model", 16, 40), ("vision_model", 24, 32)] {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("{part}.{name}"), shape.to_vec()));
        };
        let norms: &[&str] = if part == "text_model" {
            add("embeddings.token_embedding.weight", &[614, width]);
            add("embeddings.position_embedding.weight", &[12, width]);
            &["final_layer_norm"]
        } else {
            add("embeddings.class_embedding", &[width]);
            add("embeddings.patch_embedding.weight", &[width, 3, 7, 7]);
            add("embeddings.position_embedding.weight", &[17, width]);
            &["pre_layrnorm", "post_layernorm"]
        };
        for norm in norms {
            add(&format!("{norm}.weight"), &[width]);
            add(&format!("{norm}.bias"), &[width]);
        }
        for layer in 0..2 {
            let of = |name: &str| format!("encoder.layers.{layer}.{name}");
            for norm in ["layer_norm1", "layer_norm2"] {
                add(&of(&format!("{norm}.weight")), &[width]);
                add(&of(&format!("{norm}.bias")), &[width]);
            }
            let mut linear = |name: &str, output: usize, input: usize| {
                add(&of(&format!("{name}.weight")), &[output, input]);
                add(&of(&format!("{name}.bias")), &[output]);
            };
            for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                linear(&format!("self_attn.{projection}"), width, width);
            }
            linear("mlp.fc1", inner, width);
            linear("mlp.fc2", width, inner);
        }
    }
    shapes.push(("text_projection.weight".to_owned(), vec![10, 16]));
    shapes.push(("visual_projection.weight".to_owned(), vec![10, 24]));
    shapes
}

#[test]
fn clip_score_is_that_of_transformers() {
    let device = Device::flex();
    let tensors = clip_shapes().into_iter().map(|(name, shape)| weight(&name, &shape));
    let weights = Checkpoint::from_tensors("clip", tensors);
    // Widths of no published CLIP, whose numbers of heads the weights do not tell.
    let config = r#"{
        "text_config": {
            "vocab_size": 614, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 12, "hidden_act": "gelu",
            "layer_norm_eps": 1e-5, "projection_dim": 10, "eos_token_id": 613
        },
        "vision_config": {
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 3, "image_size": 28, "patch_size": 7,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 10
        }
    }"#;
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/small/wuerstchen-prior/tokenizer");
    let files = TokenizerFiles::from_named(|file| std::fs::read_to_string(folder.join(file)).ok());
    let clip = ClipScore::load(&weights, config, &files, &device).unwrap();
    let pairs =
        [("e", 48, 70, "a red circle"), ("f", 60, 33, "a"), ("g", 28, 28, "two blue birds")];
    let scores = pairs.map(|(name, height, width, caption)| {
        clip.score(&image(name, height, width), caption).unwrap() as f32
    });
    assert_close("clip", &scores);

    let texts = weights.renamed(|name| name.starts_with("text_").then(|| name.to_owned()));
    let error = |weights, config| {
        ClipScore::load(weights, config, &files, &device).err().unwrap().to_string()
    };
    let without = error(&texts, config);
    assert!(without.contains("missing: vision_model.embeddings.class_embedding"), "{without}");
    let untold = error(&weights, "{}");
    assert!(untold.contains("expected the weights of a CLIP"), "{untold}");
}

/// The root of a singular matrix has half the digits of the matrix, in the reference code.
#[test]
fn frechet_distance_is_that_of_pytorch_fid() {
    for (name, counts, tolerance) in [("few", [9, 7], 1e-5), ("many", [60, 80], 1e-6)] {
        let rows = |i: usize| -> Vec<Vec<f32>> {
            let values = drawn(&format!("{name}{i}"), counts[i] * 16);
            values.chunks(16).map(<[f32]>::to_vec).collect()
        };
        let (a, mut b) = (rows(0), rows(1));
        for value in b.iter_mut().flatten() {
            *value = (f64::from(*value) * 0.7 + 0.1) as f32;
        }
        let expected = f64::from(golden().values(&format!("frechet/{name}")).unwrap()[0]);
        let found = frechet_distance(&a, &b).unwrap();
        // The inputs are rounded to f32 here, and so are the stored results.
        assert!((found / expected - 1.0).abs() < tolerance, "{name}: {found}, {expected}");
    }
}

#[test]
fn ssim_and_psnr_are_those_of_scikit_image() {
    let (a, b) = (image("a", 40, 33), image("b", 40, 33));
    let mix = |(&a, &b): (&u8, &u8)| (f64::from(a) * 0.8 + f64::from(b) * 0.2) as u8;
    let b = Image { rgb: a.rgb.iter().zip(&b.rgb).map(mix).collect(), ..b };
    let expected = golden().values("ssim").unwrap();
    assert!((ssim(&a, &b) - f64::from(expected[0])).abs() < 1e-6, "{}", ssim(&a, &b));
    assert!((a.psnr(&b) - f64::from(expected[1])).abs() < 1e-5, "{}", a.psnr(&b));
}
