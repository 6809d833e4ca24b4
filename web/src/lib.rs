//! Würstchen in the browser: a thin layer over [`wuerstchen::Pipeline`].
//!
//! Failures are thrown as a JavaScript `Error`. Its `code` tells the kind of failure. Its `field` names the option that
//! cannot be run, if an option is the cause.

mod pixels;
mod stored;

#[cfg(all(feature = "webgpu", not(feature = "cpu")))]
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use burn::tensor::{Device, TensorData};
use js_sys::{Float32Array, Function, Promise, Reflect, Uint32Array};
use serde_json::{Value, json};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
#[cfg(all(feature = "webgpu", not(feature = "cpu")))]
use wuerstchen::kernels::{LAUNCHES_OF_A_SUBMIT, Products, Tiling, choose_products, has_halves};
use wuerstchen::manifest::Unpacking;
use wuerstchen::speed::reach;
use wuerstchen::{
    Checkpoint, Error, Generated as Made, Image, LoadError, Lora, LoraError, LoraFile, Manifest,
    ModelFiles, OnStep, Part, Pipeline, PipelineLoader, Prepared, Progress, Provenance, ReadBytes,
    Residency, Stage, Unread, WebBundle,
};

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
    /// What parts are loaded from whenever they are needed.
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

/// What a caller asks for.
#[wasm_bindgen]
pub struct Request(wuerstchen::Request);

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

/// What a generation made.
#[wasm_bindgen]
pub struct Generated {
    prepared: Prepared,
    model: String,
    loras: Vec<String>,
    unread: Unread,
    /// One for each batch of the request.
    made: Vec<Made>,
}

#[wasm_bindgen]
impl Generated {
    /// Number of pictures.
    #[wasm_bindgen(getter)]
    pub fn count(&self) -> usize {
        self.pictures().count()
    }

    /// A picture, `undefined` past the last.
    pub fn picture(&self, index: usize) -> Option<Picture> {
        let (image, place) = self.pictures().nth(index)?;
        let made = &self.made[place[0]];
        let mut provenance = self.prepared.provenance(&made.settings, &self.model, place);
        self.add_loras(&mut provenance.settings);
        Some(Picture { image: image.clone(), provenance: Some(provenance) })
    }

    /// All pictures, with the number of the batch and their number in it.
    fn pictures(&self) -> impl Iterator<Item = (&Image, [usize; 2])> {
        self.made.iter().enumerate().flat_map(|(batch, made)| {
            made.images.iter().enumerate().map(move |(i, image)| (image, [batch, i]))
        })
    }

    fn add_loras(&self, settings: &mut Value) {
        if !self.loras.is_empty() {
            settings["loras"] = self.loras.clone().into();
        }
    }

    /// JSON of the parts of the prompts that have no influence: `unknownWords`, and `cutOff` where a prompt is too
    /// long.
    #[wasm_bindgen(getter)]
    pub fn unread(&self) -> String {
        serde_json::to_string(&self.unread).expect("words are JSON")
    }

    /// JSON of the options with every gap filled.
    #[wasm_bindgen(getter)]
    pub fn settings(&self) -> String {
        let mut settings = self.prepared.describe(&self.made[0].settings, None);
        self.add_loras(&mut settings);
        settings.to_string()
    }

    /// `[B, C, h, w]`, all frames together.
    #[wasm_bindgen(getter, js_name = imageEmbeddingShape)]
    pub fn image_embedding_shape(&self) -> Uint32Array {
        shape_of(self.made.iter().map(|made| &made.image_embeddings))
    }

    /// Stage C's result.
    #[wasm_bindgen(getter, js_name = imageEmbedding)]
    pub fn image_embedding(&self) -> Float32Array {
        values_of(self.made.iter().map(|made| &made.image_embeddings))
    }

    /// `[B, C, h, w]`, all frames together.
    #[wasm_bindgen(getter, js_name = latentsShape)]
    pub fn latents_shape(&self) -> Uint32Array {
        shape_of(self.made.iter().map(|made| &made.latents))
    }

    /// Stage B's result.
    #[wasm_bindgen(getter)]
    pub fn latents(&self) -> Float32Array {
        values_of(self.made.iter().map(|made| &made.latents))
    }
}

/// The shape of batches that are put one after the other.
fn shape_of<'a>(mut batches: impl Iterator<Item = &'a TensorData>) -> Uint32Array {
    let mut shape: Vec<u32> = Vec::new();
    if let Some(first) = batches.next() {
        shape.extend(first.shape().iter().map(|&side| side as u32));
        shape[0] += batches.map(|batch| batch.shape()[0] as u32).sum::<u32>();
    }
    Uint32Array::from(&shape[..])
}

fn values_of<'a>(batches: impl Iterator<Item = &'a TensorData>) -> Float32Array {
    let values = batches.map(|data| data.as_slice::<f32>().expect("the pipeline reports f32"));
    Float32Array::from(&values.collect::<Vec<_>>().concat()[..])
}

/// A picture.
#[wasm_bindgen]
pub struct Picture {
    image: Image,
    provenance: Option<Provenance>,
}

#[wasm_bindgen]
impl Picture {
    /// Pixels.
    #[wasm_bindgen(getter)]
    pub fn width(&self) -> usize {
        self.image.width
    }

    /// Pixels.
    #[wasm_bindgen(getter)]
    pub fn height(&self) -> usize {
        self.image.height
    }

    /// Four bytes a pixel, opaque, as `ImageData` has them.
    pub fn rgba(&self) -> Vec<u8> {
        self.image.rgb.chunks(3).flat_map(|pixel| [pixel[0], pixel[1], pixel[2], u8::MAX]).collect()
    }

    /// A PNG file whose text chunks carry the prompt and the settings.
    pub fn png(&self) -> Result<Vec<u8>, JsValue> {
        let png = match &self.provenance {
            Some(provenance) => provenance.to_png(&self.image),
            None => self.image.to_png(),
        };
        png.map_err(|reason| error("internal", &reason.to_string()))
    }
}

fn load_error(reason: LoadError) -> JsValue {
    error("integrity", &reason.to_string())
}

fn lora_error(reason: LoraError) -> JsValue {
    error("integrity", &reason.to_string())
}

fn generate_error(reason: Error) -> JsValue {
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
fn error(code: &str, message: &str) -> JsValue {
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
