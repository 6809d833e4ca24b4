//! The inputs of a generation besides its options: prompts and source pictures.

use burn::prelude::*;

use crate::cascade::AddedFeatures;
use crate::image::{Image, Mask};
use crate::interpolate::slerp;
use crate::sampler::Known;

/// Pictures that are made at once, each from its own stream of the seed's noise.
#[derive(Clone, Default)]
pub struct Batch<'a> {
    /// What the pictures show, one prompt each.
    pub prompts: Vec<&'a str>,
    /// A second prompt, and how far the text embedding has moved towards it, `[0, 1]`.
    pub towards: Option<(&'a str, f32)>,
    /// The picture that all of them start from; `None` to start at noise.
    pub origin: Option<&'a Origin>,
    /// Pictures that all of them are to resemble; `None` for words alone.
    pub pictures: Option<&'a PicturePrompt>,
    /// What Stage C follows; `None` for nothing.
    pub control: Option<&'a Control>,
}

/// Pictures as a prompt: their CLIP embeddings.
#[derive(Clone)]
pub struct PicturePrompt {
    /// One embedding for each of `k` pictures, `[1, k, D]`.
    pub embeddings: TensorData,
}

/// A picture that Stage C follows, as a ControlNet made it.
#[derive(Clone)]
pub struct Control {
    /// What is added to Stage C's features, `[1, h, w, C]` each, with the number of the residual block that follows.
    pub(crate) features: Vec<(usize, TensorData)>,
    /// Whether the ControlNet takes edges and the picture has none.
    pub(crate) lacks_edges: bool,
}

impl Control {
    /// The features on `device`.
    pub(crate) fn to_device(&self, device: &Device) -> Vec<AddedFeatures> {
        let added = |(block, features): &(usize, TensorData)| AddedFeatures {
            block: *block,
            features: Tensor::from_data(features.clone(), device),
        };
        self.features.iter().map(added).collect()
    }
}

impl<'a> Batch<'a> {
    /// `count` pictures of one prompt.
    pub fn new(prompt: &'a str, count: usize) -> Self {
        Self { prompts: vec![prompt; count], ..Default::default() }
    }
}

/// A source picture, encoded for the stages.
#[derive(Clone)]
pub struct Origin {
    /// The compressor's image embedding, `[1, c, h, w]`.
    pub(crate) embedding: TensorData,
    /// Its tokens, `[1, H, W]`, where Stage B denoises tokens.
    pub(crate) tokens: Option<TensorData>,
    /// The part of the picture that stays; `None` to paint all of it.
    pub(crate) kept: Option<Kept>,
}

/// A picture of which a mask keeps a part.
#[derive(Clone)]
pub(crate) struct Kept {
    /// The picture, in the size of the result.
    pub(crate) image: Image,
    /// Its latents in Stage B's scale, `[1, latent_channels, H, W]`.
    pub(crate) latents: TensorData,
    /// The mask, in the size of the picture.
    pub(crate) mask: Mask,
}

/// The tokens of a picture, and which of them are painted anew; one for each of all pictures.
#[derive(Clone, Debug)]
pub struct KnownTokens {
    /// The tokens of the picture.
    pub clean: Vec<i32>,
    /// Whether a sampling paints each token anew.
    pub painted: Vec<bool>,
}

impl Origin {
    /// The same picture, of which Stage B sees only the image embedding.
    pub fn embedding_only(self) -> Self {
        Self { tokens: None, kept: None, ..self }
    }

    /// The origin at the position `share`, from 0 to 1, between `a` and `b`. No part of it is kept, and Stage B starts
    /// at noise.
    ///
    /// # Panics
    ///
    /// Panics if their embeddings are of different sizes.
    pub fn between(a: &Self, b: &Self, share: f32) -> Self {
        let (from, to) = (&a.embedding, &b.embedding);
        assert_eq!(from.shape(), to.shape(), "both pictures are encoded at one size");
        let values =
            |data: &TensorData| data.as_slice::<f32>().expect("embeddings are f32").to_vec();
        let values = slerp(&values(from), &values(to), share);
        Self { embedding: TensorData::new(values, from.shape().clone()), tokens: None, kept: None }
    }

    /// Whether only a part is painted.
    pub fn is_masked(&self) -> bool {
        self.kept.is_some()
    }

    /// What Stage C starts from; `to_latents` turns an image embedding into its latents.
    pub(crate) fn for_prior(
        &self,
        device: &Device,
        to_latents: impl Fn(Tensor<4>) -> Tensor<4>,
    ) -> Known {
        let [_, _, height, width] = self.embedding.shape().dims();
        let mask = self.kept.as_ref().map(|kept| kept.cells([height, width], device));
        let embedding = Tensor::from_data(self.embedding.clone(), device);
        Known { clean: to_latents(embedding), mask }
    }

    /// What Stage B keeps: it always starts at noise, but a masked part of the picture stays.
    pub(crate) fn for_decoder(&self, device: &Device) -> Option<Known> {
        let kept = self.kept.as_ref()?;
        let [_, _, height, width] = kept.latents.shape().dims();
        let mask = Some(kept.cells([height, width], device));
        Some(Known { clean: Tensor::from_data(kept.latents.clone(), device), mask })
    }

    /// The tokens that Stage B starts from, once for each of `count` pictures; `None` where it does not start
    /// from any.
    pub(crate) fn known_tokens(&self, count: usize) -> Option<KnownTokens> {
        let tokens = self.tokens.as_ref()?;
        let [_, height, width] = tokens.shape().dims();
        let painted = match &self.kept {
            // A token is painted as soon as a part of its pixels is.
            Some(kept) => kept.mask.cells([height, width]).iter().map(|&cell| cell > 0.0).collect(),
            None => vec![true; height * width],
        };
        let clean = tokens.as_slice::<i32>().expect("tokens are i32");
        Some(KnownTokens { clean: clean.repeat(count), painted: painted.repeat(count) })
    }

    /// Puts the part that the mask keeps back into a finished picture.
    pub(crate) fn finish(&self, painted: Image) -> Image {
        match &self.kept {
            Some(kept) => kept.image.with_painted(&painted, &kept.mask),
            None => painted,
        }
    }
}

impl Kept {
    /// The mask, scaled to latents of `[height, width]`: `[1, 1, height, width]`.
    fn cells(&self, [height, width]: [usize; 2], device: &Device) -> Tensor<4> {
        let cells = self.mask.cells([height, width]);
        Tensor::from_data(TensorData::new(cells, [1, 1, height, width]), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(values: [f32; 2]) -> Origin {
        Origin { embedding: TensorData::from([[[values]]]), tokens: None, kept: None }
    }

    #[test]
    fn the_ends_of_the_way_are_the_pictures() {
        let (a, b) = (origin([1.0, 2.0]), origin([-3.0, 0.5]));
        let at = |share| Origin::between(&a, &b, share).embedding;
        at(0.0).assert_eq(&a.embedding, true);
        at(1.0).assert_eq(&b.embedding, true);
    }

    /// The picture's right half is painted: one of two cells, and half of the pixels.
    #[test]
    fn what_is_not_painted_stays() {
        let device = Device::flex();
        let image = Image { width: 4, height: 1, rgb: vec![9; 12] };
        let mask = Mask { width: 4, height: 1, values: vec![0, 0, 255, 255] };
        let latents = TensorData::from([[[[5.0f32, 6.0]]]]);
        let kept = Some(Kept { image: image.clone(), latents: latents.clone(), mask });
        let origin = Origin { kept, ..origin([1.0, 2.0]) };

        let known = origin.for_prior(&device, |embedding| embedding * 2.0);
        known.clean.into_data().assert_eq(&TensorData::from([[[[2.0f32, 4.0]]]]), true);
        let cells = TensorData::from([[[[0.0f32, 1.0]]]]);
        known.mask.unwrap().into_data().assert_eq(&cells, true);
        let known = origin.for_decoder(&device).unwrap();
        known.clean.into_data().assert_eq(&latents, true);
        known.mask.unwrap().into_data().assert_eq(&cells, true);
        let painted = Image { rgb: vec![7; 12], ..image };
        assert_eq!(origin.finish(painted).rgb, [9, 9, 9, 9, 9, 9, 7, 7, 7, 7, 7, 7]);
    }
}
