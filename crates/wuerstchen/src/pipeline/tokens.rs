//! Stage B over tokens: its sampling, and where the random numbers come from.

use std::ops::Range;

use burn::prelude::*;

use super::condition::Condition;
use super::progress::{Error, OnStep};
use super::sampling::{Guided, read, report};
use crate::guidance::is_guided;
use crate::noise::Philox;
use crate::options::{Settings, TokenSettings};
use crate::origin::KnownTokens;
use crate::part::Stage;
use crate::residency::Slot;
use crate::schedule::linspace;
use crate::text::TextEmbedding;
use crate::token_decoder::{PreparedTokens, TokenDecoder};
use crate::tokens::{TokenSampling, draw, probabilities, replace, replaced};
use crate::vqgan::Vqgan;

/// Most logits at a time: 32 MiB of them. All logits of a picture of 512 pixels are 512 MiB.
pub const STRIP_LOGITS: usize = 1 << 23;

/// A Stage B that denoises tokens.
pub(crate) struct TokenStage {
    pub(crate) network: Slot<TokenDecoder>,
    /// Number of different tokens.
    pub(crate) labels: usize,
    /// The sides in tokens are multiples of this.
    pub(crate) size_multiple: usize,
}

/// How tokens are sampled: every list has one value for each step, and `times` has one more, the end.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenSteps {
    /// The times to visit, falling to 0: each is the share of replaced tokens.
    pub times: Vec<f32>,
    /// The numbers by which logits are divided; 0 for the likeliest token.
    pub temperatures: Vec<f32>,
    /// The guidance scales; 1 for no guidance.
    pub guidance_scales: Vec<f32>,
    /// How tokens are chosen.
    pub choices: Vec<TokenSampling>,
    /// After how many steps tokens are noised again.
    pub renoise_steps: usize,
}

impl TokenSteps {
    /// The steps that `settings` say, from time `start` on; none at time 0.
    ///
    /// # Panics
    ///
    /// Panics if the settings are for a model whose Stage B denoises latents.
    pub fn new(settings: &Settings, start: f32) -> Self {
        let TokenSettings {
            decoder_guidance_scale_end,
            temperature,
            temperature_end,
            renoise_steps,
            token_sampling,
        } = settings.tokens.expect("a model of tokens has settings of them");
        let steps = if start > 0.0 { settings.decoder_timesteps.len() - 1 } else { 0 };
        let [first, last] = [settings.decoder_guidance_scale, decoder_guidance_scale_end];
        let guidance_scales = if is_guided(first.max(last)) {
            linspace(first as f32, last as f32, steps)
        } else {
            vec![1.0; steps]
        };
        Self {
            times: linspace(start, 0.0, steps + 1),
            temperatures: linspace(temperature as f32, temperature_end as f32, steps),
            guidance_scales,
            choices: vec![token_sampling; steps],
            renoise_steps,
        }
    }

    /// Number of steps.
    pub fn count(&self) -> usize {
        self.times.len() - 1
    }

    /// The same without guidance.
    pub fn unguided(self) -> Self {
        Self { guidance_scales: vec![1.0; self.count()], ..self }
    }

    /// Whether any step is guided.
    pub fn is_guided(&self) -> bool {
        self.guidance_scales.iter().any(|&scale| scale != 1.0)
    }
}

/// Where the random numbers of a token sampling come from. Tokens are counted picture by picture, row by row.
pub trait TokenDraws {
    /// A token drawn from each of the distributions `[N, K]` of the tokens `range`.
    fn choose(
        &mut self,
        step: usize,
        range: Range<usize>,
        probabilities: Tensor<2>,
    ) -> Tensor<1, Int>;

    /// A number in `[0, 1)` for every token: the token is noised again after the step if its number is at most the
    /// time.
    fn uniform(&mut self, step: usize) -> Vec<f32>;
}

/// The draws of pictures, each from its own stream, so that none depends on the others.
pub struct SeededDraws<'a> {
    streams: &'a mut [Philox],
    /// Tokens of a picture.
    area: usize,
}

impl<'a> SeededDraws<'a> {
    /// Draws for as many pictures as there are streams, of `area` tokens each.
    pub fn new(streams: &'a mut [Philox], area: usize) -> Self {
        Self { streams, area }
    }

    /// Random tokens among `labels` for all pictures.
    pub fn noise(&mut self, labels: usize) -> Vec<i32> {
        let of = |stream: &mut Philox| -> Vec<i32> {
            (0..self.area).map(|_| stream.below(labels as u32) as i32).collect()
        };
        self.streams.iter_mut().flat_map(of).collect()
    }
}

impl TokenDraws for SeededDraws<'_> {
    fn choose(
        &mut self,
        _: usize,
        range: Range<usize>,
        probabilities: Tensor<2>,
    ) -> Tensor<1, Int> {
        let (device, stream) = (probabilities.device(), &mut self.streams[range.start / self.area]);
        let uniform: Vec<f32> = range.map(|_| stream.uniform()).collect();
        draw(probabilities, Tensor::from_data(&uniform[..], &device))
    }

    fn uniform(&mut self, _: usize) -> Vec<f32> {
        let of = |stream: &mut Philox| -> Vec<f32> {
            (0..self.area).map(|_| stream.uniform()).collect()
        };
        self.streams.iter_mut().flat_map(of).collect()
    }
}

/// Tokens that a sampling starts from, and maybe keeps; picture by picture, row by row.
#[derive(Clone, Debug)]
pub struct TokenStart {
    /// The tokens that noised ones become.
    pub noise: Vec<i32>,
    /// The tokens that the first step sees.
    pub tokens: Vec<i32>,
    /// The tokens of a picture that a mask keeps: those where it is not painted.
    pub kept: Option<KnownTokens>,
}

impl TokenStart {
    /// Random tokens.
    pub fn at_noise(noise: Vec<i32>) -> Self {
        Self { tokens: noise.clone(), noise, kept: None }
    }
}

/// A batch whose tokens are sampled.
pub(super) struct TokenTask<'a> {
    pub(super) model: &'a TokenDecoder,
    pub(super) vqgan: &'a Vqgan,
    /// Stage A's factor between latents and codes.
    pub(super) scale_factor: f64,
    pub(super) labels: usize,
    pub(super) sampling: &'a TokenSteps,
    /// Batch, height and width in tokens.
    pub(super) shape: [usize; 3],
    pub(super) device: &'a Device,
    /// Steps of other batches: done before, and of all batches.
    pub(super) steps: [usize; 2],
}

impl TokenTask<'_> {
    /// Samples; returns the tokens, and their latents as Stage B makes them, `[B, C, H, W]`.
    ///
    /// Source: `sample` in the notebook of Würstchen v1, dome272/Wuerstchen; Rampas et al., "A novel sampling
    /// scheme for text- and image-conditional image synthesis in quantized latent spaces" (arXiv 2211.07292).
    pub(super) async fn sample(
        &self,
        text: Guided<TextEmbedding>,
        image_embedding: Tensor<4>,
        start: TokenStart,
        draws: &mut dyn TokenDraws,
        on_step: &mut dyn OnStep,
    ) -> Result<(Vec<i32>, Tensor<4>), Error> {
        let sampling = self.sampling;
        let TokenStart { noise, mut tokens, kept } = start;
        let Guided { conditional, unconditional } = text;
        let prepare = |unconditional| {
            let text = Guided { conditional: conditional.clone(), unconditional };
            let condition = text.with(None, Some(image_embedding.clone()));
            let Condition { text, image_embedding, .. } = condition;
            let image_embedding = image_embedding.expect("it is given above");
            self.model.prepare(image_embedding, Some(text.tokens))
        };
        let guided = sampling.is_guided().then(|| prepare(unconditional));
        let is_plain = sampling.guidance_scales.contains(&1.0);
        let plain = is_plain.then(|| prepare(None));
        for step in 0..sampling.count() {
            let prepared = if sampling.guidance_scales[step] == 1.0 { &plain } else { &guided };
            let prepared = prepared.as_ref().expect("there is one for every scale of the list");
            let (drawn, sum) = self.choose(prepared, &tokens, step, draws);
            let sum = read(sum).await?;
            if sum.iter::<f32>().any(|value| !value.is_finite()) {
                return Err(Error::NotFinite { stage: Stage::Decoder, step: step + 1 });
            }
            let drawn = drawn.into_data_async().await;
            let drawn = drawn.map_err(Error::of_device)?;
            let drawn = drawn.convert::<i32>().try_to_vec::<i32>().expect("converted to i32");
            tokens = self.renoise(&drawn, &noise, kept.as_ref(), step, draws);
            let [done, all] = self.steps;
            // Previews show the drawn tokens, before some of them are noised again.
            let latents = read(self.latents(&drawn)).await?;
            report(on_step, Stage::Decoder, done + step + 1, all, &latents).await?;
        }
        let latents = self.latents(&tokens);
        Ok((tokens, latents))
    }

    /// Chooses all tokens anew; returns them, and a sum over all logits, which is NaN if a logit is.
    fn choose(
        &self,
        prepared: &PreparedTokens<'_>,
        tokens: &[i32],
        step: usize,
        draws: &mut dyn TokenDraws,
    ) -> (Tensor<1, Int>, Tensor<1>) {
        let scale = self.sampling.guidance_scales[step];
        let ([batch, height, width], area) = (self.shape, self.shape[1] * self.shape[2]);
        let is_guided = scale != 1.0;
        let x = self.upload(tokens);
        let x = if is_guided { Tensor::cat(vec![x.clone(), x], 0) } else { x };
        let rows = x.dims()[0];
        let times = vec![self.sampling.times[step]; rows];
        let features = prepared.forward(x, &times, &mut |_, _| {});
        let [.., channels] = features.dims();
        let features = features.reshape([rows, height * width, channels]);
        let mut chosen = Vec::new();
        let mut sum = Tensor::<1>::zeros([1], self.device);
        let strip = (STRIP_LOGITS / self.labels).max(1);
        for picture in 0..batch {
            for first in (0..area).step_by(strip) {
                let count = strip.min(area - first);
                let logits_of = |row: usize| {
                    let features = features.clone().narrow(0, row, 1).squeeze_dim::<2>(0);
                    self.model.classify(features.narrow(0, first, count))
                };
                let logits = logits_of(picture);
                let logits = if is_guided {
                    logits * scale + logits_of(batch + picture) * (1.0 - scale)
                } else {
                    logits
                };
                sum = sum + logits.clone().sum();
                let first = picture * area + first;
                chosen.push(self.choose_of(logits, step, first..first + count, draws));
            }
        }
        (Tensor::cat(chosen, 0), sum)
    }

    fn choose_of(
        &self,
        logits: Tensor<2>,
        step: usize,
        range: Range<usize>,
        draws: &mut dyn TokenDraws,
    ) -> Tensor<1, Int> {
        let temperature = self.sampling.temperatures[step];
        match self.sampling.choices[step] {
            TokenSampling::Multinomial if temperature > 0.0 => {
                draws.choose(step, range, probabilities(logits, temperature))
            }
            TokenSampling::Quant if temperature > 0.0 => {
                let mean = self.vqgan.mean_codes(probabilities(logits, temperature));
                self.vqgan.nearest(mean)
            }
            // The limit of the two other ways at temperature 0.
            _ => logits.argmax(1).squeeze_dim(1),
        }
    }

    /// Noises drawn tokens to the next time, and puts back those that are kept.
    fn renoise(
        &self,
        drawn: &[i32],
        noise: &[i32],
        kept: Option<&KnownTokens>,
        step: usize,
        draws: &mut dyn TokenDraws,
    ) -> Vec<i32> {
        let drawn = match kept {
            Some(kept) => replace(&kept.clean, drawn, &kept.painted),
            None => drawn.to_vec(),
        };
        if step >= self.sampling.renoise_steps {
            return drawn;
        }
        let uniform = draws.uniform(step);
        let mask: Vec<bool> = replaced(&uniform, self.sampling.times[step + 1]).collect();
        replace(&drawn, noise, &mask)
    }

    fn upload(&self, tokens: &[i32]) -> Tensor<3, Int> {
        Tensor::from_data(TensorData::new(tokens.to_vec(), self.shape), self.device)
    }

    /// Latents of tokens as Stage B makes them.
    fn latents(&self, tokens: &[i32]) -> Tensor<4> {
        self.vqgan.look_up(self.upload(tokens)) / self.scale_factor
    }
}

/// The tokens that a batch starts from: random ones, or those of a picture noised to the time that the steps start
/// at.
pub(super) fn start_of(
    draws: &mut SeededDraws<'_>,
    origin: Option<&KnownTokens>,
    labels: usize,
    time: f32,
) -> TokenStart {
    let noise = draws.noise(labels);
    let Some(origin) = origin else { return TokenStart::at_noise(noise) };
    let tokens = if time < 1.0 {
        let mask: Vec<bool> = replaced(&draws.uniform(0), time).collect();
        replace(&origin.clean, &noise, &mask)
    } else {
        noise.clone()
    };
    let kept = origin.painted.contains(&false).then(|| origin.clone());
    TokenStart { noise, tokens, kept }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Defaults, GenerateOptions};

    #[test]
    fn a_late_start_takes_all_steps_and_time_zero_none() {
        let options = GenerateOptions { decoder_steps: Some(4), ..Default::default() };
        let settings = options.resolve(&Defaults::wuerstchen_v1()).unwrap();
        let steps = TokenSteps::new(&settings, 0.5);
        assert_eq!(steps.times, [0.5, 0.375, 0.25, 0.125, 0.0]);
        assert_eq!((steps.temperatures.len(), steps.renoise_steps), (4, 3));
        assert_eq!(steps.guidance_scales, [2.0; 4]);
        let steps = TokenSteps::new(&settings, 0.0);
        assert_eq!((steps.count(), steps.times), (0, vec![0.0]));
    }
}
