//! mergekit's configuration files, read strictly and said in settings of our own commands.
//!
//! What mergekit does with such a file was learnt by running release 0.1.5. Where ours does something else, a note says so;
//! where a key means something that ours does not do, the file is refused at that key. `docs/reference/settings-files.md` has the table.

mod linear;
mod model;
mod moe;

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
