//! A model as a GGUF file for llama.cpp.
//!
//! The file has no manifest beside it: taken back with `convert`, its tensors are compared with `diff`.

use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use super::convert::{SOURCE, converted, side_files};
use super::evaluate::Evaluator;
use super::execute::check_plan;
use super::model::Model;
use super::plan::{Plan, PlannedTensor};
use crate::checkpoint::expression::Expression;
use crate::checkpoint::output::{check_free_space, resolved};
use crate::checkpoint::{Dtype, GgufDtype, GgufLayout, GgufMetadata, dtype, single, write_gguf};
use crate::family::gguf_names::{self, NamedTensor};
use crate::family::{Architecture, gguf_vocabulary};
use crate::{Error, Result};

/// Name of the frequency factors of the rotary embedding.
const FACTORS: &str = "rope_freqs.weight";

/// A file to be.
#[derive(Debug)]
pub struct Export {
    /// Its tensors that have a source, in order.
    pub plan: Plan,
    /// What it holds.
    pub architecture: Architecture,
    layouts: Vec<GgufLayout>,
    metadata: GgufMetadata,
}

/// Plans the GGUF file of the model in the folder `path`: matrices in `dtype` (theirs where absent; rows that do not fall into its
/// blocks in f16), norms, biases and routers in float32.
///
/// # Errors
/// What the GGUF architecture `llama` cannot hold, and a tokenizer that llama.cpp has no name for.
pub fn plan(path: &Path, dtype: Option<GgufDtype>) -> Result<Export> {
    let model = Model::open(SOURCE, path)?;
    let a = model.architecture.clone();
    gguf_names::check(&a)?;
    let stored = model.main_dtype();
    let matrices = match dtype {
        Some(dtype) => dtype,
        None => plain(stored).ok_or_else(|| {
            Error::file(path, format!("its weights are {stored}, which a GGUF file does not hold"))
                .with_hint("pass --dtype f16, bf16 or f32")
        })?,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut metadata = GgufMetadata::default();
    let factors = gguf_names::describe(&mut metadata, &a, &name)?;
    metadata.number("general.file_type", file_type(matrices))?;
    metadata.number("general.quantization_version", 2)?;
    gguf_vocabulary::add(&mut metadata, path, &model.config.json, a.vocab_size)?;
    let mut layouts = Vec::new();
    let mut tensors = Vec::new();
    for tensor in gguf_names::tensors(&a, &model.specs)? {
        let columns = tensor.shape.last().copied().unwrap_or(1);
        let dtype = match (tensor.exact, matrices.holds_rows_of(columns)) {
            (true, _) => GgufDtype::F32,
            (false, true) => matrices,
            (false, false) => GgufDtype::F16,
        };
        let expression = expression(&model, &tensor, dtype.values())?;
        layouts.push(GgufLayout { name: tensor.name.clone(), dtype, shape: tensor.shape.clone(), values: None });
        tensors.push(PlannedTensor::new(tensor.name, dtype.values(), tensor.shape, expression));
    }
    if let Some(factors) = factors {
        let shape = vec![factors.len() as u64];
        layouts.push(GgufLayout { name: FACTORS.to_owned(), dtype: GgufDtype::F32, shape, values: Some(factors) });
    }
    let mut settings = Map::new();
    settings.insert("to".to_owned(), json!("gguf"));
    let mut source = model.source;
    source.side_files = side_files(path);
    let plan = Plan { carries_non_finite: false, ..converted(source, tensors, settings) };
    check_plan(&plan)?;
    Ok(Export { plan, architecture: a, layouts, metadata })
}

fn plain(dtype: Dtype) -> Option<GgufDtype> {
    match dtype {
        Dtype::F32 => Some(GgufDtype::F32),
        Dtype::F16 => Some(GgufDtype::F16),
        Dtype::BF16 => Some(GgufDtype::BF16),
        _ => None,
    }
}

/// llama.cpp's number for files whose matrices are mostly of this dtype.
fn file_type(dtype: GgufDtype) -> u64 {
    match dtype {
        GgufDtype::F32 => 0,
        GgufDtype::F16 => 1,
        GgufDtype::Q8_0 => 7,
        GgufDtype::BF16 => 32,
    }
}

fn expression(model: &Model, tensor: &NamedTensor, wanted: Dtype) -> Result<Expression> {
    let mut of = Vec::with_capacity(tensor.parts.len());
    let mut same = true;
    for part in &tensor.parts {
        let entry = model.source.checkpoint.tensor(part)?;
        let stored = entry.encoding.plain().filter(|stored| dtype::is_float(*stored)).ok_or_else(|| {
            let path = model.source.checkpoint.files[entry.file].path();
            Error::tensor(path, part, format!("is {}, expected a floating-point dtype", entry.encoding))
        })?;
        same &= stored == wanted;
        of.push(Expression::copy(SOURCE, part));
    }
    let whole = match (tensor.shape.len(), of.pop()) {
        (3, Some(last)) => {
            of.push(last);
            Expression::Stack { of }
        }
        (_, Some(one)) => one,
        (_, None) => return Err(Error::usage(format!("nothing is known for `{}`", tensor.name))),
    };
    let ordered = match tensor.heads {
        Some(heads) => Expression::Interleave { of: Box::new(whole), heads },
        None => whole,
    };
    Ok(if same { ordered } else { Expression::Cast { of: Box::new(ordered) } })
}

impl Export {
    /// Bytes of the tensors.
    pub fn length(&self) -> u64 {
        self.layouts.iter().map(GgufLayout::length).sum()
    }

    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        self.layouts.len()
    }

    /// Refuses a target that cannot be written now: another file than a GGUF file, or any without `force`; a full disk.
    pub fn check_place(&self, path: &Path, force: bool) -> Result<()> {
        let absolute = resolved(path)?;
        for source in &self.plan.sources {
            let folder: PathBuf = resolved(&source.checkpoint.path)?;
            if absolute.starts_with(&folder) {
                let problem = format!("lies inside the source {}", source.checkpoint.path.display());
                return Err(Error::file(path, problem).with_hint("choose an output outside every source"));
            }
        }
        if std::fs::symlink_metadata(path).is_ok() {
            if !force {
                return Err(Error::file(path, "exists already").with_hint("choose another file, or pass --force"));
            }
            if !path.is_file() || !single::starts_with(path, b"GGUF") {
                return Err(Error::file(path, "exists and is no GGUF file, so --force does not replace it"));
            }
        }
        check_free_space(path, self.length())
    }

    /// Writes the file with so many threads, complete or not at all.
    pub fn write(&self, path: &Path, threads: usize, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let evaluator = Evaluator::new(&self.plan.tensors, &self.plan.sources)?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| Error::compute("start the worker threads", e))?;
        pool.install(|| write_gguf(path, &self.metadata, &self.layouts, &evaluator, progress))?;
        self.plan.sources.iter().try_for_each(|source| source.checkpoint.check_unchanged())
    }
}
