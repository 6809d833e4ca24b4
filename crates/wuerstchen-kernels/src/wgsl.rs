//! stub
use crate::DepthwiseOptions;
use burn::prelude::*;
pub(crate) fn runs_on(_: &Device) -> bool {
    false
}
pub(crate) fn layer_norm<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x
}
pub(crate) fn global_response_norm(x: Tensor<4>, _: Tensor<4>, _: Tensor<4>) -> Tensor<4> {
    x
}
pub(crate) fn depthwise_conv(
    x: Tensor<4>,
    _: Tensor<4>,
    _: Tensor<1>,
    _: DepthwiseOptions,
) -> Tensor<4> {
    x
}
