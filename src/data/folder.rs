//! Reading a token folder.

use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::header::{Shard, ShardMask, TokenHeader};
use super::layout::{IdType, Split, ends_file, mask_file, shard_file};
use super::token_error::TokenError;
use crate::Result;
use crate::checkpoint::known_hashes::sha256_of_source;
use crate::checkpoint::{ReadAt, SourceFile};

/// Document ends read from disk at once.
const ENDS_AT_ONCE: u64 = 512;

/// A folder of token ids: the documents of each split in a row. Texts have an end of text each.
///
/// Positions are counted over all shards of a split. Ids are read from disk when they are asked for; only the header is
/// in memory.
#[derive(Debug)]
pub struct TokenFolder {
    path: PathBuf,
    header: TokenHeader,
    hash: String,
    train: Stream,
    validation: Stream,
}

/// The shards of a split.
#[derive(Debug, Default)]
struct Stream {
    shards: Vec<OpenShard>,
    tokens: u64,
    documents: u64,
}

#[derive(Debug)]
struct OpenShard {
    ids: SourceFile,
    ends: SourceFile,
    /// One byte for each token: 1 where it carries loss. Without it, all do.
    mask: Option<SourceFile>,
    /// Tokens and documents of the shards before this one.
    first_token: u64,
    first_document: u64,
    tokens: u64,
    documents: u64,
}

impl TokenFolder {
    /// Opens a token folder; a shard that is missing, cut or longer than the header says is an error that names it.
    pub fn open(path: &Path) -> Result<Self> {
        let (header, hash) = TokenHeader::read(path)?;
        let stream = |split| {
            Stream::open(
                path,
                split,
                header.splits.get(&split).map_or(&[], Vec::as_slice),
                &header,
            )
        };
        let (train, validation) = (stream(Split::Train)?, stream(Split::Validation)?);
        if train.tokens + validation.tokens == 0 {
            let path = path.to_path_buf();
            return Err(TokenError::NoTokens { path }.into());
        }
        Ok(Self {
            path: path.to_path_buf(),
            hash,
            train,
            validation,
            header,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `header.json` says.
    pub fn header(&self) -> &TokenHeader {
        &self.header
    }

    /// SHA-256 of the header, in hexadecimal. It identifies the whole folder, because the header holds the hash of
    /// every shard.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The tokenizer's highest id plus one.
    pub fn vocab_size(&self) -> u64 {
        self.header.vocab_size
    }

    /// SHA-256 of the `tokenizer.json` that made the ids.
    pub fn tokenizer_sha256(&self) -> &str {
        &self.header.tokenizer_sha256
    }

    /// Tokens of a split, ends of text counted.
    pub fn tokens(&self, split: Split) -> u64 {
        self.stream(split).tokens
    }

    /// Documents of a split.
    pub fn documents(&self, split: Split) -> u64 {
        self.stream(split).documents
    }

    /// Bytes of text that a split's tokens stand for.
    pub fn bytes_of_text(&self, split: Split) -> u64 {
        self.sum(split, |shard| shard.bytes_of_text)
    }

    /// Bytes of text for each token of a split that carries loss, on average. `ended` says whether ends of text are
    /// counted as tokens.
    pub fn bytes_per_scored_token(&self, split: Split, ended: bool) -> f64 {
        let (tokens, bytes) = if self.header.has_masks() {
            let mask = |value: fn(&ShardMask) -> u64| {
                self.sum(split, |shard| shard.mask.as_ref().map_or(0, value))
            };
            (mask(|mask| mask.tokens), mask(|mask| mask.bytes_of_text))
        } else {
            let ends = if ended { 0 } else { self.documents(split) };
            (self.tokens(split) - ends, self.bytes_of_text(split))
        };
        bytes as f64 / tokens.max(1) as f64
    }

    /// Refuses a split with tokens of which none carries loss.
    pub fn check_answers(&self, split: Split) -> Result<()> {
        let answers = self.sum(split, |shard| {
            shard.mask.as_ref().map_or(shard.tokens, |mask| mask.tokens)
        });
        if answers > 0 || self.tokens(split) == 0 {
            return Ok(());
        }
        let path = self.path.clone();
        Err(TokenError::NoAnswers { path, split }.into())
    }

    fn sum(&self, split: Split, value: impl Fn(&Shard) -> u64) -> u64 {
        let shards = self.header.splits.get(&split).into_iter().flatten();
        // Bytes of text are what the header says, and nothing bounds them.
        shards.map(value).fold(0, u64::saturating_add)
    }

    /// Refuses tokens that another tokenizer made than the one whose `tokenizer.json` has this SHA-256; `owner` names
    /// whose it is in the error.
    pub fn check_tokenizer(&self, sha256: &str, owner: &Path) -> Result<()> {
        if self.tokenizer_sha256() == sha256 {
            return Ok(());
        }
        Err(TokenError::OtherTokenizer {
            path: self.path.clone(),
            found: self.tokenizer_sha256().to_owned(),
            owner: owner.to_path_buf(),
            expected: sha256.to_owned(),
        }
        .into())
    }

    /// Refuses a split whose files do not have the content that the header's hashes promise.
    ///
    /// It reads large files once: their hashes are remembered by size, times and inode.
    pub fn check_content(&self, split: Split) -> Result<()> {
        let shards = self.header.splits.get(&split).into_iter().flatten();
        let files: Vec<(&SourceFile, &str)> = self
            .stream(split)
            .shards
            .iter()
            .zip(shards)
            .flat_map(|(open, shard)| {
                let masks = open.mask.as_ref().zip(shard.mask.as_ref());
                let files = [
                    Some((&open.ids, shard.sha256.as_str())),
                    Some((&open.ends, shard.ends_sha256.as_str())),
                    masks.map(|(file, mask)| (file, mask.sha256.as_str())),
                ];
                files.into_iter().flatten()
            })
            .collect();
        let check = |(file, expected): &(&SourceFile, &str)| {
            let found = sha256_of_source(file, false)?;
            if found == *expected {
                return Ok(());
            }
            Err(TokenError::WrongHash {
                path: file.path().to_path_buf(),
                expected: (*expected).to_owned(),
                found,
            }
            .into())
        };
        let checked = files.par_iter().map(check);
        checked.find_first(Result::is_err).unwrap_or(Ok(()))
    }

    /// Refuses a folder with a file of ids, ends or masks that changed since the folder was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        let shards = self.train.shards.iter().chain(&self.validation.shards);
        shards
            .flat_map(|shard| [Some(&shard.ids), Some(&shard.ends), shard.mask.as_ref()])
            .flatten()
            .try_for_each(SourceFile::check_unchanged)
    }

    /// The ids at `positions` of a split, which must lie within it.
    pub fn ids(&self, split: Split, positions: Range<u64>) -> Result<Vec<u32>> {
        let width = self.header.dtype.width();
        let mut found = Vec::with_capacity((positions.end - positions.start) as usize);
        let stream = self.stream(split);
        for (shard, part) in stream.parts(&positions) {
            let mut bytes = vec![0; ((part.end - part.start) * width) as usize];
            shard.ids.read_exact_at(&mut bytes, part.start * width)?;
            match self.header.dtype {
                IdType::U16 => found.extend(
                    bytes
                        .chunks_exact(2)
                        .map(|id| u32::from(u16::from_le_bytes([id[0], id[1]]))),
                ),
                IdType::U32 => {
                    found.extend(
                        bytes
                            .chunks_exact(4)
                            .map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])),
                    );
                }
            }
            if let Some(id) = found
                .iter()
                .find(|id| u64::from(**id) >= self.header.vocab_size)
            {
                return Err(TokenError::LargeId {
                    path: shard.ids.path().to_path_buf(),
                    id: *id,
                    vocab_size: self.header.vocab_size,
                }
                .into());
            }
        }
        if found.len() as u64 != positions.end - positions.start {
            return Err(TokenError::NoSuchToken {
                path: self.path.clone(),
                split,
                tokens: stream.tokens,
                position: positions.end,
            }
            .into());
        }
        Ok(found)
    }

    /// For each token at `positions` of a split, which must lie within it, whether it carries loss.
    pub fn scored(&self, split: Split, positions: Range<u64>) -> Result<Vec<bool>> {
        let mut found = Vec::with_capacity((positions.end - positions.start) as usize);
        for (shard, part) in self.stream(split).parts(&positions) {
            let length = (part.end - part.start) as usize;
            let Some(mask) = &shard.mask else {
                found.resize(found.len() + length, true);
                continue;
            };
            let mut bytes = vec![0; length];
            mask.read_exact_at(&mut bytes, part.start)?;
            if let Some(at) = bytes.iter().position(|byte| *byte > 1) {
                return Err(TokenError::WrongMask {
                    path: mask.path().to_path_buf(),
                    position: part.start + at as u64,
                    found: bytes[at],
                }
                .into());
            }
            found.extend(bytes.into_iter().map(|byte| byte == 1));
        }
        Ok(found)
    }

    /// The ends of documents within `positions` of a split: each end is the position after a document's end of text, in
    /// `positions.start + 1 ..= positions.end`.
    pub fn ends(&self, split: Split, positions: Range<u64>) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        let stream = self.stream(split);
        for shard in &stream.shards[stream.shard_of(positions.start)..] {
            if shard.first_token >= positions.end {
                break;
            }
            let local = positions.start.saturating_sub(shard.first_token)
                ..positions.end - shard.first_token;
            let first = shard.first_end_after(local.start)?;
            'shard: for start in (first..shard.documents).step_by(ENDS_AT_ONCE as usize) {
                for end in shard.read_ends(start, ENDS_AT_ONCE.min(shard.documents - start))? {
                    if end > local.end {
                        break 'shard;
                    }
                    // Ends out of order can come before the range that the search found.
                    if end <= local.start {
                        continue;
                    }
                    found.push(shard.first_token + end);
                }
            }
        }
        Ok(found)
    }

    /// The positions of document number `number` of a split, its end of text included.
    pub fn document(&self, split: Split, number: u64) -> Result<Range<u64>> {
        let stream = self.stream(split);
        let shard = stream
            .shards
            .iter()
            .find(|shard| number < shard.first_document + shard.documents);
        let Some(shard) = shard else {
            return Err(TokenError::NoSuchDocument {
                path: self.path.clone(),
                split,
                documents: stream.documents,
                number,
            }
            .into());
        };
        let local = number - shard.first_document;
        let start = if local == 0 {
            0
        } else {
            shard.read_ends(local - 1, 1)?[0]
        };
        let end = shard.read_ends(local, 1)?[0];
        if start > end || end > shard.tokens {
            return Err(TokenError::WrongEnd {
                path: shard.ends.path().to_path_buf(),
                document: local,
            }
            .into());
        }
        Ok(shard.first_token + start..shard.first_token + end)
    }

    fn stream(&self, split: Split) -> &Stream {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
        }
    }
}

impl Stream {
    fn open(folder: &Path, split: Split, shards: &[Shard], header: &TokenHeader) -> Result<Self> {
        let mut stream = Self::default();
        for (number, shard) in shards.iter().enumerate() {
            let ids = open_shard(
                &folder.join(shard_file(split, number)),
                shard.tokens,
                header.dtype.width(),
            )?;
            let ends = open_shard(
                &folder.join(ends_file(split, number)),
                shard.documents,
                size_of::<u64>() as u64,
            )?;
            let mask = shard.mask.as_ref().map(|_| {
                let path = folder.join(mask_file(split, number));
                open_shard(&path, shard.tokens, 1)
            });
            let open = OpenShard {
                ids,
                ends,
                mask: mask.transpose()?,
                first_token: stream.tokens,
                first_document: stream.documents,
                tokens: shard.tokens,
                documents: shard.documents,
            };
            let last = match open.documents {
                0 => 0,
                documents => open.read_ends(documents - 1, 1)?[0],
            };
            if last != open.tokens {
                return Err(TokenError::WrongLastEnd {
                    path: open.ends.path().to_path_buf(),
                    end: last,
                    tokens: open.tokens,
                }
                .into());
            }
            stream.tokens += open.tokens;
            stream.documents += open.documents;
            stream.shards.push(open);
        }
        Ok(stream)
    }

    /// The shards that hold `positions`, each with its positions counted from its own start.
    fn parts(&self, positions: &Range<u64>) -> impl Iterator<Item = (&OpenShard, Range<u64>)> {
        let Range { start, end } = *positions;
        let local = move |shard: &OpenShard| {
            let from = start.max(shard.first_token) - shard.first_token;
            let to = end.min(shard.first_token + shard.tokens);
            from..to.saturating_sub(shard.first_token)
        };
        self.shards[self.shard_of(start)..]
            .iter()
            .map(move |shard| (shard, local(shard)))
            .take_while(|(_, part)| !part.is_empty())
    }

    /// The number of the shard that holds a position.
    fn shard_of(&self, position: u64) -> usize {
        self.shards
            .partition_point(|shard| shard.first_token + shard.tokens <= position)
    }
}

impl OpenShard {
    /// The first document that ends after a position of this shard.
    fn first_end_after(&self, position: u64) -> Result<u64> {
        let (mut low, mut high) = (0, self.documents);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.read_ends(middle, 1)?[0] > position {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low)
    }

    fn read_ends(&self, first: u64, count: u64) -> Result<Vec<u64>> {
        let mut bytes = vec![0; 8 * count as usize];
        self.ends.read_exact_at(&mut bytes, 8 * first)?;
        // Chunks of eight bytes always make an array of eight.
        Ok(bytes
            .chunks_exact(8)
            .map(|end| u64::from_le_bytes(end.try_into().unwrap_or_default()))
            .collect())
    }
}

/// Opens a file that must hold `count` items of `width` bytes.
fn open_shard(path: &Path, count: u64, width: u64) -> Result<SourceFile> {
    let file = SourceFile::open(path)?;
    if count.checked_mul(width) == Some(file.len()) {
        return Ok(file);
    }
    Err(TokenError::WrongLength {
        path: path.to_path_buf(),
        count,
        width,
        found: file.len(),
    }
    .into())
}
