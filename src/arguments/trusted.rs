//! Values that only somebody whom the user trusts may choose.

use std::ffi::OsStr;
use std::ops::Deref;

use clap::builder::{ValueParser, ValueParserFactory};

use super::{ArgumentRole, ArgumentValue, parser, utf8};

/// A program that a command runs, or a machine that it connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedText(String);

impl Deref for TrustedText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl ArgumentValue for TrustedText {
    const ROLE: ArgumentRole = ArgumentRole::Trusted;

    fn read(text: &OsStr) -> Result<Self, String> {
        match utf8(text)? {
            "" => Err("expected a text, found nothing".to_owned()),
            text => Ok(Self(text.to_owned())),
        }
    }

    fn form() -> String {
        "TEXT".to_owned()
    }

    fn places(_: &str) -> Vec<&str> {
        Vec::new()
    }
}

impl ValueParserFactory for TrustedText {
    type Parser = ValueParser;

    fn value_parser() -> ValueParser {
        parser::<Self>()
    }
}
