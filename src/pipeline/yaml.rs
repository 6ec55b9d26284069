//! A YAML text as a tree that knows the place of each part.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use crate::checkpoint::yaml::{from_text, place, read_text};
use crate::error::{self, nearest};
use crate::{Error, Result};

/// A part of a YAML text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// A string, number or boolean, as the command line would have it; nothing for null.
    Scalar(Option<String>),
    /// Items in order.
    List(Vec<Spanned<Node>>),
    /// Keys and values in order.
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl Node {
    /// In words, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Scalar(None) => "nothing",
            Self::Scalar(Some(_)) => "a single value",
            Self::List(_) => "a list",
            Self::Map(_) => "keys with values",
        }
    }
}

/// Reads the file.
pub(super) fn read(path: &Path) -> Result<Spanned<Node>> {
    parse(path, &read_text(path)?)
}

/// Parses the text; `path` only names the place in errors.
pub(super) fn parse(path: &Path, text: &str) -> Result<Spanned<Node>> {
    from_text(text).map_err(|error| {
        let error = error.without_snippet();
        let place = error.location().map_or_else(
            || error::Location::from(path),
            |location| place(path, location),
        );
        if let serde_saphyr::Error::DuplicateMappingKey { key, .. } = error {
            return Error::file(
                place,
                format!("duplicate key `{}`", key.as_deref().unwrap_or("?")),
            );
        }
        let message = error.to_string();
        // The place is in front already, and advice to a caller of the parser is none to a user.
        let line = message.lines().next().unwrap_or_default();
        let problem = [" at line ", "; use "]
            .iter()
            .fold(line, |line, end| line.split(end).next().unwrap_or(line));
        let refused = Error::file(place, format!("not YAML that can be read: {problem}"));
        if problem.starts_with("multiple YAML documents") {
            return refused.with_hint("put each document into a file of its own");
        }
        refused
    })
}

/// A fault at a place of the file.
pub(super) fn fault(path: &Path, location: Location, problem: impl Into<String>) -> Error {
    Error::file(place(path, location), problem)
}

/// A key that nothing knows, with the nearest that something does.
pub(super) fn unknown_key(
    path: &Path,
    key: &Spanned<String>,
    owner: &str,
    known: &[&str],
) -> Error {
    let problem = format!("unknown key of {owner}");
    let error = Error::key(place(path, key.referenced), &key.value, problem);
    match nearest(&key.value, known.iter().copied()) {
        Some(name) => error.with_hint(format!("the nearest known key is `{name}`")),
        None => error.with_hint(format!("known keys: {}", known.join(", "))),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value, a list, or keys with values")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(Some(value.to_string())))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(Some(value.to_string())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(Some(value.to_string())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(Some(value.to_string())))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(Some(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(None))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(None))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Node::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_know_where_they_stand() {
        let tree = parse(
            Path::new("r.yaml"),
            "a: 1\nb:\n  - x\n  - {c: true, d: 3e-4}\n",
        )
        .unwrap();
        let Node::Map(map) = tree.value else {
            panic!("a map")
        };
        assert_eq!(map[0].1.value, Node::Scalar(Some("1".to_owned())));
        assert_eq!(
            (map[1].0.referenced.line(), map[1].0.referenced.column()),
            (2, 1)
        );
        let Node::List(list) = &map[1].1.value else {
            panic!("a list")
        };
        let Node::Map(inner) = &list[1].value else {
            panic!("a map")
        };
        assert_eq!(inner[0].1.value, Node::Scalar(Some("true".to_owned())));
        assert_eq!(inner[1].1.value, Node::Scalar(Some("0.0003".to_owned())));
        assert_eq!(
            (inner[1].0.referenced.line(), inner[1].0.referenced.column()),
            (4, 15)
        );
    }

    #[test]
    fn a_key_twice_is_refused_where_it_stands() {
        let error = parse(Path::new("r.yaml"), "a: 1\na: 2\n")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("r.yaml:2:1: "), "{error}");
    }
}
