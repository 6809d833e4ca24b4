//! Encoding of the source pictures that a generation starts from.

use std::pin::Pin;

use super::denoiser::DecoderStage;
use super::progress::Error;
use super::sampling::read;
use super::{CompressorPart, Pipeline, Plan};
use crate::batch_norm::Statistics;
use crate::compressor::normalise;
use crate::image::{Image, Mask};
use crate::options::{OptionsError, Settings};
use crate::origin::{Batch, Control, Kept, Origin};
use crate::request::{Prepared, Request, SourcePictures};
use crate::resize::Pixels;
use crate::schedule::timesteps_from;

impl Pipeline {
    /// The semantic compressor, which the picture given as `field` needs.
    pub(super) fn compressor(&self, field: &'static str) -> Result<&CompressorPart, OptionsError> {
        let part = self.compressor.as_ref();
        part.map_err(|why| OptionsError::NoCompressor { field, reason: why.to_string() })
    }

    /// Encodes a source picture, and the part of it that the mask keeps. The picture is scaled to cover the
    /// size in `settings`, and the parts beyond its edges are cut off on both sides.
    ///
    /// # Errors
    ///
    /// The model cannot make that size or has no compressor, the mask is not of the picture's size, or
    /// the device failed.
    pub async fn origin(
        &self,
        image: &Image,
        mask: Option<&Mask>,
        settings: &Settings,
    ) -> Result<Origin, Error> {
        let (cells, _) = self.sizes(settings.height, settings.width)?;
        if let Some(mask) = mask {
            mask.check(image, "mask")?;
        }
        let CompressorPart { network, downscale } = self.compressor("image")?;
        let cover = |pixels: Pixels, size: [usize; 2]| pixels.cover(size, &self.device);
        let seen = cover(image.pixels(), cells.map(|side| side * downscale));
        let embedding = network.get()?.forward(normalise(seen), Statistics::Running);
        let embedding = read(embedding).await?;
        let size = [settings.height, settings.width];
        let tokens = match &self.decoder {
            DecoderStage::Latents(_) => None,
            DecoderStage::Tokens(_) => {
                let pixels = cover(image.pixels(), size);
                let latents = self.encode(pixels)? * self.vqgan_config.scale_factor;
                let tokens = self.vqgan.get()?.quantize(latents).indices.into_data_async().await;
                let tokens = tokens.map_err(Error::of_device)?;
                Some(tokens.convert::<i32>())
            }
        };
        let Some(mask) = mask else { return Ok(Origin { embedding, tokens, kept: None }) };

        let pixels = cover(image.pixels(), size);
        let latents = self.encode(pixels.clone())?;
        let mask = read(cover(mask.pixels(), size)).await?;
        let kept = Kept {
            image: Image::from_data(&read(pixels).await?).swap_remove(0),
            latents: read(latents).await?,
            mask: Mask::from_data(&mask),
        };
        Ok(Origin { embedding, tokens, kept: Some(kept) })
    }

    /// Fills the gaps of a request and encodes its pictures, once for all that is made of them.
    ///
    /// # Errors
    ///
    /// An option or an input cannot be used; also as [`Self::origin`] and [`Self::picture_prompt`].
    pub async fn prepare(&self, request: Request) -> Result<Prepared, Error> {
        request.check()?;
        let SourcePictures { image, mask, image_to, picture_prompts, control_image, control_mask } =
            &request.pictures;
        let settings = self.settings(&request.options, image.as_ref())?;
        // Checked first, so that the error of an impossible size names the size.
        self.sizes(settings.height, settings.width)?;
        settings.check_pixels()?;
        let shares = request.shares()?;
        let control = match control_image {
            Some(image) => {
                // A function of its own, which a web page fetches only if it is called.
                let control: Pin<Box<dyn Future<Output = Result<Control, Error>> + '_>> =
                    Box::pin(self.control(image, control_mask.as_ref(), &settings));
                Some(control.await?)
            }
            None => None,
        };
        let origins = match image {
            None => Vec::new(),
            Some(image) => {
                let from = self.origin(image, mask.as_ref(), &settings).await?;
                match image_to {
                    None => vec![from; shares.len()],
                    Some(image) => {
                        let to = self.origin(image, None, &settings).await?;
                        shares.iter().map(|&share| Origin::between(&from, &to, share)).collect()
                    }
                }
            }
        };
        let like = if picture_prompts.is_empty() {
            None
        } else {
            Some(self.picture_prompt(picture_prompts, settings.recipe).await?)
        };
        Ok(Prepared { request, settings, shares, origins, like, control })
    }

    /// What every stage of a batch starts from.
    pub(super) fn plan(&self, batch: &Batch<'_>, settings: &Settings) -> Plan {
        let mut plan = Plan {
            timesteps: settings.prior_timesteps.clone(),
            start: 1.0,
            prior: None,
            decoder: None,
            tokens: None,
        };
        if let Some(origin) = batch.origin {
            let strength = settings.strength(origin.is_masked());
            plan.timesteps = timesteps_from(strength as f32, &settings.prior_timesteps);
            // At strength 1 without a mask the source picture has no influence: start from pure noise.
            if strength < 1.0 || origin.is_masked() {
                let to_latents = |embedding| self.prior_latents(embedding);
                plan.prior = Some(origin.for_prior(&self.device, to_latents));
            }
            plan.decoder = origin.for_decoder(&self.device);
            plan.tokens = origin.known_tokens(batch.prompts.len());
            if plan.tokens.is_some() {
                plan.start = strength as f32;
            }
        }
        plan
    }
}
