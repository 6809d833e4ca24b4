// Global response norm, given the L2 norm of every channel: y = x·(γ·n / (mean of n + ε) + 1) + β.
//
// A workgroup handles 16 pixels of a picture. Each workgroup computes the mean of all norms again, which costs
// little beside its pixels.
// Twin: `reference::response` in crates/wuerstchen-kernels/src/global_response_norm.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> y: array<vec4<elem>>; // [B, H·W, C / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<elem>>; // [B, H·W, C / 4]
@group(0) @binding(2) var<storage, read_write> norms: array<vec4<elem>>; // [B, C / 4]
@group(0) @binding(3) var<storage, read_write> gamma: array<vec4<elem>>; // [C / 4]
@group(0) @binding(4) var<storage, read_write> beta: array<vec4<elem>>; // [C / 4]
@group(0) @binding(5) var<storage, read> sizes: Sizes;

struct Sizes {
    pictures: u32, // B
    pixels: u32, // H·W
    quads: u32, // C / 4
}

const EPSILON = 1e-6; // matches `EPSILON` in global_response_norm.rs
const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
const PIXELS = 16u; // of one workgroup; matches `RESPONSE_PIXELS` in wgsl.rs

var<workgroup> partial: array<f32, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let quads = sizes.quads;
    let index = group.y * groups.x + group.x;
    let parts = (sizes.pixels + PIXELS - 1u) / PIXELS;
    // Workgroups beyond the last one do its work again, so that all reach the barrier alike.
    let picture = min(index / parts, sizes.pictures - 1u);
    let first = index % parts * PIXELS;
    let last = min(first + PIXELS, sizes.pixels);

    var sum = 0.0;
    for (var c = invocation; c < quads; c += WORKGROUP_SIZE) {
        sum += dot(vec4<f32>(norms[picture * quads + c]), vec4<f32>(1.0));
    }
    partial[invocation] = sum;
    workgroupBarrier();
    var mean = 0.0;
    for (var i = 0u; i < WORKGROUP_SIZE; i += 1u) {
        mean += partial[i];
    }
    mean = mean / f32(4u * quads) + EPSILON;

    for (var c = invocation; c < quads; c += WORKGROUP_SIZE) {
        let scale = fma(vec4<f32>(norms[picture * quads + c]) / mean, vec4<f32>(gamma[c]), vec4<f32>(1.0));
        let shift = vec4<f32>(beta[c]);
        for (var pixel = first; pixel < last; pixel += 1u) {
            let at = (picture * sizes.pixels + pixel) * quads + c;
            y[at] = vec4<elem>(fma(vec4<f32>(x[at]), scale, shift));
        }
    }
}
