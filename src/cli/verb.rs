//! What a command is: its arguments, what it declares about itself, and what it does.
//!
//! Each command implements [`Verb`] for its `Arguments` in its own file, and has one line in the list
//! [`commands`](super::commands). Parsing, references to the Hub, recipes and the JSON schema take all from there.

use std::fmt::Debug;

use bam_convert::pipeline::Declaration;
use clap::{ArgMatches, Args, Command};

use super::printer::Printer;
use super::{Outcome, common, format};

/// What a command takes from a repository of the Hub that is named in the place of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubUse {
    /// It takes references as they are typed, and resolves them itself.
    Own,
    /// Headers of weights and small files.
    Headers,
    /// All of them, but the weights by ranges, as they are read.
    Ranges,
    /// All files of the checkpoint.
    Whole,
}

/// A command with its arguments.
pub trait Verb: Debug {
    /// What the command declares about itself.
    fn declaration() -> Declaration
    where
        Self: Sized;

    /// Whether it opens models, and so has `--format`.
    fn opens_models() -> bool
    where
        Self: Sized,
    {
        false
    }

    /// Whether it has work for several threads, and so has `--threads`.
    fn has_threads() -> bool
    where
        Self: Sized,
    {
        true
    }

    /// Runs the command.
    fn run(&self, printer: &Printer) -> Outcome;

    /// Whether it runs a model with these arguments. Its stage then takes all cores.
    fn computes(&self) -> bool {
        false
    }

    /// What it takes from the Hub with these arguments. A dry run takes headers at most.
    fn hub_use(&self) -> HubUse {
        HubUse::Whole
    }

    /// How the command takes less memory of a GPU that has run out of it, in words about its flags.
    fn takes_less_memory(&self) -> Option<&'static str> {
        None
    }

    /// Whether it answers signals itself, instead of ending after temporary files are removed.
    fn handles_signals(&self) -> bool {
        false
    }
}

/// A command of the list.
pub struct Registered {
    /// What it declares about itself.
    pub declaration: Declaration,
    opens_models: bool,
    has_threads: bool,
    augment: fn(Command) -> Command,
    read: fn(&ArgMatches) -> Result<Box<dyn Verb>, clap::Error>,
}

impl Registered {
    /// The command whose arguments are `A`.
    pub fn of<A: Verb + Args + 'static>() -> Self {
        Self {
            declaration: Declaration {
                computes: computes::<A>,
                ..A::declaration()
            },
            opens_models: A::opens_models(),
            has_threads: A::has_threads(),
            augment: A::augment_args,
            read: read::<A>,
        }
    }

    /// Its part of the definition of the command line.
    pub fn definition(&self) -> Command {
        let command = (self.augment)(Command::new(self.declaration.name));
        let command = common::augmented(command, self.has_threads);
        if self.opens_models {
            format::augmented(command)
        } else {
            command
        }
    }

    /// The command with the arguments that `clap` found.
    pub fn read(&self, matches: &ArgMatches) -> Result<Box<dyn Verb>, clap::Error> {
        (self.read)(matches)
    }
}

fn read<A: Verb + Args + 'static>(matches: &ArgMatches) -> Result<Box<dyn Verb>, clap::Error> {
    Ok(Box::new(A::from_arg_matches(matches)?))
}

fn computes<A: Verb + Args>(matches: &ArgMatches) -> bool {
    A::from_arg_matches(matches).is_ok_and(|arguments| arguments.computes())
}
