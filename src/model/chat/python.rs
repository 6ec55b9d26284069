//! Values as Python writes them: `str`, `repr` and `json.dumps`.

use std::fmt::Write;
use std::sync::Arc;

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, Value};

use super::bounds::{self, invalid};

/// Levels of values in values; Python itself gives up at about a thousand.
const DEEPEST: usize = 200;

/// `str(value)`; nothing for an undefined value, as Jinja2 prints it.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => representation(value),
    }
}

/// `repr(value)`.
pub(super) fn representation(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    represent(value, &mut out, 0)?;
    Ok(out)
}

fn represent(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    bounds::length(out.len())?;
    if let Some(text) = value.as_str() {
        quote(text, out);
        return Ok(());
    }
    match value.kind() {
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => {
            let object = value.as_object().filter(|_| depth < DEEPEST);
            let object = object.ok_or_else(|| invalid("the value nests too deep"))?;
            represent_object(value, object, out, depth)?;
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn represent_object(
    value: &Value,
    object: &DynObject,
    out: &mut String,
    depth: usize,
) -> Result<(), Error> {
    if object.repr() == ObjectRepr::Map {
        let is_namespace = is_namespace(value);
        out.push_str(if is_namespace { "<Namespace {" } else { "{" });
        for (index, (key, item)) in object.try_iter_pairs().into_iter().flatten().enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            represent(&key, out, depth + 1)?;
            out.push_str(": ");
            represent(&item, out, depth + 1)?;
        }
        out.push_str(if is_namespace { "}>" } else { "}" });
        return Ok(());
    }
    let view = object.downcast_ref::<View>();
    if let Some(View { method, .. }) = view {
        // Writing to a text does not fail.
        let _ = write!(out, "dict_{method}(");
    }
    let (open, close) = if value.is_tuple() {
        ("(", ")")
    } else {
        ("[", "]")
    };
    let mut count = 0;
    out.push_str(open);
    for item in value.try_iter()? {
        if count > 0 {
            out.push_str(", ");
        }
        represent(&item, out, depth + 1)?;
        count += 1;
    }
    if value.is_tuple() && count == 1 {
        out.push(',');
    }
    out.push_str(close);
    if view.is_some() {
        out.push(')');
    }
    Ok(())
}

/// What `keys`, `values` and `items` of a mapping return: values to loop over that are no list.
#[derive(Debug)]
pub(super) struct View {
    pub method: &'static str,
    pub values: Vec<Value>,
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.values.clone())
    }
}

/// Whether the value is a [`View`].
pub(super) fn is_view(value: &Value) -> bool {
    value.downcast_object_ref::<View>().is_some()
}

/// Whether `namespace()` made the value. The engine offers no other way to tell.
pub(super) fn is_namespace(value: &Value) -> bool {
    let object = value.as_object();
    object.is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

/// A text in quotes: single ones, unless it holds some and no double ones.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                // Writing to a text does not fail.
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// As `str.isprintable`. Rust escapes the same characters, and marks that would join a quote before them.
fn is_printable(c: char) -> bool {
    let after_letter = format!("a{c}");
    after_letter.escape_debug().count() == 2 || matches!(c, '"' | '\'')
}

/// `repr` of a number.
pub(super) fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(float) => self::float(float),
        Err(_) => value.to_string(),
    }
}

/// The shortest digits that read back as the same number, with an exponent where Python has one.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let digits = format!("{value:?}");
    let Some((mantissa, exponent)) = digits.split_once('e') else {
        return digits;
    };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{exponent:0>2}")
}

/// How `json.dumps` writes.
pub(super) struct JsonStyle {
    pub ensure_ascii: bool,
    pub sort_keys: bool,
    /// What each level is indented by.
    pub indent: Option<String>,
    pub between_items: String,
    pub after_key: String,
}

impl JsonStyle {
    /// `json.dumps(value)` in this style.
    pub fn dump(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(value, &mut out, 0)?;
        Ok(out)
    }

    fn write(&self, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
        bounds::length(out.len())?;
        if let Some(text) = value.as_str() {
            self.write_text(text, out);
            return Ok(());
        }
        let unfit = || invalid(format!("a value of type {} has no JSON", value.kind()));
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&json_number(value)),
            ValueKind::Map if !is_namespace(value) => self.write_map(value, out, depth)?,
            ValueKind::Seq | ValueKind::Iterable if !is_view(value) => {
                self.write_list(value, out, depth)?
            }
            _ => return Err(unfit()),
        }
        Ok(())
    }

    fn write_list(&self, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
        out.push('[');
        let mut is_empty = true;
        for item in value.try_iter()? {
            self.begin_item(out, is_empty, depth)?;
            is_empty = false;
            self.write(&item, out, depth + 1)?;
        }
        self.end_items(out, is_empty, depth);
        out.push(']');
        Ok(())
    }

    fn write_map(&self, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
        let pairs = value.as_object().and_then(DynObject::try_iter_pairs);
        let mut pairs: Vec<(Value, Value)> = pairs.into_iter().flatten().collect();
        if self.sort_keys {
            let texts = pairs.iter().all(|(key, _)| key.as_str().is_some());
            let numbers = pairs.iter().all(|(key, _)| key.is_number());
            if !texts && !numbers {
                return Err(invalid("keys of several types cannot be sorted"));
            }
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        out.push('{');
        for (index, (key, item)) in pairs.iter().enumerate() {
            self.begin_item(out, index == 0, depth)?;
            match (key.as_str(), key.kind()) {
                (Some(key), _) => self.write_text(key, out),
                (None, ValueKind::None) => out.push_str("\"null\""),
                (None, ValueKind::Bool) => {
                    out.push_str(if key.is_true() {
                        "\"true\""
                    } else {
                        "\"false\""
                    });
                }
                (None, ValueKind::Number) => self.write_text(&json_number(key), out),
                _ => return Err(invalid("keys of JSON are texts or numbers")),
            }
            out.push_str(&self.after_key);
            self.write(item, out, depth + 1)?;
        }
        self.end_items(out, pairs.is_empty(), depth);
        out.push('}');
        Ok(())
    }

    fn begin_item(&self, out: &mut String, is_first: bool, depth: usize) -> Result<(), Error> {
        if depth >= DEEPEST {
            return Err(invalid("the value nests too deep"));
        }
        if !is_first {
            out.push_str(&self.between_items);
        }
        self.begin_line(out, depth + 1);
        Ok(())
    }

    fn end_items(&self, out: &mut String, is_empty: bool, depth: usize) {
        if !is_empty {
            self.begin_line(out, depth);
        }
    }

    fn begin_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn write_text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a text does not fail.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        digits => digits.to_owned(),
    }
}
