//! A YAML text as a tree that knows the place of each part.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::recipe_error::RecipeError;
use crate::checkpoint::yaml::{from_text, place, read_text};
use crate::error::Location;
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
    from_text(text).map_err(|error| not_yaml(path, &error).into())
}

fn not_yaml(path: &Path, error: &serde_saphyr::Error) -> RecipeError {
    let error = error.without_snippet();
    let at = error
        .location()
        .map_or_else(|| Location::from(path), |location| place(path, location));
    if let serde_saphyr::Error::DuplicateMappingKey { key, .. } = error {
        let key = key.clone().unwrap_or_else(|| "?".to_owned());
        return RecipeError::DuplicateKey { at, key };
    }

    let message = error.to_string();
    // The place is in front already, and advice to a caller of the parser is none to a user.
    let line = message.lines().next().unwrap_or_default();
    let problem = [" at line ", "; use "]
        .iter()
        .fold(line, |line, end| line.split(end).next().unwrap_or(line))
        .to_owned();
    if problem.starts_with("multiple YAML documents") {
        RecipeError::ManyDocuments { at, problem }
    } else {
        RecipeError::NotYaml { at, problem }
    }
}

/// The refusal of a part that is no value of the expected kind.
pub(super) fn wrong_kind(
    path: &Path,
    found: &Spanned<Node>,
    expected: impl Into<Cow<'static, str>>,
) -> Error {
    let error = RecipeError::Kind {
        at: place(path, found.referenced),
        expected: expected.into(),
        found: found.value.kind(),
    };
    error.into()
}

/// The refusal of a key that is none of the known ones.
pub(super) fn unknown_key(
    path: &Path,
    key: &Spanned<String>,
    owner: &str,
    known: &[&str],
) -> Error {
    let error = RecipeError::UnknownKey {
        at: place(path, key.referenced),
        key: key.value.clone(),
        owner: owner.to_owned(),
        known: known.iter().map(|name| (*name).to_owned()).collect(),
    };
    error.into()
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
    use crate::error::Position;

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
        let error = parse(Path::new("r.yaml"), "a: 1\na: 2\n").unwrap_err();
        assert_eq!(error.to_string(), "r.yaml:2:1: duplicate key `a`");
        let Error::Recipe(RecipeError::DuplicateKey { at, key }) = error else {
            panic!("{error}")
        };
        assert_eq!(at.position, Some(Position { line: 2, column: 1 }));
        assert_eq!(key, "a");
    }

    #[test]
    fn a_file_is_one_document_of_yaml() {
        let error = parse(Path::new("r.yaml"), "a: 1\n---\nb: 2\n").unwrap_err();
        let Error::Recipe(RecipeError::ManyDocuments { .. }) = error else {
            panic!("{error}")
        };
        let error = parse(Path::new("r.yaml"), "a: [1\n").unwrap_err();
        let Error::Recipe(RecipeError::NotYaml { .. }) = error else {
            panic!("{error}")
        };
    }
}
