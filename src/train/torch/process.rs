//! The processes of PyTorch: started below a supervisor, so that none outlives this one, and read line by line.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::error::TorchError;
use super::events::{MARK, TorchEvent};
use crate::checkpoint::filesystem::folder_of;
use crate::printable::{excerpt, printable};
use crate::{Error, Result, threads};

/// Longest line that is read as a whole. Details of the largest mixtures have some megabytes.
const LONGEST_LINE: u64 = 1 << 26;
/// Events that may wait: a process that is far ahead waits for its reader.
const WAITING: usize = 64;
/// Bytes at the end of the log that an error quotes from.
const END_OF_LOG: u64 = 8192;
/// Lines that an error quotes.
const QUOTED: usize = 12;
/// Time that processes have to end by themselves after their last event.
const GRACE: Duration = Duration::from_secs(20);
/// Time that they have after a signal.
const AFTER_SIGNAL: Duration = Duration::from_secs(3);

/// Processes that run.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    lines: Receiver<Line>,
    log: PathBuf,
    /// The supervisor ends everything where this closes.
    held: Option<PipeWriter>,
}

/// A line of ours.
enum Line {
    Event(Box<TorchEvent>),
    /// What the parser says, and how the line begins.
    Broken(String, String),
}

/// What came next.
pub(super) enum Next {
    Event(Box<TorchEvent>),
    /// Nothing for the time that was asked for.
    Nothing,
    /// The processes have closed their output.
    Closed,
}

/// How processes ended.
pub(super) enum Status {
    Success,
    /// In words.
    Other(String),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "exit status: 0",
            Self::Other(words) => words,
        })
    }
}

impl Process {
    /// Starts `words` in the folder of the file `log`, which gets what they print, events aside. With `ranks` processes on the CPU, each takes
    /// its share of the threads.
    pub(super) fn start(
        supervisor: &[OsString],
        words: &[OsString],
        log: &Path,
        ranks: Option<u64>,
    ) -> Result<Self> {
        File::create(log).map_err(|e| Error::io("create", log, e))?;
        let append = || {
            let file = File::options().append(true).open(log);
            file.map_err(|e| Error::io("write", log, e))
        };
        let all: Vec<&OsString> = supervisor.iter().chain(words).collect();
        let program = all.first().copied().cloned().unwrap_or_default();
        let failed = |e| Error::io("run", &program, e);
        // Nobody writes into the pipe: it closes where this process ends, which the supervisor then notices.
        let (held_by_child, held) = std::io::pipe().map_err(failed)?;
        let mut command = Command::new(&program);
        command
            .args(&all[1..])
            .stdin(held_by_child)
            .stdout(Stdio::piped())
            .stderr(append()?)
            // `python -m` looks for modules in the current folder first, and this one holds only ours.
            .current_dir(folder_of(log))
            .env("PYTHONSAFEPATH", "1")
            .env("PYTHONUNBUFFERED", "1")
            .env("PYTHONDONTWRITEBYTECODE", "1");
        if let Some(ranks) = ranks.filter(|_| std::env::var_os("OMP_NUM_THREADS").is_none()) {
            let share = (threads::count() as u64 / ranks.max(1)).max(1);
            command.env("OMP_NUM_THREADS", share.to_string());
        }
        // In a group of its own, it hears of Ctrl-C from us alone: torchrun would end its processes before they save.
        command.process_group(0);
        let mut child = command.spawn().map_err(failed)?;
        // The child's end of the pipe is open in the child alone.
        drop(command);
        let (sender, lines) = sync_channel(WAITING);
        if let Some(stdout) = child.stdout.take() {
            let file = append()?;
            thread::spawn(move || read(stdout, file, &sender));
        }
        Ok(Self {
            child,
            lines,
            log: log.to_path_buf(),
            held: Some(held),
        })
    }

    /// The next event, if there is one within `patience`.
    pub(super) fn next(&self, patience: Duration) -> Result<Next> {
        match self.lines.recv_timeout(patience) {
            Ok(Line::Event(event)) => Ok(Next::Event(event)),
            Ok(Line::Broken(problem, line)) => Err(TorchError::NotEvent {
                log: self.log.clone(),
                problem,
                line: vec![line],
            }
            .into()),
            Err(RecvTimeoutError::Timeout) => Ok(Next::Nothing),
            Err(RecvTimeoutError::Disconnected) => Ok(Next::Closed),
        }
    }

    /// How the processes ended that have closed their output.
    pub(super) fn status(&mut self) -> Status {
        match self.wait(GRACE) {
            Some(status) if status.success() => Status::Success,
            Some(status) => Status::Other(status.to_string()),
            None => {
                self.end();
                Status::Other("they closed their output but did not end".to_owned())
            }
        }
    }

    /// Waits until the processes have ended by themselves, for a while.
    fn wait(&mut self, patience: Duration) -> Option<std::process::ExitStatus> {
        let began = Instant::now();
        while began.elapsed() < patience {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Lets the processes end, and ends those that do not.
    pub(super) fn finish(mut self) {
        self.wait(GRACE);
    }

    /// Ends all processes: first with a signal, which `srun` passes on to other nodes.
    fn end(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            if let Ok(group) = i32::try_from(self.child.id()) {
                // SAFETY: sends a signal, and touches no memory. The child has not been waited for, so that its number is
                // still its own.
                unsafe { libc::kill(-group, libc::SIGTERM) };
            }
            self.wait(AFTER_SIGNAL);
        }
        self.held.take();
        let _ = self.child.wait();
    }

    /// The last lines of all that the processes printed.
    pub(super) fn last_lines(&self) -> Vec<String> {
        last_lines(&self.log)
    }

    /// The file with what they printed.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// The last lines of a file, fit to print; none where it cannot be read.
pub(super) fn last_lines(path: &Path) -> Vec<String> {
    let text = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(END_OF_LOG)))?;
        let mut bytes = Vec::new();
        file.take(END_OF_LOG).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = text().unwrap_or_default();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let first = lines.len().saturating_sub(QUOTED);
    let lines = lines[first..].iter();
    lines.map(|line| printable(line)).collect()
}

/// Hands on the events in `stdout`, and appends all else to `log`.
fn read(stdout: ChildStdout, mut log: File, events: &SyncSender<Line>) {
    let mut stdout = BufReader::new(stdout);
    let (mut line, mut continues) = (Vec::new(), false);
    loop {
        line.clear();
        let read = stdout
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line);
        if !matches!(read, Ok(1..)) {
            return;
        }
        let is_whole = line.ends_with(b"\n");
        let is_event = line.first() == Some(&MARK) && !continues && is_whole;
        continues = !is_whole;
        if !is_event {
            // Best effort: the run does not depend on the talk of libraries.
            let _ = log.write_all(&line);
            continue;
        }
        let sent = match serde_json::from_slice(&line[1..]) {
            Ok(event) => events.send(Line::Event(Box::new(event))),
            Err(e) => {
                let begin = excerpt(&String::from_utf8_lossy(&line[1..])).into_owned();
                events.send(Line::Broken(e.to_string(), begin))
            }
        };
        if sent.is_err() {
            return;
        }
    }
}
