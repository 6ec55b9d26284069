//! A model as a GGUF file for llama.cpp.

use std::path::Path;

use serde_json::{Map, json};

use super::convert::{SOURCE, converted, files_beside, plus_one};
use super::execute::check_plan;
use super::export::{Export, Format};
use super::export_error::ExportError;
use super::fused::joined;
use super::gguf_bam;
use super::model::Model;
use super::plan::{Plan, PlannedTensor};
use super::plan_error::PlanError;
use crate::Result;
use crate::checkpoint::expression::Expression;
use crate::checkpoint::manifest::model_name;
use crate::checkpoint::{Dtype, GgufDtype, GgufLayout, GgufMetadata};
use crate::family::gguf_bam as names_of_bam;
use crate::family::gguf_check;
use crate::family::gguf_names::{self, NamedPart, NamedTensor};
use crate::family::gguf_vocabulary;

/// Plans the GGUF file of the model in the folder `path`.
///
/// Matrices are in `dtype`, or in their own where it is absent. Matrices whose rows do not fall into its blocks are in f16.
/// Norms, biases and routers are in float32.
///
/// # Errors
/// What the GGUF architecture cannot hold, and a tokenizer that llama.cpp has no name for.
pub fn plan(path: &Path, dtype: Option<GgufDtype>) -> Result<Export> {
    let model = Model::open(SOURCE, path)?;
    let a = model.architecture.clone();
    let name = model_name(path);
    let mut metadata = GgufMetadata::default();
    let factors = if a.is_bam() {
        names_of_bam::check(path, &a)?;
        names_of_bam::describe(&mut metadata, path, &a, &name)?
    } else {
        gguf_check::check(path, &a)?;
        gguf_names::describe(&mut metadata, path, &a, &name)?
    };
    let stored = model.main_dtype();
    let matrices = match dtype {
        Some(dtype) => dtype,
        None => plain(stored).ok_or_else(|| ExportError::GgufDtype {
            path: path.to_path_buf(),
            stored,
        })?,
    };
    metadata.number("general.file_type", file_type(matrices))?;
    metadata.number("general.quantization_version", 2)?;
    gguf_vocabulary::add(&mut metadata, path, &model.config.json, a.vocab_size)?;

    let mut file = FileTensors {
        model: &model,
        matrices,
        layouts: Vec::new(),
        planned: Vec::new(),
    };
    let notes = if a.is_bam() {
        gguf_bam::add(&mut file)?;
        gguf_bam::notes(&a, matrices)
    } else {
        for tensor in gguf_names::tensors(&a, &model.specs)? {
            let whole = whole(&model, &tensor)?;
            file.add_in(tensor.exact, &tensor.name, &tensor.shape, whole)?;
        }
        gguf_check::notes(&a)?
    };
    let (mut layouts, tensors) = (file.layouts, file.planned);
    for (name, values) in factors {
        layouts.push(GgufLayout {
            name: name.to_owned(),
            dtype: GgufDtype::F32,
            shape: vec![values.len() as u64],
            values: Some(values),
        });
    }
    let mut settings = Map::new();
    settings.insert("to".to_owned(), json!("gguf"));
    let mut source = model.source;
    source.side_files = files_beside(path);
    let plan = Plan {
        carries_non_finite: false,
        notes,
        ..converted(source, tensors, settings)
    };
    check_plan(&plan)?;
    Ok(Export {
        plan,
        architecture: Some(a),
        format: Format::Gguf { metadata, layouts },
    })
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

/// The tensors of a file in the making, in its order.
pub(super) struct FileTensors<'a> {
    pub(super) model: &'a Model,
    /// How matrices are stored.
    matrices: GgufDtype,
    layouts: Vec<GgufLayout>,
    planned: Vec<PlannedTensor>,
}

impl FileTensors<'_> {
    /// Adds a matrix, in the dtype of matrices where its rows fall into its blocks.
    pub(super) fn add(&mut self, name: &str, shape: &[u64], of: Expression) -> Result<()> {
        self.add_in(false, name, shape, of)
    }

    /// Adds a tensor in float32: a norm, a bias or a router.
    pub(super) fn add_exact(&mut self, name: &str, shape: &[u64], of: Expression) -> Result<()> {
        self.add_in(true, name, shape, of)
    }

    fn add_in(&mut self, is_exact: bool, name: &str, shape: &[u64], of: Expression) -> Result<()> {
        let columns = shape.last().copied().unwrap_or(1);
        let dtype = match (is_exact, self.matrices.holds_rows_of(columns)) {
            (true, _) => GgufDtype::F32,
            (false, true) => self.matrices,
            (false, false) => GgufDtype::F16,
        };
        let expression = self.model.stored_in(of, dtype.values())?;
        self.layouts.push(GgufLayout {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            values: None,
        });
        self.planned.push(PlannedTensor::new(
            name,
            dtype.values(),
            shape.to_vec(),
            expression,
        ));
        Ok(())
    }
}

/// A tensor of the file, put together from tensors of the model.
fn whole(model: &Model, tensor: &NamedTensor) -> Result<Expression> {
    let of: Vec<Expression> = tensor
        .parts
        .iter()
        .map(|part| in_file(model, part))
        .collect();
    match (tensor.shape.len(), of.is_empty()) {
        (_, true) => {
            let tensor = tensor.name.clone();
            Err(PlanError::Nothing { tensor }.into())
        }
        (3, _) => Ok(Expression::Stack { of }),
        _ => Ok(joined(of, 1)),
    }
}

/// A tensor of the model with its rows and values as the file has them.
fn in_file(model: &Model, part: &NamedPart) -> Expression {
    let mut of = model.source.copy(&part.name);
    if let Some(heads) = part.heads {
        of = Expression::Interleave {
            of: Box::new(of),
            heads,
        };
    }
    if part.plus_one {
        of = plus_one(of, 1.0);
    }
    of
}
