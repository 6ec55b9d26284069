//! Whether the tensors of a checkpoint are those that its configuration describes.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::architecture::Architecture;
use super::error::FamilyError;
use super::format::Family;
use super::multimodal::Multimodal;
use super::role::Role;
use super::tensors::TensorSpec;
use crate::Result;
use crate::checkpoint::{Checkpoint, TensorEntry};

/// Buffers that old exports store though every reader computes them.
const COMPUTED: &str = ".rotary_emb.inv_freq";

impl Architecture {
    /// Opens the checkpoint at `path`, one tensor per expert, and matches all its tensors; reads headers only.
    ///
    /// # Errors
    /// As [`Self::match_tensors`].
    pub fn match_checkpoint(&self, path: &Path) -> Result<()> {
        let checkpoint = Checkpoint::open(path)?;
        self.refuse_fused(&checkpoint)?;
        let checkpoint = self.as_read(checkpoint)?;
        self.match_tensors(&self.tensors()?, &checkpoint).map(drop)
    }

    /// Matches `specs`, the tensors of this architecture, with a checkpoint's tensors, names and shapes both ways.
    ///
    /// Returns the names that no reader uses: computed buffers, tensors of other parts, and a stored copy of a tied head, which must hold the
    /// values of the input embedding. Any other missing, unexpected or misshapen tensor is an error that names it, or that
    /// gives one reason for many.
    pub fn match_tensors(
        &self,
        specs: &[TensorSpec],
        checkpoint: &Checkpoint,
    ) -> Result<Vec<String>> {
        if let Some(error) = self.other_model(specs, checkpoint) {
            return Err(error);
        }
        let family = &self.family;
        for spec in specs {
            let entry =
                checkpoint
                    .tensors
                    .get(&spec.name)
                    .ok_or_else(|| FamilyError::NoTensor {
                        path: checkpoint.path.clone(),
                        tensor: self.stored_name(spec),
                        family: family.clone(),
                    })?;
            if entry.shape != spec.shape {
                return Err(FamilyError::WrongShape {
                    path: checkpoint.files[entry.file].path().to_path_buf(),
                    tensor: spec.name.clone(),
                    found: entry.shape.clone().into(),
                    expected: spec.shape.clone().into(),
                }
                .into());
            }
        }
        let expected: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let mut unused = Vec::new();
        for (name, entry) in &checkpoint.tensors {
            if expected.contains(name.as_str()) {
                continue;
            }
            let tied_head =
                self.tie_word_embeddings && self.names().is_ok_and(|names| names.head() == name);
            if !tied_head && !self.ignores(name) {
                return Err(FamilyError::UnknownTensor {
                    path: checkpoint.files[entry.file].path().to_path_buf(),
                    tensor: name.clone(),
                    family: family.clone(),
                }
                .into());
            }
            if tied_head {
                check_tied(specs, checkpoint, entry, name)?;
            }
            unused.push(name.clone());
        }
        Ok(unused)
    }

    /// Whether no reader of the family uses a tensor of that name.
    pub(crate) fn ignores(&self, name: &str) -> bool {
        let is_listed = |family: Arc<Family>| family.ignores(name);
        name.ends_with(COMPUTED)
            || self.multimodal.is_some() && Multimodal::is_other(name)
            || self.names().is_ok_and(is_listed)
    }

    /// The name of the head, where a checkpoint of a tied model stores the matrix of head and input embedding under that
    /// name alone, as transformers 5 reads it.
    pub fn only_head(&self, checkpoint: &Checkpoint) -> Result<Option<String>> {
        let family = self.names()?;
        let stored = |name: &str| checkpoint.tensors.contains_key(name);
        let is_only =
            self.tie_word_embeddings && stored(family.head()) && !stored(family.embedding());
        Ok(is_only.then(|| family.head().to_owned()))
    }

    /// The same checkpoint with the one matrix of a tied model under the name of the input embedding.
    pub fn with_tied_embedding(&self, mut checkpoint: Checkpoint) -> Result<Checkpoint> {
        if let Some(head) = self.only_head(&checkpoint)?
            && let Some(entry) = checkpoint.tensors.remove(&head)
        {
            let embedding = self.names()?.embedding().to_owned();
            checkpoint.tensors.insert(embedding, entry);
        }
        Ok(checkpoint)
    }

    /// The same checkpoint without the second copy of the matrix of a tied model.
    pub(crate) fn without_second_head(&self, mut checkpoint: Checkpoint) -> Result<Checkpoint> {
        if self.tie_word_embeddings {
            checkpoint.tensors.remove(self.names()?.head());
        }
        Ok(checkpoint)
    }
}

/// A stored output embedding of a tied model must be the input embedding.
fn check_tied(
    specs: &[TensorSpec],
    checkpoint: &Checkpoint,
    head: &TensorEntry,
    name: &str,
) -> Result<()> {
    let Some(embedding) = specs.iter().find(|spec| spec.role == Role::Embedding) else {
        return Ok(());
    };
    let embedding = checkpoint.tensor(&embedding.name)?;
    if checkpoint.same_values(head, embedding)? {
        return Ok(());
    }
    Err(FamilyError::UntiedHead {
        path: checkpoint.files[head.file].path().to_path_buf(),
        tensor: name.to_owned(),
    }
    .into())
}
