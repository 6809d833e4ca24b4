// Matrix product y = f(x · W + bias + addend), where f is the GELU or the identity.
//
// A shader is this file, dense_weight.wgsl or packed_weight.wgsl, which read W, and direct_product.wgsl or
// tiled_product.wgsl, which multiply.
// Twin: `reference::linear` in crates/wuerstchen-kernels/src/linear.rs.

alias elem = f32;

// Every tensor is read_write: burn may place two tensors in one GPU buffer, and WebGPU forbids
// binding one buffer both read-only and writable in a dispatch.
@group(0) @binding(0) var<storage, read_write> y: array<vec4<elem>>; // [M, N / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<elem>>; // [M, K / 4]
@group(0) @binding(2) var<storage, read_write> bias: array<vec4<elem>>; // [N / 4]
@group(0) @binding(3) var<storage, read_write> addend: array<vec4<elem>>; // [M, N / 4]

const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs

// Bits of `sizes.epilogue`; they match `BIAS`, `ADDEND` and `GELU` in wgsl/product.rs.
const ADD_BIAS = 1u;
const ADD_ADDEND = 2u;
const APPLY_GELU = 4u;

// The error function, with an error below 5e-7. Source: Abramowitz and Stegun, 7.1.26.
fn error_function(x: vec4<f32>) -> vec4<f32> {
    let t = 1.0 / fma(abs(x), vec4<f32>(0.3275911), vec4<f32>(1.0));
    var sum = fma(t, vec4<f32>(1.061405429), vec4<f32>(-1.453152027));
    sum = fma(t, sum, vec4<f32>(1.421413741));
    sum = fma(t, sum, vec4<f32>(-0.284496736));
    sum = fma(t, sum, vec4<f32>(0.254829592));
    return sign(x) * (1.0 - t * sum * exp(-x * x));
}

// Writes four outputs of a row, if there is such a row.
fn put(row: u32, output: u32, sums: vec4<f32>) {
    if row >= sizes.rows {
        return;
    }
    let at = row * sizes.outputs + output;
    var value = sums;
    if (sizes.epilogue & ADD_BIAS) != 0u {
        value += vec4<f32>(bias[output]);
    }
    if (sizes.epilogue & ADD_ADDEND) != 0u {
        value += vec4<f32>(addend[at]);
    }
    if (sizes.epilogue & APPLY_GELU) != 0u {
        value *= 0.5 + 0.5 * error_function(value * 0.70710678);
    }
    y[at] = vec4<elem>(value);
}

// Writes four outputs of each of four rows, if there are such outputs.
fn put_block(row: u32, output: u32, sums: mat4x4<f32>) {
    if output < sizes.outputs {
        put(row, output, sums[0]);
        put(row + 1u, output, sums[1]);
        put(row + 2u, output, sums[2]);
        put(row + 3u, output, sums[3]);
    }
}
