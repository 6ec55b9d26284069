//! The events of a run, for whoever watches it.

use std::collections::BTreeMap;
use std::path::Path;

use super::engine::EngineFacts;
use super::machine::Memory;
use super::metrics::{self, Validation};

/// An event of a run.
pub enum Event<'a> {
    /// What it will take.
    Begins {
        /// Parameters that train.
        trained: u64,
        /// All parameters.
        parameters: u64,
        /// Predicted peak.
        memory: Memory,
        /// The machine's rate in a large product, in floating-point operations a second.
        matmul_peak: f64,
        /// What computes.
        engine: &'a EngineFacts,
    },
    /// It resumes after this step.
    Resumes(u64),
    /// A step is done.
    Step(&'a metrics::Step),
    /// Held-back text was measured.
    Validation(u64, &'a BTreeMap<String, Validation>),
    /// A checkpoint was written.
    Saved(&'a Path),
    /// Something that a user should know.
    Note(String),
}

/// Receives each event.
pub type Watcher<'a> = &'a mut dyn FnMut(&Event);
