// The mean of a row of channels, and one divided by its deviation. This file follows one that binds `x` and `sizes`.
//
// Sixteen invocations share a row. Each computes the mean of its own channels and their squared distances from it in
// one pass. These are combined through workgroup memory.
// Source of the sums: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
// Sample Variances", 1979.

struct Sizes {
    rows: u32,
    quads: u32, // C / 4
}

const EPSILON = 1e-6; // matches `EPSILON` in layer_norm.rs
const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
const ROWS = 4u; // of one workgroup; matches `NORM_ROWS` in wgsl.rs
const LANES = WORKGROUP_SIZE / ROWS;

// Count, mean and sum of squared distances from the mean of an invocation's channels.
var<workgroup> parts: array<vec3<f32>, WORKGROUP_SIZE>;

// Count, mean and sum of squared distances of two sets of numbers together.
fn together(a: vec3<f32>, b: vec3<f32>) -> vec3<f32> {
    let count = a.x + b.x;
    if count == 0.0 {
        return a;
    }
    let apart = b.y - a.y;
    let share = b.x / count;
    return vec3<f32>(count, a.y + apart * share, a.z + b.z + apart * apart * a.x * share);
}

// The statistics of the row that begins at the quad `start`. All invocations of a workgroup must call this, because
// it has a barrier.
fn row_statistics(start: u32, quads: u32, invocation: u32) -> vec2<f32> {
    let lane = invocation % LANES;
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
        all = together(all, parts[invocation - lane + i]);
    }
    return vec2<f32>(all.y, inverseSqrt(all.z / all.x + EPSILON));
}
