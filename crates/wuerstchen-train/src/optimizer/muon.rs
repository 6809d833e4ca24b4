//! Muon: the momentum of a weight matrix with all its singular values brought to one.
//!
//! Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), and Liu et al., "Muon is
//! scalable for LLM training" (arXiv 2502.16982), equation 4, for the factor that makes AdamW's learning rate fit.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::prelude::*;
#[cfg(feature = "cpu")]
use rayon::prelude::*;
use wuerstchen::kernels::weighted_sum;

use crate::values::Values;

/// Steps of the Newton-Schulz iteration.
const ITERATIONS: usize = 5;
/// Its polynomial, `a·x + b·x³ + c·x⁵`. It brings singular values near one in few steps, but not exactly to one.
const POLYNOMIAL: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// The root mean square of AdamW's usual changes, in learning rates.
const ADAMW_RMS: f64 = 0.2;

/// The change of every weight matrix of a linear layer, in learning rates. It removes the gradients of these matrices
/// from `gradients`, and updates `momentum` with the decay `beta`.
///
/// Embeddings, convolutions and vectors are left to AdamW.
pub(crate) fn changes<M: Module>(
    module: &M,
    gradients: &mut Values,
    momentum: &mut Values,
    beta: f64,
) -> Values {
    let mut matrices = Matrices::default();
    module.visit(&mut matrices);
    let mut shapes = BTreeMap::<_, Vec<_>>::new();
    for (id, [rows, columns]) in matrices.found {
        let Some(gradient) = gradients.remove(&id) else { continue };
        let old = momentum.remove(&id).unwrap_or_else(|| gradient.zeros_like());
        let new = weighted_sum(old, beta, gradient.clone(), 1.0 - beta);
        momentum.insert(id, new.clone());
        // Nesterov's momentum: one step ahead.
        let ahead = weighted_sum(new, beta, gradient, 1.0 - beta);
        shapes.entry([rows, columns]).or_default().push((id, ahead.reshape([1, rows, columns])));
    }
    let change = |(matrices, [rows, columns]): (Vec<(ParamId, Tensor<3>)>, [usize; 2])| {
        let (ids, matrices): (Vec<_>, Vec<_>) = matrices.into_iter().unzip();
        let size = ADAMW_RMS * (rows.max(columns) as f64).sqrt();
        let all = orthogonalize(Tensor::cat(matrices, 0)) * size;
        let each = all.chunk(ids.len(), 0).into_iter().map(|matrix| matrix.flatten(0, 2));
        ids.into_iter().zip(each).collect::<Vec<_>>()
    };
    // The threads of a CPU take one matrix after the other. On a GPU a batch of all matrices of a shape takes fewer
    // launches.
    #[cfg(feature = "cpu")]
    if shapes.values().flatten().all(|(_, matrix)| matrix.device() == Device::flex()) {
        let one_by_one = shapes
            .into_iter()
            .flat_map(|(shape, matrices)| matrices.into_iter().map(move |one| (vec![one], shape)));
        return one_by_one.collect::<Vec<_>>().into_par_iter().flat_map_iter(change).collect();
    }
    shapes.into_iter().flat_map(|(shape, matrices)| change((matrices, shape))).collect()
}

/// The weights of a module's linear layers.
#[derive(Default)]
struct Matrices {
    /// Types of the modules around the parameter that is visited next.
    holders: Vec<String>,
    found: Vec<(ParamId, [usize; 2])>,
}

impl ModuleVisitor for Matrices {
    fn enter_module(&mut self, _name: &str, holder: &str) {
        self.holders.push(holder.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _holder: &str) {
        self.holders.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.holders.last().is_some_and(|holder| holder == "Struct:Linear")
            && let [rows, columns] = param.dims()[..]
        {
            self.found.push((param.id, [rows, columns]));
        }
    }
}

/// Matrices with the singular vectors of the given ones and singular values near one, about 0.7 to 1.2. A matrix of
/// zeros stays a matrix of zeros.
///
/// # Shapes
///
/// - matrices, output: `[N, rows, columns]`
fn orthogonalize(matrices: Tensor<3>) -> Tensor<3> {
    let [_, rows, columns] = matrices.dims();
    if rows > columns {
        return orthogonalize(matrices.swap_dims(1, 2)).swap_dims(1, 2);
    }
    let norms = matrices.clone().square().sum_dim(2).sum_dim(1).sqrt();
    let x = matrices / (norms + 1e-7);
    // Each iteration multiplies x from the left by a polynomial of its x·xᵀ. Only this small square matrix is
    // iterated, and x is multiplied once, by the product of all.
    let [a, b, c] = POLYNOMIAL;
    let mut square = x.clone().matmul(x.clone().swap_dims(1, 2));
    let identity = Tensor::<2>::eye(rows, &x.device()).unsqueeze::<3>();
    let mut product = None;
    for iteration in 1..=ITERATIONS {
        let factor =
            identity.clone() * a + square.clone() * b + square.clone().matmul(square.clone()) * c;
        if iteration < ITERATIONS {
            square = factor.clone().matmul(square).matmul(factor.clone());
        }
        product = Some(match product {
            Some(product) => factor.matmul(product),
            None => factor,
        });
    }
    product.expect("at least one iteration").matmul(x)
}

#[cfg(test)]
mod tests {
    use burn::nn::{EmbeddingConfig, LinearConfig};
    use burn::tensor::Distribution;

    use super::*;

    /// For both orientations, and for badly conditioned matrices as gradients are, `o·oᵀ` has eigenvalues near one.
    #[test]
    fn singular_values_come_near_one() {
        let device = Device::flex();
        device.seed(1);
        for [rows, columns] in [[6, 6], [5, 20], [20, 5]] {
            let random = Tensor::<3>::random([2, rows, columns], Distribution::Default, &device);
            let o = orthogonalize(random * 1e-3).narrow(0, 1, 1).squeeze_dim::<2>(0);
            let small = if rows > columns { o.clone().transpose() } else { o };
            // A power iteration from a vector of ones gives the largest eigenvalue, and the trace gives the mean of
            // all.
            let gram = small.clone().matmul(small.transpose());
            let n = rows.min(columns);
            let mut vector = Tensor::<2>::ones([n, 1], &device);
            for _ in 0..200 {
                vector = gram.clone().matmul(vector);
                vector = vector.clone() / vector.square().sum().sqrt().reshape([1, 1]);
            }
            let largest = gram.clone().matmul(vector).square().sum().sqrt().into_scalar::<f32>();
            let identity = Tensor::<2>::eye(n, &device);
            let mean = (gram * identity).sum().into_scalar::<f32>() / n as f32;
            assert!(largest < 1.3f32.powi(2), "{largest}");
            assert!((0.6f32.powi(2)..1.3).contains(&mean), "{mean}");
        }
    }

    /// The linear layer's matrix moves by 0.2 learning rates in the root mean square; its bias and the embedding are
    /// AdamW's.
    #[test]
    fn only_matrices_of_linear_layers_change() {
        #[derive(Module, Debug)]
        struct Both {
            embedding: burn::nn::Embedding,
            linear: burn::nn::Linear,
        }
        let device = Device::flex();
        let module = Both {
            embedding: EmbeddingConfig::new(8, 8).init(&device),
            linear: LinearConfig::new(16, 64).init(&device),
        };
        let mut gradients = crate::values::values(&module);
        let mut momentum = Values::new();
        let changes = changes(&module, &mut gradients, &mut momentum, 0.95);
        let id = module.linear.weight.id;
        assert_eq!(changes.keys().copied().collect::<Vec<_>>(), [id]);
        assert!(momentum.contains_key(&id) && gradients.len() == 2 && !gradients.contains_key(&id));
        let rms = changes[&id].clone().square().mean().sqrt().into_scalar::<f32>();
        assert!((rms - 0.2).abs() < 0.06, "{rms}");
    }
}
