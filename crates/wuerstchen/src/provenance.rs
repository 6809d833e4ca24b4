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
    /// It is no PNG file.
    #[error(transparent)]
    Png(#[from] png::DecodingError),
    /// A few bytes may unpack to gigabytes.
    #[error("expected its text {KEY:?} to unpack to at most {MAX_TEXT_BYTES} bytes: {0}")]
    Text(png::DecodingError),
}

/// How a picture was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    /// What was asked for.
    pub prompt: String,
    /// Name of the model.
    pub model: String,
    /// Which of the pictures of one call, from 0.
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

    /// The prompt, then one line of settings.
    fn describe(&self) -> String {
        let mut lines = vec![self.prompt.clone()];
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if let Some(settings) = self.settings.as_object() {
            let parts: Vec<_> =
                settings.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect();
            lines.push(parts.join(", "));
        }
        lines.join("\n")
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
}
