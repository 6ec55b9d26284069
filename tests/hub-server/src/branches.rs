//! Names for commits: branches and tags, and pull requests, which are branches with a number.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::Caller;
use crate::refusal::{Answer, Refusal};
use crate::repository::Repository;
use crate::server::{Hub, lock};

type Id = Path<(String, String)>;
type IdAt = Path<(String, String, String)>;
type Numbered = Path<(String, String, usize)>;

#[derive(Deserialize)]
pub(crate) struct Which {
    include_prs: Option<String>,
}

pub(crate) async fn refs(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name)): Id,
    Query(which): Query<Which>,
) -> Answer<Json<Value>> {
    let mut repositories = lock(&hub.repositories);
    let repository = caller.sees(repositories.get_mut(&format!("{namespace}/{name}")))?;
    let mut told = json!({"branches": repository.listed("refs/heads/"), "converts": [], "tags": repository.listed("refs/tags/")});
    if matches!(which.include_prs.as_deref(), Some("true" | "True" | "1")) {
        told["pullRequests"] = repository.listed("refs/pr/").into();
    }
    Ok(Json(told))
}

/// Does `change` to the repository as a caller who may write.
fn change<T>(
    hub: &Hub,
    caller: Caller,
    namespace: &str,
    name: &str,
    change: impl FnOnce(&mut Repository) -> Answer<T>,
) -> Answer<T> {
    let mut repositories = lock(&hub.repositories);
    let repository = caller.sees(repositories.get_mut(&format!("{namespace}/{name}")))?;
    caller.writer()?;
    change(repository)
}

/// Points a new name at a commit.
fn point(repository: &mut Repository, full: String, revision: &str) -> Answer<Json<Value>> {
    let id = repository.revision(revision)?.id.clone();
    if repository.references.contains_key(&full) {
        return Err(Refusal::new(
            409,
            format!("Reference already exists: {full}"),
        ));
    }
    repository.references.insert(full, id);
    Ok(Json(json!({})))
}

fn forget(repository: &mut Repository, full: &str) -> Answer<Json<Value>> {
    match repository.references.remove(full) {
        Some(_) => Ok(Json(json!({}))),
        None => Err(Refusal::revision(full)),
    }
}

/// A body may be absent.
fn field(body: &Bytes, name: &str) -> Option<String> {
    serde_json::from_slice::<Value>(body)
        .ok()?
        .get(name)?
        .as_str()
        .map(str::to_owned)
}

pub(crate) async fn branch(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, branch)): IdAt,
    body: Bytes,
) -> Answer<Json<Value>> {
    let start = field(&body, "startingPoint").unwrap_or_else(|| "main".to_owned());
    change(&hub, caller, &namespace, &name, |repository| {
        point(repository, format!("refs/heads/{branch}"), &start)
    })
}

pub(crate) async fn delete_branch(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, branch)): IdAt,
) -> Answer<Json<Value>> {
    if branch == "main" {
        return Err(Refusal::new(403, "Cannot delete the default branch"));
    }
    change(&hub, caller, &namespace, &name, |repository| {
        forget(repository, &format!("refs/heads/{branch}"))
    })
}

/// The path names the revision, the body the tag.
pub(crate) async fn tag(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, revision)): IdAt,
    body: Bytes,
) -> Answer<Json<Value>> {
    let tag = field(&body, "tag").ok_or_else(|| Refusal::new(400, "\"tag\" is required"))?;
    change(&hub, caller, &namespace, &name, |repository| {
        point(repository, format!("refs/tags/{tag}"), &revision)
    })
}

pub(crate) async fn delete_tag(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, tag)): IdAt,
) -> Answer<Json<Value>> {
    change(&hub, caller, &namespace, &name, |repository| {
        forget(repository, &format!("refs/tags/{tag}"))
    })
}

/// Anyone with an account may propose.
pub(crate) async fn open(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name)): Id,
    body: Bytes,
) -> Answer<Json<Value>> {
    caller.account()?;
    let (title, description) = (
        field(&body, "title").unwrap_or_default(),
        field(&body, "description").unwrap_or_default(),
    );
    let mut repositories = lock(&hub.repositories);
    let repository = caller.sees(repositories.get_mut(&format!("{namespace}/{name}")))?;
    let main = repository.revision("main")?;
    let number = repository.open(&main, &title, &description);
    Ok(Json(
        json!({"num": number, "pullRequest": true, "url": format!("{}/{namespace}/{name}/discussions/{number}", hub.url)}),
    ))
}

pub(crate) async fn details(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, number)): Numbered,
) -> Answer<Json<Value>> {
    let mut repositories = lock(&hub.repositories);
    let repository = caller.sees(repositories.get_mut(&format!("{namespace}/{name}")))?;
    let pull = number
        .checked_sub(1)
        .and_then(|place| repository.pulls.get(place));
    let pull = pull.ok_or_else(|| Refusal::new(404, "Discussion not found"))?;
    Ok(Json(json!({
        "num": number, "title": pull.title, "author": {"name": "writer"}, "createdAt": "2026-01-01T00:00:00.000Z", "isPullRequest": true,
        "status": if pull.merged.is_some() { "merged" } else { "open" }, "repo": {"name": format!("{namespace}/{name}"), "type": "model"},
        "changes": {"base": "refs/heads/main", "mergeCommitId": pull.merged}, "filesWithConflicts": [], "diff": "",
        "events": [{"id": "0", "type": "comment", "author": {"name": "writer"}, "createdAt": "2026-01-01T00:00:00.000Z",
            "data": {"edited": false, "hidden": false, "latest": {"raw": pull.description, "html": "", "updatedAt": "2026-01-01T00:00:00.000Z", "author": {"name": "writer"}}}}],
    })))
}

pub(crate) async fn merge(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, number)): Numbered,
) -> Answer<Json<Value>> {
    change(&hub, caller, &namespace, &name, |repository| {
        repository.merge(number)
    })?;
    Ok(Json(json!({})))
}
