//! The two layouts of a stock mixture's experts. Classic is one tensor per expert and projection. Fused is one tensor
//! for all experts of a layer, as transformers 5 saves them. The bytes of an expert are the same, and lie together, in
//! both.

use serde::Serialize;

use super::architecture::Architecture;
use super::error::FamilyError;
use super::role::Role;
use super::tensors::TensorSpec;
use crate::Result;
use crate::checkpoint::{Checkpoint, TensorEntry};

/// How the experts of a stock mixture are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpertLayout {
    /// One tensor an expert and projection: what every program reads.
    Classic,
    /// All experts of a layer in one tensor: transformers 5.
    Fused,
}

/// A tensor of the fused layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FusedTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Names of the classic tensors in the order in which they lie in it, as matrices one below the other.
    pub parts: Vec<String>,
}

impl Architecture {
    /// In which layout a checkpoint of this architecture stores its experts: fused where it has any tensor of that layout.
    pub fn expert_layout(&self, checkpoint: &Checkpoint) -> Result<ExpertLayout> {
        let Some(names) = self.names()?.fused_tensors.clone() else {
            return Ok(ExpertLayout::Classic);
        };
        let fused = |layer: u64| {
            let stored = |pattern: &str| checkpoint.tensors.contains_key(&in_layer(pattern, layer));
            stored(&names.gate_up) || stored(&names.down)
        };
        Ok(if (0..self.num_layers).any(fused) {
            ExpertLayout::Fused
        } else {
            ExpertLayout::Classic
        })
    }

    /// The tensors of the fused layout that stand for some of `specs`, the classic tensors of this architecture. A router is one
    /// only where its name differs.
    pub fn fused_tensors(&self, specs: &[TensorSpec]) -> Result<Vec<FusedTensor>> {
        let Some(names) = self.names()?.fused_tensors.clone() else {
            return Ok(Vec::new());
        };
        let Some(mixture) = &self.mixture else {
            return Ok(Vec::new());
        };
        let (experts, width, hidden) = (
            mixture.num_experts,
            mixture.moe_intermediate_size,
            self.hidden_size,
        );
        let mut found: Vec<FusedTensor> = Vec::new();
        for spec in specs {
            let Some(layer) = spec.layer else { continue };
            let (pattern, shape) = match (spec.role, spec.expert) {
                (Role::Gate | Role::Up, Some(_)) => {
                    (&names.gate_up, vec![experts, 2 * width, hidden])
                }
                (Role::Down, Some(_)) => (&names.down, vec![experts, hidden, width]),
                (Role::FfnRouter, None) => (&names.ffn_router, spec.shape.clone()),
                _ => continue,
            };
            let name = in_layer(pattern, layer);
            if name == spec.name {
                continue;
            }
            match found
                .iter_mut()
                .rev()
                .take(3)
                .find(|tensor| tensor.name == name)
            {
                Some(tensor) => tensor.parts.push(spec.name.clone()),
                None => found.push(FusedTensor {
                    name,
                    shape,
                    parts: vec![spec.name.clone()],
                }),
            }
        }
        Ok(found)
    }

    /// The same checkpoint with the experts of the fused layout under their classic names, each in its place in the file.
    pub fn with_experts_apart(&self, mut checkpoint: Checkpoint) -> Result<Checkpoint> {
        if self.expert_layout(&checkpoint)? == ExpertLayout::Classic {
            return Ok(checkpoint);
        }
        for fused in self.fused_tensors(&self.tensors()?)? {
            let Some(entry) = checkpoint.tensors.remove(&fused.name) else {
                continue;
            };
            let path = checkpoint.files[entry.file].path();
            if entry.shape != fused.shape {
                return Err(FamilyError::WrongShape {
                    path: path.to_path_buf(),
                    tensor: fused.name,
                    found: entry.shape.into(),
                    expected: fused.shape.into(),
                }
                .into());
            }
            let parts = fused.parts.len() as u64;
            if !entry.length.is_multiple_of(parts) {
                return Err(FamilyError::UnevenParts {
                    path: path.to_path_buf(),
                    tensor: fused.name,
                    length: entry.length,
                    parts,
                }
                .into());
            }
            let (length, rows) = (
                entry.length / parts,
                fused.shape[..fused.shape.len() - 1].iter().product::<u64>(),
            );
            let columns = fused.shape.last().copied().unwrap_or(1);
            for (number, name) in (0..).zip(fused.parts) {
                let shape = vec![rows / parts, columns];
                let offset = entry.offset + number * length;
                let entry = TensorEntry {
                    file: entry.file,
                    offset,
                    length,
                    encoding: entry.encoding,
                    shape,
                };
                if checkpoint.tensors.insert(name.clone(), entry).is_some() {
                    return Err(FamilyError::StoredTwice {
                        path: checkpoint.path,
                        tensor: name,
                        fused: fused.name,
                    }
                    .into());
                }
            }
        }
        Ok(checkpoint)
    }

    /// The same checkpoint under the names of [`Architecture::tensors`], however it is stored.
    pub fn as_read(&self, checkpoint: Checkpoint) -> Result<Checkpoint> {
        self.with_experts_apart(self.with_tied_embedding(checkpoint)?)
    }

    /// Refuses the fused layout where the names of tensors are recorded.
    pub fn refuse_fused(&self, checkpoint: &Checkpoint) -> Result<()> {
        match self.expert_layout(checkpoint)? {
            ExpertLayout::Classic => Ok(()),
            ExpertLayout::Fused => Err(FamilyError::Fused {
                path: checkpoint.path.clone(),
            }
            .into()),
        }
    }
}

fn in_layer(pattern: &str, layer: u64) -> String {
    pattern.replace("{l}", &layer.to_string())
}
