//! A repository: commits, the files in each, and the names that point at them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use axum::body::Bytes;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use crate::refusal::{Answer, Refusal};

/// What a new repository holds, as on the Hub.
pub(crate) const ATTRIBUTES: &str = "*.7z filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n\
*.gguf filter=lfs diff=lfs merge=lfs -text\n*.h5 filter=lfs diff=lfs merge=lfs -text\n*.npz filter=lfs diff=lfs merge=lfs -text\n\
*.onnx filter=lfs diff=lfs merge=lfs -text\n*.parquet filter=lfs diff=lfs merge=lfs -text\n*.pt filter=lfs diff=lfs merge=lfs -text\n\
*.pth filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.zip filter=lfs diff=lfs merge=lfs -text\n";

/// The files of a commit by path.
pub(crate) type Files = BTreeMap<String, Arc<Entry>>;

/// What a commit does to paths: a new entry, or none any more.
pub(crate) type Changes = BTreeMap<String, Option<Arc<Entry>>>;

/// A file in a commit.
pub(crate) struct Entry {
    pub(crate) size: u64,
    /// The git blob id: of the content, or of the LFS pointer.
    pub(crate) oid: String,
    pub(crate) content: Content,
}

pub(crate) enum Content {
    Regular(Bytes),
    /// An object of the LFS or Xet store, by its SHA-256.
    Large(String),
}

impl Entry {
    pub(crate) fn regular(bytes: Bytes) -> Arc<Self> {
        Arc::new(Self {
            size: bytes.len() as u64,
            oid: blob_id(&bytes),
            content: Content::Regular(bytes),
        })
    }

    pub(crate) fn large(sha256: String, size: u64) -> Arc<Self> {
        Arc::new(Self {
            size,
            oid: blob_id(pointer(&sha256, size).as_bytes()),
            content: Content::Large(sha256),
        })
    }

    /// The SHA-256 of a large file.
    pub(crate) fn sha256(&self) -> Option<&str> {
        match &self.content {
            Content::Regular(_) => None,
            Content::Large(sha256) => Some(sha256),
        }
    }

    /// The length of the LFS pointer of a large file.
    pub(crate) fn pointer_size(&self) -> Option<usize> {
        self.sha256().map(|sha256| pointer(sha256, self.size).len())
    }
}

fn pointer(sha256: &str, size: u64) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
}

/// The id that git gives to a file with this content.
fn blob_id(bytes: &[u8]) -> String {
    hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len()))
        .chain_update(bytes)
        .finalize())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) struct Commit {
    pub(crate) id: String,
    pub(crate) parent: Option<String>,
    pub(crate) title: String,
    pub(crate) message: String,
    pub(crate) date: String,
    pub(crate) files: Files,
}

/// A proposal to merge `refs/pr/N`; its number is its place in the list, from 1.
pub(crate) struct Pull {
    pub(crate) title: String,
    pub(crate) description: String,
    pub(crate) base: String,
    pub(crate) merged: Option<String>,
}

pub(crate) struct Repository {
    pub(crate) id: String,
    pub(crate) private: bool,
    pub(crate) gated: bool,
    commits: HashMap<String, Arc<Commit>>,
    /// Full names (`refs/heads/main`, `refs/tags/v1`, `refs/pr/1`) and the commits they point at.
    pub(crate) references: BTreeMap<String, String>,
    pub(crate) pulls: Vec<Pull>,
}

impl Repository {
    /// A repository with its first commit.
    pub(crate) fn new(id: &str, private: bool) -> Self {
        let mut repository = Self {
            id: id.to_owned(),
            private,
            gated: false,
            commits: HashMap::new(),
            references: BTreeMap::new(),
            pulls: Vec::new(),
        };
        let attributes = Entry::regular(Bytes::from_static(ATTRIBUTES.as_bytes()));
        let changes = [(".gitattributes".to_owned(), Some(attributes))].into();
        repository.commit("refs/heads/main", None, changes, "initial commit", "");
        repository
    }

    /// The full name of a branch, tag or pull request.
    pub(crate) fn reference(&self, name: &str) -> Option<String> {
        let candidates = [
            format!("refs/heads/{name}"),
            format!("refs/tags/{name}"),
            name.to_owned(),
        ];
        candidates
            .into_iter()
            .find(|full| self.references.contains_key(full))
    }

    /// The commit that a branch, a tag, a pull request or a commit id names.
    pub(crate) fn revision(&self, name: &str) -> Answer<Arc<Commit>> {
        let id = self
            .reference(name)
            .map_or(name, |full| &self.references[&full])
            .to_owned();
        self.commits
            .get(&id)
            .cloned()
            .ok_or_else(|| Refusal::revision(name))
    }

    /// The commit and its ancestors, newest first.
    pub(crate) fn history(&self, newest: Arc<Commit>) -> Vec<Arc<Commit>> {
        let parent = |commit: &Arc<Commit>| {
            commit
                .parent
                .as_ref()
                .and_then(|id| self.commits.get(id))
                .cloned()
        };
        std::iter::successors(Some(newest), parent).collect()
    }

    /// Puts a commit with `changes` to the files of `parent` where `reference` points.
    pub(crate) fn commit(
        &mut self,
        reference: &str,
        parent: Option<&Commit>,
        changes: Changes,
        title: &str,
        message: &str,
    ) -> String {
        let mut files = parent
            .map(|parent| parent.files.clone())
            .unwrap_or_default();
        for (path, entry) in changes {
            match entry {
                Some(entry) => files.insert(path, entry),
                None => files.remove(&path),
            };
        }
        let number = self.commits.len();
        let mut text = format!("{} {reference} {number} {title}\n{message}\n", self.id);
        files
            .iter()
            .for_each(|(path, entry)| text.push_str(&format!("{} {path}\n", entry.oid)));
        let id = hex(&Sha1::digest(text));
        let date = format!(
            "2026-01-{:02}T{:02}:{:02}:00.000Z",
            number / 1440 % 28 + 1,
            number / 60 % 24,
            number % 60
        );
        let parent = parent.map(|parent| parent.id.clone());
        let commit = Commit {
            id: id.clone(),
            parent,
            title: title.to_owned(),
            message: message.to_owned(),
            date,
            files,
        };
        self.commits.insert(id.clone(), Arc::new(commit));
        self.references.insert(reference.to_owned(), id.clone());
        id
    }

    /// Opens a pull request from `base`; its number.
    pub(crate) fn open(&mut self, base: &Commit, title: &str, description: &str) -> usize {
        self.pulls.push(Pull {
            title: title.to_owned(),
            description: description.to_owned(),
            base: base.id.clone(),
            merged: None,
        });
        let number = self.pulls.len();
        self.references
            .insert(format!("refs/pr/{number}"), base.id.clone());
        number
    }

    /// Merges pull request `number` into main.
    pub(crate) fn merge(&mut self, number: usize) -> Answer<()> {
        let missing = || Refusal::new(404, "Discussion not found");
        let pull = number
            .checked_sub(1)
            .and_then(|place| self.pulls.get(place))
            .ok_or_else(missing)?;
        if pull.merged.is_some() {
            return Err(Refusal::new(409, "This pull request is merged already"));
        }
        let (base, title) = (
            self.revision(&pull.base)?,
            format!("{} (#{number})", pull.title),
        );
        let (theirs, main) = (
            self.revision(&format!("refs/pr/{number}"))?,
            self.revision("main")?,
        );
        let of = |files: &Files, path: &str| files.get(path).map(|entry| entry.oid.clone());
        let paths: BTreeSet<&String> = base.files.keys().chain(theirs.files.keys()).collect();
        let mut changes = Changes::new();
        for path in paths
            .into_iter()
            .filter(|path| of(&base.files, path) != of(&theirs.files, path))
        {
            if of(&base.files, path) != of(&main.files, path) {
                return Err(Refusal::new(409, format!("Merge conflict in {path}")));
            }
            changes.insert(path.clone(), theirs.files.get(path).cloned());
        }
        let id = self.commit("refs/heads/main", Some(&main), changes, &title, "");
        self.pulls[number - 1].merged = Some(id);
        Ok(())
    }

    /// The references below `prefix`, as `refs` lists them.
    pub(crate) fn listed(&self, prefix: &str) -> Vec<Value> {
        let below = self
            .references
            .iter()
            .filter_map(|(full, id)| Some((full.strip_prefix(prefix)?, full, id)));
        below
            .map(|(name, full, id)| json!({"name": name, "ref": full, "targetCommit": id}))
            .collect()
    }
}

/// Whether a line of `.gitattributes` that asks for LFS, or of `.gitignore`, covers `path`: names, `*` anywhere in them,
/// folders with a trailing slash or `/**`.
pub(crate) fn covers(pattern: &str, path: &str) -> bool {
    let pattern = pattern.trim_start_matches('/');
    if let Some(folder) = pattern
        .strip_suffix("/**")
        .or_else(|| pattern.strip_suffix('/'))
    {
        return path.starts_with(&format!("{folder}/")) || path.contains(&format!("/{folder}/"));
    }
    let name = if pattern.contains('/') {
        path
    } else {
        path.rsplit('/').next().unwrap_or(path)
    };
    let mut parts = pattern.split('*');
    let (Some(first), last) = (parts.next(), parts.next_back()) else {
        return false;
    };
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let Some(last) = last else {
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Whether `.gitattributes` puts `path` into LFS.
pub(crate) fn wants_lfs(attributes: &str, path: &str) -> bool {
    let mut patterns = attributes
        .lines()
        .filter(|line| line.contains("filter=lfs"))
        .filter_map(|line| line.split_whitespace().next());
    patterns.any(|pattern| covers(pattern, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("*.safetensors", "a/model.safetensors", true),
            ("*.safetensors", "model.safetensors.index.json", false),
            ("*tfevents*", "runs/events.tfevents.1", true),
            ("saved/**", "saved/a/b", true),
            ("logs/", "logs/a", true),
            ("logs/", "catalogs/a", false),
            ("a.txt", "b/a.txt", true),
            ("a.txt", "b/a.txt2", false),
        ] {
            assert_eq!(covers(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn ids_are_those_of_git() {
        assert_eq!(
            blob_id(b"hello\n"),
            "ce013625030ba8dba906f756967f9e9ca394464a"
        );
    }
}
