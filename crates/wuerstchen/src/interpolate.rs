//! Interpolation between two embeddings.

use burn::prelude::*;

/// Linear interpolation, `a·(1 − t) + b·t`: exactly `a` at 0 and `b` at 1.
///
/// This suits text embeddings, whose tokens lie near each other.
///
/// # Shapes
///
/// - a, b, output: any, the same
pub fn lerp<const D: usize>(a: Tensor<D>, b: Tensor<D>, t: f32) -> Tensor<D> {
    a * (1.0 - t) + b * t
}

/// Spherical interpolation, `sin((1 − t)·ω)/sin(ω)·a + sin(t·ω)/sin(ω)·b` with the angle `ω` between `a`
/// and `b`. Where the great circle is undefined, the interpolation is linear.
///
/// This suits image embeddings, which are spread like noise: the linear mean of two unrelated embeddings
/// has only `√½` of their spread, and its picture is washed out.
///
/// Source: Shoemake, "Animating rotation with quaternion curves" (SIGGRAPH 1985).
pub fn slerp(a: &[f32], b: &[f32], t: f32) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    // The cosine is NaN if one of the embeddings is zero.
    if cosine.is_nan() || cosine.abs() > PARALLEL {
        return combine(a, b, [1.0 - t, t]);
    }
    let (angle, t) = (libm::acos(cosine), f64::from(t));
    let share = |t: f64| (libm::sin(t * angle) / libm::sin(angle)) as f32;
    combine(a, b, [share(1.0 - t), share(t)])
}

/// Above this cosine the great circle is as good as a straight line, or undefined.
const PARALLEL: f64 = 0.9999;

fn combine(a: &[f32], b: &[f32], [of_a, of_b]: [f32; 2]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a * of_a + b * of_b).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Philox;

    #[test]
    fn the_ends_are_the_ends() {
        let [a, b] = [0, 1].map(|stream| Philox::new(1, stream).normal(64));
        assert_eq!((slerp(&a, &b, 0.0), slerp(&a, &b, 1.0)), (a.clone(), b.clone()));
        let tensor = |values: &[f32]| Tensor::<1>::from_data(values, &Device::flex());
        let at = |t| lerp(tensor(&a), tensor(&b), t).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!((at(0.0), at(1.0)), (a.clone(), b.clone()));
    }

    /// From `(1, 0)` to `(0, 1)`: half way on the circle lies `(√½, √½)`.
    #[test]
    fn the_circle_keeps_the_length() {
        let half = std::f32::consts::FRAC_1_SQRT_2;
        let found = slerp(&[1.0, 0.0], &[0.0, 1.0], 0.5);
        assert!(found.iter().all(|value| (value - half).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn without_a_circle_the_way_is_straight() {
        assert_eq!(slerp(&[1.0, 2.0], &[2.0, 4.0], 0.5), [1.5, 3.0]);
        assert_eq!(slerp(&[1.0, 2.0], &[0.0, 0.0], 0.5), [0.5, 1.0]);
        assert_eq!(slerp(&[1.0, 2.0], &[-1.0, -2.0], 0.25), [0.5, 1.0]);
    }
}
