//! Xet: Hugging Face's own content-addressed store with its own origin, tokens for it, and what the Hub knows of it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, Method, Request};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use xet_client::cas_client::{
    DeletionControlableClient, DirectAccessClient, LocalClient, LocalServer, MemoryClient,
};
use xet_core_structures::merklehash::{MerkleHash, compute_data_hash, file_hash};
use xet_core_structures::metadata_shard::file_structs::{
    FileDataSequenceEntry, FileDataSequenceHeader, FileMetadataExt, MDBFileInfo,
};
use xet_core_structures::metadata_shard::shard_in_memory::MDBInMemoryShard;
use xet_core_structures::xorb_object::{Chunk, RawXorbData, SerializedXorbObject};
use xet_runtime::config::XetConfig;
use xet_runtime::core::XetContext;

use crate::Listener;
use crate::access::{Caller, bearer, now};
use crate::commit::How;
use crate::refusal::{Answer, Refusal};
use crate::repository::hex;
use crate::server::{Hub, lock};
use crate::store::failed;

/// The store, and the files in it by their SHA-256.
pub(crate) struct Xet {
    /// The origin that clients use.
    url: String,
    client: Arc<dyn DirectAccessClient>,
    files: Arc<dyn DeletionControlableClient>,
    /// Where Hugging Face's server listens; our origin passes requests to it.
    behind: SocketAddr,
    known: Mutex<HashMap<String, XetFile>>,
}

/// A file in the store.
#[derive(Clone)]
pub(crate) struct XetFile {
    client: Arc<dyn DirectAccessClient>,
    hash: MerkleHash,
    /// What the file is made of, in order.
    segments: Arc<[FileDataSequenceEntry]>,
    pub(crate) size: u64,
}

impl XetFile {
    /// The bytes of `range`, reconstructed a segment at a time.
    pub(crate) fn body(&self, range: Range<u64>) -> Body {
        let mut start = 0;
        let wanted: Vec<_> = (self.segments.iter().cloned())
            .filter_map(|segment| {
                let (first, end) = (start, start + u64::from(segment.unpacked_segment_bytes));
                start = end;
                let inside = range.start.max(first)..range.end.min(end);
                (!inside.is_empty()).then(|| {
                    (
                        segment,
                        (inside.start - first) as usize..(inside.end - first) as usize,
                    )
                })
            })
            .collect();
        let client = self.client.clone();
        Body::from_stream(stream::iter(wanted).then(move |(segment, inside)| {
            let client = client.clone();
            async move {
                let chunks = vec![(segment.chunk_index_start, segment.chunk_index_end)];
                let mut read = client
                    .get_xorb_ranges(&segment.xorb_hash, chunks)
                    .await
                    .map_err(io::Error::other)?;
                Ok::<_, io::Error>(read.pop().unwrap_or_default().slice(inside))
            }
        }))
    }

    /// The whole content.
    pub(crate) async fn bytes(&self) -> io::Result<Bytes> {
        self.client
            .get_file_data(&self.hash, None)
            .await
            .map_err(io::Error::other)
    }
}

impl Xet {
    /// Starts Hugging Face's server, in memory or in `folder`, for clients that know it as `url`. Runs on the current runtime.
    pub(crate) async fn start(url: String, folder: Option<&FilePath>) -> io::Result<Self> {
        let context = XetContext::default().map_err(io::Error::other)?;
        let (client, files): (
            Arc<dyn DirectAccessClient>,
            Arc<dyn DeletionControlableClient>,
        ) = match folder {
            None => {
                let client = MemoryClient::new(context);
                (client.clone(), client)
            }
            Some(folder) => {
                let client = LocalClient::new(context, folder)
                    .await
                    .map_err(io::Error::other)?;
                (client.clone(), client)
            }
        };
        let socket = TcpListener::bind(("127.0.0.1", 0)).await?;
        let behind = socket.local_addr()?;
        let server = LocalServer::from_client(
            client.clone(),
            Some(files.clone()),
            behind.ip().to_string(),
            behind.port(),
        );
        tokio::spawn(async move {
            // Held for as long as the server runs: it ends with its runtime.
            let (_stop, stopped) = tokio::sync::oneshot::channel();
            server.serve_until_stopped(socket, stopped).await
        });
        Ok(Self {
            url,
            client,
            files,
            behind,
            known: Mutex::default(),
        })
    }

    /// The Xet hash of a file that was found or put before.
    pub(crate) fn hash(&self, sha256: &str) -> Option<String> {
        lock(&self.known).get(sha256).map(|file| file.hash.hex())
    }

    /// The file with this SHA-256: the shards that clients send tell it.
    pub(crate) async fn find(&self, sha256: &str) -> Option<XetFile> {
        if !lock(&self.known).contains_key(sha256) {
            for (hash, _) in self.files.list_file_shard_entries().await.ok()? {
                let (info, _) = self
                    .client
                    .get_file_reconstruction_info(&hash)
                    .await
                    .ok()??;
                self.know(info);
            }
        }
        lock(&self.known).get(sha256).cloned()
    }

    /// Remembers a file by the SHA-256 that its shard tells.
    fn know(&self, info: MDBFileInfo) {
        if let Some(told) = &info.metadata_ext {
            let (client, hash, size) = (
                self.client.clone(),
                info.metadata.file_hash,
                info.file_size(),
            );
            let file = XetFile {
                client,
                hash,
                size,
                segments: info.segments.into(),
            };
            lock(&self.known).insert(told.sha256.hex(), file);
        }
    }

    /// Keeps `bytes` as a client would: in chunks, here all of one size, in blocks, which a shard lists. Returns their SHA-256.
    pub(crate) async fn put(&self, bytes: &[u8]) -> io::Result<String> {
        let (sha256, config) = (hex(&Sha256::digest(bytes)), XetConfig::new());
        let (mut shard, mut segments, mut lengths) =
            (MDBInMemoryShard::default(), Vec::new(), Vec::new());
        for block in bytes.chunks(32 << 20) {
            let chunk = |data: &[u8]| Chunk {
                hash: compute_data_hash(data),
                data: Bytes::copy_from_slice(data),
            };
            let chunks: Vec<Chunk> = block.chunks(1 << 16).map(chunk).collect();
            lengths.extend(
                chunks
                    .iter()
                    .map(|chunk| (chunk.hash, chunk.data.len() as u64)),
            );
            let raw = RawXorbData::from_chunks(&chunks, vec![0]);
            segments.push(FileDataSequenceEntry::new(
                raw.hash(),
                block.len(),
                0,
                chunks.len(),
            ));
            shard
                .add_xorb_block(raw.xorb_info.clone())
                .map_err(io::Error::other)?;
            let (policy, again) = (
                config.xorb.compression_policy.as_str(),
                config.xorb.compression_scheme_retest_interval,
            );
            let serialized = SerializedXorbObject::from_xorb(raw, false, policy, again)
                .map_err(io::Error::other)?;
            let permit = self
                .client
                .acquire_upload_permit()
                .await
                .map_err(io::Error::other)?;
            self.client
                .upload_xorb("default", serialized, None, permit)
                .await
                .map_err(io::Error::other)?;
        }
        let hash = file_hash(&lengths);
        let info = MDBFileInfo {
            metadata: FileDataSequenceHeader::new(hash, segments.len(), false, true),
            segments,
            verification: Vec::new(),
            metadata_ext: Some(FileMetadataExt::new(
                MerkleHash::from_hex(&sha256).map_err(io::Error::other)?,
            )),
        };
        shard
            .add_file_reconstruction_info(info.clone())
            .map_err(io::Error::other)?;
        let permit = self
            .client
            .acquire_upload_permit()
            .await
            .map_err(io::Error::other)?;
        let shard = shard.to_bytes().map_err(io::Error::other)?;
        self.client
            .upload_shard(shard.into(), permit, None)
            .await
            .map_err(io::Error::other)?;
        self.know(info);
        Ok(sha256)
    }

    /// Headers of a file's answer that lead Xet clients to the store.
    pub(crate) fn links(
        &self,
        hub: &str,
        id: &str,
        commit: &str,
        sha256: &str,
    ) -> Option<[(HeaderName, String); 2]> {
        let hash = self.hash(sha256)?;
        let token = format!("<{hub}/api/models/{id}/xet-read-token/{commit}>; rel=\"xet-auth\"");
        let info = format!(
            "<{}/v1/reconstructions/{hash}>; rel=\"xet-reconstruction-info\"",
            self.url
        );
        Some([
            (HeaderName::from_static("x-xet-hash"), hash),
            (axum::http::header::LINK, format!("{token}, {info}")),
        ])
    }
}

/// Tokens for the store are signatures of what they let one do.
const READ: &str = "read";
const WRITE: &str = "write";

/// A token for the store, as JSON and as headers.
fn token(hub: &Hub, scope: &str) -> Answer<(Value, [(&'static str, String); 3])> {
    let xet = hub
        .xet
        .as_ref()
        .ok_or_else(|| Refusal::new(404, "This repository is not Xet-enabled"))?;
    let (token, until) = (
        hub.signatures
            .query(Listener::Cas, scope, hub.options.url_life),
        now() + hub.options.url_life.as_secs(),
    );
    let headers = [
        ("x-xet-cas-url", xet.url.clone()),
        ("x-xet-access-token", token.clone()),
        ("x-xet-token-expiration", until.to_string()),
    ];
    Ok((
        json!({"accessToken": token, "exp": until, "casUrl": xet.url}),
        headers,
    ))
}

/// `upload` of the LFS batch where Xet was chosen.
pub(crate) fn action(hub: &Hub, id: &str) -> Answer<Value> {
    let (_, headers) = token(hub, WRITE)?;
    let headers: HashMap<_, _> = headers.into();
    Ok(
        json!({"upload": {"href": format!("{}/api/models/{id}/xet-write-token/main", hub.url), "header": headers}}),
    )
}

type IdAt = Path<(String, String, String)>;

pub(crate) async fn read_token(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, revision)): IdAt,
) -> Answer {
    let mut repositories = lock(&hub.repositories);
    let repository = caller.sees(repositories.get_mut(&format!("{namespace}/{name}")))?;
    caller.reads(repository)?;
    repository.revision(&revision)?;
    let (told, headers) = token(&hub, READ)?;
    Ok((headers, Json(told)).into_response())
}

pub(crate) async fn write_token(
    State(hub): State<Arc<Hub>>,
    caller: Caller,
    Path((namespace, name, _)): IdAt,
    Query(how): Query<How>,
) -> Answer {
    let mut repositories = lock(&hub.repositories);
    // Whatever the revision: old clients ask for "None" where they mean a pull request.
    how.writable(caller, repositories.get_mut(&format!("{namespace}/{name}")))?;
    let (told, headers) = token(&hub, WRITE)?;
    Ok((headers, Json(told)).into_response())
}

/// The routes of the store's origin: all of Hugging Face's server, for callers with a token.
pub(crate) fn router(hub: Arc<Hub>) -> Router {
    Router::new().fallback(pass_on).with_state(hub)
}

async fn pass_on(State(hub): State<Arc<Hub>>, request: Request<Body>) -> Answer {
    let xet = hub
        .xet
        .as_ref()
        .ok_or_else(|| Refusal::new(404, "There is no store"))?;
    let (parts, body) = request.into_parts();
    // URLs that the store itself gave out.
    let signed = ["/v1/fetch_term", "/simulation/xorb-uploads/"]
        .iter()
        .any(|path| parts.uri.path().starts_with(path));
    let reads = parts.method == Method::GET || parts.method == Method::HEAD;
    let holds = |scope| {
        bearer(&parts).is_some_and(|token| hub.signatures.verify(Listener::Cas, scope, token))
    };
    if !(signed || holds(WRITE) || reads && holds(READ)) {
        return Err(Refusal::new(
            401,
            "Unauthorized: the token is not valid, or has expired",
        ));
    }
    let stream = TcpStream::connect(xet.behind).await.map_err(failed)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    tokio::spawn(connection);
    let response: Response<_> = sender
        .send_request(Request::from_parts(parts, body))
        .await
        .map_err(failed)?;
    Ok(response.map(Body::new))
}
