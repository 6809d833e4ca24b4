// Matrix product y = x · W.
//
// One invocation makes 4x8 outputs, as two 4x4 matrices, from 4x4 blocks of x and W. The blocks come
// straight from the buffers: neighbours read the same ones at the same time, and a cache serves them
// faster than workgroup memory and its barriers would.
// Twin: `reference::linear` in crates/wuerstchen-kernels/src/linear.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> x: array<vec4<elem>>; // [M, K / 4]
@group(0) @binding(1) var<storage, read_write> weight: array<vec4<elem>>; // [K, N / 4]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<elem>>; // [M, N / 4]
@group(0) @binding(3) var<storage, read> sizes: Sizes;

struct Sizes {
    rows: u32, // M
    columns: u32, // K / 4
    outputs: u32, // N / 4
}

const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
const SIDE = 8u; // invocations along a side of the workgroup's tile
const TILE_ROWS = 32u; // matches `LINEAR_TILE` in wgsl.rs
const TILE_QUADS = 16u; // of outputs; matches it too

// Rows `first`, `first + step`, … of W: four outputs of four columns of x.
fn weights(first: u32, step: u32) -> mat4x4<f32> {
    return mat4x4<f32>(
        vec4<f32>(weight[first]),
        vec4<f32>(weight[first + step]),
        vec4<f32>(weight[first + 2u * step]),
        vec4<f32>(weight[first + 3u * step]),
    );
}

// `sum` + `w` · `x`, written as single multiply-adds: compilers turn the product of a matrix and a
// vector into multiplications, and add those.
fn multiply_add(w: mat4x4<f32>, x: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return fma(w[3], x.wwww, fma(w[2], x.zzzz, fma(w[1], x.yyyy, fma(w[0], x.xxxx, sum))));
}

fn put(row: u32, outputs: vec2<u32>, first: vec4<f32>, second: vec4<f32>) {
    if row < sizes.rows {
        y[row * sizes.outputs + outputs.x] = vec4<elem>(first);
        y[row * sizes.outputs + outputs.y] = vec4<elem>(second);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let rows = sizes.rows;
    let columns = sizes.columns;
    let outputs = sizes.outputs;
    let tiles = (outputs + TILE_QUADS - 1u) / TILE_QUADS;
    let tile = group.y * groups.x + group.x;
    let row = tile / tiles * TILE_ROWS + invocation / SIDE * 4u;
    let output = tile % tiles * TILE_QUADS + invocation % SIDE * 2u;
    if row >= rows || output >= outputs {
        return;
    }
    // At the edges the last row or output is computed again rather than read beyond the buffer.
    let last = rows - 1u;
    let at = vec4<u32>(row, min(row + 1u, last), min(row + 2u, last), min(row + 3u, last)) * columns;
    let next = min(output + 1u, outputs - 1u);

    // The outputs of four rows. Separate variables let compilers keep them in registers.
    var first: vec4<f32>;
    var second: vec4<f32>;
    var third: vec4<f32>;
    var fourth: vec4<f32>;
    var next_first: vec4<f32>;
    var next_second: vec4<f32>;
    var next_third: vec4<f32>;
    var next_fourth: vec4<f32>;
    for (var k = 0u; k < columns; k += 1u) {
        let w_row = 4u * k * outputs;
        let w = weights(w_row + output, outputs);
        let next_w = weights(w_row + next, outputs);
        let x_first = vec4<f32>(x[at.x + k]);
        let x_second = vec4<f32>(x[at.y + k]);
        let x_third = vec4<f32>(x[at.z + k]);
        let x_fourth = vec4<f32>(x[at.w + k]);
        first = multiply_add(w, x_first, first);
        second = multiply_add(w, x_second, second);
        third = multiply_add(w, x_third, third);
        fourth = multiply_add(w, x_fourth, fourth);
        next_first = multiply_add(next_w, x_first, next_first);
        next_second = multiply_add(next_w, x_second, next_second);
        next_third = multiply_add(next_w, x_third, next_third);
        next_fourth = multiply_add(next_w, x_fourth, next_fourth);
    }

    put(row, vec2<u32>(output, next), first, next_first);
    put(row + 1u, vec2<u32>(output, next), second, next_second);
    put(row + 2u, vec2<u32>(output, next), third, next_third);
    put(row + 3u, vec2<u32>(output, next), fourth, next_fourth);
}
