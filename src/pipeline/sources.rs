//! What a recipe is given: files and folders that no stage makes, by name instead of by place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::graph::Makers;
use super::lines::SettingValue;
use super::stage::Stage;
use crate::Result;

/// The sources of some stages, and the names that replace their places.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// The place of each source, as seen from the work folder.
    pub(super) named: BTreeMap<String, String>,
    /// Places that settings name, each with the text that replaces it; the longest first.
    places: Vec<(String, String)>,
}

impl Sources {
    /// The sources of `stages`, out of all of a recipe: each has the name of the variable that holds its place, else
    /// its own name.
    pub(super) fn of<'a>(
        stages: impl Iterator<Item = &'a Stage>,
        makers: &Makers,
        variables: &[(String, String)],
        work: &Path,
    ) -> Result<Self> {
        let is_given = |place: &str| {
            let place = Path::new(place);
            !matches!(place.to_str(), Some("" | "."))
                && work.join(place).exists()
                && makers.of(place).is_empty()
        };
        let mut variables: Vec<&(String, String)> = variables
            .iter()
            .filter(|(_, value)| is_given(value))
            .collect();
        // The one that says most of a place comes first.
        variables
            .sort_by_key(|(_, value)| std::cmp::Reverse(Path::new(value).components().count()));
        let mut sources = Self::default();
        for place in stages
            .flat_map(Stage::reads)
            .filter(|place| is_given(place))
        {
            if sources.places.iter().any(|(known, _)| known == place) {
                continue;
            }
            let below = |root: &str| Some(Path::new(place).strip_prefix(root).ok()?.to_path_buf());
            let variable = variables
                .iter()
                .find_map(|(name, root)| Some((name.clone(), root.clone(), below(root)?)));
            let (name, root, rest) = match variable {
                Some(found) => found,
                None => (sources.new_name(place), place.clone(), PathBuf::new()),
            };
            sources.named.insert(name.clone(), root);
            let text = join(&format!("${{{name}}}"), &rest);
            sources.places.push((place.clone(), text));
        }
        sources
            .places
            .sort_by_key(|(place, _)| std::cmp::Reverse(place.len()));
        Ok(sources)
    }

    /// A name for a place that no variable has.
    fn new_name(&self, place: &str) -> String {
        let stem = Path::new(place)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let plain: String = stem
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c))
            .collect();
        let plain = if plain.is_empty() {
            "source".to_owned()
        } else {
            plain
        };
        let mut name = plain.clone();
        for number in 2.. {
            if !self.named.contains_key(&name) {
                break;
            }
            name = format!("{plain}-{number}");
        }
        name
    }

    /// A value of a setting with the sources that it holds by name.
    pub(super) fn in_value(&self, value: &SettingValue) -> String {
        let known = |place: &String| self.places.iter().find(|(known, _)| known == place);
        let whole = &value.text;
        let Some((place, text)) = value.places.iter().find_map(known) else {
            return whole.clone();
        };
        match whole.rfind(place.as_str()) {
            Some(at) => format!("{}{text}{}", &whole[..at], &whole[at + place.len()..]),
            None => whole.clone(),
        }
    }

    /// A command of the shell with the sources that it holds by name.
    pub(super) fn in_command(&self, command: &str) -> String {
        self.places
            .iter()
            .fold(command.to_owned(), |command, (place, text)| {
                replaced(&command, place, text)
            })
    }

    /// The path of a file by the source that it belongs to.
    pub(super) fn in_path(&self, path: &str) -> String {
        let of = |(place, text): &(String, String)| {
            Some(join(text, Path::new(path).strip_prefix(place).ok()?))
        };
        self.places
            .iter()
            .find_map(of)
            .unwrap_or_else(|| path.to_owned())
    }
}

/// The command with a path replaced where it is a word by itself, and no part of another path.
fn replaced(command: &str, place: &str, text: &str) -> String {
    let within = |c: char| c.is_alphanumeric() || "-_./".contains(c);
    let (mut out, mut from) = (String::new(), 0);
    for (at, _) in command.match_indices(place) {
        let end = at + place.len();
        let is_alone = !command[..at].ends_with(within)
            && !command[end..].starts_with(|c| c != '/' && within(c));
        if is_alone && at >= from {
            out.push_str(&command[from..at]);
            out.push_str(text);
            from = end;
        }
    }
    out + &command[from..]
}

fn join(text: &str, rest: &Path) -> String {
    if rest.as_os_str().is_empty() {
        text.to_owned()
    } else {
        format!("{text}/{}", rest.display())
    }
}
