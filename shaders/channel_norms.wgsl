// The L2 norm of every channel over the pixels of a picture, the reduction of global response norm.
//
// One invocation per picture and channel: neighbouring invocations read neighbouring channels.
// Twin: `reference::channel_norms` in crates/wuerstchen-kernels/src/global_response_norm.rs.

alias elem = f32;

// Every buffer is read_write: burn may place two tensors in one GPU buffer, and WebGPU forbids
// binding one buffer both read-only and writable in a dispatch.
@group(0) @binding(0) var<storage, read_write> x: array<elem>; // [B, H·W, C]
@group(0) @binding(1) var<storage, read_write> norms: array<elem>; // [B, C]
@group(0) @binding(2) var<storage, read_write> dims: array<u32>; // B, H·W, C

const BLOCK = 256u; // pixels in a part of the sum
const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pixels = dims[1];
    let channels = dims[2];
    let index = (group.y * groups.x + group.x) * WORKGROUP_SIZE + lane;
    if index >= dims[0] * channels {
        return;
    }
    let start = index / channels * pixels * channels + index % channels;
    // Sums of sums: one long sum of f32 would lose what it adds to.
    var sum = 0.0;
    for (var first = 0u; first < pixels; first += BLOCK) {
        var part = 0.0;
        for (var pixel = first; pixel < min(first + BLOCK, pixels); pixel++) {
            let value = f32(x[start + pixel * channels]);
            part += value * value;
        }
        sum += part;
    }
    norms[index] = elem(sqrt(sum));
}
