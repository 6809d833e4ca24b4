//! The recording of operations that have a backward pass of their own.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::ops::{Backward, NodeGuard, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

/// Computes an operation. Where one of the `nodes` requires a gradient, it also records the backward pass, with the
/// values of the inputs that this needs. Otherwise nothing keeps the inputs, so that they can be changed in place.
pub(crate) fn record<B, C, O, I, const N: usize>(
    backward: O,
    nodes: [NodeGuard; N],
    inputs: I,
    kept: impl FnOnce(&I) -> O::State,
    compute: impl FnOnce(I) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>>
where
    B: Backend,
    C: CheckpointStrategy,
    O: Backward<B, N>,
{
    match backward.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let state = kept(&inputs);
            prep.finish(state, compute(inputs))
        }
        OpsKind::UnTracked(prep) => prep.finish(compute(inputs)),
    }
}
