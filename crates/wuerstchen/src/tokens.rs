//! Noise, losses and draws of tokens, the numbers of Stage A's codes.

use burn::prelude::*;
use burn::tensor::activation::{log_softmax, softmax};
use serde::{Deserialize, Serialize};

/// How a token is chosen from its logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum TokenSampling {
    /// The token is drawn with the probabilities that the logits say
    #[default]
    Multinomial,
    /// The token is the likeliest one
    Argmax,
    /// The token is the one whose code is nearest to the mean of all codes, weighted by their probabilities
    Quant,
}

/// Which tokens are replaced at time `t`: those whose uniform number is at most `t`, so that `t` is their share.
///
/// Source: `Paella.add_noise` in `modules.py` of dome272/Wuerstchen.
pub fn replaced(uniform: &[f32], t: f32) -> impl Iterator<Item = bool> {
    uniform.iter().map(move |&u| u <= t)
}

/// Tokens with others in the place of those that are replaced.
///
/// # Panics
///
/// Panics if the three slices differ in length.
pub fn replace(tokens: &[i32], others: &[i32], replaced: &[bool]) -> Vec<i32> {
    assert!(tokens.len() == others.len() && tokens.len() == replaced.len(), "one for every token");
    let choices = tokens.iter().zip(others).zip(replaced);
    choices.map(|((&token, &other), &replaced)| if replaced { other } else { token }).collect()
}

/// Weight in the loss at time 0 of a token that is not replaced.
pub const LEAST_WEIGHT: f32 = 0.3;

/// Weight of a token in the loss at time `t`: 1 where it is replaced, else from `least` at time 0 to 1 at
/// time 1.
///
/// Source: `Paella.get_loss_weight` in `modules.py` of dome272/Wuerstchen.
pub fn loss_weight(replaced: bool, t: f32, least: f32) -> f32 {
    if replaced { 1.0 } else { 1.0 - (1.0 - t) * (1.0 - least) }
}

/// Share of the target that is spread over all tokens in training.
pub const LABEL_SMOOTHING: f64 = 0.1;

/// Cross-entropy of every token, its target smoothed:
/// `−(1 − ε)·log p_y − (ε/K)·Σ_k log p_k` with `ε` = [`LABEL_SMOOTHING`].
///
/// Source: Szegedy et al., "Rethinking the Inception architecture" (arXiv 1512.00567), section 7.
///
/// # Shapes
///
/// - logits: `[N, K]`
/// - targets, output: `[N]`
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let log = log_softmax(logits, 1);
    let of_target = log.clone().gather(1, targets.unsqueeze_dim(1)).squeeze_dim::<1>(1);
    let mean = log.mean_dim(1).squeeze_dim::<1>(1);
    -(of_target * (1.0 - LABEL_SMOOTHING) + mean * LABEL_SMOOTHING)
}

/// The loss of every sample: the mean of its tokens' losses, weighted.
///
/// # Shapes
///
/// - losses, weights: `[B, H·W]`
/// - output: `[B]`
pub fn weighted_means(losses: Tensor<2>, weights: Tensor<2>) -> Tensor<1> {
    let sums = (losses * weights.clone()).sum_dim(1) / weights.sum_dim(1);
    sums.squeeze_dim(1)
}

/// Probabilities of the tokens at a temperature above 0.
///
/// # Shapes
///
/// - logits, output: `[N, K]`
pub fn probabilities(logits: Tensor<2>, temperature: f32) -> Tensor<2> {
    softmax(logits / temperature, 1)
}

/// Draws a token of each distribution by its cumulative probabilities: the first token whose sum is above the
/// uniform number.
///
/// # Shapes
///
/// - probabilities: `[N, K]`
/// - uniform: `[N]` in `[0, 1)`
/// - output: `[N]`
pub fn draw(probabilities: Tensor<2>, uniform: Tensor<1>) -> Tensor<1, Int> {
    let [_, classes] = probabilities.dims();
    let sums = probabilities.cumsum(1);
    // The last sum may be slightly below 1: a uniform number above it would choose no token.
    let last = sums.clone().narrow(1, classes - 1, 1);
    let below = sums.lower_equal(uniform.unsqueeze_dim(1) * last);
    let token = below.int().sum_dim(1).squeeze_dim::<1>(1);
    token.clamp_max(classes as i64 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of probabilities 0.5, 0, 0.5 the second token is never drawn.
    #[test]
    fn tokens_are_drawn_by_their_probabilities() {
        let device = Device::flex();
        let probabilities = Tensor::<2>::from_data([[0.5, 0.0, 0.5]], &device).repeat_dim(0, 4);
        let uniform = Tensor::<1>::from_data([0.0, 0.49, 0.5, 0.999_999_94], &device);
        let drawn = draw(probabilities, uniform).into_data().convert::<i64>();
        assert_eq!(drawn.try_to_vec::<i64>().unwrap(), [0, 0, 2, 2]);
    }

    /// Three equal logits: every probability is a third, and the loss ln 3 whatever the smoothing.
    #[test]
    fn equal_logits_cost_the_logarithm_of_their_number() {
        let device = Device::flex();
        let loss = cross_entropy(
            Tensor::zeros([1, 3], &device),
            Tensor::<1, Int>::from_data([1], &device),
        );
        assert!((loss.into_scalar::<f32>() - 3.0f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn tokens_that_stay_count_less() {
        assert_eq!(loss_weight(true, 0.0, LEAST_WEIGHT), 1.0);
        assert!((loss_weight(false, 0.0, LEAST_WEIGHT) - 0.3).abs() < 1e-6);
        assert!((loss_weight(false, 0.5, LEAST_WEIGHT) - 0.65).abs() < 1e-6);
    }

    /// The bound belongs to those that are replaced.
    #[test]
    fn as_many_tokens_are_replaced_as_the_time_says() {
        let mask: Vec<bool> = replaced(&[0.2, 0.5, 0.7], 0.5).collect();
        assert_eq!(mask, [true, true, false]);
        assert_eq!(replace(&[1, 2, 3], &[4, 5, 6], &mask), [4, 5, 3]);
    }
}
