// The sizes of a shader that moves a window over pictures. This file follows one that binds `sizes`.

struct Sizes {
    pictures: u32, // B
    height: u32, // H
    width: u32, // W
    channels: u32, // C
    output_height: u32, // OH
    output_width: u32, // OW
    kernel: u32, // K
    stride: u32,
    replicate: u32, // 1 to replicate the border, 0 to pad with zeros
}

const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
