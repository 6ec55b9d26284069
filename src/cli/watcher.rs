//! What `run` says while its stages run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use bam_convert::pipeline::{Finished, Ran, Stage, Watch, last_line};
use bam_convert::printable::printable;
use indicatif::ProgressBar;

use super::printer::Printer;

/// The logs of the stages that run, by their names.
type Logs = Arc<Mutex<BTreeMap<String, PathBuf>>>;

/// Says what runs: a line for each stage, and on a terminal the last lines of the logs as they grow.
pub(super) struct Watcher<'a> {
    printer: &'a Printer,
    stages: usize,
    bar: ProgressBar,
    done: Mutex<usize>,
    running: Logs,
    follower: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl<'a> Watcher<'a> {
    /// Says it through `printer`, of so many stages.
    pub(super) fn new(printer: &'a Printer, stages: usize) -> Self {
        let (done, running, follower) = (Mutex::new(0), Logs::default(), Mutex::new(None));
        Self {
            printer,
            stages,
            bar: printer.spinner(),
            done,
            running,
            follower,
        }
    }

    /// Takes what is drawn away.
    pub(super) fn stop(&self) {
        let follower = self
            .follower
            .lock()
            .map(|mut follower| follower.take())
            .unwrap_or_default();
        if let Some((end, thread)) = follower {
            drop(end);
            // A thread that only draws has nothing to tell.
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| self.printer.note(text));
    }
}

impl Watch for Watcher<'_> {
    fn starts(&self, stage: &Stage, _reason: &str, log: &Path) {
        if self.bar.is_hidden() {
            return;
        }
        if let Ok(mut running) = self.running.lock() {
            running.insert(stage.name.clone(), log.to_path_buf());
        }
        if let Ok(mut follower) = self.follower.lock()
            && follower.is_none()
        {
            let (end, ended) = channel();
            let (bar, running) = (self.bar.clone(), Arc::clone(&self.running));
            // Without the thread, nothing is drawn.
            let drawn = Builder::new().spawn(move || follow(&bar, &running, &ended));
            *follower = drawn.ok().map(|thread| (end, thread));
        }
    }

    fn ends(&self, finished: &Finished) {
        if let Ok(mut running) = self.running.lock() {
            running.remove(&finished.stage);
        }
        let number = self.done.lock().map_or(0, |mut done| {
            *done += 1;
            *done
        });
        let width = self.stages.to_string().len();
        let ran = match (finished.ran, &finished.because) {
            (Ran::Done, _) => format!("{:.1} s", finished.seconds),
            (ran, Some(stage)) => format!("{}, for it needs {stage}", ran.words()),
            (ran, None) => ran.words().to_owned(),
        };
        self.say(&format!(
            "[{number:>width$}/{}] {}: {ran}",
            self.stages, finished.stage
        ));
    }
}

/// Draws the last lines of growing logs until the sender ends.
fn follow(bar: &ProgressBar, running: &Logs, ended: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_millis(200)) {
        let running = running
            .lock()
            .map(|running| running.clone())
            .unwrap_or_default();
        let line = |(name, log): (&String, &PathBuf)| {
            format!("{name}: {}", last_line(log).unwrap_or_default())
        };
        let lines: Vec<String> = running.iter().map(line).collect();
        bar.set_message(printable(&lines.join(" | ")));
        bar.tick();
    }
}
