//! Commits: what should be uploaded how, and the commit itself.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::Caller;
use crate::refusal::{Answer, Refusal};
use crate::repository::{ATTRIBUTES, Changes, Content, Entry, Repository, covers, wants_lfs};
use crate::server::{Hub, lock};

type IdAt = Path<(String, String, String)>;

#[derive(Deserialize)]
pub(crate) struct How {
    create_pr: Option<String>,
}

impl How {
    fn proposes(&self) -> bool {
        matches!(self.create_pr.as_deref(), Some("true" | "True" | "1"))
    }

    /// The repository, for a caller who may write to it or, for a pull request, has an account.
    pub(crate) fn writable<'a>(
        &self,
        caller: Caller,
        repository: Option<&'a mut Repository>,
    ) -> Answer<&'a mut Repository> {
        let repository = caller.sees(repository)?;
        if self.proposes() {
            caller.account()
        } else {
            caller.writer()
        }?;
        Ok(repository)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Announced {
    files: Vec<AnnouncedFile>,
    git_ignore: Option<String>,
}

#[derive(Deserialize)]
struct AnnouncedFile {
    path: String,
    size: u64,
    sample: String,
}

pub(crate) async fn preupload(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, revision)): IdAt,
    Query(how): Query<How>,
    Json(announced): Json<Announced>,
) -> Answer<Json<Value>> {
    if announced.files.len() > 256 {
        return Err(Refusal::new(
            400,
            "\"files\" must contain less than or equal to 256 items",
        ));
    }
    let mut repositories = lock(&hub.repositories);
    let repository = how.writable(caller, repositories.get_mut(&format!("{namespace}/{name}")))?;
    let commit = repository.revision(&revision)?;
    let text = |path: &str| match commit.files.get(path).map(|entry| &entry.content) {
        Some(Content::Regular(bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    };
    let attributes = text(".gitattributes").unwrap_or_else(|| ATTRIBUTES.to_owned());
    let ignore = announced
        .git_ignore
        .or_else(|| text(".gitignore"))
        .unwrap_or_default();
    let mut told = Vec::new();
    for AnnouncedFile { path, size, sample } in &announced.files {
        let sample = STANDARD
            .decode(sample)
            .map_err(|_| Refusal::new(400, format!("\"sample\" of {path} is no base64")))?;
        if sample.len() as u64 != (*size).min(512) {
            return Err(Refusal::new(
                400,
                format!("\"sample\" of {path} is not its first 512 bytes"),
            ));
        }
        let large =
            *size > 0 && (*size >= hub.options.regular_limit || wants_lfs(&attributes, path));
        let ignored = ignore.lines().any(|line| {
            !line.trim().is_empty() && !line.starts_with('#') && covers(line.trim(), path)
        });
        let mut answer = json!({"path": path, "uploadMode": if large { "lfs" } else { "regular" }, "shouldIgnore": ignored});
        if let Some(entry) = commit.files.get(path) {
            answer["oid"] = entry.sha256().unwrap_or(&entry.oid).into();
        }
        told.push(answer);
    }
    Ok(Json(json!({"files": told, "commitOid": commit.id})))
}

/// A line of a commit.
#[derive(Deserialize)]
#[serde(tag = "key", content = "value", rename_all = "camelCase")]
enum Line {
    #[serde(rename_all = "camelCase")]
    Header {
        summary: String,
        #[serde(default)]
        description: String,
        parent_commit: Option<String>,
    },
    File {
        path: String,
        content: String,
        encoding: String,
    },
    LfsFile {
        path: String,
        algo: String,
        oid: String,
        size: u64,
    },
    DeletedFile {
        path: String,
    },
    DeletedFolder {
        path: String,
    },
}

/// Git would refuse these, or a checkout of them be dangerous.
fn checked(path: String) -> Answer<String> {
    let bad = |part: &str| matches!(part, "" | "." | ".." | ".git");
    match path.split('/').any(bad) || path.contains(['\\', '\0']) {
        true => Err(Refusal::new(400, format!("Invalid path in repo: {path}"))),
        false => Ok(path),
    }
}

pub(crate) async fn commit(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, revision)): IdAt,
    Query(how): Query<How>,
    body: Bytes,
) -> Answer<Json<Value>> {
    let id = format!("{namespace}/{name}");
    how.writable(caller, lock(&hub.repositories).get_mut(&id))?;
    let lines = body
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty());
    let mut lines = lines.map(|line| {
        serde_json::from_slice(line)
            .map_err(|error| Refusal::new(400, format!("Invalid commit: {error}")))
    });
    let Some(Line::Header {
        summary,
        description,
        parent_commit,
    }) = lines.next().transpose()?
    else {
        return Err(Refusal::new(
            400,
            "Invalid commit: the first line is no header",
        ));
    };
    if summary.is_empty() {
        return Err(Refusal::new(400, "Invalid commit: the summary is empty"));
    }
    let (mut changes, mut folders) = (Changes::new(), Vec::new());
    for line in lines {
        match line? {
            Line::Header { .. } => {
                return Err(Refusal::new(400, "Invalid commit: a second header"));
            }
            Line::File {
                path,
                content,
                encoding,
            } => {
                let bytes = match encoding.as_str() {
                    "base64" => STANDARD
                        .decode(content)
                        .map_err(|_| Refusal::new(400, format!("{path} is no base64")))?,
                    "utf-8" => content.into_bytes(),
                    _ => {
                        return Err(Refusal::new(
                            400,
                            format!("Unknown encoding of {path}: {encoding}"),
                        ));
                    }
                };
                if bytes.len() as u64 >= hub.options.regular_limit {
                    return Err(Refusal::new(
                        400,
                        format!(
                            "Your push was rejected because {path} is too large: use LFS or Xet"
                        ),
                    ));
                }
                changes.insert(checked(path)?, Some(Entry::regular(bytes.into())));
            }
            Line::LfsFile {
                path,
                algo,
                oid,
                size,
            } => {
                let stored = hub
                    .object(&oid)
                    .await
                    .filter(|object| algo == "sha256" && object.len() == size);
                if stored.is_none() {
                    return Err(Refusal::new(
                        400,
                        format!("LFS pointer of {path} points to a file that does not exist"),
                    ));
                }
                changes.insert(checked(path)?, Some(Entry::large(oid, size)));
            }
            Line::DeletedFile { path } => drop(changes.insert(path, None)),
            Line::DeletedFolder { path } => {
                folders.push(format!("{}/", path.trim_end_matches('/')))
            }
        }
    }
    let mut repositories = lock(&hub.repositories);
    let repository = how.writable(caller, repositories.get_mut(&id))?;
    let reference = repository
        .reference(&revision)
        .filter(|full| !full.starts_with("refs/tags/"));
    let base = repository.revision(&revision)?;
    if parent_commit.is_some_and(|parent| !base.id.starts_with(&parent)) {
        return Err(Refusal::new(
            412,
            "A commit has happened since. Please refresh and try again.",
        ));
    }
    for folder in folders {
        changes.extend(
            base.files
                .keys()
                .filter(|path| path.starts_with(&folder))
                .map(|path| (path.clone(), None)),
        );
    }
    if let Some((path, _)) = changes
        .iter()
        .find(|(path, entry)| entry.is_none() && !base.files.contains_key(*path))
    {
        return Err(Refusal::entry(path, &base.id));
    }
    let number = how
        .proposes()
        .then(|| repository.open(&base, &summary, &description));
    let target = match (number, reference) {
        (Some(number), _) => format!("refs/pr/{number}"),
        (None, Some(full)) => full,
        (None, None) => return Err(Refusal::revision(&revision)),
    };
    let commit = repository.commit(&target, Some(&base), changes, &summary, &description);
    let mut told = json!({"success": true, "commitOid": commit, "commitUrl": format!("{}/{id}/commit/{commit}", hub.url), "hookOutput": ""});
    if let Some(number) = number {
        told["pullRequestUrl"] = format!("{}/{id}/discussions/{number}", hub.url).into();
    }
    Ok(Json(told))
}
