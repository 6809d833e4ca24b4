//! Conditioning on the diffusion time.

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;

use super::linear::{affine, linear_layer};

/// Configuration of a [`TimestepBlock`].
#[derive(Clone, Debug)]
pub struct TimestepBlockConfig {
    /// Number of feature channels `C`.
    pub channels: usize,
    /// Width `R` of the time embedding (`c_r` of the published configs).
    pub time_embedding: usize,
    /// What else the block is conditioned on.
    pub further: FurtherConditions,
}

/// Numbers besides the time that Stable Cascade's blocks are conditioned on, each embedded as the time is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FurtherConditions {
    /// Whether blocks have the condition `sca`.
    pub sca: bool,
    /// Whether blocks have the condition `crp`.
    pub crp: bool,
}

/// Scales and shifts every channel by an affine function of the time embedding.
///
/// `y = x·(1 + a) + b`, where `[a, b]` is one linear map of the embedding, plus one of every further
/// condition's.
///
/// Source: `TimestepBlock` in `modules.py` of dome272/Wuerstchen, with conditions in
/// `modules/common.py` of Stability-AI/StableCascade.
#[derive(Module, Debug)]
pub struct TimestepBlock {
    /// Maps `[B, R]` to `[B, 2C]`. Checkpoints call it `mapper`, which `derive(Module)` reserves.
    pub scale_shift: Linear,
    /// The same for `sca`.
    pub mapper_sca: Option<Linear>,
    /// The same for `crp`.
    pub mapper_crp: Option<Linear>,
}

impl TimestepBlockConfig {
    /// Initializes the block as the identity on `device`.
    pub fn init(&self, device: &Device) -> TimestepBlock {
        let zero = || linear_layer(self.time_embedding, 2 * self.channels, 0.0, device);
        TimestepBlock {
            scale_shift: zero(),
            mapper_sca: self.further.sca.then(zero),
            mapper_crp: self.further.crp.then(zero),
        }
    }
}

impl TimestepBlock {
    /// Conditions `x` on the time embedding.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, H, W, C]`
    /// - `time_embedding`: `[B, R]`, followed by those of `sca` and `crp` where the block has them
    pub fn forward(&self, x: Tensor<4>, time_embedding: Tensor<2>) -> Tensor<4> {
        let [batch, .., channels] = x.dims();
        let further = || [&self.mapper_sca, &self.mapper_crp].into_iter().flatten();
        let mut parts = time_embedding.chunk(1 + further().count(), 1).into_iter();
        let mut next = || parts.next().expect("one embedding a map");
        let ab = affine(&self.scale_shift, next());
        let ab = further().fold(ab, |ab, map| ab + affine(map, next()));
        let ab = ab.reshape([batch, 1, 1, 2 * channels]);
        let a = ab.clone().narrow(3, 0, channels);
        let b = ab.narrow(3, channels, channels);
        x * (a + 1.0) + b
    }
}

/// Ratio of the highest to the lowest frequency of the time embedding, and the highest frequency.
const MAX_POSITIONS: f64 = 10_000.0;

/// Sinusoidal embedding of the diffusion times `t` in `[0, 1]`, of width `size`.
///
/// The arguments reach 10⁴, where one unit in the last place of f32 is 10⁻³ radians. So the values are computed
/// on the CPU, with the f32 roundings of the reference, whose exponential is exact to the last place.
///
/// Source: `gen_r_embedding` in `modules.py` of dome272/Wuerstchen.
///
/// # Shapes
///
/// - output: `[B, size]`: the sines, the cosines, and a zero if `size` is odd
pub fn time_embedding(times: &[f32], size: usize, device: &Device) -> Tensor<2> {
    let half = size / 2;
    let step = (libm::log(MAX_POSITIONS) / (half as f64 - 1.0)) as f32;
    let frequency = |i: usize| libm::exp(f64::from(-(i as f32) * step)) as f32;
    let mut values = Vec::with_capacity(times.len() * size);
    for t in times {
        let argument = |i: usize| f64::from(t * MAX_POSITIONS as f32 * frequency(i));
        values.extend((0..half).map(|i| libm::sin(argument(i)) as f32));
        values.extend((0..half).map(|i| libm::cos(argument(i)) as f32));
        values.extend((2 * half..size).map(|_| 0.0));
    }
    Tensor::from_data(TensorData::new(values, [times.len(), size]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_as_the_identity() {
        let device = Device::flex();
        let config = TimestepBlockConfig {
            channels: 3,
            time_embedding: 4,
            further: FurtherConditions::default(),
        };
        let block = config.init(&device);
        let x = Tensor::<4>::random([1, 2, 2, 3], burn::tensor::Distribution::Default, &device);
        let y = block.forward(x.clone(), Tensor::ones([1, 4], &device));
        y.into_data().assert_eq(&x.into_data(), true);
    }

    /// At t = 0 every sine is 0 and every cosine 1; an odd width ends with a zero.
    #[test]
    fn embedding_of_time_zero() {
        let embedding = time_embedding(&[0.0], 5, &Device::flex());
        let expected = TensorData::from([[0.0f32, 0.0, 1.0, 1.0, 0.0]]);
        embedding.into_data().assert_eq(&expected, true);
    }
}
