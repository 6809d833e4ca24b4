//! The shaders of an optimizer's update.

use super::*;

/// Number of workgroups of `squares.wgsl`, each with a sum of its own.
const SUMS: usize = 256;

/// Most lists of numbers that one launch of `squares.wgsl` takes.
const LISTS: usize = 5;

/// As [`crate::sum_of_squares`].
pub(crate) fn sum_of_squares(tensors: &[Tensor<1>], device: &Device) -> Tensor<1> {
    let nothing = || Tensor::<1>::empty([1], device);
    let mut sums = None;
    for lists in tensors.chunks(LISTS) {
        let mut lengths = [0; LISTS];
        lengths.iter_mut().zip(lists).for_each(|(length, list)| *length = list.dims()[0]);
        let is_first = usize::from(sums.is_none());
        let mut lists = lists.iter().cloned();
        let [a, b, c, d, e] =
            [(); LISTS].map(|()| lists.next().unwrap_or_else(nothing).into_dispatch());
        let before = sums.unwrap_or_else(nothing).into_dispatch();
        let all = Dispatch::wgsl_add_squares(before, a, b, c, d, e, (is_first, lengths));
        sums = Some(Tensor::from_dispatch(all));
    }
    sums.expect("there is a tensor").sum()
}

/// As [`crate::adamw()`].
pub(crate) fn adamw(
    weight: Tensor<1>,
    [first, second]: [Tensor<1>; 2],
    gradient: Tensor<1>,
    settings: Tensor<1>,
) -> (Tensor<1>, [Tensor<1>; 2]) {
    let (weight, gradient) = (weight.into_dispatch(), gradient.into_dispatch());
    let (first, second) = (first.into_dispatch(), second.into_dispatch());
    let (weight, first, second) =
        Dispatch::wgsl_adamw(weight, first, second, gradient, settings.into_dispatch());
    (Tensor::from_dispatch(weight), [first, second].map(Tensor::from_dispatch))
}

#[backend_extension(Cube, Fusion)]
pub(crate) trait OptimizerKernels: Backend {
    /// The last parameters say whether there are no sums before, and the lengths of the lists.
    #[fusion(dtype = a, shape = Shape::from([SUMS]))]
    fn wgsl_add_squares(
        before: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        sizes: (usize, [usize; LISTS]),
    ) -> FloatTensor<Self>;

    #[fusion(meta = |weight, first, second, _, _| (weight.clone(), first.clone(), second.clone()))]
    fn wgsl_adamw(
        weight: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        settings: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl OptimizerKernels for CubeBackend {
    fn wgsl_add_squares(
        before: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        (is_first, lengths): (usize, [usize; LISTS]),
    ) -> FloatTensor<Self> {
        let mut sizes = vec![SUMS, is_first];
        sizes.extend(lengths);
        SQUARES.launch(vec![before, a, b, c, d, e], Shape::from([SUMS]), &sizes, SUMS)
    }

    fn wgsl_adamw(
        weight: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        settings: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        // A tensor that something else has too, such as a model that is being saved, must not change.
        let own = |tensor: CubeTensor| {
            let tensor = into_contiguous(tensor);
            if tensor.can_mut() { tensor } else { tensor.copy() }
        };
        let [weight, first, second] = [weight, first, second].map(own);
        let values = weight.meta.shape().num_elements();
        let others = vec![first.clone(), second.clone(), gradient, settings];
        ADAMW.run(&weight, others, &[values], values.div_ceil(WORKGROUP_SIZE));
        (weight, first, second)
    }
}

const SQUARES: Shader = Shader::new("squares", include_str!("../../../../shaders/squares.wgsl"));
const ADAMW: Shader = Shader::new("adamw", include_str!("../../../../shaders/adamw.wgsl"));

pub(super) const SHADERS: [Shader; 2] = [SQUARES, ADAMW];
