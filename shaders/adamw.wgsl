// AdamW's update of a parameter and its moments, in place.
//
// One invocation per value.
// Twin: `reference::adamw` in crates/wuerstchen-kernels/src/adamw.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> weight: array<elem>;
@group(0) @binding(1) var<storage, read_write> first_moment: array<elem>;
@group(0) @binding(2) var<storage, read_write> second_moment: array<elem>;
@group(0) @binding(3) var<storage, read_write> gradient: array<elem>;
@group(0) @binding(4) var<storage, read_write> settings: array<f32, 9>; // in the order of `settings` in adamw.rs
@group(0) @binding(5) var<storage, read> sizes: Sizes;

struct Sizes {
    values: u32,
}

const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (group.y * groups.x + group.x) * WORKGROUP_SIZE + lane;
    if index >= sizes.values {
        return;
    }
    let clipped = f32(gradient[index]) * settings[0];
    let first = f32(first_moment[index]) * settings[1] + clipped * settings[2];
    let second = f32(second_moment[index]) * settings[3] + clipped * clipped * settings[4];
    let root = sqrt(second) / settings[5] + settings[6];
    first_moment[index] = elem(first);
    second_moment[index] = elem(second);
    weight[index] = elem(f32(weight[index]) * settings[8] - first / root * settings[7]);
}
