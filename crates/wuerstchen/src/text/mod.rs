//! From a prompt to text embeddings: tokenizer and CLIP text transformer.

pub mod emphasis;
mod encoder;
mod tokenizer;
mod unknown_syntax;

pub use encoder::{TextEncoder, TextEncoderConfig};
pub use tokenizer::{TokenIds, Tokenizer, TokenizerError, TokenizerFiles, Unread, WeightedTokens};
pub use unknown_syntax::unknown_syntax;
