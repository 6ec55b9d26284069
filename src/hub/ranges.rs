//! A checkpoint on the Hub whose weights are read by ranges, as a command asks for them: nothing of model size on the disk.
//!
//! [`headers`](super::headers()) makes the folder. A part of a file cannot be checked against the hash of the whole file. So
//! commands that report read by ranges, and commands that build upon the weights pull them.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::client::HubClient;
use super::error::HubError;
use super::headers::{fetch_headers, is_weight_file};
use super::pull::Pull;
use super::remote_file::RemoteFile;
use super::retry::RetryPolicy;
use super::selection::FileSelection;
use super::tree::{FileEntry, Snapshot};
use crate::checkpoint::reference::Reference;
use crate::checkpoint::{ReadAt, elsewhere};
use crate::{Result, threads};

/// Bytes that are fetched at once: a request takes as long as the transfer of some hundred thousand bytes.
const BLOCK: u64 = 4 << 20;
/// Blocks kept beside those that threads work on.
const SPARE: usize = 2;

/// A folder whose weights are on the Hub; where the cache has the whole revision, the folder of the cache.
///
/// # Errors
/// As [`headers`](super::headers()).
pub fn ranges(client: HubClient, reference: &Reference) -> Result<PathBuf> {
    let snapshot = {
        let pull = Pull::new(&client, reference, &FileSelection::default(), None)?;
        if pull.missing() == 0 {
            return Ok(pull.run(false, 1, &|_| {})?.folder);
        }
        pull.snapshot
    };
    let folder = fetch_headers(&client, &snapshot)?;
    let weights = FileSelection::default().choose(&snapshot)?.into_iter();
    let weights: Vec<(String, FileEntry)> = weights
        .filter(|path| is_weight_file(path))
        .map(|path| (path.to_owned(), snapshot.files[path].clone()))
        .collect();
    let repository = Arc::new(Repository {
        client,
        snapshot,
        blocks: Mutex::default(),
    });
    for (path, entry) in weights {
        let bytes = RemoteWeights {
            repository: Arc::clone(&repository),
            path: path.clone(),
            entry,
        };
        elsewhere::bring(&folder.join(path), Arc::new(bytes))?;
    }
    Ok(folder)
}

/// A revision, and the parts of its files that were fetched last.
struct Repository {
    client: HubClient,
    snapshot: Snapshot,
    blocks: Mutex<VecDeque<Block>>,
}

/// A part of a file; empty until it has been fetched.
struct Block {
    path: String,
    number: u64,
    bytes: Arc<Mutex<Option<Vec<u8>>>>,
}

/// A weight file on the Hub.
struct RemoteWeights {
    repository: Arc<Repository>,
    path: String,
    entry: FileEntry,
}

impl ReadAt for RemoteWeights {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let position = offset + done as u64;
            let number = position / BLOCK;
            let within = (position - number * BLOCK) as usize;
            let block = self.repository.block(&self.path, number);
            // One thread fetches a block; the others that need it wait.
            let mut bytes = block.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = match &mut *bytes {
                Some(bytes) => bytes,
                empty => empty.insert(self.fetch(number)?),
            };
            let count = bytes.len().saturating_sub(within).min(buf.len() - done);
            if count == 0 {
                return Err(HubError::CutOff {
                    place: self.file().place(),
                    size: self.entry.size,
                    received: position,
                }
                .into());
            }
            buf[done..done + count].copy_from_slice(&bytes[within..within + count]);
            done += count;
        }
        Ok(())
    }
}

impl RemoteWeights {
    fn file(&self) -> RemoteFile<'_> {
        RemoteFile {
            client: &self.repository.client,
            snapshot: &self.repository.snapshot,
            path: &self.path,
            entry: &self.entry,
        }
    }

    /// The bytes of a block; the last block ends with the file.
    fn fetch(&self, number: u64) -> Result<Vec<u8>> {
        let begin = number * BLOCK;
        let end = self.entry.size.min(begin + BLOCK);
        let mut bytes = Vec::with_capacity(end.saturating_sub(begin) as usize);
        let mut retries = RetryPolicy::new();
        while begin + (bytes.len() as u64) < end {
            let position = begin + bytes.len() as u64;
            let found = self.file().stream(position, Some(end), &mut |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })?;
            if let Err(failure) = found {
                retries.wait(failure)?;
            }
        }
        Ok(bytes)
    }
}

impl Repository {
    /// The place of a block. The one that was asked for least lately makes room.
    fn block(&self, path: &str, number: u64) -> Arc<Mutex<Option<Vec<u8>>>> {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let found = blocks
            .iter()
            .position(|block| block.number == number && block.path == path);
        let block = found.and_then(|at| blocks.remove(at));
        let block = block.unwrap_or_else(|| Block {
            path: path.to_owned(),
            number,
            bytes: Arc::default(),
        });
        let bytes = Arc::clone(&block.bytes);
        blocks.push_back(block);
        if blocks.len() > threads::count() + SPARE {
            blocks.pop_front();
        }
        bytes
    }
}
