//! The random numbers of samples, and random choices.

use wuerstchen::noise::Philox;

/// Streams of random numbers are numbered by the index of the sample plus a purpose in these high
/// bits, so that no two purposes share random numbers.
const PURPOSE_SHIFT: u32 = 56;

/// The random numbers of a sample for a purpose.
pub(crate) fn stream(seed: u64, purpose: u64, index: u64) -> Philox {
    assert!(index >> PURPOSE_SHIFT == 0, "index {index} is not below 2⁵⁶");
    Philox::new(seed, purpose << PURPOSE_SHIFT | index)
}

/// One of `choices`, each as likely as the others.
pub(crate) fn pick<T: Copy>(random: &mut Philox, choices: &[T]) -> T {
    choices[random.below(choices.len() as u32) as usize]
}
