//! Failures as JavaScript's errors.

use js_sys::Reflect;
use wasm_bindgen::prelude::*;
use wuerstchen::{Error, LoadError, LoraError};

pub(crate) fn load_error(reason: LoadError) -> JsValue {
    error("integrity", &reason.to_string())
}

pub(crate) fn lora_error(reason: LoraError) -> JsValue {
    error("integrity", &reason.to_string())
}

pub(crate) fn generate_error(reason: Error) -> JsValue {
    let code = match reason {
        Error::Options(_) | Error::Tokenizer(_) | Error::NotFinite { .. } => "invalid-argument",
        Error::Device(_) => "device-lost",
        Error::Cancelled => "cancelled",
        Error::Load(_) => "integrity",
    };
    let Error::Options(reason) = &reason else { return error(code, &reason.to_string()) };
    let thrown = error(code, &as_written(&reason.to_string()));
    // A fresh object takes any property.
    let _ = Reflect::set(&thrown, &"field".into(), &camel_case(reason.field()).into());
    thrown
}

/// An `Error` with a `code`.
pub(crate) fn error(code: &str, message: &str) -> JsValue {
    let error = js_sys::Error::new(message);
    // A fresh object takes any property.
    let _ = Reflect::set(&error, &"code".into(), &code.into());
    error.into()
}

/// A message with the names of options as JavaScript writes them.
fn as_written(message: &str) -> String {
    let name = |word: &str| if word.contains('_') { camel_case(word) } else { word.to_owned() };
    message.split(' ').map(name).collect::<Vec<_>>().join(" ")
}

/// The name that JavaScript has for an option: `priorSteps` for `prior_steps`.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let (initial, rest) = word.split_at(word.len().min(1));
        name + &initial.to_ascii_uppercase() + rest
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_the_names_of_json() {
        let [one, many] = ["width", "decoder_guidance_scale"].map(camel_case);
        assert_eq!((&*one, &*many), ("width", "decoderGuidanceScale"));
        let message = as_written("image_to needs an image to start from, which is missing");
        assert_eq!(message, "imageTo needs an image to start from, which is missing");
    }
}
