//! A piece of a file as the body of a request: read as it goes out, and watched.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream;
use reqwest::header::{CONTENT_LENGTH, HeaderMap};
use reqwest::{Body, Method, Response, Url};

use super::answer::{Answer, unanswered};
use super::client::HubClient;
use super::error::HubError;
use super::outgoing::Content;
use super::request_error::HubRequestError;
use super::retry::Failure;
use crate::checkpoint::source_file::ReadAt;
use crate::{Error, Result};

/// Bytes that are read at once; with those in the system's buffers, what a connection holds.
const READ: u64 = 256 << 10;
/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How many times as long a server may be silent once it has all bytes: it puts them where they belong.
const ANSWER: u32 = 6;

/// Bytes of a file from `start` on.
pub(super) struct Piece<'a> {
    pub content: &'a Content,
    pub start: u64,
    pub length: u64,
    /// The meter of the file.
    pub meter: &'a Meter<'a>,
}

/// How much of a file has gone out, which is at most its size, however often its bytes are sent.
pub(super) struct Meter<'a> {
    size: u64,
    sent: AtomicU64,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl<'a> Meter<'a> {
    /// Of a file of so many bytes, none of which has gone out.
    pub(super) fn new(size: u64, progress: &'a (dyn Fn(u64) + Sync)) -> Self {
        Self {
            size,
            sent: AtomicU64::new(0),
            progress,
        }
    }

    /// More bytes have gone out.
    pub(super) fn add(&self, bytes: u64) {
        let more = |sent: u64| Some(sent.saturating_add(bytes).min(self.size));
        // Never refused: there is always a next value.
        let sent = self
            .sent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .unwrap_or(self.size);
        (self.progress)(sent.saturating_add(bytes).min(self.size) - sent);
    }
}

impl HubClient {
    /// `PUT`s the piece; the headers of the answer.
    pub(super) fn put(
        &self,
        place: &str,
        url: &Url,
        headers: HeaderMap,
        piece: &Piece,
    ) -> Result<HeaderMap, Failure> {
        let sent = Arc::new(AtomicU64::new(0));
        let request = self
            .uploads()
            .put(url.clone())
            .headers(headers)
            .header(CONTENT_LENGTH, piece.length);
        let request = request.body(body(piece, sent.clone()));
        let response = self.block_on(async {
            watched(place, request, piece, &sent, self.settings.transfer_timeout).await
        });
        let answer = Answer::of(self, place, &Method::PUT, url.clone(), response?)?;
        let headers = answer.response.headers().clone();
        // The connection can be used again once the body is read.
        answer.read().map(|_| headers)
    }
}

/// The bytes as a stream. Reading blocks a thread of the runtime for as long as a disk takes for one read.
fn body(piece: &Piece, sent: Arc<AtomicU64>) -> Body {
    let (content, end) = (piece.content.clone(), piece.start + piece.length);
    let starts = (piece.start..end).step_by(READ as usize);
    let reads = starts.map(move |start| {
        let mut bytes = vec![0; (end - start).min(READ) as usize];
        content.read_exact_at(&mut bytes, start)?;
        sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok::<_, Error>(bytes)
    });
    Body::wrap_stream(stream::iter(reads))
}

/// Waits for the answer, as long as bytes go out.
async fn watched(
    place: &str,
    request: reqwest::RequestBuilder,
    piece: &Piece<'_>,
    sent: &AtomicU64,
    stall: Duration,
) -> Result<Response, Failure> {
    let mut response = pin!(request.send());
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let found = tokio::time::timeout(LOOK, &mut response).await;
        let now = sent.load(Ordering::Relaxed);
        piece.meter.add(now - last);
        if let Ok(found) = found {
            return found.map_err(|error| failure(place, error));
        }
        if now > last {
            since = Instant::now();
        }
        last = now;
        let limit = if now == piece.length {
            stall * ANSWER
        } else {
            stall
        };
        if since.elapsed() > limit {
            return Err(Failure::passing(HubError::StalledUpload {
                place: place.to_owned(),
                sent: now,
                length: piece.length,
            }));
        }
    }
}

/// What made a request fail: a file that could not be read, or the connection.
fn failure(place: &str, error: reqwest::Error) -> Failure {
    let mut inner: Option<&dyn std::error::Error> = Some(&error);
    while let Some(cause) = inner {
        if let Some(own) = cause.downcast_ref::<Error>() {
            return Failure::lasting(HubRequestError::Unreadable {
                problem: own.to_string(),
                hint: own.hint().map(|hint| hint.into_owned()),
            });
        }
        inner = cause.source();
    }
    unanswered(place, error)
}
