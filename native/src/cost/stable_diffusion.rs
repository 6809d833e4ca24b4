//! Multiply-adds of Stable Diffusion 1.4 and 2.1, counted as those of our stages: convolutions and matrix products of
//! one picture.
//!
//! Source: the configs of `UNet2DConditionModel` and `AutoencoderKL` in CompVis/stable-diffusion-v1-4 and
//! stabilityai/stable-diffusion-2-1, and their code in diffusers.

/// Channels of the levels of the U-Net, the finest first; the last has no attention.
const WIDTHS: [usize; 4] = [320, 640, 1280, 1280];
/// Residual blocks of a level on the way down; there is one more on the way up.
const BLOCKS: usize = 2;
/// Width of the time embedding.
const TIME: usize = 1280;
/// Channels of the levels of the autoencoder, those of the picture first.
const AUTOENCODER_WIDTHS: [usize; 4] = [128, 256, 512, 512];
/// Channels of the latents.
const LATENTS: usize = 4;

/// A version of Stable Diffusion.
#[derive(Clone, Copy)]
pub(super) struct StableDiffusion {
    /// Its name.
    pub(super) name: &'static str,
    /// Side of its pictures in pixels.
    pub(super) side: usize,
    /// Width of the text embeddings.
    text_width: usize,
    /// Layers of the text encoder that are used.
    text_layers: usize,
    /// GPU hours (A100) that its training took, as the paper states them.
    pub(super) gpu_hours: usize,
}

pub(super) const VERSIONS: [StableDiffusion; 2] = [
    StableDiffusion {
        name: "Stable Diffusion 1.4",
        side: 512,
        text_width: 768,
        text_layers: 12,
        gpu_hours: 150_000,
    },
    StableDiffusion {
        name: "Stable Diffusion 2.1",
        side: 768,
        text_width: 1024,
        text_layers: 23,
        gpu_hours: 200_000,
    },
];

/// Tokens of a prompt.
const TOKENS: usize = 77;

fn conv(kernel: usize, input: usize, output: usize, pixels: usize) -> usize {
    kernel * kernel * input * output * pixels
}

/// Multiply-adds of two 3x3 convolutions, and of a 1x1 one where the channels change.
fn residual(input: usize, output: usize, pixels: usize) -> usize {
    let shortcut = if input == output { 0 } else { conv(1, input, output, pixels) };
    conv(3, input, output, pixels) + conv(3, output, output, pixels) + shortcut
}

impl StableDiffusion {
    /// Multiply-adds of self-attention, attention to the text and a gated MLP, between two 1x1 convolutions.
    fn transformer(self, c: usize, pixels: usize) -> usize {
        let own = 4 * c * c * pixels + 2 * pixels * pixels * c;
        let text = 2 * c * c * pixels + 2 * TOKENS * self.text_width * c + 2 * pixels * TOKENS * c;
        own + text + 12 * c * c * pixels + 2 * conv(1, c, c, pixels)
    }

    /// Multiply-adds of one prediction of the U-Net.
    pub(super) fn unet(self) -> usize {
        let side = self.side / 8;
        let pixels = |level: usize| (side >> level) * (side >> level);
        let last = WIDTHS.len() - 1;
        let block = |input: usize, level: usize| {
            let (width, pixels) = (WIDTHS[level], pixels(level));
            let attention = if level == last { 0 } else { self.transformer(width, pixels) };
            residual(input, width, pixels) + TIME * width + attention
        };
        let mut total = WIDTHS[0] * TIME + TIME * TIME;
        total += 2 * conv(3, LATENTS, WIDTHS[0], pixels(0));
        let mut width = WIDTHS[0];
        let mut skips = vec![width];
        for (level, &wide) in WIDTHS.iter().enumerate() {
            for _ in 0..BLOCKS {
                total += block(width, level);
                width = wide;
                skips.push(width);
            }
            if level < last {
                total += conv(3, width, width, pixels(level + 1));
                skips.push(width);
            }
        }
        total += 2 * (residual(width, width, pixels(last)) + TIME * width)
            + self.transformer(width, pixels(last));
        for level in (0..=last).rev() {
            for _ in 0..=BLOCKS {
                let skip = skips.pop().expect("as many blocks up as there are skips");
                total += block(width + skip, level);
                width = WIDTHS[level];
            }
            if level > 0 {
                total += conv(3, width, width, pixels(level - 1));
            }
        }
        total
    }

    /// Multiply-adds of decoding latents to a picture.
    pub(super) fn decoder(self) -> usize {
        self.autoencoder(BLOCKS + 1, LATENTS)
    }

    /// Multiply-adds of encoding a picture to the mean and variance of its latents.
    pub(super) fn encoder(self) -> usize {
        self.autoencoder(BLOCKS, 2 * LATENTS)
    }

    fn autoencoder(self, blocks: usize, latents: usize) -> usize {
        let pixels = |level: usize| (self.side >> level) * (self.side >> level);
        let last = AUTOENCODER_WIDTHS.len() - 1;
        let deepest = AUTOENCODER_WIDTHS[last];
        let attention =
            4 * deepest * deepest * pixels(last) + 2 * pixels(last) * pixels(last) * deepest;
        let mut total = 2 * residual(deepest, deepest, pixels(last)) + attention;
        total += conv(1, latents, latents, pixels(last)) + conv(3, latents, deepest, pixels(last));
        total += conv(3, 3, AUTOENCODER_WIDTHS[0], pixels(0));
        let is_decoder = blocks > BLOCKS;
        for (level, &width) in AUTOENCODER_WIDTHS.iter().enumerate() {
            // The decoder comes from the level below, the encoder from the one above.
            let before = if is_decoder { (level + 1).min(last) } else { level.saturating_sub(1) };
            total += residual(AUTOENCODER_WIDTHS[before], width, pixels(level))
                + (blocks - 1) * residual(width, width, pixels(level));
            if level < last {
                let (width, level) = if is_decoder {
                    (AUTOENCODER_WIDTHS[level + 1], level)
                } else {
                    (width, level + 1)
                };
                total += conv(3, width, width, pixels(level));
            }
        }
        total
    }

    /// Multiply-adds of embedding one prompt.
    pub(super) fn text(self) -> usize {
        let c = self.text_width;
        self.text_layers * (12 * c * c * TOKENS + 2 * TOKENS * TOKENS * c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Table 1 of Kim et al., "BK-SDM" (arXiv 2305.15798), counts 339 G for the U-Net of version 1.4, 1,240 G for its
    /// decoder and 6.5 G for its text encoder, all without the products of queries, keys and values.
    #[test]
    fn counts_are_those_of_others() {
        let [version, _] = VERSIONS;
        let own = |c: usize, pixels: usize| 2 * pixels * pixels * c;
        let with_text = |c: usize, pixels: usize| own(c, pixels) + 2 * pixels * TOKENS * c;
        let levels = [(320, 64), (640, 32), (1280, 16)];
        let attention = levels.map(|(c, side)| 5 * with_text(c, side * side));
        let unet = attention.iter().sum::<usize>() + with_text(1280, 64);
        for (found, attention, expected) in [
            (version.unet(), unet, 339e9),
            (version.decoder(), own(512, 64 * 64), 1240e9),
            (version.text(), 12 * own(768, TOKENS), 6.5e9),
        ] {
            let ratio = (found - attention) as f64 / expected;
            assert!((0.99..1.01).contains(&ratio), "{found} is {ratio} times {expected}");
        }
    }
}
