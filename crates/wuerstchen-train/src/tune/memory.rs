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

/// What is trained, and on how much at a time.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Bytes of the frozen weights, as they are stored.
    pub frozen: usize,
    /// How many numbers are trained.
    pub trained: usize,
    /// Cells of an image embedding.
    pub cells: usize,
    /// Tokens of a prompt.
    pub tokens: usize,
    /// Pictures whose activations are held at a time.
    pub batch: usize,
    /// Shares of a batch whose gradients are held at a time.
    pub shares: usize,
}

impl Memory {
    /// Counts for a Stage C of these sizes, as the CPU's kernels keep values.
    pub fn count(prior: &PriorConfig, work: &Work) -> Self {
        let Work { frozen, trained, cells, tokens, batch, shares } = *work;
        // Two matrices of scores a head: before and behind the softmax.
        let scores = 2 * prior.nhead * cells * (cells + tokens);
        let group = KEPT_FEATURES * cells * prior.c + scores;
        Self {
            frozen,
            trained: F32 * trained,
            gradients: F32 * trained * shares,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters of the published Stage C.
    const PARAMETERS: usize = 993_636_896;

    fn published(trained: usize, frozen: usize, side: usize, batch: usize) -> Memory {
        let prior = PriorConfig {
            c_in: 16,
            c: 1536,
            c_cond: 1280,
            c_r: 64,
            depth: 32,
            nhead: 24,
            dropout: 0.1,
        };
        let work = Work { frozen, trained, cells: side * side, tokens: 77, batch, shares: 1 };
        Memory::count(&prior, &work)
    }

    /// Rank 16 beside the four projections of 32 blocks, the weights in f16: one picture of 1024 pixels, or
    /// eight of 512, in 10 GB.
    #[test]
    fn a_lora_of_the_published_model_fits_in_ten_gigabytes() {
        let trained = 32 * 4 * 16 * (1536 + 1536);
        for (side, batch) in [(24, 1), (12, 8)] {
            let memory = published(trained, 2 * PARAMETERS, side, batch);
            assert!(memory.total() < 10_000_000_000, "{memory}");
            assert!(memory.activations > memory.frozen, "{memory}");
        }
    }

    /// Weights, gradients, two moments and the average in f32.
    #[test]
    fn all_weights_of_the_published_model_take_twenty_gigabytes_and_activations() {
        let memory = published(PARAMETERS, 0, 12, 1);
        assert_eq!(memory.total() - memory.activations, 20 * PARAMETERS);
    }
}
