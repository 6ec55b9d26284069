//! Large files in over LFS: the batch on the Hub, uploads in whole and in parts to signed URLs of the CDN's origin.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, Uri};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Listener;
use crate::access::Caller;
use crate::refusal::{Answer, Refusal};
use crate::resolve::signed;
use crate::server::{Hub, lock};
use crate::store::failed;
use crate::xet;

/// Uploads in parts, by number; the parts' hashes by their number.
#[derive(Default)]
pub(crate) struct Uploads {
    count: AtomicU64,
    parts: Mutex<HashMap<u64, BTreeMap<u64, String>>>,
}

#[derive(Deserialize)]
pub(crate) struct Batch {
    operation: String,
    #[serde(default)]
    transfers: Vec<String>,
    objects: Vec<Pointer>,
}

#[derive(Deserialize)]
pub(crate) struct Pointer {
    oid: String,
    size: u64,
}

pub(crate) async fn batch(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name)): Path<(String, String)>,
    Json(batch): Json<Batch>,
) -> Answer {
    let id = format!("{namespace}/{}", name.strip_suffix(".git").unwrap_or(&name));
    let upload = batch.operation == "upload";
    {
        let mut repositories = lock(&hub.repositories);
        let repository = caller.sees(repositories.get_mut(&id))?;
        if upload {
            caller.account().map(drop)
        } else {
            caller.reads(repository)
        }?;
    }
    let offers = hub.options.transfers;
    let both = |name: &str, offered: bool| {
        offered && batch.transfers.iter().any(|transfer| transfer == name)
    };
    let basic = offers.basic && (batch.transfers.is_empty() || both("basic", true));
    let large = batch
        .objects
        .iter()
        .any(|object| object.size > hub.options.part_size);
    let transfer = match () {
        () if !upload => "basic",
        () if both("xet", offers.xet) => "xet",
        () if both("multipart", offers.multipart) && (large || !basic) => "multipart",
        () if basic => "basic",
        () => {
            return Err(Refusal::new(
                422,
                "None of the transfers asked for is offered",
            ));
        }
    };
    let mut told = Vec::new();
    for Pointer { oid, size } in &batch.objects {
        let stored = hub.object(oid).await;
        let mut answer = json!({"oid": oid, "size": size, "authenticated": true});
        match (upload, stored) {
            (true, Some(object)) if object.len() == *size => {}
            (true, _) if transfer == "xet" => answer["actions"] = xet::action(&hub, &id)?,
            (true, _) => {
                answer["actions"] = actions(
                    &hub,
                    oid,
                    *size,
                    transfer == "multipart" && (*size > hub.options.part_size || !basic),
                )
            }
            (false, Some(_)) => {
                let href = hub.sign(Listener::Cdn, &format!("/objects/{oid}"));
                answer["actions"] = json!({"download": {"href": href}});
            }
            (false, None) => {
                answer["error"] =
                    json!({"code": 404, "message": "Object does not exist on the server"})
            }
        }
        told.push(answer);
    }
    let told = json!({"transfer": transfer, "objects": told});
    Ok((
        [(CONTENT_TYPE, "application/vnd.git-lfs+json")],
        told.to_string(),
    )
        .into_response())
}

/// Where an object is to be sent, in parts or not.
fn actions(hub: &Hub, oid: &str, size: u64, parts: bool) -> Value {
    let verify = json!({"href": format!("{}/lfs/{oid}/verify", hub.url), "header": {}});
    if !parts {
        return json!({"upload": {"href": hub.sign(Listener::Cdn, &format!("/upload/{oid}"))}, "verify": verify});
    }
    let upload = hub.uploads.count.fetch_add(1, Ordering::Relaxed) + 1;
    lock(&hub.uploads.parts).insert(upload, BTreeMap::new());
    let mut header = json!({"chunk_size": hub.options.part_size.to_string()});
    for part in 1..=size.div_ceil(hub.options.part_size) {
        header[format!("{part:05}")] = hub
            .sign(Listener::Cdn, &format!("/parts/{upload}/{part}"))
            .into();
    }
    json!({"upload": {"href": hub.sign(Listener::Hub, &format!("/lfs/{oid}/complete/{upload}")), "header": header}, "verify": verify})
}

/// `PUT` of a whole object, on the CDN's origin.
pub(crate) async fn upload(
    State(hub): State<Arc<Hub>>,
    Path(oid): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Answer<()> {
    signed(&hub, Listener::Cdn, &uri, &headers)?;
    let mut receiver = hub.store.receiver();
    receiver.take(body).await?;
    hub.store.finish(Some(&oid), receiver).map(drop)
}

/// `PUT` of a part.
pub(crate) async fn part(
    State(hub): State<Arc<Hub>>,
    Path((upload, part)): Path<(u64, u64)>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    signed(&hub, Listener::Cdn, &uri, &headers)?;
    let mut receiver = hub.store.receiver();
    receiver.take(body).await?;
    let sha256 = hub.store.finish(None, receiver)?;
    let etag = format!("\"{sha256}\"");
    lock(&hub.uploads.parts)
        .get_mut(&upload)
        .ok_or_else(|| Refusal::new(404, "NoSuchUpload"))?
        .insert(part, sha256);
    Ok([(ETAG, etag)].into_response())
}

#[derive(Deserialize)]
pub(crate) struct Completion {
    oid: String,
    parts: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    part_number: u64,
    etag: String,
}

/// Puts the parts of an upload together.
pub(crate) async fn complete(
    State(hub): State<Arc<Hub>>,
    Path((oid, upload)): Path<(String, u64)>,
    uri: Uri,
    headers: HeaderMap,
    Json(completion): Json<Completion>,
) -> Answer<Json<Value>> {
    signed(&hub, Listener::Hub, &uri, &headers)?;
    let held = lock(&hub.uploads.parts)
        .get(&upload)
        .cloned()
        .ok_or_else(|| Refusal::new(404, "NoSuchUpload"))?;
    let named: BTreeMap<u64, String> = completion
        .parts
        .iter()
        .map(|part| (part.part_number, part.etag.trim_matches('"').to_owned()))
        .collect();
    if completion.oid != oid || named != held || !named.keys().copied().eq(1..=held.len() as u64) {
        return Err(Refusal::new(
            400,
            "InvalidPart: the parts named are not those that were uploaded",
        ));
    }
    let mut receiver = hub.store.receiver();
    for sha256 in held.values() {
        let object = hub
            .store
            .get(sha256)
            .ok_or_else(|| Refusal::new(404, "NoSuchKey"))?;
        receiver
            .take(object.body(0..object.len()).await.map_err(failed)?)
            .await?;
    }
    hub.store.finish(Some(&oid), receiver)?;
    lock(&hub.uploads.parts).remove(&upload);
    held.values()
        .filter(|sha256| **sha256 != oid)
        .for_each(|sha256| hub.store.remove(sha256));
    Ok(Json(json!({"success": true})))
}

pub(crate) async fn verify(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path(oid): Path<String>,
    Json(named): Json<Pointer>,
) -> Answer<()> {
    caller.account()?;
    let stored = hub
        .object(&oid)
        .await
        .filter(|object| named.oid == oid && object.len() == named.size);
    stored
        .map(drop)
        .ok_or_else(|| Refusal::new(404, "The object was not uploaded, or has another size"))
}
