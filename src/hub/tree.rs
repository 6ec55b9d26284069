//! What a commit of a repository holds: every file with its size and the hash of its content.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use reqwest::Url;
use reqwest::header::{HeaderMap, LINK};
use serde::Serialize;
use serde_json::Value;

use super::answer_error::HubAnswerError;
use super::client::HubClient;
use super::error::{HubError, HubFault, HubStep};
use super::http::HubRequest;
use super::parallel::each;
use crate::checkpoint::reference::{DATASETS, MAIN, Reference, pinned};
use crate::printable::printable;
use crate::{Error, Result};

/// More files are no checkpoint.
const MOST_FILES: usize = 100_000;
/// More pages are no listing: Hubs list at least a hundred files in one.
const MOST_PAGES: usize = 1000;
/// Files that are asked about one by one, because the listing does not tell their hashes.
const MOST_ASKED: usize = 10_000;
/// Files that are asked about at a time.
const WORKERS: usize = 8;

/// A commit of a repository and its files.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// `ORG/NAME`.
    pub repository: String,
    /// The commit, 40 or 64 hexadecimal digits.
    pub commit: String,
    /// Its files by path.
    pub files: BTreeMap<String, FileEntry>,
}

/// A file of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileEntry {
    /// Length in bytes.
    pub size: u64,
    /// What its content must hash to.
    #[serde(flatten)]
    pub hash: ContentHash,
    /// Its address in the Xet storage, if it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xet: Option<String>,
}

/// The hash by which the Hub knows a content; it is also the name of the file in caches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ContentHash {
    /// SHA-256, of large files.
    Sha256(String),
    /// The id of a git blob: SHA-1 of `blob LENGTH\0` and the content.
    GitBlob(String),
    /// None that the Hub tells: no content counts as this one.
    Unknown,
}

impl ContentHash {
    /// The hexadecimal digits.
    pub fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitBlob(digits) => digits,
            Self::Unknown => "",
        }
    }

    /// The hash with these digits. LFS pointers have the name of the algorithm before them.
    fn of(digits: &str) -> Self {
        let digits = digits.strip_prefix("sha256:").unwrap_or(digits);
        match digits.len() {
            64 if is_hex(digits, 64) => Self::Sha256(digits.to_owned()),
            40 if is_hex(digits, 40) => Self::GitBlob(digits.to_owned()),
            _ => Self::Unknown,
        }
    }
}

impl Snapshot {
    /// The commit that a revision is now, and its files.
    ///
    /// # Errors
    /// A repository or revision that does not exist, no access, no network; listings that no repository can have.
    pub fn of(client: &HubClient, reference: &Reference) -> Result<Self> {
        let commit = commit_of(client, reference)?;
        let place = pinned(&reference.repository, &commit);
        let mut url = repository_url(client, &reference.repository, &["tree", &commit]);
        url.set_query(Some("recursive=true"));
        let mut listing = Listing::default();
        loop {
            let (page, headers) = client.json(&place, &HubRequest::get(url.clone()))?;
            let is_empty = listing.add_page(&place, &page)?;
            match next_page(&headers, &url) {
                None => break,
                // The token goes along, and must not be sent to where a listing points.
                Some(next) if client.is_own(&next) && next != url && !is_empty => url = next,
                Some(_) => return Err(HubAnswerError::NextPageElsewhere { place }.into()),
            }
        }
        let mut snapshot = Self {
            repository: reference.repository.clone(),
            commit,
            files: listing.files,
        };
        snapshot.ask_hashes(client)?;
        Ok(snapshot)
    }

    /// Asks for the tags of files whose hash the listing does not tell.
    fn ask_hashes(&mut self, client: &HubClient) -> Result<()> {
        let unknown = self
            .files
            .iter()
            .filter(|(_, entry)| entry.hash == ContentHash::Unknown);
        let unknown: Vec<String> = unknown.map(|(path, _)| path.clone()).collect();
        if unknown.len() > MOST_ASKED {
            return Err(HubAnswerError::NoHashes {
                place: self.place(),
                count: unknown.len(),
            }
            .into());
        }
        let hashes = Mutex::new(Vec::new());
        each(&unknown, WORKERS, |path| {
            let tag = match client.etag(
                &format!("{}: {path}", self.place()),
                self.address(client, path),
            ) {
                Ok(tag) => tag.unwrap_or_default(),
                Err(error) => {
                    return match error.hub_fault() {
                        Some(HubFault::Network | HubFault::RateLimited) => Err(error),
                        // Only a file that is wanted must have one.
                        _ => Ok(()),
                    };
                }
            };
            hashes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((path.clone(), ContentHash::of(&tag)));
            Ok(())
        })?;
        for (path, hash) in hashes.into_inner().unwrap_or_else(PoisonError::into_inner) {
            if let Some(entry) = self.files.get_mut(&path) {
                entry.hash = hash;
            }
        }
        Ok(())
    }

    /// Where the bytes of a file are asked for.
    pub(super) fn address(&self, client: &HubClient, path: &str) -> Url {
        let repository = self.repository.split('/');
        let parts: Vec<&str> = repository
            .chain(["resolve", &self.commit])
            .chain(path.split('/'))
            .collect();
        client.url(&parts)
    }

    /// How errors and people name it.
    pub fn place(&self) -> String {
        pinned(&self.repository, &self.commit)
    }
}

/// The files of a commit as pages list them.
#[derive(Default)]
pub(super) struct Listing {
    files: BTreeMap<String, FileEntry>,
    folders: usize,
    pages: usize,
    bytes: u64,
}

impl Listing {
    /// Takes a page; returns whether it is empty.
    pub(super) fn add_page(&mut self, place: &str, page: &Value) -> Result<bool> {
        let at = || place.to_owned();
        let Value::Array(entries) = page else {
            return Err(HubAnswerError::NotAListing { place: at() }.into());
        };
        self.pages += 1;
        if self.pages > MOST_PAGES {
            return Err(HubAnswerError::ManyPages {
                place: at(),
                limit: MOST_PAGES,
            }
            .into());
        }
        for entry in entries {
            let Some((path, entry)) = read_entry(place, entry)? else {
                self.folders += 1;
                continue;
            };
            let bytes = self.bytes.checked_add(entry.size);
            self.bytes = bytes
                .filter(|bytes| *bytes <= i64::MAX as u64)
                .ok_or_else(|| HubAnswerError::LargeSizes { place: at() })?;
            if self.files.insert(path.clone(), entry).is_some() {
                return Err(HubAnswerError::RepeatedPath { place: at(), path }.into());
            }
        }
        // There is no folder without a file in it, but each file can be in one of its own.
        if self.files.len() > MOST_FILES || self.folders > MOST_FILES {
            return Err(HubAnswerError::ManyFiles {
                place: at(),
                limit: MOST_FILES,
            }
            .into());
        }
        Ok(entries.is_empty())
    }
}

/// An address of the API about a repository. The name of a dataset's repository begins with its kind.
pub(super) fn repository_url(client: &HubClient, repository: &str, rest: &[&str]) -> Url {
    let kind = (!repository.starts_with(DATASETS)).then_some("models");
    let parts: Vec<&str> = ["api"]
        .into_iter()
        .chain(kind)
        .chain(repository.split('/'))
        .chain(rest.iter().copied())
        .collect();
    client.url(&parts)
}

/// The commit that a revision is now.
pub(super) fn commit_of(client: &HubClient, reference: &Reference) -> Result<String> {
    let place = reference.to_string();
    let url = repository_url(
        client,
        &reference.repository,
        &["revision", reference.revision()],
    );
    let answer = match client.json(&place, &HubRequest::get(url)) {
        Ok((answer, _)) => answer,
        // Not every Hub says which of the two is missing.
        Err(error)
            if error.hub_fault() == Some(HubFault::NoRepository)
                && reference.revision() != MAIN =>
        {
            let main = Reference {
                revision: None,
                ..reference.clone()
            };
            return Err(match commit_of(client, &main) {
                Ok(_) => no_revision(place),
                Err(_) => error,
            });
        }
        Err(error) => return Err(error),
    };
    match answer.get("sha").and_then(Value::as_str) {
        Some(commit) if is_commit(commit) => Ok(commit.to_owned()),
        _ => Err(HubAnswerError::NoCommitOfRevision { place }.into()),
    }
}

fn no_revision(place: String) -> Error {
    HubError::Refused {
        place,
        fault: HubFault::NoRevision,
        answer: None,
        step: HubStep::Other,
    }
    .into()
}

/// One entry of a listing; `None` for a folder.
fn read_entry(place: &str, entry: &Value) -> Result<Option<(String, FileEntry)>> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let path = text(entry, "path").unwrap_or_default();
    let at = || place.to_owned();
    if !is_path(&path) {
        let shown = printable(&path.chars().take(100).collect::<String>());
        return Err(HubAnswerError::UnsafePath {
            place: at(),
            path: shown,
        }
        .into());
    }
    match entry.get("type").and_then(Value::as_str) {
        Some("directory") => return Ok(None),
        Some("file") => {}
        _ => return Err(HubAnswerError::UnknownEntry { place: at(), path }.into()),
    }
    let large = entry.get("lfs").filter(|lfs| !lfs.is_null());
    let size = large.unwrap_or(entry).get("size").and_then(Value::as_u64);
    let size = size.filter(|size| *size <= i64::MAX as u64);
    // Hubs that are not built on git tell the SHA-256 of small files too.
    let digits = match large {
        Some(lfs) => text(lfs, "oid").or_else(|| text(lfs, "sha256")),
        None => text(entry, "oid"),
    };
    let Some(size) = size else {
        return Err(HubAnswerError::NoSize { place: at(), path }.into());
    };
    let hash = match ContentHash::of(&digits.unwrap_or_default()) {
        // It is the hash of the pointer file, not of the content.
        ContentHash::GitBlob(_) if large.is_some() => ContentHash::Unknown,
        hash => hash,
    };
    let xet = text(entry, "xetHash").filter(|hash| is_hex(hash, 64));
    Ok(Some((path, FileEntry { size, hash, xet })))
}

/// Whether a path stays inside the folder that it is put in.
pub(super) fn is_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 1024
        && !path.contains(['\\', '\0'])
        && !path.chars().any(char::is_control)
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Whether it is the id of a commit, of git with SHA-1 or with SHA-256.
pub(super) fn is_commit(text: &str) -> bool {
    is_hex(text, 40) || is_hex(text, 64)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The `rel="next"` of a `Link` header. A proxy can make a Hub name itself by another address than we use. The next
/// page of the same listing is asked for at the address of the page before it.
pub(super) fn next_page(headers: &HeaderMap, url: &Url) -> Option<Url> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let link = links
        .split(',')
        .find(|link| link.contains("rel=\"next\""))?;
    let next = url.join(link.split_once('<')?.1.split_once('>')?.0).ok()?;
    if !url.path().ends_with(next.path()) && !next.path().ends_with(url.path()) {
        return Some(next);
    }
    let mut own = url.clone();
    own.set_query(next.query());
    Some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_outside_are_told() {
        for path in ["a", "a/b.safetensors", "a..b", ".gitattributes"] {
            assert!(is_path(path), "{path}");
        }
        for path in [
            "", "/a", "a/", "../a", "a/../b", "./a", "a//b", "a\\b", "a\nb",
        ] {
            assert!(!is_path(path), "{path}");
        }
    }
}
