//! Tensors that hold several tensors of an architecture, which every reader sees apart.
//!
//! Some families have one tensor for several projections of a layer. A stock mixture has two layouts: classic is one tensor per
//! expert and projection, and fused is one tensor for all experts of a layer, as transformers 5 saves them.

use std::collections::BTreeSet;

use serde::Serialize;

use super::architecture::Architecture;
use super::error::FamilyError;
use super::multimodal::Multimodal;
use super::names::{FusedProjections, FusedTensorNames, QkvOrder, bias_of, in_layer};
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
        Ok(gathered(specs, |spec| self.in_layout(&names, spec)))
    }

    fn in_layout<'a>(&self, names: &'a FusedTensorNames, spec: &TensorSpec) -> Option<Holder<'a>> {
        let experts = Some(self.mixture.as_ref()?.num_experts);
        let (pattern, entries) = match (spec.role, spec.expert, spec.bias) {
            (Role::Gate | Role::Up, Some(_), false) => (&names.gate_up, experts),
            (Role::Down, Some(_), false) => (&names.down, experts),
            (Role::FfnRouter, None, false) => (&names.ffn_router, None),
            (Role::FfnRouter, None, true) => (names.ffn_router_bias.as_ref()?, Some(1)),
            _ => return None,
        };
        Some(Holder {
            pattern,
            bias: false,
            entries,
            blocks: 1,
        })
    }

    /// The tensors of the family that hold several of the projections `specs`, each with its bias.
    pub fn fused_projections(&self, specs: &[TensorSpec]) -> Result<Vec<FusedTensor>> {
        let family = self.names()?;
        let Some(names) = &family.fused else {
            return Ok(Vec::new());
        };
        Ok(self.fused_under(names, specs))
    }

    /// The tensors of these names that hold several of the projections `specs`, each with its bias.
    pub(super) fn fused_under(
        &self,
        names: &FusedProjections,
        specs: &[TensorSpec],
    ) -> Vec<FusedTensor> {
        gathered(specs, |spec| self.in_projections(names, spec))
    }

    fn in_projections<'a>(
        &self,
        names: &'a FusedProjections,
        spec: &TensorSpec,
    ) -> Option<Holder<'a>> {
        let experts = self.mixture.as_ref().map(|mixture| mixture.num_experts);
        let (pattern, entries) = match (spec.role, spec.expert, spec.bias) {
            (Role::Gate | Role::Up, Some(_), false) => (names.expert_gate_up.as_deref(), experts),
            (Role::Down, Some(_), false) => (names.expert_down.as_deref(), experts),
            (Role::FfnRouter, None, true) => (names.ffn_router_bias.as_deref(), Some(1)),
            (role, None, _) => (names.holder(role), None),
            _ => return None,
        };
        let blocks = match names.qkv_order {
            QkvOrder::PerGroup if spec.role.of_attention() => self.num_kv_heads,
            QkvOrder::PerGroup | QkvOrder::Stacked => 1,
        };
        Some(Holder {
            pattern: pattern?,
            bias: spec.bias && spec.role != Role::FfnRouter,
            entries,
            blocks,
        })
    }

    /// The name under which a file of the family has a tensor, or the tensor that holds it.
    pub(super) fn stored_name(&self, spec: &TensorSpec) -> String {
        let fused = self.fused_projections(std::slice::from_ref(spec));
        let whole = fused.ok().and_then(|mut fused| fused.pop());
        whole.map_or_else(|| spec.name.clone(), |whole| whole.name)
    }

    /// The same checkpoint with the experts of the fused layout under their classic names, each in its place in the file.
    fn with_experts_apart(
        &self,
        mut checkpoint: Checkpoint,
        layout: ExpertLayout,
    ) -> Result<Checkpoint> {
        if layout == ExpertLayout::Fused {
            for fused in self.fused_tensors(&self.tensors()?)? {
                take_apart(&mut checkpoint, &fused)?;
            }
        }
        Ok(checkpoint)
    }

    /// The same checkpoint with each projection under a name of its own, in its place in the file; its experts were stored in
    /// that layout.
    fn with_projections_apart(
        &self,
        mut checkpoint: Checkpoint,
        layout: ExpertLayout,
    ) -> Result<Checkpoint> {
        if self.names()?.fused.is_none() {
            return Ok(checkpoint);
        }
        let specs = self.tensors()?;
        let apart = match layout {
            ExpertLayout::Classic => BTreeSet::new(),
            ExpertLayout::Fused => parts_of(&self.fused_tensors(&specs)?),
        };
        for fused in self.fused_projections(&specs)? {
            let held = |name: &str| checkpoint.tensors.contains_key(name);
            let is_apart = |(name, _): &(String, Vec<u64>)| held(name) && !apart.contains(name);
            if !held(&fused.name) && fused.parts.iter().any(is_apart) {
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
        let layout = self.expert_layout(&checkpoint)?;
        self.with_projections_apart(self.with_experts_apart(checkpoint, layout)?, layout)
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

/// The tensor that holds a tensor of an architecture.
struct Holder<'a> {
    pattern: &'a str,
    /// Whether it is the bias beside the tensor of that name.
    bias: bool,
    /// How many matrices or vectors it is a stack of, where it is one.
    entries: Option<u64>,
    blocks: u64,
}

/// The tensors that hold some of `specs`, each with its parts, where `holder` says which. One of the same name holds nothing else.
fn gathered<'a>(
    specs: &[TensorSpec],
    holder: impl Fn(&TensorSpec) -> Option<Holder<'a>>,
) -> Vec<FusedTensor> {
    /// Tensors whose parts come in turns.
    const IN_TURNS: usize = 3;
    let mut found: Vec<(FusedTensor, Option<u64>)> = Vec::new();
    for spec in specs {
        let Some((holder, layer)) = holder(spec).zip(spec.layer) else {
            continue;
        };
        let mut name = in_layer(holder.pattern, layer);
        if holder.bias {
            name = bias_of(&name);
        }
        if name == spec.name {
            continue;
        }
        let part = (spec.name.clone(), spec.shape.clone());
        let mut last = found.iter_mut().rev().take(IN_TURNS);
        match last.find(|(tensor, _)| tensor.name == name) {
            Some((tensor, _)) => tensor.parts.push(part),
            None => {
                let tensor = FusedTensor {
                    name,
                    shape: Vec::new(),
                    blocks: holder.blocks,
                    parts: vec![part],
                };
                found.push((tensor, holder.entries));
            }
        }
    }
    let complete = |(tensor, entries): (FusedTensor, Option<u64>)| FusedTensor {
        shape: shape_of(&tensor.parts, entries),
        ..tensor
    };
    found.into_iter().map(complete).collect()
}

/// The shape of the tensor with the rows of `parts`, a stack of so many entries where it is one.
fn shape_of(parts: &[(String, Vec<u64>)], entries: Option<u64>) -> Vec<u64> {
    let rows: u64 = parts.iter().map(|(_, shape)| shape[0]).sum();
    let row = parts
        .first()
        .map_or(&[][..], |(_, shape)| &shape[1..])
        .iter();
    match entries {
        Some(entries) => [entries, rows / entries]
            .into_iter()
            .chain(row.copied())
            .collect(),
        None => std::iter::once(rows).chain(row.copied()).collect(),
    }
}

/// The names of all parts.
fn parts_of(fused: &[FusedTensor]) -> BTreeSet<String> {
    let parts = fused.iter().flat_map(|fused| &fused.parts);
    parts.map(|(name, _)| name.clone()).collect()
}
