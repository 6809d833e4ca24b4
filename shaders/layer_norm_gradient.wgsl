// The gradient of layer norm: with x̂ = (x − μ)·s, ∂x = s·(∂y − mean of ∂y − x̂·mean of ∂y·x̂).
//
// A workgroup handles four rows, 16 invocations each. A row is read three times: by `row_statistics.wgsl`, for the two
// means, and to write its gradient.
// Twin: the gradient of `reference::layer_norm` in crates/wuerstchen-kernels/src/layer_norm.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> x_gradient: array<vec4<elem>>; // [rows, C / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<elem>>; // [rows, C / 4]
@group(0) @binding(2) var<storage, read_write> y_gradient: array<vec4<elem>>; // [rows, C / 4]
@group(0) @binding(3) var<storage, read> sizes: Sizes;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let quads = sizes.quads;
    let lane = invocation % LANES;
    // Invocations beyond the last row compute it again, so that all reach the barriers alike.
    let row = min((group.y * groups.x + group.x) * ROWS + invocation / LANES, sizes.rows - 1u);
    let start = row * quads;
    let statistics = row_statistics(start, quads, invocation);

    var sums = vec3<f32>();
    for (var c = lane; c < quads; c += LANES) {
        let gradient = vec4<f32>(y_gradient[start + c]);
        let normal = (vec4<f32>(x[start + c]) - statistics.x) * statistics.y;
        sums += vec3<f32>(dot(gradient, vec4<f32>(1.0)), dot(gradient, normal), 0.0);
    }
    workgroupBarrier();
    parts[invocation] = sums;
    workgroupBarrier();
    var means = vec3<f32>();
    for (var i = 0u; i < LANES; i += 1u) {
        means += parts[invocation - lane + i];
    }
    means /= f32(4u * quads);

    for (var c = lane; c < quads; c += LANES) {
        let gradient = vec4<f32>(y_gradient[start + c]);
        let normal = (vec4<f32>(x[start + c]) - statistics.x) * statistics.y;
        let own = statistics.y * (gradient - means.x - normal * means.y);
        x_gradient[start + c] = vec4<elem>(own);
    }
}
