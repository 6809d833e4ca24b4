//! Stage A decodes a large picture in the memory of a small one.

use burn::prelude::*;
use peak_alloc::PeakAlloc;
use wuerstchen::{PartConfig, VqganConfig};
use wuerstchen_tests::{error_of, values};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The largest amount of memory, in bytes, that `work` takes besides what is taken already.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let result = work();
    (result, MEMORY.peak_usage() - before)
}

/// The sizes of the built-in model; 1024 x 256 pixels.
#[test]
fn strips_take_the_memory_of_a_strip() {
    let device = Device::flex();
    let config = VqganConfig {
        in_channels: 3,
        out_channels: 3,
        up_down_scale_factor: 2,
        levels: 2,
        bottleneck_blocks: 3,
        embed_dim: 64,
        latent_channels: 4,
        num_vq_embeddings: 1024,
        scale_factor: 1.0,
    };
    let vqgan = config.init(&device);
    let latents: Tensor<4> = values([1, 4, 256, 64], 1, &device);
    // Weights are made when they are first used.
    let whole = vqgan.decode(latents.clone());
    let (whole_again, at_once) = peak(|| vqgan.decode(latents.clone()));
    drop(whole_again);
    let (strips, in_strips) = peak(|| vqgan.decode_strips(latents, 16).collect::<Vec<_>>());
    assert!(error_of(Tensor::cat(strips, 2), whole) < 1e-6);
    // 16 of 256 rows and those that the blocks keep, and the picture that both make.
    assert!(in_strips * 5 < at_once, "{in_strips} bytes in strips, {at_once} at once");
}
