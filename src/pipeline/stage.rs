//! One stage: a command line of this program, and the files it reads and makes.

use std::path::{Path, PathBuf};

use clap::Command;
use serde_saphyr::Spanned;

use super::expand::Scope;
use super::lines::{Lines, refusal, text};
use super::yaml::{Node, fault, unknown_key};
use crate::Result;

/// Settings that name what a command makes; the first one given is what `${stage.NAME}` stands for.
pub(super) const OUTPUTS: [&str; 4] = ["out", "dump", "svg", "routing-svg"];
/// Settings that are the runner's to choose, and `config`: a recipe says itself what a stage reads.
const RUNNERS: [&str; 6] = ["force", "resume", "dry-run", "config", "help", "version"];
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

/// The names of the commands that stages may use; of a command with commands below it, those: `expert add`.
pub(super) fn commands(program: &Command) -> Vec<String> {
    let known = program.get_subcommands().filter(|command| !NO_STAGES.contains(&command.get_name()));
    let names = known.flat_map(|command| {
        let own = command.get_name();
        let below: Vec<String> = command.get_subcommands().map(|below| format!("{own} {}", below.get_name())).collect();
        if below.is_empty() { vec![own.to_owned()] } else { below }
    });
    names.collect()
}

/// The definition of one of these commands.
fn definition<'a>(program: &'a Command, name: &str) -> Option<&'a Command> {
    let found = name.split(' ').try_fold(program, |command, word| command.find_subcommand(word))?;
    (!found.has_subcommands()).then_some(found)
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
        let Some(definition) = definition(program, &self.command.value) else {
            let known = commands(program);
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            return Err(unknown_key(self.recipe, self.command, "a stage", &known));
        };
        let mut lines = Lines::new(self.recipe, scope, &RUNNERS);
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
        let (arguments, inputs) = lines.finish();
        let mut command: Vec<String> = self.command.value.split(' ').map(str::to_owned).collect();
        command.extend(arguments);
        let stage = Stage { name, command, inputs, outputs, stdout, replaces: has("force"), resumes: has("resume") };
        self.check(program, &stage)?;
        Ok(stage)
    }

    /// Parses the command line as the command will.
    fn check(&self, program: &Command, stage: &Stage) -> Result<()> {
        let Some(problem) = refusal(program, &stage.command) else { return Ok(()) };
        Err(fault(self.recipe, self.command.referenced, format!("stage `{}`: {problem}", stage.name)))
    }
}
