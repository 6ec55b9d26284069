//! One stage: a command line of this program, and the files it reads and makes.

use std::path::{Path, PathBuf};

use serde_saphyr::Spanned;

use super::expand::Scope;
use super::lines::{Line, Lines, Owner, Setting, parse, text};
use super::program::{Program, SHELL, StageUse};
use super::recipe_error::RecipeError;
use super::shell::Shell;
use super::slurm::resources::Resources;
use super::yaml::{Node, unknown_key, wrong_kind};
use crate::Result;
use crate::arguments::ArgumentRole;
use crate::checkpoint::yaml::place;

/// A command of a recipe, ready to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// Its name, which no other stage of the recipe has.
    pub name: String,
    /// The command of this program and its arguments; of a `shell` stage, the shell's.
    pub command: Vec<String>,
    /// Whether it is a command of this program, and not the shell's.
    pub is_own: bool,
    /// What it makes or writes to, as seen from the work folder; `${stage.NAME}` is the first.
    pub outputs: Vec<PathBuf>,
    /// Where its standard output goes, if it is a result to keep.
    pub stdout: Option<PathBuf>,
    /// What the recipe says of the command, names replaced.
    pub(super) settings: Vec<Setting>,
    /// Outputs of other stages that its text refers to, beside what its settings name.
    pub(super) used: Vec<String>,
    /// What it asks of Slurm.
    pub(super) slurm: Resources,
    /// Which entry of the recipe it comes from.
    pub(super) entry: usize,
    /// The stages that its settings refer to by name.
    pub(super) after: Vec<String>,
    /// Whether it runs a model, and so takes the whole machine.
    pub(super) computes: bool,
    /// Whether checkpoints among its outputs are of its own making; copies keep the manifests that they have.
    pub(super) makes_manifests: bool,
    /// The flag that replaces an output, where the command has one.
    pub(super) force: Option<String>,
    /// The flag that resumes a run that was cut short, where the command has one.
    pub(super) resume: Option<String>,
    /// The flag that makes the outline of the output and prints an estimate, where the command has one.
    pub(super) outline: Option<String>,
}

impl Stage {
    /// The command as a person names it.
    pub fn kind(&self) -> &str {
        if self.is_own {
            self.command.first().map_or("", String::as_str)
        } else {
            SHELL
        }
    }

    /// Whether it runs a model, and so takes the whole machine.
    pub fn computes(&self) -> bool {
        self.computes
    }

    /// The inputs that its command refuses where they are missing: of each, the paths that its text may mean.
    pub(super) fn inputs(&self) -> impl Iterator<Item = &Vec<String>> {
        let settings = self.settings.iter();
        settings
            .filter(|setting| setting.role.is_some_and(ArgumentRole::is_read))
            .flat_map(|setting| &setting.values)
            .map(|value| &value.places)
            .filter(|places| !places.is_empty())
    }

    /// The paths that it may read, as seen from the work folder; some may be no file at all.
    pub(super) fn reads(&self) -> impl Iterator<Item = &String> {
        let settings = self
            .settings
            .iter()
            .filter(|setting| setting.role.is_some_and(ArgumentRole::is_read));
        let values = settings.flat_map(|setting| &setting.values);
        values.flat_map(|value| &value.places).chain(&self.used)
    }
}

/// A stage as the recipe has it.
pub(super) struct Written<'a> {
    pub(super) recipe: &'a Path,
    pub(super) name: Spanned<String>,
    pub(super) command: &'a Spanned<String>,
    pub(super) settings: &'a Spanned<Node>,
    pub(super) stdout: Option<Spanned<String>>,
}

impl Written<'_> {
    /// The stage under the names of `scope`; what the command would refuse is refused here.
    pub(super) fn resolve(&self, program: &Program, scope: &Scope) -> Result<Stage> {
        let name = text(self.recipe, self.name.referenced, &self.name.value, scope)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
            let at = place(self.recipe, self.name.referenced);
            return Err(RecipeError::StageName { at, name }.into());
        }
        let stdout = match &self.stdout {
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
            Ok(self.with_shell(name, stdout, shell, scope))
        } else {
            self.with_command(name, stdout, program, scope)
        }
    }

    /// A stage that is a command of this program.
    fn with_command(
        &self,
        name: String,
        stdout: Option<PathBuf>,
        program: &Program,
        scope: &Scope,
    ) -> Result<Stage> {
        let command = &self.command.value;
        let (Some(definition), Some(declaration)) = (
            program.stage_definition(command),
            program.declaration(command),
        ) else {
            let known = program.stage_commands();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            return Err(unknown_key(self.recipe, self.command, "a stage", &known));
        };
        let mut lines = Lines::new(self.recipe, scope, program, Owner::Recipe);
        match &self.settings.value {
            Node::Map(settings) => {
                settings
                    .iter()
                    .try_for_each(|(key, value)| lines.add(definition, key, value))?;
            }
            Node::Scalar(None) => {}
            Node::Scalar(Some(_)) | Node::List(_) => {
                let expected = format!("the settings of `{command}`");
                return Err(wrong_kind(self.recipe, self.settings, expected));
            }
        }
        let Line {
            arguments,
            mut outputs,
            settings,
        } = lines.finish();
        outputs.extend(stdout.clone());
        let mut words: Vec<String> = command.split(' ').map(str::to_owned).collect();
        words.extend(arguments);
        // What the command would refuse is refused here, with its place in the recipe.
        let matches =
            parse(program.definition(), &words).map_err(|problem| RecipeError::StageRefused {
                at: place(self.recipe, self.command.referenced),
                stage: name.clone(),
                problem,
            })?;
        let own = matches.subcommand().map(|(_, own)| own);
        let after = scope.used_stages().into_iter().map(|(stage, _)| stage);
        Ok(Stage {
            name,
            command: words,
            is_own: true,
            outputs,
            stdout,
            settings,
            after: after.collect(),
            computes: own.is_some_and(declaration.computes),
            makes_manifests: declaration.stage != StageUse::Copies,
            force: program.flag(definition, ArgumentRole::Force),
            resume: program.flag(definition, ArgumentRole::Resume),
            outline: program.flag(definition, ArgumentRole::Outline),
            ..Stage::default()
        })
    }

    /// A stage that is a command of the shell.
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
            mut outputs,
            ..
        } = shell;
        outputs.extend(stdout.clone());
        // Nothing says what in the command is a file, but what another stage made is one.
        let (after, used) = scope.used_stages().into_iter().unzip();
        let command = ["sh", "-c", &command].map(str::to_owned).to_vec();
        Stage {
            name,
            command,
            outputs,
            stdout,
            settings,
            used,
            after,
            ..Stage::default()
        }
    }
}
