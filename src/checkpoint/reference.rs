//! `hf://ORG/NAME@REVISION`: a repository of the Hub as it is typed.

use std::fmt;

use super::error::CheckpointError;
use crate::{Error, Result};

/// What a reference begins with where a path could stand too.
pub const SCHEME: &str = "hf://";
/// The branch that is meant where none is named.
pub const MAIN: &str = "main";

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
        let (repository, revision) = match rest.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (rest, None),
        };
        let refused = |problem: &'static str| {
            Error::from(CheckpointError::Reference {
                text: text.to_owned(),
                problem,
            })
        };
        let parts: Vec<&str> = repository.split('/').collect();
        if parts.len() > 2 {
            let what = match parts[0] {
                "datasets" | "spaces" => "expected a model repository",
                _ => "expected the name of a repository, without a file in it",
            };
            return Err(refused(what));
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
    fn what_could_lead_elsewhere_is_refused() {
        for text in [
            "",
            "hf://",
            "hf:///name",
            "../x",
            "org/..",
            "org/name/file",
            "datasets/org/name",
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
