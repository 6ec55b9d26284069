//! What is in a repository: information, trees, paths, history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{OriginalUri, Path, Query, State};
use axum::http::header::LINK;
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use crate::access::Caller;
use crate::refusal::{Answer, Refusal};
use crate::repository::{Commit, Entry, hex};
use crate::server::{Hub, lock};

type Id = Path<(String, String)>;
type IdAt = Path<(String, String, String)>;

#[derive(Deserialize)]
pub(crate) struct Detail {
    blobs: Option<String>,
}

pub(crate) async fn info(
    hub: State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name)): Id,
    detail: Query<Detail>,
) -> Answer<Json<Value>> {
    revision(
        hub,
        caller,
        Path((namespace, name, "main".to_owned())),
        detail,
    )
    .await
}

pub(crate) async fn revision(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, revision)): IdAt,
    Query(detail): Query<Detail>,
) -> Answer<Json<Value>> {
    let id = format!("{namespace}/{name}");
    let mut repositories = lock(&hub.repositories);
    let repository = caller.sees(repositories.get_mut(&id))?;
    let commit = repository.revision(&revision)?;
    let blobs = matches!(detail.blobs.as_deref(), Some("true" | "True" | "1"));
    let sibling = |(path, entry): (&String, &Arc<Entry>)| {
        let mut told = json!({"rfilename": path});
        if blobs {
            told["size"] = entry.size.into();
            told["blobId"] = entry.oid.as_str().into();
            if let Some(sha256) = entry.sha256() {
                told["lfs"] = json!({"sha256": sha256, "size": entry.size, "pointerSize": entry.pointer_size()});
            }
        }
        told
    };
    let gated = if repository.gated {
        json!("manual")
    } else {
        json!(false)
    };
    Ok(Json(json!({
        "_id": "000000000000000000000002", "id": id, "modelId": id, "author": namespace, "sha": commit.id, "private": repository.private,
        "gated": gated, "disabled": false, "xetEnabled": hub.xet.is_some(), "downloads": 0, "likes": 0, "tags": [], "lastModified": commit.date, "createdAt": commit.date,
        "siblings": commit.files.iter().map(sibling).collect::<Vec<_>>(),
    })))
}

/// A file as `tree` and `paths-info` tell it.
fn file(hub: &Hub, path: &str, entry: &Entry) -> Value {
    if hub.options.hides_hashes {
        return json!({"path": path, "type": "file", "size": entry.size});
    }
    let mut told = json!({"type": "file", "oid": entry.oid, "size": entry.size, "path": path});
    if let Some(sha256) = entry.sha256() {
        told["lfs"] =
            json!({"oid": sha256, "size": entry.size, "pointerSize": entry.pointer_size()});
        if let Some(hash) = hub.xet.as_ref().and_then(|xet| xet.hash(sha256)) {
            told["xetHash"] = hash.into();
        }
    }
    told
}

fn directory(commit: &Commit, path: &str) -> Value {
    let oid = hex(&Sha1::digest(format!("tree {} {path}", commit.id)));
    json!({"type": "directory", "oid": oid, "size": 0, "path": path})
}

#[derive(Deserialize)]
pub(crate) struct Page {
    recursive: Option<String>,
    limit: Option<usize>,
    cursor: Option<usize>,
}

pub(crate) async fn tree(
    hub: State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, revision)): IdAt,
    uri: OriginalUri,
    page: Query<Page>,
) -> Answer {
    folder(
        hub,
        caller,
        Path((namespace, name, revision, String::new())),
        uri,
        page,
    )
    .await
}

pub(crate) async fn folder(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, revision, folder)): Path<(String, String, String, String)>,
    OriginalUri(uri): OriginalUri,
    Query(page): Query<Page>,
) -> Answer {
    let mut repositories = lock(&hub.repositories);
    let repository = caller.sees(repositories.get_mut(&format!("{namespace}/{name}")))?;
    let commit = repository.revision(&revision)?;
    let recursive = matches!(page.recursive.as_deref(), Some("true" | "True" | "1"));
    let prefix = if folder.is_empty() {
        folder.clone()
    } else {
        format!("{}/", folder.trim_end_matches('/'))
    };
    let mut entries = BTreeMap::new();
    for (path, entry) in &commit.files {
        let Some(below) = path.strip_prefix(&prefix) else {
            continue;
        };
        let folders = below
            .match_indices('/')
            .map(|(at, _)| &path[..prefix.len() + at]);
        for folder in folders.take(if recursive { usize::MAX } else { 1 }) {
            entries
                .entry(folder.to_owned())
                .or_insert_with(|| directory(&commit, folder));
        }
        if recursive || !below.contains('/') {
            entries.insert(path.clone(), file(&hub, path, entry));
        }
    }
    if entries.is_empty() && !folder.is_empty() {
        return Err(Refusal::entry(&folder, &commit.id));
    }
    let (size, first) = (
        page.limit
            .unwrap_or(hub.options.page_size)
            .clamp(1, hub.options.page_size),
        page.cursor.unwrap_or(0),
    );
    let rest = entries.len().saturating_sub(first.saturating_add(size));
    let listed: Vec<Value> = entries.into_values().skip(first).take(size).collect();
    if rest == 0 {
        return Ok(Json(listed).into_response());
    }
    let origin = hub.options.named.as_ref().unwrap_or(&hub.url);
    let next = format!(
        "<{origin}{}?recursive={recursive}&limit={size}&cursor={}>; rel=\"next\"",
        uri.path(),
        first + size
    );
    Ok(([(LINK, next)], Json(listed)).into_response())
}

/// Asked as a form or as JSON.
pub(crate) async fn paths_info(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, revision)): IdAt,
    body: Bytes,
) -> Answer<Json<Value>> {
    let mut repositories = lock(&hub.repositories);
    let repository = caller.sees(repositories.get_mut(&format!("{namespace}/{name}")))?;
    let commit = repository.revision(&revision)?;
    let paths: BTreeSet<String> = match serde_json::from_slice::<Value>(&body) {
        Ok(json) => json["paths"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|path| path.as_str().map(str::to_owned))
            .collect(),
        Err(_) => form(&body)
            .filter(|(key, _)| key == "paths")
            .map(|(_, path)| path)
            .collect(),
    };
    let told = paths
        .iter()
        .filter_map(|path| match commit.files.get(path) {
            Some(entry) => Some(file(&hub, path, entry)),
            None => commit
                .files
                .keys()
                .any(|file| file.starts_with(&format!("{path}/")))
                .then(|| directory(&commit, path)),
        });
    Ok(Json(told.collect()))
}

/// The pairs of a form.
fn form(body: &[u8]) -> impl Iterator<Item = (String, String)> {
    let text = |part: &[u8]| {
        let mut bytes = Vec::new();
        let mut rest = part.iter();
        while let Some(&byte) = rest.next() {
            let mut digit = || {
                rest.next()
                    .and_then(|&digit| char::from(digit).to_digit(16))
                    .unwrap_or(0) as u8
            };
            bytes.push(match byte {
                b'%' => digit() << 4 | digit(),
                b'+' => b' ',
                other => other,
            });
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    body.split(|&byte| byte == b'&').map(move |pair| {
        let at = pair
            .iter()
            .position(|&byte| byte == b'=')
            .unwrap_or(pair.len());
        (
            text(&pair[..at]),
            text(pair.get(at + 1..).unwrap_or_default()),
        )
    })
}

pub(crate) async fn commits(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, revision)): IdAt,
) -> Answer<Json<Value>> {
    let mut repositories = lock(&hub.repositories);
    let repository = caller.sees(repositories.get_mut(&format!("{namespace}/{name}")))?;
    let history = repository.history(repository.revision(&revision)?);
    let told = history.iter().map(|commit| {
        json!({"id": commit.id, "title": commit.title, "message": commit.message, "date": commit.date, "authors": [{"user": "writer"}]})
    });
    Ok(Json(told.collect()))
}
