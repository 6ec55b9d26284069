//! Writing the shards of a split.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::encode::EncodedDocument;
use super::header::{Shard, ShardMask};
use super::layout::{IdType, Split, ends_file, mask_file, shard_file};
use crate::checkpoint::filesystem;
use crate::checkpoint::hash::hex;
use crate::{Error, Result};

/// Ids that are turned into bytes at once.
const AT_ONCE: usize = 1 << 16;

/// The shards of a split, written one after the other.
pub(super) struct Shards<'a> {
    folder: &'a Path,
    split: Split,
    dtype: IdType,
    /// Bytes of ids in a shard; a single longer document gets one of its own.
    limit: u64,
    open: Option<Open>,
    done: Vec<Shard>,
}

struct Open {
    ids: HashedFile,
    ends: HashedFile,
    /// Of conversations, which tokens carry loss, and what the header says of them.
    mask: Option<(HashedFile, ShardMask)>,
    tokens: u64,
    documents: u64,
    bytes_of_text: u64,
}

impl<'a> Shards<'a> {
    pub fn new(folder: &'a Path, split: Split, dtype: IdType, limit: u64) -> Self {
        Self {
            folder,
            split,
            dtype,
            limit,
            open: None,
            done: Vec::new(),
        }
    }

    /// Adds a document, all of whose ids the dtype holds. All documents have masks, or none has.
    pub fn add(&mut self, document: &EncodedDocument) -> Result<()> {
        let ids = &document.ids;
        let width = self.dtype.width();
        let is_full = |open: &Open| (open.tokens + ids.len() as u64) * width > self.limit;
        if self.open.as_ref().is_some_and(is_full) {
            self.close()?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let number = self.done.len();
                let mask = document.mask.as_ref().map(|_| {
                    let file = self.folder.join(mask_file(self.split, number));
                    Ok::<_, Error>((HashedFile::create(file)?, ShardMask::default()))
                });
                none.insert(Open {
                    mask: mask.transpose()?,
                    ids: HashedFile::create(self.folder.join(shard_file(self.split, number)))?,
                    ends: HashedFile::create(self.folder.join(ends_file(self.split, number)))?,
                    tokens: 0,
                    documents: 0,
                    bytes_of_text: 0,
                })
            }
        };
        // A document may have 64 million tokens.
        for ids in ids.chunks(AT_ONCE) {
            let bytes: Vec<u8> = match self.dtype {
                IdType::U16 => ids
                    .iter()
                    .flat_map(|id| (*id as u16).to_le_bytes())
                    .collect(),
                IdType::U32 => ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
            };
            open.ids.write(&bytes)?;
        }
        if let (Some((file, sums)), Some(mask)) = (&mut open.mask, &document.mask) {
            for scored in mask.scored.chunks(AT_ONCE) {
                let bytes: Vec<u8> = scored.iter().copied().map(u8::from).collect();
                file.write(&bytes)?;
            }
            sums.tokens += mask.scored.iter().filter(|scored| **scored).count() as u64;
            sums.bytes_of_text += mask.bytes_of_text;
        }
        open.tokens += ids.len() as u64;
        open.documents += 1;
        open.bytes_of_text += document.bytes_of_text;
        open.ends.write(&open.tokens.to_le_bytes())
    }

    /// Makes everything durable and lists the shards.
    pub fn finish(mut self) -> Result<Vec<Shard>> {
        self.close()?;
        Ok(self.done)
    }

    fn close(&mut self) -> Result<()> {
        if let Some(open) = self.open.take() {
            let mask = open.mask.map(|(file, sums)| {
                let sha256 = file.finish()?;
                Ok::<_, Error>(ShardMask { sha256, ..sums })
            });
            self.done.push(Shard {
                file: shard_file(self.split, self.done.len()),
                tokens: open.tokens,
                documents: open.documents,
                bytes_of_text: open.bytes_of_text,
                sha256: open.ids.finish()?,
                ends_sha256: open.ends.finish()?,
                mask: mask.transpose()?,
            });
        }
        Ok(())
    }
}

/// A file whose hash is taken while it is written.
struct HashedFile {
    path: PathBuf,
    file: BufWriter<File>,
    hash: Sha256,
}

impl HashedFile {
    fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        Ok(Self {
            path,
            file: BufWriter::with_capacity(1 << 18, file),
            hash: Sha256::new(),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.file
            .write_all(bytes)
            .map_err(|e| Error::io("write", &self.path, e))
    }

    fn finish(mut self) -> Result<String> {
        let synced = self
            .file
            .flush()
            .and_then(|()| filesystem::sync(self.file.get_ref()));
        synced.map_err(|e| Error::io("write", &self.path, e))?;
        Ok(hex(&self.hash.finalize()))
    }
}
