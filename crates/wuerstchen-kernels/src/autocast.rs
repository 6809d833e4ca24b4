//! Matrix products in 16 bits, for training.

use std::cell::Cell;

use burn::prelude::*;
use burn::tensor::DType;

thread_local! {
    /// The type that [`autocast`] has set.
    static PRODUCTS: Cell<DType> = const { Cell::new(DType::F32) };
}

/// Runs `compute` with matrix products that multiply numbers of the type `products`, on this thread.
///
/// The factors of linear layers and of attention are rounded to that type; results and gradients are in f32 again.
/// Norms, softmax, convolutions and everything else, including hand-written shaders, stay in f32.
///
/// Source: Micikevicius et al., "Mixed precision training" (arXiv 1710.03740).
pub fn autocast<R>(products: DType, compute: impl FnOnce() -> R) -> R {
    struct Before(DType);
    impl Drop for Before {
        fn drop(&mut self) {
            PRODUCTS.set(self.0);
        }
    }
    let _before = Before(PRODUCTS.replace(products));
    compute()
}

/// Whether products of this thread are in f32.
#[cfg(feature = "cpu")]
pub(crate) fn is_exact() -> bool {
    PRODUCTS.get() == DType::F32
}

/// `a·b` of tensors in f32, multiplied as [`autocast`] says.
///
/// # Shapes
///
/// - a: `[…, M, K]`
/// - b: `[…, K, N]`
/// - output: `[…, M, N]`
pub fn product<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    match PRODUCTS.get() {
        DType::F32 => a.matmul(b),
        dtype => a.cast(dtype).matmul(b.cast(dtype)).cast(DType::F32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2⁻⁹ is lost beside 1 in a number of 8 bits, and kept in one of 11; 2⁻¹² is lost in both.
    #[test]
    fn factors_are_rounded_and_the_results_are_f32() {
        let device = Device::flex();
        let matrix = |values: [[f32; 2]; 2]| Tensor::<2>::from_data(values, &device);
        let one = matrix([[1.0, 0.0], [0.0, 1.0]]);
        let fine = matrix([[1.0 + 2f32.powi(-9), 1.0 + 2f32.powi(-12)], [3.0, 5.0]]);
        let rounded = |dtype| autocast(dtype, || product(one.clone(), fine.clone())).into_data();
        let expected = |first: f32, second: f32| TensorData::from([[first, second], [3.0, 5.0]]);
        let [ninth, twelfth] = [9, 12].map(|bits| 1.0 + 2f32.powi(-bits));
        rounded(DType::F32).assert_eq(&expected(ninth, twelfth), true);
        rounded(DType::F16).assert_eq(&expected(ninth, 1.0), true);
        rounded(DType::BF16).assert_eq(&expected(1.0, 1.0), true);
    }

    #[test]
    fn what_was_set_before_comes_back() {
        autocast(DType::F16, || {
            autocast(DType::BF16, || assert_eq!(PRODUCTS.get(), DType::BF16));
            assert_eq!(PRODUCTS.get(), DType::F16);
            let panicked =
                std::panic::catch_unwind(|| autocast(DType::F32, || panic!("on purpose")));
            assert!(panicked.is_err());
            assert_eq!(PRODUCTS.get(), DType::F16);
            std::thread::scope(|scope| {
                scope.spawn(|| assert_eq!(PRODUCTS.get(), DType::F32)).join()
            })
            .unwrap();
        });
        assert_eq!(PRODUCTS.get(), DType::F32);
    }
}
