//! A runner of stages: what it is given, and who hears of it.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::outcome::Finished;
use super::stage::Stage;

/// The runner's own folder within the work folder.
pub(super) use crate::checkpoint::names::RUN_RECORDS as FOLDER;

/// Runs stages in a work folder.
pub struct Runner<'a> {
    /// This program.
    pub program: &'a Path,
    /// The arguments that make this program run the words after them, and end all that they started when it ends itself.
    pub supervise: &'a [&'a str],
    /// The folder that relative paths are seen from, made where absent.
    pub work: &'a Path,
    /// Stages that run at once; one that runs a model runs alone.
    pub jobs: usize,
    /// The recipe's variables with their values.
    pub variables: &'a [(String, String)],
    /// Whether every input is read again, whatever is known of it.
    pub verify: bool,
    /// Whether this is one of several processes that each run some of the stages: it holds those, and not the folder.
    pub shares: bool,
    /// Once true, the runner ends the running stages and starts no other.
    pub stop: &'a AtomicBool,
    /// Hears what happens.
    pub watch: &'a dyn Watch,
}

/// Hears of stages that start and end.
pub trait Watch: Sync {
    /// A stage starts, for a reason; its log grows in `log`.
    fn starts(&self, stage: &Stage, reason: &str, log: &Path);
    /// A stage ended, or will not run.
    fn ends(&self, finished: &Finished);
}
