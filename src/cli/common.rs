//! The flags that all commands share, each declared once: `--quiet`, `--verbose`, `--color`, `--threads`, and short flags.
//!
//! How errors look must be known before a line is parsed, because the line itself may be wrong. So [`style`] looks for its
//! flags in the words.

use std::ffi::OsString;
use std::io::IsTerminal;

use bam_convert::threads;
use clap::{Arg, ArgMatches, Args, ColorChoice, Command, ValueEnum, value_parser};

use super::environment;
use super::printer::Style;

/// The heading of these flags in help texts.
const HEADING: &str = "Global options";

/// The flag that sets the number of threads, without its dashes.
const THREADS: &str = "threads";

/// Long flags and the letters that stand for them, in every command that has them.
const SHORT: [(&str, char); 3] = [("out", 'o'), ("force", 'f'), ("dry-run", 'n')];

/// What every help text says at its end.
const EXIT_CODES: &str = "Exit codes: 0 done; 1 a check found faults or differences; 2 wrong usage or input; 3 the machine or the network failed.";

/// Flags in front of a command, or among its own.
#[derive(Debug, Args)]
#[command(next_help_heading = HEADING)]
pub struct GlobalArguments {
    /// Print results only: no progress, no notes.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print more notes: threads, settings from the environment, and at the end the time and the memory.
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// When to color help texts and the words `error`, `hint` and `note`.
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value = "auto"
    )]
    color: ColorChoice,
}

/// A command with what all share: `--threads` if it has work for threads, the short flags, and the exit codes in its help.
/// Where it has commands below it, those have the flags.
pub fn augmented(command: Command, has_threads: bool) -> Command {
    let command = with_exit_codes(command);
    if command.has_subcommands() {
        return command.mut_subcommands(|below| augmented(below, has_threads));
    }
    let command = command.mut_args(with_short);
    if !has_threads {
        return command;
    }
    let flag = Arg::new(THREADS)
        .long(THREADS)
        .value_name("N")
        .value_parser(value_parser!(u16).range(1..=1024))
        .help_heading(HEADING)
        .help("Worker threads [default: all cores]");
    command.arg(flag)
}

/// A command whose help ends with the exit codes.
pub fn with_exit_codes(command: Command) -> Command {
    let help = match command.get_after_help() {
        Some(examples) => format!("{examples}\n\n{EXIT_CODES}"),
        None => EXIT_CODES.to_owned(),
    };
    command.after_help(help)
}

fn with_short(argument: Arg) -> Arg {
    let short = SHORT
        .iter()
        .find(|(long, _)| argument.get_long() == Some(long));
    match short {
        Some((_, letter)) => argument.short(*letter),
        None => argument,
    }
}

/// Makes all work of this process, and of the processes that it starts, use as many threads as the line says.
pub fn use_threads(matches: &ArgMatches) {
    if let Some((_, below)) = matches.subcommand() {
        return use_threads(below);
    }
    // Some commands have no work for threads.
    if let Ok(Some(count)) = matches.try_get_one::<u16>(THREADS) {
        threads::limit(usize::from(*count));
    }
}

/// How to print, as far as the words of a line and the environment say it.
pub fn style(line: &[OsString]) -> Style {
    let words: Vec<&str> = line.iter().filter_map(|word| word.to_str()).collect();
    let words = words.split(|word| *word == "--").next().unwrap_or_default();
    let when = color(words);
    Style {
        json: words.contains(&"--json"),
        color: match when {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => std::io::stderr().is_terminal() && may_color(),
        },
        help_color: when,
        ..Style::default()
    }
}

/// What `--color` says, or the environment.
fn color(words: &[&str]) -> ColorChoice {
    let mut found = environment::value("color");
    for (number, word) in words.iter().enumerate() {
        if let Some(value) = word.strip_prefix("--color=") {
            found = Some(value);
        } else if *word == "--color" {
            found = words.get(number + 1).copied();
        }
    }
    // The parser refuses other values.
    found
        .and_then(|value| ColorChoice::from_str(value, false).ok())
        .unwrap_or_default()
}

/// Whether the terminal takes colors, and its user wants them (<https://no-color.org>).
fn may_color() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_some_and(|terminal| terminal != "dumb")
}
