//! One stage: a command line of this program, and the files it reads and makes.

use std::path::{Path, PathBuf};

use clap::{Arg, Command};
use serde_saphyr::{Location, Spanned};

use super::expand::{Scope, expand};
use super::yaml::{Node, fault, unknown_key};
use crate::Result;

/// Settings that name what a command makes; the first one given is what `${stage.NAME}` stands for.
const OUTPUTS: [&str; 4] = ["out", "dump", "svg", "routing-svg"];
/// Settings that are the runner's to choose.
const RUNNERS: [&str; 5] = ["force", "resume", "dry-run", "help", "version"];
/// Commands that are no stage.
const NO_STAGES: [&str; 4] = ["run", "completions", "man", "help"];

/// A command of a recipe, ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its name, which no other stage of the recipe has.
    pub name: String,
    /// The command of this program and its arguments.
    pub command: Vec<String>,
    /// What it makes, as seen from the work folder.
    pub outputs: Vec<PathBuf>,
    /// Where its standard output goes, if it is a result to keep.
    pub stdout: Option<PathBuf>,
    /// What it may read, as seen from the work folder; some of it may be no file at all.
    pub(super) inputs: Vec<String>,
    /// Whether the command has `--force`, which replaces an output.
    pub(super) replaces: bool,
    /// Whether the command has `--resume`, which goes on where a killed run stopped.
    pub(super) resumes: bool,
}

impl Stage {
    /// Whether one of the files it may read is what `other` makes.
    pub(super) fn reads_what_makes(&self, other: &Self) -> bool {
        let mut read = self.inputs.iter().flat_map(|value| places(value));
        read.any(|place| other.outputs.iter().any(|output| Path::new(&place).starts_with(output)))
    }
}

/// The paths that a value may hold: `PATH`, `NAME=PATH`, `PATH:WEIGHT`, `KIND:PATH`; of a pattern, the folder it starts in.
pub(super) fn places(value: &str) -> impl Iterator<Item = String> {
    let value = value.to_owned();
    let after = value.split_once('=').map(|(_, after)| after.to_owned());
    let whole: Vec<String> = [Some(value), after].into_iter().flatten().collect();
    let parts = whole.into_iter().flat_map(|text| {
        let before = text.rsplit_once(':').map(|(before, _)| before.to_owned());
        let behind = text.split_once(':').map(|(_, behind)| behind.to_owned());
        let pattern = text.find(['*', '?', '[']).map(|at| match text[..at].rfind('/') {
            Some(slash) => text[..slash].to_owned(),
            None => ".".to_owned(),
        });
        [Some(text), before, behind, pattern]
    });
    parts.flatten().filter(|text| !text.is_empty())
}

/// A stage as the recipe has it.
pub(super) struct Written<'a> {
    pub(super) recipe: &'a Path,
    pub(super) name: &'a Spanned<String>,
    pub(super) command: &'a Spanned<String>,
    pub(super) settings: &'a Spanned<Node>,
    pub(super) stdout: Option<&'a Spanned<String>>,
}

/// The names of the commands that stages may use.
pub(super) fn commands(program: &Command) -> Vec<&str> {
    program.get_subcommands().map(Command::get_name).filter(|name| !NO_STAGES.contains(name)).collect()
}

/// A text of the recipe with its names replaced.
pub(super) fn text(recipe: &Path, place: Location, text: &str, scope: &Scope) -> Result<String> {
    expand(text, scope).map_err(|(problem, hint)| {
        let error = fault(recipe, place, problem);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    })
}

impl Written<'_> {
    /// The stage under the names of `scope`; what the command would refuse is refused here.
    pub(super) fn resolve(&self, program: &Command, scope: &Scope) -> Result<Stage> {
        let name = text(self.recipe, self.name.referenced, &self.name.value, scope)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
            let problem = format!("a stage cannot be named `{name}`; expected letters, digits, `-`, `_` and `.`");
            return Err(fault(self.recipe, self.name.referenced, problem));
        }
        let stdout = match self.stdout {
            Some(file) => Some(PathBuf::from(text(self.recipe, file.referenced, &file.value, scope)?)),
            None => None,
        };
        let Some(definition) = program.find_subcommand(&self.command.value) else {
            return Err(unknown_key(self.recipe, self.command, "a stage", &commands(program)));
        };
        let mut lines = Lines::new(self, scope);
        match &self.settings.value {
            Node::Map(settings) => {
                settings.iter().try_for_each(|(key, value)| lines.add(definition, key, value))?;
            }
            Node::Scalar(None) => {}
            other => {
                let problem = format!("expected the settings of `{}`, found {}", self.command.value, other.kind());
                return Err(fault(self.recipe, self.settings.referenced, problem));
            }
        }
        let mut outputs: Vec<PathBuf> = OUTPUTS.iter().filter_map(|key| lines.output(key)).collect();
        outputs.extend(stdout.clone());
        let has = |flag: &str| definition.get_arguments().any(|argument| argument.get_long() == Some(flag));
        let mut command = vec![self.command.value.clone()];
        // Positional values first: a flag that takes any number of values would swallow them.
        lines.positional.sort_by_key(|(index, _)| *index);
        command.extend(lines.positional.into_iter().map(|(_, value)| value));
        command.extend(lines.flags);
        let stage = Stage {
            name,
            command,
            inputs: lines.inputs,
            outputs,
            stdout,
            replaces: has("force"),
            resumes: has("resume"),
        };
        self.check(program, &stage)?;
        Ok(stage)
    }

    /// Parses the command line as the command will.
    fn check(&self, program: &Command, stage: &Stage) -> Result<()> {
        let line = std::iter::once(program.get_name().to_owned()).chain(stage.command.iter().cloned());
        let Err(error) = program.clone().try_get_matches_from(line) else { return Ok(()) };
        let message = error.render().to_string();
        // What follows is how to use the command line, which the recipe hides.
        let advice = |line: &str| line.starts_with("Usage:") || line.starts_with("For more information");
        let words = message.lines().map(str::trim).take_while(|line| !advice(line));
        let words: Vec<&str> = words.filter(|line| !line.is_empty()).collect();
        let problem = words.join(" ").trim_start_matches("error: ").to_owned();
        Err(fault(self.recipe, self.command.referenced, format!("stage `{}`: {problem}", stage.name)))
    }
}

/// A command line as it grows.
struct Lines<'a> {
    written: &'a Written<'a>,
    scope: &'a Scope,
    positional: Vec<(usize, String)>,
    flags: Vec<String>,
    inputs: Vec<String>,
    outputs: Vec<(String, PathBuf)>,
}

impl<'a> Lines<'a> {
    fn new(written: &'a Written<'a>, scope: &'a Scope) -> Self {
        let (positional, flags, inputs, outputs) = Default::default();
        Self { written, scope, positional, flags, inputs, outputs }
    }

    fn output(&self, key: &str) -> Option<PathBuf> {
        self.outputs.iter().find(|(of, _)| of == key).map(|(_, path)| path.clone())
    }

    /// Adds a key of the recipe with its values.
    fn add(&mut self, command: &Command, key: &Spanned<String>, value: &Spanned<Node>) -> Result<()> {
        let recipe = self.written.recipe;
        let known: Vec<(&str, &Arg)> = command.get_arguments().filter_map(setting).collect();
        let Some((name, argument)) = known.iter().find(|(name, _)| *name == key.value) else {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            return Err(unknown_key(recipe, key, &format!("`{}`", command.get_name()), &names));
        };
        let values = self.values(argument, value)?;
        let counts = argument.get_num_args().unwrap_or_default();
        let many = matches!(argument.get_action(), clap::ArgAction::Append) || counts.max_values() > 1;
        if values.len() > 1 && !many {
            let problem = format!("`{name}` takes one value, found {}", values.len());
            return Err(fault(recipe, value.referenced, problem));
        }
        if !argument.get_action().takes_values() || (counts.min_values() == 0 && is_switch(&values)) {
            return self.switch(name, &values, value.referenced);
        }
        for value in values {
            if OUTPUTS.contains(name) {
                self.outputs.push(((*name).to_owned(), PathBuf::from(&value)));
            } else if names_files(argument) {
                self.inputs.push(value.clone());
            }
            match argument.get_index() {
                Some(index) => self.positional.push((index, value)),
                // In one word, a value may begin with a dash.
                None if value.starts_with('-') => self.flags.push(format!("--{name}={value}")),
                None => self.flags.extend([format!("--{name}"), value]),
            }
        }
        Ok(())
    }

    fn switch(&mut self, name: &str, values: &[String], place: Location) -> Result<()> {
        match values.first().map(String::as_str) {
            Some("true") => self.flags.push(format!("--{name}")),
            Some("false") | None => {}
            Some(other) => {
                let problem = format!("`{name}` is on or off; expected true or false, found `{other}`");
                return Err(fault(self.written.recipe, place, problem));
            }
        }
        Ok(())
    }

    /// The values of a key, in order: `name: {a: x}` gives `a=x` where the flag wants `NAME=…`.
    fn values(&self, argument: &Arg, value: &Spanned<Node>) -> Result<Vec<String>> {
        let named = value_names(argument).any(|name| name.contains('='));
        match &value.value {
            Node::Scalar(None) => Ok(Vec::new()),
            Node::Scalar(Some(scalar)) => Ok(vec![self.text(value.referenced, scalar)?]),
            Node::List(items) => items.iter().map(|item| self.scalar(item)).collect(),
            Node::Map(entries) if named => entries
                .iter()
                .map(|(name, value)| {
                    Ok(format!("{}={}", self.text(name.referenced, &name.value)?, self.scalar(value)?))
                })
                .collect(),
            Node::Map(_) => Err(fault(
                self.written.recipe,
                value.referenced,
                "expected a value or a list of values, found keys with values",
            )),
        }
    }

    fn scalar(&self, item: &Spanned<Node>) -> Result<String> {
        match &item.value {
            Node::Scalar(Some(scalar)) => self.text(item.referenced, scalar),
            other => {
                let problem = format!("expected a single value, found {}", other.kind());
                Err(fault(self.written.recipe, item.referenced, problem))
            }
        }
    }

    fn text(&self, place: Location, words: &str) -> Result<String> {
        text(self.written.recipe, place, words, self.scope)
    }
}

fn is_switch(values: &[String]) -> bool {
    matches!(values, [one] if one == "true" || one == "false")
}

/// The key by which a recipe sets an argument: the flag without its dashes, or the name of a positional one.
fn setting(argument: &Arg) -> Option<(&str, &Arg)> {
    let name = match argument.get_index() {
        Some(_) => argument.get_id().as_str(),
        None => argument.get_long()?,
    };
    (!RUNNERS.contains(&name) && !argument.is_global_set()).then_some((name, argument))
}

fn value_names(argument: &Arg) -> impl Iterator<Item = &str> {
    argument.get_value_names().unwrap_or_default().iter().map(|name| name.as_str())
}

/// Whether values of this argument are files or folders, or hold one.
fn names_files(argument: &Arg) -> bool {
    argument.get_value_hint() == clap::ValueHint::AnyPath
        || value_names(argument).any(|name| ["DIR", "FILE", "PATH"].iter().any(|word| name.contains(word)))
}
