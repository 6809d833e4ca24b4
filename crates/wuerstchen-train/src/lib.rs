//! Training of the three stages in reverse order, the corpora they learn from, and evaluation.

pub mod config;
pub mod corpus;
pub mod emoji;
pub mod eval;
mod limits;
mod lots;
pub mod optimizer;
pub mod recipe;
pub mod shapes;
pub mod stages;
pub mod tokenizer;
pub mod trainer;

pub use config::TrainConfig;
pub use recipe::Recipe;
pub use trainer::{Metrics, RestoreError, Trainer};
