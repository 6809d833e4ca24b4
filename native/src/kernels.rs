//! `wuerstchen bench --kernels`: the speed that a GPU reaches, and the speed of the shaders on it.

use std::cell::Cell;
use std::time::Instant;

use anyhow::{Result, anyhow};
use burn::tensor::{Device, Distribution, Tensor};
use serde_json::{Value, json};
use wuerstchen::kernels::linear::{Epilogue, linear};
use wuerstchen::kernels::{
    PackedMatrix, Packing, Planes, Products, Tiling, attention, choose_products, chosen_products,
    has_halves, layer_norm, packed_linear, runs_shaders,
};
use wuerstchen::pipeline::seconds_of;
use wuerstchen::speed::{Reach, reach};

use crate::devices::Found;
use crate::usage;

/// Rows, columns and outputs of products: those of the published stages C and B, and some of few rows.
const PRODUCTS: [[usize; 3]; 5] = [
    [32, 128, 512],
    [1152, 1536, 1536],
    [1152, 1536, 6144],
    [1152, 6144, 1536],
    [16384, 320, 1280],
];

/// Batch, queries, keys, heads and channels of a head: of the built-in model and of the published Stage C.
const ATTENTIONS: [[usize; 5]; 2] = [[2, 16, 36, 6, 32], [2, 576, 653, 24, 64]];

/// Seconds above which a kernel is left out, estimated with the speed of the slowest kernel so far.
const TOO_LONG: f64 = 0.5;

/// Times the shaders.
pub(crate) fn run(found: &Found) -> Result<()> {
    let device = &found.device;
    if !runs_shaders(device) {
        let reason = "--kernels times shaders: expected --device gpu, found";
        return Err(usage(&anyhow!("{reason} {}", found.name)));
    }
    let started = Instant::now();
    let clock = move || started.elapsed().as_secs_f64();
    let reach = futures_lite::future::block_on(reach(device, &clock))?;
    let slowest = Cell::new(reach.multiply_adds_per_sec);
    let bench = Kernels { device, clock: &clock, reach, slowest };
    let chosen = chosen_products(device);
    let products: Result<Vec<_>> =
        PRODUCTS.into_iter().map(|sides| bench.products(sides)).collect();
    choose_products(device, chosen);
    let attentions: Result<Vec<_>> = ATTENTIONS.into_iter().map(|s| bench.attention(s)).collect();
    let report = json!({
        "device": found.name,
        "reach": reach,
        "launch_secs": bench.launch()?,
        "products": products?.concat(),
        "attention": attentions?.into_iter().flatten().collect::<Vec<_>>(),
    });
    crate::print(&serde_json::to_string_pretty(&report)?)
}

struct Kernels<'a> {
    device: &'a Device,
    clock: &'a dyn Fn() -> f64,
    reach: Reach,
    /// Multiply-adds a second of the slowest kernel so far.
    slowest: Cell<f64>,
}

impl Kernels<'_> {
    /// Times a product with every kind of weight and every tiling, with tiles of f32 and of f16.
    fn products(&self, [rows, columns, outputs]: [usize; 3]) -> Result<Vec<Value>> {
        let work = rows * columns * outputs;
        if self.is_too_long(work) {
            return Ok(Vec::new());
        }
        let x = self.random([rows, columns]);
        let dense = self.random([columns, outputs]);
        let mut lines = Vec::new();
        let has_halves = has_halves(self.device);
        for products in Products::ALL.into_iter().filter(|one| has_halves || !one.halves) {
            choose_products(self.device, products);
            let mut line = |weight: &str, secs: f64| {
                lines.push(json!({
                    "rows": rows, "columns": columns, "outputs": outputs, "weight": weight,
                    "tiling": products.tiling.map(Tiling::name),
                    "tiles": if products.halves { "f16" } else { "f32" }, "secs": secs,
                    "share_of_reach": self.share(work, secs),
                }));
            };
            let product = || linear(x.clone(), dense.clone(), Epilogue::new(None));
            line("f32", self.seconds_of(&product)?);
            for (name, packing) in
                [("f16", Packing::F16), ("int8", Packing::I8), ("int4", Packing::I4)]
            {
                let weight = zeros(packing, [outputs, columns], self.device);
                let product = || packed_linear(x.clone(), &weight, Epilogue::new(None));
                line(name, self.seconds_of(&product)?);
            }
        }
        Ok(lines)
    }

    fn attention(&self, [batch, queries, keys, heads, size]: [usize; 5]) -> Result<Option<Value>> {
        let work = 2 * batch * queries * keys * heads * size;
        if self.is_too_long(work) {
            return Ok(None);
        }
        let tokens = |count| self.random([batch, count, heads * size]);
        let (q, k, v) = (tokens(queries), tokens(keys), tokens(keys));
        let attend = || attention(q.clone(), vec![k.clone()], vec![v.clone()], heads);
        let secs = self.seconds_of(&attend)?;
        Ok(Some(json!({
            "batch": batch, "queries": queries, "keys": keys, "heads": heads, "channels": size,
            "secs": secs, "share_of_reach": self.share(work, secs),
        })))
    }

    /// Seconds of a shader that has next to nothing to do.
    fn launch(&self) -> Result<f64> {
        let x = self.random([1, 4]);
        self.seconds_of(&|| layer_norm(x.clone()))
    }

    fn is_too_long(&self, work: usize) -> bool {
        work as f64 > TOO_LONG * self.slowest.get()
    }

    fn share(&self, work: usize, secs: f64) -> f64 {
        let per_sec = work as f64 / secs;
        self.slowest.set(self.slowest.get().min(per_sec));
        per_sec / self.reach.multiply_adds_per_sec
    }

    fn seconds_of<const D: usize>(&self, compute: &dyn Fn() -> Tensor<D>) -> Result<f64> {
        Ok(futures_lite::future::block_on(seconds_of(compute, self.clock))?)
    }

    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Default, self.device)
    }
}

/// A packed matrix of zeros.
fn zeros(packing: Packing, [rows, columns]: [usize; 2], device: &Device) -> PackedMatrix {
    let planes = Planes {
        values: vec![0; rows * packing.value_words(columns)],
        scales: vec![1.0; rows * packing.blocks(columns)],
        zeros: vec![0; rows * packing.zero_words(columns)],
    };
    PackedMatrix::new(packing, [rows, columns], planes, device)
}
