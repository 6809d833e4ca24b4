//! Counts which codes of Stage A's codebook the latents choose, and moves the codes to their latents.

use burn::module::{Module, Param};
use burn::prelude::*;
use wuerstchen::Vqgan;
use wuerstchen::noise::Philox;

use crate::config::CodebookConfig;
use crate::lots::stream;

/// The purpose of the random numbers that choose latents for dead codes.
const REVIVAL: u64 = 203;

/// Latents of a batch that can take the places of dead codes in one update.
pub(crate) const CANDIDATES: usize = 256;

/// Moving averages over the latents of every code. No gradient trains them.
#[derive(Module, Debug)]
pub struct CodebookAverages {
    /// The share of the latents that choose the code, `[K]`.
    shares: Param<Tensor<1>>,
    /// The sum of these latents, divided by the number of all latents, `[K, C]`.
    sums: Param<Tensor<2>>,
}

impl CodebookAverages {
    /// Starts as if all codes were equally frequent and their latents lay on them.
    pub fn new(vqgan: &Vqgan) -> Self {
        let codes = vqgan.codebook();
        let ([count, channels], device) = (codes.dims(), codes.device());
        let share = 1.0 / count as f32;
        let sums: Vec<f32> = floats(codes).into_iter().map(|value| value * share).collect();
        let sums = Tensor::from_data(TensorData::new(sums, [count, channels]), &device);
        let shares = Tensor::from_data(TensorData::new(vec![share; count], [count]), &device);
        Self {
            shares: Param::from_tensor(shares).set_require_grad(false),
            sums: Param::from_tensor(sums).set_require_grad(false),
        }
    }

    /// Moves the averages towards the batch, and the codes to their averages; replaces dead codes.
    ///
    /// Only codes that the batch chooses move: both averages of another code decay alike, so their quotient stays the
    /// same.
    pub(crate) fn follow(
        self,
        vqgan: Vqgan,
        config: &CodebookConfig,
        batch: &Latents,
        (seed, step): (u64, u64),
    ) -> (Self, Vqgan) {
        let (mut shares, mut sums) = (floats(self.shares.val()), floats(self.sums.val()));
        let (mut codes, channels) = (floats(vqgan.codebook()), batch.channels);
        let (decay, rest) = (config.decay as f32, (1.0 - config.decay) as f32);
        for (code, (share, &new)) in shares.iter_mut().zip(&batch.shares).enumerate() {
            let places = code * channels..(code + 1) * channels;
            *share = *share * decay + new * rest;
            for (sum, new) in sums[places.clone()].iter_mut().zip(&batch.sums[places.clone()]) {
                *sum = *sum * decay + new * rest;
            }
            if new > 0.0 {
                for place in places {
                    codes[place] = sums[place] / *share;
                }
            }
        }
        let equal = 1.0 / shares.len() as f32;
        let dead = |&code: &usize| shares[code] < config.revive_below as f32 * equal;
        let dead: Vec<_> = (0..shares.len()).filter(dead).collect();
        let mut rng = stream(seed, REVIVAL, step);
        let mut candidates: Vec<_> = batch.candidates.chunks(channels).collect();
        for code in chosen(&mut rng, dead, candidates.len()) {
            let latent = candidates.swap_remove(rng.below(candidates.len() as u32) as usize);
            shares[code] = equal;
            for (channel, &value) in latent.iter().enumerate() {
                codes[code * channels + channel] = value;
                sums[code * channels + channel] = value * equal;
            }
        }
        let averages =
            Self { shares: with_values(self.shares, shares), sums: with_values(self.sums, sums) };
        (averages, vqgan.with_codebook(codes))
    }
}

/// At most `most` of `codes`, each as likely as the others.
fn chosen(rng: &mut Philox, mut codes: Vec<usize>, most: usize) -> Vec<usize> {
    for i in 0..codes.len().min(most) {
        let other = i + rng.below((codes.len() - i) as u32) as usize;
        codes.swap(i, other);
    }
    codes.truncate(most);
    codes
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec::<f32>().expect("weights are f32")
}

/// A parameter without a gradient, with other values.
fn with_values<const D: usize>(param: Param<Tensor<D>>, values: Vec<f32>) -> Param<Tensor<D>> {
    param.map(|old| Tensor::from_data(TensorData::new(values, old.shape()), &old.device()))
}

/// What an update needs to know about the latents of its batch, or of a share of the batch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Latents {
    /// Number of values of a latent.
    channels: usize,
    /// The share of the latents that choose each code.
    shares: Vec<f32>,
    /// The sum of the latents of each code, divided by the number of all latents; empty if codes have gradients.
    sums: Vec<f32>,
    /// Latents that can take the places of dead codes; empty if codes have gradients.
    candidates: Vec<f32>,
}

/// The latents that a share of a batch offers for dead codes.
pub(crate) struct Offer<'a> {
    /// A random number in `[0, 1)` for every latent that the whole batch offers.
    pub(crate) places: &'a [f32],
    /// The number of the share, from 0, and the number of shares.
    pub(crate) share: [usize; 2],
}

impl Latents {
    /// Counts the codes that the latents chose. `indices` has the code of each latent, in the order of batch, height
    /// and width. `latents` are the latents in the same order; only codes without gradients need them.
    pub(crate) fn new(indices: &[i64], codes: usize, latents: Option<(&[f32], Offer<'_>)>) -> Self {
        let weight = 1.0 / indices.len() as f32;
        let mut counts = vec![0u32; codes];
        indices.iter().for_each(|&index| counts[index as usize] += 1);
        let shares = counts.into_iter().map(|count| count as f32 * weight).collect();
        let Some((rows, offer)) = latents else {
            return Self { channels: 0, shares, sums: Vec::new(), candidates: Vec::new() };
        };
        let channels = rows.len() / indices.len();
        let mut sums = vec![0.0; codes * channels];
        for (row, &index) in rows.chunks(channels).zip(indices) {
            let sum = &mut sums[index as usize * channels..][..channels];
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        sums.iter_mut().for_each(|sum| *sum *= weight);
        let [share, shares_in_all] = offer.share;
        let mut candidates = vec![0.0; offer.places.len() * channels];
        let offered = candidates.chunks_mut(channels).zip(offer.places).enumerate();
        // The other shares have zeros in the places of this one. The factor undoes the mean over all shares.
        for (_, (candidate, place)) in offered.filter(|(i, _)| i % shares_in_all == share) {
            let row = ((place * indices.len() as f32) as usize).min(indices.len() - 1);
            for (to, from) in candidate.iter_mut().zip(&rows[row * channels..]) {
                *to = from * shares_in_all as f32;
            }
        }
        Self { channels, shares, sums, candidates }
    }

    /// All numbers as one list. The mean of the lists of all shares is the list of the batch.
    pub(crate) fn to_list(&self) -> Vec<f32> {
        [&self.shares[..], &self.sums, &self.candidates].concat()
    }

    /// Reads a list of [`Self::to_list`], for `codes` codes of `channels` values; `channels` is 0 if the list has no
    /// latents.
    pub(crate) fn from_list(list: &[f32], codes: usize, channels: usize) -> Self {
        let (shares, rest) = list.split_at(codes);
        let (sums, candidates) = rest.split_at(codes * channels);
        let [shares, sums, candidates] = [shares, sums, candidates].map(<[f32]>::to_vec);
        Self { channels, shares, sums, candidates }
    }

    /// The share of the codes that are chosen.
    pub(crate) fn used(&self) -> f64 {
        let used = self.shares.iter().filter(|&&share| share > 0.0).count();
        used as f64 / self.shares.len() as f64
    }

    /// The number of codes that would be chosen equally often with the same entropy.
    pub(crate) fn perplexity(&self) -> f64 {
        let shares = self.shares.iter().map(|&share| f64::from(share)).filter(|&share| share > 0.0);
        shares.map(|share| -share * share.ln()).sum::<f64>().exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wuerstchen::{PartConfig, VqganConfig};

    const PLACES: [f32; 2] = [0.0, 0.9];

    /// Four latents of two values: codes 0, 0, 1 and 0 of four.
    fn latents(share: [usize; 2]) -> Latents {
        let rows = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0];
        let offer = Offer { places: &PLACES, share };
        Latents::new(&[0, 0, 1, 0], 4, Some((&rows, offer)))
    }

    #[test]
    fn latents_are_counted_by_hand() {
        let latents = latents([0, 1]);
        assert_eq!(latents.shares, [0.75, 0.25, 0.0, 0.0]);
        assert_eq!(latents.sums[..4], [7.0 / 4.0, 70.0 / 4.0, 3.0 / 4.0, 30.0 / 4.0]);
        assert_eq!(latents.candidates, [1.0, 10.0, 4.0, 40.0]);
        assert_eq!(latents.used(), 0.5);
        // 0.75·ln(4/3) + 0.25·ln 4 = 0.5623
        assert!((latents.perplexity() - 0.562_335f64.exp()).abs() < 1e-5);
        assert_eq!(Latents::from_list(&latents.to_list(), 4, 2), latents);
    }

    /// Each of two shares offers every second latent, and their mean all of them.
    #[test]
    fn shares_offer_latents_by_turns() {
        let mean = |a: Vec<f32>, b: Vec<f32>| -> Vec<f32> {
            a.iter().zip(&b).map(|(a, b)| (a + b) * 0.5).collect()
        };
        let list = mean(latents([0, 2]).to_list(), latents([1, 2]).to_list());
        assert_eq!(Latents::from_list(&list, 4, 2), latents([0, 1]));
    }

    /// With a decay of a half: code 0 had a quarter of the latents, and gets three quarters, whose mean is (7/3, 70/3).
    /// Codes 2 and 3 are dead after two updates without latents.
    #[test]
    fn codes_follow_their_latents_and_the_dead_rise() {
        let device = Device::flex();
        let config = VqganConfig {
            in_channels: 3,
            out_channels: 3,
            up_down_scale_factor: 2,
            levels: 1,
            bottleneck_blocks: 1,
            embed_dim: 4,
            latent_channels: 2,
            num_vq_embeddings: 4,
            scale_factor: 1.0,
        };
        let codes = vec![0.0, 8.0, 5.0, 5.0, 6.0, 6.0, 7.0, 7.0];
        let vqgan = config.init(&device).with_codebook(codes);
        let averages = CodebookAverages::new(&vqgan);
        let config = CodebookConfig { decay: 0.5, revive_below: 0.3 };
        let batch = latents([0, 1]);
        let (averages, vqgan) = averages.follow(vqgan, &config, &batch, (1, 0));
        // Shares (0.25 + 0.75)/2 and (0 + 1.75)/2, (2 + 17.5)/2 for the sums.
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        let found = floats(vqgan.codebook());
        assert!(near(&found, &[1.75, 19.5, 4.0, 17.5, 6.0, 6.0, 7.0, 7.0]), "{found:?}");
        // Codes 2 and 3 have the share 1/8 = 0.5/4 now, and 0.25/4 below 0.3/4 in the next update.
        let (averages, vqgan) = averages.follow(vqgan, &config, &batch, (1, 1));
        let found = floats(vqgan.codebook());
        let mut revived = [found[4..6].to_vec(), found[6..8].to_vec()];
        revived.sort_by(|a, b| a[0].total_cmp(&b[0]));
        assert_eq!(revived, [[1.0, 10.0], [4.0, 40.0]]);
        assert_eq!(floats(averages.shares.val())[2..], [0.25, 0.25]);
        assert!(!averages.shares.is_require_grad() && !averages.sums.is_require_grad());
    }
}
