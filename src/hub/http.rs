//! Requests to the Hub and to where it sends us: time-outs, retries, redirects, and kinds of answers.
//!
//! Redirects are followed here, and the token goes along to the Hub's own origin only.

use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    HeaderValue, LOCATION, RANGE,
};
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;

use super::answer::{Answer, parse, unanswered};
use super::answer_error::HubAnswerError;
use super::client::HubClient;
use super::error::HubError;
use super::retry::{Failure, LONGEST_WAIT, RetryPolicy};
use crate::Result;
use crate::printable::printable;

/// Redirects that are followed.
const MOST_HOPS: usize = 10;
/// What the Hub tells of a large file beside the address of its bytes.
const LINKED_ETAG: &str = "x-linked-etag";

/// A request that can be made again.
#[derive(Clone, Debug)]
pub struct HubRequest {
    /// `GET`, `POST`, …
    pub method: Method,
    /// Where to.
    pub url: Url,
    /// Beside the token.
    pub headers: HeaderMap,
    /// Bytes and their content type.
    pub body: Option<(&'static str, Vec<u8>)>,
    /// Whether a failure that may pass is a reason to ask again.
    pub repeat: bool,
    /// Whether the answer may take minutes, because there is much to do before it.
    pub slow: bool,
}

impl HubRequest {
    /// A `GET`.
    pub fn get(url: Url) -> Self {
        Self {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: None,
            repeat: true,
            slow: false,
        }
    }

    /// A `POST` of JSON that changes nothing, or the same when it is made twice.
    pub fn post(url: Url, body: &Value) -> Self {
        let body = Some(("application/json", body.to_string().into_bytes()));
        Self {
            method: Method::POST,
            body,
            ..Self::get(url)
        }
    }

    /// The same request with one more header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

impl HubClient {
    /// Asks until there is an answer of success, whose body is still to be read.
    pub(super) fn send(&self, place: &str, request: &HubRequest) -> Result<Answer<'_>> {
        self.ask(place, request, Ok)
    }

    /// Asks and reads an answer that is JSON.
    pub(super) fn json(&self, place: &str, request: &HubRequest) -> Result<(Value, HeaderMap)> {
        let (bytes, headers) = self.ask(place, request, Answer::read)?;
        let value = parse(&bytes).map_err(|error| HubAnswerError::NotJson {
            place: place.to_owned(),
            problem: error.to_string(),
        })?;
        Ok((value, headers))
    }

    /// Asks until there is an answer of success of which `then` makes something.
    fn ask<'a, T>(
        &'a self,
        place: &str,
        request: &HubRequest,
        then: impl Fn(Answer<'a>) -> Result<T, Failure>,
    ) -> Result<T> {
        let mut retries = RetryPolicy::new();
        loop {
            match self.attempt(place, request).and_then(&then) {
                Ok(made) => return Ok(made),
                Err(failure) if request.repeat => retries.wait(failure)?,
                Err(failure) => return Err(failure.error),
            }
        }
    }

    /// One attempt, redirects followed.
    pub(super) fn attempt(&self, place: &str, request: &HubRequest) -> Result<Answer<'_>, Failure> {
        if self.settings.offline {
            let place = place.to_owned();
            return Err(Failure::lasting(HubError::Offline { place }));
        }
        let mut url = request.url.clone();
        for _ in 0..MOST_HOPS {
            let response = self
                .block_on(async { self.prepared(request, &url).send().await })
                .map_err(|error| unanswered(place, error))?;
            if !response.status().is_redirection() {
                return Answer::of(self, place, &request.method, url, response);
            }
            if request.method == Method::HEAD && response.headers().contains_key(LINKED_ETAG) {
                return Ok(Answer::new(self, place, url, response));
            }
            let next = redirect(&url, response.headers());
            url = next.ok_or_else(|| {
                let place = place.to_owned();
                Failure::lasting(HubAnswerError::UnsafeRedirect { place })
            })?;
        }
        Err(Failure::lasting(HubAnswerError::ManyRedirects {
            place: place.to_owned(),
            limit: MOST_HOPS,
        }))
    }

    /// The request as it goes to `url`, with the token if that is the Hub itself.
    fn prepared(&self, request: &HubRequest, url: &Url) -> reqwest::RequestBuilder {
        let mut builder = if request.slow {
            let builder = self.slow.request(request.method.clone(), url.clone());
            builder.timeout(LONGEST_WAIT)
        } else {
            self.http.request(request.method.clone(), url.clone())
        };
        builder = builder.headers(request.headers.clone());
        if let Some(token) = self.settings.token.as_ref().filter(|_| self.is_own(url)) {
            builder = builder.header(AUTHORIZATION, format!("Bearer {}", token.secret()));
        }
        match &request.body {
            Some((kind, body)) => builder.header(CONTENT_TYPE, *kind).body(body.clone()),
            None => builder,
        }
    }

    /// The tag by which the Hub knows the content of a file, without quotes.
    pub(super) fn etag(&self, place: &str, url: Url) -> Result<Option<String>> {
        let request = HubRequest {
            method: Method::HEAD,
            ..HubRequest::get(url)
        };
        let answer = self.send(
            place,
            &request.with_header(ACCEPT_ENCODING, HeaderValue::from_static("identity")),
        )?;
        let headers = answer.response.headers();
        let tag = headers
            .get(LINKED_ETAG)
            .or_else(|| headers.get(ETAG))
            .and_then(|tag| tag.to_str().ok());
        Ok(tag.map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned()))
    }

    /// One attempt at the bytes of a file from `start` on, up to and without `end`.
    pub(super) fn range(
        &self,
        place: &str,
        url: Url,
        start: u64,
        end: Option<u64>,
    ) -> Result<Answer<'_>, Failure> {
        let mut request = HubRequest::get(url);
        if start > 0 || end.is_some() {
            let last = end.map_or(String::new(), |end| (end - 1).to_string());
            // Digits and a dash are a valid value.
            if let Ok(value) = HeaderValue::from_str(&format!("bytes={start}-{last}")) {
                request = request.with_header(RANGE, value);
            }
        }
        // Bytes must come unpacked: sizes and ranges count bytes of the file.
        request = request.with_header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut answer = self.attempt(place, &request)?;
        if answer.response.status() == StatusCode::PARTIAL_CONTENT {
            let found = answer
                .response
                .headers()
                .get(CONTENT_RANGE)
                .and_then(|value| value.to_str().ok());
            let begins = found.and_then(|found| {
                found
                    .strip_prefix("bytes ")?
                    .split_once('-')?
                    .0
                    .trim()
                    .parse()
                    .ok()
            });
            if begins != Some(start) {
                let found = printable(found.unwrap_or("no Content-Range"));
                return Err(Failure::passing(HubAnswerError::WrongRange {
                    place: place.to_owned(),
                    start,
                    found,
                }));
            }
            answer.begins = start;
        }
        Ok(answer)
    }
}

/// Where a redirect leads from `url`; none where it is no http address, or less safe than this one.
fn redirect(url: &Url, headers: &HeaderMap) -> Option<Url> {
    let next = headers.get(LOCATION)?.to_str().ok()?;
    let next = url.join(next).ok()?;
    let is_safe = match next.scheme() {
        "https" => true,
        "http" => url.scheme() == "http",
        _ => false,
    };
    is_safe.then_some(next)
}
