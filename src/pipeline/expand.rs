//! `${name}` in the texts of a recipe.

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

/// The text with each `${name}` replaced by its value. Names may hold others: `${stage.train-${domain}}`.
///
/// The error is a problem in words and a hint.
pub(super) fn expand(text: &str, scope: &Scope) -> Result<String, (String, Option<String>)> {
    expand_below(text, scope, DEEPEST)
}

fn expand_below(
    text: &str,
    scope: &Scope,
    depth: usize,
) -> Result<String, (String, Option<String>)> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let inside = &rest[start + 2..];
        let Some(end) = closing(inside) else {
            return Err((
                format!("`{}` lacks its closing brace", &rest[start..]),
                None,
            ));
        };
        let Some(depth) = depth.checked_sub(1) else {
            return Err((
                format!("expected at most {DEEPEST} names inside each other"),
                None,
            ));
        };
        let name = expand_below(&inside[..end], scope, depth)?;
        match scope.take(&name) {
            Some(value) => out.push_str(value),
            None => return Err(unknown(&name, scope)),
        }
        if out.len() > LONGEST {
            return Err((
                format!("expected a text of at most {LONGEST} bytes with its names replaced"),
                None,
            ));
        }
        rest = &inside[end + 1..];
    }
    out.push_str(rest);
    if out.contains('\0') {
        return Err((
            "expected text, found a NUL, which no command line can hold".to_owned(),
            None,
        ));
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

fn unknown(name: &str, scope: &Scope) -> (String, Option<String>) {
    let near = nearest(name, scope.names.keys().map(String::as_str));
    let hint = near.map(|near| format!("the nearest known name is `{near}`"));
    match name.strip_prefix(STAGE) {
        Some(stage) => (
            format!("no stage above this one is named `{stage}` and has an output"),
            hint,
        ),
        None => (format!("no variable is named `{name}`"), hint),
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
        let (problem, hint) = expand("${domian}", &scope()).unwrap_err();
        assert_eq!(problem, "no variable is named `domian`");
        assert_eq!(hint.unwrap(), "the nearest known name is `domain`");
        assert!(
            expand("${n", &scope())
                .unwrap_err()
                .0
                .contains("closing brace")
        );
        assert!(
            expand("${stage.x}", &scope())
                .unwrap_err()
                .0
                .contains("no stage above")
        );
    }
}
