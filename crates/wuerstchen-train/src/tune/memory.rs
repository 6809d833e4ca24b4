//! The memory that fine-tuning takes, counted in bytes.

use std::fmt;

use wuerstchen::PriorConfig;

/// Bytes of a number in f32.
const F32: usize = 4;

/// The memory that the training of a LoRA or of a whole Stage C takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The frozen weights, as they are stored.
    pub frozen: usize,
    /// The trained weights.
    pub trained: usize,
    /// Their gradients.
    pub gradients: usize,
    /// The moments of the optimizer.
    pub moments: usize,
    /// The moving average, if one is kept.
    pub average: usize,
    /// The activations that the forward pass keeps for the backward pass.
    pub activations: usize,
}

/// Values that a group of a residual, a timestep and an attention block keeps for its backward pass, as a multiple of
/// the values of its features: the inputs of the convolution and its norm, GELU's input and output, those of the
/// response norm and of the scaling, the attention's norm, queries, keys, values and result, and the sums.
const KEPT_FEATURES: usize = 2 + 4 + 4 + 4 + 2 + 6;

/// Values that a group keeps of the text, as a multiple of the values of its embedding: after the activation, after the
/// linear layer, and among the keys and the values.
const KEPT_TEXT: usize = 4;

/// Values of a dropout mask, as a multiple of the values of the features.
const MASK: usize = 4;

/// What is trained, and how much of a batch is in memory at a time.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Bytes of the frozen weights, as they are stored.
    pub frozen: usize,
    /// How many numbers are trained.
    pub trained: usize,
    /// How many moments the optimizer keeps for them.
    pub moments: usize,
    /// Whether a moving average of them is kept.
    pub average: bool,
    /// Whether the backward pass computes features again.
    pub recompute: bool,
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
        let Work { frozen, trained, moments, average, recompute, cells, tokens, batch, shares } =
            *work;
        // Every head keeps a matrix of scores after the softmax.
        let scores = prior.nhead * cells * (cells + tokens);
        let text = KEPT_TEXT * tokens * prior.c;
        let features = cells * prior.c;
        let mask = if prior.dropout > 0.0 { MASK * features } else { 0 };
        let group = F32 * (KEPT_FEATURES * features + mask + scores + text);
        // With recomputation: the input and the mask of every group, one byte for each value of the mask, and all
        // values of one group.
        let groups = if recompute {
            prior.depth * (F32 * features + mask) + group
        } else {
            prior.depth * group
        };
        Self {
            frozen,
            trained: F32 * trained,
            gradients: F32 * trained * shares,
            moments: F32 * moments,
            average: if average { F32 * trained } else { 0 },
            activations: batch * groups,
        }
    }

    /// The sum of all.
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
    use burn::prelude::*;
    use wuerstchen::PartConfig;
    use wuerstchen::weights::shapes;

    use super::*;
    use crate::optimizer::Method;

    /// Parameters of the published Stage C.
    const PARAMETERS: usize = 993_636_896;

    /// A workstation's GPU.
    const GPU: usize = 24_000_000_000;

    fn prior(dropout: f64) -> PriorConfig {
        PriorConfig { c_in: 16, c: 1536, c_cond: 1280, c_r: 64, depth: 32, nhead: 24, dropout }
    }

    /// A batch of pictures of `side` cells.
    fn work(side: usize, batch: usize) -> Work {
        Work {
            frozen: 0,
            trained: PARAMETERS,
            moments: 2 * PARAMETERS,
            average: true,
            recompute: false,
            cells: side * side,
            tokens: 77,
            batch,
            shares: 1,
        }
    }

    /// All weights with recomputation, and no moving average.
    fn whole(method: Method, side: usize, batch: usize) -> Memory {
        let shapes = shapes(&prior(0.1).init(&Device::flex()), PriorConfig::KEYS);
        let trained = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(trained, PARAMETERS);
        let moments = shapes.iter().map(|(_, shape)| method.moments(shape)).sum();
        let own = Work { trained, moments, average: false, recompute: true, ..work(side, batch) };
        Memory::count(&prior(0.1), &own)
    }

    /// Rank 16 beside the four projections of 32 blocks, the weights in f16: one picture of 1024 pixels, or
    /// eight of 512, in 10 GB.
    #[test]
    fn a_lora_of_the_published_model_fits_in_ten_gigabytes() {
        let trained = 32 * 4 * 16 * (1536 + 1536);
        for (side, batch) in [(24, 1), (12, 8)] {
            let own =
                Work { frozen: 2 * PARAMETERS, trained, moments: 2 * trained, ..work(side, batch) };
            let memory = Memory::count(&prior(0.0), &own);
            assert!(memory.total() < 10_000_000_000, "{memory}");
            assert!(memory.activations > memory.frozen, "{memory}");
            let memory = Memory::count(&prior(0.0), &Work { recompute: true, ..own });
            assert!(memory.activations < memory.frozen, "{memory}");
        }
    }

    /// Weights, gradients, two moments and the average in f32.
    #[test]
    fn all_weights_of_the_published_model_take_twenty_gigabytes_and_activations() {
        let memory = Memory::count(&prior(0.1), &work(12, 1));
        assert_eq!(memory.total() - memory.activations, 20 * PARAMETERS);
    }

    /// Eight pictures of 512 and of 1024 pixels: 8.6 and 10.8 GB with Adafactor, 16.6 and 18.8 with AdamW, 20.5 and
    /// 22.7 with AdamW and a moving average. Without recomputation the larger ones do not fit even without moments.
    #[test]
    fn all_weights_of_the_published_model_fit_with_recomputation() {
        for (side, adafactor, adamw) in [(12, 8.7e9, 16.6e9), (24, 10.9e9, 18.8e9)] {
            for (method, most) in [(Method::Adafactor, adafactor), (Method::AdamW, adamw)] {
                let memory = whole(method, side, 8);
                assert!((memory.total() as f64) < most, "{memory}");
            }
            assert!(whole(Method::AdamW, side, 8).total() + 4 * PARAMETERS < GPU);
        }
        let kept = Work { moments: 0, average: false, ..work(24, 8) };
        assert!(Memory::count(&prior(0.1), &kept).total() > GPU);
        // A hundredth of a byte for each weight, where AdamW keeps eight.
        assert!(whole(Method::Adafactor, 12, 8).moments < PARAMETERS / 50);
    }
}
