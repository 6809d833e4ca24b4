//! The type of the numbers that a stage's matrix products multiply while it is trained.

use burn::prelude::*;
use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use wuerstchen::ConfigError;

/// The type of the numbers that matrix products multiply. Weights, their moments, norms, softmax and losses are always
/// in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, 5 of them for the exponent: the loss is scaled, so that small gradients do not become zero.
    F16,
    /// 16 bits, 8 of them for the exponent, as f32 has.
    BF16,
}

impl Precision {
    const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Its name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }

    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
        }
    }

    /// Whether it is the precision of configs that name none.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Fails unless the device can multiply in this precision; `part` names the stage.
    pub(crate) fn check(self, part: &'static str, device: &Device) -> Result<(), ConfigError> {
        let is_usable = |precision: &Self| device.supports_dtype(precision.dtype());
        if is_usable(&self) {
            return Ok(());
        }
        let usable: Vec<_> = Self::ALL.into_iter().filter(is_usable).map(Self::name).collect();
        let expected = format!("{}, with which the device can multiply", usable.join(" or "));
        Err(ConfigError::new(part, "precision", expected, self.name()))
    }
}

/// A factor of the loss, by which its gradients are divided afterwards: gradients in f16 are zero below 6·10⁻⁸, and
/// infinite above 65504.
///
/// Every update whose gradients are not finite halves it, and [`Self::PATIENCE`] updates in a row whose gradients are
/// finite double it.
///
/// Source: Micikevicius et al., "Mixed precision training" (arXiv 1710.03740), section 3.2, with the numbers of
/// `torch.amp.GradScaler`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LossScale {
    /// A power of two, so that it rounds nothing.
    scale: f32,
    /// Updates with finite gradients since the scale has changed.
    finite: u32,
}

impl LossScale {
    const START: f32 = 65536.0;
    const PATIENCE: u32 = 2000;

    /// The scale with which training starts; `None` unless the precision is f16.
    pub(crate) fn new(precision: Precision) -> Option<Self> {
        (precision == Precision::F16).then_some(Self { scale: Self::START, finite: 0 })
    }

    pub(crate) fn scale(self) -> f64 {
        self.scale.into()
    }

    /// The scale after an update.
    pub(crate) fn follow(self, is_finite: bool) -> Self {
        let Self { scale, finite } = self;
        if !is_finite {
            Self { scale: (scale / 2.0).max(1.0), finite: 0 }
        } else if finite + 1 == Self::PATIENCE {
            Self { scale: scale * 2.0, finite: 0 }
        } else {
            Self { finite: finite + 1, scale }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_falls_at_once_and_rises_slowly() {
        let start = LossScale::new(Precision::F16).unwrap();
        assert_eq!(start.follow(false).scale(), 32768.0);
        let mut scale = start.follow(false);
        for _ in 1..LossScale::PATIENCE {
            scale = scale.follow(true);
            assert_eq!(scale.scale(), 32768.0);
        }
        assert_eq!(scale.follow(true), start);
        // An update that is not finite starts the count anew.
        assert_eq!(scale.follow(false).follow(true).scale(), 16384.0);
        let mut lowest = start;
        (0..100).for_each(|_| lowest = lowest.follow(false));
        assert_eq!(lowest.scale(), 1.0);
        assert_eq!([Precision::F32, Precision::BF16].map(LossScale::new), [None; 2]);
    }

    #[test]
    fn a_cpu_computes_with_all() {
        for precision in Precision::ALL {
            assert_eq!(precision.check("stage c", &Device::flex()), Ok(()));
        }
    }
}
