//! `render-chat`: conversations through a chat template, in a process of its own.
//!
//! A chat template is a program from a stranger. Some of them exhaust the stack or the memory in a single step, which the
//! template engine cannot turn into an error. So the kernel bounds a child process, and this one reports its end.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bam_convert::model::chat::{ChatTemplate, Conversation, RenderRequest, RenderedChat};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::{Error, Result, threads};
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::machine::abort_without_memory;
use super::printer::Printer;
use super::verb::Verb;
use super::{Outcome, Verdict};

/// Name of the hidden command.
const NAME: &str = "render-chat";
/// Seconds of a processor that a conversation may take. Real ones take some milliseconds.
const LONGEST_CPU: u64 = 2;
/// Longest time until then, where other processes keep the machine busy.
const LONGEST: Duration = Duration::from_secs(4);
/// Bytes that the child may hold, its stack among them.
const MEMORY: u64 = 384 << 20;
const TOO_LONG: &str = "it takes more than some seconds, where real templates take milliseconds";
/// Bytes of the stack that the template is rendered on.
const STACK: usize = 64 << 20;

/// Render conversations: each line of standard input is a request as JSON, each line of standard output its result as JSON.
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
        limit(Resource::Data, MEMORY)?;
        // An end by these limits is expected, and leaves no dump.
        limit(Resource::Core, 0)?;
        abort_without_memory();
        for line in std::io::stdin().lock().lines() {
            let request: RenderRequest = serde_json::from_str(&line?)?;
            limit(Resource::Cpu, used_seconds() + LONGEST_CPU)?;
            let rendering = std::thread::Builder::new()
                .stack_size(STACK)
                .spawn(move || request.rendered())?;
            // The template engine panics on some templates.
            let failed = |_| Err("the template engine cannot read it".to_owned());
            let result = rendering.join().unwrap_or_else(failed);
            printer.piece(&(serde_json::to_string(&result)? + "\n"))?;
        }
        Ok(Verdict::Yes)
    }
}

/// Processes that render, one for each thread that asks at the same time.
#[derive(Default)]
pub struct Renderers(Mutex<Vec<Renderer>>);

impl Renderers {
    /// A conversation as this template lays it out.
    pub fn render(
        &self,
        template: &ChatTemplate,
        conversation: Conversation,
    ) -> Result<RenderedChat> {
        let request = serde_json::to_vec(&template.request(conversation));
        let mut request = request.map_err(|e| Error::compute("write a conversation", e))?;
        request.push(b'\n');
        // A job that was suspended finds its time over when it continues; the second attempt finds out.
        let answer = match self.ask(&request)? {
            Ok(answer) => answer,
            Err(renderer) if renderer.is_late => match self.ask(&request)? {
                Ok(answer) => answer,
                Err(renderer) => return Err(renderer.ended(template)?),
            },
            Err(renderer) => return Err(renderer.ended(template)?),
        };
        answer.map_err(|problem| template.refused(&problem))
    }

    /// The answer of a process, or the process that has none.
    fn ask(&self, request: &[u8]) -> Result<Result<Answer, Renderer>> {
        // A thread that panicked with the lock left whole processes.
        let idle = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let mut renderer = kept.map_or_else(Renderer::start, Ok)?;
        let Some(answer) = renderer.ask(request) else {
            return Ok(Err(renderer));
        };
        idle().push(renderer);
        Ok(Ok(answer))
    }
}

/// The text of a conversation as this template lays it out.
pub fn render(template: &ChatTemplate, conversation: Conversation) -> Result<String> {
    Ok(Renderers::default().render(template, conversation)?.text)
}

/// A conversation as it is laid out, or what is wrong with it.
type Answer = Result<RenderedChat, String>;

/// A child process that renders one conversation after the other.
struct Renderer {
    child: Child,
    requests: ChildStdin,
    /// What the child prints, line by line.
    answers: Receiver<String>,
    is_late: bool,
}

impl Renderer {
    fn start() -> Result<Self> {
        let program = std::env::current_exe().map_err(|e| Error::io("find", "this program", e))?;
        let failed = |e| Error::io("run", &program, e);
        let mut child = Command::new(&program)
            .arg(NAME)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let (Some(requests), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
        };
        let (sender, answers) = sync_channel(1);
        let read = move || {
            for line in BufReader::new(stdout).lines() {
                // The receiver is gone where the time is over.
                let Ok(true) = line.map(|line| sender.send(line).is_ok()) else {
                    break;
                };
            }
        };
        std::thread::Builder::new()
            .spawn(read)
            .map_err(threads::none)?;
        Ok(Self {
            child,
            requests,
            answers,
            is_late: false,
        })
    }

    /// The answer to a request; none where the child ends, or takes too long.
    fn ask(&mut self, request: &[u8]) -> Option<Answer> {
        // The end of the child says why it takes no more.
        let _ = self.requests.write_all(request);
        let answer = self.answers.recv_timeout(LONGEST);
        self.is_late = answer == Err(RecvTimeoutError::Timeout);
        serde_json::from_str(&answer.ok()?).ok()
    }

    /// The error for a child without an answer.
    fn ended(mut self, template: &ChatTemplate) -> Result<Error> {
        if self.is_late {
            return Ok(template.refused(TOO_LONG));
        }
        // One that has ended keeps its status.
        let waited = self.child.kill().and_then(|()| self.child.wait());
        let status = waited.map_err(|e| Error::io("wait for", NAME, e))?;
        Ok(ended(template, status))
    }
}

impl Drop for Renderer {
    fn drop(&mut self) {
        // It may have ended already; without the wait, its entry would stay in the table of processes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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

/// Bounds what this process may take of a resource, where it is not bounded more tightly already.
fn limit(resource: Resource, most: u64) -> std::io::Result<()> {
    let limit = getrlimit(resource);
    let current = limit.maximum.map_or(most, |maximum| maximum.min(most));
    let lowered = Rlimit {
        current: Some(current),
        ..limit
    };
    Ok(setrlimit(resource, lowered)?)
}

/// Seconds of a processor that this process has taken, rounded up.
fn used_seconds() -> u64 {
    let mut used = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call gets a structure of its own kind, and keeps no pointer to it. It fails for no clock of this process.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut used) };
    u64::try_from(used.tv_sec).unwrap_or_default() + 1
}
