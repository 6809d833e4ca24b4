// The weight of a product that is packed: W [N, K or more], in halves, or in blocks of 8 or 4 bits with a scale
// and a zero-point each. If W has more columns than x, only its first columns count.

@group(0) @binding(4) var<storage, read_write> values: array<u32>; // [N, value words]
@group(0) @binding(5) var<storage, read_write> scales: array<f32>; // [N, blocks]
@group(0) @binding(6) var<storage, read_write> zeros: array<u32>; // [N, zero words]
@group(0) @binding(7) var<storage, read> sizes: Sizes;

struct Sizes {
    rows: u32, // M
    outputs: u32, // N / 4
    columns: u32, // K / 4
    epilogue: u32,
    value_words: u32, // of a row of W
    blocks: u32,
    zero_words: u32,
}

const BITS = 4u; // of a stored value; this line is rewritten for 8 and 16 bits
const BLOCK = 16u; // quads of columns; a quarter of `BLOCK` in packed_linear.rs

// Scale and −scale·zero of a block of four rows of W.
struct Scaling {
    scale: vec4<f32>,
    shift: vec4<f32>,
}

fn zero_point(row: u32, block: u32) -> f32 {
    let lanes = 32u / BITS;
    let word = zeros[row * sizes.zero_words + block / lanes];
    return f32((word >> (BITS * (block % lanes))) & ((1u << BITS) - 1u));
}

fn scaling(output: u32, block: u32) -> Scaling {
    if BITS == 16u {
        return Scaling();
    }
    let row = 4u * output;
    let at = row * sizes.blocks + block;
    let scale = vec4<f32>(
        scales[at],
        scales[at + sizes.blocks],
        scales[at + 2u * sizes.blocks],
        scales[at + 3u * sizes.blocks],
    );
    let zero = vec4<f32>(
        zero_point(row, block),
        zero_point(row + 1u, block),
        zero_point(row + 2u, block),
        zero_point(row + 3u, block),
    );
    return Scaling(scale, -scale * zero);
}

// The values of a row of W, which begins at word `first`, in columns 4·k to 4·k + 3, not scaled.
fn unscaled(first: u32, k: u32) -> vec4<f32> {
    if BITS == 16u {
        let at = first + 2u * k;
        return vec4<f32>(unpack2x16float(values[at]), unpack2x16float(values[at + 1u]));
    }
    if BITS == 8u {
        return vec4<f32>((vec4<u32>(values[first + k]) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
    }
    let word = values[first + k / 2u] >> (16u * (k % 2u));
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u));
}

// The place where the values of outputs 4·output to 4·output + 3 begin.
fn weight_start(output: u32) -> u32 {
    return 4u * output * sizes.value_words;
}

// The numbers by which columns 4·k to 4·k + 3 of x are multiplied, for the four outputs that begin at `first`.
fn weight_block(first: u32, k: u32, s: Scaling) -> mat4x4<f32> {
    let w = transpose(mat4x4<f32>(
        unscaled(first, k),
        unscaled(first + sizes.value_words, k),
        unscaled(first + 2u * sizes.value_words, k),
        unscaled(first + 3u * sizes.value_words, k),
    ));
    if BITS == 16u {
        return w;
    }
    return mat4x4<f32>(
        fma(w[0], s.scale, s.shift),
        fma(w[1], s.scale, s.shift),
        fma(w[2], s.scale, s.shift),
        fma(w[3], s.scale, s.shift),
    );
}

// The block of W that an invocation reads, of `quads` quads of outputs: its output and its k. Neighbours
// read neighbouring columns of W.
fn own_block(invocation: u32, quads: u32) -> vec2<u32> {
    let columns = WORKGROUP_SIZE / quads;
    return vec2<u32>(invocation / columns, invocation % columns);
}
