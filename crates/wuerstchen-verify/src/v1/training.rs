//! Noising of tokens and a training step of Stage B, alone and together with the compressor.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::prelude::*;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::sampler::add_noise;
use wuerstchen::schedule::{TIME_SPREAD, training_time};
use wuerstchen::tokens::{
    LEAST_WEIGHT, cross_entropy, loss_weight, replace, replaced, weighted_means,
};
use wuerstchen::weights::gradients as named_gradients;
#[cfg(feature = "train")]
use wuerstchen::weights::tensors;
use wuerstchen::{
    Compressor, CompressorConfig, KeyTable, ModelFiles, Part, PartConfig, PerLevel, Schedule,
    Statistics, TokenDecoder, TokenDecoderConfig,
};

use super::prefixed;
use crate::compare::Recorder;
use crate::report::VerifyError;
use crate::stages::{DIFFUSION_BOUND, EXACT_BOUND};
use crate::training::GRADIENT_BOUND;

/// Gradients below this are rounding, which AdamW's first step magnifies.
const LEAST_GRADIENT: f32 = 1e-6;

/// Errors of gradients that are nothing but rounding are relative to this.
const ROUNDING_SCALE: f64 = 1e-3;

/// Noised tokens, weights of the loss and the distribution of times.
pub(super) fn noising(
    recorder: &mut Recorder,
    _: &ModelFiles,
    _: &Device,
) -> Result<(), VerifyError> {
    let times = recorder.values("t")?;
    let tokens = ints(recorder, "x0")?;
    let mut masks = Vec::new();
    for (suffix, random) in [("", "random"), ("2", "fixed_random")] {
        let uniform = recorder.values(&format!("uniform{suffix}"))?;
        let mask = mask_of(&uniform, &times);
        check_ints(recorder, &format!("mask{suffix}"), mask.iter().map(|&m| i32::from(m)))?;
        let noised = replace(&tokens, &ints(recorder, random)?, &mask);
        check_ints(recorder, &format!("noised{suffix}"), noised)?;
        masks.push(mask);
    }
    let given: Vec<bool> = ints(recorder, "given_mask")?.into_iter().map(|m| m != 0).collect();
    let noised = replace(&tokens, &ints(recorder, "fixed_random")?, &given);
    check_ints(recorder, "noised3", noised)?;
    for (name, least) in [("loss_weight", LEAST_WEIGHT), ("loss_weight_min0", 0.0)] {
        let weights = weights_of(&masks[0], &times, least);
        recorder.check_values(name, &[&weights], EXACT_BOUND);
    }
    let uniform = recorder.values("law_uniform")?;
    for (name, spread) in [("law_t", TIME_SPREAD), ("law_t_eval", 1.0)] {
        let law: Vec<f32> = uniform.iter().map(|&u| training_time(u, spread)).collect();
        recorder.check_values(name, &[&law], EXACT_BOUND);
    }
    Ok(())
}

/// Which tokens of samples are replaced, at a time for each sample.
fn mask_of(uniform: &[f32], times: &[f32]) -> Vec<bool> {
    let area = uniform.len() / times.len().max(1);
    uniform.chunks(area.max(1)).zip(times).flat_map(|(row, &t)| replaced(row, t)).collect()
}

fn weights_of(mask: &[bool], times: &[f32], least: f32) -> Vec<f32> {
    let area = mask.len() / times.len().max(1);
    let rows = mask.chunks(area.max(1)).zip(times);
    rows.flat_map(|(row, &t)| row.iter().map(move |&m| loss_weight(m, t, least))).collect()
}

fn ints(recorder: &Recorder, name: &str) -> Result<Vec<i32>, VerifyError> {
    Ok(recorder.integers(name)?.into_iter().map(|integer| integer as i32).collect())
}

fn check_ints(
    recorder: &mut Recorder,
    name: &str,
    ours: impl IntoIterator<Item = i32>,
) -> Result<(), VerifyError> {
    let ours: Vec<i64> = ours.into_iter().map(i64::from).collect();
    let golden = recorder.integers(name)?;
    recorder.check_equal(name, &ours, &golden);
    Ok(())
}

/// Noised tokens of a training step, and what they are to become.
struct Noised {
    tokens: Vec<i32>,
    noised: Vec<i32>,
    weights: Vec<f32>,
    times: Vec<f32>,
    shape: [usize; 3],
}

impl Noised {
    /// Noises the tokens of a case, and compares.
    fn read(recorder: &mut Recorder, case: &dyn Fn(&str) -> String) -> Result<Self, VerifyError> {
        let times = recorder.values("t")?;
        let &[batch, height, width] = recorder.shape("tokens")? else {
            return Err(recorder.error("expected 3 axes of \"tokens\"".into()));
        };
        let tokens = ints(recorder, "tokens")?;
        let mask = mask_of(&recorder.values(&case("uniform"))?, &times);
        check_ints(recorder, &case("mask"), mask.iter().map(|&m| i32::from(m)))?;
        let noised = replace(&tokens, &ints(recorder, &case("random"))?, &mask);
        check_ints(recorder, &case("noised"), noised.iter().copied())?;
        let weights = weights_of(&mask, &times, LEAST_WEIGHT);
        Ok(Self { tokens, noised, weights, times, shape: [batch, height, width] })
    }

    fn tensor(&self, tokens: &[i32], device: &Device) -> Tensor<3, Int> {
        Tensor::from_data(TensorData::new(tokens.to_vec(), self.shape), device)
    }

    /// The loss, and on the way to it the cross-entropies, `[B, H·W]`, and the mean of every sample.
    fn loss(&self, logits: Tensor<4>) -> (Tensor<1>, Tensor<2>, Tensor<1>) {
        let ([batch, height, width], device) = (self.shape, logits.device());
        let [_, labels, ..] = logits.dims();
        let rows = logits.permute([0, 2, 3, 1]).reshape([batch * height * width, labels]);
        let targets = self.tensor(&self.tokens, &device).reshape([-1]);
        let losses = cross_entropy(rows, targets).reshape([batch, height * width]);
        let weights = TensorData::new(self.weights.clone(), [batch, height * width]);
        let weights = Tensor::from_data(weights, &device);
        let samples = weighted_means(losses.clone(), weights);
        (samples.clone().mean(), losses, samples)
    }
}

/// Stage B alone, for given image embeddings.
pub(super) fn decoder(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let device = &device.clone().autodiff();
    let model = load_decoder(files, device)?;
    let noised = Noised::read(recorder, &str::to_owned)?;
    recorder.check_values("weight", &[&noised.weights], EXACT_BOUND);
    let (image, text) = (recorder.tensor("effnet", device)?, recorder.tensor("text", device)?);
    let tokens = noised.tensor(&noised.noised, device);
    let logits = model.forward(tokens, &noised.times, image, Some(text));
    let found = logits.clone().argmax(1).squeeze_dim::<3>(1);
    let right = found.equal(noised.tensor(&noised.tokens, device)).float().mean();
    recorder.check("accuracy", right, EXACT_BOUND);
    let (loss, losses, samples) = noised.loss(logits);
    recorder.check("cross_entropy", losses, DIFFUSION_BOUND);
    recorder.check("per_sample", samples, DIFFUSION_BOUND);
    recorder.check("loss", loss.clone(), DIFFUSION_BOUND);
    let gradients = loss.backward();
    let own = named_gradients(&model, &gradients, KeyTable::DIFFUSION);
    check_gradients(recorder, &str::to_owned, own)?;
    #[cfg(feature = "train")]
    {
        let model = step(model, &gradients);
        check_after(recorder, &str::to_owned, tensors(&model, KeyTable::DIFFUSION))?;
    }
    Ok(())
}

fn load_decoder(files: &ModelFiles, device: &Device) -> Result<TokenDecoder, VerifyError> {
    let mut config: TokenDecoderConfig = files.part_config(Part::V1_DECODER)?;
    config.dropout = PerLevel::One(0.0);
    Ok(config.load(files.weights(Part::V1_DECODER)?, device)?)
}

/// Stage B and the compressor, as they are trained.
#[derive(Module, Debug)]
struct Joint {
    effnet: Compressor,
    generator: TokenDecoder,
}

impl Joint {
    /// What is known of every parameter, under the goldens' names.
    fn named(
        &self,
        of_effnet: impl Fn(&Compressor) -> Vec<NamedTensor>,
        of_generator: impl Fn(&TokenDecoder) -> Vec<NamedTensor>,
    ) -> Vec<NamedTensor> {
        let named = |prefix: &str, all: Vec<NamedTensor>| {
            let rename = |tensor: NamedTensor| {
                let name = format!("{prefix}.{}", tensor.name);
                NamedTensor { name, ..tensor }
            };
            all.into_iter().map(rename).collect::<Vec<_>>()
        };
        let mut all = named("effnet", of_effnet(&self.effnet));
        all.extend(named("generator", of_generator(&self.generator)));
        all
    }
}

/// Stage B and the compressor together, on prepared pictures: with the embeddings as they are, noised, and with
/// zeros in their place.
pub(super) fn joint(
    recorder: &mut Recorder,
    files: &ModelFiles,
    pictures: Tensor<4>,
) -> Result<(), VerifyError> {
    let device = &pictures.device().autodiff();
    let config: CompressorConfig = files.part_config(Part::V1_COMPRESSOR)?;
    for case in recorder.stems(".loss") {
        let name = prefixed(&case);
        let model = Joint {
            effnet: config.load(files.weights(Part::V1_COMPRESSOR)?, device)?,
            generator: load_decoder(files, device)?,
        };
        let noised = Noised::read(recorder, &name)?;
        let pictures = Tensor::from_inner(pictures.clone());
        let embedding = model.effnet.forward(pictures, Statistics::Batch);
        let embedding = if recorder.has(&name("noise")) {
            let noise = recorder.tensor(&name("noise"), device)?;
            let uniform = recorder.values(&name("noise_uniform"))?;
            let times: Vec<f32> = uniform.iter().map(|u| 0.5 * u).collect();
            add_noise(&Schedule::default(), embedding, noise, &times)
        } else if case == "zero" {
            embedding * 0.0
        } else {
            embedding
        };
        recorder.check(&name("embedding"), embedding.clone(), DIFFUSION_BOUND);
        let text = recorder.tensor("text", device)?;
        let tokens = noised.tensor(&noised.noised, device);
        let logits = model.generator.forward(tokens, &noised.times, embedding, Some(text));
        let (loss, ..) = noised.loss(logits);
        recorder.check(&name("loss"), loss.clone(), DIFFUSION_BOUND);
        let gradients = loss.backward();
        let own = model.named(
            |effnet| named_gradients(effnet, &gradients, KeyTable::COMPRESSOR),
            |generator| named_gradients(generator, &gradients, KeyTable::DIFFUSION),
        );
        check_gradients(recorder, &name, own)?;
        #[cfg(feature = "train")]
        {
            let model = step(model, &gradients);
            let own = model.named(
                |effnet| tensors(effnet, KeyTable::COMPRESSOR),
                |generator| tensors(generator, KeyTable::DIFFUSION),
            );
            check_after(recorder, &name, own)?;
        }
    }
    Ok(())
}

/// Values by the names of the authors, who keep queries, keys and values in one tensor.
struct Named(BTreeMap<String, Vec<f32>>);

impl Named {
    fn new(all: Vec<NamedTensor>) -> Self {
        Self(all.into_iter().map(|tensor| (tensor.name, tensor.values)).collect())
    }

    fn get(&self, name: &str) -> Option<Vec<f32>> {
        if let Some((block, kind)) = name.split_once(".attn.in_proj_") {
            let third = |to: &str| self.0.get(&format!("{block}.{to}.{kind}")).cloned();
            let thirds = [third("to_q")?, third("to_k")?, third("to_v")?];
            return Some(thirds.concat());
        }
        self.0.get(&name.replace(".attn.out_proj.", ".to_out.0.")).cloned()
    }
}

/// Compares gradients and their global norm.
fn check_gradients(
    recorder: &mut Recorder,
    case: &dyn Fn(&str) -> String,
    ours: Vec<NamedTensor>,
) -> Result<(), VerifyError> {
    let squares = ours.iter().flat_map(|tensor| &tensor.values).map(|&v| f64::from(v).powi(2));
    let norm = squares.sum::<f64>().sqrt();
    recorder.check_values(&case("grad_norm"), &[&[norm as f32]], GRADIENT_BOUND);
    let (ours, prefix) = (Named::new(ours), case("grad/"));
    for name in recorder.names() {
        let Some(parameter) = name.strip_prefix(&prefix) else { continue };
        let golden = recorder.values(&name)?;
        // A parameter that the loss does not reach has no gradient here and zeros there.
        let found = ours.get(parameter).unwrap_or_else(|| vec![0.0; golden.len()]);
        let is_rounding = golden.iter().all(|value| value.abs() <= LEAST_GRADIENT);
        let scale = if is_rounding { ROUNDING_SCALE } else { f64::MIN_POSITIVE };
        recorder.check_scaled(&name, &[&found], scale, GRADIENT_BOUND);
    }
    Ok(())
}

/// One step of our optimizer with the authors' settings.
#[cfg(feature = "train")]
fn step<M: Module>(model: M, gradients: &burn::tensor::Gradients) -> M {
    use wuerstchen_train::optimizer::{Optimizer, OptimizerConfig};
    use wuerstchen_train::values::collect_gradients;

    let config = OptimizerConfig { beta2: 0.95, ..OptimizerConfig::default() };
    let learning_rate = config.learning_rate;
    let mut optimizer = Optimizer::new(config, &model);
    let gradients = collect_gradients(&model, gradients);
    optimizer.step(model, gradients, 0, learning_rate).0
}

/// Compares weights where their gradients are more than rounding, and running averages.
#[cfg(feature = "train")]
fn check_after(
    recorder: &mut Recorder,
    case: &dyn Fn(&str) -> String,
    ours: Vec<NamedTensor>,
) -> Result<(), VerifyError> {
    let (ours, prefix) = (Named::new(ours), case("after/"));
    for name in recorder.names() {
        let Some(parameter) = name.strip_prefix(&prefix) else { continue };
        // Counters of batches, which nothing reads, are not kept.
        let Some(values) = ours.get(parameter) else { continue };
        let gradient = case(&format!("grad/{parameter}"));
        let counts = if recorder.has(&gradient) {
            let gradient = recorder.values(&gradient)?;
            gradient.iter().map(|value| value.abs() > LEAST_GRADIENT).collect()
        } else {
            vec![true; values.len()]
        };
        recorder.check_where(&name, &values, &counts, DIFFUSION_BOUND);
    }
    Ok(())
}
