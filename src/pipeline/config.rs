//! `--config FILE`: the settings of one command in a file, in the names of its flags or in mergekit's.
//!
//! What a file says becomes arguments in front of those that were typed, which win; the one definition of the command line
//! then parses them all.

use std::ffi::OsString;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use serde_saphyr::Spanned;

use super::expand::Scope;
use super::lines::{Lines, Owner, parse};
use super::program::{CONFIG, Program};
use super::recipe_error::RecipeError;
use super::yaml::{self, Node, wrong_kind};
use crate::arguments::InputPath;
use crate::checkpoint::filesystem::folder_of;
use crate::checkpoint::yaml::place;
use crate::error::nearest;
use crate::mergekit::{Dialect, Fetch, IsTyped, MergeFile, Translation};
use crate::{Error, Result};

/// Whether a command line may have the flag.
pub fn is_given(line: &[OsString]) -> bool {
    line.iter().any(is_flag)
}

fn is_flag(word: &OsString) -> bool {
    word.to_str()
        .and_then(|word| word.strip_prefix("--config"))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// The same program with nothing required where a file may hold what is.
pub fn relaxed(program: &Program) -> Program {
    let names: Vec<&str> = program
        .with_settings_file()
        .map(|(command, _)| command.name)
        .collect();
    program.mapped(|definition| {
        let relax = |command: Command| command.mut_args(|argument| argument.required(false));
        names.iter().fold(definition, |definition, name| {
            definition.mut_subcommand(name, relax)
        })
    })
}

/// A command line that needs no file any more.
#[derive(Debug)]
pub struct Settled {
    /// What to parse.
    pub line: Vec<OsString>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// The command line with the settings of the file that its `--config` names.
///
/// `matches` are the arguments as the [`relaxed`] program parses them. `fetch` brings what mergekit's files take from the
/// Hub.
///
/// # Errors
/// Unknown keys and values that the command would refuse, with the nearest known and `FILE:LINE:COLUMN`.
pub fn settle(
    relaxed: &Program,
    line: Vec<OsString>,
    matches: &ArgMatches,
    fetch: Fetch,
) -> Result<Settled> {
    let nothing = |line| {
        Ok(Settled {
            line,
            notes: Vec::new(),
        })
    };
    let Some((name, given)) = matches.subcommand() else {
        return nothing(line);
    };
    let mut with_file = relaxed.with_settings_file();
    let found = with_file.find(|(command, _)| command.name == name);
    let (Some((_, dialect)), Some(command)) = (found, relaxed.definition().find_subcommand(name))
    else {
        return nothing(line);
    };
    let Some(file) = given.get_one::<InputPath>(CONFIG) else {
        return nothing(line);
    };
    let typed = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
    let (settings, notes) = read(file, relaxed, (command, dialect), &typed, fetch)?;
    let mut words = line.into_iter();
    let mut line = Vec::new();
    for word in words.by_ref() {
        let found = word == *name;
        line.push(word);
        if found {
            break;
        }
    }
    line.extend(settings.into_iter().map(OsString::from));
    while let Some(word) = words.next() {
        if !is_flag(&word) {
            line.push(word);
        } else if word == *"--config" {
            words.next();
        }
    }
    Ok(Settled { line, notes })
}

/// The arguments of a file for a command that reads mergekit's files of this dialect, those that were `typed` left out, and
/// notes.
fn read(
    file: &Path,
    program: &Program,
    (command, dialect): (&Command, Dialect),
    typed: &dyn Fn(&str) -> bool,
    fetch: Fetch,
) -> Result<(Vec<String>, Vec<String>)> {
    let tree = yaml::read(file)?;
    let Node::Map(entries) = &tree.value else {
        let expected = format!("settings of `{}`", command.get_name());
        return Err(wrong_kind(file, &tree, expected));
    };
    let Some(found) = Dialect::of(entries.iter().map(|(key, _)| key.value.as_str())) else {
        refuse_misspelt(file, entries, program, command, dialect)?;
        return own(file, entries, program, command, typed);
    };
    if found != dialect {
        return Err(other_command(file, program, found));
    }
    let is_typed = |flag: &str| {
        let argument = command
            .get_arguments()
            .find(|argument| argument.get_long() == Some(flag));
        argument.is_some_and(|argument| typed(argument.get_id().as_str()))
    };
    let translation = found.translate(file, fetch, &is_typed)?;
    Ok((translated(&translation, &is_typed), translation.notes))
}

/// The refusal of a file of mergekit that another command reads.
fn other_command(file: &Path, program: &Program, dialect: Dialect) -> Error {
    if dialect == Dialect::Merge
        // A method that runs nowhere here is the first thing to know.
        && let Err(error) = MergeFile::read(file)
    {
        return error;
    }
    let mut commands = program.with_settings_file();
    let owner = commands.find(|(_, other)| *other == dialect);
    let error = RecipeError::OtherCommand {
        at: file.into(),
        dialect: dialect.name(),
        command: owner.map_or("", |(command, _)| command.name),
    };
    error.into()
}

/// Refuses a file of mergekit whose keys are misspelt, or which lacks the key that tells it from a file of ours.
fn refuse_misspelt(
    file: &Path,
    entries: &[(Spanned<String>, Spanned<Node>)],
    program: &Program,
    command: &Command,
    dialect: Dialect,
) -> Result<()> {
    let own = Lines::new(file, &Scope::new([]), program, Owner::SettingsFile).keys(command);
    let keys = dialect.keys();
    let strange = entries
        .iter()
        .map(|(key, _)| key)
        .filter(|key| !own.contains(&key.value.as_str()));
    let near = strange.filter_map(|key| {
        let all = own.iter().chain(keys).copied();
        let near = nearest(&key.value, all).filter(|near| !own.contains(near))?;
        Some((key, *keys.iter().find(|known| **known == near)?))
    });
    let near: Vec<_> = near.collect();
    let misspelt = near.iter().find(|(key, near)| key.value != *near);
    let Some((key, near)) = misspelt.or(near.first()) else {
        return Ok(());
    };
    let (at, dialect) = (place(file, key.referenced), dialect.name());
    let key = key.value.clone();
    let error = if misspelt.is_some() {
        RecipeError::MisspeltOfMergekit {
            at,
            key,
            dialect,
            near,
        }
    } else {
        RecipeError::KeyOfMergekit {
            at,
            key,
            dialect,
            missing: keys[0],
        }
    };
    Err(error.into())
}

/// The arguments of a file in the names of the command's own flags.
fn own(
    file: &Path,
    entries: &[(Spanned<String>, Spanned<Node>)],
    program: &Program,
    command: &Command,
    typed: &dyn Fn(&str) -> bool,
) -> Result<(Vec<String>, Vec<String>)> {
    let folder = folder_of(file);
    let scope = Scope::new([(CONFIG.to_owned(), folder.to_string_lossy().into_owned())]);
    let mut arguments = Vec::new();
    for (key, value) in entries {
        // One key at a time, so that an error names the place of its key.
        let mut lines = Lines::new(file, &scope, program, Owner::SettingsFile);
        let (_, argument) = lines.argument(command, key)?;
        lines.add(command, key, value)?;
        let words = lines.finish().arguments;
        let line: Vec<String> = std::iter::once(command.get_name().to_owned())
            .chain(words.iter().cloned())
            .collect();
        parse(program.definition(), &line).map_err(|problem| {
            let at = place(file, value.referenced);
            RecipeError::SettingRefused { at, problem }
        })?;
        if !typed(argument.get_id().as_str()) {
            arguments.extend(words);
        }
    }
    Ok((arguments, Vec::new()))
}

/// The arguments of a translation, without the flags that the user gave.
fn translated(translation: &Translation, is_typed: IsTyped) -> Vec<String> {
    let settings = translation
        .settings
        .iter()
        .filter(|(flag, _)| !is_typed(flag));
    let word = |(flag, value): &(&str, Option<String>)| match value {
        Some(value) => format!("--{flag}={value}"),
        None => format!("--{flag}"),
    };
    settings.map(word).collect()
}
