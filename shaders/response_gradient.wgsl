// The gradient of global response norm by its input, given the sums of `response_sums.wgsl`.
//
// With norms n = √Σx², m = mean of n + ε and s = Σ∂y·x:
// ∂x = ∂y·(γ·n/m + 1) + x·∂n/n, where ∂n = γ·s/m − mean of (γ·s·n)/m².
// A workgroup handles 16 pixels of a picture. Each workgroup computes the two means again, which costs little beside
// its pixels.
// Twin: the gradient of `reference::global_response_norm` in crates/wuerstchen-kernels/src/global_response_norm.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> x_gradient: array<elem>; // [B, H·W, C]
@group(0) @binding(1) var<storage, read_write> x: array<elem>; // [B, H·W, C]
@group(0) @binding(2) var<storage, read_write> y_gradient: array<elem>; // [B, H·W, C]
@group(0) @binding(3) var<storage, read_write> sums: array<f32>; // [B, 3, C]
@group(0) @binding(4) var<storage, read_write> gamma: array<elem>; // [C]
@group(0) @binding(5) var<storage, read> sizes: Sizes;

struct Sizes {
    pictures: u32, // B
    pixels: u32, // H·W
    channels: u32, // C
}

const EPSILON = 1e-6; // matches `EPSILON` in global_response_norm.rs
const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
const PIXELS = 16u; // of one workgroup; matches `RESPONSE_PIXELS` in wgsl.rs

var<workgroup> partial: array<vec2<f32>, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let channels = sizes.channels;
    let index = group.y * groups.x + group.x;
    let parts = (sizes.pixels + PIXELS - 1u) / PIXELS;
    // Workgroups beyond the last one do its work again, so that all reach the barrier alike.
    let picture = min(index / parts, sizes.pictures - 1u);
    let squares = picture * 3u * channels;
    let inner = squares + channels;
    let first = index % parts * PIXELS;
    let last = min(first + PIXELS, sizes.pixels);

    // The sums of n and of γ·s·n.
    var own = vec2<f32>();
    for (var c = invocation; c < channels; c += WORKGROUP_SIZE) {
        let norm = sqrt(sums[squares + c]);
        own += vec2<f32>(norm, f32(gamma[c]) * sums[inner + c] * norm);
    }
    partial[invocation] = own;
    workgroupBarrier();
    var means = vec2<f32>();
    for (var i = 0u; i < WORKGROUP_SIZE; i += 1u) {
        means += partial[i];
    }
    means /= f32(channels);
    let mean = means.x + EPSILON;

    for (var c = invocation; c < channels; c += WORKGROUP_SIZE) {
        let norm = sqrt(sums[squares + c]);
        let factor = f32(gamma[c]) / mean;
        let scale = fma(factor, norm, 1.0);
        // A channel of zeros has no slope.
        let slope = select(0.0, (factor * sums[inner + c] - means.y / (mean * mean)) / norm, norm > 0.0);
        for (var pixel = first; pixel < last; pixel += 1u) {
            let at = (picture * sizes.pixels + pixel) * channels + c;
            x_gradient[at] = elem(fma(f32(y_gradient[at]), scale, f32(x[at]) * slope));
        }
    }
}
