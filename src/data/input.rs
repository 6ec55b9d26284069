//! Which files to read, and as what.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::DataError;
use crate::{Error, Result};

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One document.
    Text,
    /// A JSON object a line, one document each.
    JsonLines,
    /// A table, a document a row.
    Parquet,
}

/// How a file is compressed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Endings of binary files, and of tables whose cells we do not split.
const NO_TEXT: [&str; 39] = [
    "7z",
    "arrow",
    "avro",
    "avi",
    "bin",
    "bmp",
    "bz2",
    "csv",
    "db",
    "doc",
    "docx",
    "epub",
    "exe",
    "feather",
    "gguf",
    "gif",
    "h5",
    "jpeg",
    "jpg",
    "mp3",
    "mp4",
    "npy",
    "npz",
    "orc",
    "pdf",
    "pickle",
    "pkl",
    "png",
    "pt",
    "pth",
    "rar",
    "safetensors",
    "so",
    "sqlite",
    "tar",
    "tgz",
    "tsv",
    "xz",
    "zip",
];

/// What a file is, by its name.
pub(super) fn kind(path: &Path) -> Result<(Kind, Packing)> {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().to_lowercase())
        .unwrap_or_default();
    let packed = [
        (".gz", Packing::Gzip),
        (".gzip", Packing::Gzip),
        (".zst", Packing::Zstd),
        (".zstd", Packing::Zstd),
    ];
    let unpacked = packed
        .iter()
        .find_map(|(ending, packing)| Some((name.strip_suffix(ending)?, *packing)));
    let (name, packing) = unpacked.unwrap_or((&name, Packing::Plain));
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    let kind = match ending {
        Some("jsonl" | "jsonlines" | "ndjson" | "json") => Kind::JsonLines,
        Some("parquet" | "parq") => Kind::Parquet,
        Some(ending) if NO_TEXT.contains(&ending) => {
            return Err(DataError::NotText {
                path: path.to_path_buf(),
                ending: ending.to_owned(),
            }
            .into());
        }
        _ => Kind::Text,
    };
    Ok((kind, packing))
}

/// Whether a file of this name holds documents row by row: JSON lines, plain or packed, or parquet.
pub fn holds_rows(path: &str) -> bool {
    matches!(
        kind(Path::new(path)),
        Ok((Kind::JsonLines, _) | (Kind::Parquet, Packing::Plain))
    )
}

/// The files that a path means: itself, all files below a folder, or those that a pattern (`*`, `?`, `[…]`, `**`)
/// matches; in the order of their names. Names that begin with a dot are left out of folders.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let pattern = path.to_string_lossy();
    if !path.exists() && pattern.contains(['*', '?', '[']) {
        return matching(path, &pattern);
    }
    let metadata = fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
    if metadata.is_dir() {
        below(path)
    } else {
        Ok(vec![path.to_path_buf()])
    }
}

fn matching(path: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let options = glob::MatchOptions {
        require_literal_separator: true,
        require_literal_leading_dot: true,
        ..Default::default()
    };
    let paths = glob::glob_with(pattern, options).map_err(|e| DataError::Pattern {
        path: path.to_path_buf(),
        problem: e.to_string(),
    })?;
    let mut found = Vec::new();
    for entry in paths {
        let entry = entry.map_err(|e| {
            let path = e.path().to_path_buf();
            Error::io("list", path, e.into())
        })?;
        if !entry.is_dir() {
            found.push(entry);
        }
    }
    if found.is_empty() {
        let path = path.to_path_buf();
        return Err(DataError::NoMatch { path }.into());
    }
    found.sort();
    Ok(found)
}

fn below(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![path.to_path_buf()];
    while let Some(folder) = open.pop() {
        let failed = |e| Error::io("list", &folder, e);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            match entry.file_type().map_err(failed)? {
                kind if kind.is_dir() => open.push(entry.path()),
                // A link to a folder could lead back here.
                kind if kind.is_symlink() && entry.path().is_dir() => {}
                _ => found.push(entry.path()),
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_go_by_the_ending_under_the_packing() {
        let of = |name: &str| kind(Path::new(name)).unwrap();
        assert_eq!(of("a.txt"), (Kind::Text, Packing::Plain));
        assert_eq!(of("a.rs.gz"), (Kind::Text, Packing::Gzip));
        assert_eq!(of("LICENSE"), (Kind::Text, Packing::Plain));
        assert_eq!(of("a.b.JSONL.zst"), (Kind::JsonLines, Packing::Zstd));
        assert_eq!(of("c4.json.gz"), (Kind::JsonLines, Packing::Gzip));
        assert_eq!(of("train.parquet"), (Kind::Parquet, Packing::Plain));
        for (name, expected) in [
            ("a.jsonl.zst", true),
            ("a.parquet", true),
            ("a.parquet.gz", false),
            ("a.txt", false),
            ("a.csv", false),
        ] {
            assert_eq!(holds_rows(name), expected, "{name}");
        }
        let error = kind(Path::new("a.tar.gz")).unwrap_err();
        assert!(
            matches!(&error, Error::Data(DataError::NotText { ending, .. }) if ending == "tar"),
            "{error}"
        );
    }

    #[test]
    fn patterns_and_folders_are_read_in_order() {
        let work = tempfile::tempdir().unwrap();
        fs::create_dir_all(work.path().join("b/d")).unwrap();
        for name in ["b/d/e.md", "b/c.txt", "a.txt", ".hidden"] {
            fs::write(work.path().join(name), "x").unwrap();
        }
        let names = |path: &str| {
            let found = files(&work.path().join(path)).unwrap();
            let relative = |path: &PathBuf| {
                path.strip_prefix(work.path())
                    .unwrap()
                    .display()
                    .to_string()
            };
            found.iter().map(relative).collect::<Vec<_>>()
        };
        assert_eq!(names("."), ["a.txt", "b/c.txt", "b/d/e.md"]);
        assert_eq!(names("**/*.txt"), ["a.txt", "b/c.txt"]);
        let error = files(&work.path().join("*.rs")).unwrap_err();
        assert!(
            matches!(error, Error::Data(DataError::NoMatch { .. })),
            "{error}"
        );
        assert!(files(&work.path().join("missing.txt")).is_err());
    }
}
