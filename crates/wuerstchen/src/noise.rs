//! Counter-based random numbers, so that one seed gives one picture on every device.

use std::f32::consts::TAU;

use burn::prelude::*;

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Philox4x32-10: a stateless block cipher turned into a stream of random numbers.
///
/// Streams of one seed are independent of each other, and a part of a stream can be skipped at no cost.
///
/// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
    stream: u64,
    block: u64,
    buffer: [u32; 4],
    used: usize,
}

impl Philox {
    /// Starts stream number `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        let key = [seed as u32, (seed >> 32) as u32];
        Self { key, stream, block: 0, buffer: [0; 4], used: 4 }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            let [block, stream] = [self.block, self.stream];
            let counter =
                [block as u32, (block >> 32) as u32, stream as u32, (stream >> 32) as u32];
            self.buffer = philox(counter, self.key);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.buffer[self.used - 1]
    }

    /// Skips the next `count` values of 32 bits.
    pub fn skip(&mut self, count: usize) {
        let left = 4 - self.used;
        if count <= left {
            self.used += count;
            return;
        }
        self.block += ((count - left) / 4) as u64;
        self.used = 4;
        for _ in 0..(count - left) % 4 {
            self.next_u32();
        }
    }

    /// Uniform in `[0, 1)`, a multiple of 2⁻²⁴.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform among `0..n`.
    ///
    /// # Panics
    ///
    /// Panics if `n` is 0.
    pub fn below(&mut self, n: u32) -> u32 {
        assert!(n > 0, "no number is below 0");
        ((u64::from(self.next_u32()) * u64::from(n)) >> 32) as u32
    }

    /// `count` independent standard normal numbers (Box–Muller, evaluated with `libm` so that every
    /// platform rounds alike).
    pub fn normal(&mut self, count: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            let radius = libm::sqrtf(-2.0 * libm::logf(1.0 - self.uniform()));
            let angle = TAU * self.uniform();
            values.push(radius * libm::cosf(angle));
            values.push(radius * libm::sinf(angle));
        }
        values.truncate(count);
        values
    }

    /// Standard normal noise of the given shape.
    pub fn normal_tensor(&mut self, shape: [usize; 4], device: &Device) -> Tensor<4> {
        let data = TensorData::new(self.normal(shape.iter().product()), shape);
        Tensor::from_data(data, device)
    }
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let low = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let high = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known-answer vectors of the Random123 distribution (`kat_vectors`, philox4x32 10).
    #[test]
    fn matches_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn numbers_are_skipped_as_if_drawn() {
        for drawn in 0..6 {
            for count in 0..14 {
                let mut one = Philox::new(3, 1);
                (0..drawn).for_each(|_| _ = one.next_u32());
                let mut other = one.clone();
                (0..count).for_each(|_| _ = one.next_u32());
                other.skip(count);
                assert_eq!(one.next_u32(), other.next_u32(), "{count} after {drawn}");
            }
        }
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let values = Philox::new(7, 0).normal(40_000);
        let mean = values.iter().sum::<f32>() / 40_000.0;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / 40_000.0;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }

    #[test]
    fn streams_differ_and_repeat() {
        let draw = |stream| Philox::new(1, stream).normal(8);
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
    }
}
