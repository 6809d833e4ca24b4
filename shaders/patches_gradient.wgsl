// The gradient of the windows of a dense convolution by the picture.
//
// One invocation per value of the picture, which adds up the gradients of the windows that see it.
// Twin: the gradient of `reference::patches` in crates/wuerstchen-kernels/src/patches.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> x_gradient: array<elem>; // [B, H, W, C]
@group(0) @binding(1) var<storage, read_write> y_gradient: array<elem>; // [B, OH, OW, K·K·C]
@group(0) @binding(2) var<storage, read> sizes: Sizes;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let channels = sizes.channels;
    let size = sizes.kernel;
    let index = (group.y * groups.x + group.x) * WORKGROUP_SIZE + lane;
    if index >= sizes.pictures * sizes.height * sizes.width * channels {
        return;
    }
    let c = index % channels;
    let column = index / channels % sizes.width;
    let row = index / (channels * sizes.width) % sizes.height;
    let picture = index / (channels * sizes.width * sizes.height);

    var sum = 0.0;
    for (var tap = 0u; tap < size * size; tap += 1u) {
        // Window o sees the pixel at o·stride + tap − K / 2.
        let i = i32(row + size / 2u) - i32(tap / size);
        let j = i32(column + size / 2u) - i32(tap % size);
        let stride = i32(sizes.stride);
        if i < 0 || j < 0 || i % stride != 0 || j % stride != 0 {
            continue;
        }
        let y = u32(i / stride);
        let x = u32(j / stride);
        if y < sizes.output_height && x < sizes.output_width {
            let pixel = (picture * sizes.output_height + y) * sizes.output_width + x;
            sum += f32(y_gradient[(pixel * size * size + tap) * channels + c]);
        }
    }
    x_gradient[index] = elem(sum);
}
