//! Attention of several heads.

use burn::prelude::*;

/// `softmax(q·kᵀ / √D)·v` in every head of `D = C / heads` channels.
///
/// Keys and values may lie in several tensors, whose tokens count as if they were in one tensor. On wgpu devices
/// the attention weights are never written to memory (`shaders/attention.wgsl`).
///
/// # Shapes
///
/// - q, output: `[B, Q, C]`
/// - keys, values: one or more of `[B, K, C]`, with the same `K` in each pair
///
/// # Panics
///
/// Panics if the shapes differ otherwise, or the heads do not divide the channels.
pub fn attention(
    q: Tensor<3>,
    keys: Vec<Tensor<3>>,
    values: Vec<Tensor<3>>,
    heads: usize,
) -> Tensor<3> {
    let [batch, _, channels] = q.dims();
    assert!(channels.is_multiple_of(heads), "{heads} heads do not divide {channels}");
    assert!(!keys.is_empty() && keys.len() == values.len(), "every key has a value");
    for (k, v) in keys.iter().zip(&values) {
        let [_, tokens, _] = k.dims();
        assert_shape!(k, [batch, tokens, channels]);
        assert_shape!(v, [batch, tokens, channels]);
    }
    #[cfg(feature = "gpu")]
    if has_kernel(&q.device(), channels, heads) {
        // The shader reads up to two pairs where they lie, so only further ones are copied together.
        let mut first = [keys, values];
        let more = first.each_mut().map(|tensors| tensors.split_off(1));
        let more = (!more[0].is_empty()).then(|| more.map(joined));
        return crate::wgsl::attention(q, first.map(joined), more, heads);
    }
    let (keys, values) = (joined(keys), joined(values));
    #[cfg(all(feature = "cpu", target_family = "wasm"))]
    if crate::cpu::can_multiply(&q) {
        return crate::cpu::attention(q, keys, values, heads);
    }
    #[cfg(all(feature = "cpu", feature = "train"))]
    if is_trained_on_cpu(&q, &keys, heads) {
        return crate::cpu::trained_attention(q, [keys, values], None, heads);
    }
    reference::attention(q, keys, values, heads)
}

/// Attention of tokens to themselves with a mask, which is added to the scores: `softmax(q·kᵀ / √D + mask)·v`. No
/// gradient passes to the mask.
///
/// # Shapes
///
/// - q, k, v, output: `[B, T, C]`
/// - mask: `[B, 1, T, T]`
///
/// # Panics
///
/// Panics if the shapes differ, or the heads do not divide the channels.
pub fn masked_attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    mask: Tensor<4>,
    heads: usize,
) -> Tensor<3> {
    let [batch, tokens, channels] = q.dims();
    assert!(channels.is_multiple_of(heads), "{heads} heads do not divide {channels}");
    assert_shape!(&k, [batch, tokens, channels]);
    assert_shape!(&v, [batch, tokens, channels]);
    assert_shape!(&mask, [batch, 1, tokens, tokens]);
    let mask = mask.detach();
    #[cfg(all(feature = "cpu", feature = "train"))]
    if is_trained_on_cpu(&q, &k, heads) {
        return crate::cpu::trained_attention(q, [k, v], Some(mask), heads);
    }
    reference::masked_attention(q, k, v, mask, heads)
}

/// Whether a kernel of the CPU computes attention and its gradient.
#[cfg(all(feature = "cpu", feature = "train"))]
fn is_trained_on_cpu(q: &Tensor<3>, k: &Tensor<3>, heads: usize) -> bool {
    let ([batch, queries, _], [_, keys, _]) = (q.dims(), k.dims());
    crate::cpu::records_gradients(&q.device(), q.dtype())
        && crate::autocast::is_exact()
        && batch * heads * queries * keys <= reference::MAX_WEIGHTS
}

/// Attention of tokens to themselves and to `more` keys and values. In `qkv`, each token's query, key and value
/// follow each other.
///
/// # Shapes
///
/// - qkv: `[B, Q, 3·C]`
/// - more: `[B, K, C]` each
/// - output: `[B, Q, C]`
///
/// # Panics
///
/// As [`attention`].
pub fn joined_attention(qkv: Tensor<3>, more: [Tensor<3>; 2], heads: usize) -> Tensor<3> {
    #[cfg(feature = "gpu")]
    if has_kernel(&qkv.device(), qkv.dims()[2] / 3, heads) {
        let ([batch, _, width], [_, tokens, _]) = (qkv.dims(), more[0].dims());
        for more in &more {
            assert_shape!(more, [batch, tokens, width / 3]);
        }
        return crate::wgsl::joined_attention(qkv, more, heads);
    }
    reference::joined_attention(qkv, more, heads)
}

/// Whether a kernel computes attention and reads the tokens where they lie; otherwise they are copied first.
pub fn has_kernel(device: &Device, channels: usize, heads: usize) -> bool {
    #[cfg(feature = "gpu")]
    {
        crate::wgsl::runs_on(device) && (channels / heads).is_multiple_of(4)
    }
    #[cfg(not(feature = "gpu"))]
    {
        let _ = (device, channels, heads);
        false
    }
}

/// The tokens of one or more tensors.
fn joined(mut tensors: Vec<Tensor<3>>) -> Tensor<3> {
    if tensors.len() == 1 { tensors.remove(0) } else { Tensor::cat(tensors, 1) }
}

/// The same operation composed from burn tensors: the definition of the kernels.
pub mod reference {
    use super::*;
    use crate::{product, softmax};

    /// Most attention weights at a time: 16 MiB in f32, which caches hold better than more, and far less
    /// than the 128 MiB that every WebGPU device binds.
    pub(super) const MAX_WEIGHTS: usize = 1 << 22;

    /// Twin of `shaders/attention.wgsl`.
    pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize) -> Tensor<3> {
        let q = split(scaled(q, heads), heads);
        merged(attend(q, split(k, heads).swap_dims(2, 3), split(v, heads)))
    }

    /// Twin of the CPU kernel for training.
    pub fn masked_attention(
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        mask: Tensor<4>,
        heads: usize,
    ) -> Tensor<3> {
        let [q, k, v] = [scaled(q, heads), k, v].map(|tensor| split(tensor, heads));
        let weights = softmax(product(q, k.swap_dims(2, 3)) + mask);
        merged(product(weights, v))
    }

    /// `q / √D`.
    fn scaled(q: Tensor<3>, heads: usize) -> Tensor<3> {
        let [.., channels] = q.dims();
        q * ((channels / heads) as f64).powf(-0.5)
    }

    /// `[B, T, C]` as `[B, heads, T, D]`.
    fn split(x: Tensor<3>, heads: usize) -> Tensor<4> {
        let [batch, tokens, channels] = x.dims();
        x.reshape([batch, tokens, heads, channels / heads]).swap_dims(1, 2)
    }

    /// The inverse of [`split`].
    fn merged(x: Tensor<4>) -> Tensor<3> {
        let [batch, heads, tokens, size] = x.dims();
        x.swap_dims(1, 2).reshape([batch, tokens, heads * size])
    }

    /// Twin of `shaders/attention.wgsl` with `joined_tokens.wgsl`.
    pub fn joined_attention(qkv: Tensor<3>, [k, v]: [Tensor<3>; 2], heads: usize) -> Tensor<3> {
        let channels = qkv.dims()[2] / 3;
        let [q, own_k, own_v] = [0, 1, 2].map(|i| qkv.clone().narrow(2, i * channels, channels));
        attention(q, joined(vec![own_k, k]), joined(vec![own_v, v]), heads)
    }

    /// `softmax(q·k)·v`, for as many queries at a time as [`MAX_WEIGHTS`] allows.
    ///
    /// # Shapes
    ///
    /// - q, output: `[B, heads, Q, D]`
    /// - k: `[B, heads, D, K]`
    /// - v: `[B, heads, K, D]`
    fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
        let ([batch, heads, queries, _], [.., keys]) = (q.dims(), k.dims());
        let rows = (MAX_WEIGHTS / (batch * heads * keys)).max(1);
        let some = |q: Tensor<4>| product(softmax(product(q, k.clone())), v.clone());
        if rows >= queries {
            return some(q);
        }
        let starts = (0..queries).step_by(rows);
        let parts = starts.map(|start| some(q.clone().narrow(2, start, rows.min(queries - start))));
        Tensor::cat(parts.collect(), 2)
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use burn::tensor::{Distribution, Tolerance};

        /// As many keys as leave room for three queries at a time, and seven queries.
        #[test]
        fn queries_in_parts_are_the_whole() {
            let device = Device::flex();
            let keys = MAX_WEIGHTS / 3;
            let random = |shape| Tensor::<4>::random(shape, Distribution::Default, &device);
            let (q, k) = (random([1, 1, 7, 1]), random([1, 1, 1, keys]));
            let v = random([1, 1, keys, 1]);
            let whole = softmax(q.clone().matmul(k.clone())).matmul(v.clone()).into_data();
            let tolerance = Tolerance::rel_abs(1e-6, 1e-6);
            attend(q, k, v).into_data().assert_approx_eq::<f32>(&whole, tolerance);
        }
    }
}
