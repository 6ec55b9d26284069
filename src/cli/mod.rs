//! The command line: one file a command.
//!
//! Exit codes: 0 ok; 1 a check said no; 2 bad usage or input; 3 the machine refused (I/O). They are
//! decided once, here, and so is what a closed pipe means: the reader has seen enough, which is no error.

mod branch;
mod check;
mod completions;
mod convert;
mod cost;
mod device;
mod diff;
mod divergence;
mod estimate;
mod eval;
mod expert;
mod generate;
#[cfg(feature = "hub")]
mod hub;
mod init;
mod inspect;
mod logits;
mod machine;
mod man;
mod merge;
mod methods;
mod names;
mod preview;
mod printer;
mod prompts;
#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "hub")]
mod push;
mod render_chat;
mod report;
mod run;
mod stages;
mod tokenize;
mod train;
mod upcycle;
mod validate;
mod watcher;
mod work;
mod write;

use std::ffi::OsString;
use std::process::ExitCode;

use bam_convert::printable::is_printable;
use bam_convert::{Error, notice, pipeline};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use printer::Printer;

/// What a command returns: whether its check, if it is one, said yes.
type Outcome = anyhow::Result<Verdict>;

/// The answer of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Done, or the check said yes.
    Yes,
    /// The check said no.
    No,
}

/// Checkpoint surgery for mixtures of experts: from dense models to a verified BAM.
#[derive(Debug, Parser)]
#[command(
    name = "bam-convert",
    version,
    max_term_width = 110,
    propagate_version = true,
    arg_required_else_help = true
)]
struct Arguments {
    /// Print results only: no progress, no notes.
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "hub")]
    Pull(pull::Arguments),
    #[cfg(feature = "hub")]
    Push(push::Arguments),
    Inspect(inspect::Arguments),
    Cost(cost::Arguments),
    Init(init::Arguments),
    Convert(convert::Arguments),
    Branch(branch::Arguments),
    Merge(merge::Arguments),
    Upcycle(Box<upcycle::Arguments>),
    Expert(expert::Arguments),
    Validate(validate::Arguments),
    Diff(diff::Arguments),
    Tokenize(tokenize::Arguments),
    Train(Box<train::Arguments>),
    Eval(eval::Arguments),
    Generate(generate::Arguments),
    Logits(logits::Arguments),
    Report(report::Arguments),
    Run(run::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
    #[command(hide = true)]
    RenderChat(render_chat::Arguments),
}

/// Parses the arguments, runs the command, and turns its outcome into an exit code.
pub fn main() -> ExitCode {
    // A panic is a fault of this program, and its message may repeat a stranger's text.
    std::panic::set_hook(Box::new(|panic| Printer::new(false).panic(panic)));
    machine::prepare();
    let (arguments, notes) = match parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            let exit_code = error.exit_code();
            Printer::new(false).error(&error.into());
            return ExitCode::from(exit_code);
        }
    };
    let printer = Printer::new(arguments.quiet);
    notes
        .iter()
        .for_each(|note| printer.note(&format!(" note: {note}")));
    if !matches!(arguments.command, Command::Train(_) | Command::Run(_)) {
        machine::clean_up_at_signals();
    }
    let outcome = match &arguments.command {
        #[cfg(feature = "hub")]
        Command::Pull(arguments) => arguments.run(&printer),
        #[cfg(feature = "hub")]
        Command::Push(arguments) => arguments.run(&printer),
        Command::Inspect(arguments) => arguments.run(&printer),
        Command::Cost(arguments) => arguments.run(&printer),
        Command::Init(arguments) => arguments.run(&printer),
        Command::Convert(arguments) => arguments.run(&printer),
        Command::Branch(arguments) => arguments.run(&printer),
        Command::Merge(arguments) => arguments.run(&printer),
        Command::Upcycle(arguments) => arguments.run(&printer),
        Command::Expert(arguments) => arguments.run(&printer),
        Command::Validate(arguments) => arguments.run(&printer),
        Command::Diff(arguments) => arguments.run(&printer),
        Command::Tokenize(arguments) => arguments.run(&printer),
        Command::Train(arguments) => arguments.run(&printer),
        Command::Eval(arguments) => arguments.run(&printer),
        Command::Generate(arguments) => arguments.run(&printer),
        Command::Logits(arguments) => arguments.run(&printer),
        Command::Report(arguments) => arguments.run(&printer),
        Command::Run(arguments) => arguments.run(&printer),
        Command::Completions(arguments) => arguments.run(&printer),
        Command::Man(arguments) => arguments.run(&printer),
        Command::RenderChat(arguments) => arguments.run(&printer),
    };
    notice::take()
        .iter()
        .for_each(|notice| printer.note(&format!(" note: {notice}")));
    match outcome {
        Ok(Verdict::Yes) => ExitCode::SUCCESS,
        Ok(Verdict::No) => ExitCode::from(1),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            printer.error(&error);
            ExitCode::from(error.downcast_ref::<Error>().map_or(3, Error::exit_code))
        }
    }
}

/// The definition of the command line, from which help, completions and manual pages come.
fn definition() -> clap::Command {
    pipeline::define(Arguments::command())
}

/// The arguments of this process, with those that the file of `--config` holds, and notes about that file. What clap refuses,
/// or answers itself, ends the process.
fn parse() -> bam_convert::Result<(Arguments, Vec<String>)> {
    let mut line = std::env::args_os().collect::<Vec<_>>();
    let mut notes = Vec::new();
    if pipeline::is_given(&line) {
        #[cfg(feature = "hub")]
        let fetch = hub::fetch(&line);
        #[cfg(not(feature = "hub"))]
        let fetch = |_: &str| Ok(None);
        let relaxed = pipeline::relaxed(definition());
        let matches = relaxed
            .clone()
            .try_get_matches_from(&line)
            .unwrap_or_else(|error| end(&error, &line));
        pipeline::Settled { line, notes } = pipeline::settle(&relaxed, line, &matches, &fetch)?;
    }
    let read = |line: &[OsString]| {
        let matches = definition().try_get_matches_from(line);
        matches
            .and_then(|mut matches| Arguments::from_arg_matches_mut(&mut matches))
            .unwrap_or_else(|error| end(&error, line))
    };
    let arguments = read(&line);
    // What the line lacks is told before anything is pulled.
    #[cfg(feature = "hub")]
    let arguments = match hub::resolve(definition, &line, &Printer::new(arguments.quiet))? {
        Some(line) => read(&line),
        None => arguments,
    };
    Ok((arguments, notes))
}

/// Ends the process with clap's help or refusal. Words of the line may be names of strangers' files, as a shell's `*` gives
/// them, and clap repeats them as they are.
fn end(error: &clap::Error, line: &[OsString]) -> ! {
    let is_safe = |word: &OsString| word.to_string_lossy().chars().all(is_printable);
    if line.iter().all(is_safe) {
        error.exit();
    }
    let text = error.render().to_string();
    let problem = text.split("\n\n").next().unwrap_or_default();
    let problem = problem.trim_start_matches("error: ").to_owned();
    Printer::new(false).error(&anyhow::Error::msg(problem));
    std::process::exit(error.exit_code())
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
