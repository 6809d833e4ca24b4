//! From a checkpoint's tensors to a model's parameters and back: names, layouts, strictness.

mod keys;

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, Reparameterizer};
use burn::prelude::*;
use wuerstchen_kernels::PackedMatrix;

pub use self::keys::KeyTable;
use crate::blocks::Packed;
use crate::checkpoint::{Checkpoint, NamedTensor, is_counter};
use crate::error::{Differences, LoadError};
use crate::stored::is_finite;

/// Loads a checkpoint into a module, strictly.
///
/// # Errors
///
/// Every missing, unexpected and misshapen tensor, all at once, or a tensor of a type that no weights have, or with
/// values that are not finite.
pub fn load<M: Module>(module: M, checkpoint: &Checkpoint, keys: KeyTable) -> Result<M, LoadError> {
    let mut loaded = BTreeSet::new();
    let (module, mut differences) = fill(module, checkpoint, keys, &mut loaded)?;
    differences.missing = missing(&module, keys, &loaded);
    differences.into_result(checkpoint.part(), module)
}

/// Loads the tensors of a checkpoint that has only some of the module's; `loaded` collects their names.
///
/// # Errors
///
/// Every unexpected and misshapen tensor, all at once, or a tensor of a type that no weights have, or with values that
/// are not finite.
pub fn load_some<M: Module>(
    module: M,
    checkpoint: &Checkpoint,
    keys: KeyTable,
    loaded: &mut BTreeSet<String>,
) -> Result<M, LoadError> {
    let (module, differences) = fill(module, checkpoint, keys, loaded)?;
    differences.into_result(checkpoint.part(), module)
}

/// Fails where parameters of a module are not among those `loaded`.
///
/// # Errors
///
/// Every missing tensor; `part` names the weights.
pub fn all_loaded<M: Module>(
    module: &M,
    part: &str,
    keys: KeyTable,
    loaded: &BTreeSet<String>,
) -> Result<(), LoadError> {
    let missing = missing(module, keys, loaded);
    Differences { missing, ..Default::default() }.into_result(part, ())
}

/// Compares the names and shapes of a checkpoint with a module's, and reads no values.
///
/// # Errors
///
/// Every missing, unexpected and misshapen tensor, all at once.
pub fn check<M: Module>(
    module: &M,
    checkpoint: &Checkpoint,
    keys: KeyTable,
) -> Result<(), LoadError> {
    check_shapes(&shapes(module, keys), checkpoint)
}

/// As [`check`], with the names and shapes of a module's parameters as [`shapes`] returns them.
///
/// # Errors
///
/// As [`check`].
pub fn check_shapes(
    expected: &[(String, Vec<usize>)],
    checkpoint: &Checkpoint,
) -> Result<(), LoadError> {
    let mut differences = Differences::default();
    for (name, shape) in expected {
        match checkpoint.shape(name) {
            None => differences.missing.push(name.clone()),
            Some(found) if !is_shape(found, shape) => {
                differences.misshapen.push((name.clone(), shape.clone(), found.to_vec()));
            }
            Some(_) => {}
        }
    }
    let expected: BTreeSet<_> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let unused = checkpoint.names().filter(|name| !expected.contains(name) && !is_counter(name));
    differences.unexpected = unused.map(str::to_owned).collect();
    differences.into_result(checkpoint.part(), ())
}

fn fill<M: Module>(
    module: M,
    checkpoint: &Checkpoint,
    keys: KeyTable,
    loaded: &mut BTreeSet<String>,
) -> Result<(M, Differences), LoadError> {
    let is_small = module.num_params() <= SMALL_PART;
    let mut loader = Loader {
        path: Path::default(),
        keys,
        checkpoint,
        // A browser loads a part piece by piece, so that the whole part counts and not what this checkpoint holds.
        is_small,
        loaded,
        transposed: BTreeSet::new(),
        differences: Differences::default(),
        not_finite: Vec::new(),
        error: None,
    };
    let module = module.map(&mut loader);
    // Matrices that stay packed were left out above, so that they take no memory in f32.
    let module = module.apply_reparameterization(Packer(&mut loader));
    if let Some(error) = loader.error {
        return Err(error);
    }
    if !loader.not_finite.is_empty() {
        let part = checkpoint.part().to_owned();
        return Err(LoadError::NotFinite { part, names: loader.not_finite });
    }
    let (mut differences, loaded) = (loader.differences, loader.loaded);
    let unused = checkpoint.names().filter(|name| !loaded.contains(*name) && !is_counter(name));
    differences.unexpected = unused.map(str::to_owned).collect();
    Ok((module, differences))
}

/// The names of a module's parameters that are not in `loaded`.
fn missing<M: Module>(module: &M, keys: KeyTable, loaded: &BTreeSet<String>) -> Vec<String> {
    let names = shapes(module, keys).into_iter().map(|(name, _)| name);
    names.filter(|name| !loaded.contains(name)).collect()
}

/// Names of a module's parameters and their shapes as in PyTorch. Values are not touched, so that a
/// fresh module of any size needs no memory for this.
pub fn shapes<M: Module>(module: &M, keys: KeyTable) -> Vec<(String, Vec<usize>)> {
    let mut names = Names { path: Path::default(), keys, names: Vec::new() };
    module.visit(&mut names);
    names.names
}

/// The weights of a module under their checkpoint names and in PyTorch's layout; none of them may have
/// stayed packed.
pub fn tensors<M: Module>(module: &M, keys: KeyTable) -> Vec<NamedTensor> {
    Reader::read(module, keys, &Values)
}

/// The gradients of a module's parameters, named and laid out as [`tensors`] does; parameters that
/// the loss does not reach are left out.
#[cfg(feature = "train")]
pub fn gradients<M: Module>(
    module: &M,
    gradients: &burn::tensor::Gradients,
    keys: KeyTable,
) -> Vec<NamedTensor> {
    Reader::read(module, keys, gradients)
}

/// Where a traversal of a module is.
#[derive(Default)]
struct Path {
    names: Vec<String>,
    containers: Vec<String>,
}

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        self.names.push(name.to_owned());
        self.containers.push(container.to_owned());
    }

    fn exit(&mut self) {
        self.names.pop();
        self.containers.pop();
    }

    /// The checkpoint name of the parameter here, and a tensor of its shape in PyTorch's layout.
    fn describe<const D: usize>(&self, keys: KeyTable, tensor: Tensor<D>) -> NamedTensor {
        let data = tensor.into_data().convert::<f32>();
        let shape = data.shape().to_vec();
        let values = data.try_to_vec::<f32>().expect("converted to f32");
        let name = keys.name(&self.names);
        if self.is_linear_weight() {
            let mut torch = vec![shape[1], shape[0]];
            if self.names.iter().any(|field| keys.convolutions.contains(&field.as_str())) {
                torch.extend([1, 1]);
            }
            NamedTensor { name, shape: torch, values: transpose(&values, shape[1]) }
        } else {
            NamedTensor { name, shape, values }
        }
    }

    /// Whether the parameter here is the matrix of a linear layer, which burn keeps transposed.
    fn is_linear_weight(&self) -> bool {
        self.containers.last().is_some_and(|container| container == "Struct:Linear")
            && self.names.last().is_some_and(|name| name == "weight")
    }
}

struct Loader<'a> {
    path: Path,
    keys: KeyTable,
    checkpoint: &'a Checkpoint,
    /// Whether the part has at most [`SMALL_PART`] parameters.
    is_small: bool,
    loaded: &'a mut BTreeSet<String>,
    /// Names of the matrices of linear layers that stay packed.
    transposed: BTreeSet<String>,
    differences: Differences,
    not_finite: Vec<String>,
    error: Option<LoadError>,
}

impl Loader<'_> {
    /// The values of the parameter `name` of shape `expected`, transposed if `linear`; `None` where
    /// there is nothing to load, or it stays packed.
    fn read(&mut self, name: &str, expected: &[usize], linear: bool) -> Option<Vec<f32>> {
        let found = self.checkpoint.shape(name)?;
        self.loaded.insert(name.to_owned());
        let torch = torch_shape(expected, linear);
        if !is_shape(found, &torch) {
            self.differences.misshapen.push((name.to_owned(), torch, found.to_vec()));
            return None;
        }
        if stays_packed(self.checkpoint, name, expected.len()) {
            if linear {
                self.transposed.insert(name.to_owned());
            }
            return None;
        }
        let values = match torch[..] {
            [rows, columns] if linear => {
                let (mut transposed, mut row) = (vec![0.0; rows * columns], 0);
                let taken = self.checkpoint.pieces(name, |piece| {
                    transpose_rows(piece, columns, row, &mut transposed);
                    row += piece.len() / columns;
                });
                taken.map(|()| transposed)
            }
            _ => self.checkpoint.values(name),
        };
        match values {
            Ok(values) if !values.iter().all(|value| value.is_finite()) => {
                self.not_finite.push(name.to_owned());
                None
            }
            Ok(values) => Some(values),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }

    /// The matrix `name`, which stays packed.
    fn read_packed(&mut self, name: &str, device: &Device) -> Option<Packed> {
        let shape = self.checkpoint.shape(name)?;
        match self.checkpoint.planes(name) {
            Ok(Some((packing, planes))) if is_finite(packing, &planes) => {
                let mut matrix = PackedMatrix::new(packing, [shape[0], shape[1]], planes, device);
                let is_frozen = !device.is_autodiff();
                if is_frozen && !matrix.has_kernel() && self.is_small {
                    matrix = matrix.keep_unpacked();
                }
                Some(Packed { matrix, transposed: self.transposed.contains(name) })
            }
            Ok(Some(_)) => {
                self.not_finite.push(name.to_owned());
                None
            }
            Ok(None) => None,
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }
}

/// Most parameters of a part whose matrices are unpacked once, where the device has no kernel for packed ones. This
/// takes at most 64 MiB more memory for each part. It saves a third of the time of a picture of the built-in model.
const SMALL_PART: usize = 1 << 24;

/// A parameter's shape in PyTorch, which stores the matrix of a linear layer transposed.
fn torch_shape(shape: &[usize], linear: bool) -> Vec<usize> {
    match shape {
        [input, output] if linear => vec![*output, *input],
        _ => shape.to_vec(),
    }
}

/// Whether a stored tensor has the shape `expected`; a 1x1 convolution is a linear layer with two
/// more axes of length 1.
fn is_shape(found: &[usize], expected: &[usize]) -> bool {
    found == expected
        || (expected.len() == 2
            && found.len() == 4
            && found[..2] == *expected
            && found[2..] == [1, 1])
}

/// Whether a parameter of rank `rank` is kept as the checkpoint packs it.
fn stays_packed(checkpoint: &Checkpoint, name: &str, rank: usize) -> bool {
    let packing = checkpoint.dtype(name).zip(checkpoint.shape(name));
    rank == 2 && packing.is_some_and(|(dtype, shape)| dtype.packing(shape).is_some())
}

/// Puts packed matrices where a [`Loader`] has left parameters out.
struct Packer<'a, 'b>(&'a mut Loader<'b>);

impl Reparameterizer for Packer<'_, '_> {
    type Reparam = Packed;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Packed>) {
        if D != 2 {
            return (param, None);
        }
        let names: Vec<_> = path.split('.').map(str::to_owned).collect();
        let name = self.0.keys.name(&names);
        let packed = if stays_packed(self.0.checkpoint, &name, D) {
            self.0.read_packed(&name, &param.lazy_device())
        } else {
            None
        };
        (param, packed)
    }
}

/// Transposes rows of `columns` values.
fn transpose(values: &[f32], columns: usize) -> Vec<f32> {
    let mut transposed = vec![0.0; values.len()];
    transpose_rows(values, columns, 0, &mut transposed);
    transposed
}

/// Puts `rows` of `columns` values, the rows of a matrix from `first` on, where they belong in the
/// transposed matrix. It goes by squares that fit in the processor's cache.
fn transpose_rows(rows: &[f32], columns: usize, first: usize, transposed: &mut [f32]) {
    const SIDE: usize = 32;
    let count = rows.len() / columns.max(1);
    let width = transposed.len() / columns.max(1);
    for top in (0..count).step_by(SIDE) {
        for left in (0..columns).step_by(SIDE) {
            for row in top..count.min(top + SIDE) {
                for column in left..columns.min(left + SIDE) {
                    transposed[column * width + first + row] = rows[row * columns + column];
                }
            }
        }
    }
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let (name, linear) = (self.keys.name(&self.path.names), self.path.is_linear_weight());
        let Some(values) = self.read(&name, shape.as_slice(), linear) else { return param };
        let tensor = Tensor::from_data(TensorData::new(values, shape), &param.lazy_device());
        let id = param.id;
        param.transform_for_load(tensor, id)
    }
}

/// What a [`Reader`] takes from every parameter.
trait Source {
    /// The tensor to read for the parameter; `None` to leave it out.
    fn tensor<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>>;
}

/// The parameters themselves.
struct Values;

impl Source for Values {
    fn tensor<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
        Some(param.val())
    }
}

#[cfg(feature = "train")]
impl Source for burn::tensor::Gradients {
    fn tensor<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
        param.val().grad(self)
    }
}

struct Reader<'a, S> {
    path: Path,
    keys: KeyTable,
    source: &'a S,
    tensors: Vec<NamedTensor>,
}

impl<'a, S: Source> Reader<'a, S> {
    fn read<M: Module>(module: &M, keys: KeyTable, source: &'a S) -> Vec<NamedTensor> {
        let mut reader = Self { path: Path::default(), keys, source, tensors: Vec::new() };
        module.visit(&mut reader);
        reader.tensors
    }
}

impl<S: Source> ModuleVisitor for Reader<'_, S> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(tensor) = self.source.tensor(param) {
            self.tensors.push(self.path.describe(self.keys, tensor));
        }
    }
}

/// Lists names and PyTorch's shapes without touching values, which would initialise parameters that
/// wait for them.
struct Names {
    path: Path,
    keys: KeyTable,
    names: Vec<(String, Vec<usize>)>,
}

impl ModuleVisitor for Names {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let shape = torch_shape(param.lazy_shape().as_slice(), self.path.is_linear_weight());
        self.names.push((self.keys.name(&self.path.names), shape));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use burn::nn::{Linear, LinearConfig};

    use crate::checkpoint::WeightDtype;
    use crate::part::PartConfig;
    use crate::prior::PriorConfig;
    use crate::stored::{Stored, StoredDtype};

    fn prior_config() -> PriorConfig {
        PriorConfig { c_in: 2, c: 4, c_cond: 3, c_r: 4, depth: 1, nhead: 2, dropout: 0.0 }
    }

    #[test]
    fn writes_what_it_reads() {
        let device = Device::flex();
        let written = tensors(&prior_config().init(&device), KeyTable::DIFFUSION);
        let checkpoint = Checkpoint::from_tensors("prior", written.clone());
        let loaded = load(prior_config().init(&device), &checkpoint, KeyTable::DIFFUSION).unwrap();
        assert_eq!(tensors(&loaded, KeyTable::DIFFUSION), written);
        let bytes = Checkpoint::write([("".into(), &checkpoint)], WeightDtype::F32, None).unwrap();
        let parsed = Checkpoint::parse("prior", Arc::new(bytes)).unwrap();
        assert!(load(loaded, &parsed, KeyTable::DIFFUSION).is_ok());
    }

    #[derive(Module, Debug)]
    struct Square {
        layer: Linear,
    }

    /// Only the layer tells which way round a square matrix lies.
    #[test]
    fn a_packed_matrix_lies_as_the_layer_keeps_it() {
        let (device, shape) = (Device::flex(), [3, 3]);
        let values: Vec<f32> = (0..9).map(|i| i as f32).collect();
        let bytes = Stored::new(&shape, &values, StoredDtype::I8).bytes;
        let range = 0..bytes.len();
        let mut checkpoint = Checkpoint::empty("square");
        let (name, bytes) = ("layer.weight", Arc::new(bytes));
        checkpoint.insert(name, StoredDtype::I8, &shape, bytes, range).unwrap();
        let square = Square { layer: LinearConfig::new(3, 3).with_bias(false).init(&device) };
        let square = load(square, &checkpoint, KeyTable::FIELDS).unwrap();
        let found = square.layer.weight.val().transpose().into_data();
        assert_eq!(found.try_to_vec::<f32>().unwrap(), checkpoint.values(name).unwrap());
    }

    #[test]
    fn reports_every_difference_at_once() {
        let device = Device::flex();
        let mut tensors = tensors(&prior_config().init(&device), KeyTable::DIFFUSION);
        tensors.retain(|tensor| tensor.name != "blocks.2.kv_mapper.1.bias");
        tensors.push(NamedTensor::new("surprise", &[1], vec![0.0]));
        let bias = tensors.iter_mut().find(|tensor| tensor.name == "projection.bias").unwrap();
        *bias = NamedTensor::new("projection.bias", &[2], vec![0.0; 2]);
        let checkpoint = Checkpoint::from_tensors("prior", tensors);
        let error = load(prior_config().init(&device), &checkpoint, KeyTable::DIFFUSION);
        let message = error.unwrap_err().to_string();
        assert_eq!(
            message,
            "prior: the weights do not fit the config\n  missing: blocks.2.kv_mapper.1.bias\n  \
             unexpected: surprise\n  misshapen: projection.bias: expected [4], found [2]"
        );
    }
}
