// Layer norm over the last axis, without affine parameters.
//
// A workgroup handles four rows, 16 invocations each: neighbours read neighbouring quads of channels. Each
// takes the mean and the squared distances from it of its own channels at once, and they are put together
// through workgroup memory, so that a row is read twice: once for these, once to scale it.
// Source of the sums: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
// Sample Variances", 1979.
// Twin: `reference::layer_norm` in crates/wuerstchen-kernels/src/layer_norm.rs.

alias elem = f32;

// Every tensor is read_write: burn may place two tensors in one GPU buffer, and WebGPU forbids
// binding one buffer both read-only and writable in a dispatch.
@group(0) @binding(0) var<storage, read_write> y: array<vec4<elem>>; // [rows, C / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<elem>>; // [rows, C / 4]
@group(0) @binding(2) var<storage, read> sizes: Sizes;

struct Sizes {
    rows: u32,
    quads: u32, // C / 4
}

const EPSILON = 1e-6; // matches `EPSILON` in layer_norm.rs
const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
const ROWS = 4u; // matches `NORM_ROWS` in wgsl.rs
const LANES = WORKGROUP_SIZE / ROWS;

// Count, mean and sum of squared distances from the mean of an invocation's channels.
var<workgroup> parts: array<vec3<f32>, WORKGROUP_SIZE>;

// Those of two sets of numbers together.
fn together(a: vec3<f32>, b: vec3<f32>) -> vec3<f32> {
    let count = a.x + b.x;
    if count == 0.0 {
        return a;
    }
    let apart = b.y - a.y;
    let share = b.x / count;
    return vec3<f32>(count, a.y + apart * share, a.z + b.z + apart * apart * a.x * share);
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let quads = sizes.quads;
    let lane = invocation % LANES;
    let first = invocation - lane;
    // Invocations beyond the last row compute it again, so that all reach the barrier alike.
    let row = min((group.y * groups.x + group.x) * ROWS + invocation / LANES, sizes.rows - 1u);
    let start = row * quads;

    var own = vec3<f32>();
    for (var c = lane; c < quads; c += LANES) {
        let four = vec4<f32>(x[start + c]);
        let mean = dot(four, vec4<f32>(0.25));
        let centred = four - mean;
        own = together(own, vec3<f32>(4.0, mean, dot(centred, centred)));
    }
    parts[invocation] = own;
    workgroupBarrier();
    var all = vec3<f32>();
    for (var i = 0u; i < LANES; i += 1u) {
        all = together(all, parts[first + i]);
    }
    let scale = inverseSqrt(all.z / all.x + EPSILON);

    for (var c = lane; c < quads; c += LANES) {
        y[start + c] = vec4<elem>((vec4<f32>(x[start + c]) - all.y) * scale);
    }
}
