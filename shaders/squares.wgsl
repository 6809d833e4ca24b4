// Sums of squares of up to five lists of numbers, added to those of lists before them.
//
// Every workgroup sums its own part of the numbers. The sum over the workgroups is left to the caller.
// Twin: `reference::sum_of_squares` in crates/wuerstchen-kernels/src/sum_of_squares.rs.

alias elem = f32;

@group(0) @binding(0) var<storage, read_write> sums: array<f32>; // [groups]
@group(0) @binding(1) var<storage, read_write> before: array<f32>; // [groups]
@group(0) @binding(2) var<storage, read_write> first: array<elem>;
@group(0) @binding(3) var<storage, read_write> second: array<elem>;
@group(0) @binding(4) var<storage, read_write> third: array<elem>;
@group(0) @binding(5) var<storage, read_write> fourth: array<elem>;
@group(0) @binding(6) var<storage, read_write> fifth: array<elem>;
@group(0) @binding(7) var<storage, read> sizes: Sizes;

struct Sizes {
    groups: u32,
    is_first: u32, // 1 where there are no lists before
    lengths: array<u32, 5>, // 0 of a list that does not count
}

const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs

var<workgroup> partial: array<f32, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = group.x * WORKGROUP_SIZE + lane;
    let step = sizes.groups * WORKGROUP_SIZE;
    var sum = 0.0;
    for (var i = start; i < sizes.lengths[0]; i += step) {
        sum = fma(f32(first[i]), f32(first[i]), sum);
    }
    for (var i = start; i < sizes.lengths[1]; i += step) {
        sum = fma(f32(second[i]), f32(second[i]), sum);
    }
    for (var i = start; i < sizes.lengths[2]; i += step) {
        sum = fma(f32(third[i]), f32(third[i]), sum);
    }
    for (var i = start; i < sizes.lengths[3]; i += step) {
        sum = fma(f32(fourth[i]), f32(fourth[i]), sum);
    }
    for (var i = start; i < sizes.lengths[4]; i += step) {
        sum = fma(f32(fifth[i]), f32(fifth[i]), sum);
    }
    partial[lane] = sum;
    workgroupBarrier();
    if lane == 0u {
        if sizes.is_first == 0u {
            sum += before[group.x];
        }
        for (var i = 1u; i < WORKGROUP_SIZE; i += 1u) {
            sum += partial[i];
        }
        sums[group.x] = sum;
    }
}
