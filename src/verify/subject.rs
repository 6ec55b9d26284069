//! A checkpoint under examination, and with which means.

use std::path::{Path, PathBuf};

use super::pieces;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::format::Described;
use crate::checkpoint::manifest::{MANIFEST, Manifest};
use crate::family::{Architecture, Config};
use crate::surgery::execute::WORKING_MEMORY;
use crate::threads;

/// What to check and with which means.
#[derive(Clone, Copy)]
pub struct ValidateOptions<'a> {
    /// Replay the manifest too, with these folders as its sources. A folder that holds the files of a source is that source;
    /// any other is the one at its place in the order. Sources without a folder are taken from where the manifest says.
    pub against: Option<&'a [Option<PathBuf>]>,
    /// Worker threads.
    pub threads: usize,
    /// Working memory in bytes; bounds the threads that work at once.
    pub memory: u64,
    /// Called with each number of bytes checked; [`work_length`](super::validate::work_length) is their sum.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

impl Default for ValidateOptions<'_> {
    /// Without a replay, with the defaults of the command line: 128 MiB of memory, a thread for each core.
    fn default() -> Self {
        Self {
            against: None,
            threads: threads::cores(),
            memory: WORKING_MEMORY,
            progress: &|_| {},
        }
    }
}

impl ValidateOptions<'_> {
    /// Threads that can work at once within the memory where each takes `bytes`.
    pub(super) fn threads_of(&self, bytes: u64) -> usize {
        pieces::affordable(self.threads, self.memory, bytes)
    }
}

/// The checkpoint under examination: what could be read of it.
pub(super) struct Subject<'a> {
    pub path: &'a Path,
    pub checkpoint: Option<Checkpoint>,
    pub config: Option<Config>,
    pub architecture: Option<Architecture>,
    pub manifest: Option<Manifest>,
    /// Whether the weights could not be read as the family has them.
    pub has_other_layout: bool,
}

impl Subject<'_> {
    /// Whether it is a folder rather than one file.
    pub fn is_folder(&self) -> bool {
        self.path.is_dir()
    }

    /// What the weight file says of its model, in formats whose files do.
    pub fn described(&self) -> Option<&Described> {
        self.checkpoint.as_ref()?.described.as_ref()
    }

    /// `vocab_size` of the architecture, or of a configuration that describes none we know.
    pub fn vocab_size(&self) -> Option<u64> {
        let of_config = || self.config.as_ref()?.json.get("vocab_size")?.as_u64();
        self.architecture
            .as_ref()
            .map(|architecture| architecture.vocab_size)
            .or_else(of_config)
    }
}

/// Whether a file of this name is part of how this program works rather than of the model.
pub(super) fn is_own_file(name: &str) -> bool {
    name == MANIFEST || name == "run.json" || name.starts_with('.')
}
