//! One stage: a command line of this program, and the files it reads and makes.

use std::path::{Path, PathBuf};

use clap::Command;
use serde_saphyr::Spanned;

use super::expand::Scope;
use super::lines::{Line, Lines, Settings, refusal, text};
use super::shell::{SHELL, Shell};
use super::slurm::resources::Resources;
use super::yaml::{Node, fault, unknown_key};
use crate::Result;
use crate::checkpoint::reference::SCHEME;

/// A command that makes copies of checkpoints, manifests and all.
const PULL: &str = "pull";
/// Settings that are the runner's to choose, and `config`: a recipe says itself what a stage reads.
pub(super) const RUNNERS: [&str; 7] = [
    "force", "resume", "dry-run", "outline", "config", "help", "version",
];
/// Commands that are no stage.
const NO_STAGES: [&str; 4] = ["run", "completions", "man", "help"];

/// Commands that run a model, on all cores.
const COMPUTING: [&str; 4] = ["train", "eval", "logits", "generate"];

/// A command of a recipe, ready to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// Its name, which no other stage of the recipe has.
    pub name: String,
    /// The command of this program and its arguments; of a `shell` stage, the shell's.
    pub command: Vec<String>,
    /// Whether it is a command of this program, and not the shell's.
    pub is_own: bool,
    /// What it makes or writes to, as seen from the work folder; `${stage.NAME}` stands for the first.
    pub outputs: Vec<PathBuf>,
    /// Where its standard output goes, if it is a result to keep.
    pub stdout: Option<PathBuf>,
    /// What it may read, as seen from the work folder; some of it may be no file at all.
    pub(super) inputs: Vec<String>,
    /// What the recipe says of the command, names replaced.
    pub(super) settings: Settings,
    /// What it asks of Slurm.
    pub(super) slurm: Resources,
    /// Which entry of the recipe it comes from.
    pub(super) entry: usize,
    /// The stages that its settings refer to by name.
    pub(super) after: Vec<String>,
    /// Whether the command has `--force`, which replaces an output.
    pub(super) replaces: bool,
    /// Whether the command has `--resume`, which goes on where a killed run stopped.
    pub(super) resumes: bool,
    /// Whether the command has `--outline`, which makes the outline of its output and says what it would take.
    pub(super) outlines: bool,
}

impl Stage {
    /// Whether it runs a model, and so takes the whole machine.
    pub fn computes(&self) -> bool {
        self.is_own
            && self
                .command
                .first()
                .is_some_and(|command| COMPUTING.contains(&command.as_str()))
    }

    /// Whether checkpoints among its outputs are of its own making, manifests and all; what is pulled keeps its own.
    pub(super) fn makes_manifests(&self) -> bool {
        self.is_own && self.kind() != PULL
    }

    /// The command as a person names it.
    pub fn kind(&self) -> &str {
        match self.is_own {
            true => self.command.first().map_or("", String::as_str),
            false => SHELL,
        }
    }

    /// The paths that it may read.
    pub(super) fn reads(&self) -> impl Iterator<Item = String> {
        self.inputs.iter().flat_map(|value| places(value))
    }
}

/// The paths that a value may hold: `PATH`, `NAME=PATH`, `PATH:WEIGHT`, `KIND:PATH`; of a pattern, the folder it starts in;
/// none of what lies on the Hub.
pub(super) fn places(value: &str) -> impl Iterator<Item = String> {
    let after = value.split_once('=').map(|(_, after)| after);
    let is_remote = |text: &str| text.starts_with(SCHEME);
    if after.is_some_and(is_remote) {
        // A folder that is called so wins over the repository.
        return vec![value.to_owned()].into_iter();
    }
    let whole = [Some(value), after].into_iter().flatten();
    let local = whole.filter(|text| !is_remote(text)).map(str::to_owned);
    let parts = local.flat_map(|text| {
        let before = text.rsplit_once(':').map(|(before, _)| before.to_owned());
        let behind = text.split_once(':').map(|(_, behind)| behind.to_owned());
        let pattern = text
            .find(['*', '?', '['])
            .map(|at| match text[..at].rfind('/') {
                Some(slash) => text[..slash].to_owned(),
                None => ".".to_owned(),
            });
        [Some(text), before, behind, pattern]
    });
    let places: Vec<String> = parts.flatten().filter(|text| !text.is_empty()).collect();
    places.into_iter()
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
    let known = program
        .get_subcommands()
        .filter(|command| is_stage(command));
    let mut names: Vec<String> = known
        .flat_map(|command| {
            let own = command.get_name();
            let below: Vec<String> = command
                .get_subcommands()
                .filter(|command| is_stage(command))
                .map(|below| format!("{own} {}", below.get_name()))
                .collect();
            if below.is_empty() {
                vec![own.to_owned()]
            } else {
                below
            }
        })
        .collect();
    names.push(SHELL.to_owned());
    names
}

/// Whether stages may use a command: not where it would run others, or is the program's own affair.
fn is_stage(command: &Command) -> bool {
    !NO_STAGES.contains(&command.get_name()) && !command.is_hide_set()
}

/// The definition of one of these commands of the program.
pub(super) fn definition<'a>(program: &'a Command, name: &str) -> Option<&'a Command> {
    let found = name.split(' ').try_fold(program, |command, word| {
        command
            .find_subcommand(word)
            .filter(|found| is_stage(found))
    })?;
    (!found.has_subcommands()).then_some(found)
}

impl Written<'_> {
    /// The stage under the names of `scope`; what the command would refuse is refused here.
    pub(super) fn resolve(&self, program: &Command, scope: &Scope) -> Result<Stage> {
        let name = text(self.recipe, self.name.referenced, &self.name.value, scope)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
            let problem = format!(
                "a stage cannot be named `{name}`; expected letters, digits, `-`, `_` and `.`"
            );
            return Err(fault(self.recipe, self.name.referenced, problem));
        }
        let stdout = match self.stdout {
            Some(file) => Some(PathBuf::from(text(
                self.recipe,
                file.referenced,
                &file.value,
                scope,
            )?)),
            None => None,
        };
        if self.command.value == SHELL {
            let shell = Shell::read(self.recipe, self.settings, scope)?;
            return Ok(self.with_shell(name, stdout, shell, scope));
        }
        let Some(definition) = definition(program, &self.command.value) else {
            let known = commands(program);
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            return Err(unknown_key(self.recipe, self.command, "a stage", &known));
        };
        let mut lines = Lines::new(self.recipe, scope, &RUNNERS);
        match &self.settings.value {
            Node::Map(settings) => {
                settings
                    .iter()
                    .try_for_each(|(key, value)| lines.add(definition, key, value))?;
            }
            Node::Scalar(None) => {}
            other => {
                let problem = format!(
                    "expected the settings of `{}`, found {}",
                    self.command.value,
                    other.kind()
                );
                return Err(fault(self.recipe, self.settings.referenced, problem));
            }
        }
        let has = |flag: &str| {
            definition
                .get_arguments()
                .any(|argument| argument.get_long() == Some(flag))
        };
        let Line {
            arguments,
            inputs,
            mut outputs,
            settings,
        } = lines.finish();
        outputs.extend(stdout.clone());
        let mut command: Vec<String> = self.command.value.split(' ').map(str::to_owned).collect();
        command.extend(arguments);
        let after = scope
            .used_stages()
            .into_iter()
            .map(|(stage, _)| stage)
            .collect();
        let stage = Stage {
            is_own: true,
            replaces: has("force"),
            resumes: has("resume"),
            outlines: has("outline"),
            ..Stage {
                name,
                command,
                inputs,
                outputs,
                stdout,
                settings,
                after,
                ..Stage::default()
            }
        };
        self.check(program, &stage)?;
        Ok(stage)
    }

    fn with_shell(
        &self,
        name: String,
        stdout: Option<PathBuf>,
        shell: Shell,
        scope: &Scope,
    ) -> Stage {
        let settings = shell.settings();
        let Shell {
            command,
            mut inputs,
            mut outputs,
        } = shell;
        outputs.extend(stdout.clone());
        // Nothing says what in the command is a file, but what another stage made is one.
        let (after, made): (_, Vec<String>) = scope.used_stages().into_iter().unzip();
        inputs.extend(made);
        let command = ["sh", "-c", &command].map(str::to_owned).to_vec();
        Stage {
            name,
            command,
            inputs,
            outputs,
            stdout,
            settings,
            after,
            ..Stage::default()
        }
    }

    /// Parses the command line as the command will.
    fn check(&self, program: &Command, stage: &Stage) -> Result<()> {
        let Some(problem) = refusal(program, &stage.command) else {
            return Ok(());
        };
        Err(fault(
            self.recipe,
            self.command.referenced,
            format!("stage `{}`: {problem}", stage.name),
        ))
    }
}
