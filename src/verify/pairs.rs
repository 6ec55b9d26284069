//! Which tensor of one checkpoint is compared with which of another.
//!
//! Two checkpoints of one layout pair by name, and the experts of two mixtures by theirs (`expert_pairs.rs`). Two families name
//! the same tensor differently, so their tensors pair by what they are. A mixture and a dense model pair by role: each expert's projection pairs
//! with the dense projection of its role and layer. So a row says how far that expert has moved.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::tensors;
use crate::Result;
use crate::checkpoint::folder::Checkpoint;
use crate::family::{Architecture, Config, Role, TensorSpec, expert_names};

/// One side of a comparison.
pub(super) struct Side {
    pub checkpoint: Checkpoint,
    pub architecture: Option<Architecture>,
    pub specs: Vec<TensorSpec>,
    /// Names of its experts, where they have any.
    pub experts: Vec<String>,
}

impl Side {
    /// Opens the weights. The configuration only adds detail, so an unknown one is no error.
    pub fn open(path: &Path) -> Result<Self> {
        let mut checkpoint = Checkpoint::open(path)?;
        let config = checkpoint
            .folder()
            .and_then(|folder| Config::read(folder).ok());
        let mut architecture = config
            .as_ref()
            .and_then(|config| Architecture::of(config).ok());
        let listed = architecture
            .as_ref()
            .and_then(|known| tensors::specs_of(&checkpoint, known).ok().flatten());
        match &architecture {
            Some(known) if listed.is_some() => checkpoint = known.as_read(checkpoint)?,
            _ => architecture = None,
        }
        Ok(Self {
            experts: experts(&checkpoint, architecture.as_ref()),
            checkpoint,
            architecture,
            specs: listed.unwrap_or_default(),
        })
    }
}

/// Names of the experts, as the configuration or the manifest tells them; none where they have numbers only.
fn experts(checkpoint: &Checkpoint, architecture: Option<&Architecture>) -> Vec<String> {
    let names = checkpoint
        .folder()
        .zip(architecture)
        .and_then(|(folder, known)| expert_names(folder, known).ok());
    let names = names.unwrap_or_default();
    let are_numbers = (0..)
        .zip(&names)
        .all(|(number, name)| *name == usize::to_string(&number));
    if are_numbers { Vec::new() } else { names }
}

/// What a tensor belongs to: aggregated over layers, weights and biases together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    /// The expert; none for what all experts share.
    pub expert: Option<u64>,
    pub role: Role,
}

impl From<&TensorSpec> for Group {
    fn from(spec: &TensorSpec) -> Self {
        Self {
            expert: spec.expert,
            role: spec.role,
        }
    }
}

/// Two tensors to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub a: String,
    pub b: String,
    pub group: Option<Group>,
}

/// All pairs that are compared, and tensors without a counterpart.
#[derive(Default)]
pub(super) struct Pairing {
    pub pairs: Vec<Pair>,
    pub only_a: Vec<String>,
    pub only_b: Vec<String>,
    /// Routers of a mixture, for which a dense model has no counterpart.
    pub new_b: Vec<String>,
}

/// Whether `b` is a mixture that could have been made of models like the dense `a`.
pub(super) fn is_mixture_of(a: &Side, b: &Side) -> bool {
    match (&a.architecture, &b.architecture) {
        (Some(dense), Some(mixture)) => {
            dense.mixture.is_none()
                && mixture.mixture.is_some()
                && dense.hidden_size == mixture.hidden_size
                && dense.num_layers == mixture.num_layers
        }
        _ => false,
    }
}

/// Whether both configurations are known, and of two families.
pub(super) fn are_of_two_families(a: &Side, b: &Side) -> bool {
    match (&a.architecture, &b.architecture) {
        (Some(a), Some(b)) => a.family != b.family,
        _ => false,
    }
}

/// Pairs by name.
pub(super) fn by_name(a: &Side, b: &Side) -> Pairing {
    let known = if a.specs.is_empty() {
        &b.specs
    } else {
        &a.specs
    };
    let groups: BTreeMap<&str, Group> = known
        .iter()
        .map(|spec| (spec.name.as_str(), spec.into()))
        .collect();
    let mut pairing = Pairing::default();
    for name in a.checkpoint.tensors.keys() {
        if b.checkpoint.tensors.contains_key(name) {
            let group = groups.get(name.as_str()).copied();
            pairing.pairs.push(Pair {
                a: name.clone(),
                b: name.clone(),
                group,
            });
        } else {
            pairing.only_a.push(name.clone());
        }
    }
    pairing.only_b = b
        .checkpoint
        .tensors
        .keys()
        .filter(|name| !a.checkpoint.tensors.contains_key(*name))
        .cloned()
        .collect();
    pairing
}

/// Pairs each tensor of the mixture `b` with its counterpart in the dense model `a`.
pub(super) fn by_role(a: &Side, b: &Side) -> Pairing {
    let dense: BTreeMap<(Role, bool, Option<u64>), &str> = a
        .specs
        .iter()
        .map(|spec| ((spec.role, spec.bias, spec.layer), spec.name.as_str()))
        .collect();
    let mut pairing = Pairing::default();
    let (mut used_a, mut used_b) = (BTreeSet::new(), BTreeSet::new());
    for spec in b
        .specs
        .iter()
        .filter(|spec| b.checkpoint.tensors.contains_key(&spec.name))
    {
        used_b.insert(spec.name.as_str());
        match dense.get(&(spec.role, spec.bias, spec.layer)) {
            Some(name) if a.checkpoint.tensors.contains_key(*name) => {
                used_a.insert(*name);
                let group = Some(spec.into());
                pairing.pairs.push(Pair {
                    a: (*name).to_owned(),
                    b: spec.name.clone(),
                    group,
                });
            }
            _ if spec.role.only_in_mixtures() => pairing.new_b.push(spec.name.clone()),
            _ => pairing.only_b.push(spec.name.clone()),
        }
    }
    // What no configuration describes is compared by name.
    for name in b
        .checkpoint
        .tensors
        .keys()
        .filter(|name| !used_b.contains(name.as_str()))
    {
        if a.checkpoint.tensors.contains_key(name) {
            used_a.insert(name);
            pairing.pairs.push(Pair {
                a: name.clone(),
                b: name.clone(),
                group: None,
            });
        } else {
            pairing.only_b.push(name.clone());
        }
    }
    pairing.only_a = a
        .checkpoint
        .tensors
        .keys()
        .filter(|name| !used_a.contains(name.as_str()))
        .cloned()
        .collect();
    pairing
}
