//! Attention on the CPU in WebAssembly: one task for each head of each sample.

use super::product::{BLOCK, PanelWidth, ROWS, Tiles, set_column};
use super::softmax_row;
use super::values::for_each_block;
#[cfg(target_family = "wasm")]
pub(crate) use tensors::attention;

/// The sizes of an attention.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) heads: usize,
    /// Channels of a head, `D`.
    pub(super) size: usize,
}

/// `softmax(q·kᵀ / √D)·v` in every head.
///
/// # Shapes
///
/// - q, output: `[batch, queries, heads · D]`
/// - k, v: `[batch, keys, heads · D]`
pub(super) fn attend(q: &[f32], k: &[f32], v: &[f32], sizes: Sizes) -> Vec<f32> {
    let Sizes { batch, queries, keys, heads, size } = sizes;
    let channels = heads * size;
    let width = pulp::Arch::new().dispatch(PanelWidth);
    let (padded_keys, padded_size) = (keys.next_multiple_of(width), size.next_multiple_of(width));
    // As many queries at a time as a product takes rows.
    let rows = (BLOCK / padded_keys).max(1).next_multiple_of(ROWS).min(queries);
    // What a task needs, because it must not allocate: its outputs, some queries and their weights, and both panels.
    let parts = [
        queries * padded_size,
        rows * size,
        rows * padded_keys,
        size * padded_keys,
        padded_keys * padded_size,
    ];
    let task = parts.iter().sum();
    let mut made = vec![0.0; batch * heads * task];
    let scale = (size as f32).powf(-0.5);
    for_each_block(
        &mut made,
        task,
        #[inline(always)]
        |i, made| {
            // The tokens of the sample, of which this head's channels count.
            let (sample, first) = (i / heads, i % heads * size);
            let k = &k[sample * keys * channels..][..keys * channels];
            let v = &v[sample * keys * channels..][..keys * channels];
            let q = &q[sample * queries * channels..][..queries * channels];
            let (y, made) = made.split_at_mut(parts[0]);
            let (some, made) = made.split_at_mut(parts[1]);
            let (weights, made) = made.split_at_mut(parts[2]);
            let (k_panels, v_panels) = made.split_at_mut(parts[3]);
            for (key, k) in k.chunks_exact(channels).enumerate() {
                set_column(k_panels, width, key, &k[first..][..size]);
            }
            for (key, v) in v.chunks_exact(channels).enumerate() {
                for (panel, v) in v[first..][..size].chunks(width).enumerate() {
                    v_panels[(panel * padded_keys + key) * width..][..v.len()].copy_from_slice(v);
                }
            }
            for (q, y) in q.chunks(rows * channels).zip(y.chunks_mut(rows * padded_size)) {
                let count = q.len() / channels;
                let some = &mut some[..count * size];
                for (some, q) in some.chunks_exact_mut(size).zip(q.chunks_exact(channels)) {
                    for (some, q) in some.iter_mut().zip(&q[first..][..size]) {
                        *some = q * scale;
                    }
                }
                let weights = &mut weights[..count * padded_keys];
                pulp::Arch::new().dispatch(Tiles {
                    x: some,
                    inputs: size,
                    panels: k_panels,
                    padded: padded_keys,
                    sums: weights,
                });
                for weights in weights.chunks_exact_mut(padded_keys) {
                    softmax_row(&mut weights[..keys]);
                }
                pulp::Arch::new().dispatch(Tiles {
                    x: weights,
                    inputs: padded_keys,
                    panels: v_panels,
                    padded: padded_size,
                    sums: y,
                });
            }
        },
    );
    let mut y = vec![0.0; batch * queries * channels];
    for (token, y) in y.chunks_exact_mut(channels).enumerate() {
        let (sample, query) = (token / queries, token % queries);
        for (head, y) in y.chunks_exact_mut(size).enumerate() {
            let made = &made[(sample * heads + head) * task + query * padded_size..];
            y.copy_from_slice(&made[..size]);
        }
    }
    y
}

/// The attention of burn's tensors.
#[cfg(target_family = "wasm")]
mod tensors {
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Backend, Dispatch, Flex, backend_extension};
    use burn::prelude::*;
    use burn_flex::FlexTensor;

    use super::{Sizes, attend};
    use crate::cpu::values::Values;

    /// As [`crate::attention`], of one pair of keys and values.
    pub(crate) fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize) -> Tensor<3> {
        let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
        Tensor::from_dispatch(Dispatch::cpu_attention(q, k, v, heads))
    }

    #[backend_extension(Flex)]
    pub(crate) trait CpuAttention: Backend {
        fn cpu_attention(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            heads: usize,
        ) -> FloatTensor<Self>;
    }

    impl CpuAttention for Flex {
        fn cpu_attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, heads: usize) -> FlexTensor {
            let [q, k, v] = [q, k, v].map(Values::of);
            let sizes = Sizes {
                batch: q.shape[0],
                queries: q.shape[1],
                keys: k.shape[1],
                heads,
                size: q.channels() / heads,
            };
            let y = attend(q.as_slice(), k.as_slice(), v.as_slice(), sizes);
            FlexTensor::from_data(TensorData::new(y, q.shape))
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::prelude::*;
    use burn::tensor::{Distribution, Tolerance};

    use super::*;

    /// One query and one key, sizes that fill no panel, and more queries than a task multiplies at a time.
    #[test]
    fn attention_is_that_of_its_definition() {
        let device = Device::flex();
        for [batch, queries, keys, heads, size] in
            [[1, 1, 1, 1, 1], [2, 16, 37, 4, 24], [3, 5, 20, 2, 33], [1, 300, 700, 2, 16]]
        {
            let channels = heads * size;
            let random = |tokens: usize| {
                let shape = [batch, tokens, channels];
                Tensor::<3>::random(shape, Distribution::Normal(0.0, 2.0), &device)
            };
            let (q, k, v) = (random(queries), random(keys), random(keys));
            let values = |x: &Tensor<3>| x.to_data().try_to_vec::<f32>().unwrap();
            let sizes = Sizes { batch, queries, keys, heads, size };
            let y = attend(&values(&q), &values(&k), &values(&v), sizes);
            let y = TensorData::new(y, [batch, queries, channels]);
            let expected = crate::attention::reference::attention(q, k, v, heads).into_data();
            y.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-5, 1e-5));
        }
    }
}
