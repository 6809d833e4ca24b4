//! Models that are stored in different ways make the pictures that their weights imply.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use burn::prelude::*;
use futures_lite::future::block_on;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::{
    Checkpoint, CompressorConfig, DecoderConfig, GenerateOptions, Generated, ModelFiles, Part,
    PartConfig, Pipeline, PriorConfig, Residency, StoredDtype, VqganConfig, relative_error,
};
use wuerstchen_tests::{gpu, shapes_model, stored_as};

/// The same weights in f32, so that none of them stays packed.
fn unpacked(files: &ModelFiles) -> ModelFiles {
    let part = |(&part, weights): (&Part, &Checkpoint)| {
        let names = weights.names();
        let tensor = |name: &str| {
            NamedTensor::new(name, weights.shape(name).unwrap(), weights.values(name).unwrap())
        };
        (part, Checkpoint::from_tensors(part.folder(), names.map(tensor)))
    };
    ModelFiles { texts: files.texts.clone(), weights: files.weights.iter().map(part).collect() }
}

/// A picture in few steps.
fn generate(files: &ModelFiles, device: &Device, residency: Residency) -> Generated {
    let steps = Some(2);
    let options =
        GenerateOptions { prior_steps: steps, decoder_steps: steps, ..Default::default() };
    generate_with(&options, files, device, residency)
}

fn generate_with(
    options: &GenerateOptions,
    files: &ModelFiles,
    device: &Device,
    residency: Residency,
) -> Generated {
    let pipeline = Pipeline::load(files, device, residency).unwrap();
    let go = &mut async |_: wuerstchen::Progress<'_>| ControlFlow::Continue(());
    block_on(pipeline.generate("a red circle on a white background", options, go)).unwrap()
}

/// `||found − expected|| / ||expected||` of the latents.
fn error(found: &Generated, expected: &Generated) -> f64 {
    let values =
        |made: &Generated| made.latents.clone().convert::<f32>().try_to_vec::<f32>().unwrap();
    relative_error(&values(found), &values(expected))
}

#[test]
fn one_part_at_a_time_makes_the_same_picture() {
    let (files, device) = (shapes_model(), Device::flex());
    let all = generate(&files, &device, Residency::All);
    let parts = generate(&files, &device, Residency::PerStage);
    assert_eq!(all.images, parts.images);
}

/// Reading a model part by part is no less strict.
#[test]
fn a_missing_tensor_is_named_before_anything_runs() {
    let mut files = unpacked(&shapes_model());
    let decoder = files.weights.get_mut(&Part::DECODER).unwrap();
    let kept = decoder.names().filter(|name| *name != "clf.1.bias").map(|name| {
        NamedTensor::new(name, decoder.shape(name).unwrap(), decoder.values(name).unwrap())
    });
    *decoder = Checkpoint::from_tensors("wuerstchen/decoder", kept.collect::<Vec<_>>());
    for residency in [Residency::All, Residency::PerStage] {
        let error = Pipeline::load(&files, &Device::flex(), residency).err().unwrap().to_string();
        assert!(error.ends_with("\n  missing: clf.1.bias"), "{error}");
    }
}

/// Sums of packed products run in another order than those of whole matrices.
const PACKED_BOUND: f64 = 1e-4;

/// Bound on a GPU: ten times the CPU's, as for the goldens.
const GPU_BOUND: f64 = 1e-3;

#[test]
fn packed_weights_make_what_they_make_unpacked() {
    for dtype in [StoredDtype::I8, StoredDtype::I4] {
        let (files, bundle) = stored_as(dtype);
        let tensors = &bundle.contents().tensors;
        let packed = tensors.iter().filter(|tensor| tensor.dtype == dtype).count();
        assert!(packed > 50, "only {packed} tensors are {dtype:?}");
        let expected = generate(&unpacked(&files), &Device::flex(), Residency::All);
        let found = generate(&files, &Device::flex(), Residency::All);
        assert!(error(&found, &expected) < PACKED_BOUND, "{dtype:?}");
        if let Some(device) = gpu() {
            let error = error(&generate(&files, &device, Residency::All), &expected);
            assert!(error < GPU_BOUND, "{dtype:?} on the GPU: {error}");
        }
    }
}

/// Fewer bits cost accuracy and save space, and neither more nor less than expected. The steps are those that the model
/// is made for, because larger steps would amplify small errors.
#[test]
fn fewer_bits_are_smaller_and_further_off() {
    let generate = |files: &ModelFiles| {
        generate_with(&GenerateOptions::default(), files, &Device::flex(), Residency::All)
    };
    let exact = generate(&shapes_model());
    let measure = |dtype| {
        let (files, bundle) = stored_as(dtype);
        let bytes: usize = bundle.manifest().shards.iter().map(|shard| shard.bytes).sum();
        (error(&generate(&files), &exact), bytes)
    };
    let [f16, i8, i4] = [StoredDtype::F16, StoredDtype::I8, StoredDtype::I4].map(measure);
    assert!(f16.0 < 1e-6 && f16.0 <= i8.0 && i8.0 < i4.0, "{f16:?} {i8:?} {i4:?}");
    assert!(i8.0 < 0.05 && i4.0 < 0.5, "{i8:?} {i4:?}");
    assert!(4 * i8.1 < 3 * f16.1 && 4 * i4.1 < 3 * i8.1, "{f16:?} {i8:?} {i4:?}");
}

/// PyTorch refuses a matrix where it expects the kernel of a 1x1 convolution.
#[test]
fn weights_are_written_in_the_published_shapes() {
    let mut golden = ModelFiles::default();
    for part in [Part::PRIOR, Part::DECODER, Part::VQGAN, Part::COMPRESSOR] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/small");
        let config = std::fs::read_to_string(folder.join(part.config_path())).unwrap();
        golden.texts.insert(part.config_path(), config);
        let weights = std::fs::read(folder.join(part.weights_path())).unwrap();
        let weights = Checkpoint::parse(part.folder(), Arc::new(weights)).unwrap();
        golden.weights.insert(part, weights);
    }
    assert_shapes::<PriorConfig>(&golden, Part::PRIOR);
    assert_shapes::<DecoderConfig>(&golden, Part::DECODER);
    assert_shapes::<VqganConfig>(&golden, Part::VQGAN);
    assert_shapes::<CompressorConfig>(&golden, Part::COMPRESSOR);
}

/// Whether our weights of a part are written in the shapes of the golden ones.
fn assert_shapes<C: PartConfig>(golden: &ModelFiles, part: Part) {
    let config: C = golden.part_config(part).unwrap();
    let written = C::weights(part, &config.init(&Device::flex()));
    assert!(written.names().count() > 20, "{part}");
    for (name, _, shape, _) in written.describe() {
        assert_eq!(Some(shape), golden.weights[&part].shape(name), "{part} {name}");
    }
}
