//! Making repositories and branches. The answers are bounded, unlike in the `hf-hub` library.

use serde_json::{Value, json};

use super::answer_error::HubAnswerError;
use super::client::HubClient;
use super::error::{HubFault, HubStep};
use super::http::HubRequest;
use super::request_error::HubRequestError;
use super::tree::{Snapshot, is_commit, repository_url};
use crate::Result;
use crate::checkpoint::reference::{MAIN, Reference};

/// Where a push goes to, as it is.
pub(super) struct Head {
    /// The commit and its files; `None` if a dry run found no branch.
    pub snapshot: Option<Snapshot>,
    /// Whether the repository was made, or would be.
    pub new_repository: bool,
}

/// What [`Head::find`] creates where it is missing.
#[derive(Clone, Copy)]
pub(super) struct HeadOptions {
    /// Nobody else may see the repository.
    pub private: bool,
    /// The revision is to be there already, as what a pull request asks to change.
    pub as_base: bool,
    /// Nothing is made.
    pub only_look: bool,
}

impl Head {
    /// Finds the head of a revision; makes the repository and the branch that are missing.
    ///
    /// # Errors
    /// A public repository where a private one is asked for; a commit in place of a branch.
    pub(super) fn find(
        client: &HubClient,
        target: &Reference,
        options: HeadOptions,
    ) -> Result<Self> {
        if is_commit(target.revision()) {
            return Err(HubRequestError::CommitAsBranch {
                place: target.to_string(),
            }
            .into());
        }
        let mut found = Self {
            snapshot: None,
            new_repository: false,
        };
        let error = match Snapshot::of(client, target) {
            Ok(snapshot) => {
                if options.private {
                    check_private(client, target)?;
                }
                found.snapshot = Some(snapshot);
                return Ok(found);
            }
            Err(error) => error,
        };
        match error.hub_fault() {
            Some(HubFault::NoRepository) => found.new_repository = true,
            Some(HubFault::NoRevision) if !options.as_base => {}
            _ => return Err(error),
        }
        if options.only_look {
            return Ok(found);
        }
        if found.new_repository {
            create(client, &target.repository, options.private)?;
        }
        if target.revision() != MAIN && !options.as_base {
            let main = Reference {
                repository: target.repository.clone(),
                revision: None,
            };
            create_branch(client, target, &Snapshot::of(client, &main)?.commit)?;
        }
        found.snapshot = Some(Snapshot::of(client, target)?);
        Ok(found)
    }
}

/// The repository with its owner, who is the token's where none is named.
pub(super) fn with_owner(client: &HubClient, target: &Reference) -> Result<Reference> {
    if target.repository.contains('/') {
        return Ok(target.clone());
    }
    let place = target.to_string();
    let (answer, _) = client.json(&place, &HubRequest::get(client.url(&["api", "whoami-v2"])))?;
    let name = answer
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let full = Reference::parse(&format!("{name}/{}", target.repository))
        .map_err(|_| HubAnswerError::NoAccountName { place })?;
    Ok(Reference {
        revision: target.revision.clone(),
        ..full
    })
}

fn check_private(client: &HubClient, target: &Reference) -> Result<()> {
    let url = repository_url(client, &target.repository, &[]);
    let (answer, _) = client.json(&target.to_string(), &HubRequest::get(url))?;
    let visibility = || Some(answer.get("visibility")?.as_str()? == "private");
    let is_private = answer.get("private").and_then(Value::as_bool);
    let place = target.to_string();
    match is_private.or_else(visibility) {
        Some(true) => Ok(()),
        Some(false) => Err(HubRequestError::PublicRepository { place }.into()),
        None => Err(HubAnswerError::NoVisibility { place }.into()),
    }
}

fn create(client: &HubClient, repository: &str, private: bool) -> Result<()> {
    let (owner, name) = repository.split_once('/').unwrap_or(("", repository));
    let mut body = json!({"name": name, "type": "model", "private": private});
    if !owner.is_empty() {
        body["organization"] = json!(owner);
    }
    let request = HubRequest::post(client.url(&["api", "repos", "create"]), &body);
    allow_conflict(client.send(repository, &request).map(drop))
        .map_err(|error| error.during(HubStep::CreateRepository))
}

fn create_branch(client: &HubClient, target: &Reference, commit: &str) -> Result<()> {
    let url = repository_url(client, &target.repository, &["branch", target.revision()]);
    let request = HubRequest::post(url, &json!({"startingPoint": commit}));
    allow_conflict(client.send(&target.to_string(), &request).map(drop))
        .map_err(|error| error.during(HubStep::CreateBranch))
}

/// A conflict is no error here: somebody else has made it, or an attempt whose answer was lost.
fn allow_conflict(sent: Result<()>) -> Result<()> {
    match sent {
        Err(error) if error.hub_fault() == Some(HubFault::Conflict) => Ok(()),
        sent => sent,
    }
}
