//! Files out: `resolve` on the Hub, and large files from the CDN, in whole and in ranges.

use std::ops::Range;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{OriginalUri, Path, State};
use axum::http::header::{
    ACCEPT_RANGES, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE,
    LOCATION,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::{get, put};

use crate::access::Caller;
use crate::refusal::{Answer, Refusal};
use crate::repository::Content;
use crate::server::{Hub, lock};
use crate::store::{Object, failed};
use crate::{Listener, lfs};

const COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");

/// `/{namespace}/{name}/resolve/{revision}/{path}`.
pub(crate) async fn resolve(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, revision, path)): Path<(String, String, String, String)>,
    OriginalUri(uri): OriginalUri,
    method: Method,
    headers: HeaderMap,
) -> Answer {
    let id = format!("{namespace}/{name}");
    let (commit, entry) = {
        let mut repositories = lock(&hub.repositories);
        let repository = caller.sees(repositories.get_mut(&id))?;
        caller.reads(repository)?;
        let commit = repository.revision(&revision)?;
        let entry = commit
            .files
            .get(&path)
            .cloned()
            .ok_or_else(|| Refusal::entry(&path, &commit.id))?;
        (commit.id.clone(), entry)
    };
    let etag = format!("\"{}\"", entry.sha256().unwrap_or(&entry.oid));
    let told = [
        (COMMIT, commit.clone()),
        (LINKED_ETAG, etag.clone()),
        (LINKED_SIZE, entry.size.to_string()),
    ];
    let redirect = |status, location: String, more: Vec<(HeaderName, String)>| {
        let told = told.into_iter().chain(more).chain([(LOCATION, location)]);
        (status, headers_of(told), "Redirecting").into_response()
    };
    match &entry.content {
        Content::Regular(_) if hub.options.resolve_cache && !uri.path().starts_with("/api/") => {
            let raw = uri.path().splitn(6, '/').last().unwrap_or_default();
            let location = format!(
                "/api/resolve-cache/models/{id}/{commit}/{raw}?etag=%22{}%22",
                entry.oid
            );
            Ok(redirect(StatusCode::TEMPORARY_REDIRECT, location, vec![]))
        }
        Content::Regular(bytes) => {
            let mut response =
                serve(&method, &headers, &Object::Memory(bytes.clone()), &etag).await?;
            response.headers_mut().extend(headers_of([
                (COMMIT, commit),
                (CONTENT_TYPE, "text/plain; charset=utf-8".into()),
            ]));
            Ok(response)
        }
        Content::Large(sha256) => {
            let links = hub
                .xet
                .as_ref()
                .and_then(|xet| xet.links(&hub.url, &id, &commit, sha256))
                .map(Vec::from);
            Ok(redirect(
                StatusCode::FOUND,
                hub.sign(Listener::Cdn, &format!("/objects/{sha256}")),
                links.unwrap_or_default(),
            ))
        }
    }
}

fn headers_of(pairs: impl IntoIterator<Item = (HeaderName, String)>) -> HeaderMap {
    let pairs = pairs.into_iter();
    pairs
        .filter_map(|(name, value)| Some((name, HeaderValue::from_str(&value).ok()?)))
        .collect()
}

/// The routes of the CDN's origin.
pub(crate) fn cdn(hub: Arc<Hub>) -> Router {
    Router::new()
        .route("/objects/{sha256}", get(download))
        .route("/upload/{sha256}", put(lfs::upload))
        .route("/parts/{upload}/{part}", put(lfs::part))
        .with_state(hub)
}

async fn download(
    State(hub): State<Arc<Hub>>,
    Path(sha256): Path<String>,
    uri: Uri,
    method: Method,
    headers: HeaderMap,
) -> Answer {
    signed(&hub, Listener::Cdn, &uri, &headers)?;
    let object = hub
        .object(&sha256)
        .await
        .ok_or_else(|| Refusal::new(404, "NoSuchKey"))?;
    serve(&method, &headers, &object, &format!("\"{sha256}\"")).await
}

/// Refuses URLs that were not signed or have expired. The CDN also refuses a token beside the signature, as real storage does.
pub(crate) fn signed(hub: &Hub, listener: Listener, uri: &Uri, headers: &HeaderMap) -> Answer<()> {
    if listener == Listener::Cdn && headers.contains_key(AUTHORIZATION) {
        return Err(Refusal::new(
            400,
            "InvalidArgument: only one authorization mechanism is allowed",
        ));
    }
    match hub
        .signatures
        .verify(listener, uri.path(), uri.query().unwrap_or_default())
    {
        true => Ok(()),
        false => Err(Refusal::new(403, "AccessDenied: the request has expired")),
    }
}

/// An object, or the part of it that `Range` asks for.
async fn serve(method: &Method, headers: &HeaderMap, object: &Object, etag: &str) -> Answer {
    let size = object.len();
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let asked = text(header::RANGE).filter(|_| text(IF_RANGE).is_none_or(|known| known == etag));
    let (status, range) = match asked.and_then(|range| parse(range, size)) {
        None => (StatusCode::OK, 0..size),
        Some(Some(range)) => (StatusCode::PARTIAL_CONTENT, range),
        Some(None) => {
            let told = headers_of([(CONTENT_RANGE, format!("bytes */{size}"))]);
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, told).into_response());
        }
    };
    let mut told = headers_of([
        (ETAG, etag.to_owned()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        (CONTENT_LENGTH, (range.end - range.start).to_string()),
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
    ]);
    if status == StatusCode::PARTIAL_CONTENT {
        told.extend(headers_of([(
            CONTENT_RANGE,
            format!("bytes {}-{}/{size}", range.start, range.end - 1),
        )]));
    }
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        object.body(range).await.map_err(failed)?
    };
    Ok((status, told, body).into_response())
}

/// The bytes that a `Range` header asks for. `None` means a header that is ignored (more than one range); `Some(None)` means that
/// the file does not have these bytes.
fn parse(range: &str, size: u64) -> Option<Option<Range<u64>>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..size.min(last.saturating_add(1)),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(count)) if first.is_empty() => size.saturating_sub(count)..size,
        _ => return None,
    };
    Some((range.start < range.end).then_some(range))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn ranges() {
        assert_eq!(parse("bytes=2-4", 10), Some(Some(2..5)));
        assert_eq!(parse("bytes=2-40", 10), Some(Some(2..10)));
        assert_eq!(parse("bytes=2-", 10), Some(Some(2..10)));
        assert_eq!(parse("bytes=-3", 10), Some(Some(7..10)));
        assert_eq!(parse("bytes=10-", 10), Some(None));
        assert_eq!(parse("bytes=1-2,4-5", 10), None);
        assert_eq!(parse("lines=1-2", 10), None);
    }
}
