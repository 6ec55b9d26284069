//! Tensors that hold several tensors of an architecture, which every reader sees apart.
//!
//! Some families have one tensor for several projections of a layer. A stock mixture has two layouts: classic is one tensor per
//! expert and projection, and fused is one tensor for all experts of a layer, as transformers 5 saves them.

use serde::Serialize;

use super::architecture::Architecture;
use super::error::FamilyError;
use super::multimodal::Multimodal;
use super::names::{FusedProjections, QkvOrder, bias_of, in_layer};
use super::role::Role;
use super::tensors::TensorSpec;
use crate::Result;
use crate::checkpoint::fused::PartFault;
use crate::checkpoint::{Checkpoint, FusedTensor};

/// How the experts of a stock mixture are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpertLayout {
    /// One tensor an expert and projection: what every program reads.
    Classic,
    /// All experts of a layer in one tensor: transformers 5.
    Fused,
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
            let part = (spec.name.clone(), spec.shape.clone());
            match found
                .iter_mut()
                .rev()
                .take(3)
                .find(|tensor| tensor.name == name)
            {
                Some(tensor) => tensor.parts.push(part),
                None => found.push(FusedTensor {
                    name,
                    shape,
                    blocks: 1,
                    parts: vec![part],
                }),
            }
        }
        Ok(found)
    }

    /// The tensors of the family that hold several of the projections `specs`, each with its bias.
    pub fn fused_projections(&self, specs: &[TensorSpec]) -> Result<Vec<FusedTensor>> {
        let family = self.names()?;
        let Some(names) = &family.fused else {
            return Ok(Vec::new());
        };
        let blocks = match names.qkv_order {
            QkvOrder::Stacked => 1,
            QkvOrder::PerGroup => self.num_kv_heads,
        };
        let mut found: Vec<FusedTensor> = Vec::new();
        for spec in specs.iter().filter(|spec| spec.expert.is_none()) {
            let Some((pattern, layer)) = pattern_of(names, spec) else {
                continue;
            };
            let weight = in_layer(pattern, layer);
            let name = if spec.bias { bias_of(&weight) } else { weight };
            let part = (spec.name.clone(), spec.shape.clone());
            let rows = spec.shape.first().copied().unwrap_or(0);
            match found
                .iter_mut()
                .rev()
                .take(2)
                .find(|tensor| tensor.name == name)
            {
                Some(tensor) => {
                    tensor.parts.push(part);
                    if let Some(all) = tensor.shape.first_mut() {
                        *all += rows;
                    }
                }
                None => found.push(FusedTensor {
                    name,
                    shape: spec.shape.clone(),
                    blocks: if spec.role.of_attention() { blocks } else { 1 },
                    parts: vec![part],
                }),
            }
        }
        Ok(found)
    }

    /// The name under which a file of the family has a tensor, or the tensor that holds it.
    pub(super) fn stored_name(&self, spec: &TensorSpec) -> String {
        let fused = self.fused_projections(std::slice::from_ref(spec));
        let whole = fused.ok().and_then(|mut fused| fused.pop());
        whole.map_or_else(|| spec.name.clone(), |whole| whole.name)
    }

    /// The same checkpoint with the experts of the fused layout under their classic names, each in its place in the file.
    fn with_experts_apart(&self, mut checkpoint: Checkpoint) -> Result<Checkpoint> {
        if self.expert_layout(&checkpoint)? == ExpertLayout::Fused {
            for fused in self.fused_tensors(&self.tensors()?)? {
                take_apart(&mut checkpoint, &fused)?;
            }
        }
        Ok(checkpoint)
    }

    /// The same checkpoint with each projection under a name of its own, in its place in the file.
    fn with_projections_apart(&self, mut checkpoint: Checkpoint) -> Result<Checkpoint> {
        if self.names()?.fused.is_none() {
            return Ok(checkpoint);
        }
        for fused in self.fused_projections(&self.tensors()?)? {
            let held = |name: &str| checkpoint.tensors.contains_key(name);
            if !held(&fused.name) && fused.parts.iter().any(|(name, _)| held(name)) {
                return Err(FamilyError::NoTensor {
                    path: checkpoint.path,
                    tensor: fused.name,
                    family: self.family.clone(),
                }
                .into());
            }
            take_apart(&mut checkpoint, &fused)?;
        }
        Ok(checkpoint)
    }

    /// The same checkpoint under the names of [`Architecture::tensors`], however it is stored.
    pub fn as_read(&self, checkpoint: Checkpoint) -> Result<Checkpoint> {
        let checkpoint = self.with_tied_embedding(self.with_language_model(checkpoint)?)?;
        self.with_projections_apart(self.with_experts_apart(checkpoint)?)
    }

    /// The same checkpoint with the tensors of the language model under the names of its family, each in its place in the file.
    fn with_language_model(&self, mut checkpoint: Checkpoint) -> Result<Checkpoint> {
        if self.multimodal.is_none() {
            return Ok(checkpoint);
        }
        let names: Vec<String> = checkpoint.tensors.keys().cloned().collect();
        for stored in names {
            let name = Multimodal::name_in_family(&stored);
            if let Some(name) = name.filter(|name| !checkpoint.tensors.contains_key(name)) {
                checkpoint.rename(&stored, name);
            }
        }
        Ok(checkpoint)
    }

    /// Whether files may have other names than [`Architecture::tensors`], each reader of which sees these.
    pub(crate) fn has_other_names(&self) -> Result<bool> {
        Ok(self.multimodal.is_some() || self.names()?.fused.is_some())
    }

    /// The roles whose rows lie between rows of others in a file, so that a model has copies of them in place of the file's pages.
    pub(crate) fn scattered_roles(&self) -> Result<&'static [Role]> {
        let family = self.names()?;
        let is_scattered =
            |names: &FusedProjections| names.qkv.is_some() && names.qkv_order == QkvOrder::PerGroup;
        Ok(if family.fused.as_ref().is_some_and(is_scattered) {
            &[Role::Q, Role::K, Role::V]
        } else {
            &[]
        })
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

/// Replaces a stored tensor by its parts, where the checkpoint has it in its shape.
fn take_apart(checkpoint: &mut Checkpoint, fused: &FusedTensor) -> Result<()> {
    let Some(entry) = checkpoint.tensors.get(&fused.name) else {
        return Ok(());
    };
    let path = checkpoint.files[entry.file].path().to_path_buf();
    let (shape, length) = (entry.shape.clone(), entry.length);
    if shape != fused.shape {
        return Err(FamilyError::WrongShape {
            path,
            tensor: fused.name.clone(),
            found: shape.into(),
            expected: fused.shape.clone().into(),
        }
        .into());
    }
    let error = match checkpoint.take_apart(fused) {
        Ok(()) => return Ok(()),
        Err(PartFault::Uneven) => FamilyError::UnevenParts {
            path,
            tensor: fused.name.clone(),
            length,
            parts: fused.parts.len() as u64,
        },
        Err(PartFault::Twice { tensor }) => FamilyError::StoredTwice {
            path: checkpoint.path.clone(),
            tensor,
            fused: fused.name.clone(),
        },
    };
    Err(error.into())
}

/// The pattern of the tensor that holds a projection, and the layer.
fn pattern_of<'a>(names: &'a FusedProjections, spec: &TensorSpec) -> Option<(&'a str, u64)> {
    let pattern = match spec.role {
        Role::Q | Role::K | Role::V => names.qkv.as_deref(),
        Role::Gate | Role::Up => names.gate_up.as_deref(),
        _ => None,
    };
    pattern.zip(spec.layer)
}
