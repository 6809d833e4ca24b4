//! The hand-written shaders of wgpu devices, launched through burn's queue.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::wgpu::{
    CubeBackend, CubeTensor, KernelSource, SourceKernel, SourceTemplate, into_contiguous,
};
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::cubecl::prelude::KernelId;
use burn::cubecl::server::KernelArguments;
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
        Shader { name: "layer_norm", source: include_str!("../../../shaders/layer_norm.wgsl") }
            .launch(vec![x], shape, &[rows, channels], rows.div_ceil(NORM_ROWS))
    }

    fn wgsl_channel_norms(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let [batch, height, width, channels] = x.meta.shape().dims();
        let shape = norms_shape(x.meta.shape());
        let groups = batch * channels.div_ceil(CHANNELS);
        let source = include_str!("../../../shaders/channel_norms.wgsl");
        Shader { name: "channel_norms", source }.launch(
            vec![x],
            shape,
            &[batch, height * width, channels],
            groups,
        )
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
        let dims = [batch, height, width, channels, rows, columns, size, options.stride, replicate];
        let groups = shape.num_elements().div_ceil(WORKGROUP_SIZE);
        let source = include_str!("../../../shaders/depthwise_conv.wgsl");
        Shader { name: "depthwise_conv", source }.launch(
            vec![x, weight, bias],
            shape,
            &dims,
            groups,
        )
    }

    fn wgsl_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = product_shape(x.meta.shape(), weight.meta.shape());
        let [rows, outputs] = shape.dims();
        let [columns, _] = weight.meta.shape().dims();
        let dims = [rows, columns / 4, outputs / 4];
        let source = include_str!("../../../shaders/linear.wgsl");
        Shader { name: "linear", source }.launch(
            vec![x, weight],
            shape.clone(),
            &dims,
            tiles(&shape, LINEAR_TILE),
        )
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
        let bits = packing.bits();
        let [_, read] = x.meta.shape().dims();
        let dims = [rows, outputs / 4, read / 4, bits, values_width, blocks, zeros_width];
        let source = include_str!("../../../shaders/packed_linear.wgsl");
        Shader { name: "packed_linear", source }.launch(
            vec![x, values, scales, zeros],
            shape.clone(),
            &dims,
            tiles(&shape, PACKED_TILE),
        )
    }
}

/// A shader's file name and text.
#[derive(Clone, Copy, Debug)]
struct Shader {
    name: &'static str,
    source: &'static str,
}

impl Shader {
    /// Runs the shader on `groups` workgroups. Its buffers are the inputs, the output and `dims`,
    /// in this order.
    fn launch(
        self,
        inputs: Vec<CubeTensor>,
        shape: Shape,
        dims: &[usize],
        groups: usize,
    ) -> CubeTensor {
        let inputs: Vec<_> = inputs.into_iter().map(into_contiguous).collect();
        let (client, dtype) = (inputs[0].client.clone(), inputs[0].dtype);
        let bytes = shape.num_elements() * dtype.size();
        let device = inputs[0].device.clone();
        let output =
            CubeTensor::new_contiguous(client.clone(), device, shape, client.empty(bytes), dtype);
        let dims: Vec<u32> = dims.iter().map(|&dim| dim as u32).collect();
        let dims = client.create_from_slice(bytemuck::cast_slice(&dims));
        let mut buffers: Vec<_> = inputs.into_iter().map(|x| x.handle.binding()).collect();
        buffers.push(output.handle.clone().binding());
        buffers.push(dims.binding());

        let kernel = ShaderKernel { shader: self, dtype };
        let groups = groups as u32;
        client.launch(
            Box::new(SourceKernel::new(kernel, CubeDim::new_1d(WORKGROUP_SIZE as u32))),
            CubeCount::Static(groups.min(MAX_GROUPS), groups.div_ceil(MAX_GROUPS), 1),
            KernelArguments::new().with_buffers(buffers),
        );
        output
    }
}

/// A shader for one element type.
#[derive(Debug)]
struct ShaderKernel {
    shader: Shader,
    dtype: DType,
}

impl KernelSource for ShaderKernel {
    fn source(&self) -> SourceTemplate {
        SourceTemplate::new(for_dtype(self.shader.source, self.dtype))
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info((self.shader.name, self.dtype))
    }

    fn lang(&self) -> &'static str {
        "wgsl"
    }
}

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
