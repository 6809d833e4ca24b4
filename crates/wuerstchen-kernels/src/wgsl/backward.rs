//! The backward pass of every shader of [`DifferentiableKernels`], for automatic differentiation on wgpu devices.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, TensorMetadata};
use burn::tensor::Slice;

use super::*;
use crate::autodiff::record;

/// Number of parts of a batch's pixels; each is summed by invocations of `depthwise_weight_gradient.wgsl` of its own.
const PARTS: usize = 64;

/// The gradients of [`DifferentiableKernels`], from their inputs and the gradient of their output.
#[backend_extension(Cube, Fusion)]
pub(crate) trait Backwards: Backend {
    #[fusion(dtype = x, shape = x)]
    fn wgsl_layer_norm_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `[B, 3, C]`: for every picture and channel the sums of x², of the gradient times x, and of the gradient.
    #[fusion(dtype = x, shape = sums_shape(x))]
    fn wgsl_response_sums(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn wgsl_response_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `[2, C]`: the gradients of the scale and of the shift.
    #[fusion(dtype = sums, shape = affine_shape(sums))]
    fn wgsl_response_affine_gradient(sums: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The gradient of the pictures `[B, H, W, C]` of the given shape.
    #[fusion(dtype = gradient, shape = Shape::from(*pictures))]
    fn wgsl_depthwise_input_gradient(
        gradient: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        pictures: [usize; 4],
        options: DepthwiseOptions,
    ) -> FloatTensor<Self>;

    /// `[parts, C·K·K + C]`: for each part of the batch's pixels, its share of the gradients of the weight and the
    /// bias.
    #[fusion(dtype = x, shape = weight_parts_shape(x, gradient, size))]
    fn wgsl_depthwise_weight_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        size: usize,
        options: DepthwiseOptions,
    ) -> FloatTensor<Self>;

    /// The gradient of the pictures `[B, H, W, C]` of the given shape.
    #[fusion(dtype = gradient, shape = Shape::from(*pictures))]
    fn wgsl_patches_gradient(
        gradient: FloatTensor<Self>,
        pictures: [usize; 4],
        size: usize,
        stride: usize,
    ) -> FloatTensor<Self>;
}

fn sums_shape(x: &Shape) -> Shape {
    let [batch, _, _, channels] = x.dims();
    Shape::from([batch, 3, channels])
}

fn affine_shape(sums: &Shape) -> Shape {
    Shape::from([2, sums.dims::<3>()[2]])
}

fn weight_parts_shape(x: &Shape, gradient: &Shape, size: &usize) -> Shape {
    let ([.., channels], [batch, rows, columns, _]) = (x.dims::<4>(), gradient.dims());
    Shape::from([PARTS.min(batch * rows * columns), channels * (size * size + 1)])
}

impl Backwards for CubeBackend {
    fn wgsl_layer_norm_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let shape = x.meta.shape().clone();
        let channels = shape[shape.len() - 1];
        let rows = shape.num_elements() / channels;
        let (sizes, groups) = ([rows, channels / 4], rows.div_ceil(NORM_ROWS));
        LAYER_NORM_GRADIENT.launch(vec![x, gradient], shape, &sizes, groups)
    }

    fn wgsl_response_sums(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        let [batch, height, width, channels] = x.meta.shape().dims();
        let shape = sums_shape(x.meta.shape());
        let groups = batch * channels.div_ceil(CHANNELS);
        RESPONSE_SUMS.launch(vec![x, gradient], shape, &[batch, height * width, channels], groups)
    }

    fn wgsl_response_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let shape = x.meta.shape().clone();
        let [batch, height, width, channels] = shape.dims();
        let sizes = [batch, height * width, channels];
        let groups = batch * (height * width).div_ceil(RESPONSE_PIXELS);
        RESPONSE_GRADIENT.launch(vec![x, gradient, sums, gamma], shape, &sizes, groups)
    }

    fn wgsl_response_affine_gradient(sums: FloatTensor<Self>) -> FloatTensor<Self> {
        let [batch, _, channels] = sums.meta.shape().dims();
        let shape = affine_shape(sums.meta.shape());
        let groups = channels.div_ceil(WORKGROUP_SIZE);
        RESPONSE_AFFINE_GRADIENT.launch(vec![sums], shape, &[batch, channels], groups)
    }

    fn wgsl_depthwise_input_gradient(
        gradient: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        pictures: [usize; 4],
        options: DepthwiseOptions,
    ) -> FloatTensor<Self> {
        let [.., size] = weight.meta.shape().dims::<4>();
        let shape = Shape::from(pictures);
        let sizes = window_sizes(&shape, size, options);
        let groups = shape.num_elements().div_ceil(WORKGROUP_SIZE);
        DEPTHWISE_INPUT_GRADIENT.launch(vec![gradient, weight], shape, &sizes, groups)
    }

    fn wgsl_depthwise_weight_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        size: usize,
        options: DepthwiseOptions,
    ) -> FloatTensor<Self> {
        let shape = weight_parts_shape(x.meta.shape(), gradient.meta.shape(), &size);
        let sizes = window_sizes(x.meta.shape(), size, options);
        let groups = shape.num_elements().div_ceil(WORKGROUP_SIZE);
        DEPTHWISE_WEIGHT_GRADIENT.launch(vec![x, gradient], shape, &sizes, groups)
    }

    fn wgsl_patches_gradient(
        gradient: FloatTensor<Self>,
        pictures: [usize; 4],
        size: usize,
        stride: usize,
    ) -> FloatTensor<Self> {
        let shape = Shape::from(pictures);
        let options = DepthwiseOptions { stride, padding: Padding::Zeros };
        let sizes = window_sizes(&shape, size, options);
        let groups = shape.num_elements().div_ceil(WORKGROUP_SIZE);
        PATCHES_GRADIENT.launch(vec![gradient], shape, &sizes, groups)
    }
}

const LAYER_NORM_GRADIENT: Shader = Shader::of_two(
    "layer_norm_gradient",
    [include_str!("../../../../shaders/layer_norm_gradient.wgsl"), ROW_STATISTICS],
);
const RESPONSE_SUMS: Shader =
    Shader::new("response_sums", include_str!("../../../../shaders/response_sums.wgsl"));
const RESPONSE_GRADIENT: Shader =
    Shader::new("response_gradient", include_str!("../../../../shaders/response_gradient.wgsl"));
const RESPONSE_AFFINE_GRADIENT: Shader = Shader::new(
    "response_affine_gradient",
    include_str!("../../../../shaders/response_affine_gradient.wgsl"),
);
const DEPTHWISE_INPUT_GRADIENT: Shader = Shader::of_two(
    "depthwise_input_gradient",
    [include_str!("../../../../shaders/depthwise_input_gradient.wgsl"), WINDOW_SIZES],
);
const DEPTHWISE_WEIGHT_GRADIENT: Shader = Shader::of_two(
    "depthwise_weight_gradient",
    [include_str!("../../../../shaders/depthwise_weight_gradient.wgsl"), WINDOW_SIZES],
);
const PATCHES_GRADIENT: Shader = Shader::of_two(
    "patches_gradient",
    [include_str!("../../../../shaders/patches_gradient.wgsl"), WINDOW_SIZES],
);

pub(super) const SHADERS: [Shader; 7] = [
    LAYER_NORM_GRADIENT,
    RESPONSE_SUMS,
    RESPONSE_GRADIENT,
    RESPONSE_AFFINE_GRADIENT,
    DEPTHWISE_INPUT_GRADIENT,
    DEPTHWISE_WEIGHT_GRADIENT,
    PATCHES_GRADIENT,
];

/// The values that constants of these shaders must have.
#[cfg(test)]
pub(super) const CONSTANTS: [(Shader, &str, f64); 7] = [
    (LAYER_NORM_GRADIENT, "EPSILON", crate::layer_norm::EPSILON),
    (LAYER_NORM_GRADIENT, "ROWS", NORM_ROWS as f64),
    (RESPONSE_SUMS, "CHANNELS", CHANNELS as f64),
    (RESPONSE_GRADIENT, "EPSILON", crate::global_response_norm::EPSILON),
    (RESPONSE_GRADIENT, "PIXELS", RESPONSE_PIXELS as f64),
    (RESPONSE_AFFINE_GRADIENT, "EPSILON", crate::global_response_norm::EPSILON),
    (DEPTHWISE_WEIGHT_GRADIENT, "PARTS", PARTS as f64),
];

impl<B: DifferentiableKernels + Backwards, C: CheckpointStrategy> DifferentiableKernels
    for Autodiff<B, C>
{
    fn wgsl_layer_norm(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        record::<B, C, _, _, 1>(LayerNorm, [node], x, Clone::clone, B::wgsl_layer_norm)
    }

    fn wgsl_global_response_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let ((x, x_node), (gamma, gamma_node)) = (x.into_parts(), gamma.into_parts());
        let (beta, beta_node) = beta.into_parts();
        record::<B, C, _, _, 3>(
            GlobalResponseNorm,
            [x_node, gamma_node, beta_node],
            (x, gamma, beta),
            |(x, gamma, _)| (x.clone(), gamma.clone()),
            |(x, gamma, beta)| B::wgsl_global_response_norm(x, gamma, beta),
        )
    }

    fn wgsl_depthwise_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: DepthwiseOptions,
    ) -> FloatTensor<Self> {
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (bias, bias_node) = bias.into_parts();
        record::<B, C, _, _, 3>(
            DepthwiseConv,
            [x_node, weight_node, bias_node],
            (x, weight, bias),
            |(x, weight, _)| (x.clone(), weight.clone(), options),
            |(x, weight, bias)| B::wgsl_depthwise_conv(x, weight, bias, options),
        )
    }

    fn wgsl_patches(x: FloatTensor<Self>, size: usize, stride: usize) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        record::<B, C, _, _, 1>(
            Patches,
            [node],
            x,
            |x| (shape_of::<B>(x), size, stride),
            |x| B::wgsl_patches(x, size, stride),
        )
    }
}

/// The shape of pictures `[B, H, W, C]`.
fn shape_of<B: Backend>(pictures: &FloatTensor<B>) -> [usize; 4] {
    pictures.shape().dims()
}

/// `count` values of every row, from number `first` on.
fn columns<B: Backend>(rows: FloatTensor<B>, first: usize, count: usize) -> FloatTensor<B> {
    B::float_slice(rows, &[Slice::full(), Slice::from(first..first + count)])
}

#[derive(Debug)]
struct LayerNorm;

impl<B: Backwards> Backward<B, 1> for LayerNorm {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let [Some(parent)] = ops.parents else { return };
        grads.register::<B>(parent.id, B::wgsl_layer_norm_gradient(ops.state, gradient));
    }
}

#[derive(Debug)]
struct GlobalResponseNorm;

impl<B: Backwards> Backward<B, 3> for GlobalResponseNorm {
    /// The input and the scale.
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (x, gamma) = ops.state;
        let [.., channels] = shape_of::<B>(&x);
        let sums = B::wgsl_response_sums(x.clone(), gradient.clone());
        let [x_parent, gamma_parent, beta_parent] = ops.parents;
        if gamma_parent.is_some() || beta_parent.is_some() {
            let affine = B::wgsl_response_affine_gradient(sums.clone());
            let affine = B::float_reshape(affine, Shape::from([1, 2 * channels]));
            for (parent, first) in [(gamma_parent, 0), (beta_parent, channels)] {
                if let Some(parent) = parent {
                    let own = columns::<B>(affine.clone(), first, channels);
                    let own = B::float_reshape(own, Shape::from([1, 1, 1, channels]));
                    grads.register::<B>(parent.id, own);
                }
            }
        }
        if let Some(parent) = x_parent {
            let x_gradient = B::wgsl_response_gradient(x, gradient, sums, gamma);
            grads.register::<B>(parent.id, x_gradient);
        }
    }
}

#[derive(Debug)]
struct DepthwiseConv;

impl<B: Backwards> Backward<B, 3> for DepthwiseConv {
    /// The input and the weight.
    type State = (FloatTensor<B>, FloatTensor<B>, DepthwiseOptions);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (x, weight, options) = ops.state;
        let (pictures, [channels, _, size, _]) = (shape_of::<B>(&x), shape_of::<B>(&weight));
        let [x_parent, weight_parent, bias_parent] = ops.parents;
        if let Some(parent) = x_parent {
            let own = B::wgsl_depthwise_input_gradient(gradient.clone(), weight, pictures, options);
            grads.register::<B>(parent.id, own);
        }
        if weight_parent.is_none() && bias_parent.is_none() {
            return;
        }
        let parts = B::wgsl_depthwise_weight_gradient(x, gradient, size, options);
        let sum = B::float_sum_dim(parts, 0);
        let weights = channels * size * size;
        if let Some(parent) = weight_parent {
            let own = columns::<B>(sum.clone(), 0, weights);
            let own = B::float_reshape(own, Shape::from([channels, 1, size, size]));
            grads.register::<B>(parent.id, own);
        }
        if let Some(parent) = bias_parent {
            let own = columns::<B>(sum, weights, channels);
            grads.register::<B>(parent.id, B::float_reshape(own, Shape::from([channels])));
        }
    }
}

#[derive(Debug)]
struct Patches;

impl<B: Backwards> Backward<B, 1> for Patches {
    /// Shape of the pictures, side of the window, stride.
    type State = ([usize; 4], usize, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let [Some(parent)] = ops.parents else { return };
        let (pictures, size, stride) = ops.state;
        let own = B::wgsl_patches_gradient(gradient, pictures, size, stride);
        grads.register::<B>(parent.id, own);
    }
}
