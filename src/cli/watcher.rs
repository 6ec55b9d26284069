//! What `run` says while its stages run: a line for each that ended, and what the others do.
//!
//! On a terminal each running stage has a line that changes. Elsewhere its progress is printed now and then.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use bam_convert::pipeline::{Finished, Ran, Stage, Watch, last_lines};
use bam_convert::printable::printable;
use bam_convert::progress::Progress;
use bam_convert::table;
use indicatif::{MultiProgress, ProgressBar, ProgressState};

use super::printer::{LINE_EVERY, Printer, style};
use super::remaining::Remaining;

/// Time between two looks at the logs.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Most characters of a stage's name.
const LONGEST_NAME: usize = 20;
/// Positions of a bar.
const FULL: u64 = 1000;

/// A stage that runs.
struct Running {
    bar: ProgressBar,
    log: PathBuf,
    started: Instant,
    /// The line that was printed last, where nothing is drawn.
    printed: String,
}

/// What the thread that follows the logs shares with the watcher.
struct Screen {
    printer: Printer,
    lines: MultiProgress,
    /// The last line: all stages together.
    all: ProgressBar,
    running: Mutex<BTreeMap<String, Running>>,
    remaining: Mutex<Remaining>,
    done: Mutex<usize>,
    stages: usize,
    /// Characters of the longest name.
    width: usize,
}

/// Says what runs.
pub(super) struct Watcher {
    screen: Arc<Screen>,
    follower: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl Watcher {
    /// Of these stages, through `printer`.
    pub(super) fn new(printer: &Printer, stages: &[Stage]) -> Self {
        let lines = MultiProgress::with_draw_target(printer.target());
        let all = lines.add(ProgressBar::no_length());
        let elapsed = |state: &ProgressState, out: &mut dyn fmt::Write| {
            // The string that is written to takes everything.
            let _ = out.write_str(&table::duration(state.elapsed().as_secs_f64()));
        };
        let style_of_all = style("{spinner} {time}  {wide_msg}").with_key("time", elapsed);
        all.set_style(style_of_all);
        let longest = stages.iter().map(|stage| stage.name.chars().count()).max();
        let screen = Screen {
            printer: *printer,
            lines,
            all,
            running: Mutex::default(),
            remaining: Mutex::default(),
            done: Mutex::new(0),
            stages: stages.len(),
            width: longest.unwrap_or(0).min(LONGEST_NAME),
        };
        Self {
            screen: Arc::new(screen),
            follower: Mutex::new(None),
        }
    }

    /// Takes the estimated times of the stages.
    pub(super) fn expect(&self, remaining: Remaining) {
        *held(&self.screen.remaining) = remaining;
    }

    /// Prints a note above what is drawn.
    pub(super) fn notes(&self) -> impl Fn(&str) + Send + 'static {
        let screen = Arc::clone(&self.screen);
        move |text| screen.say(text)
    }

    /// Takes what is drawn away.
    pub(super) fn stop(&self) {
        if let Some((end, thread)) = held(&self.follower).take() {
            drop(end);
            // A thread that only draws has nothing to tell.
            let _ = thread.join();
        }
        self.screen.all.finish_and_clear();
        // What is drawn is gone already.
        let _ = self.screen.lines.clear();
    }
}

impl Watch for Watcher {
    fn starts(&self, stage: &Stage, _reason: &str, log: &Path) {
        self.screen.start(&stage.name, log);
        let mut follower = held(&self.follower);
        if follower.is_none() {
            let (end, ended) = channel();
            let screen = Arc::clone(&self.screen);
            // Without the thread, nothing is drawn.
            let drawn = Builder::new().spawn(move || screen.follow(&ended));
            *follower = drawn.ok().map(|thread| (end, thread));
        }
    }

    fn ends(&self, finished: &Finished) {
        self.screen.end(finished);
    }
}

impl Screen {
    fn say(&self, text: &str) {
        self.lines.suspend(|| self.printer.note(text));
    }

    /// A name as wide as every other.
    fn name(&self, stage: &str) -> String {
        let width = self.width;
        if stage.chars().count() > width {
            let short: String = stage.chars().take(width.saturating_sub(1)).collect();
            format!("{short}…")
        } else {
            format!("{stage:width$}")
        }
    }

    fn start(&self, stage: &str, log: &Path) {
        let bar = ProgressBar::new(FULL);
        if !self.lines.is_hidden() {
            bar.set_style(style("{prefix} [{bar:10}] {wide_msg}"));
            bar.set_prefix(self.name(stage));
        }
        let bar = self.lines.insert_before(&self.all, bar);
        let running = Running {
            bar,
            log: log.to_path_buf(),
            started: Instant::now(),
            printed: String::new(),
        };
        held(&self.running).insert(stage.to_owned(), running);
    }

    fn end(&self, finished: &Finished) {
        if let Some(running) = held(&self.running).remove(&finished.stage) {
            running.bar.finish_and_clear();
            self.lines.remove(&running.bar);
        }
        held(&self.remaining).end(&finished.stage, finished.seconds);
        let number = {
            let mut done = held(&self.done);
            *done += 1;
            *done
        };
        let width = self.stages.to_string().len();
        let ran = match (finished.ran, &finished.because) {
            (Ran::Done, _) => table::duration(finished.seconds),
            (ran, Some(stage)) => format!("{}, because it needs {stage}", ran.words()),
            (ran, None) => ran.words().to_owned(),
        };
        self.say(&format!(
            "[{number:>width$}/{}] {}  {ran}",
            self.stages,
            self.name(&finished.stage)
        ));
    }

    /// Follows the logs until the sender ends.
    fn follow(&self, ended: &Receiver<()>) {
        let mut printed = Instant::now();
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK_EVERY) {
            if !self.lines.is_hidden() {
                self.draw();
            } else if printed.elapsed() >= LINE_EVERY {
                printed = Instant::now();
                self.print();
            }
        }
    }

    /// Draws the last line of each log, and the time that is left.
    fn draw(&self) {
        let mut left = BTreeMap::new();
        for (stage, running) in held(&self.running).iter() {
            let Last { progress, line } = Last::of(&running.log);
            let share = progress.as_ref().map_or(0.0, |progress| progress.share);
            running.bar.set_position((share * FULL as f64) as u64);
            let text = progress.as_ref().map_or(line, short);
            running.bar.set_message(printable(&text));
            let seconds = progress.and_then(|progress| progress.seconds_left);
            left.insert(stage.clone(), (seconds, running.started.elapsed()));
        }
        let time = held(&self.remaining).text(&left);
        let done = *held(&self.done);
        let count = format!("{done} of {} stages", self.stages);
        self.all.set_message(match time {
            Some(time) => format!("{count}  {time} left"),
            None => count,
        });
        self.all.tick();
    }

    /// Prints the progress of each stage that has changed.
    fn print(&self) {
        for (stage, running) in held(&self.running).iter_mut() {
            let progress = Last::of(&running.log).progress;
            let line = progress.map(|progress| progress.to_string());
            let Some(line) = line.filter(|line| *line != running.printed) else {
                continue;
            };
            self.printer.note(&format!("{}  {line}", self.name(stage)));
            running.printed = line;
        }
    }
}

/// What the end of a log says.
struct Last {
    progress: Option<Progress>,
    /// The last line; nothing where that is the command itself.
    line: String,
}

impl Last {
    fn of(log: &Path) -> Self {
        let mut lines = last_lines(log);
        // Notes can follow a line of progress.
        let progress = lines.iter().rev().find_map(|line| Progress::parse(line));
        let line = lines.pop().filter(|line| !line.starts_with("$ "));
        Self {
            progress,
            line: line.unwrap_or_default(),
        }
    }
}

/// A line of progress without all its details, for a narrow place.
fn short(progress: &Progress) -> String {
    let mut progress = progress.clone();
    progress.details.truncate(1);
    progress.to_string()
}

/// What a mutex guards; a thread that panicked leaves only numbers and texts.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
