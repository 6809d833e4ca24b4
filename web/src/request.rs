//! What JavaScript asks for.

use wasm_bindgen::prelude::*;

use crate::error::error;
use crate::pixels;

/// What a caller asks for.
#[wasm_bindgen]
pub struct Request(pub(crate) wuerstchen::Request);

#[wasm_bindgen]
impl Request {
    /// The prompts and the options; the pictures are added one by one.
    #[wasm_bindgen(constructor)]
    pub fn new(json: &str) -> Result<Self, JsValue> {
        let request = serde_json::from_str(json);
        request.map(Self).map_err(|reason| error("invalid-argument", &reason.to_string()))
    }

    /// The picture to start from. `rgba` has four bytes a pixel, as `ImageData` has them; transparent pixels are put on
    /// white.
    #[wasm_bindgen(js_name = setImage)]
    pub fn set_image(&mut self, width: usize, rgba: &[u8]) {
        self.0.pictures.image = Some(pixels::image(width, rgba));
    }

    /// The parts of that picture to paint anew: white is painted; black and transparent parts stay.
    #[wasm_bindgen(js_name = setMask)]
    pub fn set_mask(&mut self, width: usize, rgba: &[u8]) {
        self.0.pictures.mask = Some(pixels::mask(width, rgba));
    }

    /// The picture at which the frames end.
    #[wasm_bindgen(js_name = setImageTo)]
    pub fn set_image_to(&mut self, width: usize, rgba: &[u8]) {
        self.0.pictures.image_to = Some(pixels::image(width, rgba));
    }

    /// A picture as a prompt.
    #[wasm_bindgen(js_name = addPicturePrompt)]
    pub fn add_picture_prompt(&mut self, width: usize, rgba: &[u8]) {
        self.0.pictures.picture_prompts.push(pixels::image(width, rgba));
    }

    /// The picture that a ControlNet makes the result follow.
    #[wasm_bindgen(js_name = setControlImage)]
    pub fn set_control_image(&mut self, width: usize, rgba: &[u8]) {
        self.0.pictures.control_image = Some(pixels::image(width, rgba));
    }

    /// The part of that picture to paint anew, as [`Self::set_mask`] takes it.
    #[wasm_bindgen(js_name = setControlMask)]
    pub fn set_control_mask(&mut self, width: usize, rgba: &[u8]) {
        self.0.pictures.control_mask = Some(pixels::mask(width, rgba));
    }
}
