//! Square matrices in f64, as far as a Fréchet distance needs them.

/// A square matrix, row by row.
#[derive(Clone)]
pub(crate) struct Square {
    side: usize,
    values: Vec<f64>,
}

/// Most QR steps for an eigenvalue, after which it is taken as it is; two are usual.
const MAX_ROTATIONS: usize = 60;

impl Square {
    pub(crate) fn zeros(side: usize) -> Self {
        Self { side, values: vec![0.0; side * side] }
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.side + column]
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.side..][..self.side]
    }

    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f64]> {
        self.values.chunks_exact_mut(self.side)
    }

    pub(crate) fn trace(&self) -> f64 {
        (0..self.side).map(|i| self.at(i, i)).sum()
    }

    pub(crate) fn transpose(&self) -> Self {
        let side = self.side;
        Self { side, values: (0..side * side).map(|i| self.at(i % side, i / side)).collect() }
    }

    pub(crate) fn times(&self, other: &Self) -> Self {
        let mut product = Self::zeros(self.side);
        for (i, sums) in product.rows_mut().enumerate() {
            for (k, &value) in self.row(i).iter().enumerate() {
                add_multiple(sums, value, other.row(k));
            }
        }
        product
    }

    /// The lower triangle `L` of `L·Lᵀ`, of a symmetric matrix without negative eigenvalues. Where these are 0, as
    /// in covariances of few samples, a column of `L` is 0.
    pub(crate) fn cholesky(&self) -> Self {
        let mut factor = Self::zeros(self.side);
        for i in 0..self.side {
            for j in 0..=i {
                let known = dot(&factor.row(i)[..j], &factor.row(j)[..j]);
                let left = self.at(i, j) - known;
                let diagonal = factor.at(j, j);
                // The bound below which a value is only a rounding error.
                let least = self.side as f64 * f64::EPSILON * self.at(i, i);
                factor.values[i * self.side + j] = if i == j {
                    if left > least { left.sqrt() } else { 0.0 }
                } else if diagonal > 0.0 {
                    left / diagonal
                } else {
                    0.0
                };
            }
        }
        factor
    }

    /// The eigenvalues of a symmetric matrix.
    ///
    /// Source: Golub and Van Loan, "Matrix computations", algorithms 8.3.1 (Householder's tridiagonal form) and 8.3.2
    /// (a step of the QR iteration with Wilkinson's shift).
    pub(crate) fn eigenvalues(self) -> Vec<f64> {
        let (mut diagonal, mut beside) = self.tridiagonal();
        let mut end = diagonal.len().saturating_sub(1);
        let mut rotations = 0;
        while end > 0 {
            let is_zero = |i: usize, diagonal: &[f64], beside: &[f64]| {
                beside[i].abs() <= f64::EPSILON * (diagonal[i].abs() + diagonal[i + 1].abs())
            };
            if is_zero(end - 1, &diagonal, &beside) || rotations == MAX_ROTATIONS {
                (end, rotations) = (end - 1, 0);
                continue;
            }
            let start = (0..end - 1).rev().find(|&i| is_zero(i, &diagonal, &beside));
            rotate(&mut diagonal, &mut beside, start.map_or(0, |i| i + 1)..=end);
            rotations += 1;
        }
        diagonal
    }

    /// The diagonal and the secondary diagonal of a tridiagonal matrix with the same eigenvalues.
    fn tridiagonal(mut self) -> (Vec<f64>, Vec<f64>) {
        let side = self.side;
        let mut beside = Vec::new();
        for k in 0..side.saturating_sub(1) {
            // The column below the diagonal, which is the row beside it.
            let mut mirror = self.row(k)[k + 1..].to_vec();
            let length = dot(&mirror, &mirror).sqrt();
            let end = if mirror[0] > 0.0 { -length } else { length };
            beside.push(end);
            mirror[0] -= end;
            let square = dot(&mirror, &mirror);
            if square == 0.0 {
                continue;
            }
            let mut image: Vec<f64> =
                (k + 1..side).map(|i| 2.0 / square * dot(&self.row(i)[k + 1..], &mirror)).collect();
            let overlap = dot(&image, &mirror) / square;
            add_multiple(&mut image, -overlap, &mirror);
            for (i, row) in self.rows_mut().skip(k + 1).enumerate() {
                add_multiple(&mut row[k + 1..], -mirror[i], &image);
                add_multiple(&mut row[k + 1..], -image[i], &mirror);
            }
        }
        ((0..side).map(|i| self.at(i, i)).collect(), beside)
    }
}

/// A step of the QR iteration on a part of a tridiagonal matrix.
fn rotate(diagonal: &mut [f64], beside: &mut [f64], part: std::ops::RangeInclusive<usize>) {
    let (start, end) = (*part.start(), *part.end());
    let half = (diagonal[end - 1] - diagonal[end]) / 2.0;
    let last = beside[end - 1];
    let root = half.hypot(last).copysign(if half == 0.0 { 1.0 } else { half });
    let shift = diagonal[end] - last * (last / (half + root));
    let (mut x, mut bulge) = (diagonal[start] - shift, beside[start]);
    for k in start..end {
        let length = x.hypot(bulge);
        let (c, s) = if length == 0.0 { (1.0, 0.0) } else { (x / length, bulge / length) };
        if k > start {
            beside[k - 1] = length;
        }
        let (a, b, e) = (diagonal[k], diagonal[k + 1], beside[k]);
        diagonal[k] = c * c * a + 2.0 * c * s * e + s * s * b;
        diagonal[k + 1] = s * s * a - 2.0 * c * s * e + c * c * b;
        beside[k] = c * s * (b - a) + (c * c - s * s) * e;
        x = beside[k];
        if k + 1 < end {
            bulge = s * beside[k + 1];
            beside[k + 1] *= c;
        }
    }
}

/// Adds a multiple of numbers to others.
pub(crate) fn add_multiple(sums: &mut [f64], factor: f64, values: &[f64]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * value);
}

/// The dot product, summed in eight lanes so that it vectorises.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let (a_blocks, a_rest) = a.as_chunks::<8>();
    let (b_blocks, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += a * b);
    }
    lanes.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-10 * expected.abs().max(1.0), "{found} {expected}");
    }

    /// The second differences of `n` points, whose eigenvalues are `2 − 2·cos(kπ/(n + 1))`, mirrored so that no
    /// entry is 0.
    #[test]
    fn eigenvalues_of_a_known_matrix_are_found() {
        let side = 9;
        let mut matrix = Square::zeros(side);
        for (i, row) in matrix.rows_mut().enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                *value = [2.0, -1.0, 0.0][i.abs_diff(j).min(2)];
            }
        }
        let mut mirror = Square::zeros(side);
        let direction: Vec<f64> = (1..=side).map(|i| (i as f64).sin()).collect();
        let square = dot(&direction, &direction);
        for (i, row) in mirror.rows_mut().enumerate() {
            row[i] = 1.0;
            add_multiple(row, -2.0 / square * direction[i], &direction);
        }
        let mut found = mirror.times(&matrix).times(&mirror).eigenvalues();
        found.sort_by(f64::total_cmp);
        for (k, found) in found.into_iter().enumerate() {
            let angle = (k + 1) as f64 * std::f64::consts::PI / (side + 1) as f64;
            close(found, 2.0 - 2.0 * angle.cos());
        }
    }

    /// The matrix has rank 2: it is the sum of the outer products of two rows with themselves.
    #[test]
    fn factors_give_the_matrix_again() {
        let rows = [[1.0, 2.0, -3.0, 0.5], [0.0, -1.0, 4.0, 2.0]];
        let mut matrix = Square::zeros(4);
        for row in rows {
            for (i, sums) in matrix.rows_mut().enumerate() {
                add_multiple(sums, row[i], &row);
            }
        }
        let factor = matrix.cholesky();
        let again = factor.times(&factor.transpose());
        for (found, expected) in again.values.iter().zip(&matrix.values) {
            close(*found, *expected);
        }
        assert_eq!(factor.values.iter().filter(|value| **value != 0.0).count(), 4 + 3);
    }
}
