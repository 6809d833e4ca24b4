// The gradients of a depthwise convolution by its weight and its bias, summed over parts of the output pixels. The sum
// over the parts is left to the caller.
//
// One invocation per part, tap and channel: neighbouring invocations read neighbouring channels. The bias follows the
// last tap.
// Twin: the gradient of `reference::depthwise_conv` in crates/wuerstchen-kernels/src/depthwise_conv.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> gradients: array<elem>; // [parts, C·K·K + C]
@group(0) @binding(1) var<storage, read_write> x: array<elem>; // [B, H, W, C]
@group(0) @binding(2) var<storage, read_write> y_gradient: array<elem>; // [B, OH, OW, C]
@group(0) @binding(3) var<storage, read> sizes: Sizes;

const PARTS = 64u; // most parts of the pixels; matches `PARTS` in wgsl/backward.rs

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let height = i32(sizes.height);
    let width = i32(sizes.width);
    let channels = sizes.channels;
    let taps = sizes.kernel * sizes.kernel;
    let replicate = sizes.replicate == 1u;
    let pixels = sizes.pictures * sizes.output_height * sizes.output_width;
    let parts = min(PARTS, pixels);
    let index = (group.y * groups.x + group.x) * WORKGROUP_SIZE + lane;
    if index >= parts * (taps + 1u) * channels {
        return;
    }
    let c = index % channels;
    let tap = index / channels % (taps + 1u);
    let part = index / (channels * (taps + 1u));
    let each = (pixels + parts - 1u) / parts;
    let down = i32(tap / sizes.kernel) - i32(sizes.kernel / 2u);
    let right = i32(tap % sizes.kernel) - i32(sizes.kernel / 2u);

    var sum = 0.0;
    for (var pixel = part * each; pixel < min((part + 1u) * each, pixels); pixel += 1u) {
        let gradient = f32(y_gradient[pixel * channels + c]);
        if tap == taps {
            sum += gradient;
            continue;
        }
        var i = i32(pixel / sizes.output_width % sizes.output_height * sizes.stride) + down;
        var j = i32(pixel % sizes.output_width * sizes.stride) + right;
        if replicate {
            i = clamp(i, 0, height - 1);
            j = clamp(j, 0, width - 1);
        }
        if i >= 0 && i < height && j >= 0 && j < width {
            let picture = pixel / (sizes.output_width * sizes.output_height);
            let at = (picture * sizes.height + u32(i)) * sizes.width + u32(j);
            sum += gradient * f32(x[at * channels + c]);
        }
    }
    let weights = channels * taps;
    let place = select(c * taps + tap, weights + c, tap == taps);
    gradients[part * (weights + channels) + place] = elem(sum);
}
