//! Attention with a backward pass of its own.
//!
//! burn's automatic derivative of the composed twin gives transposed matrices, which each operation before it copies
//! into order. The products here are chosen so that their results are in order.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

use super::backward::softmax_gradient;
use super::values::{Values, block, for_each_block};
use super::*;

/// As [`crate::masked_attention()`], and without a mask as [`crate::attention()`] of one pair.
pub(crate) fn trained_attention(
    q: Tensor<3>,
    [k, v]: [Tensor<3>; 2],
    mask: Option<Tensor<4>>,
    heads: usize,
) -> Tensor<3> {
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(match mask {
        Some(mask) => Dispatch::cpu_trained_masked_attention(q, k, v, mask.into_dispatch(), heads),
        None => Dispatch::cpu_trained_attention(q, k, v, heads),
    })
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait CpuTrainedAttention: Backend {
    fn cpu_trained_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self>;

    fn cpu_trained_masked_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self>;
}

impl CpuTrainedAttention for Flex {
    fn cpu_trained_attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        heads: usize,
    ) -> FlexTensor {
        attend(scaled(q, heads), [k, v], None, heads).0
    }

    fn cpu_trained_masked_attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        mask: FlexTensor,
        heads: usize,
    ) -> FlexTensor {
        attend(scaled(q, heads), [k, v], Some(mask), heads).0
    }
}

impl<C: CheckpointStrategy> CpuTrainedAttention for Autodiff<Flex, C> {
    fn cpu_trained_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        recorded::<C>([q, k, v], None, heads)
    }

    fn cpu_trained_masked_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        recorded::<C>([q, k, v], Some(mask.into_parts().0), heads)
    }
}

fn recorded<C: CheckpointStrategy>(
    qkv: [FloatTensor<Autodiff<Flex, C>>; 3],
    mask: Option<FlexTensor>,
    heads: usize,
) -> FloatTensor<Autodiff<Flex, C>> {
    let [(q, q_node), (k, k_node), (v, v_node)] = qkv.map(|tensor| tensor.into_parts());
    let q = scaled(q, heads);
    let pair = [k, v];
    match Attention.prepare::<C>([q_node, k_node, v_node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (y, weights) = attend(q.clone(), pair.clone(), mask, heads);
            let [k, v] = pair;
            prep.finish(State { q, k, v, weights, heads }, y)
        }
        OpsKind::UnTracked(prep) => prep.finish(attend(q, pair, mask, heads).0),
    }
}

/// `q / √D`, where each head has `D` channels.
fn scaled(q: FlexTensor, heads: usize) -> FlexTensor {
    let q = Values::of(q);
    let scale = (q.channels() as f64 / heads as f64).powf(-0.5) as f32;
    q.map_rows(
        #[inline(always)]
        |_, q| q.iter_mut().for_each(|q| *q *= scale),
    )
}

/// The output, and the attention weights `[B, heads, Q, K]`.
fn attend(
    q: FlexTensor,
    [k, v]: [FlexTensor; 2],
    mask: Option<FlexTensor>,
    heads: usize,
) -> (FlexTensor, FlexTensor) {
    let [q, k, v] = [q, k, v].map(|tensor| split::<Flex>(tensor, heads));
    let scores = product::<Flex>(q, transposed::<Flex>(k));
    let weights = Flex::cpu_softmax(match mask {
        Some(mask) => sum_of::<Flex>(scores, mask),
        None => scores,
    });
    (merged(product::<Flex>(weights.clone(), v)), weights)
}

fn sum_of<B: Backend>(a: FloatTensor<B>, b: FloatTensor<B>) -> FloatTensor<B> {
    B::float_add(a, b)
}

/// A view `[B, heads, T, D]` of `[B, T, C]`.
fn split<B: Backend<FloatTensorPrimitive = FlexTensor>>(x: FlexTensor, heads: usize) -> FlexTensor {
    let shape = x.layout().shape().to_vec();
    let [batch, tokens, channels] = [shape[0], shape[1], shape[2]];
    let x = B::float_reshape(x, Shape::new([batch, tokens, heads, channels / heads]));
    B::float_swap_dims(x, 1, 2)
}

/// The inverse of [`split`], in order.
fn merged(x: FlexTensor) -> FlexTensor {
    let x = Values::of(x);
    let [batch, heads, tokens, size] = [x.shape[0], x.shape[1], x.shape[2], x.shape[3]];
    let (values, channels) = (x.as_slice(), heads * size);
    let mut out = vec![0.0f32; values.len()];
    let rows = block(channels) / channels;
    for_each_block(
        &mut out,
        rows * channels,
        #[inline(always)]
        |i, out| {
            for (row, out) in (i * rows..).zip(out.chunks_exact_mut(channels)) {
                for (head, out) in out.chunks_exact_mut(size).enumerate() {
                    let token = (row / tokens * heads + head) * tokens + row % tokens;
                    out.copy_from_slice(&values[token * size..][..size]);
                }
            }
        },
    );
    FlexTensor::from_data(TensorData::new(out, [batch, tokens, channels]))
}

#[derive(Debug)]
struct Attention;

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct State {
    /// The scaled queries.
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    weights: FlexTensor,
    heads: usize,
}

impl Backward<Flex, 3> for Attention {
    type State = State;

    /// With weights `P`, scores `S` and scaled queries `q`: `∂V = Pᵀ·g`, `∂P = g·Vᵀ`, `∂S` by the softmax,
    /// `∂q = ∂S·K` and `∂K = ∂Sᵀ·q`.
    fn backward(self, ops: Ops<State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let State { q, k, v, weights, heads } = ops.state;
        let split = |tensor| split::<Flex>(tensor, heads);
        // A gradient in another order cannot be divided into heads without a copy.
        let g = Values::of(grads.consume::<Flex>(&ops.node)).into_tensor();
        let g = split(g);
        let [q_parent, k_parent, v_parent] = ops.parents;
        if let Some(parent) = v_parent {
            let v_grad = product::<Flex>(transposed::<Flex>(weights.clone()), g.clone());
            grads.register::<Flex>(parent.id, merged(v_grad));
        }
        if q_parent.is_none() && k_parent.is_none() {
            return;
        }
        let weights_grad = product::<Flex>(g, transposed::<Flex>(split(v)));
        let scores_grad = softmax_gradient(weights, weights_grad);
        if let Some(parent) = k_parent {
            let k_grad = product::<Flex>(transposed::<Flex>(scores_grad.clone()), split(q));
            grads.register::<Flex>(parent.id, merged(k_grad));
        }
        if let Some(parent) = q_parent {
            let q_grad = merged(product::<Flex>(scores_grad, split(k)));
            grads.register::<Flex>(parent.id, scaled(q_grad, heads));
        }
    }
}
