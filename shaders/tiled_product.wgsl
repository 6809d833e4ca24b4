// Products of many rows: a workgroup makes a square tile of y, and reads x and W once for all of it.
//
// In every round, each invocation copies a 4x4 block of x and one of W to workgroup memory; a packed W becomes
// numbers only once for the whole tile. Then each invocation adds the products for its own outputs: four outputs
// of four rows, or twice as many of each in the large tile.

const QUADS = 16u; // quads along a side of the tile; this line is rewritten for the small tile, 8
const LARGE = QUADS == 16u;
const SIDE = 8u; // invocations along a side of the tile

alias factor = f32; // a number of a tile; this line is rewritten for tiles of halves
const ROUND = WORKGROUP_SIZE / QUADS; // quads of columns of a round; divides `BLOCK`

// The first columns of all quads come first, then the second columns, and so on. So a browser can check one
// index for all four columns of a quad.
alias Tile = array<array<vec4<factor>, WORKGROUP_SIZE>, 4>;
var<workgroup> x_tile: Tile; // [column of a quad, quads of columns of a round, quads of rows]
var<workgroup> w_tile: Tile; // [column of a quad, quads of columns of a round, quads of outputs]

// The place of a quad of rows among those of columns 4·k to 4·k + 3. Neighbours write columns of different k at
// the same time, so this spreads them over the banks of the memory.
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

// The sums of an invocation's outputs; the outputs of a row are a column. The small tile uses only the first sums.
struct Sums {
    upper_left: mat4x4<f32>,
    upper_right: mat4x4<f32>,
    lower_left: mat4x4<f32>,
    lower_right: mat4x4<f32>,
}

// `sums` + the products of column `i` of a quad of columns.
fn add_column(sums: Sums, i: u32, from_x: u32, from_w: u32) -> Sums {
    let x_upper = vec4<f32>(x_tile[i][from_x]);
    let w_left = vec4<f32>(w_tile[i][from_w]);
    let upper_left = add_products(sums.upper_left, x_upper, w_left);
    if !LARGE {
        return Sums(upper_left, sums.upper_right, sums.lower_left, sums.lower_right);
    }
    let x_lower = vec4<f32>(x_tile[i][from_x + SIDE]);
    let w_right = vec4<f32>(w_tile[i][from_w + SIDE]);
    return Sums(
        upper_left,
        add_products(sums.upper_right, x_upper, w_right),
        add_products(sums.lower_left, x_lower, w_left),
        add_products(sums.lower_right, x_lower, w_right),
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

    // The blocks that this invocation copies. At the edges the last row, output or columns
    // are copied again.
    let x_k = invocation % ROUND;
    let x_quad = invocation / ROUND;
    let offsets = vec4<u32>(0u, 1u, 2u, 3u);
    let x_at = min(first_row + 4u * x_quad + offsets, vec4<u32>(sizes.rows - 1u)) * columns;
    let x_to = x_k * QUADS + place(x_quad, x_k);
    let block = own_block(invocation, QUADS);
    let w_output = min(first_output + block.x, sizes.outputs - 1u);
    let w_from = weight_start(w_output);
    let w_to = block.y * QUADS + block.x;

    let down = invocation / SIDE;
    let across = invocation % SIDE;
    var sums = Sums();
    for (var start = 0u; start < columns; start += BLOCK) {
        let s = scaling(w_output, start / BLOCK);
        for (var k = start; k < min(start + BLOCK, columns); k += ROUND) {
            let at = x_at + min(k + x_k, columns - 1u);
            let x_columns = transpose(mat4x4<f32>(
                vec4<f32>(x[at.x]),
                vec4<f32>(x[at.y]),
                vec4<f32>(x[at.z]),
                vec4<f32>(x[at.w]),
            ));
            let w = weight_block(w_from, min(k + block.y, columns - 1u), s);
            x_tile[0][x_to] = vec4<factor>(x_columns[0]);
            x_tile[1][x_to] = vec4<factor>(x_columns[1]);
            x_tile[2][x_to] = vec4<factor>(x_columns[2]);
            x_tile[3][x_to] = vec4<factor>(x_columns[3]);
            w_tile[0][w_to] = vec4<factor>(w[0]);
            w_tile[1][w_to] = vec4<factor>(w[1]);
            w_tile[2][w_to] = vec4<factor>(w[2]);
            w_tile[3][w_to] = vec4<factor>(w[3]);
            workgroupBarrier();
            for (var q = 0u; q < min(ROUND, columns - k); q += 1u) {
                let from_x = q * QUADS + place(down, q);
                let from_w = q * QUADS + across;
                // Not a loop: naga makes every loop count its rounds, and a compiler could not mix these four.
                sums = add_column(sums, 0u, from_x, from_w);
                sums = add_column(sums, 1u, from_x, from_w);
                sums = add_column(sums, 2u, from_x, from_w);
                sums = add_column(sums, 3u, from_x, from_w);
            }
            workgroupBarrier();
        }
    }
    let row = first_row + 4u * down;
    let output = first_output + across;
    put_block(row, output, sums.upper_left);
    if LARGE {
        put_block(row, output + SIDE, sums.upper_right);
        put_block(row + 4u * SIDE, output, sums.lower_left);
        put_block(row + 4u * SIDE, output + SIDE, sums.lower_right);
    }
}
