//! Filters, tests and functions as Jinja2 and transformers define them, where our engine's differ.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, State, Value};

use super::bounds::{self, invalid};
use super::percent;
use super::python::{self, JsonStyle};
use super::source::{EACH, PERCENT};

/// What our engine offers, and Jinja2 does not.
const OWN_FILTERS: [&str; 8] = [
    "split",
    "lines",
    "bool",
    "zip",
    "chain",
    "pprint",
    "urlencode",
    "debug",
];
const OWN_TESTS: [&str; 4] = ["startingwith", "endingwith", "safe", "int"];

/// Makes the environment equal to transformers'.
pub(super) fn extend(environment: &mut Environment) {
    for name in OWN_FILTERS {
        environment.remove_filter(name);
    }
    for name in OWN_TESTS {
        environment.remove_test(name);
    }
    environment.remove_global("debug");

    environment.add_filter(EACH, each);
    environment.add_filter(PERCENT, percent::operator);
    environment.add_filter("format", percent::filter);
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| python::text(value));
    environment.add_filter("join", join);
    environment.add_filter("sort", sort);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("indent", indent);
    environment.add_filter("center", center);
    environment.add_filter("wordcount", word_count);
    environment.add_filter("attr", attribute);
    environment.add_filter("list", each);
    environment.add_filter("dictsort", sort_pairs);

    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);

    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function("dict", dict);
    environment.add_function("namespace", namespace);
}

/// The items of a value, as Python's `list` takes them.
fn each(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    let charged = |item: Value| state.consume_fuel(1).map(|()| item);
    match value.kind() {
        ValueKind::Undefined => Ok(Vec::new()),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            text.chars()
                .map(|c| charged(Value::from(c.to_string())))
                .collect()
        }
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => value
            .try_iter()?
            .checked()
            .map(|item| charged(item?))
            .collect(),
        kind => Err(invalid(format!("a value of type {kind} has no items"))),
    }
}

fn to_json(value: &Value, ensure_ascii: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let ascii: Option<Value> = options.get("ensure_ascii")?;
    let indent: Option<Value> = options.get("indent")?;
    let separators: Option<Value> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => spaces(i64::try_from(indent)?)?,
        }),
    };
    let (between_items, after_key) = match separators.filter(|pair| !pair.is_none()) {
        Some(pair) => {
            let part = |index| {
                let part = pair.get_item_by_index(index)?;
                part.as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| invalid("separators are texts"))
            };
            (part(0)?, part(1)?)
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle {
        ensure_ascii: ensure_ascii.or(ascii).is_some_and(|ascii| ascii.is_true()),
        sort_keys: sort_keys.unwrap_or(false),
        indent,
        between_items,
        after_key,
    };
    style.dump(value)
}

/// So many spaces; none where the number is negative.
fn spaces(count: i64) -> Result<String, Error> {
    let count = bounds::width(usize::try_from(count).unwrap_or(0))?;
    Ok(" ".repeat(count))
}

fn join(
    state: &State,
    value: &Value,
    between: Option<&Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let given: Option<Value> = options.get("d")?;
    let attribute: Option<String> = options.get("attribute")?;
    options.assert_all_used()?;
    let between = match between.or(given.as_ref()) {
        Some(between) => python::text(between)?,
        None => String::new(),
    };
    let mut joined = String::new();
    for (index, item) in each(state, value)?.into_iter().enumerate() {
        if index > 0 {
            joined.push_str(&between);
        }
        let item = match &attribute {
            Some(path) => path
                .split('.')
                .try_fold(item, |item, name| item.get_attr(name))?,
            None => item,
        };
        let text = python::text(&item)?;
        state.consume_fuel(1 + (text.len() + between.len()) as u64 / 64)?;
        joined.push_str(&text);
    }
    Ok(joined)
}

fn sort(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let items = each(state, value)?;
    let all = |fits: fn(&Value) -> bool| items.iter().all(fits);
    let one_type = all(|item| item.as_str().is_some())
        || all(|item| item.is_number() || item.kind() == ValueKind::Bool)
        || all(|item| item.kind() == ValueKind::Seq);
    if !one_type && !options.has("attribute") {
        return Err(invalid("values of several types cannot be sorted"));
    }
    minijinja::filters::sort(state, Value::from(items), options)
}

fn int(value: &Value, default: Option<i64>, base: Option<u32>) -> Result<Value, Error> {
    let default = Value::from(default.unwrap_or(0));
    let Some(text) = value.as_str() else {
        return Ok(match f64::try_from(value.clone()) {
            _ if value.is_integer() => value.clone(),
            _ if value.kind() == ValueKind::Bool => Value::from(i64::from(value.is_true())),
            // The cast saturates; what is outside is no length or index either.
            Ok(float) if float.is_finite() && float.abs() < 1e18 => Value::from(float as i64),
            Ok(float) if float.is_finite() => return Err(invalid("the number is too large")),
            _ => default,
        });
    };
    let text = text.trim().replace('_', "");
    let base = base.unwrap_or(10);
    let digits = match (base, text.get(..2)) {
        (0 | 16, Some("0x" | "0X")) => (&text[2..], 16),
        (0 | 8, Some("0o" | "0O")) => (&text[2..], 8),
        (0 | 2, Some("0b" | "0B")) => (&text[2..], 2),
        (0, _) => (&text[..], 10),
        (2..=36, _) => (&text[..], base),
        _ => return Err(invalid(format!("{base} is no base of a number"))),
    };
    Ok(
        match (
            i128::from_str_radix(digits.0, digits.1),
            text.parse::<f64>(),
        ) {
            (Ok(number), _) => Value::from(number),
            (Err(_), Ok(float)) if float.is_finite() && float.abs() < 1e18 => {
                Value::from(float as i64)
            }
            _ => default,
        },
    )
}

fn float(value: &Value, default: Option<f64>) -> f64 {
    let parsed = match value.as_str() {
        Some(text) => text.trim().replace('_', "").parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    parsed.unwrap_or(default.unwrap_or(0.0))
}

fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let width = width.or(options.get("width")?).unwrap_or(Value::from(4));
    let first = first.or(options.get("first")?).unwrap_or(false);
    let blank = blank.or(options.get("blank")?).unwrap_or(false);
    options.assert_all_used()?;
    let indent = match width.as_str() {
        Some(text) => text.to_owned(),
        None => spaces(i64::try_from(width)?)?,
    };
    let text = python::text(value)?;
    bounds::length(indent.len().saturating_mul(text.matches('\n').count() + 1))?;
    let mut out = String::new();
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let is_indented = if index == 0 {
            first
        } else {
            blank || !line.is_empty()
        };
        if is_indented {
            out.push_str(&indent);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn center(value: &Value, width: Option<usize>) -> Result<String, Error> {
    percent::centered(&python::text(value)?, width.unwrap_or(80), ' ')
}

fn word_count(value: &Value) -> Result<usize, Error> {
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    let text = python::text(value)?;
    Ok(text
        .split(|c| !is_word(c))
        .filter(|word| !word.is_empty())
        .count())
}

/// An attribute that is no item, of which only namespaces have some.
fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    if python::is_namespace(value) {
        return value.get_attr(name);
    }
    Ok(Value::UNDEFINED)
}

fn sort_pairs(
    value: &Value,
    case_sensitive: Option<bool>,
    by: Option<String>,
    reverse: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let case_sensitive = case_sensitive.or(options.get("case_sensitive")?);
    let by = by.or(options.get("by")?);
    let reverse = reverse.or(options.get("reverse")?);
    options.assert_all_used()?;
    let options = [
        ("case_sensitive", case_sensitive.map(Value::from)),
        ("by", by.map(Value::from)),
        ("reverse", reverse.map(Value::from)),
    ];
    let given = options
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    minijinja::filters::dictsort(value, given.collect())
}

/// Python iterates over neither `None` nor numbers.
fn is_iterable(value: &Value) -> bool {
    let others = [ValueKind::None, ValueKind::Bool, ValueKind::Number];
    !others.contains(&value.kind()) && value.try_iter().is_ok()
}

fn is_sequence(value: &Value) -> bool {
    let kinds = [
        ValueKind::Undefined,
        ValueKind::String,
        ValueKind::Map,
        ValueKind::Seq,
        ValueKind::Iterable,
    ];
    kinds.contains(&value.kind()) && !python::is_view(value)
}

fn raise_exception(message: &Value) -> Result<String, Error> {
    Err(invalid(python::text(message)?))
}

/// The local time in a format of C's `strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format))
        .map_err(|_| invalid(format!("strftime_now: `{format}` is no format of a time")))?;
    Ok(text)
}

fn dict(state: &State, pairs: Option<&Value>, options: Kwargs) -> Result<Value, Error> {
    let Some(list) = pairs.filter(|pairs| pairs.kind() != ValueKind::Map) else {
        return minijinja::functions::dict(pairs.cloned(), options);
    };
    let pair = |pair: Value| match &each(state, &pair)?[..] {
        [key, value] if key.as_str().is_some() => Ok((key.to_string(), value.clone())),
        _ => Err(invalid("dict: expected pairs of a text and a value")),
    };
    let named = each(state, list)?
        .into_iter()
        .map(pair)
        .collect::<Result<Kwargs, Error>>()?;
    let named = minijinja::functions::dict(None, named)?;
    minijinja::functions::dict(Some(named), options)
}

fn namespace(state: &mut State, pairs: Option<&Value>, options: Kwargs) -> Result<Value, Error> {
    let named = dict(state, pairs, options)?;
    for name in named.try_iter()? {
        if name.as_str().is_none_or(|name| name.starts_with('_')) {
            return Err(invalid(format!("`{name}` is no name for a namespace")));
        }
    }
    Value::from_function(minijinja::functions::namespace).call(state, &[named])
}
