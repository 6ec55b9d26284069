//! `hf://ORG/NAME@REVISION`: a repository of the Hub as it is typed.

use std::fmt;

use super::error::CheckpointError;
use crate::{Error, Result};

/// What a reference begins with where a path could stand too.
pub const SCHEME: &str = "hf://";
/// The branch that is meant where none is named.
pub const MAIN: &str = "main";

/// What the name of a dataset's repository begins with, here and in the Hub's addresses.
pub const DATASETS: &str = "datasets/";

/// What the names of repositories other than models begin with.
const KINDS: [&str; 2] = ["datasets", "spaces"];

/// The reference to a repository at a commit.
pub fn pinned(repository: &str, commit: &str) -> String {
    format!("{SCHEME}{repository}@{commit}")
}

/// A model repository and a revision of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `ORG/NAME`, or the bare name of an old repository.
    pub repository: String,
    /// Branch, tag, commit or `refs/pr/N`, as it was typed.
    pub revision: Option<String>,
}

impl Reference {
    /// Reads `ORG/NAME[@REVISION]`, with or without `hf://` in front.
    ///
    /// # Errors
    /// Names that no repository can have, which could also lead outside a cache folder; repositories other than models.
    pub fn parse(text: &str) -> Result<Self> {
        let rest = text.strip_prefix(SCHEME).unwrap_or(text);
        let rest = rest
            .strip_prefix("models/")
            .filter(|rest| rest.contains('/'))
            .unwrap_or(rest);
        let kind = rest.split(['/', '@']).next().unwrap_or_default();
        if KINDS.contains(&kind) {
            return Err(refused(text, "expected a model repository"));
        }
        Self::named(text, rest)
    }

    /// Reads `ORG/NAME[@REVISION]`; `text` is what was typed.
    fn named(text: &str, rest: &str) -> Result<Self> {
        let (repository, revision) = match rest.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (rest, None),
        };
        let refused = |problem| refused(text, problem);
        let parts: Vec<&str> = repository.split('/').collect();
        if parts.len() > 2 {
            return Err(refused(
                "expected the name of a repository, without a file in it",
            ));
        }
        if !parts.iter().all(|part| is_name(part)) || repository.len() > 96 {
            return Err(refused(
                "expected ORG/NAME of letters, digits, `-`, `_` and `.`",
            ));
        }
        let revision = revision.map(|revision| revision.replace("%2F", "/").replace("%2f", "/"));
        if revision
            .as_deref()
            .is_some_and(|revision| !is_revision(revision))
        {
            return Err(refused(
                "expected a branch, a tag or a commit after the `@`",
            ));
        }
        Ok(Self {
            repository: repository.to_owned(),
            revision,
        })
    }

    /// The revision, `main` where none was named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.repository)?;
        self.revision
            .as_ref()
            .map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

/// `hf://datasets/ORG/NAME[@REVISION][:CONFIG[/SPLIT]]`: a repository of a dataset, and which of its rows are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetReference {
    /// The repository, whose name begins with [`DATASETS`], and a revision of it.
    pub reference: Reference,
    /// The configuration, where one was named.
    pub config: Option<String>,
    /// The split, where one was named.
    pub split: Option<String>,
}

impl DatasetReference {
    /// Whether a text is meant as one.
    pub fn is_meant(text: &str) -> bool {
        text.strip_prefix(SCHEME)
            .is_some_and(|rest| rest.starts_with(DATASETS))
    }

    /// Reads a reference.
    ///
    /// # Errors
    /// Names that no repository, configuration or split can have.
    pub fn parse(text: &str) -> Result<Self> {
        let rest = text.strip_prefix(SCHEME).unwrap_or(text);
        let rest = rest.strip_prefix(DATASETS).unwrap_or(rest);
        let (repository, rows) = match rest.split_once(':') {
            Some((repository, rows)) => (repository, Some(rows)),
            None => (rest, None),
        };
        let mut reference = Reference::named(text, repository)?;
        reference.repository.insert_str(0, DATASETS);
        let (config, split) = match rows.map(|rows| rows.split_once('/').ok_or(rows)) {
            Some(Ok((config, split))) => (Some(config), Some(split)),
            Some(Err(config)) => (Some(config), None),
            None => (None, None),
        };
        let is_label = |label: &str| {
            let allowed = |c: char| !c.is_control() && !c.is_whitespace() && !"/:@*?[]".contains(c);
            !label.is_empty() && label.chars().all(allowed)
        };
        if !config.into_iter().chain(split).all(is_label) {
            return Err(refused(
                text,
                "expected CONFIG or CONFIG/SPLIT after the `:`",
            ));
        }
        Ok(Self {
            reference,
            config: config.map(str::to_owned),
            split: split.map(str::to_owned),
        })
    }

    /// The reference to the same rows at a commit.
    pub fn pinned(&self, commit: &str) -> String {
        let mut text = pinned(&self.reference.repository, commit);
        if let Some(config) = &self.config {
            text.push_str(&format!(":{config}"));
        }
        if let Some(split) = &self.split {
            text.push_str(&format!("/{split}"));
        }
        text
    }
}

fn refused(text: &str, problem: &'static str) -> Error {
    CheckpointError::Reference {
        text: text.to_owned(),
        problem,
    }
    .into()
}

/// Whether the Hub would take it for one part of a repository's name.
fn is_name(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !part.is_empty()
        && part.bytes().all(allowed)
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
        && !part.contains("--")
        && !part.contains("..")
}

/// Whether git would take it for the name of a revision, and a folder for a path below it.
fn is_revision(revision: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"~^:?*[\\@{".contains(&byte);
    revision.bytes().all(allowed)
        && revision
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.'))
        && !revision.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_they_are_typed() {
        let read = |text| Reference::parse(text).map(|found| (found.repository, found.revision));
        let named = |repository: &str, revision: Option<&str>| {
            Ok((repository.to_owned(), revision.map(str::to_owned)))
        };
        let same = |text, repository, revision| {
            assert_eq!(
                read(text).map_err(|e| e.to_string()),
                named(repository, revision)
            )
        };
        same("hf://org/name", "org/name", None);
        same("org/na.me-1_b@v1.0", "org/na.me-1_b", Some("v1.0"));
        same(
            "hf://models/org/name@refs/pr/3",
            "org/name",
            Some("refs/pr/3"),
        );
        same("hf://org/name@refs%2Fpr%2F3", "org/name", Some("refs/pr/3"));
        same("gpt2", "gpt2", None);
        assert_eq!(
            Reference::parse("hf://org/name@a/b").unwrap().to_string(),
            "hf://org/name@a/b"
        );
    }

    #[test]
    fn references_to_datasets_name_rows() {
        let read = |text| {
            let found = DatasetReference::parse(text).unwrap();
            (found.pinned("c0"), found.reference.revision)
        };
        let main = Some("main".to_owned());
        assert_eq!(
            read("hf://datasets/org/name@main:de/test"),
            ("hf://datasets/org/name@c0:de/test".to_owned(), main)
        );
        assert_eq!(
            read("hf://datasets/squad"),
            ("hf://datasets/squad@c0".to_owned(), None)
        );
        assert_eq!(read("hf://datasets/a/b:c").0, "hf://datasets/a/b@c0:c");
        for text in [
            "hf://datasets/",
            "hf://datasets/a/b/c",
            "hf://datasets/a/b:",
            "hf://datasets/a/b:c/",
            "hf://datasets/a/b:c/d/e",
        ] {
            assert!(DatasetReference::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        for text in [
            "",
            "hf://",
            "hf:///name",
            "../x",
            "org/..",
            "org/name/file",
            "datasets/org/name",
            "hf://datasets/name",
            "hf://datasets/name@main",
            "hf://models/spaces/name",
            "datasets",
            "org/a--b",
            "org/name@",
            "org/name@../x",
            "org/name@a//b",
            "org/name@a b",
            "/etc/passwd",
            "org\\name",
            "org/na me",
            "org/name@.x",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }
}
