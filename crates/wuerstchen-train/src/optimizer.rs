//! AdamW, Muon or Adafactor, global gradient clipping and the exponential moving average of the weights.

mod adafactor;
pub(crate) mod moments;
mod muon;

use std::collections::HashSet;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::prelude::*;
use serde::{Deserialize, Serialize};
use wuerstchen::ConfigError;
use wuerstchen::config::below_one;
use wuerstchen::kernels::{AdamW, adamw, weighted_sum};

use crate::limits::{learning_rate, not_negative, positive, share};
use crate::values::{Values, global_norm, values};

/// How the weights are updated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// AdamW: scales the change of every weight by its own second moment.
    #[default]
    AdamW,
    /// Muon: moves every direction of a linear layer's matrix by the same length, and everything else by AdamW. It
    /// needs fewer updates than AdamW at the same learning rate, but some matrix products for each update.
    Muon,
    /// Adafactor: scales the change of every weight by an estimate of its second moment, for which a matrix keeps one
    /// number for each row and each column. It keeps no first moment, so that its state takes next to no memory.
    Adafactor,
}

impl Method {
    /// Its name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::AdamW => "adamw",
            Self::Muon => "muon",
            Self::Adafactor => "adafactor",
        }
    }

    /// How many moments it keeps for a parameter of a network without embeddings.
    pub(crate) fn moments(self, shape: &[usize]) -> usize {
        let all = shape.iter().product();
        match (self, shape) {
            (Self::Adafactor, _) => adafactor::moments(shape),
            (Self::Muon, [_, _]) => all,
            (Self::Muon | Self::AdamW, _) => 2 * all,
        }
    }
}

/// Settings of the optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// How the weights are updated.
    pub method: Method,
    /// Peak learning rate, at most 1.
    pub learning_rate: f64,
    /// Decay of AdamW's first moment, `[0, 1)`.
    pub beta1: f64,
    /// Decay of Muon's momentum, `[0, 1)`.
    pub momentum: f64,
    /// Decay of AdamW's second moment, `[0, 1)`.
    pub beta2: f64,
    /// Added to the root of AdamW's second moment; above 0.
    pub epsilon: f64,
    /// Every update takes this share, times the learning rate, of every weight away.
    pub weight_decay: f64,
    /// Updates over which the learning rate rises from 0.
    pub warmup_steps: u64,
    /// Share of the updates, at the end, over which the learning rate falls to 0 along a cosine, `[0, 1]`; 0 keeps it
    /// constant.
    pub cooldown: f64,
    /// Largest global L2 norm of the gradients; above 0.
    pub max_grad_norm: f64,
    /// An update is skipped if the global L2 norm of its gradients, before clipping, is above this. If left out, only
    /// updates whose gradients are not finite are skipped.
    ///
    /// After clipping, a batch that is far from all others still counts as much as they do, and Adam makes it count
    /// more where gradients have been small: one such batch can spoil a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_grad_norm: Option<f64>,
    /// Decay of the moving average of the weights at every step of it, `[0, 1)`.
    pub ema_beta: f64,
    /// Updates between two steps of the moving average.
    pub ema_every: u64,
    /// Updates before which the moving average is a copy of the weights.
    pub ema_start: u64,
}

impl Default for OptimizerConfig {
    /// The authors' settings for Stage C (`train_stage_C.py` of dome272/Wuerstchen).
    fn default() -> Self {
        Self {
            method: Method::AdamW,
            learning_rate: 1e-4,
            beta1: 0.9,
            momentum: 0.95,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            warmup_steps: 10_000,
            cooldown: 0.0,
            max_grad_norm: 1.0,
            skip_grad_norm: None,
            ema_beta: 0.9,
            ema_every: 100,
            ema_start: 5000,
        }
    }
}

impl OptimizerConfig {
    /// Checks every value; `part` names the stage.
    pub(crate) fn validate(&self, part: &'static str) -> Result<(), ConfigError> {
        learning_rate(part, "optimizer.learning_rate", self.learning_rate)?;
        positive(part, "optimizer.epsilon", self.epsilon)?;
        positive(part, "optimizer.max_grad_norm", self.max_grad_norm)?;
        self.skip_grad_norm
            .map_or(Ok(()), |norm| positive(part, "optimizer.skip_grad_norm", norm))?;
        not_negative(part, "optimizer.weight_decay", self.weight_decay)?;
        if self.weight_decay * self.learning_rate > 1.0 {
            let expected =
                "at most 1 / learning_rate: more than all of a weight cannot decay in a step";
            return Err(ConfigError::new(
                part,
                "optimizer.weight_decay",
                expected,
                self.weight_decay,
            ));
        }
        share(part, "optimizer.cooldown", self.cooldown)?;
        for (field, decay) in [
            ("optimizer.beta1", self.beta1),
            ("optimizer.beta2", self.beta2),
            ("optimizer.momentum", self.momentum),
            ("optimizer.ema_beta", self.ema_beta),
        ] {
            below_one(part, field, decay)?;
        }
        self.validate_unused(part)?;
        match self.ema_every {
            0 => Err(ConfigError::new(part, "optimizer.ema_every", "at least 1", 0)),
            _ => Ok(()),
        }
    }

    /// Refuses values that the method would not use.
    fn validate_unused(&self, part: &'static str) -> Result<(), ConfigError> {
        let unused = Self::default();
        if self.method == Method::AdamW && self.momentum != unused.momentum {
            let expected = "left out with adamw, which has beta1: momentum is Muon's";
            return Err(ConfigError::new(part, "optimizer.momentum", expected, self.momentum));
        }
        if self.method != Method::Adafactor {
            return Ok(());
        }
        for (field, value, unused) in [
            ("optimizer.beta1", self.beta1, unused.beta1),
            ("optimizer.beta2", self.beta2, unused.beta2),
            ("optimizer.momentum", self.momentum, unused.momentum),
            ("optimizer.epsilon", self.epsilon, unused.epsilon),
        ] {
            if value != unused {
                let expected = "left out with adafactor, which has values of its own";
                return Err(ConfigError::new(part, field, expected, value));
            }
        }
        Ok(())
    }

    /// Whether the moving average can differ from the weights; else none is kept.
    pub(crate) fn keeps_average(&self) -> bool {
        self.ema_beta > 0.0 || self.ema_every > 1
    }

    /// The learning rate of step `step` (from 0) of `steps`.
    pub fn learning_rate_at(&self, step: u64, steps: u64) -> f64 {
        let warmup = ((step + 1) as f64 / self.warmup_steps.max(1) as f64).min(1.0);
        let cooldown_steps = self.cooldown * steps as f64;
        let left = steps.saturating_sub(step) as f64;
        let cooldown = if left < cooldown_steps {
            0.5 - 0.5 * (std::f64::consts::PI * left / cooldown_steps).cos()
        } else {
            1.0
        };
        self.learning_rate * warmup * cooldown
    }
}

/// AdamW, Muon for matrices, or Adafactor, with clipping and a moving average of the weights.
///
/// Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (arXiv 1711.05101),
/// Algorithm 2; `torch.optim.AdamW`.
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// First moments of the gradients; Muon's momentum.
    pub first: Values,
    /// Second moments of the gradients; Adafactor's of a matrix are the means of its rows, then of its columns.
    pub second: Values,
    /// Moving average of the weights; empty if it would always be the weights themselves.
    pub ema: Values,
    /// The parameters that the last update changed.
    changed: HashSet<ParamId>,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Whether the weights changed: not if the gradients were not finite, or above
    /// [`OptimizerConfig::skip_grad_norm`].
    pub applied: bool,
}

impl Optimizer {
    /// Starts with moments of zero and the moving average at the weights.
    pub fn new<M: Module>(config: OptimizerConfig, module: &M) -> Self {
        // Reading the values draws weights that are initialised lazily, before a clone would draw others.
        let weights = values(module);
        let ema = if config.keeps_average() { weights } else { Values::new() };
        let (first, second) = (Values::new(), Values::new());
        Self { config, first, second, ema, changed: HashSet::new() }
    }

    /// Starts with moments of zero, and keeps no moving average.
    pub(crate) fn without_average(config: OptimizerConfig) -> Self {
        let [first, second, ema] = std::array::from_fn(|_| Values::new());
        Self { config, first, second, ema, changed: HashSet::new() }
    }

    /// Updates the weights, but not their moving average, with the gradients of a loss (see
    /// [`collect_gradients`](crate::values::collect_gradients));
    /// `step` counts from 0.
    pub fn step<M: Module>(
        &mut self,
        module: M,
        gradients: Values,
        step: u64,
        learning_rate: f64,
    ) -> (M, StepReport) {
        let norm = global_norm(&module, &gradients).into_scalar::<f32>();
        self.step_of_norm(module, (gradients, norm.into()), step, learning_rate)
    }

    /// As [`Self::step`], with gradients whose global L2 norm is known.
    pub(crate) fn step_of_norm<M: Module>(
        &mut self,
        module: M,
        (mut gradients, grad_norm): (Values, f64),
        step: u64,
        learning_rate: f64,
    ) -> (M, StepReport) {
        let is_outlier = self.config.skip_grad_norm.is_some_and(|norm| grad_norm > norm);
        if !grad_norm.is_finite() || is_outlier {
            return (module, StepReport { grad_norm, applied: false });
        }
        self.changed = gradients.keys().copied().collect();
        // `clip_grad_norm_` of PyTorch.
        let clip = (self.config.max_grad_norm / (grad_norm + 1e-6)).min(1.0);
        let orthogonal = match self.config.method {
            Method::AdamW | Method::Adafactor => Values::new(),
            Method::Muon => {
                muon::changes(&module, &mut gradients, &mut self.first, self.config.momentum)
            }
        };
        let adamw = AdamW {
            clip,
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            epsilon: self.config.epsilon,
            learning_rate,
            weight_decay: self.config.weight_decay,
            step: step + 1,
        };
        let module = module.map(&mut Update {
            config: &self.config,
            gradients,
            orthogonal,
            adamw,
            settings: None,
            first: &mut self.first,
            second: &mut self.second,
        });
        (module, StepReport { grad_norm, applied: true })
    }

    /// Moves the moving average after the update number `step`, from 0.
    pub fn average<M: Module>(&mut self, module: &M, step: u64) {
        if !self.config.keeps_average() || !step.is_multiple_of(self.config.ema_every.max(1)) {
            return;
        }
        let beta = if step < self.config.ema_start { 0.0 } else { self.config.ema_beta };
        for (id, value) in values(module) {
            let average = match self.ema.remove(&id) {
                Some(average) if beta > 0.0 && self.changed.contains(&id) => {
                    weighted_sum(average, beta, value, 1.0 - beta)
                }
                // The average of a value that stays must stay, too: the sum above would round it.
                Some(average) if beta > 0.0 => average.clone() + (value - average) * (1.0 - beta),
                _ => value,
            };
            self.ema.insert(id, average);
        }
    }
}

struct Update<'a> {
    config: &'a OptimizerConfig,
    /// Gradients for AdamW or Adafactor.
    gradients: Values,
    /// Changes by Muon, in learning rates.
    orthogonal: Values,
    adamw: AdamW,
    /// AdamW's settings on the device, once a parameter has needed them.
    settings: Option<Tensor<1>>,
    first: &'a mut Values,
    second: &'a mut Values,
}

impl Update<'_> {
    /// A parameter after AdamW's update.
    fn adamw(&mut self, id: ParamId, value: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
        let settings = self.settings.get_or_insert_with(|| self.adamw.settings(&gradient.device()));
        let [first, second] = [&mut *self.first, &mut *self.second]
            .map(|moments| moments.remove(&id).unwrap_or_else(|| gradient.zeros_like()));
        let (value, [first, second]) =
            adamw(value, [first, second], gradient, (&self.adamw, settings));
        self.first.insert(id, first);
        self.second.insert(id, second);
        value
    }

    /// A parameter less the share that weight decay takes, and less a change given in learning rates.
    fn changed(&self, value: Tensor<1>, change: Tensor<1>) -> Tensor<1> {
        weighted_sum(value, self.adamw.shrink(), change, -self.adamw.learning_rate)
    }

    /// The number of learning rates that Adafactor subtracts from each value of a parameter.
    fn adafactor(&mut self, id: ParamId, gradient: Tensor<1>, shape: &[usize]) -> Tensor<1> {
        let AdamW { clip, step, .. } = self.adamw;
        let second = self.second.remove(&id);
        let (change, second) = adafactor::change(gradient * clip, shape, second, step);
        self.second.insert(id, second);
        change
    }
}

impl ModuleMapper for Update<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let id = param.id;
        let change = self.orthogonal.remove(&id);
        let gradient = self.gradients.remove(&id);
        if change.is_none() && gradient.is_none() {
            return param;
        }
        param.map(|value| {
            let shape = value.dims();
            let value = value.inner().flatten::<1>(0, D - 1);
            let updated = match (change, gradient) {
                (None, Some(gradient)) if self.config.method != Method::Adafactor => {
                    self.adamw(id, value, gradient)
                }
                (None, Some(gradient)) => {
                    let change = self.adafactor(id, gradient, &shape);
                    self.changed(value, change)
                }
                (Some(change), _) => self.changed(value, change),
                (None, None) => value,
            };
            Tensor::from_inner(updated.reshape(shape)).require_grad()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::collect_gradients;

    #[test]
    fn learning_rate_rises_stays_and_falls() {
        let config = OptimizerConfig {
            learning_rate: 1.0,
            warmup_steps: 10,
            cooldown: 0.2,
            ..Default::default()
        };
        let rate = |step| (config.learning_rate_at(step, 100) * 1e3).round() / 1e3;
        assert_eq!([0, 4, 9, 50, 80, 90, 100].map(rate), [0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0]);
    }

    /// The first step of Adam moves every weight by the learning rate against its gradient's sign.
    #[test]
    fn first_step_has_the_length_of_the_learning_rate() {
        let device = Device::flex().autodiff();
        let layer = burn::nn::LinearConfig::new(2, 1).with_bias(false).init(&device);
        let before = layer.weight.val().into_data();
        let x = Tensor::<2>::from_data([[1.0, -2.0]], &device);
        let gradients = collect_gradients(&layer, &layer.forward(x).sum().backward());
        let config = OptimizerConfig { weight_decay: 0.0, ..Default::default() };
        let mut optimizer = Optimizer::new(config, &layer);
        let (layer, report) = optimizer.step(layer, gradients, 0, 0.5);
        assert!((report.grad_norm - 5f64.sqrt()).abs() < 1e-6);
        let after = layer.weight.val().into_data();
        let difference =
            |i: usize| after.as_slice::<f32>().unwrap()[i] - before.as_slice::<f32>().unwrap()[i];
        assert!((difference(0) + 0.5).abs() < 1e-5 && (difference(1) - 0.5).abs() < 1e-5);
    }

    /// Gradients of norm √5: a limit below that leaves weights, moments and average as they were, one above not.
    #[test]
    fn gradients_above_the_limit_change_nothing() {
        let device = Device::flex().autodiff();
        for (limit, applied) in [(2.2, false), (2.3, true)] {
            let layer = burn::nn::LinearConfig::new(2, 1).with_bias(false).init(&device);
            let before = layer.weight.val().into_data();
            let x = Tensor::<2>::from_data([[1.0, -2.0]], &device);
            let gradients = collect_gradients(&layer, &layer.forward(x).sum().backward());
            let config = OptimizerConfig { skip_grad_norm: Some(limit), ..Default::default() };
            let mut optimizer = Optimizer::new(config, &layer);
            let (layer, report) = optimizer.step(layer, gradients, 0, 0.5);
            assert_eq!(report.applied, applied);
            assert_eq!(optimizer.first.is_empty(), !applied);
            assert_eq!(layer.weight.val().into_data() == before, !applied);
        }
    }
}
