//! Runs a command and, at the n-th of its system calls on files below a folder, does something to it.
//!
//! A tracer, not a preloaded library: calls that bypass the C library (`renameat2`) count as well, and threads do too.

use std::collections::HashMap;
use std::ffi::c_void;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::Run;

/// Which calls count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// What changes the file system: making, writing, syncing, renaming, linking, removing.
    Changes,
    /// Writes and syncs, which may be interrupted or done in part.
    Writes,
    /// Reads.
    Reads,
    /// New threads.
    Threads,
    /// Any of these, but threads.
    All,
}

/// What is done at the call.
pub enum Act<'a> {
    /// The call does nothing and returns this error.
    Fail(i32),
    /// The call is made with half its length.
    Short,
    /// The process is killed instead of the call.
    Kill,
    /// The process is killed after the call.
    KillAfter,
    /// This is done with the file first, then the call.
    Do(&'a mut dyn FnMut(&Path)),
    /// The process gets this signal. The call is made after a while, so that the process can answer the signal first.
    Signal(i32),
    /// Every call from this one on that has an answer does nothing, and returns it as an error.
    Lack(&'a dyn Fn(&str, &Path) -> Option<i32>),
    /// Nothing.
    Count,
}

/// How long a call waits after a signal. The thread that answers signals needs a millisecond on an idle machine.
const HELD: Duration = Duration::from_millis(500);

/// What came of it.
pub struct Traced {
    /// The run; no code if it was killed.
    pub run: Run,
    /// Calls that counted.
    pub calls: usize,
    /// The call that the deed was done at: its name and the path; none where there were not so many.
    pub at: Option<(&'static str, PathBuf)>,
}

/// Calls by their x86-64 numbers: name, argument that names the file, how, and what it does.
const TABLE: &[(u64, &str, usize, Names, Calls)] = &[
    (0, "read", 0, Names::File, Calls::Reads),
    (1, "write", 0, Names::File, Calls::Writes),
    (2, "open", 0, Names::Path, Calls::Changes),
    (17, "pread64", 0, Names::File, Calls::Reads),
    (18, "pwrite64", 0, Names::File, Calls::Writes),
    (19, "readv", 0, Names::File, Calls::Reads),
    (20, "writev", 0, Names::File, Calls::Writes),
    (40, "sendfile", 0, Names::File, Calls::Writes),
    (56, "clone", 0, Names::Nothing, Calls::Threads),
    (73, "flock", 0, Names::File, Calls::Changes),
    (74, "fsync", 0, Names::File, Calls::Writes),
    (75, "fdatasync", 0, Names::File, Calls::Writes),
    (76, "truncate", 0, Names::Path, Calls::Changes),
    (77, "ftruncate", 0, Names::File, Calls::Changes),
    (82, "rename", 0, Names::Path, Calls::Changes),
    (83, "mkdir", 0, Names::Path, Calls::Changes),
    (84, "rmdir", 0, Names::Path, Calls::Changes),
    (86, "link", 1, Names::Path, Calls::Changes),
    (87, "unlink", 0, Names::Path, Calls::Changes),
    (88, "symlink", 1, Names::Path, Calls::Changes),
    (90, "chmod", 0, Names::Path, Calls::Changes),
    (91, "fchmod", 0, Names::File, Calls::Changes),
    (217, "getdents64", 0, Names::File, Calls::Reads),
    (257, "openat", 0, Names::At, Calls::Changes),
    (258, "mkdirat", 0, Names::At, Calls::Changes),
    (263, "unlinkat", 0, Names::At, Calls::Changes),
    (264, "renameat", 0, Names::At, Calls::Changes),
    (265, "linkat", 2, Names::At, Calls::Changes),
    (285, "fallocate", 0, Names::File, Calls::Changes),
    (316, "renameat2", 0, Names::At, Calls::Changes),
    (326, "copy_file_range", 2, Names::File, Calls::Writes),
    (435, "clone3", 0, Names::Nothing, Calls::Threads),
];

/// How an argument names a file.
#[derive(Clone, Copy)]
enum Names {
    File,
    Path,
    /// A folder, and in the next argument a path.
    At,
    Nothing,
}

/// Places of registers in the tracee's user area.
const RDX: u64 = 8 * 12;
const RAX: u64 = 8 * 10;
const R10: u64 = 8 * 7;
const ORIG_RAX: u64 = 8 * 15;

/// Runs `command` and does `act` at call number `number` (from 0) of those that count on files below `below`.
pub fn traced(
    mut command: Command,
    below: &Path,
    calls: Calls,
    number: usize,
    mut act: Act,
) -> Traced {
    let printed = tempfile::tempdir().unwrap();
    let file = |name: &str| std::fs::File::create(printed.path().join(name)).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(file("out"))
        .stderr(file("err"));
    // SAFETY: system calls, which are allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // Shells let jobs in the background ignore Ctrl-C, and their children inherit that.
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let shown = format!("{command:?}");
    let process = command.spawn().unwrap().id() as i32;
    let (mut status, mut count, mut at) = (0, 0, None);
    // SAFETY: the child is traced by this thread, which alone waits for it.
    let stopped = unsafe { libc::waitpid(process, &mut status, libc::__WALL) };
    assert!(
        stopped == process && libc::WIFSTOPPED(status),
        "the command starts"
    );
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SETOPTIONS, process, 0, options as u64);
    request(libc::PTRACE_SYSCALL, process, 0, 0);
    // What is still to be done at the end of a thread's call.
    let mut pending: HashMap<i32, Option<i32>> = HashMap::new();
    // The thread whose call waits, and until when.
    let mut held: Option<(i32, Instant)> = None;
    let code = loop {
        let waits = held.map_or(0, |_| libc::WNOHANG);
        let kinds = libc::__WALL | libc::__WNOTHREAD | waits;
        // SAFETY: only children and tracees of this thread are waited for.
        let thread = unsafe { libc::waitpid(-1, &mut status, kinds) };
        if let Some((waiting, until)) = held
            && thread == 0
        {
            if Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            } else {
                held = None;
                request(libc::PTRACE_SYSCALL, waiting, 0, 0);
            }
            continue;
        }
        assert!(thread > 0, "{}", std::io::Error::last_os_error());
        if !libc::WIFSTOPPED(status) {
            match thread == process {
                true if libc::WIFEXITED(status) => break Some(libc::WEXITSTATUS(status)),
                true => break None,
                false => continue,
            }
        }
        let mut signal = 0;
        match libc::WSTOPSIG(status) {
            stop if stop == libc::SIGTRAP | 0x80 => match call(thread) {
                Some((entry, arguments)) => {
                    if let Some(found) = counted(process, entry, &arguments, below, calls) {
                        if let Act::Lack(answer) = &act
                            && count >= number
                        {
                            if let Some(errno) = answer(found.0, &found.1) {
                                request(libc::PTRACE_POKEUSER, thread, ORIG_RAX, u64::MAX);
                                pending.insert(thread, Some(errno));
                                at = Some(found);
                            }
                        } else if count == number {
                            let (_, path) = at.insert(found);
                            match &mut act {
                                Act::Fail(errno) => {
                                    request(libc::PTRACE_POKEUSER, thread, ORIG_RAX, u64::MAX);
                                    pending.insert(thread, Some(*errno));
                                }
                                Act::Short => {
                                    let (register, length) = match entry {
                                        40 => (R10, arguments[3]),
                                        326 => (0, arguments[4]),
                                        _ => (RDX, arguments[2]),
                                    };
                                    if register > 0 && length > 1 {
                                        request(
                                            libc::PTRACE_POKEUSER,
                                            thread,
                                            register,
                                            length / 2,
                                        );
                                    }
                                }
                                Act::Kill => kill(process),
                                Act::KillAfter => drop(pending.insert(thread, None)),
                                Act::Do(deed) => deed(path),
                                Act::Signal(signal) => {
                                    // SAFETY: the child has not been waited for to its end.
                                    unsafe { libc::kill(process, *signal) };
                                    held = Some((thread, Instant::now() + HELD));
                                }
                                Act::Count | Act::Lack(_) => {}
                            }
                        }
                        count += 1;
                    }
                }
                None => match pending.remove(&thread) {
                    Some(Some(errno)) => {
                        request(libc::PTRACE_POKEUSER, thread, RAX, -i64::from(errno) as u64)
                    }
                    Some(None) => kill(process),
                    None => {}
                },
            },
            // A new thread, or an event of ours.
            libc::SIGSTOP | libc::SIGTRAP => {}
            other => signal = other,
        }
        if held.is_none_or(|(waiting, _)| waiting != thread) {
            request(libc::PTRACE_SYSCALL, thread, 0, signal as u64);
        }
    };
    let text = |name: &str| {
        String::from_utf8_lossy(&std::fs::read(printed.path().join(name)).unwrap()).into_owned()
    };
    Traced {
        run: Run {
            command: shown,
            code,
            stdout: text("out"),
            stderr: text("err"),
        },
        calls: count,
        at,
    }
}

fn kill(process: i32) {
    // SAFETY: the child has not been waited for to its end.
    unsafe { libc::kill(process, libc::SIGKILL) };
}

/// A request that may find the thread gone.
fn request(request: libc::c_uint, thread: i32, address: u64, data: u64) {
    // SAFETY: these requests take numbers, no memory of ours.
    unsafe { libc::ptrace(request, thread, address, data) };
}

/// Number and arguments of the call that the thread begins; none where it ends one.
fn call(thread: i32) -> Option<(u64, [u64; 6])> {
    // SAFETY: the kernel fills at most the length given; all zeros is a value of the type.
    let info = unsafe {
        let mut info: libc::ptrace_syscall_info = std::mem::zeroed();
        let length = size_of::<libc::ptrace_syscall_info>();
        let place = (&raw mut info).cast::<c_void>();
        (libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, length, place) > 0).then_some(info)?
    };
    // SAFETY: the tag says which part is meant.
    (info.op == libc::PTRACE_SYSCALL_INFO_ENTRY)
        .then_some(unsafe { (info.u.entry.nr, info.u.entry.args) })
}

/// Name and path of a call that counts.
fn counted(
    process: i32,
    entry: u64,
    arguments: &[u64; 6],
    below: &Path,
    calls: Calls,
) -> Option<(&'static str, PathBuf)> {
    let (_, name, argument, names, mut kind) =
        *TABLE.iter().find(|(number, ..)| *number == entry)?;
    if let "open" | "openat" = name {
        let flags = arguments[if name == "open" { 1 } else { 2 }] as i32;
        if flags & (libc::O_CREAT | libc::O_WRONLY | libc::O_RDWR | libc::O_TRUNC) == 0 {
            kind = Calls::Reads;
        }
    }
    let wanted = match calls {
        Calls::All => kind != Calls::Threads,
        Calls::Changes => ![Calls::Reads, Calls::Threads].contains(&kind),
        other => kind == other,
    };
    if !wanted {
        return None;
    }
    let opened = |file: u64| std::fs::read_link(format!("/proc/{process}/fd/{}", file as i32)).ok();
    let here = || std::fs::read_link(format!("/proc/{process}/cwd")).ok();
    let path = match names {
        Names::Nothing => below.to_path_buf(),
        Names::File => opened(arguments[argument])?,
        Names::Path => here()?.join(text(process, arguments[argument])?),
        Names::At => {
            let folder = arguments[argument];
            let folder = if folder as i32 == libc::AT_FDCWD {
                here()
            } else {
                opened(folder)
            };
            folder?.join(text(process, arguments[argument + 1])?)
        }
    };
    path.starts_with(below).then_some((name, path))
}

/// A path in the memory of the process.
fn text(process: i32, address: u64) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::FileExt;
    let memory = std::fs::File::open(format!("/proc/{process}/mem")).ok()?;
    let mut bytes = vec![0; 4096];
    // The next page may not be mapped: read to its edge first.
    let edge = 4096 - (address % 4096) as usize;
    let mut length = memory.read_at(&mut bytes[..edge], address).ok()?;
    if !bytes[..length].contains(&0) {
        length += memory
            .read_at(&mut bytes[edge..], address + edge as u64)
            .unwrap_or(0);
    }
    let end = bytes[..length].iter().position(|byte| *byte == 0)?;
    bytes.truncate(end);
    Some(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}
