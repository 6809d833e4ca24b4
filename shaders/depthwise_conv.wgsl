// Depthwise convolution of channels-last features, padded by (K - 1) / 2.
//
// One invocation per output value: neighbouring invocations read neighbouring channels.
// Twin: `reference::depthwise_conv` in crates/wuerstchen-kernels/src/depthwise_conv.rs.

alias elem = f32;

// Every tensor is read_write: burn may place two tensors in one GPU buffer, and WebGPU forbids
// binding one buffer both read-only and writable in a dispatch.
@group(0) @binding(0) var<storage, read_write> y: array<elem>; // [B, OH, OW, C]
@group(0) @binding(1) var<storage, read_write> x: array<elem>; // [B, H, W, C]
@group(0) @binding(2) var<storage, read_write> weight: array<elem>; // [C, K, K]
@group(0) @binding(3) var<storage, read_write> bias: array<elem>; // [C]
@group(0) @binding(4) var<storage, read> sizes: Sizes;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let height = i32(sizes.height);
    let width = i32(sizes.width);
    let channels = sizes.channels;
    let size = sizes.kernel;
    let replicate = sizes.replicate == 1u;
    let index = (group.y * groups.x + group.x) * WORKGROUP_SIZE + lane;
    if index >= sizes.pictures * sizes.output_height * sizes.output_width * channels {
        return;
    }
    let c = index % channels;
    let column = index / channels % sizes.output_width;
    let row = index / (channels * sizes.output_width) % sizes.output_height;
    let picture = index / (channels * sizes.output_width * sizes.output_height);
    let top = i32(row * sizes.stride) - i32(size / 2u);
    let left = i32(column * sizes.stride) - i32(size / 2u);

    var sum = f32(bias[c]);
    for (var tap = 0u; tap < size * size; tap++) {
        var i = top + i32(tap / size);
        var j = left + i32(tap % size);
        if replicate {
            i = clamp(i, 0, height - 1);
            j = clamp(j, 0, width - 1);
        }
        if i >= 0 && i < height && j >= 0 && j < width {
            let pixel = (picture * sizes.height + u32(i)) * sizes.width + u32(j);
            sum += f32(weight[c * size * size + tap]) * f32(x[pixel * channels + c]);
        }
    }
    y[index] = elem(sum);
}
