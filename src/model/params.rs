//! The parameters of a model: every tensor of its checkpoint under its own name, and nothing else.
//!
//! Names and shapes come from [`Architecture::tensors`] and are matched with the checkpoint both ways, so that a
//! mistyped name can neither be left at random nor be ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;

use super::error::ModelError;
use super::stored::{Pages, StoredMatrix};
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::{Checkpoint, Encoding, TensorEntry};
use crate::family::{Architecture, Config, Place, Role, TensorSpec, described};
use crate::{Error, Result};

/// Whether a model has a backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// With a backward pass.
    Train,
    /// Without one, as fast as possible.
    Infer,
}

/// How the weights of a frozen model are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// In [`LoadOptions::dtype`], whatever the file holds.
    Widened,
    /// bfloat16 matrices stay in the pages of the file, and are widened in registers while they are multiplied: the
    /// same products in half the memory. Without effect where this cannot be: on another device than the CPU, in
    /// another dtype than float32, and in [`Mode::Train`]. Nor has it an effect on matrices that are not bfloat16, or whose
    /// rows do not lie together.
    Stored,
}

/// Which operations a model may compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Computation {
    /// The fastest ones for the device and dtype.
    Fastest,
    /// The operations of a GPU, on any device: nothing looks at numbers within a step. This shows on a CPU what a GPU computes.
    AsOnGpu,
}

/// Which parameters are variables that get gradients; the others are frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trainable {
    /// None.
    None,
    /// All.
    All,
    /// The parameters with these names.
    Only(BTreeSet<String>),
}

/// How to load a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where it computes.
    pub device: Device,
    /// In what it computes: activations, cache, and widened weights. Routers and logits are float32 at least.
    pub dtype: DType,
    /// With or without a backward pass.
    pub mode: Mode,
    /// With which operations.
    pub computation: Computation,
    /// How weights are held.
    pub weights: Weights,
    /// Which parameters get gradients.
    pub trainable: Trainable,
}

impl Default for LoadOptions {
    /// Frozen inference in float32 on the CPU.
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
            mode: Mode::Infer,
            computation: Computation::Fastest,
            weights: Weights::Stored,
            trainable: Trainable::None,
        }
    }
}

impl LoadOptions {
    /// Every parameter a float32 variable on `device`, with differentiable operations.
    pub fn train(device: Device) -> Self {
        Self {
            device,
            dtype: DType::F32,
            mode: Mode::Train,
            computation: Computation::Fastest,
            weights: Weights::Widened,
            trainable: Trainable::All,
        }
    }

    pub(super) fn has_kernels(&self) -> bool {
        self.computation == Computation::Fastest && has_kernels(&self.device, self.dtype)
    }

    fn check(&self) -> Result<()> {
        if self.mode == Mode::Infer && self.trainable != Trainable::None {
            return Err(ModelError::TrainableInference.into());
        }
        if !matches!(
            self.dtype,
            DType::F64 | DType::F32 | DType::F16 | DType::BF16
        ) {
            return Err(ModelError::ComputeDtype { found: self.dtype }.into());
        }
        Ok(())
    }
}

/// Whether kernels exist for a device and dtype: float32 on the CPU. This is the one rule about both.
pub fn has_kernels(device: &Device, dtype: DType) -> bool {
    device.is_cpu() && dtype == DType::F32
}

/// Where a parameter's numbers are.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A tensor that gets gradients.
    Variable(Var),
    /// A tensor that gets none.
    Frozen(Tensor),
    /// A bfloat16 matrix in the pages of its file.
    Stored(Arc<StoredMatrix>),
}

/// One parameter.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name, shape, role and place.
    pub spec: TensorSpec,
    pub(super) value: Value,
}

impl Parameter {
    /// The variable, where the parameter is trainable.
    pub fn var(&self) -> Option<&Var> {
        match &self.value {
            Value::Variable(var) => Some(var),
            Value::Frozen(_) | Value::Stored(_) => None,
        }
    }
}

/// The parameters of one model by name.
#[derive(Debug, Clone)]
pub struct Params {
    path: PathBuf,
    parameters: BTreeMap<String, Parameter>,
    places: BTreeMap<Place, String>,
}

impl Params {
    /// Loads the checkpoint in `folder`, which `architecture` describes.
    ///
    /// A missing, unexpected or misshapen tensor is an error that names it, as is a trainable name that is none.
    pub fn load(folder: &Path, architecture: &Architecture, options: &LoadOptions) -> Result<Self> {
        options.check()?;
        let specs = architecture.tensors()?;
        let checkpoint = architecture.as_read(Checkpoint::open(folder)?)?;
        checkpoint.expect_layout(folder)?;
        architecture.match_tensors(&specs, &checkpoint)?;
        let keep_stored = options.weights == Weights::Stored
            && options.mode == Mode::Infer
            && options.has_kernels();
        let pages: Vec<Option<Arc<Pages>>> = checkpoint
            .files
            .iter()
            .map(|file| {
                if keep_stored {
                    Pages::map(file.path(), file.len()).map(Some)
                } else {
                    Ok(None)
                }
            })
            .collect::<Result<_>>()?;
        let value = |spec: &TensorSpec| {
            let entry = checkpoint.tensor(&spec.name)?;
            if let (Some(pages), Encoding::Plain(Dtype::BF16), [rows, columns]) =
                (&pages[entry.file], entry.encoding, &spec.shape[..])
                && entry.runs.is_none()
                && !checkpoint.is_adapted(entry)
                && !(spec.role.is_router() || matches!(spec.role, Role::QNorm | Role::KNorm))
            {
                let stored = StoredMatrix::new(
                    pages,
                    entry.offset as usize,
                    *rows as usize,
                    *columns as usize,
                );
                return Ok(Value::Stored(Arc::new(stored)));
            }
            let tensor = read(&checkpoint, entry, spec, options)?;
            let value = || {
                let value = wrap(spec, tensor, options)?;
                // On a GPU each thread has a stream of its own, for which other threads do not wait.
                options.device.synchronize()?;
                Ok(value)
            };
            value().map_err(|e: candle_core::Error| {
                Error::compute(format!("load tensor `{}`", spec.name), e)
            })
        };
        let values: Vec<Value> = specs.par_iter().map(value).collect::<Result<_>>()?;
        checkpoint.check_unchanged()?;
        Self::new(folder, specs.into_iter().zip(values), options)
    }

    /// The parameters of `architecture` out of `tensors` of any dtype, matched both ways; `path` names them in errors.
    pub fn from_tensors(
        path: &Path,
        architecture: &Architecture,
        mut tensors: BTreeMap<String, Tensor>,
        options: &LoadOptions,
    ) -> Result<Self> {
        options.check()?;
        let mut values = Vec::new();
        for spec in architecture.tensors()? {
            let missing = || missing_tensor(path, &spec.name);
            let tensor = tensors.remove(&spec.name).ok_or_else(missing)?;
            if !tensor
                .dims()
                .iter()
                .map(|extent| *extent as u64)
                .eq(spec.shape.iter().copied())
            {
                return Err(ModelError::TensorShape {
                    path: path.to_path_buf(),
                    found: tensor.dims().to_vec(),
                    expected: spec.shape,
                    tensor: spec.name,
                }
                .into());
            }
            let value = tensor
                .to_device(&options.device)
                .and_then(|tensor| tensor.to_dtype(options.dtype))
                .and_then(|tensor| wrap(&spec, tensor.detach(), options))
                .map_err(|e| Error::compute(format!("load tensor `{}`", spec.name), e))?;
            values.push((spec, value));
        }
        if let Some(name) = tensors.keys().next() {
            return Err(ModelError::UnknownTensor {
                path: path.to_path_buf(),
                tensor: name.clone(),
            }
            .into());
        }
        Self::new(path, values, options)
    }

    fn new(
        path: &Path,
        values: impl IntoIterator<Item = (TensorSpec, Value)>,
        options: &LoadOptions,
    ) -> Result<Self> {
        let mut found = Self {
            path: path.to_path_buf(),
            parameters: BTreeMap::new(),
            places: BTreeMap::new(),
        };
        for (spec, value) in values {
            found.places.insert(spec.place(), spec.name.clone());
            found
                .parameters
                .insert(spec.name.clone(), Parameter { spec, value });
        }
        if let Trainable::Only(names) = &options.trainable
            && let Some(unknown) = names
                .iter()
                .find(|name| !found.parameters.contains_key(*name))
        {
            return Err(ModelError::NotTrainable {
                path: path.to_path_buf(),
                tensor: unknown.clone(),
            }
            .into());
        }
        Ok(found)
    }

    /// The folder they were loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All parameters, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Parameter)> {
        self.parameters
            .iter()
            .map(|(name, parameter)| (name.as_str(), parameter))
    }

    /// The parameter of this name.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.parameters.get(name)
    }

    /// The parameters that get gradients, by name.
    pub fn vars(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.iter()
            .filter_map(|(name, parameter)| Some((name, parameter.var()?)))
    }

    /// A copy of a parameter's numbers as a tensor `[out, in]` of the dtype that it is held in.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let parameter = self
            .parameters
            .get(name)
            .ok_or_else(|| missing_tensor(&self.path, name))?;
        match &parameter.value {
            Value::Variable(var) => Ok(var.as_detached_tensor()),
            Value::Frozen(tensor) => Ok(tensor.clone()),
            Value::Stored(stored) => stored
                .to_tensor()
                .map_err(|e| Error::compute(format!("read tensor `{name}`"), e)),
        }
    }

    pub(super) fn at(
        &self,
        role: Role,
        bias: bool,
        layer: Option<u64>,
        expert: Option<u64>,
    ) -> Option<&Value> {
        let name = self.places.get(&(role, bias, layer, expert))?;
        self.parameters.get(name).map(|parameter| &parameter.value)
    }
}

fn wrap(spec: &TensorSpec, tensor: Tensor, options: &LoadOptions) -> candle_core::Result<Value> {
    let trainable = match &options.trainable {
        Trainable::None => false,
        Trainable::All => true,
        Trainable::Only(names) => names.contains(&spec.name),
    };
    Ok(if trainable {
        Value::Variable(Var::from_tensor(&tensor)?)
    } else {
        Value::Frozen(tensor)
    })
}

/// A tensor's values in the dtype of the options, rounded once at most.
fn read(
    checkpoint: &Checkpoint,
    entry: &TensorEntry,
    spec: &TensorSpec,
    options: &LoadOptions,
) -> Result<Tensor> {
    let path = checkpoint.files[entry.file].path();
    let shape: Vec<usize> = spec.shape.iter().map(|extent| *extent as usize).collect();
    let failed = |e: candle_core::Error| Error::compute(format!("load tensor `{}`", spec.name), e);
    let Encoding::Plain(stored) = entry.encoding else {
        return Err(ModelError::Quantised {
            path: path.to_path_buf(),
            tensor: spec.name.clone(),
            found: entry.encoding,
        }
        .into());
    };
    if !dtype::is_float(stored) {
        return Err(ModelError::NotFloat {
            path: path.to_path_buf(),
            tensor: spec.name.clone(),
            found: stored,
        }
        .into());
    }
    let elements = entry.elements() as usize;
    let tensor = match stored {
        Dtype::BF16 | Dtype::F32 if options.dtype != DType::F64 => {
            let mut bytes = vec![0; entry.length as usize];
            checkpoint.read_bytes(entry, 0, &mut bytes)?;
            let values: Vec<f32> = if stored == Dtype::BF16 {
                bytes
                    .chunks_exact(2)
                    .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                    .collect()
            } else {
                bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect()
            };
            Tensor::from_vec(values, shape, &options.device)
        }
        _ => {
            let mut values = vec![0f64; elements];
            checkpoint.read_values(entry, 0, &mut values, &mut Vec::new())?;
            if options.dtype == DType::F64 {
                Tensor::from_vec(values, shape, &options.device)
            } else {
                let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
                Tensor::from_vec(values, shape, &options.device)
            }
        }
    };
    tensor
        .and_then(|tensor| tensor.to_dtype(options.dtype))
        .map_err(failed)
}

/// The architecture of the checkpoint in `folder`, and its configuration.
pub(super) fn describe(folder: &Path) -> Result<(Config, Architecture)> {
    described::expect_folder(folder)?;
    let config = Config::read(folder)?;
    let architecture = Architecture::of(&config)?;
    Ok((config.language_model()?.into_owned(), architecture))
}

fn missing_tensor(path: &Path, tensor: &str) -> ModelError {
    ModelError::MissingTensor {
        path: path.to_path_buf(),
        tensor: tensor.to_owned(),
    }
}
