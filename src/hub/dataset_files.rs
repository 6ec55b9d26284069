//! Which files of a dataset's repository are the rows of a configuration and a split.
//!
//! The front matter of `README.md` lists configurations and their files. Without this list, names of files and folders
//! tell the splits, as the `datasets` library reads them. Whoever makes a repository chooses both, so work is bounded.

use std::collections::{BTreeMap, BTreeSet};

use glob::Pattern;
use serde::Deserialize;

use super::dataset_names::{Splits, TRAIN, by_names, is_held_back};
use super::path_pattern::PathPattern;
use super::request_error::HubRequestError;
use crate::Result;
use crate::checkpoint::yaml;

/// Name of the file whose front matter lists configurations.
pub(super) const README: &str = "README.md";
/// The revision at which the Hub keeps the rows of a dataset as tables, in folders of configurations and splits.
pub(super) const CONVERTED: &str = "refs/convert/parquet";
/// The name of a configuration where none is named.
const DEFAULT: &str = "default";
/// What a split of converted rows begins with where some rows are missing.
const PARTIAL: &str = "partial-";
/// Most patterns of a split, and most comparisons of a pattern with a file.
const MOST_PATTERNS: usize = 1000;
const MOST_COMPARISONS: usize = 10_000_000;

/// A configuration or a split that is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted<'a> {
    pub config: Option<&'a str>,
    pub split: Option<&'a str>,
}

/// What is in a repository.
pub(super) struct DatasetFiles<'a> {
    /// The repository and commit, for errors.
    pub place: &'a str,
    pub paths: Vec<&'a str>,
    /// The text of [`README`].
    pub readme: Option<&'a str>,
    /// Whether the revision is [`CONVERTED`].
    pub is_converted: bool,
    /// Whether a file holds rows that can be read, by its name.
    pub holds_rows: fn(&str) -> bool,
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

impl DatasetFiles<'_> {
    /// The files of the rows that are wanted, in the order of their names.
    ///
    /// # Errors
    /// A configuration or split that is not there or not clear, and files that do not hold rows.
    pub fn choose(&self, wanted: Wanted) -> Result<Vec<String>> {
        let mut files = if self.is_converted {
            self.converted(wanted)?
        } else {
            self.listed(wanted)?
        };
        if let Some(path) = files.iter().find(|path| !(self.holds_rows)(path)) {
            return Err(HubRequestError::NotRows {
                place: self.place.to_owned(),
                path: (*path).to_owned(),
            }
            .into());
        }
        files.sort_unstable();
        Ok(files.into_iter().map(str::to_owned).collect())
    }

    /// The files of folders of configurations and splits.
    fn converted(&self, wanted: Wanted) -> Result<Vec<&str>> {
        let mut configs: BTreeMap<&str, Splits> = BTreeMap::new();
        for path in self.paths.iter().filter(|path| (self.holds_rows)(path)) {
            let mut names = path.split('/');
            if let (Some(config), Some(split), Some(_), None) =
                (names.next(), names.next(), names.next(), names.next())
            {
                let splits = configs.entry(config).or_default();
                splits.entry(split).or_default().push(path);
            }
        }
        let names: Vec<&str> = configs.keys().copied().collect();
        let config = self.config(wanted.config, &names, None)?;
        self.of_split(wanted.split, &configs[config])
    }

    /// The files that the front matter lists, or that names tell.
    fn listed(&self, wanted: Wanted) -> Result<Vec<&str>> {
        let configs = self.configs()?;
        if configs.is_empty() && wanted.config.is_none_or(|name| name == DEFAULT) {
            return self.of_split(wanted.split, &by_names(&self.paths, 0));
        }
        let names: Vec<&str> = configs.iter().map(|one| one.config_name.as_str()).collect();
        let marked = configs.iter().position(|one| one.default);
        let name = self.config(wanted.config, &names, marked)?;
        match configs.iter().find(|one| one.config_name == name) {
            Some(entry) => self.of_entry(wanted.split, entry),
            None => Err(self.no_config(wanted.config, &names)),
        }
    }

    /// The configurations of the front matter.
    fn configs(&self) -> Result<Vec<ConfigEntry>> {
        let Some(text) = self.readme.and_then(front_matter) else {
            return Ok(Vec::new());
        };
        let front = yaml::from_text::<FrontMatter>(text);
        let front = front.map_err(|e| HubRequestError::FrontMatter {
            place: self.place.to_owned(),
            problem: e.to_string().lines().next().unwrap_or_default().to_owned(),
        })?;
        Ok(front.configs)
    }

    /// The configuration that is meant; `marked` is the number of the one to take where none is named.
    fn config<'n>(
        &self,
        wanted: Option<&str>,
        names: &[&'n str],
        marked: Option<usize>,
    ) -> Result<&'n str> {
        let named = |name: &str| names.iter().find(|found| **found == name);
        let found = match (wanted, names) {
            (Some(name), _) => named(name),
            (None, [only]) => Some(only),
            (None, _) => marked
                .and_then(|number| names.get(number))
                .or_else(|| named(DEFAULT)),
        };
        found.copied().ok_or_else(|| self.no_config(wanted, names))
    }

    fn no_config(&self, wanted: Option<&str>, names: &[&str]) -> crate::Error {
        HubRequestError::NoConfig {
            place: self.place.to_owned(),
            wanted: wanted.map(str::to_owned),
            configs: names.iter().map(|name| (*name).to_owned()).collect(),
        }
        .into()
    }

    /// The split that is meant. Rows that are held back are never taken without their name.
    fn split<'n>(&self, wanted: Option<&str>, names: &[&'n str]) -> Result<&'n str> {
        let is_special = |name: &str| name.starts_with(PARTIAL) || is_held_back(name);
        let found = match (wanted, names) {
            (None, [only]) if !is_special(only) => Some(only),
            _ => {
                let wanted = wanted.unwrap_or(TRAIN);
                names.iter().find(|name| **name == wanted)
            }
        };
        found.copied().ok_or_else(|| {
            HubRequestError::NoSplit {
                place: self.place.to_owned(),
                wanted: wanted.unwrap_or(TRAIN).to_owned(),
                splits: names.iter().map(|name| (*name).to_owned()).collect(),
            }
            .into()
        })
    }

    fn of_split<'f>(&self, wanted: Option<&str>, splits: &Splits<'f>) -> Result<Vec<&'f str>> {
        let names: Vec<&str> = splits.keys().copied().collect();
        let split = self.split(wanted, &names)?;
        Ok(splits[split].clone())
    }

    /// The files of a split of a configuration.
    fn of_entry(&self, wanted: Option<&str>, entry: &ConfigEntry) -> Result<Vec<&str>> {
        let folder = entry.data_dir.as_deref().unwrap_or_default();
        let folder = folder.trim_start_matches("./").trim_matches('/');
        let folder = match folder {
            "" | "." => String::new(),
            folder => format!("{folder}/"),
        };
        let parts: Vec<(&str, &str)> = match &entry.data_files {
            None => {
                let paths = self.paths.iter().copied();
                let below: Vec<&str> = paths.filter(|path| path.starts_with(&folder)).collect();
                return self.of_split(wanted, &by_names(&below, folder.len()));
            }
            Some(DataFiles::One(path)) => vec![(TRAIN, path.as_str())],
            Some(DataFiles::Several(parts)) => parts.iter().flat_map(DataFile::patterns).collect(),
        };
        let mut seen = BTreeSet::new();
        let names = parts.iter().map(|part| part.0);
        let names: Vec<&str> = names.filter(|name| seen.insert(*name)).collect();
        let split = self.split(wanted, &names)?;
        let patterns = parts.iter().filter(|part| part.0 == split);
        let patterns: Vec<&str> = patterns.map(|part| part.1).collect();
        self.matching(&folder, &patterns)
    }

    /// The files below a folder that patterns of the front matter match.
    fn matching(&self, folder: &str, patterns: &[&str]) -> Result<Vec<&str>> {
        let refused = |pattern: &str, problem: String| HubRequestError::DataPattern {
            place: self.place.to_owned(),
            pattern: pattern.chars().take(100).collect(),
            problem,
        };
        let comparisons = patterns.len().saturating_mul(self.paths.len());
        if patterns.len() > MOST_PATTERNS || comparisons > MOST_COMPARISONS {
            let (found, files) = (patterns.len(), self.paths.len());
            let problem = format!("the split has {found} patterns, the repository {files} files");
            return Err(refused(patterns[0], problem).into());
        }
        let names = self.paths.iter().map(|path| path.split('/').collect());
        let paths: Vec<Vec<&str>> = names.collect();
        let mut found = BTreeSet::new();
        for pattern in patterns {
            if pattern.contains("://") {
                return Err(refused(pattern, "it leads to another place".to_owned()).into());
            }
            let below = pattern.trim_start_matches("./");
            let compiled = PathPattern::new(&format!("{}{below}", Pattern::escape(folder)));
            let compiled = compiled.map_err(|problem| refused(pattern, problem))?;
            let mut is_used = false;
            for (path, names) in self.paths.iter().zip(&paths) {
                if compiled.matches(names) {
                    is_used = true;
                    found.insert(*path);
                }
            }
            if !is_used {
                let problem = "no file of the repository matches it".to_owned();
                return Err(refused(pattern, problem).into());
            }
        }
        Ok(found.into_iter().collect())
    }
}

impl DataFile {
    /// Its patterns, each with its split.
    fn patterns(&self) -> Vec<(&str, &str)> {
        match self {
            Self::Path(path) => vec![(TRAIN, path.as_str())],
            Self::OfSplit { split, path } => match path {
                Paths::One(path) => vec![(split.as_str(), path.as_str())],
                Paths::Several(paths) => {
                    let paths = paths.iter().map(String::as_str);
                    paths.map(|path| (split.as_str(), path)).collect()
                }
            },
        }
    }
}

/// The front matter of a page.
fn front_matter(readme: &str) -> Option<&str> {
    let rest = readme.trim_start_matches('\u{feff}');
    let rest = rest.strip_prefix("---")?.trim_start_matches('\r');
    let rest = rest.strip_prefix('\n')?;
    let end = rest.find("\n---")?;
    Some(&rest[..end + 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 7] = [
        "README.md",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test.jsonl.gz",
        "de/all.jsonl",
        "scripts/contest.json",
        "scripts/load.py",
    ];

    fn holds_rows(path: &str) -> bool {
        [".parquet", ".jsonl", ".jsonl.gz", ".json"]
            .iter()
            .any(|ending| path.ends_with(ending))
    }

    fn chosen_of(
        files: &[&str],
        target: (&str, &str),
        readme: Option<&str>,
    ) -> Result<Vec<String>> {
        let files = DatasetFiles {
            place: "hf://datasets/a/b",
            paths: files.to_vec(),
            readme,
            is_converted: readme == Some(CONVERTED),
            holds_rows,
        };
        files.choose(Wanted {
            config: Some(target.0).filter(|text| !text.is_empty()),
            split: Some(target.1).filter(|text| !text.is_empty()),
        })
    }

    fn chosen(target: (&str, &str), readme: Option<&str>) -> Result<Vec<String>> {
        chosen_of(&FILES, target, readme)
    }

    fn refused(found: Result<Vec<String>>, part: &str) {
        let error = found.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn names_tell_the_splits() {
        assert_eq!(chosen(("", ""), None).unwrap(), FILES[1..3]);
        // Names of shards come first, so that other files are none of its splits.
        refused(chosen(("default", "test"), None), "has no split `test`");
        refused(
            chosen(("", "validation"), None),
            "has no split `validation`",
        );
        assert!(chosen(("de", ""), None).is_err());

        let named = |files: &[&str], split| chosen_of(files, ("", split), None);
        let shards = [
            "data/train_gen-00000-of-00001.parquet",
            "data/train_sft-00000-of-00001-ab12.parquet",
        ];
        assert_eq!(named(&shards, "train_sft").unwrap(), shards[1..]);
        refused(named(&shards, ""), "has no split `train`");
        // Folders come before files, and words are whole.
        let folders = ["train/test.jsonl", "dev-2/a.jsonl", "contest/b.jsonl"];
        assert_eq!(named(&folders, "").unwrap(), folders[..1]);
        assert_eq!(named(&folders, "validation").unwrap(), folders[1..2]);
        assert_eq!(named(&folders[2..], "").unwrap(), folders[2..]);
        let files = [
            "a_train1.jsonl",
            "b.test.jsonl",
            "dataset_infos.json",
            ".train/c.jsonl",
        ];
        assert_eq!(named(&files, "").unwrap(), files[..1]);
    }

    #[test]
    fn what_is_held_back_or_cannot_be_read_is_not_trained_on() {
        let named = |files: &[&str]| chosen_of(files, ("", ""), None);
        refused(named(&["test.jsonl"]), "has no split `train`");
        refused(named(&["train.csv", "test.jsonl"]), "`train.csv`");
        refused(named(&["a.jsonl", "b.arrow"]), "`b.arrow`");
        let all = "---\nconfigs:\n- config_name: x\n  data_files: '**'\n---\n";
        refused(chosen(("", ""), Some(all)), "`README.md`");
        let held_back = "---\nconfigs:\n- config_name: x\n  data_files:\n  - {split: test, path: '**/*.jsonl'}\n---\n";
        refused(chosen(("", ""), Some(held_back)), "has no split `train`");
        assert_eq!(chosen(("", "test"), Some(held_back)).unwrap(), [FILES[4]]);
    }

    #[test]
    fn converted_rows_are_in_folders_of_configurations_and_splits() {
        let files = [
            "README.md",
            "de/train/0000.parquet",
            "de/train/0001.parquet",
            "en/partial-train/0000.parquet",
            "en/test/0000.parquet",
        ];
        let found = |config, split| chosen_of(&files, (config, split), Some(CONVERTED));
        assert_eq!(found("de", "").unwrap(), files[1..3]);
        assert_eq!(found("en", "test").unwrap(), files[4..]);
        refused(found("en", ""), "has no split `train`");
        refused(found("", ""), "expected the name of a configuration");
        refused(found("fr", ""), "has no configuration `fr`");
        let partial = |split| chosen_of(&files[3..4], ("en", split), Some(CONVERTED));
        refused(partial(""), "has no split `train`");
        assert_eq!(partial("partial-train").unwrap(), files[3..4]);
    }

    #[test]
    fn front_matter_lists_configurations() {
        let readme = "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n\
                      - config_name: de\n  data_dir: de\n- config_name: all\n  data_files: ['data/*', de/*.jsonl]\n---\n# Title\n";
        assert_eq!(chosen(("", ""), Some(readme)).unwrap(), FILES[1..3]);
        assert_eq!(chosen(("de", ""), Some(readme)).unwrap(), [FILES[4]]);
        assert_eq!(chosen(("all", "train"), Some(readme)).unwrap().len(), 4);
        refused(
            chosen(("fr", ""), Some(readme)),
            "has no configuration `fr`",
        );
        let only =
            |files: &str| format!("---\nconfigs:\n- config_name: x\n  data_files: {files}\n---\n");
        let elsewhere = only("hf://datasets/c/d/e.jsonl");
        refused(chosen(("", ""), Some(&elsewhere)), "another place");
        refused(chosen(("", ""), Some(&only("nothing/*.jsonl"))), "no file");
        // Names in a folder count below it only.
        let within = "---\nconfigs:\n- config_name: x\n  data_dir: ./test/\n---\n";
        let files = ["test/a.jsonl", "b.jsonl"];
        assert_eq!(
            chosen_of(&files, ("", ""), Some(within)).unwrap(),
            files[..1]
        );
    }

    #[test]
    fn a_page_of_many_patterns_is_refused() {
        let patterns = "x,".repeat(2000);
        let readme = format!("---\nconfigs:\n- config_name: x\n  data_files: [{patterns}]\n---\n");
        refused(chosen(("", ""), Some(&readme)), "2000 patterns");
    }
}
