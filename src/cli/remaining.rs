//! How long the rest of a recipe takes, by the estimates of its stages and by how fast the others were.

use std::collections::BTreeMap;
use std::time::Duration;

use bam_convert::table;

/// Seconds of stages that have ended before estimates are corrected by them.
const ENOUGH: f64 = 1.0;

/// The stages that have not ended, with their estimated seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Remaining {
    stages: BTreeMap<String, Option<f64>>,
    /// Seconds that the stages that ended took, and that they were estimated to take.
    taken: f64,
    estimated: f64,
}

impl Remaining {
    /// Of stages that would run, each with its estimated seconds, where anything tells.
    pub(super) fn new(stages: impl IntoIterator<Item = (String, Option<f64>)>) -> Self {
        Self {
            stages: stages.into_iter().collect(),
            ..Self::default()
        }
    }

    /// A stage has ended.
    pub(super) fn end(&mut self, stage: &str, seconds: f64) {
        if let Some(estimated) = self.stages.remove(stage).flatten() {
            self.taken += seconds;
            self.estimated += estimated;
        }
    }

    /// The time that is left in words; `running` has what each running stage says itself, and how long it has run. `None`
    /// where nothing is known.
    pub(super) fn text(
        &self,
        running: &BTreeMap<String, (Option<f64>, Duration)>,
    ) -> Option<String> {
        let pace = if self.estimated >= ENOUGH {
            self.taken / self.estimated
        } else {
            1.0
        };
        let (mut sum, mut is_open) = (0.0, false);
        for (stage, estimated) in &self.stages {
            let estimated = estimated.map(|seconds| seconds * pace);
            let left = match running.get(stage) {
                Some((said, elapsed)) => {
                    let rest = |seconds: f64| (seconds - elapsed.as_secs_f64()).max(0.0);
                    said.or(estimated.map(rest))
                }
                None => estimated,
            };
            sum += left.unwrap_or_default();
            is_open |= left.is_none();
        }
        match (is_open, sum > 0.0) {
            (_, false) => None,
            (true, true) => Some(format!("at least ~{}", table::duration(sum))),
            (false, true) => Some(format!("~{}", table::duration(sum))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_corrects_what_is_left() {
        let stages = [("a", Some(10.0)), ("b", Some(30.0)), ("c", Some(5.0))];
        let mut left = Remaining::new(stages.map(|(name, time)| (name.to_owned(), time)));
        assert_eq!(left.text(&BTreeMap::new()).as_deref(), Some("~45 s"));
        left.end("a", 20.0);
        assert_eq!(left.text(&BTreeMap::new()).as_deref(), Some("~70 s"));
        // A stage knows best itself; one that says nothing has run for a while.
        let second = Duration::from_secs(4);
        let running = BTreeMap::from([
            ("b".to_owned(), (Some(12.0), second)),
            ("c".to_owned(), (None, second)),
        ]);
        assert_eq!(left.text(&running).as_deref(), Some("~18 s"));
    }

    #[test]
    fn what_nobody_knows_is_at_least() {
        let stages = [("a", Some(10.0)), ("b", None)];
        let mut left = Remaining::new(stages.map(|(name, time)| (name.to_owned(), time)));
        assert_eq!(
            left.text(&BTreeMap::new()).as_deref(),
            Some("at least ~10 s")
        );
        left.end("a", 20.0);
        assert_eq!(left.text(&BTreeMap::new()), None);
    }
}
