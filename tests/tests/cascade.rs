//! Stable Cascade's U-Nets against diffusers: predictions of small ones, sizes of the published ones.

use std::path::PathBuf;
use std::sync::Arc;

use burn::prelude::*;
use serde_json::{Value, json};
use wuerstchen::cascade::{CascadeConditions, CascadeConfig};
use wuerstchen::weights::{load, shapes};
use wuerstchen::{
    Checkpoint, GenerateOptions, KeyTable, ModelFiles, PartConfig, Pipeline, Residency,
};
use wuerstchen_tests::{error_of, shapes_model};

/// Bound of the relative error, as for the stages of the second version.
const TOLERANCE: f64 = 1e-4;

fn folder(stage: &str) -> PathBuf {
    let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    repository.join("golden/small/cascade").join(stage)
}

fn checkpoint(stage: &str, file: &str) -> Checkpoint {
    let bytes = std::fs::read(folder(stage).join(file)).unwrap();
    Checkpoint::parse(stage, Arc::new(bytes)).unwrap()
}

/// The relative error of a stage's prediction.
fn error(stage: &str) -> f64 {
    let device = Device::flex();
    let config = std::fs::read_to_string(folder(stage).join("config.json")).unwrap();
    let config: CascadeConfig = serde_json::from_str(&config).unwrap();
    config.validate().unwrap();
    let weights = checkpoint(stage, "diffusion_pytorch_model.safetensors");
    let model = load(config.init(&device), &weights, KeyTable::DIFFUSION).unwrap();

    let golden = checkpoint(stage, "golden.safetensors");
    let data = |name: &str| {
        let shape = golden.shape(name).unwrap().to_vec();
        TensorData::new(golden.values(name).unwrap(), shape)
    };
    let has = |name: &str| golden.shape(name).is_some();
    let planes = |name: &str| Tensor::<4>::from_data(data(name), &device);
    let tokens = |name: &str| Tensor::<3>::from_data(data(name), &device);
    let conditions = CascadeConditions {
        text: has("clip_text").then(|| tokens("clip_text")),
        images: has("clip_img").then(|| tokens("clip_img")),
        image_embedding: has("effnet").then(|| planes("effnet")),
        ..CascadeConditions::new(tokens("clip_text_pooled").squeeze_dim(1))
    };
    let times = golden.values("t").unwrap();
    error_of(model.forward(planes("x"), &times, &conditions), planes("output"))
}

#[test]
fn stage_c_predicts_what_diffusers_does() {
    let error = error("stage_c");
    assert!(error < TOLERANCE, "{error}");
}

#[test]
fn stage_b_predicts_what_diffusers_does() {
    let error = error("stage_b");
    assert!(error < TOLERANCE, "{error}");
}

/// The number of parameters of a model. It would take up to 14 GB, so no value is made.
fn parameters(sizes: Value) -> usize {
    let [c, t, a] = ["Res", "Timestep", "Attn"].map(|kind| format!("SDCascade{kind}Block"));
    let (ct, cta) = (json!([c, t]), json!([c, t, a]));
    let stage_c = json!({
        "in_channels": 16, "out_channels": 16, "timestep_ratio_embedding_dim": 64, "patch_size": 1,
        "block_types_per_layer": [cta, cta], "clip_text_in_channels": 1280,
        "clip_text_pooled_in_channels": 1280, "clip_image_in_channels": 768, "clip_seq": 4,
        "kernel_size": 3, "dropout": [0.1, 0.1], "self_attn": true,
        "timestep_conditioning_type": ["sca", "crp"], "switch_level": [false],
    });
    let stage_b = json!({
        "in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 64, "patch_size": 2,
        "conditioning_dim": 1280, "block_types_per_layer": [ct, ct, cta, cta],
        "clip_text_pooled_in_channels": 1280, "clip_seq": 4, "effnet_in_channels": 16,
        "pixel_mapper_in_channels": 3, "kernel_size": 3, "dropout": [0, 0, 0.1, 0.1],
        "self_attn": true, "timestep_conditioning_type": ["sca"],
        "down_blocks_repeat_mappers": [1, 1, 1, 1],
    });
    let levels = sizes["block_out_channels"].as_array().unwrap().len();
    let mut config = if levels == 2 { stage_c } else { stage_b };
    let fields = sizes.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(fields);
    let config: CascadeConfig = serde_json::from_value(config).unwrap();
    config.validate().unwrap();
    let shapes = shapes(&config.init(&Device::flex()), KeyTable::DIFFUSION);
    shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// The counts are those of `StableCascadeUNet` with the same configs.
#[test]
fn the_published_models_have_their_sizes() {
    let stage_c = |width: usize, heads: usize, layers: [usize; 2]| {
        let [few, many] = layers;
        parameters(json!({
            "conditioning_dim": width, "block_out_channels": [width, width],
            "num_attention_heads": [heads, heads], "down_num_layers_per_block": [few, many],
            "up_num_layers_per_block": [many, few],
        }))
    };
    assert_eq!(stage_c(2048, 32, [8, 24]), 3_589_103_632);
    assert_eq!(stage_c(1536, 24, [4, 12]), 1_030_785_040);
    let large = parameters(json!({
        "block_out_channels": [320, 640, 1280, 1280], "num_attention_heads": [-1, -1, 20, 20],
        "down_num_layers_per_block": [2, 6, 28, 6], "up_num_layers_per_block": [6, 28, 6, 2],
        "up_blocks_repeat_mappers": [3, 3, 2, 2],
    }));
    assert_eq!(large, 1_562_941_136);
    let small = parameters(json!({
        "block_out_channels": [320, 576, 1152, 1152], "num_attention_heads": [-1, 9, 18, 18],
        "down_num_layers_per_block": [2, 4, 14, 4], "up_num_layers_per_block": [4, 14, 4, 2],
        "up_blocks_repeat_mappers": [2, 2, 2, 2],
    }));
    assert_eq!(small, 699_471_248);
}

/// One loader loads all families in one process.
#[test]
fn three_families_make_pictures_side_by_side() {
    let goldens = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    let [cascade, v1] = ["cascade", "v1"].map(|name| ModelFiles::open(goldens.join(name)).unwrap());
    let options = GenerateOptions {
        width: Some(64),
        height: Some(64),
        prior_steps: Some(1),
        decoder_steps: Some(1),
        ..Default::default()
    };
    let make = |files: &ModelFiles| {
        let pipeline = Pipeline::load(files, &Device::flex(), Residency::Auto).unwrap();
        let made = pipeline.generate_blocking("a red hat", &options).unwrap();
        (pipeline.family.name, made.images[0].clone())
    };
    let made = [&shapes_model(), &cascade, &v1].map(make);
    assert_eq!(
        made.each_ref().map(|made| made.0),
        ["Würstchen v2", "Stable Cascade", "Würstchen v1"]
    );
    assert!(made[0].1 != made[1].1 && made[1].1 != made[2].1);
    assert_eq!(make(&shapes_model()).1, made[0].1);
}
