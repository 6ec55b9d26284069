//! A source model: weights, configuration and tokenizer that belong together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::fit_error::FitError;
use super::plan::Source;
use crate::Result;
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::expression::Expression;
use crate::checkpoint::folder::{Checkpoint, INDEX, PYTORCH_INDEX};
pub use crate::checkpoint::folder::{companions, existing};
use crate::checkpoint::{Encoding, TensorEntry};
use crate::family::{Architecture, Config, Role, TensorSpec, described};

/// A checkpoint whose tensors have been matched with what its configuration says it holds.
#[derive(Debug)]
pub struct Model {
    /// Weights and side files, under the name that plans use.
    pub source: Source,
    /// Its `config.json`, or the part of it that describes the language model.
    pub config: Config,
    /// What the configuration says.
    pub architecture: Architecture,
    /// Every tensor it has, in the order of the layers.
    pub specs: Vec<TensorSpec>,
    /// Tensors of the file that no reader uses, such as computed buffers and stored copies of tied heads.
    pub unused: Vec<String>,
}

impl Model {
    /// Opens the folder `path` and matches names and shapes both ways.
    pub fn open(name: &str, path: &Path) -> Result<Self> {
        described::expect_folder(path)?;
        let config = Config::read(path)?;
        let architecture = Architecture::of(&config)?;
        let config = config.language_model()?.into_owned();
        let specs = architecture.tensors()?;
        let checkpoint = Checkpoint::open(path)?;
        checkpoint.expect_layout(path)?;
        architecture.refuse_fused(&checkpoint)?;
        let checkpoint = architecture.as_read(checkpoint)?;
        let mut side_files = vec![config.path.clone()];
        side_files.extend(existing(
            path,
            &[INDEX, PYTORCH_INDEX, crate::checkpoint::manifest::MANIFEST],
        ));
        side_files.extend(companions(path)?);
        let source = Source {
            name: name.to_owned(),
            checkpoint,
            side_files,
            kept: false,
        };
        let unused = architecture.match_tensors(&specs, &source.checkpoint)?;
        Ok(Self {
            source,
            config,
            architecture,
            specs,
            unused,
        })
    }

    /// What a user should know of the tensors that no reader uses, where there are any.
    pub(super) fn unused_note(&self) -> Option<String> {
        let (name, count) = (&self.source.name, self.unused.len());
        let first = self.unused.first()?;
        Some(format!(
            "{name}: {count} stored tensor(s) that the model does not use are left out, such as `{first}`"
        ))
    }

    /// The entry of a spec's tensor.
    pub fn entry(&self, spec: &TensorSpec) -> Result<&TensorEntry> {
        self.source.checkpoint.tensor(&spec.name)
    }

    /// The dtype of a spec's tensor.
    pub fn dtype(&self, spec: &TensorSpec) -> Result<Dtype> {
        match self.entry(spec)?.encoding {
            Encoding::Plain(dtype) => Ok(dtype),
            Encoding::Ggml(ggml) => Err(FitError::WrongEncoding {
                path: self.source.checkpoint.path.clone(),
                tensor: spec.name.clone(),
                found: ggml.name().to_owned(),
                expected: "plain numbers",
            }
            .into()),
        }
    }

    /// The expression of a spec's tensor as a part of an average: its values must be floating-point numbers.
    pub fn averaged(&self, spec: &TensorSpec) -> Result<Expression> {
        let stored = self.dtype(spec)?;
        if dtype::is_float(stored) {
            return Ok(self.source.copy(&spec.name));
        }
        Err(FitError::NotAveraged {
            path: self.source.checkpoint.path.clone(),
            tensor: spec.name.clone(),
            stored,
        }
        .into())
    }

    /// The dtype that new tensors get: the dtype of the input embedding where it is a float, else float32.
    pub fn main_dtype(&self) -> Dtype {
        let embedding = self.specs.iter().find(|spec| spec.role == Role::Embedding);
        let stored = embedding.and_then(|spec| self.dtype(spec).ok());
        stored
            .filter(|stored| dtype::is_float(*stored) && stored.bitsize() >= 16)
            .unwrap_or(Dtype::F32)
    }

    /// `of` in the dtype `wanted`: as it is where all tensors that it is made of have that dtype, else rounded.
    pub(super) fn stored_in(&self, of: Expression, wanted: Dtype) -> Result<Expression> {
        let mut same = true;
        for stored in self.parts_of(&of)? {
            same &= stored == wanted;
        }
        Ok(if same {
            of
        } else {
            Expression::Cast { of: Box::new(of) }
        })
    }

    /// The narrowest dtype that holds the values of all tensors that `of` is made of; the dtype of new tensors where it is made of none.
    pub(super) fn common_dtype(&self, of: &Expression) -> Result<Dtype> {
        let parts = self.parts_of(of)?;
        let wider = |a, b| {
            if dtype::holds(a, b) {
                a
            } else if dtype::holds(b, a) {
                b
            } else {
                Dtype::F32
            }
        };
        Ok(parts
            .into_iter()
            .reduce(wider)
            .unwrap_or_else(|| self.main_dtype()))
    }

    /// The dtypes of the tensors that `of` is made of, which must be floating-point numbers.
    fn parts_of(&self, of: &Expression) -> Result<Vec<Dtype>> {
        let checkpoint = &self.source.checkpoint;
        let mut names = Vec::new();
        of.for_each_copy(&mut |_, tensor| names.push(tensor));
        let stored = names.into_iter().map(|tensor| {
            let entry = checkpoint.tensor(tensor)?;
            let stored = entry.encoding.plain();
            stored
                .filter(|stored| dtype::is_float(*stored))
                .ok_or_else(|| {
                    FitError::WrongEncoding {
                        path: checkpoint.files[entry.file].path().to_path_buf(),
                        tensor: tensor.to_owned(),
                        found: entry.encoding.to_string(),
                        expected: "a floating-point dtype",
                    }
                    .into()
                })
        });
        stored.collect()
    }

    /// Tensor specs by what they are for: role, bias or weight, layer.
    pub fn by_role(&self) -> BTreeMap<(Role, bool, Option<u64>), &TensorSpec> {
        self.specs
            .iter()
            .map(|spec| ((spec.role, spec.bias, spec.layer), spec))
            .collect()
    }

    /// Path of a file of this model's folder.
    pub fn path(&self, file: &str) -> PathBuf {
        self.source.checkpoint.path.join(file)
    }

    /// The companion files that the folder has.
    pub fn companions(&self) -> Result<Vec<PathBuf>> {
        companions(&self.source.checkpoint.path)
    }
}
