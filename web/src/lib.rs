//! Würstchen in the browser: a thin layer over [`wuerstchen::Pipeline`].
//!
//! Failures are thrown as a JavaScript `Error`. Its `code` tells the kind of failure. Its `field` names the option that
//! cannot be run, if an option is the cause.

mod error;
mod generated;
mod pixels;
mod request;
mod stored;

#[cfg(all(feature = "webgpu", not(feature = "cpu")))]
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use burn::tensor::{Device, TensorData};
use js_sys::{Function, Promise};
use serde_json::{Value, json};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
#[cfg(all(feature = "webgpu", not(feature = "cpu")))]
use wuerstchen::kernels::{LAUNCHES_OF_A_SUBMIT, Products, Tiling, choose_products, has_halves};
use wuerstchen::manifest::Unpacking;
use wuerstchen::speed::reach;
use wuerstchen::{
    Checkpoint, Error, LoadError, Lora, LoraFile, Manifest, ModelFiles, OnStep, Part, Pipeline,
    PipelineLoader, Progress, ReadBytes, Residency, Stage, Unread, WebBundle,
};

use crate::error::{error, generate_error, load_error, lora_error};
use crate::generated::{Generated, Picture, shape_of, values_of};
use crate::request::Request;
use crate::stored::Stored;

#[cfg(all(feature = "cpu", feature = "webgpu", target_family = "wasm"))]
compile_error!("a build is for one device: --no-default-features --features webgpu");

/// Sets up the device, once, before any loader.
#[wasm_bindgen(js_name = openDevice)]
pub async fn open_device() -> Result<(), JsError> {
    std::panic::set_hook(Box::new(|panic| error_to_console(&panic.to_string())));
    #[cfg(all(feature = "webgpu", not(feature = "cpu")))]
    Device::wgpu_options().tasks_max(LAUNCHES_OF_A_SUBMIT).init_async().await?;
    Ok(())
}

fn device() -> Device {
    #[cfg(all(feature = "webgpu", not(feature = "cpu")))]
    return Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
    #[cfg(feature = "cpu")]
    Device::flex()
}

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn error_to_console(message: &str);
    #[wasm_bindgen(js_namespace = performance, js_name = now)]
    fn milliseconds() -> f64;
}

fn seconds() -> f64 {
    milliseconds() / 1e3
}

/// Takes a model's shards, one after the other.
#[wasm_bindgen]
pub struct Loader {
    bundle: WebBundle,
    loras: Loras,
    weights: Weights,
}

/// Where the weights of shards go.
enum Weights {
    /// To the device.
    Resident { unpacking: Unpacking, pipeline: Box<PipelineLoader> },
    /// Nowhere: they are read again whenever their part is needed.
    Stored(Vec<Arc<dyn ReadBytes>>),
}

#[wasm_bindgen]
impl Loader {
    /// Reads `manifest.json` and `contents.json`. `residency` is `auto`, `all` or `per-stage`.
    #[wasm_bindgen(constructor)]
    pub fn new(manifest_json: &str, contents_json: &str, residency: &str) -> Result<Self, JsValue> {
        let manifest = Manifest::parse(manifest_json).map_err(load_error)?;
        let bundle = manifest.with_contents(contents_json.as_bytes()).map_err(load_error)?;
        let residency: Residency = serde_json::from_value(residency.into())
            .map_err(|reason| error("invalid-argument", &reason.to_string()))?;
        let outline = bundle.outline();
        let weights = if residency.is_per_stage_of(&outline) {
            Weights::Stored(Vec::new())
        } else {
            let pipeline = PipelineLoader::new(&outline, &device()).map_err(load_error)?;
            Weights::Resident { unpacking: Unpacking::default(), pipeline: Box::new(pipeline) }
        };
        Ok(Self { bundle, loras: Loras::default(), weights })
    }

    /// Whether parts will be on the device one at a time. If so, shards go to [`Self::keep_shard`], else to
    /// [`Self::add_shard`].
    #[wasm_bindgen(getter, js_name = isPerStage)]
    pub fn is_per_stage(&self) -> bool {
        matches!(self.weights, Weights::Stored(_))
    }

    /// Reads a LoRA; must be called before the first shard. `weight` is a factor on the LoRA's change of the model.
    /// Returns what it changes, then each thing in it that is left out, a line each. `adapter_config` is the text of
    /// the file that peft writes beside its weights.
    #[wasm_bindgen(js_name = addLora)]
    pub fn add_lora(
        &mut self,
        name: &str,
        bytes: Vec<u8>,
        adapter_config: Option<String>,
        weight: f64,
    ) -> Result<Vec<String>, JsValue> {
        let file = LoraFile::parse(name, Arc::new(bytes)).map_err(load_error)?;
        let file = file.with_adapter_config(adapter_config);
        let lora = Lora::read(&file, &self.bundle.outline(), weight).map_err(lora_error)?;
        let mut lines = vec![format!("{}, weight {weight}", lora.summary())];
        lines.extend(lora.left_out().iter().cloned());
        self.loras.all = self.loras.all.iter().cloned().chain([lora]).collect();
        self.loras.names.push(format!("{name}:{weight}"));
        Ok(lines)
    }

    /// Takes the weights of a shard to the device. The caller has checked its hash.
    #[wasm_bindgen(js_name = addShard)]
    pub fn add_shard(&mut self, index: usize, bytes: &[u8]) -> Result<(), JsValue> {
        let Weights::Resident { unpacking, pipeline } = &mut self.weights else {
            return Err(error(
                "internal",
                "the parts of this model are loaded when they are needed",
            ));
        };
        let parts = unpacking.add(&self.bundle, index, bytes).map_err(load_error)?;
        for (part, mut weights) in parts {
            let loras = &self.loras.all;
            let changed = weights.changed_by(part, loras).map_err(load_error)?;
            weights.replace(weights.to_be_changed_by(part, loras).map_err(load_error)?);
            pipeline.add(part, &weights).map_err(load_error)?;
            let all_changed = self.loras.changed.entry(part);
            all_changed.or_insert_with(|| Checkpoint::empty(part.folder())).replace(changed);
        }
        Ok(())
    }

    /// Takes the next shard, whose bytes `read(start, end)` gives whenever they are needed. The caller has checked
    /// its hash.
    #[wasm_bindgen(js_name = keepShard)]
    pub fn keep_shard(&mut self, length: usize, read: Function) -> Result<(), JsValue> {
        let Weights::Stored(shards) = &mut self.weights else {
            return Err(error("internal", "the parts of this model are on the device"));
        };
        shards.push(Arc::new(Stored { length, read }));
        Ok(())
    }

    /// The engine, once all shards are there.
    pub fn finish(self) -> Result<Engine, JsValue> {
        let Self { bundle, loras, weights } = self;
        let (pipeline, files) = match weights {
            Weights::Resident { pipeline, .. } => (pipeline.finish().map_err(load_error)?, None),
            Weights::Stored(shards) => {
                let mut shards = shards.into_iter();
                let missing = |path: &str| LoadError::File {
                    path: path.into(),
                    reason: "it is missing".into(),
                };
                let files = bundle.open(|path| shards.next().ok_or_else(|| missing(path)));
                let files = files.map_err(load_error)?;
                (per_stage(&files)?, Some(files))
            }
        };
        Ok(Engine {
            bundle,
            loras,
            pipeline,
            files,
            #[cfg(all(feature = "webgpu", not(feature = "cpu")))]
            products: Cell::default(),
        })
    }
}

fn per_stage(files: &ModelFiles) -> Result<Pipeline, JsValue> {
    Pipeline::load(files, &device(), Residency::PerStage).map_err(load_error)
}

/// A model on the device.
#[wasm_bindgen]
pub struct Engine {
    bundle: WebBundle,
    loras: Loras,
    pipeline: Pipeline,
    /// Where parts take turns: what the pipeline is loaded from anew with the LoRAs.
    files: Option<ModelFiles>,
    /// How products are computed. Several engines of a thread share a device, so each job chooses it anew.
    #[cfg(all(feature = "webgpu", not(feature = "cpu")))]
    products: Cell<Products>,
}

/// What LoRAs change. The golden vectors are those of the unchanged model, which is tested first.
#[derive(Default)]
struct Loras {
    all: Arc<[Lora]>,
    /// Each with its weight, as in the settings of pictures.
    names: Vec<String>,
    /// The tensors that they change, by part.
    changed: BTreeMap<Part, Checkpoint>,
}

#[wasm_bindgen]
impl Engine {
    /// Compares this device's results with the golden vectors of `contents.json`; the report is JSON. Before that, a GPU
    /// chooses how it computes products, by the options `tiling` and `precision` of a load. If the results differ with
    /// halves, it does without.
    #[wasm_bindgen(js_name = selfTest)]
    pub async fn self_test(&self, tiling: &str, precision: &str) -> Result<String, JsValue> {
        #[cfg(all(feature = "webgpu", not(feature = "cpu")))]
        self.choose_products(tiling, precision == "f16").await?;
        #[cfg(feature = "cpu")]
        let _ = (tiling, precision);
        let test = self.bundle.contents().self_test.as_ref();
        let test = test.ok_or_else(|| error("integrity", "the model has no golden vectors"))?;
        let report = test.run(&self.pipeline).await.map_err(generate_error)?;
        #[cfg(all(feature = "webgpu", not(feature = "cpu")))]
        if self.products.get().halves && !report.ok {
            self.choose_products(tiling, false).await?;
            let report = test.run(&self.pipeline).await.map_err(generate_error)?;
            let mut report = json!(report);
            report["failedInHalves"] = true.into();
            return Ok(report.to_string());
        }
        Ok(json!(report).to_string())
    }

    #[cfg(all(feature = "webgpu", not(feature = "cpu")))]
    async fn choose_products(&self, tiling: &str, halves: bool) -> Result<(), JsValue> {
        let device = self.pipeline.device();
        let tiling = Tiling::ALL.into_iter().find(|known| known.name() == tiling);
        let products = if tiling.is_none() {
            self.pipeline.choose_products(halves, &seconds).await.map_err(generate_error)?
        } else {
            let products = Products { tiling, halves: halves && has_halves(device) };
            choose_products(device, products);
            products
        };
        self.products.set(products);
        Ok(())
    }

    /// How the device computes products, in the words of the options of a load; nothing of a CPU.
    #[wasm_bindgen(getter)]
    pub fn products(&self) -> Option<String> {
        #[cfg(all(feature = "webgpu", not(feature = "cpu")))]
        {
            let Products { tiling, halves } = self.products.get();
            let tiling = tiling.map_or("auto", Tiling::name);
            let precision = if halves { "f16" } else { "f32" };
            Some(json!({"tiling": tiling, "precision": precision}).to_string())
        }
        #[cfg(feature = "cpu")]
        None
    }

    /// Measures the speed of this device, and counts the work for a picture; JSON.
    pub async fn measure(&self) -> Result<String, JsValue> {
        let reach = reach(self.pipeline.device(), &seconds).await.map_err(generate_error)?;
        let work = self.pipeline.work(&self.bundle.outline()).map_err(generate_error)?;
        let measured = json!({
            "multiplyAddsPerSec": reach.multiply_adds_per_sec,
            "bytesPerSec": reach.bytes_per_sec,
            "work": work,
        });
        Ok(measured.to_string())
    }

    /// Makes the changes of all LoRAs, once, after the self-test.
    #[wasm_bindgen(js_name = applyLoras)]
    pub fn apply_loras(&mut self) -> Result<(), JsValue> {
        if self.loras.all.is_empty() {
            return Ok(());
        }
        if let Some(mut files) = self.files.take() {
            files.add_loras(self.loras.all.to_vec()).map_err(load_error)?;
            self.pipeline = per_stage(&files)?;
        }
        for (part, weights) in std::mem::take(&mut self.loras.changed) {
            self.pipeline.replace(part, &weights).map_err(load_error)?;
        }
        Ok(())
    }

    /// Makes the pictures of a request. `on_step` gets the stage, the step, the number of steps, the shape and
    /// values of what the step made, and returns a promise of whether to go on.
    pub async fn generate(
        &self,
        request: Request,
        on_step: Function,
    ) -> Result<Generated, JsValue> {
        let mut failure = None;
        let step = &mut async |progress: Progress<'_>| match call(&on_step, &progress).await {
            Ok(go) if go.is_truthy() => ControlFlow::Continue(()),
            Ok(_) => ControlFlow::Break(()),
            Err(thrown) => {
                failure = Some(thrown);
                ControlFlow::Break(())
            }
        };
        let made = self.make(request.0, step).await;
        match (made, failure) {
            (_, Some(thrown)) => Err(thrown),
            (Ok(made), None) => Ok(made),
            (Err(reason), None) => Err(generate_error(reason)),
        }
    }

    /// A preview of the first picture of a batch of latents, as `on_step` got them; `undefined` where there is nothing
    /// to show.
    pub async fn preview(
        &self,
        stage: &str,
        shape: &[u32],
        latents: Vec<f32>,
    ) -> Result<Option<Picture>, JsValue> {
        let stage: Stage = serde_json::from_value(Value::from(stage))
            .map_err(|reason| error("invalid-argument", &reason.to_string()))?;
        let shape: Vec<usize> = shape.iter().map(|&side| side as usize).collect();
        if shape.len() != 4 || shape.iter().product::<usize>() != latents.len() {
            return Ok(None);
        }
        let latents = TensorData::new(latents, shape);
        let colours = self.bundle.contents().preview.as_ref();
        let image =
            self.pipeline.preview(stage, &latents, colours).await.map_err(generate_error)?;
        Ok(image.map(|image| Picture { image, provenance: None }))
    }
}

impl Engine {
    async fn make(
        &self,
        request: wuerstchen::Request,
        on_step: &mut dyn OnStep,
    ) -> Result<Generated, Error> {
        #[cfg(all(feature = "webgpu", not(feature = "cpu")))]
        choose_products(self.pipeline.device(), self.products.get());
        let mut unread = Unread::default();
        for (_, text) in request.texts() {
            let found = self.pipeline.unread(text, request.options.prompt_syntax)?;
            unread.cut_off = unread.cut_off.or(found.cut_off);
            let is_new = |word: &String| !unread.unknown_words.contains(word);
            let new: Vec<_> = found.unknown_words.into_iter().filter(is_new).collect();
            unread.unknown_words.extend(new);
        }
        let prepared = self.pipeline.prepare(request).await?;
        let batches = prepared.batches();
        let made = self.pipeline.generate_batches(&batches, &prepared.settings, on_step).await?;
        let model = self.bundle.manifest().name.clone();
        Ok(Generated { prepared, model, loras: self.loras.names.clone(), unread, made })
    }
}

async fn call(on_step: &Function, progress: &Progress<'_>) -> Result<JsValue, JsValue> {
    let stage = serde_json::to_value(progress.stage).expect("a stage is a word");
    let latents = || std::iter::once(progress.latents);
    let (shape, values) = (shape_of(latents()), values_of(latents()));
    let arguments = js_sys::Array::of5(
        &stage.as_str().unwrap_or_default().into(),
        &JsValue::from(progress.step as u32),
        &JsValue::from(progress.steps as u32),
        &shape,
        &values,
    );
    let promise: Promise = on_step.apply(&JsValue::UNDEFINED, &arguments)?.into();
    JsFuture::from(promise).await
}
