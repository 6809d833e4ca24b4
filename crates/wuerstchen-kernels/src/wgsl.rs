//! The hand-written shaders of wgpu devices, launched through burn's queue.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::wgpu::{
    CubeBackend, CubeTensor, KernelSource, SourceKernel, SourceTemplate, into_contiguous,
};
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::cubecl::prelude::KernelId;
use burn::cubecl::server::{KernelArguments, MetadataBindingInfo};
use burn::cubecl::{CubeCount, CubeDim};
use burn::prelude::*;
use burn::tensor::DType;

use crate::depthwise_conv::{DepthwiseOptions, Padding};
use crate::packed_linear::Packing;

/// Invocations in a workgroup; every shader names the same number.
const WORKGROUP_SIZE: usize = 64;

/// Rows that one workgroup of `layer_norm.wgsl` handles.
const NORM_ROWS: usize = 8;

/// Channels that one workgroup of `channel_norms.wgsl` handles.
const CHANNELS: usize = 8;

/// Rows and columns of the output that one workgroup of `linear.wgsl` makes.
const LINEAR_TILE: [usize; 2] = [32, 64];

/// Rows and columns of the output that one workgroup of `packed_linear.wgsl` makes.
const PACKED_TILE: [usize; 2] = [64, 32];

/// Most workgroups along one axis of a dispatch that every WebGPU device takes.
const MAX_GROUPS: u32 = 65_535;

/// Whether `device` compiles WGSL and tracks no gradients: true of wgpu as long as neither the
/// `vulkan` nor the `metal` feature of burn, which compile SPIR-V and MSL, is enabled.
pub(crate) fn runs_on(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Cube(burn::cubecl::Device::Wgpu(_)))
}

pub(crate) fn layer_norm<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::wgsl_layer_norm(x.into_dispatch()))
}

/// As [`crate::global_response_norm::reference::channel_norms`].
pub(crate) fn channel_norms(x: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::wgsl_channel_norms(x.into_dispatch()))
}

pub(crate) fn depthwise_conv(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    options: DepthwiseOptions,
) -> Tensor<4> {
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::wgsl_depthwise_conv(x, weight, bias, options))
}

/// `x` `[M, K]`, a packed weight `[N, columns]` of at least K columns; K and N are multiples of 4.
pub(crate) fn packed_linear(
    x: Tensor<2>,
    values: Tensor<2, Int>,
    scales: Tensor<2>,
    zeros: Tensor<2, Int>,
    packing: Packing,
    columns: usize,
) -> Tensor<2> {
    let (x, values) = (x.into_dispatch(), values.into_dispatch());
    let (scales, zeros) = (scales.into_dispatch(), zeros.into_dispatch());
    Tensor::from_dispatch(Dispatch::wgsl_packed_linear(x, values, scales, zeros, packing, columns))
}

/// `x` `[M, K]`, weight `[K, N]`; K and N are multiples of 4.
pub(crate) fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::wgsl_linear(x.into_dispatch(), weight.into_dispatch()))
}

/// The operations that wgpu devices run as hand-written shaders.
#[backend_extension(Cube, Fusion)]
pub(crate) trait WgslKernels: Backend {
    #[fusion(dtype = x, shape = x)]
    fn wgsl_layer_norm(x: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = norms_shape(x))]
    fn wgsl_channel_norms(x: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = convolved_shape(x, options))]
    fn wgsl_depthwise_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: DepthwiseOptions,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = product_shape(x, weight))]
    fn wgsl_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = multiplied_shape(x, values))]
    fn wgsl_packed_linear(
        x: FloatTensor<Self>,
        values: IntTensor<Self>,
        scales: FloatTensor<Self>,
        zeros: IntTensor<Self>,
        packing: Packing,
        columns: usize,
    ) -> FloatTensor<Self>;
}

/// Workgroups that make a matrix in tiles.
fn tiles(shape: &Shape, [height, width]: [usize; 2]) -> usize {
    let [rows, columns] = shape.dims();
    rows.div_ceil(height) * columns.div_ceil(width)
}

fn multiplied_shape(x: &Shape, values: &Shape) -> Shape {
    Shape::from([x.dims::<2>()[0], values.dims::<2>()[0]])
}

fn product_shape(x: &Shape, weight: &Shape) -> Shape {
    Shape::from([x.dims::<2>()[0], weight.dims::<2>()[1]])
}

fn norms_shape(x: &Shape) -> Shape {
    let [batch, _, _, channels] = x.dims();
    Shape::from([batch, 1, 1, channels])
}

fn convolved_shape(x: &Shape, options: &DepthwiseOptions) -> Shape {
    let [batch, height, width, channels] = x.dims();
    let [height, width] = [height, width].map(|side: usize| side.div_ceil(options.stride));
    Shape::from([batch, height, width, channels])
}

impl WgslKernels for CubeBackend {
    fn wgsl_layer_norm(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = x.meta.shape().clone();
        let channels = shape[shape.len() - 1];
        let rows = shape.num_elements() / channels;
        LAYER_NORM.launch(vec![x], shape, &[rows, channels], rows.div_ceil(NORM_ROWS))
    }

    fn wgsl_channel_norms(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let [batch, height, width, channels] = x.meta.shape().dims();
        let shape = norms_shape(x.meta.shape());
        let groups = batch * channels.div_ceil(CHANNELS);
        CHANNEL_NORMS.launch(vec![x], shape, &[batch, height * width, channels], groups)
    }

    fn wgsl_depthwise_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: DepthwiseOptions,
    ) -> FloatTensor<Self> {
        let shape = convolved_shape(x.meta.shape(), &options);
        let [batch, height, width, channels] = x.meta.shape().dims();
        let [_, rows, columns, _] = shape.dims();
        let [.., size] = weight.meta.shape().dims::<4>();
        let replicate = usize::from(options.padding == Padding::Replicate);
        let sizes =
            [batch, height, width, channels, rows, columns, size, options.stride, replicate];
        let groups = shape.num_elements().div_ceil(WORKGROUP_SIZE);
        DEPTHWISE_CONV.launch(vec![x, weight, bias], shape, &sizes, groups)
    }

    fn wgsl_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = product_shape(x.meta.shape(), weight.meta.shape());
        let [rows, outputs] = shape.dims();
        let [columns, _] = weight.meta.shape().dims();
        let sizes = [rows, columns / 4, outputs / 4];
        LINEAR.launch(vec![x, weight], shape.clone(), &sizes, tiles(&shape, LINEAR_TILE))
    }

    fn wgsl_packed_linear(
        x: FloatTensor<Self>,
        values: IntTensor<Self>,
        scales: FloatTensor<Self>,
        zeros: IntTensor<Self>,
        packing: Packing,
        columns: usize,
    ) -> FloatTensor<Self> {
        let shape = multiplied_shape(x.meta.shape(), values.meta.shape());
        let [rows, outputs] = shape.dims();
        let (values_width, blocks) = (packing.value_words(columns), packing.blocks(columns));
        let zeros_width = packing.zero_words(columns);
        let [_, read] = x.meta.shape().dims();
        let sizes = [rows, outputs / 4, read / 4, values_width, blocks, zeros_width];
        Shader { bits: Some(packing.bits()), ..PACKED_LINEAR }.launch(
            vec![x, values, scales, zeros],
            shape.clone(),
            &sizes,
            tiles(&shape, PACKED_TILE),
        )
    }
}

/// A shader's file name and text.
#[derive(Clone, Copy, Debug)]
struct Shader {
    name: &'static str,
    source: &'static str,
    /// What its constant `BITS` shall be.
    bits: Option<usize>,
}

const LAYER_NORM: Shader =
    Shader::new("layer_norm", include_str!("../../../shaders/layer_norm.wgsl"));
const CHANNEL_NORMS: Shader =
    Shader::new("channel_norms", include_str!("../../../shaders/channel_norms.wgsl"));
const DEPTHWISE_CONV: Shader =
    Shader::new("depthwise_conv", include_str!("../../../shaders/depthwise_conv.wgsl"));
const LINEAR: Shader = Shader::new("linear", include_str!("../../../shaders/linear.wgsl"));
const PACKED_LINEAR: Shader =
    Shader::new("packed_linear", include_str!("../../../shaders/packed_linear.wgsl"));

impl Shader {
    const fn new(name: &'static str, source: &'static str) -> Self {
        Self { name, source, bits: None }
    }

    /// Runs the shader on `groups` workgroups. Its buffers are the inputs, the output and the sizes, in
    /// this order.
    fn launch(
        self,
        inputs: Vec<CubeTensor>,
        shape: Shape,
        sizes: &[usize],
        groups: usize,
    ) -> CubeTensor {
        let inputs: Vec<_> = inputs.into_iter().map(into_contiguous).collect();
        let (client, dtype) = (inputs[0].client.clone(), inputs[0].dtype);
        let bytes = shape.num_elements() * dtype.size();
        let device = inputs[0].device.clone();
        let output =
            CubeTensor::new_contiguous(client.clone(), device, shape, client.empty(bytes), dtype);
        let mut buffers: Vec<_> = inputs.into_iter().map(|x| x.handle.binding()).collect();
        buffers.push(output.handle.clone().binding());

        let kernel = ShaderKernel { shader: self, dtype };
        let groups = groups as u32;
        client.launch(
            Box::new(SourceKernel::new(kernel, CubeDim::new_1d(WORKGROUP_SIZE as u32))),
            CubeCount::Static(groups.min(MAX_GROUPS), groups.div_ceil(MAX_GROUPS), 1),
            // cubecl keeps the metadata of every launch by its content. A buffer of our own would be
            // written anew each time, and cubecl submits all queued work before it writes a buffer.
            KernelArguments::new().with_buffers(buffers).with_info(metadata(sizes)),
        );
        output
    }
}

/// 32-bit numbers in words of 64 bits, the first one in the low half.
fn metadata(sizes: &[usize]) -> MetadataBindingInfo {
    let word = |pair: &[usize]| pair.iter().rev().fold(0, |word, &size| word << 32 | size as u64);
    MetadataBindingInfo::custom(sizes.chunks(2).map(word).collect())
}

/// A shader for one element type.
#[derive(Debug)]
struct ShaderKernel {
    shader: Shader,
    dtype: DType,
}

impl KernelSource for ShaderKernel {
    fn source(&self) -> SourceTemplate {
        let source = match self.shader.bits {
            Some(bits) => self.shader.source.replace(BITS, &format!("const BITS = {bits}u;")),
            None => self.shader.source.to_owned(),
        };
        SourceTemplate::new(for_dtype(&source, self.dtype))
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info((self.shader.name, self.shader.bits, self.dtype))
    }

    fn lang(&self) -> &'static str {
        "wgsl"
    }
}

/// The line of `packed_linear.wgsl` that is rewritten for the packing.
const BITS: &str = "const BITS = 4u;";

/// Rewrites the one `alias elem` line of a shader for half precision.
fn for_dtype(source: &str, dtype: DType) -> String {
    match dtype {
        DType::F32 => source.to_owned(),
        DType::F16 => {
            format!("enable f16;\n{source}").replace("alias elem = f32;", "alias elem = f16;")
        }
        other => panic!("no shader for {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer_norm;
    use crate::packed_linear::BLOCK;

    /// The value of `const name = …;` in a shader.
    fn constant(shader: Shader, name: &str) -> f64 {
        let start = format!("const {name} = ");
        let line = shader.source.lines().find_map(|line| line.strip_prefix(&start));
        let value = line.unwrap_or_else(|| panic!("{} has no constant {name}", shader.name));
        let (value, _) = value.split_once(';').expect("a statement ends in a semicolon");
        value.trim_end_matches('u').parse().expect("a number")
    }

    #[test]
    fn constants_of_shaders_are_those_of_their_callers() {
        for shader in [LAYER_NORM, CHANNEL_NORMS, DEPTHWISE_CONV, LINEAR, PACKED_LINEAR] {
            assert_eq!(constant(shader, "WORKGROUP_SIZE"), WORKGROUP_SIZE as f64);
        }
        assert_eq!(constant(LAYER_NORM, "EPSILON"), layer_norm::EPSILON);
        assert_eq!(constant(LAYER_NORM, "ROWS"), NORM_ROWS as f64);
        assert_eq!(constant(CHANNEL_NORMS, "CHANNELS"), CHANNELS as f64);
        for (shader, [rows, columns]) in [(LINEAR, LINEAR_TILE), (PACKED_LINEAR, PACKED_TILE)] {
            assert_eq!(constant(shader, "TILE_ROWS"), rows as f64);
            assert_eq!(constant(shader, "TILE_QUADS") * 4.0, columns as f64);
        }
        assert_eq!(constant(PACKED_LINEAR, "BLOCK") * 4.0, BLOCK as f64);
        assert_eq!(PACKED_LINEAR.source.matches(BITS).count(), 1);
    }

    #[test]
    fn two_sizes_are_one_word() {
        assert_eq!(metadata(&[1, 2, 3]).data, [1 | 2 << 32, 3]);
    }
}
