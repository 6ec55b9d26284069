//! What this machine lacks, so that the user should know it: said once, at the end, by whoever runs a command.

use std::sync::{Mutex, PoisonError};

static NOTICES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// Remembers a notice, unless it is remembered already.
pub(crate) fn once(text: &'static str) {
    let mut notices = NOTICES.lock().unwrap_or_else(PoisonError::into_inner);
    if !notices.contains(&text) {
        notices.push(text);
    }
}

/// The notices since the last call, in their order.
pub fn take() -> Vec<&'static str> {
    std::mem::take(&mut NOTICES.lock().unwrap_or_else(PoisonError::into_inner))
}
