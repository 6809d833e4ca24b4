//! Pictures as CLIP's image encoder takes them.

use burn::prelude::*;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::compressor::normalise_by;
use crate::config::{ConfigError, between};
use crate::image::Image;
use crate::resize::{Filter, Weights, crop, resize_to_cover, weights};

/// How pictures are prepared, with the published field names
/// (`feature_extractor/preprocessor_config.json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreparationConfig {
    /// The size that the picture is brought to.
    #[serde(deserialize_with = "fields_or_number")]
    pub size: ShortestEdge,
    /// The part that is cut out of its middle.
    #[serde(deserialize_with = "fields_or_number")]
    pub crop_size: CropSize,
    /// Subtracted from every colour in `[0, 1]`.
    pub image_mean: [f32; 3],
    /// What every colour is divided by.
    pub image_std: [f32; 3],
    /// All other fields of the file.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// The length of a picture's shorter side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShortestEdge {
    /// Its length in pixels.
    pub shortest_edge: usize,
}

/// Height and width of a part of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CropSize {
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

impl From<usize> for ShortestEdge {
    fn from(shortest_edge: usize) -> Self {
        Self { shortest_edge }
    }
}

impl From<usize> for CropSize {
    fn from(side: usize) -> Self {
        Self { height: side, width: side }
    }
}

/// Reads a size that is one number, as older versions of transformers write it, or has fields.
fn fields_or_number<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned + From<usize>,
{
    let value = Value::deserialize(deserializer)?;
    match value.as_u64().and_then(|number| usize::try_from(number).ok()) {
        Some(number) => Ok(number.into()),
        None => serde_json::from_value(value).map_err(D::Error::custom),
    }
}

/// The number by which Pillow calls bicubic interpolation.
const BICUBIC: u32 = 3;

/// Most times that a picture's shorter side may be as long as what is cut out.
const LARGEST_EDGE: usize = 4;

/// A picture on its way into the encoder.
pub struct Prepared {
    /// The picture after resizing, before its middle is cut out.
    pub resized: Image,
    /// `[1, 3, height, width]`.
    pub pixels: TensorData,
}

impl PreparationConfig {
    /// The preparation of the published CLIP for pictures of `side` pixels.
    ///
    /// Source: `OPENAI_CLIP_MEAN`, `OPENAI_CLIP_STD` in transformers.
    pub fn published(side: usize) -> Self {
        Self {
            size: ShortestEdge { shortest_edge: side },
            crop_size: CropSize { height: side, width: side },
            image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            image_std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
            others: Map::new(),
        }
    }

    /// Checks that what is cut out is as large as the encoder's pictures, and that no step of [`Self::prepare`] is turned
    /// off or done in another way.
    ///
    /// # Errors
    ///
    /// Names the field that does not fit.
    pub(crate) fn validate(&self, side: usize) -> Result<(), ConfigError> {
        let part = "feature extractor";
        for field in ["do_resize", "do_center_crop", "do_rescale", "do_normalize"] {
            if let Some(found) = self.others.get(field).filter(|found| **found != Value::Bool(true))
            {
                return Err(ConfigError::new(part, field, true, found));
            }
        }
        if let Some(found) = self.others.get("resample").filter(|found| **found != BICUBIC) {
            return Err(ConfigError::new(part, "resample", format!("{BICUBIC} (bicubic)"), found));
        }
        if let Some(found) = self.others.get("rescale_factor")
            && found.as_f64().is_none_or(|factor| (factor * 255.0 - 1.0).abs() > 1e-6)
        {
            return Err(ConfigError::new(part, "rescale_factor", "1/255", found));
        }
        if let Some(std) = self.image_std.into_iter().find(|std| !std.is_normal() || *std < 0.0) {
            return Err(ConfigError::new(part, "image_std", "above 0", std));
        }
        let CropSize { height, width } = self.crop_size;
        for (field, value) in [("crop_size.height", height), ("crop_size.width", width)] {
            if value != side {
                let expected = format!("{side}, the side of the encoder's pictures");
                return Err(ConfigError::new(part, field, expected, value));
            }
        }
        between(part, "size.shortest_edge", self.size.shortest_edge, 1..=LARGEST_EDGE * side)
    }

    /// Resizes a picture so that its shorter side has the configured length, with the longer one rounded down; cuts out
    /// the middle; normalises the colours.
    ///
    /// Source: `CLIPImageProcessor` in transformers.
    pub fn prepare(&self, image: &Image) -> Prepared {
        let side = self.size.shortest_edge;
        let longer = |long: usize, short: usize| side * long / short;
        let (width, height) = if image.width <= image.height {
            (side, longer(image.height, image.width))
        } else {
            (longer(image.width, image.height), side)
        };
        let resized = resize_bicubic(image, width, height);
        let pixels = self.normalise(&resized);
        Prepared { resized, pixels }
    }

    /// The same of pictures `[B, 3, H, W]` in `[0, 1]`, whose colours are not rounded to bytes, nor clamped, after they
    /// are resized.
    ///
    /// Source: `clip_preprocess` in `core/` of Stability-AI/StableCascade.
    pub fn prepare_floats(&self, picture: Tensor<4>) -> Tensor<4> {
        let CropSize { height, width } = self.crop_size;
        // What is cut out has to be there.
        let side = self.size.shortest_edge.max(height).max(width);
        let resized = resize_to_cover(picture, [side; 2], Filter::Bicubic);
        normalise_by(crop(resized, [height, width]), self.image_mean, self.image_std)
    }

    /// The middle of a picture with normalised colours; black where the picture is smaller.
    fn normalise(&self, image: &Image) -> TensorData {
        let CropSize { height, width } = self.crop_size;
        let offset = |side: usize, crop: usize| (side as isize - crop as isize).div_euclid(2);
        let (top, left) = (offset(image.height, height), offset(image.width, width));
        let mut values = Vec::with_capacity(3 * height * width);
        for channel in 0..3 {
            let (mean, std) = (self.image_mean[channel], self.image_std[channel]);
            for y in 0..height {
                for x in 0..width {
                    let place = |start: isize, at: usize, side: usize| {
                        usize::try_from(start + at as isize).ok().filter(|at| *at < side)
                    };
                    let pixel = place(top, y, image.height).zip(place(left, x, image.width));
                    let byte =
                        pixel.map_or(0, |(y, x)| image.rgb[(y * image.width + x) * 3 + channel]);
                    values.push((f32::from(byte) / 255.0 - mean) / std);
                }
            }
        }
        TensorData::new(values, [1, 3, height, width])
    }
}

/// Fractional bits of the integer weights that Pillow uses.
const PRECISION: u32 = 22;

/// Resizes bytes as Pillow's `BICUBIC` does, to the byte: antialiased, first along rows, then along columns,
/// bytes between both.
///
/// Source: `ImagingResample` in `Resample.c` of Pillow.
fn resize_bicubic(image: &Image, width: usize, height: usize) -> Image {
    let mut rows = image.clone();
    if width != image.width {
        let weights = bicubic_weights(image.width, width);
        rows = Image { width, height: image.height, rgb: vec![0; 3 * width * image.height] };
        for y in 0..image.height {
            for (x, weights) in weights.iter().enumerate() {
                for channel in 0..3 {
                    let byte = |at: usize| image.rgb[(y * image.width + at) * 3 + channel];
                    rows.rgb[(y * width + x) * 3 + channel] = weights.apply(byte);
                }
            }
        }
    }
    if height == image.height {
        return rows;
    }
    let mut resized = Image { width, height, rgb: vec![0; 3 * width * height] };
    for (y, weights) in bicubic_weights(image.height, height).iter().enumerate() {
        for i in 0..3 * width {
            resized.rgb[y * 3 * width + i] = weights.apply(|at| rows.rgb[at * 3 * width + i]);
        }
    }
    resized
}

/// The weights of one output pixel in Pillow's integers: the first is that of the input pixel `first`.
struct IntegerWeights {
    first: usize,
    values: Vec<i64>,
}

impl IntegerWeights {
    fn apply(&self, byte: impl Fn(usize) -> u8) -> u8 {
        let places = (self.first..).zip(&self.values);
        let sum: i64 = places.map(|(at, weight)| i64::from(byte(at)) * weight).sum();
        ((sum + (1 << (PRECISION - 1))) >> PRECISION).clamp(0, 255) as u8
    }
}

fn bicubic_weights(input: usize, output: usize) -> Vec<IntegerWeights> {
    let integer = |weight: &f64| (weight * f64::from(1 << PRECISION)).round() as i64;
    let integers = |Weights { first, values }| IntegerWeights {
        first,
        values: values.iter().map(integer).collect(),
    };
    weights(Filter::Bicubic, input, output).into_iter().map(integers).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Weights of two pixels from four sum to one, and a grey picture stays grey.
    #[test]
    fn a_grey_picture_stays_grey() {
        let image = Image { width: 7, height: 4, rgb: vec![93; 7 * 4 * 3] };
        let resized = resize_bicubic(&image, 3, 9);
        assert_eq!((resized.width, resized.height), (3, 9));
        assert!(resized.rgb.iter().all(|&byte| byte == 93), "{:?}", resized.rgb);
    }

    #[test]
    fn sizes_may_be_single_numbers() {
        let published = PreparationConfig::published(8);
        let mut config = json!(published);
        let read = |config: &Value| serde_json::from_value::<PreparationConfig>(config.clone());
        assert_eq!(read(&config).unwrap(), published);
        config["size"] = json!(8);
        config["crop_size"] = json!(8);
        assert_eq!(read(&config).unwrap(), published);
        config["crop_size"] = json!(8.5);
        read(&config).unwrap_err();
    }

    #[test]
    fn another_preparation_is_refused() {
        let with = |field: &str, value: Value| {
            let mut config = PreparationConfig::published(8);
            config.others.insert(field.to_owned(), value);
            config.validate(8).map_err(|error| error.to_string())
        };
        for (field, value) in [
            ("do_resize", json!(true)),
            ("resample", json!(3)),
            ("rescale_factor", json!(1.0 / 255.0)),
            ("do_convert_rgb", json!(false)),
        ] {
            assert_eq!(with(field, value), Ok(()), "{field}");
        }
        let mut flat = PreparationConfig::published(8);
        flat.image_std[1] = 0.0;
        let error = flat.validate(8).unwrap_err().to_string();
        assert!(error.ends_with("image_std must be above 0, got 0"), "{error}");
        for (field, value, expected) in [
            ("do_normalize", json!(false), "do_normalize must be true, got false"),
            ("resample", json!(2), "resample must be 3 (bicubic), got 2"),
            ("rescale_factor", json!(1), "rescale_factor must be 1/255, got 1"),
        ] {
            let error = with(field, value).unwrap_err();
            assert!(error.ends_with(expected), "{error}");
        }
    }

    /// The shorter side becomes 2, so 4 x 3 becomes 2 x 2 (2.67 rounded down), of which nothing is cut.
    #[test]
    fn the_longer_side_is_rounded_down() {
        let image = Image { width: 4, height: 3, rgb: vec![255; 4 * 3 * 3] };
        let prepared = PreparationConfig::published(2).prepare(&image);
        assert_eq!((prepared.resized.width, prepared.resized.height), (2, 2));
        let values = prepared.pixels.as_slice::<f32>().unwrap();
        let white = (1.0 - 0.481_454_66) / 0.268_629_54;
        assert!((values[0] - white).abs() < 1e-6, "{values:?}");
    }
}
