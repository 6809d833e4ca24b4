// Products of few rows: every invocation reads x and W from memory.
//
// One invocation makes four outputs of eight rows. Neighbours read the same quads at the same time, so the quads come
// from caches. With few rows, the many invocations along the outputs keep a GPU busier than the tiles of
// tiled_product.wgsl.

const SIDE = 8u; // invocations along a side of the workgroup's tile
const TILE_ROWS = 64u; // matches `Tiling::tile` in wgsl/product.rs
const TILE_QUADS = 8u; // of outputs; matches it too

// `sum` + x · `w`, written as single multiply-adds: compilers turn the product of a matrix and a vector
// into multiplications, and add those.
fn multiply_add(w: mat4x4<f32>, x: vec4<elem>, sum: vec4<f32>) -> vec4<f32> {
    let v = vec4<f32>(x);
    return fma(w[3], v.wwww, fma(w[2], v.zzzz, fma(w[1], v.yyyy, fma(w[0], v.xxxx, sum))));
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let columns = sizes.columns;
    let tiles = (sizes.outputs + TILE_QUADS - 1u) / TILE_QUADS;
    let tile = group.y * groups.x + group.x;
    let row = tile / tiles * TILE_ROWS + invocation / SIDE * 8u;
    let output = tile % tiles * TILE_QUADS + invocation % SIDE;
    if row >= sizes.rows || output >= sizes.outputs {
        return;
    }
    // At the edge the last row is read again rather than one beyond the buffer.
    let offsets = vec4<u32>(0u, 1u, 2u, 3u);
    let last = vec4<u32>(sizes.rows - 1u);
    let upper_at = min(row + offsets, last) * columns;
    let lower_at = min(row + 4u + offsets, last) * columns;

    let w_from = weight_start(output);

    // The outputs of a row are a column of these.
    var upper = mat4x4<f32>();
    var lower = mat4x4<f32>();
    for (var start = 0u; start < columns; start += BLOCK) {
        let s = scaling(output, start / BLOCK);
        for (var k = start; k < min(start + BLOCK, columns); k += 1u) {
            let w = weight_block(w_from, k, s);
            upper[0] = multiply_add(w, x[upper_at.x + k], upper[0]);
            upper[1] = multiply_add(w, x[upper_at.y + k], upper[1]);
            upper[2] = multiply_add(w, x[upper_at.z + k], upper[2]);
            upper[3] = multiply_add(w, x[upper_at.w + k], upper[3]);
            lower[0] = multiply_add(w, x[lower_at.x + k], lower[0]);
            lower[1] = multiply_add(w, x[lower_at.y + k], lower[1]);
            lower[2] = multiply_add(w, x[lower_at.z + k], lower[2]);
            lower[3] = multiply_add(w, x[lower_at.w + k], lower[3]);
        }
    }
    put_block(row, output, upper);
    put_block(row + 4u, output, lower);
}
