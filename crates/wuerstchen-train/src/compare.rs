//! What `wuerstchen compare` measures: how similar pictures are to others, or to what their captions say.

pub mod clip_score;
pub mod inception;
pub mod likeness;
pub mod lpips;
mod square;
