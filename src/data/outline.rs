//! An estimate of the token folder that `tokenize` would make, from the length of the texts alone.

use std::path::Path;

use super::header::{Shard, ShardMask, TokenHeader};
use super::input::{self, Kind, Packing};
use super::layout::{FILE, FORMAT_VERSION, IdType, MASKED_VERSION, Split, shard_file};
use super::tokenize::{TextsPlace, TokenizeSettings};
use super::vocabulary::{ChatLayout, TOKENIZER, TOKENIZER_CONFIG, Vocabulary};
use crate::checkpoint::{json, outline};
use crate::estimate::{BYTES_PER_TOKEN, Estimate, TOKENIZED};
use crate::{Error, Result};

/// How often packed text is as long as its file.
const PACKED: f64 = 4.0;

/// Makes the outline of a token folder: a header that says how many tokens there would be, without the tokens.
///
/// # Errors
/// Texts that are not there or are no text; an output that cannot be written.
pub fn outline(settings: &TokenizeSettings) -> Result<Estimate> {
    let mut bytes = 0.0;
    for place in &settings.sources {
        bytes += match place {
            TextsPlace::Path(path) => length(path)?,
            TextsPlace::Pulled { files, .. } => {
                let lengths = files.iter().map(|(file, length)| unpacked(file, *length));
                lengths.sum::<Result<f64>>()?
            }
        };
    }
    let (vocab_size, mut beside) = match &settings.vocabulary {
        Vocabulary::Train(count) => (Some(*count), 0),
        Vocabulary::Existing(path) => tokenizer(path),
    };
    let dtype = vocab_size.and_then(IdType::of).unwrap_or(IdType::U16);
    let tokens = bytes / BYTES_PER_TOKEN;
    let is_chat = settings.layout != ChatLayout::None;
    let shard = |split: Split, share: f64| {
        let (file, none) = (shard_file(split, 0), String::new());
        let (tokens, bytes_of_text) = ((share * tokens) as u64, (share * bytes) as u64);
        (
            split,
            vec![Shard {
                file,
                tokens,
                documents: 0,
                bytes_of_text,
                sha256: none.clone(),
                ends_sha256: none,
                mask: is_chat.then(ShardMask::default),
            }],
        )
    };
    let held_back = settings.validation;
    let header = TokenHeader {
        format_version: if is_chat {
            MASKED_VERSION
        } else {
            FORMAT_VERSION
        },
        tokenizer_sha256: String::new(),
        vocab_size: vocab_size.unwrap_or(1),
        dtype,
        end_of_text: 0,
        chat_template_sha256: None,
        sources: Vec::new(),
        splits: [
            shard(Split::Train, 1.0 - held_back),
            shard(Split::Validation, held_back),
        ]
        .into(),
    };
    let text = header.to_text()?;
    std::fs::create_dir_all(&settings.out).map_err(|e| Error::io("create", &settings.out, e))?;
    beside += outline::file(&settings.out, FILE, text.as_bytes())?;
    Ok(Estimate::of(
        beside + (dtype.width() + u64::from(is_chat)) * tokens as u64,
        bytes / TOKENIZED,
    ))
}

/// Bytes of the text at a path: a file, a folder or a pattern.
///
/// # Errors
/// Where there is no file, or one that is no text.
pub fn length(path: &Path) -> Result<f64> {
    let mut bytes = 0.0;
    for file in input::files(path)? {
        let metadata = std::fs::metadata(&file).map_err(|e| Error::io("read", &file, e))?;
        bytes += unpacked(&file, metadata.len())?;
    }
    Ok(bytes)
}

/// Bytes of the text in a file of this length, by its name.
fn unpacked(file: &Path, length: u64) -> Result<f64> {
    let packed = match input::kind(file)? {
        (Kind::Parquet, _) | (_, Packing::Gzip | Packing::Zstd) => PACKED,
        (Kind::Text | Kind::JsonLines, Packing::Plain) => 1.0,
    };
    Ok(packed * length as f64)
}

/// The size of a vocabulary, if the configuration beside it says so, and the bytes of its files. They may not exist yet.
fn tokenizer(path: &Path) -> (Option<u64>, u64) {
    let folder = if path.is_file() {
        path.parent().unwrap_or(path)
    } else {
        path
    };
    let config = json::read_object(&folder.join("config.json")).ok();
    let vocab_size = config.and_then(|config| config.get("vocab_size")?.as_u64());
    let files = [TOKENIZER, TOKENIZER_CONFIG]
        .map(|name| std::fs::metadata(folder.join(name)).map_or(0, |file| file.len()));
    (vocab_size, files.iter().sum())
}
