//! What the process asks of the machine at its start: open files, signals, and a last word where memory ends.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bam_convert::checkpoint::single;
use bam_convert::table;
use bam_convert::train::peak_memory;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

/// Raises the limit of open files, and makes a file that grows beyond its limit an error of the write.
pub(super) fn prepare() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Best effort: with fewer, files are opened and closed more often.
    let _ = setrlimit(Resource::Nofile, raised);
    // The system kills a process that does not handle this signal; with a handler, the write fails with EFBIG. Where the
    // handler is refused, the kill leaves what any kill leaves.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Removes single files that are not whole when a signal ends the process.
///
/// For commands without a way of their own to end. Output folders stay: the next run continues with them.
pub(super) fn clean_up_at_signals() {
    let signals = [SIGINT, SIGTERM]
        .into_iter()
        .filter(|signal| !is_ignored(*signal));
    let Ok(mut signals) = Signals::new(signals) else {
        return;
    };
    let watch = move || {
        for signal in signals.forever() {
            single::remove_unfinished();
            // Whoever started the process sees that the signal has ended it. What cannot fail needs no answer.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    };
    // Without the thread, a signal leaves what any kill leaves.
    let _ = std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(watch);
}

/// The time and the memory that a command took.
pub(super) fn used(began: Instant) -> String {
    let seconds = began.elapsed().as_secs_f64();
    match peak_memory() {
        // Some systems do not say it.
        0 => format!("{seconds:.1} s"),
        bytes => format!("{seconds:.1} s, memory at most {}", table::bytes(bytes)),
    }
}

/// Whether the process started with a signal ignored, as `nohup` and shells do for jobs in the background.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: all zeros is a value of the type, which the system fills; no handler is set.
    unsafe {
        let mut found: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut found) == 0
            && found.sa_sigaction == libc::SIG_IGN
    }
}

/// The system's allocator, but that memory which is refused ends the process with an error and exit code 3. The standard
/// library would abort it, which looks like a fault of this program.
pub(crate) struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// What is said without allocating.
const NO_MEMORY: &[u8] = b"error: the system refuses more memory\n hint: raise the limit (ulimit -v), free some memory, \
or lower --memory, --threads or the batch\n";

/// Whether the standard library may abort the process all the same.
static ABORTS: AtomicBool = AtomicBool::new(false);

/// Lets memory that is refused abort the process: whoever started it knows this end.
pub(super) fn abort_without_memory() {
    ABORTS.store(true, Ordering::Relaxed);
}

fn given(memory: *mut u8) -> *mut u8 {
    if !memory.is_null() || ABORTS.load(Ordering::Relaxed) {
        return memory;
    }
    single::remove_unfinished();
    // SAFETY: the bytes are a constant; and a process may end at any time.
    unsafe {
        libc::write(2, NO_MEMORY.as_ptr().cast(), NO_MEMORY.len());
        libc::_exit(3)
    }
}

// SAFETY: what the system's allocator gives is passed on; null never returns.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller guarantees.
        given(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller guarantees.
        given(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller guarantees.
        given(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller guarantees.
        unsafe { System.dealloc(memory, layout) }
    }
}
