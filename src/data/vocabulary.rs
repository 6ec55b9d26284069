//! Which tokenizer to use, and which token ends a text; or a new tokenizer, trained on the texts themselves.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::Value;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PreTokenizerWrapper};

use super::error::DataError;
use super::header::TokenHeader;
use super::layout::FILE;
use crate::arguments::{ArgumentRole, ArgumentValue};
use crate::checkpoint::{SourceFile, json};
use crate::model::chat::{self, ChatError, ChatTemplate};
use crate::model::generate::eos_ids;
use crate::model::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Name of a tokenizer's file.
pub(super) const TOKENIZER: &str = "tokenizer.json";
/// Name of the file that says which of its tokens ends a text.
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Name of the file that describes a model.
const CONFIG: &str = "config.json";
/// What ends a text in a tokenizer that is made here.
const END_OF_TEXT: &str = "<|endoftext|>";
/// Tokens that a byte-level tokenizer has before the first merge: all bytes, and the end of text.
const LEAST: u64 = 257;
/// Largest vocabulary that is made: four times the largest in use, and some 100 MB while it is made.
const MOST: u64 = 1 << 20;
/// Most text that a tokenizer is made of, in bytes: pairs of tokens are counted in 31 bits.
pub(super) const MOST_TEXT: u64 = 1 << 31;

/// Longest run of white space, or of other characters, that a tokenizer is trained on. A word is no longer than this,
/// and finding pairs takes time that is quadratic in the longest word.
const LONGEST_RUN: usize = 512;

/// Bytes of text that a tokenizer is made of at once: finding words takes some hundred times as much memory.
const PIECE: usize = 512 << 10;

/// What a vocabulary to make begins with, as it is typed.
const TRAIN: &str = "train:";

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// A `tokenizer.json`, or a folder that holds one.
    Existing(PathBuf),
    /// A byte-level BPE of so many tokens, made of the texts that are trained on.
    Train(u64),
}

impl FromStr for Vocabulary {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(count) = text.strip_prefix(TRAIN) else {
            return Ok(Self::Existing(PathBuf::from(text)));
        };
        match count.parse() {
            Ok(count) if (LEAST..=MOST).contains(&count) => Ok(Self::Train(count)),
            _ => Err(format!(
                "expected train: and a number of tokens from {LEAST} to {MOST}, found `{text}`"
            )),
        }
    }
}

impl ArgumentValue for Vocabulary {
    const ROLE: ArgumentRole = ArgumentRole::Checkpoint;
    const HINT: Option<&str> = Some("`train:N` makes a tokenizer of the texts");

    fn read(text: &OsStr) -> Result<Self, String> {
        text.to_str().ok_or("expected UTF-8")?.parse()
    }

    fn form() -> String {
        "DIR|FILE|train:N".to_owned()
    }

    fn places(text: &str) -> Vec<&str> {
        if text.starts_with(TRAIN) {
            Vec::new()
        } else {
            vec![text]
        }
    }
}

impl fmt::Display for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Existing(path) => path.display().fmt(f),
            Self::Train(count) => write!(f, "{TRAIN}{count}"),
        }
    }
}

/// What lays out conversations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatLayout {
    /// Nothing: documents are texts.
    None,
    /// The chat template beside the tokenizer.
    Own,
    /// The template in this file.
    File(PathBuf),
}

/// A tokenizer ready for use.
pub(super) struct Ready {
    pub tokenizer: Tokenizer,
    /// What to say about it.
    pub notes: Vec<String>,
    pub vocab_size: u64,
    pub end_of_text: u32,
    /// Of conversations, what lays them out.
    pub template: Option<ChatTemplate>,
    /// Files to put beside the shards, so that the folder can be read, and used as a tokenizer, on its own.
    pub files: Vec<(&'static str, Vec<u8>)>,
}

/// Reads a tokenizer; `end_of_text` names the token that ends a text where its own files should not say.
pub(super) fn read(path: &Path, end_of_text: Option<&str>, layout: &ChatLayout) -> Result<Ready> {
    let file = if path.is_dir() {
        path.join(TOKENIZER)
    } else {
        path.to_path_buf()
    };
    if !file.exists() {
        return Err(DataError::NoTokenizer { path: file }.into());
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    let config = folder.join(TOKENIZER_CONFIG);
    // What is kept must be what made the ids, and both are read more than once.
    let own_template = folder.join(chat::FILE);
    let template_file = match layout {
        ChatLayout::None => None,
        ChatLayout::Own => Some(own_template.as_path()),
        ChatLayout::File(path) => Some(path.as_path()),
    };
    let read = [Some(file.as_path()), Some(&config), template_file]
        .into_iter()
        .flatten()
        .filter(|path| path.exists())
        .map(SourceFile::open);
    let read = read.collect::<Result<Vec<_>>>()?;
    let tokenizer = Tokenizer::open(&file)?;
    let end_of_text = match end_of_text {
        Some(token) => id_of(&tokenizer, token)?,
        None => own_end_of_text(&tokenizer, folder)?,
    };
    let vocab_size = tokenizer.vocab_size();
    if u64::from(end_of_text) >= vocab_size {
        return Err(DataError::EndOfTextId {
            path: file,
            id: end_of_text,
            vocab_size,
        }
        .into());
    }
    let mut files = vec![(TOKENIZER, json::read_bytes(&file)?)];
    if config.exists() {
        files.push((TOKENIZER_CONFIG, json::read_bytes(&config)?));
    }
    let template = match layout {
        ChatLayout::None => None,
        ChatLayout::Own => Some(own_template_of(folder)?),
        ChatLayout::File(path) => Some(ChatTemplate::from_file(path, folder)?),
    };
    if let Some(path) = template_file.filter(|path| path.exists()) {
        files.push((chat::FILE, json::read_bytes(path)?));
    }
    if *layout != ChatLayout::None {
        // What else a template is rendered with, so that the folder renders as this one does.
        for name in [chat::SPECIAL_TOKENS, chat::TOOL_USE] {
            let path = folder.join(name);
            if path.exists() && (name != chat::TOOL_USE || *layout == ChatLayout::Own) {
                files.push((name, json::read_bytes(&path)?));
            }
        }
    }
    read.iter().try_for_each(SourceFile::check_unchanged)?;
    let notes = tokenizer.note().into_iter();
    let notes = notes
        .chain(beyond_model(&tokenizer, folder)?)
        .chain(template.as_ref().and_then(of_the_day))
        .collect();
    Ok(Ready {
        tokenizer,
        notes,
        vocab_size,
        end_of_text,
        template,
        files,
    })
}

/// The chat template beside a tokenizer.
fn own_template_of(folder: &Path) -> Result<ChatTemplate> {
    ChatTemplate::load(folder).map_err(|error| match error {
        Error::Chat(ChatError::NoTemplate { .. }) => {
            error.with_hint("pass --chat-template FILE, or a --tokenizer with a chat template")
        }
        other => other,
    })
}

/// What to say where the tokens depend on the day.
fn of_the_day(template: &ChatTemplate) -> Option<String> {
    template.reads_clock().then(|| {
        "the chat template may write the day, so that other days make other tokens; `chat_template_kwargs` in a line \
         sets its variables"
            .to_owned()
    })
}

/// What to say where the model beside a tokenizer has no embedding for some of its ids: `train` would refuse the tokens.
fn beyond_model(tokenizer: &Tokenizer, folder: &Path) -> Result<Option<String>> {
    let path = folder.join(CONFIG);
    if !path.is_file() {
        return Ok(None);
    }
    let config = json::read_object(&path)?;
    let Some(rows) = config.get("vocab_size").and_then(Value::as_u64) else {
        return Ok(None);
    };
    let found = tokenizer.vocab_size();
    Ok((found > rows).then(|| {
        format!(
            "{}: has ids up to {}, but vocab_size of {} is {rows}: this model cannot be trained on the tokens",
            tokenizer.path().display(),
            found - 1,
            path.display()
        )
    }))
}

/// Makes a byte-level BPE of `vocab_size` tokens, fewer if the texts have no more pairs to join.
///
/// The texts, which have `bytes` bytes together, are cut before digits and as GPT-2 cuts them, and longer words than any of
/// a language anywhere. The same texts make the same tokenizer.
pub(super) fn train(
    vocab_size: u64,
    bytes: u64,
    texts: impl Iterator<Item = String> + Send,
    end_of_text: Option<&str>,
    scratch: &Path,
) -> Result<Ready> {
    let end_of_text = end_of_text.unwrap_or(END_OF_TEXT);
    let special = AddedToken::from(end_of_text, true);
    let failed = |e: tokenizers::Error| Error::compute("make a tokenizer", e);
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    let byte_level = ByteLevel::new(false, false, true);
    let pieces: [PreTokenizerWrapper; 2] = [Digits::new(true).into(), byte_level.into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(pieces.to_vec())));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.with_post_processor(Some(byte_level));
    // Each token beyond the least joins two that the texts hold. The library makes room for all that it is asked for.
    let vocab_size = vocab_size.min(LEAST.saturating_add(bytes));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size as usize)
        .show_progress(false)
        .special_tokens(vec![special])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
        .build();
    let texts = texts.flat_map(short_runs);
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), texts)
        .map_err(failed)?;
    let mut text = tokenizer.to_string(true).map_err(failed)?;
    text.push('\n');
    let config = serde_json::json!({
        "bos_token": end_of_text,
        "clean_up_tokenization_spaces": false,
        "eos_token": end_of_text,
        // transformers 4 would add `token_type_ids`, which `generate` of language models refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    // A JSON value of strings always serialises.
    let config = serde_json::to_string_pretty(&config).unwrap_or_default() + "\n";
    // Read back, so that the ids come from the very file that is kept.
    let path = scratch.join(TOKENIZER);
    std::fs::write(&path, &text).map_err(|e| Error::io("write", &path, e))?;
    let tokenizer = Tokenizer::open(&path)?;
    Ok(Ready {
        end_of_text: id_of(&tokenizer, end_of_text)?,
        vocab_size: tokenizer.vocab_size(),
        tokenizer,
        template: None,
        notes: Vec::new(),
        files: vec![
            (TOKENIZER, text.into_bytes()),
            (TOKENIZER_CONFIG, config.into_bytes()),
        ],
    })
}

/// Cuts a text into pieces not much longer than [`PIECE`], in which no run is longer than [`LONGEST_RUN`]. A human text
/// of usual length is one piece.
///
/// A piece ends where a line ends before a letter, so that no word is cut.
fn short_runs(text: String) -> Vec<String> {
    let mut cuts = Vec::new();
    let (mut run, mut white, mut start) = (0, false, 0);
    // The two characters before.
    let mut before = (' ', ' ');
    for (at, character) in text.char_indices() {
        let line = before.1 == '\n' && !before.0.is_whitespace() && character.is_alphabetic();
        let long = at - start;
        if run == LONGEST_RUN && character.is_whitespace() == white
            || line && long > PIECE
            || long >= 2 * PIECE
        {
            cuts.push(at);
            start = at;
            run = 0;
        }
        if character.is_whitespace() != white {
            white = !white;
            run = 0;
        }
        run += 1;
        before = (before.1, character);
    }
    if cuts.is_empty() {
        return vec![text];
    }
    let ends = cuts.iter().copied().chain([text.len()]);
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    starts
        .zip(ends)
        .map(|(start, end)| text[start..end].to_owned())
        .collect()
}

fn id_of(tokenizer: &Tokenizer, token: &str) -> Result<u32> {
    if let Some(id) = tokenizer.id_of(token) {
        return Ok(id);
    }
    Err(DataError::NoEndToken {
        path: tokenizer.path().to_path_buf(),
        token: token.to_owned(),
        special: tokenizer.special_tokens(),
    }
    .into())
}

/// The token that ends a text, according to the files beside the tokenizer: an earlier token folder's header, `tokenizer_config.json`,
/// `generation_config.json` or `config.json`.
fn own_end_of_text(tokenizer: &Tokenizer, folder: &Path) -> Result<u32> {
    if folder.join(FILE).exists() {
        return Ok(TokenHeader::read(folder)?.0.end_of_text);
    }
    let path = folder.join(TOKENIZER_CONFIG);
    if path.exists() {
        let object = json::read_object(&path)?;
        let token = match object.get("eos_token") {
            Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
            token => token.and_then(Value::as_str),
        };
        if let Some(token) = token {
            return id_of(tokenizer, token);
        }
    }
    match eos_ids(folder)?.first() {
        Some(id) => Ok(*id),
        None => Err(DataError::NoEndOfText {
            path: tokenizer.path().to_path_buf(),
            special: tokenizer.special_tokens(),
        }
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runs_beyond_every_word_are_cut() {
        let usual = "a line of words\n".repeat(1_000) + &"ü".repeat(LONGEST_RUN);
        assert_eq!(short_runs(usual.clone()), [usual]);
        let long = format!(
            "a {}{} b",
            "ü".repeat(2 * LONGEST_RUN + 1),
            " ".repeat(LONGEST_RUN + 1)
        );
        let pieces = short_runs(long.clone());
        assert_eq!(pieces.len(), 4);
        assert_eq!(pieces.concat(), long);
    }

    #[test]
    fn long_texts_are_cut_between_lines() {
        let lines = "a line of words\n".repeat(PIECE / 8);
        let pieces = short_runs(lines.clone());
        assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() < PIECE + 20));
        assert!(
            pieces
                .iter()
                .all(|piece| piece.starts_with("a line") && piece.ends_with("words\n"))
        );
        assert_eq!(pieces.concat(), lines);
        // Where there is no line, anywhere.
        assert!(
            short_runs("1 2 ".repeat(PIECE))
                .iter()
                .all(|piece| piece.len() <= 2 * PIECE)
        );
    }
}
