//! Inputs that do not exist, refused before a command begins: after minutes of work, a mistyped path would cost them.

use std::ffi::OsStr;
use std::path::Path;

use bam_convert::arguments::{ArgumentKind, ArgumentRole};
use bam_convert::checkpoint::foreign;
use bam_convert::pipeline::Program;
use bam_convert::{Error, Result};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches};

use super::verb::HubUse;

/// Refuses a line with an input that does not exist. An outline is made where inputs may be absent still.
///
/// A command that resolves references itself says itself which checkpoint is missing.
///
/// # Errors
/// The first path that does not exist; for a checkpoint that looks like a repository, with a hint.
pub fn check(program: &Program, matches: &ArgMatches, hub_use: HubUse) -> Result<()> {
    let (command, matches) = program.innermost(matches);
    let given = command.get_arguments().filter_map(|argument| {
        let id = argument.get_id().as_str();
        let is_typed = matches.value_source(id) == Some(ValueSource::CommandLine);
        let kind = program.kind(argument).filter(|_| is_typed)?;
        Some((kind, argument))
    });
    let given: Vec<(ArgumentKind, &Arg)> = given.collect();
    if given
        .iter()
        .any(|(kind, _)| kind.role == ArgumentRole::Outline)
    {
        return Ok(());
    }
    let is_checked = |role: ArgumentRole| {
        role == ArgumentRole::Input || role == ArgumentRole::Checkpoint && hub_use != HubUse::Own
    };
    for (kind, argument) in given.iter().filter(|(kind, _)| is_checked(kind.role)) {
        let values = matches.get_raw(argument.get_id().as_str());
        for text in values.into_iter().flatten().filter_map(OsStr::to_str) {
            expect(kind, text).map_err(|error| match argument.get_long() {
                Some(flag) => with_flag(error, flag, text),
                None => error,
            })?;
        }
    }
    Ok(())
}

/// The error with the flag whose value names the path: with several of them, the path alone does not say which is wrong.
fn with_flag(error: Error, flag: &str, text: &str) -> Error {
    let given = format!("it is given with `--{flag} {text}`");
    let hint = match error.hint() {
        Some(hint) => format!("{given}; {hint}"),
        None => given,
    };
    error.with_hint(hint)
}

/// Refuses a value none of whose paths exist.
fn expect(kind: &ArgumentKind, text: &str) -> Result<()> {
    let places = kind.places(text);
    // The last one lacks the name and the weight.
    let Some(last) = places.last().map(Path::new) else {
        return Ok(());
    };
    if places.iter().any(|place| Path::new(place).exists()) {
        return Ok(());
    }
    let found = if kind.role == ArgumentRole::Checkpoint {
        foreign::stat(last)
    } else {
        std::fs::metadata(last).map_err(|e| Error::io("open", last, e))
    };
    found.map(drop).map_err(|error| match kind.hint {
        Some(hint) if error.hint().is_none() => error.with_hint(hint),
        _ => error,
    })
}
