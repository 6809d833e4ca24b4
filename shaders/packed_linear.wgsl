// Product of a matrix and the transpose of a packed one: y = x · Wᵀ.
//
// One workgroup makes 32x32 outputs: both factors pass through workgroup memory in steps of 32
// columns, where W is unpacked once for 32 rows of x; an invocation sums 4x4 outputs in f32.
// Twin: `reference::packed_linear` in crates/wuerstchen-kernels/src/packed_linear.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> x: array<elem>; // [M, K]
@group(0) @binding(1) var<storage, read_write> values: array<u32>; // [N, value words]
@group(0) @binding(2) var<storage, read_write> scales: array<f32>; // [N, blocks]
@group(0) @binding(3) var<storage, read_write> zeros: array<u32>; // [N, zero words]
@group(0) @binding(4) var<storage, read_write> y: array<elem>; // [M, N]
// M, N, K, bits of a value, value words, blocks, zero words
@group(0) @binding(5) var<storage, read_write> dims: array<u32>;

const TILE = 32u; // matches `TILE` in wgsl.rs
const BLOCK = 64u; // matches `BLOCK` in packed_linear.rs
const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
const SIDE = 8u; // invocations along a side of the tile
const EACH = 4u; // outputs of an invocation along a side

var<workgroup> x_tile: array<f32, TILE * TILE>; // [K, M]
var<workgroup> w_tile: array<f32, TILE * TILE>; // [K, N]

// The unsigned number of `bits` at `index` of a word that holds 32 / bits.
fn lane(word: u32, index: u32, bits: u32) -> u32 {
    return (word >> (bits * (index % (32u / bits)))) & ((1u << bits) - 1u);
}

fn weight(row: u32, column: u32) -> f32 {
    let bits = dims[3];
    let lanes = 32u / bits;
    let word = values[row * dims[4] + column / lanes];
    if bits == 16u {
        let pair = unpack2x16float(word);
        return select(pair.x, pair.y, column % 2u == 1u);
    }
    let block = column / BLOCK;
    let zero = lane(zeros[row * dims[6] + block / lanes], block, bits);
    let steps = f32(lane(word, column, bits)) - f32(zero);
    return steps * scales[row * dims[5] + block];
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
    let tiles = (outputs + TILE - 1u) / TILE;
    // Groups beyond the last tile compute nothing that is kept, so that all reach the barriers alike.
    let tile = group.y * groups.x + group.x;
    let first_row = tile / tiles * TILE;
    let first_output = tile % tiles * TILE;
    let my_row = invocation / SIDE * EACH;
    let my_output = invocation % SIDE * EACH;

    var sums: array<vec4<f32>, EACH>;
    for (var start = 0u; start < columns; start += TILE) {
        for (var i = invocation; i < TILE * TILE; i += WORKGROUP_SIZE) {
            // Neighbouring invocations read neighbouring columns.
            let column = start + i % TILE;
            let place = i % TILE * TILE + i / TILE;
            let row = first_row + i / TILE;
            let output = first_output + i / TILE;
            var x_value = 0.0;
            var w_value = 0.0;
            if row < rows && column < columns {
                x_value = f32(x[row * columns + column]);
            }
            if output < outputs && column < columns {
                w_value = weight(output, column);
            }
            x_tile[place] = x_value;
            w_tile[place] = w_value;
        }
        workgroupBarrier();
        for (var k = 0u; k < TILE; k += 1u) {
            let at = k * TILE + my_output;
            let w = vec4<f32>(w_tile[at], w_tile[at + 1u], w_tile[at + 2u], w_tile[at + 3u]);
            for (var i = 0u; i < EACH; i += 1u) {
                sums[i] += x_tile[k * TILE + my_row + i] * w;
            }
        }
        workgroupBarrier();
    }

    for (var i = 0u; i < EACH; i += 1u) {
        for (var j = 0u; j < EACH; j += 1u) {
            let row = first_row + my_row + i;
            let output = first_output + my_output + j;
            if row < rows && output < outputs {
                y[row * outputs + output] = elem(sums[i][j]);
            }
        }
    }
}
