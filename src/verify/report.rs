//! What was checked and what was found.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::printable::printable;
use crate::table::{self, Align};
use crate::{Error, Result};

/// Findings kept for one check; the rest is counted.
const MOST_FINDINGS: usize = 100;
/// Findings of one check that the short table shows.
const SHOWN: usize = 5;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing is wrong.
    Ok,
    /// Something is unusual, but readers cope.
    Warning,
    /// The checkpoint is not what it should be.
    Fault,
    /// Could not or need not run; the detail says why.
    Skipped,
}

/// One row of the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckRow {
    /// Its name: `headers`, `numbers`, …
    pub name: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was looked at, with counts and units; for a skipped check the reason.
    pub detail: String,
    /// Faults found, those not listed included.
    pub faults: usize,
    /// Warnings found, those not listed included.
    pub warnings: usize,
}

/// Where something was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FindingPlace {
    /// File, relative to the folder if it is inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Name of the tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// Dotted path of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl FindingPlace {
    /// A tensor.
    pub fn tensor(name: &str) -> Self {
        Self {
            tensor: Some(name.to_owned()),
            ..Self::default()
        }
    }

    /// A file.
    pub fn file(name: &str) -> Self {
        Self {
            file: Some(name.to_owned()),
            ..Self::default()
        }
    }

    /// A key of a file.
    pub fn key(file: &str, key: &str) -> Self {
        Self {
            file: Some(file.to_owned()),
            key: Some(key.to_owned()),
            tensor: None,
        }
    }
}

impl std::fmt::Display for FindingPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let key = self.key.as_ref().map(|key| format!("key `{key}`"));
        let tensor = self
            .tensor
            .as_ref()
            .map(|tensor| format!("tensor `{tensor}`"));
        let parts: Vec<String> = [self.file.clone(), key, tensor]
            .into_iter()
            .flatten()
            .collect();
        f.write_str(&parts.join(": "))
    }
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// [`Status::Fault`] or [`Status::Warning`].
    pub status: Status,
    /// Where it is.
    #[serde(flatten)]
    pub place: FindingPlace,
    /// What was expected and what was found.
    pub problem: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What `validate` looked at, and what it found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValidationReport {
    /// The folder or file.
    pub path: PathBuf,
    /// One row a check, in order.
    pub checks: Vec<CheckRow>,
    /// What they found, at most 100 a check.
    pub findings: Vec<Finding>,
}

impl ValidationReport {
    /// An empty report.
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            checks: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// Begins a check; it becomes a row when it is closed.
    pub(super) fn check(&mut self, name: &'static str) -> Running<'_> {
        Running {
            report: self,
            name,
            faults: 0,
            warnings: 0,
        }
    }

    /// A row for a check that does not run.
    pub(super) fn skip(&mut self, name: &'static str, reason: impl Into<String>) {
        let detail = reason.into();
        self.checks.push(CheckRow {
            name,
            status: Status::Skipped,
            detail,
            faults: 0,
            warnings: 0,
        });
    }

    /// Number of faults; the checkpoint is good where it is 0.
    pub fn faults(&self) -> usize {
        self.checks.iter().map(|check| check.faults).sum()
    }

    /// Number of warnings.
    pub fn warnings(&self) -> usize {
        self.checks.iter().map(|check| check.warnings).sum()
    }

    /// The checks as a table and the findings below it, all that are kept or the first few of each check.
    pub fn table(&self, all: bool) -> String {
        let columns = [
            ("check", Align::Left),
            ("result", Align::Left),
            ("what was checked", Align::Left),
        ];
        let rows = self.checks.iter().map(|check| {
            let status = match check.status {
                Status::Ok => "ok".to_owned(),
                Status::Skipped => "skipped".to_owned(),
                Status::Warning => table::counted(check.warnings as u64, "warning"),
                Status::Fault => table::counted(check.faults as u64, "fault"),
            };
            vec![check.name.to_owned(), status, check.detail.clone()]
        });
        let mut text = table::render(&columns, rows);
        for check in &self.checks {
            let found: Vec<&Finding> = self
                .findings
                .iter()
                .filter(|finding| finding.check == check.name)
                .collect();
            let shown = if all {
                found.len()
            } else {
                found.len().min(SHOWN)
            };
            if shown > 0 {
                text.push('\n');
            }
            for (number, finding) in found[..shown].iter().enumerate() {
                let severity = if finding.status == Status::Fault {
                    "fault"
                } else {
                    "warning"
                };
                let place = finding.place.to_string();
                let colon = if place.is_empty() { "" } else { ": " };
                let line = format!(
                    "{severity}: {}: {place}{colon}{}",
                    finding.check, finding.problem
                );
                text.push_str(&printable(&line));
                text.push('\n');
                // Advice on several findings in a row is printed after the last of them.
                let next = found[..shown].get(number + 1);
                let is_repeated = next.is_some_and(|next| next.hint == finding.hint);
                if let Some(hint) = finding.hint.as_ref().filter(|_| !is_repeated) {
                    text.push_str(&printable(&format!("  hint: {hint}")));
                    text.push('\n');
                }
            }
            let rest = check.faults + check.warnings - shown;
            if rest > 0 {
                text.push_str(&format!("  … and {rest} more of `{}`\n", check.name));
            }
        }
        text
    }
}

/// A check under way.
pub(super) struct Running<'r> {
    report: &'r mut ValidationReport,
    name: &'static str,
    faults: usize,
    warnings: usize,
}

impl Running<'_> {
    /// Something that is wrong.
    pub fn fault(&mut self, place: FindingPlace, problem: impl Into<String>) {
        self.faults += 1;
        self.add(Status::Fault, self.faults, place, problem.into(), None);
    }

    /// Something that is unusual.
    pub fn warn(&mut self, place: FindingPlace, problem: impl Into<String>) {
        self.warnings += 1;
        self.add(Status::Warning, self.warnings, place, problem.into(), None);
    }

    /// An error as a fault; one of the machine, a missing file apart, is returned.
    pub fn fault_of(&mut self, error: impl Into<Error>) -> Result<()> {
        self.faults += 1;
        let (place, problem, hint) = self.describe(error.into())?;
        self.add(Status::Fault, self.faults, place, problem, hint);
        Ok(())
    }

    /// An error as a warning; one of the machine, a missing file apart, is returned.
    pub fn warning_of(&mut self, error: Error) -> Result<()> {
        self.warnings += 1;
        let (place, problem, hint) = self.describe(error)?;
        self.add(Status::Warning, self.warnings, place, problem, hint);
        Ok(())
    }

    /// Whether anything was wrong so far.
    pub fn has_faults(&self) -> bool {
        self.faults > 0
    }

    /// Ends the check; `detail` says what was looked at.
    pub fn done(self, detail: impl Into<String>) {
        let status = match (self.faults, self.warnings) {
            (0, 0) => Status::Ok,
            (0, _) => Status::Warning,
            _ => Status::Fault,
        };
        let (name, detail) = (self.name, detail.into());
        self.report.checks.push(CheckRow {
            name,
            status,
            detail,
            faults: self.faults,
            warnings: self.warnings,
        });
    }

    fn add(
        &mut self,
        status: Status,
        number: usize,
        place: FindingPlace,
        problem: String,
        hint: Option<String>,
    ) {
        if number <= MOST_FINDINGS {
            self.report.findings.push(Finding {
                check: self.name,
                status,
                place,
                problem,
                hint,
            });
        }
    }

    /// An error as place, problem and hint; errors of the machine and of the network are returned.
    fn describe(&self, error: Error) -> Result<(FindingPlace, String, Option<String>)> {
        if let Error::Io { source, path, .. } = &error
            && source.kind() == std::io::ErrorKind::NotFound
        {
            let place = FindingPlace {
                file: Some(self.shown(path)),
                ..FindingPlace::default()
            };
            let hint = error.hint().map(Cow::into_owned);
            return Ok((place, "is missing".to_owned(), hint));
        }
        if error.exit_code() == 3 {
            return Err(error);
        }

        let found = error.place();
        let place = FindingPlace {
            file: found.path.map(|path| match found.position {
                Some(position) => format!("{}:{position}", self.shown(path)),
                None => self.shown(path),
            }),
            tensor: found.tensor.map(str::to_owned),
            key: found.key.map(str::to_owned),
        };
        let hint = error.hint().map(Cow::into_owned);
        Ok((place, error.problem(), hint))
    }

    /// A path relative to what is checked, if it is inside.
    fn shown(&self, path: &Path) -> String {
        let inside = path
            .strip_prefix(&self.report.path)
            .ok()
            .filter(|inside| !inside.as_os_str().is_empty());
        inside.unwrap_or(path).display().to_string()
    }
}
