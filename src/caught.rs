//! Panics of libraries that read a stranger's file, as errors.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

static HOOK: Once = Once::new();

/// Runs `work`, which calls a library that may panic; the error is what the panic said, and nothing is printed.
///
/// Drop what `work` was changing when it panics: it may be half changed.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // One hook for all threads: replacing it for each call would race with other threads that do the same.
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !CAUGHT.get() {
                usual(panic);
            }
        }));
    });
    let outer = CAUGHT.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(outer);
    done.map_err(|panic| match panic.downcast::<String>() {
        Ok(said) => *said,
        Err(panic) => panic
            .downcast_ref::<&str>()
            .map_or("it panicked".to_owned(), |said| (*said).to_owned()),
    })
}
