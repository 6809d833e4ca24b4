//! AdamW's update of a parameter.

use burn::prelude::*;

/// The numbers of an update of AdamW that all parameters share.
///
/// Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (arXiv 1711.05101), Algorithm 2;
/// `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Factor of the gradients.
    pub clip: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The update takes this share, times the learning rate, of every weight away.
    pub weight_decay: f64,
    /// The update's number, from 1.
    pub step: u64,
}

impl AdamW {
    /// `1 − βᵗ`, the bias correction of a moment after `t` updates.
    fn correction(&self, beta: f64) -> f64 {
        1.0 - beta.powf(self.step as f64)
    }

    fn second_root(&self) -> f64 {
        self.correction(self.beta2).sqrt()
    }

    fn rate(&self) -> f64 {
        self.learning_rate / self.correction(self.beta1)
    }

    /// Share of a weight that weight decay leaves.
    pub fn shrink(&self) -> f64 {
        1.0 - self.learning_rate * self.weight_decay
    }

    /// The numbers that `shaders/adamw.wgsl` takes, made once for all parameters of an update.
    pub fn settings(&self, device: &Device) -> Tensor<1> {
        Tensor::from_data(self.numbers(), device)
    }

    fn numbers(&self) -> [f32; 9] {
        let Self { clip, beta1, beta2, epsilon, .. } = *self;
        [
            clip,
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            self.second_root(),
            epsilon,
            self.rate(),
            self.shrink(),
        ]
        .map(|number| number as f32)
    }
}

/// Updates a parameter and its first and second moment by its gradient, and returns all three. `settings` is
/// [`AdamW::settings`]. A tensor that nothing else holds changes in place.
///
/// # Shapes
///
/// - weight, moments, gradient, outputs: `[N]`
pub fn adamw(
    weight: Tensor<1>,
    moments: [Tensor<1>; 2],
    gradient: Tensor<1>,
    (adamw, settings): (&AdamW, &Tensor<1>),
) -> (Tensor<1>, [Tensor<1>; 2]) {
    #[cfg(feature = "gpu")]
    if crate::wgsl::runs_on(&weight.device()) {
        return crate::wgsl::adamw(weight, moments, gradient, settings.clone());
    }
    let _ = settings;
    #[cfg(feature = "cpu")]
    if crate::cpu::runs_on(&weight.device(), weight.dtype()) {
        return crate::cpu::adamw(weight, moments, gradient, adamw.numbers());
    }
    reference::adamw(weight, moments, gradient, adamw)
}

/// The same operation composed from burn tensors: the definition of the kernel.
pub mod reference {
    use super::*;

    /// Twin of `shaders/adamw.wgsl` and of the CPU kernel.
    pub fn adamw(
        weight: Tensor<1>,
        [first, second]: [Tensor<1>; 2],
        gradient: Tensor<1>,
        adamw: &AdamW,
    ) -> (Tensor<1>, [Tensor<1>; 2]) {
        let AdamW { clip, beta1, beta2, epsilon, .. } = *adamw;
        let gradient = gradient * clip;
        let first = first * beta1 + gradient.clone() * (1.0 - beta1);
        let second = second * beta2 + gradient.square() * (1.0 - beta2);
        let root = second.clone().sqrt() / adamw.second_root() + epsilon;
        let change = first.clone() / root * adamw.rate();
        (weight * adamw.shrink() - change, [first, second])
    }
}
