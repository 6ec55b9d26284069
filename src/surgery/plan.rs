//! The plan: what each tensor of an output will be, before a byte is touched.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::plan_error::PlanError;
use crate::Result;
use crate::card::{Licences, SourceFacts};
use crate::checkpoint::expression::Expression;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::writer::TensorLayout;
use crate::checkpoint::{Encoding, dtype};

/// A checkpoint or file that a plan reads, under the name its expressions use.
#[derive(Debug)]
pub struct Source {
    /// `seed`, the name of an expert, `router`, …
    pub name: String,
    /// The opened weights.
    pub checkpoint: Checkpoint,
    /// Files beside the weights that were read or copied: configuration, tokenizer.
    pub side_files: Vec<PathBuf>,
    /// Whether it is one file that the output keeps under its name: the manifest then finds it there.
    pub kept: bool,
}

impl Source {
    /// The name of the tensor `name`, if it is there.
    pub fn tensor_of(&self, name: &str) -> Option<&str> {
        self.checkpoint
            .tensors
            .get_key_value(name)
            .map(|(name, _)| name.as_str())
    }

    /// The expression of one of its tensors as it is, also of one that its file has as a part of another.
    pub fn copy(&self, tensor: &str) -> Expression {
        self.checkpoint.expression(&self.name, tensor)
    }
}

/// One tensor of the output.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTensor {
    /// Name, dtype and shape.
    pub layout: TensorLayout,
    /// What its values are.
    pub expression: Expression,
}

impl PlannedTensor {
    /// A tensor of the output.
    pub fn new(
        name: impl Into<String>,
        dtype: dtype::Dtype,
        shape: Vec<u64>,
        expression: Expression,
    ) -> Self {
        Self {
            layout: TensorLayout {
                name: name.into(),
                dtype,
                shape,
            },
            expression,
        }
    }
}

/// A surgery: printed, executed, recorded in the manifest, and replayed against an output.
#[derive(Debug)]
pub struct Plan {
    /// The command or method: `bam`, `btx`, `merge`, `convert`, `init`, …
    pub method: String,
    /// Settings under the names of the command line; recorded.
    pub settings: Map<String, Value>,
    /// What the expressions refer to.
    pub sources: Vec<Source>,
    /// The tensors in the order of the model's layers.
    pub tensors: Vec<PlannedTensor>,
    /// What the user should know before it runs.
    pub notes: Vec<String>,
    /// Whether NaN and infinities of a source are carried over instead of refused.
    pub carries_non_finite: bool,
}

impl Plan {
    /// Bytes of all tensors of the output.
    pub fn data_length(&self) -> u64 {
        self.tensors
            .iter()
            .map(|tensor| tensor.layout.length())
            .sum()
    }

    /// Values of all tensors of the output.
    pub fn parameters(&self) -> u64 {
        self.tensors
            .iter()
            .map(|tensor| tensor.layout.shape.iter().product::<u64>())
            .sum()
    }

    /// What a person should know of the licences of the plan's models, where there are several.
    pub fn licence_notes(&self) -> Vec<String> {
        let models = self.sources.iter();
        let models = models.filter(|source| source.checkpoint.path.is_dir());
        let facts: Vec<(&str, SourceFacts)> = models
            .map(|model| (model.name.as_str(), SourceFacts::of(&model.checkpoint.path)))
            .collect();
        if facts.len() < 2 {
            Vec::new()
        } else {
            Licences::of(facts.iter().map(|(name, facts)| (*name, facts))).conflicts()
        }
    }

    /// Names, dtypes and shapes, in order.
    pub fn layouts(&self) -> Vec<TensorLayout> {
        self.tensors
            .iter()
            .map(|tensor| tensor.layout.clone())
            .collect()
    }
}

/// The source called `name`.
pub fn source<'a>(sources: &'a [Source], name: &str) -> Result<&'a Source> {
    sources
        .iter()
        .find(|source| source.name == name)
        .ok_or_else(|| {
            PlanError::UnknownSource {
                name: name.to_owned(),
                known: sources.iter().map(|source| source.name.clone()).collect(),
            }
            .into()
        })
}

/// The weights of the source called `name`, or of an adapter of one: `code+1` is the first adapter of `code`.
pub fn weights<'a>(sources: &'a [Source], name: &str) -> Result<&'a Checkpoint> {
    let of_adapter = || {
        let (owner, _) = name.rsplit_once('+')?;
        let owner = sources.iter().find(|source| source.name == owner)?;
        owner.checkpoint.adapter(&name[owner.name.len()..])
    };
    let own = sources.iter().find(|source| source.name == name);
    match own.map(|source| &source.checkpoint).or_else(of_adapter) {
        Some(found) => Ok(found),
        None => source(sources, name).map(|source| &source.checkpoint),
    }
}

/// The expression that brings a source tensor to `dtype`: its bytes where it has that dtype already.
pub fn as_dtype(source: &Source, tensor: &str, dtype: dtype::Dtype) -> Result<Expression> {
    let leaf = source.copy(tensor);
    let entry = source.checkpoint.tensor(tensor)?;
    match entry.encoding {
        Encoding::Plain(stored) if stored == dtype => Ok(leaf),
        Encoding::Plain(stored) => {
            let path = source.checkpoint.files[entry.file].path();
            if !dtype::is_numeric(stored) || !dtype::is_float(dtype) {
                return Err(PlanError::Cast {
                    path: path.to_path_buf(),
                    tensor: tensor.to_owned(),
                    stored,
                    wanted: dtype,
                }
                .into());
            }
            Ok(Expression::Cast { of: Box::new(leaf) })
        }
        Encoding::Ggml(_) => Ok(Expression::Dequantise { of: Box::new(leaf) }),
    }
}
