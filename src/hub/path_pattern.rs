//! Patterns of paths in a dataset's front matter, matched in time that their length justifies.
//!
//! The `glob` crate tries all ways in which stars can share a path, and a hostile page can make these many. So it matches
//! one name at a time here, where it gives up early, and only the last `**` is tried again.

use glob::{MatchOptions, Pattern};

/// Bytes of the longest pattern.
const LONGEST: usize = 1000;

const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// A pattern, name by name.
pub(super) struct PathPattern(Vec<Part>);

enum Part {
    /// `**`: any number of names.
    Names,
    Name(Pattern),
}

impl PathPattern {
    /// Reads a pattern; the error says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!(
                "expected at most {LONGEST} bytes, found {}",
                text.len()
            ));
        }
        let part = |name: &str| match name {
            "**" => Ok(Part::Names),
            name => Pattern::new(name)
                .map(Part::Name)
                .map_err(|e| e.to_string()),
        };
        text.split('/')
            .map(part)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether it matches a path, given name by name. `*` and `**` match no name that begins with a dot.
    pub fn matches(&self, path: &[&str]) -> bool {
        let (mut part, mut at) = (0, 0);
        // The last `**`, and the name up to which it goes.
        let mut last: Option<(usize, usize)> = None;
        while let Some(name) = path.get(at) {
            match self.0.get(part) {
                Some(Part::Names) => {
                    last = Some((part, at));
                    part += 1;
                }
                Some(Part::Name(pattern)) if pattern.matches_with(name, OPTIONS) => {
                    part += 1;
                    at += 1;
                }
                _ => match last {
                    Some((names, end)) if !path[end].starts_with('.') => {
                        last = Some((names, end + 1));
                        (part, at) = (names + 1, end + 1);
                    }
                    _ => return false,
                },
            }
        }
        self.0[part..]
            .iter()
            .all(|part| matches!(part, Part::Names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        let path: Vec<&str> = path.split('/').collect();
        PathPattern::new(pattern).unwrap().matches(&path)
    }

    #[test]
    fn stars_stay_within_a_name_and_double_stars_do_not() {
        for (pattern, path, expected) in [
            ("data/*", "data/a.json", true),
            ("data/*", "data/b/a.json", false),
            ("data/train-*", "data/train-0.json", true),
            ("**/*.json", "a.json", true),
            ("**/*.json", "a/b/c.json", true),
            ("**/b/**/*.json", "a/b/b/c/d.json", true),
            ("**/b/*.json", "b/a/b/c.json", true),
            ("**/b/*.json", "b/a/c.json", false),
            ("data/**", "data/a/b.json", true),
            ("**/*.json", "a/.b/c.json", false),
            ("*", ".a", false),
            ("[ab].json", "b.json", true),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
        assert!(PathPattern::new("a**").is_err());
        assert!(PathPattern::new(&"a".repeat(1001)).is_err());
    }

    #[test]
    fn many_stars_cost_little() {
        let began = std::time::Instant::now();
        let (stars, letters) = ("*a".repeat(490), "a".repeat(1000));
        assert!(!matches(&format!("{stars}*b"), &letters));
        let path = ["a"; 500].join("/");
        assert!(!matches(&format!("{}b", "**/a/".repeat(190)), &path));
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }
}
