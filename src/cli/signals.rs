//! Ctrl-C and SIGTERM for commands that end in an orderly way: an answer at once, and how to continue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::Builder;

use bam_convert::table::quoted;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

/// What a second signal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecondSignal {
    /// It ends the process at once.
    Ends,
    /// The same as the first.
    Waits,
}

/// Sets `stop` at the first signal, and calls `answer`.
///
/// # Errors
/// Where the system refuses a handler.
pub(super) fn stop_at_signals(
    stop: &Arc<AtomicBool>,
    second: SecondSignal,
    answer: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // Registered first, so that only a second signal finds the flag set.
        if second == SecondSignal::Ends {
            flag::register_conditional_shutdown(signal, 130, Arc::clone(stop))?;
        }
        flag::register(signal, Arc::clone(stop))?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let wait = move || {
        if signals.forever().next().is_some() {
            answer();
        }
    };
    // Without the thread, the process ends in the same way, but says nothing before.
    let _ = Builder::new().name("signals".to_owned()).spawn(wait);
    Ok(())
}

/// The flag that begins anew, long and short.
const FORCE: [&str; 2] = ["--force", "-f"];

/// The command line of this process as a shell takes it, with `added` at its end, and without `--force`.
pub(super) fn command_line(added: &str) -> String {
    let words = std::env::args().filter(|word| !FORCE.iter().any(|flag| is_flag(word, flag)));
    let mut words: Vec<String> = words.map(|word| quoted(&word)).collect();
    if !added.is_empty() && !words.iter().any(|word| word == added) {
        words.push(added.to_owned());
    }
    words.join(" ")
}

/// Whether a word is the flag, with or without a value.
fn is_flag(word: &str, flag: &str) -> bool {
    let rest = word.strip_prefix(flag);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}
