//! `wuerstchen verify` for a page: the same comparisons, on the devices of a browser.

mod blocks;

use std::sync::Arc;

use burn::tensor::{Device, DeviceKind};
use js_sys::Function;
use wasm_bindgen::prelude::*;
use wuerstchen::{Checkpoint, ModelFiles};
use wuerstchen_verify::{GPU_SLACK, Goldens, Subject, verify};

/// A model and its goldens.
#[wasm_bindgen]
#[derive(Default)]
pub struct Verifier {
    files: ModelFiles,
    goldens: Goldens,
}

#[wasm_bindgen]
impl Verifier {
    /// Without any files.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Self {
        std::panic::set_hook(Box::new(|panic| error_to_console(&panic.to_string())));
        Self::default()
    }

    /// Takes a file of the model's folder, which has `golden/` in it.
    pub fn add(&mut self, path: &str, bytes: Vec<u8>) -> Result<(), JsError> {
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
        match (folder, file.rsplit_once('.')) {
            ("golden", Some((name, "safetensors"))) => {
                let golden = Checkpoint::parse(path, Arc::new(bytes))?;
                self.goldens.tensors.insert(name.to_owned(), golden);
            }
            ("golden", Some((name, "json"))) => {
                self.goldens.texts.insert(name.to_owned(), String::from_utf8(bytes)?);
            }
            (part, Some((_, "safetensors"))) => {
                let weights = Checkpoint::parse(part, Arc::new(bytes))?;
                self.files.weights.insert(part.parse()?, weights);
            }
            _ => {
                self.files.texts.insert(path.to_owned(), String::from_utf8(bytes)?);
            }
        }
        Ok(())
    }

    /// Compares everything on `cpu` or `webgpu`; the checks as JSON. `on_file` gets the name of each
    /// golden file before it is computed.
    pub async fn run(&self, device: String, on_file: Function) -> Result<String, JsError> {
        let (device, slack) = match device.as_str() {
            "webgpu" => {
                Device::wgpu_options().init_async().await?;
                (Device::wgpu(DeviceKind::DefaultDevice), GPU_SLACK)
            }
            "cpu" => (Device::flex(), 1.0),
            _ => return Err(JsError::new(&format!("device must be cpu or webgpu, got {device}"))),
        };
        let subject = Subject {
            files: &self.files,
            // They are PyTorch's, which no browser reads.
            originals: &ModelFiles::default(),
            lora: None,
            goldens: &self.goldens,
            device: &device,
            slack,
        };
        let verification = verify(&subject, &mut |file| {
            // What the page throws is its own business.
            let _ = on_file.call1(&JsValue::UNDEFINED, &file.into());
        })
        .await?;
        Ok(serde_json::to_string(&verification.checks)?)
    }
}

/// Runs blocks of the published size on both devices; what differs, as JSON.
#[wasm_bindgen]
pub async fn full_size_blocks() -> Result<String, JsError> {
    blocks::compare_devices().await
}

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn error_to_console(message: &str);
}
