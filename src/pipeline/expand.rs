//! `${name}` in the texts of a recipe.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::error::nearest;

/// What names stand for, and which of them texts have used.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    names: BTreeMap<String, String>,
    used: RefCell<BTreeSet<String>>,
}

impl Scope {
    /// These names.
    pub(super) fn new(names: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            names: names.into_iter().collect(),
            used: RefCell::default(),
        }
    }

    /// The same names, none of them used yet.
    pub(super) fn unused(&self) -> Self {
        Self {
            names: self.names.clone(),
            used: RefCell::default(),
        }
    }

    /// Makes a name stand for a value.
    pub(super) fn insert(&mut self, name: String, value: String) {
        self.names.insert(name, value);
    }

    /// Whether a name has a value.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// The stages whose outputs were used, with those outputs.
    pub(super) fn used_stages(&self) -> Vec<(String, String)> {
        let used = self.used.borrow();
        let stages = used
            .iter()
            .filter_map(|name| Some((name.strip_prefix(STAGE)?, self.names.get(name)?)));
        stages
            .map(|(stage, output)| (stage.to_owned(), output.clone()))
            .collect()
    }

    fn take(&self, name: &str) -> Option<&str> {
        let value = self.names.get(name)?;
        self.used.borrow_mut().insert(name.to_owned());
        Some(value)
    }
}

/// Bytes that a text may grow to: variables that double each other would fill the memory.
const LONGEST: usize = 1 << 16;
/// Names inside names.
const DEEPEST: usize = 8;

/// Prefix of the names that stand for the outputs of stages.
pub(super) const STAGE: &str = "stage.";

/// A rule that a text with names breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// A name without an end.
    #[error("`{text}` lacks its closing brace")]
    NoBrace {
        /// The text from its opening brace on.
        text: String,
    },
    /// Too many names inside each other.
    #[error("expected at most {most} names inside each other")]
    Depth {
        /// The most.
        most: usize,
    },
    /// A text that grows too long.
    #[error("expected a text of at most {most} bytes with its names replaced")]
    Length {
        /// The most.
        most: usize,
    },
    /// A text that no command line can hold.
    #[error("expected text, found a NUL, which no command line can hold")]
    Nul,
    /// A stage that comes later or not at all, or that makes nothing.
    #[error("no stage above this one is named `{name}` and has an output")]
    UnknownStage {
        /// The name of the stage.
        name: String,
        /// The nearest name that has a value.
        nearest: Option<String>,
    },
    /// A variable that the recipe does not have.
    #[error("no variable is named `{name}`")]
    UnknownVariable {
        /// The name.
        name: String,
        /// The nearest name that has a value.
        nearest: Option<String>,
    },
}

impl NameError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::UnknownStage { nearest, .. } | Self::UnknownVariable { nearest, .. } => {
                let near = nearest.as_deref()?;
                Some(format!("the nearest known name is `{near}`").into())
            }
            Self::NoBrace { .. } | Self::Depth { .. } | Self::Length { .. } | Self::Nul => None,
        }
    }
}

/// The text with each `${name}` replaced by its value. Names may hold others: `${stage.train-${domain}}`.
pub(super) fn expand(text: &str, scope: &Scope) -> Result<String, NameError> {
    expand_below(text, scope, DEEPEST)
}

fn expand_below(text: &str, scope: &Scope, depth: usize) -> Result<String, NameError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let inside = &rest[start + 2..];
        let Some(end) = closing(inside) else {
            let text = rest[start..].to_owned();
            return Err(NameError::NoBrace { text });
        };
        let Some(depth) = depth.checked_sub(1) else {
            return Err(NameError::Depth { most: DEEPEST });
        };
        let name = expand_below(&inside[..end], scope, depth)?;
        match scope.take(&name) {
            Some(value) => out.push_str(value),
            None => return Err(unknown(&name, scope)),
        }
        if out.len() > LONGEST {
            return Err(NameError::Length { most: LONGEST });
        }
        rest = &inside[end + 1..];
    }
    out.push_str(rest);
    if out.contains('\0') {
        return Err(NameError::Nul);
    }
    Ok(out)
}

/// Whether the text refers to `name`.
pub(super) fn refers_to(text: &str, name: &str) -> bool {
    text.contains(&format!("${{{name}}}"))
}

/// Where the brace closes that was open before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn unknown(name: &str, scope: &Scope) -> NameError {
    let nearest = nearest(name, scope.names.keys().map(String::as_str)).map(str::to_owned);
    match name.strip_prefix(STAGE) {
        Some(stage) => NameError::UnknownStage {
            name: stage.to_owned(),
            nearest,
        },
        None => NameError::UnknownVariable {
            name: name.to_owned(),
            nearest,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        let names = [
            ("domain", "law"),
            ("stage.train-law", "experts/law"),
            ("n", "3"),
        ];
        Scope::new(names.map(|(name, value)| (name.to_owned(), value.to_owned())))
    }

    #[test]
    fn names_are_replaced_inside_out() {
        let scope = scope();
        assert_eq!(
            expand("a ${n} $ {x} ${stage.train-${domain}}/b", &scope).unwrap(),
            "a 3 $ {x} experts/law/b"
        );
        assert_eq!(
            scope.used_stages(),
            [("train-law".to_owned(), "experts/law".to_owned())]
        );
        assert!(scope.unused().used_stages().is_empty());
        assert!(refers_to("x-${domain}", "domain") && !refers_to("domain", "domain"));
    }

    #[test]
    fn unknown_names_and_open_braces_are_refused() {
        let error = expand("${domian}", &scope()).unwrap_err();
        assert!(
            matches!(&error, NameError::UnknownVariable { name, .. } if name == "domian"),
            "{error}"
        );
        assert_eq!(
            error.hint().as_deref(),
            Some("the nearest known name is `domain`")
        );
        let error = expand("${n", &scope()).unwrap_err();
        assert!(matches!(error, NameError::NoBrace { text } if text == "${n"));
        let error = expand("${stage.x}", &scope()).unwrap_err();
        assert!(matches!(error, NameError::UnknownStage { name, .. } if name == "x"));
    }
}
