//! Adafactor: keeps only the means of the rows and of the columns of a matrix's second moment.
//!
//! Source: Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost" (arXiv 1804.04235),
//! algorithms 4 and 5, without a first moment, with the learning rate as it is given;
//! `Adafactor(scale_parameter=False, relative_step=False)` in transformers. The latter factors the two last axes of
//! convolutions too; here convolutions keep whole moments, as vectors do.

use burn::prelude::*;

/// Added to the squared gradients (`ε₁`).
const EPSILON: f64 = 1e-30;
/// Largest root mean square of a change, in learning rates (`d`).
const CLIP: f64 = 1.0;
/// The second moment decays by `1 − t^DECAY` in update number `t`.
const DECAY: f64 = -0.8;

/// How many numbers the second moment of a parameter of this shape has.
pub(crate) fn moments(shape: &[usize]) -> usize {
    match shape {
        [rows, columns] => rows + columns,
        _ => shape.iter().product(),
    }
}

/// The change of a parameter of the given shape, in learning rates, and its new second moment; `step` counts from 1.
///
/// # Shapes
///
/// - gradient, the change: as many numbers as the shape has
/// - second, the new second moment: [`moments`] of the shape; for a matrix the means of its rows, then of its columns
pub(crate) fn change(
    gradient: Tensor<1>,
    shape: &[usize],
    second: Option<Tensor<1>>,
    step: u64,
) -> (Tensor<1>, Tensor<1>) {
    let squares = gradient.clone().square() + EPSILON;
    let beta = 1.0 - (step as f64).powf(DECAY);
    let mixed = |squares: Tensor<1>| match second {
        Some(second) => second * beta + squares * (1.0 - beta),
        None => squares * (1.0 - beta),
    };
    let (change, second) = match *shape {
        [rows, columns] => {
            let squares = squares.reshape([rows, columns]);
            let of_rows = squares.clone().mean_dim(1).flatten::<1>(0, 1);
            let of_columns = squares.mean_dim(0).flatten::<1>(0, 1);
            let second = mixed(Tensor::cat(vec![of_rows, of_columns], 0));
            let of_rows = second.clone().narrow(0, 0, rows);
            let of_rows = (of_rows.clone() / of_rows.mean()).sqrt().recip().reshape([rows, 1]);
            let of_columns = second.clone().narrow(0, rows, columns).sqrt().recip();
            let change = gradient.reshape([rows, columns]) * of_rows * of_columns.unsqueeze::<2>();
            (change.flatten(0, 1), second)
        }
        _ => {
            let second = mixed(squares);
            (gradient / second.clone().sqrt(), second)
        }
    };
    let size = change.clone().square().mean().sqrt();
    (change / (size / CLIP).clamp_min(1.0), second)
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, Param};
    use wuerstchen::relative_error;

    use super::*;
    use crate::optimizer::{Method, Optimizer, OptimizerConfig};
    use crate::values::{Values, values};

    #[derive(Module, Debug)]
    struct Three {
        matrix: Param<Tensor<2>>,
        vector: Param<Tensor<1>>,
        conv: Param<Tensor<4>>,
    }

    /// The largest error relative to the largest number: f32 beside f64.
    const ROUNDING: f64 = 1e-6;

    /// Four updates with gradients of very different sizes, beside `tests/golden/reference/adafactor.py`.
    #[test]
    fn changes_are_those_of_the_reference() {
        let device = Device::flex().autodiff();
        let tensor = |numbers: Vec<f64>| {
            let numbers: Vec<f32> = numbers.into_iter().map(|number| number as f32).collect();
            let length = [numbers.len()];
            Tensor::<1>::from_data(TensorData::new(numbers, length), &device)
        };
        let start = |count: usize| {
            tensor((0..count).map(|i| 2.0 * i as f64 / (count - 1) as f64 - 1.0).collect())
        };
        let mut module = Three {
            matrix: Param::from_tensor(start(6).reshape([2, 3])),
            vector: Param::from_tensor(start(4)),
            conv: Param::from_tensor(start(8).reshape([2, 1, 2, 2])),
        };
        let config = OptimizerConfig {
            method: Method::Adafactor,
            weight_decay: 0.1,
            max_grad_norm: 1e9,
            ..Default::default()
        };
        let mut optimizer = Optimizer::new(config, &module);
        for step in 0..4 {
            let gradient = |count: usize| {
                let number = |i: usize| {
                    let size = 10f64.powi(i as i32 % 3 - 2) * 2f64.powi(step);
                    (1.0 + i as f64 + 3.0 * f64::from(step)).sin() * size
                };
                tensor((0..count).map(number).collect()).inner()
            };
            let ids = [(module.matrix.id, 6), (module.vector.id, 4), (module.conv.id, 8)];
            let gradients: Values =
                ids.into_iter().map(|(id, count)| (id, gradient(count))).collect();
            module = optimizer.step(module, gradients, step as u64, 0.1).0;
        }
        let found = values(&module);
        let matrix = [-0.97313, -0.585016, -0.173501, 0.188492, 0.564955, 0.951027];
        let vector = [-0.961637, -0.317016, 0.328379, 0.963403];
        let conv =
            [-0.961426, -0.682738, -0.403273, -0.134628, 0.134214, 0.404779, 0.680067, 0.96321];
        let expected: [(_, &[f32]); 3] =
            [(module.matrix.id, &matrix), (module.vector.id, &vector), (module.conv.id, &conv)];
        for (id, expected) in expected {
            let found = found[&id].clone().into_data().try_to_vec::<f32>().unwrap();
            let error = relative_error(&found, expected);
            assert!(error < ROUNDING, "{error}: {found:?}");
        }
        assert_eq!(optimizer.second[&module.matrix.id].dims(), [2 + 3]);
        assert!(optimizer.first.is_empty());
    }
}
