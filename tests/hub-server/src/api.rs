//! The routes of the Hub's own origin; accounts and repositories.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::response::IntoResponse;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::Caller;
use crate::refusal::{Answer, Refusal};
use crate::repository::Repository;
use crate::server::{Hub, lock};
use crate::{Role, branches, commit, lfs, listing, resolve, xet};

pub(crate) fn router(hub: Arc<Hub>) -> Router {
    // A dataset is a repository of its name, and is only read.
    let dataset = Router::new()
        .route("/revision/{revision}", get(listing::revision))
        .route("/tree/{revision}", get(listing::tree));
    let model = Router::new()
        .route("/revision/{revision}", get(listing::revision))
        .route("/tree/{revision}", get(listing::tree))
        .route("/tree/{revision}/{*folder}", get(listing::folder))
        .route("/paths-info/{revision}", post(listing::paths_info))
        .route("/commits/{revision}", get(listing::commits))
        .route("/refs", get(branches::refs))
        .route(
            "/branch/{name}",
            post(branches::branch).delete(branches::delete_branch),
        )
        .route(
            "/tag/{name}",
            post(branches::tag).delete(branches::delete_tag),
        )
        .route("/discussions", post(branches::open))
        .route("/discussions/{number}", get(branches::details))
        .route("/discussions/{number}/merge", post(branches::merge))
        .route("/xet-read-token/{revision}", get(xet::read_token))
        .route("/xet-write-token/{revision}", get(xet::write_token))
        .route("/preupload/{revision}", post(commit::preupload))
        .route("/commit/{revision}", post(commit::commit));
    Router::new()
        .route("/api/whoami-v2", get(whoami))
        .route("/api/repos/create", post(create))
        .route("/api/repos/delete", delete(remove))
        .route("/api/validate-yaml", post(validate_yaml))
        .route("/api/models/{namespace}/{name}", get(listing::info))
        .nest("/api/models/{namespace}/{name}", model)
        .route(
            "/api/resolve-cache/models/{namespace}/{name}/{revision}/{*path}",
            get(resolve::resolve),
        )
        .nest("/api/datasets/{namespace}/{name}", dataset)
        .route(
            "/{namespace}/{name}/resolve/{revision}/{*path}",
            get(resolve::resolve),
        )
        .route(
            "/datasets/{namespace}/{name}/resolve/{revision}/{*path}",
            get(resolve::resolve),
        )
        .route(
            "/{namespace}/{name}/info/lfs/objects/batch",
            post(lfs::batch),
        )
        .route("/lfs/{sha256}/complete/{upload}", post(lfs::complete))
        .route("/lfs/{sha256}/verify", post(lfs::verify))
        .fallback(async || Refusal::new(404, "Sorry, we can't find the page you are looking for."))
        .layer(DefaultBodyLimit::disable())
        .with_state(hub)
}

async fn whoami(caller: Caller) -> Answer<Json<Value>> {
    let role = caller.account()?;
    let access = if role == Role::Write { "write" } else { "read" };
    Ok(Json(json!({
        "type": "user", "id": "000000000000000000000001", "name": role.name(), "fullname": role.name(), "orgs": [],
        "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": access}},
    })))
}

/// The body of `create` and `delete`, in the spellings of all clients.
#[derive(Deserialize)]
struct Named {
    name: String,
    organization: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    private: Option<bool>,
    visibility: Option<String>,
}

impl Named {
    fn id(&self, role: Role) -> Answer<String> {
        if self.kind.as_deref().is_some_and(|kind| kind != "model") {
            return Err(Refusal::new(400, "This server holds models only"));
        }
        let bad = |part: &str| {
            part.is_empty()
                || !part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let id = match self.name.split_once('/') {
            Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
            None => (
                self.organization
                    .clone()
                    .unwrap_or_else(|| role.name().to_owned()),
                self.name.clone(),
            ),
        };
        if bad(&id.0) || bad(&id.1) || id.1.len() > 96 {
            return Err(Refusal::new(
                400,
                format!("Invalid repo name: {}/{}", id.0, id.1),
            ));
        }
        Ok(format!("{}/{}", id.0, id.1))
    }
}

async fn create(State(hub): State<Arc<Hub>>, caller: Caller, Json(named): Json<Named>) -> Answer {
    let id = named.id(caller.account()?)?;
    caller.writer().map_err(|_| {
        let namespace = id.split('/').next().unwrap_or_default();
        Refusal::new(
            403,
            format!(
                "You don't have the rights to create a model under the namespace \"{namespace}\""
            ),
        )
    })?;
    let url = format!("{}/{id}", hub.url);
    let mut repositories = lock(&hub.repositories);
    if repositories.contains_key(&id) {
        return Ok((
            axum::http::StatusCode::CONFLICT,
            Json(json!({"error": "You already created this model repo", "url": url})),
        )
            .into_response());
    }
    let private = named
        .private
        .unwrap_or(named.visibility.as_deref() == Some("private"));
    repositories.insert(id.clone(), Repository::new(&id, private));
    Ok(Json(json!({"url": url, "name": id, "id": id})).into_response())
}

async fn remove(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Json(named): Json<Named>,
) -> Answer<Json<Value>> {
    let id = named.id(caller.writer()?)?;
    let mut repositories = lock(&hub.repositories);
    caller.sees(repositories.get_mut(&id))?;
    repositories.remove(&id);
    Ok(Json(json!({})))
}

/// The Hub reads the front matter of cards; here all are good that have none or end it.
async fn validate_yaml(Json(card): Json<Value>) -> Answer<Json<Value>> {
    let content = card["content"]
        .as_str()
        .ok_or_else(|| Refusal::new(400, "\"content\" is required"))?;
    if content
        .strip_prefix("---\n")
        .is_some_and(|rest| !rest.contains("\n---"))
    {
        return Err(Refusal::new(
            400,
            "Invalid metadata in README.md: the front matter has no end",
        ));
    }
    Ok(Json(json!({"errors": [], "warnings": []})))
}
