// The weight of a product that lies in memory as numbers: W [K, N].

@group(0) @binding(4) var<storage, read_write> weight: array<vec4<elem>>; // [K, N / 4]
@group(0) @binding(5) var<storage, read> sizes: Sizes;

struct Sizes {
    rows: u32, // M
    outputs: u32, // N / 4
    columns: u32, // K / 4
    epilogue: u32,
}

const BLOCK = 16u; // quads of columns that share a `Scaling`; any number would do

// Numbers need no scaling, so this is empty in effect.
struct Scaling {
    none: f32,
}

fn scaling(output: u32, block: u32) -> Scaling {
    return Scaling();
}

// The place of outputs 4·output to 4·output + 3 in a row.
fn weight_start(output: u32) -> u32 {
    return output;
}

// The rows of W by which columns 4·k to 4·k + 3 of x are multiplied, for the four outputs from `first` on.
fn weight_block(first: u32, k: u32, s: Scaling) -> mat4x4<f32> {
    let at = 4u * k * sizes.outputs + first;
    return mat4x4<f32>(
        vec4<f32>(weight[at]),
        vec4<f32>(weight[at + sizes.outputs]),
        vec4<f32>(weight[at + 2u * sizes.outputs]),
        vec4<f32>(weight[at + 3u * sizes.outputs]),
    );
}

// The block of W that an invocation reads, of `quads` quads of outputs: its output and its k. Neighbours
// read neighbouring outputs.
fn own_block(invocation: u32, quads: u32) -> vec2<u32> {
    return vec2<u32>(invocation % quads, invocation / quads);
}
