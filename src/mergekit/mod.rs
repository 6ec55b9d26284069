//! Reads mergekit's configuration files strictly, and translates them into settings of our own commands.
//!
//! We learnt what mergekit does with such a file by running release 0.1.5. Where bam-convert does something else, a note
//! says so. Where a key asks for something that bam-convert does not do, it refuses the file at that key.
//! `docs/reference/settings-files.md` has the table.

mod error;
mod linear;
mod model;
mod moe;
mod names;

pub use error::MergekitError;
pub use linear::LinearFile;
pub use model::Fetch;
pub use moe::{MoeFile, Prompted};

/// A file in settings of a command of ours.
#[derive(Debug)]
pub struct Translation {
    /// Flags without their dashes, in order, each with its value; a switch has none. A flag may come several times.
    pub settings: Vec<(&'static str, Option<String>)>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Translation {
    fn new() -> Self {
        Self {
            settings: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn set(&mut self, flag: &'static str, value: impl ToString) {
        self.settings.push((flag, Some(value.to_string())));
    }

    fn switch(&mut self, flag: &'static str) {
        self.settings.push((flag, None));
    }
}
