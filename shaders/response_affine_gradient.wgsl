// The gradients of global response norm by its scale and its shift, given the sums of `response_sums.wgsl`.
//
// With norms n = √Σx² and m = mean of n + ε, summed over the pictures: ∂γ = n/m·Σ∂y·x and ∂β = Σ∂y.
// One invocation per channel; each workgroup computes the mean of every picture's norms again.
// Twin: the gradient of `reference::global_response_norm` in crates/wuerstchen-kernels/src/global_response_norm.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> gradients: array<elem>; // [2, C]: of the scale, of the shift
@group(0) @binding(1) var<storage, read_write> sums: array<f32>; // [B, 3, C]
@group(0) @binding(2) var<storage, read> sizes: Sizes;

struct Sizes {
    pictures: u32, // B
    channels: u32, // C
}

const EPSILON = 1e-6; // matches `EPSILON` in global_response_norm.rs
const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs

var<workgroup> partial: array<f32, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let channels = sizes.channels;
    let channel = (group.y * groups.x + group.x) * WORKGROUP_SIZE + invocation;

    var gradient = vec2<f32>();
    for (var picture = 0u; picture < sizes.pictures; picture += 1u) {
        let squares = picture * 3u * channels;
        var own = 0.0;
        for (var c = invocation; c < channels; c += WORKGROUP_SIZE) {
            own += sqrt(sums[squares + c]);
        }
        partial[invocation] = own;
        workgroupBarrier();
        var sum = 0.0;
        for (var i = 0u; i < WORKGROUP_SIZE; i += 1u) {
            sum += partial[i];
        }
        workgroupBarrier();
        let mean = sum / f32(channels) + EPSILON;
        if channel < channels {
            let at = squares + channel;
            let norm = sqrt(sums[at]);
            gradient += vec2<f32>(norm / mean * sums[at + channels], sums[at + 2u * channels]);
        }
    }
    if channel < channels {
        gradients[channel] = elem(gradient.x);
        gradients[channels + channel] = elem(gradient.y);
    }
}
