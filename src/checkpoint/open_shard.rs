//! A weight file being written, chunk by chunk in any order, and hashed in the order of its bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use super::hash::hex;
use super::shards::{Shard, TensorLayout};
use super::{filesystem, header};
use crate::{Error, Result};

/// A shard being written.
pub(super) struct OpenShard {
    /// Its name in the folder.
    pub(super) name: String,
    path: PathBuf,
    /// Open from the first chunk to the last: a checkpoint can have more shards than a process may have files.
    file: Mutex<Option<Arc<File>>>,
    /// What the file begins with.
    head: Vec<u8>,
    /// Tensor numbers and the offset of each in the file.
    pub(super) tensors: Vec<(usize, u64)>,
    /// Length of the whole file in bytes.
    pub(super) length: u64,
    hash: Mutex<ShardHash>,
}

struct ShardHash {
    /// Absent while a thread feeds it.
    state: Option<Sha256>,
    /// Bytes of the file fed so far.
    position: u64,
    /// Finished chunks by their offset in the file.
    waiting: BTreeMap<u64, Vec<u8>>,
}

/// A chunk that the hash has seen.
pub(super) struct Hashed {
    /// Its memory, which the next chunk can use.
    pub(super) chunk: Vec<u8>,
    /// The SHA-256 of the file, if this was its last chunk.
    pub(super) sha256: Option<String>,
}

impl OpenShard {
    /// Nothing is made on disk yet.
    pub(super) fn new(folder: &Path, shard: &Shard, tensors: &[TensorLayout]) -> Self {
        let entries = shard.tensors.iter().map(|number| {
            let tensor = &tensors[*number];
            (tensor.name.as_str(), tensor.dtype, &tensor.shape[..])
        });
        let head = header::write(entries);
        let path = folder.join(&shard.name);
        let mut offset = head.len() as u64;
        let mut placed = Vec::with_capacity(shard.tensors.len());
        for number in &shard.tensors {
            placed.push((*number, offset));
            offset += tensors[*number].length();
        }
        let hash = ShardHash {
            state: Some(Sha256::new_with_prefix(&head)),
            position: head.len() as u64,
            waiting: BTreeMap::new(),
        };
        Self {
            name: shard.name.clone(),
            path,
            file: Mutex::new(None),
            head,
            tensors: placed,
            length: offset,
            hash: Mutex::new(hash),
        }
    }

    /// The file, made with its header and holes for data unless it is open.
    pub(super) fn file(&self) -> Result<Arc<File>> {
        let mut open = locked(&self.file);
        if let Some(file) = &*open {
            return Ok(Arc::clone(file));
        }
        let file = File::create(&self.path).map_err(|e| Error::io("create", &self.path, e))?;
        file.write_all_at(&self.head, 0)
            .and_then(|()| file.set_len(self.length))
            .map_err(|e| Error::io("write", &self.path, e))?;
        Ok(Arc::clone(open.insert(Arc::new(file))))
    }

    /// Writes a chunk at its place.
    pub(super) fn write(&self, chunk: &[u8], offset: u64) -> Result<()> {
        let file = self.file()?;
        file.write_all_at(chunk, offset)
            .map_err(|e| Error::io("write", &self.path, e))?;
        begin_writeback(&file, offset, chunk.len());
        Ok(())
    }

    /// Keeps a written chunk until the hash has come to it.
    pub(super) fn await_hash(&self, chunk: Vec<u8>, offset: u64) {
        locked(&self.hash).waiting.insert(offset, chunk);
    }

    /// Feeds the hash with the chunk that is next in order, and returns the chunk's memory.
    ///
    /// Nothing where another thread feeds the hash, or where that chunk is not written yet.
    pub(super) fn hash_next(&self) -> Option<Hashed> {
        let mut hash = locked(&self.hash);
        let position = hash.position;
        let mut state = hash.state.take()?;
        let Some(chunk) = hash.waiting.remove(&position) else {
            hash.state = Some(state);
            return None;
        };
        drop(hash);
        state.update(&chunk);

        let mut hash = locked(&self.hash);
        hash.position += chunk.len() as u64;
        hash.state = Some(state);
        let sha256 = self.complete(&hash);
        Some(Hashed { chunk, sha256 })
    }

    /// The SHA-256 of a shard that has no data.
    pub(super) fn hash_of_empty(&self) -> Option<String> {
        self.complete(&locked(&self.hash))
    }

    /// The SHA-256, once it has seen the whole file.
    fn complete(&self, hash: &ShardHash) -> Option<String> {
        let state = hash.state.as_ref()?;
        (hash.position == self.length).then(|| hex(&state.clone().finalize()))
    }

    /// Makes the whole file durable, and closes it.
    pub(super) fn close(&self) -> Result<()> {
        filesystem::sync(&*self.file()?).map_err(|e| Error::io("sync", &self.path, e))?;
        *locked(&self.file) = None;
        Ok(())
    }
}

/// A lock that a panicking thread left guards data that nobody will use.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks the system to send written bytes to the disk now, so that the sync at the end has little left to wait for.
fn begin_writeback(file: &File, offset: u64, length: usize) {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
            return;
        };
        // SAFETY: the descriptor is open, and no memory is passed. A refusal costs time alone: `sync_all` has the say.
        unsafe {
            libc::sync_file_range(
                file.as_raw_fd(),
                offset,
                length,
                libc::SYNC_FILE_RANGE_WRITE,
            )
        };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, offset, length);
}
