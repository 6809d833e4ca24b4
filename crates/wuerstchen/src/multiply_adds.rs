//! How many multiply-adds a forward pass takes, so that times of implementations can be compared.
//!
//! Counts convolutions and matrix products of one picture; norms, activations and sums are left out.

use crate::compressor::{BlockKind, CompressorConfig};
use crate::decoder::DecoderConfig;
use crate::prior::PriorConfig;
use crate::text::TextEncoderConfig;
use crate::token_decoder::TokenDecoderConfig;
use crate::vqgan::VqganConfig;

fn res_block(pixels: usize, channels: usize, kernel: usize) -> usize {
    pixels * channels * (kernel * kernel + 8 * channels)
}

fn attention_block(pixels: usize, tokens: usize, channels: usize, condition: usize) -> usize {
    let projections = channels * channels * (4 * pixels + 2 * tokens);
    projections + tokens * condition * channels + 2 * pixels * (pixels + tokens) * channels
}

impl PriorConfig {
    /// Multiply-adds of one prediction at `[height, width]` with `tokens` text tokens.
    pub fn multiply_adds(&self, [height, width]: [usize; 2], tokens: usize) -> usize {
        let (pixels, c) = (height * width, self.c);
        let group =
            res_block(pixels, c, 3) + 2 * c * self.c_r + attention_block(pixels, tokens, c, c);
        self.depth * group + pixels * c * 3 * self.c_in + tokens * c * (self.c_cond + c)
    }
}

impl DecoderConfig {
    /// Multiply-adds of one prediction of latents `[height, width]` with `tokens` text tokens.
    pub fn multiply_adds(&self, [height, width]: [usize; 2], tokens: usize) -> usize {
        let patch = self.patch_size * self.patch_size;
        let pixels = |level: usize| height * width / (patch << (2 * level));
        let mut total = tokens * self.clip_embd * self.c_cond
            + pixels(0) * self.c_hidden[0] * patch * (self.c_in + 2 * self.c_out);
        for (level, &c) in self.c_hidden.iter().enumerate() {
            // The layer that widens the image embedding is folded into each block's own.
            let image = if self.inject_effnet[level] {
                4 * c * ((self.effnet_embd + 1) * self.c_cond + pixels(level) * self.effnet_embd)
            } else {
                0
            };
            let blocks = |letter| self.letters(level).matches(letter).count() * self.blocks[level];
            let way = blocks('C') * (res_block(pixels(level), c, self.kernel_size) + image)
                + blocks('T') * 2 * c * self.c_r
                + blocks('A') * attention_block(pixels(level), tokens, c, self.c_cond);
            total += 2 * way;
            if level + 1 < self.levels() {
                let next = self.c_hidden[level + 1];
                // The U-Net skip of the first block on the way up, and both changes of resolution.
                total += pixels(level) * c * 4 * c + 2 * pixels(level + 1) * 4 * c * next;
            }
        }
        total
    }
}

impl TokenDecoderConfig {
    /// Multiply-adds of the logits of `[height, width]` tokens with `conditions` cells of the image embedding and
    /// text tokens.
    pub fn multiply_adds(&self, [height, width]: [usize; 2], conditions: usize) -> usize {
        let patch = self.patch_size * self.patch_size;
        let pixels = |level: usize| height * width / (patch << (2 * level));
        let mut total = conditions * self.byt5_embd.max(self.effnet_embd) * self.c_cond
            + 2 * pixels(0) * self.c_hidden[0] * patch * self.c_in
            + height * width * self.c_out * self.num_labels;
        for (level, &c) in self.c_hidden.iter().enumerate() {
            let blocks = |letter| self.letters(level).matches(letter).count() * self.blocks[level];
            let way = blocks('C') * res_block(pixels(level), c, self.kernel_size)
                + blocks('T') * 2 * c * self.c_r
                + blocks('A') * attention_block(pixels(level), conditions, c, self.c_cond);
            total += 2 * way;
            if level + 1 < self.levels() {
                let next = self.c_hidden[level + 1];
                // The second channel of the skip's convolution, and both changes of resolution.
                total += pixels(level) * c * self.kernel_size * self.kernel_size
                    + 2 * pixels(level + 1) * 4 * c * next;
            }
        }
        total
    }
}

impl VqganConfig {
    /// Multiply-adds of decoding latents `[height, width]`.
    pub fn decode_multiply_adds(&self, [height, width]: [usize; 2]) -> usize {
        let mut total = height * width * self.latent_channels * self.embed_dim;
        for level in 0..self.levels {
            let (pixels, c) = ((height * width) << (2 * level), self.embed_dim >> level);
            let blocks = if level == 0 { self.bottleneck_blocks } else { 1 };
            total += blocks * pixels * c * (9 + 8 * c);
            if level + 1 < self.levels {
                total += pixels * 16 * c * (c / 2);
            }
        }
        let (pixels, c) = ((height * width) << (2 * (self.levels - 1)), self.embed_dim);
        let patch = self.up_down_scale_factor * self.up_down_scale_factor;
        total + pixels * (c >> (self.levels - 1)) * self.out_channels * patch
    }

    /// Multiply-adds of encoding a picture to latents `[height, width]`.
    pub fn encode_multiply_adds(&self, [height, width]: [usize; 2]) -> usize {
        let patch = self.up_down_scale_factor * self.up_down_scale_factor;
        let mut total = height * width * self.embed_dim * self.latent_channels;
        for level in 0..self.levels {
            let (pixels, c) = ((height * width) << (2 * level), self.embed_dim >> level);
            total += pixels * c * (9 + 8 * c);
            // From the level above: pixels of the picture, or a 4x4 convolution of half as many channels.
            let input =
                if level + 1 == self.levels { self.in_channels * patch } else { 16 * (c / 2) };
            total += pixels * c * input;
        }
        total
    }
}

impl TextEncoderConfig {
    /// Multiply-adds of embedding one prompt.
    pub fn multiply_adds(&self) -> usize {
        let (tokens, width) = (self.max_position_embeddings, self.hidden_size);
        let layer =
            tokens * width * (4 * width + 2 * self.intermediate_size) + 2 * tokens * tokens * width;
        self.num_hidden_layers * layer
    }
}

impl CompressorConfig {
    /// Multiply-adds of the image embedding of a picture `[height, width]`.
    pub fn multiply_adds(&self, [height, width]: [usize; 2]) -> usize {
        let (mut sides, mut input) = ([height, width].map(|side| side.div_ceil(2)), self.stem);
        let mut total = sides[0] * sides[1] * 27 * self.stem;
        for stage in &self.stages {
            for layer in 0..stage.layers {
                let (inner, output) = (stage.expand * input, stage.channels);
                let area = stage.kernel * stage.kernel;
                let before = sides[0] * sides[1];
                if layer == 0 {
                    sides = sides.map(|side| side.div_ceil(stage.stride));
                }
                let pixels = sides[0] * sides[1];
                total += match stage.block {
                    BlockKind::Fused if stage.expand == 1 => pixels * area * input * output,
                    BlockKind::Fused => pixels * inner * (area * input + output),
                    BlockKind::Inverted => {
                        let squeezed = 2 * inner * (input / 4).max(1);
                        before * input * inner + pixels * inner * (area + output) + squeezed
                    }
                };
                input = output;
            }
        }
        total + sides[0] * sides[1] * self.head * (input + self.c_latent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One pixel, one channel, no text: 9 + 4 + 4 for the residual block, 2 for the time, 4 + 2 for
    /// the attention, 3 in and out.
    #[test]
    fn smallest_prior_counted_by_hand() {
        let config =
            PriorConfig { c_in: 1, c: 1, c_cond: 1, c_r: 1, depth: 1, nhead: 1, dropout: 0.0 };
        assert_eq!(config.multiply_adds([1, 1], 0), 17 + 2 + 6 + 3);
    }
}
