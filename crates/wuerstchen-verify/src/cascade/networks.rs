//! The networks by themselves.

use burn::prelude::*;
use half::bf16;
use wuerstchen::cascade::{AddedFeatures, Cascade, CascadeConditions};
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::compressor::normalise;
use wuerstchen::family::{PREPARATION, PipelineFolder};
use wuerstchen::previewer::PreviewerConfig;
use wuerstchen::resize::{Filter, resize_to_cover};
use wuerstchen::vision::PreparationConfig;
use wuerstchen::vqgan::STAGE_A_SCALE;
use wuerstchen::{
    CascadeConfig, Checkpoint, CompressorConfig, ControlNetConfig, Image, ImageEncoderConfig,
    ModelFiles, Part, PartConfig, Statistics, VqganConfig,
};

use crate::compare::Recorder;
use crate::report::VerifyError;
use crate::stages::{DIFFUSION_BOUND, EXACT_BOUND};

/// The parts of [`super::STAGES`].
pub(crate) const PARTS: [Part; 4] =
    [Part::CASCADE_PRIOR, Part::CASCADE_DECODER, Part::CASCADE_VQGAN, Part::CASCADE_COMPRESSOR];

/// A U-Net's inputs as its golden file has them.
#[derive(Clone)]
struct Inputs {
    x: Tensor<4>,
    times: Vec<f32>,
    text: Option<Tensor<3>>,
    pooled: Tensor<2>,
    images: Option<Tensor<3>>,
    embedding: Option<Tensor<4>>,
    pixels: Option<Tensor<4>>,
    further: [f32; 2],
    control: Vec<AddedFeatures>,
}

impl Inputs {
    fn read(recorder: &Recorder, device: &Device) -> Result<Self, VerifyError> {
        let pooled: Tensor<3> = recorder.tensor("clip_text_pooled", device)?;
        let [batch, _, width] = pooled.dims();
        Ok(Self {
            x: recorder.tensor("x", device)?,
            times: recorder.values("r")?,
            text: recorder.optional("clip_text", device)?,
            pooled: pooled.reshape([batch, width]),
            images: recorder.optional("clip_img", device)?,
            embedding: recorder.optional("effnet", device)?,
            pixels: None,
            further: [0.0; 2],
            control: Vec::new(),
        })
    }

    /// The first sample alone.
    fn first(self) -> Self {
        fn first<const D: usize>(x: Tensor<D>) -> Tensor<D> {
            x.narrow(0, 0, 1)
        }
        Self {
            x: first(self.x),
            times: self.times[..1].to_vec(),
            text: self.text.map(first),
            pooled: first(self.pooled),
            images: self.images.map(first),
            embedding: self.embedding.map(first),
            pixels: self.pixels.map(first),
            further: self.further,
            control: self.control,
        }
    }

    fn conditions(&self) -> CascadeConditions {
        CascadeConditions {
            text_pooled: self.pooled.clone(),
            text: self.text.clone(),
            images: self.images.clone(),
            image_embedding: self.embedding.clone(),
            pixels: self.pixels.clone(),
            sca: self.further[0],
            crp: self.further[1],
            control: self.control.clone(),
        }
    }

    fn predict(&self, model: &Cascade) -> Tensor<4> {
        model.forward(self.x.clone(), &self.times, &self.conditions())
    }

    fn predict_observed(&self, model: &Cascade, recorder: &mut Recorder, of: &str) -> Tensor<4> {
        let [.., height, width] = self.x.dims();
        let model = model.prepare(&self.conditions(), [height, width]);
        model.forward(self.x.clone(), &self.times, &mut |name, x| {
            recorder.check_observed_of(of, name, x, DIFFUSION_BOUND);
        })
    }
}

pub(crate) fn prior(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    unet(recorder, files, Part::CASCADE_PRIOR, device)
}

pub(crate) fn decoder(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    unet(recorder, files, Part::CASCADE_DECODER, device)
}

fn unet(
    recorder: &mut Recorder,
    files: &ModelFiles,
    part: Part,
    device: &Device,
) -> Result<(), VerifyError> {
    let config: CascadeConfig = files.part_config(part)?;
    let weights = files.weights(part)?;
    let model = config.load(weights, device)?;
    let inputs = Inputs::read(recorder, device)?;
    let embedded = model.embed_times(&inputs.times, inputs.further, device);
    recorder.check("r_embed", embedded, EXACT_BOUND);
    let tokens = model.embed_text(&inputs.conditions());
    recorder.check("clip", tokens.all.clone(), DIFFUSION_BOUND);
    recorder.check("act/clip_norm:out", tokens.all, DIFFUSION_BOUND);
    recorder.check("act/clip_txt_pooled_mapper:out", tokens.pooled, DIFFUSION_BOUND);
    for (name, tokens) in [("txt", tokens.text), ("img", tokens.images)] {
        if let Some(tokens) = tokens {
            recorder.check(&format!("act/clip_{name}_mapper:out"), tokens, DIFFUSION_BOUND);
        }
    }
    let y = inputs.predict_observed(&model, recorder, "");
    recorder.check("y", y, DIFFUSION_BOUND);

    if recorder.has("conditions.y") {
        let value = |name: &str| {
            let has = recorder.has(name).then(|| recorder.values(name)).transpose()?;
            Ok::<_, VerifyError>(has.and_then(|values| values.first().copied()).unwrap_or(0.0))
        };
        let further = [value("conditions.sca")?, value("conditions.crp")?];
        let y = Inputs { further, ..inputs.clone().first() }.predict(&model);
        recorder.check("conditions.y", y, DIFFUSION_BOUND);
    }
    if recorder.has("ends.y") {
        let y = Inputs { times: recorder.values("ends.r")?, ..inputs.clone() }.predict(&model);
        recorder.check("ends.y", y, DIFFUSION_BOUND);
    }
    if recorder.has("no_picture.y") {
        let y = Inputs { images: None, ..inputs.clone() }.predict(&model);
        recorder.check("no_picture.y", y, DIFFUSION_BOUND);
    }
    if recorder.has("two_pictures.y") {
        let images = Some(recorder.tensor("two_pictures.clip_img", device)?);
        let y = Inputs { images, ..inputs.clone() }.predict(&model);
        recorder.check("two_pictures.y", y, DIFFUSION_BOUND);
    }
    if recorder.has("pixels.y") {
        let pixels = Some(recorder.tensor("pixels.pixels", device)?);
        let y = Inputs { pixels, ..inputs.clone() }.predict(&model);
        recorder.check("pixels.y", y, DIFFUSION_BOUND);
    }
    if recorder.has("uneven.y") {
        let embedding = recorder.optional("uneven.effnet", device)?;
        let x = recorder.tensor("uneven.x", device)?;
        let inputs = Inputs { x, embedding, ..inputs.clone().first() };
        let y = inputs.predict_observed(&model, recorder, "uneven.");
        recorder.check("uneven.y", y, DIFFUSION_BOUND);
    }
    if recorder.has("bf16_weights.y") {
        let model = config.load(&rounded(weights)?, device)?;
        recorder.check("bf16_weights.y", inputs.predict(&model), DIFFUSION_BOUND);
    }
    Ok(())
}

/// A prediction of Stage C with a LoRA.
pub(super) fn changed_prior(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let (_, model) = files.load::<CascadeConfig>(Part::CASCADE_PRIOR, device)?;
    let y = Inputs::read(recorder, device)?.predict(&model);
    recorder.check("y", y, DIFFUSION_BOUND);
    Ok(())
}

/// A ControlNet, and a prediction of Stage C with what the ControlNet adds, which is returned.
pub(super) fn controlnet(
    recorder: &mut Recorder,
    files: &ModelFiles,
    prior: &Cascade,
    device: &Device,
) -> Result<Vec<AddedFeatures>, VerifyError> {
    let (config, model) = files.load::<ControlNetConfig>(Part::CASCADE_CONTROLNET, device)?;
    let features = model.forward(recorder.tensor("input", device)?);
    let mut control = Vec::new();
    for (&block, features) in config.blocks.iter().zip(features) {
        let name = format!("projection.{block}");
        let planes = features.clone().permute([0, 3, 1, 2]);
        recorder.check(&name, planes, EXACT_BOUND);
        control.push(AddedFeatures { block, features });
    }
    let inputs = Inputs { control: control.clone(), ..Inputs::read(recorder, device)? };
    recorder.check("y", inputs.predict(prior), DIFFUSION_BOUND);
    Ok(control)
}

/// The weights rounded to bf16.
fn rounded(weights: &Checkpoint) -> Result<Checkpoint, VerifyError> {
    let tensor = |name: &str| {
        let values = weights.values(name)?;
        let values = values.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect();
        let shape = weights.shape(name).unwrap_or_default();
        Ok::<_, VerifyError>(NamedTensor::new(name, shape, values))
    };
    let tensors = weights.names().map(tensor).collect::<Result<Vec<_>, _>>()?;
    Ok(Checkpoint::from_tensors(weights.part(), tensors))
}

pub(crate) fn vqgan(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let (config, model) = files.load::<VqganConfig>(Part::CASCADE_VQGAN, device)?;
    let latents: Tensor<4> = recorder.tensor("latents", device)?;
    let encoded = model.encode(recorder.tensor("image", device)?, Statistics::Running);
    // diffusers leaves the scale of encoded pictures to the caller, the authors do not.
    for (of, scale, scale_of_encoded) in
        [("", config.scale_factor, 1.0), ("original.", STAGE_A_SCALE, STAGE_A_SCALE)]
    {
        let decoded = model.decode(latents.clone() * scale);
        recorder.check(&format!("{of}decoded"), decoded, EXACT_BOUND);
        let encoded = encoded.clone() / scale_of_encoded;
        recorder.check(&format!("{of}encoded"), encoded, EXACT_BOUND);
    }
    Ok(())
}

pub(crate) fn compressor(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    if recorder.has("resize_out") {
        let picture = picture(recorder, "resize_in")?.to_tensor(device);
        let &[.., height, width] = recorder.shape("resize_out")? else {
            return Err(recorder.error("expected a picture in \"resize_out\"".into()));
        };
        let resized = resize_to_cover(picture, [height.min(width); 2], Filter::Bilinear);
        recorder.check("resize_out", resized, EXACT_BOUND);
    }
    if !files.weights.contains_key(&Part::CASCADE_COMPRESSOR) {
        return Ok(());
    }
    let (_, model) = files.load::<CompressorConfig>(Part::CASCADE_COMPRESSOR, device)?;
    let picture = recorder.tensor("picture", device)?;
    let latents = model.forward(normalise(picture), Statistics::Running);
    recorder.check("latents", latents, DIFFUSION_BOUND);
    if files.weights.contains_key(&Part::CASCADE_PREVIEWER) && recorder.has("preview") {
        let (_, model) = files.load::<PreviewerConfig>(Part::CASCADE_PREVIEWER, device)?;
        let preview = model.forward(recorder.tensor("latents", device)?);
        recorder.check("preview", preview, DIFFUSION_BOUND);
    }
    Ok(())
}

/// A golden picture in bytes.
pub(super) fn picture(recorder: &Recorder, name: &str) -> Result<Image, VerifyError> {
    let &[height, width, 3] = recorder.shape(name)? else {
        return Err(recorder.error(format!("expected [H, W, 3] in {name:?}")));
    };
    Ok(Image { width, height, rgb: recorder.bytes(name)? })
}

/// From pictures in bytes to their embeddings.
pub(crate) fn image_encoder(
    recorder: &mut Recorder,
    files: &ModelFiles,
    device: &Device,
) -> Result<(), VerifyError> {
    let (_, model) = files.load::<ImageEncoderConfig>(Part::CASCADE_IMAGE_ENCODER, device)?;
    let path = format!("{}/{PREPARATION}", PipelineFolder::CASCADE_PRIOR.name);
    let preparation: PreparationConfig = files.config(&path)?;
    for number in recorder.stems(".picture") {
        let name = |what: &str| format!("{number}.{what}");
        let prepared = preparation.prepare(&picture(recorder, &name("picture"))?);
        recorder.check_bytes(&name("resized"), &prepared.resized.rgb, 0.0);
        let pixels: Tensor<4> = Tensor::from_data(prepared.pixels, device);
        recorder.check(&name("pixel_values"), pixels.clone(), EXACT_BOUND);
        let found = model.forward_observed(pixels, &mut |i, h| {
            recorder.check(&name(&format!("hidden_states.{i}")), h.clone(), EXACT_BOUND);
        });
        recorder.check(&name("pooled"), found.pooled, EXACT_BOUND);
        recorder.check(&name("pooler_output"), found.normed, EXACT_BOUND);
        recorder.check(&name("image_embeds"), found.embedding, EXACT_BOUND);
        if recorder.has(&name("original.pixel_values")) {
            let picture = picture(recorder, &name("picture"))?.to_tensor(device);
            let pixels = preparation.prepare_floats(picture);
            recorder.check(&name("original.pixel_values"), pixels.clone(), EXACT_BOUND);
            let embedding = model.forward(pixels).embedding;
            recorder.check(&name("original.image_embeds"), embedding, EXACT_BOUND);
        }
    }
    Ok(())
}
