//! What this machine lacks, what a folder holds beside its model, and where an edited file went. Each is said once, at the
//! end, by whoever runs a command.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

static NOTICES: Mutex<Vec<Cow<'static, str>>> = Mutex::new(Vec::new());

/// Remembers a notice, unless it is remembered already.
pub(crate) fn once(text: impl Into<Cow<'static, str>>) {
    let text = text.into();
    let mut notices = NOTICES.lock().unwrap_or_else(PoisonError::into_inner);
    if !notices.contains(&text) {
        notices.push(text);
    }
}

/// The notices since the last call, in their order.
pub fn take() -> Vec<Cow<'static, str>> {
    std::mem::take(&mut NOTICES.lock().unwrap_or_else(PoisonError::into_inner))
}
