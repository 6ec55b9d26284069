//! Flags without a value that programs set for a command, and not only people.
//!
//! Their types say what they do, so that the runner of recipes finds them without knowing their names. An argument of
//! this kind needs `action = ArgAction::SetTrue`.

use std::ffi::OsStr;
use std::ops::Deref;

use clap::builder::{BoolValueParser, TypedValueParser, ValueParser, ValueParserFactory};

use super::{ArgumentRole, ArgumentValue};

/// The type of a switch.
macro_rules! switch {
    ($(#[$docs:meta])* $name:ident) => {
        $(#[$docs])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(bool);

        impl Deref for $name {
            type Target = bool;

            fn deref(&self) -> &bool {
                &self.0
            }
        }

        impl ArgumentValue for $name {
            const ROLE: ArgumentRole = ArgumentRole::$name;

            fn read(text: &OsStr) -> Result<Self, String> {
                Ok(Self(text == "true"))
            }

            fn form() -> String {
                "BOOL".to_owned()
            }

            fn places(_: &str) -> Vec<&str> {
                Vec::new()
            }
        }

        impl ValueParserFactory for $name {
            type Parser = ValueParser;

            fn value_parser() -> ValueParser {
                ValueParser::new(BoolValueParser::new().map(Self))
            }
        }
    };
}

switch! {
    /// Replaces an output that exists.
    Force
}
switch! {
    /// Resumes a run that was cut short.
    Resume
}
switch! {
    /// Shows what would be done, and does nothing.
    DryRun
}
switch! {
    /// Makes the outline of the output, and prints what the command would take.
    Outline
}
switch! {
    /// Changes files of an input.
    InPlace
}
