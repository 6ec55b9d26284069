//! Which files of a dataset's repository are the rows of a configuration and a split.
//!
//! The front matter of `README.md` lists configurations and their files. Without this list, names of files and folders
//! tell the splits, by the words that the `datasets` library knows.

use std::collections::BTreeSet;

use glob::{MatchOptions, Pattern};
use serde::Deserialize;

use super::request_error::HubRequestError;
use crate::Result;
use crate::checkpoint::yaml;

/// Name of the file whose front matter lists configurations.
pub(super) const README: &str = "README.md";
/// The name of a configuration where none is named.
const DEFAULT: &str = "default";
/// The split that is meant where none is named.
const TRAIN: &str = "train";
/// Words in names of files and folders, and their splits.
const WORDS: [(&str, &str); 10] = [
    ("train", TRAIN),
    ("training", TRAIN),
    ("validation", "validation"),
    ("valid", "validation"),
    ("dev", "validation"),
    ("val", "validation"),
    ("test", "test"),
    ("testing", "test"),
    ("eval", "test"),
    ("evaluation", "test"),
];
/// Endings of files that hold rows, before the endings of packing.
const ENDINGS: [&str; 5] = ["parquet", "jsonl", "ndjson", "jsonlines", "json"];
const PACKINGS: [&str; 2] = ["gz", "zst"];

/// A configuration or a split that is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted<'a> {
    pub config: Option<&'a str>,
    pub split: Option<&'a str>,
}

#[derive(Default, Deserialize)]
struct FrontMatter {
    #[serde(default)]
    configs: Vec<ConfigEntry>,
}

#[derive(Deserialize)]
struct ConfigEntry {
    config_name: String,
    #[serde(default)]
    default: bool,
    data_files: Option<DataFiles>,
    data_dir: Option<String>,
}

/// Files of a configuration, all of one split or split by split.
#[derive(Deserialize)]
#[serde(untagged)]
enum DataFiles {
    One(String),
    Several(Vec<DataFile>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum DataFile {
    Path(String),
    OfSplit { split: String, path: Paths },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    Several(Vec<String>),
}

/// The files of the rows that are wanted, in the order of their names; `place` names the repository in errors.
pub(super) fn choose(
    place: &str,
    wanted: Wanted,
    files: &[&str],
    readme: Option<&str>,
) -> Result<Vec<String>> {
    let configs = match readme.and_then(front_matter) {
        None => Vec::new(),
        Some(text) => {
            yaml::from_text::<FrontMatter>(text)
                .map_err(|e| HubRequestError::FrontMatter {
                    place: place.to_owned(),
                    problem: e.to_string().lines().next().unwrap_or_default().to_owned(),
                })?
                .configs
        }
    };
    let splits = match config(place, wanted.config, &configs)? {
        None => by_names(files),
        Some(entry) => of_entry(place, entry, files)?,
    };
    of_split(place, wanted.split, splits)
}

/// The front matter of a page.
fn front_matter(readme: &str) -> Option<&str> {
    let rest = readme.trim_start_matches('\u{feff}');
    let rest = rest.strip_prefix("---")?.trim_start_matches('\r');
    let rest = rest.strip_prefix('\n')?;
    let end = rest.find("\n---")?;
    Some(&rest[..end + 1])
}

/// The configuration that is meant, or none where the repository lists none.
fn config<'a>(
    place: &str,
    wanted: Option<&str>,
    configs: &'a [ConfigEntry],
) -> Result<Option<&'a ConfigEntry>> {
    let named = |name: &str| configs.iter().find(|config| config.config_name == name);
    let found = match (wanted, configs) {
        (None | Some(DEFAULT), []) => return Ok(None),
        (Some(name), _) => named(name),
        (None, [only]) => Some(only),
        (None, _) => configs
            .iter()
            .find(|config| config.default)
            .or_else(|| named(DEFAULT)),
    };
    found.map(Some).ok_or_else(|| {
        HubRequestError::NoConfig {
            place: place.to_owned(),
            wanted: wanted.map(str::to_owned),
            configs: configs
                .iter()
                .map(|config| config.config_name.clone())
                .collect(),
        }
        .into()
    })
}

/// A split and its files.
type SplitFiles = (String, Vec<String>);

/// The splits of a configuration that lists its files.
fn of_entry(place: &str, entry: &ConfigEntry, files: &[&str]) -> Result<Vec<SplitFiles>> {
    let folder = entry.data_dir.as_deref().map(|dir| dir.trim_matches('/'));
    let folder = folder.filter(|dir| !dir.is_empty() && *dir != ".");
    let below: Vec<&str> = match folder {
        Some(folder) => {
            let is_below = |file: &&&str| {
                file.strip_prefix(folder)
                    .is_some_and(|rest| rest.starts_with('/'))
            };
            files.iter().filter(is_below).copied().collect()
        }
        None => files.to_vec(),
    };
    let matching = |paths: &[&str]| {
        let mut found = BTreeSet::new();
        for path in paths {
            let path = match folder {
                Some(folder) => format!("{folder}/{path}"),
                None => (*path).to_owned(),
            };
            found.extend(matches(place, &path, files)?);
        }
        Ok::<_, crate::Error>(found.into_iter().collect::<Vec<String>>())
    };
    match &entry.data_files {
        None => Ok(by_names(&below)),
        Some(DataFiles::One(path)) => Ok(vec![(TRAIN.to_owned(), matching(&[path])?)]),
        Some(DataFiles::Several(parts)) => {
            let (mut splits, mut plain) = (Vec::new(), Vec::new());
            for part in parts {
                match part {
                    DataFile::Path(path) => plain.push(path.as_str()),
                    DataFile::OfSplit { split, path } => {
                        let paths: Vec<&str> = match path {
                            Paths::One(path) => vec![path],
                            Paths::Several(paths) => paths.iter().map(String::as_str).collect(),
                        };
                        splits.push((split.clone(), matching(&paths)?));
                    }
                }
            }
            if !plain.is_empty() {
                splits.push((TRAIN.to_owned(), matching(&plain)?));
            }
            Ok(splits)
        }
    }
}

/// The files that a pattern of the front matter matches.
fn matches(place: &str, pattern: &str, files: &[&str]) -> Result<Vec<String>> {
    let pattern = pattern.trim_start_matches("./");
    let refused = |problem: String| HubRequestError::DataPattern {
        place: place.to_owned(),
        pattern: pattern.to_owned(),
        problem,
    };
    if pattern.contains("://") {
        return Err(refused("it leads to another place".to_owned()).into());
    }
    let compiled = Pattern::new(pattern).map_err(|e| refused(e.to_string()))?;
    let options = MatchOptions {
        require_literal_separator: true,
        require_literal_leading_dot: true,
        ..MatchOptions::default()
    };
    let found: Vec<String> = files
        .iter()
        .filter(|file| compiled.matches_with(file, options))
        .map(|file| (*file).to_owned())
        .collect();
    if found.is_empty() {
        return Err(refused("no file of the repository matches it".to_owned()).into());
    }
    Ok(found)
}

/// The splits that names of files and folders tell; all files are for training where none tells one.
fn by_names(files: &[&str]) -> Vec<SplitFiles> {
    let rows: Vec<&str> = files
        .iter()
        .copied()
        .filter(|file| holds_rows(file))
        .collect();
    let mut splits: Vec<SplitFiles> = Vec::new();
    for file in &rows {
        let mut words = file.split(|c: char| !c.is_ascii_alphabetic());
        let split = words.find_map(|word| WORDS.iter().find(|(known, _)| *known == word));
        let Some((_, split)) = split else { continue };
        match splits.iter_mut().find(|(name, _)| name == split) {
            Some((_, files)) => files.push((*file).to_owned()),
            None => splits.push(((*split).to_owned(), vec![(*file).to_owned()])),
        }
    }
    if splits.is_empty() && !rows.is_empty() {
        let rows = rows.into_iter().map(str::to_owned).collect();
        splits.push((TRAIN.to_owned(), rows));
    }
    splits
}

fn holds_rows(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    if name.starts_with('.') {
        return false;
    }
    let mut endings = name.rsplit('.');
    let ending = endings.next().map(|last| {
        if PACKINGS.contains(&last) {
            endings.next().unwrap_or_default()
        } else {
            last
        }
    });
    ending.is_some_and(|ending| ENDINGS.contains(&ending))
}

fn of_split(place: &str, wanted: Option<&str>, splits: Vec<SplitFiles>) -> Result<Vec<String>> {
    let names: Vec<String> = splits.iter().map(|(name, _)| name.clone()).collect();
    let is_only = splits.len() == 1;
    let mut found = splits.into_iter().filter(|(name, _)| match wanted {
        Some(wanted) => name == wanted,
        None => name == TRAIN || is_only,
    });
    let Some((_, mut files)) = found.next() else {
        return Err(HubRequestError::NoSplit {
            place: place.to_owned(),
            wanted: wanted.unwrap_or(TRAIN).to_owned(),
            splits: names,
        }
        .into());
    };
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 6] = [
        "README.md",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test.jsonl.gz",
        "de/all.jsonl",
        "scripts/contest.json",
    ];

    fn chosen(target: (&str, &str), readme: Option<&str>) -> Result<Vec<String>> {
        let wanted = Wanted {
            config: Some(target.0).filter(|text| !text.is_empty()),
            split: Some(target.1).filter(|text| !text.is_empty()),
        };
        choose("hf://datasets/a/b", wanted, &FILES, readme)
    }

    #[test]
    fn names_tell_the_splits() {
        assert_eq!(chosen(("", ""), None).unwrap(), FILES[1..3]);
        assert_eq!(chosen(("default", "test"), None).unwrap(), [FILES[3]]);
        let error = chosen(("", "validation"), None).unwrap_err();
        assert!(error.to_string().contains("validation"), "{error}");
        assert!(chosen(("de", ""), None).is_err());
    }

    #[test]
    fn front_matter_lists_configurations() {
        let readme = "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n\
                      - config_name: de\n  data_dir: de\n- config_name: all\n  data_files: ['data/*', de/*.jsonl]\n---\n# Title\n";
        assert_eq!(chosen(("", ""), Some(readme)).unwrap(), FILES[1..3]);
        assert_eq!(chosen(("de", ""), Some(readme)).unwrap(), [FILES[4]]);
        assert_eq!(chosen(("all", "train"), Some(readme)).unwrap().len(), 4);
        let error = chosen(("fr", ""), Some(readme)).unwrap_err();
        assert!(error.to_string().contains("fr"), "{error}");
        let elsewhere =
            "---\nconfigs:\n- config_name: x\n  data_files: hf://datasets/c/d/e.jsonl\n---\n";
        assert!(chosen(("", ""), Some(elsewhere)).is_err());
        let missing = "---\nconfigs:\n- config_name: x\n  data_files: nothing/*.jsonl\n---\n";
        assert!(chosen(("", ""), Some(missing)).is_err());
    }
}
