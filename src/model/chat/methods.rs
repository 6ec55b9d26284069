//! Methods of Python's texts, lists and mappings.

use minijinja::value::{DynObject, Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::bounds::{invalid, width};
use super::percent::{self, centered, repeated};
use super::python::{View, is_namespace};
use super::source::ATTRIBUTE;

/// What `value.name(arguments)` returns.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if name == ATTRIBUTE {
        let (name,): (&str,) = from_args(arguments)?;
        return attribute(value, name);
    }
    let ours = match value.kind() {
        ValueKind::String => of_text(value.as_str().unwrap_or_default(), name, arguments)?,
        ValueKind::Seq | ValueKind::Iterable => of_list(value, name, arguments)?,
        ValueKind::Map => of_mapping(value, name, arguments)?,
        _ => None,
    };
    match ours {
        Some(result) => Ok(result),
        None => unknown_method_callback(state, value, name, arguments),
    }
}

/// An attribute that is a method of mappings: Python finds the method before it looks for a key.
fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    let name = name.to_owned();
    match value.kind() {
        ValueKind::Map if !is_namespace(value) => Ok(Value::from_function(move || {
            Err::<Value, Error>(invalid(format!(
                "the method `{name}` is not called by its name"
            )))
        })),
        _ => value.get_attr(&name),
    }
}

/// A method of texts that the engine lacks, or has otherwise than Python.
fn of_text(text: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let result = match name {
        "strip" => Value::from(stripped(text, arguments, true, true)?),
        "lstrip" => Value::from(stripped(text, arguments, true, false)?),
        "rstrip" => Value::from(stripped(text, arguments, false, true)?),
        "split" => split(text, arguments, false)?,
        "rsplit" => split(text, arguments, true)?,
        "splitlines" => lines(text, arguments)?,
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            if separator.is_empty() {
                return Err(invalid("the separator is empty"));
            }
            let (parts, rest) = match name {
                "partition" => (text.split_once(separator), [text, "", ""]),
                _ => (text.rsplit_once(separator), ["", "", text]),
            };
            let parts = parts.map_or(rest, |(before, after)| [before, separator, after]);
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "join" => {
            let (values,): (&Value,) = from_args(arguments)?;
            for value in values.try_iter()? {
                if value.as_str().is_none() {
                    return Err(invalid(format!(
                        "join: expected texts, found {}",
                        value.kind()
                    )));
                }
            }
            return Ok(None);
        }
        "index" | "rindex" => {
            let (wanted,): (&str,) = from_args(arguments)?;
            let found = if name == "index" {
                text.find(wanted)
            } else {
                text.rfind(wanted)
            };
            let found = found.ok_or_else(|| invalid("the text is not found"))?;
            Value::from(text[..found].chars().count())
        }
        "startswith" | "endswith" if arguments.len() > 1 => {
            let (affix, start, end): (&Value, i64, Option<i64>) = from_args(arguments)?;
            let inner = part(text, start, end);
            let plain = of_affix(inner, name, affix)?;
            Value::from(plain)
        }
        "title" => {
            let () = from_args(arguments)?;
            Value::from(titled(text))
        }
        "istitle" => {
            let () = from_args(arguments)?;
            Value::from(text.chars().any(char::is_alphabetic) && titled(text) == text)
        }
        "swapcase" => {
            let () = from_args(arguments)?;
            let swapped = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().to_string(),
                false => c.to_uppercase().to_string(),
            };
            Value::from(text.chars().map(swapped).collect::<String>())
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "ljust" | "rjust" | "center" => {
            let (size, fill): (i64, Option<&str>) = from_args(arguments)?;
            Value::from(justified(text, name, size, fill.unwrap_or(" "))?)
        }
        "zfill" => {
            let (size,): (i64,) = from_args(arguments)?;
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            let sign = &text[..text.len() - digits.len()];
            let size = width(usize::try_from(size).unwrap_or(0))?;
            let zeros = repeated('0', size.saturating_sub(text.chars().count()));
            Value::from(format!("{sign}{zeros}{digits}"))
        }
        "isdigit" | "isnumeric" if !text.is_ascii() => {
            return Err(invalid(format!(
                "{name} of other than ASCII is not supported"
            )));
        }
        "format" => Value::from(percent::method(text, arguments)?),
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn of_mapping(value: &Value, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let method = match name {
        "keys" => "keys",
        "values" => "values",
        "items" => "items",
        "copy" => {
            let () = from_args(arguments)?;
            return Ok(Some(value.clone()));
        }
        _ => return Ok(None),
    };
    let () = from_args(arguments)?;
    let pairs = value.as_object().and_then(DynObject::try_iter_pairs);
    let part = |(key, value): (Value, Value)| match method {
        "keys" => key,
        "values" => value,
        _ => Value::from(Tuple::from([key, value])),
    };
    let values = pairs.into_iter().flatten().map(part).collect();
    Ok(Some(Value::from_object(View { method, values })))
}

fn of_list(value: &Value, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    match name {
        "copy" => {
            let () = from_args(arguments)?;
            Ok(Some(value.try_iter()?.collect()))
        }
        "index" => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            let found = value.try_iter()?.position(|item| item == *wanted);
            let found = found.ok_or_else(|| invalid("the value is not in the list"))?;
            Ok(Some(Value::from(found)))
        }
        _ => Ok(None),
    }
}

/// What Python takes for space: the engine lacks four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn stripped<'a>(
    text: &'a str,
    arguments: &[Value],
    start: bool,
    end: bool,
) -> Result<&'a str, Error> {
    let (characters,): (Option<&str>,) = from_args(arguments)?;
    let strips = |c: char| characters.map_or_else(|| is_space(c), |set| set.contains(c));
    let text = if start {
        text.trim_start_matches(strips)
    } else {
        text
    };
    Ok(if end {
        text.trim_end_matches(strips)
    } else {
        text
    })
}

fn split(text: &str, arguments: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, most, options): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
    let separator = separator
        .or(options.get("sep")?)
        .filter(|sep| !sep.is_none());
    let most = most.or(options.get("maxsplit")?).unwrap_or(-1);
    options.assert_all_used()?;
    let most = usize::try_from(most).unwrap_or(usize::MAX - 1);
    let separator = match &separator {
        Some(separator) => {
            let separator = separator
                .as_str()
                .ok_or_else(|| invalid("split: expected a text"))?;
            if separator.is_empty() {
                return Err(invalid("split: the separator is empty"));
            }
            Some(separator)
        }
        None => None,
    };
    let mut parts: Vec<&str> = match (separator, from_right) {
        (Some(separator), false) => text.splitn(most + 1, separator).collect(),
        (Some(separator), true) => text.rsplitn(most + 1, separator).collect(),
        (None, _) => words(text, most, from_right),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().collect())
}

/// The words of a text; after so many splits the rest as one. From the right the last comes first.
fn words(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let trim = |text| -> &str {
        if from_right {
            str::trim_end_matches(text, is_space)
        } else {
            str::trim_start_matches(text, is_space)
        }
    };
    let mut words = Vec::new();
    let mut rest = trim(text);
    while !rest.is_empty() {
        let space = if from_right {
            rest.rfind(is_space)
        } else {
            rest.find(is_space)
        };
        let Some(space) = space.filter(|_| words.len() < most) else {
            let last = if from_right {
                rest.trim_start_matches(is_space)
            } else {
                rest.trim_end_matches(is_space)
            };
            // With splits left, a space at the far end does not belong to the word.
            words.push(if words.len() < most { last } else { rest });
            break;
        };
        let after = space + rest[space..].chars().next().map_or(0, char::len_utf8);
        let (word, left) = if from_right {
            (&rest[after..], &rest[..space])
        } else {
            (&rest[..space], &rest[after..])
        };
        words.push(word);
        rest = trim(left);
    }
    words
}

/// The lines of a text, which any of Python's line ends separate.
fn lines(text: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (keep, options): (Option<bool>, Kwargs) = from_args(arguments)?;
    let keep = keep.or(options.get("keepends")?).unwrap_or(false);
    options.assert_all_used()?;
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ends) {
        let end = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(&rest[..if keep { at + end } else { at }]);
        rest = &rest[at + end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    Ok(lines.into_iter().collect())
}

/// The characters from `start` to before `end`, counted from the end where they are negative.
fn part(text: &str, start: i64, end: Option<i64>) -> &str {
    let count = text.chars().count() as i64;
    let place = |index: i64| {
        let index = if index < 0 {
            (index + count).max(0)
        } else {
            index
        };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        text.char_indices()
            .nth(index)
            .map_or(text.len(), |(place, _)| place)
    };
    let (start, end) = (place(start), end.map_or(text.len(), place));
    &text[start..end.max(start)]
}

fn of_affix(text: &str, name: &str, affix: &Value) -> Result<bool, Error> {
    let has = |affix: &Value| {
        let affix = affix
            .as_str()
            .ok_or_else(|| invalid(format!("{name}: expected a text")))?;
        Ok(if name == "startswith" {
            text.starts_with(affix)
        } else {
            text.ends_with(affix)
        })
    };
    if !affix.is_tuple() {
        return has(affix);
    }
    affix
        .try_iter()?
        .try_fold(false, |found, affix| Ok(found || has(&affix)?))
}

/// Each letter after something else in upper case, the others in lower case.
fn titled(text: &str) -> String {
    let mut after_letter = false;
    let mut titled = String::with_capacity(text.len());
    for c in text.chars() {
        if after_letter {
            titled.extend(c.to_lowercase());
        } else {
            titled.extend(c.to_uppercase());
        }
        after_letter = c.is_alphabetic();
    }
    titled
}

fn justified(text: &str, name: &str, size: i64, fill: &str) -> Result<String, Error> {
    let mut fills = fill.chars();
    let (Some(fill), None) = (fills.next(), fills.next()) else {
        return Err(invalid(format!(
            "{name}: expected one character to fill with"
        )));
    };
    let size = width(usize::try_from(size).unwrap_or(0))?;
    let padding = repeated(fill, size.saturating_sub(text.chars().count()));
    match name {
        "ljust" => Ok(format!("{text}{padding}")),
        "rjust" => Ok(format!("{padding}{text}")),
        _ => centered(text, size, fill),
    }
}
