//! Stage C's prediction with features that the backward pass computes again, one group of blocks after the other.
//!
//! The forward pass keeps the input of every group. The backward pass goes from the last group to the first, runs each
//! again with autodiff, and takes its gradients. So memory holds the features of one group instead of all, and every
//! group is computed twice.
//!
//! Source: Chen et al., "Training deep nets with sublinear memory cost" (arXiv 1604.06174).

use burn::prelude::*;
use burn::tensor::Gradients;
use wuerstchen::{GroupConditions, Prior};

/// Computes the gradients of what comes before the graph of a loss. It takes the gradients of that graph, and calls the
/// closure with those of one part after the other. A parameter's gradient is the sum of all that it has there.
pub type Earlier = Box<dyn FnOnce(Gradients, &mut dyn FnMut(&Gradients))>;

/// The inputs of Stage C's prediction.
pub(crate) struct Inputs<'a> {
    /// Noised latents, `[B, c_in, H, W]`.
    pub(crate) x: Tensor<4>,
    /// `B` diffusion times in `[0, 1]`.
    pub(crate) times: &'a [f32],
    /// The text embedding, `[B, T, c_cond]`.
    pub(crate) text: Tensor<3>,
}

/// The noise that Stage C predicts.
pub(crate) struct Prediction {
    /// The predicted noise, `[B, c_in, H, W]`.
    pub(crate) predicted: Tensor<4>,
    /// The text for further losses, `[B, T, c_cond]`.
    pub(crate) text: Tensor<3>,
    /// The gradients of the computation before the graph of the prediction; `None` if there is none.
    pub(crate) earlier: Option<Earlier>,
}

impl Prediction {
    /// Predicts the noise. All features stay in memory for the backward pass, unless there is a `frozen` prior: then
    /// the backward pass computes them again. `frozen` is the same prior with weights that require no gradients.
    pub(crate) fn new(prior: &Prior, frozen: Option<Prior>, inputs: Inputs<'_>) -> Self {
        match frozen {
            Some(frozen) => Self::recomputed(prior.clone(), &frozen, inputs),
            None => {
                let Inputs { x, times, text } = inputs;
                let predicted = prior.forward(x, times, text.clone());
                Self { predicted, text, earlier: None }
            }
        }
    }

    /// Dropout draws its masks once, in the order of [`Prior::forward`], and keeps them.
    fn recomputed(prior: Prior, frozen: &Prior, inputs: Inputs<'_>) -> Self {
        let Inputs { x, times, text } = inputs;
        let start = prior.project(x.clone());
        let embedded = prior.activate_text(text.clone());
        let times = prior.embed_times(times, &x.device());
        let conditions =
            GroupConditions { times, text: embedded.clone().detach(), dropout_mask: None };
        let mut h = start.clone().detach();
        let mut kept = Vec::new();
        for number in 0..frozen.groups() {
            let mask = frozen.draw_mask(number, &h);
            let conditions = GroupConditions { dropout_mask: mask.clone(), ..conditions.clone() };
            let output = frozen.group(number, h.clone(), conditions);
            kept.push((h, mask));
            h = output;
        }
        let end = h.require_grad();
        let predicted = prior.predict(x, end.clone());
        // A graph has only one backward pass, so further losses see the text as the start of a graph of their own.
        let seen = text.clone().detach().require_grad();
        let groups = Groups { prior, conditions, kept, needs_text: embedded.is_tracked() };
        let before = Before { start, embedded, text, seen: seen.clone() };
        let earlier = move |mut graph: Gradients, take: &mut dyn FnMut(&Gradients)| {
            let gradient = end.grad_remove(&mut graph).expect("the loss is one of the prediction");
            let of_seen = before.seen.grad_remove(&mut graph);
            drop(graph);
            let (of_start, of_embedded) = groups.backward(gradient, take);
            before.backward(of_start, of_embedded, of_seen, take);
        };
        Self { predicted, text: seen, earlier: Some(Box::new(earlier)) }
    }
}

/// The groups of blocks.
struct Groups {
    prior: Prior,
    /// What every group takes, without a dropout mask.
    conditions: GroupConditions,
    /// Every group's input and the mask of its dropout.
    kept: Vec<(Tensor<4>, Option<Tensor<4, Bool>>)>,
    /// Whether anything before the groups needs the gradient of the text.
    needs_text: bool,
}

impl Groups {
    /// The gradients of the features before the first group and of the embedded text, from the gradient of the features
    /// after the last group.
    fn backward(
        self,
        mut gradient: Tensor<4>,
        take: &mut dyn FnMut(&Gradients),
    ) -> (Tensor<4>, Option<Tensor<3>>) {
        let mut of_text: Option<Tensor<3>> = None;
        for (number, (h, mask)) in self.kept.into_iter().enumerate().rev() {
            let h = h.require_grad();
            let text = self.conditions.text.clone();
            let text = if self.needs_text { text.require_grad() } else { text };
            let times = self.conditions.times.clone();
            let conditions = GroupConditions { times, text: text.clone(), dropout_mask: mask };
            let output = self.prior.group(number, h.clone(), conditions);
            let mut graph = product(output, gradient).backward();
            gradient = h.grad_remove(&mut graph).expect("every group passes its features on");
            if let Some(more) = text.grad_remove(&mut graph) {
                of_text = Some(match of_text {
                    Some(sum) => sum + more,
                    None => more,
                });
            }
            take(&graph);
        }
        (gradient, of_text)
    }
}

/// The computation before the groups, with its graph.
struct Before {
    /// The projected latents.
    start: Tensor<4>,
    embedded: Tensor<3>,
    text: Tensor<3>,
    /// The text as further losses see it.
    seen: Tensor<3>,
}

impl Before {
    fn backward(
        self,
        of_start: Tensor<4>,
        of_embedded: Option<Tensor<3>>,
        of_seen: Option<Tensor<3>>,
        take: &mut dyn FnMut(&Gradients),
    ) {
        let texts = [(self.embedded, of_embedded), (self.text, of_seen)];
        let texts = texts.into_iter().filter_map(|(text, gradient)| Some((text, gradient?)));
        let texts = texts.filter(|(text, _)| text.is_tracked());
        let start = self.start.is_tracked().then(|| product(self.start, of_start));
        let all = start.into_iter().chain(texts.map(|(text, gradient)| product(text, gradient)));
        // There is no gradient where only a part of the blocks is trained.
        if let Some(all) = all.reduce(|sum, more| sum + more) {
            take(&all.backward());
        }
    }
}

/// A number whose gradient with respect to `output` is the given one.
fn product<const D: usize>(output: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    (output * Tensor::from_inner(gradient)).sum()
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, Param};
    use wuerstchen::noise::Philox;
    use wuerstchen::{PartConfig, PriorConfig};

    use super::*;
    use crate::shares::Share;
    use crate::stages::Loss;
    use crate::tune::{LoraLayers, LowRank, Tuned, Whole};
    use crate::values::{Values, collect_gradients, values};

    /// The gradients of the trained weights `model` of the prior `tuned`.
    fn gradients<T: Tuned>(tuned: &T, model: &T::Model, recompute: bool) -> Values {
        let (device, mut rng) = (Device::flex().autodiff(), Philox::new(3, 0));
        let x = rng.normal_tensor([2, 2, 3, 2], &device);
        let text = rng.normal_tensor([1, 2, 4, 3], &device).squeeze_dim::<3>(0);
        let inputs = Inputs { x: x.clone(), times: &[0.3, 0.9], text };
        let frozen = recompute.then(|| tuned.prior(&model.clone().no_grad()));
        let Prediction { predicted, earlier, .. } =
            Prediction::new(&tuned.prior(model), frozen, inputs);
        let loss = Loss { earlier, ..(predicted - x).square().mean().into() };
        Share::new(model, &Values::new(), loss, (1, 1.0)).gradients
    }

    /// Weights none of which is zero.
    fn drawn<M: Module>(module: M, device: &Device) -> M {
        struct Draw<'a>(Philox, &'a Device);
        impl burn::module::ModuleMapper for Draw<'_> {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let shape = param.dims();
                let values = self.0.normal(shape.iter().product());
                let values: Vec<f32> = values.into_iter().map(|x| 0.3 * x).collect();
                let value = Tensor::<D>::from_data(TensorData::new(values, shape), self.1);
                param.map(|_| value.require_grad())
            }
        }
        module.map(&mut Draw(Philox::new(2, 0), device))
    }

    fn prior(device: &Device) -> Prior {
        let config =
            PriorConfig { c_in: 2, c: 8, c_cond: 3, c_r: 4, depth: 3, nhead: 2, dropout: 0.0 };
        drawn(config.init(device), device)
    }

    /// The text's gradients of three groups are summed in another order.
    const ROUNDING: f64 = 1e-6;

    fn assert_equal<T: Tuned>(tuned: &T, model: &T::Model) {
        let [kept, recomputed] = [false, true].map(|recompute| gradients(tuned, model, recompute));
        assert_eq!(kept.len(), values(model).len());
        assert_eq!(kept.len(), recomputed.len());
        let numbers = |values: &Tensor<1>| values.clone().into_data().try_to_vec::<f32>().unwrap();
        let mut equal = 0;
        for (id, expected) in &kept {
            let [expected, found] = [expected, &recomputed[id]].map(numbers);
            let error = wuerstchen::relative_error(&found, &expected);
            assert!(error < ROUNDING, "{error}");
            assert!(expected.iter().any(|&number| number != 0.0));
            equal += usize::from(expected == found);
        }
        // All but those of the two layers that embed the text have the same bits.
        assert!(equal + 4 >= kept.len(), "{equal} of {}", kept.len());
    }

    #[test]
    fn all_weights_have_the_same_gradients() {
        assert_equal(&Whole { has_dropout: false }, &prior(&Device::flex().autodiff()));
    }

    /// LoRAs of all layers, and of some in the middle, so that nothing before the groups needs a gradient.
    #[test]
    fn a_lora_has_the_same_gradients() {
        let device = Device::flex().autodiff();
        let base = prior(&device);
        let layers = base.linear_layers();
        for part in ["", "blocks.5."] {
            let targets: Vec<_> = layers.iter().map(|(name, _)| name.starts_with(part)).collect();
            let sides = layers.iter().filter(|(name, _)| name.starts_with(part));
            let sides: Vec<_> = sides.map(|(_, sides)| *sides).collect();
            let model = drawn(LoraLayers::init(&sides, 2, 1, &device), &device);
            assert_equal(&LowRank::new(base.clone(), targets, 0.5), &model);
        }
    }

    /// Predictions have the same bits; the graph holds only the weights after the last group.
    #[test]
    fn predictions_are_equal() {
        let device = Device::flex().autodiff();
        let prior = prior(&device);
        let (x, text) = (Tensor::ones([1, 2, 2, 2], &device), Tensor::ones([1, 4, 3], &device));
        let inputs = || Inputs { x: x.clone(), times: &[0.5], text: text.clone() };
        let predict = |frozen| Prediction::new(&prior, frozen, inputs()).predicted;
        let kept = predict(None).into_data();
        let found = predict(Some(prior.clone().no_grad()));
        assert_eq!(found.clone().into_data(), kept);
        assert_eq!(collect_gradients(&prior, &found.sum().backward()).len(), 2);
    }
}
