//! Models and LoRAs as they lie on disk, in the layouts of this and other programs.
//!
//! Only with the feature `fs`: the rest of the crate does no I/O.

mod error;
mod files;
mod found;
mod hidden;
mod hub;
mod lora;
mod pipeline;
mod pytorch;
mod shards;
mod text;
mod write;

pub use error::OpenError;
pub use files::{file_name, has_extension, open, read, read_at_most, with_extension};
pub use found::{Found, Layout, PartOrigin};
pub use hidden::is_hidden;
pub use lora::{LORA_FILES, open_lora};
pub use pytorch::{read_pytorch, read_pytorch_tensors};
pub use text::{ENCODINGS, decode, read_text, read_text_at_most};
pub use write::{check_writable, is_part, write};
