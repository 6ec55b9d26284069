//! What goes wrong on demand, in front of the routes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, RANGE};
use axum::http::{HeaderName, HeaderValue, Request, StatusCode, Version};
use axum::response::Response;
use futures_util::{Stream, StreamExt, stream};
use tower::ServiceExt;

use crate::Listener;
use crate::listener::Cut;
use crate::server::{Hub, lock};

/// A fault: for requests that match, from the match number `after` on (0 is the first), `times` times.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The origin.
    pub listener: Listener,
    /// The method, or nothing for any.
    pub method: &'static str,
    /// A part of the path and query.
    pub target: String,
    /// How many matches pass before it begins.
    pub after: usize,
    /// How many matches it meets.
    pub times: usize,
    /// What happens.
    pub kind: FaultKind,
}

impl Fault {
    /// A fault that the first match meets, once.
    pub fn new(listener: Listener, method: &'static str, target: &str, kind: FaultKind) -> Self {
        Self {
            listener,
            method,
            target: target.to_owned(),
            after: 0,
            times: 1,
            kind,
        }
    }

    /// Lets `count` matches pass first.
    pub fn after(self, count: usize) -> Self {
        Self {
            after: count,
            ..self
        }
    }

    /// Meets `count` matches.
    pub fn times(self, count: usize) -> Self {
        Self {
            times: count,
            ..self
        }
    }

    /// Meets every match.
    pub fn always(self) -> Self {
        self.times(usize::MAX)
    }
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum FaultKind {
    /// The connection is cut after so many bytes of the answer's body.
    CutAfter(u64),
    /// The connection is cut without an answer, after so many bytes of the request's body.
    CutUpload(u64),
    /// Nothing more is read after so many bytes of the request's body, and the connection stays.
    StallUpload(u64),
    /// The request is carried out, and the connection cut without an answer.
    LoseAnswer,
    /// The request is carried out, and this answered.
    Instead(String),
    /// Another answer.
    Status(u16, Vec<(&'static str, String)>, String),
    /// One byte in the middle of the answer is another.
    WrongBytes,
    /// The answer is so many bytes shorter, and says so.
    ShortBody(u64),
    /// The answer is so many bytes longer, and says so.
    LongBody(u64),
    /// The answer has no length, and the end of the connection ends the body, so many bytes early.
    NoContentLength(u64),
    /// The body comes this many bytes at a time, with a pause before each.
    Drip {
        /// Bytes at a time.
        bytes: usize,
        /// The pause.
        every: Duration,
    },
    /// Nothing is ever said.
    Stall,
    /// Nothing comes after so many bytes of the body, and the connection stays.
    StallAfter(u64),
    /// All URLs (CDN) or tokens (CAS) that were given out have expired.
    ExpiredToken,
    /// The request is sent to another URL.
    RedirectTo(String),
    /// The whole file where a range was asked.
    IgnoreRange,
    /// `Content-Range` tells another place than the bytes come from.
    WrongContentRange,
    /// Just before the answer, files are committed to a branch.
    MoveBranch {
        /// `org/name`.
        repository: String,
        /// The branch.
        branch: String,
        /// Paths and contents.
        files: Vec<(String, Vec<u8>)>,
    },
    /// A web page instead of an answer, with status 200.
    NotJson,
    /// A JSON answer of about so many bytes.
    HugeJson(u64),
    /// `ETag` and `X-Linked-Etag` are others.
    ChangedEtag,
}

/// Faults and how many matches each has seen.
pub(crate) type Faults = Vec<(Fault, usize)>;

/// The fault that this request meets.
pub(crate) fn take(hub: &Hub, listener: Listener, method: &str, target: &str) -> Option<FaultKind> {
    let mut taken = None;
    for (fault, seen) in lock(&hub.faults).iter_mut() {
        if fault.listener == listener
            && (fault.method.is_empty() || fault.method == method)
            && target.contains(&fault.target)
        {
            let number = *seen;
            *seen += 1;
            if taken.is_none() && number >= fault.after && number - fault.after < fault.times {
                taken = Some(fault.kind.clone());
            }
        }
    }
    taken
}

/// What the routes answer, and what the fault makes of it.
pub(crate) async fn answer(
    hub: &Arc<Hub>,
    listener: Listener,
    router: Router,
    mut request: Request<Body>,
    fault: Option<FaultKind>,
) -> Result<Response, Cut> {
    match &fault {
        Some(FaultKind::CutUpload(after) | FaultKind::StallUpload(after)) => {
            let (mut left, mut pieces) = (*after, request.into_body().into_data_stream());
            while let (Some(Ok(piece)), true) = (pieces.next().await, left > 0) {
                left = left.saturating_sub(piece.len() as u64);
            }
            if matches!(fault, Some(FaultKind::StallUpload(_))) {
                hub.stalled.fetch_add(1, Ordering::Relaxed);
                std::future::pending().await
            }
            return Err(Cut);
        }
        Some(FaultKind::Stall) => std::future::pending().await,
        Some(FaultKind::Status(code, headers, body)) => {
            return Ok(other(*code, headers, body.clone().into()));
        }
        Some(FaultKind::NotJson) => {
            let page = "<!DOCTYPE html><html><body>Please sign in to this network.</body></html>";
            return Ok(other(
                200,
                &[("content-type", "text/html".to_owned())],
                page.into(),
            ));
        }
        Some(FaultKind::HugeJson(size)) => {
            let pieces =
                std::iter::repeat_n(Bytes::from(vec![b'['; 1 << 16]), (*size >> 16) as usize + 1);
            let body = Body::from_stream(stream::iter(pieces.map(Ok::<_, io::Error>)));
            return Ok(other(
                200,
                &[("content-type", "application/json".to_owned())],
                body,
            ));
        }
        Some(FaultKind::RedirectTo(url)) => {
            return Ok(other(302, &[("location", url.clone())], Body::empty()));
        }
        Some(FaultKind::ExpiredToken) => hub.signatures.revoke(listener),
        Some(FaultKind::IgnoreRange) => drop(request.headers_mut().remove(RANGE)),
        Some(FaultKind::MoveBranch {
            repository,
            branch,
            files,
        }) => {
            let files: Vec<_> = files
                .iter()
                .map(|(path, bytes)| (path.as_str(), &bytes[..]))
                .collect();
            hub.put(repository, branch, &files).await.map_err(|_| Cut)?;
        }
        _ => {}
    }
    // Routes answer always: the error type of a router has no values.
    let response = router
        .oneshot(request)
        .await
        .unwrap_or_else(|never| match never {});
    match fault {
        Some(FaultKind::LoseAnswer) => Err(Cut),
        Some(FaultKind::Instead(body)) => Ok(other(200, &[], body.into())),
        Some(fault) => Ok(spoiled(fault, response)),
        None => Ok(response),
    }
}

fn other(code: u16, headers: &[(&'static str, String)], body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    response
}

type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// The answer with `fault` in it.
fn spoiled(fault: FaultKind, response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    let length = head
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    let length = length
        .or_else(|| axum::body::HttpBody::size_hint(&body).exact())
        .unwrap_or(0);
    let pieces: Pieces = Box::pin(
        body.into_data_stream()
            .map(|piece| piece.map_err(io::Error::other)),
    );
    let pieces = match fault {
        FaultKind::CutAfter(bytes) => {
            head.headers.insert(CONTENT_LENGTH, length.into());
            chained(first(pieces, bytes), async {
                Some(Err(io::Error::other(Cut)))
            })
        }
        FaultKind::StallAfter(bytes) => {
            head.headers.insert(CONTENT_LENGTH, length.into());
            chained(first(pieces, bytes), std::future::pending())
        }
        FaultKind::WrongBytes => flipped(pieces, length / 2),
        FaultKind::ShortBody(missing) => {
            head.headers
                .insert(CONTENT_LENGTH, length.saturating_sub(missing).into());
            first(pieces, length.saturating_sub(missing))
        }
        FaultKind::LongBody(extra) => {
            head.headers.insert(CONTENT_LENGTH, (length + extra).into());
            chained(
                pieces,
                async move { Some(Ok(vec![0; extra as usize].into())) },
            )
        }
        FaultKind::NoContentLength(missing) => {
            head.headers.remove(CONTENT_LENGTH);
            head.version = Version::HTTP_10;
            first(pieces, length.saturating_sub(missing))
        }
        FaultKind::Drip { bytes, every } => {
            let crumbs = pieces.flat_map(move |piece| {
                let crumbs: Vec<io::Result<Bytes>> = match piece {
                    Ok(piece) => piece
                        .chunks(bytes)
                        .map(|crumb| Ok(Bytes::copy_from_slice(crumb)))
                        .collect(),
                    Err(error) => vec![Err(error)],
                };
                stream::iter(crumbs)
            });
            Box::pin(crumbs.then(move |crumb| async move {
                tokio::time::sleep(every).await;
                crumb
            }))
        }
        FaultKind::WrongContentRange => {
            let moved = head
                .headers
                .get(CONTENT_RANGE)
                .and_then(|value| value.to_str().ok())
                .and_then(one_further);
            moved
                .and_then(|value| HeaderValue::from_str(&value).ok())
                .map(|value| head.headers.insert(CONTENT_RANGE, value));
            pieces
        }
        FaultKind::ChangedEtag => {
            for name in [ETAG, HeaderName::from_static("x-linked-etag")] {
                if let Some(value) = head.headers.get_mut(name) {
                    *value =
                        HeaderValue::from_static("\"0123456789abcdef0123456789abcdef01234567\"");
                }
            }
            pieces
        }
        _ => pieces,
    };
    // A body that is streamed has no length of its own.
    if head.version != Version::HTTP_10 && length > 0 && !head.headers.contains_key(CONTENT_LENGTH)
    {
        head.headers.insert(CONTENT_LENGTH, length.into());
    }
    Response::from_parts(head, Body::from_stream(pieces))
}

/// `pieces`, then what `last` yields, a moment later: what came before it is on the wire by then.
fn chained(
    pieces: Pieces,
    last: impl Future<Output = Option<io::Result<Bytes>>> + Send + 'static,
) -> Pieces {
    let last = stream::once(async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        last.await
    });
    Box::pin(pieces.chain(last.filter_map(std::future::ready)))
}

/// The first `bytes` of `pieces`.
fn first(pieces: Pieces, bytes: u64) -> Pieces {
    Box::pin(pieces.scan(bytes, |left, piece| {
        let piece = piece.map(|piece| piece.slice(..piece.len().min(*left as usize)));
        *left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        std::future::ready(match &piece {
            Ok(piece) if piece.is_empty() => None,
            _ => Some(piece),
        })
    }))
}

/// `pieces` with the byte at `place` another.
fn flipped(pieces: Pieces, place: u64) -> Pieces {
    Box::pin(pieces.scan(0, move |passed, piece| {
        let piece = piece.map(|piece| {
            let (start, end) = (*passed, *passed + piece.len() as u64);
            *passed = end;
            if !(start..end).contains(&place) {
                return piece;
            }
            let mut bytes = piece.to_vec();
            bytes[(place - start) as usize] ^= 1;
            bytes.into()
        });
        std::future::ready(Some(piece))
    }))
}

/// `bytes 5-9/20` as `bytes 6-10/20`.
fn one_further(range: &str) -> Option<String> {
    let (first, rest) = range.strip_prefix("bytes ")?.split_once('-')?;
    let (last, size) = rest.split_once('/')?;
    Some(format!(
        "bytes {}-{}/{size}",
        first.parse::<u64>().ok()? + 1,
        last.parse::<u64>().ok()? + 1
    ))
}
