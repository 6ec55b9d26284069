//! A process between a run and one of its stages, which ends whatever the stage has started where the run is killed.
//!
//! The kernel can end a child with its parent, but not its grandchildren: they would continue to write beside the next run. The
//! supervisor has two means against that. Its standard input is a pipe that only the run holds open, so that it ends with
//! the run, however that ends. And it is the subreaper of its descendants: an orphan becomes its child, even one with a
//! session of its own, so that none escapes.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::error::PipelineError;
use crate::{Error, Result};

/// Time between two looks for descendants that are left.
const PAUSE: Duration = Duration::from_millis(5);
/// A program whose tasks run on other nodes. It passes SIGTERM on to them, but cannot pass on SIGKILL.
const SRUN: &str = "srun";
/// Time that it has to end after the run. Other programs are killed at once, as they might write beside the next run.
const GRACE: Duration = Duration::from_secs(3);

/// Runs `words`, a program with its arguments, and ends as it ends; or ends it and its descendants where standard input
/// closes.
///
/// On SIGTERM, which the whole group of processes gets, it waits for its descendants to end by themselves. It returns only
/// where the program cannot be run: with the reason.
pub fn supervise(words: &[OsString]) -> Error {
    match run(words) {
        Ok(status) => end_as(status),
        Err(error) => error,
    }
}

fn run(words: &[OsString]) -> Result<ExitStatus> {
    let [program, arguments @ ..] = words else {
        return Err(PipelineError::NoProgram.into());
    };
    let stop = Arc::new(AtomicBool::new(false));
    let orphaned = Arc::new(AtomicBool::new(false));
    // A handler, and not the default: the program that is started gets the default again.
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop))
        .map_err(|e| Error::io("watch for signals in", "this process", e))?;
    adopt_orphans();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    end_with_parent(&mut command);
    let mut child = command.spawn().map_err(|e| Error::io("run", program, e))?;
    if stop.load(Ordering::SeqCst) {
        // The signal came before there was a program to get it.
        end(&child);
    }
    let is_srun = program == SRUN;
    let (is_orphaned, is_asked) = (Arc::clone(&orphaned), Arc::clone(&stop));
    thread::spawn(move || {
        // The run writes nothing, so that whatever ends the reading means its end; signals are no end, and read on.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        is_orphaned.store(true, Ordering::SeqCst);
        if is_srun && !is_asked.load(Ordering::SeqCst) {
            ask_children();
        }
        end_descendants();
        std::process::exit(128 + libc::SIGKILL);
    });
    let status = child.wait();
    if orphaned.load(Ordering::SeqCst) {
        // The other thread ends this process, once nothing is left.
        loop {
            thread::park();
        }
    }
    if stop.load(Ordering::SeqCst) {
        while reap() {
            thread::sleep(PAUSE);
        }
    }
    status.map_err(|e| Error::io("wait for", program, e))
}

/// Tells a child that has not been collected to end.
fn end(child: &Child) {
    if let Ok(number) = i32::try_from(child.id()) {
        // SAFETY: sends a signal, and touches no memory.
        unsafe { libc::kill(number, libc::SIGTERM) };
    }
}

/// Ends this process as the program ended: by the same signal, or with the same exit code.
fn end_as(status: ExitStatus) -> ! {
    if let Some(signal) = status.signal() {
        // SAFETY: both touch no memory of ours; a signal that does not end this process leaves it to the code below.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        std::process::exit(128 + signal);
    }
    std::process::exit(status.code().unwrap_or(u8::MAX.into()))
}

/// Collects children that have ended; whether any is left.
fn reap() -> bool {
    loop {
        // SAFETY: a null status is allowed, and no memory is touched.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
            0 => return true,
            -1 if std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted => {
                return false;
            }
            _ => {}
        }
    }
}

/// The kernel ends the program where the supervisor itself is killed.
fn end_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: `prctl` may be called between fork and exec; it allocates nothing and takes no locks.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        );
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// Descendants whose parents end become children of this process.
fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    // SAFETY: sets an attribute of this process; where the kernel refuses, only orphans with a session of their own escape.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
    }
}

/// Asks children to end, and gives them some time.
fn ask_children() {
    signal_children(libc::SIGTERM);
    let began = Instant::now();
    while began.elapsed() < GRACE && reap() {
        thread::sleep(PAUSE);
    }
}

/// Kills every descendant: children first, whose own children then become ours.
#[cfg(target_os = "linux")]
fn end_descendants() {
    while reap() {
        signal_children(libc::SIGKILL);
        thread::sleep(PAUSE);
    }
}

#[cfg(target_os = "linux")]
fn signal_children(signal: i32) {
    for child in children() {
        // SAFETY: sends a signal, and touches no memory. The child has not been collected, so that its number is its own.
        unsafe { libc::kill(child, signal) };
    }
}

/// Kills the group of processes that the supervisor leads, itself with it.
#[cfg(not(target_os = "linux"))]
fn end_descendants() {
    signal_children(libc::SIGKILL);
}

/// Elsewhere, children are known as members of the supervisor's group, itself among them.
#[cfg(not(target_os = "linux"))]
fn signal_children(signal: i32) {
    // SAFETY: sends a signal, and touches no memory.
    unsafe { libc::kill(0, signal) };
}

/// The processes whose parent this one is.
#[cfg(target_os = "linux")]
fn children() -> Vec<i32> {
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let child = |entry: std::fs::DirEntry| {
        let number: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // `NUMBER (NAME) STATE PARENT …`, where the name may hold anything, brackets too.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
        (parent == own).then_some(number)
    };
    entries.filter_map(child).collect()
}
