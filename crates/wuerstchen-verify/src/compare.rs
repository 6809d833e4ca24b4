//! Golden inputs and comparison with golden outputs.

use std::cell::RefCell;
use std::collections::BTreeSet;

use burn::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use wuerstchen::blocks::channels_first;
use wuerstchen::{Checkpoint, StoredDtype, relative_error_above};

use crate::report::{Check, Verification, VerifyError};

/// One golden file: hands out inputs, takes what we computed and notes how far off it is.
pub(crate) struct Recorder<'a> {
    file: String,
    golden: &'a Checkpoint,
    slack: f64,
    pending: Vec<Pending>,
    pending_integers: Vec<(String, Tensor<1, Int>)>,
    checks: Vec<Check>,
    computed: Vec<Computed>,
    /// Golden tensors that were inputs.
    inputs: RefCell<BTreeSet<String>>,
}

/// A comparison that waits for [`Recorder::finish`]: browsers read from a GPU only asynchronously.
struct Pending {
    name: String,
    /// Compared one by one.
    parts: Vec<Tensor<1>>,
    bound: f64,
}

struct Computed {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Norm under which a golden tensor counts as zero and differences are taken as they are.
const SMALLEST_NORM: f64 = 1e-12;

/// The error of a comparison that gives NaN, or of tensors of different sizes.
const UNCOMPARABLE: f64 = f64::MAX;

impl<'a> Recorder<'a> {
    pub(crate) fn new(file: &str, golden: &'a Checkpoint, slack: f64) -> Self {
        Self {
            file: file.to_owned(),
            golden,
            slack,
            pending: Vec::new(),
            pending_integers: Vec::new(),
            checks: Vec::new(),
            computed: Vec::new(),
            inputs: RefCell::default(),
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.golden.shape(name).is_some()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.golden.names().map(str::to_owned).collect()
    }

    /// The names of all tensors that end in `suffix`, without it.
    pub(crate) fn stems(&self, suffix: &str) -> Vec<String> {
        let names = self.golden.names().filter_map(|name| name.strip_suffix(suffix));
        names.map(str::to_owned).collect()
    }

    pub(crate) fn shape(&self, name: &str) -> Result<&[usize], VerifyError> {
        self.inputs.borrow_mut().insert(name.to_owned());
        self.golden.shape(name).ok_or_else(|| self.error(format!("expected a tensor {name:?}")))
    }

    pub(crate) fn values(&self, name: &str) -> Result<Vec<f32>, VerifyError> {
        self.shape(name)?;
        Ok(self.golden.values(name)?)
    }

    pub(crate) fn integers(&self, name: &str) -> Result<Vec<i64>, VerifyError> {
        self.shape(name)?;
        let integers = self.golden.integers(name);
        integers.ok_or_else(|| self.error(format!("expected integers {name:?}")))
    }

    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>, VerifyError> {
        self.shape(name)?;
        let bytes = self.golden.bytes(name);
        bytes.ok_or_else(|| self.error(format!("expected bytes {name:?}")))
    }

    pub(crate) fn tensor<const D: usize>(
        &self,
        name: &str,
        device: &Device,
    ) -> Result<Tensor<D>, VerifyError> {
        let shape = self.shape(name)?;
        if shape.len() != D {
            return Err(self.error(format!("expected {D} axes of {name:?}, found {shape:?}")));
        }
        let data = TensorData::new(self.values(name)?, shape.to_vec());
        Ok(Tensor::from_data(data, device))
    }

    /// Integers of the shape `[B, H, W]`.
    pub(crate) fn tokens(
        &self,
        name: &str,
        device: &Device,
    ) -> Result<Tensor<3, Int>, VerifyError> {
        let &[batch, height, width] = self.shape(name)? else {
            return Err(self.error(format!("expected 3 axes of {name:?}")));
        };
        let integers: Vec<i32> = self.integers(name)?.into_iter().map(|i| i as i32).collect();
        Ok(Tensor::from_data(TensorData::new(integers, [batch, height, width]), device))
    }

    /// Bytes of the shape `[B, 3, H, W]` as pictures in `[0, 1]`.
    pub(crate) fn pictures(&self, name: &str, device: &Device) -> Result<Tensor<4>, VerifyError> {
        let &[batch, channels, height, width] = self.shape(name)? else {
            return Err(self.error(format!("expected 4 axes of {name:?}")));
        };
        let values: Vec<f32> =
            self.bytes(name)?.into_iter().map(|byte| f32::from(byte) / 255.0).collect();
        let data = TensorData::new(values, [batch, channels, height, width]);
        Ok(Tensor::from_data(data, device))
    }

    /// The number of samples of a golden; `None` if there is no golden of that name.
    pub(crate) fn count(&self, name: &str) -> Option<usize> {
        self.golden.shape(name)?.first().copied()
    }

    /// As [`Self::tensor`]; `None` if there is no golden of that name.
    pub(crate) fn optional<const D: usize>(
        &self,
        name: &str,
        device: &Device,
    ) -> Result<Option<Tensor<D>>, VerifyError> {
        self.has(name).then(|| self.tensor(name, device)).transpose()
    }

    /// The entries along the first axis of `name`, as tensors of the other axes.
    pub(crate) fn entries(
        &self,
        name: &str,
        device: &Device,
    ) -> Result<Vec<Tensor<4>>, VerifyError> {
        let all: Tensor<5> = self.tensor(name, device)?;
        let [count, ..] = all.dims();
        Ok((0..count).map(|i| all.clone().narrow(0, i, 1).squeeze_dim(0)).collect())
    }

    pub(crate) fn error(&self, reason: String) -> VerifyError {
        VerifyError::Golden { file: self.file.clone(), reason }
    }

    /// Compares a tensor with the golden of that name, if there is one.
    pub(crate) fn check<const D: usize>(&mut self, name: &str, ours: Tensor<D>, bound: f64) {
        self.check_parts(name, vec![ours], bound);
    }

    /// As [`Self::check`], of as many of the first samples as the golden has.
    pub(crate) fn check_first<const D: usize>(&mut self, name: &str, ours: Tensor<D>, bound: f64) {
        if let Some(count) = self.count(name).filter(|&count| count <= ours.dims()[0]) {
            self.check(name, ours.narrow(0, 0, count), bound);
        }
    }

    /// Compares tensors with equal parts of the golden of that name one by one; the worst counts.
    pub(crate) fn check_parts<const D: usize>(
        &mut self,
        name: &str,
        ours: Vec<Tensor<D>>,
        bound: f64,
    ) {
        if self.has(name) {
            let parts = ours.into_iter().map(|part| part.reshape([-1])).collect();
            self.pending.push(Pending { name: name.to_owned(), parts, bound });
        }
    }

    /// Compares integers with the golden of that name, if there is one; they must be equal.
    pub(crate) fn check_integers<const D: usize>(&mut self, name: &str, ours: Tensor<D, Int>) {
        if self.has(name) {
            self.pending_integers.push((name.to_owned(), ours.reshape([-1])));
        }
    }

    /// Compares what an observer saw: channels-last features, under a module's name.
    pub(crate) fn check_observed(&mut self, module: &str, ours: &Tensor<4>, bound: f64) {
        self.check_observed_of("", module, ours, bound);
    }

    /// As [`Self::check_observed`], in a case whose goldens' names begin with `case`.
    pub(crate) fn check_observed_of(
        &mut self,
        case: &str,
        module: &str,
        ours: &Tensor<4>,
        bound: f64,
    ) {
        let name = format!("{case}act/{module}:out");
        let name = if self.has(&name) { name } else { format!("{case}{module}") };
        self.check(&name, channels_first(ours.clone()), bound);
    }

    /// Compares equal parts of a tensor one by one; the worst counts.
    pub(crate) fn check_values(&mut self, name: &str, parts: &[&[f32]], bound: f64) {
        self.check_scaled(name, parts, SMALLEST_NORM, bound);
    }

    /// As [`Self::check_values`], but errors of a part are relative to `scale` if its golden's norm is below it.
    pub(crate) fn check_scaled(&mut self, name: &str, parts: &[&[f32]], scale: f64, bound: f64) {
        let golden = self.golden.values(name).unwrap_or_default();
        let ours = parts.concat();
        let (mut relative, mut absolute) = (0.0f64, 0.0f64);
        if ours.len() == golden.len() {
            let mut rest = &golden[..];
            for part in parts {
                let (golden, after) = rest.split_at(part.len());
                rest = after;
                let differences = part.iter().zip(golden).map(|(a, b)| f64::from(a - b));
                absolute = differences.fold(absolute, |worst, d| larger(worst, d.abs()));
                relative = relative.max(relative_error_above(scale, part, golden));
            }
        } else {
            (relative, absolute) = (UNCOMPARABLE, UNCOMPARABLE);
        }
        self.note(name, relative, absolute, bound * self.slack);
        let shape = if ours.len() == golden.len() {
            self.golden.shape(name).unwrap_or_default().to_vec()
        } else {
            vec![ours.len()]
        };
        let bytes = ours.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.computed.push(Computed { name: name.into(), dtype: Dtype::F32, shape, bytes });
    }

    /// As [`Self::check_values`], of only the values for which `counts` is true; all values are written.
    #[cfg(feature = "train")]
    pub(crate) fn check_where(&mut self, name: &str, ours: &[f32], counts: &[bool], bound: f64) {
        let golden = self.golden.values(name).unwrap_or_default();
        if ours.len() != golden.len() || ours.len() != counts.len() {
            return self.check_values(name, &[ours], bound);
        }
        let chosen = |values: &[f32]| -> Vec<f32> {
            let pairs = values.iter().zip(counts).filter(|(_, counts)| **counts);
            pairs.map(|(value, _)| *value).collect()
        };
        let (ours_chosen, golden) = (chosen(ours), chosen(&golden));
        let relative = relative_error_above(SMALLEST_NORM, &ours_chosen, &golden);
        let differences = ours_chosen.iter().zip(&golden).map(|(a, b)| f64::from(a - b).abs());
        let absolute = differences.fold(0.0, larger);
        self.note(name, relative, absolute, bound * self.slack);
        let shape = self.golden.shape(name).unwrap_or_default().to_vec();
        let bytes = ours.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.computed.push(Computed { name: name.into(), dtype: Dtype::F32, shape, bytes });
    }

    /// Compares integers, which must be equal.
    pub(crate) fn check_equal(&mut self, name: &str, ours: &[i64], golden: &[i64]) {
        let pairs = ours.iter().zip(golden);
        let different = pairs.clone().filter(|(a, b)| a != b).count();
        let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0) as f64;
        if ours.len() == golden.len() {
            self.note(name, different as f64 / golden.len().max(1) as f64, worst, 0.0);
        } else {
            self.note(name, UNCOMPARABLE, UNCOMPARABLE, 0.0);
        }
        let shape = self.golden.shape(name).map_or(vec![ours.len()], <[usize]>::to_vec);
        // As wide as the golden's.
        let (dtype, bytes) = if self.golden.dtype(name) == Some(StoredDtype::I32) {
            let narrow = ours.iter().map(|&value| value as i32);
            (Dtype::I32, narrow.flat_map(i32::to_le_bytes).collect())
        } else {
            (Dtype::I64, ours.iter().flat_map(|value| value.to_le_bytes()).collect())
        };
        self.computed.push(Computed { name: name.into(), dtype, shape, bytes });
    }

    /// Compares pictures: the share of bytes that are more than one level off.
    pub(crate) fn check_bytes(&mut self, name: &str, ours: &[u8], bound: f64) {
        let golden = self.golden.bytes(name).unwrap_or_default();
        let off = || ours.iter().zip(&golden).map(|(a, b)| a.abs_diff(*b));
        let (share, worst) = if ours.len() == golden.len() {
            let wrong = off().filter(|&levels| levels > 1).count();
            (wrong as f64 / ours.len().max(1) as f64, f64::from(off().max().unwrap_or(0)))
        } else {
            (UNCOMPARABLE, UNCOMPARABLE)
        };
        let shape = if ours.len() == golden.len() {
            self.golden.shape(name).unwrap_or_default().to_vec()
        } else {
            vec![ours.len()]
        };
        self.note(name, share, worst, bound);
        let bytes = ours.to_vec();
        self.computed.push(Computed { name: name.into(), dtype: Dtype::U8, shape, bytes });
    }

    fn note(&mut self, name: &str, relative: f64, absolute: f64, bound: f64) {
        let finite = |value: f64| if value.is_finite() { value } else { UNCOMPARABLE };
        let (relative, absolute) = (finite(relative), finite(absolute));
        let (file, name) = (self.file.clone(), name.to_owned());
        self.checks.push(Check { file, name, relative, absolute, bound, ok: relative <= bound });
    }

    /// Waits for the device and adds what was found to `result`.
    pub(crate) async fn finish(mut self, result: &mut Verification) -> Result<(), VerifyError> {
        for Pending { name, parts, bound } in std::mem::take(&mut self.pending) {
            let mut values = Vec::new();
            for part in parts {
                values.push(read(part).await?);
            }
            let parts: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
            self.check_values(&name, &parts, bound);
        }
        for (name, integers) in std::mem::take(&mut self.pending_integers) {
            let data = data_of(integers.into_data_async().await)?.convert::<i64>();
            let ours = data.try_to_vec::<i64>().expect("converted to i64");
            self.check_equal(&name, &ours, &self.integers(&name)?);
        }
        let checked: BTreeSet<_> = self.checks.iter().map(|check| &check.name).collect();
        let inputs = self.inputs.borrow();
        // A comparison with the authors' weights (`original/…`) follows one that has reported what is left out.
        let is_first = !self.file.contains('/');
        let left = self
            .golden
            .names()
            .filter(|_| is_first)
            .filter(|name| !inputs.contains(*name) && !checked.contains(&(*name).to_owned()));
        let left = left.map(|name| format!("{}/{name}", self.file));
        result.left_out.extend(left);
        drop(inputs);
        // A value that was computed in two ways is written once.
        self.computed.sort_by(|a, b| a.name.cmp(&b.name));
        self.computed.dedup_by(|a, b| a.name == b.name);
        let views = self.computed.iter().map(|tensor| {
            let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
            (&tensor.name, view.expect("as many bytes as the shape says"))
        });
        let bytes = safetensors::serialize(views, None).expect("shapes and sizes agree");
        result.computed.insert(self.file, bytes);
        result.checks.extend(self.checks);
        Ok(())
    }
}

/// The larger of two numbers; NaN counts as the largest.
fn larger(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

/// The values of a tensor.
pub(crate) async fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, VerifyError> {
    let data = data_of(tensor.into_data_async().await)?.convert::<f32>();
    Ok(data.try_to_vec::<f32>().expect("converted to f32"))
}

fn data_of<E: std::fmt::Debug>(data: Result<TensorData, E>) -> Result<TensorData, VerifyError> {
    data.map_err(|error| wuerstchen::Error::Device(format!("{error:?}")).into())
}

#[cfg(test)]
mod tests {
    use wuerstchen::checkpoint::NamedTensor;

    use super::*;

    fn checked(golden: Vec<f32>, ours: &[f32]) -> Check {
        let golden = NamedTensor::new("y", &[golden.len()], golden);
        let golden = Checkpoint::from_tensors("x", [golden]);
        let mut recorder = Recorder::new("x", &golden, 1.0);
        recorder.check_values("y", &[ours], 0.1);
        recorder.checks.remove(0)
    }

    /// Norm of the difference 0.4, norm of the golden 5.
    #[test]
    fn errors_are_relative_to_the_norm() {
        let check = checked(vec![3.0, 4.0], &[3.0, 4.4]);
        assert!((check.relative - 0.08).abs() < 1e-6 && (check.absolute - 0.4).abs() < 1e-6);
        assert!(check.ok);
    }

    #[test]
    fn zeros_nan_and_other_sizes_give_numbers() {
        assert!(checked(vec![0.0], &[0.0]).ok);
        assert!(!checked(vec![0.0], &[1.0]).ok);
        for ours in [&[f32::NAN][..], &[], &[1.0, 2.0]] {
            let check = checked(vec![1.0], ours);
            assert!(!check.ok && check.relative.is_finite());
        }
    }
}
