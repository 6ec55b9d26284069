//! A format file with the families that it extends: `extends: llama` takes all of llama's file but for what the file itself says.
//!
//! Maps are merged key by key, whatever their depth; lists and single values are replaced, and null removes a key.
//! A file never takes the name of the family that it extends, nor the `model_types` and `architectures` that mean that family.
//! A file with a layout, experts or multipliers of its own computes something else, and takes GGUF names only where it has a section `gguf` too.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::format::{Family, FamilyText};
use super::format_error::FormatError;
use super::keys::Field;
use super::layout::Layouts;
use crate::Result;
use crate::checkpoint::yaml;

/// Most families that one file extends, each through the one before.
const MOST_PARENTS: usize = 8;

/// Keys that say which models are of a family, and so are not taken from another.
const OWN: [&str; 4] = ["extends", "name", "model_types", "architectures"];

/// The format file of a family that others may extend.
pub(super) struct Parent<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
    /// What the text says, once something has asked for it: many families extend the same.
    parsed: OnceLock<Map<String, Value>>,
}

impl<'a> Parent<'a> {
    pub(super) fn new(name: &'a str, text: &'a str) -> Self {
        Self {
            name,
            text,
            parsed: OnceLock::new(),
        }
    }

    /// What the file says; `path` names the place in errors.
    pub(super) fn parsed(&self, path: &Path) -> Result<&Map<String, Value>> {
        match self.parsed.get() {
            Some(parsed) => Ok(parsed),
            None => {
                let parsed = yaml::parse(path, self.text)?;
                Ok(self.parsed.get_or_init(|| parsed))
            }
        }
    }
}

/// Reads a family from the text of a format file. `known` are the families that it may extend.
pub(super) fn read(path: &Path, text: &str, known: &[&Parent]) -> Result<Family> {
    // Errors of its own text have lines; errors of the merged file have none.
    let own: FamilyText = yaml::parse(path, text)?;
    if own.extends.is_none() {
        return own.resolve(path);
    }
    complete(path, yaml::parse(path, text)?, known)
}

/// The family of a format file that says `own`, on top of what it extends.
pub(super) fn complete(path: &Path, own: Map<String, Value>, known: &[&Parent]) -> Result<Family> {
    let merged = Chain {
        path,
        known,
        names: Vec::new(),
    }
    .merged(own)?;
    let merged: FamilyText =
        serde_json::from_value(Value::Object(merged)).map_err(|error| FormatError::Merged {
            path: path.to_path_buf(),
            problem: error.to_string(),
        })?;
    merged.resolve(path)
}

/// The families that a file extends, each through the one before.
struct Chain<'a> {
    /// The file, for errors.
    path: &'a Path,
    known: &'a [&'a Parent<'a>],
    names: Vec<&'a str>,
}

impl<'a> Chain<'a> {
    /// What a file that says `own` says with all that it extends.
    fn merged(mut self, own: Map<String, Value>) -> Result<Map<String, Value>> {
        let mut files = vec![own];
        while let Some(Value::String(parent)) = files.last().and_then(|file| file.get("extends")) {
            let parent = self.find(parent)?;
            files.push(parent.parsed(self.path)?.clone());
        }

        let mut merged = Map::new();
        for file in files.into_iter().rev() {
            for key in OWN {
                merged.shift_remove(key);
            }
            let keys = file.get("keys").and_then(Value::as_object);
            let computes_otherwise = Layouts::NAMES
                .into_iter()
                .chain(["mixture", "rotation"])
                .any(|key| file.contains_key(key));
            let multiplies = Field::MULTIPLIERS
                .into_iter()
                .any(|field| keys.is_some_and(|keys| keys.contains_key(field.name())));
            if (computes_otherwise || multiplies) && !file.contains_key("gguf") {
                merged.shift_remove("gguf");
            }
            merge(&mut merged, file);
        }
        Ok(merged)
    }

    /// The family called `parent`, which is the next of the chain.
    fn find(&mut self, parent: &str) -> Result<&'a Parent<'a>> {
        let path = || self.path.to_path_buf();
        let Some(found) = self.known.iter().find(|known| known.name == parent) else {
            let known = self.known.iter().map(|known| known.name.to_owned());
            return Err(FormatError::UnknownParent {
                path: path(),
                found: parent.to_owned(),
                known: known.collect(),
            }
            .into());
        };
        let is_circle = self.names.contains(&found.name);
        self.names.push(found.name);
        if is_circle {
            return Err(FormatError::Circle {
                path: path(),
                names: self.names.iter().map(|name| (*name).to_owned()).collect(),
            }
            .into());
        }
        if self.names.len() > MOST_PARENTS {
            return Err(FormatError::LongChain {
                path: path(),
                most: MOST_PARENTS,
            }
            .into());
        }
        Ok(found)
    }
}

/// Puts what `own` says over `base`.
fn merge(base: &mut Map<String, Value>, own: Map<String, Value>) {
    for (key, value) in own {
        match value {
            Value::Null => _ = base.shift_remove(&key),
            Value::Object(own) => {
                let inner = base.entry(key).or_insert(Value::Null);
                if !inner.is_object() {
                    *inner = Value::Object(Map::new());
                }
                if let Value::Object(inner) = inner {
                    merge(inner, own);
                }
            }
            value => _ = base.insert(key, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    const CIRCLE: [(&str, &str); 2] = [("a", "extends: b"), ("b", "extends: a")];

    fn refused(text: &str, known: &[(&str, &str)]) -> Error {
        let parents = known.iter().map(|(name, text)| Parent::new(name, text));
        let parents: Vec<Parent> = parents.collect();
        read(
            Path::new("my.yaml"),
            text,
            &parents.iter().collect::<Vec<_>>(),
        )
        .unwrap_err()
    }

    #[test]
    fn circles_depth_and_unknown_families_are_refused() {
        let error = refused("extends: a", &CIRCLE).to_string();
        assert!(
            error.contains("key `extends`: is a circle: `a` extends `b` extends `a`"),
            "{error}"
        );

        let names: Vec<String> = (0..10).map(|number| format!("f{number}")).collect();
        let texts: Vec<String> = (1..11)
            .map(|number| format!("extends: f{number}"))
            .collect();
        let long: Vec<(&str, &str)> = names
            .iter()
            .zip(&texts)
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .collect();
        let error = refused("extends: f0", &long);
        assert!(
            matches!(error, Error::Format(FormatError::LongChain { most: 8, .. })),
            "{error}"
        );

        let error = refused("extends: aa", &CIRCLE);
        assert!(
            matches!(&error, Error::Format(FormatError::UnknownParent { found, .. }) if found == "aa"),
            "{error}"
        );
        assert_eq!(
            error.hint().as_deref(),
            Some("the nearest known one is `a`")
        );
    }

    #[test]
    fn maps_are_merged_lists_replaced_and_null_removes() {
        let object = |value: Value| match value {
            Value::Object(object) => object,
            _ => Map::new(),
        };
        let mut base =
            object(serde_json::json!({"a": {"b": 1, "c": [1, 2]}, "d": 2, "e": {"f": 3}}));
        let own = serde_json::json!({"a": {"b": 7, "c": [3], "g": {"h": null}}, "d": null, "e": 4});
        merge(&mut base, object(own));
        let merged = serde_json::json!({"a": {"b": 7, "c": [3], "g": {}}, "e": 4});
        assert_eq!(Value::Object(base), merged);
    }
}
