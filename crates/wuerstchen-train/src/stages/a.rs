//! Stage A: from pictures to latents and back.

use std::ops::Range;

use burn::module::Module;
use burn::prelude::*;
use wuerstchen::noise::Philox;
use wuerstchen::vqgan::COMMITMENT;
use wuerstchen::{Statistics, Vqgan};

use super::codebook::{CANDIDATES, CodebookAverages, Latents, Offer};
use super::discriminator::Discriminator;
use super::{Adversary, Loss, Stage, Told};
use crate::compare::lpips::Lpips;
use crate::config::{AdversarialConfig, StageAConfig, TrainConfig};
use crate::corpus::{Corpus, CorpusError};
use crate::optimizer::{Method, OptimizerConfig};
use crate::rows::Rows;
use crate::values::visited;

/// The networks that the training of Stage A changes.
#[derive(Module, Debug)]
pub struct VqganModel {
    /// Stage A.
    pub vqgan: Vqgan,
    /// The averages that the codes follow, unless they have gradients; not a part of the finished model.
    pub codebook: Option<CodebookAverages>,
    /// The discriminator that Stage A is trained against; not a part of the finished model.
    pub discriminator: Option<Discriminator>,
}

impl VqganModel {
    /// Stage A with the networks that its config trains beside it, on the device of its weights.
    pub fn new(vqgan: Vqgan, config: &StageAConfig, seed: u64, device: &Device) -> Self {
        let discriminator = |config| Discriminator::init(config, seed, device);
        Self {
            codebook: config.codebook.as_ref().map(|_| CodebookAverages::new(&vqgan)),
            discriminator: config.adversarial.as_ref().map(discriminator),
            vqgan,
        }
    }
}

/// Training of Stage A.
pub struct StageA {
    corpus: Corpus,
    config: StageAConfig,
    seed: u64,
    /// The number of codes, and of values in each code.
    codebook: [usize; 2],
    /// The device with autodiff.
    device: Device,
    /// The network of the perceptual loss, on the device without autodiff.
    perceptual: Option<Lpips>,
}

impl StageA {
    /// Training on a device with autodiff, without the network of a perceptual loss.
    pub fn new(config: &TrainConfig, corpus: Corpus, device: Device) -> Self {
        let vqgan = &config.model.vqgan;
        Self {
            corpus,
            config: config.a.clone(),
            seed: config.seed,
            codebook: [vqgan.num_vq_embeddings, vqgan.latent_channels],
            device,
            perceptual: None,
        }
    }

    /// The same with the network of its perceptual loss, on the device without autodiff.
    pub fn with_perceptual(self, lpips: Lpips) -> Self {
        Self { perceptual: Some(lpips), ..self }
    }
}

/// A batch of Stage A.
pub struct BatchA {
    pictures: Rows,
    /// Whether quantised latents are decoded.
    quantized: bool,
    /// Whether the discriminator is trained, and its loss added to Stage A's.
    adversarial: bool,
    /// The places of latents that can replace dead codes, in `[0, 1)` of the number of latents.
    candidates: Vec<f32>,
}

/// Weight of the squared error beside the absolute one in Stage A's loss.
const SQUARED_ERROR: f64 = 2.0;

/// Added to the norm that the adaptive weight is divided by, and the largest such weight.
///
/// Source: `calculate_adaptive_weight` of CompVis/taming-transformers.
const NORM_EPSILON: f64 = 1e-4;
const MAX_ADAPTIVE_WEIGHT: f64 = 1e4;

/// The first numbers that a share reports, 0 where the stage has no such loss.
const LOSSES: [&str; 5] = [
    "reconstruction_loss",
    "perceptual_loss",
    "adversarial_loss",
    "adversarial_weight",
    "discriminator_loss",
];

impl Stage for StageA {
    type Model = VqganModel;
    type Batch = BatchA;

    fn batch(
        &self,
        rng: &mut Philox,
        samples: Range<u64>,
        own: &Range<usize>,
    ) -> Result<BatchA, CorpusError> {
        let step = samples.start / self.config.updates.batch_size as u64;
        let most = self.config.max_zoom as u32;
        let pictures = if most == 1 {
            self.corpus.own_pictures(&samples.collect::<Vec<_>>(), own)?
        } else {
            let zooms: Vec<_> = samples.map(|number| (number, 1 + rng.below(most))).collect();
            self.corpus.crops(&zooms, rng, own)?
        };
        // The pipeline decodes without quantising, so the decoder learns both.
        let quantized = f64::from(rng.uniform()) < self.config.quantized;
        let candidates = if self.config.codebook.is_some() { CANDIDATES } else { 0 };
        let candidates = (0..candidates).map(|_| rng.uniform()).collect();
        let adversarial = self.hears_adversary(step).is_some();
        Ok(BatchA { pictures, quantized, adversarial, candidates })
    }

    fn loss(&self, model: &VqganModel, batch: &BatchA, range: Range<usize>) -> Loss {
        let pictures = batch.pictures.tensor(&range, &self.device);
        let vqgan = &model.vqgan;
        let latents = if self.config.freeze_encoder {
            let plain = pictures.clone().inner();
            Tensor::from_inner(vqgan.valid().encode(plain, Statistics::Running))
        } else {
            vqgan.encode(pictures.clone(), Statistics::Batch)
        };
        let quantized = vqgan.quantize(latents.clone());
        let offer = self.config.codebook.as_ref().map(|_| {
            let share = [range.start / range.len(), self.config.updates.shards];
            let plain = latents.clone().inner();
            (plain, batch.candidates.clone(), share)
        });
        let code_loss = match &model.codebook {
            // Neither the codes nor the latents are trained, so the loss of the codes has no effect.
            _ if self.config.freeze_encoder => Tensor::zeros([1], &self.device),
            // The codes have no gradient.
            Some(_) => {
                let codes = quantized.latents.clone().detach();
                (latents.clone() - codes).square().mean() * COMMITMENT
            }
            None => quantized.loss,
        };
        let decoded = if batch.quantized { quantized.latents } else { latents };
        let losses = match (&model.discriminator, &self.config.adversarial) {
            (Some(discriminator), Some(config)) if batch.adversarial => {
                self.adversarial_losses(vqgan, decoded, pictures, (discriminator, config))
            }
            _ => self.losses(vqgan.decode(decoded), pictures),
        };
        let [codes, _] = self.codebook;
        let (indices, numbers) = (quantized.indices, losses.numbers);
        // The numbers of codes are whole and small enough to be exact in f32.
        let mut read = vec![indices.float().reshape([-1])];
        let is_there = numbers.each_ref().map(Option::is_some);
        read.extend(numbers.into_iter().flatten());
        let offer = offer.map(|(latents, places, share)| {
            read.push(latents.permute([0, 2, 3, 1]).flatten(0, 3));
            (places, share)
        });
        let make = move |read: &[Vec<f32>]| {
            let indices: Vec<i64> = read[0].iter().map(|&index| index as i64).collect();
            let mut rest = read[1..].iter();
            let mut next = || rest.next().expect("everything was read");
            let numbers = is_there.map(|is_there| if is_there { next()[0] } else { 0.0 });
            let offer = offer
                .as_ref()
                .map(|(places, share)| (&next()[..], Offer { places, share: *share }));
            let latents = Latents::new(&indices, codes, offer);
            [&numbers[..], &latents.to_list()].concat()
        };
        let told = Told { read, make: Box::new(make) };
        Loss {
            total: losses.total + code_loss.clone(),
            shown: losses.shown + code_loss.detach(),
            told,
            earlier: None,
        }
    }

    fn measures(&self, told: &[f32], step: u64) -> Vec<(&'static str, f64)> {
        let (losses, rest) = told.split_at(LOSSES.len());
        let latents = self.latents(rest);
        let mut measures =
            vec![("codes_used", latents.used()), ("perplexity", latents.perplexity())];
        let is_adversarial = self.hears_adversary(step).is_some();
        let is_told =
            [true, self.perceptual.is_some(), is_adversarial, is_adversarial, is_adversarial];
        let losses = LOSSES.into_iter().zip(losses).zip(is_told);
        let losses = losses.filter(|(_, is_told)| *is_told);
        measures.extend(losses.map(|((name, &loss), _)| (name, loss.into())));
        measures
    }

    fn adversary(&self, model: &VqganModel) -> Option<Adversary> {
        let (config, discriminator) =
            (self.config.adversarial.as_ref()?, model.discriminator.as_ref()?);
        let optimizer = OptimizerConfig {
            method: Method::AdamW,
            learning_rate: config.learning_rate,
            beta1: config.beta1,
            beta2: config.beta2,
            weight_decay: 0.0,
            max_grad_norm: config.max_grad_norm,
            skip_grad_norm: None,
            ..self.config.updates.optimizer.clone()
        };
        let parameters = visited(discriminator).into_iter().collect();
        Some(Adversary { optimizer, start: config.start, parameters })
    }

    fn settle(&self, mut model: VqganModel, told: &[f32], step: u64) -> VqganModel {
        if let (Some(averages), Some(config)) = (model.codebook.take(), &self.config.codebook) {
            let latents = self.latents(&told[LOSSES.len()..]);
            let (averages, vqgan) =
                averages.follow(model.vqgan, config, &latents, (self.seed, step));
            model = VqganModel { codebook: Some(averages), vqgan, ..model };
        }
        model
    }
}

/// The losses of pictures and their reconstructions.
struct Losses {
    /// The loss whose gradients are taken, without that of the codes.
    total: Tensor<1>,
    /// The loss without the discriminator's and the codes', and without a graph.
    shown: Tensor<1>,
    /// The values of [`LOSSES`], without a graph.
    numbers: [Option<Tensor<1>>; LOSSES.len()],
}

impl StageA {
    /// The config of the discriminator, if it takes part in the update number `step`, from 0.
    fn hears_adversary(&self, step: u64) -> Option<&AdversarialConfig> {
        self.config.adversarial.as_ref().filter(|config| step >= config.start)
    }

    /// The numbers that shares have reported about their latents.
    fn latents(&self, told: &[f32]) -> Latents {
        let [codes, channels] = self.codebook;
        let channels = if self.config.codebook.is_some() { channels } else { 0 };
        Latents::from_list(told, codes, channels)
    }

    /// The loss of reconstructions `made` of pictures, without a discriminator.
    fn losses(&self, made: Tensor<4>, pictures: Tensor<4>) -> Losses {
        let error = made.clone() - pictures.clone();
        let edges = if self.config.edge_loss > 0.0 {
            edge_error(&error) * self.config.edge_loss
        } else {
            Tensor::zeros([1], &self.device)
        };
        let loss = error.clone().abs().mean() + error.square().mean() * SQUARED_ERROR;
        let reconstruction = loss + edges;
        // The weights are frozen, so that every share of a batch can have a graph of its own.
        let perceptual = self
            .perceptual
            .as_ref()
            .map(|lpips| lpips.clone().train().forward(made, pictures).mean());
        let total = match &perceptual {
            Some(distance) => {
                reconstruction.clone() + distance.clone() * self.config.perceptual_loss
            }
            None => reconstruction.clone(),
        };
        let numbers = [Some(reconstruction), perceptual, None, None, None];
        let numbers = numbers.map(|number| number.map(Tensor::detach));
        Losses { shown: total.clone().detach(), total, numbers }
    }

    /// The losses of Stage A and of the discriminator for the pictures that the latents `decoded` give.
    ///
    /// Stage A's own loss and the discriminator's loss for it are differentiated one after the other, but only down to
    /// the pictures. The gradients there give the adaptive weight, and their weighted sum goes on through Stage A.
    fn adversarial_losses(
        &self,
        vqgan: &Vqgan,
        decoded: Tensor<4>,
        pictures: Tensor<4>,
        (discriminator, config): (&Discriminator, &AdversarialConfig),
    ) -> Losses {
        let (made, features) = vqgan.decode_with_features(decoded);
        let leaf = || Tensor::from_inner(made.clone().inner()).require_grad();
        let gradient = |leaf: &Tensor<4>, loss: &Tensor<1>| {
            leaf.grad(&loss.backward()).expect("the loss depends on the pictures")
        };
        let own_leaf = leaf();
        let own = self.losses(own_leaf.clone(), pictures.clone());
        let own_gradient = gradient(&own_leaf, &own.total);

        let leaf = leaf();
        let seeming = -discriminator.clone().no_grad().forward(leaf.clone()).mean();
        let seeming_gradient = gradient(&leaf, &seeming);

        let norm = |gradient: &Tensor<4>| {
            let gradient = vqgan.last_layer_gradient(features.clone().inner(), gradient.clone());
            gradient.square().sum().sqrt()
        };
        let weight = if config.adaptive {
            let ratio = norm(&own_gradient) / (norm(&seeming_gradient) + NORM_EPSILON);
            ratio.clamp(0.0, MAX_ADAPTIVE_WEIGHT) * config.weight
        } else {
            Tensor::ones([1], &own_gradient.device()) * config.weight
        };
        let pull = own_gradient + seeming_gradient * weight.clone().reshape([1, 1, 1, 1]);
        let verdict = discriminator.hinge_loss(pictures, made.clone().detach());
        let [reconstruction, perceptual, ..] = own.numbers;
        let numbers = [
            reconstruction,
            perceptual,
            Some(seeming.detach()),
            Some(Tensor::from_inner(weight)),
            Some(verdict.clone().detach()),
        ];
        Losses {
            total: (made * Tensor::from_inner(pull)).sum() + verdict,
            shown: own.shown,
            numbers,
        }
    }
}

/// The mean absolute error of the differences between neighbouring pixels, of the error `[B, C, H, W]` of
/// the pixels themselves.
fn edge_error(error: &Tensor<4>) -> Tensor<1> {
    let [_, _, height, width] = error.dims();
    let part = |axis, start, length| error.clone().narrow(axis, start, length);
    let across = part(3, 1, width - 1) - part(3, 0, width - 1);
    let down = part(2, 1, height - 1) - part(2, 0, height - 1);
    across.abs().mean() + down.abs().mean()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn::module::{ModuleVisitor, Param};

    use super::*;
    use crate::corpus::Shapes;
    use crate::lesson::Lesson;
    use crate::recipe::Recipe;
    use crate::tokenizer::shapes_tokenizer;
    use crate::values::collect_gradients;
    use wuerstchen::relative_error_above;

    /// Both ways add in another order, and of some gradients large parts cancel out: f32 rounds to 2e-4 of them.
    const GRADIENTS_BOUND: f64 = 1e-3;

    /// The gradients of a share, against those of one graph of both losses with the adaptive weight as a constant,
    /// which is the ratio of the gradients' norms at the last layer.
    #[test]
    fn adversarial_gradients_are_those_of_the_weighted_sum() {
        let mut config =
            TrainConfig::from_toml(include_str!("../../../../configs/smoke.toml")).unwrap();
        config.a.quantized = 0.0;
        let adversarial = AdversarialConfig { channels: 4, layers: 2, ..Default::default() };
        config.a.adversarial = Some(adversarial);
        let recipe = Recipe::new(config, shapes_tokenizer()).unwrap();
        let (config, device) = (&recipe.config, Device::flex().autodiff());
        let shapes = Shapes { seed: 1, lesson: Lesson::default() };
        let corpus = recipe.corpus(Arc::new(shapes)).unwrap();
        let stage = StageA::new(config, corpus, device.clone());
        let model = recipe.init_vqgan(&device);
        let discriminator = model.discriminator.clone().unwrap();
        let size = config.a.updates.batch_size;
        let batch = stage.batch(&mut Philox::new(1, 0), 0..size as u64, &(0..size)).unwrap();

        let loss = stage.loss(&model, &batch, 0..size);
        let found = collect_gradients(&model, &loss.total.backward());
        let told = loss.told.ask();
        let measures = stage.measures(&told, 0);
        let measure =
            |name| measures.iter().find(|(found, _)| *found == name).map(|(_, value)| *value);
        let weight = measure("adversarial_weight").unwrap();

        let pictures = batch.pictures.tensor(&(0..size), &device);
        // Each loss has a graph of its own.
        let parts = || {
            let latents = model.vqgan.encode(pictures.clone(), Statistics::Batch);
            let codes = model.vqgan.quantize(latents.clone()).loss;
            let made = model.vqgan.decode(latents);
            let own = stage.losses(made.clone(), pictures.clone()).total;
            let seeming = -discriminator.clone().no_grad().forward(made.clone()).mean();
            (own, seeming, codes, made)
        };
        let (own, seeming, codes, made) = parts();
        let verdict = discriminator.hinge_loss(pictures.clone(), made.detach());
        let total = own + seeming * weight + codes + verdict;
        let expected = collect_gradients(&model, &total.backward());
        assert_eq!(found.len(), expected.len());
        let floats = |x: &Tensor<1>| x.clone().into_data().try_to_vec::<f32>().unwrap();
        // In the gradient of the last bias both halves of the hinge loss cancel out, but for rounding.
        for (id, expected) in &expected {
            let error = relative_error_above(1e-3, &floats(&found[id]), &floats(expected));
            assert!(error < GRADIENTS_BOUND, "{error}");
        }

        // The last matrix is the second but last parameter of Stage A: its bias follows.
        let norm = |loss: Tensor<1>| {
            struct Last<'a>(&'a burn::tensor::Gradients, f64);
            impl ModuleVisitor for Last<'_> {
                fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                    if D == 2
                        && let Some(gradient) = param.val().grad(self.0)
                    {
                        self.1 = gradient.square().sum().sqrt().into_scalar::<f32>().into();
                    }
                }
            }
            let gradients = loss.backward();
            let mut last = Last(&gradients, 0.0);
            model.vqgan.visit(&mut last);
            last.1
        };
        let ratio = norm(parts().0) / (norm(parts().1) + NORM_EPSILON);
        assert!((weight / (0.8 * ratio) - 1.0).abs() < 1e-4, "{weight}, {ratio}");
    }
}
