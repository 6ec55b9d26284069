//! What an attempt at a request came to, and when to make another.
//!
//! Waits grow from one attempt to the next, or are as long as the server asks for.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::{Error, Result};

/// Attempts before an error is reported, each after a longer wait.
const ATTEMPTS: usize = 6;
/// The wait before the second attempt.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// The longest wait that a server may ask for, and for an answer that takes long.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Why an attempt came to nothing.
pub(super) struct Failure {
    /// What to tell if it was the last.
    pub error: Error,
    /// Whether the next may succeed; the wait that the server asked for.
    pub passing: Option<Option<Duration>>,
}

impl Failure {
    pub(super) fn passing(error: impl Into<Error>) -> Self {
        Self {
            error: error.into(),
            passing: Some(None),
        }
    }

    pub(super) fn lasting(error: impl Into<Error>) -> Self {
        Self {
            error: error.into(),
            passing: None,
        }
    }
}

/// When to try again: after waits that double, up to [`ATTEMPTS`] attempts in a row.
pub(super) struct RetryPolicy {
    waits: ExponentialBackoff,
}

impl RetryPolicy {
    pub(super) fn new() -> Self {
        // Jitter, so that clients do not all come back at the same time.
        let waits = ExponentialBuilder::new()
            .with_min_delay(FIRST_WAIT)
            .with_max_times(ATTEMPTS - 1)
            .with_jitter();
        Self {
            waits: waits.build(),
        }
    }

    /// Waits before the next attempt; returns the error of a failure that lasts, or that came too often.
    pub(super) fn wait(&mut self, failure: Failure) -> Result<()> {
        let Some((asked, own)) = failure.passing.zip(self.waits.next()) else {
            return Err(failure.error);
        };
        let asked = asked.unwrap_or_default();
        if asked > LONGEST_WAIT {
            return Err(failure.error);
        }

        std::thread::sleep(asked + own);
        Ok(())
    }
}
