//! What the value of an argument names: a file to read, or one to write.
//!
//! The type of the value says it, and the definition of the command line carries the type. No list of flags exists that
//! could fall behind: whoever adds a flag that writes must give it an [`OutputPath`].

use std::any::TypeId;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use clap::builder::{MapValueParser, PathBufValueParser, TypedValueParser, ValueParserFactory};
use clap::{Arg, ValueHint};

/// A file or folder that a command makes or writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputPath(PathBuf);

impl Deref for OutputPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl ValueParserFactory for OutputPath {
    type Parser = MapValueParser<PathBufValueParser, fn(PathBuf) -> Self>;

    fn value_parser() -> Self::Parser {
        PathBufValueParser::new().map(Self as fn(PathBuf) -> Self)
    }
}

/// Whether a command writes to what the values of this argument name.
pub fn names_output(argument: &Arg) -> bool {
    argument.get_value_parser().type_id() == TypeId::of::<OutputPath>()
}

/// Whether values of this argument are files or folders, or hold one.
pub fn names_files(argument: &Arg) -> bool {
    let has_word = |name: &str| {
        ["DIR", "FILE", "PATH"]
            .iter()
            .any(|word| name.contains(word))
    };
    names_output(argument)
        || argument.get_value_hint() == ValueHint::AnyPath
        || value_names(argument).any(has_word)
}

/// What help calls the values.
pub(super) fn value_names(argument: &Arg) -> impl Iterator<Item = &str> {
    argument
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(|name| name.as_str())
}
