//! Values that are one path each.

use std::ffi::OsStr;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use clap::builder::{ValueParser, ValueParserFactory};

use super::{ArgumentRole, ArgumentValue, parser};
use crate::checkpoint::reference::{DatasetReference, SCHEME};

/// A path type with its role, the form of its values, and where paths stand in them.
macro_rules! path_value {
    ($(#[$docs:meta])* $name:ident, $role:ident, $form:literal, $check:expr, $places:expr) => {
        $(#[$docs])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(PathBuf);

        impl Deref for $name {
            type Target = Path;

            fn deref(&self) -> &Path {
                &self.0
            }
        }

        impl AsRef<Path> for $name {
            fn as_ref(&self) -> &Path {
                &self.0
            }
        }

        impl ArgumentValue for $name {
            const ROLE: ArgumentRole = ArgumentRole::$role;

            fn read(text: &OsStr) -> Result<Self, String> {
                $check(text, Self::ROLE)?;
                Ok(Self(PathBuf::from(text)))
            }

            fn form() -> String {
                $form.to_owned()
            }

            fn places(text: &str) -> Vec<&str> {
                $places(text)
            }
        }

        impl ValueParserFactory for $name {
            type Parser = ValueParser;

            fn value_parser() -> ValueParser {
                parser::<Self>()
            }
        }
    };
}

path_value! {
    /// A file or folder that a command reads, and that is no checkpoint.
    InputPath, Input, "PATH", check, whole
}
path_value! {
    /// Texts to read: a file, a folder, or a pattern of these.
    TextsPath, Input, "PATH", check, whole_or_above_pattern
}
path_value! {
    /// Texts to read; or a dataset on the Hub (`hf://datasets/…`), which is no path.
    CorpusPath, Input, "PATH", check_corpus, of_corpus
}
path_value! {
    /// A checkpoint that a command reads: a folder, or a weight file. A reference to the Hub (`hf://…`) may be typed in its
    /// place; the command then sees the folder that it was pulled to. `BASE+ADAPTER` adds LoRA adapters; the command then sees
    /// a view ([`crate::checkpoint::views`]).
    CheckpointPath, Checkpoint, "DIR", check, whole
}
path_value! {
    /// A file or folder that a command makes or writes to.
    OutputPath, Output, "PATH", check, whole
}

/// Refuses an empty path, and a reference to the Hub where only a path makes sense.
fn check(text: &OsStr, role: ArgumentRole) -> Result<(), String> {
    if text.is_empty() {
        return Err("expected a path, found nothing".to_owned());
    }
    if role != ArgumentRole::Checkpoint && text.as_encoded_bytes().starts_with(SCHEME.as_bytes()) {
        return Err(format!(
            "expected a path on this machine; only a checkpoint to read may be a reference that begins with `{SCHEME}`"
        ));
    }
    Ok(())
}

/// As [`check`], but a reference to a dataset may be typed.
fn check_corpus(text: &OsStr, role: ArgumentRole) -> Result<(), String> {
    match text.to_str() {
        Some(text) if DatasetReference::is_meant(text) => DatasetReference::parse(text)
            .map(drop)
            .map_err(|e| e.to_string()),
        _ => check(text, role),
    }
}

fn whole(text: &str) -> Vec<&str> {
    vec![text]
}

/// The text, or the folder in which the files of a pattern lie.
fn whole_or_above_pattern(text: &str) -> Vec<&str> {
    let above = text.find(['*', '?', '[']).map(|pattern| {
        text[..pattern]
            .rfind('/')
            .map_or(".", |slash| &text[..slash])
    });
    std::iter::once(text).chain(above).collect()
}

/// As [`whole_or_above_pattern`], but a reference to a dataset is no place.
fn of_corpus(text: &str) -> Vec<&str> {
    if DatasetReference::is_meant(text) {
        return Vec::new();
    }
    whole_or_above_pattern(text)
}
