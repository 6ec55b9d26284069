//! Reads mergekit's configuration files strictly, and translates them into settings of our own commands.
//!
//! We learnt what mergekit does with these files by running release 0.1.5. Where bam-convert does something else, a
//! note says so. Where a key asks for something that bam-convert does not do, it refuses the file at that key.
//! `docs/reference/settings-files.md` has the table.

mod error;
mod merge;
mod model;
mod moe;
mod names;

pub use error::MergekitError;
pub use merge::{FileParameter, FileParameters, FileSlice, FileSource, MergeFile};
pub use model::Fetch;
pub use moe::{MoeFile, Prompted};
pub use names::METHODS;

use std::path::Path;

use crate::Result;

/// The kinds of mergekit's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `mergekit-yaml`: a merge of models.
    Merge,
    /// `mergekit-moe`: a mixture of experts.
    Moe,
}

impl Dialect {
    /// The dialect of a file with these keys; none where it is no file of mergekit.
    pub fn of<'a>(keys: impl Iterator<Item = &'a str> + Clone) -> Option<Self> {
        if MergeFile::has_keys(keys.clone()) {
            Some(Self::Merge)
        } else {
            MoeFile::has_keys(keys).then_some(Self::Moe)
        }
    }

    /// The keys at the top of these files; the first are those that tell them from files of ours.
    pub fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Merge => &merge::KEYS,
            Self::Moe => &moe::KEYS,
        }
    }

    /// The name of mergekit's program for these files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Merge => "mergekit-yaml",
            Self::Moe => "mergekit-moe",
        }
    }

    /// Reads a file of this dialect, and says it in settings of our own command.
    ///
    /// # Errors
    /// Where the file asks for something that ours does not do.
    pub fn translate(self, file: &Path, fetch: Fetch, is_typed: IsTyped) -> Result<Translation> {
        match self {
            Self::Merge => MergeFile::read(file)?.translate(fetch),
            Self::Moe => MoeFile::read(file)?.translate(fetch, is_typed),
        }
    }
}

/// Whether the user gave a flag, which then wins over the file.
pub type IsTyped<'a> = &'a dyn Fn(&str) -> bool;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::error::InputError;

    #[test]
    fn the_listed_keys_are_those_of_the_readers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.yaml");
        let known = |text: &str, read: &dyn Fn(&Path) -> Error| {
            std::fs::write(&path, text).unwrap();
            let Error::Input(InputError::UnknownKey { mut known, .. }) = read(&path) else {
                panic!("{}", read(&path));
            };
            known.sort_unstable();
            known
        };
        let listed = |dialect: Dialect| {
            let mut keys = dialect.keys().to_vec();
            keys.sort_unstable();
            keys
        };
        let moe = known("zzz: 1\n", &|path| MoeFile::read(path).unwrap_err());
        assert_eq!(moe, listed(Dialect::Moe));
        let linear = known("merge_method: linear\nzzz: 1\n", &|path| {
            MergeFile::read(path).unwrap_err()
        });
        assert_eq!(linear, listed(Dialect::Merge));
    }
}
