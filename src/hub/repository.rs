//! Making repositories and branches. The answers are bounded, which those of the `hf-hub` library are not.

use serde_json::{Value, json};

use super::http::{Client, Request};
use super::tree::{Snapshot, is_commit, repository_url};
use crate::checkpoint::reference::{MAIN, Reference};
use crate::error::HubFault;
use crate::{Error, Result};

/// Where a push goes to, as it is.
pub(super) struct Head {
    /// The commit and its files; `None` where there is none yet, which only a look leaves so.
    pub snapshot: Option<Snapshot>,
    /// Whether the repository was made, or would be.
    pub new_repository: bool,
}

/// What is to be made where it is missing.
#[derive(Clone, Copy)]
pub(super) struct Wish {
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
    /// A repository that all may see where a private one is wished for; a commit in the place of a branch.
    pub(super) fn find(client: &Client, target: &Reference, wish: Wish) -> Result<Self> {
        if is_commit(target.revision()) {
            return Err(Error::usage(format!(
                "{target}: expected a branch to push to, found a commit"
            ))
            .with_hint("name a branch with --revision"));
        }
        let mut found = Self {
            snapshot: None,
            new_repository: false,
        };
        let error = match Snapshot::of(client, target) {
            Ok(snapshot) => {
                if wish.private {
                    check_private(client, target)?;
                }
                found.snapshot = Some(snapshot);
                return Ok(found);
            }
            Err(error) => error,
        };
        match &error {
            Error::Hub {
                fault: HubFault::NoRepository,
                ..
            } => found.new_repository = true,
            Error::Hub {
                fault: HubFault::NoRevision,
                ..
            } if !wish.as_base => {}
            _ => return Err(error),
        }
        if wish.only_look {
            return Ok(found);
        }
        if found.new_repository {
            create(client, &target.repository, wish.private)?;
        }
        if target.revision() != MAIN && !wish.as_base {
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
pub(super) fn with_owner(client: &Client, target: &Reference) -> Result<Reference> {
    if target.repository.contains('/') {
        return Ok(target.clone());
    }
    let place = target.to_string();
    let (answer, _) = client.json(&place, &Request::get(client.url(&["api", "whoami-v2"])))?;
    let name = answer
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let full = Reference::parse(&format!("{name}/{}", target.repository)).map_err(|_| {
        Error::hub(
            &place,
            HubFault::Answer,
            "expected the name of the token's account, found none in the answer",
        )
    })?;
    Ok(Reference {
        revision: target.revision.clone(),
        ..full
    })
}

fn check_private(client: &Client, target: &Reference) -> Result<()> {
    let url = repository_url(client, &target.repository, &[]);
    let (answer, _) = client.json(&target.to_string(), &Request::get(url))?;
    let visibility = || Some(answer.get("visibility")?.as_str()? == "private");
    match answer
        .get("private")
        .and_then(Value::as_bool)
        .or_else(visibility)
    {
        Some(true) => Ok(()),
        Some(false) => Err(Error::usage(format!(
            "{target}: expected a private repository, found one that all may see"
        ))
        .with_hint("make it private in its settings, or push without --private")),
        None => {
            let problem = "expected to hear whether the repository is private, found neither `private` nor `visibility`";
            Err(Error::hub(target, HubFault::Answer, problem).with_hint(
                "see on its page that nobody else can read it, then push without --private",
            ))
        }
    }
}

fn create(client: &Client, repository: &str, private: bool) -> Result<()> {
    let (owner, name) = repository.split_once('/').unwrap_or(("", repository));
    let mut body = json!({"name": name, "type": "model", "private": private});
    if !owner.is_empty() {
        body["organization"] = json!(owner);
    }
    let request = Request::post(client.url(&["api", "repos", "create"]), &body);
    match client.send(repository, &request) {
        // Somebody else, or an attempt whose answer was lost, has made it.
        Ok(_)
        | Err(Error::Hub {
            fault: HubFault::Conflict,
            ..
        }) => Ok(()),
        Err(
            error @ Error::Hub {
                fault: HubFault::Forbidden,
                ..
            },
        ) => Err(error.with_hint(
            "the token must be one with write access, and its account the owner or a member of it; or push to a repository of your own",
        )),
        Err(error) => Err(error),
    }
}

fn create_branch(client: &Client, target: &Reference, commit: &str) -> Result<()> {
    let url = repository_url(client, &target.repository, &["branch", target.revision()]);
    let request = Request::post(url, &json!({"startingPoint": commit}));
    match client.send(&target.to_string(), &request) {
        // An attempt whose answer was lost has made it.
        Ok(_)
        | Err(Error::Hub {
            fault: HubFault::Conflict,
            ..
        }) => Ok(()),
        Err(
            error @ Error::Hub {
                fault: HubFault::NotOffered,
                ..
            },
        ) => Err(error.with_hint("this Hub cannot make such a branch: try a name without `/`")),
        Err(error) => Err(error),
    }
}
