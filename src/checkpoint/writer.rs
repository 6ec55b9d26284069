//! Writing weights: sharded, streaming, parallel, hashed on the way, resumable.
//!
//! Worker threads fill chunks in file order and write them where they belong; whichever thread
//! finishes the next chunk in order also feeds the shard's hash. Chunks that are ahead of the hash
//! wait in memory, so their number is bounded: a worker that meets the bound hashes a slice of an
//! input file instead. Bytes do not depend on the number of threads.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::error::CheckpointError;
use super::filesystem::sync_folder;
use super::hash::{FileHash, FileHasher, sha256_file};
use super::names::{INDEX, PROGRESS};
use super::open_shard::{OpenShard, locked};
use super::output::OutputFolder;
use super::shards::{Shard, index, split};
use super::source_file::SourceFile;
use crate::{Error, Result, threads};

pub use super::shards::{TensorLayout, shard_count};

/// Where the bytes of the output come from.
pub trait TensorBytes: Sync {
    /// Working space that a thread keeps between calls.
    type Scratch: Default;
    /// Fills `out` with the bytes of tensor number `tensor` from byte `start` on.
    fn fill(
        &self,
        tensor: usize,
        start: u64,
        out: &mut [u8],
        scratch: &mut Self::Scratch,
    ) -> Result<()>;
}

/// How to write.
pub struct WriteOptions<'a> {
    /// Largest shard in bytes of tensor data; a larger tensor gets a shard of its own.
    pub max_shard_size: u64,
    /// Working memory in bytes, all threads together.
    pub memory: u64,
    /// Worker threads.
    pub threads: usize,
    /// Identity of the work: a partial folder with the same one is resumed, without one none is.
    pub fingerprint: Option<String>,
    /// Called with each number of bytes written, hashed or found whole.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// What was written, and the hashes of the input files that were asked for.
pub struct Written {
    /// Weight files and the index, in order.
    pub files: Vec<FileHash>,
    /// SHA-256 of each file of `also_hash`, in its order.
    pub hashes: Vec<String>,
}

/// The shards that a partial folder holds whole.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Progress {
    fingerprint: Option<String>,
    shards: Vec<FileHash>,
}

/// Values of a chunk: all threads together stay within `memory` bytes, and 4 buffers may wait for the hash.
fn chunk_elements(memory: u64, threads: usize) -> Result<u64> {
    let threads = threads as u64;
    // A thread holds an f64 sum, an f64 term, the raw bytes, and the bytes to write, 8 each at most.
    let per_element = 32 * threads + 8 * (MAX_WAITING as u64 + 1);
    let elements = (memory / per_element).min(1 << 20) / 256 * 256;
    if elements < 4096 {
        let least = (per_element * 4096).next_multiple_of(1 << 20) >> 20;
        return Err(CheckpointError::LittleMemory {
            memory,
            threads,
            least,
        }
        .into());
    }
    Ok(elements)
}

const MAX_WAITING: usize = 4;

/// Writes all weight files and, for more than one, the index; hashes `also_hash` beside it.
pub fn write_weights<B: TensorBytes>(
    folder: &OutputFolder,
    tensors: &[TensorLayout],
    bytes: &B,
    options: &WriteOptions,
    also_hash: &[&SourceFile],
) -> Result<Written> {
    let shards = split(tensors, options.max_shard_size);
    let progress = resume(folder, options)?;
    let (mut files, hashes) = write_shards(
        folder, &shards, tensors, bytes, options, also_hash, progress,
    )?;
    if shards.len() > 1 {
        files.push(folder.write(INDEX, &index(&shards, tensors))?);
    }
    Ok(Written { files, hashes })
}

/// Writes one more file of tensors beside what the folder holds already; a killed run leaves nothing to resume from.
pub fn write_file<B: TensorBytes>(
    folder: &OutputFolder,
    name: &str,
    tensors: &[TensorLayout],
    bytes: &B,
    options: &WriteOptions,
) -> Result<Option<FileHash>> {
    let shard = Shard {
        name: name.to_owned(),
        tensors: (0..tensors.len()).collect(),
    };
    let (mut files, _) = write_shards(
        folder,
        &[shard],
        tensors,
        bytes,
        options,
        &[],
        Progress::default(),
    )?;
    Ok(files.pop())
}

/// Writes the shards that `progress` does not hold, and hashes `also_hash` beside.
fn write_shards<B: TensorBytes>(
    folder: &OutputFolder,
    shards: &[Shard],
    tensors: &[TensorLayout],
    bytes: &B,
    options: &WriteOptions,
    also_hash: &[&SourceFile],
    progress: Progress,
) -> Result<(Vec<FileHash>, Vec<String>)> {
    let whole: BTreeMap<&str, &FileHash> = progress
        .shards
        .iter()
        .map(|shard| (shard.path.as_str(), shard))
        .collect();
    let mut open = Vec::new();
    for shard in shards {
        if whole.contains_key(shard.name.as_str()) {
            let size: u64 = shard
                .tensors
                .iter()
                .map(|tensor| tensors[*tensor].length())
                .sum();
            (options.progress)(size);
        } else {
            open.push(OpenShard::new(folder.path(), shard, tensors));
        }
    }
    let run = Run {
        tensors,
        bytes,
        folder,
        options,
        shards: &open,
        chunk: chunk_elements(options.memory, options.threads)?,
        cursor: Mutex::new(Cursor::default()),
        hashes: Mutex::new(
            also_hash
                .iter()
                .map(|source| FileHasher::new(source))
                .enumerate()
                .collect(),
        ),
        hashed: Mutex::new(vec![String::new(); also_hash.len()]),
        waiting: Mutex::new(0),
        spare: Mutex::default(),
        hash_moved: Condvar::new(),
        failed: AtomicBool::new(false),
        error: Mutex::new(None),
        progress: Mutex::new(Progress {
            fingerprint: progress.fingerprint.clone(),
            shards: progress.shards.clone(),
        }),
    };
    // A shard without data gets no chunk that would complete it.
    for shard in run.shards {
        if let Some(sha256) = shard.hash_of_empty() {
            run.finish(shard, sha256)?;
        }
    }
    std::thread::scope(|scope| {
        threads::share(scope, options.threads, || run.work());
    });
    if let Some(error) = locked(&run.error).take() {
        return Err(error);
    }
    let hashes = std::mem::take(&mut *locked(&run.hashed));
    let mut done = std::mem::take(&mut locked(&run.progress).shards);
    done.sort();
    remove(folder, PROGRESS)?;
    Ok((done, hashes))
}

/// What an earlier, killed run with the same fingerprint has left whole; everything else is removed.
fn resume(folder: &OutputFolder, options: &WriteOptions) -> Result<Progress> {
    let path = folder.path().join(PROGRESS);
    let found: Option<Progress> = fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut progress = Progress {
        fingerprint: options.fingerprint.clone(),
        shards: Vec::new(),
    };
    let is_same =
        |found: &Progress| found.fingerprint.is_some() && found.fingerprint == options.fingerprint;
    if let Some(found) = found.filter(is_same) {
        for shard in found.shards {
            let path = folder.path().join(&shard.path);
            if path.exists() && sha256_file(&path)? == (shard.sha256.clone(), shard.size) {
                progress.shards.push(shard);
            }
        }
    }
    folder.clear_but(&|name| {
        name == PROGRESS || progress.shards.iter().any(|shard| shard.path == name)
    })?;
    Ok(progress)
}

fn remove(folder: &OutputFolder, name: &str) -> Result<()> {
    let path = folder.path().join(name);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Where the next chunk begins.
#[derive(Default)]
struct Cursor {
    shard: usize,
    tensor: usize,
    start: u64,
}

/// One piece of one tensor.
struct Chunk {
    shard: usize,
    tensor: usize,
    start: u64,
    length: usize,
    offset: u64,
}

struct Run<'a, B> {
    tensors: &'a [TensorLayout],
    bytes: &'a B,
    folder: &'a OutputFolder,
    options: &'a WriteOptions<'a>,
    shards: &'a [OpenShard],
    chunk: u64,
    cursor: Mutex<Cursor>,
    hashes: Mutex<VecDeque<(usize, FileHasher<'a>)>>,
    hashed: Mutex<Vec<String>>,
    /// Chunks written but not hashed yet.
    waiting: Mutex<usize>,
    /// Buffers of chunks that are hashed, for the next: fresh memory is cleared by the system page by page.
    spare: Mutex<Vec<Vec<u8>>>,
    hash_moved: Condvar,
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
    progress: Mutex<Progress>,
}

impl<B: TensorBytes> Run<'_, B> {
    fn work(&self) {
        if let Err(error) = self.work_until_done() {
            self.failed.store(true, Ordering::SeqCst);
            locked(&self.error).get_or_insert(error);
            self.hash_moved.notify_all();
        }
    }

    fn work_until_done(&self) -> Result<()> {
        let mut scratch = B::Scratch::default();
        let mut slice = Vec::new();
        while !self.failed.load(Ordering::SeqCst) {
            if *locked(&self.waiting) >= MAX_WAITING {
                if !self.hash_a_slice(&mut slice)? {
                    let waiting = locked(&self.waiting);
                    // Timed, so that a thread that fails in between cannot leave this one asleep.
                    let _ = self
                        .hash_moved
                        .wait_timeout(waiting, Duration::from_millis(20));
                }
                continue;
            }
            match self.next_chunk() {
                Some(chunk) => self.write(&chunk, &mut scratch)?,
                None if self.hash_a_slice(&mut slice)? => {}
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Reads and hashes a slice of one input file; false where none is left to take.
    fn hash_a_slice(&self, buf: &mut Vec<u8>) -> Result<bool> {
        let Some((number, mut hasher)) = locked(&self.hashes).pop_front() else {
            return Ok(false);
        };
        buf.resize(1 << 20, 0);
        match hasher.advance(buf)? {
            Some(hash) => locked(&self.hashed)[number] = hash,
            None => {
                (self.options.progress)(buf.len() as u64);
                locked(&self.hashes).push_front((number, hasher));
            }
        }
        Ok(true)
    }

    fn next_chunk(&self) -> Option<Chunk> {
        let mut cursor = locked(&self.cursor);
        loop {
            let shard = self.shards.get(cursor.shard)?;
            let Some((tensor, offset)) = shard.tensors.get(cursor.tensor) else {
                *cursor = Cursor {
                    shard: cursor.shard + 1,
                    ..Cursor::default()
                };
                continue;
            };
            let layout = &self.tensors[*tensor];
            let most = self.chunk * layout.dtype.bitsize() as u64 / 8;
            let length = (layout.length() - cursor.start).min(most);
            let chunk = Chunk {
                shard: cursor.shard,
                tensor: *tensor,
                start: cursor.start,
                length: length as usize,
                offset: offset + cursor.start,
            };
            cursor.start += length;
            if cursor.start == layout.length() {
                cursor.tensor += 1;
                cursor.start = 0;
            }
            if length > 0 {
                return Some(chunk);
            }
        }
    }

    fn write(&self, chunk: &Chunk, scratch: &mut B::Scratch) -> Result<()> {
        let shard = &self.shards[chunk.shard];
        let mut buf = locked(&self.spare).pop().unwrap_or_default();
        buf.resize(chunk.length, 0);
        self.bytes
            .fill(chunk.tensor, chunk.start, &mut buf, scratch)?;
        shard.write(&buf, chunk.offset)?;
        (self.options.progress)(chunk.length as u64);
        // Counted first: another thread may hash the chunk as soon as it waits.
        *locked(&self.waiting) += 1;
        shard.await_hash(buf, chunk.offset);
        while let Some(hashed) = shard.hash_next() {
            locked(&self.spare).push(hashed.chunk);
            *locked(&self.waiting) -= 1;
            self.hash_moved.notify_one();
            if let Some(sha256) = hashed.sha256 {
                self.finish(shard, sha256)?;
            }
        }
        Ok(())
    }

    /// Makes a whole shard durable and records it for a run that resumes.
    fn finish(&self, shard: &OpenShard, sha256: String) -> Result<()> {
        shard.close()?;
        let mut progress = locked(&self.progress);
        progress.shards.push(FileHash {
            path: shard.name.clone(),
            size: shard.length,
            sha256,
        });
        let text =
            serde_json::to_vec(&*progress).map_err(|e| Error::compute("record the progress", e))?;
        let (path, new) = (
            self.folder.path().join(PROGRESS),
            self.folder.path().join(".progress.new"),
        );
        self.folder.write(".progress.new", &text)?;
        fs::rename(&new, &path).map_err(|e| Error::io("rename", &new, e))?;
        sync_folder(self.folder.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_memory_is_refused_with_the_least_that_would_do() {
        assert!(chunk_elements(128 << 20, 2).is_ok());
        let error = chunk_elements(1 << 16, 8).unwrap_err();
        assert!(error.hint().unwrap().contains("MiB"), "{error}");
    }
}
