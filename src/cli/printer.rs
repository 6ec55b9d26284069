//! Everything the program prints: results to stdout, all else to stderr.
//!
//! All of it is made printable here. A note or an error is one line, whatever its names hold; a result has the lines of its
//! layout, and whoever composes it makes each value printable first.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use bam_convert::error::ErrorPlace;
use bam_convert::printable::{printable, printable_json, printable_lines};
use clap::ColorChoice;
use clap::builder::styling::{AnsiColor, Style as Look};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::error;

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
        });
    }

    /// Prints an error as two lines, or as a line of JSON.
    pub fn fault(&self, fault: &Fault) {
        if self.style.json {
            let json = serde_json::json!({ "error": fault.json() }).to_string();
            self.stderr(&printable_json(&json));
            return;
        }
        let label = self.label("error:", AnsiColor::Red);
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
        });
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            self.stderr(&printable_lines(&backtrace.to_string()));
        }
    }

    /// A progress bar over bytes; hidden where stderr is no terminal.
    pub fn bytes_bar(&self, total: u64, verb: &'static str) -> ProgressBar {
        self.bar(
            total,
            verb,
            "{bytes:>10} of {total_bytes:>10} {bytes_per_sec:>12}",
        )
    }

    /// A progress bar over tokens; hidden where stderr is no terminal.
    pub fn tokens_bar(&self, total: u64, verb: &'static str) -> ProgressBar {
        self.bar(
            total,
            verb,
            "{human_pos:>10} of {human_len:>10} tokens {per_sec:>14}",
        )
    }

    /// A progress bar over steps, with a message; hidden where stderr is no terminal.
    pub fn steps_bar(&self, total: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(total), self.target());
        let template = "[{bar:24}] {pos} of {len} steps  {msg}  {eta} left";
        // The template is a constant that the tests have seen.
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar
    }

    /// A spinner with a message for work of unknown length; hidden where stderr is no terminal.
    pub fn spinner(&self) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(None, self.target());
        bar.set_style(
            ProgressStyle::with_template("{spinner} {elapsed:>4} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar
    }

    fn target(&self) -> ProgressDrawTarget {
        let visible = !self.style.quiet && std::io::stderr().is_terminal();
        if visible {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        }
    }

    fn bar(&self, total: u64, verb: &'static str, numbers: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(total), self.target());
        let template = format!("{{msg}} [{{bar:32}}] {numbers} {{eta:>4}} left");
        // The template is a constant that the tests have seen.
        bar.set_style(
            ProgressStyle::with_template(&template)
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(verb);
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
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

/// Writes to standard output; an error says so, and keeps its kind.
fn write_out(parts: &[&str]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = parts
        .iter()
        .try_for_each(|part| out.write_all(part.as_bytes()));
    written
        .and_then(|()| out.flush())
        .map_err(|e| std::io::Error::new(e.kind(), format!("cannot write to standard output: {e}")))
}
