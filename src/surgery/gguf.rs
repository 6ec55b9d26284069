//! A model as a GGUF file for llama.cpp.

use std::path::Path;

use serde_json::{Map, json};

use super::convert::{SOURCE, converted, files_beside};
use super::execute::check_plan;
use super::export::{Export, Format};
use super::export_error::ExportError;
use super::fit_error::FitError;
use super::model::Model;
use super::plan::{Plan, PlannedTensor};
use super::plan_error::PlanError;
use crate::Result;
use crate::checkpoint::expression::Expression;
use crate::checkpoint::manifest::model_name;
use crate::checkpoint::{Dtype, GgufDtype, GgufLayout, GgufMetadata, dtype};
use crate::family::gguf_names::{self, NamedTensor};
use crate::family::gguf_vocabulary;

/// Name of the frequency factors of the rotary embedding.
const FACTORS: &str = "rope_freqs.weight";

/// Plans the GGUF file of the model in the folder `path`.
///
/// Matrices are in `dtype`, or in their own where it is absent. Matrices whose rows do not fall into its blocks are in f16.
/// Norms, biases and routers are in float32.
///
/// # Errors
/// What the GGUF architecture `llama` cannot hold, and a tokenizer that llama.cpp has no name for.
pub fn plan(path: &Path, dtype: Option<GgufDtype>) -> Result<Export> {
    let model = Model::open(SOURCE, path)?;
    let a = model.architecture.clone();
    gguf_names::check(path, &a)?;
    let stored = model.main_dtype();
    let matrices = match dtype {
        Some(dtype) => dtype,
        None => plain(stored).ok_or_else(|| ExportError::GgufDtype {
            path: path.to_path_buf(),
            stored,
        })?,
    };
    let name = model_name(path);
    let mut metadata = GgufMetadata::default();
    let factors = gguf_names::describe(&mut metadata, path, &a, &name)?;
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
        layouts.push(GgufLayout {
            name: tensor.name.clone(),
            dtype,
            shape: tensor.shape.clone(),
            values: None,
        });
        tensors.push(PlannedTensor::new(
            tensor.name,
            dtype.values(),
            tensor.shape,
            expression,
        ));
    }
    if let Some(factors) = factors {
        let shape = vec![factors.len() as u64];
        layouts.push(GgufLayout {
            name: FACTORS.to_owned(),
            dtype: GgufDtype::F32,
            shape,
            values: Some(factors),
        });
    }
    let mut settings = Map::new();
    settings.insert("to".to_owned(), json!("gguf"));
    let mut source = model.source;
    source.side_files = files_beside(path);
    let plan = Plan {
        carries_non_finite: false,
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

fn expression(model: &Model, tensor: &NamedTensor, wanted: Dtype) -> Result<Expression> {
    let mut of = Vec::with_capacity(tensor.parts.len());
    let mut same = true;
    for part in &tensor.parts {
        let entry = model.source.checkpoint.tensor(part)?;
        let stored = entry
            .encoding
            .plain()
            .filter(|stored| dtype::is_float(*stored))
            .ok_or_else(|| FitError::WrongEncoding {
                path: model.source.checkpoint.files[entry.file]
                    .path()
                    .to_path_buf(),
                tensor: part.clone(),
                found: entry.encoding.to_string(),
                expected: "a floating-point dtype",
            })?;
        same &= stored == wanted;
        of.push(model.source.copy(part));
    }
    let whole = match (tensor.shape.len(), of.pop()) {
        (3, Some(last)) => {
            of.push(last);
            Expression::Stack { of }
        }
        (_, Some(one)) => one,
        (_, None) => {
            let tensor = tensor.name.clone();
            return Err(PlanError::Nothing { tensor }.into());
        }
    };
    let ordered = match tensor.heads {
        Some(heads) => Expression::Interleave {
            of: Box::new(whole),
            heads,
        },
        None => whole,
    };
    Ok(if same {
        ordered
    } else {
        Expression::Cast {
            of: Box::new(ordered),
        }
    })
}
