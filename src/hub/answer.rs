//! Answers of the Hub: their bodies, bounded, and what a refusal means.

use std::ops::Deref;
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;

use super::answer_error::HubAnswerError;
use super::client::{HubClient, cause};
use super::error::{ConnectionEvent, HubError, HubFault, HubStep};
use super::retry::Failure;
use crate::Result;
use crate::checkpoint::json;

/// The largest answer that is held in memory.
const LARGEST_ANSWER: usize = 64 << 20;
/// The most of a refusal's text that is read.
const LARGEST_REFUSAL: usize = 16 << 10;
/// The most values that the JSON of an answer holds: each takes some hundred bytes in memory though two of the answer can
/// be enough. Hubs that list 100,000 files in one page use 1.8 million.
const MOST_VALUES: u32 = 2_000_000;
/// How long the body of an answer may take that is held in memory, however steadily it comes.
const LONGEST_BODY: Duration = Duration::from_secs(300);

/// An answer of success.
pub(super) struct Answer<'a> {
    client: &'a HubClient,
    place: String,
    /// Where it came from, redirects followed.
    url: Url,
    pub response: reqwest::Response,
    /// Where in the file the body begins: 0 from a server that knows no ranges.
    pub begins: u64,
}

impl<'a> Answer<'a> {
    /// Of a response whatever its status.
    pub(super) fn new(
        client: &'a HubClient,
        place: &str,
        url: Url,
        response: reqwest::Response,
    ) -> Self {
        Self {
            client,
            place: place.to_owned(),
            url,
            response,
            begins: 0,
        }
    }

    /// Of a response to a request of this method that is no redirect.
    pub(super) fn of(
        client: &'a HubClient,
        place: &str,
        method: &Method,
        url: Url,
        response: reqwest::Response,
    ) -> Result<Self, Failure> {
        let answer = Self::new(client, place, url, response);
        if answer.response.status().is_success() {
            Ok(answer)
        } else {
            Err(answer.refusal(method))
        }
    }

    /// The next piece of the body; `None` at its end.
    pub(super) fn next(&mut self) -> Result<Option<impl Deref<Target = [u8]> + use<>>, Failure> {
        let chunk = self.client.block_on(async { self.response.chunk().await });
        chunk.map_err(|error| {
            Failure::passing(broken(&self.place, ConnectionEvent::BrokeOff, error))
        })
    }

    /// As [`next`](Self::next), for a body that is to be whole at `end`.
    fn next_before(
        &mut self,
        end: Instant,
    ) -> Result<Option<impl Deref<Target = [u8]> + use<>>, Failure> {
        let left = end.saturating_duration_since(Instant::now());
        let client = self.client;
        match client.block_on(async { tokio::time::timeout(left, self.response.chunk()).await }) {
            Ok(chunk) => chunk.map_err(|error| {
                Failure::passing(broken(&self.place, ConnectionEvent::BrokeOff, error))
            }),
            Err(_) => {
                let place = self.place.clone();
                Err(Failure::lasting(HubError::SlowAnswer {
                    place,
                    limit: LONGEST_BODY,
                }))
            }
        }
    }

    /// The whole body, which must not be large.
    pub(super) fn read(mut self) -> Result<(Vec<u8>, HeaderMap), Failure> {
        let end = Instant::now() + LONGEST_BODY;
        let mut bytes = Vec::new();
        while let Some(piece) = self.next_before(end)? {
            if bytes.len() + piece.len() > LARGEST_ANSWER {
                return Err(Failure::lasting(HubAnswerError::LargeAnswer {
                    place: self.place,
                    limit: LARGEST_ANSWER,
                }));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok((bytes, self.response.headers().clone()))
    }

    /// What an answer without success means.
    fn refusal(mut self, method: &Method) -> Failure {
        let status = self.response.status();
        let header = |name: &str| {
            self.response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        let (code, said, wait) = (
            header("x-error-code"),
            header("x-error-message"),
            wait_of(self.response.headers()),
        );
        let end = Instant::now() + LONGEST_BODY;
        let mut body = Vec::new();
        while body.len() < LARGEST_REFUSAL
            && let Ok(Some(piece)) = self.next_before(end)
        {
            body.extend_from_slice(&piece[..piece.len().min(LARGEST_REFUSAL - body.len())]);
        }
        let said = if said.is_empty() { spoken(&body) } else { said };
        let said = self.client.shown(&said);
        let is_own = self.client.is_own(&self.url);
        let has_token = self.client.settings.token.is_some();
        let (fault, who) = if is_own {
            let fault = fault_of(method, status, &code, &said, has_token);
            (fault, "the server")
        } else {
            (fault_of_storage(status), "the storage that the Hub names")
        };
        let error = HubError::Refused {
            place: self.place,
            fault,
            answer: Some(format!("{who} {}", answered(status, &said))),
            step: HubStep::Other,
        };

        // A signed address of a storage expires: asking the Hub again gives a fresh one.
        if matches!(fault, HubFault::Network | HubFault::RateLimited) || !is_own {
            Failure {
                error: error.into(),
                passing: Some(wait),
            }
        } else {
            Failure::lasting(error)
        }
    }
}

/// How errors tell a status and the words that came with it.
fn answered(status: StatusCode, said: &str) -> String {
    if said.is_empty() {
        format!("answered {status}")
    } else {
        format!("answered {status}: {said}")
    }
}

/// What a status, the Hub's own code for it and its words mean of a request of a method.
pub(super) fn fault_of(
    method: &Method,
    status: StatusCode,
    code: &str,
    said: &str,
    has_token: bool,
) -> HubFault {
    let asks = [Method::GET, Method::HEAD].contains(method);
    let said = said.to_lowercase();
    let speaks_of = |words: &[&str]| words.iter().any(|word| said.contains(word));
    match (status.as_u16(), code) {
        (_, "GatedRepo") => HubFault::Gated,
        (_, "RevisionNotFound") => HubFault::NoRevision,
        (_, "EntryNotFound") => HubFault::NoFile,
        (401, _) if speaks_of(&["credentials", "expired", "token"]) => HubFault::BadToken,
        (_, "RepoNotFound") => HubFault::NoRepository,
        // A repository that does not exist and one that nobody without a token may see read the same.
        (401, _) if has_token => HubFault::BadToken,
        // The repository was found earlier, so a 404 here means that this Hub lacks the endpoint.
        (404, "") if !asks => HubFault::NotOffered,
        (401 | 404, _) => HubFault::NoRepository,
        (402 | 413 | 507, _) => HubFault::Quota,
        (403, _) if speaks_of(&["storage", "quota", "limit"]) => HubFault::Quota,
        (403, _) if speaks_of(&["gated", "access to model"]) => HubFault::Gated,
        (403, _) => HubFault::Forbidden,
        (409 | 412, _) => HubFault::Conflict,
        (405 | 501, _) => HubFault::NotOffered,
        _ => fault_of_storage(status),
    }
}

/// What a status means of a storage that the Hub has sent us to, which knows nothing of repositories and tokens.
fn fault_of_storage(status: StatusCode) -> HubFault {
    match status.as_u16() {
        402 | 413 | 507 => HubFault::Quota,
        429 => HubFault::RateLimited,
        408 | 500.. => HubFault::Network,
        _ => HubFault::Answer,
    }
}

/// The wait that a server asks for: `Retry-After: SECONDS`, or `t=SECONDS` of `RateLimit`.
pub(super) fn wait_of(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let after = text(RETRY_AFTER.as_str()).and_then(|value| value.trim().parse().ok());
    let limit = || {
        text("ratelimit")?
            .split(';')
            .find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
    };
    after.or_else(limit).map(Duration::from_secs)
}

/// The JSON of an answer.
pub(super) fn parse(body: &[u8]) -> serde_json::Result<Value> {
    json::parse(body, MOST_VALUES)
}

/// What the body of a refusal says, wherever servers put it: JSON of the Hub, of FastAPI and of proxies, XML of S3; else
/// the body itself.
pub(super) fn spoken(body: &[u8]) -> String {
    const WORDS: [&str; 8] = [
        "/error",
        "/error/message",
        "/errors/0/message",
        "/detail",
        "/detail/error",
        "/detail/message",
        "/detail/0/msg",
        "/message",
    ];
    let text = String::from_utf8_lossy(body);
    let object = parse(body).unwrap_or_default();
    let found = WORDS
        .iter()
        .find_map(|place| object.pointer(place)?.as_str());
    let element = || {
        text.split_once("<Message>")?
            .1
            .split_once("</Message>")
            .map(|(words, _)| words)
    };
    found.or_else(element).unwrap_or(text.trim()).to_owned()
}

/// A connection that came to nothing.
fn broken(place: &str, event: ConnectionEvent, error: reqwest::Error) -> HubError {
    // Addresses may be signed, which makes them secrets.
    let error = error.without_url();
    let cause = if error.is_timeout() {
        "nothing came within the time-out".to_owned()
    } else {
        cause(&error)
    };
    HubError::Connection {
        place: place.to_owned(),
        event,
        cause,
    }
}

/// A request without an answer. Another attempt may have one, unless the certificate of the server is refused.
pub(super) fn unanswered(place: &str, error: reqwest::Error) -> Failure {
    match refused_certificate(&error) {
        Some(refused) => Failure::lasting(HubError::Certificate {
            place: place.to_owned(),
            problem: refused.to_string(),
        }),
        None => Failure::passing(broken(place, ConnectionEvent::Failed, error)),
    }
}

/// What is wrong with the certificate of the server, if that is why there is no connection.
fn refused_certificate(error: &reqwest::Error) -> Option<&rustls::CertificateError> {
    let mut inner: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = inner {
        if let Some(rustls::Error::InvalidCertificate(refused)) = cause.downcast_ref() {
            return Some(refused);
        }
        // An error of input and output shows the source of what it wraps as its own.
        let wrapped = cause.downcast_ref().and_then(std::io::Error::get_ref);
        inner = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => cause.source(),
        };
    }
    None
}
