//! `InceptionV3` as the Fréchet inception distance uses it: from a picture to 2048 features.

use std::collections::BTreeSet;

use burn::prelude::*;
use burn::tensor::activation::relu;
use burn::tensor::module::{avg_pool2d, conv2d, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions};
use wuerstchen::resize::{Filter, resize};
use wuerstchen::{Checkpoint, Differences, Image, LoadError};

/// Number of a picture's features.
pub const FEATURES: usize = 2048;

/// Side of the pictures that the network looks at, in pixels.
const SIDE: usize = 299;

/// Epsilon of the batch norms.
const NORM_EPSILON: f32 = 1e-3;

/// The network of the Fréchet inception distance (FID), with TensorFlow's weights of 2015.
///
/// Source: Szegedy et al., "Rethinking the Inception architecture for computer vision" (arXiv 1512.00567);
/// `fid_inception_v3` in the package pytorch-fid, whose changes to torchvision's network are TensorFlow's pools.
pub struct Inception {
    /// The blocks in their order; the outputs of a block's branches are concatenated.
    blocks: Vec<Vec<Branch>>,
    device: Device,
}

type Branch = Vec<Op>;

enum Op {
    Conv(Box<Conv>),
    /// Two convolutions of the same features, whose outputs are concatenated.
    Fork(Box<[Conv; 2]>),
    /// The maximum of 3x3 pixels.
    MaxPool {
        stride: usize,
        padding: usize,
    },
    /// The mean of 3x3 pixels; at the border, of those that lie within the picture.
    AvgPool,
}

/// A convolution, its batch norm and a `ReLU`; the norm is a part of the weights.
struct Conv {
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: usize,
    padding: [usize; 2],
}

impl Inception {
    /// Reads the weights in pytorch-fid's layout (`pt_inception-2015-12-05-6726825d.pth`).
    ///
    /// # Errors
    ///
    /// The tensors are not those of the network; the error names all that differ.
    pub fn load(weights: &Checkpoint, device: &Device) -> Result<Self, LoadError> {
        let mut reader =
            Reader { weights, device, used: BTreeSet::new(), differences: Differences::default() };
        let blocks = reader.blocks()?;
        // The classifier after the features, which this network does not have.
        for (name, shape) in [("fc.weight", &[1008, FEATURES][..]), ("fc.bias", &[1008])] {
            reader.check(name, shape);
        }
        reader.finish()?;
        Ok(Self { blocks, device: device.clone() })
    }

    /// The features of pictures, `[B, 2048]`, each picture resized by [`prepare`].
    pub fn features(&self, pictures: &[Image]) -> Tensor<2> {
        let pixels = pictures.iter().map(|picture| prepare(picture, &self.device));
        self.forward(Tensor::cat(pixels.collect(), 0))
    }

    /// The features of prepared pictures: the mean of the last block over the pixels.
    ///
    /// # Shapes
    ///
    /// - pixels: `[B, 3, 299, 299]`, the colours near `[−1, 1]`
    /// - output: `[B, 2048]`
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<2> {
        let mut x = pixels;
        for block in &self.blocks {
            let branch = |branch: &Branch| branch.iter().fold(x.clone(), |x, op| op.forward(x));
            x = Tensor::cat(block.iter().map(branch).collect(), 1);
        }
        let [batch, channels, height, width] = x.dims();
        x.reshape([batch, channels, height * width]).mean_dim(2).squeeze_dim(2)
    }
}

/// A picture as clean-fid prepares it, `[1, 3, 299, 299]`: resized by an antialiased bicubic filter without rounding to
/// bytes; a value `v` in `[0, 255]` then becomes `(v − 128)/128`.
///
/// Source: Parmar et al., "On aliased resizing and surprising subtleties in GAN evaluation" (arXiv 2104.11222);
/// `build_resizer("clean")` and `InceptionV3W` in the package clean-fid.
pub fn prepare(picture: &Image, device: &Device) -> Tensor<4> {
    let pixels = picture.to_tensor(device).permute([0, 2, 3, 1]);
    let resized = resize(pixels, [SIDE; 2], Filter::Bicubic).permute([0, 3, 1, 2]);
    (resized.clamp(0.0, 1.0) * 255.0 - 128.0) / 128.0
}

impl Op {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Conv(conv) => conv.forward(x),
            Self::Fork(both) => {
                Tensor::cat(both.iter().map(|conv| conv.forward(x.clone())).collect(), 1)
            }
            Self::MaxPool { stride, padding } => {
                let options = MaxPoolOptions {
                    stride: [*stride; 2],
                    padding: [(*padding, *padding); 2],
                    ..MaxPoolOptions::new([3, 3])
                };
                max_pool2d(x, options)
            }
            Self::AvgPool => {
                let options = AvgPoolOptions {
                    stride: [1, 1],
                    padding: [(1, 1); 2],
                    count_include_pad: false,
                    ..AvgPoolOptions::new([3, 3])
                };
                avg_pool2d(x, options)
            }
        }
    }
}

impl Conv {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let options = ConvOptions::new([self.stride; 2], self.padding, [1, 1], 1);
        relu(conv2d(x, self.weight.clone(), Some(self.bias.clone()), options))
    }
}

/// The shape of a convolution: output and input channels, height and width of the kernel.
type Shape = [usize; 4];

/// Reads the convolutions of a file, and what does not fit.
struct Reader<'a> {
    weights: &'a Checkpoint,
    device: &'a Device,
    used: BTreeSet<String>,
    differences: Differences,
}

impl Reader<'_> {
    fn blocks(&mut self) -> Result<Vec<Vec<Branch>>, LoadError> {
        let shrink = || Op::MaxPool { stride: 2, padding: 0 };
        let mut stem = vec![
            self.strided("Conv2d_1a_3x3", [32, 3, 3, 3])?,
            self.unpadded("Conv2d_2a_3x3", [32, 32, 3, 3])?,
            self.same("Conv2d_2b_3x3", [64, 32, 3, 3])?,
            shrink(),
        ];
        stem.push(self.same("Conv2d_3b_1x1", [80, 64, 1, 1])?);
        stem.push(self.unpadded("Conv2d_4a_3x3", [192, 80, 3, 3])?);
        stem.push(shrink());
        let mut blocks = vec![vec![stem]];
        for (name, input, pool) in [("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)] {
            blocks.push(self.block_a(&format!("Mixed_{name}"), input, pool)?);
        }
        blocks.push(self.block_b("Mixed_6a", 288)?);
        for (name, width) in [("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)] {
            blocks.push(self.block_c(&format!("Mixed_{name}"), width)?);
        }
        blocks.push(self.block_d("Mixed_7a", 768)?);
        blocks.push(self.block_e("Mixed_7b", 1280, Op::AvgPool)?);
        // The published network pools by the maximum here, unlike the one in the paper.
        blocks.push(self.block_e("Mixed_7c", 2048, Op::MaxPool { stride: 1, padding: 1 })?);
        Ok(blocks)
    }

    fn block_a(&mut self, name: &str, input: usize, pool: usize) -> Result<Vec<Branch>, LoadError> {
        let of = |branch: &str| format!("{name}.{branch}");
        Ok(vec![
            vec![self.same(&of("branch1x1"), [64, input, 1, 1])?],
            vec![
                self.same(&of("branch5x5_1"), [48, input, 1, 1])?,
                self.same(&of("branch5x5_2"), [64, 48, 5, 5])?,
            ],
            vec![
                self.same(&of("branch3x3dbl_1"), [64, input, 1, 1])?,
                self.same(&of("branch3x3dbl_2"), [96, 64, 3, 3])?,
                self.same(&of("branch3x3dbl_3"), [96, 96, 3, 3])?,
            ],
            vec![Op::AvgPool, self.same(&of("branch_pool"), [pool, input, 1, 1])?],
        ])
    }

    fn block_b(&mut self, name: &str, input: usize) -> Result<Vec<Branch>, LoadError> {
        let of = |branch: &str| format!("{name}.{branch}");
        Ok(vec![
            vec![self.strided(&of("branch3x3"), [384, input, 3, 3])?],
            vec![
                self.same(&of("branch3x3dbl_1"), [64, input, 1, 1])?,
                self.same(&of("branch3x3dbl_2"), [96, 64, 3, 3])?,
                self.strided(&of("branch3x3dbl_3"), [96, 96, 3, 3])?,
            ],
            vec![Op::MaxPool { stride: 2, padding: 0 }],
        ])
    }

    fn block_c(&mut self, name: &str, width: usize) -> Result<Vec<Branch>, LoadError> {
        let of = |branch: &str| format!("{name}.{branch}");
        Ok(vec![
            vec![self.same(&of("branch1x1"), [192, 768, 1, 1])?],
            vec![
                self.same(&of("branch7x7_1"), [width, 768, 1, 1])?,
                self.same(&of("branch7x7_2"), [width, width, 1, 7])?,
                self.same(&of("branch7x7_3"), [192, width, 7, 1])?,
            ],
            vec![
                self.same(&of("branch7x7dbl_1"), [width, 768, 1, 1])?,
                self.same(&of("branch7x7dbl_2"), [width, width, 7, 1])?,
                self.same(&of("branch7x7dbl_3"), [width, width, 1, 7])?,
                self.same(&of("branch7x7dbl_4"), [width, width, 7, 1])?,
                self.same(&of("branch7x7dbl_5"), [192, width, 1, 7])?,
            ],
            vec![Op::AvgPool, self.same(&of("branch_pool"), [192, 768, 1, 1])?],
        ])
    }

    fn block_d(&mut self, name: &str, input: usize) -> Result<Vec<Branch>, LoadError> {
        let of = |branch: &str| format!("{name}.{branch}");
        Ok(vec![
            vec![
                self.same(&of("branch3x3_1"), [192, input, 1, 1])?,
                self.strided(&of("branch3x3_2"), [320, 192, 3, 3])?,
            ],
            vec![
                self.same(&of("branch7x7x3_1"), [192, input, 1, 1])?,
                self.same(&of("branch7x7x3_2"), [192, 192, 1, 7])?,
                self.same(&of("branch7x7x3_3"), [192, 192, 7, 1])?,
                self.strided(&of("branch7x7x3_4"), [192, 192, 3, 3])?,
            ],
            vec![Op::MaxPool { stride: 2, padding: 0 }],
        ])
    }

    fn block_e(&mut self, name: &str, input: usize, pool: Op) -> Result<Vec<Branch>, LoadError> {
        let of = |branch: &str| format!("{name}.{branch}");
        let mut fork = |branch: &str| {
            let across = self.conv(&of(&format!("{branch}a")), [384, 384, 1, 3], 1, [0, 1])?;
            let down = self.conv(&of(&format!("{branch}b")), [384, 384, 3, 1], 1, [1, 0])?;
            Ok::<_, LoadError>(Op::Fork(Box::new([across, down])))
        };
        let [three, double] = [fork("branch3x3_2")?, fork("branch3x3dbl_3")?];
        Ok(vec![
            vec![self.same(&of("branch1x1"), [320, input, 1, 1])?],
            vec![self.same(&of("branch3x3_1"), [384, input, 1, 1])?, three],
            vec![
                self.same(&of("branch3x3dbl_1"), [448, input, 1, 1])?,
                self.same(&of("branch3x3dbl_2"), [384, 448, 3, 3])?,
                double,
            ],
            vec![pool, self.same(&of("branch_pool"), [192, input, 1, 1])?],
        ])
    }

    /// A convolution that keeps the size of the features.
    fn same(&mut self, name: &str, shape: Shape) -> Result<Op, LoadError> {
        let [_, _, height, width] = shape;
        Ok(Op::Conv(Box::new(self.conv(name, shape, 1, [height / 2, width / 2])?)))
    }

    /// A convolution that leaves out the border.
    fn unpadded(&mut self, name: &str, shape: Shape) -> Result<Op, LoadError> {
        Ok(Op::Conv(Box::new(self.conv(name, shape, 1, [0, 0])?)))
    }

    /// A convolution that leaves out the border and every second pixel.
    fn strided(&mut self, name: &str, shape: Shape) -> Result<Op, LoadError> {
        Ok(Op::Conv(Box::new(self.conv(name, shape, 2, [0, 0])?)))
    }

    fn conv(
        &mut self,
        name: &str,
        shape: Shape,
        stride: usize,
        padding: [usize; 2],
    ) -> Result<Conv, LoadError> {
        let [output, ..] = shape;
        let mut kernel = self.values(&format!("{name}.conv.weight"), &shape)?;
        let mut of_norm = |field: &str| self.values(&format!("{name}.bn.{field}"), &[output]);
        let [scale, shift] = [of_norm("weight")?, of_norm("bias")?];
        let [mean, variance] = [of_norm("running_mean")?, of_norm("running_var")?];
        let size = kernel.len() / output;
        let mut bias = shift;
        for (channel, bias) in bias.iter_mut().enumerate() {
            let scale = scale[channel] / (variance[channel] + NORM_EPSILON).sqrt();
            *bias -= mean[channel] * scale;
            for value in &mut kernel[channel * size..][..size] {
                *value *= scale;
            }
        }
        Ok(Conv {
            weight: Tensor::from_data(TensorData::new(kernel, shape), self.device),
            bias: Tensor::from_data(TensorData::new(bias, [output]), self.device),
            stride,
            padding,
        })
    }

    /// A tensor's values; zeros where it does not fit, which [`Self::finish`] reports.
    fn values(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        if self.check(name, shape) {
            self.weights.values(name)
        } else {
            Ok(vec![0.0; shape.iter().product()])
        }
    }

    /// Whether there is a tensor of that shape; keeps the difference if there is none.
    fn check(&mut self, name: &str, shape: &[usize]) -> bool {
        self.used.insert(name.to_owned());
        match self.weights.shape(name) {
            Some(found) if found == shape => return true,
            Some(found) => {
                let misshapen = (name.to_owned(), shape.to_vec(), found.to_vec());
                self.differences.misshapen.push(misshapen);
            }
            None => self.differences.missing.push(name.to_owned()),
        }
        false
    }

    fn finish(mut self) -> Result<(), LoadError> {
        let is_other =
            |name: &&str| !self.used.contains(*name) && !name.ends_with(".num_batches_tracked");
        let others = self.weights.names().filter(is_other).map(str::to_owned);
        self.differences.unexpected = others.collect();
        if self.differences == Differences::default() {
            return Ok(());
        }
        let part = self.weights.part().to_owned();
        Err(LoadError::Mismatch { part, differences: self.differences })
    }
}
