//! Which pixels a convolution connects.

use crate::depthwise_conv::{DepthwiseOptions, Padding};

/// The geometry of one convolution.
pub(super) struct Window {
    input: [usize; 2],
    pub(super) output: [usize; 2],
    pub(super) channels: usize,
    pub(super) size: usize,
    options: DepthwiseOptions,
}

impl Window {
    /// The geometry for an input of `[B, H, W, C]`.
    pub(super) fn new(shape: &[usize], size: usize, options: DepthwiseOptions) -> Self {
        let input = [shape[1], shape[2]];
        let output = input.map(|side| side.div_ceil(options.stride));
        Self { input, output, channels: shape[3], size, options }
    }

    /// `[C, K·K]` weights as `[K·K, C]`.
    pub(super) fn taps_of(&self, weight: &[f32]) -> Vec<f32> {
        let count = self.size * self.size;
        (0..weight.len()).map(|i| weight[i % self.channels * count + i / self.channels]).collect()
    }

    /// Calls `f(tap, input pixel, output column)` for every pair of pixels that the window connects in one row of the
    /// output.
    #[inline(always)]
    pub(super) fn for_each_tap(&self, row: usize, mut f: impl FnMut(usize, usize, usize)) {
        for column in 0..self.output[1] {
            for tap in 0..self.size * self.size {
                let y = self.source(row, tap / self.size, self.input[0]);
                let x = self.source(column, tap % self.size, self.input[1]);
                if let (Some(y), Some(x)) = (y, x) {
                    f(tap, y * self.input[1] + x, column);
                }
            }
        }
    }

    #[inline(always)]
    fn source(&self, output: usize, offset: usize, side: usize) -> Option<usize> {
        let position = (output * self.options.stride + offset) as isize - (self.size / 2) as isize;
        match self.options.padding {
            Padding::Zeros => usize::try_from(position).ok().filter(|&p| p < side),
            Padding::Replicate => Some(position.clamp(0, side as isize - 1) as usize),
        }
    }
}
