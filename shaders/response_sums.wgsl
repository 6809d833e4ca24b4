// The sums that the gradients of global response norm need: for every channel of a picture, the sums over the pixels of
// x², of ∂y·x and of ∂y.
//
// One workgroup per picture and eight channels, as in `channel_norms.wgsl`.
// Twin: the gradient of `reference::global_response_norm` in crates/wuerstchen-kernels/src/global_response_norm.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> sums: array<f32>; // [B, 3, C]
@group(0) @binding(1) var<storage, read_write> x: array<elem>; // [B, H·W, C]
@group(0) @binding(2) var<storage, read_write> y_gradient: array<elem>; // [B, H·W, C]
@group(0) @binding(3) var<storage, read> sizes: Sizes;

struct Sizes {
    pictures: u32, // B
    pixels: u32, // H·W
    channels: u32, // C
}

const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
const CHANNELS = 8u; // of one workgroup; matches `CHANNELS` in wgsl.rs
const ROWS = WORKGROUP_SIZE / CHANNELS;

var<workgroup> partial: array<vec3<f32>, WORKGROUP_SIZE>;

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

    var sum = vec3<f32>();
    if exists {
        for (var pixel = lane / CHANNELS; pixel < pixels; pixel += ROWS) {
            let at = (picture * pixels + pixel) * channels + channel;
            let value = f32(x[at]);
            let gradient = f32(y_gradient[at]);
            sum += vec3<f32>(value * value, gradient * value, gradient);
        }
    }
    partial[lane] = sum;
    workgroupBarrier();
    if exists && lane < CHANNELS {
        for (var row = 1u; row < ROWS; row++) {
            sum += partial[row * CHANNELS + lane];
        }
        for (var which = 0u; which < 3u; which++) {
            sums[(picture * 3u + which) * channels + channel] = sum[which];
        }
    }
}
