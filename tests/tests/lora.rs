//! LoRAs of peft and diffusers change Stage C as they do there.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use burn::prelude::*;
use futures_lite::future::block_on;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::fs::open_lora;
use wuerstchen::{
    Checkpoint, GenerateOptions, Lora, LoraFile, ModelFiles, Part, PartConfig, Pipeline,
    PriorConfig, Residency, StoredDtype, relative_error,
};
use wuerstchen_tests::{error_of, stored_as};

/// Bound of the error, as for a prediction of the prior without a LoRA.
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

/// A LoRA that this program has trained, in both forms that it writes, as diffusers applies it.
#[test]
fn a_lora_trained_here_changes_the_prediction_as_in_diffusers() {
    let device = Device::flex();
    let golden = checkpoint("lora/trained/golden.safetensors");
    let data = |name: &str| {
        let shape = golden.shape(name).unwrap().to_vec();
        TensorData::new(golden.values(name).unwrap(), shape)
    };
    let config = fs::read_to_string(folder().join("wuerstchen-prior/prior/config.json")).unwrap();
    let config: PriorConfig = serde_json::from_str(&config).unwrap();
    for form in ["pytorch_lora_weights.safetensors", "peft"] {
        let weights = checkpoint("wuerstchen-prior/prior/diffusion_pytorch_model.safetensors");
        let mut model = ModelFiles::default();
        model.weights.insert(Part::PRIOR, weights);
        let file = open_lora(&folder().join("lora/trained").join(form)).unwrap();
        model.add_loras(vec![Lora::read(&file, &model, 1.0).unwrap()]).unwrap();
        let prior = config.load(&model.weights[&Part::PRIOR], &device).unwrap();
        let x = Tensor::<4>::from_data(data("x"), &device);
        let text = Tensor::<3>::from_data(data("c"), &device);
        let predicted = prior.forward(x, &golden.values("t").unwrap(), text);
        let error = error_of(predicted, Tensor::from_data(data("with"), &device));
        assert!(error < TOLERANCE, "{form}: {error}");
    }
}

/// A browser tests its device with the unchanged model, and makes the changes afterwards.
#[test]
fn a_loaded_model_is_changed_as_its_files_are() {
    for dtype in [StoredDtype::F32, StoredDtype::I4] {
        let (model, bundle) = stored_as(dtype);
        let matrix = |name: &str, shape: [usize; 2]| {
            let values = (0..shape[0] * shape[1]).map(|i| (i as f32 * 0.7).sin() * 0.1).collect();
            let name = format!("prior.blocks.2.attention.to_q.{name}.weight");
            NamedTensor::new(name, &shape, values)
        };
        let tensors = [matrix("lora_A", [4, 128]), matrix("lora_B", [128, 4])];
        let file = LoraFile::from(Checkpoint::from_tensors("style", tensors));
        // The outline tells all that a LoRA is compared with.
        let lora = Lora::read(&file, &bundle.outline(), 1.0).unwrap();
        assert_eq!(Lora::read(&file, &model, 1.0).unwrap(), lora);

        let load = |model| Pipeline::load(model, &Device::flex(), Residency::All).unwrap();
        let make = |pipeline: &Pipeline| {
            let steps = Some(2);
            let options =
                GenerateOptions { prior_steps: steps, decoder_steps: steps, ..Default::default() };
            let go = &mut async |_: wuerstchen::Progress<'_>| ControlFlow::Continue(());
            block_on(pipeline.generate("a red star", &options, go)).unwrap().image_embeddings
        };
        let (weights, loras) = (&model.weights[&Part::PRIOR], Arc::from([lora.clone()]));
        let mut unchanged = model.clone();
        let in_f32 = weights.to_be_changed_by(Part::PRIOR, &loras).unwrap();
        unchanged.weights.get_mut(&Part::PRIOR).unwrap().replace(in_f32);
        let mut pipeline = load(&unchanged);
        let before = make(&pipeline);
        let expected = make(&load(&model));
        let [a, b] = [&before, &expected].map(|data| data.as_slice::<f32>().unwrap());
        assert!(relative_error(a, b) < TOLERANCE, "{dtype:?}");
        let changed = weights.changed_by(Part::PRIOR, &loras).unwrap();
        pipeline.replace(Part::PRIOR, &changed).unwrap();
        let found = make(&pipeline);
        let mut files = model.clone();
        files.add_loras(vec![lora]).unwrap();
        assert_eq!(found, make(&load(&files)), "{dtype:?}");
        assert_ne!(found, before, "{dtype:?}");
    }
}
