// Products of many rows: a workgroup makes a square tile of y, and reads x and W once for all of it.
//
// In every round each invocation copies a 4x4 block of x and one of W to workgroup memory, where a packed
// W becomes numbers once for the whole tile. Then each adds the products of what belongs to its outputs:
// four outputs of four rows, or twice as many of each in the large tile.

const QUADS = 16u; // quads along a side of the tile; this line is rewritten for the small tile, 8
const LARGE = QUADS == 16u;
const SIDE = 8u; // invocations along a side of the tile
const ROUND = WORKGROUP_SIZE / QUADS; // quads of columns of a round

var<workgroup> x_tile: array<vec4<f32>, 256>; // [columns of a round, quads of rows]
var<workgroup> w_tile: array<vec4<f32>, 256>; // [columns of a round, quads of outputs]

// Where a quad of rows lies among those of columns 4·k to 4·k + 3: neighbours write the columns of other
// k at the same time, to other banks of the memory.
fn place(quad: u32, k: u32) -> u32 {
    return quad ^ ((2u * k) & 7u);
}

// `sums` + the products of four rows of a column of x with four outputs of a row of W.
fn add_products(sums: mat4x4<f32>, x: vec4<f32>, w: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        fma(w, x.xxxx, sums[0]),
        fma(w, x.yyyy, sums[1]),
        fma(w, x.zzzz, sums[2]),
        fma(w, x.wwww, sums[3]),
    );
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let columns = sizes.columns;
    let tiles = (sizes.outputs + QUADS - 1u) / QUADS;
    let tile = group.y * groups.x + group.x;
    let first_row = tile / tiles * 4u * QUADS;
    let first_output = tile % tiles * QUADS;

    // The blocks that this invocation copies. At the edges the last row or output is copied again.
    let x_k = invocation % ROUND;
    let x_quad = invocation / ROUND;
    let offsets = vec4<u32>(0u, 1u, 2u, 3u);
    let x_at = min(first_row + 4u * x_quad + offsets, vec4<u32>(sizes.rows - 1u)) * columns;
    let x_to = 4u * x_k * QUADS + place(x_quad, x_k);
    let block = own_block(invocation, QUADS);
    let w_output = min(first_output + block.x, sizes.outputs - 1u);
    let w_to = 4u * block.y * QUADS + block.x;

    // The outputs of this invocation: those of a row are a column of these.
    let down = invocation / SIDE;
    let across = invocation % SIDE;
    var sums = mat4x4<f32>();
    var right = mat4x4<f32>();
    var lower = mat4x4<f32>();
    var lower_right = mat4x4<f32>();
    for (var k = 0u; k < columns; k += ROUND) {
        // Columns beyond the last one are zero in x, so that those of W may be anything.
        var rows = mat4x4<f32>();
        if k + x_k < columns {
            let at = x_at + k + x_k;
            rows = mat4x4<f32>(
                vec4<f32>(x[at.x]),
                vec4<f32>(x[at.y]),
                vec4<f32>(x[at.z]),
                vec4<f32>(x[at.w]),
            );
        }
        let w_k = min(k + block.y, columns - 1u);
        let w = weight_block(w_output, w_k, scaling(w_output, w_k / BLOCK));
        let x_columns = transpose(rows);
        x_tile[x_to] = x_columns[0];
        x_tile[x_to + QUADS] = x_columns[1];
        x_tile[x_to + 2u * QUADS] = x_columns[2];
        x_tile[x_to + 3u * QUADS] = x_columns[3];
        w_tile[w_to] = w[0];
        w_tile[w_to + QUADS] = w[1];
        w_tile[w_to + 2u * QUADS] = w[2];
        w_tile[w_to + 3u * QUADS] = w[3];
        workgroupBarrier();
        for (var q = 0u; q < ROUND; q += 1u) {
            var from_x = 4u * q * QUADS + place(down, q);
            var from_w = 4u * q * QUADS + across;
            for (var i = 0u; i < 4u; i += 1u) {
                let x_upper = x_tile[from_x];
                let w_left = w_tile[from_w];
                sums = add_products(sums, x_upper, w_left);
                if LARGE {
                    let x_lower = x_tile[from_x + SIDE];
                    let w_right = w_tile[from_w + SIDE];
                    right = add_products(right, x_upper, w_right);
                    lower = add_products(lower, x_lower, w_left);
                    lower_right = add_products(lower_right, x_lower, w_right);
                }
                from_x += QUADS;
                from_w += QUADS;
            }
        }
        workgroupBarrier();
    }
    let row = first_row + 4u * down;
    let output = first_output + across;
    put_block(row, output, sums);
    if LARGE {
        put_block(row, output + SIDE, right);
        put_block(row + 4u * SIDE, output, lower);
        put_block(row + 4u * SIDE, output + SIDE, lower_right);
    }
}
