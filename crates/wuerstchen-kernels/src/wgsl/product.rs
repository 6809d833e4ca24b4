//! Which of the product shaders multiplies, and its launch.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use burn::backend::DispatchDevice;
use burn::backend::wgpu::CubeTensor;
use burn::cubecl::Device as CubeDevice;
use burn::prelude::*;
use burn::tensor::DType;

use super::{Constant, Shader};

/// How a product is divided into workgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tiling {
    /// Every invocation reads x and the weight from memory (`direct_product.wgsl`).
    Direct,
    /// Tiles of 32 by 32 outputs through workgroup memory (`tiled_product.wgsl`).
    Small,
    /// Tiles of 64 by 64 outputs.
    Large,
}

impl Tiling {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Small, Self::Large];

    /// Its name in options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Small => "small",
            Self::Large => "large",
        }
    }

    /// Rows and columns of the output that one workgroup makes.
    pub(super) const fn tile(self) -> [usize; 2] {
        match self {
            Self::Direct => [64, 32],
            Self::Small => [32, 32],
            Self::Large => [64, 64],
        }
    }

    /// Workgroups of a product.
    const fn groups(self, rows: usize, outputs: usize) -> usize {
        let [height, width] = self.tile();
        rows.div_ceil(height) * outputs.div_ceil(width)
    }

    /// The tiling for a product of this size on a GPU on which no product has been timed.
    ///
    /// Large tiles read the least memory, but a GPU has many units, each of which needs workgroups of its own.
    pub const fn of_size(rows: usize, outputs: usize) -> Self {
        if rows <= FEW_ROWS {
            Self::Direct
        } else if Self::Large.groups(rows, outputs) >= MANY_GROUPS {
            Self::Large
        } else {
            Self::Small
        }
    }
}

/// Number of rows up to which a tile would be mostly empty.
const FEW_ROWS: usize = 16;

/// Number of workgroups that keep a large GPU busy.
const MANY_GROUPS: usize = 128;

/// How a device computes its products of many rows. Those of few rows have no tiles, and none of this changes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Products {
    /// How each is divided; `None` for [`Tiling::of_size`].
    pub tiling: Option<Tiling>,
    /// Whether tiles hold halves: the factors are rounded to f16, and their products are summed in f32. A factor above
    /// 65504 becomes infinite.
    pub halves: bool,
}

impl Products {
    /// All that name a tiling: without tiles, with tiles of f32, with tiles of halves.
    pub const ALL: [Self; 5] = [
        Self { tiling: Some(Tiling::Direct), halves: false },
        Self { tiling: Some(Tiling::Small), halves: false },
        Self { tiling: Some(Tiling::Large), halves: false },
        Self { tiling: Some(Tiling::Small), halves: true },
        Self { tiling: Some(Tiling::Large), halves: true },
    ];
}

/// The choices of devices that do not compute as [`Products::default`].
static CHOSEN: RwLock<Option<HashMap<CubeDevice, Products>>> = RwLock::new(None);

/// Makes a device compute its products like this from now on.
///
/// Has no effect on a device that does not run shaders.
///
/// # Panics
///
/// Panics if `products` has halves and the device's shaders have none ([`has_halves`]).
pub fn choose_products(device: &Device, products: Products) {
    assert!(!products.halves || has_halves(device), "the device's shaders have no halves");
    let Some(device) = cube(device) else { return };
    let mut chosen = CHOSEN.write().unwrap_or_else(PoisonError::into_inner);
    chosen.get_or_insert_default().insert(device, products);
}

/// How a device computes its products.
pub fn chosen_products(device: &Device) -> Products {
    cube(device).map(|device| chosen(&device)).unwrap_or_default()
}

/// Whether a device runs shaders, and they can have numbers in f16 (WebGPU's feature `shader-f16`).
pub fn has_halves(device: &Device) -> bool {
    cube(device).is_some() && device.supports_dtype(DType::F16)
}

fn chosen(device: &CubeDevice) -> Products {
    let chosen = CHOSEN.read().unwrap_or_else(PoisonError::into_inner);
    chosen.as_ref().and_then(|chosen| chosen.get(device).copied()).unwrap_or_default()
}

/// The device as tensors of shaders name it, if it runs any.
fn cube(device: &Device) -> Option<CubeDevice> {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => Some(device.clone()),
        #[allow(unreachable_patterns, reason = "a build may have no other device")]
        _ => None,
    }
}

/// How a device divides a product of this size, and whether its tiles hold halves.
fn tiling(device: &CubeDevice, rows: usize, outputs: usize) -> (Tiling, bool) {
    let by_size = Tiling::of_size(rows, outputs);
    if by_size == Tiling::Direct {
        return (by_size, false);
    }
    let Products { tiling, halves } = chosen(device);
    let tiling = tiling.unwrap_or(by_size);
    (tiling, halves && tiling != Tiling::Direct)
}

// Bits of the epilogue, which tell the shader what to do with the sums.
pub(super) const BIAS: usize = 1;
pub(super) const ADDEND: usize = 2;
pub(super) const GELU: usize = 4;

/// How the shader reads a packed weight.
pub(super) struct Layout {
    /// Bits of a value.
    pub(super) bits: usize,
    /// For the planes of values, of scales and of zero-points: the number of words, or of scales, in a row.
    pub(super) widths: [usize; 3],
}

/// The shader of a tiling, with or without tiles of halves, for a weight that is packed in `bits`, or for one that is
/// not packed.
fn shader(tiling: Tiling, halves: bool, bits: Option<usize>) -> Shader {
    let (body, quads) = match tiling {
        Tiling::Direct => (DIRECT, None),
        Tiling::Small => (TILED, Some(8)),
        Tiling::Large => (TILED, Some(16)),
    };
    let (name, weight) = match (bits.is_some(), tiling == Tiling::Direct) {
        (false, true) => ("direct dense product", DENSE),
        (false, false) => ("tiled dense product", DENSE),
        (true, true) => ("direct packed product", PACKED),
        (true, false) => ("tiled packed product", PACKED),
    };
    let constants = [Constant::of("QUADS", quads), Constant::of("BITS", bits)];
    Shader { name, parts: [PRODUCT, weight, body], constants, halves }
}

/// Every shader of products, its tiling, and the bits of the weight if it is packed.
pub(super) fn variants() -> impl Iterator<Item = (Shader, Tiling, Option<usize>)> {
    let weights = [None, Some(4), Some(8), Some(16)];
    Products::ALL.into_iter().flat_map(move |Products { tiling, halves }| {
        let tiling = tiling.expect("all name one");
        weights.map(|bits| (shader(tiling, halves, bits), tiling, bits))
    })
}

/// The shaders of [`variants`].
pub(super) fn shaders() -> impl Iterator<Item = Shader> {
    variants().map(|(shader, ..)| shader)
}

/// `x` `[M, K]` times a weight, then the epilogue whose bits `epilogue` has. The weight is one tensor `[K, N]` or
/// longer, or the planes of `[N, K]`, which `packed` describes. The inputs are x, the bias and the addend, then the
/// weight; without a bias or an addend, any tensors stand in their place.
pub(super) fn product(
    inputs: Vec<CubeTensor>,
    packed: Option<&Layout>,
    shape: Shape,
    epilogue: usize,
) -> CubeTensor {
    let x = &inputs[0];
    let ([rows, outputs], [_, columns]) = (shape.dims(), x.meta.shape().dims());
    let (tiling, halves) = tiling(&x.device, rows, outputs);
    let mut sizes = vec![rows, outputs / 4, columns / 4, epilogue];
    sizes.extend(packed.iter().flat_map(|layout| layout.widths));
    let shader = shader(tiling, halves, packed.map(|layout| layout.bits));
    shader.launch(inputs, shape, &sizes, tiling.groups(rows, outputs))
}

const PRODUCT: &str = include_str!("../../../../shaders/product.wgsl");
const DENSE: &str = include_str!("../../../../shaders/dense_weight.wgsl");
const PACKED: &str = include_str!("../../../../shaders/packed_weight.wgsl");
const DIRECT: &str = include_str!("../../../../shaders/direct_product.wgsl");
const TILED: &str = include_str!("../../../../shaders/tiled_product.wgsl");
