// Multiply-adds that measure the speed of a device's arithmetic. Every invocation does 64 of them in registers in
// each round, in eight chains that do not wait for each other.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> y: array<elem>;
@group(0) @binding(1) var<storage, read_write> x: array<elem>; // a start and a factor below 1
@group(0) @binding(2) var<storage, read> sizes: Sizes;

struct Sizes {
    rounds: u32,
}

const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let factor = vec4<elem>(x[1]);
    var first = vec4<elem>(x[0], x[0] + x[1], x[0] * x[1], x[1]);
    var second = first + factor;
    for (var i = 0u; i < sizes.rounds; i += 1u) {
        first = fma(first, factor, factor);
        second = fma(second, factor, factor);
        first = fma(first, factor, factor);
        second = fma(second, factor, factor);
        first = fma(first, factor, factor);
        second = fma(second, factor, factor);
        first = fma(first, factor, factor);
        second = fma(second, factor, factor);
        first = fma(first, factor, factor);
        second = fma(second, factor, factor);
        first = fma(first, factor, factor);
        second = fma(second, factor, factor);
        first = fma(first, factor, factor);
        second = fma(second, factor, factor);
        first = fma(first, factor, factor);
        second = fma(second, factor, factor);
    }
    let sum = first + second;
    y[(group.y * groups.x + group.x) * WORKGROUP_SIZE + invocation] = sum.x + sum.y + sum.z + sum.w;
}
