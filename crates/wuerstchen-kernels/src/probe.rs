//! The speed of a device's arithmetic and memory, with which times of kernels and stages can be compared.

use burn::prelude::*;

/// A computation that only does multiply-adds in registers, or only reads and writes.
pub struct Probe {
    /// Multiply-adds, or bytes read and written.
    pub work: usize,
    /// The result, which a GPU may still have to compute.
    pub result: Tensor<1>,
}

/// Multiply-adds in f32: `rounds` times 64 in each of many invocations, a million on a GPU, or 4,096 with the widest
/// vectors on a CPU.
///
/// # Panics
///
/// Panics on a device that neither runs shaders nor is a CPU.
pub fn probe_multiply_adds(device: &Device, rounds: usize) -> Probe {
    #[cfg(feature = "gpu")]
    if crate::wgsl::runs_on(device) {
        return crate::wgsl::probe_multiply_adds(device, rounds);
    }
    #[cfg(feature = "cpu")]
    if crate::cpu::runs_on(device, burn::tensor::DType::F32) {
        return crate::cpu::probe_multiply_adds(device, rounds);
    }
    unknown(device)
}

/// A copy of `x`, whose length is a multiple of 4.
///
/// # Panics
///
/// As [`probe_multiply_adds`].
pub fn probe_copy(x: Tensor<1>) -> Probe {
    let work = 2 * x.shape().num_elements() * x.dtype().size();
    #[cfg(feature = "gpu")]
    if crate::wgsl::runs_on(&x.device()) {
        return Probe { work, result: crate::wgsl::copy(x) };
    }
    #[cfg(feature = "cpu")]
    if crate::cpu::runs_on(&x.device(), x.dtype()) {
        return Probe { work, result: crate::cpu::copy(x) };
    }
    unknown(&x.device())
}

fn unknown(device: &Device) -> ! {
    panic!("expected a device that runs shaders or a CPU, found {device:?}")
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_computes_what_is_counted() {
        let device = Device::flex();
        let one = probe_multiply_adds(&device, 1);
        let two = probe_multiply_adds(&device, 2);
        assert_eq!((2 * one.work, one.work % (64 * 4096)), (two.work, 0));
        // From 0.3, each of four steps a round halves the distance to a half.
        let distance = |probe: Probe| 0.5 - probe.result.mean().into_scalar::<f32>();
        let (one, two) = (distance(one), distance(two));
        assert!((one - 0.2 / 16.0).abs() < 1e-6 && (two - 0.2 / 256.0).abs() < 1e-6, "{one} {two}");

        let x = Tensor::<1>::from_data([1.0, 2.0, 3.0, 4.0], &device);
        let copy = probe_copy(x.clone());
        assert_eq!(copy.work, 32);
        copy.result.into_data().assert_eq(&x.into_data(), true);
    }
}
