//! `BAM_CONVERT_*`: environment variables that set a flag where neither the line nor a file of settings does.

use std::ffi::{OsStr, OsString};
use std::sync::OnceLock;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::error::{CliError, Result};

/// Flags and the variables that set them, in every command that has the flag.
const VARIABLES: [(&str, &str); 6] = [
    ("threads", "BAM_CONVERT_THREADS"),
    ("memory", "BAM_CONVERT_MEMORY"),
    ("device", "BAM_CONVERT_DEVICE"),
    ("color", "BAM_CONVERT_COLOR"),
    ("quiet", "BAM_CONVERT_QUIET"),
    ("verbose", "BAM_CONVERT_VERBOSE"),
];

/// The value of the variable for a flag; an empty one counts as absent, and so does one that is no text.
pub fn value(flag: &str) -> Option<&'static str> {
    written(flag)?.to_str().filter(|value| !value.is_empty())
}

/// The value of the variable for a flag as it is.
fn written(flag: &str) -> Option<&'static OsStr> {
    // Read once, because the parser holds its defaults for as long as the process lives.
    static VALUES: OnceLock<Vec<Option<OsString>>> = OnceLock::new();
    let values = VALUES.get_or_init(|| {
        let read = |(_, variable): &(_, &str)| std::env::var_os(variable);
        VARIABLES.iter().map(read).collect()
    });
    let number = VARIABLES.iter().position(|(name, _)| *name == flag)?;
    values.get(number)?.as_deref()
}

/// The variables that are set, with their values.
pub fn given() -> Vec<String> {
    let set = VARIABLES
        .iter()
        .filter_map(|(flag, variable)| Some(format!("{variable}={}", value(flag)?)));
    set.collect()
}

/// The definition with the name of its variable in the help of each flag.
pub fn shown(command: Command) -> Command {
    mapped(command, &|argument| {
        let variable = argument.get_long().and_then(variable_of);
        let Some(variable) = variable else {
            return argument;
        };
        let help = argument.get_help().map(ToString::to_string);
        let help = help.unwrap_or_default();
        argument.help(format!("{help} [env: {variable}]"))
    })
}

/// The definition with the values of the variables as defaults, for the parser.
///
/// # Errors
/// A value that the flag would refuse, and one that is no text.
pub fn applied(command: Command) -> Result<Command> {
    for (flag, variable) in VARIABLES {
        if let Some(written) = written(flag).filter(|written| written.to_str().is_none()) {
            return Err(CliError::Variable {
                variable,
                value: written.to_string_lossy().into_owned(),
                reason: "expected UTF-8".to_owned(),
                flag: flag.to_owned(),
            });
        }
        if let Some(value) = value(flag) {
            check(&command, flag, variable, value)?;
        }
    }
    Ok(mapped(command, &|argument| {
        let value = argument.get_long().and_then(value);
        match value {
            Some(value) if is_switch(&argument) => argument.default_value(truth(value)),
            Some(value) => argument.default_value(value),
            None => argument,
        }
    }))
}

fn variable_of(flag: &str) -> Option<&'static str> {
    let found = VARIABLES.iter().find(|(name, _)| *name == flag);
    found.map(|(_, variable)| *variable)
}

/// Refuses a value that the flag refuses.
fn check(command: &Command, flag: &str, variable: &'static str, value: &str) -> Result<()> {
    let Some(argument) = find(command, flag) else {
        return Ok(());
    };
    let refused = |reason: String| CliError::Variable {
        variable,
        value: value.to_owned(),
        reason,
        flag: flag.to_owned(),
    };
    if is_switch(argument) {
        return match truth(value) {
            "" => Err(refused("expected 1 or 0".to_owned())),
            _ => Ok(()),
        };
    }
    let alone = Command::new("variable").arg(argument.clone().required(false));
    let line = [
        OsString::from("variable"),
        format!("--{flag}={value}").into(),
    ];
    let parsed: std::result::Result<ArgMatches, _> = alone.try_get_matches_from(line);
    parsed.map(drop).map_err(|error| {
        let text = error.render().to_string();
        let reason = text.lines().next().unwrap_or_default();
        let reason = reason
            .split_once("': ")
            .map(|(_, reason)| reason.to_owned());
        refused(reason.unwrap_or_else(|| possible(argument)))
    })
}

/// The values that a flag takes.
fn possible(argument: &Arg) -> String {
    let values = argument.get_possible_values();
    let names: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
    format!("expected one of {}", names.join(", "))
}

/// The first argument with a flag.
fn find<'a>(command: &'a Command, flag: &str) -> Option<&'a Arg> {
    let own = command.get_arguments();
    own.into_iter()
        .find(|argument| argument.get_long() == Some(flag))
        .or_else(|| {
            command
                .get_subcommands()
                .find_map(|below| find(below, flag))
        })
}

fn is_switch(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::SetTrue)
}

/// The value of a switch as the parser knows it; empty for what is neither.
fn truth(value: &str) -> &'static str {
    match value {
        "1" | "true" | "yes" | "on" => "true",
        "0" | "false" | "no" | "off" => "false",
        _ => "",
    }
}

fn mapped(command: Command, map: &dyn Fn(Arg) -> Arg) -> Command {
    command
        .mut_args(map)
        .mut_subcommands(|below| mapped(below, map))
}
