//! How far values are from those that they should be.

/// `‖found − expected‖ / ‖expected‖`; the largest number if a value is NaN or the lengths differ.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    relative_error_above(f64::MIN_POSITIVE, found, expected)
}

/// As [`relative_error`], but divides by at least `least`, so that the rounding of values that should be zero has a
/// scale.
pub fn relative_error_above(least: f64, found: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    let error = difference / norm(&mut expected.iter().map(|&v| f64::from(v))).max(least);
    if found.len() == expected.len() && error.is_finite() { error } else { f64::MAX }
}

/// Fails unless tensors have one shape and are close. Unlike burn's `assert_approx_eq` it does not let NaN pass
/// where both sides are NaN.
#[cfg(test)]
pub(crate) fn assert_close<const D: usize>(
    found: burn::tensor::Tensor<D>,
    expected: burn::tensor::Tensor<D>,
    bound: f64,
) {
    assert_eq!(found.dims(), expected.dims());
    let [found, expected] =
        [found, expected].map(|tensor| tensor.into_data().try_to_vec::<f32>().expect("f32"));
    let error = relative_error(&found, &expected);
    assert!(error <= bound, "{error}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ||(3, 4) - (3, 0)|| = 4, ||(3, 0)|| = 3.
    #[test]
    fn errors_are_relative_and_never_hide_nan() {
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 0.0]), 4.0 / 3.0);
        assert_eq!(relative_error_above(8.0, &[3.0, 4.0], &[3.0, 0.0]), 0.5);
        assert_eq!(relative_error(&[0.0], &[0.0]), 0.0);
        assert_eq!(relative_error(&[f32::NAN], &[1.0]), f64::MAX);
        assert_eq!(relative_error(&[1.0], &[1.0, 1.0]), f64::MAX);
        for value in [f32::NAN, f32::INFINITY] {
            assert_eq!(relative_error(&[value], &[value]), f64::MAX);
        }
    }
}
