//! The memory that fine-tuning takes, by a count of bytes.

use std::fmt;

use wuerstchen::PriorConfig;

/// Bytes of a number in f32.
const F32: usize = 4;

/// What a LoRA or a whole Stage C takes while it is trained, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The frozen weights, as they are stored.
    pub frozen: usize,
    /// The trained weights.
    pub trained: usize,
    /// Their gradients.
    pub gradients: usize,
    /// Both moments of the optimiser.
    pub moments: usize,
    /// The moving average.
    pub average: usize,
    /// What the forward pass keeps for the backward one.
    pub activations: usize,
}

/// Values that a group of a residual, a timestep and an attention block keeps for its backward pass, in those of
/// its features: the convolution's input and its norm's, GELU's input and output, the response norm's, the
/// scaling's, the attention's norm, queries, keys, values and result, and the sums.
const KEPT_FEATURES: usize = 2 + 4 + 4 + 4 + 2 + 6;

impl Memory {
    /// Counts for batches of `batch` embeddings of `cells` cells: `frozen` bytes of weights as they are stored,
    /// `trained` numbers.
    pub fn count(
        prior: &PriorConfig,
        frozen: usize,
        trained: usize,
        cells: usize,
        batch: usize,
    ) -> Self {
        let features = cells * prior.c;
        // Two matrices of scores a head: before and behind the softmax.
        let scores = 2 * prior.nhead * cells * cells;
        let group = KEPT_FEATURES * features + scores;
        Self {
            frozen,
            trained: F32 * trained,
            gradients: F32 * trained,
            moments: 2 * F32 * trained,
            average: F32 * trained,
            activations: F32 * batch * prior.depth * group,
        }
    }

    /// All together.
    pub fn total(&self) -> usize {
        let Self { frozen, trained, gradients, moments, average, activations } = self;
        frozen + trained + gradients + moments + average + activations
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: usize| bytes as f64 / f64::from(1u32 << 30);
        let Self { frozen, trained, gradients, moments, average, activations } = *self;
        write!(
            f,
            "{:.2} GiB: frozen weights {:.2}, trained ones {:.2}, gradients {:.2}, moments {:.2}, moving \
             average {:.2}, activations {:.2}",
            gib(self.total()),
            gib(frozen),
            gib(trained),
            gib(gradients),
            gib(moments),
            gib(average),
            gib(activations)
        )
    }
}
