// Layer norm over the last axis, without affine parameters.
//
// A workgroup handles eight rows, eight invocations each: neighbours read neighbouring channels, and
// share their sums through workgroup memory.
// Twin: `reference::layer_norm` in crates/wuerstchen-kernels/src/layer_norm.rs.

alias elem = f32;

// Every tensor is read_write: burn may place two tensors in one GPU buffer, and WebGPU forbids
// binding one buffer both read-only and writable in a dispatch.
@group(0) @binding(0) var<storage, read_write> x: array<elem>; // [rows, C]
@group(0) @binding(1) var<storage, read_write> y: array<elem>; // [rows, C]
@group(0) @binding(2) var<storage, read> sizes: Sizes;

struct Sizes {
    rows: u32,
    channels: u32, // C
}

const EPSILON = 1e-6; // matches `EPSILON` in layer_norm.rs
const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
const ROWS = 8u; // matches `NORM_ROWS` in wgsl.rs
const LANES = WORKGROUP_SIZE / ROWS;

var<workgroup> sums: array<f32, WORKGROUP_SIZE>;
var<workgroup> squares: array<f32, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let channels = sizes.channels;
    let lane = invocation % LANES;
    let first = invocation - lane;
    // Invocations beyond the last row compute it again, so that all reach the barriers alike.
    let row = min((group.y * groups.x + group.x) * ROWS + invocation / LANES, sizes.rows - 1u);
    let start = row * channels;

    var sum = 0.0;
    for (var c = lane; c < channels; c += LANES) {
        sum += f32(x[start + c]);
    }
    sums[invocation] = sum;
    workgroupBarrier();
    var mean = 0.0;
    for (var i = 0u; i < LANES; i += 1u) {
        mean += sums[first + i];
    }
    mean /= f32(channels);

    var square = 0.0;
    for (var c = lane; c < channels; c += LANES) {
        let centred = f32(x[start + c]) - mean;
        square += centred * centred;
    }
    squares[invocation] = square;
    workgroupBarrier();
    var variance = 0.0;
    for (var i = 0u; i < LANES; i += 1u) {
        variance += squares[first + i];
    }
    let scale = inverseSqrt(variance / f32(channels) + EPSILON);

    for (var c = lane; c < channels; c += LANES) {
        y[start + c] = elem((f32(x[start + c]) - mean) * scale);
    }
}
