//! The byte-pair vocabularies of GGUF files in the words of the `tokenizers` library.

use std::collections::HashMap;
use std::path::Path;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::gguf_error::{GgufModelError, MERGES, MODEL, PRE, TOKENS};
use super::spelling::same_value;
use crate::checkpoint::Gguf;
use crate::error::{Error, InputError, Result};

/// The longest token whose merges are looked for, in bytes. It bounds the work on a hostile file: published
/// vocabularies stay far below.
const LONGEST_PIECE: usize = 1024;

/// The split of Llama 3: as [`QWEN2`] with digits in threes.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The split of Mistral's Tekken: words end where small letters turn into capitals.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The expressions here that find words, each of which ends before a space.
pub(super) const WORD_EXPRESSIONS: [&str; 3] = [LLAMA3, QWEN2, TEKKEN];

/// How a text is split before byte pairs are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WordSplit {
    /// GPT-2's words, which the byte-level step of `tokenizers` has built in.
    Gpt2,
    /// Each digit by itself, then GPT-2's words.
    DigitsGpt2,
    /// By this expression.
    Regex(&'static str),
    /// By these expressions one after the other, then each digit by itself.
    RegexesDigits(&'static [&'static str]),
}

/// One kind of `tokenizer.ggml.pre`: its names in GGUF files and what it means.
struct Pre {
    names: &'static [&'static str],
    split: WordSplit,
    /// Whether words that are a token are taken whole, whatever the merges.
    ignores_merges: bool,
    /// Whether the beginning-of-text token is put first where the file does not say.
    adds_bos: bool,
    /// Whether text is brought into Unicode normal form C first.
    nfc: bool,
}

/// Splits by the names that llama.cpp gives them, for the vocabularies that models of the llama architecture have.
const PRES: [Pre; 7] = [
    Pre {
        names: &["default", "gpt-2", "phi-2", "mpt", "olmo", "jais"],
        split: WordSplit::Gpt2,
        ignores_merges: false,
        adds_bos: false,
        nfc: false,
    },
    Pre {
        names: &["smollm", "starcoder", "refact", "codeshell"],
        split: WordSplit::DigitsGpt2,
        ignores_merges: false,
        adds_bos: false,
        nfc: false,
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        split: WordSplit::Regex(LLAMA3),
        ignores_merges: true,
        adds_bos: true,
        nfc: false,
    },
    Pre {
        names: &["dbrx", "smaug-bpe"],
        split: WordSplit::Regex(LLAMA3),
        ignores_merges: false,
        adds_bos: false,
        nfc: false,
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen"],
        split: WordSplit::Regex(QWEN2),
        ignores_merges: false,
        adds_bos: false,
        nfc: true,
    },
    Pre {
        names: &["tekken"],
        split: WordSplit::Regex(TEKKEN),
        ignores_merges: true,
        adds_bos: true,
        nfc: false,
    },
    Pre {
        names: &["deepseek-coder"],
        split: WordSplit::RegexesDigits(&[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            r"[一-龥ࠀ-一가-퟿]+",
        ]),
        ignores_merges: false,
        adds_bos: false,
        nfc: false,
    },
];

/// Kinds of tokens, by the numbers of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    /// The kind of that number.
    pub(super) fn of(number: i128) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// A vocabulary: token and kind by id, and id by token.
pub(super) struct Vocabulary<'a> {
    pub(super) tokens: &'a [String],
    pub(super) kinds: Vec<TokenKind>,
    ids: HashMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    /// `tokens` with their `kinds`, or what is wrong: `tokenizer.json` finds ids by token, so no token may be there twice.
    pub(super) fn new(path: &Path, tokens: &'a [String], kinds: Vec<TokenKind>) -> Result<Self> {
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token.as_str(), id) {
                return Err(GgufModelError::RepeatedToken {
                    path: path.to_path_buf(),
                    token: token.chars().take(40).collect(),
                    first,
                    second: id,
                }
                .into());
            }
        }
        Ok(Self { tokens, kinds, ids })
    }

    /// The token with this id.
    pub(super) fn token(&self, id: u64) -> Option<&'a str> {
        usize::try_from(id)
            .ok()
            .and_then(|id| self.tokens.get(id))
            .map(String::as_str)
    }
}

/// The parts of `tokenizer.json` that depend on the kind of vocabulary.
pub(super) struct Pieces<'a> {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) post_processor: Option<ByteLevel>,
    pub(super) decoder: DecoderWrapper,
    pub(super) model: Model<'a>,
    /// Whether the beginning-of-text token is put first where the file does not say.
    pub(super) adds_bos: bool,
    /// Whether tokens have `▁` for a space.
    pub(super) marks_spaces: bool,
}

/// The parts for the vocabulary of `gguf`; `unknown` is the id of its unknown token.
pub(super) fn pieces<'a>(
    gguf: &'a Gguf,
    vocabulary: &Vocabulary<'a>,
    unknown: Option<u64>,
) -> Result<Pieces<'a>> {
    match gguf.text(MODEL)? {
        Some("gpt2") => byte_level(gguf, vocabulary),
        Some("llama") => sentencepiece(gguf, vocabulary, unknown),
        found => Err(GgufModelError::UnknownVocabulary {
            path: gguf.path.clone(),
            found: found.unwrap_or_default().to_owned(),
        }
        .into()),
    }
}

/// Byte-level byte-pair encoding, as of GPT-2.
fn byte_level<'a>(gguf: &'a Gguf, vocabulary: &Vocabulary<'a>) -> Result<Pieces<'a>> {
    let name = gguf.text(PRE)?.unwrap_or("default");
    let pre = PRES.iter().find(|pre| pre.names.contains(&name));
    let pre = pre.ok_or_else(|| GgufModelError::UnknownSplit {
        path: gguf.path.clone(),
        known: PRES.iter().flat_map(|pre| pre.names).copied().collect(),
        found: name.to_owned(),
    })?;
    let merges = listed_merges(gguf, vocabulary)?;
    Ok(Pieces {
        normalizer: pre.normalizer(),
        pre_tokenizer: Some(PreTokenizers::new(pre.steps()?).into()),
        post_processor: Some(ByteLevel::new(false, false, true)),
        decoder: ByteLevel::new(true, true, true).into(),
        model: Model {
            ignore_merges: pre.ignores_merges,
            ..Model::new(vocabulary.tokens, merges)
        },
        adds_bos: pre.adds_bos,
        marks_spaces: false,
    })
}

impl Pre {
    fn normalizer(&self) -> Option<NormalizerWrapper> {
        self.nfc.then(|| NFC.into())
    }

    /// The steps of the pre-tokenizer.
    fn steps(&self) -> Result<Vec<PreTokenizerWrapper>> {
        let digits = || Digits::new(true).into();
        let words = |use_regex| ByteLevel::new(false, true, use_regex).into();
        Ok(match self.split {
            WordSplit::Gpt2 => vec![words(true)],
            WordSplit::DigitsGpt2 => vec![digits(), words(true)],
            WordSplit::Regex(expression) => vec![isolated(expression)?, words(false)],
            WordSplit::RegexesDigits(expressions) => expressions
                .iter()
                .map(|expression| isolated(expression))
                .chain([Ok(digits()), Ok(words(false))])
                .collect::<Result<_>>()?,
        })
    }
}

/// A step that makes a word of each match of an expression.
fn isolated(expression: &str) -> Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(expression.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
    Ok(split.map_err(not_built)?.into())
}

/// An error of the tokenizer's library about an expression of this file.
fn not_built(error: tokenizers::Error) -> Error {
    Error::compute("build the tokenizer", error)
}

/// llama.cpp's name for how a `tokenizer.json` with this `model` normalises and splits text, if it has one.
pub(super) fn name_of_split(
    tokenizer: &Map<String, Value>,
    model: &Map<String, Value>,
) -> Option<&'static str> {
    let flag = |key: &str| model.get(key) == Some(&Value::Bool(true));
    let normalizer = tokenizer.get("normalizer").unwrap_or(&Value::Null);
    // Offsets are for readers that ask where a token was.
    let plain = |step: &Value| {
        let mut step = step.clone();
        if let Some(step) = step.as_object_mut() {
            step.shift_remove("trim_offsets");
        }
        step
    };
    let found = tokenizer.get("pre_tokenizer").unwrap_or(&Value::Null);
    let found = match found.get("pretokenizers").and_then(Value::as_array) {
        Some(steps) => steps.iter().map(plain).collect::<Vec<_>>(),
        None => vec![plain(found)],
    };
    let same = |a: &[Value], b: &[Value]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_value(a, b))
    };
    let pre = PRES.iter().find(|pre| {
        let steps = pre.steps().unwrap_or_default();
        let steps: Vec<Value> = steps.iter().map(|step| plain(&json!(step))).collect();
        pre.ignores_merges == flag("ignore_merges")
            && json!(pre.normalizer()) == *normalizer
            && same(&steps, &found)
    })?;
    // The first of GPT-2's names is llama.cpp's word for "nobody said".
    pre.names.iter().find(|name| **name != "default").copied()
}

/// SentencePiece's byte-pair encoding with bytes for what it does not know, as of Llama 2.
fn sentencepiece<'a>(
    gguf: &'a Gguf,
    vocabulary: &Vocabulary<'a>,
    unknown: Option<u64>,
) -> Result<Pieces<'a>> {
    let merges = match gguf.metadata.contains_key("tokenizer.ggml.merges") {
        true => listed_merges(gguf, vocabulary)?,
        false => scored_merges(gguf, vocabulary)?,
    };
    let prefix = gguf
        .boolean("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let mark = Replace::new(" ", "▁").map_err(not_built)?;
    let normalizer = if prefix {
        Normalizers::new(vec![Prepend::new("▁".to_owned()).into(), mark.into()]).into()
    } else {
        mark.into()
    };
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new("▁", " ").map_err(not_built)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    let unknown = unknown.and_then(|id| vocabulary.token(id)).or_else(|| {
        let kinds = vocabulary.tokens.iter().zip(&vocabulary.kinds);
        kinds
            .into_iter()
            .find(|(_, kind)| **kind == TokenKind::Unknown)
            .map(|(token, _)| token.as_str())
    });
    let model = Model::new(vocabulary.tokens, merges);
    Ok(Pieces {
        normalizer: Some(normalizer),
        pre_tokenizer: None,
        post_processor: None,
        decoder: Decoders::new(decoders).into(),
        model: Model {
            unk_token: unknown,
            fuse_unk: true,
            byte_fallback: true,
            ..model
        },
        adds_bos: true,
        marks_spaces: true,
    })
}

/// The `model` of `tokenizer.json`. It borrows the vocabulary: as JSON values the largest take over 100 MB.
#[derive(Serialize)]
pub(super) struct Model<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: Option<f32>,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Option<&'a str>,
    end_of_word_suffix: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "ids_by_token")]
    vocab: &'a [String],
    merges: Vec<(&'a str, &'a str)>,
}

impl<'a> Model<'a> {
    fn new(vocab: &'a [String], merges: Vec<(&'a str, &'a str)>) -> Self {
        Self {
            kind: "BPE",
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab,
            merges,
        }
    }
}

fn ids_by_token<S: Serializer>(tokens: &&[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(tokens.iter().zip(0_u64..))
}

/// The merges that the file lists, in order: `left right`.
fn listed_merges<'a>(
    gguf: &'a Gguf,
    vocabulary: &Vocabulary<'_>,
) -> Result<Vec<(&'a str, &'a str)>> {
    let merges = gguf
        .texts(MERGES)?
        .ok_or_else(|| InputError::missing_key(&gguf.path, MERGES, "a list of merges"))?;
    let known = |token: &str| vocabulary.ids.contains_key(token);
    let mut pairs = Vec::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        // A space inside a token would leave several ways to split: take the one that makes sense.
        let bounded = if merge.len() > 2 * LONGEST_PIECE {
            ""
        } else {
            merge.as_str()
        };
        let splits = bounded
            .match_indices(' ')
            .map(|(at, _)| (&merge[..at], &merge[at + 1..]));
        let pair = splits.into_iter().find(|(left, right)| {
            known(left)
                && known(right)
                && vocabulary
                    .ids
                    .contains_key([*left, *right].concat().as_str())
        });
        pairs.push(pair.ok_or_else(|| GgufModelError::Merge {
            path: gguf.path.clone(),
            index,
            found: merge.chars().take(80).collect(),
        })?);
    }
    Ok(pairs)
}

/// The merges that scores mean: SentencePiece first makes the piece with the highest score, from any two pieces.
fn scored_merges<'a>(gguf: &Gguf, vocabulary: &Vocabulary<'a>) -> Result<Vec<(&'a str, &'a str)>> {
    let key = "tokenizer.ggml.scores";
    let scores = gguf.floats(key)?.unwrap_or_default();
    if scores.len() != vocabulary.tokens.len() {
        let expected = format!("a score for each of {} tokens", vocabulary.tokens.len());
        return Err(InputError::wrong_value(
            &gguf.path,
            key,
            expected,
            scores.len(),
        ));
    }
    if let Some(id) = scores.iter().position(|score| !score.is_finite()) {
        let found = format!("another for token {id}");
        return Err(InputError::wrong_value(
            &gguf.path,
            key,
            "finite scores",
            found,
        ));
    }
    let part = |token: &str| {
        let kind = vocabulary
            .ids
            .get(token)
            .and_then(|id| vocabulary.kinds.get(*id));
        matches!(kind, Some(TokenKind::Normal | TokenKind::UserDefined))
    };
    let mut merges = Vec::new();
    for (id, (token, score)) in vocabulary.tokens.iter().zip(&scores).enumerate() {
        if !part(token) {
            continue;
        }
        if token.len() > LONGEST_PIECE {
            let expected = format!("tokens of at most {LONGEST_PIECE} bytes");
            let found = format!("{} in token {id}", token.len());
            return Err(InputError::wrong_value(&gguf.path, TOKENS, expected, found));
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if part(left) && part(right) {
                // SentencePiece gives the first piece a score of minus zero.
                merges.push((*score + 0.0, left, right, id));
            }
        }
    }
    // Among equal scores the longer left part goes first, as in transformers' converter.
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        let order =
            b.0.total_cmp(&a.0)
                .then_with(|| length(b.1).cmp(&length(a.1)));
        order
            .then_with(|| length(b.2).cmp(&length(a.2)))
            .then_with(|| a.3.cmp(&b.3))
    });
    Ok(merges
        .into_iter()
        .map(|(_, left, right, _)| (left, right))
        .collect())
}
