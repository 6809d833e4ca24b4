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

/// Whether a scale guides at all; the authors leave the second prediction out up to 1.
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
}
