//! The command line: one file a command.
//!
//! Exit codes: 0 ok; 1 a check said no; 2 bad usage or input; 3 the machine or the network failed. `main` turns an outcome
//! into its exit code once; `error.rs` knows the codes of errors. A closed pipe means that the reader has seen enough, which is
//! no error.

mod adapters;
mod branch;
mod check;
mod common;
mod completions;
mod convert;
mod cost;
mod device;
mod dialogue;
mod diff;
mod divergence;
mod engine;
mod environment;
mod error;
mod estimate;
mod eval;
mod evaluated;
mod expert;
mod format;
mod generate;
#[cfg(feature = "hub")]
mod hub;
mod init;
mod inputs;
mod inspect;
mod logits;
mod machine;
mod man;
mod man_sections;
mod merge;
mod methods;
mod mixture_values;
mod names;
mod opened;
mod preview;
mod printer;
mod prompts;
mod prune;
#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "hub")]
mod push;
mod remaining;
mod render_chat;
mod report;
mod results;
mod run;
mod signals;
mod stages;
mod tokenize;
mod train;
mod training_progress;
mod upcycle;
mod validate;
mod values;
mod verb;
mod version;
mod watcher;
mod work;
mod write;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use bam_convert::error::ErrorPlace;
use bam_convert::printable::is_printable;
use bam_convert::table::counted;
use bam_convert::{notice, pipeline, threads};
use clap::error::ErrorKind;
use clap::{ArgMatches, Command, CommandFactory, Parser};
use tempfile::TempDir;

use common::GlobalArguments;
use printer::{Fault, Label, Printer, Style};
use verb::{Registered, Verb};

/// The commands, in the order of the help.
fn commands() -> Vec<Registered> {
    vec![
        #[cfg(feature = "hub")]
        Registered::of::<pull::Arguments>(),
        #[cfg(feature = "hub")]
        Registered::of::<push::Arguments>(),
        Registered::of::<inspect::Arguments>(),
        Registered::of::<cost::Arguments>(),
        Registered::of::<init::Arguments>(),
        Registered::of::<convert::Arguments>(),
        Registered::of::<branch::Arguments>(),
        Registered::of::<merge::Arguments>(),
        Registered::of::<upcycle::Arguments>(),
        Registered::of::<expert::Arguments>(),
        Registered::of::<validate::Arguments>(),
        Registered::of::<diff::Arguments>(),
        Registered::of::<tokenize::Arguments>(),
        Registered::of::<train::Arguments>(),
        Registered::of::<eval::Arguments>(),
        Registered::of::<generate::Arguments>(),
        Registered::of::<logits::Arguments>(),
        Registered::of::<report::Arguments>(),
        Registered::of::<run::Arguments>(),
        Registered::of::<completions::Arguments>(),
        Registered::of::<man::Arguments>(),
        Registered::of::<render_chat::Arguments>(),
    ]
}

/// The exit code of a line that is wrong.
const USAGE: u8 = 2;

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
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Arguments {
    #[command(flatten)]
    global: GlobalArguments,
}

/// Parses the arguments, runs the command, and turns its outcome into an exit code.
pub fn main() -> ExitCode {
    let began = Instant::now();
    let line = std::env::args_os().collect::<Vec<_>>();
    let style = common::style(&line);
    // A panic is a fault of this program, and its message may repeat a stranger's text.
    std::panic::set_hook(Box::new(move |panic| Printer::new(style).panic(panic)));
    machine::prepare();
    let parsed = parse(line, style);
    let Parsed {
        verb,
        printer,
        views: _views,
    } = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            Printer::new(style).error(&error);
            return ExitCode::from(error::exit_code(&error));
        }
    };
    show_start(&printer);
    if !verb.handles_signals() {
        machine::clean_up_at_signals();
    }
    let outcome = verb.run(&printer);
    notice::take()
        .iter()
        .for_each(|notice| printer.note(&format!(" note: {notice}")));
    printer.detail(&machine::used(began));
    match outcome {
        Ok(Verdict::Yes) => ExitCode::SUCCESS,
        Ok(Verdict::No) => ExitCode::from(1),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let error = match verb.takes_less_memory() {
                Some(advice) => error::with_memory_advice(error, advice),
                None => error,
            };
            printer.error(&error);
            ExitCode::from(error::exit_code(&error))
        }
    }
}

/// Says with how many threads a command runs, and which settings it takes from the environment.
fn show_start(printer: &Printer) {
    let version = env!("CARGO_PKG_VERSION");
    let threads = counted(threads::count() as u64, "thread");
    printer.detail(&format!("bam-convert {version}, {threads}"));
    for variable in environment::given() {
        printer.detail(&format!("from the environment: {variable}"));
    }
}

/// The definition of the command line, from which help, completions and manual pages come.
fn definition() -> Command {
    program().definition().clone()
}

/// The definition of the command line, with what commands and arguments say of themselves.
fn program() -> pipeline::Program {
    let commands = commands();
    let definition = commands
        .iter()
        .fold(Arguments::command(), |definition, command| {
            definition.subcommand(command.definition())
        });
    let definition = environment::shown(common::with_exit_codes(definition));
    let declarations = commands.into_iter().map(|command| command.declaration);
    pipeline::Program::new(definition, declarations.collect(), values::kinds())
}

/// The command of this process, with the settings that the file of `--config` holds, and where it prints. What `clap`
/// refuses, or answers itself, ends the process.
fn parse(mut line: Vec<OsString>, style: Style) -> anyhow::Result<Parsed> {
    let program = program();
    let mut notes = Vec::new();
    if pipeline::is_given(&line) {
        let relaxed = pipeline::relaxed(&program);
        let matches = matches(relaxed.definition(), &line, style)?;
        let style = with_volume(style, &matches);
        #[cfg(feature = "hub")]
        let fetch = hub::fetch(&program, &matches, style);
        #[cfg(not(feature = "hub"))]
        let fetch = |_: &str| Ok(None);
        pipeline::Settled { line, notes } = pipeline::settle(&relaxed, line, &matches, &fetch)?;
    }
    let found = matches(program.definition(), &line, style)?;
    common::use_threads(&found);
    let verb = read(&found, &line, style);
    let printer = Printer::new(with_volume(style, &found));
    format::bring(&found)?;
    inputs::check(&program, &found, verb.hub_use())?;
    // The line is complete before anything is pulled.
    #[cfg(feature = "hub")]
    let folders = hub::resolve(&program, &found, verb.hub_use(), &printer)?;
    #[cfg(not(feature = "hub"))]
    let folders = std::collections::BTreeMap::new();
    let (folders, views) = adapters::resolve(&program, &found, verb.hub_use(), folders)?;
    let verb = if folders.is_empty() {
        verb
    } else {
        let found = matches(&program.with_folders(&folders.into()), &line, style)?;
        read(&found, &line, style)
    };
    notes
        .iter()
        .for_each(|note| printer.note(&format!(" note: {note}")));
    Ok(Parsed {
        verb,
        printer,
        views,
    })
}

/// The command of a line.
struct Parsed {
    verb: Box<dyn Verb>,
    printer: Printer,
    /// The folder of the views that it reads, deleted with this value.
    views: Option<TempDir>,
}

/// The command with the arguments of a line.
fn read(matches: &ArgMatches, line: &[OsString], style: Style) -> Box<dyn Verb> {
    let command = matches.subcommand().and_then(|(name, matches)| {
        let mut commands = commands().into_iter();
        let command = commands.find(|command| command.declaration.name == name)?;
        Some(command.read(matches))
    });
    // The definition requires a command.
    let command = command.unwrap_or_else(|| Err(clap::Error::new(ErrorKind::MissingSubcommand)));
    command.unwrap_or_else(|error| end(&error, line, style))
}

/// The style with as many notes as the line asks for.
fn with_volume(style: Style, matches: &ArgMatches) -> Style {
    Style {
        quiet: matches.get_flag("quiet"),
        verbose: matches.get_flag("verbose"),
        ..style
    }
}

/// What the parser finds in a line. The environment gives what the line does not.
fn matches(definition: &Command, line: &[OsString], style: Style) -> error::Result<ArgMatches> {
    let definition = environment::applied(definition.clone())?.color(style.help_color);
    let matches = definition.try_get_matches_from(line);
    Ok(matches.unwrap_or_else(|error| end(&error, line, style)))
}

/// Ends the process with clap's help or refusal. Words of the line may be names of strangers' files, as a shell's `*` gives
/// them, and clap repeats them as they are.
fn end(error: &clap::Error, line: &[OsString], style: Style) -> ! {
    if !error.use_stderr() {
        std::process::exit(answer(error, line, style));
    }
    let is_safe = |word: &OsString| word.to_string_lossy().chars().all(is_printable);
    if !style.json && line.iter().all(is_safe) {
        error.exit();
    }
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n").map(str::trim);
    let problem = paragraphs.next().unwrap_or_default();
    let tip = paragraphs.find_map(|paragraph| paragraph.strip_prefix("tip: "));
    Printer::new(style).fault(&Fault {
        message: problem.trim_start_matches("error: "),
        hint: tip,
        place: ErrorPlace::default(),
        exit_code: USAGE,
        label: Label::Error,
    });
    std::process::exit(error.exit_code())
}

/// Prints help or the version, and gives the exit code.
fn answer(answer: &clap::Error, line: &[OsString], style: Style) -> i32 {
    let printer = Printer::new(style);
    let printed = if answer.kind() == ErrorKind::DisplayVersion && version::is_detailed(line) {
        printer.result(&version::details())
    } else {
        let printed = answer.print().and_then(|()| std::io::stdout().flush());
        printed.map_err(|e| printer::lost(&e))
    };
    match printed {
        // Whoever closed the pipe has seen enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            let error = anyhow::Error::from(error);
            printer.error(&error);
            error::exit_code(&error).into()
        }
        _ => answer.exit_code(),
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
