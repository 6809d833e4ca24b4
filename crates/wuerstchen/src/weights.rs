//! From a checkpoint's tensors to a model's parameters and back: names, layouts, strictness.

use std::collections::BTreeSet;
use std::fmt;

use burn::module::{
    Module, ModuleMapper, ModuleVisitor, Param, Reparameterization, Reparameterizer,
};
use burn::nn::Linear;
use burn::prelude::*;
use wuerstchen_kernels::{PackedMatrix, linear, packed_linear};

use crate::checkpoint::{Checkpoint, NamedTensor};
use crate::stored::is_finite;

/// Why weights cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is not a safetensors file.
    #[error("{part}: not a safetensors file: {reason}")]
    Format {
        /// Which weights.
        part: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is of a type that no weights have.
    #[error("{part}: tensor {name:?} is {found}, expected f64, f32, f16 or bf16")]
    Dtype {
        /// Which weights.
        part: String,
        /// Name of the tensor.
        name: String,
        /// Its type.
        found: String,
    },
    /// The bytes of a tensor cannot be read.
    #[error("{part}: cannot read tensor {name:?}: {reason}")]
    Read {
        /// Which weights.
        part: String,
        /// Name of the tensor.
        name: String,
        /// What the system says.
        reason: String,
    },
    /// Tensors hold what no computation survives.
    #[error("{part}: not a number or infinite: {}", names.join(", "))]
    NotFinite {
        /// Which weights.
        part: String,
        /// Names of the tensors.
        names: Vec<String>,
    },
    /// The tensors are not those of the model.
    #[error("{part}: the weights do not fit the config{differences}")]
    Mismatch {
        /// Which weights.
        part: String,
        /// Every tensor that differs.
        differences: Differences,
    },
    /// A file of the model is not there.
    #[error("expected the file {path:?} in the model, found {}", if found.is_empty() { "nothing" } else { found })]
    MissingFile {
        /// Its path in the model folder.
        path: String,
        /// What is there instead.
        found: String,
    },
    /// A text file is not what it should be.
    #[error("{path}: {reason}")]
    File {
        /// Its path in the model folder.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A config asks for what the architecture cannot be.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A tokenizer cannot be made.
    #[error(transparent)]
    Tokenizer(#[from] crate::text::TokenizerError),
}

/// Every difference between a model's parameters and a checkpoint's tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Names that the model needs and the checkpoint lacks.
    pub missing: Vec<String>,
    /// Names that the checkpoint has and the model does not know.
    pub unexpected: Vec<String>,
    /// Name, expected shape, found shape.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl Differences {
    /// `value` if nothing differs.
    fn into_result<T>(self, part: &str, value: T) -> Result<T, LoadError> {
        match self == Self::default() {
            true => Ok(value),
            false => Err(LoadError::Mismatch { part: part.to_owned(), differences: self }),
        }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.missing {
            write!(f, "\n  missing: {name}")?;
        }
        for name in &self.unexpected {
            write!(f, "\n  unexpected: {name}")?;
        }
        for (name, expected, found) in &self.misshapen {
            write!(f, "\n  misshapen: {name}: expected {expected:?}, found {found:?}")?;
        }
        Ok(())
    }
}

/// Training counters of batch norms and position numbers, which no model needs.
pub(crate) fn is_counter(name: &str) -> bool {
    name.ends_with("num_batches_tracked") || name.ends_with("position_ids")
}

/// How a model's fields lie in a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct KeyTable {
    /// Field names and what they become: pairs of path segments, applied in order.
    names: &'static [(&'static str, &'static str)],
    /// Fields whose linear layers are 1x1 convolutions in PyTorch, with two more axes of length 1.
    convolutions: &'static [&'static str],
}

impl KeyTable {
    /// The field names themselves, as training states use them.
    pub const FIELDS: Self = Self { names: &[], convolutions: &[] };

    /// Names of the prior, the decoder, and both of Stable Cascade.
    pub const DIFFUSION: Self = Self {
        names: &[
            ("cond_in", "cond_mapper.0"),
            ("cond_out", "cond_mapper.2"),
            ("out", "out.1"),
            ("clf", "clf.1"),
            ("embedding", "embedding.1"),
            ("Res", ""),
            ("Timestep", ""),
            ("Attention", ""),
            ("Downscale", "1"),
            ("Upscale", "1"),
            ("expand", "0"),
            ("response_norm", "2"),
            ("contract", "4"),
            ("scale_shift", "mapper"),
            ("conditions.0", "mapper_sca"),
            ("conditions.1", "mapper_crp"),
            ("Shrink.map", "1.blocks.0"),
            ("Grow.map", "1.blocks.1"),
            ("inner", "0"),
            ("outer", "2"),
            ("to_out", "to_out.0"),
            ("kv_mapper", "kv_mapper.1"),
        ],
        convolutions: &[
            "projection",
            "out",
            "embedding",
            "clf",
            "effnet_mappers",
            "inner",
            "outer",
            "map",
            "down_repeat_mappers",
            "up_repeat_mappers",
        ],
    };

    /// Names of the VQGAN.
    pub const VQGAN: Self = Self {
        names: &[
            ("in_block", "in_block.1"),
            ("out_block", "out_block.0"),
            ("Mixing", ""),
            ("Downscale", ""),
            ("Upscale", ""),
            ("ToLatents.map", "0"),
            ("ToLatents.norm", "1"),
            ("FromLatents.map", "0"),
            ("depthwise", "depthwise.1"),
            ("expand", "0"),
            ("contract", "2"),
            ("vquantizer.embedding", "vquantizer.embedding.weight"),
        ],
        convolutions: &["in_block", "out_block", "map"],
    };

    /// Names of the semantic compressor.
    pub const COMPRESSOR: Self = Self {
        names: &[
            ("projection", "mapper"),
            ("Conv", ""),
            ("Blocks", ""),
            ("Squeeze", ""),
            ("conv", "0.weight"),
            ("norm", "1"),
        ],
        convolutions: &["fc1", "fc2"],
    };

    /// Names of the text encoder.
    pub const TEXT: Self = Self {
        names: &[
            ("token_embedding", "text_model.embeddings.token_embedding.weight"),
            ("position_embedding", "text_model.embeddings.position_embedding.weight"),
            ("layers", "text_model.encoder.layers"),
            ("final_layer_norm", "text_model.final_layer_norm"),
            ("gamma", "weight"),
            ("beta", "bias"),
        ],
        convolutions: &[],
    };

    fn name(self, path: &[String]) -> String {
        let mut name = format!(".{}.", path.join("."));
        for (field, key) in self.names {
            let key = if key.is_empty() { ".".to_owned() } else { format!(".{key}.") };
            name = name.replace(&format!(".{field}."), &key);
        }
        name.trim_matches('.').to_owned()
    }
}

/// Loads a checkpoint into a module, strictly.
///
/// # Errors
///
/// Every missing, unexpected and misshapen tensor, all at once, or a tensor of a type that no
/// weights have.
pub fn load<M: Module>(module: M, checkpoint: &Checkpoint, keys: KeyTable) -> Result<M, LoadError> {
    let mut loaded = BTreeSet::new();
    let (module, mut differences) = fill(module, checkpoint, keys, &mut loaded)?;
    differences.missing = missing(&module, keys, &loaded);
    differences.into_result(checkpoint.part(), module)
}

/// Loads the tensors that a checkpoint has, a part of the module's; `loaded` collects their names.
///
/// # Errors
///
/// Every unexpected and misshapen tensor, all at once, or a tensor of a type that no weights have.
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
    let expected = shapes(module, keys);
    let mut differences = Differences::default();
    for (name, shape) in &expected {
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
    let differences = Differences::default();
    let (path, not_finite) = (Path::default(), Vec::new());
    let mut loader =
        Loader { path, keys, checkpoint, loaded, differences, not_finite, error: None };
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

/// The weights of a module under their checkpoint names and in PyTorch's layout.
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
        match self.is_linear_weight() {
            true => {
                let mut torch = vec![shape[1], shape[0]];
                if self.names.iter().any(|field| keys.convolutions.contains(&field.as_str())) {
                    torch.extend([1, 1]);
                }
                (name, torch, transpose(&values, shape[1]))
            }
            false => (name, shape, values),
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
    loaded: &'a mut BTreeSet<String>,
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
                let matrix = PackedMatrix::new(packing, [shape[0], shape[1]], planes, device);
                Some(Packed { matrix })
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

/// A parameter's shape in PyTorch, which keeps the matrix of a linear layer the other way round.
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

/// A matrix as the checkpoint packs it, in the layout of PyTorch, in place of a weight in f32.
#[derive(Module, Debug)]
struct Packed {
    matrix: PackedMatrix,
}

impl Reparameterization for Packed {
    const NAME: &'static str = "packed";

    /// The matrix in f32; layers use [`affine`] instead, which leaves it packed.
    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let (matrix, shape) = (self.matrix.unpack(), base.dims());
        match matrix.dims()[..] == shape[..] {
            true => matrix.reshape(shape),
            false => matrix.transpose().reshape(shape),
        }
    }
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
        let names: Vec<_> = path.split('.').map(str::to_owned).collect();
        let name = self.0.keys.name(&names);
        let packed = match stays_packed(self.0.checkpoint, &name, D) {
            true => self.0.read_packed(&name, &param.lazy_device()),
            false => None,
        };
        (param, packed)
    }
}

/// A linear layer, whether its weight is packed or not.
///
/// # Shapes
///
/// - x: `[…, d_input]`
/// - output: `[…, d_output]`
pub(crate) fn affine<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    let bias = layer.bias.as_ref().map(Param::val);
    match layer.weight.reparameterization::<Packed>() {
        Some(packed) => packed_linear(x, &packed.matrix, bias),
        None => linear(x, layer.weight.val(), bias),
    }
}

/// The weight of a linear layer in f32, whether it is packed or not.
///
/// # Shapes
///
/// - output: `[d_input, d_output]`
fn dense(layer: &Linear) -> Tensor<2> {
    match layer.weight.reparameterization::<Packed>() {
        Some(packed) => packed.matrix.unpack().transpose(),
        None => layer.weight.val(),
    }
}

/// A linear layer of `x` with the output of another, `mapper(z)`, appended, without making the latter:
///
/// `[x, z·M + m]·W + b = x·W₁ + z·(M·W₂) + (m·W₂ + b)`, with `W₁` the rows of `x` and `W₂` the rest.
///
/// # Shapes
///
/// - x: `[…, K]`
/// - mapper: `N` to `S`
/// - z: `[…, N]`
/// - layer: `K + S` to `d_output`
/// - output: `[…, d_output]`
pub(crate) fn affine_of_mapped<const D: usize>(
    layer: &Linear,
    x: Tensor<D>,
    mapper: &Linear,
    z: Tensor<D>,
) -> Tensor<D> {
    let (kept, narrow) = (x.dims()[D - 1], z.dims()[D - 1]);
    let device = x.device();
    let map = dense(mapper);
    let wide = map.dims()[1];
    let shift = match &mapper.bias {
        Some(bias) => bias.val().unsqueeze(),
        None => Tensor::zeros([1, wide], &device),
    };
    let rows = Tensor::cat(vec![map, shift], 0);
    // From what W₂ makes of these rows: the matrix of z, and the bias.
    let split = |folded: Tensor<2>| {
        let shift = folded.clone().narrow(0, narrow, 1).squeeze_dim::<1>(0);
        let bias = match &layer.bias {
            Some(bias) => bias.val() + shift,
            None => shift,
        };
        (folded.narrow(0, 0, narrow), Some(bias))
    };
    let packed = layer.weight.reparameterization::<Packed>().map(|packed| &packed.matrix);
    match packed.filter(|matrix| matrix.has_kernel()) {
        Some(matrix) => {
            let none = Tensor::zeros([narrow + 1, kept], &device);
            let folded = packed_linear(Tensor::cat(vec![none, rows], 1), matrix, None);
            let (folded, bias) = split(folded);
            packed_linear(x, matrix, bias) + linear(z, folded, None)
        }
        None => {
            let weight = dense(layer);
            let (folded, bias) = split(rows.matmul(weight.clone().narrow(0, kept, wide)));
            let weight = Tensor::cat(vec![weight.narrow(0, 0, kept), folded], 0);
            linear(Tensor::cat(vec![x, z], D - 1), weight, bias)
        }
    }
}

/// Rows of an embedding, whether it is packed or not.
///
/// # Shapes
///
/// - rows: `[R]`
/// - output: `[R, width]`
pub(crate) fn embed(embedding: &Param<Tensor<2>>, rows: Tensor<1, Int>) -> Tensor<2> {
    match embedding.reparameterization::<Packed>() {
        Some(packed) => packed.matrix.select(rows),
        None => embedding.val().select(0, rows),
    }
}

/// Transposes rows of `columns` values.
fn transpose(values: &[f32], columns: usize) -> Vec<f32> {
    let mut transposed = vec![0.0; values.len()];
    transpose_rows(values, columns, 0, &mut transposed);
    transposed
}

/// Puts `rows` of `columns` values, the rows of a matrix from `first` on, where they belong in the
/// transposed matrix; in squares that fit a cache.
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

/// What a [`Reader`] collects of every parameter.
trait Source {
    /// `None` to leave the parameter out.
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

    use crate::PriorConfig;
    use crate::checkpoint::WeightDtype;

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

    #[test]
    fn reports_every_difference_at_once() {
        let device = Device::flex();
        let mut tensors = tensors(&prior_config().init(&device), KeyTable::DIFFUSION);
        tensors.retain(|(name, ..)| name != "blocks.2.kv_mapper.1.bias");
        tensors.push(("surprise".into(), vec![1], vec![0.0]));
        let bias = tensors.iter_mut().find(|(name, ..)| name == "projection.bias").unwrap();
        *bias = ("projection.bias".into(), vec![2], vec![0.0; 2]);
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
