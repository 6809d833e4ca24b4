//! The equal shares of a batch: their gradients, and the sum of those over all processes.

mod threads;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::prelude::*;

pub(crate) use self::threads::ShareThreads;
use crate::peers::{self, Peers};
use crate::stages::Loss;
use crate::told::Told;
use crate::values::{Values, collect_gradients, visited};

/// Number of values that go to the other processes at once: 64 MiB.
const BUCKET: usize = 16 << 20;

/// The losses and gradients of some shares of a batch, each already divided by the number of shares.
pub(crate) struct Share {
    /// The loss and the further numbers of each share, in their order; their sums are those of the batch.
    told: Vec<Told>,
    pub(crate) gradients: Values,
    /// How far the running averages of batch norms move.
    pub(crate) moves: Values,
}

impl Share {
    /// One of `count` shares, from its `loss` by `model`. `before` are the running averages that the model had before
    /// the forward pass and that are to be moved afterwards. The gradients are taken of `scale` times the loss, and
    /// divided by `scale`.
    pub(crate) fn new<M: Module>(
        model: &M,
        before: &Values,
        loss: Loss,
        (count, scale): (usize, f64),
    ) -> Self {
        let share = 1.0 / count as f64;
        let graph = (loss.total * (share * scale)).backward();
        let mut gradients = collect_gradients(model, &graph);
        if let Some(earlier) = loss.earlier {
            earlier(graph, &mut |part| add(&mut gradients, collect_gradients(model, part)));
        }
        if scale != 1.0 {
            for gradient in gradients.values_mut() {
                *gradient = gradient.clone() / scale;
            }
        }
        let mut moves = running_averages(model);
        moves.retain(|id, _| before.contains_key(id));
        for (id, after) in &mut moves {
            *after = (after.clone() - before[id].clone()) * share;
        }
        let Told { read: besides, make } = loss.told;
        let read = std::iter::once(loss.shown).chain(besides).collect();
        let make = Box::new(move |read: &[Vec<f32>]| {
            let numbers = [read[0].clone(), make(&read[1..])].concat();
            numbers.into_iter().map(|number| number * share as f32).collect()
        });
        Self { told: vec![Told { read, make }], gradients, moves }
    }

    /// The sum of shares, in their order.
    pub(crate) fn sum(shares: Vec<Self>) -> Self {
        let mut shares = shares.into_iter();
        let mut total = shares.next().expect("a batch has at least one share");
        for share in shares {
            total.told.extend(share.told);
            add(&mut total.gradients, share.gradients);
            add(&mut total.moves, share.moves);
        }
        total
    }

    /// The sum of the shares of all processes, the same in all of them, with the bits of [`Self::sum`] over all.
    ///
    /// The values travel in the order in which the module is visited, because the ids of parameters differ between
    /// processes.
    pub(crate) fn sum_of_all<M: Module>(model: &M, shares: Vec<Self>, peers: &dyn Peers) -> Self {
        let moved: Vec<_> = shares[0].moves.keys().copied().collect();
        let all = |share: Self| {
            let mut values = share.gradients;
            values.extend(share.moves);
            (share.told, values)
        };
        let (told, mut shares): (Vec<_>, Vec<_>) = shares.into_iter().map(all).unzip();
        let [numbers, _] = Told::ask_all(told.into_iter().flatten().collect(), Vec::new());
        let (mut total, mut gradients) = (None, Values::new());
        for ids in buckets(&visited(model), &shares[0]) {
            let sizes: Vec<_> = ids.iter().map(|id| shares[0][id].dims()[0]).collect();
            let device = shares[0][&ids[0]].device();
            let mut addends: Vec<_> = shares.iter_mut().map(|share| take(share, &ids)).collect();
            // The first bucket takes the loss and the further numbers along.
            if total.is_none() {
                addends.iter_mut().zip(&numbers).for_each(|(addend, own)| addend.extend(own));
            }
            let mut sum = peers.sum(addends);
            if total.is_none() {
                total = Some(sum.split_off(sum.len() - numbers[0].len()));
            }
            let length = [sum.len()];
            let sum = Tensor::<1>::from_data(TensorData::new(sum, length), &device);
            let mut start = 0;
            for (id, size) in ids.into_iter().zip(sizes) {
                gradients.insert(id, sum.clone().narrow(0, start, size));
                start += size;
            }
        }
        let moves = moved.into_iter().filter_map(|id| gradients.remove_entry(&id)).collect();
        let told = Told::known(total.expect("a model that is trained has gradients"));
        Self { told: vec![told], gradients, moves }
    }

    /// The loss of the batch, its further numbers, and the value of `more`. All are read from the device at once.
    pub(crate) fn ask(&mut self, more: Tensor<1>) -> (f32, Vec<f32>, f32) {
        let [numbers, more] = Told::ask_all(std::mem::take(&mut self.told), vec![more]);
        let sum = numbers.into_iter().reduce(|mut sum, share| {
            peers::add(&mut sum, &share);
            sum
        });
        let mut numbers = sum.expect("a batch has at least one share");
        let told = numbers.split_off(1);
        (numbers[0], told, more[0][0])
    }
}

fn add(total: &mut Values, values: Values) {
    for (id, value) in values {
        let sum = match total.remove(&id) {
            Some(sum) => sum + value,
            None => value,
        };
        total.insert(id, sum);
    }
}

/// Moves values to main memory, one after the other.
fn take(values: &mut Values, ids: &[ParamId]) -> Vec<f32> {
    let values = ids.iter().filter_map(|id| values.remove(id)).collect();
    Tensor::<1>::cat(values, 0).into_data().try_to_vec::<f32>().expect("gradients are f32")
}

/// The parameters that have values, in buckets of about one size.
fn buckets(order: &[ParamId], values: &Values) -> Vec<Vec<ParamId>> {
    let mut buckets: Vec<Vec<ParamId>> = Vec::new();
    let mut room = 0;
    for id in order {
        let Some(value) = values.get(id) else { continue };
        let size = value.dims()[0];
        if size > room {
            buckets.push(Vec::new());
            room = BUCKET;
        }
        room = room.saturating_sub(size);
        buckets.last_mut().expect("the first value begins a bucket").push(*id);
    }
    buckets
}

/// The running averages of batch norms, without autodiff. In a model that is trained, these are the values that require
/// no gradient.
pub(crate) fn running_averages<M: Module>(model: &M) -> Values {
    struct Averages(Values);
    impl ModuleVisitor for Averages {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val();
            if !value.is_require_grad() {
                self.0.insert(param.id, value.inner().flatten(0, D - 1));
            }
        }
    }
    let mut averages = Averages(Values::new());
    model.visit(&mut averages);
    averages.0
}

/// The model with its running averages moved.
pub(crate) fn move_running_averages<M: Module>(model: M, moves: Values) -> M {
    change(model, moves, |value, by| value + by)
}

/// The model with these running averages.
pub(crate) fn set_running_averages<M: Module>(model: M, averages: Values) -> M {
    change(model, averages, |_, average| average)
}

/// The model with every value that has one in `values` replaced by `change` of both, as flat tensors.
fn change<M: Module>(model: M, values: Values, change: fn(Tensor<1>, Tensor<1>) -> Tensor<1>) -> M {
    struct Change(Values, fn(Tensor<1>, Tensor<1>) -> Tensor<1>);
    impl ModuleMapper for Change {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(other) = self.0.remove(&param.id) else { return param };
            param.map(|value| {
                let shape = value.dims();
                let changed = self.1(value.inner().flatten(0, D - 1), other);
                Tensor::from_inner(changed.reshape(shape))
            })
        }
    }
    if values.is_empty() { model } else { model.map(&mut Change(values, change)) }
}

/// Models for `count` shares, each with its own running averages and its own graph: in a common graph, burn's autodiff
/// would wait for the other shares.
pub(crate) fn models<M: Module>(model: &M, count: usize) -> Vec<M> {
    (0..count).map(|_| model.valid().train()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three values of about half a bucket, one that is larger than a bucket, and one of a single number.
    #[test]
    fn buckets_keep_the_order_and_a_size() {
        let device = Device::flex();
        let sizes = [9 << 20, 9 << 20, 7 << 20, 17 << 20, 1];
        let order: Vec<_> = sizes.iter().map(|_| ParamId::new()).collect();
        let value = |size: &usize| Tensor::<1>::zeros([*size], &device);
        let values: Values = order.iter().copied().zip(sizes.iter().map(value)).collect();
        let expected = [vec![order[0]], vec![order[1], order[2]], vec![order[3]], vec![order[4]]];
        assert_eq!(buckets(&order, &values), expected);
    }
}
