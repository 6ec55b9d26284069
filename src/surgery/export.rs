//! A model as one file for other programs.
//!
//! The file has no manifest beside it: what it holds is what the plan says, and no run resumes it.

use std::path::Path;

use super::evaluate::Evaluator;
use super::export_error::ExportError;
use super::plan::Plan;
use crate::checkpoint::filesystem::resolved;
use crate::checkpoint::output::check_free_space;
use crate::checkpoint::{GgufLayout, GgufMetadata, npz, single, write_gguf};
use crate::family::Architecture;
use crate::{Result, threads};

/// A file to be.
#[derive(Debug)]
pub struct Export {
    /// Its tensors that have a source, in order.
    pub plan: Plan,
    /// What it holds, where that is known.
    pub architecture: Option<Architecture>,
    pub(super) format: Format,
}

/// What the file is.
#[derive(Debug)]
pub(super) enum Format {
    /// For llama.cpp.
    Gguf {
        metadata: GgufMetadata,
        /// All tensors: the plan's, and after them any that have no source.
        layouts: Vec<GgufLayout>,
    },
    /// For numpy.
    Npz,
}

impl Export {
    /// Bytes of the tensors.
    pub fn length(&self) -> u64 {
        match &self.format {
            Format::Gguf { layouts, .. } => layouts.iter().map(GgufLayout::length).sum(),
            Format::Npz => self.plan.data_length(),
        }
    }

    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        match &self.format {
            Format::Gguf { layouts, .. } => layouts.len(),
            Format::Npz => self.plan.tensors.len(),
        }
    }

    /// Refuses a target that cannot be written now: inside a source, a file of another kind, any file without `force`,
    /// or a full disk.
    pub fn check_place(&self, path: &Path, force: bool) -> Result<()> {
        let absolute = resolved(path)?;
        for source in &self.plan.sources {
            if absolute.starts_with(resolved(&source.checkpoint.path)?) {
                return Err(ExportError::InsideSource {
                    path: path.to_path_buf(),
                    source_folder: source.checkpoint.path.clone(),
                }
                .into());
            }
        }
        self.check_free(path, force)?;
        check_free_space(path, self.length())
    }

    /// Refuses a file that is there, but with `force` one of this format.
    fn check_free(&self, path: &Path, force: bool) -> Result<()> {
        if std::fs::symlink_metadata(path).is_ok() {
            if !force {
                let path = path.to_path_buf();
                return Err(ExportError::FileExists { path }.into());
            }
            let (is_same, kind): (fn(&Path) -> bool, _) = match self.format {
                Format::Gguf { .. } => (|path| single::starts_with(path, b"GGUF"), "no GGUF file"),
                Format::Npz => (npz::is_archive, "no archive of numpy arrays"),
            };
            // Opening a pipe would wait for a writer.
            if !path.is_file() || !is_same(path) {
                let path = path.to_path_buf();
                return Err(ExportError::OtherFile { path, kind }.into());
            }
        }
        Ok(())
    }

    /// Writes the file with so many threads, complete or not at all.
    pub fn write(
        &self,
        path: &Path,
        force: bool,
        threads: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let evaluator = Evaluator::new(&self.plan.tensors, &self.plan.sources)?;
        let evaluator = evaluator.carrying_non_finite(self.plan.carries_non_finite);
        let pool = threads::pool(threads)?;
        let check = || self.check_free(path, force);
        single::write_alone(path, check, |file| {
            pool.install(|| match &self.format {
                Format::Gguf { metadata, layouts } => {
                    write_gguf((file, path), metadata, layouts, &evaluator, progress)
                }
                Format::Npz => npz::write((file, path), &self.plan.layouts(), &evaluator, progress),
            })?;
            // Before the file has its name: what was computed is of the sources that were planned with.
            self.plan
                .sources
                .iter()
                .try_for_each(|source| source.checkpoint.check_unchanged())
        })
    }
}
