//! The commands of a program as a recipe sees them: what each command declares, and what its arguments name.
//!
//! The command line hands this over as data. Nothing here knows a command or a flag by its name, but `--config`, which
//! this room defines.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};

use crate::arguments::{ArgumentKind, ArgumentKinds, ArgumentRole, InputPath, PulledFolders};
use crate::mergekit::Dialect;

/// The key of a stage that is a command of the shell.
pub(super) const SHELL: &str = "shell";

/// The flag that reads the settings of one command from a file, without its dashes.
pub(super) const CONFIG: &str = "config";

/// Whether recipes may use a command as a stage, and what it then leaves there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageUse {
    /// No stage: it runs other commands, or serves people alone.
    Never,
    /// A stage. The checkpoints among its outputs are of its own making, manifests and all.
    Makes,
    /// A stage whose outputs are copies of checkpoints, with their own manifests.
    Copies,
    /// A stage that sends a checkpoint elsewhere, and leaves nothing to build on.
    Publishes,
}

/// What a command declares about itself, beside its arguments.
#[derive(Clone, Debug)]
pub struct Declaration {
    /// What it is called.
    pub name: &'static str,
    /// Whether recipes may use it.
    pub stage: StageUse,
    /// The files of mergekit that its `--config` reads beside its own; none where it has no `--config`.
    pub settings_file: Option<Dialect>,
    /// Whether it runs a model with these arguments.
    pub computes: fn(&ArgMatches) -> bool,
    /// The settings by which a stage that an older version recorded does what it did then.
    ///
    /// Given that version and the recorded settings, these are the settings that were left to a default which has changed.
    pub former_settings: FormerSettings,
}

/// Settings of a recorded stage, each with its values.
pub type RecordedSettings = BTreeMap<String, Vec<String>>;

/// See [`Declaration::former_settings`].
pub type FormerSettings = fn(&str, &RecordedSettings) -> Vec<(&'static str, String)>;

/// Whether a version of this program, as text, is older than the release `MAJOR.MINOR`.
pub fn is_before(version: &str, release: (u64, u64)) -> bool {
    let mut numbers = version.split('.').map(str::parse);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < release)
}

impl Declaration {
    /// A command that runs no model and has no `--config`.
    pub fn new(name: &'static str, stage: StageUse) -> Self {
        Self {
            name,
            stage,
            settings_file: None,
            computes: |_| false,
            former_settings: |_, _| Vec::new(),
        }
    }

    /// The same with `--config`, which also reads mergekit's files of this dialect.
    pub fn with_settings_file(self, dialect: Dialect) -> Self {
        Self {
            settings_file: Some(dialect),
            ..self
        }
    }
}

/// The definition of a command line, with what its commands and arguments say of themselves.
#[derive(Clone, Debug)]
pub struct Program {
    definition: Command,
    commands: Vec<Declaration>,
    kinds: ArgumentKinds,
}

impl Program {
    /// A program of these commands; the definition lacks `--config` still.
    pub fn new(definition: Command, commands: Vec<Declaration>, kinds: ArgumentKinds) -> Self {
        let flag = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(value_parser!(InputPath))
            .help("Take settings from a YAML file, under the names of the flags, or one of mergekit's; flags win (docs/reference/settings-files.md)");
        let with_file = commands
            .iter()
            .filter(|command| command.settings_file.is_some());
        let definition = with_file.fold(definition, |definition, command| {
            definition.mut_subcommand(command.name, |command| command.arg(flag.clone()))
        });
        let definition = with_hints(definition, &kinds);
        Self {
            definition,
            commands,
            kinds,
        }
    }

    /// The definition of the command line, which parses it.
    pub fn definition(&self) -> &Command {
        &self.definition
    }

    /// The last command of a line, as `add` in `expert add`, and its arguments.
    pub fn innermost<'a>(&'a self, matches: &'a ArgMatches) -> (&'a Command, &'a ArgMatches) {
        let (mut command, mut matches) = (&self.definition, matches);
        while let Some((name, below)) = matches.subcommand()
            && let Some(found) = command.find_subcommand(name)
        {
            (command, matches) = (found, below);
        }
        (command, matches)
    }

    /// The definition with local folders in the place of the references that they were pulled for.
    pub fn with_folders(&self, folders: &PulledFolders) -> Command {
        with_folders(self.definition.clone(), &self.kinds, folders)
    }

    /// The same program with its definition completed by `clap`, which adds help and version to every command.
    pub(super) fn built(&self) -> Self {
        // The command `help` is no stage and has no settings.
        self.mapped(|definition| definition.disable_help_subcommand(true))
    }

    /// The same program with another definition, completed.
    pub(super) fn mapped(&self, map: impl FnOnce(Command) -> Command) -> Self {
        let mut definition = map(self.definition.clone());
        definition.build();
        Self {
            definition,
            commands: self.commands.clone(),
            kinds: self.kinds.clone(),
        }
    }

    /// The values of an argument, where they name something.
    pub fn kind(&self, argument: &Arg) -> Option<ArgumentKind> {
        self.kinds.of(argument)
    }

    /// What the values of an argument mean, where they name something.
    pub fn role(&self, argument: &Arg) -> Option<ArgumentRole> {
        self.kinds.role(argument)
    }

    /// Whether files cannot set an argument: help, version, and the name of the file itself.
    pub(super) fn is_reserved(&self, argument: &Arg) -> bool {
        let answers = matches!(
            argument.get_action(),
            ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
        );
        answers || argument.get_long() == Some(CONFIG)
    }

    /// Whether recipes cannot set an argument: what no file can set, and what the runner chooses.
    pub(super) fn is_runners(&self, argument: &Arg) -> bool {
        self.is_reserved(argument) || self.role(argument).is_some_and(ArgumentRole::is_switch)
    }

    /// What the command declares that is called so, or of which `name` is a command: `expert add`.
    pub(super) fn declaration(&self, name: &str) -> Option<&Declaration> {
        let first = name.split(' ').next()?;
        self.commands.iter().find(|command| command.name == first)
    }

    /// How recipes may use the command that is called so; what declares nothing is no stage.
    pub(super) fn stage_use(&self, name: &str) -> StageUse {
        self.declaration(name)
            .map_or(StageUse::Never, |command| command.stage)
    }

    /// The commands that take settings from a file.
    pub(super) fn with_settings_file(&self) -> impl Iterator<Item = (&Declaration, Dialect)> {
        self.commands
            .iter()
            .filter_map(|command| Some((command, command.settings_file?)))
    }

    /// The names of the commands that stages may use; of a command with commands below it, those: `expert add`.
    pub(super) fn stage_commands(&self) -> Vec<String> {
        let mut names = Vec::new();
        for command in self.definition.get_subcommands() {
            let own = command.get_name();
            if self.stage_use(own) == StageUse::Never {
                continue;
            }
            let below: Vec<String> = command
                .get_subcommands()
                .map(|below| format!("{own} {}", below.get_name()))
                .collect();
            if below.is_empty() {
                names.push(own.to_owned());
            } else {
                names.extend(below);
            }
        }
        names.push(SHELL.to_owned());
        names
    }

    /// The definition of a command that stages may use.
    pub(super) fn stage_definition(&self, name: &str) -> Option<&Command> {
        if self.stage_use(name) == StageUse::Never {
            return None;
        }
        let found = name
            .split(' ')
            .try_fold(&self.definition, |command, word| {
                command.find_subcommand(word)
            })?;
        (!found.has_subcommands()).then_some(found)
    }

    /// The flag of a command, with its dashes, that has a role.
    pub(super) fn flag(&self, command: &Command, role: ArgumentRole) -> Option<String> {
        command
            .get_arguments()
            .find(|argument| self.role(argument) == Some(role))
            .and_then(Arg::get_long)
            .map(|flag| format!("--{flag}"))
    }
}

/// Tells shells to complete paths where values are paths.
fn with_hints(command: Command, kinds: &ArgumentKinds) -> Command {
    // A value that must begin with a name or a kind is no path as it is typed.
    let typed = "name=path";
    let is_path = |argument: &Arg| {
        let kind = kinds.of(argument);
        kind.is_some_and(|kind| kind.places(typed).contains(&typed))
    };
    command
        .mut_args(|argument| {
            if is_path(&argument) {
                argument.value_hint(ValueHint::AnyPath)
            } else {
                argument
            }
        })
        .mut_subcommands(|below| with_hints(below, kinds))
}

fn with_folders(command: Command, kinds: &ArgumentKinds, folders: &PulledFolders) -> Command {
    command
        .mut_args(|argument| match kinds.of(&argument) {
            Some(kind) if kind.role == ArgumentRole::Checkpoint => {
                argument.value_parser(kind.parser(folders.clone()))
            }
            _ => argument,
        })
        .mut_subcommands(|below| with_folders(below, kinds, folders))
}
