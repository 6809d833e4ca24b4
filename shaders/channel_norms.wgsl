// The L2 norm of every channel over the pixels of a picture, the reduction of global response norm.
//
// One workgroup per picture and eight channels: eight rows of invocations each sum every eighth
// pixel, then the eight sums are added. Neighbouring invocations read neighbouring channels.
// Twin: `reference::channel_norms` in crates/wuerstchen-kernels/src/global_response_norm.rs.

alias elem = f32;

// Every tensor is read_write: burn may place two tensors in one GPU buffer, and WebGPU forbids
// binding one buffer both read-only and writable in a dispatch.
@group(0) @binding(0) var<storage, read_write> norms: array<elem>; // [B, C]
@group(0) @binding(1) var<storage, read_write> x: array<elem>; // [B, H·W, C]
@group(0) @binding(2) var<storage, read> sizes: Sizes;

struct Sizes {
    pictures: u32, // B
    pixels: u32, // H·W
    channels: u32, // C
}

const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
const CHANNELS = 8u; // of one workgroup; matches `CHANNELS` in wgsl.rs
const ROWS = WORKGROUP_SIZE / CHANNELS;

var<workgroup> partial: array<f32, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pixels = sizes.pixels;
    let channels = sizes.channels;
    let blocks = (channels + CHANNELS - 1u) / CHANNELS;
    let index = group.y * groups.x + group.x;
    let picture = index / blocks;
    let channel = index % blocks * CHANNELS + lane % CHANNELS;
    let exists = picture < sizes.pictures && channel < channels;

    var sum = 0.0;
    if exists {
        for (var pixel = lane / CHANNELS; pixel < pixels; pixel += ROWS) {
            let value = f32(x[(picture * pixels + pixel) * channels + channel]);
            sum += value * value;
        }
    }
    partial[lane] = sum;
    workgroupBarrier();
    if exists && lane < CHANNELS {
        for (var row = 1u; row < ROWS; row++) {
            sum += partial[row * CHANNELS + lane];
        }
        norms[picture * channels + channel] = elem(sqrt(sum));
    }
}
