//! What a share of a batch reports beside its loss.

use burn::prelude::*;
use burn::tensor::Transaction;

/// Numbers that a share of a batch reports beside its loss. Every share reports equally many, and an update takes the
/// means over its shares. They are read from the device together with the loss and the norm of the gradients.
pub struct Told {
    /// The tensors that are read from the device.
    pub read: Vec<Tensor<1>>,
    /// Makes the numbers from the values of these tensors.
    pub make: Make,
}

/// Makes numbers from values that were read from a device.
pub type Make = Box<dyn FnOnce(&[Vec<f32>]) -> Vec<f32> + Send>;

impl Told {
    /// Numbers that are known.
    pub(crate) fn known(numbers: Vec<f32>) -> Self {
        Self { read: Vec::new(), make: Box::new(|_| numbers) }
    }

    /// The numbers of all, and the values of `more`, read from the device at once.
    pub(crate) fn ask_all(all: Vec<Self>, more: Vec<Tensor<1>>) -> [Vec<Vec<f32>>; 2] {
        let (tensors, rest): (Vec<_>, Vec<_>) =
            all.into_iter().map(|told| (told.read, told.make)).unzip();
        let counts: Vec<_> = tensors.iter().map(Vec::len).collect();
        let mut values = read(tensors.into_iter().flatten().chain(more)).into_iter();
        let own =
            |(make, count): (Make, usize)| make(&values.by_ref().take(count).collect::<Vec<_>>());
        let numbers = rest.into_iter().zip(counts).map(own).collect();
        [numbers, values.collect()]
    }

    /// The numbers.
    #[cfg(test)]
    pub(crate) fn ask(self) -> Vec<f32> {
        let [mut numbers, _] = Self::ask_all(vec![self], Vec::new());
        numbers.remove(0)
    }
}

/// The values of f32 tensors, read from the device at once.
fn read(tensors: impl Iterator<Item = Tensor<1>>) -> Vec<Vec<f32>> {
    let values = |data: TensorData| data.try_to_vec::<f32>().expect("they are f32");
    let plain =
        tensors.map(|tensor| if tensor.device().is_autodiff() { tensor.inner() } else { tensor });
    plain
        .fold(Transaction::default(), Transaction::register)
        .execute()
        .into_iter()
        .map(values)
        .collect()
}
