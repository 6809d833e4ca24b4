//! Training of the three stages in the order A, B, C, the reverse of generation; the corpora they learn from;
//! evaluation.
//!
//! [`Run`] trains stages and keeps what it makes in a [`Store`]. With the feature `fs` a store can be a folder
//! ([`store::Folder`]); `examples/train.rs` is a whole program.

mod batches;
pub mod compare;
pub mod config;
pub mod corpus;
pub mod emoji;
pub mod eval;
mod lesson;
mod limits;
mod lots;
pub mod optimizer;
pub mod peers;
pub mod precision;
pub mod recipe;
mod recompute;
mod rows;
pub mod run;
pub mod shapes;
mod shares;
pub mod stages;
pub mod store;
mod tensor_cache;
pub mod tokenizer;
mod told;
pub mod trainer;
pub mod tune;
pub mod values;

pub use config::{StageName, TrainConfig, TuneConfig};
pub use corpus::Source;
pub use lesson::Lesson;
pub use peers::{Alone, Failure, Peers};
pub use precision::Precision;
pub use recipe::Recipe;
pub use rows::Rows;
pub use run::{Event, Run, RunError, Start};
pub use store::Store;
pub use trainer::{Metrics, RestoreError, Trainer};
pub use tune::{Pictures, Tune};
