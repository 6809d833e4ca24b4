//! Training of the three stages in reverse order, the corpora they learn from, and evaluation.

pub mod shapes;
pub mod verify;
