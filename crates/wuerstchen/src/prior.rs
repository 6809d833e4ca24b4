//! Stage C: the text-conditional prior that makes image embeddings.

use burn::module::Module;
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::activation::{leaky_relu, silu};
use serde::{Deserialize, Serialize};
use wuerstchen_kernels::layer_norm;

use crate::blocks::{
    AttentionBlock, AttentionBlockConfig, Block, Conditions, Kept, LowRankChange, Observer,
    ResBlock, ResBlockConfig, TimestepBlock, TimestepBlockConfig, affine, channels_first,
    channels_last, condition_mapper, linear_layer, time_embedding, with_change,
};
use crate::checkpoint::Checkpoint;
use crate::config::{ConfigError, below_one, heads_divide, layers, published_heads, size};
use crate::part::PartConfig;
use crate::weights::{KeyTable, shapes};

/// Configuration of a [`Prior`], with the published field names (`prior/config.json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PriorConfig {
    /// Channels of the image embedding.
    pub c_in: usize,
    /// Width of the model.
    pub c: usize,
    /// Width of the text encoder.
    pub c_cond: usize,
    /// Width of the time embedding.
    pub c_r: usize,
    /// Number of groups of a residual, a timestep and an attention block.
    pub depth: usize,
    /// Number of attention heads; divides `c`.
    pub nhead: usize,
    /// Dropout probability while training.
    #[serde(default)]
    pub dropout: f64,
}

/// Kernel side of the prior's depthwise convolutions, fixed in the authors' code.
const KERNEL_SIZE: usize = 3;

/// Blocks of a group: a residual, a timestep and an attention block.
const GROUP: usize = 3;

/// Keeps the division of the output parametrisation finite.
const OUTPUT_EPSILON: f64 = 1e-5;

/// Predicts the noise in an image embedding, given the diffusion time and the prompt.
///
/// Source: Würstchen (arXiv 2306.00637), section 3; `Prior` in `modules.py` of dome272/Wuerstchen.
#[derive(Module, Debug)]
pub struct Prior {
    projection: Linear,
    cond_in: Linear,
    cond_out: Linear,
    pub(crate) blocks: Vec<Block>,
    out: Linear,
    time_channels: usize,
}

impl PartConfig for PriorConfig {
    type Model = Prior;

    const CLASS: &'static str = "WuerstchenPrior";
    const KEYS: KeyTable = KeyTable::DIFFUSION;

    fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [("c_in", self.c_in), ("c", self.c), ("c_cond", self.c_cond)] {
            size("prior", field, value)?;
        }
        layers("prior", "depth", self.depth)?;
        if self.c_r < 4 {
            return Err(ConfigError::new("prior", "c_r", "at least 4", self.c_r));
        }
        below_one("prior", "dropout", self.dropout)?;
        heads_divide("prior", "nhead", self.nhead, self.c)
    }

    fn init(&self, device: &Device) -> Prior {
        let output_gain = (1.0 / self.depth as f64).sqrt();
        let res = ResBlockConfig {
            channels: self.c,
            skip_channels: 0,
            kernel_size: KERNEL_SIZE,
            dropout: self.dropout,
            output_gain,
        };
        let timestep = TimestepBlockConfig {
            channels: self.c,
            time_embedding: self.c_r,
            further: Default::default(),
        };
        let attention = AttentionBlockConfig {
            channels: self.c,
            condition_channels: self.c,
            heads: self.nhead,
            self_attention: true,
        };
        let group = |_| {
            [
                Block::Res(res.init(device)),
                Block::Timestep(timestep.init(device)),
                Block::Attention(attention.init(device)),
            ]
        };
        Prior {
            projection: condition_mapper(self.c_in, self.c, device),
            cond_in: condition_mapper(self.c_cond, self.c, device),
            cond_out: condition_mapper(self.c, self.c, device),
            blocks: (0..self.depth).flat_map(group).collect(),
            out: linear_layer(self.c, 2 * self.c_in, 0.0, device),
            time_channels: self.c_r,
        }
    }

    fn infer(weights: &Checkpoint) -> Option<Self> {
        let c = weights.side("projection.weight", 0)?;
        Some(Self {
            c_in: weights.side("projection.weight", 1)?,
            c,
            c_cond: weights.side("cond_mapper.0.weight", 1)?,
            c_r: weights.side("blocks.1.mapper.weight", 1)?,
            depth: weights.count(|i| format!("blocks.{}.depthwise.weight", 3 * i)),
            nhead: published_heads(c)?,
            dropout: 0.1,
        })
    }
}

impl Prior {
    /// The names of the linear layers as in a checkpoint, such as `blocks.2.attention.to_q`, and their sides
    /// `[output, input]`; without the first and the last one, which are convolutions in PyTorch.
    pub fn linear_layers(&self) -> Vec<(String, [usize; 2])> {
        let mut prior = self.clone();
        let names = shapes(self, PriorConfig::KEYS).into_iter().filter_map(|(name, _)| {
            // Norms have no weights of this name.
            let layer = name.strip_suffix(".weight")?;
            let is_conv = matches!(layer, "projection" | "out.1") || layer.ends_with(".depthwise");
            (!is_conv).then(|| layer.to_owned())
        });
        let sides = prior.linears().into_iter().map(|layer| {
            let [input, output] = layer.weight.lazy_shape().dims();
            [output, input]
        });
        names.zip(sides).collect()
    }

    /// The network with changes beside some of its linear layers. `changes` has an entry for each layer, in the order
    /// of [`Self::linear_layers`]; `None` changes nothing. The weights stay as they are, packed or not.
    pub fn with_changes(&self, changes: Vec<Option<LowRankChange>>) -> Self {
        let mut prior = self.clone();
        for (layer, change) in prior.linears().into_iter().zip(changes) {
            if let Some(change) = change {
                *layer = with_change(layer, change);
            }
        }
        prior
    }

    /// The linear layers in the order in which a traversal of the module meets them.
    fn linears(&mut self) -> Vec<&mut Linear> {
        let mut found = vec![&mut self.cond_in, &mut self.cond_out];
        for block in &mut self.blocks {
            match block {
                Block::Res(block) => {
                    let mlp = &mut block.channelwise;
                    found.extend([&mut mlp.expand, &mut mlp.contract]);
                }
                Block::Timestep(block) => {
                    found.push(&mut block.scale_shift);
                    found.extend(block.mapper_sca.iter_mut().chain(&mut block.mapper_crp));
                }
                Block::Attention(block) => {
                    let attention = &mut block.attention;
                    found.extend([&mut attention.to_q, &mut attention.to_k, &mut attention.to_v]);
                    found.extend([&mut attention.to_out, &mut block.kv_mapper]);
                }
                Block::Downscale(_) | Block::Upscale(_) => {}
            }
        }
        found
    }

    /// Predicts the noise in `x`.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, c_in, H, W]`
    /// - times: `B` diffusion times in `[0, 1]`, 1 is pure noise
    /// - text: `[B, T, c_cond]`
    pub fn forward(&self, x: Tensor<4>, times: &[f32], text: Tensor<3>) -> Tensor<4> {
        self.prepare(text).forward(x, times, &mut |_, _| {})
    }

    /// Computes what stays the same at all steps of a picture: what every block makes of the text.
    ///
    /// # Shapes
    ///
    /// - text: `[B, T, c_cond]`
    pub fn prepare(&self, text: Tensor<3>) -> PreparedPrior<'_> {
        let text = self.activate_text(text);
        let kept = self.blocks.iter().map(|block| block.keep(&text, None)).collect();
        PreparedPrior { prior: self, kept }
    }

    /// Embeds the text: linear, leaky `ReLU`, linear.
    ///
    /// # Shapes
    ///
    /// - text: `[B, T, c_cond]`
    /// - output: `[B, T, c]`
    pub fn embed_text(&self, text: Tensor<3>) -> Tensor<3> {
        affine(&self.cond_out, leaky_relu(affine(&self.cond_in, text), 0.2))
    }

    /// The text as every block's attention takes it: [`Self::embed_text`], and `SiLU`.
    ///
    /// # Shapes
    ///
    /// - text: `[B, T, c_cond]`
    /// - output: `[B, T, c]`
    pub fn activate_text(&self, text: Tensor<3>) -> Tensor<3> {
        silu(self.embed_text(text))
    }

    /// The times as the blocks see them.
    ///
    /// # Shapes
    ///
    /// - times: `B` diffusion times in `[0, 1]`
    /// - output: `[B, c_r]`
    pub fn embed_times(&self, times: &[f32], device: &Device) -> Tensor<2> {
        time_embedding(times, self.time_channels, device)
    }

    /// The features before the first block.
    ///
    /// # Shapes
    ///
    /// - x: `[B, c_in, H, W]`
    /// - output: `[B, H, W, c]`
    pub fn project(&self, x: Tensor<4>) -> Tensor<4> {
        affine(&self.projection, channels_last(x))
    }

    /// The number of groups of a residual, a timestep and an attention block.
    pub fn groups(&self) -> usize {
        self.blocks.len() / GROUP
    }

    /// Applies a group of blocks to the features: [`Self::forward`] applies one after the other between
    /// [`Self::project`] and [`Self::predict`].
    ///
    /// # Shapes
    ///
    /// - h, output: `[B, H, W, c]`
    pub fn group(&self, number: usize, h: Tensor<4>, conditions: GroupConditions) -> Tensor<4> {
        let (res, timestep, attention) = self.blocks_of(number);
        let GroupConditions { times, text, dropout_mask } = conditions;
        let h = match dropout_mask {
            Some(mask) => res.forward_with_mask(h, mask),
            None => res.forward(h, None, None),
        };
        attention.forward(timestep.forward(h, times), &attention.attend_once(text))
    }

    /// Draws which values the dropout of a group keeps; `None` where it keeps all, as outside of training.
    ///
    /// # Shapes
    ///
    /// - h: the group's features, `[B, H, W, c]`
    /// - output: `[B, H, W, 4c]`
    pub fn draw_mask(&self, number: usize, h: &Tensor<4>) -> Option<Tensor<4, Bool>> {
        self.blocks_of(number).0.draw_mask(h)
    }

    fn blocks_of(&self, number: usize) -> (&ResBlock, &TimestepBlock, &AttentionBlock) {
        match &self.blocks[GROUP * number..][..GROUP] {
            [Block::Res(res), Block::Timestep(timestep), Block::Attention(attention)] => {
                (res, timestep, attention)
            }
            _ => unreachable!("the prior is made of such groups"),
        }
    }

    /// The noise in `x`, computed from the features after the last block.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, c_in, H, W]`
    /// - h: `[B, H, W, c]`
    pub fn predict(&self, x: Tensor<4>, h: Tensor<4>) -> Tensor<4> {
        self.predict_observed(x, h, &mut |_, _| {})
    }

    fn predict_observed(&self, x: Tensor<4>, h: Tensor<4>, observe: Observer) -> Tensor<4> {
        let x = channels_last(x);
        let ab = affine(&self.out, layer_norm(h));
        observe("out", &ab);
        let [.., channels] = x.dims();
        let a = ab.clone().narrow(3, 0, channels);
        let b = ab.narrow(3, channels, channels);
        channels_first((x - a) / ((b * -1.0 + 1.0).abs() + OUTPUT_EPSILON))
    }
}

/// The inputs of a group of blocks besides the features.
#[derive(Clone, Debug)]
pub struct GroupConditions {
    /// What [`Prior::embed_times`] gives, `[B, c_r]`.
    pub times: Tensor<2>,
    /// What [`Prior::activate_text`] gives, `[B, T, c]`.
    pub text: Tensor<3>,
    /// What [`Prior::draw_mask`] gives; without it, dropout draws a mask of its own.
    pub dropout_mask: Option<Tensor<4, Bool>>,
}

/// Stage C for certain texts.
pub struct PreparedPrior<'a> {
    prior: &'a Prior,
    /// What every block keeps.
    kept: Vec<Kept>,
}

impl PreparedPrior<'_> {
    /// As [`Prior::forward`], and reports the projected input, every block and the raw output.
    pub fn forward(&self, x: Tensor<4>, times: &[f32], observe: Observer) -> Tensor<4> {
        let prior = self.prior;
        let time = prior.embed_times(times, &x.device());
        let mut conditions = Conditions { time, skip: None, image: None };
        let mut h = prior.project(x.clone());
        observe("projection", &h);
        for (i, (block, kept)) in prior.blocks.iter().zip(&self.kept).enumerate() {
            h = block.forward(h, &mut conditions, kept);
            observe(&format!("blocks.{i}"), &h);
        }
        prior.predict_observed(x, h, observe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::NamedTensor;
    use crate::noise::Philox;
    use crate::relative_error::assert_close;
    use crate::stored::{Stored, StoredDtype};
    use crate::weights::{load, tensors};

    fn config() -> PriorConfig {
        PriorConfig { c_in: 2, c: 8, c_cond: 3, c_r: 4, depth: 2, nhead: 2, dropout: 0.0 }
    }

    /// Every name stands for the layer whose sides the module's parameters of that name have.
    #[test]
    fn linear_layers_have_their_own_names() {
        let prior = config().init(&Device::flex());
        let shapes = shapes(&prior, PriorConfig::KEYS);
        let layers = prior.linear_layers();
        assert_eq!(layers.len(), 2 + 2 * (2 + 1 + 5));
        assert_eq!(layers[0].0, "cond_mapper.0");
        assert_eq!(layers[5].0, "blocks.2.attention.to_q");
        for (name, sides) in layers {
            let (_, shape) = shapes.iter().find(|(n, _)| *n == format!("{name}.weight")).unwrap();
            assert_eq!(shape[..], sides, "{name}");
        }
    }

    /// As for a prediction beside the authors': its last division makes roundings larger.
    const ROUNDING: f64 = 1e-4;

    /// A change beside the weights computes what the changed weights do, also where they are packed.
    #[test]
    fn a_change_beside_the_weights_is_one_of_the_weights() {
        // The same numbers every time: where the last division is by nearly nothing, rounding becomes large.
        let (device, mut rng) = (Device::flex(), Philox::new(1, 0));
        let prior = config().init(&device);
        let mut tensors = tensors(&prior, PriorConfig::KEYS);
        for tensor in &mut tensors {
            tensor.values = rng.normal(tensor.values.len()).into_iter().map(|x| 0.3 * x).collect();
        }
        let mut random = |shape: [usize; 2]| {
            let values = rng.normal(shape.iter().product()).into_iter().map(|x| 0.5 * x).collect();
            Tensor::<2>::from_data(TensorData::new::<f32, _>(values, shape), &device)
        };
        let changes =
            prior.linear_layers().into_iter().enumerate().map(|(i, (_, [output, input]))| {
                let (down, up) = (random([2, input]), random([output, 2]));
                (i % 2 == 1).then_some(LowRankChange { down, up, scale: 0.7 })
            });
        let changes: Vec<_> = changes.collect();
        let x = rng.normal_tensor([2, 2, 3, 2], &device);
        let text = rng.normal_tensor([1, 2, 4, 3], &device).squeeze_dim::<3>(0);
        let predict = |prior: &Prior| prior.forward(x.clone(), &[0.3, 0.9], text.clone());

        let mut weights = Checkpoint::from_tensors("prior", tensors);
        // Training starts with zeros here, which would hide everything before.
        let values = (0..32).map(|i| (i * 7 % 32) as f32 / 32.0 - 0.5).collect();
        let out = NamedTensor::new("out.1.weight", &[4, 8, 1, 1], values);
        weights.replace(Checkpoint::from_tensors("prior", [out]));
        for dtype in [StoredDtype::F32, StoredDtype::F16, StoredDtype::I8] {
            let mut stored = weights.clone();
            let mut changed = weights.clone();
            for ((layer, _), change) in prior.linear_layers().into_iter().zip(&changes) {
                let name = format!("{layer}.weight");
                let shape = weights.shape(&name).unwrap().to_vec();
                let bytes = Stored::new(&shape, &weights.values(&name).unwrap(), dtype).bytes;
                let range = 0..bytes.len();
                stored.insert(&name, dtype, &shape, std::sync::Arc::new(bytes), range).unwrap();
                let mut values = stored.values(&name).unwrap();
                if let Some(change) = change {
                    let sum = change.up.clone().matmul(change.down.clone()) * change.scale;
                    let sum = sum.into_data().try_to_vec::<f32>().unwrap();
                    values.iter_mut().zip(sum).for_each(|(value, change)| *value += change);
                }
                let bytes: Vec<u8> = bytemuck::cast_slice(&values).to_vec();
                let range = 0..bytes.len();
                let source = std::sync::Arc::new(bytes);
                changed.insert(&name, StoredDtype::F32, &shape, source, range).unwrap();
            }
            let load = |weights: &Checkpoint| {
                load(config().init(&device), weights, PriorConfig::KEYS).unwrap()
            };
            let (base, expected) = (load(&stored), predict(&load(&changed)));
            let found = predict(&base.with_changes(changes.clone()));
            assert_close(found, expected.clone(), ROUNDING);
            let without = predict(&base) - expected;
            assert!(without.abs().max().into_scalar::<f32>() > 1e-3, "{dtype:?}");
        }
    }
}
