//! Large objects by their SHA-256, in memory or as files of a folder, and how they are streamed.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io};

use axum::body::{Body, Bytes};
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::refusal::{Answer, Refusal};
use crate::repository::hex;
use crate::server::lock;
use crate::xet::XetFile;

/// Where an object's bytes are.
#[derive(Clone)]
pub(crate) enum Object {
    Memory(Bytes),
    File(PathBuf, u64),
    Xet(XetFile),
}

impl Object {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Object::Memory(bytes) => bytes.len() as u64,
            Object::File(_, size) => *size,
            Object::Xet(file) => file.size,
        }
    }

    /// The bytes of `range` as the body of an answer, a piece at a time.
    pub(crate) async fn body(&self, range: Range<u64>) -> io::Result<Body> {
        match self {
            Object::Memory(bytes) => {
                Ok(bytes.slice(range.start as usize..range.end as usize).into())
            }
            Object::Xet(file) => Ok(file.body(range)),
            Object::File(path, _) => {
                let mut file = tokio::fs::File::open(path).await?;
                file.seek(io::SeekFrom::Start(range.start)).await?;
                let pieces =
                    stream::try_unfold(file.take(range.end - range.start), |mut file| async {
                        let mut piece = Vec::with_capacity(1 << 20);
                        while piece.len() < 1 << 20 && file.read_buf(&mut piece).await? > 0 {}
                        Ok::<_, io::Error>((!piece.is_empty()).then(|| (Bytes::from(piece), file)))
                    });
                Ok(Body::from_stream(pieces))
            }
        }
    }

    pub(crate) async fn bytes(&self) -> io::Result<Vec<u8>> {
        match self {
            Object::Memory(bytes) => Ok(bytes.to_vec()),
            Object::File(path, _) => fs::read(path),
            Object::Xet(file) => file.bytes().await.map(Vec::from),
        }
    }
}

pub(crate) struct Store {
    folder: Option<PathBuf>,
    objects: Mutex<HashMap<String, Object>>,
    incoming: AtomicU64,
}

impl Store {
    pub(crate) fn new(folder: Option<PathBuf>) -> io::Result<Self> {
        folder.iter().try_for_each(fs::create_dir_all)?;
        Ok(Self {
            folder,
            objects: Mutex::default(),
            incoming: AtomicU64::new(0),
        })
    }

    pub(crate) fn get(&self, sha256: &str) -> Option<Object> {
        lock(&self.objects).get(sha256).cloned()
    }

    /// Keeps `bytes`; their SHA-256.
    pub(crate) fn put(&self, bytes: &[u8]) -> io::Result<String> {
        let sha256 = hex(&Sha256::digest(bytes));
        let object = match &self.folder {
            None => Object::Memory(Bytes::copy_from_slice(bytes)),
            Some(folder) => {
                let path = folder.join(&sha256);
                fs::write(&path, bytes)?;
                Object::File(path, bytes.len() as u64)
            }
        };
        lock(&self.objects).insert(sha256.clone(), object);
        Ok(sha256)
    }

    /// An object that arrives in pieces.
    pub(crate) fn receiver(&self) -> Receiver {
        let number = self.incoming.fetch_add(1, Ordering::Relaxed);
        let path = self
            .folder
            .as_ref()
            .map(|folder| folder.join(format!("incoming-{number}")));
        Receiver {
            path,
            bytes: Vec::new(),
            hash: Sha256::new(),
            size: 0,
        }
    }

    /// Keeps what arrived, if it is the object that was expected; its SHA-256.
    pub(crate) fn finish(&self, expected: Option<&str>, receiver: Receiver) -> Answer<String> {
        let sha256 = hex(&receiver.hash.finalize());
        if expected.is_some_and(|expected| expected != sha256) {
            receiver
                .path
                .iter()
                .try_for_each(fs::remove_file)
                .map_err(failed)?;
            return Err(Refusal::new(
                400,
                "BadDigest: the content does not have the SHA-256 that was announced",
            ));
        }
        let object = match (receiver.path, &self.folder) {
            (Some(path), Some(folder)) => {
                let target = folder.join(&sha256);
                fs::rename(path, &target).map_err(failed)?;
                Object::File(target, receiver.size)
            }
            _ => Object::Memory(receiver.bytes.into()),
        };
        lock(&self.objects).insert(sha256.clone(), object);
        Ok(sha256)
    }

    pub(crate) fn remove(&self, sha256: &str) {
        if let Some(Object::File(path, _)) = lock(&self.objects).remove(sha256) {
            let _ = fs::remove_file(path);
        }
    }
}

/// An object on its way in.
pub(crate) struct Receiver {
    path: Option<PathBuf>,
    bytes: Vec<u8>,
    hash: Sha256,
    pub(crate) size: u64,
}

impl Receiver {
    /// Takes all of `body` as the next piece.
    pub(crate) async fn take(&mut self, body: Body) -> Answer<()> {
        let mut file = match &self.path {
            Some(path) => Some(
                tokio::fs::File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .await
                    .map_err(failed)?,
            ),
            None => None,
        };
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            let piece =
                piece.map_err(|error| Refusal::new(400, format!("IncompleteBody: {error}")))?;
            self.hash.update(&piece);
            self.size += piece.len() as u64;
            match &mut file {
                Some(file) => file.write_all(&piece).await.map_err(failed)?,
                None => self.bytes.extend_from_slice(&piece),
            }
        }
        match &mut file {
            Some(file) => file.flush().await.map_err(failed),
            None => Ok(()),
        }
    }
}

pub(crate) fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(500, format!("the server failed: {error}"))
}
