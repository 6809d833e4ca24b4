//! Blocks of the published size, whose whole models are too large for a test: their weights in 4
//! bits, random, on both devices of a browser.

use std::sync::Arc;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::DeviceKind;
use serde_json::{Value, json};
use wasm_bindgen::JsError;
use wuerstchen::blocks::{
    AttentionBlockConfig, Block, Conditions, ResBlockConfig, TimestepBlockConfig,
};
use wuerstchen::noise::Philox;
use wuerstchen::stored::Stored;
use wuerstchen::weights::{load, shapes};
use wuerstchen::{Checkpoint, KeyTable, LoadError, StoredDtype, relative_error};

/// One convolution, one conditioning on the time and, but for the finest level of Stage B, one
/// attention; as at 512x512 pixels.
struct Group {
    name: &'static str,
    /// Height and width of the features.
    side: usize,
    channels: usize,
    /// Channels to which the image embedding is mapped for the convolution; 0 for none.
    image: usize,
    /// Width of the text tokens; 0 for no attention.
    text: usize,
    heads: usize,
}

const GROUPS: [Group; 5] = [
    Group { name: "stage_c", side: 12, channels: 1536, image: 0, text: 1536, heads: 24 },
    Group { name: "stage_b/0", side: 64, channels: 320, image: 0, text: 0, heads: 0 },
    Group { name: "stage_b/1", side: 32, channels: 640, image: 1024, text: 1024, heads: 10 },
    Group { name: "stage_b/2", side: 16, channels: 1280, image: 1024, text: 1024, heads: 20 },
    Group { name: "stage_b/3", side: 8, channels: 1280, image: 1024, text: 1024, heads: 20 },
];

/// Channels of the image embedding.
const EMBEDDING_CHANNELS: usize = 16;

/// Width of the time embedding.
const TIME_CHANNELS: usize = 64;

/// Tokens of a prompt.
const TOKENS: usize = 77;

/// Runs the groups on WebGPU and on the CPU; for each JSON of `name`, the number of `packed` tensors,
/// and the `relative` error between the outputs.
pub(crate) async fn compare_devices() -> Result<String, JsError> {
    Device::wgpu_options().init_async().await?;
    let devices = [Device::wgpu(DeviceKind::DefaultDevice), Device::flex()];
    let mut report = Vec::new();
    for (seed, group) in GROUPS.iter().enumerate() {
        let mut outputs = Vec::new();
        let mut packed = 0;
        for device in &devices {
            let mut random = Philox::new(seed as u64, 0);
            let (output, count) = group.run(&mut random, device)?;
            let output = output.into_data_async().await?.convert::<f32>();
            outputs.push(output.try_to_vec::<f32>().expect("converted to f32"));
            packed = count;
        }
        report.push(json!({
            "name": group.name,
            "packed": packed,
            "relative": relative_error(&outputs[0], &outputs[1]),
        }));
    }
    Ok(Value::from(report).to_string())
}

/// The layers of a group.
#[derive(Module, Debug)]
struct Layers {
    blocks: Vec<Block>,
    effnet_mappers: Option<Linear>,
}

impl Group {
    /// The output for random features, and how many tensors are packed.
    fn run(&self, random: &mut Philox, device: &Device) -> Result<(Tensor<4>, usize), LoadError> {
        let Self { side, channels, image, text, heads, .. } = *self;
        let res = ResBlockConfig {
            channels,
            skip_channels: image,
            kernel_size: 3,
            dropout: 0.0,
            output_gain: 1.0,
        };
        let time = TimestepBlockConfig {
            channels,
            time_embedding: TIME_CHANNELS,
            further: Default::default(),
        };
        let mut blocks = vec![Block::Res(res.init(device)), Block::Timestep(time.init(device))];
        if text > 0 {
            let (condition_channels, self_attention) = (text, true);
            let attention =
                AttentionBlockConfig { channels, condition_channels, heads, self_attention };
            blocks.push(Block::Attention(attention.init(device)));
        }
        let mapper = |channels| LinearConfig::new(EMBEDDING_CHANNELS, channels).init(device);
        let layers = Layers { blocks, effnet_mappers: (image > 0).then(|| mapper(image)) };
        let weights = random_weights(self.name, &layers, random)?;
        let layers = load(layers, &weights, KeyTable::DIFFUSION)?;
        let x = random.normal_tensor([1, side, side, channels], device);
        let image = random.normal_tensor([1, side, side, EMBEDDING_CHANNELS], device);
        let time = random.normal_tensor([1, 1, 1, TIME_CHANNELS], device);
        let text = random.normal_tensor([1, 1, TOKENS, text.max(1)], device);
        let (text, mapper) = (text.squeeze_dim::<3>(0), layers.effnet_mappers.as_ref());
        let mut conditions = Conditions {
            time: time.reshape([1, TIME_CHANNELS]),
            skip: None,
            image: mapper.map(|_| image),
        };
        let output = layers
            .blocks
            .iter()
            .fold(x, |x, block| block.forward(x, &mut conditions, &block.keep(&text, mapper)));
        let packed = weights.describe().filter(|(_, dtype, ..)| *dtype == StoredDtype::I4).count();
        Ok((output, packed))
    }
}

/// Weights that keep features of order 1, stored as a bundle of 4 bits stores them.
fn random_weights(
    name: &str,
    layers: &Layers,
    random: &mut Philox,
) -> Result<Checkpoint, LoadError> {
    let mut weights = Checkpoint::empty(name);
    for (name, shape) in shapes(layers, KeyTable::DIFFUSION) {
        let inputs: usize = if shape.len() > 1 { shape[1..].iter().product() } else { 100 };
        let scale = 1.0 / (inputs as f32).sqrt();
        let mut values = random.normal(shape.iter().product());
        values.iter_mut().for_each(|value| *value *= scale);
        let dtype = StoredDtype::I4.of_tensor(&name, &shape);
        let Stored { bytes, .. } = Stored::new(&shape, &values, dtype);
        let range = 0..bytes.len();
        weights.insert(&name, dtype, &shape, Arc::new(bytes), range)?;
    }
    Ok(weights)
}
