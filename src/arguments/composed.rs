//! Values that hold another value beside a name or a weight.

use std::ffi::OsStr;
use std::path::Path;

use clap::builder::{ValueParser, ValueParserFactory};

use super::{ArgumentRole, ArgumentValue, parser, utf8};
use crate::checkpoint::reference::SCHEME;

/// `NAME=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named<T> {
    /// The text before the first `=`.
    pub name: String,
    /// The value after it.
    pub value: T,
}

impl<T: ArgumentValue> ArgumentValue for Named<T> {
    const ROLE: ArgumentRole = T::ROLE;
    const IS_NAMED: bool = true;

    fn read(text: &OsStr) -> Result<Self, String> {
        let text = utf8(text)?;
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok(Self {
                name: name.to_owned(),
                value: T::read(value.as_ref())?,
            }),
            _ => Err(format!("expected {}, found `{text}`", Self::form())),
        }
    }

    fn form() -> String {
        format!("NAME={}", T::form())
    }

    fn places(text: &str) -> Vec<&str> {
        // Without a name the value is refused; until then the whole may be a path.
        T::places(text.split_once('=').map_or(text, |(_, value)| value))
    }
}

impl<T: ArgumentValue> ValueParserFactory for Named<T> {
    type Parser = ValueParser;

    fn value_parser() -> ValueParser {
        parser::<Self>()
    }
}

/// `NAME=PATH` or `PATH`. A path that exists and holds a `=` wins over the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaybeNamed<T> {
    /// The name, where one was typed.
    pub name: Option<String>,
    /// The path.
    pub value: T,
}

impl<T: ArgumentValue> ArgumentValue for MaybeNamed<T> {
    const ROLE: ArgumentRole = T::ROLE;
    const IS_NAMED: bool = true;

    fn read(text: &OsStr) -> Result<Self, String> {
        let parts = text.to_str().and_then(|text| text.split_once('='));
        let (name, value) = match parts {
            Some((name, value)) if !name.is_empty() && !Path::new(text).exists() => {
                (Some(name.to_owned()), value.as_ref())
            }
            _ => (None, text),
        };
        Ok(Self {
            name,
            value: T::read(value)?,
        })
    }

    fn form() -> String {
        format!("[NAME=]{}", T::form())
    }

    fn places(text: &str) -> Vec<&str> {
        let after = text.split_once('=').map(|(_, value)| value);
        [Some(text), after]
            .into_iter()
            .flatten()
            .flat_map(T::places)
            .collect()
    }
}

impl<T: ArgumentValue> ValueParserFactory for MaybeNamed<T> {
    type Parser = ValueParser;

    fn value_parser() -> ValueParser {
        parser::<Self>()
    }
}

/// `PATH:WEIGHT` or `PATH`, which has the weight 1. A path that exists and ends in a colon and a number wins.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted<T> {
    /// The path.
    pub value: T,
    /// The weight, a finite number.
    pub weight: f64,
}

impl<T: ArgumentValue> ArgumentValue for Weighted<T> {
    const ROLE: ArgumentRole = T::ROLE;

    fn read(text: &OsStr) -> Result<Self, String> {
        let parts = weight_of(utf8(text)?).filter(|_| !Path::new(text).exists());
        let Some((path, weight)) = parts else {
            return Ok(Self {
                value: T::read(text)?,
                weight: 1.0,
            });
        };
        match weight.parse() {
            Ok(number) if f64::is_finite(number) => Ok(Self {
                value: T::read(path.as_ref())?,
                weight: number,
            }),
            _ => Err(format!(
                "expected a finite number after the colon, found `{weight}`"
            )),
        }
    }

    fn form() -> String {
        format!("{}[:WEIGHT]", T::form())
    }

    fn places(text: &str) -> Vec<&str> {
        let before = weight_of(text).map(|(path, _)| path);
        [Some(text), before]
            .into_iter()
            .flatten()
            .flat_map(T::places)
            .collect()
    }
}

impl<T: ArgumentValue> ValueParserFactory for Weighted<T> {
    type Parser = ValueParser;

    fn value_parser() -> ValueParser {
        parser::<Self>()
    }
}

/// The text before the last colon and after it, unless it is the colon of `hf://`.
fn weight_of(text: &str) -> Option<(&str, &str)> {
    let (path, weight) = text.rsplit_once(':')?;
    let is_scheme = weight.starts_with(&SCHEME[SCHEME.len() - 2..]);
    (!path.is_empty() && !is_scheme).then_some((path, weight))
}

/// Numbers may have names too: `NAME=NUMBER`.
impl ArgumentValue for f64 {
    const ROLE: ArgumentRole = ArgumentRole::Number;

    fn read(text: &OsStr) -> Result<Self, String> {
        let text = utf8(text)?;
        text.parse()
            .map_err(|_| format!("expected a number, found `{text}`"))
    }

    fn form() -> String {
        "NUMBER".to_owned()
    }

    fn places(_: &str) -> Vec<&str> {
        Vec::new()
    }
}
