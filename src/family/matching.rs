//! Whether the tensors of a checkpoint are those that its configuration describes.

use std::collections::BTreeSet;
use std::path::Path;

use super::architecture::Architecture;
use super::role::Role;
use super::tensors::TensorSpec;
use crate::checkpoint::{Checkpoint, TensorEntry};
use crate::{Error, Result};

/// Buffers that old exports store though every reader computes them.
pub(crate) const COMPUTED: &str = ".rotary_emb.inv_freq";

impl Architecture {
    /// Opens the checkpoint at `path`, one tensor an expert, and matches all its tensors; reads headers only.
    ///
    /// # Errors
    /// As [`Self::match_tensors`].
    pub fn match_checkpoint(&self, path: &Path) -> Result<()> {
        let checkpoint = self.with_tied_embedding(Checkpoint::open(path)?)?;
        self.refuse_fused(&checkpoint)?;
        self.match_tensors(&self.tensors()?, &checkpoint).map(drop)
    }

    /// Matches `specs`, the tensors of this architecture, with a checkpoint's tensors, names and shapes both ways.
    ///
    /// Returns the names that no reader uses: computed buffers, and a stored copy of a tied head, which must hold the
    /// values of the input embedding. Any other missing, unexpected or misshapen tensor is an error that names it, or the
    /// one reason behind many.
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
            let entry = checkpoint.tensor(&spec.name).map_err(|error| {
                error.with_hint(format!(
                    "its config.json describes a {family} model that has this tensor; is the config the right one?"
                ))
            })?;
            if entry.shape != spec.shape {
                let problem = format!(
                    "has shape {:?}, but config.json makes it {:?}",
                    entry.shape, spec.shape
                );
                return Err(Error::tensor(
                    checkpoint.files[entry.file].path(),
                    &spec.name,
                    problem,
                ));
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
            if !tied_head && !name.ends_with(COMPUTED) {
                let problem = format!(
                    "is no tensor of the {family} model that config.json describes; it would be lost"
                );
                return Err(Error::tensor(checkpoint.files[entry.file].path(), name, problem).with_hint(
                    "check the keys of config.json that switch tensors on, such as attention_bias and mlp_bias",
                ));
            }
            if tied_head {
                check_tied(specs, checkpoint, entry, name)?;
            }
            unused.push(name.clone());
        }
        Ok(unused)
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
    let problem =
        "differs from the input embedding, but config.json says tie_word_embeddings: true";
    Err(Error::tensor(checkpoint.files[head.file].path(), name, problem)
        .with_hint("set tie_word_embeddings to false if the stored head is the right one, or remove the tensor"))
}
