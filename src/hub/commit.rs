//! The commit of a push: how the Hub wants each file, the one request that makes the commit, and what to do if its
//! answer was lost.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, Url};
use serde_json::{Value, json};

use super::answer::{Answer, parse};
use super::answer_error::HubAnswerError;
use super::client::HubClient;
use super::error::{HubFault, HubStep};
use super::http::HubRequest;
use super::outgoing::Outgoing;
use super::retry::RetryPolicy;
use super::tree::{Snapshot, is_commit, repository_url};
use crate::Result;
use crate::checkpoint::reference::Reference;

/// Files that may be asked about at once.
const GROUP: usize = 256;
/// Bytes that a commit itself may hold; the Hub takes large files otherwise.
const LARGEST_INLINE: u64 = 48 << 20;

/// Pull requests that may be opened while one is made; each is looked into for its files.
const MOST_OPENED: usize = 100;

/// What a push changes: a branch, or a pull request that is made of it.
pub(super) struct Target {
    /// Repository and branch.
    pub reference: Reference,
    /// Whether a pull request is opened.
    pub create_pr: bool,
}

/// What the Hub says of a file before it is sent.
pub(super) struct Mode {
    /// Whether it goes up on its own, and not in the commit.
    pub large: bool,
    /// Whether the repository's `.gitignore` leaves it out.
    pub ignored: bool,
}

/// What a commit changes.
pub(super) struct Changes<'a> {
    /// Files that it holds itself.
    pub small: Vec<&'a Outgoing>,
    /// Files that are there already.
    pub large: Vec<&'a Outgoing>,
    /// Paths that go.
    pub removed: Vec<&'a str>,
}

/// A commit that is there.
pub(super) struct Committed {
    pub commit: String,
    pub url: String,
    pub pull_request: Option<String>,
}

impl Target {
    /// An address of the API about the revision.
    pub(super) fn url(&self, client: &HubClient, what: &str) -> Url {
        let mut url = repository_url(
            client,
            &self.reference.repository,
            &[what, self.reference.revision()],
        );
        if self.create_pr {
            url.set_query(Some("create_pr=1"));
        }
        url
    }

    /// How errors name it.
    pub(super) fn place(&self) -> String {
        self.reference.to_string()
    }

    /// Asks how each file is to be sent, in order.
    pub(super) fn modes(&self, client: &HubClient, files: &[Outgoing]) -> Result<Vec<Mode>> {
        let mut modes = Vec::with_capacity(files.len());
        for group in files.chunks(GROUP) {
            let asked: Vec<Value> = group
                .iter()
                .map(|file| {
                    Ok(json!({"path": file.path, "size": file.size, "sample": STANDARD.encode(file.sample()?)}))
                })
                .collect::<Result<_>>()?;
            let request = HubRequest::post(self.url(client, "preupload"), &json!({"files": asked}));
            let (answer, _) = client
                .json(&self.place(), &request)
                .map_err(|error| error.during(HubStep::Preupload))?;
            let told = answer
                .get("files")
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            let told: BTreeMap<&str, &Value> = told
                .filter_map(|mode| Some((mode.get("path")?.as_str()?, mode)))
                .collect();
            for file in group {
                let mode = told
                    .get(file.path.as_str())
                    .and_then(|mode| read_mode(mode));
                modes.push(mode.ok_or_else(|| HubAnswerError::NoUploadMode {
                    place: self.place(),
                    path: file.path.clone(),
                })?);
            }
        }
        Ok(modes)
    }

    /// Commits changes on top of `parent`.
    ///
    /// # Errors
    /// Somebody else's commit meanwhile; what the Hub refuses.
    pub(super) fn commit(
        &self,
        client: &HubClient,
        parent: &Snapshot,
        message: &str,
        changes: &Changes,
    ) -> Result<Committed> {
        let request = HubRequest {
            method: Method::POST,
            body: Some((
                "application/x-ndjson",
                lines(&self.place(), &parent.commit, message, changes)?,
            )),
            // Made twice it could be two commits.
            repeat: false,
            slow: true,
            ..HubRequest::get(self.url(client, "commit"))
        };
        let pulls = if self.create_pr {
            self.pull_requests(client)?
        } else {
            BTreeMap::new()
        };
        let step = if self.create_pr {
            HubStep::PullRequest
        } else {
            HubStep::Commit
        };
        let mut retries = RetryPolicy::new();
        let mut may_repeat = true;
        loop {
            let mut failure = match client
                .attempt(&self.place(), &request)
                .and_then(Answer::read)
            {
                Ok((body, _)) => {
                    return self.read(client, &body, || self.find(client, parent, &pulls, changes));
                }
                Err(failure) => failure,
            };
            failure.error = failure.error.during(step);

            match failure.error.hub_fault() {
                // Nothing was done.
                Some(HubFault::RateLimited) => retries.wait(failure)?,
                // Nobody knows whether it was done; a conflict may be one with our own first attempt.
                Some(fault @ (HubFault::Network | HubFault::Conflict)) => {
                    if let Some(done) = self.find(client, parent, &pulls, changes)? {
                        return Ok(done);
                    }
                    if fault == HubFault::Conflict || !may_repeat {
                        return Err(failure.error);
                    }
                    may_repeat = false;
                    retries.wait(failure)?;
                }
                _ => return Err(failure.error),
            }
        }
    }

    /// What an answer of success says; `found` looks for the commit where it names none.
    pub(super) fn read(
        &self,
        client: &HubClient,
        body: &[u8],
        found: impl FnOnce() -> Result<Option<Committed>>,
    ) -> Result<Committed> {
        let answer = parse(body).unwrap_or_default();
        let text = |key: &str| answer.get(key).and_then(Value::as_str);
        let Some(commit) = text("commitOid").filter(|commit| is_commit(commit)) else {
            let missing = || HubAnswerError::NoCommit {
                place: self.place(),
            };
            return Ok(found()?.ok_or_else(missing)?);
        };
        let pull_request = text("pullRequestUrl").map(|url| client.shown(url));
        Ok(Committed {
            commit: commit.to_owned(),
            url: self.page(client, commit),
            pull_request,
        })
    }

    /// The page of a commit.
    fn page(&self, client: &HubClient, commit: &str) -> String {
        let parts: Vec<&str> = self
            .reference
            .repository
            .split('/')
            .chain(["commit", commit])
            .collect();
        client.url(&parts).to_string()
    }

    /// The commit with these files that an attempt has made whose answer was lost.
    fn find(
        &self,
        client: &HubClient,
        parent: &Snapshot,
        pulls: &BTreeMap<String, String>,
        changes: &Changes,
    ) -> Result<Option<Committed>> {
        let has_all = |snapshot: &Snapshot| -> Result<bool> {
            for file in changes.small.iter().chain(&changes.large) {
                match snapshot.files.get(&file.path) {
                    Some(entry) if file.is(entry)? => {}
                    _ => return Ok(false),
                }
            }
            let removed = changes
                .removed
                .iter()
                .all(|path| !snapshot.files.contains_key(*path));
            Ok(removed && snapshot.commit != parent.commit)
        };
        let revisions: Vec<String> = if self.create_pr {
            let opened = self.pull_requests(client)?.into_keys();
            opened.filter(|name| !pulls.contains_key(name)).collect()
        } else {
            vec![self.reference.revision().to_owned()]
        };
        if revisions.len() > MOST_OPENED {
            return Err(HubAnswerError::ManyPullRequests {
                place: self.place(),
                limit: MOST_OPENED,
                found: revisions.len(),
            }
            .into());
        }
        for revision in revisions {
            let reference = Reference {
                revision: Some(revision),
                ..self.reference.clone()
            };
            let snapshot = Snapshot::of(client, &reference)?;
            if has_all(&snapshot)? {
                let number = reference.revision().strip_prefix("refs/pr/");
                let pull_request = number.map(|number| {
                    let parts = self
                        .reference
                        .repository
                        .split('/')
                        .chain(["discussions", number]);
                    client.url(&parts.collect::<Vec<_>>()).to_string()
                });
                let url = self.page(client, &snapshot.commit);
                return Ok(Some(Committed {
                    commit: snapshot.commit,
                    url,
                    pull_request,
                }));
            }
        }
        Ok(None)
    }

    /// The pull requests, by their full names, and the commit that each is at.
    fn pull_requests(&self, client: &HubClient) -> Result<BTreeMap<String, String>> {
        let mut url = repository_url(client, &self.reference.repository, &["refs"]);
        url.set_query(Some("include_prs=1"));
        let (answer, _) = client.json(&self.place(), &HubRequest::get(url))?;
        let listed = answer
            .get("pullRequests")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let text = |entry: &Value, key: &str| Some(entry.get(key)?.as_str()?.to_owned());
        Ok(listed
            .filter_map(|entry| Some((text(entry, "ref")?, text(entry, "targetCommit")?)))
            .collect())
    }
}

pub(super) fn read_mode(mode: &Value) -> Option<Mode> {
    let large = match mode.get("uploadMode")?.as_str()? {
        "lfs" => true,
        "regular" => false,
        _ => return None,
    };
    Some(Mode {
        large,
        ignored: mode
            .get("shouldIgnore")
            .and_then(Value::as_bool)
            .unwrap_or(false),
    })
}

/// The body of the commit: a line of JSON each for what it is, and for each file.
fn lines(place: &str, parent: &str, message: &str, changes: &Changes) -> Result<Vec<u8>> {
    let total: u64 = changes.small.iter().map(|file| file.size).sum();
    if total > LARGEST_INLINE {
        return Err(HubAnswerError::LargeCommit {
            place: place.to_owned(),
            limit: LARGEST_INLINE,
            found: total,
        }
        .into());
    }
    let (summary, description) = message.split_once('\n').unwrap_or((message, ""));
    let header = json!({"key": "header", "value": {
        "summary": summary.trim(), "description": description.trim(), "parentCommit": parent,
    }});
    let mut body = header.to_string().into_bytes();
    let mut add = |line: Value| {
        body.push(b'\n');
        body.extend_from_slice(line.to_string().as_bytes());
    };
    for file in &changes.small {
        let content = STANDARD.encode(file.bytes()?);
        add(
            json!({"key": "file", "value": {"path": file.path, "content": content, "encoding": "base64"}}),
        );
    }
    for file in &changes.large {
        add(
            json!({"key": "lfsFile", "value": {"path": file.path, "algo": "sha256", "oid": file.sha256, "size": file.size}}),
        );
    }
    for path in &changes.removed {
        add(json!({"key": "deletedFile", "value": {"path": path}}));
    }
    Ok(body)
}
