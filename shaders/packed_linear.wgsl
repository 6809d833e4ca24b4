// Product of a matrix and the transpose of a packed one: y = x · Wᵀ. Where W has more columns than x,
// its first ones count.
//
// One invocation makes 8x4 outputs, as two 4x4 matrices: a 4x4 block of W is unpacked once for eight
// rows of x. As in linear.wgsl, caches hold what neighbours share.
// Twin: `reference::packed_linear` in crates/wuerstchen-kernels/src/packed_linear.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> x: array<vec4<elem>>; // [M, K / 4]
@group(0) @binding(1) var<storage, read_write> values: array<u32>; // [N, value words]
@group(0) @binding(2) var<storage, read_write> scales: array<f32>; // [N, blocks]
@group(0) @binding(3) var<storage, read_write> zeros: array<u32>; // [N, zero words]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<elem>>; // [M, N / 4]
// M, N / 4, K / 4, bits of a value, value words, blocks, zero words
@group(0) @binding(5) var<storage, read_write> dims: array<u32>;

const BLOCK = 16u; // quads of columns; a quarter of `BLOCK` in packed_linear.rs
const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
const SIDE = 8u; // invocations along a side of the workgroup's tile
const TILE_ROWS = 64u; // matches `PACKED_TILE` in wgsl.rs
const TILE_QUADS = 8u; // of outputs; matches it too

// The values of a row of W in columns 4·quad to 4·quad + 3, not scaled.
fn unscaled(row: u32, quad: u32, bits: u32) -> vec4<f32> {
    let first = row * dims[4];
    if bits == 16u {
        let at = first + 2u * quad;
        return vec4<f32>(unpack2x16float(values[at]), unpack2x16float(values[at + 1u]));
    }
    if bits == 8u {
        return vec4<f32>((vec4<u32>(values[first + quad]) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
    }
    let word = values[first + quad / 2u] >> (16u * (quad % 2u));
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u));
}

// Scale and −scale·zero of a block of a row of W.
fn scaling(row: u32, block: u32, bits: u32) -> vec2<f32> {
    let lanes = 32u / bits;
    let word = zeros[row * dims[6] + block / lanes];
    let zero = (word >> (bits * (block % lanes))) & ((1u << bits) - 1u);
    let scale = scales[row * dims[5] + block];
    return vec2<f32>(scale, -scale * f32(zero));
}

fn rows_of_x(at: vec4<u32>) -> mat4x4<f32> {
    return mat4x4<f32>(vec4<f32>(x[at.x]), vec4<f32>(x[at.y]), vec4<f32>(x[at.z]), vec4<f32>(x[at.w]));
}

fn put(row: u32, output: u32, sums: vec4<f32>) {
    if row < dims[0] {
        y[row * dims[1] + output] = vec4<elem>(sums);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let rows = dims[0];
    let outputs = dims[1];
    let columns = dims[2];
    let bits = dims[3];
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

    var first = vec2<f32>(1.0, 0.0);
    var second = first;
    var third = first;
    var fourth = first;
    // Column r: the outputs of row r.
    var sums: mat4x4<f32>;
    var next_sums: mat4x4<f32>;
    for (var k = 0u; k < columns; k += 1u) {
        if bits != 16u && k % BLOCK == 0u {
            let block = k / BLOCK;
            first = scaling(w_row, block, bits);
            second = scaling(w_row + 1u, block, bits);
            third = scaling(w_row + 2u, block, bits);
            fourth = scaling(w_row + 3u, block, bits);
        }
        // Column n: four columns of row n of W.
        let w = transpose(mat4x4<f32>(
            unscaled(w_row, k, bits) * first.x + first.y,
            unscaled(w_row + 1u, k, bits) * second.x + second.y,
            unscaled(w_row + 2u, k, bits) * third.x + third.y,
            unscaled(w_row + 3u, k, bits) * fourth.x + fourth.y,
        ));
        sums += w * rows_of_x(at + k);
        next_sums += w * rows_of_x(next_at + k);
    }

    // Indices known in advance let compilers keep the sums in registers.
    put(row, output, sums[0]);
    put(row + 1u, output, sums[1]);
    put(row + 2u, output, sums[2]);
    put(row + 3u, output, sums[3]);
    put(row + 4u, output, next_sums[0]);
    put(row + 5u, output, next_sums[1]);
    put(row + 6u, output, next_sums[2]);
    put(row + 7u, output, next_sums[3]);
}
