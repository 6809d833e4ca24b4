// Layer norm over the last axis, without affine parameters.
//
// One workgroup per row: neighbouring invocations read neighbouring channels, and the two sums are
// reduced through workgroup memory.
// Twin: `reference::layer_norm` in crates/wuerstchen-kernels/src/layer_norm.rs.

alias elem = f32;

// Every buffer is read_write: burn may place two tensors in one GPU buffer, and WebGPU forbids
// binding one buffer both read-only and writable in a dispatch.
@group(0) @binding(0) var<storage, read_write> x: array<elem>; // [rows, C]
@group(0) @binding(1) var<storage, read_write> y: array<elem>; // [rows, C]
@group(0) @binding(2) var<storage, read_write> dims: array<u32>; // rows, C

const EPSILON = 1e-6; // matches `EPSILON` in layer_norm.rs
const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs

var<workgroup> partial: array<f32, WORKGROUP_SIZE>;

// The sum of `value` over the workgroup.
fn reduce(lane: u32, value: f32) -> f32 {
    partial[lane] = value;
    workgroupBarrier();
    for (var stride = WORKGROUP_SIZE / 2u; stride > 0u; stride /= 2u) {
        if lane < stride {
            partial[lane] += partial[lane + stride];
        }
        workgroupBarrier();
    }
    let sum = partial[0];
    workgroupBarrier(); // before the next reduction writes
    return sum;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let channels = dims[1];
    // Groups beyond the last row compute it again, so that all reach the barriers alike.
    let row = min(group.y * groups.x + group.x, dims[0] - 1u);
    let start = row * channels;

    var sum = 0.0;
    for (var c = lane; c < channels; c += WORKGROUP_SIZE) {
        sum += f32(x[start + c]);
    }
    let mean = reduce(lane, sum) / f32(channels);

    var squares = 0.0;
    for (var c = lane; c < channels; c += WORKGROUP_SIZE) {
        let centred = f32(x[start + c]) - mean;
        squares += centred * centred;
    }
    let scale = inverseSqrt(reduce(lane, squares) / f32(channels) + EPSILON);

    for (var c = lane; c < channels; c += WORKGROUP_SIZE) {
        y[start + c] = elem((f32(x[start + c]) - mean) * scale);
    }
}
