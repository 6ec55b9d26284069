//! Where a text can be cut so that its pieces have the tokens of the whole.
//!
//! The library takes 70 to 200 bytes of memory for each byte of a text, so long texts are tokenized piece by piece. That is
//! right only where a tokenizer looks at no character across the cut. In tokenizers whose parts are all known, two places
//! qualify:
//!
//! - **Before a single space between two letters.** Every known way to find words ends one there, whatever follows, and the
//!   later words depend on nothing before. A tokenizer without words may have no token with a space within it, so that no
//!   merge reaches across.
//! - **After a single line feed between a character that is no white space and a letter**, where words are found by GPT-2's
//!   expression or its descendants.
//!
//! No normal form joins a space or a line feed with its neighbours. Added tokens are looked for before words are: none may
//! reach across a cut.

use serde_json::{Map, Value};

use crate::family::gguf_tokenizer::WORD_EXPRESSIONS;

/// SentencePiece's mark of a space.
const MARK: char = '▁';
/// What GPT-2 finds words by, where it is written out.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Where texts can be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cuts {
    before_space: bool,
    /// Whether the space goes: the normalizer puts another at the beginning of each piece.
    drops_space: bool,
    behind_line: bool,
}

/// What the normalizer does with spaces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spaces {
    Kept,
    /// Each becomes [`MARK`].
    Marked,
    /// So, and one more is put first.
    MarkedAndPrepended,
}

/// How words are found.
#[derive(Clone, Copy, Default)]
struct Words {
    /// By a step that ends one before each space.
    found: bool,
    /// The same, by an expression that also ends one after a line feed.
    lines: bool,
    /// Spaces become [`MARK`] here.
    marked: bool,
    /// A space is put before a piece that has none.
    prefixed: bool,
}

impl Cuts {
    /// Where this tokenizer's texts can be cut: nowhere, if a part of it is unknown.
    pub fn of(tokenizer: &Map<String, Value>) -> Self {
        Self::found(tokenizer).unwrap_or_default()
    }

    fn found(tokenizer: &Map<String, Value>) -> Option<Self> {
        let spaces = spaces(tokenizer.get("normalizer").unwrap_or(&Value::Null))?;
        let words = words(
            tokenizer.get("pre_tokenizer").unwrap_or(&Value::Null),
            spaces,
        )?;
        let marked = words.marked || spaces != Spaces::Kept;
        let parted = words.found || marked && has_no_inner_mark(tokenizer.get("model")?)?;
        if !parted {
            return None;
        }
        let mut cuts = Self {
            before_space: true,
            drops_space: spaces == Spaces::MarkedAndPrepended,
            behind_line: words.lines && !words.prefixed && !marked,
        };
        for token in tokenizer
            .get("added_tokens")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            cuts.spare(token)?;
        }
        cuts.before_space.then_some(cuts)
    }

    /// Gives up cuts that an added token may reach across.
    fn spare(&mut self, token: &Value) -> Option<()> {
        let content = token.get("content")?.as_str()?;
        let strips = |side: &str| token.get(side) != Some(&Value::Bool(false));
        let (mut before, mut inner) = (None, false);
        for c in content.chars() {
            let space = c.is_whitespace() || c == MARK;
            inner |= space && before == Some(false);
            self.behind_line &= space || before != Some(true);
            before = Some(space);
        }
        let begins = content.starts_with(char::is_alphabetic);
        let ends = content.ends_with(char::is_alphabetic);
        if inner || (begins && strips("lstrip")) || (ends && strips("rstrip")) {
            return None;
        }
        // The space that goes would have been a piece of its own before the token.
        (!(self.drops_space && begins)).then_some(())
    }

    /// The first piece of `text`: how long it is, and where the next one begins. A cut is looked for near `wanted` bytes.
    pub fn first(self, text: &str, wanted: usize) -> (usize, usize) {
        let whole = (text.len(), text.len());
        if text.len() <= wanted || !self.before_space {
            return whole;
        }
        let bytes = text.as_bytes();
        let cut = |at: &usize| self.at(text, *at);
        // Spaces and line feeds are single bytes, and no parts of other characters.
        let is_near = |at: &usize| matches!(bytes[*at], b' ') || bytes[*at - 1] == b'\n';
        let back = (1..=wanted).rev().filter(is_near).find(cut);
        let found = back.or_else(|| (wanted..text.len()).filter(is_near).find(cut));
        match found {
            Some(at) if self.drops_space && bytes[at] == b' ' => (at, at + 1),
            Some(at) => (at, at),
            None => whole,
        }
    }

    fn at(self, text: &str, at: usize) -> bool {
        if !text.is_char_boundary(at) {
            return false;
        }
        let (before, behind) = text.split_at(at);
        let (mut before, mut behind) = (before.chars().rev(), behind.chars());
        let (last, first) = (before.next(), behind.next());
        let is_letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
        match first {
            Some(' ') => is_letter(last) && is_letter(behind.next()),
            first => {
                let is_text = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
                self.behind_line && last == Some('\n') && is_letter(first) && is_text(before.next())
            }
        }
    }
}

/// The steps of a part.
fn steps<'v>(part: &'v Value, list: &str) -> Option<Vec<&'v Map<String, Value>>> {
    match part {
        Value::Null => Some(Vec::new()),
        Value::Object(step) => match step.get(list) {
            Some(Value::Array(steps)) => steps.iter().map(Value::as_object).collect(),
            _ => Some(vec![step]),
        },
        _ => None,
    }
}

fn spaces(normalizer: &Value) -> Option<Spaces> {
    let mut spaces = Spaces::Kept;
    let mut prepended = false;
    for step in steps(normalizer, "normalizers")? {
        let text = |key: &str| step.get(key).and_then(Value::as_str);
        match text("type")? {
            "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" => {}
            "Prepend" if text("prepend")? == "▁" && spaces == Spaces::Kept => prepended = true,
            "Replace"
                if step.get("pattern")?.get("String")?.as_str()? == " "
                    && text("content")? == "▁" =>
            {
                spaces = Spaces::Marked;
            }
            _ => return None,
        }
    }
    match (spaces, prepended) {
        (Spaces::Marked, true) => Some(Spaces::MarkedAndPrepended),
        (spaces, false) => Some(spaces),
        _ => None,
    }
}

fn words(pre_tokenizer: &Value, spaces: Spaces) -> Option<Words> {
    let mut words = Words::default();
    for step in steps(pre_tokenizer, "pretokenizers")? {
        let text = |key: &str| step.get(key).and_then(Value::as_str);
        let flag = |key: &str| step.get(key).and_then(Value::as_bool);
        match text("type")? {
            "Digits" => {}
            "ByteLevel" => {
                let found = flag("use_regex").unwrap_or(true);
                words.found |= found;
                words.lines |= found;
                words.prefixed |= flag("add_prefix_space")?;
            }
            "Split" => {
                let pattern = step.get("pattern")?;
                if spaces != Spaces::Kept
                    && pattern.get("String").and_then(Value::as_str) == Some(" ")
                {
                    // The normalizer has replaced them all.
                    continue;
                }
                let expression = pattern.get("Regex")?.as_str()?;
                let known = expression == GPT2 || WORD_EXPRESSIONS.contains(&expression);
                let keeps = matches!(
                    (text("behavior")?, flag("invert")?),
                    ("Isolated", _) | ("Removed", true)
                );
                if !(known && keeps) {
                    return None;
                }
                words.found = true;
                words.lines = true;
            }
            "Metaspace" if text("replacement")? == "▁" => {
                words.found |= flag("split").unwrap_or(true);
                words.marked = true;
            }
            "Whitespace" | "WhitespaceSplit" | "BertPreTokenizer" => words.found = true,
            _ => return None,
        }
    }
    // Words are found by spaces, which must be there.
    let by_spaces = spaces == Spaces::Kept || !words.found;
    by_spaces.then_some(words)
}

/// Whether tokens have [`MARK`] at their beginning only, and the mark is a token itself.
fn has_no_inner_mark(model: &Value) -> Option<bool> {
    if model.get("type")?.as_str()? != "BPE"
        || model.get("ignore_merges") == Some(&Value::Bool(true))
    {
        return None;
    }
    let affix = |key: &str| {
        model
            .get(key)
            .and_then(Value::as_str)
            .is_some_and(|text| !text.is_empty())
    };
    if affix("continuing_subword_prefix") || affix("end_of_word_suffix") {
        return None;
    }
    let vocab = model.get("vocab")?.as_object()?;
    let inner = |token: &String| token.trim_start_matches(MARK).contains(MARK);
    Some(vocab.contains_key("▁") && !vocab.keys().any(inner))
}
