//! Large files in over Git LFS: a batch says where each goes, whole or in parts; what the server has is not sent again.

use std::cmp::Reverse;
use std::sync::Mutex;

use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, ETAG, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use reqwest::{Method, StatusCode, Url};
use serde_json::{Map, Value, json};

use super::answer::fault_of;
use super::commit::Target;
use super::http::{Client, Patience, Request};
use super::outgoing::Outgoing;
use super::parallel::each;
use super::upload::{Meter, Piece};
use crate::error::HubFault;
use crate::{Error, Result};

/// Objects of one batch.
const GROUP: usize = 100;
/// Files that go up at a time, and parts of each.
const WORKERS: usize = 4;
/// How often a file is begun anew, with fresh addresses.
const BEGINNINGS: u32 = 3;
const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

/// Uploads files, but those that the server has; those that it wants over Xet are left, and returned.
pub(super) fn upload<'f>(
    client: &Client,
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
struct Action {
    way: Way,
    /// Whom to tell when it is there.
    verify: Option<(Url, HeaderMap)>,
}

#[derive(Clone, Debug)]
enum Way {
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
fn batch(client: &Client, target: &Target, files: &[&Outgoing]) -> Result<(String, Vec<Action>)> {
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
        let problem = format!(
            "expected a transfer that was offered, found `{}`",
            client.shown(&transfer)
        );
        return Err(Error::hub(place, HubFault::Answer, problem));
    }
    let told = answer
        .get("objects")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let action = |file: &&Outgoing| {
        let place = format!("{place}: {}", file.path);
        let of_file =
            |object: &&Value| object.get("oid").and_then(Value::as_str) == Some(&file.sha256);
        let object = told.iter().find(of_file).ok_or_else(|| {
            Error::hub(
                &place,
                HubFault::Answer,
                "expected to hear where it goes, found no such answer",
            )
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

fn post(url: Url, body: &Value) -> Request {
    let body = Some((MEDIA_TYPE, body.to_string().into_bytes()));
    Request {
        method: Method::POST,
        body,
        ..Request::get(url)
    }
    .with_header(ACCEPT, HeaderValue::from_static(MEDIA_TYPE))
}

fn read_action(client: &Client, place: &str, size: u64, object: &Value) -> Result<Action> {
    let refused = |problem: &str| Error::hub(place, HubFault::Answer, problem);
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
        let problem = format!("the server does not take it: {status}: {said}");
        return Err(Error::hub(
            place,
            fault_of(&Method::POST, status, "", &said, true),
            problem,
        ));
    }
    let link = |action: &Value| -> Result<(Url, HeaderMap)> {
        let href = action.get("href").and_then(Value::as_str);
        let url = href.and_then(|href| client.settings.endpoint.join(href).ok());
        let url = url.filter(|url| {
            url.scheme() == "https" || client.settings.endpoint.scheme() == url.scheme()
        });
        let url = url.ok_or_else(|| {
            refused("expected an address as safe as the Hub's to send it to, found none")
        })?;
        let empty = Map::new();
        let told = action
            .get("header")
            .and_then(Value::as_object)
            .unwrap_or(&empty);
        Ok((
            url,
            told.iter()
                .filter_map(|(name, value)| header(name, value.as_str()?))
                .collect(),
        ))
    };
    let Some(actions) = object.get("actions").filter(|actions| !actions.is_null()) else {
        return Ok(Action {
            way: Way::Stored,
            verify: None,
        });
    };
    let Some(upload) = actions.get("upload") else {
        return Ok(Action {
            way: Way::Stored,
            verify: None,
        });
    };
    let verify = actions.get("verify").map(link).transpose()?;
    let (url, headers) = link(upload)?;
    let Some(part_size) = upload
        .get("header")
        .and_then(|header| header.get("chunk_size"))
    else {
        return Ok(Action {
            way: Way::Whole(url, headers),
            verify,
        });
    };
    let number = part_size
        .as_u64()
        .or_else(|| part_size.as_str()?.parse().ok())
        .filter(|size| *size > 0);
    let part_size = number.ok_or_else(|| refused("expected the size of a part, found none"))?;
    let told = upload
        .get("header")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let mut parts: Vec<(u64, Url)> = Vec::new();
    for (name, href) in told {
        if let Ok(number) = name.parse() {
            parts.push((number, link(&json!({"href": href}))?.0));
        }
    }
    parts.sort_by_key(|(number, _)| *number);
    let count = size.div_ceil(part_size);
    if parts.iter().map(|(number, _)| *number).ne(1..=count) {
        return Err(refused(&format!(
            "expected addresses for {count} parts, found {}",
            parts.len()
        )));
    }
    let parts = parts.into_iter().map(|(_, url)| url).collect();
    Ok(Action {
        way: Way::Parts {
            size: part_size,
            parts,
            complete: url,
        },
        verify,
    })
}

fn is_mended_anew(fault: HubFault) -> bool {
    !matches!(
        fault,
        HubFault::Quota | HubFault::Network | HubFault::RateLimited | HubFault::BadToken
    )
}

/// A header that a server wants with a request; not those that say how long the body is, or where it goes.
fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let name: HeaderName = name.parse().ok()?;
    let value = HeaderValue::from_str(value).ok()?;
    (![HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(&name)).then_some((name, value))
}

/// A file on its way.
struct Sending<'a> {
    client: &'a Client,
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
                Err(Error::Hub { fault, .. })
                    if beginnings < BEGINNINGS && is_mended_anew(fault) => {}
                Err(error) => return Err(error),
            }
            beginnings += 1;
            let (_, actions) = batch(self.client, target, &[self.file])?;
            action = actions.into_iter().next().unwrap_or(action);
        }
    }

    fn send(&self, action: &Action) -> Result<()> {
        match &action.way {
            Way::Stored => return Ok(()),
            Way::Whole(url, headers) => drop(self.put(url, headers, 0, self.file.size)?),
            Way::Parts {
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
                &Request {
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
                .filter(|etag| !etag.is_empty());
            let etag = etag.ok_or_else(|| {
                let problem = format!(
                    "expected the ETag of part {}, found none in the answer",
                    number + 1
                );
                Error::hub(&self.place, HubFault::Answer, problem)
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
                &Request {
                    slow: true,
                    ..request
                },
            )
            .map(drop)
    }

    /// Sends bytes of the file, again if the connection or the server fails in passing.
    fn put(&self, url: &Url, headers: &HeaderMap, start: u64, length: u64) -> Result<HeaderMap> {
        let mut patience = Patience::new();
        loop {
            let piece = Piece {
                content: &self.file.content,
                start,
                length,
                meter: self.meter,
            };
            match self.client.put(&self.place, url, headers.clone(), &piece) {
                Ok(headers) => return Ok(headers),
                Err(failure) => match failure.error {
                    // The rest asks for a fresh address, if anything helps.
                    Error::Hub {
                        fault: HubFault::Network | HubFault::RateLimited,
                        ..
                    } => patience.after(failure)?,
                    error => return Err(error),
                },
            }
        }
    }
}
