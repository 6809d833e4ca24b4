//! Tensor operations of Würstchen that have a kernel of their own, each with its composed twin.
//!
//! Features are channels-last, `[B, H, W, C]`: every 1x1 convolution is then a matrix product, and
//! the operations here read and write whole rows of channels.
//!
//! Each function chooses by the device of its input: a hand-written CPU kernel on burn Flex or a WGSL shader on wgpu,
//! if the operation has one, else the composed twin in `reference`. Callers need not know which one runs. Where
//! gradients are tracked, the CPU kernels and the shaders of layer norm, global response norm, depthwise convolution
//! and patches have backward passes of their own; attention and products on wgpu are composed.
#![recursion_limit = "256"]

#[cfg(feature = "train")]
pub mod adamw;
pub mod attention;
mod autocast;
#[cfg(all(feature = "train", any(feature = "cpu", feature = "gpu")))]
mod autodiff;
#[cfg(feature = "train")]
pub mod batch_norm;
#[cfg(feature = "cpu")]
mod cpu;
pub mod depthwise_conv;
pub mod gelu;
pub mod global_response_norm;
pub mod layer_norm;
pub mod linear;
pub mod packed_linear;
pub mod patches;
mod probe;
pub mod silu;
pub mod softmax;
#[cfg(feature = "train")]
pub mod sum_of_squares;
#[cfg(feature = "train")]
pub mod weighted_sum;
#[cfg(feature = "gpu")]
mod wgsl;

#[cfg(feature = "train")]
pub use adamw::{AdamW, adamw};
pub use attention::{attention, joined_attention, masked_attention};
pub use autocast::{autocast, product};
#[cfg(feature = "train")]
pub use batch_norm::batch_norm;
pub use depthwise_conv::{DepthwiseOptions, Padding, depthwise_conv};
pub use gelu::gelu;
pub use global_response_norm::global_response_norm;
pub use layer_norm::layer_norm;
pub use linear::{Epilogue, linear};
pub use packed_linear::{PackedMatrix, Packing, Planes, packed_linear};
pub use patches::patches;
pub use probe::{Probe, probe_copy, probe_multiply_adds};
pub use silu::silu;
pub use softmax::softmax;
#[cfg(feature = "train")]
pub use sum_of_squares::sum_of_squares;
#[cfg(feature = "train")]
pub use weighted_sum::weighted_sum;
#[cfg(feature = "gpu")]
pub use wgsl::{
    LAUNCHES_OF_A_SUBMIT, Products, ShaderTraffic, Tiling, choose_products, chosen_products,
    has_halves, runs_on as runs_shaders, shader_traffic, shaders,
};

/// All composed twins: the definitions of the kernels.
pub mod reference {
    #[cfg(feature = "train")]
    pub use crate::adamw::reference::adamw;
    pub use crate::attention::reference::{attention, joined_attention, masked_attention};
    #[cfg(feature = "train")]
    pub use crate::batch_norm::reference::batch_norm;
    pub use crate::depthwise_conv::reference::depthwise_conv;
    pub use crate::gelu::reference::gelu;
    pub use crate::global_response_norm::reference::{
        channel_norms, global_response_norm, response,
    };
    pub use crate::layer_norm::reference::layer_norm;
    pub use crate::linear::reference::linear;
    pub use crate::packed_linear::reference::{packed_linear, unpack};
    pub use crate::patches::reference::patches;
    pub use crate::silu::reference::silu;
    pub use crate::softmax::reference::softmax;
    #[cfg(feature = "train")]
    pub use crate::sum_of_squares::reference::sum_of_squares;
    #[cfg(feature = "train")]
    pub use crate::weighted_sum::reference::weighted_sum;
}
