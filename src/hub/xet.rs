//! Files in and out of Xet, Hugging Face's storage of chunks, for which `hf-xet` is the client.
//!
//! It sends no chunk that the storage has, so that an interrupted upload resumes. Its memory is bounded here: left
//! alone it takes what the machine has.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::Value;
use xet::XetError;
use xet::xet_session::{
    Sha256Policy, XetConfig, XetFileInfo, XetSession, XetSessionBuilder, XetUploadCommit,
};

use super::answer_error::HubAnswerError;
use super::client::HubClient;
use super::commit::Target;
use super::error::{HubError, HubFault};
use super::http::HubRequest;
use super::outgoing::Outgoing;
use super::remote_file::RemoteFile;
use super::request_error::HubRequestError;
use super::tree::repository_url;
use crate::checkpoint::source_file::ReadAt;
use crate::{Error, Result};

/// Bytes of a file that are handed over at once.
const PIECE: u64 = 1 << 20;
/// Bytes of a token for the storage.
const LONGEST_TOKEN: usize = 16 << 10;
/// How long to wait for what is on its way to the storage while none of it arrives.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// What keeps its memory small; no telemetry, because nobody was asked.
const CONFIG: [(&str, &str); 12] = [
    ("telemetry.enabled", "false"),
    ("client.retry_base_delay", "500ms"),
    ("client.read_timeout", "60s"),
    ("client.ac_initial_upload_concurrency", "1"),
    ("client.ac_max_upload_concurrency", "1"),
    ("client.ac_initial_download_concurrency", "4"),
    ("client.ac_max_download_concurrency", "4"),
    ("reconstruction.min_reconstruction_fetch_size", "16mb"),
    ("reconstruction.min_prefetch_buffer", "16mb"),
    ("reconstruction.download_buffer_size", "48mb"),
    ("reconstruction.download_buffer_perfile_size", "16mb"),
    ("reconstruction.download_buffer_limit", "64mb"),
];

/// A session, and what it may do at a storage.
struct Access {
    session: XetSession,
    storage: String,
    token: String,
    until: u64,
    refresh: (Url, HeaderMap),
}

impl Access {
    /// Asks the Hub at `url` for a token.
    fn new(client: &HubClient, place: &str, url: Url) -> Result<Self> {
        let (answer, _) = client.json(place, &HubRequest::get(url.clone()))?;
        let (storage, token, until) = read_token(client, place, &answer)?;
        let mut headers = HeaderMap::new();
        if let Some(own) = &client.settings.token
            && let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", own.secret()))
        {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(Self {
            session: session(client)?,
            storage,
            token,
            until,
            refresh: (url, headers),
        })
    }
}

/// The address of the storage, a token for it, and when that expires.
pub(super) fn read_token(
    client: &HubClient,
    place: &str,
    answer: &Value,
) -> Result<(String, String, u64)> {
    let text = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
    let storage = text("casUrl").filter(|storage| {
        let parsed = Url::parse(storage).ok();
        parsed.is_some_and(|url| {
            url.scheme() == "https" || url.scheme() == client.settings.endpoint.scheme()
        })
    });
    // The library puts it into a header as it is, and panics at what no header can hold.
    let is_token = |token: &String| {
        (1..=LONGEST_TOKEN).contains(&token.len())
            && token.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let token = text("accessToken").filter(is_token);
    let (Some(storage), Some(token)) = (storage, token) else {
        let place = place.to_owned();
        return Err(HubAnswerError::NoXetAccess { place }.into());
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let until = answer.get("exp").and_then(Value::as_u64).unwrap_or(now);
    Ok((storage, token, until))
}

fn session(client: &HubClient) -> Result<XetSession> {
    let failed = |problem: String| HubRequestError::Client { to: "Xet", problem };
    let wait = |time: Duration| format!("{}ms", time.as_millis());
    let own = [(
        "client.connect_timeout",
        wait(client.settings.answer_timeout),
    )];
    let all = CONFIG
        .map(|(key, value)| (key, value.to_owned()))
        .into_iter()
        .chain(own);
    let config = all
        .into_iter()
        .try_fold(XetConfig::new(), |config, (key, value)| {
            config.with_config(key, value)
        });
    let config = config.map_err(|error| failed(error.to_string()))?;
    let session = XetSessionBuilder::new_with_config(config).build();
    Ok(session.map_err(|error| failed(error.to_string()))?)
}

/// Uploads files, one after the other; their chunks go out side by side.
pub(super) fn upload(
    client: &HubClient,
    target: &Target,
    files: &[&Outgoing],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let place = target.place();
    let access = Access::new(client, &place, target.url(client, "xet-write-token"))?;
    let fault = |error: XetError| error_of(client, &place, error);
    let commit = access.session.new_upload_commit().map_err(fault)?;
    let commit = commit
        .with_endpoint(access.storage)
        .with_token_info(access.token, access.until);
    let commit = commit
        .with_token_refresh_url(access.refresh.0, access.refresh.1)
        .build_blocking()
        .map_err(fault)?;
    let mut waits = true;
    let mut send = |file: &Outgoing| -> Result<()> {
        let fault = |error: XetError| error_of(client, &format!("{place}: {}", file.path), error);
        let policy = Sha256Policy::from_hex(&file.sha256);
        let stream = commit
            .upload_stream_blocking(Some(file.path.clone()), policy)
            .map_err(fault)?;
        for start in (0..file.size).step_by(PIECE as usize) {
            let mut bytes = vec![0; (file.size - start).min(PIECE) as usize];
            let length = bytes.len() as u64;
            file.content.read_exact_at(&mut bytes, start)?;
            stream.write_blocking(bytes).map_err(fault)?;
            progress(length);
            waits = waits && settle(&commit);
        }
        stream.finish_blocking().map_err(fault)?;
        file.check_unchanged()
    };
    if let Err(error) = files.iter().try_for_each(|file| send(file)) {
        // The error is what the user must see.
        let _ = commit.abort();
        return Err(error);
    }
    commit.commit_blocking().map(drop).map_err(fault)
}

/// Waits until the storage has the bytes handed over so far, so that at most one block of 64 MiB and its two encoded forms
/// are in memory. Returns false when nothing arrives: then waiting again is useless, and the library's time-outs report why.
fn settle(commit: &XetUploadCommit) -> bool {
    let (mut arrived, mut since) = (0, Instant::now());
    while since.elapsed() < LONGEST_WAIT {
        let report = commit.progress();
        if report.total_transfer_bytes_completed >= report.total_transfer_bytes {
            return true;
        }
        if report.total_transfer_bytes_completed > arrived {
            (arrived, since) = (report.total_transfer_bytes_completed, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Hands over the bytes of a file of a commit from `begin` on. The outer error is one of writing.
pub(super) fn download(
    file: &RemoteFile,
    begin: u64,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let RemoteFile {
        client,
        snapshot,
        entry,
        ..
    } = *file;
    let Some(hash) = &entry.xet else {
        return Ok(());
    };
    let place = file.place();
    let url = repository_url(
        client,
        &snapshot.repository,
        &["xet-read-token", &snapshot.commit],
    );
    let access = Access::new(client, &place, url)?;
    let fault = |error: XetError| error_of(client, &place, error);
    let group = access.session.new_download_stream_group().map_err(fault)?;
    let group = group
        .with_endpoint(access.storage)
        .with_token_info(access.token, access.until);
    let group = group
        .with_token_refresh_url(access.refresh.0, access.refresh.1)
        .build_blocking()
        .map_err(fault)?;
    let info = XetFileInfo::new(hash.clone(), entry.size);
    let mut stream = group
        .download_stream_blocking(info, Some(begin..entry.size))
        .map_err(fault)?;
    let mut left = entry.size - begin;
    while left > 0 {
        let Some(piece) = stream.blocking_next().map_err(fault)? else {
            return Err(HubError::XetCutOff {
                place,
                missing: left,
            }
            .into());
        };
        let wanted = left.min(piece.len() as u64) as usize;
        write(&piece[..wanted])?;
        left -= wanted as u64;
    }
    Ok(())
}

/// What the library's error means here, without addresses' queries, which may be signed.
fn error_of(client: &HubClient, place: &str, error: XetError) -> Error {
    let fault = match &error {
        XetError::Authentication(_) => HubFault::BadToken,
        XetError::RateLimited(_) => HubFault::RateLimited,
        XetError::NotFound(_) | XetError::DataIntegrity(_) => HubFault::Answer,
        _ => HubFault::Network,
    };
    let text = error.to_string();
    let words = text.split(' ').map(|word| match word.split_once('?') {
        Some((address, _)) if address.contains("://") => address,
        _ => word,
    });
    HubError::Xet {
        place: place.to_owned(),
        fault,
        problem: client.shown(&words.collect::<Vec<_>>().join(" ")),
    }
    .into()
}
