//! One training step: losses, gradients, weights after an optimizer step.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::prelude::*;
use wuerstchen::sampler::add_noise;
use wuerstchen::weights::gradients as named_gradients;
use wuerstchen::{
    DecoderConfig, KeyTable, ModelFiles, Part, PartConfig, PerLevel, PriorConfig, Schedule,
    Statistics, VqganConfig,
};

use crate::compare::Recorder;
use crate::report::VerifyError;
use crate::stages::{DIFFUSION_BOUND, EXACT_BOUND};

/// Largest relative error of gradients, which sum over all positions.
pub(crate) const GRADIENT_BOUND: f64 = 1e-3;

pub(crate) fn prior(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let device = &device.clone().autodiff();
    let mut config: PriorConfig = files.part_config(Part::PRIOR)?;
    config.dropout = 0.0;
    let model = config.load(files.weights(Part::PRIOR)?, device)?;
    let times = recorder.values("t")?;
    let (x, text) = (recorder.tensor("xt", device)?, recorder.tensor("c", device)?);
    let prediction = model.forward(x, &times, text);
    diffusion_step(recorder, &model, prediction, &times)
}

pub(crate) fn decoder(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let device = &device.clone().autodiff();
    let mut config: DecoderConfig = files.part_config(Part::DECODER)?;
    config.dropout = PerLevel::One(0.0);
    let model = config.load(files.weights(Part::DECODER)?, device)?;
    let times = recorder.values("t")?;
    let (x, text) = (recorder.tensor("xt", device)?, recorder.tensor("clip", device)?);
    let image = recorder.tensor("effnet", device)?;
    let prediction = model.forward(x, &times, image, text);
    diffusion_step(recorder, &model, prediction, &times)
}

/// The p2-weighted loss of a noise prediction, its gradients and a step of AdamW.
fn diffusion_step<M: Module>(
    recorder: &mut Recorder,
    model: &M,
    prediction: Tensor<4>,
    times: &[f32],
) -> Result<(), VerifyError> {
    let (schedule, device) = (Schedule::default(), &prediction.device());
    let (x, noise) = (recorder.tensor("x0", device)?, recorder.tensor::<4>("noise", device)?);
    recorder.check("xt", add_noise(&schedule, x, noise.clone(), times), DIFFUSION_BOUND);
    recorder.check("pred", prediction.clone(), DIFFUSION_BOUND);

    let [batch, ..] = noise.dims();
    let loss = (prediction - noise).square().reshape([batch as i32, -1]).mean_dim(1);
    let loss: Tensor<1> = loss.squeeze_dim(1);
    recorder.check("loss", loss.clone(), DIFFUSION_BOUND);
    let weights: Vec<f32> = times.iter().map(|&t| schedule.p2_weight(t, 1.0)).collect();
    let weights = Tensor::<1>::from_data(&weights[..], device);
    recorder.check("weight", weights.clone(), DIFFUSION_BOUND);
    let total = (loss * weights).mean();
    recorder.check("total", total.clone(), DIFFUSION_BOUND);
    let gradients = total.backward();
    check_gradients(recorder, model, &gradients, KeyTable::DIFFUSION);
    #[cfg(feature = "train")]
    check_optimizer_step(recorder, model, &gradients);
    Ok(())
}

pub(crate) fn vqgan(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let device = &device.clone().autodiff();
    let (_, model) = files.load::<VqganConfig>(Part::VQGAN, device)?;
    let image = recorder.tensor::<4>("image", device)?;
    let quantized = model.quantize(model.encode(image.clone(), Statistics::Running));
    recorder.check("vq_loss", quantized.loss.clone(), EXACT_BOUND);
    let reconstruction = model.decode(quantized.latents);
    recorder.check("rec", reconstruction.clone(), EXACT_BOUND);
    let total = (reconstruction - image).square().mean() + quantized.loss;
    recorder.check("total", total.clone(), EXACT_BOUND);
    check_gradients(recorder, &model, &total.backward(), KeyTable::VQGAN);
    Ok(())
}

/// Compares all gradients and their global norm.
fn check_gradients<M: Module>(
    recorder: &mut Recorder,
    model: &M,
    gradients: &burn::tensor::Gradients,
    keys: KeyTable,
) {
    let gradients: BTreeMap<String, Vec<f32>> = named_gradients(model, gradients, keys)
        .into_iter()
        .map(|tensor| (tensor.name, tensor.values))
        .collect();
    let squares = gradients.values().flatten().map(|&value| f64::from(value) * f64::from(value));
    let norm = squares.sum::<f64>().sqrt();
    if recorder.has("grad_norm") {
        recorder.check_values("grad_norm", &[&[norm as f32]], GRADIENT_BOUND);
    }
    for name in recorder.names() {
        let Some(parameter) = name.strip_prefix("grad/") else { continue };
        // A parameter that the loss does not reach has no gradient here and zeros there.
        let zeros = || vec![0.0; recorder.shape(&name).map_or(0, |s| s.iter().product())];
        let ours = gradients.get(parameter).cloned().unwrap_or_else(zeros);
        let scale = if is_key_bias(parameter) { norm } else { 0.0 };
        recorder.check_scaled(&name, &[&ours], scale.max(f64::MIN_POSITIVE), GRADIENT_BOUND);
    }
}

/// Softmax ignores what all keys share: the true gradient of this bias is zero, and what either
/// side computes is rounding, measured against the norm of all gradients.
fn is_key_bias(parameter: &str) -> bool {
    parameter.ends_with("attention.to_k.bias")
}

/// One step of our optimizer with the reference's settings, from the same gradients.
///
/// The weights of key biases are left out: Adam's first step is the sign of the gradient, and
/// theirs is rounding.
#[cfg(feature = "train")]
fn check_optimizer_step<M: Module>(
    recorder: &mut Recorder,
    model: &M,
    gradients: &burn::tensor::Gradients,
) {
    use wuerstchen_train::optimizer::{Optimizer, OptimizerConfig};
    use wuerstchen_train::values::collect_gradients;

    // The defaults are those of `torch.optim.AdamW`, which the goldens used.
    let config = OptimizerConfig::default();
    let learning_rate = config.learning_rate;
    let mut optimizer = Optimizer::new(config, model);
    let gradients = collect_gradients(model, gradients);
    let (model, _) = optimizer.step(model.clone(), gradients, 0, learning_rate);
    for tensor in wuerstchen::weights::tensors(&model, KeyTable::DIFFUSION) {
        let name = format!("after/{}", tensor.name);
        if recorder.has(&name) && !is_key_bias(&tensor.name) {
            recorder.check_values(&name, &[&tensor.values], DIFFUSION_BOUND);
        }
    }
}
