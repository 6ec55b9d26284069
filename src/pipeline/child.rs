//! One run of a stage's command, below a supervisor that does not let it outlive this process.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use super::runner::Runner;
use super::stage::Stage;
use crate::printable::printable;
use crate::{Error, Result};

/// Longest time between two looks at a child.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// The variable by which commands of the shell find this program.
const PROGRAM: &str = "BAM_CONVERT";

/// Runs `line`: the stage's command, or the command that resumes it. Returns its status, and the file that holds its
/// standard output.
///
/// Once the runner stops, this function sends the child SIGTERM and waits for it.
pub(super) fn run(
    runner: &Runner,
    stage: &Stage,
    line: &[String],
    log: &Path,
) -> Result<(ExitStatus, PathBuf)> {
    let printed = log.with_extension("out");
    let out = File::create(&printed).map_err(|e| Error::io("create", &printed, e))?;
    let failed = |e| Error::io("write", log, e);
    let name = if stage.is_own { "bam-convert " } else { "" };
    let shown = printable(&format!("{name}{}", line.join(" ")));
    fs::write(log, format!("$ {shown}\n")).map_err(failed)?;
    // Both streams append, so that neither writes over the other.
    let append = || File::options().append(true).open(log).map_err(failed);
    let program =
        std::path::absolute(runner.program).map_err(|e| Error::io("find", runner.program, e))?;
    // Nobody writes into the pipe: it closes where this process ends, which the supervisor then notices.
    let (held_by_child, held) = std::io::pipe().map_err(|e| Error::io("run", &program, e))?;
    let mut command = Command::new(&program);
    command.args(runner.supervise);
    if stage.is_own {
        command.arg(&program);
    } else {
        command.env(PROGRAM, &program);
    }
    command.args(line);
    command
        .current_dir(runner.work)
        .stdin(held_by_child)
        .stderr(append()?);
    command.stdout(if stage.stdout.is_some() {
        out
    } else {
        append()?
    });
    // In a group of its own, a child hears of Ctrl-C from us alone: a second signal would cut its saving short.
    command.process_group(0);
    let failed = |e| Error::io("run", &program, e);
    let mut child = command.spawn().map_err(failed)?;
    // Its end of the pipe is open in the child alone.
    drop(command);
    let status = wait(&mut child, runner.stop).map_err(failed)?;
    drop(held);
    Ok((status, printed))
}

fn wait(child: &mut Child, stop: &AtomicBool) -> std::io::Result<ExitStatus> {
    let mut pause = Duration::from_millis(1);
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if stop.load(Ordering::Relaxed) && !told {
            told = true;
            if let Ok(group) = i32::try_from(child.id()) {
                // SAFETY: sends a signal, and touches no memory. The child has not been waited for, so that its number
                // is still its own.
                unsafe { libc::kill(-group, libc::SIGTERM) };
            }
        }
        sleep(pause);
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}
