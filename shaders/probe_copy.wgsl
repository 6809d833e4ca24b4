// A copy, y = x, that measures the speed of a device's memory.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> y: array<vec4<elem>>;
@group(0) @binding(1) var<storage, read_write> x: array<vec4<elem>>;
@group(0) @binding(2) var<storage, read> sizes: Sizes;

struct Sizes {
    quads: u32,
}

const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let index = (group.y * groups.x + group.x) * WORKGROUP_SIZE + invocation;
    if index < sizes.quads {
        y[index] = x[index];
    }
}
