//! Runs that continue past their planned end: `--resume` with more `--steps`.
//!
//! Steps that an earlier plan had keep the learning rates of that plan. Later steps follow the schedule of the longer
//! run, with the warm-up and the decay steps that the run was begun with.

use std::path::Path;

use serde_json::{Map, Value};

use super::folder::{SETTINGS, holds_checkpoints};
use super::settings::Settings;
use crate::Result;
use crate::checkpoint::json;
use crate::checkpoint::output::beside;

/// Keys of settings that depend on the number of steps.
const OF_STEPS: [&str; 4] = ["steps", "extended", "warmup", "decay-steps"];

/// The settings that the run of `out` was begun with; `None` where no run was begun, or its record cannot be read.
pub fn begun(out: &Path) -> Option<Settings> {
    let record = json::read_object(&beside(out).ok()?.join(SETTINGS)).ok()?;
    serde_json::from_value(Value::Object(record)).ok()
}

/// The plans of a run that was `begun` and now has `steps`: all plans but the last.
pub fn earlier_plans(begun: &Settings, steps: u64) -> Vec<u64> {
    let plans = begun.plans();
    if begun.steps < steps {
        plans.collect()
    } else {
        begun.extended.clone()
    }
}

/// The settings of a run that was `begun`, with the plans of `now` where these extend its own.
pub(super) fn with_plans(
    begun: &Map<String, Value>,
    now: &Map<String, Value>,
) -> Map<String, Value> {
    let mut settings = begun.clone();
    if plans(now).starts_with(&plans(begun)) {
        for key in ["steps", "extended"] {
            match now.get(key) {
                Some(value) => settings.insert(key.to_owned(), value.clone()),
                None => settings.remove(key),
            };
        }
    }
    settings
}

/// Whether two runs differ at most in their length, and the first is the shorter.
pub(super) fn is_shorter(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let rest = |settings: &Map<String, Value>| {
        let mut rest = settings.clone();
        rest.retain(|key, _| !OF_STEPS.contains(&key.as_str()));
        rest
    };
    let steps = |settings: &Map<String, Value>| settings.get("steps").and_then(Value::as_u64);
    steps(a) < steps(b) && rest(a) == rest(b)
}

/// Whether the run of `out` has a checkpoint to continue from.
pub(super) fn has_checkpoint(out: &Path) -> Result<bool> {
    Ok(holds_checkpoints(&beside(out)?))
}

fn plans(settings: &Map<String, Value>) -> Vec<Value> {
    let extended = settings.get("extended").and_then(Value::as_array);
    let steps = settings.get("steps");
    extended
        .into_iter()
        .flatten()
        .chain(steps)
        .cloned()
        .collect()
}
