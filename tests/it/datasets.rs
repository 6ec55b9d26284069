//! `tokenize hf://datasets/…` against a Hub server on loopback: which files are read, and what is recorded.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hub_server::Options;
use serde_json::Value;

use crate::common::{Run, bam, fixture, read_json};
use crate::hub::{World, put};
use crate::tokenize::{lines, shards, texts, write};

/// Patterns that cost exponential time where every way to match is tried.
const HOSTILE: &str = "---\nconfigs:\n- config_name: x\n  data_files: '**/*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b'\n---\n";

const README: &str = "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n  \
                      - split: test\n    path: data/test.jsonl\n- config_name: de\n  data_dir: de\n---\n# A corpus\n";

/// The files of a dataset, and a Hub that holds them.
struct Corpus {
    world: World,
    files: BTreeMap<String, Vec<u8>>,
    commit: String,
}

impl Corpus {
    fn new() -> Self {
        let world = World::with(Options::default());
        let texts = texts(24);
        let parts = [
            ("data/train-00000.jsonl", &texts[..9]),
            ("data/train-00001.jsonl", &texts[9..16]),
            ("data/test.jsonl", &texts[16..20]),
            ("de/all.jsonl", &texts[20..]),
        ];
        let mut files: BTreeMap<String, Vec<u8>> = parts
            .into_iter()
            .map(|(name, texts)| (name.to_owned(), lines(texts, "text").into_bytes()))
            .collect();
        files.insert("README.md".to_owned(), README.into());
        let commit = put(&world.server, "org/corpus", &files);
        Self {
            world,
            files,
            commit,
        }
    }

    fn tokenize(&self, reference: &str, out: &str) -> Run {
        let (seed, out) = (fixture("llama/seed"), self.world.path(out));
        self.world.run(&[
            "tokenize",
            reference,
            "--tokenizer",
            seed.to_str().unwrap(),
            "--validation",
            "0",
            "--out",
            out.to_str().unwrap(),
        ])
    }

    /// The token folder of files of the dataset that lie here.
    fn local(&self, names: &[&str]) -> PathBuf {
        let folder = self.world.path(&format!("local-{}", names.len()));
        for name in names {
            write(folder.join("files").join(name), &self.files[*name]);
        }
        let out = folder.join("out");
        bam!(
            "tokenize",
            folder.join("files"),
            "--tokenizer",
            fixture("llama/seed"),
            "--validation",
            "0",
            "--out",
            out
        )
        .ok();
        out
    }
}

#[test]
fn rows_of_a_dataset_are_read_and_recorded_with_the_commit() {
    let corpus = Corpus::new();
    corpus.tokenize("hf://datasets/org/corpus", "train").ok();
    let train = corpus.local(&["data/train-00000.jsonl", "data/train-00001.jsonl"]);
    let out = corpus.world.path("train");
    assert_eq!(shards(&out), shards(&train));
    let source =
        |out: &str| read_json(corpus.world.path(out).join("header.json"))["sources"][0].clone();
    let of_commit = format!("hf://datasets/org/corpus@{}", corpus.commit);
    let (found, local) = (
        source("train"),
        read_json(train.join("header.json"))["sources"][0].clone(),
    );
    assert_eq!(found["path"], of_commit);
    for key in ["files", "bytes", "sha256"] {
        assert_eq!(found[key], local[key], "{key}");
    }
    let cache = corpus.world.path("hf/hub/datasets--org--corpus/snapshots");
    assert!(
        cache
            .join(&corpus.commit)
            .join("data/train-00001.jsonl")
            .exists()
    );
    assert!(!cache.join(&corpus.commit).join("data/test.jsonl").exists());

    // What is here is not transferred again.
    let requests = corpus.world.server.requests().len();
    corpus.tokenize(&of_commit, "again").ok();
    assert_eq!(shards(&corpus.world.path("again")), shards(&train));
    let later = corpus.world.server.requests().split_off(requests);
    assert!(
        later
            .iter()
            .all(|request| !request.target.contains("/resolve/")),
        "{later:?}"
    );

    corpus
        .tokenize("hf://datasets/org/corpus:default/test", "test")
        .ok();
    assert_eq!(
        shards(&corpus.world.path("test")),
        shards(&corpus.local(&["data/test.jsonl"]))
    );
    let named = format!("{of_commit}:default/test");
    assert_eq!(source("test")["path"], Value::from(named));
}

#[test]
fn rows_that_a_dataset_lacks_are_refused() {
    let corpus = Corpus::new();
    for (reference, parts) in [
        (
            "hf://datasets/org/corpus:fr",
            &["has no configuration `fr`", "default, de"] as &[&str],
        ),
        (
            "hf://datasets/org/corpus:default/validation",
            &["has no split `validation`", "train, test"],
        ),
        (
            "hf://datasets/org/corpus:",
            &["expected CONFIG or CONFIG/SPLIT"],
        ),
        (
            "hf://datasets/org/nothing",
            &["hf://datasets/org/nothing", "not found"],
        ),
        ("hf://org/corpus", &["only a checkpoint"]),
    ] {
        corpus.tokenize(reference, "out").refused(2, parts);
        assert!(!corpus.world.path("out").exists(), "{reference}");
    }
}

#[test]
fn what_is_wrong_here_is_said_before_anything_is_pulled() {
    let corpus = Corpus::new();
    write(corpus.world.path("taken/file"), "x");
    let before = corpus.world.server.requests().len();
    let taken = corpus.tokenize("hf://datasets/org/corpus", "taken");
    assert_ne!(taken.code, Some(0));
    assert_eq!(corpus.world.server.requests().len(), before);
}

#[test]
fn a_dataset_is_no_checkpoint_and_no_text_of_other_commands() {
    let corpus = Corpus::new();
    let seed = fixture("llama/seed");
    let seed = seed.to_str().unwrap();
    let before = corpus.world.server.requests().len();
    for arguments in [
        &["inspect", "hf://datasets/corpus"] as &[&str],
        &["eval", seed, "--data", "a=hf://datasets/org/corpus"],
    ] {
        let run = corpus.world.run(arguments);
        assert_ne!(run.code, Some(0), "{arguments:?}");
    }
    assert_eq!(corpus.world.server.requests().len(), before);
}

#[test]
fn a_hostile_page_costs_little() {
    let mut corpus = Corpus::new();
    corpus.files.insert("README.md".to_owned(), HOSTILE.into());
    let letters = "a".repeat(250);
    let long = format!("{letters}/{letters}/{letters}.jsonl");
    corpus.files.insert(long, b"{}\n".to_vec());
    put(&corpus.world.server, "org/hostile", &corpus.files);
    let run = corpus.tokenize("hf://datasets/org/hostile", "out");
    run.refused(2, &["README.md", "no file of the repository matches it"]);
}
