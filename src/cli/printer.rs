//! Everything the program prints: results to stdout, all else to stderr.
//!
//! All of it is made printable here. A note or an error is one line, whatever its names hold; a result has the lines of its
//! layout, and whoever composes it makes each value printable first.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::thread::Builder;
use std::time::Duration;

use bam_convert::error::ErrorPlace;
use bam_convert::printable::{printable, printable_json, printable_lines};
use bam_convert::progress::{Progress, Unit};
use bam_convert::table;
use clap::ColorChoice;
use clap::builder::styling::{AnsiColor, Style as Look};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::error;

/// Time between two lines of progress where stderr is no terminal.
pub const LINE_EVERY: Duration = Duration::from_secs(5);

/// What begins a note.
const NOTE: &str = " note:";

/// How a command prints.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Results and errors only.
    pub quiet: bool,
    /// More notes.
    pub verbose: bool,
    /// Errors as JSON.
    pub json: bool,
    /// Colors for the words that begin a line on stderr.
    pub color: bool,
    /// When help texts have colors.
    pub help_color: ColorChoice,
}

/// Where a command prints.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    style: Style,
}

/// An error as its parts, for people and for programs.
pub struct Fault<'a> {
    /// What is wrong.
    pub message: &'a str,
    /// What to do next.
    pub hint: Option<&'a str>,
    /// Where it is.
    pub place: ErrorPlace<'a>,
    /// How the process ends.
    pub exit_code: u8,
    /// The word before the message.
    pub label: Label,
}

/// The word before a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// Something went wrong.
    Error,
    /// The user ended the work, and it ended as it should.
    Note,
}

/// The exit code of a panic, as Rust's own.
const PANICKED: u8 = 101;

impl Printer {
    /// A printer of this style.
    pub fn new(style: Style) -> Self {
        Self { style }
    }

    /// Prints a result, which ends with a line break.
    pub fn result(&self, text: &str) -> std::io::Result<()> {
        let end = if text.ends_with('\n') { "" } else { "\n" };
        write_out(&[&printable_lines(text), end])
    }

    /// Prints a piece of a model's text: on a terminal made printable, elsewhere as it is, because a file keeps the text.
    pub fn piece(&self, text: &str) -> std::io::Result<()> {
        if std::io::stdout().is_terminal() {
            write_out(&[&printable_lines(text)])
        } else {
            write_out(&[text])
        }
    }

    /// Asks for a line on the terminal.
    pub fn ask(&self) {
        let mut err = std::io::stderr().lock();
        // Nobody is left to ask where stderr is closed.
        let _ = err.write_all(b"> ").and_then(|()| err.flush());
    }

    /// Prints a result as JSON.
    pub fn json(&self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        Ok(self.result(&printable_json(&text))?)
    }

    /// Prints what the user should know, unless quiet.
    pub fn note(&self, text: &str) {
        if self.style.quiet {
            return;
        }
        let text = printable(text);
        let text = match text.strip_prefix(NOTE) {
            Some(rest) => format!("{}{rest}", self.label(NOTE, AnsiColor::Cyan)),
            None => text,
        };
        self.stderr(&text);
    }

    /// Prints what the user should know who asked for more.
    pub fn detail(&self, text: &str) {
        if self.style.verbose {
            self.note(&format!("{NOTE} {text}"));
        }
    }

    /// Whether notes are printed.
    pub fn is_quiet(&self) -> bool {
        self.style.quiet
    }

    /// Prints lines of a log, unless quiet: marked, so that none passes for one of this program's own.
    pub fn log(&self, lines: &str) {
        if !self.style.quiet {
            let marked = |line: &str| format!("  | {}", printable(line));
            let lines: Vec<String> = lines.lines().map(marked).collect();
            self.stderr(&lines.join("\n"));
        }
    }

    /// Prints an error and its hint.
    pub fn error(&self, error: &anyhow::Error) {
        self.fault(&Fault {
            message: &error::text(error),
            hint: error::hint(error).as_deref(),
            place: error::place(error),
            exit_code: error::exit_code(error),
            label: if error::is_interruption(error) {
                Label::Note
            } else {
                Label::Error
            },
        });
    }

    /// Prints an error as two lines, or as a line of JSON.
    pub fn fault(&self, fault: &Fault) {
        if self.style.json {
            let json = serde_json::json!({ "error": fault.json() }).to_string();
            self.stderr(&printable_json(&json));
            return;
        }
        let label = match fault.label {
            Label::Error => self.label("error:", AnsiColor::Red),
            Label::Note => self.label(NOTE, AnsiColor::Cyan),
        };
        self.stderr(&format!("{label} {}", printable(fault.message)));
        if let Some(hint) = fault.hint {
            let label = self.label(" hint:", AnsiColor::Green);
            self.stderr(&format!("{label} {}", printable(hint)));
        }
    }

    /// Prints where the program panicked, and the backtrace if `RUST_BACKTRACE` asks for one.
    pub fn panic(&self, panic: &std::panic::PanicHookInfo) {
        self.fault(&Fault {
            message: &panic.to_string(),
            hint: Some("this is a fault of bam-convert: please report it"),
            place: ErrorPlace::default(),
            exit_code: PANICKED,
            label: Label::Error,
        });
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            self.stderr(&printable_lines(&backtrace.to_string()));
        }
    }

    /// A progress bar over bytes.
    pub fn bytes_bar(&self, total: u64, verb: &'static str) -> ProgressBar {
        self.bar(total, verb, Unit::Bytes)
    }

    /// A progress bar over tokens.
    pub fn tokens_bar(&self, total: u64, verb: &'static str) -> ProgressBar {
        self.bar(total, verb, Unit::Tokens)
    }

    /// A progress bar with a message; hidden where stderr is no terminal.
    pub fn message_bar(&self, total: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(total), self.target());
        bar.with_style(style("[{wide_bar}] {msg}"))
    }

    /// Where progress is drawn: nowhere if stderr is no terminal.
    pub fn target(&self) -> ProgressDrawTarget {
        let visible = !self.style.quiet && std::io::stderr().is_terminal();
        if visible {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        }
    }

    /// A progress bar; where stderr is no terminal, a line now and then.
    fn bar(&self, total: u64, verb: &'static str, unit: Unit) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(total), self.target());
        bar.set_message(verb);
        if bar.is_hidden() {
            if !self.style.quiet {
                self.print_lines(&bar, unit);
            }
            return bar;
        }
        let amount = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            // The string that is written to takes everything.
            let _ = out.write_str(&unit.amount(state.pos(), state.len().unwrap_or(0)));
        };
        let rate = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = out.write_str(&unit.rate(state.per_sec()));
        };
        let left = |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = out.write_str(&table::duration(state.eta().as_secs_f64()));
        };
        let style = style("{msg} [{wide_bar}] {amount}  {rate}  {left} left")
            .with_key("amount", amount)
            .with_key("rate", rate)
            .with_key("left", left);
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// The word that begins a line.
    fn label(&self, word: &str, color: AnsiColor) -> String {
        if self.style.color {
            let look = Look::new().bold().fg_color(Some(color.into()));
            format!("{look}{word}{look:#}")
        } else {
            word.to_owned()
        }
    }

    /// Prints a line about a hidden bar now and then, until it is finished or dropped.
    fn print_lines(&self, bar: &ProgressBar, unit: Unit) {
        let (printer, bar) = (*self, bar.downgrade());
        let print = move || {
            loop {
                std::thread::sleep(LINE_EVERY);
                let Some(bar) = bar.upgrade().filter(|bar| !bar.is_finished()) else {
                    return;
                };
                let (done, total) = (bar.position(), bar.length().unwrap_or(0));
                let progress = Progress {
                    seconds_left: (done > 0).then(|| bar.eta().as_secs_f64()),
                    ..Progress::new(&bar.message(), unit, done, total)
                };
                printer.note(&progress.to_string());
            }
        };
        // Without the thread, there are no lines.
        let _ = Builder::new().name("progress".to_owned()).spawn(print);
    }

    fn stderr(&self, text: &str) {
        // Nobody is left to tell where stderr is closed.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }
}

impl Fault<'_> {
    /// The parts that are known.
    fn json(&self) -> serde_json::Map<String, serde_json::Value> {
        let place = &self.place;
        let path = place.path.map(|path| path.to_string_lossy().into_owned());
        let (line, column) = place
            .position
            .map_or((None, None), |at| (Some(at.line), Some(at.column)));
        let parts = [
            ("message", Some(self.message.into())),
            ("hint", self.hint.map(Into::into)),
            ("path", path.map(Into::into)),
            ("line", line.map(Into::into)),
            ("column", column.map(Into::into)),
            ("tensor", place.tensor.map(Into::into)),
            ("key", place.key.map(Into::into)),
            ("exit_code", Some(self.exit_code.into())),
        ];
        let known = parts.into_iter();
        known
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

/// The style of a template, which is a constant that the tests have seen.
pub fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("#>-")
}

/// Writes to standard output; an error says so, and keeps its kind.
fn write_out(parts: &[&str]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = parts
        .iter()
        .try_for_each(|part| out.write_all(part.as_bytes()));
    written.and_then(|()| out.flush()).map_err(|e| lost(&e))
}

/// An error of standard output, which says so and keeps its kind.
pub fn lost(error: &std::io::Error) -> std::io::Error {
    let message = format!("cannot write to standard output: {error}");
    std::io::Error::new(error.kind(), message)
}
