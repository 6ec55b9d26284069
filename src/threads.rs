//! Threads, of which the system may give fewer than asked for: the work is then done by those that there are.

use std::error::Error as _;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, Scope};

use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// A pool of so many threads, 0 for one a core.
///
/// # Errors
/// Where the system gives not a single one.
pub fn pool(threads: usize) -> Result<ThreadPool> {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .spawn_handler(start)
        .build()
        .map_err(none)
}

/// Starts the threads that computations share, so many, 0 for one a core; does nothing where they run already.
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
    let built = ThreadPoolBuilder::new()
        .num_threads(threads)
        .spawn_handler(start)
        .build_global();
    match built {
        // An error without a cause says that the threads run already.
        Err(e) if e.source().is_some() => Err(none(e)),
        _ => {
            *started = true;
            Ok(())
        }
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

/// Starts a thread of a pool. A pool whose later threads are missing works with the others.
fn start(thread: ThreadBuilder) -> io::Result<()> {
    let is_first = thread.index() == 0;
    match Builder::new().spawn(|| thread.run()) {
        Err(e) if is_first => Err(e),
        _ => Ok(()),
    }
}
