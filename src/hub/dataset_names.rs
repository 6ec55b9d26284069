//! The splits of a dataset that names of files and folders tell, as the `datasets` library reads them.

use std::collections::{BTreeMap, BTreeSet};

/// The split that is meant where none is named.
pub(super) const TRAIN: &str = "train";
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
/// Files beside the rows, and the endings of further ones.
const BESIDE: [&str; 6] = [
    "LICENSE",
    "config.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
];
const ENDINGS_BESIDE: [&str; 2] = [".md", ".py"];

/// Splits with their files.
pub(super) type Splits<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// Whether a split of this name is for measuring.
pub(super) fn is_held_back(name: &str) -> bool {
    WORDS
        .iter()
        .any(|(word, split)| *word == name && *split != TRAIN)
}

/// The splits that names of files and folders tell below a folder of so many bytes. That is names such as
/// `data/SPLIT-00000-of-00002.parquet` if there are any, else words in folders, else words in files. All files are for
/// training where none tells a split.
pub(super) fn by_names<'a>(paths: &[&'a str], folder: usize) -> Splits<'a> {
    let group = |splits_of: fn(&'a str) -> Vec<&'a str>| {
        let mut splits = Splits::new();
        for path in paths.iter().filter(|path| !is_beside(path)) {
            for split in splits_of(&path[folder..]) {
                splits.entry(split).or_default().push(path);
            }
        }
        splits
    };
    let ways: [fn(&'a str) -> Vec<&'a str>; 4] = [
        |path| of_shard(path).into_iter().collect(),
        |path| {
            path.rsplit_once('/')
                .map_or(Vec::new(), |(folder, _)| of_words(folder))
        },
        |path| of_words(path.rsplit('/').next().unwrap_or(path)),
        |_| vec![TRAIN],
    ];
    let found = ways.into_iter().map(group);
    let mut found = found.filter(|splits| !splits.is_empty());
    found.next().unwrap_or_default()
}

/// Whether a file is beside the rows of a dataset, and none of them.
fn is_beside(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_hidden = path.split('/').any(|name| name.starts_with('.'));
    let ends = ENDINGS_BESIDE.iter().any(|ending| name.ends_with(ending));
    is_hidden || ends || BESIDE.contains(&name)
}

/// The split of `data/SPLIT-00000-of-00002….ENDING`.
fn of_shard(path: &str) -> Option<&str> {
    let (before, after) = path.strip_prefix("data/")?.split_once("-of-")?;
    let (split, number) = before.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let is_split = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let is_one = is_number(number)
        && after.get(..5).is_some_and(is_number)
        && after.contains('.')
        && !after.contains('/');
    (is_one && !split.is_empty() && split.chars().all(is_split)).then_some(split)
}

/// The splits whose words a text has.
fn of_words(text: &str) -> Vec<&str> {
    let ends = |c: char| c.is_ascii_digit() || "/-._ ".contains(c);
    let known = |word: &str| WORDS.iter().find(|(known, _)| *known == word);
    let splits = text.split(ends).filter_map(known);
    let splits: BTreeSet<&str> = splits.map(|(_, split)| *split).collect();
    splits.into_iter().collect()
}
