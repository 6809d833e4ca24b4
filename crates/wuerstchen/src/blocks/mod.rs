//! The layers that stages B and C share. Features are channels-last, `[B, H, W, C]`, throughout.

mod adapter;
mod attention_block;
mod block;
mod linear;
mod packed;
mod res_block;
mod resample;
mod timestep_block;

pub use adapter::LowRankChange;
pub(crate) use adapter::with_change;
pub use attention_block::{
    AttendedText, Attention, AttentionBlock, AttentionBlockConfig, KeysAndValues,
};
#[cfg(feature = "gpu")]
pub(crate) use block::width;
pub use block::{Block, Conditions, Kept, Observer};
pub use linear::Folded;
pub(crate) use linear::{affine, affine_gelu, condition_mapper, embed, linear_layer};
pub(crate) use packed::Packed;
pub use res_block::{
    ChannelMlp, DepthwiseConv, MappedImage, ResBlock, ResBlockConfig, ResponseNorm,
};
pub use resample::{
    Downscale, Upscale, channels_first, channels_last, pixel_shuffle, pixel_unshuffle,
};
pub use timestep_block::{FurtherConditions, TimestepBlock, TimestepBlockConfig, time_embedding};
