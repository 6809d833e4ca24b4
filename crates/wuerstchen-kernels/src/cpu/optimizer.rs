//! An optimizer's update in one pass over the values, with the bits of its composed twins.

#[cfg(feature = "parallel")]
use rayon::prelude::*;

use super::values::{Values, block, for_each_block};
use super::*;

/// As [`crate::weighted_sum()`].
pub(crate) fn weighted_sum(x: Tensor<1>, a: f32, y: Tensor<1>, b: f32) -> Tensor<1> {
    let (x, y) = (x.into_dispatch(), y.into_dispatch());
    Tensor::from_dispatch(Dispatch::cpu_weighted_sum(x, y, a, b))
}

/// As [`crate::adamw()`].
pub(crate) fn adamw(
    weight: Tensor<1>,
    [first, second]: [Tensor<1>; 2],
    gradient: Tensor<1>,
    settings: [f32; 9],
) -> (Tensor<1>, [Tensor<1>; 2]) {
    let (weight, gradient) = (weight.into_dispatch(), gradient.into_dispatch());
    let (first, second) = (first.into_dispatch(), second.into_dispatch());
    let (weight, first, second) = Dispatch::cpu_adamw(weight, first, second, gradient, settings);
    (Tensor::from_dispatch(weight), [first, second].map(Tensor::from_dispatch))
}

#[backend_extension(Flex)]
pub(crate) trait CpuOptimizer: Backend {
    fn cpu_weighted_sum(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        a: f32,
        b: f32,
    ) -> FloatTensor<Self>;

    fn cpu_adamw(
        weight: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        settings: [f32; 9],
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl CpuOptimizer for Flex {
    fn cpu_weighted_sum(x: FlexTensor, y: FlexTensor, a: f32, b: f32) -> FlexTensor {
        let (mut x, y) = (Values::of(x), Values::of(y));
        let (size, y) = (block(1), y.as_slice());
        for_each_block(
            x.as_mut_slice(),
            size,
            #[inline(always)]
            |i, x| {
                for (x, y) in x.iter_mut().zip(&y[i * size..]) {
                    *x = *x * a + y * b;
                }
            },
        );
        x.into_tensor()
    }

    fn cpu_adamw(
        weight: FlexTensor,
        first: FlexTensor,
        second: FlexTensor,
        gradient: FlexTensor,
        settings: [f32; 9],
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [mut weight, mut first, mut second] = [weight, first, second].map(Values::of);
        let (gradient, size) = (Values::of(gradient), block(1));
        #[cfg(not(feature = "parallel"))]
        let parts = |values| <[f32]>::chunks_mut(values, size);
        #[cfg(feature = "parallel")]
        let parts = |values| <[f32] as ParallelSliceMut<f32>>::par_chunks_mut(values, size);
        let moments = parts(first.as_mut_slice()).zip(parts(second.as_mut_slice()));
        let blocks = parts(weight.as_mut_slice()).zip(moments).enumerate();
        blocks.for_each(|(i, (weight, (first, second)))| {
            let gradient = &gradient.as_slice()[i * size..][..weight.len()];
            pulp::Arch::new().dispatch(
                #[inline(always)]
                || update(weight, first, second, gradient, settings),
            );
        });
        (weight.into_tensor(), first.into_tensor(), second.into_tensor())
    }
}

/// Does the operations of the twin, in the same order, for every value.
#[inline(always)]
fn update(
    weight: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    gradient: &[f32],
    settings: [f32; 9],
) {
    let [clip, beta1, rest1, beta2, rest2, second_root, epsilon, rate, shrink] = settings;
    let moments = first.iter_mut().zip(second);
    for ((weight, (first, second)), gradient) in weight.iter_mut().zip(moments).zip(gradient) {
        let gradient = gradient * clip;
        *first = *first * beta1 + gradient * rest1;
        *second = *second * beta2 + gradient * gradient * rest2;
        let root = second.sqrt() / second_root + epsilon;
        *weight = *weight * shrink - *first / root * rate;
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;
    use crate::{AdamW, reference};

    /// Two more than one block, and no multiple of a vector's width.
    const ODD: usize = 2 * (1 << 14) + 19;

    fn random() -> Tensor<1> {
        Tensor::random([ODD], Distribution::Normal(0.3, 1.0), &Device::flex())
    }

    /// Neither changes what others have.
    #[test]
    fn updates_have_the_bits_of_their_twins() {
        let (x, y) = (random(), random());
        let before = x.to_data();
        let ours = crate::weighted_sum(x.clone(), 0.9, y.clone(), -0.3).into_data();
        ours.assert_eq(&reference::weighted_sum(x.clone(), 0.9, y, -0.3).into_data(), true);
        x.to_data().assert_eq(&before, true);

        let settings = AdamW {
            clip: 0.7,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            learning_rate: 1e-3,
            weight_decay: 0.01,
            step: 3,
        };
        let on_device = settings.settings(&Device::flex());
        let (weight, gradient) = (random(), random());
        let moments = [random(), random().square()];
        let (ours, our_moments) = crate::adamw(
            weight.clone(),
            moments.clone(),
            gradient.clone(),
            (&settings, &on_device),
        );
        let before = weight.to_data();
        let (expected, expected_moments) =
            reference::adamw(weight.clone(), moments, gradient, &settings);
        weight.to_data().assert_eq(&before, true);
        ours.into_data().assert_eq(&expected.into_data(), true);
        for (ours, expected) in our_moments.into_iter().zip(expected_moments) {
            ours.into_data().assert_eq(&expected.into_data(), true);
        }
    }
}
