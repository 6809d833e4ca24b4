// The gradient of a depthwise convolution by its input.
//
// One invocation per input value, which adds up the gradients of the outputs that see it: neighbouring invocations
// read neighbouring channels. A pixel at a replicated border is also seen by outputs whose taps lie beyond the border.
// Twin: the gradient of `reference::depthwise_conv` in crates/wuerstchen-kernels/src/depthwise_conv.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> x_gradient: array<elem>; // [B, H, W, C]
@group(0) @binding(1) var<storage, read_write> y_gradient: array<elem>; // [B, OH, OW, C]
@group(0) @binding(2) var<storage, read_write> weight: array<elem>; // [C, K, K]
@group(0) @binding(3) var<storage, read> sizes: Sizes;

// The first and the last of `outputs` places along an axis that see the input at `place` of `inputs` through a tap.
// There are none if the first is greater than the last.
fn seen_by(place: i32, tap: i32, inputs: i32, outputs: i32) -> vec2<i32> {
    let stride = i32(sizes.stride);
    let replicate = sizes.replicate == 1u;
    // Output o sees the input at o·stride + tap − K / 2.
    let from_zero = place - tap + i32(sizes.kernel / 2u);
    var first = 0;
    if !(replicate && place == 0) {
        first = (max(from_zero, 0) + stride - 1) / stride;
    }
    var last = outputs - 1;
    if !(replicate && place == inputs - 1) {
        last = select(min(from_zero / stride, last), -1, from_zero < 0);
    }
    return vec2<i32>(first, last);
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let height = i32(sizes.height);
    let width = i32(sizes.width);
    let output_height = i32(sizes.output_height);
    let output_width = i32(sizes.output_width);
    let channels = sizes.channels;
    let size = i32(sizes.kernel);
    let index = (group.y * groups.x + group.x) * WORKGROUP_SIZE + lane;
    if index >= sizes.pictures * sizes.height * sizes.width * channels {
        return;
    }
    let c = index % channels;
    let column = i32(index / channels % sizes.width);
    let row = i32(index / (channels * sizes.width) % sizes.height);
    let picture = index / (channels * sizes.width * sizes.height);

    var sum = 0.0;
    for (var i = 0; i < size; i += 1) {
        let rows = seen_by(row, i, height, output_height);
        for (var j = 0; j < size; j += 1) {
            let columns = seen_by(column, j, width, output_width);
            let tap = f32(weight[c * sizes.kernel * sizes.kernel + u32(i * size + j)]);
            for (var y = rows.x; y <= rows.y; y += 1) {
                let line = (picture * sizes.output_height + u32(y)) * sizes.output_width;
                for (var x = columns.x; x <= columns.y; x += 1) {
                    sum += tap * f32(y_gradient[(line + u32(x)) * channels + c]);
                }
            }
        }
    }
    x_gradient[index] = elem(sum);
}
