//! `render-chat`: a conversation through a chat template, in a process of its own.
//!
//! A chat template is a program from a stranger. Some of them exhaust the stack or the memory in a single step, which the
//! template engine cannot turn into an error. So the kernel bounds a child process, and this one reports its end.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use bam_convert::model::chat::{ChatTemplate, Conversation, RenderRequest};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::{Error, threads};
use clap::Args;

use super::machine::abort_without_memory;
use super::printer::Printer;
use super::verb::Verb;
use super::{Outcome, Verdict};

/// Name of the hidden command.
const NAME: &str = "render-chat";
/// Seconds of a processor that a template may take. Real ones take some milliseconds.
const LONGEST_CPU: u64 = 2;
/// Longest time until then, where other processes keep the machine busy.
const LONGEST: Duration = Duration::from_secs(4);
/// Bytes that the child may hold, its stack among them.
const MEMORY: u64 = 384 << 20;
const TOO_LONG: &str = "it takes more than some seconds, where real templates take milliseconds";
/// Bytes of the stack that the template is rendered on.
const STACK: usize = 64 << 20;

/// Render a conversation: a request as JSON on standard input, its result as JSON on standard output.
#[derive(Debug, Args)]
#[command(hide = true)]
pub struct Arguments {}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new(NAME, StageUse::Never)
    }

    fn has_threads() -> bool {
        false
    }

    fn run(&self, printer: &Printer) -> Outcome {
        limit_process()?;
        abort_without_memory();
        let request: RenderRequest = serde_json::from_reader(std::io::stdin().lock())?;
        let rendering = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || request.text())?;
        // The template engine panics on some templates.
        let failed = |_| Err("the template engine cannot read it".to_owned());
        printer.json(&rendering.join().unwrap_or_else(failed))?;
        Ok(Verdict::Yes)
    }
}

/// The text of a conversation as this template lays it out.
pub fn render(template: &ChatTemplate, conversation: Conversation) -> anyhow::Result<String> {
    let request = serde_json::to_vec(&template.request(conversation))?;
    let program = std::env::current_exe().map_err(|e| Error::io("find", "this program", e))?;
    let failed = |e| Error::io("run", &program, e);
    let mut child = Command::new(&program)
        .arg(NAME)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let answer = answer(&mut child, request);
    if !matches!(answer, Ok(Some(_))) {
        child.kill().map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    let Some(answer) = answer? else {
        return Err(template.refused(TOO_LONG).into());
    };
    match serde_json::from_slice::<Result<String, String>>(&answer) {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(problem)) => Err(template.refused(&problem).into()),
        Err(_) => Err(ended(template, status).into()),
    }
}

/// What the child prints up to its end; nothing where that takes too long.
fn answer(child: &mut Child, request: Vec<u8>) -> bam_convert::Result<Option<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Ok(None);
    };
    let exchange = move || {
        let mut answer = Vec::new();
        // A child that ends early leaves no answer, and its status says why. Nobody listens where the time is over.
        let _ = stdin.write_all(&request);
        drop(stdin);
        let _ = stdout.read_to_end(&mut answer);
        let _ = sender.send(answer);
    };
    std::thread::Builder::new()
        .spawn(exchange)
        .map_err(threads::none)?;
    Ok(receiver.recv_timeout(LONGEST).ok())
}

/// The error for a child that ended without an answer.
fn ended(template: &ChatTemplate, status: ExitStatus) -> Error {
    match status.signal() {
        // How a process ends that has no stack or no memory left.
        Some(libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS) => {
            let most = MEMORY >> 20;
            template.refused(&format!(
                "it takes more than {most} MiB of memory, or nests too deep"
            ))
        }
        Some(libc::SIGXCPU) => template.refused(TOO_LONG),
        _ => Error::compute("render the chat template", status),
    }
}

/// Bounds what this process may take, where it is not bounded more tightly already.
fn limit_process() -> std::io::Result<()> {
    let limits = [
        (libc::RLIMIT_DATA, MEMORY),
        // An end by these limits is expected, and leaves no dump.
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_CPU, LONGEST_CPU),
    ];
    for (resource, most) in limits {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: both calls get a structure of their own kind, and keep no pointer to it.
        let result = unsafe {
            libc::getrlimit(resource, &mut limit);
            limit.rlim_cur = most.min(limit.rlim_max);
            libc::setrlimit(resource, &limit)
        };
        if result != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}
