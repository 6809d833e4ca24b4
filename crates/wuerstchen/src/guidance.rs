//! Classifier-free guidance.

use burn::prelude::*;

/// Moves the unconditional prediction towards the conditional one: `u + s·(c − u)`.
///
/// Source: Ho and Salimans, "Classifier-free diffusion guidance" (arXiv 2207.12598), eq. 6, whose
/// `1 + w` is `scale`.
///
/// # Shapes
///
/// - conditional, unconditional, output: `[B, C, H, W]`
pub fn guide(conditional: Tensor<4>, unconditional: Tensor<4>, scale: f64) -> Tensor<4> {
    unconditional.clone() + (conditional - unconditional) * scale
}

/// Moves the spread of a guided prediction back towards that of the conditional one by the share `rho` in
/// `[0, 1]`, for every picture on its own: `rho·std(c)/std(p)·p + (1 − rho)·p`. Strong guidance widens the spread,
/// which burns colours out.
///
/// Source: Lin et al., "Common diffusion noise schedules and sample steps are flawed" (arXiv 2305.08891),
/// section 3.4; `GDF.sample` in `gdf/__init__.py` of Stability-AI/StableCascade, which takes the spread of
/// a whole batch.
///
/// # Shapes
///
/// - prediction, conditional, output: `[B, C, H, W]`
pub fn rescale(prediction: Tensor<4>, conditional: Tensor<4>, rho: f64) -> Tensor<4> {
    let spread = |x: Tensor<4>| {
        let [batch, ..] = x.dims();
        let x: Tensor<2> = x.reshape([batch as i32, -1]);
        let [_, count] = x.dims();
        let mean = x.clone().mean_dim(1);
        // A single value has no spread to bring back.
        let variance = (x - mean).square().sum_dim(1) / (count.max(2) - 1) as f64;
        variance.sqrt().reshape([batch, 1, 1, 1])
    };
    let ratio = spread(conditional) / (spread(prediction.clone()) + SMALLEST_SPREAD);
    prediction * (ratio * rho + (1.0 - rho))
}

/// Keeps the ratio of spreads finite.
const SMALLEST_SPREAD: f64 = 1e-9;

/// Whether a scale guides at all; the authors make no unconditional prediction for scales up to 1.
pub fn is_guided(scale: f64) -> bool {
    scale > 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From 1 towards 2, three times the distance: 4.
    #[test]
    fn extrapolates() {
        let full = |value: f32| Tensor::<4>::full([1, 1, 1, 1], value, &Device::flex());
        let expected = full(4.0).into_data();
        guide(full(2.0), full(1.0), 3.0).into_data().assert_eq(&expected, true);
    }

    /// A spread twice as wide is brought back wholly or by half, for every picture on its own.
    #[test]
    fn rescaling_brings_the_spread_back() {
        let device = &Device::flex();
        let conditional = Tensor::<4>::from_data([[[[1.0, -1.0]]], [[[3.0, -3.0]]]], device);
        let prediction = conditional.clone() * 2.0;
        let rescaled = |rho| rescale(prediction.clone(), conditional.clone(), rho).into_data();
        let tolerance = burn::tensor::Tolerance::absolute(1e-5);
        let expected = conditional.clone().into_data();
        rescaled(1.0).assert_approx_eq::<f32>(&expected, tolerance);
        let expected = (conditional.clone() * 1.5).into_data();
        rescaled(0.5).assert_approx_eq::<f32>(&expected, tolerance);
    }
}
