//! The tensors of a checkpoint as one archive of numpy arrays.

use std::path::Path;

use serde_json::json;

use super::convert;
use super::execute::check_plan;
use super::export::{Export, Format};
use super::export_error::ExportError;
use super::plan::PlannedTensor;
use crate::Result;
use crate::checkpoint::dtype::Dtype;
use crate::checkpoint::expression::Expression;
use crate::checkpoint::npz;
use crate::family::{Architecture, Config};
use crate::table::counted;

/// Extents of an array that every version of numpy reads.
const MOST_EXTENTS: usize = 32;

/// Plans the archive of every tensor of `path`: floating-point tensors in `dtype`, theirs where absent. numpy lacks bfloat16, whose
/// values float32 holds exactly; quantised values are taken to float32 as well.
///
/// # Errors
/// Dtypes, names and shapes that numpy or an archive does not hold, each tensor by name.
pub fn plan(path: &Path, dtype: Option<Dtype>) -> Result<Export> {
    if let Some(dtype) = dtype.filter(|dtype| npz::descr(*dtype).is_none()) {
        return Err(ExportError::NumpyDtype { dtype }.into());
    }
    let (mut plan, _) = convert::plan(path, dtype)?;
    let mut widened = 0;
    for tensor in &mut plan.tensors {
        widened += u64::from(tensor.layout.dtype == Dtype::BF16);
        if tensor.layout.dtype == Dtype::BF16 {
            widen(tensor);
        }
        check(path, tensor)?;
    }
    if widened > 0 {
        let tensors = counted(widened, "tensor");
        plan.notes.push(format!(
            "numpy has no bf16: {tensors} stored in f32, which holds the same values"
        ));
    }
    plan.notes.push(
        "an archive holds tensors alone: configuration and tokenizer stay with the source"
            .to_owned(),
    );
    plan.settings.insert("to".to_owned(), json!("npz"));
    check_plan(&plan)?;
    // Of a family that is not known there is just less to say.
    let architecture =
        Config::read_if_present(path)?.and_then(|config| Architecture::of(&config).ok());
    Ok(Export {
        plan,
        architecture,
        format: Format::Npz,
    })
}

/// Makes a tensor that would be bfloat16 float32.
fn widen(tensor: &mut PlannedTensor) {
    tensor.layout.dtype = Dtype::F32;
    if let Expression::Copy { .. } | Expression::Adapted { .. } = tensor.expression {
        tensor.expression = Expression::Cast {
            of: Box::new(tensor.expression.clone()),
        };
    }
}

fn check(path: &Path, tensor: &PlannedTensor) -> Result<()> {
    let layout = &tensor.layout;
    let (path, tensor) = (path.to_path_buf(), layout.name.clone());
    if npz::descr(layout.dtype).is_none() {
        let stored = layout.dtype;
        return Err(ExportError::ArrayDtype {
            path,
            tensor,
            stored,
        }
        .into());
    }
    if !npz::holds_name(&layout.name) {
        return Err(ExportError::ArrayName { path, tensor }.into());
    }
    if layout.shape.len() > MOST_EXTENTS {
        return Err(ExportError::ArrayExtents {
            path,
            tensor,
            found: layout.shape.len(),
            most: MOST_EXTENTS,
        }
        .into());
    }
    Ok(())
}
