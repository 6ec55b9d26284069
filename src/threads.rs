//! Threads, of which the system may give fewer than asked for: the work is then done by those that there are.

use std::error::Error as _;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, Scope};

use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// The number of cores that this process may use, 1 where the system does not say it.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The variable with the number of threads, which rayon and candle read, too.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// The number of threads to work with: as the environment or [`limit`] says, else one per core.
pub fn count() -> usize {
    asked().unwrap_or_else(cores)
}

fn asked() -> Option<usize> {
    let count = std::env::var(VARIABLE).ok()?.parse().ok();
    count.filter(|count| *count > 0)
}

/// Makes all work of this process, and of the processes that it starts, use so many threads. A program calls this before it
/// starts any thread.
pub fn limit(threads: usize) {
    // SAFETY: no other thread runs yet that could read the environment.
    unsafe { std::env::set_var(VARIABLE, threads.to_string()) };
}

/// A pool of so many threads, 0 for as many as [`count`] says.
///
/// # Errors
/// Where the system gives not a single one.
pub fn pool(threads: usize) -> Result<ThreadPool> {
    let threads = Waiting::start(threads)?;
    ThreadPoolBuilder::new()
        .num_threads(threads.0.len())
        .spawn_handler(|thread| threads.run(thread))
        .build()
        .map_err(none)
}

/// Starts the threads that computations share, so many, 0 for as many as [`count`] says; does nothing where they run already.
///
/// rayon would start them by itself, and panic where it cannot.
///
/// # Errors
/// Where the system gives not a single one.
pub fn start_shared(threads: usize) -> Result<()> {
    static STARTED: Mutex<bool> = Mutex::new(false);
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if *started {
        return Ok(());
    }
    let threads = Waiting::start(threads)?;
    let built = ThreadPoolBuilder::new()
        .num_threads(threads.0.len())
        .spawn_handler(|thread| threads.run(thread))
        .build_global();
    // rayon's only other error is that these threads run already.
    match built {
        Err(e) if e.source().is_some() => Err(none(e)),
        _ => {
            *started = true;
            Ok(())
        }
    }
}

/// Threads that wait for their part in a pool: rayon makes a pool with all its threads or not at all, and the shared one once.
struct Waiting(Vec<Sender<ThreadBuilder>>);

impl Waiting {
    /// Starts as many of `threads` as the system gives; 0 means as many as [`count`] says.
    fn start(threads: usize) -> Result<Self> {
        let wanted = if threads > 0 { threads } else { count() };
        let mut waiting = Vec::new();
        for _ in 0..wanted {
            let (give, take) = channel::<ThreadBuilder>();
            // Without a part, the thread ends.
            let run = move || take.recv().map_or((), ThreadBuilder::run);
            match Builder::new().spawn(run) {
                Ok(_) => waiting.push(give),
                Err(e) if waiting.is_empty() => return Err(none(e)),
                Err(_) => break,
            }
        }
        Ok(Self(waiting))
    }

    fn run(&self, thread: ThreadBuilder) -> io::Result<()> {
        let waiting = self.0.get(thread.index());
        let given = waiting.and_then(|waiting| waiting.send(thread).ok());
        given.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Does `work` on up to `threads` threads at a time, this one among them.
pub fn share<'scope>(
    scope: &'scope Scope<'scope, '_>,
    threads: usize,
    work: impl Fn() + Copy + Send + 'scope,
) {
    for _ in 1..threads {
        if Builder::new().spawn_scoped(scope, work).is_err() {
            break;
        }
    }
    work();
}

/// The error for a thread that cannot be done without.
pub fn none(source: impl ToString) -> Error {
    Error::compute("start a thread", source)
        .with_hint("raise the limit of processes (ulimit -u) or of memory (ulimit -v)")
}
