//! Training of the three stages in reverse order, the corpora they learn from, and evaluation.

pub mod config;
pub mod corpus;
pub mod eval;
pub mod export;
pub mod optimizer;
pub mod shapes;
pub mod stages;
pub mod trainer;
pub mod verify;

pub use config::TrainConfig;
pub use trainer::{Metrics, Trainer};
