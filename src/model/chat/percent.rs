//! Texts with a width: Python's `%`, `format` and their like, none of which may make a text of any length.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Rest, ValueKind};
use minijinja::{Error, Value};

use super::bounds::{invalid, width};
use super::python;

/// `template % arguments`.
pub(super) fn operator(template: &Value, arguments: &Value) -> Result<String, Error> {
    let template = template
        .as_str()
        .ok_or_else(|| invalid("expected a text before `%`"))?;
    let given = match arguments.kind() {
        _ if arguments.is_tuple() => arguments.try_iter()?.collect(),
        _ => vec![arguments.clone()],
    };
    let used = placeholders(template)?;
    if arguments.kind() != ValueKind::Map && used < given.len() {
        return Err(invalid("not all arguments of `%` are used"));
    }
    printf(template, &given)
}

/// `template | format(…)`.
pub(super) fn filter(template: &str, arguments: Rest<Value>) -> Result<String, Error> {
    placeholders(template)?;
    printf(template, &arguments.0)
}

/// `template.format(…)`.
pub(super) fn method(template: &str, arguments: &[Value]) -> Result<String, Error> {
    for field in template.split('{').skip(1) {
        let field = field.split('}').next().unwrap_or(field);
        bound_numbers(field.split_once(':').map_or("", |(_, spec)| spec))?;
    }
    format(FormatStyle::StrFormat, template, arguments)
}

fn printf(template: &str, arguments: &[Value]) -> Result<String, Error> {
    // The engine writes values as it prints them, not as Python does.
    let written = |value: &Value| match value.kind() {
        ValueKind::Map if value.is_kwargs() => Ok(value.clone()),
        ValueKind::Seq | ValueKind::Iterable => python::text(value).map(Value::from),
        _ => Ok(value.clone()),
    };
    let arguments = arguments
        .iter()
        .map(written)
        .collect::<Result<Vec<_>, Error>>()?;
    format(FormatStyle::Printf, template, &arguments)
}

/// How many values a `%` template takes, once its widths are bounded.
fn placeholders(template: &str) -> Result<usize, Error> {
    let mut count = 0;
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        let spec = &rest[at + 1..];
        let spec = match spec.strip_prefix('(') {
            Some(named) => named.split_once(')').map_or("", |(_, spec)| spec),
            None => spec,
        };
        let options = spec.find(|c: char| !"#0- +.*123456789hlL".contains(c));
        let (options, after) = spec.split_at(options.unwrap_or(spec.len()));
        bound_numbers(options)?;
        count += options.matches('*').count() + usize::from(!after.starts_with('%'));
        let kind = after.chars().next().map_or(0, char::len_utf8);
        rest = &after[kind..];
    }
    Ok(count)
}

/// Refuses a number above the widest field.
fn bound_numbers(options: &str) -> Result<(), Error> {
    for digits in options.split(|c: char| !c.is_ascii_digit()) {
        let digits = digits.trim_start_matches('0');
        if !digits.is_empty() {
            width(digits.parse().unwrap_or(usize::MAX))?;
        }
    }
    Ok(())
}

/// `text.center(size, fill)`.
pub(super) fn centered(text: &str, size: usize, fill: char) -> Result<String, Error> {
    let padding = width(size)?.saturating_sub(text.chars().count());
    // Python puts an odd one to the left where the size is odd.
    let left = padding / 2 + (padding & size & 1);
    Ok(format!(
        "{}{text}{}",
        repeated(fill, left),
        repeated(fill, padding - left)
    ))
}

pub(super) fn repeated(fill: char, count: usize) -> String {
    std::iter::repeat_n(fill, count).collect()
}
