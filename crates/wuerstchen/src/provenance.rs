//! Pictures that tell how they were made.

use std::io::Cursor;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::image::Image;

/// Keyword of the PNG text that holds the [`Provenance`] as JSON.
const KEY: &str = "wuerstchen";

/// Keyword of the PNG text for people and other programs.
const PARAMETERS: &str = "parameters";

/// Longest text that is unpacked: prompts and settings take a few thousand bytes.
const MAX_TEXT_BYTES: usize = 4 << 20;

/// Why a PNG file does not tell how its picture was made.
#[derive(Debug, thiserror::Error)]
pub enum ProvenanceError {
    /// The bytes are no PNG file.
    #[error(transparent)]
    Png(#[from] png::DecodingError),
    /// Its text unpacks to more bytes than any that this program writes: a few bytes may unpack to gigabytes.
    #[error("expected its text {KEY:?} to unpack to at most {MAX_TEXT_BYTES} bytes: {0}")]
    Text(png::DecodingError),
}

/// How a picture was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    /// The prompt.
    pub prompt: String,
    /// Name of the model.
    pub model: String,
    /// Number of the picture among those of one call, from 0.
    pub image: usize,
    /// Version of this program.
    pub version: String,
    /// Every option that took effect.
    pub settings: Value,
}

impl Provenance {
    /// A PNG file of a picture, with the prompt and the settings in its texts.
    ///
    /// # Errors
    ///
    /// A side has more pixels than PNG can count.
    pub fn to_png(&self, image: &Image) -> Result<Vec<u8>, png::EncodingError> {
        let json = serde_json::to_string(self).expect("strings and numbers are JSON");
        encode(image, &[(KEY, json), (PARAMETERS, self.describe())])
    }

    /// How the picture of a PNG file was made; `None` if it does not tell.
    ///
    /// # Errors
    ///
    /// The bytes are no PNG file, or its text is longer than any that tells how a picture was made.
    pub fn from_png(bytes: &[u8]) -> Result<Option<Self>, ProvenanceError> {
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info()?;
        reader.finish()?;
        let texts = reader.info().utf8_text.iter().filter(|chunk| chunk.keyword == KEY);
        for mut text in texts.cloned() {
            text.decompress_text_with_limit(MAX_TEXT_BYTES).map_err(ProvenanceError::Text)?;
            if let Ok(found) = serde_json::from_str(&text.get_text()?) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The prompt, then the settings, in the form that other programs and galleries read.
    ///
    /// Source: `create_infotext` of AUTOMATIC1111/stable-diffusion-webui, `processing.py`.
    fn describe(&self) -> String {
        let setting = |name: &str| match &self.settings[name] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            value => Some(value.to_string()),
        };
        // One more time than steps.
        let steps =
            |name: &str| Some(self.settings[name].as_array()?.len().saturating_sub(1).to_string());
        let size = || Some(format!("{}x{}", setting("width")?, setting("height")?));
        let version = format!("wuerstchen {}", self.version);
        let fields = [
            ("Steps", steps("priorTimesteps")),
            ("Sampler", setting("sampler")),
            ("CFG scale", setting("priorGuidanceScale")),
            ("Seed", setting("seed")),
            ("Size", size()),
            ("Model", Some(self.model.clone()).filter(|model| !model.is_empty())),
            ("Denoising strength", setting("strength")),
            ("Decoder steps", steps("decoderTimesteps")),
            ("Decoder CFG scale", setting("decoderGuidanceScale")),
            ("Version", Some(version)),
        ];
        let negative = setting("negativePrompt").filter(|negative| !negative.is_empty());
        let negative = negative.map(|negative| format!("Negative prompt: {negative}"));
        let field = |(name, value): (&str, Option<String>)| Some(format!("{name}: {}", value?));
        let settings: Vec<_> = fields.into_iter().filter_map(field).collect();
        let lines = [Some(self.prompt.clone()), negative, Some(settings.join(", "))];
        lines.into_iter().flatten().collect::<Vec<_>>().join("\n")
    }
}

impl Image {
    /// A PNG file of the picture alone.
    ///
    /// # Errors
    ///
    /// A side has more pixels than PNG can count.
    pub fn to_png(&self) -> Result<Vec<u8>, png::EncodingError> {
        encode(self, &[])
    }
}

fn encode(image: &Image, texts: &[(&str, String)]) -> Result<Vec<u8>, png::EncodingError> {
    let side =
        |pixels: usize| u32::try_from(pixels).map_err(|_| png::EncodingError::LimitsExceeded);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side(image.width)?, side(image.height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in texts {
        encoder.add_itxt_chunk((*keyword).to_owned(), text.clone())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&image.rgb)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_tell_how_they_were_made() {
        let image = Image { width: 2, height: 1, rgb: vec![0, 1, 2, 3, 4, 5] };
        let provenance = Provenance {
            prompt: "ein blauer Kreis – ✓".into(),
            model: "tiny".into(),
            image: 0,
            version: "1".into(),
            settings: serde_json::json!({ "seed": 7 }),
        };
        let bytes = provenance.to_png(&image).unwrap();
        assert_eq!(Provenance::from_png(&bytes).unwrap(), Some(provenance));
        assert_eq!(Provenance::from_png(&image.to_png().unwrap()).unwrap(), None);
    }

    #[test]
    fn other_programs_are_told_in_their_form() {
        let provenance = Provenance {
            prompt: "a fox\nin the snow".into(),
            model: "tiny".into(),
            image: 0,
            version: "1".into(),
            settings: serde_json::json!({
                "seed": 7, "negativePrompt": "text", "width": 64, "height": 128, "sampler": "ddpm",
                "priorTimesteps": [1.0, 0.5, 0.0], "priorGuidanceScale": 4.0, "promptTo": "a house",
            }),
        };
        let expected = "a fox\nin the snow\nNegative prompt: text\nSteps: 2, Sampler: ddpm, \
                        CFG scale: 4.0, Seed: 7, Size: 64x128, Model: tiny, Version: wuerstchen 1";
        assert_eq!(provenance.describe(), expected);
    }
}
