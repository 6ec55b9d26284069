//! Where a template marks answers: `{% generation %}` and `{% endgeneration %}`.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::Environment;

use super::source::{ANSWER_BEGINS, ANSWER_ENDS};

/// What is known of a text while it is rendered. The engine writes through [`wrote`](Self::wrote), so that the functions
/// at the marks know where they are.
#[derive(Clone, Default)]
pub(super) struct Marks(Arc<Mutex<Found>>);

#[derive(Default)]
struct Found {
    /// Bytes of text so far.
    written: usize,
    /// Where answers that have not ended begin.
    begun: Vec<usize>,
    answers: Vec<Range<usize>>,
}

impl Marks {
    /// Lets the functions at the marks write down where answers are.
    pub(super) fn watch(&self, environment: &mut Environment) {
        let marks = self.clone();
        environment.add_function(ANSWER_BEGINS, move || {
            let mut found = marks.found();
            let at = found.written;
            found.begun.push(at);
        });
        let marks = self.clone();
        environment.add_function(ANSWER_ENDS, move || {
            let mut found = marks.found();
            let end = found.written;
            if let Some(start) = found.begun.pop() {
                found.answers.push(start..end);
            }
        });
    }

    /// Counts bytes of text.
    pub(super) fn wrote(&self, bytes: usize) {
        self.found().written += bytes;
    }

    /// The answers, in bytes of the text, in order. An answer within another one is a part of it.
    pub(super) fn answers(&self) -> Vec<Range<usize>> {
        let mut answers = self.found().answers.clone();
        answers.sort_by_key(|answer| (answer.start, std::cmp::Reverse(answer.end)));
        answers.dedup_by(|inner, outer| inner.end <= outer.end && inner.start < inner.end);
        answers
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        // A panic of the engine ends the rendering, and nobody reads the marks then.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
