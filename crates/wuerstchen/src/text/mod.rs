//! From a prompt to text embeddings: tokenizer and CLIP text transformer.

mod embedding;
pub mod emphasis;
mod encoder;
mod pooled;
mod tokenizer;
mod unknown_syntax;

pub use embedding::TextEmbedding;
pub use encoder::{TextEncoder, TextEncoderConfig};
pub use pooled::{PooledTextConfig, PooledTextEncoder};
pub use tokenizer::{TokenIds, Tokenizer, TokenizerError, TokenizerFiles, Unread, WeightedTokens};
pub use unknown_syntax::unknown_syntax;
