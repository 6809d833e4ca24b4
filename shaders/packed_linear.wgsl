// Product of a matrix and the transpose of a packed one: y = x · Wᵀ. Where W has more columns than x,
// its first ones count.
//
// One invocation makes 8x4 outputs: a 4x4 block of W is unpacked once for eight rows of x. As in
// linear.wgsl, caches hold what neighbours share.
// Twin: `reference::packed_linear` in crates/wuerstchen-kernels/src/packed_linear.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> x: array<vec4<elem>>; // [M, K / 4]
@group(0) @binding(1) var<storage, read_write> values: array<u32>; // [N, value words]
@group(0) @binding(2) var<storage, read_write> scales: array<f32>; // [N, blocks]
@group(0) @binding(3) var<storage, read_write> zeros: array<u32>; // [N, zero words]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<elem>>; // [M, N / 4]
@group(0) @binding(5) var<storage, read> sizes: Sizes;

struct Sizes {
    rows: u32, // M
    outputs: u32, // N / 4
    columns: u32, // K / 4
    value_words: u32, // of a row of W
    blocks: u32,
    zero_words: u32,
}

const BITS = 4u; // of a stored value; this line is rewritten for 8 and 16 bits
const BLOCK = 16u; // quads of columns; a quarter of `BLOCK` in packed_linear.rs
const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
const SIDE = 8u; // invocations along a side of the workgroup's tile
const TILE_ROWS = 64u; // matches `PACKED_TILE` in wgsl.rs
const TILE_QUADS = 8u; // of outputs; matches it too

// The values of a row of W in columns 4·quad to 4·quad + 3, not scaled.
fn unscaled(row: u32, quad: u32) -> vec4<f32> {
    let first = row * sizes.value_words;
    if BITS == 16u {
        let at = first + 2u * quad;
        return vec4<f32>(unpack2x16float(values[at]), unpack2x16float(values[at + 1u]));
    }
    if BITS == 8u {
        return vec4<f32>((vec4<u32>(values[first + quad]) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
    }
    let word = values[first + quad / 2u] >> (16u * (quad % 2u));
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u));
}

// Scale and −scale·zero of a block of a row of W.
fn scaling(row: u32, block: u32) -> vec2<f32> {
    let lanes = 32u / BITS;
    let word = zeros[row * sizes.zero_words + block / lanes];
    let zero = (word >> (BITS * (block % lanes))) & ((1u << BITS) - 1u);
    let scale = scales[row * sizes.blocks + block];
    return vec2<f32>(scale, -scale * f32(zero));
}

// `sum` + `w` · `x`, written as single multiply-adds, as in linear.wgsl.
fn multiply_add(w: mat4x4<f32>, x: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return fma(w[3], x.wwww, fma(w[2], x.zzzz, fma(w[1], x.yyyy, fma(w[0], x.xxxx, sum))));
}

fn put(row: u32, output: u32, sums: vec4<f32>) {
    if row < sizes.rows {
        y[row * sizes.outputs + output] = vec4<elem>(sums);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let rows = sizes.rows;
    let outputs = sizes.outputs;
    let columns = sizes.columns;
    let tiles = (outputs + TILE_QUADS - 1u) / TILE_QUADS;
    let tile = group.y * groups.x + group.x;
    let row = tile / tiles * TILE_ROWS + invocation / SIDE * 8u;
    let output = tile % tiles * TILE_QUADS + invocation % SIDE;
    if row >= rows || output >= outputs {
        return;
    }
    // At the edge the last row is read again rather than one beyond the buffer.
    let offsets = vec4<u32>(0u, 1u, 2u, 3u);
    let last = vec4<u32>(rows - 1u);
    let at = min(row + offsets, last) * columns;
    let next_at = min(row + 4u + offsets, last) * columns;
    let w_row = 4u * output;

    // Scale and shift of four rows of W.
    var w_first = vec2<f32>(1.0, 0.0);
    var w_second = w_first;
    var w_third = w_first;
    var w_fourth = w_first;
    // The outputs of eight rows. Separate variables let compilers keep them in registers.
    var first: vec4<f32>;
    var second: vec4<f32>;
    var third: vec4<f32>;
    var fourth: vec4<f32>;
    var fifth: vec4<f32>;
    var sixth: vec4<f32>;
    var seventh: vec4<f32>;
    var eighth: vec4<f32>;
    for (var k = 0u; k < columns; k += 1u) {
        if BITS != 16u && k % BLOCK == 0u {
            let block = k / BLOCK;
            w_first = scaling(w_row, block);
            w_second = scaling(w_row + 1u, block);
            w_third = scaling(w_row + 2u, block);
            w_fourth = scaling(w_row + 3u, block);
        }
        // Column n: four columns of row n of W.
        let w = transpose(mat4x4<f32>(
            unscaled(w_row, k) * w_first.x + w_first.y,
            unscaled(w_row + 1u, k) * w_second.x + w_second.y,
            unscaled(w_row + 2u, k) * w_third.x + w_third.y,
            unscaled(w_row + 3u, k) * w_fourth.x + w_fourth.y,
        ));
        first = multiply_add(w, vec4<f32>(x[at.x + k]), first);
        second = multiply_add(w, vec4<f32>(x[at.y + k]), second);
        third = multiply_add(w, vec4<f32>(x[at.z + k]), third);
        fourth = multiply_add(w, vec4<f32>(x[at.w + k]), fourth);
        fifth = multiply_add(w, vec4<f32>(x[next_at.x + k]), fifth);
        sixth = multiply_add(w, vec4<f32>(x[next_at.y + k]), sixth);
        seventh = multiply_add(w, vec4<f32>(x[next_at.z + k]), seventh);
        eighth = multiply_add(w, vec4<f32>(x[next_at.w + k]), eighth);
    }

    put(row, output, first);
    put(row + 1u, output, second);
    put(row + 2u, output, third);
    put(row + 3u, output, fourth);
    put(row + 4u, output, fifth);
    put(row + 5u, output, sixth);
    put(row + 6u, output, seventh);
    put(row + 7u, output, eighth);
}
