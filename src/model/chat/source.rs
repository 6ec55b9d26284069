//! A template's text as our engine must read it, so that it means what it means in Jinja2.
//!
//! The engine reads Jinja with a few differences. This pass rewrites the places where they matter, or refuses the template:
//!
//! - line breaks, escapes in texts, and the end of a `raw` tag;
//! - `{% generation %}`, and a text before `%`;
//! - attributes with the name of a method, and the value that a loop iterates over.

use std::borrow::Cow;
use std::ops::Range;

/// Tokens of the longest tag. The engine recurses over chains of operators, and real templates have some hundred.
const LONGEST_TAG: usize = 10_000;
/// Filter that a loop's value passes, so that `loop` knows its length.
pub(super) const EACH: &str = "_each";
/// Method that looks up an attribute with the name of a method.
pub(super) const ATTRIBUTE: &str = "_attribute";
/// Methods of mappings. As attributes without a call they are not the item of that name.
const METHODS: [&str; 11] = [
    "clear",
    "copy",
    "fromkeys",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];
/// Arguments that a macro does not name. The engine lacks these variables, and would print nothing for them.
const SURPLUS: [&str; 2] = ["kwargs", "varargs"];
/// Filter that formats a text as Python's `%` does.
pub(super) const PERCENT: &str = "_percent";

/// Function that is called where `{% generation %}` begins an answer.
pub(super) const ANSWER_BEGINS: &str = "_answer_begins";
/// Function that is called where `{% endgeneration %}` ends it.
pub(super) const ANSWER_ENDS: &str = "_answer_ends";

/// Whether a template marks answers by `{% generation %}`.
pub(super) fn marks_answers(source: &str) -> bool {
    let mut tags = source.match_indices("{%");
    tags.any(|(at, _)| bare_tag(&source[at..], "generation").is_some())
}

/// The template for our engine, or what is wrong with it.
pub(super) fn prepared(source: &str) -> Result<String, String> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while let Some(start) = next_tag(&source, at) {
        out.push_str(&source[at..start]);
        at = match &source[start..start + 2] {
            "{#" => {
                let end = source[start..].find("#}").ok_or("a comment has no end")?;
                out.push_str(&source[start..start + end + 2]);
                start + end + 2
            }
            _ => match raw_block(&source[start..])? {
                Some(raw) => {
                    out.push_str(&raw.text);
                    start + raw.length
                }
                None => tag(&source, start, &mut out)?,
            },
        };
    }
    out.push_str(&source[at..]);
    Ok(out)
}

fn next_tag(source: &str, from: usize) -> Option<usize> {
    let bytes = source.as_bytes();
    let found = |at: &usize| bytes[*at] == b'{' && matches!(bytes[*at + 1], b'{' | b'%' | b'#');
    (from..bytes.len().saturating_sub(1)).find(found)
}

struct RawBlock {
    /// The block for our engine.
    text: String,
    /// Its length in the template.
    length: usize,
}

/// A `raw` block at the beginning of `text`, if there is one.
///
/// Jinja2 keeps a line break that follows `{% raw %}`; our engine needs a `+` for that.
fn raw_block(text: &str) -> Result<Option<RawBlock>, String> {
    let Some((head, sign)) = bare_tag(text, "raw") else {
        return Ok(None);
    };
    let tail = text[head..].match_indices("{%").find_map(|(at, _)| {
        let (length, _) = bare_tag(&text[head + at..], "endraw")?;
        Some(head + at + length)
    });
    let length = tail.ok_or("a raw block has no end")?;
    let mut text = text[..length].to_owned();
    if sign.is_none() {
        text.insert(head - 2, '+');
    }
    Ok(Some(RawBlock { text, length }))
}

/// The length of a tag that holds this name alone, and the sign at its end.
fn bare_tag(text: &str, name: &str) -> Option<(usize, Option<char>)> {
    let rest = text.strip_prefix("{%")?.trim_start_matches(['-', '+']);
    let rest = rest.trim_start().strip_prefix(name)?.trim_start();
    let sign = rest.chars().next().filter(|c| matches!(c, '-' | '+'));
    let rest = rest.trim_start_matches(['-', '+']).strip_prefix("%}")?;
    Some((text.len() - rest.len(), sign))
}

/// A piece of a tag's code.
#[derive(Debug)]
struct Token {
    kind: Kind,
    range: Range<usize>,
    /// Brackets around it.
    depth: usize,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Kind {
    Name,
    Number,
    Text,
    Operator,
}

/// Writes the tag that begins at `start`, and tells where it ends.
fn tag(source: &str, start: usize, out: &mut String) -> Result<usize, String> {
    let close = if source[start..].starts_with("{%") {
        "%}"
    } else {
        "}}"
    };
    let sign = source[start + 2..].starts_with(['-', '+']);
    let (tokens, end) = tokens(source, start + 2 + usize::from(sign), close)?;
    let of = |token: &Token| &source[token.range.clone()];
    let name = match tokens.first() {
        Some(first) if close == "%}" && first.kind == Kind::Name => of(first),
        _ => "",
    };
    let mut edits = Edits::default();
    match name {
        // Like the call block that Jinja2 makes of it, a `with` block has a scope of its own. Its calls leave signs and line
        // breaks around the tags as they are.
        "generation" => {
            let begins = format!("with _answer = {ANSWER_BEGINS}()");
            edits.replace(tokens[0].range.clone(), &begins);
        }
        "endgeneration" => {
            let ends = format!("set _answer = {ANSWER_ENDS}() %}}{{% endwith");
            edits.replace(tokens[0].range.clone(), &ends);
        }
        "do" | "autoescape" | "endautoescape" => {
            return Err(format!("the tag `{name}` is unknown"));
        }
        "with" | "macro" | "call" => independent(&tokens, of)?,
        _ => {}
    }
    for (index, token) in tokens.iter().enumerate() {
        let is_attribute = index > 0 && of(&tokens[index - 1]) == ".";
        if token.kind == Kind::Name && !is_attribute && SURPLUS.contains(&of(token)) {
            let name = of(token);
            return Err(format!("`{name}` of a macro cannot be rendered here"));
        }
        if token.kind != Kind::Text {
            continue;
        }
        if let Cow::Owned(text) = literal(of(token))? {
            edits.replace(token.range.clone(), &text);
        }
        if let Some(operand) = percent(&tokens, index, of) {
            edits.insert(token.range.start, "(");
            edits.replace(operand.operator, &format!(" | {PERCENT}("));
            edits.insert(operand.end, "))");
        }
    }
    for (index, pair) in tokens.windows(2).enumerate() {
        let is_called = tokens.get(index + 2).is_some_and(|next| of(next) == "(");
        let is_target = name == "set" && tokens.get(index + 2).is_some_and(|next| of(next) == "=");
        if of(&pair[0]) == "." && METHODS.contains(&of(&pair[1])) && !is_called && !is_target {
            let call = format!("{ATTRIBUTE}('{}')", of(&pair[1]));
            edits.replace(pair[1].range.clone(), &call);
        }
    }
    // After the edits of texts: where both end, the loop's are outside.
    if name == "for" {
        each(&tokens, of, &mut edits);
    }
    edits.write(source, start..end, out);
    Ok(end)
}

/// Reads the code from `at` up to the end of its tag.
fn tokens(source: &str, mut at: usize, close: &str) -> Result<(Vec<Token>, usize), String> {
    let bytes = source.as_bytes();
    let mut tokens = Vec::new();
    let mut depth = 0_usize;
    while at < bytes.len() {
        let rest = &source[at..];
        let signed = rest.strip_prefix(['-', '+']).unwrap_or(rest);
        let left = rest
            .strip_prefix(close)
            .or_else(|| signed.strip_prefix(close));
        if let Some(left) = left.filter(|_| depth == 0) {
            return Ok((tokens, source.len() - left.len()));
        }
        let (kind, length) = match bytes[at] {
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'"' | b'\'' => (Kind::Text, text_length(rest)?),
            byte if byte.is_ascii_digit() => (Kind::Number, span(rest, is_word)),
            byte if byte == b'_' || byte.is_ascii_alphabetic() || byte >= 0x80 => {
                // What is neither letter nor operator is for the engine to refuse.
                let first = rest.chars().next().map_or(1, char::len_utf8);
                (Kind::Name, span(rest, is_word).max(first))
            }
            _ => {
                let long = ["**", "//", "==", "!=", "<=", ">="];
                let is_long = long.iter().any(|operator| rest.starts_with(operator));
                (Kind::Operator, 1 + usize::from(is_long))
            }
        };
        if matches!(bytes[at], b')' | b']' | b'}') {
            depth = depth.saturating_sub(1);
        }
        if tokens.len() == LONGEST_TAG {
            return Err(format!("expected a tag of at most {LONGEST_TAG} tokens"));
        }
        let range = at..at + length;
        tokens.push(Token { kind, range, depth });
        if matches!(bytes[at], b'(' | b'[' | b'{') {
            depth += 1;
        }
        at += length;
    }
    Err(format!("a tag has no end: expected `{close}`"))
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

fn span(text: &str, within: fn(char) -> bool) -> usize {
    text.find(|c| !within(c)).unwrap_or(text.len())
}

/// Bytes of the text literal that `text` begins with.
fn text_length(text: &str) -> Result<usize, String> {
    let quote = text.as_bytes()[0];
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            byte if byte == quote => return Ok(at + 1),
            _ => {}
        }
    }
    Err("a text has no end".to_owned())
}

/// The literal with the escapes that our engine reads as Python does: for the quote and the backslash.
fn literal(text: &str) -> Result<Cow<'_, str>, String> {
    if !text.contains('\\') {
        return Ok(Cow::Borrowed(text));
    }
    let quote = &text[..1];
    let value = unescaped(&text[1..text.len() - 1])?;
    let inner = value
        .replace('\\', "\\\\")
        .replace(quote, &format!("\\{quote}"));
    Ok(Cow::Owned(format!("{quote}{inner}{quote}")))
}

/// The text that a literal means, by Python's escapes.
fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(kind) = rest.chars().next() else {
            return Err("a text ends in a backslash".to_owned());
        };
        rest = &rest[kind.len_utf8()..];
        let simple = match kind {
            '\n' => continue,
            'a' => Some('\x07'),
            'b' => Some('\x08'),
            'f' => Some('\x0c'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\x0b'),
            '\\' | '\'' | '"' => Some(kind),
            _ => None,
        };
        if let Some(simple) = simple {
            out.push(simple);
            continue;
        }
        let digits = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            '0'..='7' => {
                let more = rest
                    .bytes()
                    .take(2)
                    .take_while(|byte| (b'0'..=b'7').contains(byte));
                let more = more.count();
                let code = u32::from_str_radix(&format!("{kind}{}", &rest[..more]), 8);
                out.extend(code.ok().and_then(char::from_u32));
                rest = &rest[more..];
                continue;
            }
            'N' => return Err("the escape `\\N` is not supported".to_owned()),
            _ => {
                out.push('\\');
                out.push(kind);
                continue;
            }
        };
        let code = rest
            .get(..digits)
            .and_then(|code| u32::from_str_radix(code, 16).ok());
        let Some(character) = code.and_then(char::from_u32) else {
            return Err(format!("the escape `\\{kind}` names no character"));
        };
        out.push(character);
        rest = &rest[digits..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Lets the value of a loop pass [`EACH`].
fn each<'a>(tokens: &[Token], of: impl Fn(&Token) -> &'a str, edits: &mut Edits) {
    let outer = |token: &&Token, name: &str| {
        token.depth == 0 && token.kind == Kind::Name && of(token) == name
    };
    let Some(after) = tokens.iter().position(|token| outer(&token, "in")) else {
        return;
    };
    let value = &tokens[after + 1..];
    let end = value.iter().position(|token| outer(&token, "if"));
    let mut value = &value[..end.unwrap_or(value.len())];
    if value.len() > 1 && value.last().is_some_and(|last| outer(&last, "recursive")) {
        value = &value[..value.len() - 1];
    }
    if let [first, .., last] | [first @ last] = value {
        edits.insert(first.range.start, "(");
        edits.insert(last.range.end, &format!(") | {EACH}"));
    }
}

/// Refuses a tag whose names are used in its own values: Jinja2 looks them up elsewhere than our engine.
fn independent<'a>(tokens: &[Token], of: impl Fn(&Token) -> &'a str) -> Result<(), String> {
    let mut names = Vec::new();
    let mut is_value = false;
    // Parameters are in brackets, the names of `with` are not.
    let depth = usize::from(of(&tokens[0]) != "with");
    for token in &tokens[1..] {
        match of(token) {
            "," if token.depth == depth => is_value = false,
            "=" if token.depth == depth => is_value = true,
            name if is_value && token.kind == Kind::Name && names.contains(&name) => {
                return Err(format!(
                    "`{name}` is used where the same tag sets it, which is not supported"
                ));
            }
            name if !is_value && token.kind == Kind::Name => names.push(name),
            _ => {}
        }
    }
    Ok(())
}

struct Operand {
    /// Where `%` is.
    operator: Range<usize>,
    /// Where what follows it ends.
    end: usize,
}

/// The operand of a `%` that follows the text literal at `index`.
fn percent<'a>(tokens: &[Token], index: usize, of: impl Fn(&Token) -> &'a str) -> Option<Operand> {
    let operator = tokens.get(index + 1).filter(|token| of(token) == "%")?;
    // With what binds as tightly before it, or a text that it continues, the literal is not all of the left side.
    let before = index.checked_sub(1).map(|before| &tokens[before]);
    if before.is_some_and(|token| {
        token.kind == Kind::Text || matches!(of(token), "*" | "/" | "//" | "%" | "**")
    }) {
        return None;
    }
    let ends = |token: &&Token| {
        let after = token.range.start > operator.range.end;
        let word = match token.kind {
            Kind::Name => matches!(
                of(token),
                "if" | "else" | "and" | "or" | "not" | "in" | "is"
            ),
            Kind::Operator => {
                let text = of(token);
                !matches!(
                    text,
                    "." | "|" | "(" | "[" | "{" | ")" | "]" | "}" | "**" | "-"
                ) || token.depth < operator.depth
            }
            _ => false,
        };
        after && token.depth <= operator.depth && word
    };
    let operand = &tokens[index + 2..];
    let length = operand.iter().position(|token| ends(&token));
    let operand = &operand[..length.unwrap_or(operand.len())];
    // A difference ends the operand; a sign begins it.
    let minus = operand
        .iter()
        .skip(1)
        .position(|token| token.depth == operator.depth && of(token) == "-");
    let last = minus
        .map_or(operand.len(), |minus| minus + 1)
        .checked_sub(1)?;
    Some(Operand {
        operator: operator.range.clone(),
        end: operand.get(last)?.range.end,
    })
}

/// Changes of a tag, in any order; those at one place keep theirs.
#[derive(Default)]
struct Edits(Vec<(Range<usize>, String)>);

impl Edits {
    fn insert(&mut self, at: usize, text: &str) {
        self.replace(at..at, text);
    }

    fn replace(&mut self, range: Range<usize>, text: &str) {
        self.0.push((range, text.to_owned()));
    }

    fn write(mut self, source: &str, range: Range<usize>, out: &mut String) {
        self.0.sort_by_key(|(range, _)| (range.start, range.end));
        let mut at = range.start;
        for (range, text) in self.0 {
            out.push_str(&source[at..range.start]);
            out.push_str(&text);
            at = range.end;
        }
        out.push_str(&source[at..range.end]);
    }
}
