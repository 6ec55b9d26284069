//! Large files in over Git LFS: a batch says where each goes, whole or in parts; what the server has is not sent again.

use std::cmp::Reverse;
use std::sync::Mutex;

use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, ETAG, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use reqwest::{Method, StatusCode, Url};
use serde_json::{Map, Value, json};

use super::answer::fault_of;
use super::answer_error::HubAnswerError;
use super::client::HubClient;
use super::commit::Target;
use super::error::{HubError, HubFault};
use super::http::HubRequest;
use super::outgoing::Outgoing;
use super::parallel::each;
use super::retry::RetryPolicy;
use super::upload::{Meter, Piece};
use crate::Result;

/// Objects of one batch.
const GROUP: usize = 100;
/// Files that go up at a time, and parts of each.
const WORKERS: usize = 4;
/// How often a file is begun anew, with fresh addresses.
const BEGINNINGS: u32 = 3;
/// Headers that a server may ask for with a request, and their bytes; a request with more is refused anywhere.
const MOST_HEADERS: usize = 64;
const LARGEST_HEADERS: usize = 64 << 10;
/// Bytes of the tag that a storage gives to a part.
const LONGEST_ETAG: usize = 1024;
const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

/// Uploads files, but those that the server has; those that it wants over Xet are left, and returned.
pub(super) fn upload<'f>(
    client: &HubClient,
    target: &Target,
    files: &[&'f Outgoing],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<&'f Outgoing>> {
    let mut over_xet = Vec::new();
    for group in files.chunks(GROUP) {
        let (transfer, actions) = batch(client, target, group)?;
        if transfer == "xet" {
            over_xet.extend_from_slice(group);
            continue;
        }
        let mut work: Vec<(&Outgoing, Action)> = group.iter().copied().zip(actions).collect();
        work.sort_by_key(|(file, _)| Reverse(file.size));
        each(&work, WORKERS, |(file, action)| {
            let meter = Meter::new(file.size, progress);
            let sending = Sending {
                client,
                place: format!("{}: {}", target.place(), file.path),
                file,
                meter: &meter,
            };
            sending.run(target, action)?;
            meter.add(file.size);
            Ok(())
        })?;
    }
    Ok(over_xet)
}

/// What is to be done for an object.
#[derive(Clone, Debug)]
pub(super) struct Action {
    transfer: Transfer,
    /// Whom to tell when it is there.
    verify: Option<(Url, HeaderMap)>,
}

#[derive(Clone, Debug)]
enum Transfer {
    /// The server has it.
    Stored,
    /// In one request.
    Whole(Url, HeaderMap),
    /// In parts of so many bytes each, and a request that puts them together.
    Parts {
        size: u64,
        parts: Vec<Url>,
        complete: Url,
    },
}

/// Asks where objects go: the kind of transfer, and an action for each.
fn batch(
    client: &HubClient,
    target: &Target,
    files: &[&Outgoing],
) -> Result<(String, Vec<Action>)> {
    let place = target.place();
    let mut transfers = vec!["basic", "multipart"];
    if !client.settings.no_xet {
        transfers.push("xet");
    }
    let objects: Vec<Value> = files
        .iter()
        .map(|file| json!({"oid": file.sha256, "size": file.size}))
        .collect();
    let body = json!({
        "operation": "upload", "transfers": transfers, "objects": objects, "hash_algo": "sha256",
        "ref": {"name": target.reference.revision()},
    });
    let repository = format!("{}.git", target.reference.repository);
    let parts: Vec<&str> = repository
        .split('/')
        .chain(["info", "lfs", "objects", "batch"])
        .collect();
    let (answer, _) = client.json(&place, &post(client.url(&parts), &body))?;
    let transfer = answer
        .get("transfer")
        .and_then(Value::as_str)
        .unwrap_or("basic")
        .to_owned();
    if !["basic", "multipart", "xet"].contains(&transfer.as_str()) {
        let found = client.shown(&transfer);
        return Err(HubAnswerError::UnknownTransfer { place, found }.into());
    }
    let listed = answer
        .get("objects")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let action = |file: &&Outgoing| {
        let place = format!("{place}: {}", file.path);
        let of_file =
            |object: &&Value| object.get("oid").and_then(Value::as_str) == Some(&file.sha256);
        let object =
            listed
                .iter()
                .find(of_file)
                .ok_or_else(|| HubAnswerError::NoUploadAddress {
                    place: place.clone(),
                })?;
        read_action(client, &place, file.size, object)
    };
    // A file over Xet has no use for them.
    let actions = if transfer == "xet" {
        Vec::new()
    } else {
        files.iter().map(action).collect::<Result<_>>()?
    };
    Ok((transfer, actions))
}

fn post(url: Url, body: &Value) -> HubRequest {
    let body = Some((MEDIA_TYPE, body.to_string().into_bytes()));
    HubRequest {
        method: Method::POST,
        body,
        ..HubRequest::get(url)
    }
    .with_header(ACCEPT, HeaderValue::from_static(MEDIA_TYPE))
}

pub(super) fn read_action(
    client: &HubClient,
    place: &str,
    size: u64,
    object: &Value,
) -> Result<Action> {
    if let Some(error) = object.get("error").filter(|error| !error.is_null()) {
        let code = error
            .get("code")
            .and_then(Value::as_u64)
            .and_then(|code| u16::try_from(code).ok());
        let status = code
            .and_then(|code| StatusCode::from_u16(code).ok())
            .unwrap_or(StatusCode::BAD_REQUEST);
        let said = client.shown(
            error
                .get("message")
                .and_then(Value::as_str)
                .unwrap_or_default(),
        );
        return Err(HubError::ObjectRefused {
            place: place.to_owned(),
            fault: fault_of(&Method::POST, status, "", &said, true),
            answer: format!("{status}: {said}"),
        }
        .into());
    }
    let Some(upload) = object
        .get("actions")
        .and_then(|actions| actions.get("upload"))
    else {
        return Ok(Action {
            transfer: Transfer::Stored,
            verify: None,
        });
    };
    let verify = object
        .get("actions")
        .and_then(|actions| actions.get("verify"));
    let verify = verify
        .map(|verify| link(client, place, verify))
        .transpose()?;
    let part_size = upload
        .get("header")
        .and_then(|header| header.get("chunk_size"));
    let transfer = match part_size {
        None => {
            let (url, headers) = link(client, place, upload)?;
            Transfer::Whole(url, headers)
        }
        Some(part_size) => read_parts(client, place, size, upload, part_size)?,
    };
    Ok(Action { transfer, verify })
}

/// The parts that a file of `size` bytes goes up in; each header with a number for its name is the address of one.
fn read_parts(
    client: &HubClient,
    place: &str,
    size: u64,
    upload: &Value,
    part_size: &Value,
) -> Result<Transfer> {
    let number = part_size
        .as_u64()
        .or_else(|| part_size.as_str()?.parse().ok())
        .filter(|size| *size > 0);
    let part_size = number.ok_or_else(|| HubAnswerError::NoPartSize {
        place: place.to_owned(),
    })?;
    let named = upload.get("header").and_then(Value::as_object);
    let mut parts: Vec<(u64, Url)> = Vec::new();
    for (name, href) in named.into_iter().flatten() {
        if let Ok(number) = name.parse() {
            parts.push((number, address(client, place, href)?));
        }
    }
    parts.sort_by_key(|(number, _)| *number);
    let count = size.div_ceil(part_size);
    if parts.iter().map(|(number, _)| *number).ne(1..=count) {
        return Err(HubAnswerError::WrongParts {
            place: place.to_owned(),
            expected: count,
            found: parts.len(),
        }
        .into());
    }
    Ok(Transfer::Parts {
        size: part_size,
        parts: parts.into_iter().map(|(_, url)| url).collect(),
        complete: address(client, place, &upload["href"])?,
    })
}

/// Where a request goes, and the headers that the server wants with it.
fn link(client: &HubClient, place: &str, action: &Value) -> Result<(Url, HeaderMap)> {
    let url = address(client, place, &action["href"])?;
    let empty = Map::new();
    let wanted = action.get("header").and_then(Value::as_object);
    let wanted = wanted.unwrap_or(&empty);
    let length = |(name, value): (&String, &Value)| name.len() + value.as_str().map_or(0, str::len);
    let bytes: usize = wanted.iter().map(length).sum();
    if wanted.len() > MOST_HEADERS || bytes > LARGEST_HEADERS {
        return Err(HubAnswerError::ManyHeaders {
            place: place.to_owned(),
            most: MOST_HEADERS,
            largest: LARGEST_HEADERS,
            count: wanted.len(),
            bytes,
        }
        .into());
    }

    let mut headers = HeaderMap::new();
    for (name, value) in wanted {
        let (key, value) = header(name, value).ok_or_else(|| HubAnswerError::InvalidHeader {
            place: place.to_owned(),
            name: client.shown(name),
        })?;
        // Those that say how long the body is, or where it goes, are the request's own.
        if ![HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(&key) {
            headers.insert(key, value);
        }
    }
    Ok((url, headers))
}

/// An address to send something to, which must be as safe as the Hub's own.
fn address(client: &HubClient, place: &str, href: &Value) -> Result<Url> {
    let endpoint = &client.settings.endpoint;
    let url = href.as_str().and_then(|href| endpoint.join(href).ok());
    let safe = url.filter(|url| url.scheme() == "https" || endpoint.scheme() == url.scheme());
    Ok(safe.ok_or_else(|| HubAnswerError::UnsafeAddress {
        place: place.to_owned(),
    })?)
}

fn header(name: &str, value: &Value) -> Option<(HeaderName, HeaderValue)> {
    Some((
        name.parse().ok()?,
        HeaderValue::from_str(value.as_str()?).ok()?,
    ))
}

fn is_mended_anew(fault: HubFault) -> bool {
    !matches!(
        fault,
        HubFault::Quota | HubFault::Network | HubFault::RateLimited | HubFault::BadToken
    )
}

/// A file on its way.
struct Sending<'a> {
    client: &'a HubClient,
    place: String,
    file: &'a Outgoing,
    meter: &'a Meter<'a>,
}

impl Sending<'_> {
    fn run(&self, target: &Target, first: &Action) -> Result<()> {
        let mut action = first.clone();
        let mut beginnings = 1;
        loop {
            match self.send(&action) {
                Ok(()) => return self.file.check_unchanged(),
                // Addresses expire, and parts get lost: both begin anew. What failed in passing has been tried often.
                Err(error)
                    if beginnings < BEGINNINGS && error.hub_fault().is_some_and(is_mended_anew) => {
                }
                Err(error) => return Err(error),
            }
            beginnings += 1;
            let (_, actions) = batch(self.client, target, &[self.file])?;
            action = actions.into_iter().next().unwrap_or(action);
        }
    }

    fn send(&self, action: &Action) -> Result<()> {
        match &action.transfer {
            Transfer::Stored => return Ok(()),
            Transfer::Whole(url, headers) => drop(self.put(url, headers, 0, self.file.size)?),
            Transfer::Parts {
                size,
                parts,
                complete,
            } => self.send_parts(*size, parts, complete)?,
        }
        let Some((url, headers)) = &action.verify else {
            return Ok(());
        };
        let mut request = post(
            url.clone(),
            &json!({"oid": self.file.sha256, "size": self.file.size}),
        );
        request.headers.extend(headers.clone());
        self.client
            .send(
                &self.place,
                &HubRequest {
                    slow: true,
                    ..request
                },
            )
            .map(drop)
    }

    fn send_parts(&self, size: u64, parts: &[Url], complete: &Url) -> Result<()> {
        let etags = Mutex::new(vec![String::new(); parts.len()]);
        let numbered: Vec<(usize, &Url)> = parts.iter().enumerate().collect();
        each(&numbered, WORKERS, |(number, url)| {
            let start = *number as u64 * size;
            let headers = self.put(
                url,
                &HeaderMap::new(),
                start,
                size.min(self.file.size - start),
            )?;
            let etag = headers
                .get(ETAG)
                .and_then(|etag| etag.to_str().ok())
                .filter(|etag| (1..=LONGEST_ETAG).contains(&etag.len()));
            let etag = etag.ok_or_else(|| HubAnswerError::NoPartTag {
                place: self.place.clone(),
                part: number + 1,
            })?;
            // No thread panics with the lock; if one did, the etags are still what they are.
            etags
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())[*number] = etag.to_owned();
            Ok(())
        })?;
        let etags = etags
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let parts: Vec<Value> = etags
            .iter()
            .enumerate()
            .map(|(number, etag)| json!({"partNumber": number + 1, "etag": etag}))
            .collect();
        let request = post(
            complete.clone(),
            &json!({"oid": self.file.sha256, "parts": parts}),
        );
        self.client
            .send(
                &self.place,
                &HubRequest {
                    slow: true,
                    ..request
                },
            )
            .map(drop)
    }

    /// Sends bytes of the file, again if the connection or the server fails in passing.
    fn put(&self, url: &Url, headers: &HeaderMap, start: u64, length: u64) -> Result<HeaderMap> {
        let mut retries = RetryPolicy::new();
        loop {
            let piece = Piece {
                content: &self.file.content,
                start,
                length,
                meter: self.meter,
            };
            match self.client.put(&self.place, url, headers.clone(), &piece) {
                Ok(headers) => return Ok(headers),
                Err(failure) => match failure.error.hub_fault() {
                    Some(HubFault::Network | HubFault::RateLimited) => retries.wait(failure)?,
                    // Only a fresh address can help.
                    _ => return Err(failure.error),
                },
            }
        }
    }
}
