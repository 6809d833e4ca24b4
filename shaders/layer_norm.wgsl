// Layer norm over the last axis, without affine parameters.
//
// A workgroup handles four rows, 16 invocations each: neighbours read neighbouring quads of channels. A row is read
// twice: once by `row_statistics.wgsl`, once to scale it.
// Twin: `reference::layer_norm` in crates/wuerstchen-kernels/src/layer_norm.rs.

alias elem = f32;

// Every tensor is read_write: burn may place two tensors in one GPU buffer, and WebGPU forbids
// binding one buffer both read-only and writable in a dispatch.
@group(0) @binding(0) var<storage, read_write> y: array<vec4<elem>>; // [rows, C / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<elem>>; // [rows, C / 4]
@group(0) @binding(2) var<storage, read> sizes: Sizes;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let quads = sizes.quads;
    // Invocations beyond the last row compute it again, so that all reach the barrier alike.
    let row = min((group.y * groups.x + group.x) * ROWS + invocation / LANES, sizes.rows - 1u);
    let start = row * quads;
    let statistics = row_statistics(start, quads, invocation);
    for (var c = invocation % LANES; c < quads; c += LANES) {
        y[start + c] = vec4<elem>((vec4<f32>(x[start + c]) - statistics.x) * statistics.y);
    }
}
