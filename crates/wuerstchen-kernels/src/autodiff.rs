//! What operations with a backward pass of their own have in common.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::ops::{Backward, NodeGuard, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

/// Computes an operation, and records its backward pass, with what it needs of the inputs, where one of the `nodes`
/// wants a gradient. Else nothing else has the inputs, so that they can be changed in place.
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
