//! The sum of the squares of many tensors' values.

use burn::prelude::*;

/// The sum over all tensors, `[1]`, added up in their order; zero if there are none.
///
/// # Shapes
///
/// - each tensor: `[N]`, with an N of its own
pub fn sum_of_squares(tensors: Vec<Tensor<1>>, device: &Device) -> Tensor<1> {
    if tensors.is_empty() {
        return Tensor::zeros([1], device);
    }
    #[cfg(feature = "gpu")]
    if crate::wgsl::runs_on(device) {
        return crate::wgsl::sum_of_squares(&tensors, device);
    }
    reference::sum_of_squares(tensors)
}

/// The same operation composed from burn tensors: the definition of the kernel.
pub mod reference {
    use super::*;

    /// Twin of `shaders/squares.wgsl`.
    pub fn sum_of_squares(tensors: Vec<Tensor<1>>) -> Tensor<1> {
        let sums = tensors.into_iter().map(|tensor| tensor.square().sum()).collect();
        Tensor::cat(sums, 0).sum()
    }
}
