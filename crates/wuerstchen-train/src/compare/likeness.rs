//! How similar pictures are to others, pair by pair or as a whole.

use wuerstchen::Image;

use crate::compare::square::{Square, add_multiple};

/// Standard deviation of the window in which structures are compared, in pixels.
const WINDOW_DEVIATION: f64 = 1.5;
/// Pixels from the window's middle to its border.
const WINDOW_RADIUS: usize = 5;
/// The constants that keep the quotients of dark and of flat windows stable, for bytes.
const LUMINANCE: f64 = (0.01 * 255.0) * (0.01 * 255.0);
const CONTRAST: f64 = (0.03 * 255.0) * (0.03 * 255.0);

/// The shortest side of pictures whose structures can be compared, in pixels: a window.
pub const MIN_SSIM_SIDE: usize = 2 * WINDOW_RADIUS + 1;

/// The structural similarity of two pictures, the mean over colours and windows: 1 for equal ones, near 0 for those
/// that have nothing in common.
///
/// Source: Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), with its
/// Gaussian window; `structural_similarity` in scikit-image with `gaussian_weights` and without sample covariances.
///
/// # Panics
///
/// Panics if the sizes differ, or if a side is shorter than [`MIN_SSIM_SIDE`].
pub fn ssim(a: &Image, b: &Image) -> f64 {
    let (width, height) = (a.width, a.height);
    assert_eq!([width, height], [b.width, b.height], "pictures of one size are compared");
    assert!(width.min(height) >= MIN_SSIM_SIDE, "{width} x {height} pixels hold no window");
    let mut sum = 0.0;
    for channel in 0..3 {
        let plane = |image: &Image| -> Vec<f64> {
            image.rgb.iter().skip(channel).step_by(3).map(|&byte| f64::from(byte)).collect()
        };
        let (a, b) = (plane(a), plane(b));
        let mean = |of: &dyn Fn(usize) -> f64| {
            let values: Vec<_> = (0..width * height).map(of).collect();
            windowed(&values, width, height)
        };
        let [mean_a, mean_b] = [mean(&|i| a[i]), mean(&|i| b[i])];
        let (aa, bb, ab) = (mean(&|i| a[i] * a[i]), mean(&|i| b[i] * b[i]), mean(&|i| a[i] * b[i]));
        let windows = (0..mean_a.len()).map(|i| {
            let (x, y) = (mean_a[i], mean_b[i]);
            let variances = aa[i] - x * x + bb[i] - y * y;
            let covariance = ab[i] - x * y;
            (2.0 * x * y + LUMINANCE) * (2.0 * covariance + CONTRAST)
                / ((x * x + y * y + LUMINANCE) * (variances + CONTRAST))
        });
        sum += windows.sum::<f64>() / mean_a.len() as f64;
    }
    sum / 3.0
}

/// The means of a plane in all windows that lie within it, weighted by a Gaussian.
fn windowed(plane: &[f64], width: usize, height: usize) -> Vec<f64> {
    let weight = |i: usize| {
        let distance = i as f64 - WINDOW_RADIUS as f64;
        (-0.5 * (distance / WINDOW_DEVIATION).powi(2)).exp()
    };
    let weights: Vec<_> = (0..MIN_SSIM_SIDE).map(weight).collect();
    let total: f64 = weights.iter().sum();
    let columns = width - 2 * WINDOW_RADIUS;
    let across = |i: usize| {
        let start = i / columns * width + i % columns;
        let values = plane[start..].iter().zip(&weights);
        values.map(|(value, weight)| value * weight).sum::<f64>() / total
    };
    let rows: Vec<_> = (0..height * columns).map(across).collect();
    let down = |i: usize| {
        let values = rows[i..].iter().step_by(columns).zip(&weights);
        values.map(|(value, weight)| value * weight).sum::<f64>() / total
    };
    (0..(height - 2 * WINDOW_RADIUS) * columns).map(down).collect()
}

/// The cosine of the angle between two rows of values of equal width; NaN if one has only zeros.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
    };
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

/// The Fréchet distance between the normal distributions of two sets of features: rows of equal width, at least two in
/// each set. For the features of [`Inception`](super::inception::Inception) it is the Fréchet inception distance.
///
/// With the means μ and the covariances Σ: `|μ₁ − μ₂|² + Tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½)`.
///
/// Source: Heusel et al., "GANs trained by a two time-scale update rule" (arXiv 1706.08500), equation 6. With
/// `Σ₁ = L·Lᵀ`, the trace of the root is the sum of the roots of the eigenvalues of `Lᵀ·Σ₂·L`, which is symmetric, so
/// that no imaginary part arises.
///
/// # Errors
///
/// A feature is infinite or NaN.
///
/// # Panics
///
/// Panics if a set has fewer than two rows, or if their widths differ.
pub fn frechet_distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> Result<f64, NotFinite> {
    let ((mean_a, a), (mean_b, b)) = (moments(a)?, moments(b)?);
    assert_eq!(mean_a.len(), mean_b.len(), "features of one network are compared");
    let means = mean_a.iter().zip(&mean_b).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
    let trace = a.trace() + b.trace();
    let factor = a.cholesky();
    let product = factor.transpose().times(&b).times(&factor);
    // Rounding makes eigenvalues of 0 a little negative.
    let roots = product.eigenvalues().into_iter().map(|value| value.max(0.0).sqrt());
    Ok(means + trace - 2.0 * roots.sum::<f64>())
}

/// Features are infinite or NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("features are infinite or NaN: are the weights those of the network?")]
pub struct NotFinite;

/// The mean of the rows, and their covariance.
fn moments(rows: &[Vec<f32>]) -> Result<(Vec<f64>, Square), NotFinite> {
    let (count, width) = (rows.len(), rows[0].len());
    assert!(count > 1, "a covariance needs two rows");
    if !rows.iter().flatten().all(|value| value.is_finite()) {
        return Err(NotFinite);
    }
    let mean: Vec<f64> = (0..width)
        .map(|j| rows.iter().map(|row| f64::from(row[j])).sum::<f64>() / count as f64)
        .collect();
    let mut covariance = Square::zeros(width);
    for row in rows {
        let left: Vec<f64> = row.iter().zip(&mean).map(|(&x, mean)| f64::from(x) - mean).collect();
        for (sums, x) in covariance.rows_mut().zip(&left) {
            add_multiple(sums, x / (count - 1) as f64, &left);
        }
    }
    Ok((mean, covariance))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(of: impl Fn(usize, usize) -> u8) -> Image {
        let (width, height) = (20, 15);
        let rgb = (0..3 * width * height).map(|i| of(i / 3 % width, i / 3 / width)).collect();
        Image { width, height, rgb }
    }

    /// Equal pictures, and two flat ones: `(2·100·200 + 6.5025)/(100² + 200² + 6.5025) = 0.80003`.
    #[test]
    fn equal_pictures_have_all_structures_and_flat_ones_their_brightness() {
        let stripes = image(|x, _| if x % 4 < 2 { 0 } else { 200 });
        assert!((ssim(&stripes, &stripes) - 1.0).abs() < 1e-12);
        let flat = ssim(&image(|_, _| 100), &image(|_, _| 200));
        assert!((flat - 0.800_026).abs() < 1e-6, "{flat}");
        let lying = image(|_, y| if y % 4 < 2 { 0 } else { 200 });
        assert!(ssim(&stripes, &lying) < 0.1);
    }

    /// Variances 2 and 8 of one feature around 1 and 4: `3² + 2 + 8 − 2·4 = 11`.
    #[test]
    fn distance_of_one_feature_by_hand() {
        let rows = |values: &[f32]| values.iter().map(|&value| vec![value]).collect::<Vec<_>>();
        let distance = frechet_distance(&rows(&[0.0, 2.0]), &rows(&[2.0, 6.0])).unwrap();
        assert!((distance - 11.0).abs() < 1e-12, "{distance}");
        assert_eq!(frechet_distance(&rows(&[0.0, f32::NAN]), &rows(&[2.0, 6.0])), Err(NotFinite));
    }
}
