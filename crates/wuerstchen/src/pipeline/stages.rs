//! The stages of a pipeline, callable one at a time.

use burn::prelude::*;

use super::Pipeline;
use super::condition::PriorCondition;
use super::denoiser::DecoderStage;
use super::progress::{Error, OnStep};
use super::sampling::{Guided, Noise, Sampling, denoise, read};
use super::tokens::{TokenDraws, TokenStart, TokenSteps, TokenTask};
use crate::batch_norm::Statistics;
use crate::error::LoadError;
use crate::image::{Image, stack_rows};
use crate::options::Settings;
use crate::part::Stage;
use crate::text::TextEmbedding;
use crate::vqgan::{Vqgan, strip_rows};

impl Pipeline {
    /// Stage A, with its weights.
    ///
    /// # Errors
    ///
    /// The weights cannot be loaded.
    pub fn vqgan(&self) -> Result<Vqgan, LoadError> {
        self.vqgan.get()
    }

    /// Stage C: denoises `x` into its latents of an image embedding.
    ///
    /// # Errors
    ///
    /// The weights cannot be loaded, the device failed, latents are infinite or NaN, or `on_step` asked to stop.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, c_in, h, w]`
    pub async fn sample_prior(
        &self,
        x: Tensor<4>,
        condition: PriorCondition,
        sampling: &Sampling<'_>,
        noise: Noise<'_>,
        on_step: &mut dyn OnStep,
    ) -> Result<Tensor<4>, Error> {
        let (denoiser, condition) = (self.prior.denoiser.get()?, condition.of_batch());
        let [.., height, width] = x.dims();
        let denoiser = denoiser.prepare(condition, [height, width]);
        let predict = |x: Tensor<4>, t: &[f32]| denoiser.forward(x, t);
        let schedule = &self.prior.schedule;
        denoise(Stage::Prior, schedule, x, sampling, &predict, noise, on_step).await
    }

    /// The image embedding as Stage C's latents, the inverse of [`Self::image_embedding`]; both are `[B, c, h, w]`.
    pub fn prior_latents(&self, image_embedding: Tensor<4>) -> Tensor<4> {
        (image_embedding + self.prior_index.latent_std) / self.prior_index.latent_mean
    }

    /// Stage C's latents as the image embedding that Stage B takes; both are `[B, c, h, w]`.
    pub fn image_embedding(&self, latents: Tensor<4>) -> Tensor<4> {
        latents * self.prior_index.latent_mean - self.prior_index.latent_std
    }

    /// Stage B: denoises `x` into the VQGAN's latents. Guidance leads away from the negative prompt and from the image
    /// embedding of zeros.
    ///
    /// # Errors
    ///
    /// As [`Self::sample_prior`].
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, latent_channels, H, W]`
    /// - `image_embedding`: `[B, effnet_embd, h, w]`
    ///
    /// # Panics
    ///
    /// Panics if Stage B denoises tokens.
    pub async fn sample_decoder(
        &self,
        x: Tensor<4>,
        image_embedding: Tensor<4>,
        text: Guided<TextEmbedding>,
        sampling: &Sampling<'_>,
        noise: Noise<'_>,
        on_step: &mut dyn OnStep,
    ) -> Result<Tensor<4>, Error> {
        let DecoderStage::Latents(stage) = &self.decoder else {
            panic!("this Stage B denoises tokens: `sample_tokens`");
        };
        let (denoiser, schedule) = (stage.denoiser.get()?, &stage.schedule);
        let [.., height, width] = x.dims();
        let condition = text.with(None, Some(image_embedding));
        let denoiser = denoiser.prepare(condition, [height, width]);
        let predict = |x: Tensor<4>, t: &[f32]| denoiser.forward(x, t);
        denoise(Stage::Decoder, schedule, x, sampling, &predict, noise, on_step).await
    }

    /// Stage B over tokens of `[height, width]` for each picture; returns the tokens, picture by picture and row by
    /// row, and their latents. Guidance leads away from the negative prompt and from the image embedding of zeros.
    ///
    /// # Errors
    ///
    /// As [`Self::sample_prior`].
    ///
    /// # Shapes
    ///
    /// - `image_embedding`: `[B, effnet_embd, h, w]`
    /// - latents: `[B, latent_channels, H, W]`, as [`Self::decode`] takes them
    ///
    /// # Panics
    ///
    /// Panics if Stage B denoises latents.
    pub async fn sample_tokens(
        &self,
        (start, [height, width]): (TokenStart, [usize; 2]),
        image_embedding: Tensor<4>,
        text: Guided<TextEmbedding>,
        sampling: &TokenSteps,
        draws: &mut dyn TokenDraws,
        on_step: &mut dyn OnStep,
    ) -> Result<(Vec<i32>, Tensor<4>), Error> {
        let DecoderStage::Tokens(stage) = &self.decoder else {
            panic!("this Stage B denoises latents: `sample_decoder`");
        };
        let [batch, ..] = image_embedding.dims();
        let task = TokenTask {
            model: &stage.network.get()?,
            vqgan: &self.vqgan.get()?,
            scale_factor: self.vqgan_config.scale_factor,
            labels: stage.labels,
            sampling,
            shape: [batch, height, width],
            device: &self.device,
            steps: [0, sampling.count()],
        };
        task.sample(text, image_embedding, start, draws, on_step).await
    }

    /// Whether Stage B denoises tokens.
    pub fn has_tokens(&self) -> bool {
        matches!(self.decoder, DecoderStage::Tokens(_))
    }

    /// Stage A: pictures to latents as Stage B makes them.
    ///
    /// # Shapes
    ///
    /// - pixels: `[B, 3, H·downscale, W·downscale]` in `[0, 1]`
    /// - output: `[B, latent_channels, H, W]`
    ///
    /// # Errors
    ///
    /// The weights cannot be loaded.
    pub fn encode(&self, pixels: Tensor<4>) -> Result<Tensor<4>, LoadError> {
        let latents = self.vqgan.get()?.encode(pixels, Statistics::Running);
        Ok(latents / self.vqgan_config.scale_factor)
    }

    /// Stage A: latents to pictures. As in the authors' code, latents are not quantised and pictures are not clamped.
    ///
    /// # Shapes
    ///
    /// - latents: `[B, latent_channels, H, W]`, as Stage B makes them
    /// - output: `[B, 3, H·downscale, W·downscale]`
    ///
    /// # Errors
    ///
    /// The weights cannot be loaded.
    pub fn decode(&self, latents: Tensor<4>) -> Result<Tensor<4>, LoadError> {
        Ok(self.vqgan.get()?.decode(latents * self.vqgan_config.scale_factor))
    }

    /// Decodes latents to pictures in `[0, 1]`, `rows` rows of latents at a time, 0 for all rows; `None` if the
    /// picture's size decides.
    pub(super) async fn decode_strips(
        &self,
        vqgan: &Vqgan,
        latents: Tensor<4>,
        rows: Option<usize>,
    ) -> Result<TensorData, Error> {
        let [_, _, height, width] = latents.dims();
        let latents = latents * self.vqgan_config.scale_factor;
        let rows = match rows.unwrap_or_else(|| strip_rows([height, width])) {
            0 => height,
            rows => rows,
        };
        if rows >= height {
            return read(vqgan.decode(latents).clamp(0.0, 1.0)).await;
        }
        let mut strips = Vec::new();
        for strip in vqgan.decode_strips(latents, rows) {
            strips.push(read(strip.clamp(0.0, 1.0)).await?);
        }
        Ok(stack_rows(&strips))
    }

    /// A picture, as large as `settings` say, before and after Stage A alone.
    ///
    /// # Errors
    ///
    /// The model cannot make that size, or the device failed.
    pub async fn autoencode(
        &self,
        image: &Image,
        settings: &Settings,
    ) -> Result<[Image; 2], Error> {
        self.sizes(settings.height, settings.width)?;
        let pixels = image.pixels().cover([settings.height, settings.width], &self.device);
        let latents = self.encode(pixels.clone())?;
        let vqgan = self.vqgan.get()?;
        let decoded = self.decode_strips(&vqgan, latents, settings.vqgan_rows).await?;
        let first = |data: &TensorData| Image::from_data(data).swap_remove(0);
        Ok([first(&read(pixels).await?), first(&decoded)])
    }
}
