//! `wuerstchen verify` for a page: the same comparisons, on the devices of a browser.

mod blocks;

use std::sync::Arc;

use burn::tensor::{Device, DeviceKind};
use js_sys::{Function, Uint8Array};
use wasm_bindgen::prelude::*;
use wuerstchen::{Checkpoint, LoadError, LoraFile, Manifest, ModelFiles, ReadBytes};
use wuerstchen_verify::{GPU_SLACK, Goldens, Subject, original_weights, verify};

/// A model and its goldens.
#[wasm_bindgen]
#[derive(Default)]
pub struct Verifier {
    files: ModelFiles,
    /// The authors' files.
    originals: Vec<Checkpoint>,
    /// The authors' LoRA.
    lora: Option<LoraFile>,
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

    /// Takes the model of a bundle, with `shards` in the manifest's order, in place of a model folder whose files no
    /// browser can read.
    pub fn add_bundle(
        &mut self,
        manifest: &str,
        contents: &[u8],
        shards: Vec<Uint8Array>,
    ) -> Result<(), JsError> {
        let bundle = Manifest::parse(manifest)?.with_contents(contents)?;
        let mut shards = shards.into_iter();
        self.files = bundle.open(|file| {
            let missing = || LoadError::File { path: file.into(), reason: "it is missing".into() };
            let bytes: Arc<dyn ReadBytes> = Arc::new(shards.next().ok_or_else(missing)?.to_vec());
            Ok::<_, LoadError>(bytes)
        })?;
        Ok(())
    }

    /// Takes a file of the model's folder, which has `golden/` in it and may have the authors' safetensors files
    /// in `original/`.
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
            ("original", Some(("lora", "safetensors"))) => {
                self.lora = Some(LoraFile::parse(path, Arc::new(bytes))?);
            }
            ("original", Some((_, "safetensors"))) => {
                self.originals.push(Checkpoint::parse(path, Arc::new(bytes))?);
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
        let weights = original_weights(self.files.family(), self.originals.iter().cloned());
        let originals = ModelFiles { texts: self.files.texts.clone(), weights };
        let subject = Subject {
            files: &self.files,
            originals: &originals,
            lora: self.lora.as_ref(),
            goldens: &self.goldens,
            device: &device,
            slack,
        };
        let verification = verify(&subject, &mut |file| {
            // An error that the page throws does not concern the comparison.
            let _ = on_file.call1(&JsValue::UNDEFINED, &file.into());
        })
        .await?;
        Ok(serde_json::to_string(&verification.checks)?)
    }
}

/// Runs blocks of the published size on both devices; returns the differences as JSON.
#[wasm_bindgen]
pub async fn full_size_blocks() -> Result<String, JsError> {
    blocks::compare_devices().await
}

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn error_to_console(message: &str);
}
