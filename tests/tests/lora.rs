//! LoRAs of peft and diffusers change Stage C as they do there.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use burn::prelude::*;
use wuerstchen::{Checkpoint, Lora, LoraFile, ModelFiles, Part, PartConfig, PriorConfig};
use wuerstchen_tests::error_of;

/// As for a prediction of the prior without a LoRA.
const TOLERANCE: f64 = 1e-4;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/small")
}

fn checkpoint(path: &str) -> Checkpoint {
    Checkpoint::parse(path, Arc::new(fs::read(folder().join(path)).unwrap())).unwrap()
}

#[test]
fn two_loras_change_the_prediction_as_in_diffusers() {
    let device = Device::flex();
    let golden = checkpoint("lora/golden.safetensors");
    let data = |name: &str| {
        TensorData::new(golden.values(name).unwrap(), golden.shape(name).unwrap().to_vec())
    };
    let planes = |name: &str| Tensor::<4>::from_data(data(name), &device);
    let weights = checkpoint("wuerstchen-prior/prior/diffusion_pytorch_model.safetensors");
    let config = fs::read_to_string(folder().join("wuerstchen-prior/prior/config.json")).unwrap();
    let config: PriorConfig = serde_json::from_str(&config).unwrap();
    let error = |weights: &Checkpoint, name: &str| {
        let prior = config.load(weights, &device).unwrap();
        let text = Tensor::<3>::from_data(data("c"), &device);
        let predicted = prior.forward(planes("x"), &golden.values("t").unwrap(), text);
        error_of(predicted, planes(name))
    };
    assert!(error(&weights, "without") < TOLERANCE);
    assert!(error(&weights, "with") > 0.1, "the LoRAs change nothing");

    let adapter = fs::read_to_string(folder().join("lora/style/adapter_config.json")).unwrap();
    let file = |path: &str| {
        LoraFile::parse(path, Arc::new(fs::read(folder().join(path)).unwrap())).unwrap()
    };
    let style = file("lora/style/adapter_model.safetensors").with_adapter_config(Some(adapter));
    let detail = file("lora/detail.safetensors");
    let mut model = ModelFiles::default();
    model.weights.insert(Part::PRIOR, weights);
    let loras =
        vec![Lora::read(&style, &model, 0.8).unwrap(), Lora::read(&detail, &model, -0.5).unwrap()];
    assert_eq!(loras[0].targets(Part::PRIOR).count(), 12);
    assert_eq!(loras[1].targets(Part::PRIOR).count(), 6);
    model.add_loras(loras).unwrap();
    let error = error(&model.weights[&Part::PRIOR], "with");
    assert!(error < TOLERANCE, "{error}");
}
