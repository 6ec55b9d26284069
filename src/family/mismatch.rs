//! Why the tensors of a checkpoint are not those that its configuration describes: one reason for many missing names.

use std::path::PathBuf;

use super::architecture::Architecture;
use super::error::{FamilyError, PlainNeed};
use super::quantised::Quantised;
use super::role::Role;
use super::tensors::TensorSpec;
use crate::Error;
use crate::checkpoint::{Checkpoint, TensorEntry};

/// How the names of heads begin that are no language model's, and whose they are.
const HEADS: [(&str, &str); 8] = [
    ("score.", "a sequence classifier or reward model"),
    ("classifier.", "a classifier"),
    ("qa_outputs.", "a model for question answering"),
    ("v_head.", "a model with a value head"),
    ("value_head.", "a model with a value head"),
    ("reward_head.", "a reward model"),
    ("regression_head.", "a reward model"),
    ("rm_head.", "a reward model"),
];

/// Parts of other modalities, anywhere in a tensor's name.
const OTHER_INPUTS: [&str; 6] = [
    "vision_tower.",
    "vision_model.",
    "visual.",
    "multi_modal_projector.",
    "audio_tower.",
    "mm_projector.",
];

impl Architecture {
    /// What the checkpoint is instead, where its names show it. One reason for many tensors that do not match.
    ///
    /// It may be quantised, part of a model with other inputs, have the head of a classifier, be saved inside another
    /// module, or lack its head.
    pub(crate) fn other_model(
        &self,
        specs: &[TensorSpec],
        checkpoint: &Checkpoint,
    ) -> Option<Error> {
        Quantised::of(checkpoint)
            .map(|quantised| quantised.refusal(checkpoint, PlainNeed::Compute))
            .or_else(|| self.other_input(specs, checkpoint))
            .or_else(|| other_head(specs, checkpoint))
            .or_else(|| other_prefix(specs, checkpoint))
            .or_else(|| self.no_head(specs, checkpoint))
    }

    /// A vision or audio tower.
    fn other_input(&self, specs: &[TensorSpec], checkpoint: &Checkpoint) -> Option<Error> {
        let is_other = |name: &str| {
            !self.ignores(name)
                && OTHER_INPUTS.iter().any(|part| {
                    name.find(part)
                        .is_some_and(|at| at == 0 || name.as_bytes()[at - 1] == b'.')
                })
        };
        let (name, entry) = unexpected(specs, checkpoint, is_other)?;
        Some(
            FamilyError::Multimodal {
                path: file(checkpoint, entry),
                tensor: name.clone(),
            }
            .into(),
        )
    }

    /// A model that lacks nothing but its output embedding.
    fn no_head(&self, specs: &[TensorSpec], checkpoint: &Checkpoint) -> Option<Error> {
        let head = specs
            .iter()
            .find(|spec| spec.role == Role::Head && !spec.bias)?;
        let held = |spec: &&TensorSpec| checkpoint.tensors.contains_key(&spec.name);
        if held(&head) || specs.iter().filter(held).count() + 1 < specs.len() {
            return None;
        }
        Some(
            FamilyError::NoHead {
                path: checkpoint.path.clone(),
                tensor: head.name.clone(),
            }
            .into(),
        )
    }
}

fn file(checkpoint: &Checkpoint, entry: &TensorEntry) -> PathBuf {
    checkpoint.files[entry.file].path().to_path_buf()
}

/// A tensor that the architecture does not have, and whose name is as wanted.
fn unexpected<'a>(
    specs: &[TensorSpec],
    checkpoint: &'a Checkpoint,
    wanted: impl Fn(&str) -> bool,
) -> Option<(&'a String, &'a TensorEntry)> {
    checkpoint
        .tensors
        .iter()
        .filter(|(name, _)| wanted(name))
        .find(|(name, _)| !specs.iter().any(|spec| spec.name == **name))
}

/// The head of a classifier, reward model or other task.
fn other_head(specs: &[TensorSpec], checkpoint: &Checkpoint) -> Option<Error> {
    HEADS.iter().find_map(|(start, kind)| {
        let (name, entry) = unexpected(specs, checkpoint, |name| name.starts_with(start))?;
        Some(
            FamilyError::OtherHead {
                path: file(checkpoint, entry),
                tensor: name.clone(),
                kind,
            }
            .into(),
        )
    })
}

/// Names that begin otherwise than the family's.
fn other_prefix(specs: &[TensorSpec], checkpoint: &Checkpoint) -> Option<Error> {
    let anchor = specs.iter().find(|spec| spec.role == Role::Embedding)?;
    if checkpoint.tensors.contains_key(&anchor.name) {
        return None;
    }
    let (found, ours, theirs) = checkpoint
        .tensors
        .keys()
        .filter_map(|found| {
            let end = common_end(&anchor.name, found)?;
            let ours = &anchor.name[..anchor.name.len() - end.len()];
            let theirs = &found[..found.len() - end.len()];
            let renamed = |spec: &&TensorSpec| {
                spec.name
                    .strip_prefix(ours)
                    .is_some_and(|rest| checkpoint.tensors.contains_key(&format!("{theirs}{rest}")))
            };
            let explained = specs.iter().filter(renamed).count();
            (2 * explained > specs.len()).then_some((explained, (found, ours, theirs)))
        })
        .max_by_key(|(explained, _)| *explained)?
        .1;
    let entry = &checkpoint.tensors[found];
    Some(
        FamilyError::OtherPrefix {
            path: file(checkpoint, entry),
            tensor: found.clone(),
            expected: anchor.name.clone(),
            ours: ours.into(),
            theirs: theirs.into(),
        }
        .into(),
    )
}

/// The longest end of whole parts that two names share, of two parts at least.
fn common_end<'a>(a: &'a str, b: &str) -> Option<&'a str> {
    let shared = a
        .rsplit('.')
        .zip(b.rsplit('.'))
        .take_while(|(x, y)| x == y)
        .map(|(part, _)| part.len() + 1)
        .collect::<Vec<_>>();
    let length = shared.iter().sum::<usize>().saturating_sub(1);
    (shared.len() >= 2).then(|| &a[a.len() - length..])
}
