//! Settings of a file as a command line, by the definition that parses command lines.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command};
use serde_saphyr::{Location, Spanned};

use super::expand::{Scope, expand};
use super::program::Program;
use super::recipe_error::RecipeError;
use super::yaml::{Node, unknown_key, wrong_kind};
use crate::Result;
use crate::arguments::{ArgumentKind, ArgumentRole};
use crate::checkpoint::yaml::place;

/// A text of the file with its names replaced.
pub(super) fn text(file: &Path, location: Location, text: &str, scope: &Scope) -> Result<String> {
    expand(text, scope).map_err(|rule| {
        let at = place(file, location);
        RecipeError::Name { at, rule }.into()
    })
}

/// Parses arguments as the program will. The error is what it would refuse, in a line: what follows in its message is how
/// to use the command line, which a file hides.
pub(super) fn parse(program: &Command, arguments: &[String]) -> Result<ArgMatches, String> {
    let line = std::iter::once(program.get_name().to_owned()).chain(arguments.iter().cloned());
    program.clone().try_get_matches_from(line).map_err(|error| {
        let message = error.render().to_string();
        let is_advice =
            |line: &str| line.starts_with("Usage:") || line.starts_with("For more information");
        let words = message
            .lines()
            .map(str::trim)
            .take_while(|line| !is_advice(line));
        let words: Vec<&str> = words.filter(|line| !line.is_empty()).collect();
        words.join(" ").trim_start_matches("error: ").to_owned()
    })
}

/// A setting of a file, names replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The key.
    pub(super) key: String,
    /// What the values mean, where they name something.
    pub(super) role: Option<ArgumentRole>,
    /// The values, in order.
    pub(super) values: Vec<SettingValue>,
}

/// A value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SettingValue {
    /// The whole value.
    pub(super) text: String,
    /// The paths that it may hold.
    pub(super) places: Vec<String>,
}

impl Setting {
    /// A setting whose values are of this kind, or name nothing.
    pub(super) fn new(key: &str, kind: Option<ArgumentKind>, values: &[String]) -> Self {
        let value = |text: &String| {
            let places = kind.map_or(Vec::new(), |kind| kind.places(text));
            SettingValue {
                text: text.clone(),
                places: places.into_iter().map(str::to_owned).collect(),
            }
        };
        Self {
            key: key.to_owned(),
            role: kind.map(|kind| kind.role),
            values: values.iter().map(value).collect(),
        }
    }
}

/// Settings as a command line.
pub(super) struct Line {
    /// The arguments, without the command.
    pub(super) arguments: Vec<String>,
    /// Files and folders that the command writes to; the first is its result.
    pub(super) outputs: Vec<PathBuf>,
    /// The settings that the arguments were.
    pub(super) settings: Vec<Setting>,
}

/// What kind of file holds the settings; each keeps some arguments to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A recipe, whose runner chooses whether to replace, resume or estimate.
    Recipe,
    /// A file of `--config`.
    SettingsFile,
}

/// A command line as it grows.
pub(super) struct Lines<'a> {
    file: &'a Path,
    scope: &'a Scope,
    program: &'a Program,
    owner: Owner,
    positional: Vec<(usize, String)>,
    flags: Vec<String>,
    outputs: Vec<(usize, PathBuf)>,
    settings: Vec<Setting>,
}

impl<'a> Lines<'a> {
    /// Of a file whose texts may hold the names of `scope`.
    pub(super) fn new(
        file: &'a Path,
        scope: &'a Scope,
        program: &'a Program,
        owner: Owner,
    ) -> Self {
        Self {
            file,
            scope,
            program,
            owner,
            positional: Vec::new(),
            flags: Vec::new(),
            outputs: Vec::new(),
            settings: Vec::new(),
        }
    }

    /// The command line, and what of it names files.
    pub(super) fn finish(mut self) -> Line {
        // Positional values first: a flag that takes any number of values would swallow them.
        self.positional.sort_by_key(|(index, _)| *index);
        let positional = self.positional.into_iter().map(|(_, value)| value);
        // In the order of the command's definition, whatever order the file has.
        self.outputs.sort_by_key(|(place, _)| *place);
        Line {
            arguments: positional.chain(self.flags).collect(),
            outputs: self.outputs.into_iter().map(|(_, path)| path).collect(),
            settings: self.settings,
        }
    }

    /// Adds a key of the file with its values.
    pub(super) fn add(
        &mut self,
        command: &Command,
        key: &Spanned<String>,
        value: &Spanned<Node>,
    ) -> Result<()> {
        let (name, argument) = self.argument(command, key)?;
        let location = value.referenced;
        let values = self.values(argument, value)?;
        let kind = self.program.kind(argument);
        let counts = argument.get_num_args().unwrap_or_default();
        if values.len() > 1 && !takes_many(argument) {
            let error = RecipeError::OneValue {
                at: place(self.file, value.referenced),
                key: name.to_owned(),
                found: values.len().to_string().into(),
            };
            return Err(error.into());
        }
        if !argument.get_action().takes_values() || (counts.min_values() == 0 && is_switch(&values))
        {
            self.settings.push(Setting::new(name, None, &values));
            return self.switch(name, &values, value.referenced);
        }
        self.settings.push(Setting::new(name, kind, &values));
        let together = counts.min_values() > 1;
        if together {
            self.flags.push(format!("--{name}"));
        }
        for value in values {
            if kind.is_some_and(|kind| kind.role == ArgumentRole::Output) {
                self.outputs
                    .push((place_of(command, argument), PathBuf::from(&value)));
            }
            let stands_alone = together || argument.get_index().is_some();
            if stands_alone && value.starts_with('-') {
                let (at, key) = (place(self.file, location), name.to_owned());
                return Err(RecipeError::Dash { at, key, value }.into());
            }
            match argument.get_index() {
                Some(index) => self.positional.push((index, value)),
                None if together => self.flags.push(value),
                // In one word, a value may begin with a dash.
                None if value.starts_with('-') => self.flags.push(format!("--{name}={value}")),
                None => self.flags.extend([format!("--{name}"), value]),
            }
        }
        Ok(())
    }

    /// The keys that a file may have for the command.
    pub(super) fn keys<'c>(&self, command: &'c Command) -> Vec<&'c str> {
        let settings = command.get_arguments().filter_map(setting);
        let free = settings.filter(|(_, argument)| !self.is_reserved(argument));
        free.map(|(name, _)| name).collect()
    }

    /// The argument that a key sets.
    pub(super) fn argument<'c>(
        &self,
        command: &'c Command,
        key: &Spanned<String>,
    ) -> Result<(&'c str, &'c Arg)> {
        let known: Vec<(&str, &Arg)> = command
            .get_arguments()
            .filter_map(setting)
            .filter(|(_, argument)| !self.is_reserved(argument))
            .collect();
        known
            .iter()
            .find(|(name, _)| *name == key.value)
            .copied()
            .ok_or_else(|| {
                let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                unknown_key(self.file, key, &format!("`{}`", command.get_name()), &names)
            })
    }

    fn is_reserved(&self, argument: &Arg) -> bool {
        match self.owner {
            Owner::Recipe => self.program.is_runners(argument),
            Owner::SettingsFile => self.program.is_reserved(argument),
        }
    }

    fn switch(&mut self, name: &str, values: &[String], location: Location) -> Result<()> {
        match values.first().map(String::as_str) {
            Some("true") => self.flags.push(format!("--{name}")),
            Some("false") | None => {}
            Some(other) => {
                let error = RecipeError::Switch {
                    at: place(self.file, location),
                    key: name.to_owned(),
                    found: other.to_owned(),
                };
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// The values of a key, in order: `name: {a: x}` gives `a=x` where the flag wants `NAME=…`.
    fn values(&self, argument: &Arg, value: &Spanned<Node>) -> Result<Vec<String>> {
        let named = self
            .program
            .kind(argument)
            .is_some_and(|kind| kind.is_named);
        match &value.value {
            Node::Scalar(None) => Ok(Vec::new()),
            Node::Scalar(Some(scalar)) => Ok(vec![self.text(value.referenced, scalar)?]),
            Node::List(items) => items.iter().map(|item| self.scalar(item)).collect(),
            Node::Map(entries) if named => entries
                .iter()
                .map(|(name, value)| {
                    Ok(format!(
                        "{}={}",
                        self.text(name.referenced, &name.value)?,
                        self.scalar(value)?
                    ))
                })
                .collect(),
            Node::Map(_) => Err(wrong_kind(self.file, value, "a value or a list of values")),
        }
    }

    fn scalar(&self, item: &Spanned<Node>) -> Result<String> {
        match &item.value {
            Node::Scalar(Some(scalar)) => self.text(item.referenced, scalar),
            _ => Err(wrong_kind(self.file, item, "a single value")),
        }
    }

    fn text(&self, location: Location, words: &str) -> Result<String> {
        text(self.file, location, words, self.scope)
    }
}

/// The place of an argument in the definition of its command.
fn place_of(command: &Command, argument: &Arg) -> usize {
    command
        .get_arguments()
        .position(|other| other.get_id() == argument.get_id())
        .unwrap_or(usize::MAX)
}

fn is_switch(values: &[String]) -> bool {
    matches!(values, [one] if one == "true" || one == "false")
}

/// The key by which a file sets an argument: the flag without its dashes, or the name of a positional one.
pub(super) fn setting(argument: &Arg) -> Option<(&str, &Arg)> {
    let name = match argument.get_index() {
        Some(_) => argument.get_id().as_str(),
        None => argument.get_long()?,
    };
    (!argument.is_global_set()).then_some((name, argument))
}

/// Whether it takes more than one value.
pub(super) fn takes_many(argument: &Arg) -> bool {
    let counts = argument.get_num_args().unwrap_or_default();
    matches!(argument.get_action(), clap::ArgAction::Append) || counts.max_values() > 1
}
