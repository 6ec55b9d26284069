//! The readers of answers, for the fuzzer: what a Hub, a storage or somebody in between may say.

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::answer::{fault_of, parse, spoken, wait_of};
use super::client::HubClient;
use super::commit::{Target, read_mode};
use super::lfs::read_action;
use super::tree::{Listing, next_page};
use super::xet::read_token;
use crate::checkpoint::reference::Reference;

const PLACE: &str = "org/name";

/// Reads the body of an answer as everything that it could be.
pub fn body(client: &HubClient, body: &[u8]) {
    let said = client.shown(&spoken(body));
    for code in [200, 401, 403, 404, 409, 429, 500] {
        let status = reqwest::StatusCode::from_u16(code).unwrap_or_default();
        let _ = fault_of(&Method::POST, status, "", &said, true);
    }
    let target = Target {
        reference: Reference {
            repository: PLACE.to_owned(),
            revision: None,
        },
        create_pr: false,
    };
    let _ = target.read(client, body, || Ok(None));
    let Ok(answer) = parse(body) else {
        return;
    };
    let mut listing = Listing::default();
    // The second time every path is there already.
    for _ in 0..2 {
        let _ = listing.add_page(PLACE, &answer);
    }
    for size in [0, 1, 1 << 40] {
        let _ = read_action(client, PLACE, size, &answer);
    }
    let _ = read_mode(&answer);
    let _ = read_token(client, PLACE, &answer);
}

/// Reads the headers of an answer, a line each.
pub fn headers(client: &HubClient, lines: &[u8]) {
    let mut headers = HeaderMap::new();
    // As many as the HTTP library lets through.
    for line in lines.split(|byte| *byte == b'\n').take(100) {
        let colon = line.iter().position(|byte| *byte == b':');
        let Some((name, value)) = colon.map(|at| (&line[..at], &line[at + 1..])) else {
            continue;
        };
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            headers.append(name, value);
        }
    }
    let _ = wait_of(&headers);
    if let Some(next) = next_page(&headers, &client.settings.endpoint) {
        let _ = client.is_own(&next);
    }
}
