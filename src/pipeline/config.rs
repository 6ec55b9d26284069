//! `--config FILE`: the settings of one command in a file, in the names of its flags or in mergekit's.
//!
//! What a file says becomes arguments in front of those that were typed, which win; the one definition of the command line
//! then parses them all.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_saphyr::Spanned;

use super::expand::Scope;
use super::lines::{Lines, refusal};
use super::yaml::{self, Node, fault};
use crate::checkpoint::output::folder_of;
use crate::mergekit::{Fetch, LinearFile, MoeFile, Translation};
use crate::{Error, Result};

/// The flag without its dashes.
const CONFIG: &str = "config";
/// Commands that have it.
const COMMANDS: [&str; 2] = ["merge", "upcycle"];
/// Flags that a file cannot set.
const RESERVED: [&str; 3] = [CONFIG, "help", "version"];

/// The definition of the command line with `--config FILE` where commands take it.
pub fn define(program: Command) -> Command {
    let flag = Arg::new(CONFIG)
        .long(CONFIG)
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Take settings from a YAML file, under the names of the flags, or one of mergekit's; flags win (docs/reference/settings-files.md)");
    COMMANDS.iter().fold(program, |program, name| {
        program.mut_subcommand(name, |command| command.arg(flag.clone()))
    })
}

/// Whether a command line may have the flag.
pub fn is_given(line: &[OsString]) -> bool {
    line.iter().any(is_flag)
}

fn is_flag(word: &OsString) -> bool {
    word.to_str()
        .and_then(|word| word.strip_prefix("--config"))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// The same definition with nothing required: a file may hold what is.
pub fn relaxed(program: Command) -> Command {
    let relax = |command: Command| command.mut_args(|argument| argument.required(false));
    let mut program = COMMANDS
        .iter()
        .fold(program, |program, name| program.mut_subcommand(name, relax));
    program.build();
    program
}

/// A command line that needs no file any more.
#[derive(Debug)]
pub struct Settled {
    /// What to parse.
    pub line: Vec<OsString>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// The command line with the settings of the file that its `--config` names in it; `matches` is what the [`relaxed`]
/// definition made of it, and `fetch` brings what mergekit's files take from the Hub.
///
/// # Errors
/// Unknown keys and values that the command would refuse, with the nearest known and `FILE:LINE:COLUMN`.
pub fn settle(
    relaxed: &Command,
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
    let Some((name, given)) = matches
        .subcommand()
        .filter(|(name, _)| COMMANDS.contains(name))
    else {
        return nothing(line);
    };
    let (Some(file), Some(command)) = (
        given.get_one::<PathBuf>(CONFIG),
        relaxed.find_subcommand(name),
    ) else {
        return nothing(line);
    };
    let typed = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
    let (settings, notes) = read(file, relaxed, command, &typed, fetch)?;
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

/// The arguments of a file, those that were `typed` left out, and notes.
fn read(
    file: &Path,
    program: &Command,
    command: &Command,
    typed: &dyn Fn(&str) -> bool,
    fetch: Fetch,
) -> Result<(Vec<String>, Vec<String>)> {
    let tree = yaml::read(file)?;
    let Node::Map(entries) = &tree.value else {
        let problem = format!(
            "expected settings of `{}`, found {}",
            command.get_name(),
            tree.value.kind()
        );
        return Err(fault(file, tree.referenced, problem));
    };
    let keys = || entries.iter().map(|(key, _)| key.value.as_str());
    let (kind, owner) = match (LinearFile::has_keys(keys()), MoeFile::has_keys(keys())) {
        (true, _) => ("mergekit-yaml", "merge"),
        (false, true) => ("mergekit-moe", "upcycle"),
        (false, false) => return own(file, entries, program, command, typed),
    };
    if command.get_name() != owner {
        if owner == "merge" {
            // A method that runs nowhere here is the first thing to know.
            LinearFile::read(file)?;
        }
        let problem = format!("is a file of {kind}, which is for `bam-convert {owner}`");
        return Err(Error::file(file, problem)
            .with_hint(format!("bam-convert {owner} --config {}", file.display())));
    }
    let translation = match owner {
        "merge" => LinearFile::read(file)?.translate(fetch)?,
        _ => MoeFile::read(file)?.translate(fetch)?,
    };
    Ok((translated(&translation, command, typed), translation.notes))
}

/// The arguments of a file in the names of the command's own flags.
fn own(
    file: &Path,
    entries: &[(Spanned<String>, Spanned<Node>)],
    program: &Command,
    command: &Command,
    typed: &dyn Fn(&str) -> bool,
) -> Result<(Vec<String>, Vec<String>)> {
    let folder = folder_of(file);
    let scope = Scope::new([(CONFIG.to_owned(), folder.to_string_lossy().into_owned())]);
    let mut arguments = Vec::new();
    for (key, value) in entries {
        // One key at a time, so that what is refused is refused where it stands.
        let mut lines = Lines::new(file, &scope, &RESERVED);
        let (_, argument) = lines.argument(command, key)?;
        lines.add(command, key, value)?;
        let words = lines.finish().arguments;
        let line: Vec<String> = std::iter::once(command.get_name().to_owned())
            .chain(words.iter().cloned())
            .collect();
        if let Some(problem) = refusal(program, &line) {
            return Err(fault(file, value.referenced, problem));
        }
        if !typed(argument.get_id().as_str()) {
            arguments.extend(words);
        }
    }
    Ok((arguments, Vec::new()))
}

/// The arguments of a translation.
fn translated(
    translation: &Translation,
    command: &Command,
    typed: &dyn Fn(&str) -> bool,
) -> Vec<String> {
    let is_typed = |flag: &str| {
        let argument = command
            .get_arguments()
            .find(|argument| argument.get_long() == Some(flag));
        argument.is_some_and(|argument| typed(argument.get_id().as_str()))
    };
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
