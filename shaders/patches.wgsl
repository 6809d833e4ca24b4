// The windows that a dense convolution sees, with their pixels side by side. The picture is padded by (K - 1) / 2
// zeros.
//
// One invocation per output value: neighbouring invocations read neighbouring channels.
// Twin: `reference::patches` in crates/wuerstchen-kernels/src/patches.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> y: array<elem>; // [B, OH, OW, K·K·C]
@group(0) @binding(1) var<storage, read_write> x: array<elem>; // [B, H, W, C]
@group(0) @binding(2) var<storage, read> sizes: Sizes;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let channels = sizes.channels;
    let size = sizes.kernel;
    let window = size * size * channels;
    let index = (group.y * groups.x + group.x) * WORKGROUP_SIZE + lane;
    if index >= sizes.pictures * sizes.output_height * sizes.output_width * window {
        return;
    }
    let c = index % channels;
    let tap = index % window / channels;
    let pixel = index / window;
    let row = pixel / sizes.output_width % sizes.output_height;
    let picture = pixel / (sizes.output_width * sizes.output_height);
    let i = i32(row * sizes.stride + tap / size) - i32(size / 2u);
    let j = i32(pixel % sizes.output_width * sizes.stride + tap % size) - i32(size / 2u);
    var value = elem();
    if i >= 0 && i < i32(sizes.height) && j >= 0 && j < i32(sizes.width) {
        let at = (picture * sizes.height + u32(i)) * sizes.width + u32(j);
        value = x[at * channels + c];
    }
    y[index] = value;
}
