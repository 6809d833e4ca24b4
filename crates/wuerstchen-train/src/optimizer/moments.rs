//! Adafactor's moments in a saved state: one list of numbers for each parameter that has moments.

use std::collections::BTreeSet;

use burn::module::{Module, ParamId};
use burn::prelude::*;
use wuerstchen::checkpoint::NamedTensor;
use wuerstchen::weights::{KeyTable, shapes};
use wuerstchen::{Checkpoint, Differences, LoadError};

use super::adafactor;
use crate::values::{Values, visited};

/// The moments under the names of their parameters.
pub(crate) fn write<M: Module>(part: &str, model: &M, moments: &Values) -> Checkpoint {
    let tensors = parameters(model).filter_map(|(id, name, _)| {
        let values = moments.get(&id)?.clone().into_data();
        let values = values.try_to_vec::<f32>().expect("moments are f32");
        Some(NamedTensor::new(name, &[values.len()], values))
    });
    Checkpoint::from_tensors(part, tensors)
}

/// Fails unless a model has the moments of a saved state; reads no values.
///
/// # Errors
///
/// A parameter has another number of moments, or moments have a name that no parameter has.
pub(crate) fn check<M: Module>(model: &M, saved: &Checkpoint) -> Result<(), LoadError> {
    let mut differences = Differences::default();
    let mut unused: BTreeSet<_> = saved.names().collect();
    for (_, name, shape) in parameters(model) {
        let Some(found) = saved.shape(&name) else { continue };
        unused.remove(name.as_str());
        let expected = adafactor::moments(&shape);
        // A discriminator beside the model is trained by AdamW, which keeps one second moment for every weight.
        let all: usize = shape.iter().product();
        if found != [expected] && found != [all] {
            differences.misshapen.push((name, vec![expected], found.to_vec()));
        }
    }
    differences.unexpected = unused.into_iter().map(str::to_owned).collect();
    if differences == Differences::default() {
        return Ok(());
    }
    Err(LoadError::Mismatch { part: saved.part().to_owned(), differences })
}

/// The moments of a saved state that has passed [`check`], on a device without autodiff.
///
/// # Errors
///
/// The moments cannot be read.
pub(crate) fn read<M: Module>(
    model: &M,
    saved: &Checkpoint,
    device: &Device,
) -> Result<Values, LoadError> {
    let mut moments = Values::new();
    for (id, name, _) in parameters(model).filter(|(_, name, _)| saved.has(name)) {
        let values = saved.values(&name)?;
        let length = [values.len()];
        moments.insert(id, Tensor::from_data(TensorData::new(values, length), device));
    }
    Ok(moments)
}

/// The parameters of a model, and their names and shapes in a state.
fn parameters<M: Module>(model: &M) -> impl Iterator<Item = (ParamId, String, Vec<usize>)> {
    let shapes = shapes(model, KeyTable::STATES);
    visited(model).into_iter().zip(shapes).map(|(id, (name, shape))| (id, name, shape))
}
