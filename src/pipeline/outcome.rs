//! What became of stages, for people and programs.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::table::{self, Align};

/// What became of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ran {
    /// It ran and ended well.
    Done,
    /// Nothing had changed since its last run.
    UpToDate,
    /// It was not chosen to run.
    Left,
    /// It ran, and did not end well.
    Failed,
    /// A signal ended it before its end.
    Stopped,
    /// A stage that it needs did not end well.
    Skipped,
}

impl Ran {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::UpToDate => "up to date",
            Self::Left => "left as it was",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Skipped => "skipped",
        }
    }
}

/// A stage that was dealt with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finished {
    /// Its name.
    pub stage: String,
    /// Its command.
    pub command: String,
    /// What became of it.
    pub ran: Ran,
    /// Wall time.
    pub seconds: f64,
    /// The stage because of which it was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// A stage that did not end well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Its name.
    pub stage: String,
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// What it should have made, where it ended well without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<PathBuf>,
    /// The last lines it printed.
    pub tail: String,
    /// All that it printed.
    pub log: PathBuf,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stage `{}` ", self.stage)?;
        match (&self.missing, self.code) {
            (Some(missing), _) => {
                write!(f, "ended well, but did not make {}", missing.display())?;
            }
            (None, Some(code)) => write!(f, "ended with exit code {code}")?,
            (None, None) => f.write_str("was ended by a signal")?,
        }
        write!(f, "; all it printed is in {}", self.log.display())
    }
}

/// What a run of a recipe did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The stages that were dealt with, in the recipe's order.
    pub stages: Vec<Finished>,
    /// The stages that did not end well.
    pub failures: Vec<Failure>,
    /// Whether a signal stopped the run before its end.
    pub stopped: bool,
    /// Wall time of all.
    pub seconds: f64,
}

impl Report {
    /// Whether nothing failed and nothing was stopped.
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty() && !self.stopped
    }

    /// Whether every stage was up to date before.
    pub fn is_up_to_date(&self) -> bool {
        !self.stages.is_empty() && self.stages.iter().all(|stage| stage.ran == Ran::UpToDate)
    }

    /// The stages with their times.
    pub fn table(&self) -> String {
        let columns = [
            ("stage", Align::Left),
            ("command", Align::Left),
            ("", Align::Left),
            ("seconds", Align::Right),
        ];
        let mut rows: Vec<Vec<String>> = self.stages.iter().map(Finished::row).collect();
        rows.push(vec![
            "all".to_owned(),
            String::new(),
            String::new(),
            format!("{:.1}", self.seconds),
        ]);
        table::render(&columns, rows)
    }
}

impl Finished {
    fn row(&self) -> Vec<String> {
        let because = self
            .because
            .as_ref()
            .map(|stage| format!(", for it needs {stage}"));
        let ran = format!("{}{}", self.ran.words(), because.unwrap_or_default());
        vec![
            self.stage.clone(),
            self.command.clone(),
            ran,
            format!("{:.1}", self.seconds),
        ]
    }
}
