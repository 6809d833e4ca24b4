//! The hand-written shaders of wgpu devices, launched through burn's queue.

use std::sync::atomic::{AtomicU64, Ordering};

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
use crate::linear::Epilogue;
use crate::packed_linear::Packing;

#[cfg(feature = "train")]
mod backward;
#[cfg(feature = "train")]
mod optimizer;
mod probe;
mod product;

#[cfg(feature = "train")]
pub(crate) use optimizer::{adamw, sum_of_squares};
pub(crate) use probe::{copy, probe_multiply_adds};
pub use product::{Products, Tiling, choose_products, chosen_products, has_halves};

/// Most launches in one submit. A browser hands every submit to another process, so few submits are faster. But the
/// screen cannot be drawn until a submit ends. At the published size, 80 launches are about 0.27 TFLOP.
pub const LAUNCHES_OF_A_SUBMIT: usize = 80;

/// Invocations in a workgroup; every shader names the same number.
const WORKGROUP_SIZE: usize = 64;

/// Rows that one workgroup of `layer_norm.wgsl` handles.
const NORM_ROWS: usize = 4;

/// Channels that one workgroup of `channel_norms.wgsl` handles.
const CHANNELS: usize = 8;

/// Pixels that one workgroup of `response.wgsl` handles.
const RESPONSE_PIXELS: usize = 16;

/// Queries and channels that one workgroup of `attention.wgsl` handles.
const ATTENTION_TILE: [usize; 2] = [32, 64];

/// Most workgroups along one axis of a dispatch that every WebGPU device takes.
const MAX_GROUPS: u32 = 65_535;

static LAUNCHES: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// What the hand-written shaders of this process have moved so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShaderTraffic {
    /// Launches.
    pub launches: u64,
    /// Bytes of the tensors that the launches read or wrote. Each launch counts each of its tensors once. A shader that
    /// reads a tensor several times moves more, unless the GPU's cache keeps the tensor.
    pub bytes: u64,
}

/// The traffic since the process began.
pub fn shader_traffic() -> ShaderTraffic {
    ShaderTraffic {
        launches: LAUNCHES.load(Ordering::Relaxed),
        bytes: BYTES.load(Ordering::Relaxed),
    }
}

/// Whether `device` compiles WGSL and tracks no gradients. It holds for wgpu as long as neither burn's feature `vulkan`
/// nor `metal` is enabled, which compile SPIR-V and MSL instead.
pub fn runs_on(device: &Device) -> bool {
    is_wgpu(device.as_dispatch())
}

fn is_wgpu(device: &DispatchDevice) -> bool {
    matches!(device, DispatchDevice::Cube(burn::cubecl::Device::Wgpu(_)))
}

/// Whether `device` runs shaders that have a backward pass: it compiles WGSL, and tracks no gradients or only those of
/// f32 tensors.
pub(crate) fn differentiates_on(device: &Device, dtype: DType) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "train")]
        DispatchDevice::Autodiff(device) => is_wgpu(&device.clone().inner()) && dtype == DType::F32,
        _ => runs_on(device) && matches!(dtype, DType::F32 | DType::F16),
    }
}

/// As [`crate::layer_norm()`]; the channels are a multiple of 4.
pub(crate) fn layer_norm<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::wgsl_layer_norm(x.into_dispatch()))
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

/// As [`crate::global_response_norm()`]; the channels are a multiple of 4.
pub(crate) fn global_response_norm(x: Tensor<4>, gamma: Tensor<4>, beta: Tensor<4>) -> Tensor<4> {
    let [x, gamma, beta] = [x, gamma, beta].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::wgsl_global_response_norm(x, gamma, beta))
}

pub(crate) fn patches(x: Tensor<4>, size: usize, stride: usize) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::wgsl_patches(x.into_dispatch(), size, stride))
}

/// As [`crate::attention::attention`], with keys and values in one pair or two; the channels of a head are a
/// multiple of 4.
pub(crate) fn attention(
    q: Tensor<3>,
    [k, v]: [Tensor<3>; 2],
    more: Option<[Tensor<3>; 2]>,
    heads: usize,
) -> Tensor<3> {
    let more_keys = more.as_ref().map_or(0, |[k, _]| k.dims()[1]);
    let [more_k, more_v] = more
        .unwrap_or_else(|| [(); 2].map(|()| Tensor::empty([1, 1, 4], (&q.device(), q.dtype()))));
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    let (more_k, more_v) = (more_k.into_dispatch(), more_v.into_dispatch());
    let counts = (heads, more_keys);
    Tensor::from_dispatch(Dispatch::wgsl_attention(q, k, v, more_k, more_v, counts))
}

/// As [`crate::attention::joined_attention`]; the channels of a head are a multiple of 4.
pub(crate) fn joined_attention(qkv: Tensor<3>, [k, v]: [Tensor<3>; 2], heads: usize) -> Tensor<3> {
    let (qkv, k, v) = (qkv.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(Dispatch::wgsl_joined_attention(qkv, k, v, heads))
}

/// The planes of a packed weight on the device.
pub(crate) struct Planes {
    pub(crate) values: Tensor<2, Int>,
    pub(crate) scales: Tensor<2>,
    pub(crate) zeros: Tensor<2, Int>,
}

/// The product of `x` `[M, K]` with a packed weight `[N, columns]` of at least K columns; K and N are multiples of 4.
pub(crate) fn packed_linear(
    x: Tensor<2>,
    weight: Planes,
    packing: Packing,
    columns: usize,
    epilogue: Epilogue<2>,
) -> Tensor<2> {
    let (bias, addend, epilogue) = epilogue_of(epilogue, &x);
    Tensor::from_dispatch(Dispatch::wgsl_packed_linear(
        x.into_dispatch(),
        weight.values.into_dispatch(),
        weight.scales.into_dispatch(),
        weight.zeros.into_dispatch(),
        bias.into_dispatch(),
        addend.into_dispatch(),
        (packing, columns, epilogue),
    ))
}

/// The product of `x` `[M, K]` with a weight `[K, N]`; K and N are multiples of 4.
pub(crate) fn linear(x: Tensor<2>, weight: Tensor<2>, epilogue: Epilogue<2>) -> Tensor<2> {
    let (bias, addend, epilogue) = epilogue_of(epilogue, &x);
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    let (bias, addend) = (bias.into_dispatch(), addend.into_dispatch());
    Tensor::from_dispatch(Dispatch::wgsl_linear(x, weight, bias, addend, epilogue))
}

/// The tensors of an epilogue, with any tensors in place of those that it lacks, and its bits.
fn epilogue_of(epilogue: Epilogue<2>, x: &Tensor<2>) -> (Tensor<1>, Tensor<2>, usize) {
    let mut bits = if epilogue.gelu { product::GELU } else { 0 };
    let options = (&x.device(), x.dtype());
    let bias = match epilogue.bias {
        Some(bias) => {
            bits |= product::BIAS;
            bias
        }
        None => Tensor::empty([4], options),
    };
    let addend = match epilogue.addend {
        Some(addend) => {
            bits |= product::ADDEND;
            addend
        }
        None => Tensor::empty([1, 4], options),
    };
    (bias, addend, bits)
}

/// The operations that wgpu devices run as hand-written shaders, each with its backward pass.
#[backend_extension(Cube, Fusion, Autodiff: cfg(feature = "train"))]
pub(crate) trait DifferentiableKernels: Backend {
    #[fusion(dtype = x, shape = x)]
    fn wgsl_layer_norm(x: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn wgsl_global_response_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = convolved_shape(x, options))]
    fn wgsl_depthwise_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: DepthwiseOptions,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = patches_shape(x, size, stride))]
    fn wgsl_patches(x: FloatTensor<Self>, size: usize, stride: usize) -> FloatTensor<Self>;
}

/// The operations that wgpu devices run as hand-written shaders where no gradients are tracked.
#[backend_extension(Cube, Fusion)]
pub(crate) trait WgslKernels: Backend {
    /// `counts` has the number of heads and the number of keys in `more_k`. If that is 0, `more_k` and `more_v` are any
    /// tensors.
    #[fusion(dtype = q, shape = q)]
    fn wgsl_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        more_k: FloatTensor<Self>,
        more_v: FloatTensor<Self>,
        counts: (usize, usize),
    ) -> FloatTensor<Self>;

    #[fusion(dtype = qkv, shape = attended_shape(qkv))]
    fn wgsl_joined_attention(
        qkv: FloatTensor<Self>,
        more_k: FloatTensor<Self>,
        more_v: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = product_shape(x, weight))]
    fn wgsl_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        addend: FloatTensor<Self>,
        epilogue: usize,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = start, shape = Shape::from([invocations]))]
    fn wgsl_probe_multiply_adds(
        start: FloatTensor<Self>,
        invocations: usize,
        rounds: usize,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn wgsl_probe_copy(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The packing, the columns of the weight and the bits of the epilogue come last.
    #[fusion(dtype = x, shape = multiplied_shape(x, values))]
    fn wgsl_packed_linear(
        x: FloatTensor<Self>,
        values: IntTensor<Self>,
        scales: FloatTensor<Self>,
        zeros: IntTensor<Self>,
        bias: FloatTensor<Self>,
        addend: FloatTensor<Self>,
        layout: (Packing, usize, usize),
    ) -> FloatTensor<Self>;
}

fn multiplied_shape(x: &Shape, values: &Shape) -> Shape {
    Shape::from([x.dims::<2>()[0], values.dims::<2>()[0]])
}

fn product_shape(x: &Shape, weight: &Shape) -> Shape {
    Shape::from([x.dims::<2>()[0], weight.dims::<2>()[1]])
}

fn attended_shape(qkv: &Shape) -> Shape {
    let [batch, tokens, width] = qkv.dims();
    Shape::from([batch, tokens, width / 3])
}

fn convolved_shape(x: &Shape, options: &DepthwiseOptions) -> Shape {
    let [batch, height, width, channels] = x.dims();
    let [height, width] = [height, width].map(|side: usize| side.div_ceil(options.stride));
    Shape::from([batch, height, width, channels])
}

fn patches_shape(x: &Shape, size: &usize, stride: &usize) -> Shape {
    let options = DepthwiseOptions { stride: *stride, padding: Padding::Zeros };
    let [batch, height, width, channels] = convolved_shape(x, &options).dims();
    Shape::from([batch, height, width, size * size * channels])
}

impl DifferentiableKernels for CubeBackend {
    fn wgsl_layer_norm(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = x.meta.shape().clone();
        let channels = shape[shape.len() - 1];
        let rows = shape.num_elements() / channels;
        LAYER_NORM.launch(vec![x], shape, &[rows, channels / 4], rows.div_ceil(NORM_ROWS))
    }

    fn wgsl_global_response_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let shape = x.meta.shape().clone();
        let [batch, height, width, channels] = shape.dims();
        let pixels = height * width;
        let groups = batch * channels.div_ceil(CHANNELS);
        let norms = Shape::from([batch, 1, 1, channels]);
        let sizes = [batch, pixels, channels];
        let norms = CHANNEL_NORMS.launch(vec![x.clone()], norms, &sizes, groups);
        let groups = batch * pixels.div_ceil(RESPONSE_PIXELS);
        let sizes = [batch, pixels, channels / 4];
        RESPONSE.launch(vec![x, norms, gamma, beta], shape, &sizes, groups)
    }

    fn wgsl_depthwise_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: DepthwiseOptions,
    ) -> FloatTensor<Self> {
        let shape = convolved_shape(x.meta.shape(), &options);
        let [.., size] = weight.meta.shape().dims::<4>();
        let sizes = window_sizes(x.meta.shape(), size, options);
        let groups = shape.num_elements().div_ceil(WORKGROUP_SIZE);
        DEPTHWISE_CONV.launch(vec![x, weight, bias], shape, &sizes, groups)
    }

    fn wgsl_patches(x: FloatTensor<Self>, size: usize, stride: usize) -> FloatTensor<Self> {
        let shape = patches_shape(x.meta.shape(), &size, &stride);
        let options = DepthwiseOptions { stride, padding: Padding::Zeros };
        let sizes = window_sizes(x.meta.shape(), size, options);
        let groups = shape.num_elements().div_ceil(WORKGROUP_SIZE);
        PATCHES.launch(vec![x], shape, &sizes, groups)
    }
}

/// The sizes of shaders that move a window of side `size` over pictures `[B, H, W, C]`.
fn window_sizes(pictures: &Shape, size: usize, options: DepthwiseOptions) -> [usize; 9] {
    let [batch, height, width, channels] = pictures.dims();
    let [rows, columns] = [height, width].map(|side: usize| side.div_ceil(options.stride));
    let replicate = usize::from(options.padding == Padding::Replicate);
    [batch, height, width, channels, rows, columns, size, options.stride, replicate]
}

impl WgslKernels for CubeBackend {
    fn wgsl_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        more_k: FloatTensor<Self>,
        more_v: FloatTensor<Self>,
        (heads, more_keys): (usize, usize),
    ) -> FloatTensor<Self> {
        let shape = q.meta.shape().clone();
        let keys = [k.meta.shape().dims::<3>()[1], more_keys];
        attend(ATTENTION, vec![q, k, v, more_k, more_v], shape, keys, heads)
    }

    fn wgsl_joined_attention(
        qkv: FloatTensor<Self>,
        more_k: FloatTensor<Self>,
        more_v: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        let shape = attended_shape(qkv.meta.shape());
        let keys = [shape.dims::<3>()[1], more_k.meta.shape().dims::<3>()[1]];
        attend(JOINED_ATTENTION, vec![qkv, more_k, more_v], shape, keys, heads)
    }

    fn wgsl_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        addend: FloatTensor<Self>,
        epilogue: usize,
    ) -> FloatTensor<Self> {
        let shape = product_shape(x.meta.shape(), weight.meta.shape());
        product::product(vec![x, bias, addend, weight], None, shape, epilogue)
    }

    fn wgsl_packed_linear(
        x: FloatTensor<Self>,
        values: IntTensor<Self>,
        scales: FloatTensor<Self>,
        zeros: IntTensor<Self>,
        bias: FloatTensor<Self>,
        addend: FloatTensor<Self>,
        (packing, columns, epilogue): (Packing, usize, usize),
    ) -> FloatTensor<Self> {
        let shape = multiplied_shape(x.meta.shape(), values.meta.shape());
        let widths =
            [packing.value_words(columns), packing.blocks(columns), packing.zero_words(columns)];
        let layout = product::Layout { bits: packing.bits(), widths };
        let inputs = vec![x, bias, addend, values, scales, zeros];
        product::product(inputs, Some(&layout), shape, epilogue)
    }

    fn wgsl_probe_multiply_adds(
        start: FloatTensor<Self>,
        invocations: usize,
        rounds: usize,
    ) -> FloatTensor<Self> {
        let groups = invocations / WORKGROUP_SIZE;
        PROBE_MULTIPLY_ADDS.launch(vec![start], Shape::from([invocations]), &[rounds], groups)
    }

    fn wgsl_probe_copy(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = x.meta.shape().clone();
        let quads = shape.num_elements() / 4;
        PROBE_COPY.launch(vec![x], shape, &[quads], quads.div_ceil(WORKGROUP_SIZE))
    }
}

/// Launches a shader of attention with these numbers of first keys and of further ones.
fn attend(
    shader: Shader,
    inputs: Vec<CubeTensor>,
    shape: Shape,
    [keys, more_keys]: [usize; 2],
    heads: usize,
) -> CubeTensor {
    let [batch, queries, channels] = shape.dims();
    let size = channels / heads;
    let [tile, part] = ATTENTION_TILE;
    let groups = batch * heads * queries.div_ceil(tile) * size.div_ceil(part);
    let sizes = [batch, queries, keys, more_keys, heads, size / 4];
    shader.launch(inputs, shape, &sizes, groups)
}

/// A shader's name and text.
#[derive(Clone, Debug)]
struct Shader {
    name: &'static str,
    /// The text, in up to three files.
    parts: [&'static str; 3],
    /// The constants that are rewritten in the text.
    constants: [Option<Constant>; 2],
    /// Whether tiles of products hold halves.
    halves: bool,
}

/// The value for a line `const NAME = …u;` of a shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Constant {
    name: &'static str,
    value: usize,
}

impl Constant {
    /// A constant with this value; `None` leaves the value of the shader's file.
    fn of(name: &'static str, value: Option<usize>) -> Option<Self> {
        value.map(|value| Self { name, value })
    }

    /// Rewrites the line.
    fn write(self, source: &str) -> String {
        let start = format!("const {} = ", self.name);
        let (before, rest) = source.split_once(&start).expect("the shader has the constant");
        let (_, after) = rest.split_once(';').expect("a statement ends in a semicolon");
        format!("{before}{start}{}u;{after}", self.value)
    }
}

const ROW_STATISTICS: &str = include_str!("../../../shaders/row_statistics.wgsl");
const WINDOW_SIZES: &str = include_str!("../../../shaders/window_sizes.wgsl");
const LAYER_NORM: Shader = Shader::of_two(
    "layer_norm",
    [include_str!("../../../shaders/layer_norm.wgsl"), ROW_STATISTICS],
);
const CHANNEL_NORMS: Shader =
    Shader::new("channel_norms", include_str!("../../../shaders/channel_norms.wgsl"));
const RESPONSE: Shader = Shader::new("response", include_str!("../../../shaders/response.wgsl"));
const DEPTHWISE_CONV: Shader = Shader::of_two(
    "depthwise_conv",
    [include_str!("../../../shaders/depthwise_conv.wgsl"), WINDOW_SIZES],
);
const PATCHES: Shader =
    Shader::of_two("patches", [include_str!("../../../shaders/patches.wgsl"), WINDOW_SIZES]);
const ATTENTION: Shader =
    attention_of("separate attention", include_str!("../../../shaders/separate_tokens.wgsl"));
const JOINED_ATTENTION: Shader =
    attention_of("joined attention", include_str!("../../../shaders/joined_tokens.wgsl"));
const PROBE_MULTIPLY_ADDS: Shader =
    Shader::new("probe_multiply_adds", include_str!("../../../shaders/probe_multiply_adds.wgsl"));
const PROBE_COPY: Shader =
    Shader::new("probe_copy", include_str!("../../../shaders/probe_copy.wgsl"));

/// Attention that reads its tokens by the text `tokens`.
const fn attention_of(name: &'static str, tokens: &'static str) -> Shader {
    Shader::of_two(name, [include_str!("../../../shaders/attention.wgsl"), tokens])
}

/// All shaders but those of products and of training.
const PLAIN: [Shader; 9] = [
    LAYER_NORM,
    CHANNEL_NORMS,
    RESPONSE,
    DEPTHWISE_CONV,
    PATCHES,
    ATTENTION,
    JOINED_ATTENTION,
    PROBE_MULTIPLY_ADDS,
    PROBE_COPY,
];

impl Shader {
    const fn new(name: &'static str, source: &'static str) -> Self {
        Self::of_two(name, [source, ""])
    }

    /// A shader whose text is in two files.
    const fn of_two(name: &'static str, [first, second]: [&'static str; 2]) -> Self {
        Self { name, parts: [first, second, ""], constants: [None, None], halves: false }
    }

    /// The name, with the names and values of constants.
    fn variant(&self) -> String {
        let constants = self.constants.iter().flatten();
        let values = constants.map(|Constant { name, value }| format!(" {name}={value}"));
        let name = self.name.to_owned() + &values.collect::<String>();
        if self.halves { name + " halves" } else { name }
    }

    /// The text for one element type.
    fn source(&self, dtype: DType) -> String {
        let constants = self.constants.iter().flatten();
        let mut source =
            constants.fold(self.parts.concat(), |source, constant| constant.write(&source));
        match dtype {
            DType::F32 => {}
            DType::F16 => source = with_halves(&source, "elem"),
            other => panic!("no shader for {other:?}"),
        }
        if self.halves {
            source = with_halves(&source, "factor");
        }
        let enable = if dtype == DType::F16 || self.halves { "enable f16;\n" } else { "" };
        enable.to_owned() + &source
    }

    /// Runs the shader on `groups` workgroups. Its buffers are the output, the inputs and the sizes, in
    /// this order.
    fn launch(
        self,
        inputs: Vec<CubeTensor>,
        shape: Shape,
        sizes: &[usize],
        groups: usize,
    ) -> CubeTensor {
        let (client, dtype) = (inputs[0].client.clone(), inputs[0].dtype);
        let bytes = shape.num_elements() * dtype.size();
        let device = inputs[0].device.clone();
        let output =
            CubeTensor::new_contiguous(client.clone(), device, shape, client.empty(bytes), dtype);
        self.run(&output, inputs, sizes, groups);
        output
    }

    /// As [`Self::launch`], but the first buffer exists already.
    fn run(self, first: &CubeTensor, others: Vec<CubeTensor>, sizes: &[usize], groups: usize) {
        let (client, dtype) = (first.client.clone(), first.dtype);
        let bytes = |x: &CubeTensor| x.meta.shape().num_elements() * x.dtype.size();
        let all_bytes = bytes(first) + others.iter().map(bytes).sum::<usize>();
        LAUNCHES.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(all_bytes as u64, Ordering::Relaxed);
        let mut buffers = vec![first.handle.clone().binding()];
        buffers.extend(others.into_iter().map(|x| into_contiguous(x).handle.binding()));
        let kernel = ShaderKernel { shader: self, dtype };
        let groups = groups as u32;
        client.launch(
            Box::new(SourceKernel::new(kernel, CubeDim::new_1d(WORKGROUP_SIZE as u32))),
            CubeCount::Static(groups.min(MAX_GROUPS), groups.div_ceil(MAX_GROUPS), 1),
            // cubecl keeps the metadata of every launch by its content. A buffer of our own would be
            // written anew each time, and cubecl submits all queued work before it writes a buffer.
            KernelArguments::new().with_buffers(buffers).with_info(metadata(sizes)),
        );
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
        SourceTemplate::new(self.shader.source(self.dtype))
    }

    fn id(&self) -> KernelId {
        let Shader { name, constants, halves, .. } = self.shader.clone();
        KernelId::new::<Self>().info((name, constants, halves, self.dtype))
    }

    fn lang(&self) -> &'static str {
        "wgsl"
    }
}

/// Rewrites the line `alias NAME = f32;` of a shader for half precision.
fn with_halves(source: &str, name: &str) -> String {
    let (before, after) =
        source.split_once(&format!("alias {name} = f32;")).expect("the shader has the alias");
    format!("{before}alias {name} = f16;{after}")
}

/// All shaders but those of products.
fn plain() -> impl Iterator<Item = Shader> {
    #[cfg(feature = "train")]
    let training = backward::SHADERS.into_iter().chain(optimizer::SHADERS);
    #[cfg(not(feature = "train"))]
    let training = [];
    PLAIN.into_iter().chain(training)
}

/// Every shader with its name, in every variant: for checks that compile them.
pub fn shaders() -> Vec<(String, String)> {
    let all = plain().chain(product::shaders());
    let both = all.flat_map(|shader| [(shader.clone(), DType::F32), (shader, DType::F16)]);
    let text = |(shader, dtype): (Shader, DType)| {
        (format!("{} {dtype:?}", shader.variant()), shader.source(dtype))
    };
    both.map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed_linear::BLOCK;
    use crate::{global_response_norm, layer_norm};

    /// The values of all constants `name` in the text of a shader.
    fn constants(shader: &Shader, name: &str) -> Vec<f64> {
        let (source, start) = (shader.source(DType::F32), format!("const {name} = "));
        let values = source.lines().filter_map(|line| line.strip_prefix(&start)).map(|line| {
            let (value, _) = line.split_once(';').expect("a statement ends in a semicolon");
            value.trim_end_matches('u').parse().expect("a number")
        });
        values.collect()
    }

    #[test]
    fn constants_of_shaders_are_those_of_their_callers() {
        let one = |shader: &Shader, name: &str, value: f64| {
            assert_eq!(constants(shader, name), [value], "{name} in {}", shader.variant());
        };
        for shader in plain().chain(product::shaders()) {
            one(&shader, "WORKGROUP_SIZE", WORKGROUP_SIZE as f64);
        }
        one(&LAYER_NORM, "EPSILON", layer_norm::EPSILON);
        one(&LAYER_NORM, "ROWS", NORM_ROWS as f64);
        one(&CHANNEL_NORMS, "CHANNELS", CHANNELS as f64);
        one(&RESPONSE, "EPSILON", global_response_norm::EPSILON);
        one(&RESPONSE, "PIXELS", RESPONSE_PIXELS as f64);
        #[cfg(feature = "train")]
        for (shader, name, value) in backward::CONSTANTS {
            one(&shader, name, value);
        }
        one(&ATTENTION, "TILE", ATTENTION_TILE[0] as f64);
        one(&ATTENTION, "PART", ATTENTION_TILE[1] as f64 / 4.0);
        for (shader, tiling, packed) in product::variants() {
            one(&shader, "ADD_BIAS", product::BIAS as f64);
            one(&shader, "ADD_ADDEND", product::ADDEND as f64);
            one(&shader, "APPLY_GELU", product::GELU as f64);
            let [rows, columns] = tiling.tile();
            if tiling == Tiling::Direct {
                one(&shader, "TILE_ROWS", rows as f64);
                one(&shader, "TILE_QUADS", columns as f64 / 4.0);
            } else {
                assert_eq!(rows, columns);
                one(&shader, "QUADS", columns as f64 / 4.0);
            }
            if let Some(bits) = packed {
                one(&shader, "BITS", bits as f64);
                one(&shader, "BLOCK", BLOCK as f64 / 4.0);
            }
        }
    }

    #[test]
    fn two_sizes_are_one_word() {
        assert_eq!(metadata(&[1, 2, 3]).data, [1 | 2 << 32, 3]);
    }
}
