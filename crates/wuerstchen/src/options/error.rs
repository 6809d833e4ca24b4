//! Why options cannot be run.

use super::{MAX_COUNT, MAX_PIXELS_AT_ONCE, MAX_STEPS};
use crate::schedule::SHIFTS;

/// Why [`GenerateOptions`](super::GenerateOptions) cannot be run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OptionsError {
    /// No steps, or more than the schedule can tell apart.
    #[error("{field} must be between 1 and {MAX_STEPS}, got {found}")]
    Steps {
        /// Which option.
        field: &'static str,
        /// Its value.
        found: usize,
    },
    /// A scale or a temperature that is negative or not a finite number.
    #[error("{field} must be finite and at least 0, got {found}")]
    GuidanceScale {
        /// Which option.
        field: &'static str,
        /// Its value.
        found: f64,
    },
    /// A shift after which the schedule has too few different noise levels.
    #[error("{field} must be between {} and {}, got {found}", SHIFTS.start(), SHIFTS.end())]
    Shift {
        /// Which option.
        field: &'static str,
        /// Its value.
        found: f64,
    },
    /// A share of guidance rescaling outside of `[0, 1]`.
    #[error("guidance_rescale must be between 0 and 1, got {0}")]
    Rescale(f64),
    /// Tokens are to be noised again after more steps than there are before the last one.
    #[error("renoise_steps must be at most {most}, one less than the decoder's steps, got {found}")]
    RenoiseSteps {
        /// The largest number.
        most: usize,
        /// The number.
        found: usize,
    },
    /// The model lacks the part that picture prompts need.
    #[error("a picture prompt needs a model with an image encoder: {0}")]
    NoImageEncoder(String),
    /// No pictures or too many.
    #[error("count must be between 1 and {MAX_COUNT}, got {0}")]
    Count(usize),
    /// More pictures than fit in memory at once.
    #[error(
        "count must be at most {most} with pictures of {width} x {height} pixels, as {MAX_PIXELS_AT_ONCE} pixels are \
         made at once, got {found}"
    )]
    Pixels {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// The largest count at this size.
        most: usize,
        /// The count.
        found: usize,
    },
    /// Not even one picture of this size fits in memory.
    #[error(
        "width times height must be at most {MAX_PIXELS_AT_ONCE} pixels, got {width} x {height}"
    )]
    Area {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// Fewer than two frames, or too many.
    #[error("frames must be between 2 and {MAX_COUNT}, got {0}")]
    Frames(usize),
    /// Several pictures of each frame.
    #[error("count must be 1 where frames are made, got {0}")]
    CountOfFrames(usize),
    /// A strength outside of `[0, 1]`.
    #[error("strength must be between 0 and 1, got {0}")]
    Strength(f64),
    /// A strength at which the given timesteps have not begun yet.
    #[error("strength must be at most {first}, the first of the timesteps, got {found}")]
    StrengthAboveTimesteps {
        /// The strength.
        found: f64,
        /// The first of the timesteps.
        first: f64,
    },
    /// An option that has no effect without another input.
    #[error("{field} needs {needed}, which is missing")]
    Missing {
        /// Which option or input.
        field: &'static str,
        /// What it needs.
        needed: &'static str,
    },
    /// Two inputs of which only one can take effect.
    #[error("{field} cannot be used with {other}")]
    Contradiction {
        /// Which input.
        field: &'static str,
        /// What it cannot be used with.
        other: &'static str,
    },
    /// The model lacks the part that source pictures need.
    #[error("{field} needs a model with the semantic compressor: {reason}")]
    NoCompressor {
        /// Which picture.
        field: &'static str,
        /// Why there is no compressor.
        reason: String,
    },
    /// The model has no ControlNet that takes pictures.
    #[error("control_image needs a model with a ControlNet: {0}")]
    NoControlNet(String),
    /// A mask of another size than its picture.
    #[error("{field} must be of the picture's size, {expected}, got {found}")]
    Mask {
        /// Which mask.
        field: &'static str,
        /// Width and height of the picture in pixels.
        expected: String,
        /// Width and height of the mask in pixels.
        found: String,
    },
    /// Timesteps that do not fall from at most 1 to 0.
    #[error("timesteps must fall from at most 1 to 0, at least two of them, got {0:?}")]
    Timesteps(Vec<f32>),
    /// More timesteps than Stage C takes steps.
    #[error("timesteps must be at most {} numbers, got {found}", MAX_STEPS + 1)]
    ManyTimesteps {
        /// How many there are.
        found: usize,
    },
    /// A width or height that the model cannot make.
    #[error("{field} must be {}, got {found}", nearest_text(nearest))]
    Size {
        /// `width` or `height`.
        field: &'static str,
        /// Its value in pixels.
        found: usize,
        /// The nearest values that are possible, in pixels.
        nearest: Vec<usize>,
    },
}

impl OptionsError {
    /// The option or input that is wrong, by its name in Rust, such as `prior_steps`.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Steps { field, .. }
            | Self::GuidanceScale { field, .. }
            | Self::Shift { field, .. }
            | Self::Missing { field, .. }
            | Self::Contradiction { field, .. }
            | Self::NoCompressor { field, .. }
            | Self::Mask { field, .. }
            | Self::Size { field, .. } => field,
            Self::Count(_) | Self::CountOfFrames(_) | Self::Pixels { .. } => "count",
            Self::Area { .. } => "width",
            Self::Frames(_) => "frames",
            Self::Strength(_) | Self::StrengthAboveTimesteps { .. } => "strength",
            Self::Rescale(_) => "guidance_rescale",
            Self::RenoiseSteps { .. } => "renoise_steps",
            Self::NoImageEncoder(_) => "picture_prompts",
            Self::NoControlNet(_) => "control_image",
            Self::Timesteps(_) | Self::ManyTimesteps { .. } => "timesteps",
        }
    }
}

fn nearest_text(nearest: &[usize]) -> String {
    let sides: Vec<_> = nearest.iter().map(usize::to_string).collect();
    if sides.is_empty() {
        "a size that the model can make".to_owned()
    } else {
        format!("a size that the model can make, the nearest being {}", sides.join(" and "))
    }
}
